"""Folders of pictures that were drawn elsewhere: which picture shows which prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from genrl.comparison.subjects import Subject, SubjectError
from genrl.data import INDEX, PICTURES, text_of
from genrl.pixels import as_rgb
from genrl.types import Prompt

OURS = re.compile(r"(\d+)-(\d+)$")


def fewest(subject: Subject, prompts: Sequence[Prompt]) -> int:
    """Pictures that a folder has of every prompt; see ``assigned`` for what it raises."""
    found = assigned(Path(subject.source).expanduser(), prompts)
    return min(len(found.get(place, ())) for place in range(len(prompts)))


def opened(path: Path) -> Image.Image:
    """A picture drawn elsewhere, in RGB.

    Raises:
        SubjectError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return as_rgb(picture)
    except Exception as error:  # readers raise whatever they stumble over
        raise SubjectError(f"{str(path)!r} cannot be read as a picture: {error}") from error


def assigned(source: Path, prompts: Sequence[Prompt]) -> dict[int, list[Path]]:
    """Place of a prompt -> its pictures, in the order of their names.

    Understood are ``images.jsonl``, names like ours (``00007-2.png``), GenEval's ``00007/samples/0002.png``, and else all pictures in the
    order of their names, as many of each prompt as of the next. Numbers in names are ordered as numbers.

    Raises:
        SubjectError: names that do not say which picture shows which prompt, or say it of a prompt that is not there, or twice.
    """
    if (source / INDEX).is_file():
        return _indexed(source, prompts)
    files = sorted((path for path in source.rglob("*") if _shown(path.relative_to(source)) and path.is_file()), key=_in_order)
    found: dict[int, dict[str, Path]] = {}
    for path in files:
        if named := _named(path):
            place, image = named
            if other := found.setdefault(place, {}).get(image):
                raise SubjectError(f"{str(other)!r} and {str(path)!r} are both called image {image} of prompt {place}: leave one")
            found[place][image] = path
    if beyond := [place for place in found if place >= len(prompts)]:
        raise SubjectError(
            f"{str(source)!r} has pictures of prompt {beyond[0]}, and the list has {len(prompts)}, counted from 0: give the list that they "
            "were drawn from, whole"
        )
    if found:
        return {place: list(paths.values()) for place, paths in found.items()}
    each, left = divmod(len(files), len(prompts))
    if left or not each:
        raise SubjectError(
            f"{str(source)!r} has {len(files)} pictures for {len(prompts)} prompts{_gap(files)}, and their names do not say which shows "
            f'what: name them 00000-0.png (prompt, image), or write beside them an {INDEX} of lines {{"image": "a.png", "prompt": "..."}}'
        )
    return {place: files[place * each : (place + 1) * each] for place in range(len(prompts))}


def _shown(name: Path) -> bool:
    return name.suffix.lower() in PICTURES and not any(part.startswith(".") for part in name.parts)


def _in_order(path: Path) -> tuple[list[Any], str]:
    """``2.png`` before ``10.png``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))], str(path)


def _gap(files: Sequence[Path]) -> str:
    """Which number is missing in names that are nothing else, in words."""
    numbers = sorted(int(file.stem) for file in files if file.stem.isdecimal())
    missing = sorted(set(range(numbers[0], numbers[-1])) - {*numbers}) if len(numbers) == len(files) > 0 else []
    return f" (there is no {missing[0]}{files[0].suffix} between {numbers[0]} and {numbers[-1]})" if missing else ""


def _named(path: Path) -> tuple[int, str] | None:
    """The place of a picture's prompt and the picture's own number, from a name like ours or GenEval's."""
    if ours := OURS.fullmatch(path.stem):
        return int(ours[1]), str(int(ours[2]))
    of_geneval = path.parent.name == "samples" and path.parent.parent.name.isdecimal()
    return (int(path.parent.parent.name), path.stem) if of_geneval else None


def _indexed(source: Path, prompts: Sequence[Prompt]) -> dict[int, list[Path]]:
    places = {prompt.text.strip(): place for place, prompt in enumerate(prompts)}
    found: dict[int, list[Path]] = {}
    for line in read_index(source):
        if (text := line["prompt"].strip()) in places:
            found.setdefault(places[text], []).append(source / line["image"])
    return found


def read_index(source: Path) -> list[dict[str, Any]]:
    """The lines of a folder's ``images.jsonl``.

    Raises:
        SubjectError: a line that does not name a picture and its prompt.
    """
    lines = []
    for number, text in enumerate(text_of(source / INDEX).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            known = isinstance(line["prompt"], str) and ".." not in (name := Path(line["image"])).parts and not name.is_absolute()
        except (json.JSONDecodeError, KeyError, TypeError):
            known, line = False, {}
        if not known or not (source / line["image"]).is_file():
            raise SubjectError(f'{source / INDEX}:{number}: wants {{"image": a file in this folder, "prompt": its text}}; got {text[:80]}')
        lines.append(line)
    return lines
