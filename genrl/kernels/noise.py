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
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
# of sine and cosine on [0, pi/4], minimax: errors below 1e-6
SIN = (1.0, -0.16662838, 0.00815305)
COS = (1.0, -0.49999898, 0.04165642, -0.00135989)


def normal(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Noise ``[B, *shape]`` float32 on the device of the seeds ``[B]`` int64."""
    count = math.prod(shape)
    if fused(seed):
        from genrl.kernels._triton_noise import normal_triton

        return normal_triton(seed, count).view(len(seed), *shape)
    return normal_reference(seed, count).view(len(seed), *shape)


def words(seed: Tensor, counters: int, rounds: int = ROUNDS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words ``[B, counters]`` of each counter, in int64; ``seed [B]`` int64."""
    low, high = (seed & _MASK)[:, None], ((seed >> 32) & _MASK)[:, None]
    # the first round, of a counter whose other words are 0; what is alike in a row or column stays narrow as long as it can
    product = torch.arange(counters, device=seed.device)[None] * MULTIPLIERS[0]
    a, b, c, d = low, torch.zeros_like(low), (product >> 32) ^ high, product & _MASK
    for _ in range(rounds - 1):
        low, high = (low + WEYL[0]) & _MASK, (high + WEYL[1]) & _MASK
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = (right >> 32).bitwise_and_(_MASK).bitwise_xor_(b ^ low), right.bitwise_and_(_MASK)
        c, d = ((left >> 32).bitwise_and_(_MASK) ^ d).bitwise_xor_(high), left.bitwise_and_(_MASK)
    return a, b, c, d


def _unit(word: Tensor) -> Tensor:
    """Numbers in [1, 2) of the upper 23 bits of words."""
    return ((word >> 9) | 0x3F800000).to(torch.int32).view(torch.float32)


def pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normal numbers of two words: radius of the first, angle of the second."""
    radius = _unit(first).neg_().add_(2).log_().mul_(-2).sqrt_()
    angle = _unit(second).sub_(1).mul_(math.pi / 4)
    square = angle * angle
    sine = (square * SIN[2]).add_(SIN[1]).mul_(square).add_(SIN[0]).mul_(angle).mul_(radius)
    cosine = (square * COS[3]).add_(COS[2]).mul_(square).add_(COS[1]).mul_(square).add_(COS[0]).mul_(radius)
    swapped = (second & 1).bool()
    one, two = torch.where(swapped, cosine, sine), torch.where(swapped, sine, cosine)
    return one.mul_(1 - (second & 2)), two.mul_(1 - ((second & 4) >> 1))


def normal_reference(seed: Tensor, count: int) -> Tensor:
    """``[B, count]``."""
    counters = -(-count // 4)
    a, b, c, d = words(seed, counters)
    one, two = pair(torch.cat([a, c], 1), torch.cat([b, d], 1))
    parts = (one[:, :counters], two[:, :counters], one[:, counters:], two[:, counters:])
    return torch.cat(parts, 1)[:, :count].contiguous()
