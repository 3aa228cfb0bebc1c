"""The rewards that settings name, loaded: here, in processes or environments of their own, with or without a memory."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl import config
from genrl.mix import Mix
from genrl.models import weightless
from genrl.pool import Remembered, RewardPool
from genrl.reward import About, Kind, about, load_reward, source_of


@dataclass(frozen=True)
class Scorers:
    """The pools of a run: ``judges`` holds all rewards, trained ones too. ``names`` are (judge, trained reward) of reports; where nothing
    is rewarded, as in plain distillation, the second is the second judge, if there is one. ``witnesses`` tell the hacking alarm."""

    rewards: RewardPool
    mix: Mix | None
    judges: RewardPool
    trained: tuple[str, ...]
    witnesses: tuple[str, ...]
    names: tuple[str, str]

    def close(self) -> None:
        self.judges.close()
        self.rewards.close()


def load_rewards(settings: config.Rewards | config.Judges) -> Scorers:
    """The rewards that the settings name, loaded.

    Raises:
        ConfigError, RewardError: names, options or the mix make no sense; nothing else has been loaded by then.
    """
    train = settings.train if isinstance(settings, config.Rewards) else []
    if not train and isinstance(settings, config.Rewards):
        raise config.ConfigError("rewards.train is empty; name at least one reward to learn from")
    if not train and not settings.judges:
        raise config.ConfigError("rewards.judges is empty; name at least one reward to judge by")
    terms = {term.label or term.name: term for term in [*train, *settings.judges]}
    if len(terms) < len(train) + len(settings.judges):
        raise config.ConfigError("two rewards have the same name; give one of them a label of its own")
    learned = {term.label or term.name: term for term in train}
    mix = Mix(learned, settings.mix) if isinstance(settings, config.Rewards) else None
    loaded = {label: load_term(term) for label, term in terms.items()}
    pool = RewardPool({label: loaded[label] for label in learned}, settings.batch, settings.min_valid)
    remembered = {label: remember(loaded[label], term, settings.cache) for label, term in terms.items()}
    everyone = RewardPool(remembered, settings.batch, settings.min_valid)
    judging = [label for label in terms if label not in learned]
    trained = list(learned)
    names = ((judging or trained)[0], (trained or judging[1:] or judging)[0])
    witnesses = tuple(label for label in judging if terms[label].witness)
    return Scorers(pool, mix, everyone, tuple(trained), witnesses, names)


def load_term(term: config.Term, kind: Kind = "pointwise") -> Any:
    """A reward where its term wants it: in this process, in one of its own, or in an environment of its own.

    Where a run is only planned, one that gives every picture the same.
    """
    if weightless():
        return Same(kind)
    if term.requirements and term.where != "environment":
        raise config.ConfigError(f"reward {term.name!r} has requirements, which only where: environment installs; it is {term.where!r}")
    if term.where == "here":
        return load_reward(term.name, **term.options)
    # servers and their libraries are loaded for those who use them
    from genrl.remote.environment import environment
    from genrl.remote.worker import Worker

    named = re.sub(r"[^A-Za-z0-9]+", "_", term.label or term.name).strip("_")
    python = environment(named, term.requirements) if term.where == "environment" else sys.executable
    return Worker(term.name, term.options, python=str(python))


def remember(reward: Any, term: config.Term, cache: str) -> Any:
    """The reward with a memory, where there is a file for it; rewards that compare siblings have none."""
    # what a server answers may change without a trace here
    if not cache or about(reward).kind != "pointwise" or term.name == "http":
        return reward
    identity = json.dumps([term.name, term.options, term.requirements], sort_keys=True, default=str).encode() + source_of(term.name)
    return Remembered(reward, identity, Path(cache))


class Same:
    """Stands for a reward where a run is only planned: 0 for everything."""

    def __init__(self, kind: Kind):
        self.about = About(kind)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return torch.zeros(len(images))

    def score_latents(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(x))
