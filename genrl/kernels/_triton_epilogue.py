"""The Triton form of what follows a matrix product in ``genrl.kernels.modulation``: the norm of heads, and bias and GELU."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrl.kernels._triton_modulation import COLUMNS, PROGRAMS, stretch, tile

_SLOPE = tl.constexpr(2 * 0.7978845608028654)  # twice sqrt(2 / pi)
_CUBE = tl.constexpr(0.044715)


@triton.jit
def _rms(x, weight, out, rows, width, own, stride, eps, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Each ``own`` rows lie ``stride`` elements apart in ``out``."""
    row, col = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    place = row[:, None] * width + col[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    if WEIGHTED:
        value *= tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    target = (row // own * stride + row % own * width)[:, None] + col[None, :]
    tl.store(out + target, value, mask=mask)


@triton.jit
def _rms_backward(
    upstream, x, weight, dx, sums, rows, width, chunk, eps,
    WEIGHTED: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first, col = tl.program_id(0).to(tl.int64) * chunk, tl.arange(0, BLOCK)
    if WEIGHTED:
        weights = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, chunk, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < width)[None, :]
        place = row[:, None] * width + col[None, :]
        dy = tl.load(upstream + place, mask=mask, other=0.0).to(tl.float32)
        normed = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(normed * normed, 1) / width + eps)
        normed *= rstd[:, None]
        if SUMS:
            total += dy * normed
        if WEIGHTED:
            dy *= weights[None, :]
        slope = tl.sum(dy * normed, 1) / width
        tl.store(dx + place, (dy - normed * slope[:, None]) * rstd[:, None], mask=mask)
    if SUMS:
        tl.store(sums + tl.program_id(0) * width + col, tl.sum(total, 0), mask=col < width)


@triton.jit
def _share(z):
    """``(1 + tanh u) / 2``, the share of ``z`` that GELU lets through, as the logistic function of ``2 u``."""
    return 1.0 / (1.0 + tl.exp(z * (z * z * _CUBE + 1.0) * -_SLOPE))


@triton.jit
def _gelu(h, bias, out, rows, width, BIASED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, col = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    place = row[:, None] * width + col[None, :]
    z = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        z += tl.load(bias + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, z * _share(z), mask=mask)


@triton.jit
def _gelu_backward(
    upstream, h, bias, dh, sums, rows, width, chunk,
    BIASED: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first, col = tl.program_id(0).to(tl.int64) * chunk, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if BIASED:
        biases = tl.load(bias + col, mask=col < width, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, chunk, ROWS):
        row = first + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < width)[None, :]
        place = row[:, None] * width + col[None, :]
        z = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
        if BIASED:
            z += biases[None, :]
        share = _share(z)
        slope = share + z * share * (1.0 - share) * _SLOPE * (z * z * _CUBE * 3.0 + 1.0)
        gradient = slope * tl.load(upstream + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dh + place, gradient, mask=mask)
        if SUMS:
            total += gradient
    if SUMS:
        tl.store(sums + tl.program_id(0).to(tl.int64) * width + col, tl.sum(total, 0), mask=col < width)


def rms_into(out: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Write the norm of ``x [B, ...]``, contiguous, into ``out [B, ...]``, whose samples are."""
    width, weighted = x.shape[-1], weight is not None
    rows, sizes, own = x.numel() // width, tile(width), x[0].numel() // width
    grid = (triton.cdiv(rows, sizes["ROWS"]),)
    _rms[grid](x, weight if weighted else x, out, rows, width, own, out.stride(0), eps, WEIGHTED=weighted, **sizes)
    return out


class RmsNorm(torch.autograd.Function):
    """See ``genrl.kernels.modulation.rms_norm``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float):
        x, weight = x.contiguous(), None if weight is None else weight.contiguous()
        out = rms_into(torch.empty_like(x), x, weight, eps)
        ctx.save_for_backward(x, weight)
        ctx.sums, ctx.eps = ctx.needs_input_grad[1], eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        x, weight = ctx.saved_tensors
        width, dx = x.shape[-1], torch.empty_like(x)
        rows, sizes = x.numel() // width, tile(width)
        chunk = sizes["ROWS"] * max(1, rows // (sizes["ROWS"] * PROGRAMS))
        pieces = triton.cdiv(rows, chunk)
        partial = torch.empty((pieces, width) if ctx.sums else (1,), device=x.device, dtype=torch.float32)
        weighted = weight is not None
        _rms_backward[(pieces,)](
            upstream[0].contiguous(), x, weight if weighted else x, dx, partial, rows, width, chunk, ctx.eps,
            WEIGHTED=weighted, SUMS=ctx.sums, **sizes,
        )  # fmt: skip
        return dx, partial.sum(0).to(weight.dtype) if ctx.sums else None, None


class GeluBias(torch.autograd.Function):
    """See ``genrl.kernels.modulation.gelu_tanh_bias``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor | None):
        h, bias = h.contiguous(), None if bias is None else bias.contiguous()
        width, out = h.shape[-1], torch.empty_like(h)
        rows, sizes = h.numel() // width, tile(width, COLUMNS)
        grid, biased = (triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(width, sizes["BLOCK"])), bias is not None
        _gelu[grid](h, bias if biased else h, out, rows, width, BIASED=biased, **sizes)
        ctx.save_for_backward(h, bias)
        ctx.sums = ctx.needs_input_grad[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        h, bias = ctx.saved_tensors
        width, dh = h.shape[-1], torch.empty_like(h)
        rows, sizes = h.numel() // width, tile(width, COLUMNS)
        blocks = triton.cdiv(width, sizes["BLOCK"])
        chunk = max(sizes["ROWS"], stretch(rows * blocks))
        grid, biased = (triton.cdiv(rows, chunk), blocks), bias is not None
        partial = torch.empty((grid[0], width) if ctx.sums else (1,), device=h.device, dtype=torch.float32)
        _gelu_backward[grid](
            upstream[0].contiguous(), h, bias if biased else h, dh, partial, rows, width, chunk, BIASED=biased, SUMS=ctx.sums, **sizes
        )  # fmt: skip
        return dh, partial.sum(0).to(bias.dtype) if ctx.sums else None
