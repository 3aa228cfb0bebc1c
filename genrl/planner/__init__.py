"""What a run will take, before it is started: memory by place and time by stage, predicted from its settings alone.

The trainer's own ``build`` makes algorithm and policy on meta tensors, which have shapes and no data (``genrl.models.skeletons``), and the
round's own code runs on them (``genrl.planner.rehearsal``). Seconds come from pieces of that round, played on the device with random
weights (``genrl.planner.clock``). No weights are read. Not in it: rewards, evaluations, exports, CUDA's own few hundred MB, the memory that
an allocator loses between its blocks, and what CUDA graphs keep.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from genrl.algorithm import Algorithm
from genrl.learner import TrainingError
from genrl.models import skeletons
from genrl.planner.clock import Times, measure
from genrl.planner.rehearsal import rehearse
from genrl.planner.stages import Part, Rehearsed, Stage
from genrl.policy import FlowPolicy

Make = Callable[[], tuple[Algorithm, FlowPolicy]]

__all__ = ["Part", "Plan", "Rehearsed", "Stage", "Times", "plan"]


@dataclass(frozen=True)
class Plan:
    """What is predicted of one process.

    Args:
        device: its name; capacity: bytes of its memory, 0 where that is not known.
        parts, stages: see ``genrl.planner.rehearsal``.
        times: see ``genrl.planner.clock``; None where nothing was timed, and ``untimed`` says why.
    """

    device: str
    capacity: int
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    times: Times | None
    untimed: str = ""

    @property
    def resident(self) -> int:
        """Bytes on the device that stay from stage to stage of a round."""
        return sum(part.bytes for part in self.parts if part.place == "device")

    @property
    def peak(self) -> Stage:
        """The stage that takes most memory."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def seconds(self) -> float | None:
        """Of a round, on average."""
        return sum(self.times.of(stage) for stage in self.stages) if self.times else None


def plan(make: Make, *, chunk: int, rounds: int, device: torch.device, world: int = 1, timed: bool = True) -> Plan:
    """Predict a run.

    Args:
        make: builds the run's algorithm and policy; called within ``skeletons``, up to three times.
        chunk: samples per forward pass of sampling; rounds: of the run.
        device: what the run is to be on. Memory can be predicted for a device that is not here, time cannot.
        world: processes, each with a device of its own.
    """
    options = {"chunk": chunk, "rounds": rounds, "device": device.type, "world": world}
    with skeletons():
        whole = rehearse(*make(), **options)
    here = device.type != "cuda" or torch.cuda.is_available()
    name, capacity = _device(device) if here else (f"{device.type}, which is not here", 0)
    times, untimed = None, "" if here else "there is no such device here"
    if timed and here:
        try:
            with skeletons(cut=True):
                algorithm, policy = make()
                same = whole.weights == sum(weight.numel() for weight in policy.model.network.parameters())
                cut = whole if same else rehearse(algorithm, policy, **options)
            with skeletons(device, cut=True):
                times = measure(*make(), whole, cut, device=device)
        except (torch.OutOfMemoryError, TrainingError) as error:
            untimed = f"the timing broke off: {str(error).splitlines()[0]}"
    return Plan(name, capacity, whole.parts, whole.stages, times, untimed)


def _device(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return found.name, found.total_memory
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return f"CPU, {torch.get_num_threads()} threads", memory
