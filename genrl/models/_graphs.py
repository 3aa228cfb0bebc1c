"""CUDA graphs of a network's answers without gradient: one launch instead of thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

log = logging.getLogger(__name__)

MOST = 16
"""Graphs that are kept; each holds the activations of one forward pass, the memory of which they share."""


@dataclass(frozen=True)
class Captured:
    """A graph and what it reads and writes. ``weights`` are read where they lay when it was captured."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Callable[[], None]
    weights: tuple[Tensor, ...]
    places: tuple[int, ...]
    last: list[Any]
    seen: list[int]

    def holds(self) -> bool:
        """Whether the weights still lie there. Learning writes in place; a visit of offloaded weights does not."""
        return all(weight.data_ptr() == place for weight, place in zip(self.weights, self.places, strict=True))

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for place, (own, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            # a chain asks with the same embeddings at every step
            if self.last[place] is not given or given._version != self.seen[place]:
                own.copy_(given)
                self.last[place], self.seen[place] = given, given._version
        self.replay()
        # the next replay overwrites it
        return self.output.clone()


class Graphs:
    """A function ``(network, *tensors) -> tensor`` replayed from a graph for each network, adapter and shape; called as it is where it
    cannot be captured, of which a warning says why, and for networks whose weights move.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.failure = ""
        self._kept: dict[Any, Captured] = {}
        self._moving: set[int] = set()

    def __call__(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        if self.failure or id(network) in self._moving:
            return self.function(network, *inputs)
        key = (id(network), adapter_of(network), *((tensor.shape, tensor.dtype) for tensor in inputs))
        found = self._kept.get(key)
        if found is not None and not found.holds():
            self._moving.add(id(network))
            self._kept = {other: captured for other, captured in self._kept.items() if other[0] != id(network)}
            return self.function(network, *inputs)
        if found is None:
            try:
                found = self._capture(network, inputs)
            except RuntimeError as error:
                self.failure = str(error).split("\n")[0]
                self._kept.clear()
                log.warning("speed.cuda_graphs: the network cannot be captured, so it runs without graphs: %s", self.failure)
                return self.function(network, *inputs)
            self._kept[key] = found
            if len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
        return found(inputs)

    def _capture(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Captured:
        weights = (*network.parameters(), *network.buffers())
        own = tuple(tensor.clone() for tensor in inputs)
        output, replay = self._record(lambda: self.function(network, *own))
        nothing = [None] * len(own)
        return Captured(own, output, replay, weights, tuple(weight.data_ptr() for weight in weights), nothing, [0] * len(own))

    def _record(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """What ``call`` returns, and how to do again what it did. All graphs share what memory they need in between."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # libraries allocate and choose their kernels when they are first called, which a graph must not record
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # rewards may use the device from threads of their own meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return output, graph.replay

    @property
    def _pool(self) -> Any:
        if not hasattr(self, "_handle"):
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle


def adapter_of(network: Any) -> tuple[Any, ...]:
    """Which LoRA adapters of a network are active, none where it has none."""
    if not getattr(network, "peft_config", None):
        return ()
    layer: Any = next(module for module in network.modules() if isinstance(module, LoraLayer))
    return () if layer.disable_adapters else tuple(layer.active_adapters)
