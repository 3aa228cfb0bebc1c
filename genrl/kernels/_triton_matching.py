"""The Triton form of re-noising and matching, see ``genrl.kernels.matching``.

A program takes one stretch of one sample. Sums leave as one number per program and are added in a fixed order, for a sum by atomics
differs from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from genrl.kernels._triton_noise import normal4
from genrl.kernels.matching import SMALLEST_ERROR, Square

BLOCK = 1024


@triton.jit
def _renoise(x0, seeds, sigmas, noisy, target, count, quarter, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = normal4(tl.load(seeds + row), q)
    sigma = tl.load(sigmas + row).to(tl.float32)
    for j in tl.static_range(4):
        place = j * quarter + q
        mask = (q < quarter) & (place < count)
        clean = tl.load(x0 + row * count + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(noisy + row * count + place, (1.0 - sigma) * clean + sigma * n[j], mask=mask)
        tl.store(target + row * count + place, n[j] - clean, mask=mask)


def renoise_triton(x0: Tensor, seed: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """See ``genrl.kernels.matching.renoise``."""
    x0, count = x0.contiguous(), x0[0].numel()
    noisy, target = (torch.empty(x0.shape, device=x0.device) for _ in range(2))
    quarter, block = -(-count // 4), BLOCK // 2
    grid = (len(x0), triton.cdiv(quarter, block))
    _renoise[grid](x0, seed.contiguous(), sigma.contiguous(), noisy, target, count, quarter, BLOCK=block)
    return noisy, target


@triton.jit
def _combined(NUMBERS: tl.constexpr, v, u, old, ref):
    """``a v + b u + c v_old + d v_ref``; a field whose number is 0 may be anything."""
    error = NUMBERS[0] * v
    if NUMBERS[1] != 0.0:
        error += NUMBERS[1] * u
    if NUMBERS[2] != 0.0:
        error += NUMBERS[2] * old
    if NUMBERS[3] != 0.0:
        error += NUMBERS[3] * ref
    return error


@triton.jit
def _errors(v, u, old, ref, row, rows, count, place, guidance, GUIDED: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr):
    """The error of each square, and ``v_c - v_ref``; 0 beyond the end. What is None is not read, nor is its error of use."""
    mask, own = place < count, row * count + place
    conditional = tl.load(v + own, mask=mask, other=0.0).to(tl.float32)
    velocity = conditional
    if GUIDED:
        conditional = tl.load(v + rows * count + own, mask=mask, other=0.0).to(tl.float32)
        velocity += guidance * (conditional - velocity)
    target = tl.load(u + own, mask=mask, other=0.0).to(tl.float32)
    past, anchor = target, target
    if old is not None:
        past = tl.load(old + own, mask=mask, other=0.0).to(tl.float32)
    if ref is not None:
        anchor = tl.load(ref + own, mask=mask, other=0.0).to(tl.float32)
    error_1 = _combined(ONE, velocity, target, past, anchor)
    error_2 = error_1
    if TWO is not None:
        error_2 = _combined(TWO, velocity, target, past, anchor)
    return error_1, error_2, conditional - anchor


@triton.jit
def _matching(
    v, u, old, ref, weight_1, weight_2, upstream, sums, gradient, rows, count, beta, guidance, scale,
    GUIDED: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr, W2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sums``: the loss times ``scale``. ``gradient``: half of its gradient in ``v``, times ``upstream`` and ``scale`` if given."""
    row, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = program * BLOCK + tl.arange(0, BLOCK)
    error, error_2, drift = _errors(v, u, old, ref, row, rows, count, place, guidance, GUIDED, ONE, TWO)
    factor = tl.load(weight_1 + row).to(tl.float32)
    loss, slope = factor * error * error, factor * ONE[0] * error
    if TWO is not None:
        factor = tl.load(weight_2 + row).to(tl.float32)
        loss += factor * error_2 * error_2
        slope += factor * TWO[0] * error_2
    pull = beta * drift
    if W2:
        loss += pull * drift
    if sums is not None:
        tl.store(sums + row * tl.num_programs(1) + program, scale * tl.sum(loss, 0))
    if gradient is not None:
        if upstream is not None:
            given = scale * tl.load(upstream + row).to(tl.float32)
            slope, pull = slope * given, pull * given
        here = gradient + row * count + place
        if GUIDED:
            tl.store(here, (1.0 - guidance) * slope, mask=place < count)
            here += rows * count
            slope *= guidance
        if W2:
            slope += pull
        tl.store(here, slope, mask=place < count)


@triton.jit
def _moments(
    v, u, old, ref, sums, rows, count, guidance, scale,
    GUIDED: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr, W2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``scale`` times the sums of ``e_1^2, |e_1|, e_2^2, |e_2|, (v_c - v_ref)^2``."""
    row, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = program * BLOCK + tl.arange(0, BLOCK)
    error, error_2, drift = _errors(v, u, old, ref, row, rows, count, place, guidance, GUIDED, ONE, TWO)
    out, stride = sums + row * tl.num_programs(1) + program, rows * tl.num_programs(1)
    tl.store(out, scale * tl.sum(error * error, 0))
    tl.store(out + stride, scale * tl.sum(tl.abs(error), 0))
    if TWO is not None:
        tl.store(out + 2 * stride, scale * tl.sum(error_2 * error_2, 0))
        tl.store(out + 3 * stride, scale * tl.sum(tl.abs(error_2), 0))
    if W2:
        tl.store(out + 4 * stride, scale * tl.sum(drift * drift, 0))


@triton.jit
def _times(field, factors, out, rows, count, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = scale * tl.load(factors + row % rows).to(tl.float32)
    value = factor * tl.load(field + row * count + place, mask=place < count, other=0.0).to(tl.float32)
    tl.store(out + row * count + place, value, mask=place < count)


class _Settings(NamedTuple):
    """What a pass is given beside tensors."""

    beta: float
    guidance: float
    flags: dict[str, Any]


class Matching(torch.autograd.Function):
    """See ``genrl.kernels.matching.matching``.

    Of errors in velocity the first pass writes the gradient too (before its division by the number of elements, which float16 would
    not bear), and backward multiplies it. The gradient of errors in the endpoint needs their sums first: it is left to backward.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, old: Any, ref: Any, sigma: Any, beta: float, guidance: float, squares: Sequence[Square]):
        fields = [None if field is None else field.contiguous() for field in (v, u, old, ref)]
        weights = [square.weight.contiguous() for square in squares]
        one, *two = [tuple(map(float, square[1:])) for square in squares]
        flags = {"GUIDED": guidance != 1.0, "ONE": one, "TWO": two[0] if two else None, "W2": beta > 0, "BLOCK": BLOCK}
        ctx.settings, ctx.endpoint = _Settings(beta, guidance, flags), sigma is not None
        if sigma is not None:
            weights, terms = _endpoint(fields, weights, sigma, ctx.settings)
            ctx.save_for_backward(*fields, *weights)
            return terms
        sums = torch.empty(_grid(u), device=u.device)
        gradient = torch.empty_like(fields[0]) if ctx.needs_input_grad[0] else None
        _pass(fields, weights, ctx.settings, None, sums, gradient, 1 / u[0].numel())
        ctx.save_for_backward(gradient)
        return sums.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor):
        upstream = given[0].contiguous()
        if ctx.endpoint:
            fields, weights = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
            gradient = torch.empty_like(fields[0])
            _pass(fields, weights, ctx.settings, upstream, None, gradient, 2 / gradient[0].numel())
        else:
            (half,) = ctx.saved_tensors
            gradient, count = torch.empty_like(half), half[0].numel()
            _times[_grid(half)](half, upstream, gradient, len(upstream), count, 2 / count, BLOCK=BLOCK)
        return gradient, *[None] * 7


def _grid(field: Tensor) -> tuple[int, int]:
    return len(field), triton.cdiv(field[0].numel(), BLOCK)


def _pass(
    fields: Sequence[Any],
    weights: Sequence[Tensor],
    settings: _Settings,
    upstream: Tensor | None,
    sums: Tensor | None,
    gradient: Tensor | None,
    scale: float,
) -> None:
    u, second = fields[1], weights[1] if len(weights) == 2 else None
    sizes, (beta, guidance, flags) = (len(u), u[0].numel()), settings
    _matching[_grid(u)](*fields, weights[0], second, upstream, sums, gradient, *sizes, beta, guidance, scale, **flags)


def _endpoint(fields: Sequence[Any], weights: Sequence[Tensor], sigma: Tensor, settings: _Settings) -> tuple[list[Tensor], Tensor]:
    """The weights that make of errors in velocity those of the endpoint, and the loss for each sample."""
    u, (beta, guidance, flags) = fields[1], settings
    moments = torch.zeros(5, *_grid(u), device=u.device)
    _moments[_grid(u)](*fields, moments, len(u), u[0].numel(), guidance, 1 / u[0].numel(), **flags)
    moments = moments.sum(2)
    weights = [w * sigma.square() / (sigma * size).clamp(min=SMALLEST_ERROR) for w, size in zip(weights, moments[1:4:2], strict=False)]
    return weights, sum((w * square for w, square in zip(weights, moments[:4:2], strict=False)), beta * moments[4])
