"""The records that travel through a round. Frozen: a stage returns a new record instead of changing one it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt, its category for the tables ("" if none), and whatever its data set says of it, for rewards that ask."""

    text: str
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditioning:
    """What the generator is told: ``embeds [B, L, D]`` token embeddings, ``pooled [B, P]``."""

    embeds: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def index(self, rows: Tensor | slice) -> Conditioning:
        return Conditioning(self.embeds[rows], self.pooled[rows])

    def to(self, device: torch.device | str) -> Conditioning:
        return Conditioning(self.embeds.to(device), self.pooled.to(device))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([p.embeds for p in parts]), torch.cat([p.pooled for p in parts]))


@dataclass(frozen=True)
class Trajectory:
    """What a rollout produced, one row per sample.

    ``prompts`` B; ``group [B]`` int64, the index of the sample's prompt in the whole round; ``sample [B]`` int64, the
    sample's number in the round (with the seed, all its noise follows from it); ``x0 [B, ...]`` final latents; ``cond``;
    ``recorded``: what was asked for of the way there, see ``genrl.rollout.RECORDS``.
    """

    prompts: tuple[Prompt, ...]
    group: Tensor
    sample: Tensor
    x0: Tensor
    cond: Conditioning
    recorded: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Batch:
    """What a loss sees: a trajectory's tensors and the ``signal`` that the feedback made of its scores.

    ``stream`` keys the noise a loss draws, so that a sample's noise does not depend on its place in a minibatch. ``prompts`` are
    for losses that score pictures of their own.
    """

    group: Tensor
    sample: Tensor
    x0: Tensor
    cond: Conditioning
    signal: Mapping[str, Tensor]
    stream: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    def __len__(self) -> int:
        return len(self.sample)

    def index(self, rows: Tensor) -> Batch:
        return replace(
            self,
            group=self.group[rows],
            sample=self.sample[rows],
            x0=self.x0[rows],
            cond=self.cond.index(rows),
            signal={name: value[rows] for name, value in self.signal.items()},
            prompts=tuple(self.prompts[row] for row in rows.tolist()) if self.prompts else (),
        )


@dataclass(frozen=True)
class LossOutput:
    """``loss`` scalar with graph; ``metrics`` scalars without."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
