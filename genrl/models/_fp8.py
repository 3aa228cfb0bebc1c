"""Eight-bit matrix products for looking, not for learning: the large layers of a transformer's blocks, for the time of a block of code."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from genrl.kernels.quantise import quantise

log = logging.getLogger(__name__)

ALIGNED = 16
"""Float8 products want widths that are multiples of this."""


class Rows:
    """Quantised rows of the last tensor: queries, keys and values are made of the same one, one after another."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return quantise(x.reshape(-1, x.shape[-1]))
        if self.x is not x:
            self.x, self.quantised = x, quantise(x.reshape(-1, x.shape[-1]))
        return self.quantised


class Fp8Linear(nn.Module):
    """``x W^T + b`` in float8_e4m3fn: weights scaled per output row once, activations per row as they come, sums in float32 on the device.

    Args:
        weight: ``[N, K]``, both multiples of 16; bias: ``[N]``, added in the product's epilogue.
        dtype: of what it answers; the product itself answers in bfloat16.
        rows: who quantises activations, shared by layers that may be asked about the same ones.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: Rows | None = None):
        super().__init__()
        self.rows = rows or Rows()
        self.out_features, self.in_features = weight.shape
        quantised, scale = quantise(weight.detach())
        self.dtype = dtype
        self.register_buffer("weight", quantised)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self.rows(x)
        product = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.view(*x.shape[:-1], self.out_features).to(self.dtype)


@functools.cache
def available(device: torch.device) -> bool:
    """Whether a device multiplies float8 matrices (NVIDIA from compute capability 8.9 on); says so once if it does not."""
    why = ""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        why = "its compute capability is below 8.9"
    else:
        try:
            Fp8Linear(torch.ones(ALIGNED, ALIGNED, device=device), torch.zeros(ALIGNED, device=device), torch.float32)(
                torch.ones(3, ALIGNED, device=device)
            )
        except (RuntimeError, NotImplementedError) as error:
            why = str(error).split("\n")[0]
    if why:
        log.warning("no float8 matrix products on %s (%s): previews keep their usual format", device, why)
    return not why


@contextmanager
def fp8(network: nn.Module, blocks: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block, the attention and feed-forward layers of ``blocks`` are ``Fp8Linear``; afterwards the very modules of before.

    Weights are quantised on entry: with the active LoRA adapter merged in, so that the low-rank part costs nothing. Whoever plays a
    role over one shared base is thus fixed for the time of the block. Layers that make the modulation (``norm``) keep their format:
    they are small, and everything is scaled by what they say.

    Args:
        dtype: of what the layers answer.
    """
    if not available(next(network.parameters()).device):
        yield
        return
    places, rows = list(_layers(blocks)), Rows()
    try:
        for parent, name, layer in places:
            weight, bias = merged(layer)
            setattr(parent, name, Fp8Linear(weight, bias, dtype, rows))
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)


def merged(layer: Any) -> tuple[Tensor, Tensor | None]:
    """``W + scaling B A`` of the active adapter in float32, and the bias; the weight as it is where there is none."""
    if not isinstance(layer, LoraLayer):
        return layer.weight.detach(), layer.bias
    base: Any = layer.get_base_layer()
    weight = base.weight.detach()
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = weight.float() + layer.get_delta_weight(name).detach().float()
    return weight, base.bias


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and linear layer (plain, or under LoRA), for every one that is replaced."""
    for name, child in module.named_children():
        base = child.get_base_layer() if isinstance(child, LoraLayer) else child
        if isinstance(base, nn.Linear):
            if base.in_features % ALIGNED == 0 and base.out_features % ALIGNED == 0:
                yield module, name, child
        elif not name.startswith("norm"):
            yield from _layers(child)
