"""The learned rewards of the shapes world: five tiny CLIPs, each an imperfect stand-in for the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrl.reward import About
from genrl.worlds.shapes.proxies import load_proxy


class ShapesProxy:
    """Cosine of picture and prompt, in [-1, 1], in one of the five CLIPs, or their mean.

    Args:
        members: which of the five (0 to 4) to average.
    """

    about = About(differentiable=True, bounds=(-1.0, 1.0))

    def __init__(self, members: Sequence[int] = (0,)):
        self.models = [load_proxy(member) for member in members]

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return torch.stack([model.similarity(images, prompts) for model in self.models]).mean(0)

    def features(self, images: Tensor) -> Tensor:
        """Unit picture features of the members, side by side ``[B, D]``: for diversity."""
        return torch.cat([model.image_features(images) for model in self.models], dim=-1)
