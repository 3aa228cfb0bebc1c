"""Intervals over prompts. Images of one prompt are not independent; prompts are the unit that is resampled."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


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
