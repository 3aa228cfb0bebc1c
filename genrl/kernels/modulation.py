"""What an MM-DiT block does between its matrix products, each in one pass over memory.

MM-DiT (Esser et al., 2024, arXiv:2403.03206; blocks after Peebles and Xie, 2023, arXiv:2212.09748) conditions on time and text by
adaLN-Zero: one linear layer of the conditioning gives a shift, a scale and a gate of each half of a block. SD3.5 also normalises
queries and keys of every head by their root mean square (Zhang and Sennrich, 2019, arXiv:1910.07467).

Function                        Formula
``layer_norm_modulate``         ``LN(x) (1 + scale) + shift``
``gate_residual``               ``x + gate h``
``gate_residual_norm_modulate`` ``x' = x + gate h`` and ``LN(x') (1 + scale) + shift``
``rms_norm``                    ``x / sqrt(mean x^2 + eps) weight``
``gelu_tanh_bias``              ``gelu_tanh(h + bias)``
``linear_gelu``                 ``gelu_tanh(x W^T + b)``

``LN`` is layer norm over the last dimension without weight and bias. Scales, shifts and gates ``[B, D]`` may be chunks of one wider tensor
and are not copied. Answers have the type of the first argument and are rounded once; a gradient has the type of what it belongs to.
The Triton forms can be differentiated once, and keep no activation for a gradient that nobody asks for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrl.kernels.dispatch import fused, wide


def layer_norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """``LN(x) (1 + scale) + shift``: ``x [B, L, D]``, ``scale [B, D]``, ``shift [B, D]`` to ``[B, L, D]``.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, scale, shift)
    if fused(x, scale, shift):
        from genrl.kernels._triton_modulation import NormModulate

        return NormModulate.apply(x, scale, shift, eps)
    normed = F.layer_norm(wide(x), x.shape[-1:], eps=eps)
    return torch.addcmul(wide(shift)[:, None], normed, 1 + wide(scale)[:, None]).to(x.dtype)


def gate_residual(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    """``x + gate h``: ``x [B, L, D]``, ``h [B, L, D]``, ``gate [B, D]`` to ``[B, L, D]``.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, gate, like=h)
    if fused(x, h, gate):
        from genrl.kernels._triton_modulation import GateResidual

        return GateResidual.apply(x, h, gate)
    return torch.addcmul(wide(x), wide(gate)[:, None], wide(h)).to(x.dtype)


def gate_residual_norm_modulate(
    x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``gate_residual``, then ``layer_norm_modulate`` of its answer, which is not read again.

    Args:
        x, h: ``[B, L, D]``; gate, scale, shift: ``[B, D]``.

    Returns:
        ``x' [B, L, D]`` and ``LN(x') (1 + scale) + shift [B, L, D]``; the norm is that of the rounded ``x'``.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, gate, scale, shift, like=h)
    if fused(x, h, gate, scale, shift):
        from genrl.kernels._triton_modulation import GateNormModulate

        return GateNormModulate.apply(x, h, gate, scale, shift, eps)
    after = gate_residual(x, h, gate)
    return after, layer_norm_modulate(after, scale, shift, eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean x^2 + eps) weight`` over the last dimension, that of a head: ``x [..., D]``, ``weight [D]`` to ``[..., D]``.

    Args:
        out: of the same shape and type, written instead of a new tensor: a part of what would be concatenated later. Its samples must be
            contiguous. Without gradient.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_width(x, weight)
    if out is not None:
        if out.shape != x.shape or out.dtype != x.dtype or not out[0].is_contiguous() or (torch.is_grad_enabled() and x.requires_grad):
            raise ValueError("out must look like x, with contiguous samples, where nothing is differentiated")
        if not fused(x):
            return out.copy_(rms_norm(x, weight, eps))
        from genrl.kernels._triton_epilogue import rms_into

        return rms_into(out, x.contiguous(), None if weight is None else weight.contiguous(), eps)
    if fused(x, *(() if weight is None else (weight,))):
        from genrl.kernels._triton_epilogue import RmsNorm

        return RmsNorm.apply(x, weight, eps)
    return F.rms_norm(wide(x), x.shape[-1:], None if weight is None else wide(weight), eps).to(x.dtype)


def gelu_tanh_bias(h: Tensor, bias: Tensor | None = None) -> Tensor:
    """``gelu_tanh(h + bias)``: ``h [..., D]``, ``bias [D]`` to ``[..., D]``; tanh form of Hendrycks and Gimpel (2016, arXiv:1606.08415).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_width(h, bias)
    if fused(h, *(() if bias is None else (bias,))):
        from genrl.kernels._triton_epilogue import GeluBias

        return GeluBias.apply(h, bias)
    if bias is None:
        return F.gelu(h, approximate="tanh")
    return F.gelu(wide(h) + wide(bias), approximate="tanh").to(h.dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``gelu_tanh(x W^T + b)``: ``x [..., K]``, ``weight [D, K]``, ``bias [D]`` to ``[..., D]``.

    Where no gradient is asked for, a GPU's matrix product adds the bias and takes the GELU before it writes (cuBLASLt's epilogue); else
    the product is kept for the backward pass, and ``gelu_tanh_bias`` follows.
    """
    if fused(x, weight) and x.is_cuda and bias is not None and not torch.is_grad_enabled() and x.dtype == weight.dtype == bias.dtype:
        rows = x.reshape(-1, x.shape[-1])
        return torch._addmm_activation(bias, rows, weight.t(), use_gelu=True).view(*x.shape[:-1], -1)
    return gelu_tanh_bias(F.linear(x, weight), bias)


def _check(x: Tensor, *vectors: Tensor, like: Tensor | None = None) -> None:
    """A kernel would read past the end of what is too small."""
    if like is not None and like.shape != x.shape:
        raise ValueError(f"expected two tensors of one shape, got {tuple(x.shape)} and {tuple(like.shape)}")
    if x.dim() != 3 or any(vector.shape != (x.shape[0], x.shape[2]) for vector in vectors):
        raise ValueError(f"expected [B, L, D] and [B, D], got {tuple(x.shape)} and {[tuple(vector.shape) for vector in vectors]}")


def _check_width(x: Tensor, vector: Tensor | None) -> None:
    if vector is not None and vector.shape != x.shape[-1:]:
        raise ValueError(f"expected [..., D] and [D], got {tuple(x.shape)} and {tuple(vector.shape)}")
