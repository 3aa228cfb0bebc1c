"""AC-Flow (arXiv 2510.18072): actor-critic fine-tuning of flow-matching models with intermediate feedback.

    accelerate launch trainers/ac_flow.py --config configs/ac_flow/shapes.yaml
    accelerate launch -m genrl.trainers.ac_flow --config ac_flow/shapes.yaml        (installed)

Each round the behaviour policy draws groups of images; their rewards are shaped; a critic V(x_sigma, sigma, c) learns to
expect them at every noise level; after its warm-up the actor is fitted to its own samples, weighted by the clipped
advantage A = clip(r_s - V), and held near the reference by a Wasserstein-2 bound; then the behaviour follows the actor.

From the paper's abstract: shaping, the critic on noisy latents, clipping, warm-up, generalised weighting that contains
ORW-CFM-W2, the W2 term. Its numbered equations and constants were not at hand: formulas and constants here are ours, and
say so where they stand (``genrl.feedback``, ``genrl.losses.value``, ``genrl.losses.weighted_matching``, ``genrl.critic``).
The default weighting, ``implicit``, is DiffusionNFT's with the critic's advantage; docs/decisions.md says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genrl import config
from genrl.alarms import Alarm
from genrl.algorithm import Algorithm, Optimizer, Preview, Slow, Start, Update
from genrl.chain import OdeChain
from genrl.critic import ValueNet
from genrl.feedback import ShapedReward
from genrl.losses.noise import SigmaDensity
from genrl.losses.value import ValueRegression
from genrl.losses.weighted_matching import Baseline, Center, WeightedMatching, Weighting
from genrl.models.sd3 import SD3
from genrl.policy import ACTOR, AVERAGE, OLD, REF, FlowPolicy
from genrl.trainers._launch import guidance_of, launch, storage_of


@dataclass(frozen=True)
class Shaping:
    """How rewards become targets.

    Args:
        kind: tanh of the standardised reward, or the standardised reward clipped.
        scale: its width, in standard deviations.
    """

    kind: Literal["tanh", "zscore"] = "tanh"
    scale: float = 2.0


@dataclass(frozen=True)
class Critic:
    """The value network and its learning.

    Args:
        width: channels of its first block.
        depth: blocks, each halving the latent map.
        endpoint: also show it the reference's one-step endpoint.
        lr: learning rate.
        passes: passes over a round's samples.
        minibatch: samples per forward pass and process.
        delta: where the Huber loss turns linear.
    """

    width: int = 64
    depth: int = 2
    endpoint: bool = True
    lr: float = 1e-3
    passes: int = 2
    minibatch: int = 64
    delta: float = 1.0


@dataclass(frozen=True)
class Actor:
    """The actor's objective and its learning; see genrl.losses.weighted_matching.

    Args:
        weighting: member of the family.
        baseline: what the advantage is measured against.
        tau: temperature of exp and outcome.
        clip: bound of the advantage.
        strength: s of implicit.
        center: subtract the mean advantage of the minibatch or of each prompt in it.
        beta: weight of the W2 term.
        error: where the matching error is measured.
        guidance: guidance of the trained velocity in the matching term.
        lr: learning rate.
        lr_warmup_updates: steps of linear warm-up.
        lr_halving_rounds: rounds in which the learning rate halves; 0 keeps it.
        optimizer: adamw, or adamw8bit with a quarter of its states' memory.
        weight_decay: of AdamW.
        passes: passes over a round's samples.
        minibatch: samples per forward pass and process.
        accumulate: forward passes per step.
        grad_clip: bound of the gradient norm.
        warmup_rounds: rounds in which only the critic learns.
        warmup_explained_variance: ends that warm-up early once the critic explains so much; null never does.
        behaviour_decay: how much of the old behaviour stays when it follows the actor.
        behaviour_every_rounds: how often it follows.
        average: decay per round of the actor's moving average, which then is judged and exported instead of the actor; 0 does without.
    """

    weighting: Weighting = "implicit"
    baseline: Baseline = "critic"
    tau: float = 1.0
    clip: float = 1.0
    strength: float = 1.0
    center: Center = "group"
    beta: float = 0.0
    error: Literal["velocity", "endpoint"] = "velocity"
    guidance: float = 1.0
    lr: float = 3e-4
    lr_warmup_updates: int = 0
    lr_halving_rounds: int = 0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    passes: int = 2
    minibatch: int = 64
    accumulate: int = 1
    grad_clip: float = 1.0
    warmup_rounds: int = 4
    warmup_explained_variance: float | None = None
    behaviour_decay: float = 0.0
    behaviour_every_rounds: int = 1
    average: float = 0.0


@dataclass(frozen=True)
class Sigma:
    """Law of the noise levels at which critic and actor learn.

    Args:
        kind: uniform, or logit_normal as in SD3's pre-training.
        low: lowest level of uniform.
        high: highest level of uniform.
        shift: moves levels towards noise.
    """

    kind: Literal["uniform", "logit_normal"] = "uniform"
    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0


@dataclass(frozen=True)
class Config:
    """AC-Flow: actor-critic fine-tuning of flow-matching models."""

    run: config.Run = field(default_factory=config.Run)
    model: config.Model = field(default_factory=config.Model)
    data: config.Data = field(default_factory=config.Data)
    rewards: config.Rewards = field(default_factory=config.Rewards)
    sampling: config.Sampling = field(default_factory=config.Sampling)
    speed: config.Speed = field(default_factory=config.Speed)
    preview: config.Preview = field(default_factory=config.Preview)
    evaluation: config.Evaluation = field(default_factory=config.Evaluation)
    shaping: Shaping = field(default_factory=Shaping)
    sigma: Sigma = field(default_factory=Sigma)
    critic: Critic = field(default_factory=Critic)
    actor: Actor = field(default_factory=Actor)


ALARMS = (
    Alarm(
        "policy/w2",
        "W2 to the reference is {value}: pictures fall apart out there. Raise actor.beta or lower actor.lr",
        above=0.5,
    ),
    Alarm("policy/clipped", "{value} of the advantages are clipped: what is left is their sign. Raise actor.clip", above=0.95),
)
"""What fine-tuning goes wrong by; the bounds are ours."""


def build(settings: Config, model: SD3) -> tuple[Algorithm, FlowPolicy]:
    """The algorithm and the policy it trains."""
    actor, critic, preview = settings.actor, settings.critic, settings.preview
    if actor.center != "none" and actor.minibatch < 2:
        raise config.ConfigError("actor.center compares samples of a minibatch: actor.minibatch must be at least 2, or actor.center none")
    density = SigmaDensity(settings.sigma.kind, settings.sigma.low, settings.sigma.high, shift=settings.sigma.shift)
    matching = WeightedMatching(
        weighting=actor.weighting,
        baseline=actor.baseline,
        tau=actor.tau,
        clip=actor.clip,
        strength=actor.strength,
        center=actor.center,
        beta=actor.beta,
        error=actor.error,
        guidance=actor.guidance,
        density=density,
    )
    updates, networks = [], {}
    if "critic" in matching.roles:
        networks["critic"] = ValueNet(model.latent_shape[0], model.pooled_width, critic.width, critic.depth, critic.endpoint).to(
            model.device
        )
        updates.append(Update("critic", ValueRegression(density, critic.delta), critic.lr, critic.passes, critic.minibatch))
    by_variance = "critic/explained_variance" if actor.warmup_explained_variance is not None else None
    updates.append(
        Update(
            ACTOR,
            matching,
            lr=actor.lr,
            passes=actor.passes,
            minibatch=actor.minibatch,
            accumulate=actor.accumulate,
            weight_decay=actor.weight_decay,
            lr_warmup_updates=actor.lr_warmup_updates,
            lr_halving_rounds=actor.lr_halving_rounds,
            clip=actor.grad_clip,
            optimizer=actor.optimizer,
            start=Start(actor.warmup_rounds if networks else 0, by_variance, actor.warmup_explained_variance or 0.0),
        )
    )
    slow = [Slow(OLD, ACTOR, actor.behaviour_decay, actor.behaviour_every_rounds)]
    if actor.average:
        slow.append(Slow(AVERAGE, ACTOR, actor.average))
    algorithm = Algorithm(
        chain=OdeChain(model.sigmas(settings.sampling.steps)),
        behaviour=OLD,
        feedback=ShapedReward(settings.shaping.kind, settings.shaping.scale),
        updates=tuple(updates),
        slow=tuple(slow),
        prompts=settings.data.prompts,
        group_size=settings.data.group_size,
        guidance=guidance_of(settings.sampling),
        result=AVERAGE if actor.average else ACTOR,
        alarms=ALARMS,
        preview=Preview(OdeChain(model.sigmas(preview.steps or settings.sampling.steps)), preview) if preview.factor != 1 else None,
    )
    roles = (ACTOR, OLD, REF, AVERAGE) if actor.average else (ACTOR, OLD, REF)
    return algorithm, FlowPolicy(model, storage_of(settings.model, model, roles, offload=settings.speed.offload), networks)


if __name__ == "__main__":
    launch(Config, build)
