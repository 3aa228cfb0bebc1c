"""The exact judge of the shapes world as a reward: 0 to 1, reads each prompt's target from its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.worlds.shapes.judge import judge


class ShapesJudge:
    """Score of ``genrl.worlds.shapes.judge``. Images ``[B, 3, 64, 64]`` in [0, 1]; metadata with "objects" and "relation".

    Raises:
        ValueError: a prompt without a target, which only the prompts of the shapes world carry.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        for prompt, target in zip(prompts, metadata, strict=True):
            if "objects" not in target:
                raise ValueError(
                    f'the prompt {prompt!r} has no "objects" in its metadata; the shapes judge reads prompt files like shapes/train'
                )
        return [verdict.score for verdict in judge(images.cpu().numpy(), metadata)]
