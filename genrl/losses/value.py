"""Regression of the critic on the shaped terminal reward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from genrl.losses.noise import SigmaDensity, renoise
from genrl.path import to_x0
from genrl.policy import REF, FlowPolicy
from genrl.types import Batch, Conditioning, LossOutput

BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))
QUINTILES = 5
FEWEST = 10
"""Samples of a noise bin below which its calibration is not told: two in a fifth say little (ours)."""
DIGITS = 4
"""Significant digits of calibration: ten numbers per bin and round would else be most of ``metrics.jsonl`` (ours)."""


def value(policy: FlowPolicy, x: Tensor, sigma: Tensor, cond: Conditioning, v_ref: Tensor | None = None, role: str = "critic") -> Tensor:
    """The critic's ``V(x_sigma, sigma, c)`` ``[B]``. A critic that looks at the endpoint gets it from ``v_ref``, evaluated if not given."""
    critic = policy.networks[role]
    endpoint = None
    if critic.endpoint:
        if v_ref is None:
            with torch.no_grad():
                v_ref = policy.velocity(x, sigma, cond, REF)
        endpoint = to_x0(x, v_ref, sigma)
    return critic(x, sigma, cond.pooled, endpoint)


@dataclass(frozen=True)
class ValueRegression:
    """``L_V = E huber(V(x_sigma, sigma, c) - r_s(x0, c))``, the Monte-Carlo target at every noise level.

    AC-Flow regresses V on the cumulative reward, which here is the terminal one; the Huber form and the law of x_sigma
    (the sample re-noised, not a stored state of its own trajectory) are ours.
    """

    density: SigmaDensity = field(default_factory=SigmaDensity)
    delta: float = 1.0
    requires = ("reward", "valid")

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        x, sigma, _ = renoise(batch, self.density)
        error = F.huber_loss(value(policy, x, sigma, batch.cond), batch.signal["reward"], delta=self.delta, reduction="none")
        mask = batch.signal["valid"].float()
        return LossOutput((error * mask).sum() / mask.sum().clamp(min=1), {})

    @torch.no_grad()
    def diagnose(self, policy: FlowPolicy, batch: Batch) -> dict[str, float]:
        """How good the critic is on samples it has not been trained on; shaped rewards, all noise levels and per bin of them.

        ``critic/explained_variance`` and ``.../{bin}``: ``1 - Var(r - V) / Var(r)``.
        ``critic/calibration/{bin}/predicted/{q}`` and ``.../actual/{q}``, q from 0 to 4: the bin's samples in fifths by the prediction,
        lowest first; the mean prediction and the mean reward of each. Only where a bin has ``FEWEST`` samples. Several processes each
        take their own fifths, and the means of these are logged.
        """
        x, sigma, _ = renoise(batch, self.density)
        valid = batch.signal["valid"]
        predicted, reward, sigma = (v[valid] for v in (value(policy, x, sigma, batch.cond), batch.signal["reward"], sigma))
        metrics = {"critic/explained_variance": _explained(reward - predicted, reward)}
        calibration: dict[str, float] = {}
        for low, high in BINS:
            inside = (sigma >= low) & (sigma < high)
            if inside.sum() > 1:
                metrics[f"critic/explained_variance/{low}-{high}"] = _explained((reward - predicted)[inside], reward[inside])
                calibration |= _calibration(predicted[inside], reward[inside], f"critic/calibration/{low}-{high}")
        return metrics | calibration


def _explained(residual: Tensor, reward: Tensor) -> float:
    return float(1 - residual.var() / reward.var().clamp(min=1e-8))


def _calibration(predicted: Tensor, reward: Tensor, name: str) -> dict[str, float]:
    """Mean prediction and mean reward ``[B]`` of the fifths by prediction; empty for fewer than ``FEWEST`` samples."""
    if len(predicted) < FEWEST:
        return {}
    predicted, reward = predicted.cpu(), reward.cpu()
    order = predicted.argsort(stable=True)
    found = {}
    for q, part in enumerate(order.tensor_split(QUINTILES)):
        for kind, values in (("predicted", predicted), ("actual", reward)):
            found[f"{name}/{kind}/{q}"] = float(f"{values[part].mean().item():.{DIGITS}g}")
    return found
