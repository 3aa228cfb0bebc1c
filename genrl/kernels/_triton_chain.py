"""The Triton form of ``genrl.kernels.chain``.

A program takes one stretch of counters of one sample: four segments of its latent, ``quarter`` apart (see ``genrl.kernels.noise``).
Sums leave as one number per program and are added in a fixed order, for a sum by atomics differs from run to run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrl.kernels._triton_noise import normal4
from genrl.kernels.chain import CONSTANT

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK = 128
"""Counters of a program: few, for its registers hold four numbers of each."""
WARPS = 1
LINE = 2048
"""Elements of a program that draws nothing."""


@triton.jit
def _velocity(v, row, rows, count, place, mask, guidance, GUIDED: tl.constexpr, COMBINE: tl.constexpr):
    """The velocity there, guided or not, in float32 after its rounding."""
    first = tl.load(v + row * count + place, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        second = tl.load(v + (row + rows) * count + place, mask=mask, other=0.0).to(tl.float32)
        first = first + guidance * (second - first)
    return first.to(COMBINE).to(tl.float32)


@triton.jit
def _mean(
    x, v, row, rows, count, place, mask, keep, move, guidance, GUIDED: tl.constexpr, COMBINE: tl.constexpr, CHAIN: tl.constexpr
):  # fmt: skip
    """The mean of the next state there, in float32 after its rounding."""
    velocity = _velocity(v, row, rows, count, place, mask, guidance, GUIDED, COMBINE)
    mean = keep * tl.load(x + row * count + place, mask=mask, other=0.0).to(tl.float32) + move * velocity
    return mean.to(CHAIN).to(tl.float32)


@triton.jit
def _step(
    x, v, after, sums, seeds, rows, count, quarter, keep, move, std, guidance,
    GUIDED: tl.constexpr, NOISY: tl.constexpr, COMBINE: tl.constexpr, CHAIN: tl.constexpr, STORAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if NOISY:
        n = normal4(tl.load(seeds + row), q)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(4):
        place = j * quarter + q
        mask = (q < quarter) & (place < count)
        mean = _mean(x, v, row, rows, count, place, mask, keep, move, guidance, GUIDED, COMBINE, CHAIN)
        new = mean
        if NOISY:
            new = mean + std * n[j]
        new = new.to(STORAGE)
        tl.store(after + row * count + place, new, mask=mask)
        if NOISY:
            residual = tl.where(mask, new.to(tl.float32) - mean, 0.0)
            total += residual * residual
    if NOISY:
        tl.store(sums + row * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 0))


@triton.jit
def _residuals(
    x, v, after, sums, rows, count, keep, move, guidance,
    GUIDED: tl.constexpr, COMBINE: tl.constexpr, CHAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    mean = _mean(x, v, row, rows, count, place, mask, keep, move, guidance, GUIDED, COMBINE, CHAIN)
    residual = tl.where(mask, tl.load(after + row * count + place, mask=mask, other=0.0).to(tl.float32) - mean, 0.0)
    tl.store(sums + row * tl.num_programs(1) + tl.program_id(1), tl.sum(residual * residual, 0))


@triton.jit
def _gradient(
    x, v, after, upstream, out, rows, count, keep, move, scale, guidance,
    GUIDED: tl.constexpr, COMBINE: tl.constexpr, CHAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    mean = _mean(x, v, row, rows, count, place, mask, keep, move, guidance, GUIDED, COMBINE, CHAIN)
    residual = tl.load(after + row * count + place, mask=mask, other=0.0).to(tl.float32) - mean
    gradient = residual * (scale * tl.load(upstream + row))
    if GUIDED:
        tl.store(out + row * count + place, (1.0 - guidance) * gradient, mask=mask)
        tl.store(out + (row + rows) * count + place, guidance * gradient, mask=mask)
    else:
        tl.store(out + row * count + place, gradient, mask=mask)


@triton.jit
def _density(sums, out, parts, scale, offset, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(sums + row * parts + place, mask=place < parts, other=0.0)
    tl.store(out + row, tl.sum(total, 0) * scale + offset)


def _log_density(sums: Tensor, count: int, std: float) -> Tensor:
    """One launch for what takes torch three, each as long as a hundredth of a step."""
    out = torch.empty(len(sums), device=sums.device)
    _density[(len(sums),)](sums, out, sums.shape[1], -0.5 / (std**2 * count), CONSTANT - math.log(std), BLOCK=128, num_warps=1)
    return out


def step_triton(
    x: Tensor,
    v: Tensor,
    law: tuple[float, float, float],
    guidance: float,
    seed: Tensor | None,
    combine: torch.dtype,
    chain: torch.dtype,
    storage: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See ``genrl.kernels.chain.step``."""
    keep, move, std = law
    x, v, count, noisy = x.contiguous(), v.contiguous(), x[0].numel(), bool(std)
    quarter = -(-count // 4)
    after = torch.empty_like(x, dtype=storage)
    grid = (len(x), triton.cdiv(quarter, BLOCK))
    sums = torch.empty(grid if noisy else (1, 1), device=x.device)
    _step[grid](
        x, v, after, sums, seed if noisy else x, len(x), count, quarter, keep, move, std, guidance,
        GUIDED=guidance != 1.0, NOISY=noisy, COMBINE=TYPES[combine], CHAIN=TYPES[chain], STORAGE=TYPES[storage],
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return after, _log_density(sums, count, std) if noisy else torch.zeros(len(x), device=x.device)


class LogProb(torch.autograd.Function):
    """See ``genrl.kernels.chain.log_prob``. What is rounded has the gradient of what is not, as elsewhere in mixed precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, x_next: Tensor, law: tuple[float, float, float], guidance: float, combine: Any, chain: Any):
        x, v, x_next, count = x.contiguous(), v.contiguous(), x_next.contiguous(), x[0].numel()
        ctx.save_for_backward(x, v, x_next)
        ctx.law, ctx.guidance = law, guidance
        ctx.flags = {"GUIDED": guidance != 1.0, "COMBINE": TYPES[combine], "CHAIN": TYPES[chain], "BLOCK": LINE}
        grid = (len(x), triton.cdiv(count, LINE))
        sums = torch.empty(grid, device=x.device)
        _residuals[grid](x, v, x_next, sums, len(x), count, *law[:2], guidance, **ctx.flags)
        return _log_density(sums, count, law[2])

    @staticmethod
    def backward(ctx: Any, *upstream: Any):
        x, v, x_next = ctx.saved_tensors
        (keep, move, std), count = ctx.law, x[0].numel()
        out = torch.empty_like(v)
        grid = (len(x), triton.cdiv(count, LINE))
        scale = move / (std**2 * count)
        _gradient[grid](x, v, x_next, upstream[0].contiguous(), out, len(x), count, keep, move, scale, ctx.guidance, **ctx.flags)
        return None, out, None, None, None, None, None
