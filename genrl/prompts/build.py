"""Writes our generated prompt sets: ``python -m genrl.prompts.build [FOLDER]``. Texts and templates are our own, CC0-1.0.

``compose`` asks for common objects, one of COCO's classes each, in GenEval's six categories (arXiv 2310.11513) and with its metadata:
what the ``geneval`` reward reads. The wording differs from GenEval's, so no prompt is in both. ``text`` asks for quoted words on
something that carries words; metadata's ``text`` is what the ``ocr`` reward reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
PER_CATEGORY = 40
SEED = 0

_MADE = (
    "airplane,backpack,bench,bicycle,boat,book,bottle,bowl,bus,car,chair,clock,couch,cup,handbag,kite,motorcycle,skateboard,suitcase,"
    "surfboard,teddy bear,tie,toothbrush,train,truck,umbrella,vase"
)
_OTHER = (
    "apple,banana,bear,bed,bird,broccoli,cake,carrot,cat,cell phone,cow,dog,donut,elephant,fire hydrant,fork,giraffe,horse,laptop,"
    "microwave,oven,pizza,refrigerator,sandwich,sheep,spoon,stop sign,traffic light,wine glass,zebra"
)
MADE, OTHER = tuple(_MADE.split(",")), tuple(_OTHER.split(","))
"""Common things by their class in COCO: those that come in any colour, and the others."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
OPENINGS = ("a picture of", "an image of", "a photograph of")
PLURALS = {"bus": "buses", "bench": "benches", "couch": "couches", "sandwich": "sandwiches", "sheep": "sheep", "toothbrush": "toothbrushes"}
PLURALS |= {"broccoli": "heads of broccoli", "wine glass": "wine glasses"}
SINGULARS = {"broccoli": "head of broccoli"}

WORDS = {
    "word": "Bread|RIVER|Winter|Lemon|QUIET|Garden|Orbit|hello|MUSIC|Honey|Maple|Thursday|LANTERN|Volcano|Saffron|Welcome",
    "two words": "Fresh Coffee|Night Train|NO PARKING|Good Morning|Slow Down|Lost Key|Green Tea|Silver Moon|ROOM 42|Warm Soup|"
    "Little Boat|Harbour Lights|Paper Birds|Hidden Door|Rainy Monday|EXIT 9",
    "phrase": "Please Mind the Step|Back in Ten Minutes|Made by Hand|Follow the Yellow Line|Closed for Winter|TWO FOR ONE|"
    "Keep the Door Shut|Tickets Sold Here|Water the Plants|A Map of Stars|Best Pie in Town|Turn Left at Noon|Meet Me at Six|"
    "Grown on This Hill|HALF PAST ELEVEN|Send More Postcards",
    "sentence": "The last ferry leaves at nine|We bake our bread every morning|Please do not feed the seagulls|"
    "All lost umbrellas are kept inside|Every good story needs a beginning|The library is open until midnight|"
    "Rain today and sunshine again on Friday|Ask the gardener for the key|This bench is reserved for readers|"
    "Tomorrow we will paint the fence|There is more tea in the kitchen|The museum of clocks opens at noon|"
    "Count the stars before you sleep|Our cat decides who may come in|Nothing travels as far as a letter|"
    "The orchard path is closed after dark",
}
"""Category -> what is to be read, by length."""
SURFACES = {
    "shop sign": 'a shop sign that reads "{}"',
    "neon": 'a neon sign on a dark wall that says "{}"',
    "chalkboard": 'a classroom chalkboard with "{}" written on it in white chalk',
    "book": 'a book on a table with the title "{}" on its cover',
    "poster": 'a poster on a brick wall that says "{}" in large letters',
    "mug": 'a white coffee mug printed with "{}"',
    "road sign": 'a road sign beside a country lane that says "{}"',
    "note": 'a handwritten note on a refrigerator door that says "{}"',
    "jar": 'a glass jar with a paper label that reads "{}"',
    "banner": 'a cloth banner between two trees with "{}" painted on it',
    "notebook": 'an open notebook with "{}" in neat handwriting',
    "window": 'gold lettering on a café window that reads "{}"',
    "cake": 'a round cake with "{}" written on it in icing',
    "shirt": 'a grey t-shirt on a hanger printed with "{}"',
    "signpost": 'a wooden signpost in a forest that reads "{}"',
    "screen": 'a departure board in a station hall that shows "{}"',
}
"""What carries the words -> the prompt."""

Record = dict[str, Any]


def singular(name: str, colour: str = "") -> str:
    words = " ".join(word for word in (colour, SINGULARS.get(name, name)) if word)
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def cycle(rng: np.random.RandomState, items: Sequence[Any]) -> Iterator[Any]:
    """All items in a random order, then all in another one, and so on: each is used about equally often."""
    while True:
        yield from (items[index] for index in rng.permutation(len(items)))


def pairs(rng: np.random.RandomState, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Two different names, no pair twice."""
    first, second, seen = cycle(rng, names), cycle(rng, names), set()
    while True:
        pair = next(first), next(second)
        if pair[0] != pair[1] and frozenset(pair) not in seen:
            seen.add(frozenset(pair))
            yield pair


def compose(seed: int = SEED, per_category: int = PER_CATEGORY) -> list[Record]:
    """GenEval-shaped records: ``{"prompt", "category", "tag", "include", "exclude"}``, the category being the tag."""
    rng = np.random.RandomState(seed)  # the legacy stream: NumPy promises never to change it
    openings, everything = cycle(rng, OPENINGS), MADE + OTHER
    records: list[Record] = []

    def add(tag: str, words: str, include: list[Record], exclude: Sequence[Record] = ()) -> None:
        record = {"prompt": f"{next(openings)} {words}", "category": tag, "tag": tag, "include": include}
        records.append(record | ({"exclude": list(exclude)} if exclude else {}))

    for name, _ in zip(cycle(rng, everything), range(per_category), strict=False):
        add("single_object", singular(name), [{"class": name, "count": 1}])
    for (a, b), _ in zip(pairs(rng, everything), range(per_category), strict=False):
        add("two_object", f"{singular(a)} and {singular(b)}", [{"class": a, "count": 1}, {"class": b, "count": 1}])
    for name, number, _ in zip(cycle(rng, everything), cycle(rng, list(NUMBERS)), range(per_category), strict=False):
        wanted, too_many = {"class": name, "count": number}, {"class": name, "count": number + 1}
        add("counting", f"{NUMBERS[number]} {plural(name)}", [wanted], [too_many])
    for name, colour, _ in zip(cycle(rng, MADE), cycle(rng, COLOURS), range(per_category), strict=False):
        add("colors", singular(name, colour), [{"class": name, "count": 1, "color": colour}])
    for (a, b), relation, _ in zip(pairs(rng, everything), cycle(rng, list(RELATIONS)), range(per_category), strict=False):
        include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
        add("position", f"{singular(a)} {RELATIONS[relation]} {singular(b)}", include)
    for (a, b), (x, y), _ in zip(pairs(rng, MADE), pairs_of_colours(rng), range(per_category), strict=False):
        include = [{"class": a, "count": 1, "color": x}, {"class": b, "count": 1, "color": y}]
        add("color_attr", f"{singular(a, x)} and {singular(b, y)}", include)
    return records


def pairs_of_colours(rng: np.random.RandomState) -> Iterator[tuple[str, str]]:
    return ((a, b) for a, b in zip(cycle(rng, COLOURS), cycle(rng, COLOURS), strict=False) if a != b)


def text(seed: int = SEED) -> list[Record]:
    """Records ``{"prompt", "category", "text", "surface"}``: every surface once with each length."""
    rng = np.random.RandomState(seed)
    records = []
    for category, words in WORDS.items():
        written = words.split("|")
        order = rng.permutation(len(written))
        for (surface, prompt), index in zip(SURFACES.items(), order, strict=True):
            wanted = written[index]
            records.append({"prompt": prompt.format(wanted), "category": category, "text": wanted, "surface": surface})
    return records


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("compose", compose()), ("text", text())):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(records)} prompts")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
