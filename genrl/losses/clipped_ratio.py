"""Policy gradient on the denoising chain itself: Flow-GRPO and its family.

A stochastic chain is a Markov decision process whose actions are the states it draws, so each step has a probability ratio (Flow-GRPO,
arXiv 2505.05470, eq. 5 and 10; PPO's objective):

    r = exp(log p_theta(x' | x) - log p_old(x' | x))
    L = -E[ min(r A, clip(r, 1 - eps, 1 + eps) A) ] + beta KL(p_theta || p_ref),    KL = (move / std)^2 / 2 mean (v - v_ref)^2

``A`` is the shaped reward less its group's mean. Log-probabilities are means over latent dimensions (``genrl.kernels.chain``), so the
ratio's logarithm is that of the whole state divided by their number, and ``eps`` is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain, Guidance
from genrl.policy import ACTOR, REF, FlowPolicy
from genrl.rollout import as_guidance, replay
from genrl.types import Batch, LossOutput


@dataclass(frozen=True)
class ClippedRatio:
    """The loss above, at one stochastic step of the chain for each minibatch, drawn anew (ours: public trainers visit each in turn).

    Args:
        chain: the one that drew the samples.
        guidance: that of the rollout; under guidance ``v`` is the guided velocity.
        clip: eps. beta: weight of the KL term.

    Raises:
        ValueError: a chain that is deterministic, a clip that is not positive, or a negative beta.
    """

    chain: Chain
    guidance: float | Guidance = 1.0
    clip: float = 1e-4
    beta: float = 0.0
    requires = ("states", "log_probs", "reward", "group_reward", "valid")

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError(f"{type(self.chain).__name__} is deterministic and has no probability ratios; take SdeChain or CpsChain")
        if self.clip <= 0 or self.beta < 0:
            raise ValueError(f"the clip range must be positive and beta not negative; got clip {self.clip}, beta {self.beta}")

    @property
    def roles(self) -> tuple[str, ...]:
        return (ACTOR, REF) if self.beta else (ACTOR,)

    @property
    def steps(self) -> tuple[int, ...]:
        """The stochastic steps of the chain."""
        return tuple(k for k in range(len(self.chain.sigmas) - 1) if self.chain.law(k).std > 0)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        draw = seeds.uniform((*batch.stream, 6), [int(batch.sample.min())])
        step = self.steps[int(draw.item() * len(self.steps))]
        signal, mask = batch.signal, batch.signal["valid"].float()
        now = replay(policy, self.chain, step, signal["states"], batch.x0, batch.cond, role=ACTOR, guidance=self.guidance)
        ratio = (now - signal["log_probs"][:, step]).exp()
        advantage = signal["reward"] - signal["group_reward"]
        terms = -torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        off = (ratio.detach() - 1).abs()
        metrics = {"policy/ratio_off_one": off.mean(), "policy/clipped": (off > self.clip).float().mean()}
        if self.beta:
            divergence = self._divergence(policy, batch, step)
            terms, metrics["policy/kl"] = terms + self.beta * divergence, divergence.detach().mean()
        return LossOutput((terms * mask).sum() / mask.sum().clamp(min=1), metrics)

    def _divergence(self, policy: FlowPolicy, batch: Batch, step: int) -> Tensor:
        """KL to the reference's step, a mean over latent dimensions, ``[B]``."""
        x, sigma, law = batch.signal["states"][:, step], self.chain.sigmas[step], self.chain.law(step)
        scale = as_guidance(self.guidance).at(sigma)
        with torch.no_grad():
            v_ref = policy.velocity(x, sigma, batch.cond, REF, scale)
        moved = policy.velocity(x, sigma, batch.cond, ACTOR, scale) - v_ref
        return 0.5 * (law.move / law.std) ** 2 * moved.square().flatten(1).mean(1)
