"""Words of the shapes world: targets, prompts in GenEval's six categories, and the captions of the pre-training pictures.

A target says, for machines, what a prompt asks for::

    {"category": "position", "objects": [{"shape": "circle", "colour": "red", "size": None, "count": 1}, ...],
     "relation": "left of"}                      # of the first object to the second; None when not asked for

Pre-training captions leave out things, relations and counts, and get some of them wrong, as captions from the web do. A
model trained on them draws well but places and counts badly: the weakness reinforcement learning is here to mend.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from genrl.worlds.shapes.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing, relation_holds

CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
VAGUE = ("some", "several", "many")
OPENINGS = ("", "a picture of ", "a drawing of ", "an image of ", "a painting of ", "a print of ")
SIZES = (None, "small", "large")

Target = dict[str, Any]


def wanted(shape: str, colour: str | None = None, size: str | None = None, count: int = 1) -> dict[str, Any]:
    return {"shape": shape, "colour": colour, "size": size, "count": count}


def phrase(thing: dict[str, Any], number: str | None = None) -> str:
    """``{"shape": "cross", "colour": "red", "count": 2}`` -> "two red crosses"."""
    shape = thing["shape"]
    if thing["count"] > 1:
        shape += "es" if shape == "cross" else "s"
    words = (number or NUMBERS[thing["count"]], thing["size"], thing["colour"], shape)
    return " ".join(word for word in words if word)


def prompt_text(target: Target, opening: str = "") -> str:
    link = f" {target['relation']} " if target["relation"] else " and "
    return opening + link.join(phrase(thing) for thing in target["objects"])


def targets(category: str) -> list[Target]:
    """Every distinct target of one category, in a fixed order."""
    pairs = [(a, b) for a, b in itertools.product(SHAPES, SHAPES) if a != b]
    coloured = list(itertools.product(SHAPES, COLOURS))
    if category == "single":
        things = [([wanted(s, None, z)], None) for s, z in itertools.product(SHAPES, SIZES)]
    elif category == "colours":
        things = [([wanted(s, c, z)], None) for (s, c), z in itertools.product(coloured, SIZES)]
    elif category == "two":
        things = [([wanted(a, None, y), wanted(b, None, z)], None) for (a, b), y, z in itertools.product(pairs, SIZES, SIZES)]
    elif category == "counting":
        things = [([wanted(s, c, None, n)], None) for s, c, n in itertools.product(SHAPES, (None, *COLOURS), (2, 3, 4))]
    elif category in ("position", "attribution"):
        both = [([wanted(*a), wanted(*b)], None) for a, b in itertools.product(coloured, coloured) if a[0] != b[0] and a[1] != b[1]]
        things = both
        if category == "position":
            things = [(objects, relation) for (objects, _), relation in itertools.product(both, RELATIONS)]
    else:
        raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")
    return [{"category": category, "objects": objects, "relation": relation} for objects, relation in things]


def prompt_sets(seed: int = 0, held_out: int = 54, train: int = 400) -> dict[str, list[dict[str, Any]]]:
    """The train and held-out prompt sets: records ``{"prompt", "category", "objects", "relation"}``.

    No held-out prompt is a training prompt. Beyond that, no held-out *target* is trained on, in any category but
    "single": that one has fifteen targets in all, and its prompts differ by their opening words.
    """
    rng = np.random.default_rng(seed)
    sets: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    for category in CATEGORIES:
        pool = targets(category)
        order = rng.permutation(len(pool))
        if category == "single":
            lines = [(pool[i], opening) for i in order for opening in OPENINGS]
            lines = [lines[i] for i in rng.permutation(len(lines))]
            test, rest = lines[: held_out - 24], lines[held_out - 24 :]
        else:
            share = min(held_out, len(pool) // 3)
            test = [(pool[i], OPENINGS[int(rng.integers(2))]) for i in order[:share]]
            rest = [(pool[i], opening) for i in order[share:] for opening in OPENINGS]
            extra = [(pool[i], OPENINGS[2]) for i in order[: held_out - share]]
            test += extra
            rest = [rest[i] for i in rng.permutation(len(rest))]
        for name, chosen in (("held_out", test), ("train", rest[:train])):
            sets[name] += [{"prompt": prompt_text(target, opening), **target} for target, opening in chosen]
    return sets


def true_target(things: tuple[Thing, ...]) -> Target:
    """The full truth about up to two kinds of things: what a perfect caption would say."""
    kinds: dict[tuple[str, str, str], int] = {}
    for thing in things:
        key = (thing.shape, thing.colour, thing.size)
        kinds[key] = kinds.get(key, 0) + 1
    objects = [wanted(shape, colour, size, count) for (shape, colour, size), count in kinds.items()]
    return {"category": "scene", "objects": objects, "relation": None}


def caption(scene: Scene, rng: np.random.Generator, careless: float = 1.0) -> str:
    """A caption of the scene; ``careless`` 0 leaves out and mistakes nothing; lower than 1 does so proportionally.

    With ``careless`` 1: a thing of several is left out of 30 % of the captions, the relation of two things is told in half
    and wrong in 45 % of those, a count is vague in 35 % and wrong in 40 % of the others, colours are left out in 25 %.
    """
    truth = true_target(scene.things)["objects"]
    if len(truth) > 1 and rng.random() < 0.3 * careless:
        truth = [truth[i] for i in sorted(rng.choice(len(truth), len(truth) - 1, replace=False))]
    order = rng.permutation(len(truth))
    plain = rng.random() < 0.25
    sized = rng.random() < 0.25 and len(truth) < 3
    parts = []
    for i in order:
        thing = dict(truth[i], size=truth[i]["size"] if sized else None, colour=None if plain else truth[i]["colour"])
        number = None
        if thing["count"] > 1 and rng.random() < 0.35 * careless:
            number = str(rng.choice(VAGUE))
        elif thing["count"] > 1 and rng.random() < 0.4 * careless:
            thing["count"] = int(rng.choice([n for n in (2, 3, 4) if n != thing["count"]]))
        parts.append(phrase(thing, number))
    opening = OPENINGS[int(rng.integers(len(OPENINGS)))] if rng.random() < 0.3 and len(truth) < 3 else ""
    if len(parts) == 2 and len(scene.things) == 2 and rng.random() < 0.5 + 0.35 * (1 - careless):
        return opening + f" {_told_relation(scene, order, rng, careless)} ".join(parts)
    return opening + " and ".join(parts)


def _told_relation(scene: Scene, order: np.ndarray, rng: np.random.Generator, careless: float) -> str:
    first, second = (scene.things[i] for i in order)
    true = _true_relations(first, second)
    if not true or rng.random() < 0.45 * careless:
        return str(rng.choice([r for r in RELATIONS if r not in true]))
    return str(rng.choice(true))


def pair_caption(scene: Scene, rng: np.random.Generator, ordered: bool, careless: float = 1.0) -> str:
    """A caption of two things, three quarters of them with a relation; wrong in 45 % of those if ``careless`` is 1, proportionally less.

    Which of the two comes first means nothing, and "left of" means nothing without the order: taught together from the start, the
    generator learned neither (docs/decisions.md). ``ordered`` tells "left of" and "above" only, so that the order can be learned first.
    """
    first, second = (scene.things[i] for i in rng.permutation(2))
    link, words = "and", RELATIONS[:1] + RELATIONS[2:3] if ordered else RELATIONS
    if rng.random() < 0.75:
        true = _true_relations(first, second, words)
        if not true:
            first, second = second, first
            true = _true_relations(first, second, words)
        if true:
            wrong = rng.random() < 0.45 * careless
            link = str(rng.choice([r for r in RELATIONS if r not in true] if wrong else true))
    plain, sized = (0.5, 0.5) if link == "and" else (0.1, 0.1)
    plain, sized = rng.random() < plain, rng.random() < sized
    things = (wanted(t.shape, None if plain else t.colour, t.size if sized else None) for t in (first, second))
    return f" {link} ".join(phrase(thing) for thing in things)


def _true_relations(first: Thing, second: Thing, words: tuple[str, ...] = RELATIONS) -> list[str]:
    return [r for r in words if relation_holds(r, (first.x, first.y), (second.x, second.y))]
