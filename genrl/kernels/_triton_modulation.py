"""The Triton form of the adaLN part of ``genrl.kernels.modulation``.

Where a norm is taken, a program holds whole rows of one sample, a few at a time, so that statistics need no second read and scale,
shift and gate are loaded once for all of them; elsewhere it holds a block of columns. Sums over the rows of a sample leave as one
partial sum per program and are added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096
"""Elements that a program holds of each tensor at a time, wider rows apart."""
COLUMNS = 512
"""Columns of a tile where no row has to be whole."""
SUMMED = 16
"""Whole rows that a program sums over, one after another: more programs hide more of their waiting than their partial sums cost."""
PROGRAMS = 768
"""Programs to sum in, about: some for each multiprocessor."""


def tile(width: int, most: int = 65536) -> dict[str, int]:
    """Rows and columns (``most`` of them) of a tile and its warps: sixteen elements of each tensor a thread."""
    block = min(triton.next_power_of_2(width), most)
    return {"ROWS": max(1, TILE // block), "BLOCK": block, "num_warps": 8}


def whole(width: int, alone: bool) -> dict[str, int]:
    """A tile of whole rows: two of them and few warps, for a reduction waits for all; one of them where sums over rows are kept beside."""
    sizes = tile(width)
    return sizes | {"ROWS": sizes["ROWS"] if alone else 1, "num_warps": 4 if alone else 2}


def stretch(rows: int) -> int:
    """Rows that a program sums over: many, for partial sums are traffic too, yet few enough that the programs occupy a whole GPU."""
    # comparisons, for under torch.compile the number may be a symbol
    return next((chunk for chunk in (16, 32, 64) if rows <= chunk * PROGRAMS), 128)


def vector(x: Tensor) -> Tensor:
    """``[B, D]`` with adjacent columns; a chunk of a wider tensor is one already."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _norm_modulate(
    x, h, gate, scale, shift, after, out, means, rstds, length, width, gate_stride, scale_stride, shift_stride, eps,
    GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = col < width
    mask = (row < length)[:, None] & inside[None, :]
    line = sample * length + row
    place = line[:, None] * width + col[None, :]
    # every load comes first: a reduction is a barrier, and what is asked for after it would be waited for again
    scales = tl.load(scale + sample * scale_stride + col, mask=inside, other=0.0)
    shifts = tl.load(shift + sample * shift_stride + col, mask=inside, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gates = tl.load(gate + sample * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
        value += gates[None, :] * tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(after.dtype.element_ty)
        tl.store(after + place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / width
    centred = tl.where(inside[None, :], value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    tl.store(means + line, mean, mask=row < length)
    tl.store(rstds + line, rstd, mask=row < length)
    scales, shifts = 1.0 + scales.to(tl.float32), shifts.to(tl.float32)
    tl.store(out + place, centred * rstd[:, None] * scales[None, :] + shifts[None, :], mask=mask)


@triton.jit
def _norm_modulate_backward(
    upstream, beside, x, h, gate, scale, means, rstds, dx, dh, sums, length, width, chunk, gate_stride, scale_stride,
    GATED: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``x`` is what was normalised; ``beside`` the gradient that reaches it past the norm, where ``GATED``."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * chunk
    col = tl.arange(0, BLOCK)
    inside = col < width
    scales = 1.0 + tl.load(scale + sample * scale_stride + col, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        gates = tl.load(gate + sample * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    d_scale, d_shift, d_gate = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(first, tl.minimum(first + chunk, length), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < length
        mask = valid[:, None] & inside[None, :]
        line = sample * length + row
        place = line[:, None] * width + col[None, :]
        dy = tl.load(upstream + place, mask=mask, other=0.0).to(tl.float32)
        normed = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            past = tl.load(beside + place, mask=mask, other=0.0)
            if SUMS:
                added = tl.load(h + place, mask=mask, other=0.0)
        mean, rstd = tl.load(means + line, mask=valid, other=0.0), tl.load(rstds + line, mask=valid, other=0.0)
        normed = (normed - mean[:, None]) * rstd[:, None]
        inner = dy * scales[None, :]
        level, slope = tl.sum(inner, 1) / width, tl.sum(inner * normed, 1) / width
        total = (inner - level[:, None] - normed * slope[:, None]) * rstd[:, None]
        if SUMS:
            d_scale += tl.sum(dy * normed, 0)
            d_shift += tl.sum(dy, 0)
        if GATED:
            total += past.to(tl.float32)
            tl.store(dh + place, gates[None, :] * total, mask=mask)
            if SUMS:
                d_gate += tl.sum(total * added.to(tl.float32), 0)
        tl.store(dx + place, total, mask=mask)
    if SUMS:
        part = (sample * tl.num_programs(0) + tl.program_id(0)) * width + col
        size = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * width
        tl.store(sums + part, d_scale, mask=inside)
        tl.store(sums + size + part, d_shift, mask=inside)
        if GATED:
            tl.store(sums + 2 * size + part, d_gate, mask=inside)


@triton.jit
def _gate(x, h, gate, out, length, width, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(2).to(tl.int64)
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < length)[:, None] & (col < width)[None, :]
    place = (sample * length + row)[:, None] * width + col[None, :]
    gates = tl.load(gate + sample * stride + col, mask=col < width, other=0.0).to(tl.float32)
    value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32) * gates[None, :]
    tl.store(out + place, value + tl.load(x + place, mask=mask, other=0.0).to(tl.float32), mask=mask)


@triton.jit
def _gate_backward(
    upstream, h, gate, dh, sums, length, width, chunk, stride, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(2).to(tl.int64)
    first, col = tl.program_id(0) * chunk, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gates = tl.load(gate + sample * stride + col, mask=col < width, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(first, tl.minimum(first + chunk, length), ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < length)[:, None] & (col < width)[None, :]
        place = (sample * length + row)[:, None] * width + col[None, :]
        dy = tl.load(upstream + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dh + place, dy * gates[None, :], mask=mask)
        if SUMS:
            total += dy * tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
    if SUMS:
        tl.store(sums + (sample * tl.num_programs(0) + tl.program_id(0)) * width + col, tl.sum(total, 0), mask=col < width)


class NormModulate(torch.autograd.Function):
    """See ``genrl.kernels.modulation.layer_norm_modulate``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float):
        x, scale, shift = x.contiguous(), vector(scale), vector(shift)
        out, mean, rstd = torch.empty_like(x), *_statistics(x)
        batch, length, width = x.shape
        sizes = whole(width, alone=True)
        _norm_modulate[(triton.cdiv(length, sizes["ROWS"]), batch)](
            x, x, scale, scale, shift, x, out, mean, rstd, length, width, 0, scale.stride(0), shift.stride(0), eps, GATED=False, **sizes
        )  # fmt: skip
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.sums, ctx.shift_type = any(ctx.needs_input_grad[1:3]), shift.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        x, scale, mean, rstd = ctx.saved_tensors
        _, length, width = x.shape
        sizes, chunk, grid = _pieces(x, ctx.sums)
        dx, partial = torch.empty_like(x), _partial(x, 2, grid[0], ctx.sums)
        _norm_modulate_backward[grid](
            upstream[0].contiguous(), x, x, x, scale, scale, mean, rstd, dx, dx, partial, length, width, chunk, 0, scale.stride(0),
            GATED=False, SUMS=ctx.sums, **sizes,
        )  # fmt: skip
        if not ctx.sums:
            return dx, None, None, None
        d_scale, d_shift = partial.sum(2)
        return dx, d_scale.to(scale.dtype), d_shift.to(ctx.shift_type), None


class GateNormModulate(torch.autograd.Function):
    """See ``genrl.kernels.modulation.gate_residual_norm_modulate``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float):
        x, h, gate, scale, shift = x.contiguous(), h.contiguous(), vector(gate), vector(scale), vector(shift)
        after, out, mean, rstd = torch.empty_like(x), torch.empty_like(x), *_statistics(x)
        batch, length, width = x.shape
        sizes = tile(width)
        _norm_modulate[(triton.cdiv(length, sizes["ROWS"]), batch)](
            x, h, gate, scale, shift, after, out, mean, rstd, length, width, gate.stride(0), scale.stride(0), shift.stride(0), eps,
            GATED=True, **sizes,
        )  # fmt: skip
        ctx.sums, ctx.h_type, ctx.shift_type = any(ctx.needs_input_grad[2:5]), h.dtype, shift.dtype
        ctx.save_for_backward(after, gate, scale, mean, rstd, h if ctx.sums else None)
        return after, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        after, gate, scale, mean, rstd, h = ctx.saved_tensors
        beside, dy = (gradient.contiguous() for gradient in upstream)
        _, length, width = after.shape
        sizes, chunk, grid = _pieces(after, ctx.sums)
        dx, dh, partial = torch.empty_like(after), torch.empty_like(after, dtype=ctx.h_type), _partial(after, 3, grid[0], ctx.sums)
        _norm_modulate_backward[grid](
            dy, beside, after, h if ctx.sums else after, gate, scale, mean, rstd, dx, dh, partial, length, width, chunk,
            gate.stride(0), scale.stride(0), GATED=True, SUMS=ctx.sums, **sizes,
        )  # fmt: skip
        if not ctx.sums:
            return dx, dh, None, None, None, None
        d_scale, d_shift, d_gate = partial.sum(2)
        return dx, dh, d_gate.to(gate.dtype), d_scale.to(scale.dtype), d_shift.to(ctx.shift_type), None


class GateResidual(torch.autograd.Function):
    """See ``genrl.kernels.modulation.gate_residual``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, gate: Tensor):
        x, h, gate = x.contiguous(), h.contiguous(), vector(gate)
        batch, length, width = x.shape
        out, sizes = torch.empty_like(x), tile(width, COLUMNS)
        grid = (triton.cdiv(length, sizes["ROWS"]), triton.cdiv(width, sizes["BLOCK"]), batch)
        _gate[grid](x, h, gate, out, length, width, gate.stride(0), **sizes)
        ctx.sums, ctx.h_type = ctx.needs_input_grad[2], h.dtype
        ctx.save_for_backward(gate, h if ctx.sums else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        gate, h = ctx.saved_tensors
        dy = upstream[0].contiguous()
        batch, length, width = dy.shape
        sizes = tile(width, COLUMNS)
        blocks = triton.cdiv(width, sizes["BLOCK"])
        chunk = max(sizes["ROWS"], stretch(batch * length * blocks))
        grid = (triton.cdiv(length, chunk), blocks, batch)
        dh, partial = torch.empty_like(dy, dtype=ctx.h_type), _partial(dy, 1, grid[0], ctx.sums)
        _gate_backward[grid](
            dy, h if ctx.sums else dy, gate, dh, partial, length, width, chunk, gate.stride(0), SUMS=ctx.sums, **sizes
        )  # fmt: skip
        return dy, dh, partial[0].sum(1).to(gate.dtype) if ctx.sums else None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the mean and the reciprocal deviation of each row."""
    mean = torch.empty(x.shape[:2], device=x.device, dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _pieces(x: Tensor, sums: bool) -> tuple[dict[str, int], int, tuple[int, int]]:
    """Tile, rows of a program and grid of a backward pass over whole rows."""
    batch, length, width = x.shape
    sizes = whole(width, alone=not sums)
    chunk = SUMMED if sums else sizes["ROWS"]
    return sizes, chunk, (triton.cdiv(length, chunk), batch)


def _partial(x: Tensor, sums: int, pieces: int, needed: bool) -> Tensor:
    """Room for the partial sums ``[sums, B, pieces, D]`` of a backward pass."""
    shape = (sums, x.shape[0], pieces, x.shape[2]) if needed else (1,)
    return torch.empty(shape, device=x.device, dtype=torch.float32)
