"""Previews: many samples are drawn cheaply, and only the best and the worst of each prompt in full (Sol-RL, of NVlabs/Sana).

A round with ``factor`` F and groups of G samples draws F G candidates of each prompt along a cheap chain, scores them with the run's
own rewards and mix, and keeps the G / 2 best and the G / 2 worst *numbers*. A sample's number is the key of its noise, so drawing
these numbers once more along the full chain gives what the full chain would have given in the first place; only these pictures and
their own scores are learned from. Sol-RL draws previews in four bits; ours have fewer steps, a first-block cache or eight bits.

**A round's samples are then no draw of the policy.** They are its extremes. Consequences, in ``docs/methods/ac_flow.md``: group means,
shaping and explained variance are those of the kept samples.

The guard: previews are worth their trust only while they rank as full pictures do. On the first round and every so many after it all
candidates of a few prompts are drawn in full, the middling ones too, for among extremes any two rankings agree; Kendall's tau between
both scores, a mean over prompts, is logged as ``preview/tau`` for the mixed reward and ``preview/tau/<reward>``. When its mean over the
latest checks falls below ``min_tau``, previews switch themselves off for the rest of the run, and an alarm says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from scipy import stats
from torch import Tensor

from genrl.alarms import Alarm
from genrl.algorithm import Algorithm
from genrl.chain import Chain
from genrl.mix import Mix
from genrl.policy import FlowPolicy
from genrl.pool import RewardPool, Scoring
from genrl.types import Trajectory

CHECKS = 4
"""Checks whose mean decides (ours): a single one, of a few dozen candidates, is too noisy."""


class Draw(Protocol):
    """Draws samples by number, ``width`` numbers to a prompt, hands them to the scoring, and counts them under a name."""

    def __call__(self, chain: Chain, samples: Sequence[int], width: int, scoring: Scoring | None, counter: str) -> Trajectory: ...


@dataclass(frozen=True)
class Seen:
    """Scores of candidates of all processes, in the order of their numbers: ``sample [C]``, ``scores`` label -> ``[C]``."""

    sample: Tensor
    scores: Mapping[str, Tensor]


class Previews:
    """Chooses which samples a round draws, and keeps watch over its choice.

    Args:
        draw: of the loop; gather: a tensor ``[N]`` of this process to ``[N * world]`` of all.
        world: number of processes.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        policy: FlowPolicy,
        rewards: RewardPool,
        mix: Mix | None,
        draw: Draw,
        gather: Callable[[Tensor], Tensor],
        world: int,
    ):
        self.algorithm, self.policy, self.rewards, self.mix = algorithm, policy, rewards, mix
        self.draw, self.gather, self.world = draw, gather, world
        self.on = algorithm.preview is not None
        self.taus: list[float] = []

    @property
    def width(self) -> int:
        """Numbers that belong to a prompt of the round: number n is of prompt ``n // width``."""
        plan = self.algorithm.preview
        return self.algorithm.group_size * (plan.settings.factor if plan and self.on else 1)

    def numbers(self, groups: Sequence[int]) -> list[int]:
        return [group * self.width + k for group in groups for k in range(self.width)]

    def look(self, groups: Sequence[int]) -> Seen | None:
        """Draw and score previews of all candidates of this process's groups; None while previews are off."""
        if not self.on or self.algorithm.preview is None:
            return None
        with self._cheap():
            return self._scored(groups, self.algorithm.preview.chain, "previews")

    def keep(self, seen: Seen, groups: Sequence[int]) -> list[int]:
        """The numbers of the kept candidates of this process's groups, rising."""
        total, group = self._mixed(seen), seen.sample // self.width
        kept = [seen.sample[group == g][extremes(total[group == g], self.algorithm.group_size)] for g in groups]
        return torch.cat(kept).tolist()

    def check(self, round_: int, seen: Seen, groups: Sequence[int]) -> dict[str, float]:
        """In a round in which it is due: how well previews rank. Switches them off if that is not well enough."""
        plan = self.algorithm.preview
        if plan is None or round_ % plan.settings.check_every_rounds:
            return {}
        some = groups[: -(-plan.settings.check_prompts // self.world)]
        full = self._scored(some, self.algorithm.chain, "images_seen")
        at = torch.searchsorted(seen.sample, full.sample)
        cheap = Seen(full.sample, {label: values[at] for label, values in seen.scores.items()})
        group, totals = full.sample // self.width, (self._mixed(cheap), self._mixed(full))
        metrics = {"preview/tau": agreement(*totals, group), "preview/valid": float(totals[0].isfinite().float().mean())}
        metrics |= {f"preview/tau/{label}": agreement(cheap.scores[label], values, group) for label, values in full.scores.items()}
        if math.isfinite(metrics["preview/tau"]):
            self.taus = [*self.taus, metrics["preview/tau"]][-CHECKS:]
            metrics["preview/trust"] = sum(self.taus) / len(self.taus)
            self.on = metrics["preview/trust"] >= plan.settings.min_tau
        return metrics

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """What is said when previews switch themselves off."""
        plan = self.algorithm.preview
        if plan is None:
            return ()
        words = (
            "previews rank candidates too unlike their full pictures (Kendall's tau {value}, preview.min_tau is "
            f"{plan.settings.min_tau:g}): from here on every sample is drawn in full and none is chosen. More preview.steps, a lower "
            "preview.cache or no preview.fp8 would bring them nearer"
        )
        return (Alarm("preview/trust", words, below=plan.settings.min_tau, rounds=1),)

    def state(self) -> dict[str, Any]:
        return {"on": self.on, "taus": self.taus}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.on, self.taus = state["on"], state["taus"]

    @contextmanager
    def _cheap(self) -> Iterator[None]:
        """The short cuts that the settings ask for, for the network that draws."""
        plan, model = self.algorithm.preview, cast(Any, self.policy.model)
        if plan is None or not (plan.settings.fp8 or plan.settings.cache):
            yield
            return
        with (
            torch.no_grad(),
            self.policy.storage.use(self.algorithm.behaviour) as network,
            model.cheap(network, fp8=plan.settings.fp8, cache=plan.settings.cache),
        ):
            yield

    def _scored(self, groups: Sequence[int], chain: Chain, counter: str) -> Seen:
        numbers, scoring = self.numbers(groups), self.rewards.begin()
        # no more at a time than a round learns from: the embeddings of their prompts lie on the device
        most = len(groups) * self.algorithm.group_size
        for first in range(0, len(numbers), most):
            self.draw(chain, numbers[first : first + most], self.width, scoring, counter)
        # in the order of numbers, whichever process drew them
        sample, order = self.gather(torch.tensor(numbers)).sort()
        return Seen(sample, {label: self.gather(values)[order] for label, values in scoring.result().items()})

    def _mixed(self, seen: Seen) -> Tensor:
        """The mixed reward, by a copy of the mix: its statistics are of what is learned from."""
        if self.mix is None:
            raise ValueError("previews are chosen by the mixed reward, and the task has no mix of rewards")
        return copy.deepcopy(self.mix)(seen.scores, seen.sample // self.width).total


def extremes(scores: Tensor, count: int) -> Tensor:
    """Rows, rising, of the best and the worst of ``scores [N]``, ``count`` in all, one more of the best if that is odd.

    Of equal scores an earlier row counts as better. What has no score is not taken unless nothing else is left.
    """
    known, unknown = scores.isfinite().nonzero().flatten(), (~scores.isfinite()).nonzero().flatten()
    ranked = known[scores[known].sort(descending=True, stable=True).indices]
    if len(ranked) <= count:
        chosen = torch.cat([ranked, unknown[: count - len(ranked)]])
    else:
        best = (count + 1) // 2
        chosen = torch.cat([ranked[:best], ranked[len(ranked) - (count - best) :]])
    return chosen.sort().values


def agreement(preview: Tensor, full: Tensor, group: Tensor) -> float:
    """Kendall's tau-b between two scores ``[N]`` within groups ``[N]``, a mean over groups; NaN where none can say.

    Samples that lack either score are left out. A group of equal full scores says nothing; equal previews of different pictures are
    a ranking that knows nothing, and count 0 (ours).
    """
    found = []
    for one in group.unique():
        some = (group == one) & preview.isfinite() & full.isfinite()
        ours, theirs = preview[some], full[some]
        if len(theirs.unique()) > 1:
            tau: Any = stats.kendalltau(ours.numpy(), theirs.numpy())
            found.append(float(tau.statistic) if len(ours.unique()) > 1 else 0.0)
    return sum(found) / len(found) if found else math.nan
