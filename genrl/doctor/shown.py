"""Pictures that a reward is examined on: of the shapes world with captions known to be true, one's own, and some whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from genrl.pixels import from_pil, to_pil
from genrl.reward import RewardError
from genrl.worlds.shapes.captions import caption, true_target
from genrl.worlds.shapes.scenes import random_scene, render

COUNT, SIZE = 16, 512


def pictures(size: int = SIZE, count: int = COUNT) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """Pictures of the shapes world with true captions and metadata, the same in every call."""
    rng = np.random.default_rng(31)
    scenes = [random_scene(rng) for _ in range(count)]
    drawn = to_pil(torch.from_numpy(np.stack([render(scene) for scene in scenes])).float())
    metadata = [dict(true_target(scene.things)) for scene in scenes]
    return (
        from_pil([p.resize((size, size), Image.Resampling.BICUBIC) for p in drawn]),
        [caption(s, rng, careless=0.0) for s in scenes],
        metadata,
    )


def read_pictures(file: Path) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """Pictures of one's own: JSON lines with "image" (a path beside the file), "prompt" and whatever metadata the reward reads.

    Raises:
        RewardError: a line without these, a picture that cannot be read, or fewer than two.
    """
    images, prompts, metadata = [], [], []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            prompts.append(record["prompt"])
            with Image.open(file.parent / record["image"]) as picture:
                images.append(picture.convert("RGB"))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RewardError(f'{file}:{number}: wants {{"image": path, "prompt": text}}; {type(error).__name__}: {error}') from None
        metadata.append({key: value for key, value in record.items() if key not in ("prompt", "image")})
    if len(images) < 2:
        raise RewardError(f"{file}: at least two pictures are needed; it has {len(images)}")
    if len({picture.size for picture in images}) > 1:
        images = [picture.resize(images[0].size, Image.Resampling.BICUBIC) for picture in images]
    return from_pil(images), prompts, metadata


def golden_picture(name: str) -> Tensor:
    """A picture ``[1, 3, 256, 256]`` for which scores can be written down: grey, checkerboard, gradient, or blurred (a soft checkerboard).

    Raises:
        RewardError: another name.
    """
    y, x = np.mgrid[:256, :256]
    tiles = ((x // 16 + y // 16) % 2 * 255).astype(np.uint8)
    plain = {"grey": np.full((256, 256), 128, np.uint8), "checkerboard": tiles, "gradient": x.astype(np.uint8), "blurred": tiles}
    if name not in plain:
        raise RewardError(f"no golden picture {name!r}; there are {', '.join(plain)}")
    picture = Image.fromarray(plain[name]).convert("RGB")
    return from_pil([picture.filter(ImageFilter.GaussianBlur(6)) if name == "blurred" else picture])
