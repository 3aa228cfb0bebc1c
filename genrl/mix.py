"""From several rewards to the one that is learned from: normalised, combined by a rule of ``genrl.rules``, and watched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from genrl import config, rules
from genrl.config import ConfigError
from genrl.rules import CONSTANT, group_moments


class _Statistics:
    """Mean and std of every term: of its first scores, then frozen; and of all so far (Welford). ``[K]`` each, float64.

    A term that was the same everywhere in the first round keeps the unit 1 until it first differs, and that round's std from then on.
    """

    def __init__(self, count: int):
        self.first = torch.full((2, count), math.nan, dtype=torch.float64)
        self.running = torch.zeros(3, count, dtype=torch.float64)  # number, mean, sum of squares about the mean

    def update(self, scores: Tensor) -> None:
        middle, std = (m[:, 0] for m in group_moments(scores, torch.zeros(scores.shape[1], dtype=torch.long)))
        number = scores.isfinite().sum(1).double()
        seen = torch.where(number > 0, middle, math.nan), torch.where(std > CONSTANT * middle.abs(), std, math.nan)
        self.first = torch.where(self.first.isnan(), torch.stack(seen), self.first)
        before, old, squares = self.running
        total = (before + number).clamp(min=1)
        squares = squares + number * std**2 + (middle - old) ** 2 * before * number / total
        self.running = torch.stack([before + number, old + (middle - old) * number / total, squares])

    def base(self) -> tuple[Tensor, Tensor]:
        return self.first[0], self.first[1].nan_to_num(1.0)

    def all(self) -> tuple[Tensor, Tensor]:
        number, middle, squares = self.running
        std = (squares / number.clamp(min=1)).sqrt()
        return middle, torch.where(std > CONSTANT * middle.abs(), std, 1.0)


@dataclass(frozen=True)
class _Rule:
    """What a rule takes: its default normalisation, those it refuses, the default coefficient and its open range, weights, many terms."""

    normalise: str
    coefficient: float | None = None
    between: tuple[float, float] = (0.0, math.inf)
    closed: bool = False
    weighted: bool = True
    several: bool = True
    only: tuple[str, ...] = ("none", "fixed", "group", "running", "base")


# Members that are compared need one unit. The base model's statistics are a fixed affine map: they keep what tells prompts apart,
# which z-scores within groups remove, and do not change the reward's temperature as the policy moves, which running ones do.
RULES = {
    "weighted_sum": _Rule("fixed", several=False),
    "mean": _Rule("base"),
    "worst": _Rule("base", weighted=False),
    "uncertain": _Rule("base", 0.1, closed=True),
    "lower_bound": _Rule("base", 1.0, closed=True),
    "nominal_worst": _Rule("base", 0.5, (0.0, 1.0), closed=True, weighted=False),
    "entropic": _Rule("base", 1.0),
    "product": _Rule("fixed", 1e-3, only=("none", "fixed")),
    "gated": _Rule("fixed", weighted=False),
    "gdpo": _Rule("group", several=False, only=("group",)),
    "constrained": _Rule("base", 0.9, (0.0, 1.0), weighted=False),
}


@dataclass(frozen=True)
class Mixed:
    """Totals ``[B]`` float32 with NaN where a sample cannot be judged, what to log, and the reward with the largest share, if any."""

    total: Tensor
    metrics: dict[str, float]
    leader: str | None


class Mix:
    """Makes one reward of several, round after round, and says which of them decides.

    Args:
        terms: label -> its settings, in their order; the first is the main, or nominal, one. A weight of 0 leaves a term out.
        settings: rule, normalisation and strength.

    The same scores give the same total in every process, so every process may hold its own.

    Raises:
        ConfigError: settings that contradict each other; the message names the key.
    """

    def __init__(self, terms: Mapping[str, config.Term], settings: config.Mix):
        check(terms, settings)
        self.terms = {label: term for label, term in terms.items() if term.weight != 0}
        self.settings, rule = settings, RULES[settings.rule]
        self.normalise = settings.normalise or rule.normalise
        self.coefficient = float(rule.coefficient or 0.0) if settings.coefficient is None else float(settings.coefficient)
        self.weights, self.means, self.stds, self.floors = (
            torch.tensor([math.nan if (value := getattr(t, key)) is None else value for t in self.terms.values()], dtype=torch.float64)
            for key in ("weight", "mean", "std", "floor")
        )
        self.statistics = _Statistics(len(self.terms))
        self.multipliers = torch.zeros(len(self.terms) - 1, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, scores: Mapping[str, Tensor], group: Tensor) -> Mixed:
        """Raw scores ``[B]`` of every term and the groups ``[B]`` of one whole round; statistics and multipliers move on."""
        raw = torch.stack([scores[label].double() for label in self.terms])
        self.statistics.update(raw)
        normal = self._normalised(raw, group)
        total = self._combined(normal, raw)
        if self.settings.rule == "gdpo":
            total = rules.gdpo(raw, self.weights, group)
        metrics = {"mix/valid": float(rules.valid_groups(total, group).float().mean())}
        parts = rules.shares(lambda values: self._combined(values, raw), normal, group)
        if len(self.terms) > 1:
            metrics |= {f"mix/share/{label}": float(part) for label, part in zip(self.terms, parts, strict=True)}
            metrics["mix/disagreement"] = rules.disagreement(normal)
        if self.settings.rule == "constrained":
            metrics |= {f"mix/multiplier/{label}": mu for label, mu in zip(self._guards(), self.multipliers.tolist(), strict=True)}
            self._ascend(raw)
        if self.settings.rule == "gated":
            below = (raw < self.floors[:, None]).double().mean(1).tolist()
            metrics |= {f"mix/below/{label}": part for label, part in zip(self._guards(), below[1:], strict=True)}
        leader = list(self.terms)[int(parts.argmax())] if parts.sum() > 0 else None
        return Mixed(total.float(), metrics, leader)

    def _normalised(self, raw: Tensor, group: Tensor) -> Tensor:
        if self.normalise == "none":
            return raw
        if self.normalise == "group":
            return rules.zscore(raw, group)
        known = {"fixed": (self.means, self.stds), "running": self.statistics.all(), "base": self.statistics.base()}
        middle, std = known[self.normalise]
        return (raw - middle[:, None]) / std[:, None]

    def _combined(self, values: Tensor, raw: Tensor) -> Tensor:
        """The rule on normalised ``values [K, B]``; guards are compared in their own units, ``raw [K, B]``."""
        match self.settings.rule:
            case "worst":
                return rules.worst(values)
            case "nominal_worst":
                return rules.nominal_worst(values, self.coefficient)
            case "gated":
                return rules.gated(values[0], raw[1:], self.floors[1:], self.settings.penalty)
            case "constrained":
                return rules.constrained(values, self.multipliers)
            case "mean":
                return rules.mean(values, self.weights)
            case "uncertain" | "lower_bound" | "entropic" | "product" as name:
                return getattr(rules, name)(values, self.weights, self.coefficient)
            case _:  # the shares of gdpo are those of its sum; the z-score over the batch is one factor for all
                return rules.weighted_sum(values, self.weights)

    def _ascend(self, raw: Tensor) -> None:
        """Move the multipliers by this round's shortfall, in units of the base model's std whatever the normalisation."""
        base, std = self.statistics.base()
        floors = torch.where(self.floors.isnan(), base, self.floors)
        shortfall = ((floors - raw.nanmean(1)) / std)[1:].nan_to_num(0.0)
        self.multipliers = rules.dual_ascent(self.multipliers, shortfall, self.settings.dual_lr, self.coefficient)

    def _guards(self) -> list[str]:
        return list(self.terms)[1:]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain enough for JSON."""
        first = [[None if math.isnan(value) else value for value in row] for row in self.statistics.first.tolist()]
        return {"first": first, "running": self.statistics.running.tolist(), "multipliers": self.multipliers.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        first = [[math.nan if value is None else value for value in row] for row in state["first"]]
        self.statistics.first = torch.tensor(first, dtype=torch.float64)
        self.statistics.running = torch.tensor(state["running"], dtype=torch.float64)
        self.multipliers = torch.tensor(state["multipliers"], dtype=torch.float64)


def check(terms: Mapping[str, config.Term], settings: config.Mix) -> None:
    """Raise ``ConfigError`` for settings that contradict each other, or that nothing would read."""
    name, key = settings.rule, "rewards.mix."
    if name not in RULES:
        raise ConfigError(f"{key}rule {name!r} is unknown; one of {', '.join(RULES)}")
    rule, normalise = RULES[name], settings.normalise or RULES[name].normalise
    if normalise not in rule.only:
        raise ConfigError(f"{key}normalise: the rule {name!r} takes {' or '.join(rule.only)}; got {normalise!r}")
    if settings.coefficient is not None and rule.coefficient is None:
        raise ConfigError(f"{key}coefficient: the rule {name!r} has none")
    low, high = rule.between
    inside = settings.coefficient is None or low < settings.coefficient < high
    if not inside and not (rule.closed and settings.coefficient in (low, high)):
        raise ConfigError(
            f"{key}coefficient must be {'from' if rule.closed else 'between'} {low:g} to {high:g}; got {settings.coefficient}"
        )
    for option, reader in (("penalty", "gated"), ("dual_lr", "constrained")):
        default = next(entry.default for entry in fields(config.Mix) if entry.name == option)
        if name != reader and getattr(settings, option) != default:
            raise ConfigError(f"{key}{option} is read by the rule {reader!r} only, not by {name!r}")
    if not settings.dual_lr > 0:
        raise ConfigError(f"{key}dual_lr must be positive; got {settings.dual_lr}")
    used = [label for label, term in terms.items() if term.weight != 0]
    if not used:
        raise ConfigError("rewards.train: all weights are 0; at least one reward must be learned from")
    if rule.several and len(used) < 2:
        raise ConfigError(f"{key}rule {name!r} needs two rewards or more in rewards.train; got {len(used)} with a weight")
    for place, (label, term) in enumerate(terms.items()):
        _check_term(f"rewards.train {label!r}: ", place, term, name, normalise)


def _check_term(key: str, place: int, term: config.Term, name: str, normalise: str) -> None:
    rule, guarded = RULES[name], name in ("gated", "constrained")
    if name not in ("weighted_sum", "gdpo") and (term.weight < 0 or (not rule.weighted and term.weight not in (0, 1))):
        raise ConfigError(f"{key}weight must be {'positive' if rule.weighted else '1'} (or 0: left out) with {name!r}; got {term.weight}")
    if place == 0 and term.weight == 0 and (guarded or name == "nominal_worst"):
        raise ConfigError(f"{key}weight is 0, but the first reward is the main one of the rule {name!r}")
    if not term.std > 0:
        raise ConfigError(f"{key}std must be positive; got {term.std}")
    if normalise != "fixed" and (term.mean, term.std) != (0.0, 1.0):
        raise ConfigError(f"{key}mean and std are read by rewards.mix.normalise fixed only; it is {normalise!r}")
    if term.floor is not None and (place == 0 or not guarded):
        raise ConfigError(f"{key}floor is read from the second reward on, by the rules gated and constrained; the rule is {name!r}")
    if term.floor is None and place and term.weight and name == "gated":
        raise ConfigError(f"{key}floor is missing; the rule 'gated' needs one of every reward but the first")
