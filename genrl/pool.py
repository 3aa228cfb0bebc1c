"""The pool that scores pictures with several rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrl.reward import Reward, RewardError, check_scores


class RewardPool:
    """Scores images with several rewards; raw scores, apart.

    Args:
        rewards: label -> reward.
        batch: images per call.
        min_valid: share of images a reward must be able to score; below it the run stops.
    """

    def __init__(self, rewards: Mapping[str, Reward], batch: int = 32, min_valid: float = 0.5):
        self.rewards = dict(rewards)
        self.batch = batch
        self.min_valid = min_valid

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Raw scores ``[B]`` per label, NaN where a reward could not score.

        Raises:
            RewardError: a reward raised, returned the wrong shape, or could score too few.
        """
        scores = {}
        for name, reward in self.rewards.items():
            parts = []
            for start in range(0, len(images), self.batch):
                rows = slice(start, start + self.batch)
                try:
                    got = reward(images[rows], prompts[rows], metadata[rows])
                except Exception as error:
                    raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
                parts.append(check_scores(name, got, len(prompts[rows])))
            scores[name] = torch.cat(parts)
            valid = scores[name].isfinite().float().mean().item()
            if valid < self.min_valid:
                raise RewardError(
                    f"reward {name!r} could score only {valid:.0%} of {len(images)} images (at least {self.min_valid:.0%} wanted)"
                )
        return scores


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum_k w_k r_k`` ``[B]``; NaN where any reward with a weight is NaN."""
    return torch.stack([scores[name] * weight for name, weight in weights.items()]).sum(0)
