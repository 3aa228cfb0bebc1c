"""Flow matching on the model's own samples, weighted by how much better they turned out than expected: AC-Flow and its family.

With ``u = eps - x0`` and the clipped advantage ``A = clip(r_s - b, -eps, eps)``, baseline ``b`` the critic's
``V(x_sigma, sigma, c)``, the group's mean, or 0:

    L = E[ matching(A, v, u) + beta |v_plain - v_ref|^2 ]         (means over latent dimensions)

=============  ==========================================================  ==================================================
weighting      matching                                                    source
=============  ==========================================================  ==================================================
``exp``        exp(tau A) |v - u|^2                                        the form of ORW-CFM-W2 with the critic's advantage
``relu``       max(A, 0) |v - u|^2                                         RAFT-like: better than expected only (ours)
``affine``     max(1 + A / eps, 0) |v - u|^2                               first order of exp, never negative (ours)
``signed``     A (|v - u|^2 - |v - v_ref|^2)                               ADRPO (arXiv 2510.18053): convex for any A
``implicit``   p |v+ - u|^2 + (1 - p) |v- - u|^2, p = (1 + A / eps) / 2    DiffusionNFT (arXiv 2509.16117): v+ = (1-s) v_old + s v,
                                                                           v- = (1+s) v_old - s v, s = ``strength``
``outcome``    exp(tau r_s) |v - u|^2                                      ORW-CFM-W2 (arXiv 2502.06061): no baseline, no clip
=============  ==========================================================  ==================================================

AC-Flow (arXiv 2510.18072) names a "generalised critic weighting" that contains reward weighting as a special case; the
members and their constants are ours. The W2 term is measured without guidance, at the same noisy point (ORW-CFM-W2, eq. of
its loss; there called alpha). A weight that depends on x_sigma alone cancels in the minimiser: the outcome must enter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from genrl.kernels.matching import Square, matching
from genrl.losses.noise import SigmaDensity, renoise
from genrl.losses.value import value
from genrl.policy import ACTOR, OLD, REF, FlowPolicy
from genrl.types import Batch, LossOutput

Weighting = Literal["exp", "relu", "affine", "signed", "implicit", "outcome"]
Baseline = Literal["critic", "group", "none"]
Center = Literal["none", "batch", "group"]


@dataclass(frozen=True)
class WeightedMatching:
    """The loss above.

    Args:
        weighting, baseline: see the table; ``outcome`` ignores the baseline.
        tau: temperature of ``exp`` and ``outcome``, per unit of shaped reward.
        clip: the advantage is clipped to ``[-clip, clip]``; centring may then shift it, by less than ``clip``.
        strength: s of ``implicit``.
        center: subtract the mean advantage of the minibatch, or of each prompt's samples in it, before and after clipping (ours).
            A mean other than zero is plain matching of the model's own samples, or flight from them: it narrows or widens what is
            drawn, has nothing to do with the reward and feeds on itself. ``outcome`` ignores it.
        beta: weight of the W2 term. The drift at the fixed point is about tau / beta: that ratio is the knob.
        error: ``velocity`` measures errors as written; ``endpoint`` on x0, each sample's divided by its own mean absolute
            error (DiffusionNFT's choice: weighs noise levels by sigma and equalises samples).
        guidance: guidance of ``v`` in the matching term; the W2 term is always unguided.
    """

    weighting: Weighting = "exp"
    baseline: Baseline = "critic"
    tau: float = 1.0
    clip: float = 1.0
    strength: float = 1.0
    center: Center = "none"
    beta: float = 0.1
    error: Literal["velocity", "endpoint"] = "velocity"
    guidance: float = 1.0
    density: SigmaDensity = field(default_factory=SigmaDensity)

    def __post_init__(self) -> None:
        if self.weighting == "signed" and self.error == "endpoint":
            raise ValueError("weighting signed is convex only with error velocity: endpoint errors are scaled one by one")
        if self.clip <= 0 or self.beta < 0:
            raise ValueError(f"the advantage clip must be positive and beta not negative; got clip {self.clip}, beta {self.beta}")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("reward", "valid") + (("group_reward",) if self.baseline == "group" else ())

    @property
    def roles(self) -> tuple[str, ...]:
        used = (ACTOR, REF) + ((OLD,) if self.weighting == "implicit" else ())
        return used + (("critic",) if self.baseline == "critic" and self.weighting != "outcome" else ())

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        x, sigma, u = renoise(batch, self.density)
        v_old = v_ref = None
        with torch.no_grad():
            if self.beta > 0 or self.weighting == "signed":
                v_ref = policy.answer(x, sigma, batch.cond, REF, 1.0)
            if self.weighting == "implicit":
                v_old = policy.velocity(x, sigma, batch.cond, OLD, self.guidance)
            advantage, clipped = self._advantage(policy, batch, x, sigma, v_ref)
            squares, weight = self._squares(advantage)
        v = policy.answer(x, sigma, batch.cond, ACTOR, self.guidance)
        endpoint = sigma if self.error == "endpoint" else None
        terms = matching(v, u, squares, old=v_old, ref=v_ref, beta=self.beta, guidance=self.guidance, sigma=endpoint)
        mask = batch.signal["valid"].float()
        loss = (terms * mask).sum() / mask.sum().clamp(min=1)
        return LossOutput(loss, {"policy/weight_std": weight.std(correction=0).detach(), "policy/clipped": clipped.float().mean()})

    @torch.no_grad()
    def diagnose(self, policy: FlowPolicy, batch: Batch) -> dict[str, float]:
        """W2 on fresh samples: mean squared distance of the actor's unguided velocity from the reference's."""
        x, sigma, _ = renoise(batch, self.density)
        moved = policy.velocity(x, sigma, batch.cond, ACTOR) - policy.velocity(x, sigma, batch.cond, REF)
        return {"policy/w2": moved.square().mean().item()}

    def _advantage(self, policy: FlowPolicy, batch: Batch, x: Tensor, sigma: Tensor, v_ref: Tensor | None) -> tuple[Tensor, Tensor]:
        """The advantage ``[B]``, and which samples were clipped."""
        reward = batch.signal["reward"]
        if self.weighting == "outcome":
            return reward, torch.zeros_like(reward, dtype=torch.bool)
        if self.baseline == "critic":
            reward = reward - value(policy, x, sigma, batch.cond, v_ref)
        elif self.baseline == "group":
            reward = reward - batch.signal["group_reward"]
        # clipping cuts the longer tail and so brings a mean back: it is subtracted before, and what is left of it after
        centred = self._centred(reward, batch)
        return self._centred(centred.clamp(-self.clip, self.clip), batch), centred.abs() > self.clip

    def _centred(self, advantage: Tensor, batch: Batch) -> Tensor:
        if self.center == "none":
            return advantage
        group = batch.group if self.center == "group" else torch.zeros_like(batch.group)
        return advantage - _group_mean(advantage, group, batch.signal["valid"].float())

    def _squares(self, advantage: Tensor) -> tuple[list[Square], Tensor]:
        """The table's squares, and the weight ``[B]`` that each sample was given."""
        if self.weighting == "implicit":
            optimality, s = (1 + advantage / self.clip) / 2, self.strength
            return [Square(optimality, v=s, old=1 - s), Square(1 - optimality, v=-s, old=1 + s)], optimality
        if self.weighting == "signed":
            return [Square(advantage), Square(-advantage, u=0, ref=-1)], advantage
        if self.weighting in ("exp", "outcome"):
            weight = (self.tau * advantage).exp()
        elif self.weighting == "relu":
            weight = advantage.clamp(min=0)
        else:
            weight = (1 + advantage / self.clip).clamp(min=0)
        return [Square(weight)], weight


def _group_mean(values: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """For each sample ``[B]`` the mean over the unmasked ones of its group."""
    own = torch.unique(group, return_inverse=True)[1].to(values.device)
    sums, counts = (torch.zeros(len(values), device=values.device).index_add(0, own, part) for part in (values * mask, mask))
    return (sums / counts.clamp(min=1))[own]
