"""One step of a denoising chain in one pass, and its log-probability again for learning.

Every chain of ``genrl.chain`` is affine: from ``x`` and the velocity ``v`` it draws

    x' = keep x + move v + std n,    v = v_0 + g (v_c - v_0),    n ~ N(0, I)

so one kernel serves them all. The log-probability is the mean over latent dimensions, not the sum: of 65,536 terms float32 resolves
a sum to .008 and a mean to 1e-7, where ratios are clipped at 1e-4 (docs/decisions.md).

    log p(x' | x) = -1/2 mean ((x' - mean) / std)^2 - log std - 1/2 log 2 pi
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genrl.kernels.dispatch import fused, wide
from genrl.kernels.noise import normal_reference

CONSTANT = -0.5 * math.log(2 * math.pi)


def guided(v: Tensor, guidance: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """``v_0 + g (v_c - v_0)`` in float32 from ``[2B, ...]``, the unconditional rows first, rounded to ``dtype`` once; ``[B, ...]`` as it is
    when ``guidance`` is 1."""
    if guidance == 1.0:
        return _rounded(wide(v), dtype)
    v_0, v_c = wide(v).chunk(2)
    return _rounded(torch.lerp(v_0, v_c, guidance), dtype)


def step(
    x: Tensor,
    v: Tensor,
    law: tuple[float, float, float],
    *,
    guidance: float = 1.0,
    seed: Tensor | None = None,
    combine: torch.dtype = torch.float32,
    chain: torch.dtype = torch.float32,
    storage: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The next state and its log-probability, without gradient.

    Args:
        x: state ``[B, ...]``; v: the network's answer ``[B, ...]``, or ``[2B, ...]`` (unconditional, then conditional) under guidance.
        law: ``(keep, move, std)``; a ``std`` of 0 draws nothing.
        seed: ``[B]`` int64 of the noise; needed where ``std`` is positive.
        combine, chain, storage: what the guided velocity, the mean and the new state are rounded to. The log-probability is that of
            the rounded state, so that a replay from storage finds the same one.

    Returns:
        ``x' [B, ...]`` in ``storage``, ``log p [B]`` float32 (0 for a deterministic step).
    """
    keep, move, std = law
    if std and seed is None:
        raise ValueError("a stochastic step needs a seed for each sample")
    if fused(x, v):
        from genrl.kernels._triton_chain import step_triton

        return step_triton(x, v, law, guidance, seed, combine, chain, storage)
    mean = _mean(x, v, keep, move, guidance, combine, chain)
    if not std or seed is None:
        return mean.to(storage), torch.zeros(len(x), device=x.device)
    after = mean.add(normal_reference(seed, x[0].numel()).view_as(mean), alpha=std).to(storage)
    return after, _log_density(after - mean, std)


def log_prob(
    x: Tensor,
    v: Tensor,
    x_next: Tensor,
    law: tuple[float, float, float],
    *,
    guidance: float = 1.0,
    combine: torch.dtype = torch.float32,
    chain: torch.dtype = torch.float32,
) -> Tensor:
    """``log p(x' | x) [B]`` float32 of a step that was taken, with gradient to ``v`` alone; arguments as in ``step``.

    Raises:
        ValueError: a deterministic step, which has no density.
    """
    keep, move, std = law
    if not std:
        raise ValueError("a deterministic step has no log-probability; replay the stochastic steps only")
    if fused(x, v, x_next):
        from genrl.kernels._triton_chain import LogProb

        return LogProb.apply(x, v, x_next, law, guidance, combine, chain)
    x, x_next = x.detach(), x_next.detach()  # a trajectory is data
    return _log_density(x_next - _mean(x, v, keep, move, guidance, combine, chain), std)


def _mean(x: Tensor, v: Tensor, keep: float, move: float, guidance: float, combine: torch.dtype, chain: torch.dtype) -> Tensor:
    x, v = wide(x), guided(v, guidance, combine)
    return _rounded((x if keep == 1.0 else x * keep).add(v, alpha=move), chain)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype == torch.float32 else x.to(dtype).to(x.dtype)


def _log_density(residual: Tensor, std: float) -> Tensor:
    return residual.flatten(1).square().mean(1) * (-0.5 / std**2) - math.log(std) + CONSTANT
