"""DMD2 (arXiv 2405.14867): distribution matching distillation with a latent GAN, as a baseline for Flash-DMD and on its own.

    accelerate launch trainers/dmd2.py --config configs/dmd2/shapes.yaml
    accelerate launch -m genrl.trainers.dmd2 --config dmd2/shapes.yaml        (installed)

Every round the student draws; the fake learns to denoise its samples and, on its own features, to tell them from real images; every
``fake_per_student`` rounds the student learns from distribution matching and from that GAN, on all of its steps.

From the paper's code: double precision in the matching gradient, softplus GAN on the fake's inner features re-noised at any level, its
weights (5e-3 for the student, 1e-2 for the fake), five fake updates for each of the student's. It draws a new batch for every fake
update, as here. What deviates: states are those of one recorded trajectory instead of a new backward simulation for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from genrl import config
from genrl.algorithm import Algorithm, Slow
from genrl.chain import RenoiseChain
from genrl.discriminator import LatentHead
from genrl.losses.adversarial import DISCRIMINATOR, LatentDiscrimination, LatentGan
from genrl.losses.combined import Combined
from genrl.losses.noise import Levels, SigmaDensity
from genrl.losses.student import FAKE, StudentSteps
from genrl.models._diffusers import DiffusersModel
from genrl.policy import ACTOR, AVERAGE, REF, FlowPolicy
from genrl.trainers import _student as student
from genrl.trainers._launch import launch


@dataclass(frozen=True)
class Gan:
    """The latent GAN.

    Args:
        student_weight: of the student's adversarial loss; 0 does without the GAN.
        fake_weight: of the discriminator's loss beside the fake's own.
        width: channels of the head.
    """

    student_weight: float = 5e-3
    fake_weight: float = 1e-2
    width: int = 256


@dataclass(frozen=True)
class Config:
    """DMD2: distribution matching distillation with a latent GAN.

    Args:
        fake_per_student: rounds, and so updates of the fake, for each update of the student.
    """

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
    gan: Gan = field(default_factory=Gan)
    fake_per_student: int = 5

    def __post_init__(self) -> None:
        student.check_teacher(self.model, self.teacher)
        student.check_levels(self.matching, self.fake)


def build(settings: Config, model: DiffusersModel) -> tuple[Algorithm, FlowPolicy]:
    """The algorithm and the policy it trains."""
    gan, learning = settings.gan, settings.actor
    if gan.student_weight and settings.model.tune == "lora" and settings.model.gradient_checkpointing:
        raise config.ConfigError(
            "the latent GAN goes back through fake and student at once, which adapters under gradient checkpointing cannot: "
            "set model.gradient_checkpointing false, model.tune full, or gan.student_weight 0"
        )
    sigmas, levels = student.grid(model, settings.sampling), Levels(model.levels)
    every = StudentSteps(sigmas, tuple(range(len(sigmas) - 1)))
    losses = [(student.matching_loss(settings.matching, settings.teacher, every, levels), 1.0)]
    scores = [(student.fake_loss(settings.fake, settings.matching, every, levels), 1.0)]
    networks, also = {}, ()
    if gan.student_weight:
        networks[DISCRIMINATOR] = LatentHead(model.feature_width, model.feature_side, gan.width).to(model.device)
        losses.append((LatentGan(every, SigmaDensity("model", levels=levels)), gan.student_weight))
        scores.append((LatentDiscrimination(every, SigmaDensity("model", levels=levels)), gan.fake_weight))
        also = (DISCRIMINATOR,)
    updates = (
        student.fake_update(settings.fake, learning, Combined(scores), also=also),
        student.actor_update(learning, Combined(losses), every_rounds=settings.fake_per_student),
    )
    roles = (ACTOR, FAKE, REF, AVERAGE) if learning.average else (ACTOR, FAKE, REF)
    result = AVERAGE if learning.average else ACTOR
    algorithm = Algorithm(
        chain=RenoiseChain(sigmas),
        behaviour=ACTOR,
        feedback=None,
        updates=updates,
        slow=(Slow(AVERAGE, ACTOR, learning.average, settings.fake_per_student),) if learning.average else (),
        prompts=settings.data.prompts,
        group_size=1,
        result=result,
        views=student.views(settings.teacher, model, result),
        alarms=student.ALARMS,
    )
    storage = student.storage(settings.model, settings.teacher, model, roles, settings.speed.offload)
    return algorithm, FlowPolicy(model, storage, networks)


if __name__ == "__main__":
    launch(Config, build)
