"""What the two distillation trainers share: settings of teacher, student and fake, and the updates that follow from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from genrl import config
from genrl.alarms import Alarm
from genrl.algorithm import Optimizer, Update, View
from genrl.chain import OdeChain, RenoiseChain, check_grid
from genrl.losses import Loss
from genrl.losses.distribution_matching import DistributionMatching, Renoise, ScoreMatching
from genrl.losses.noise import Levels, SigmaDensity
from genrl.losses.student import FAKE, StudentSteps
from genrl.models import check_same_latents
from genrl.models._diffusers import DiffusersModel
from genrl.policy import ACTOR, REF, Adapters, Copies
from genrl.trainers._launch import load_model, source_of, storage_of


@dataclass(frozen=True)
class Data:
    """Prompts and real images.

    Args:
        train: prompt file or built-in set to learn on.
        held_out: prompt file or built-in set to judge on.
        prompts: prompts a round, over all processes, a sample of each.
        real: folder of real images for the discriminator, or "shapes" for pictures of the embedded world.
        real_images: how many of them at most.
    """

    train: str = "shapes/train"
    held_out: str = "shapes/held_out"
    prompts: int = 32
    real: str = "shapes"
    real_images: int = 2000

    def __post_init__(self) -> None:
        if self.real != "shapes" and not Path(self.real).expanduser().is_dir():
            raise config.ConfigError(f"data.real names a folder of real images, or 'shapes'; there is no folder {self.real!r}")


@dataclass(frozen=True)
class Few:
    """How the student draws.

    Args:
        steps: its steps, each one forward pass.
        sigmas: the noise levels they start from, falling; the model's own for so many steps if null. The scheduler of the exported
            pipeline knows only the model's own.
        chunk: samples per forward pass.
    """

    steps: int = 4
    sigmas: list[float] | None = None
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise config.ConfigError(f"sampling.steps is {self.steps}; a student draws in at least one step")
        if self.sigmas is not None:
            if len(self.sigmas) != self.steps:
                raise config.ConfigError(f"sampling.sigmas has {len(self.sigmas)} levels for {self.steps} steps; give one for each")
            check_grid((*self.sigmas, 0.0))


@dataclass(frozen=True)
class Teacher:
    """The frozen model that is distilled.

    Args:
        source: folder or hub id of another one than model.source, where the student starts; of the same latents and prompts.
        guidance: its classifier-free guidance, in distribution matching and where it is drawn; the student needs none.
        steps: its steps where it is drawn for comparison; 0 does not compare.
        curve: numbers of steps at which student and teacher are compared, an image of each prompt.
    """

    source: str = ""
    guidance: float = 7.0
    steps: int = 28
    curve: list[int] = field(default_factory=lambda: [1, 2, 4, 8])


@dataclass(frozen=True)
class Matching:
    """Distribution matching; see genrl.losses.distribution_matching.

    Args:
        low: earliest re-noise time: 0 is data, 1 noise, in the time that the model was trained by.
        high: latest.
        renoise: the range of re-noise levels; with "between" the fake keeps to it, too.
    """

    low: float = 0.02
    high: float = 0.98
    renoise: Renoise = "full"


@dataclass(frozen=True)
class Fake:
    """The score estimator of the student's samples.

    Args:
        lr: learning rate.
        passes: its passes over a round's samples for each of the student's: the two time scales.
        target: what it regresses.
        sigma: law of its noise levels: uniform in the time that the model was trained by, or logit-normal.
        weight_decay: of AdamW.
    """

    lr: float = 1e-6
    passes: int = 1
    target: Literal["velocity", "eps"] = "velocity"
    sigma: Literal["model", "logit_normal"] = "model"
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Learning:
    """How the student learns.

    Args:
        lr: learning rate.
        lr_warmup_updates: steps of linear warm-up.
        lr_halving_rounds: rounds in which its lr and the fake's halve, exponentially; 0 keeps them.
        optimizer: adamw, or adamw8bit with a quarter of its states' memory; the fake's, too.
        weight_decay: of AdamW.
        minibatch: samples per forward pass and process, for every network.
        accumulate: forward passes per step.
        grad_clip: bound of the gradient norm.
        average: decay per round of the student's moving average, which then is judged and exported; 0 does without.
    """

    lr: float = 1e-6
    lr_warmup_updates: int = 0
    lr_halving_rounds: int = 0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.01
    minibatch: int = 32
    accumulate: int = 1
    grad_clip: float = 10.0
    average: float = 0.0


ALARMS = (
    Alarm(
        "student/std_over_teacher",
        "the student's predictions vary {value} times as much as the teacher's: contrast runs away. Lower actor.lr, or give the fake more "
        "passes",
        above=1.2,
    ),
    Alarm(
        "student/std_over_teacher",
        "the student's predictions vary only {value} times as much as the teacher's: they grow flat or alike. Lower actor.lr, or give the "
        "fake more passes",
        below=0.6,
    ),
    Alarm(
        "student/mean_minus_teacher",
        "the student's predictions have drifted by {value} from the teacher's mean: look at colours and brightness",
        below=-0.1,
        above=0.1,
    ),
    Alarm(
        "discriminator/accuracy",
        "the discriminator is right about {value} of the images: it has won, and its gradient says little. Lower its lr or its passes",
        above=0.97,
        rounds=50,
    ),
    Alarm("preference/margin", "the latent reward tells candidates apart by {value} only: there is nothing to prefer", below=1e-4),
)
"""What distillation goes wrong by; the bounds are ours."""


def grid(model: DiffusersModel, few: Few) -> tuple[float, ...]:
    """The student's levels, the last one 0."""
    return (*few.sigmas, 0.0) if few.sigmas is not None else model.student_sigmas(few.steps)


def check_teacher(model: config.Model, teacher: Teacher) -> None:
    """Raise if the student cannot learn from that teacher; nothing is loaded for it.

    Raises:
        ConfigError: LoRA, where student and teacher share one base; ModelError: other latents or prompts.
    """
    if not teacher.source:
        return
    if model.tune == "lora":
        raise config.ConfigError("with model.tune lora, teacher and student share one base: leave teacher.source empty, or tune full")
    check_same_latents(source_of(model.source), source_of(teacher.source))


def check_levels(matching: Matching, fake: Fake) -> None:
    """Raise if the fake has two laws of its levels.

    Raises:
        ConfigError: as said.
    """
    if matching.renoise == "between" and fake.sigma != "model":
        raise config.ConfigError(
            f"matching.renoise between keeps the fake to the levels that each step crosses, so fake.sigma {fake.sigma} would not be read; "
            "leave it out, or take another range of re-noise levels"
        )


def storage(
    settings: config.Model, teacher: Teacher, model: DiffusersModel, roles: tuple[str, ...], offload: Collection[str] = ()
) -> Copies | Adapters:
    """Student and fake learn; the teacher is the model itself, or another one."""
    given = {}
    if teacher.source:
        given[REF] = load_model(replace(settings, source=teacher.source), model.device, model.speed).network
    return storage_of(settings, model, roles, (ACTOR, FAKE), given, offload)


def views(settings: Teacher, model: DiffusersModel, role: str) -> tuple[View, ...]:
    """What the student is compared with in the end: its teacher at full length, and both at few steps."""
    if not settings.steps:
        return ()
    found = [View("teacher", REF, OdeChain(model.sigmas(settings.steps)), settings.guidance)]
    for steps in settings.curve:
        found.append(View(f"student-{steps}", role, RenoiseChain(model.student_sigmas(steps)), images_per_prompt=1))
        found.append(View(f"teacher-{steps}", REF, OdeChain(model.sigmas(steps)), settings.guidance, images_per_prompt=1))
    return tuple(found)


def matching_loss(settings: Matching, teacher: Teacher, steps: StudentSteps, levels: Levels) -> DistributionMatching:
    return DistributionMatching(steps, teacher.guidance, levels, settings.low, settings.high, settings.renoise)


def fake_loss(settings: Fake, matching: Matching, steps: StudentSteps, levels: Levels) -> ScoreMatching:
    return ScoreMatching(steps, SigmaDensity(settings.sigma, levels=levels), settings.target, matching.renoise == "between", levels)


def fake_update(settings: Fake, learning: Learning, loss: Loss, until_round: int = 0, also: tuple[str, ...] = ()) -> Update:
    return Update(
        FAKE,
        loss,
        lr=settings.lr,
        passes=settings.passes,
        minibatch=learning.minibatch,
        accumulate=learning.accumulate,
        weight_decay=settings.weight_decay,
        lr_warmup_updates=learning.lr_warmup_updates,
        lr_halving_rounds=learning.lr_halving_rounds,
        clip=learning.grad_clip,
        until_round=until_round,
        also=also,
        optimizer=learning.optimizer,
    )


def actor_update(learning: Learning, loss: Loss, until_round: int = 0, every_rounds: int = 1) -> Update:
    return Update(
        ACTOR,
        loss,
        lr=learning.lr,
        minibatch=learning.minibatch,
        accumulate=learning.accumulate,
        weight_decay=learning.weight_decay,
        lr_warmup_updates=learning.lr_warmup_updates,
        lr_halving_rounds=learning.lr_halving_rounds,
        clip=learning.grad_clip,
        until_round=until_round,
        every_rounds=every_rounds,
        optimizer=learning.optimizer,
    )
