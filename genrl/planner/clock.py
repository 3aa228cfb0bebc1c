"""How long the pieces of a round take here: each is played with random weights, a large network cut to a few of its blocks.

What was cut away is added by its operations, at the rate at which the cut network did its own:

    seconds = seconds_cut + (plain - plain_cut) / rate_plain + (learning - learning_cut) / rate_learning
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from genrl.algorithm import Algorithm
from genrl.learner import Learner
from genrl.planner.rehearsal import batch_of
from genrl.planner.stages import Rehearsed, Stage
from genrl.policy import FlowPolicy
from genrl.rollout import decode, rollout
from genrl.types import Prompt

SLOW = {"cpu": 1e10, "cuda": 3e13}
"""Operations per second, of a thread or a GPU, that are expected at the least: how much can be played in the time there is."""
REPEATS = 3
"""Timings of a piece, of which the median counts; one more before them does not."""


@dataclass(frozen=True)
class Times:
    """Seconds of a piece by stage, of an optimiser's step per weight, and the rates of the network in operations per second."""

    pieces: dict[str, float]
    per_weight: float
    plain: float
    learning: float

    def of(self, stage: Stage) -> float:
        """Seconds a round spends in a stage, on average over rounds."""
        return (self.pieces.get(stage.name, 0.0) * stage.pieces + self.per_weight * stage.weights * stage.steps) / stage.every


def measure(
    algorithm: Algorithm, policy: FlowPolicy, whole: Rehearsed, cut: Rehearsed, *, device: torch.device, seconds: float = 60.0
) -> Times:
    """Play every stage on the device.

    Args:
        policy: built within ``genrl.models.skeletons(device, cut=True)``; ``cut``: its rehearsal, ``whole``: that of the whole network.
        seconds: what all timings together should take, about; beyond it fewer samples are played, down to two.
    """
    clock = _Clock(algorithm, policy, device)
    pairs = [(small, large) for small, large in zip(cut.stages, whole.stages, strict=True) if small.pieces]
    share, per_weight = seconds / ((REPEATS + 1) * len(pairs)), clock.step_seconds()
    pieces = {}
    for stage, _ in pairs:
        rows = clock.affordable(stage, share)
        taken = clock.seconds(clock.call(stage, rows)) * stage.rows / rows
        # an optimiser's step is in it, and is counted apart
        pieces[stage.name] = max(taken - per_weight * stage.weights, taken / 2) if stage.steps else taken
    plain, learning = rates(pairs, pieces)
    for stage, full in pairs:
        if full.plain > stage.plain:
            pieces[stage.name] += (full.plain - stage.plain) / plain
        if full.learning > stage.learning:
            pieces[stage.name] += (full.learning - stage.learning) / learning
    return Times(pieces, per_weight, plain, learning)


def rates(pairs: Sequence[tuple[Stage, Stage]], pieces: Mapping[str, float]) -> tuple[float, float]:
    """Operations per second of the cut network, without and with gradients; ``pairs`` of stages, cut and whole, ``pieces`` their seconds.

    The best of the stages that the network has a part in: others have side networks and an autoencoder, which are slower.
    """
    plain = max(stage.plain / pieces[stage.name] for stage, _ in pairs if not stage.steps)
    found = []
    for stage, full in pairs:
        if stage.steps and (full.learning > stage.learning or full is stage):
            spent = pieces[stage.name]
            found.append(stage.learning / max(spent - stage.plain / plain, spent / 3))
    return plain, max(found, default=plain)


class _Clock:
    def __init__(self, algorithm: Algorithm, policy: FlowPolicy, device: torch.device):
        self.algorithm, self.policy, self.device = algorithm, policy, device

    def seconds(self, call: Callable[[], Any]) -> float:
        return statistics.median([self._once(call) for _ in range(REPEATS + 1)][1:])

    def _once(self, call: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def affordable(self, stage: Stage, seconds: float) -> int:
        """As many rows of a stage as a slow device plays in that time: all of them, or at least two."""
        rate = SLOW[self.device.type] * (torch.get_num_threads() if self.device.type == "cpu" else 1)
        possible = int(stage.rows * seconds * rate / max(stage.plain + stage.learning, 1))
        return min(stage.rows, max(2, possible))

    def step_seconds(self) -> float:
        """Of clipping and an optimiser's step, per weight."""
        update = max(self.algorithm.updates, key=lambda update: sum(p.numel() for p in self.policy.parameters(*update.learners)))
        learner = Learner(self.policy, (update,), 0)
        parameters = self.policy.parameters(*update.learners)

        def step() -> None:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            nn.utils.clip_grad_norm_(parameters, update.clip)
            learner.optimizers[0].step()
            learner.optimizers[0].zero_grad()

        return self.seconds(step) / sum(parameter.numel() for parameter in parameters)

    def call(self, stage: Stage, rows: int) -> Callable[[], Any]:
        """A piece of a stage with so many rows."""
        batch = batch_of(self.algorithm, self.policy, rows, self.device)
        if stage.update is not None:
            update = replace(self.algorithm.updates[stage.update], passes=1, minibatch=rows, accumulate=1)
            learner = Learner(self.policy, (update,), 0)
            return lambda: learner.learn(0, batch, 0)
        if stage.diagnosed is not None:
            loss: Any = self.algorithm.updates[stage.diagnosed].loss
            return lambda: loss.diagnose(self.policy, batch)
        if stage.name == "decoding":
            return lambda: decode(self.policy, batch.x0)
        preview = self.algorithm.preview
        chain = preview.chain if preview and stage.name == "previews" else self.algorithm.chain
        return lambda: rollout(
            self.policy,
            chain,
            [Prompt("")] * rows,
            batch.cond,
            role=self.algorithm.behaviour,
            key=(0, 0, 0),
            samples=range(rows),
            groups=[0] * rows,
            guidance=self.algorithm.guidance,
            chunk=rows,
        )
