"""The Triton form of ``genrl.kernels.noise``; ``normal4`` is what other kernels draw their noise with."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrl.kernels.noise import COS, ROUNDS, SIN

_ROUNDS = tl.constexpr(ROUNDS)
_S1, _S2, _S3 = (tl.constexpr(value) for value in SIN[1:])
_C1, _C2, _C3, _C4 = (tl.constexpr(value) for value in COS[1:])
_ANGLE = tl.constexpr(2.0**-24 * math.pi / 4)
_UNIT = tl.constexpr(2.0**-24)


@triton.jit
def _pair(first, second):
    first, second = first.to(tl.uint32, bitcast=True), second.to(tl.uint32, bitcast=True)
    radius = tl.sqrt(-2.0 * tl.log(((first >> 8) + 1).to(tl.float32) * _UNIT))
    angle = (second >> 8).to(tl.float32) * _ANGLE
    square = angle * angle
    sine = angle * (1.0 + square * (_S1 + square * (_S2 + square * _S3)))
    cosine = 1.0 + square * (_C1 + square * (_C2 + square * (_C3 + square * _C4)))
    swapped = (second & 1) == 1
    one, two = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return radius * tl.where((second & 2) == 2, -one, one), radius * tl.where((second & 4) == 4, -two, two)


@triton.jit
def normal4(seed, counter):
    """Four normal numbers of each counter (int32)."""
    a, b, c, d = tl.randint4x(seed, counter, n_rounds=_ROUNDS)
    n0, n1 = _pair(a, b)
    n2, n3 = _pair(c, d)
    return n0, n1, n2, n3


@triton.jit
def _normal(out, seeds, count, quarter, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = normal4(tl.load(seeds + row), q)
    for j in tl.static_range(4):
        place = j * quarter + q
        tl.store(out + row * count + place, n[j], mask=(q < quarter) & (place < count))


def normal_triton(seed: Tensor, count: int) -> Tensor:
    """``[B, count]`` float32."""
    out = torch.empty(len(seed), count, device=seed.device)
    quarter, block = -(-count // 4), 512
    _normal[(len(seed), triton.cdiv(quarter, block))](out, seed, count, quarter, BLOCK=block)
    return out
