"""The Triton form of ``genrl.kernels.quantise``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrl.kernels.quantise import LARGEST, SMALLEST

_LARGEST, _SMALLEST = tl.constexpr(LARGEST), tl.constexpr(SMALLEST)


@triton.jit
def _quantise(x, q, scales, row_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < columns
    values = tl.load(x + row * row_stride + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), 0), _SMALLEST), _LARGEST)
    tl.store(scales + row, scale)
    # one division a row, not one an element
    tl.store(q + row * columns + place, (values * tl.div_rn(1.0, scale)).to(tl.float8e4nv), mask=inside)


def quantise_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """``q [M, K]`` float8_e4m3fn and ``scale [M, 1]`` float32 of ``x [M, K]``; a row is read once and kept in registers."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, columns = x.shape
    q = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, device=x.device)
    block = triton.next_power_of_2(columns)
    _quantise[(rows,)](x, q, scale, x.stride(0), columns, BLOCK=block, num_warps=min(max(block // 512, 1), 16))
    return q, scale
