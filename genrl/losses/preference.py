"""Preference learning in latent space: Flash-DMD's stage 2, for students that re-noise.

From one state ``z`` the student's step is the law ``N(a x0_theta(z), s^2 I)`` with ``a = 1 - sigma'``, ``s = sigma'`` the next level
(flow coordinates; the policy of PSO and Flash-DMD). K candidates differ in their noise only, so one forward pass draws them all:
``z^k = a sg[x0_theta] + s eps^k``. A reward ranks them; the best against the worst:

    L = -log sigmoid(beta H),     H = log p/p_ref (z^w | z) - log p/p_ref (z^l | z)

With a shared ``z`` and one variance the squares cancel (our derivation):

    H = (a / s) < eps^w - eps^l , x0_theta - x0_ref >        dL/dx0_theta = -beta sigmoid(-beta H) (a / s) (eps^w - eps^l)

so one forward of the policy and one of the reference suffice. As in LPO (arXiv 2502.01051) log-probabilities are means over latent
dimensions: H is divided by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from genrl import seeds
from genrl.losses.latent_reward import LATENT_REWARD, latent_score
from genrl.losses.student import StudentSteps, at, predict
from genrl.policy import ACTOR, REF, FlowPolicy
from genrl.pool import RewardPool
from genrl.reward import RewardError, about, check_scores
from genrl.rules import weighted_sum
from genrl.types import Batch, LossOutput

ANCHOR = "anchor"


@runtime_checkable
class Ranker(Protocol):
    """Scores ``[B]`` of candidates ``z [B, ...]`` at levels ``[B]``; larger is better, NaN cannot be scored."""

    @property
    def roles(self) -> tuple[str, ...]: ...

    def __call__(self, policy: FlowPolicy, batch: Batch, z: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LatentRanker:
    """A latent reward model, on the candidates as they are: Flash-DMD's choice."""

    roles = (REF, LATENT_REWARD)

    def __call__(self, policy: FlowPolicy, batch: Batch, z: Tensor, sigma: Tensor) -> Tensor:
        return latent_score(policy, z, sigma, batch.cond)


@dataclass(frozen=True)
class LatentRewardRanker:
    """Any reward of kind ``latent``, on the candidates as they are; it must know the latents and levels of the policy.

    Raises:
        RewardError: a reward of another kind.
    """

    reward: Any
    roles = ()

    def __post_init__(self) -> None:
        if (kind := about(self.reward).kind) != "latent":
            raise RewardError(
                f"{type(self.reward).__name__} is a {kind} reward; candidates are ranked in latent space by one of kind latent"
            )

    def __call__(self, policy: FlowPolicy, batch: Batch, z: Tensor, sigma: Tensor) -> Tensor:
        scores = self.reward.score_latents(z, sigma, [prompt.text for prompt in batch.prompts])
        return check_scores(type(self.reward).__name__, scores, len(z)).to(z.device)


@dataclass(frozen=True)
class PixelRanker:
    """Any rewards, on the picture that the student predicts from a candidate (ours): for models without a latent reward.

    A forward pass of the student and a decoding for each candidate; the rewards are weighted as everywhere.
    """

    pool: RewardPool
    weights: Mapping[str, float]
    roles = (ACTOR,)

    def __call__(self, policy: FlowPolicy, batch: Batch, z: Tensor, sigma: Tensor) -> Tensor:
        images = policy.decode(predict(policy, batch, z, sigma)).float().cpu()
        scores = self.pool.score(images, [p.text for p in batch.prompts], [p.metadata for p in batch.prompts])
        weights = torch.tensor(list(self.weights.values()))
        return weighted_sum(torch.stack([scores[name] for name in self.weights]), weights).to(z.device)


def log_ratio_difference(
    x0: Float[Tensor, "b *d"],
    x0_ref: Float[Tensor, "b *d"],
    eps_best: Float[Tensor, "b *d"],
    eps_worst: Float[Tensor, "b *d"],
    sigma_next: Tensor,
) -> Float[Tensor, " b"]:
    """H above, summed over latent dimensions; ``sigma_next [B]`` in (0, 1)."""
    inner = ((eps_best - eps_worst) * (x0 - x0_ref)).flatten(1).sum(1)
    return (1 - sigma_next) / sigma_next * inner


@dataclass(frozen=True)
class LatentPreference:
    """The loss above.

    Args:
        steps: the student's steps it acts on; Flash-DMD takes the two noisiest of four, where candidates differ in layout.
        ranker: scores the candidates.
        candidates: K, drawn from each state.
        beta: strength; LPO's 500 goes with its means over dimensions.
        clamp: bound of ``|H|`` beyond which a pair teaches no more (PSO and LPO: .1); 0 for none.

    The anchor is the student before this loss began. Neither beta nor the clamp is given for Flash-DMD: ours, after LPO.

    Raises:
        ValueError: fewer than two candidates, or a last step, which adds no noise, among the steps.
    """

    steps: StudentSteps
    ranker: Ranker = field(default_factory=LatentRanker)
    candidates: int = 4
    beta: float = 500.0
    clamp: float = 0.0
    requires = ("states",)

    @property
    def roles(self) -> tuple[str, ...]:
        return (ACTOR, ANCHOR, *self.ranker.roles)

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"a preference needs at least two candidates; got {self.candidates}")
        if any(self.steps.sigmas[k + 1] == 0 for k in self.steps.chosen):
            raise ValueError(f"the last step adds no noise, so there is nothing to prefer; choose steps below {len(self.steps.sigmas) - 2}")

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        step = self.steps.pick(batch)
        z, sigma, after = at(batch.signal["states"], step), self.steps.level(step), self.steps.after(step)
        x0 = predict(policy, batch, z, sigma)
        with torch.no_grad():
            x0_ref = predict(policy, batch, z, sigma, ANCHOR)
            best, worst, margin = self._rank(policy, batch, x0.detach(), after)
        h = log_ratio_difference(x0, x0_ref, best, worst, after) / x0[0].numel()
        terms = -F.logsigmoid(self.beta * h)
        if self.clamp:
            terms = torch.where(h.abs() > self.clamp, terms.detach(), terms)
        strength = self.beta * torch.sigmoid(-self.beta * h.detach()) * (1 - after) / after * (best - worst).flatten(1).norm(dim=1)
        metrics = {
            "preference/margin": margin.mean(),
            "preference/h": h.detach().mean(),
            "latent_gradient/preference": strength.mean() / x0[0].numel(),
        }
        return LossOutput(terms.mean(), metrics)

    def _rank(self, policy: FlowPolicy, batch: Batch, x0: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise of the best and of the worst candidate, and the difference of their scores ``[B]``."""
        samples = batch.sample.tolist()
        noise = torch.stack([seeds.normal((*batch.stream, 5, k), samples, x0.shape[1:], x0.device) for k in range(self.candidates)])
        spread = after.view(-1, *[1] * (x0.ndim - 1))
        scores = torch.stack([self.ranker(policy, batch, (1 - spread) * x0 + spread * eps, after) for eps in noise])
        # what cannot be scored is neither best nor worst
        scores = torch.where(scores.isnan(), scores.nanmean(0), scores).nan_to_num(0.0)
        rows = torch.arange(len(x0), device=x0.device)
        high, low = scores.argmax(0), scores.argmin(0)
        return noise[high, rows], noise[low, rows], scores[high, rows] - scores[low, rows]
