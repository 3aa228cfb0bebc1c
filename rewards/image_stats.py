"""A statistic of the picture as a reward: no model, a known optimum, for tests and against drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from genrl.image_stats import STATS
from genrl.reward import About, RewardError

UNIT = ("brightness", "saturation", "high_frequency", "dark", "flat")  # within [0, 1]
COUNTED = ("dark", "flat")  # shares of pixels, which have no gradient


class ImageStat:
    """One of ``genrl.image_stats.STATS``, in its own unit; with a target minus the distance to it. Reads no prompt.

    Args:
        stat: brightness, contrast, saturation, colourfulness, sharpness, high_frequency, dark or flat.
        target: the value that earns 0, the best score there then is.
    """

    about = About(reads_prompt=False, differentiable=True, source="colourfulness: Hasler & Suesstrunk, Human Vision and Imaging 2003")

    def __init__(self, stat: str, target: float | None = None):
        if stat not in STATS:
            raise RewardError(f"no statistic named {stat!r}; known: {', '.join(STATS)}")
        self.stat, self.target = STATS[stat], target
        bounds = (0.0, 1.0) if stat in UNIT and target is None else None
        self.about = replace(type(self).about, differentiable=stat not in COUNTED, bounds=bounds)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        value = self.stat(images)
        return value if self.target is None else -(value - self.target).abs()
