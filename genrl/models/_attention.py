"""Attention by name and by probe: which operator computes it, and whether that runs on a device, in a number format, at a head's width."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention, XFormersAttnProcessor, XFormersJointAttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.checkpoint import checkpoint

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Kernels of torch's scaled dot product attention; under the name sdpa it chooses among them itself."""
NAMES = ("sdpa", *KERNELS, "xformers")


def using(name: str) -> AbstractContextManager[Any]:
    """The context in which scaled dot product attention takes the kernel of that name; for names that are no kernels it changes nothing."""
    return sdpa_kernel(KERNELS[name]) if name in KERNELS else nullcontext()


def checkpointed(name: str) -> Callable[..., Any]:
    """Gradient checkpointing for diffusers' blocks that computes again what it computed first: backward passes start outside ``using``."""

    def call(module: nn.Module, *args: Any) -> Any:
        return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), using(name)))

    return call


def attend(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, heads, L, d]`` by the operator of that name."""
    if name == "xformers":
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    with using(name):
        return F.scaled_dot_product_attention(q, k, v)


def probe(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why an operator does not run there; None if it does. It really runs, forwards and backwards, on a small tensor."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            q, k, v = (torch.ones(1, 2, 16, head_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
            out = attend(name, q, k, v)
            out.float().sum().backward()
            # what a kernel does wrong comes out when it has run
            finite = bool(out.isfinite().all())
        # a library that does not fit this torch or this device may fail in any way
        except Exception as error:
            # torch says in warnings why it refused a kernel, and in the error only that it did
            said = [str(error), *(str(warning.message) for warning in heard)]
            return "; ".join(dict.fromkeys(text.split("(Triggered")[0].strip().split("\n")[0] for text in said if text.strip()))
    return None if finite else "it answers with numbers that are not finite"


def choose(name: str, device: torch.device, dtype: torch.dtype, *, heads: int, head_dim: int, tokens: int) -> str:
    """The operator to use for a name out of ``NAMES``, or for auto: on CUDA the fastest at the model's shape, elsewhere torch's choice.

    Raises:
        ValueError: no such operator, or one that does not run; the message says why, and which do.
    """
    if name == "auto":
        return fastest(device, dtype, heads, head_dim, tokens) if device.type == "cuda" else "sdpa"
    if name not in NAMES:
        raise ValueError(f"no attention {name!r}; there are auto, {', '.join(NAMES)}")
    if why := probe(name, device, dtype, head_dim):
        running = [other for other in NAMES if other != name and probe(other, device, dtype, head_dim) is None]
        raise ValueError(
            f"speed.attention {name} does not run on {device} in {str(dtype).removeprefix('torch.')} with heads {head_dim} wide: {why}. "
            f"These do: {', '.join(running)}; auto takes the fastest"
        )
    return name


def fastest(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, tokens: int) -> str:
    """Of the operators that run, the one that takes least for a forward pass without gradient and one with its backward pass."""
    running = [name for name in NAMES if name != "math" and probe(name, device, dtype, head_dim) is None]
    q, k, v = (torch.randn(2, heads, tokens, head_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def both(name: str) -> None:
        with torch.no_grad():
            attend(name, q, k, v)
        torch.autograd.grad(attend(name, q, k, v).sum(), (q, k, v))

    def seconds(name: str) -> float:
        timer = Timer("both(name)", globals={"both": both, "name": name})
        timer.timeit(3)
        return timer.timeit(10).median

    # torch's own choice is the first, and stays where nothing is faster
    return min(running or ["sdpa"], key=seconds)


def heads_of(network: nn.Module) -> tuple[int, int]:
    """Number and width of the heads of a network's first attention."""
    first = next(module for module in network.modules() if isinstance(module, Attention))
    return first.heads, first.inner_dim // first.heads


def use_xformers(network: nn.Module) -> None:
    """Give every attention of a network xformers' operator."""
    kind = XFormersJointAttnProcessor if isinstance(network, SD3Transformer2DModel) else XFormersAttnProcessor
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(kind())
