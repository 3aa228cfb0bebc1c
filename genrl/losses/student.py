"""What the losses of few-step students share: their sampler's levels, which of its steps a sample is used at, x0-predictions there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl import seeds
from genrl.path import to_x0
from genrl.policy import ACTOR, FlowPolicy
from genrl.types import Batch

FAKE = "fake"
"""The role that follows the distribution of the student's samples."""


@dataclass(frozen=True)
class StudentSteps:
    """Some steps of a student's sampler.

    Args:
        sigmas: the sampler's levels, ``T + 1``.
        chosen: indices of the steps, out of ``0 .. T - 1``, 0 the noisiest.

    Raises:
        ValueError: no step, or one that the sampler lacks.
    """

    sigmas: tuple[float, ...]
    chosen: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.sigmas) - 1
        if not self.chosen or min(self.chosen) < 0 or max(self.chosen) >= count:
            raise ValueError(f"steps {list(self.chosen)} of a sampler of {count}; choose at least one of 0 to {count - 1}")

    def pick(self, batch: Batch) -> Tensor:
        """A step for each sample ``[B]``: the same for every loss of a pass, whatever the minibatch."""
        uniform = seeds.uniform((*batch.stream, 2), batch.sample.tolist())
        return torch.tensor(self.chosen)[(uniform * len(self.chosen)).long()].to(batch.x0.device)

    def level(self, step: Tensor) -> Tensor:
        """The noise level ``[B]`` at which each sample's step starts."""
        return torch.tensor(self.sigmas, device=step.device)[step]

    def after(self, step: Tensor) -> Tensor:
        """The noise level ``[B]`` at which it ends."""
        return self.level(step + 1)


def at(recorded: Tensor, step: Tensor) -> Tensor:
    """``[B, T, ...]`` and ``[B]`` to ``[B, ...]``: what was recorded at each sample's step."""
    return recorded[torch.arange(len(step), device=recorded.device), step]


def predict(policy: FlowPolicy, batch: Batch, states: Tensor, sigma: Tensor, role: str = ACTOR) -> Tensor:
    """The one-step x0-prediction ``[B, ...]`` of a role from states at levels ``[B]``, without guidance."""
    return to_x0(states, policy.velocity(states, sigma, batch.cond, role), sigma)


def early(steps: int, late: int = 1) -> tuple[int, ...]:
    """The high-noise steps: all but the last ``late``; all of them for a sampler that has no more."""
    return tuple(range(steps - late)) if steps > late else tuple(range(steps))
