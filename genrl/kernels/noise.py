"""Standard normal numbers from counters: element ``e`` of a sample is a function of the sample's seed and of ``e``.

Philox4x32 (Salmon et al., SC 2011) with seven rounds, the fewest of which it is known to pass BigCrush, makes four words of a seed
and a counter; two words make two normal numbers (Box and Muller, with the angle's octant taken from bits that the fraction leaves
over, so that two short polynomials do for sine and cosine; ours). A sample of N elements has ``ceil(N / 4)`` counters, and word j of
counter q belongs to element ``j ceil(N / 4) + q``: four stretches, each read and written in order.

The words are the same everywhere; the numbers to the rounding of a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genrl.kernels.dispatch import fused

ROUNDS = 7
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# of sine and cosine on [0, pi/4], least squares at Chebyshev nodes; errors below 3e-9
SIN = (1.0, -0.16666651, 0.00833199, -0.00019497)
COS = (1.0, -0.5, 0.04166664, -0.0013887, 2.44e-05)


def normal(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Noise ``[B, *shape]`` float32 on the device of the seeds ``[B]`` int64."""
    count = math.prod(shape)
    if fused(seed):
        from genrl.kernels._triton_noise import normal_triton

        return normal_triton(seed, count).view(len(seed), *shape)
    return normal_reference(seed, count).view(len(seed), *shape)


def words(seed: Tensor, counters: int, rounds: int = ROUNDS) -> list[Tensor]:
    """The four words ``[B, counters]`` of each counter, in int64; ``seed [B]`` int64."""
    low, high = (seed & _MASK)[:, None], ((seed >> 32) & _MASK)[:, None]
    zero = torch.zeros(len(seed), counters, dtype=torch.int64, device=seed.device)
    c = [torch.arange(counters, device=seed.device).expand(len(seed), -1), zero, zero, zero]
    for _ in range(rounds):
        left, right = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        c = [((right >> 32) & _MASK) ^ c[1] ^ low, right & _MASK, ((left >> 32) & _MASK) ^ c[3] ^ high, left & _MASK]
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    return c


def pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normal numbers of two words: radius of the first, angle of the second."""
    radius = (((first >> 8) + 1).float() * 2.0**-24).log().mul(-2).sqrt()
    angle = (second >> 8).float() * (2.0**-24 * math.pi / 4)
    square = angle * angle
    sine = angle * (SIN[0] + square * (SIN[1] + square * (SIN[2] + square * SIN[3])))
    cosine = COS[0] + square * (COS[1] + square * (COS[2] + square * (COS[3] + square * COS[4])))
    swapped = (second & 1).bool()
    sine, cosine = torch.where(swapped, cosine, sine), torch.where(swapped, sine, cosine)
    return radius * torch.where((second & 2).bool(), -sine, sine), radius * torch.where((second & 4).bool(), -cosine, cosine)


def normal_reference(seed: Tensor, count: int) -> Tensor:
    """``[B, count]``."""
    a, b, c, d = words(seed, -(-count // 4))
    return torch.cat([*pair(a, b), *pair(c, d)], 1)[:, :count].contiguous()
