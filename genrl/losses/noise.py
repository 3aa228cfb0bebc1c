"""Noise levels and noise for losses that re-noise finished samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl import path, seeds
from genrl.types import Batch


@dataclass(frozen=True)
class SigmaDensity:
    """Law of the noise level: ``uniform`` on ``[low, high]`` or ``logit_normal`` (SD3, eq. 19: sigmoid of N(mean, std^2)), shifted."""

    kind: Literal["uniform", "logit_normal"] = "uniform"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers ``[B]`` in [0, 1) to levels by the inverse distribution function."""
        if self.kind == "uniform":
            sigma = self.low + (self.high - self.low) * uniform
        else:
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
        return torch.as_tensor(path.shift(sigma, self.shift))


def renoise(batch: Batch, density: SigmaDensity) -> tuple[Tensor, Tensor, Tensor]:
    """``x_sigma``, ``sigma [B]`` and the noise for a batch; each sample's own, whatever minibatch it is in."""
    samples = batch.sample.tolist()
    sigma = density(seeds.uniform((*batch.stream, 0), samples)).to(batch.x0.device)
    eps = seeds.normal((*batch.stream, 1), samples, batch.x0.shape[1:]).to(batch.x0)
    return path.add_noise(batch.x0, eps, sigma), sigma, eps
