"""Noise levels and noise for losses that re-noise finished samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from genrl import path, seeds
from genrl.kernels import matching
from genrl.types import Batch


@dataclass(frozen=True)
class Levels:
    """A model's own time: its noise levels, rising, evenly spaced in the time that it was trained by.

    SD3: even levels through its shift; SDXL: those of its thousand timesteps.
    """

    table: tuple[float, ...] = (0.0, 1.0)

    def __call__(self, time: Tensor) -> Tensor:
        """Levels at times ``[B]`` in [0, 1], linear between those of the table."""
        return _between(time, torch.linspace(0, 1, len(self.table), device=time.device), torch.tensor(self.table, device=time.device))

    def time(self, sigma: Tensor) -> Tensor:
        """Times ``[B]`` of levels: the inverse, within the table's ends."""
        return _between(sigma, torch.tensor(self.table, device=sigma.device), torch.linspace(0, 1, len(self.table), device=sigma.device))


def _between(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through ``(at, values)``, ``at`` rising."""
    high = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    share = ((x - at[high - 1]) / (at[high] - at[high - 1])).clamp(0, 1)
    return values[high - 1] + share * (values[high] - values[high - 1])


@dataclass(frozen=True)
class SigmaDensity:
    """Law of the noise level: ``uniform`` on ``[low, high]``, ``logit_normal`` (SD3, eq. 19: sigmoid of N(mean, std^2)), both shifted, or
    ``model``: uniform in the model's own time, ``levels``.
    """

    kind: Literal["uniform", "logit_normal", "model"] = "uniform"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers ``[B]`` in [0, 1) to levels by the inverse distribution function."""
        if self.kind == "model":
            return self.levels(uniform)
        if self.kind == "uniform":
            sigma = self.low + (self.high - self.low) * uniform
        else:
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
        return torch.as_tensor(path.shift(sigma, self.shift))


def renoise(batch: Batch, density: SigmaDensity) -> tuple[Tensor, Tensor, Tensor]:
    """``x_sigma``, ``sigma [B]`` and ``u = eps - x0`` for a batch; each sample's own, whatever minibatch it is in."""
    sigma = density(seeds.uniform((*batch.stream, 0), batch.sample.tolist(), batch.x0.device))
    x, u = noised(batch, batch.x0, sigma)
    return x, sigma, u


def noised(batch: Batch, x0: Tensor, sigma: Tensor, salt: int = 1) -> tuple[Tensor, Tensor]:
    """``x_sigma`` and ``u = eps - x0`` ``[B, ...]`` of given samples, without gradient; ``salt`` tells draws of one loss apart."""
    return matching.renoise(x0, seeds.numbers((*batch.stream, salt), batch.sample.tolist(), x0.device), sigma)
