"""The exact judge of the shapes world as a reward: 0 to 1, reads each prompt's target from its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.reward import About, check_metadata
from genrl.worlds.shapes.judge import judge


class ShapesJudge:
    """Score of ``genrl.worlds.shapes.judge``. Images ``[B, 3, 64, 64]`` in [0, 1]; metadata with "objects" and "relation".

    Raises:
        RewardError: a prompt without a target, which only the prompts of the shapes world carry (shapes/train and its like).
    """

    about = About(metadata=("objects",), bounds=(0.0, 1.0))

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        check_metadata("shapes_judge", self, prompts, metadata)
        return [verdict.score for verdict in judge(images.detach().cpu().numpy(), metadata)]
