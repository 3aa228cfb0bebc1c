"""Weights that wait on the CPU and visit the device while they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Offloaded:
    """A frozen network whose weights are at home on the CPU, in pinned memory where the device is CUDA, so that copies are fast.

    Buffers, which roles share, stay on the device. A visit copies the weights to the device and in the end forgets the copies: what is at
    home is the truth, and nothing travels back. So a visit must end before the weights change, and no graph may outlive it. On a CPU
    nothing moves. Visits within a visit are one.

    Args:
        device: where it visits.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.device = network, device
        self._visits = 0
        self._home: dict[Tensor, Tensor] = {}
        if device.type != "cpu":
            self._home = {weight: at_home(weight.detach(), device) for weight in network.parameters()}
            self._return()

    @contextmanager
    def visit(self) -> Iterator[nn.Module]:
        """The network, on the device within the block."""
        if not self._visits:
            for weight, home in self._home.items():
                weight.data = brought(home, self.device)
        self._visits += 1
        try:
            yield self.network
        finally:
            self._visits -= 1
            if not self._visits:
                self._return()

    def _return(self) -> None:
        for weight, home in self._home.items():
            weight.data = home


def at_home(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where it waits; one without data stays as it is."""
    return tensor if tensor.is_meta else tensor.cpu().pin_memory() if device.type == "cuda" else tensor.cpu()


def brought(home: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the stream that asks for it waits for it, the CPU does not."""
    return torch.empty_like(home, device=device).copy_(home, non_blocking=True)
