"""From raw scores to what the losses learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def shape_reward(
    reward: Float[Tensor, " b"], mean: float, std: float, kind: Literal["tanh", "zscore"] = "tanh", scale: float = 2.0
) -> Float[Tensor, " b"]:
    """Shaped reward (AC-Flow names the purpose, "well-normalised learning signals"; both formulas are ours).

    With z = (r - mean) / std: ``tanh`` gives ``tanh(z / scale)``, bounded by 1 and strictly increasing; ``zscore`` clips z
    to ``[-scale, scale]``.
    """
    z = (reward - mean) / std
    return torch.tanh(z / scale) if kind == "tanh" else z.clamp(-scale, scale)


def group_mean(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Tensor) -> Float[Tensor, " b"]:
    """Mean over the valid members of each sample's group, ``[B]``; 0 for a group without any."""
    _, index = group.unique(return_inverse=True)
    total = torch.zeros(int(index.max()) + 1).index_add_(0, index, torch.where(valid, values, 0.0))
    count = torch.zeros_like(total).index_add_(0, index, valid.float())
    return (total / count.clamp(min=1))[index]


@dataclass
class ShapedReward:
    """Shaping with statistics of the reference model's samples: those of the first round, when behaviour still is the reference.

    They are frozen from then on. Statistics that follow the policy would change the strength of learning silently: an
    affine change of the reward is a change of the weighting's temperature.

    Signals: ``reward [B]`` shaped (0 where invalid), ``group_reward [B]`` its group mean, ``valid [B]`` bool.
    """

    kind: Literal["tanh", "zscore"] = "tanh"
    scale: float = 2.0
    mean: float | None = None
    std: float | None = None

    signals = ("reward", "group_reward", "valid")

    def __call__(self, reward: Tensor, group: Tensor) -> dict[str, Tensor]:
        valid = reward.isfinite()
        if not valid.any():  # nothing to learn from, and no statistics to freeze
            return {"reward": torch.zeros_like(reward), "group_reward": torch.zeros_like(reward), "valid": valid}
        if self.mean is None or self.std is None:
            self.mean = float(reward[valid].mean())
            self.std = max(float(reward[valid].std(correction=0)), 1e-6)
        shaped = torch.where(valid, shape_reward(reward, self.mean, self.std, self.kind, self.scale), 0.0)
        return {"reward": shaped, "group_reward": group_mean(shaped, group, valid), "valid": valid}

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def load_state(self, state: dict[str, Any]) -> None:
        self.mean, self.std = state["mean"], state["std"]
