"""Rewards made of comparisons: what a preference model says of pairs becomes one score for each of a prompt's pictures.

``WinRate`` is the share of siblings that a picture beats, as in SPO and Pref-GRPO (arXiv 2508.20751); ``BradleyTerry`` fits strengths,
which uses a sparse schedule better, because who was beaten counts. Both are ``group`` rewards.

Ours, where public trainers judge one order and count an unreadable answer as a draw: both orders are judged and averaged, since
judges favour a place, and a comparison without an answer is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrl.reward import About, RewardError, about, check_scores, load_reward


class PairwiseOf:
    """A pointwise reward as a preference model: ``P(a wins) = sigmoid((s_a - s_b) / scale)``, Bradley and Terry's."""

    def __init__(self, reward: Any, scale: float = 1.0):
        said = about(reward)
        if said.kind != "pointwise":
            raise RewardError(f"pairwise_of takes a pointwise reward; this one is {said.kind}")
        if not scale > 0:
            raise RewardError(f"pairwise_of: scale must be positive; got {scale}")
        self.reward, self.scale = reward, scale
        self.about = replace(said, kind="pairwise", bounds=(0.0, 1.0), scale=1.0, golden=(), differentiable=False)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores of the reward itself ``[B]``."""
        return check_scores("pairwise_of", self.reward(images, prompts, metadata), len(prompts))

    def probability(self, first: Tensor, second: Tensor) -> Tensor:
        """P(first wins) ``[B]`` from scores ``[B]``."""
        return torch.sigmoid((first - second) / self.scale)

    def compare(self, first: Tensor, second: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.probability(self.score(first, prompts, metadata), self.score(second, prompts, metadata))


def pairwise_of(reward: Any, scale: float = 1.0) -> PairwiseOf:
    """Any pointwise reward as a preference model; ``scale`` is the difference of scores that wins with probability .73."""
    return PairwiseOf(reward, scale)


def schedule(count: int, pairs_per_sample: int) -> Int[Tensor, "p 2"]:
    """Which of ``count`` pictures are compared: each with ``pairs_per_sample`` others, or with all of them if that is 0.

    Circulant, so deterministic, connected for two pairs and more, and each stands first as often as second, but for one pair where
    their number is odd. An odd number of pairs needs an even number of pictures and is otherwise raised by one.
    """
    wanted = max(min(pairs_per_sample or count - 1, count - 1), 0)
    half_turn = count % 2 == 0 and wanted % 2 == 1
    turns = (wanted + 1 - half_turn) // 2
    pairs = []
    if turns:
        # spread over all distances: neighbours alone would tie the far side of the ring by long chains
        distances = torch.linspace(1, (count - 1) // 2, turns).round().long()
        start = torch.arange(count).repeat(turns)
        pairs.append(torch.stack([start, (start + distances.repeat_interleave(count)) % count], 1))
    if half_turn:
        start = torch.arange(count // 2)
        pairs.append(torch.stack([start, start + count // 2], 1))
    return torch.cat(pairs) if pairs else torch.zeros(0, 2, dtype=torch.long)


def win_rates(won: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Mean of ``won[i, j] = P(i beats j)`` over the j that i was compared with; NaN without any."""
    return won.nanmean(1)


def strengths(won: Float[Tensor, "n n"], ridge: float, steps: int = 100) -> Float[Tensor, " n"]:
    """Log-strengths of Bradley and Terry, of mean 0; NaN for a picture without a comparison.

    ``max_theta sum_{i<j} [ w_ij log s(theta_i - theta_j) + w_ji log s(theta_j - theta_i) ] - ridge/2 |theta|^2``, s the sigmoid. The ridge
    keeps undefeated pictures finite and pieces of the schedule that were never compared at the same mean (ours). Newton steps in
    float64, halved until they do not lose; the objective is strictly concave.
    """
    compared = won.isfinite()
    won = won.double()
    # exactly one win a pair: what rounding adds, a small ridge would turn into a shift of all
    wins = torch.where(compared, (won + 1 - won.T) / 2, 0.0)

    def objective(theta: Tensor) -> Tensor:
        return (wins * torch.nn.functional.logsigmoid(theta[:, None] - theta)).sum() - ridge / 2 * theta.square().sum()

    theta = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(theta[:, None] - theta)
        slope = torch.where(compared, wins - p, 0.0).sum(1) - ridge * theta
        curve = torch.where(compared, p * (1 - p), 0.0)
        step = torch.linalg.solve(torch.diag(curve.sum(1) + ridge) - curve, slope)
        before = objective(theta)
        while step.abs().max() > 1e-12 and objective(theta + step) < before:
            step = step / 2
        theta = theta + step
        if step.abs().max() <= 1e-9:
            break
    return torch.where(compared.any(1), theta, torch.nan).float()


class WinRate:
    """Each picture's mean probability of being preferred to its siblings, in [0, 1]; a ``group`` reward.

    Args:
        preference: a preference model, a pointwise reward, or the name of either.
        options: of the reward, where a name is given.
        pairs_per_sample: siblings that each picture is compared with; 0 is all.
        both_orders: ask twice, with places exchanged, and average; a pair with one answer missing is then dropped, for the other one
            alone would bring the judge's favourite place back.
        batch: comparisons, or pictures of a pointwise reward, per call.
        scale: of ``pairwise_of`` where the reward is pointwise; what the reward itself names if null.

    A picture without any valid comparison is NaN. Pictures of a pointwise reward are scored once each.

    Raises:
        RewardError: the reward is of another kind, or answers no probability.
    """

    about = About(kind="group", bounds=(0.0, 1.0))  # of the class, for those who ask before there is a preference

    def __init__(
        self,
        preference: Any,
        options: Mapping[str, Any] | None = None,
        pairs_per_sample: int = 0,
        both_orders: bool = True,
        batch: int = 32,
        scale: float | None = None,
    ):
        if isinstance(preference, str):
            preference = load_reward(preference, **(options or {}))
        elif options:
            raise RewardError("options belong to a preference that is given by name")
        inner = about(preference)
        if inner.kind == "pointwise":
            preference = PairwiseOf(preference, inner.scale if scale is None else scale)
        elif inner.kind != "pairwise" or scale is not None:
            raise RewardError(f"{type(self).__name__} takes a preference model, or a pointwise reward and its scale; this is {inner.kind}")
        if pairs_per_sample < 0 or batch < 1:
            raise RewardError(f"pairs_per_sample must not be negative, batch positive; got {pairs_per_sample} and {batch}")
        self.preference, self.pairs_per_sample, self.both_orders, self.batch = preference, pairs_per_sample, both_orders, batch
        self.about = replace(inner, kind="group", bounds=type(self).about.bounds, scale=1.0, golden=(), differentiable=False)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores ``[B]`` of the B pictures of one prompt."""
        first, second = schedule(len(prompts), self.pairs_per_sample).unbind(1)
        if isinstance(self.preference, PairwiseOf):
            parts = [slice(start, start + self.batch) for start in range(0, len(prompts), self.batch)]
            scores = torch.cat([self.preference.score(images[part], prompts[part], metadata[part]) for part in parts])
            won = self.preference.probability(scores[first], scores[second])
        else:
            won = self._asked(images, prompts, metadata, first, second)
            if self.both_orders:
                won = (won + 1 - self._asked(images, prompts, metadata, second, first)) / 2
        table = torch.full((len(prompts), len(prompts)), torch.nan)
        table[first, second], table[second, first] = won, 1 - won
        return self._judged(table)

    def close(self) -> None:
        """End the process of the preference model, if it has one."""
        inner = self.preference.reward if isinstance(self.preference, PairwiseOf) else self.preference
        if callable(close := getattr(inner, "close", None)):
            close()

    def _judged(self, won: Tensor) -> Tensor:
        return win_rates(won)

    def _asked(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Any], first: Tensor, second: Tensor) -> Tensor:
        """P(first wins) ``[P]`` as the model answers, NaN where it does not."""
        answers = [torch.zeros(0)]
        for a, b in zip(first.split(self.batch), second.split(self.batch), strict=True):
            rows = a.tolist()
            given = self.preference.compare(images[a], images[b], [prompts[i] for i in rows], [metadata[i] for i in rows])
            answers.append(check_scores(type(self.preference).__name__, given, len(rows)))
        won = torch.cat(answers)
        if ((won < 0) | (won > 1)).any():
            raise RewardError(f"{type(self.preference).__name__}.compare must give probabilities in [0, 1]; got {float(won.max()):g}")
        return won


class BradleyTerry(WinRate):
    """Each picture's fitted log-strength among its siblings, of mean 0; a ``group`` reward.

    Args:
        ridge: pull of strengths towards 0 (ours): .01 leaves a picture that won all 15 comparisons with equals at 5.3.

    The others are those of ``WinRate``.
    """

    about = About(kind="group")

    def __init__(self, preference: Any, *args: Any, ridge: float = 0.01, **others: Any):
        super().__init__(preference, *args, **others)
        if not ridge > 0:
            raise RewardError(f"BradleyTerry: ridge must be positive, or an undefeated picture is infinitely strong; got {ridge}")
        if self.pairs_per_sample == 1:
            raise RewardError("BradleyTerry: pairs_per_sample 1 compares pictures two by two and ranks no more than these; take 2")
        self.ridge = ridge

    def _judged(self, won: Tensor) -> Tensor:
        return strengths(won, self.ridge)
