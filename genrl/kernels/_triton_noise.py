"""The Triton form of ``genrl.kernels.noise``; ``normal4`` is what other kernels draw their noise with."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrl.kernels.noise import COS, MULTIPLIERS, ROUNDS, SIN, WEYL

_S1, _S2 = (tl.constexpr(value) for value in SIN[1:])
_C1, _C2, _C3 = (tl.constexpr(value) for value in COS[1:])
_M0, _M1 = (tl.constexpr(value) for value in MULTIPLIERS)
_W0, _W1 = (tl.constexpr(value) for value in WEYL)
_ROUNDS = tl.constexpr(ROUNDS)
_OCTANT = tl.constexpr(math.pi / 4)


@triton.jit
def _unit(word):
    """A number in [1, 2) of a word's upper 23 bits: no conversion, which costs eight additions' time."""
    return ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _log(u):
    """Natural logarithm of a normal number; polynomial of Cephes' logf, without the special cases of a library's."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    y = 7.0376836292e-2 * f - 1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f - 1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f - 1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f - 2.4999993993e-1
    y = y * f + 3.3333331174e-1
    return exponent.to(tl.float32) * 0.6931471805599453 + (f + f * f * (y * f - 0.5))


@triton.jit
def _pair(first, second):
    radius = tl.sqrt(-2.0 * _log(2.0 - _unit(first)))
    angle = (_unit(second) - 1.0) * _OCTANT
    square = angle * angle
    sine = angle * (1.0 + square * (_S1 + square * _S2))
    cosine = 1.0 + square * (_C1 + square * (_C2 + square * _C3))
    swapped = (second & 1) == 1
    one, two = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return radius * tl.where((second & 2) == 2, -one, one), radius * tl.where((second & 4) == 4, -two, two)


@triton.jit
def normal4(seed, counter):
    """Four normal numbers of each counter (int32); ``seed`` int64."""
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    # the first round, of a counter whose other words are 0
    product = counter.to(tl.uint64) * _M0
    a, b, c, d = low, low * 0, (product >> 32).to(tl.uint32) ^ high, product.to(tl.uint32)
    for _ in tl.static_range(_ROUNDS - 1):
        low, high = low + _W0, high + _W1
        left, right = a.to(tl.uint64) * _M0, c.to(tl.uint64) * _M1
        a, b = (right >> 32).to(tl.uint32) ^ b ^ low, right.to(tl.uint32)
        c, d = (left >> 32).to(tl.uint32) ^ d ^ high, left.to(tl.uint32)
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
    quarter, block = -(-count // 4), 256
    _normal[(len(seed), triton.cdiv(quarter, block))](out, seed, count, quarter, BLOCK=block)
    return out
