"""The Triton form of the distribution matching surrogate, see ``genrl.kernels.matching.surrogate``."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024


@triton.jit
def _distances(x, teacher, sums, count, BLOCK: tl.constexpr):
    """Sums of ``|x - teacher|``, one for each program."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask, own = place < count, row * count + place
    here = tl.load(x + own, mask=mask, other=0.0).to(tl.float32)
    there = tl.load(teacher + own, mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + row * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.abs(here - there), 0))


@triton.jit
def _directions(fake, teacher, distances, g, sums, count, scale, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """``g``, and sums of its square times ``scale``; every program adds up its sample's distances in the same order."""
    row, programs = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask, own = place < count, row * count + place
    parts = tl.arange(0, PROGRAMS)
    distance = tl.sum(tl.load(distances + row * programs + parts, mask=parts < programs, other=0.0), 0) / count
    here = tl.load(fake + own, mask=mask, other=0.0).to(tl.float32)
    there = tl.load(teacher + own, mask=mask, other=0.0).to(tl.float32)
    value = (here - there) / distance
    value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
    tl.store(g + own, value, mask=mask)
    tl.store(sums + row * programs + tl.program_id(1), scale * tl.sum(value * value, 0))


class Surrogate(torch.autograd.Function):
    """Saves ``g``; backward is ``g`` times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x0_fake: Tensor, x0_teacher: Tensor):
        x, fake, teacher, count = x.contiguous(), x0_fake.contiguous(), x0_teacher.contiguous(), x[0].numel()
        grid = (len(x), triton.cdiv(count, BLOCK))
        distances, sums = (torch.empty(grid, device=x.device) for _ in range(2))
        g = torch.empty_like(x)
        _distances[grid](x, teacher, distances, count, BLOCK=BLOCK)
        _directions[grid](fake, teacher, distances, g, sums, count, 0.5 / x.numel(), BLOCK=BLOCK, PROGRAMS=triton.next_power_of_2(grid[1]))
        ctx.save_for_backward(g)
        ctx.mark_non_differentiable(g)
        return sums.sum(), g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor):
        (g,) = ctx.saved_tensors
        return (g.float() * (given[0] / g.numel())).to(g.dtype), None, None
