"""Metrics that should stay within bounds, and what it means when they do not: said in words, while there is time to stop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """A bound on a metric's mean over ``rounds`` rounds.

    ``words`` say what it means and what to do; ``{value}`` in them is that mean.
    """

    metric: str
    words: str
    above: float = math.inf
    below: float = -math.inf
    rounds: int = 20


class Alarms:
    """Listens to the metrics of every round. An alarm is raised once, and again only after it was within its bounds."""

    def __init__(self, alarms: Iterable[Alarm]):
        self._heard = {alarm: deque[float](maxlen=alarm.rounds) for alarm in alarms}
        self._raised: set[Alarm] = set()

    def hear(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Words of the alarms that this round raises."""
        found = []
        for alarm, heard in self._heard.items():
            value = metrics.get(alarm.metric)
            if value is None:
                continue
            heard.append(value)
            mean = sum(heard) / len(heard)
            if len(heard) < alarm.rounds or alarm.below <= mean <= alarm.above:
                self._raised.discard(alarm)
            elif alarm not in self._raised:
                self._raised.add(alarm)
                found.append(alarm.words.format(value=f"{mean:.3g}"))
        return found


SHARE = "mix/share/"
MEMORY, LEAD = 0.8, 0.1


class Leader:
    """Which of several rewards decides the ranking within groups, smoothed over rounds: policies jump when that changes (ours).

    A new leader must be ``LEAD`` ahead of the old one in the moving average, which keeps ``MEMORY`` a round.
    """

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._leader = ""

    def hear(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Words, if another reward than before decides now."""
        now = {name.removeprefix(SHARE): value for name, value in metrics.items() if name.startswith(SHARE) and value is not None}
        if not now:
            return []
        self._shares = {name: MEMORY * self._shares.get(name, value) + (1 - MEMORY) * value for name, value in now.items()}
        first = max(self._shares, key=lambda name: self._shares[name])
        before, self._leader = self._leader, self._leader or first
        if not before or self._shares[first] < self._shares.get(before, 0.0) + LEAD:
            return []
        self._leader = first
        told = ", ".join(f"{name} {share:.0%}" for name, share in self._shares.items())
        return [f"{first} decides now what is better within a group, and no longer {before} ({told}): what is learned changes with it"]
