"""Scenes of the shapes world: what a picture contains, and the program that draws it.

A scene is a list of things (shape, colour, centre, radius in pixels) on a pale background. Every shape fills the box
``[-r, r]^2`` around its centre exactly, so the judge can recover centre and radius from a bounding box and draw the same
shape again. Drawing is analytic (signed distance, one pixel of anti-aliasing); nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SIZE = 64
"""Picture height and width in pixels."""

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.15, 0.15),
    "green": (0.13, 0.63, 0.25),
    "blue": (0.14, 0.30, 0.87),
    "yellow": (0.96, 0.80, 0.10),
    "purple": (0.62, 0.20, 0.72),
    "black": (0.08, 0.08, 0.10),
}
RELATIONS = ("left of", "right of", "above", "below")
RADII = {"small": (5.8, 6.7), "large": (9.0, 11.0)}
SMALL_BELOW = 8.0
"""Things with a smaller radius (pixels) are small, the others large."""
CELLS, PLAY = 4, 0.8
"""Cells in a row of the picture, and how far (pixels) a thing may sit from the middle of its place."""

_GRID_Y, _GRID_X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Thing:
    """One object: ``x, y`` centre and ``radius`` in pixels, ``rgb`` its exact colour in [0, 1]."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]

    @property
    def size(self) -> str:
        return "small" if self.radius < SMALL_BELOW else "large"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: tuple[float, float, float] = field(default=(0.93, 0.93, 0.93))


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Share of each pixel that the shape covers, ``[64, 64]`` in [0, 1]."""
    dx, dy = _GRID_X - x, _GRID_Y - y
    box = np.maximum(np.abs(dx), np.abs(dy)) - radius
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = box
    elif shape == "triangle":
        # apex (0, -r), base from (-r, r) to (r, r): two slanted half planes and the base line
        slant = (2 * np.abs(dx) - (dy + radius)) / np.sqrt(5.0)
        distance = np.maximum(slant, dy - radius)
    elif shape == "cross":
        arm = 0.36 * radius
        distance = np.maximum(np.minimum(np.abs(dx), np.abs(dy)) - arm, box)
    elif shape == "ring":
        reach = np.hypot(dx, dy)
        distance = np.maximum(reach - radius, 0.5 * radius - reach)
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes world draws {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0.0, 1.0)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: ``[3, 64, 64]`` float32 in [0, 1]."""
    image = np.empty((3, SIZE, SIZE), np.float32)
    image[:] = np.asarray(scene.background, np.float32)[:, None, None]
    for thing in scene.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)
        image += alpha * (np.asarray(thing.rgb, np.float32)[:, None, None] - image)
    return image


def relation_holds(relation: str, first: tuple[float, float], second: tuple[float, float], margin: float = 4.0) -> bool:
    """Whether ``first`` (x, y) is e.g. "left of" ``second`` by more than ``margin`` pixels. Diagonals satisfy two relations."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] > margin


def place(rng: np.random.Generator, radii: Sequence[float], gap: float = 4.0) -> list[tuple[float, float]]:
    """Random centres for boxes of the given radii, ``gap`` pixels apart.

    Small things sit in one of 4 x 4 cells, large ones where four cells meet. A cell is as large as one token of the generator,
    so that a tiny one can draw well: what is hard is to choose.
    """
    for _ in range(200):
        centres: list[tuple[float, float]] = []
        for radius in radii:
            small = radius < SMALL_BELOW
            cell = rng.integers(0, CELLS if small else CELLS - 1, 2) + (0.5 if small else 1.0)
            x, y = cell * (SIZE / CELLS) + rng.uniform(-1, 1, 2) * PLAY
            if any(max(abs(x - cx), abs(y - cy)) < radius + r + gap for (cx, cy), r in zip(centres, radii, strict=False)):
                break
            centres.append((float(x), float(y)))
        if len(centres) == len(radii):
            return centres
    raise ValueError(f"no room for {len(radii)} things of radii {[round(r, 1) for r in radii]} on {SIZE} pixels")


def build_scene(rng: np.random.Generator, specs: Sequence[tuple[str, str, str]]) -> Scene:
    """A scene with the given ``(shape, colour, size)`` things at random places, colours and background jittered."""
    radii = [float(rng.uniform(*RADII[size])) for _, _, size in specs]
    things = []
    for (shape, colour, _), radius, (x, y) in zip(specs, radii, place(rng, radii), strict=True):
        rgb = np.clip(np.asarray(COLOURS[colour]) + rng.uniform(-0.04, 0.04, 3), 0, 1)
        things.append(Thing(shape, colour, x, y, radius, tuple(float(c) for c in rgb)))
    background = 0.92 + rng.uniform(-0.05, 0.05, 3)
    return Scene(tuple(things), tuple(float(c) for c in background))


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene as the base model's pictures are: one thing, two, two to four alike, or three to four different ones."""

    def spec(small: bool = False) -> tuple[str, str, str]:
        size = "small" if small or rng.random() < 0.5 else "large"
        return str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), size

    kind = rng.random()
    if kind < 0.28:
        specs = [spec()]
    elif kind < 0.64:
        specs = [spec(), spec()]
    elif kind < 0.94:
        count = int(rng.integers(2, 5))
        specs = [spec(small=count > 2)] * count
    else:
        specs = [spec(small=True) for _ in range(int(rng.integers(3, 5)))]
    return build_scene(rng, specs)


def pair_scene(rng: np.random.Generator) -> Scene:
    """Two things of different shape and colour, as prompts about relations and attributes name them."""
    shapes, colours = rng.choice(SHAPES, 2, replace=False), rng.choice(list(COLOURS), 2, replace=False)
    sizes = ["small" if rng.random() < 0.6 else "large" for _ in range(2)]
    return build_scene(rng, [(str(shape), str(colour), size) for shape, colour, size in zip(shapes, colours, sizes, strict=True)])
