"""What is learned, beside the algorithm that learns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genrl import seeds
from genrl.data import PromptSet
from genrl.evaluation.watch import Watch
from genrl.mix import Mix
from genrl.pool import RewardPool


@dataclass(frozen=True)
class Task:
    """What is learned: prompts to train on, prompts to judge on, rewards and how they become one, what judges, and real images for
    losses that compare with them, by the name of the signal (``genrl.algorithm.REAL``): ``[N, ...]``, uint8 stands for [0, 1]. ``watch``
    listens to the evaluations and says in words when the reward is being hacked."""

    train: PromptSet
    held_out: PromptSet
    rewards: RewardPool
    mix: Mix | None
    judges: RewardPool
    watch: Watch
    real: Mapping[str, Tensor] = field(default_factory=dict)

    def real_of(self, name: str, key: Sequence[int], samples: Sequence[int]) -> Tensor:
        """A real image ``[B, ...]`` float32 for each sample, drawn by ``(*key, sample)``.

        Raises:
            ValueError: the task has none of that name.
        """
        if name not in self.real:
            raise ValueError(f"the losses compare with {name!r}, of which the task has none")
        every = self.real[name]
        chosen = every[(seeds.uniform(key, samples) * len(every)).long()]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen
