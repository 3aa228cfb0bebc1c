"""Several losses of one role in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from genrl import seeds
from genrl.losses import Loss
from genrl.policy import FlowPolicy
from genrl.types import Batch, LossOutput


@dataclass(frozen=True)
class Combined:
    """``sum_i weight_i L_i``, or one of them at a time.

    Args:
        parts: losses with their weights.
        mode: ``both``: all in every step; ``either``: one, drawn for each minibatch.
    """

    parts: Sequence[tuple[Loss, float]]
    mode: Literal["both", "either"] = "both"

    @property
    def requires(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for loss, _ in self.parts for name in loss.requires))

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(role for loss, _ in self.parts for role in getattr(loss, "roles", ())))

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        chosen = self.parts
        if self.mode == "either":
            draw = seeds.uniform((*batch.stream, 4), [int(batch.sample.min())])
            chosen = [self.parts[int(draw.item() * len(self.parts))]]
        outputs = [(loss(policy, batch), weight) for loss, weight in chosen]
        metrics = {name: value for output, _ in outputs for name, value in output.metrics.items()}
        total = sum((weight * output.loss for output, weight in outputs[1:]), outputs[0][1] * outputs[0][0].loss)
        return LossOutput(total, metrics)
