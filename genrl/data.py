"""Prompt sets, and which prompts a round draws.

A prompt file is ``.txt`` (a prompt a line), ``.jsonl`` (objects with "prompt", optionally "category", the rest is
metadata) or ``.csv`` with a "prompt" column. The sets of ``BUILT_IN`` ship inside the package.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from genrl import seeds
from genrl.pixels import as_rgb
from genrl.types import Conditioning, Prompt

BUILT_IN = {
    "mini": ("genrl.prompts", "mini.jsonl"),
    "compose": ("genrl.prompts", "compose.jsonl"),
    "text": ("genrl.prompts", "text.jsonl"),
    "shapes": ("genrl.worlds.shapes", "assets/prompts/held_out.jsonl"),
    "shapes/train": ("genrl.worlds.shapes", "assets/prompts/train.jsonl"),
    "shapes/held_out": ("genrl.worlds.shapes", "assets/prompts/held_out.jsonl"),
}
"""Name of a prompt set -> package and file in it; ``shapes`` is another name of ``shapes/held_out``."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
INDEX = "images.jsonl"
"""In a folder of pictures drawn elsewhere: lines {"image": name, "prompt": text}."""


class PromptError(ValueError):
    """A prompt set that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts and their embeddings, row by row."""

    prompts: Sequence[Prompt]
    cond: Conditioning

    def rows(self, indices: Sequence[int]) -> PromptSet:
        return PromptSet([self.prompts[i] for i in indices], self.cond.index(torch.tensor(indices)))


def load_prompts(source: str | Path) -> list[Prompt]:
    """Read a prompt set by built-in name or file path.

    Raises:
        PromptError: unknown name, missing file, a line that is no prompt, or nothing in it.
    """
    if str(source) in BUILT_IN:
        package, name = BUILT_IN[str(source)]
        path = Path(str(resources.files(package))) / name
    else:
        path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(str(source), BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"built in: {', '.join(BUILT_IN)}"
        raise PromptError(f"no prompt file {str(path)!r}, nor a built-in set of that name; {hint}")
    prompts = _READERS[path.suffix](path) if path.suffix in _READERS else _unknown(path)
    if not prompts:
        raise PromptError(f"{path}: no prompts in it; write at least one")
    return prompts


def _unknown(path: Path) -> list[Prompt]:
    raise PromptError(f"{path}: prompt files end in {', '.join(_READERS)}")


def text_of(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        PromptError: another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not text in UTF-8 ({error}); save it in that encoding") from None


def _read_text(path: Path) -> list[Prompt]:
    return [Prompt(line.strip()) for line in text_of(path).splitlines() if line.strip()]


def _prompt(record: object, where: str) -> Prompt:
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
        raise PromptError(f'{where}: wants an object with a non-empty "prompt", got {str(record)[:80]}')
    return Prompt(record["prompt"], str(record.get("category") or ""), {k: v for k, v in record.items() if k != "prompt"})


def _read_jsonl(path: Path) -> list[Prompt]:
    prompts = []
    # not splitlines: a string in JSON may hold what that takes for the end of a line
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}:{number}: not JSON ({error})") from None
        prompts.append(_prompt(record, f"{path}:{number}"))
    return prompts


def _read_csv(path: Path) -> list[Prompt]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [_prompt(dict(row), f"{path}:{number}") for number, row in enumerate(csv.DictReader(file), start=2)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: no table in UTF-8 ({error})") from None


_READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".csv": _read_csv}


def load_images(folder: str | Path, count: int, size: tuple[int, int]) -> torch.Tensor:
    """The first ``count`` pictures of a folder by name, cropped to the middle and resized: uint8 ``[N, 3, H, W]``, a quarter of float32.

    Raises:
        PromptError: no such folder, or no picture in it.
    """
    folder = Path(folder).expanduser()
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)[:count] if folder.is_dir() else []
    if not paths:
        raise PromptError(f"no pictures ({', '.join(PICTURES)}) in {str(folder)!r}: data.real names a folder of real images, or 'shapes'")
    height, width = size
    images = []
    for path in paths:
        with Image.open(path) as picture:
            fitted = ImageOps.fit(as_rgb(picture), (width, height), Image.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.array(fitted)).permute(2, 0, 1))
    return torch.stack(images)


def repeated(prompts: Sequence[Prompt], times: Mapping[str, int]) -> list[int]:
    """Indices of prompts, each as often as its category is in an epoch: ``times``, 1 for a category not named, 0 leaves it out.

    Raises:
        PromptError: a category that no prompt has, or nothing left.
    """
    if unknown := times.keys() - {prompt.category for prompt in prompts}:
        known = ", ".join(sorted({prompt.category for prompt in prompts}))
        raise PromptError(f"data.repeat names {', '.join(map(repr, sorted(unknown)))}; the categories of the prompts are: {known}")
    found = [index for index, prompt in enumerate(prompts) for _ in range(times.get(prompt.category, 1))]
    if not found:
        raise PromptError("data.repeat leaves no prompt to learn on; repeat at least one category")
    return found


def prompts_of_round(total: int, per_round: int, seed: int, round_: int) -> list[int]:
    """Indices of the prompts of a round: a new shuffle each epoch, read off in order, across epoch borders."""
    chosen, first = [], round_ * per_round
    for position in range(first, first + per_round):
        epoch, offset = divmod(position, total)
        if not chosen or offset == 0:
            order = seeds.permutation((seed, seeds.PROMPTS, epoch), total)
        chosen.append(int(order[offset]))
    return chosen
