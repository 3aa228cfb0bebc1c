"""The hacking alarm: listens to the evaluations of a run and says in words when the trained reward goes up and something else pays for it.

Everything is paired: the same held-out prompts and noise at every evaluation. Scores are counted in standard deviations of the base model
over prompts. The trained reward is *up* when it is above the base model's, its 95 % interval over prompts excluding 0. While it is up, the
alarm sounds if one of these witnesses speaks against it, interval excluding 0, too:

================  ==========================================================================================================
held-out reward   the mean of the judges that training never asked fell by ``FALL`` from its best evaluation so far; or it had risen,
                  and has not since the trained reward was ``STALL`` lower: what is learned now is the trained reward's alone
diversity         the pictures of a prompt differ by less than ``DIVERSITY`` of what they did
shuffled prompts  the gap between a picture's own prompt and another one is below ``GAP`` of what it was: the reward no longer reads
statistics        an image statistic moved by more than ``DRIFT``
================  ==========================================================================================================

The witnesses are those that published reports of hacking name (docs/rewards.md); rule and thresholds are *ours*, chosen on
``benchmarks/overoptimisation_shapes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrl.evaluation.reading import Evaluation, on_common
from genrl.evaluation.statistics import bootstrap_interval, prompt_means

FALL = 0.1
STALL = 0.08
DIVERSITY = 0.7
GAP = 0.7
DRIFT = 1.0
LAYOUT = "layout"
"""Diversity in the features of a reward that reads prompts falls anyway when more pictures show what the prompt says."""
ADVICE = "Look at the newest pictures; stop here, raise actor.beta, or train on an ensemble of rewards (rewards.mix)"


class Watch:
    """Hears evaluations in their order; each witness speaks once, and again only after it was silent at an evaluation.

    Args:
        trained: labels of the rewards that training asks; without any there is nothing to hack.
        witnesses: labels of judges to listen to; those that are trained do not count.
    """

    def __init__(self, trained: Sequence[str], witnesses: Sequence[str]):
        self.trained = tuple(trained)
        self.witnesses = tuple(name for name in witnesses if name not in trained)
        self.seen: list[Evaluation] = []
        self.speaking: set[str] = set()

    def hear(self, evaluation: Evaluation) -> list[str]:
        """Words of the witnesses that begin to speak with this evaluation."""
        self.seen.append(evaluation)
        spoken = self._testimony() if len(self.seen) > 1 and self.trained else {}
        new = [words for witness, words in spoken.items() if witness not in self.speaking]
        self.speaking = set(spoken)
        return new

    def _testimony(self) -> dict[str, str]:
        """Witness -> words, of all who speak against the last evaluation."""
        path = on_common(self.seen)
        fewest = min(evaluation.images_per_prompt for evaluation in path)
        base, now = path[0], path[-1]
        trained = self._z(path, self.trained, fewest)
        up, low, _ = _mean(trained[-1])
        if not low > 0:
            return {}
        rose = f"{' and '.join(self.trained)} is up by {up:.2f} base standard deviations, but"
        found = {}
        if self.witnesses and (words := self._unconfirmed(path, trained, fewest)):
            found["held-out reward"] = words
        if LAYOUT in base.diversity and LAYOUT in now.diversity:
            change, _, high = _mean(now.diversity[LAYOUT] - base.diversity[LAYOUT])
            share = 1 + change / np.nanmean(base.diversity[LAYOUT])
            if high < 0 and share < DIVERSITY:
                found["diversity"] = f"the pictures of a prompt differ by only {share:.0%} of what they did"
        for name in base.shuffled.keys() & now.shuffled.keys():
            before, after = (prompt_means(e.scores[name]) - prompt_means(e.shuffled[name]) for e in (base, now))
            _, _, high = _mean(after - before)
            if np.nanmean(before) <= 0:  # it did not read prompts to begin with
                continue
            share = np.nanmean(after) / np.nanmean(before)
            if high < 0 and share < GAP:
                found[f"prompts {name}"] = f"{name} hardly minds another prompt any more: its gap is {share:.0%} of what it was"
        for name, values in base.statistics.items():
            moved, low, high = _mean((now.statistics[name] - values) / _spread(values))
            if abs(moved) > DRIFT and low * high > 0:
                found[f"statistics {name}"] = f"the {name} of the pictures moved by {moved:+.1f} standard deviations"
        return {witness: f"{rose} {words}. {ADVICE}" for witness, words in found.items()}

    def _unconfirmed(self, path: list[Evaluation], trained: list[np.ndarray], images: int) -> str:
        gains = self._z(path, self.witnesses, images)
        best = int(np.argmax([_mean(gain)[0] for gain in gains]))
        names, since = " and ".join(self.witnesses), f"since round {path[best].round}"
        fall, _, high = _mean(gains[-1] - gains[best])
        if high < 0 and fall < -FALL:
            return f"the held-out {names} fell by {-fall:.2f} {since}"
        more, low, _ = _mean(trained[-1] - trained[best])
        followed = _mean(gains[best])[1] > 0
        if followed and low > 0 and more > STALL:
            return f"the held-out {names} stands still {since}, and {more:.2f} of the rise came later"
        return ""

    def _z(self, path: list[Evaluation], names: Sequence[str], images: int) -> list[np.ndarray]:
        """Gain over the base of each evaluation ``[P]``, the mean over some scores, in base standard deviations."""
        columns: list[Mapping[str, np.ndarray]] = [{name: prompt_means(e.scores[name][:, :images]) for name in names} for e in path]
        spread = {name: _spread(columns[0][name]) for name in names}
        return [np.mean([(c[name] - columns[0][name]) / spread[name] for name in names], axis=0) for c in columns]


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over prompts and its 95 % interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    low, high = bootstrap_interval(values)
    return float(values.mean()), low, high


def _spread(values: Any) -> float:
    """Standard deviation over prompts; NaN where nothing varies, so that nothing is concluded."""
    spread = float(np.nanstd(values))
    return spread if spread > 0 else float("nan")
