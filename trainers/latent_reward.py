"""A latent reward model for a generator: Flash-DMD's stage 2 ranks its candidates by one.

    accelerate launch trainers/latent_reward.py --config configs/latent_reward/shapes.yaml
    accelerate launch -m genrl.trainers.latent_reward --config latent_reward/shapes.yaml        (installed)

Each round the generator draws groups of images, rewards score them, and a head on the generator's own frozen features learns which
of two will end better, at every noise level (``genrl.losses.latent_reward``). The generator itself does not change. The head is written to
``runs/<name>/latent_reward.safetensors``: the value of ``rl.latent_reward`` in ``trainers/flash_dmd.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from genrl import config
from genrl.algorithm import Algorithm, Update
from genrl.chain import OdeChain
from genrl.critic import ValueNet, save_value
from genrl.feedback import ShapedReward
from genrl.losses.latent_reward import LATENT_REWARD, PairRanking
from genrl.losses.noise import SigmaDensity
from genrl.models._diffusers import DiffusersModel
from genrl.policy import REF, Copies, FlowPolicy
from genrl.trainers._launch import guidance_of, launch


@dataclass(frozen=True)
class Head:
    """The head and its learning.

    Args:
        width: channels of its first block.
        depth: blocks, each halving the feature map.
        lr: learning rate.
        lr_halving_rounds: rounds in which it halves; 0 keeps it.
        weight_decay: of AdamW.
        passes: passes over a round's samples.
        minibatch: samples per forward pass and process; whole groups should fit.
        shift: moves the noise levels it learns at towards noise.
    """

    width: int = 64
    depth: int = 1
    lr: float = 1e-3
    lr_halving_rounds: int = 0
    weight_decay: float = 0.01
    passes: int = 4
    minibatch: int = 64
    shift: float = 3.0


@dataclass(frozen=True)
class Config:
    """A latent reward model for a generator."""

    run: config.Run = field(default_factory=config.Run)
    model: config.Model = field(default_factory=config.Model)
    data: config.Data = field(default_factory=config.Data)
    rewards: config.Rewards = field(default_factory=config.Rewards)
    sampling: config.Sampling = field(default_factory=config.Sampling)
    speed: config.Speed = field(default_factory=config.Speed)
    head: Head = field(default_factory=Head)


def build(settings: Config, model: DiffusersModel) -> tuple[Algorithm, FlowPolicy]:
    """The algorithm and the policy whose head it trains."""
    head = settings.head
    network = ValueNet(model.feature_width, model.pooled_width, head.width, head.depth, endpoint=False).to(model.device)
    update = Update(
        LATENT_REWARD,
        PairRanking(SigmaDensity(shift=head.shift)),
        lr=head.lr,
        passes=head.passes,
        minibatch=head.minibatch,
        weight_decay=head.weight_decay,
        lr_halving_rounds=head.lr_halving_rounds,
    )
    algorithm = Algorithm(
        chain=OdeChain(model.sigmas(settings.sampling.steps)),
        behaviour=REF,
        feedback=ShapedReward(),
        updates=(update,),
        prompts=settings.data.prompts,
        group_size=settings.data.group_size,
        guidance=guidance_of(settings.sampling),
        result=None,
    )
    storage = Copies(model.network, (REF,), (), offload=settings.speed.offload)
    return algorithm, FlowPolicy(model, storage, {LATENT_REWARD: network})


def finish(policy: FlowPolicy, folder: Path, settings: Config) -> None:
    """Write the head."""
    network = policy.networks[LATENT_REWARD]
    assert isinstance(network, ValueNet)
    save_value(network, folder / "latent_reward.safetensors", model=settings.model.source)


if __name__ == "__main__":
    launch(Config, build, finish=finish)
