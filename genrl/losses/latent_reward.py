"""Latent reward models: which of two noisy latents of a prompt will end better.

A head on inner features of the frozen base model, at the latent's own noise level: what LPO (arXiv 2502.01051) does on SDXL, there with
the network fine-tuned too, from published preference pairs; here the head alone, from samples of the model that any reward has scored
(ours). For SD3 no such model is published.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from genrl import seeds
from genrl.losses.noise import SigmaDensity, noised
from genrl.policy import REF, FlowPolicy
from genrl.types import Batch, Conditioning, LossOutput

LATENT_REWARD = "latent_reward"


def latent_score(policy: FlowPolicy, x: Tensor, sigma: Tensor, cond: Conditioning) -> Float[Tensor, " b"]:
    """Scores ``[B]`` of latents ``x [B, C, h, w]`` at ``sigma [B]``; comparable within a prompt and a level."""
    with torch.no_grad():
        features = policy.features(x, sigma, cond, REF)
    return policy.networks[LATENT_REWARD](features, sigma, cond.pooled)


@dataclass(frozen=True)
class PairRanking:
    """Bradley-Terry over all pairs of a prompt's samples in the minibatch, re-noised to one level, weighted by their difference:

    L = sum_ij |r_i - r_j| softplus(-(s_i - s_j) sign(r_i - r_j)) / sum_ij |r_i - r_j|
    """

    density: SigmaDensity = field(default_factory=SigmaDensity)
    requires = ("reward", "valid")
    roles = (LATENT_REWARD, REF)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        margin, weight = self._pairs(policy, batch)
        return LossOutput((F.softplus(-margin) * weight).sum() / weight.sum().clamp(min=1e-6))

    @torch.no_grad()
    def diagnose(self, policy: FlowPolicy, batch: Batch) -> dict[str, float]:
        """Share of the pairs ranked right, by weight, on samples not trained on; .5 is chance."""
        margin, weight = self._pairs(policy, batch)
        return {"latent_reward/ranked_right": float(((margin > 0) * weight).sum() / weight.sum().clamp(min=1e-6))}

    def _pairs(self, policy: FlowPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
        """Margins and weights ``[B, B]``; weight 0 where the two are not of one prompt or cannot be compared."""
        # a level for each prompt, noise for each sample
        sigma = self.density(seeds.uniform((*batch.stream, 0), batch.group.tolist(), batch.x0.device))
        x, _ = noised(batch, batch.x0, sigma)
        score, reward = latent_score(policy, x, sigma, batch.cond), batch.signal["reward"]
        gap = reward[:, None] - reward[None, :]
        same = (batch.group[:, None] == batch.group[None, :]).to(gap.device)
        both = batch.signal["valid"][:, None] & batch.signal["valid"][None, :]
        return (score[:, None] - score[None, :]) * gap.sign(), gap.abs() * (same & both)
