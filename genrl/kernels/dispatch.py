"""Which form of a kernel runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Form = Literal["auto", "triton", "reference"]

_form: ContextVar[Form] = ContextVar("form", default="auto")
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@contextmanager
def using(form: Form) -> Iterator[None]:
    """Within the block, run this form of every kernel; ``triton`` on a CPU needs ``TRITON_INTERPRET=1`` set before the import of triton."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def fused(*tensors: Tensor) -> bool:
    """Whether to run the Triton form on these tensors: on a CUDA device where triton is installed, unless ``using`` says otherwise."""
    form = _form.get()
    if form == "auto":
        return _HAS_TRITON and all(tensor.is_cuda for tensor in tensors)
    return form == "triton"


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 if it has 16 bits, else as it is: what references compute in, so that in double precision they are exact."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
