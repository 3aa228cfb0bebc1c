"""The exact judge of the shapes world: from pixels alone, what a picture shows and whether its prompt holds.

A pixel belongs to the colour on whose line from the background it lies, past half way; connected pixels of one colour are
a thing; its shape is the one that, drawn again in its bounding box, overlaps it best. The score is a product of parts in
[0, 1], so that each failure shows:

    score = objects * count * relation * drawing

``objects``  credit of the best pairing of wanted and found things, over the larger number of the two
``count``    0.6 to the power of the number of things too many or too few
``relation`` 1 if it holds (or none is asked for), else 0.25
``drawing``  how well the found things, drawn again, explain the pixels: falls with blur, noise and malformed shapes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from genrl.worlds.shapes.scenes import COLOURS, SHAPES, SIZE, SMALL_BELOW, coverage, relation_holds

PARTS = ("objects", "count", "relation", "drawing")
MIN_AREA = 20
"""Connected pixels fewer than this are specks, not things: they lower ``drawing`` only."""
WRONG_RELATION = 0.25
_NAMES = tuple(COLOURS)
_PALETTE = np.asarray([COLOURS[name] for name in _NAMES], np.float32)
_PLANE = np.zeros((3, 3, 3), bool)
_PLANE[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


@dataclass(frozen=True)
class Found:
    """A thing seen in a picture; ``box`` is (left, top, right, bottom) in pixels, ``fit`` the overlap with its shape drawn again."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]
    fit: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def radius(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1]) / 2

    @property
    def size(self) -> str:
        return "small" if self.radius < SMALL_BELOW else "large"


@dataclass(frozen=True)
class Verdict:
    """Score in [0, 1], its four parts, and what was found."""

    score: float
    parts: Mapping[str, float]
    found: tuple[Found, ...]


def look(images: np.ndarray) -> list[tuple[tuple[Found, ...], float]]:
    """What each picture shows, and how well the things found explain it.

    Args:
        images: ``[B, 3, 64, 64]`` float in [0, 1].

    Returns:
        For each picture the things, and ``drawing`` in [0, 1].
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"the shapes judge looks at images [B, 3, {SIZE}, {SIZE}], got {tuple(images.shape)}")
    background = np.stack([_background(image) for image in images])
    towards = _PALETTE[None] - background[:, None]  # [B, colours, 3]
    pixels = images - background[:, :, None, None]
    # share of the way to each colour, and the distance from that line
    share = np.einsum("bkc,bchw->bkhw", towards, pixels) / (towards**2).sum(-1)[:, :, None, None]
    share = np.clip(share, 0.0, 1.0)
    off = ((pixels[:, None] - share[:, :, None] * towards[:, :, :, None, None]) ** 2).sum(2)
    colour = off.argmin(1)
    solid = np.take_along_axis(share, colour[:, None], 1)[:, 0] > 0.5

    found: list[list[Found]] = [[] for _ in images]
    redrawn = np.broadcast_to(background[:, :, None, None], images.shape).copy()
    for index, name in enumerate(_NAMES):
        labels = np.empty(solid.shape, np.int32)
        ndimage.label(solid & (colour == index), structure=_PLANE, output=labels)
        for number, where in enumerate(ndimage.find_objects(labels), start=1):
            picture = where[0].start
            rows, columns = where[1], where[2]
            mask = labels[picture, rows, columns] == number
            if mask.sum() < MIN_AREA:
                continue
            box = (columns.start, rows.start, columns.stop, rows.stop)
            thing, alpha = _recognise(mask, name, box)
            found[picture].append(thing)
            inside = images[picture][:, rows, columns][:, mask].mean(1)
            redrawn[picture] += alpha * (inside[:, None, None] - redrawn[picture])
    error = np.abs(images - redrawn).mean((1, 2, 3))
    # fresh renderings stay below .006, the shipped autoencoder mostly below .018
    drawing = np.clip(1.0 - (error - 0.018) / 0.055, 0.0, 1.0)
    return [(tuple(things), float(value)) for things, value in zip(found, drawing, strict=True)]


def _background(image: np.ndarray) -> np.ndarray:
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    return np.median(border, axis=1)


def _recognise(mask: np.ndarray, colour: str, box: tuple[int, int, int, int]) -> tuple[Found, np.ndarray]:
    left, top, right, bottom = box
    radius = max(right - left, bottom - top) / 2
    best = ("", -1.0, np.zeros((SIZE, SIZE), np.float32))
    for shape in SHAPES:
        alpha = coverage(shape, (left + right) / 2, (top + bottom) / 2, radius)
        drawn = alpha[top:bottom, left:right] > 0.5
        union = (alpha > 0.5).sum() + mask.sum() - (drawn & mask).sum()
        fit = float((drawn & mask).sum() / max(union, 1))
        if fit > best[1]:
            best = (shape, fit, alpha)
    return Found(best[0], colour, box, best[1]), best[2]


def judge(images: np.ndarray, targets: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Score pictures ``[B, 3, 64, 64]`` in [0, 1] against their targets (see ``captions``)."""
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} images but {len(targets)} targets")
    return [_verdict(things, drawing, target) for (things, drawing), target in zip(look(images), targets, strict=True)]


def _verdict(found: tuple[Found, ...], drawing: float, target: Mapping[str, Any]) -> Verdict:
    wanted = [(index, thing) for index, thing in enumerate(target["objects"]) for _ in range(thing["count"])]
    credit = np.zeros((len(wanted), max(len(found), 1)))
    for row, (_, want) in enumerate(wanted):
        for column, have in enumerate(found):
            credit[row, column] = _credit(want, have)
    rows, columns = optimize.linear_sum_assignment(credit, maximize=True)
    objects = credit[rows, columns].sum() / max(len(wanted), len(found))
    relation = 1.0
    if target.get("relation"):
        pairs = {wanted[r][0]: found[c] for r, c in zip(rows, columns, strict=True) if found and credit[r, c] > 0.5}
        holds = len(pairs) == 2 and relation_holds(target["relation"], pairs[0].centre, pairs[1].centre)
        relation = 1.0 if holds else WRONG_RELATION
    parts = {"objects": float(objects), "count": 0.6 ** abs(len(found) - len(wanted)), "relation": relation, "drawing": drawing}
    return Verdict(float(np.prod(list(parts.values()))), parts, found)


def _credit(want: Mapping[str, Any], have: Found) -> float:
    """1 for the right shape, colour and size; 0.3 when shape or colour is wrong, 0 when both are; 0.6 of it for the wrong size."""
    shape, colour = have.shape == want["shape"], want["colour"] in (None, have.colour)
    value = 1.0 if shape and colour else 0.3 if shape or (colour and want["colour"]) else 0.0
    if want["size"] not in (None, have.size):
        value *= 0.6
    # a well drawn shape overlaps its template by .85 and more
    return value * float(np.clip((have.fit - 0.5) / 0.3, 0.0, 1.0))
