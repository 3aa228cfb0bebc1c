"""An algorithm is a value: who draws, what the scores become, which networks learn from it and how often.

``fit`` runs it and knows no algorithm by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from genrl import config
from genrl.alarms import Alarm
from genrl.chain import Chain, Guidance
from genrl.losses import Loss
from genrl.policy import ACTOR, FlowPolicy
from genrl.rollout import RECORDS

REAL = ("real_latents", "real_images")
"""Signals of real images, one for each sample: encoded, and decoded again."""

Optimizer = Literal["adamw", "adamw8bit"]
"""AdamW with float32 states, 8 bytes a weight, or with states quantised block by block to 8 bits, 2 bytes (arXiv 2110.02861)."""


class Feedback(Protocol):
    """Scores ``[B]`` and groups ``[B]`` of the whole round to named signals ``[B]``; its state is checkpointed."""

    @property
    def signals(self) -> tuple[str, ...]: ...

    def __call__(self, reward: Tensor, group: Tensor) -> dict[str, Tensor]: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Start:
    """When an update begins: at a round, or as soon as a metric exceeds a bound, whichever comes first."""

    round: int = 0
    metric: str | None = None
    above: float = 0.0

    def open(self, round_: int, metrics: Mapping[str, float]) -> bool:
        return round_ >= self.round or (self.metric is not None and metrics.get(self.metric, -float("inf")) > self.above)


@dataclass(frozen=True)
class Update:
    """How one role learns in each round.

    Args:
        role: whose weights; also: further roles that learn from the same loss; loss: its objective; label: its name in logs, the
            role's if empty.
        optimizer: AdamW's states in 32 or 8 bits; lr, weight_decay, betas: of AdamW.
        lr_warmup_updates: linear warm-up in optimiser steps; lr_halving_rounds: rounds in which lr halves, exponentially; 0 keeps it.
        passes: times each of the round's samples is visited, with fresh noise every time.
        minibatch: samples per forward pass and process; accumulate: forward passes per optimiser step.
        clip: bound of the gradient norm.
        start: when it begins; until_round: the round from which it learns no more, 0 for never; every_rounds: how often it has its turn.
    """

    role: str
    loss: Loss
    lr: float
    passes: int = 1
    minibatch: int = 64
    accumulate: int = 1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    lr_warmup_updates: int = 0
    lr_halving_rounds: int = 0
    clip: float = 1.0
    start: Start = field(default_factory=Start)
    until_round: int = 0
    every_rounds: int = 1
    label: str = ""
    also: tuple[str, ...] = ()
    optimizer: Optimizer = "adamw"

    @property
    def learners(self) -> tuple[str, ...]:
        return (self.role, *self.also)

    @property
    def name(self) -> str:
        return self.label or self.role

    def lr_at(self, step: int, round_: int) -> float:
        """Learning rate of the ``step``-th optimiser step (from 1), in round ``round_``."""
        decay = 0.5 ** (round_ / self.lr_halving_rounds) if self.lr_halving_rounds else 1.0
        return self.lr * min(1.0, step / max(self.lr_warmup_updates, 1)) * decay


@dataclass(frozen=True)
class Slow:
    """``target <- decay * target + (1 - decay) * source``, every so many rounds, after the updates; until a round, 0 for always."""

    target: str
    source: str
    decay: float = 0.0
    every_rounds: int = 1
    until_round: int = 0

    def due(self, round_: int) -> bool:
        """Whether to follow after ``round_`` rounds."""
        return round_ % self.every_rounds == 0 and not (self.until_round and round_ > self.until_round)


@dataclass(frozen=True)
class View:
    """A further way to draw that is judged once, when training is over: a role along another chain, with other guidance.

    ``images_per_prompt`` 0 takes as many as the full evaluation.
    """

    name: str
    role: str
    chain: Chain
    guidance: float | Guidance = 1.0
    images_per_prompt: int = 0


@dataclass(frozen=True)
class Preview:
    """More samples than are learned from are drawn along a cheap ``chain``; see ``genrl.preview``."""

    chain: Chain
    settings: config.Preview

    def validate(self, policy: FlowPolicy, scored: bool) -> None:
        """Raise ``ValueError`` for settings that make no sense, or that the policy's model cannot follow."""
        chosen = self.settings
        if not scored:
            raise ValueError("previews are chosen by their scores, and this algorithm scores nothing")
        if chosen.factor < 2 or chosen.check_every_rounds < 1 or chosen.check_prompts < 1 or chosen.cache < 0:
            raise ValueError(
                "preview.factor must be at least 2, check_every_rounds and check_prompts at least 1, cache not negative; got "
                f"{chosen.factor}, {chosen.check_every_rounds}, {chosen.check_prompts} and {chosen.cache:g}"
            )
        if (chosen.fp8 or chosen.cache) and not hasattr(policy.model, "cheap"):
            raise ValueError(f"{type(policy.model).__name__} knows no short cuts: set preview.fp8 and preview.cache off, and fewer steps")


@dataclass(frozen=True)
class Algorithm:
    """A method. ``behaviour`` draws ``prompts`` x ``group_size`` samples a round along ``chain`` with ``guidance``; ``feedback`` turns
    their scores into signals (None: nothing is scored in training); the role ``result`` is what the training is for: judged on
    held-out prompts, exported in the end (None: nothing is judged); ``views`` are judged beside it; ``alarms`` warn while it runs;
    ``rewards`` names those that losses ask themselves, so that a report does not call them unseen; ``preview`` chooses the samples;
    ``judged`` is the chain that the result is judged along, where it is another than that of training."""

    chain: Chain
    behaviour: str
    feedback: Feedback | None
    updates: tuple[Update, ...]
    slow: tuple[Slow, ...] = ()
    prompts: int = 8
    group_size: int = 16
    guidance: float | Guidance = 1.0
    result: str | None = ACTOR
    views: tuple[View, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    rewards: tuple[str, ...] = ()
    preview: Preview | None = None
    judged: Chain | None = None

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(role for update in self.updates for role in update.learners))

    @property
    def requires(self) -> frozenset[str]:
        """All signals that the losses read."""
        return frozenset(name for update in self.updates for name in update.loss.requires)

    def validate(self, policy: FlowPolicy) -> None:
        """Raise ``ValueError`` where roles, signals or sizes do not fit together: before anything is sampled."""
        wanted = {self.behaviour, *self.trained, *(role for s in self.slow for role in (s.target, s.source))}
        wanted |= {self.result} if self.result else set()
        wanted |= {view.role for view in self.views}
        wanted |= {role for update in self.updates for role in getattr(update.loss, "roles", ())}
        if missing := wanted - set(policy.roles):
            raise ValueError(f"the algorithm uses roles {sorted(missing)} that the policy lacks; it has {', '.join(policy.roles)}")
        given = (*(self.feedback.signals if self.feedback else ()), *RECORDS, *REAL)
        for update in self.updates:
            if lacking := set(update.loss.requires) - set(given):
                raise ValueError(f"the loss of {update.name!r} requires {sorted(lacking)}; there are {', '.join(given)}")
            for role in update.learners:
                if not policy.parameters(role):
                    raise ValueError(f"role {role!r} is to be updated but has no trainable weights")
            if update.lr_halving_rounds < 0:
                raise ValueError(
                    f"the update of {update.role!r} halves its lr every {update.lr_halving_rounds} rounds; 0 keeps the learning rate"
                )
            if update.lr <= 0 or update.passes < 1 or update.minibatch < 1 or update.accumulate < 1 or update.every_rounds < 1:
                raise ValueError(
                    f"the update of {update.name!r} needs a positive lr, and passes, minibatch, accumulate and every_rounds of at least 1"
                )
        if self.preview:
            self.preview.validate(policy, self.feedback is not None)
        least = 2 if self.feedback else 1
        if self.prompts < 1 or self.group_size < least:
            raise ValueError(
                f"a round needs at least one prompt and groups of at least {least} samples; got {self.prompts} x {self.group_size}"
            )
