"""Compilation of a network's repeated blocks, in place.

All blocks of one class share one compiled function, which takes the block as an argument: its weights are inputs of the graph, so blocks
that are built alike share a graph, in every copy of the network and through every change of weights. A block calls it by a bound method
in its ``__dict__``. That is what a deep copy binds anew (``nn.Module.compile`` is lost in a copy, and a compiled bound method would go on
reading the weights of the original), and what names of weights, adapters and an export do not see.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor, nn

log = logging.getLogger(__name__)

REPEATED = ("JointTransformerBlock", "BasicTransformerBlock")
"""Classes of the blocks that most of the time is spent in: of SD3's transformer, and of SDXL's U-Net."""
VARIANTS = 128
"""Graphs of one block at most: kinds of blocks, times roles, times with and without gradient. torch's own bound is 8."""
FAILURES = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


class Compiled:
    """The compiled form of a ``forward(block, ...)``; the plain one from the first failure to compile on, of which a warning says why.

    A failure comes before anything has been computed, so that the plain form may take the same call.
    """

    def __init__(self, forward: Callable[..., Any], backend: str):
        functools.update_wrapper(self, forward)
        self.forward = forward
        # a graph that breaks would be a block half compiled: it is an error, and so a warning
        self.compiled = torch.compile(forward, fullgraph=True, backend=backend)
        self.failure = ""

    def __call__(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.failure:
            return self.forward(block, *args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                # one graph for all batches: sampling, learning and evaluation have different ones
                torch._dynamo.maybe_mark_dynamic(value, 0)
        try:
            return self.compiled(block, *args, **kwargs)
        except FAILURES as error:
            self.failure = _first_line(error)
            log.warning("speed.compile: a %s does not compile, so all run uncompiled from now on: %s", type(block).__name__, self.failure)
            return self.forward(block, *args, **kwargs)


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile the repeated blocks of a network, each when it is first called.

    Raises:
        ValueError: a network without such blocks.
    """
    blocks = [module for module in network.modules() if type(module).__name__ in REPEATED]
    if not blocks:
        raise ValueError(f"a {type(network).__name__} has no {' or '.join(REPEATED)} to compile")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # a backward pass that does not compile shows in the forward pass, where there still is a way out
    torch._functorch.config.force_non_lazy_backward_lowering = True
    shared: dict[Any, Compiled] = {}
    for block in blocks:
        # the class's own, or one that was put in its place
        forward = getattr(vars(block).get("forward"), "__func__", type(block).forward)
        if isinstance(forward, Compiled):
            continue
        block.forward = MethodType(shared.setdefault(forward, Compiled(forward, backend)), block)


def _first_line(error: BaseException) -> str:
    # dynamo wraps what a compiler raised
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
