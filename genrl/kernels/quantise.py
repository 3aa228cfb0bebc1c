"""Rows in eight bits: one largest value and one cast for each row, for float8 matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from genrl.kernels.dispatch import fused

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
SMALLEST = 1e-12
"""Least magnitude of a row (ours): a row of zeros stays zeros."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """``q = round(x / scale)`` with ``scale = max |x| / 448`` of each row: dynamic row-wise scaling, as in torch's own float8 training.

    Args:
        x: ``[M, K]``.

    Returns:
        ``q [M, K]`` float8_e4m3fn, contiguous; ``scale [M, 1]`` float32.
    """
    # a compiler makes one pass of the plain form itself, together with what comes before it
    if fused(x) and not torch.compiler.is_compiling():
        from genrl.kernels._triton_quantise import quantise_triton

        return quantise_triton(x)
    return quantise_reference(x)


def quantise_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (x * (1.0 / scale)).to(torch.float8_e4m3fn).contiguous(), scale
