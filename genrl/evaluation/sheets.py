"""Pictures of an evaluation on one sheet, with captions: what trackers are shown. Sizes and numbers are ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 192
"""Pixels of a picture on a sheet; larger ones are reduced."""
FONT, LINE = 11, 14
"""Height of letters and lines, pixels."""
IMAGES = 4
"""Pictures of a prompt on its strip."""
PROMPTS = 12
"""Prompts that are shown."""
COLUMNS = 4
GAP = 6


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of ``range(total)``, evenly spread, with both ends."""
    count = min(count, total)
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def strips(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """A strip for each row of an evaluation: its first pictures side by side, all their scores below.

    Args:
        rows: with ``place``, ``prompt`` and ``scores``, as ``judge_images`` returns them.
        folder: the pictures, ``{place:05d}-{image}.png``.

    Returns:
        prompt, as a tracker's tag -> ``[1, H, W, 3]`` uint8; prompts without pictures are left out.
    """
    found: dict[str, np.ndarray] = {}
    for row in rows:
        files = [file for image in range(IMAGES) if (file := folder / f"{row['place']:05d}-{image}.png").is_file()]
        captions = ["\n".join(f"{name} {_number(values[k])}" for name, values in row["scores"].items()) for k in range(len(files))]
        if files:
            tag = _tag(row["prompt"]["prompt"])
            found[tag if tag not in found else f"{tag} ({row['place']})"] = _sheet(files, captions, len(files))
    return found


def overview(rows: Sequence[Mapping[str, Any]], folder: Path) -> np.ndarray | None:
    """The first picture of every row on one sheet, with prompt and first score below; ``[1, H, W, 3]`` uint8, None without pictures."""
    files, captions = [], []
    for row in rows:
        if (file := folder / f"{row['place']:05d}-0.png").is_file():
            name, values = next(iter(row["scores"].items()))
            files.append(file)
            prompt = textwrap.wrap(row["prompt"]["prompt"], SIDE // 6, max_lines=3, placeholder=" ...")
            captions.append("\n".join([*prompt, f"{name} {_number(values[0])}"]))
    return _sheet(files, captions, COLUMNS) if files else None


def _sheet(files: Sequence[Path], captions: Sequence[str], columns: int) -> np.ndarray:
    """Pictures in rows of ``columns``, each with its caption below."""
    pictures = [_small(file) for file in files]
    width = max(SIDE // 2, *(picture.width for picture in pictures)) + GAP
    words = max(caption.count("\n") + 1 for caption in captions) * LINE
    height = max(picture.height for picture in pictures) + words + GAP
    sheet = Image.new("RGB", (width * min(columns, len(files)), height * -(-len(files) // columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = (i % columns) * width, (i // columns) * height
        sheet.paste(picture, (x, y))
        pen.multiline_text((x + 2, y + height - words - GAP + 2), caption, fill="black", font_size=FONT, spacing=LINE - FONT)
    return np.asarray(sheet)[None]


def _small(file: Path) -> Image.Image:
    """A picture of at most ``SIDE`` pixels; small ones are enlarged to it by whole factors, so that pixels stay sharp."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    if (times := SIDE // max(picture.size)) > 1:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return picture


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3g}"


def _tag(prompt: str) -> str:
    """A prompt as the last part of a tag: slashes would make groups of it."""
    return textwrap.shorten(prompt.replace("/", " "), 100, placeholder=" ...") or "(no words)"
