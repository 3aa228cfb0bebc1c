"""A LoRA layer's answer in four matrix products and nothing else.

    y = x W^T + b + scaling (x A^T) B^T

peft computes the two halves apart: it casts every input to the factors' float32 and, under autocast, back again, scales, and adds. On
a large transformer in bfloat16 that is a quarter of an update's time. Here the low-rank half is added by the product itself (beta = 1 of
``addmm``), forward and backward, in the format of the frozen weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def lora_config(rank: int, alpha: int, targets: Sequence[str]) -> LoraConfig:
    """Gaussian factor A, zero factor B: an adapter that starts as the base itself."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")


class _Product(torch.autograd.Function):
    """``x [N, K]``, ``weight [M, K]`` and ``bias`` frozen, factors ``down [r, K]`` and ``up [M, r]`` in a format of their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        a, b = down.to(x.dtype), (up * scaling).to(x.dtype)
        inner = x @ a.t()
        out = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        out.addmm_(inner, b.t())
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling, ctx.dtype = scaling, down.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any):
        x, weight, a, b, inner = ctx.saved_tensors
        g = upstream[0]
        low = g @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ weight
            dx.addmm_(low, a)
        d_down = (low.t() @ x).to(ctx.dtype) if ctx.needs_input_grad[3] else None
        d_up = (g.t() @ inner).to(ctx.dtype).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return dx, None, None, d_down, d_up, None


def linear(layer: Any, x: Tensor) -> Tensor:
    """What a linear layer, adapted or not, says of ``x [..., K]``; layers that are not plain LoRA are called as they are."""
    if not isinstance(layer, LoraLinear):
        return layer(x)
    base: Any = layer.get_base_layer()
    if layer.disable_adapters:
        return base(x)
    kind = "cpu" if x.is_meta else x.device.type  # as DiffusersModel.autocast has it
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if not _is_plain(layer, base) or base.weight.dtype != dtype:
        return layer(x)
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = x.to(dtype).reshape(-1, x.shape[-1])
    with torch.autocast(kind, enabled=False):
        out = _Product.apply(rows, base.weight, base.bias, down, up, layer.scaling[name])
    return out.view(*x.shape[:-1], -1)


def _is_plain(layer: Any, base: Any) -> bool:
    """One active adapter without dropout, variant or bias, over a frozen ``nn.Linear``, and no hook that wants to see the call."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.merged or len(names) != 1 or len(layer.active_adapters) != 1 or type(base) is not nn.Linear or base.weight.requires_grad:
        return False
    name = names[0]
    hooked = any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in (layer, base))
    plain = isinstance(layer.lora_dropout[name], nn.Identity) and not layer.lora_variant.get(name) and not layer.lora_bias.get(name)
    return plain and not hooked
