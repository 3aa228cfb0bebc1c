"""Counting on meta tensors: which storages live at once, what autograd keeps, and how many floating-point operations are done.

The code that runs is the real one; only the tensors have no data. Two things are then missing, and are put in its place:

* What goes by a tensor's device, and ``meta`` is none: autocast, after PyTorch's lists ("CUDA Ops that can autocast to ...") as far as
  they matter here, and attention without its matrix of scores. ``pretended`` puts both in place.
* Numbers. Where code asks a tensor for one (``.item()``, ``if``, a mask), ``Ledger`` answers 1 and "all of them".
"""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten

LOW = {
    F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
}  # fmt: skip
"""What autocast runs in the low format, on every device."""
HIGH = {
    F.layer_norm, F.group_norm, F.softmax, F.interpolate, F.softplus, F.mse_loss, F.huber_loss, torch.softmax, torch.pow, torch.exp,
    torch.log, torch.rsqrt, torch.sum, torch.cumsum, torch.prod, Tensor.softmax, Tensor.pow, Tensor.__pow__, Tensor.exp, Tensor.log,
    Tensor.rsqrt, Tensor.sum, Tensor.cumsum, Tensor.prod,
}  # fmt: skip
"""What autocast runs in float32 on CUDA. On a CPU its list holds nothing that networks here do."""
ROUNDED = 512
"""Bytes that a CUDA allocation is rounded up to."""


class Pretence(TorchFunctionMode):
    """Under the autocast of the CPU, meta tensors are cast as that of ``device`` (``cuda`` or ``cpu``) would.

    A mode is off within ``backward``, so what checkpointing computes again needs it anew: ``checkpoint`` below.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self._cast: dict[Tensor, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled("cpu"):
            self._cast.clear()
        elif func in LOW:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif func in HIGH and self.device == "cuda":
            args, kwargs = tree_map(lambda value: value.float() if _castable(value) else value, (args, kwargs))
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        """In the low format. Casts of trained weights are kept as long as autocast lasts, as it does itself."""
        low = torch.get_autocast_dtype("cpu")
        if not _castable(value) or value.dtype == low:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(low)
        if value not in self._cast:
            with torch.enable_grad():
                self._cast[value] = value.to(low)
        return self._cast[value]


def _castable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.dtype in (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def pretended(device: str) -> Iterator[None]:
    """Within the block, meta tensors behave as if they were on ``device``."""
    attention = F.scaled_dot_product_attention

    def without_scores(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
        learned = attn_mask is not None and attn_mask.requires_grad
        if not query.is_meta or (learned and device == "cpu"):
            return attention(query, key, value, attn_mask, *args, **options)
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(low), key.to(low), value.to(low)
        if learned:
            return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled())[0]
        # that of the CPU keeps what those of CUDA keep, and takes any format
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, *args[:2], attn_mask=attn_mask)[0]

    F.scaled_dot_product_attention = without_scores
    try:
        with Pretence(device):
            yield
    finally:
        F.scaled_dot_product_attention = attention


@contextmanager
def unlaunched() -> Iterator[None]:
    """Within the block, Triton kernels do nothing: what they would write to has been made before, and that is what counts."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.jit import KernelInterface

    launch = KernelInterface.__getitem__
    KernelInterface.__getitem__ = lambda self, grid: lambda *args, **kwargs: None
    try:
        yield
    finally:
        KernelInterface.__getitem__ = launch


def checkpoint(device: str) -> Any:
    """Activation checkpointing whose second pass pretends, too."""
    return partial(torch.utils.checkpoint.checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), Pretence(device)))


class Ledger(TorchDispatchMode):
    """Follows the storages of a device's tensors from their making to their end, and counts operations.

    Attributes:
        live, peak: bytes at present, and the most so far.
        plain, learning: floating-point operations outside and inside of differentiated code, backward passes included.

    Args:
        rounded: bytes that an allocation is a multiple of.
        place: the device; on a real one, what is counted is what a prediction is compared with.
    """

    def __init__(self, rounded: int = 1, place: str = "meta"):
        super().__init__()
        self.rounded, self.place = rounded, place
        self.live = self.peak = self.plain = self.learning = 0
        self._known: dict[int, int] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.index.Tensor and args[0].is_meta:
            args = (args[0], [_every(index) for index in args[1]])
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.device.type == self.place:
                self._see(value)
        if formula := FORMULAS.get(getattr(func, "_overloadpacket", func)):
            done = formula(*args, **kwargs, out_val=out)
            if torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
                self.learning += done
            else:
                self.plain += done
        return out

    def skip(self, peak: int, plain: int) -> None:
        """Count what a part that is left out would have: bytes on top of those that live, and operations."""
        self.peak = max(self.peak, self.live + peak)
        self.plain += plain

    @contextmanager
    def measured(self) -> Iterator[Ledger]:
        """Starts the peak and the operations anew, within the block."""
        self.peak, self.plain, self.learning = self.live, 0, 0
        yield self

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.rounded) * self.rounded
        if key in self._known:
            return
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _every(index: Tensor | None) -> Tensor | None:
    return torch.arange(len(index), device=index.device) if index is not None and index.dtype == torch.bool else index


def _attention_on_cpu(query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_on_cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_on_cpu_backward,
}
"""torch's own, and those of the CPU's attention, which it lacks."""


class Kept:
    """What autograd keeps for the way back, counted once per storage. ``known`` is not counted: weights stay anyway."""

    def __init__(self, known: Iterable[Tensor]):
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.bytes = 0
        self._seen: set[int] = set()

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known | self._seen:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor
