"""Rules that make one reward of several: what is added, what guards, and which reward really decides.

The rules are functions of ``scores [K, B]``, normalised before, NaN where a reward cannot score. All statistics are population ones.
``worst``, ``uncertain`` and their kin were made for members of one ensemble (one target, several seeds). Among rewards of different
families they mean something only after normalisation, and members with one backbone share their errors.

NaN: a sample without a score of a needed member has a total of NaN. Only ``mean``, ``uncertain``, ``lower_bound`` and ``entropic`` go
on with the members that there are, two at least, the others' weights being spread over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MIN_MEMBERS = 2
CONSTANT = 1e-6
"""A spread below this part of the mean is rounding, not information (ours): it becomes 0, and not noise of size one."""


def _members(scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores without NaN ``[K, B]``, weights over valid members ``p [K, B]``, their mean and variance ``[B]``, enough valid ``[B]``."""
    valid = scores.isfinite()
    scores = torch.where(valid, scores, 0.0)
    p = weights[:, None] * valid
    p = p / torch.where(valid.any(0), p.sum(0), 1.0)
    mean = (p * scores).sum(0)
    return scores, p, mean, (p * (scores - mean) ** 2).sum(0), valid.sum(0) >= MIN_MEMBERS


def weighted_sum(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"]) -> Float[Tensor, " b"]:
    """``sum_k w_k r_k``; a reward of weight 0 is not needed. As everywhere (Flow-GRPO, DiffusionNFT)."""
    needed = weights != 0
    return (weights[needed, None] * scores[needed]).sum(0)


def mean(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"]) -> Float[Tensor, " b"]:
    """``sum_k p_k r_k``, ``p_k = w_k / sum w`` over the valid members (arXiv 2310.02743; the weights are ours)."""
    _, _, middle, _, enough = _members(scores, weights)
    return torch.where(enough, middle, math.nan)


def worst(scores: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """``min_k r_k``: worst-case optimisation, WCO (Coste et al., arXiv 2310.02743)."""
    return scores.amin(0)


def uncertain(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"], strength: float) -> Float[Tensor, " b"]:
    """``mean - lambda var`` over members: uncertainty-weighted optimisation, UWO (arXiv 2310.02743).

    Its code takes lambda .1 with PPO, our default, and .5 with best-of-n."""
    _, _, middle, variance, enough = _members(scores, weights)
    return torch.where(enough, middle - strength * variance, math.nan)


def lower_bound(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"], deviations: float) -> Float[Tensor, " b"]:
    """``mean - k std`` over members (ours, the lower confidence bound of bandits): a penalty in units of the reward; k is 1."""
    _, _, middle, variance, enough = _members(scores, weights)
    # the root has no slope at 0, where members agree
    std = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)
    return torch.where(enough, middle - deviations * std, math.nan)


def nominal_worst(scores: Float[Tensor, "k b"], share: float) -> Float[Tensor, " b"]:
    """``lambda r_1 + (1 - lambda) min_k r_k``, the first being the nominal one (reward-robust RLHF, arXiv 2409.15360).

    Our default for lambda is .5."""
    return share * scores[0] + (1 - share) * worst(scores)


def entropic(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"], beta: float) -> Float[Tensor, " b"]:
    """``-beta log sum_k p_k exp(-r_k / beta)`` (arXiv 2606.09073).

    For beta to infinity the mean, to 0 the minimum, and ``mean - var / (2 beta) + O(1/beta^2)`` between: ``uncertain``. The default,
    1, is ours: one standard deviation of the base model's scores.
    """
    scores, p, _, _, enough = _members(scores, weights)
    return torch.where(enough, -beta * torch.logsumexp(p.log() - scores / beta, 0), math.nan)


def product(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"], least: float) -> Float[Tensor, " b"]:
    """``prod_k max(r_k, eps)^w_k`` for rewards in [0, 1]: all must be good (ours, a weighted geometric mean if
    the w sum to 1). ``least`` is eps, .001 by default: below it a reward counts no further."""
    return (weights[:, None] * scores.clamp(min=least).log()).sum(0).exp()


def gated(
    main: Float[Tensor, " b"], guards: Float[Tensor, "j b"], floors: Float[Tensor, " j"], penalty: float | None
) -> Float[Tensor, " b"]:
    """The main reward where every guard is at or above its floor, elsewhere the penalty (ours).

    A penalty of None is the lowest main reward among these samples, so that failing never pays, whatever the scale.
    """
    fallback = main.detach()[main.isfinite()].min() if penalty is None and main.isfinite().any() else torch.tensor(penalty or 0.0)
    total = torch.where((guards >= floors[:, None]).all(0), main, fallback.to(main.dtype))
    return torch.where(main.isfinite() & guards.isfinite().all(0), total, math.nan)


def gdpo(scores: Float[Tensor, "k b"], weights: Float[Tensor, " k"], group: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """``sum_k w_k zscore_group(r_k)``, then a z-score over the batch: already an advantage (GDPO, arXiv 2601.05242)."""
    total = weighted_sum(zscore(scores, group), weights)
    return zscore(total[None], torch.zeros_like(group))[0]


def constrained(scores: Float[Tensor, "k b"], multipliers: Float[Tensor, " j"]) -> Float[Tensor, " b"]:
    """``(1 - sum_j mu_j) r_1 + sum_j mu_j r_j``, j > 1: the main reward, subject to floors on the others.

    Bounded multipliers that trade the objective for the constraints are Moskovitz et al.'s (arXiv 2310.04373); that they are
    convex weights and learned by projected ascent, not through a squashing function, is ours.
    """
    return (1 - multipliers.sum()) * scores[0] + (multipliers[:, None] * scores[1:]).sum(0)


def dual_ascent(multipliers: Float[Tensor, " j"], shortfall: Float[Tensor, " j"], lr: float, bound: float) -> Float[Tensor, " j"]:
    """``mu <- max(mu + lr (floor - mean) / std, 0)``, scaled down where their sum exceeds the bound.

    The bound (ours, .9) leaves the main reward a part, so that a floor out of reach does not silence it."""
    raised = (multipliers + lr * shortfall).clamp(min=0)
    return raised * (bound / raised.sum().clamp(min=bound))


def group_moments(scores: Float[Tensor, "k b"], group: Int[Tensor, " b"]) -> tuple[Float[Tensor, "k b"], Float[Tensor, "k b"]]:
    """Mean and standard deviation over the valid members of each sample's group; 0 for a group without any."""
    _, index = group.unique(return_inverse=True)
    valid = scores.isfinite()

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(values), len(group)).index_add(1, index, values)[:, index]

    count = summed(valid.to(scores.dtype)).clamp(min=1)
    middle = summed(torch.where(valid, scores, 0.0)) / count
    return middle, (summed(torch.where(valid, (scores - middle) ** 2, 0.0)) / count).sqrt()


def zscore(scores: Float[Tensor, "k b"], group: Int[Tensor, " b"]) -> Float[Tensor, "k b"]:
    """``(r - mean) / std`` within each group; 0 where a group's scores are all the same, NaN where the score is."""
    middle, std = group_moments(scores, group)
    constant = std <= CONSTANT * middle.abs()
    return (scores - middle) * torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, std))


def valid_groups(total: Float[Tensor, " b"], group: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """False for samples without a score and for those of groups with fewer than two scores: these are skipped, advantage 0."""
    valid = total.isfinite()
    _, index = group.unique(return_inverse=True)
    count = torch.zeros(len(group), dtype=torch.long).index_add(0, index, valid.long())
    return valid & (count[index] >= 2)


def shares(rule: Callable[[Tensor], Tensor], scores: Float[Tensor, "k b"], group: Int[Tensor, " b"]) -> Float[Tensor, " k"]:
    """Which reward decides the ranking within groups: ``share_k ~ E[ |d total / d r_k| std_group(r_k) ]``, summing to 1 (ours).

    For the weighted sum that is ``w_k std_k`` in parts; for ``worst`` how often k is the minimum, times its spread. A guard of
    ``gated`` has no slope and so no share. All are 0 where nothing differs.
    """
    scores = scores.detach().requires_grad_()
    with torch.enable_grad():
        total = rule(scores)
        counted = total.isfinite()
        (slope,) = torch.autograd.grad(total[counted].sum(), scores)
    pull = torch.where(counted, slope.abs() * group_moments(scores.detach(), group)[1], 0.0).sum(1)
    return pull / torch.where(pull.sum() > 0, pull.sum(), 1.0)


def disagreement(scores: Float[Tensor, "k b"]) -> float:
    """Mean over samples of the std of their members' normalised scores; samples with fewer than two scores are left out."""
    _, _, _, variance, enough = _members(scores, scores.new_ones(len(scores)))
    return float(variance[enough].sqrt().mean()) if enough.any() else 0.0
