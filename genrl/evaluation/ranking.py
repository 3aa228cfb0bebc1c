"""Several models in one order: Bradley-Terry strengths from who scored higher on which prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from genrl.evaluation.statistics import outcomes

PRIOR = 0.5  # ours: wins added to either side of every pair, for Haldane's log-odds; a model that always wins stays finite
STEPS = 200  # of Newton's method; a strength moves by at most one per step, and the prior keeps all below 20


def bradley_terry(wins: Float[np.ndarray, "*b m m"]) -> Float[np.ndarray, "*b m"]:
    """Likeliest strengths (Bradley and Terry 1952), in log-odds against the first model, which has 0.

        P(i beats j) = 1 / (1 + exp(s_j - s_i)),  maximise  sum over i, j of wins_ij log P(i beats j)

    By Newton's method, on many tables at once.

    Args:
        wins: ``wins[..., i, j]`` is how often i beat j, a tie half a win for each; every entry off the diagonal must be above 0, else
            the likeliest strength may be infinite. ``ranking`` adds ``PRIOR``.

    Raises:
        ValueError: a table that is not square, or with an empty entry off the diagonal.
    """
    wins = np.asarray(wins, float)
    models = wins.shape[-1]
    apart = ~np.eye(models, dtype=bool)
    if wins.shape[-2] != models or not (wins[..., apart] > 0).all():
        raise ValueError(
            f"wins must be [..., M, M] and above 0 off the diagonal (add a prior); got {list(wins.shape)}, least {wins.min():g}"
        )
    wins = np.where(apart, wins, 0.0)
    games = wins + np.swapaxes(wins, -1, -2)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        odds = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        slope = (wins - games * odds).sum(-1)
        weights = games * odds * (1 - odds)
        bend = np.eye(models) * weights.sum(-1)[..., None] - weights
        step = np.linalg.solve(bend[..., 1:, 1:], slope[..., 1:, None])[..., 0]
        furthest = abs(step).max(-1, keepdims=True, initial=0)
        strengths[..., 1:] += step / np.maximum(furthest, 1)
        if furthest.max(initial=0) < 1e-10:
            break
    return strengths


def ranking(scores: Mapping[str, Float[np.ndarray, " p"]], seed: int = 0, draws: int = 1000) -> list[dict[str, Any]]:
    """Bradley-Terry strengths of models by their scores on the same prompts, and 95 % intervals over prompts.

    A model beats another on a prompt if its score is higher. ``PRIOR`` wins are added either way. Intervals are those of the Bayesian
    bootstrap (Rubin 1981): prompts get weights from an exponential distribution, and the prior's wins, ours, from a gamma distribution
    of shape ``PRIOR``, so that a model which won every prompt gets an interval with a width. For two models without ties it is that of
    Jeffreys. Too narrow below 16 prompts.

    Args:
        scores: one ``[P]`` array a model, base first, prompts in the same order. NaN leaves a prompt out of the pairs of that model.

    Returns:
        ``{"model", "strength", "ci95": [low, high]}`` in the order given: log-odds of beating the base. NaN for a model that no prompt
        compares with another, and for all if that is the base.

    Raises:
        ValueError: fewer than two models, or scores of different numbers of prompts.
    """
    names = list(scores)
    values = [np.asarray(scores[name], float) for name in names]
    if len(names) < 2 or len({row.shape for row in values}) != 1:
        raise ValueError(f"a ranking needs two models or more on the same prompts; got { ({n: len(v) for n, v in scores.items()}) }")
    table = np.stack(values)
    won = np.nan_to_num(outcomes(table[:, None], table[None, :]))  # [M, M, P]
    met = np.flatnonzero((won + np.swapaxes(won, 0, 1) > 0).any(-1).sum(1) > 1)  # a model also ties with itself
    found = [{"model": name, "strength": float("nan"), "ci95": [float("nan"), float("nan")]} for name in names]
    if 0 not in met:
        return found
    won, rng = won[np.ix_(met, met)], np.random.default_rng(seed)
    weights = rng.exponential(size=(draws, won.shape[-1]))
    # of a gamma variable of so small a shape one in a thousand is less, and would move strengths no interval sees
    prior = np.maximum(rng.gamma(PRIOR, size=(draws, len(met), len(met))), 1e-6)
    spread = bradley_terry(np.einsum("ijp,dp->dij", won, weights, optimize=True) + prior)
    likeliest = bradley_terry(won.sum(-1) + PRIOR)
    for place, strength, low, high in zip(met, likeliest, *np.quantile(spread, [0.025, 0.975], axis=0), strict=True):
        found[place] |= {"strength": float(strength), "ci95": [float(low), float(high)]}
    return found
