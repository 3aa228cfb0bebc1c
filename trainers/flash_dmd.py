"""Flash-DMD (arXiv 2511.20549): few-step distillation, with reinforcement learning in the same loop.

    accelerate launch trainers/flash_dmd.py --config configs/flash_dmd/shapes.yaml
    accelerate launch -m genrl.trainers.flash_dmd --config flash_dmd/shapes.yaml        (installed)

Stage 1, every round: the student draws (``RenoiseChain``); distribution matching acts on its high-noise steps, a pixel GAN on its
low-noise one; the fake follows the student's samples and is pulled towards the student after each of its updates. Stage 2,
from round ``rl.start_round``: a latent reward model ranks candidates of the high-noise steps, best against worst, several updates for
each of stage 1 (``joint``) or instead of it (``sequential``).

From notes on the paper: the split by noise level, the frozen SAM backbone with heads, hinge loss, two time scales of 1 or 2, the pull,
K = 4, the ratio of 5. Not given and ours: every learning rate, the weights of the losses, the pull's decay, beta, the levels of SD3,
what Algorithm 1 leaves open (three options, said where they stand).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genrl import config
from genrl.algorithm import Algorithm, Slow, Start, Update
from genrl.chain import RenoiseChain
from genrl.critic import load_value
from genrl.discriminator import PixelDiscriminator
from genrl.losses.adversarial import DISCRIMINATOR, Origin, PixelDiscrimination, PixelGan
from genrl.losses.combined import Combined
from genrl.losses.latent_reward import LATENT_REWARD
from genrl.losses.noise import Levels
from genrl.losses.preference import ANCHOR, LatentPreference, LatentRanker, LatentRewardRanker, PixelRanker, Ranker
from genrl.losses.student import FAKE, StudentSteps, early
from genrl.models._diffusers import DiffusersModel
from genrl.models.backbones import check_backbone, load_backbone
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, AVERAGE, REF, FlowPolicy
from genrl.pool import RewardPool
from genrl.trainers import _student as student
from genrl.trainers._launch import launch
from genrl.trainers._rewards import load_term


@dataclass(frozen=True)
class Gan:
    """The pixel GAN.

    Args:
        weight: of the student's adversarial loss; 0 does without the GAN.
        late: low-noise steps it acts on.
        shared: distribution matching acts on them, too (ours); the paper leaves it the others.
        together: both losses in every update, or one or the other for each minibatch.
        origin: the states it starts from; see genrl.losses.adversarial.
        backbone: sam, dinov2, or shapes.
        source: folder or hub id of its weights; its published ones if empty.
        width: channels of the heads.
        lr: learning rate of the heads.
        passes: their passes over a round's samples.
        images: of each minibatch, at most so many are decoded for it; 0 for all.
        checkpointing: decode and look under activation checkpointing.
    """

    weight: float = 0.5
    late: int = 1
    shared: bool = False
    together: Literal["both", "either"] = "both"
    origin: Origin = "inference"
    backbone: Literal["sam", "dinov2", "shapes"] = "sam"
    source: str = ""
    width: int = 256
    lr: float = 1e-4
    passes: int = 1
    images: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise config.ConfigError(f"gan.images is {self.images}; name how many of a minibatch are decoded, or 0 for all")
        if self.weight:
            check_backbone(self.backbone, self.source)


@dataclass(frozen=True)
class Alignment:
    """The pull of the fake towards the student.

    Args:
        decay: how much of the fake stays at each pull; 1 does without.
    """

    decay: float = 0.98


@dataclass(frozen=True)
class Rl:
    """Stage 2.

    Args:
        start_round: the round it starts in; 0 leaves it out.
        mode: joint goes on with stage 1; sequential ends it.
        steps: high-noise steps it acts on.
        latent_reward: the model that ranks candidates: a .safetensors file of trainers/latent_reward.py, or, for SDXL, folder or hub id
            of LPO's LRM-XL (owner/name/folder; see genrl.rewards.lrm).
        rewards: instead of it, rewards of the pictures that the student predicts from its candidates.
        candidates: K.
        beta: strength.
        clamp: log-ratio beyond which a pair teaches no more; 0 for none.
        passes: updates for each of stage 1.
        lr: learning rate, with an optimiser state of its own.
        grad_clip: bound of its gradient norm.
    """

    start_round: int = 0
    mode: Literal["joint", "sequential"] = "joint"
    steps: int = 2
    latent_reward: str = ""
    rewards: list[config.Term] = field(default_factory=list)
    candidates: int = 4
    beta: float = 500.0
    clamp: float = 0.0
    passes: int = 5
    lr: float = 1e-6
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        if self.start_round and not self.rewards and not self.latent_reward:
            raise config.ConfigError("rl.start_round starts stage 2, which ranks candidates: name rl.rewards or an rl.latent_reward")


@dataclass(frozen=True)
class Config:
    """Flash-DMD: few-step distillation with reinforcement learning in the same loop."""

    run: config.Run = field(default_factory=config.Run)
    model: config.Model = field(default_factory=config.Model)
    data: student.Data = field(default_factory=student.Data)
    rewards: config.Judges = field(default_factory=config.Judges)
    sampling: student.Few = field(default_factory=student.Few)
    speed: config.Speed = field(default_factory=config.Speed)
    evaluation: config.Evaluation = field(default_factory=config.Evaluation)
    teacher: student.Teacher = field(default_factory=student.Teacher)
    actor: student.Learning = field(default_factory=student.Learning)
    matching: student.Matching = field(default_factory=student.Matching)
    fake: student.Fake = field(default_factory=student.Fake)
    alignment: Alignment = field(default_factory=Alignment)
    gan: Gan = field(default_factory=Gan)
    rl: Rl = field(default_factory=Rl)

    def __post_init__(self) -> None:
        student.check_teacher(self.model, self.teacher)
        student.check_levels(self.matching, self.fake)


def build(settings: Config, model: DiffusersModel) -> tuple[Algorithm, FlowPolicy]:
    """The algorithm and the policy it trains."""
    gan, rl, learning = settings.gan, settings.rl, settings.actor
    sigmas, levels = student.grid(model, settings.sampling), Levels(model.levels)
    count = len(sigmas) - 1
    late = StudentSteps(sigmas, tuple(range(max(count - gan.late, 0), count)))
    noisy = StudentSteps(sigmas, early(count, gan.late) if gan.weight and not gan.shared else tuple(range(count)))
    stage_1_ends = rl.start_round if rl.mode == "sequential" else 0

    matching = student.matching_loss(settings.matching, settings.teacher, noisy, levels)
    losses = [(matching, 1.0)]
    updates = [
        student.fake_update(settings.fake, learning, student.fake_loss(settings.fake, settings.matching, noisy, levels), stage_1_ends)
    ]
    networks = {}
    if gan.weight:
        backbone = load_backbone(gan.backbone, gan.source)
        networks[DISCRIMINATOR] = PixelDiscriminator(backbone, gan.width).to(model.device)
        losses.append((PixelGan(late, gan.origin, gan.images, gan.checkpointing), gan.weight))
        heads = PixelDiscrimination(late, gan.images)
        updates.append(Update(DISCRIMINATOR, heads, gan.lr, gan.passes, learning.minibatch, betas=(0.0, 0.99), until_round=stage_1_ends))
    updates.append(student.actor_update(learning, Combined(losses, gan.together), stage_1_ends))
    slow = [Slow(FAKE, ACTOR, settings.alignment.decay)] if settings.alignment.decay < 1 else []
    roles = [ACTOR, FAKE, REF]
    if rl.start_round:
        if not rl.rewards and (head := head_of(rl.latent_reward)):
            networks[LATENT_REWARD] = load_value(head).to(model.device)
        noisiest = StudentSteps(sigmas, tuple(range(min(rl.steps, count - 1))))
        preference = LatentPreference(noisiest, ranker_of(rl, settings.rewards, model), rl.candidates, rl.beta, rl.clamp)
        updates.append(preference_update(rl, learning, preference))
        slow.append(Slow(ANCHOR, ACTOR, every_rounds=rl.start_round, until_round=rl.start_round))
        roles.append(ANCHOR)
    if learning.average:
        slow.append(Slow(AVERAGE, ACTOR, learning.average))
        roles.append(AVERAGE)
    result = AVERAGE if learning.average else ACTOR
    algorithm = Algorithm(
        chain=RenoiseChain(sigmas),
        behaviour=ACTOR,
        feedback=None,
        updates=tuple(updates),
        slow=tuple(slow),
        prompts=settings.data.prompts,
        group_size=1,
        result=result,
        views=student.views(settings.teacher, model, result),
        alarms=student.ALARMS,
        rewards=asked(rl, settings.rewards),
    )
    storage = student.storage(settings.model, settings.teacher, model, tuple(roles), settings.speed.offload)
    return algorithm, FlowPolicy(model, storage, networks)


def preference_update(rl: Rl, learning: student.Learning, loss: LatentPreference) -> Update:
    return Update(
        ACTOR,
        loss,
        lr=rl.lr,
        passes=rl.passes,
        minibatch=learning.minibatch,
        clip=rl.grad_clip,
        start=Start(rl.start_round),
        label="preference",
        optimizer=learning.optimizer,
    )


def asked(rl: Rl, judges: config.Judges) -> tuple[str, ...]:
    """What stage 2 ranks by, a reward that also judges under its name as a judge."""
    if not rl.start_round:
        return ()
    names = {term.name: term.label or term.name for term in judges.judges}
    return tuple(names.get(term.name, term.label or term.name) for term in rl.rewards) or (rl.latent_reward,)


def head_of(name: str) -> Path | None:
    """The file of a head that ``rl.latent_reward`` names; None if it names a model of its own."""
    return Path(name) if name.endswith(".safetensors") else None


def ranker_of(rl: Rl, judges: config.Judges, model: DiffusersModel) -> Ranker:
    """What ranks candidates: a latent reward model, or pictures' rewards, called as the judges are.

    Raises:
        ConfigError: an LRM-XL for a model that is not SDXL; RewardError: it cannot be loaded.
    """
    if rl.rewards:
        loaded = {term.label or term.name: load_term(term) for term in rl.rewards}
        return PixelRanker(
            RewardPool(loaded, judges.batch, judges.min_valid), {term.label or term.name: term.weight for term in rl.rewards}
        )
    if head_of(rl.latent_reward):
        return LatentRanker()
    if not isinstance(model, SDXL):
        raise config.ConfigError(
            f"rl.latent_reward {rl.latent_reward!r} names an LRM-XL, which scores latents of SDXL alone, and model.source is a "
            f"{type(model).__name__}; name a .safetensors file that trainers/latent_reward.py made for it, or set rl.rewards"
        )
    # where the policy computes in less than float32 it does so as its authors do
    dtype = "float16" if model.precision.compute != "fp32" else "float32"
    options = {"source": rl.latent_reward, "base": model.source, "dtype": dtype, "device": str(model.device)}
    return LatentRewardRanker(load_term(config.Term("lrm", options=options), "latent"))


if __name__ == "__main__":
    launch(Config, build)
