"""A one-dimensional world with known answers: data N(m, s^2), whose velocity field is linear in x at every noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrl.precision import Precision
from genrl.types import Conditioning

KNOTS = 25


class LinearFlow(nn.Module):
    """``v(x, sigma) = a(sigma) x + b(sigma)``, both piecewise linear between knots; starts as the exact flow of N(mean, std^2)."""

    def __init__(self, mean: float = 0.0, std: float = 0.6):
        super().__init__()
        sigma = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
        # E[eps - x0 | x] for x = (1 - sigma) x0 + sigma eps, x0 ~ N(mean, std^2)
        variance = ((1 - sigma) * std) ** 2 + sigma**2
        slope = (sigma - (1 - sigma) * std**2) / variance
        self.slope = nn.Parameter(slope.float())
        self.offset = nn.Parameter((-mean - slope * (1 - sigma) * mean).float())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        place = sigma * (KNOTS - 1)
        low = place.floor().clamp(max=KNOTS - 2).long()
        part = place - low
        slope = self.slope[low] * (1 - part) + self.slope[low + 1] * part
        offset = self.offset[low] * (1 - part) + self.offset[low + 1] * part
        return slope.view(-1, 1, 1, 1) * x + offset.view(-1, 1, 1, 1)


class LinearModel:
    """The model contract over a ``LinearFlow``; latents are ``[B, 1, 1, 1]``."""

    latent_shape = (1, 1, 1)
    precision = Precision()
    unconditional = Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1))

    def __init__(self, mean: float = 0.0, std: float = 0.6):
        self.network = LinearFlow(mean, std)

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return network(x, sigma)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, 8, 8).sigmoid()


class GaussianValue(nn.Module):
    """The exact ``E[x0 | x_sigma]`` of N(mean, std^2), times ``gain``, plus ``offset``: the critic of reward ``gain x0 + offset``."""

    endpoint = False

    def __init__(self, mean: float, std: float, gain: float = 1.0, offset: float = 0.0):
        super().__init__()
        self.mean, self.std, self.gain, self.offset = mean, std, gain, offset

    def forward(self, x: Tensor, sigma: Tensor, pooled: Tensor, endpoint: Tensor | None = None) -> Tensor:
        x = x.flatten()
        variance = ((1 - sigma) * self.std) ** 2 + sigma**2
        expected = self.mean + (1 - sigma) * self.std**2 / variance * (x - (1 - sigma) * self.mean)
        return self.gain * expected + self.offset


def conditioning(count: int) -> Conditioning:
    return Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))
