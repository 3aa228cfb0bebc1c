"""Intervals and tests over prompts. Images of one prompt are not independent; prompts are the unit that is resampled.

Which interval where: reports of runs, and the committed results, quote ``bootstrap_interval`` (percentile), which is somewhat narrow
for few prompts. Comparisons of models use ``studentised_interval`` and ``paired_interval``. Of 4,000 simulated samples, the shares whose
95 % interval held the true mean, percentile | studentised (tests measure again, with 400):

===========================  ============  ============  ============  ============
differences                  8 prompts     16            32            64
===========================  ============  ============  ============  ============
normal                       .882 | .964   .923 | .957   .942 | .961   .941 | .952
Student's t, 3 degrees       .872 | .966   .909 | .957   .927 | .956   .940 | .956
exponential (skewed)         .844 | .940   .895 | .953   .925 | .962   .935 | .962
lognormal (very skewed)      .780 | .907   .842 | .928   .869 | .935   .894 | .943
70 % 0, else -.25 or .25     .737 | .920   .880 | .948   .932 | .953   .940 | .950
90 % 0, else 1               .539 | .568   .794 | .808   .836 | .841   .938 | .949
===========================  ============  ============  ============  ============

What happens on one prompt in ten is often not in the sample at all: no interval can hold it then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

EXACT_PROMPTS = 14  # up to so many differences all signs are tried, 2^13 tables after symmetry
SAME = 1e-9  # ours: scores whose means differ by less, relatively, differ by the order of summation alone


def prompt_means(scores: np.ndarray) -> np.ndarray:
    """Mean over the images of each prompt: ``[P, N] -> [P]``. NaN (cannot score) is left out; all NaN stays NaN."""
    scores = np.asarray(scores, dtype=float)
    known = ~np.isnan(scores)
    count = known.sum(axis=1)
    total = np.where(known, scores, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over the first axis; NaN entries are left out."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def paired_gain(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``after - before`` over prompts and its 95 % interval: same prompts, same seeds, so differences are paired."""
    difference = np.asarray(after, float) - np.asarray(before, float)
    low, high = bootstrap_interval(difference, seed)
    return float(np.nanmean(difference)), low, high


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation over pairs in which both are numbers; NaN if either does not vary."""
    a, b = np.ravel(np.asarray(a, float)), np.ravel(np.asarray(b, float))
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return float("nan")
    found: Any = stats.spearmanr(a[both], b[both])
    return float(found.statistic)


def studentised_interval(values: Float[np.ndarray, " p"], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean over prompts: studentised bootstrap (Efron and Tibshirani 1993, chapter 12.5).

        mean - s/sqrt(P) * max(q_97.5, t)  to  mean - s/sqrt(P) * min(q_2.5, -t)

    q are quantiles of ``(mean* - mean) / (s*/sqrt(P))`` over resamples. They lean to where skewed values hide their tail, which neither
    the percentile nor the BCa interval does enough of for few prompts. Ours: each is no nearer than Student's ``t`` of P - 1 degrees,
    without which a score of few distinct values gets too little; costs 3 % of width for normal values. NaN entries are left out; NaN
    for fewer than two; no width where values do not vary, of which ``paired_test`` says more.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        return float("nan"), float("nan")
    mean, error = float(values.mean()), float(values.std(ddof=1)) / count**0.5
    # scaled, so that one threshold tells resamples that do not vary
    scaled = (values - mean) / (error or 1.0)
    picks = _resamples(count, seed, draws)
    means = picks @ scaled / count
    errors = np.sqrt(np.maximum(picks @ scaled**2 / count - means**2, 0) / (count - 1))
    known = errors > 1e-6
    student = float(stats.t.ppf(0.975, count - 1))
    low, high = np.quantile(means[known] / errors[known], [0.025, 0.975]) if known.any() else (-student, student)
    return mean - error * max(float(high), student), mean - error * min(float(low), -student)


def paired_interval(before: Float[np.ndarray, " p"], after: Float[np.ndarray, " p"], seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``after - before`` over the prompts that both could score, and its 95 % ``studentised_interval``. NaN if there is none."""
    difference = _differences(before, after)
    low, high = studentised_interval(difference, seed)
    return float(difference.mean()) if len(difference) else float("nan"), low, high


def paired_test(before: Float[np.ndarray, " p"], after: Float[np.ndarray, " p"], seed: int = 0, draws: int = 9999) -> float:
    """Two-sided p of the sign-flip permutation test on the mean of ``after - before`` over prompts.

    The hypothesis: on every prompt the two models could have been exchanged. All signs are tried for up to ``EXACT_PROMPTS`` differences,
    else ``draws`` of them, the observed one counted in, so that p is never 0. Prompts with equal scores say nothing and change
    nothing. 1 if all are equal, NaN if no prompt was scored by both. The least p of k differing prompts is 2 / 2^k.
    """
    difference = _differences(before, after)
    if len(difference) == 0:
        return float("nan")
    difference = difference[difference != 0]
    count = len(difference)
    least = abs(difference.sum()) * (1 - SAME)
    if count <= EXACT_PROMPTS:
        # the first sign stays: flipping all leaves the size of the sum as it is
        flips = np.arange(2 ** max(count - 1, 0))[:, None] >> np.arange(count) & 1
        return float((abs((1 - 2 * flips) @ difference) >= least).mean())
    rng, extreme, block = np.random.default_rng(seed), 1, 500
    for start in range(0, draws, block):
        flips = rng.integers(0, 2, (min(block, draws - start), count), dtype=np.int8)
        extreme += int((abs((1.0 - 2 * flips) @ difference) >= least).sum())
    return extreme / (draws + 1)


def outcomes(a: Float[np.ndarray, "*m"], b: Float[np.ndarray, "*m"]) -> Float[np.ndarray, "*m"]:
    """1 where ``a`` is larger, 0 where ``b`` is, 1/2 where they are equal to a relative 1e-9, NaN where either is not a number."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    won = np.where(abs(a - b) <= SAME * np.maximum(abs(a), abs(b)), 0.5, (a > b).astype(float))
    return np.where(np.isfinite(a) & np.isfinite(b), won, np.nan)


def win_rate(a: Float[np.ndarray, " p"], b: Float[np.ndarray, " p"]) -> tuple[float, float, float]:
    """Share of prompts on which ``a`` scores higher than ``b``, ties counted half, and its 95 % interval. NaN if both scored none.

    ``wins - losses`` is a difference of paired proportions, of which the rate is ``(1 + difference) / 2``; the interval is the score
    interval of Tango 1998 (Statistics in Medicine 17): all ``d`` with

        |wins - losses - P d| <= 1.96 sqrt(P (2 q + d (1 - d)))

    where q is the likeliest share of losses if the difference is d. Without ties this is Wilson's interval. Its exact coverage, by the
    trinomial, for equal models and 8, 16, 32, 64 prompts: .93, .92, .95, .94 without ties (wins are whole numbers), .95, .96, .95, .95
    with half of them ties. Wilson's with ties halved covers .99 there; Student's covers .34 of 8 prompts that are nearly all won.
    """
    won = outcomes(a, b)
    won = won[np.isfinite(won)]
    count, wins, losses = len(won), int((won == 1).sum()), int((won == 0).sum())
    if count == 0:
        return float("nan"), float("nan"), float("nan")
    z = float(stats.norm.ppf(0.975))

    def score(d: float) -> float:
        """Falls as d grows, from plus to minus infinity unless all was won or lost."""
        linear = (2 * count - wins + losses) * d - wins - losses
        q = (np.sqrt(max(linear**2 + 8 * count * losses * d * (1 - d), 0.0)) - linear) / (4 * count)
        return (wins - losses - count * d) / np.sqrt(max(count * (2 * q + d * (1 - d)), 1e-300))

    edge = 1 - 1e-12
    low = -1.0 if losses == count else _zero(lambda d: score(d) - z, -edge, edge)
    high = 1.0 if wins == count else _zero(lambda d: score(d) + z, -edge, edge)
    return float(won.mean()), (1 + low) / 2, (1 + high) / 2


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Adjusted p of a family of tests (Holm 1979): at any level, the share of families with a false discovery stays below that level.

    NaN are tests that were not made: they stay NaN and the others do not pay for them.
    """
    p_values = np.asarray(p_values, float)
    adjusted, known = np.full(len(p_values), np.nan), np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def minimum_detectable(differences: Float[np.ndarray, " p"], power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that as many prompts, differing as much, would have shown as significant with this probability.

    Of the two-sided paired t test at level alpha, for normal differences, in their unit. NaN entries are left out;
    NaN for fewer than two, 0 where the differences do not vary.
    """
    differences = np.asarray(differences, float)
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if count < 2:
        return float("nan")
    critical = float(stats.t.ppf(1 - alpha / 2, count - 1))
    # by the spread that the sample may show; scipy's noncentral t gives NaN in the far tail
    spread = critical * np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, count - 1) / (count - 1))

    def missing(shift: float) -> float:
        return power - float((stats.norm.cdf(shift - spread) + stats.norm.cdf(-shift - spread)).mean())

    return _zero(missing, 0, 10 * critical) * float(differences.std(ddof=1)) / count**0.5


def _differences(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of the prompts that both could score; what ``outcomes`` calls equal differs by 0."""
    before, after = np.asarray(before, float), np.asarray(after, float)
    both = np.isfinite(before) & np.isfinite(after)
    return np.where(outcomes(after, before) == 0.5, 0.0, after - before)[both]


def _zero(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = optimize.brentq(function, low, high)
    return float(found)


@lru_cache(maxsize=4)
def _resamples(count: int, seed: int, draws: int) -> np.ndarray:
    """How often each of ``count`` prompts is in each of ``draws`` resamples, ``[draws, count]``: the same for all metrics of a table."""
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(float)
    picks.flags.writeable = False
    return picks
