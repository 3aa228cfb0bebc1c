"""Flow-GRPO (arXiv 2505.05470) and its family: a clipped policy gradient on the steps of a stochastic denoising chain.

    accelerate launch trainers/flow_grpo.py --config configs/flow_grpo/shapes.yaml
    accelerate launch -m genrl.trainers.flow_grpo --config flow_grpo/shapes.yaml        (installed)

The actor draws groups of images along a stochastic chain (its SDE, or CPS, arXiv 2509.05952; MixGRPO's window, arXiv 2507.21802, keeps
the other steps deterministic) and records states and log-probabilities; each step's probability ratio is weighed by the sample's reward
less its group's mean (``genrl.losses.clipped_ratio``). Pictures are judged, and drawn after export, along the deterministic chain.

What deviates: rewards are shaped as in AC-Flow, by statistics of the first round, instead of divided by each round's deviation; a
minibatch learns at one step drawn at random instead of at each in turn; states and log-probabilities are float32 unless
``model.precision`` says otherwise, and a replay right after the rollout has a ratio of exactly 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genrl import config
from genrl.alarms import Alarm
from genrl.algorithm import Algorithm, Optimizer, Slow, Update
from genrl.chain import Chain, CpsChain, Guidance, OdeChain, SdeChain
from genrl.feedback import ShapedReward
from genrl.losses.clipped_ratio import ClippedRatio
from genrl.models._diffusers import DiffusersModel
from genrl.policy import ACTOR, AVERAGE, REF, FlowPolicy
from genrl.trainers._launch import launch, storage_of
from genrl.trainers.ac_flow import Shaping


@dataclass(frozen=True)
class Noise:
    """The stochastic chain.

    Args:
        kind: sde with the flow's marginals, or cps, which keeps the level of noise.
        eta: strength; of cps the share of noise that is exchanged, at most 1.
        window: indices of the stochastic steps, 0 the noisiest; empty for all.
    """

    kind: Literal["sde", "cps"] = "sde"
    eta: float = 0.7
    window: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Actor:
    """The actor's objective and its learning.

    Args:
        clip: range of the ratio, of densities per latent dimension.
        beta: weight of the KL term.
        lr: learning rate.
        lr_warmup_updates: steps of linear warm-up.
        lr_halving_rounds: rounds in which the learning rate halves; 0 keeps it.
        optimizer: adamw, or adamw8bit with a quarter of its states' memory.
        weight_decay: of AdamW.
        passes: passes over a round's samples, each at a step of its own.
        minibatch: samples per forward pass and process.
        accumulate: forward passes per optimiser step.
        grad_clip: bound of the gradient norm.
        average: decay per round of the actor's moving average, which then is judged and exported instead of the actor; 0 does without.
    """

    clip: float = 1e-4
    beta: float = 0.0
    lr: float = 3e-4
    lr_warmup_updates: int = 0
    lr_halving_rounds: int = 0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    passes: int = 4
    minibatch: int = 64
    accumulate: int = 1
    grad_clip: float = 1.0
    average: float = 0.0


@dataclass(frozen=True)
class Config:
    """Flow-GRPO: a clipped policy gradient on the steps of the denoising chain."""

    run: config.Run = field(default_factory=config.Run)
    model: config.Model = field(default_factory=config.Model)
    speed: config.Speed = field(default_factory=config.Speed)
    data: config.Data = field(default_factory=config.Data)
    rewards: config.Rewards = field(default_factory=config.Rewards)
    sampling: config.Sampling = field(default_factory=config.Sampling)
    noise: Noise = field(default_factory=Noise)
    evaluation: config.Evaluation = field(default_factory=config.Evaluation)
    shaping: Shaping = field(default_factory=Shaping)
    actor: Actor = field(default_factory=Actor)


ALARMS = (Alarm("policy/clipped", "{value} of the ratios are clipped: most teach nothing. Raise actor.clip or lower actor.lr", above=0.95),)
"""What the ratios go wrong by; the bound is ours."""


def chain_of(noise: Noise, sigmas: tuple[float, ...]) -> Chain:
    """The chain that samples are drawn along."""
    kind = SdeChain if noise.kind == "sde" else CpsChain
    return kind(sigmas, noise.eta, tuple(noise.window))


def build(settings: Config, model: DiffusersModel) -> tuple[Algorithm, FlowPolicy]:
    """The algorithm and the policy it trains."""
    actor, sampling = settings.actor, settings.sampling
    sigmas = model.sigmas(sampling.steps)
    chain = chain_of(settings.noise, sigmas)
    guidance = Guidance(sampling.guidance, sampling.guidance_low, sampling.guidance_high)
    update = Update(
        ACTOR,
        ClippedRatio(chain, guidance, actor.clip, actor.beta),
        lr=actor.lr,
        passes=actor.passes,
        minibatch=actor.minibatch,
        accumulate=actor.accumulate,
        weight_decay=actor.weight_decay,
        lr_warmup_updates=actor.lr_warmup_updates,
        lr_halving_rounds=actor.lr_halving_rounds,
        clip=actor.grad_clip,
        optimizer=actor.optimizer,
    )
    roles = (ACTOR, *((REF,) if actor.beta else ()), *((AVERAGE,) if actor.average else ()))
    algorithm = Algorithm(
        chain=chain,
        behaviour=ACTOR,
        feedback=ShapedReward(settings.shaping.kind, settings.shaping.scale),
        updates=(update,),
        slow=(Slow(AVERAGE, ACTOR, actor.average),) if actor.average else (),
        prompts=settings.data.prompts,
        group_size=settings.data.group_size,
        guidance=guidance,
        result=AVERAGE if actor.average else ACTOR,
        judged=OdeChain(sigmas),
        alarms=ALARMS,
    )
    return algorithm, FlowPolicy(model, storage_of(settings.model, model, roles, offload=settings.speed.offload))


if __name__ == "__main__":
    launch(Config, build)
