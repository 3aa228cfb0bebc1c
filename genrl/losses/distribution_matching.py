"""Distribution matching: move the student's samples from where they are likely to where the teacher's would be.

At a sample ``x`` of the student, re-noised to ``x_tau``, teacher (guided) and fake give their x0-predictions ``x0_r, x0_f``;
the score difference of the two, normalised, is the gradient (DMD2, arXiv 2405.14867; the same in Flash-DMD, eq. 4):

    g = (x0_f - x0_r) / mean |x - x0_r|         L = 1/2 mean (x - sg[x - g])^2         so that dL/dx = g / numel

The link to the scores: ``s_teacher - s_fake = (1 - tau) / tau^2 (x0_r - x0_f)``. The fake is the teacher's copy that learns to
denoise the student's samples (``ScoreMatching``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from genrl import seeds
from genrl.kernels.matching import Square, matching, surrogate
from genrl.losses.noise import Levels, SigmaDensity, noised
from genrl.losses.student import FAKE, StudentSteps, at, predict
from genrl.path import to_x0
from genrl.policy import ACTOR, REF, FlowPolicy
from genrl.types import Batch, LossOutput

Renoise = Literal["full", "above_next", "between", "student_steps"]


@dataclass(frozen=True)
class DistributionMatching:
    """The loss above, on the x0-predictions of some of the student's steps.

    Args:
        steps: the student's steps it acts on: in Flash-DMD the high-noise ones, in DMD2 all.
        guidance: of the teacher; the fake has none.
        levels: the model's own time, in which the re-noise level tau is uniform (DMD2 for SDXL, SenseFlow for SD3).
        low, high: bounds of that time (DMD2: .02 to .98).
        renoise: ``full`` between the bounds (DMD2, the default); ``above_next`` only above the level at which the student re-noises
            this prediction anyway (TDM); ``between`` also below the level at which the step starts (ours), see ``ScoreMatching``;
            ``student_steps`` at the levels of the student's own steps. Algorithm 1 of Flash-DMD leaves open which is meant.
    """

    steps: StudentSteps
    guidance: float = 1.0
    levels: Levels = field(default_factory=Levels)
    low: float = 0.02
    high: float = 0.98
    renoise: Renoise = "full"
    requires = ("states",)
    roles = (ACTOR, FAKE, REF)

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"re-noise times must lie within (0, 1], low below high; got {self.low} to {self.high}")

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        step = self.steps.pick(batch)
        x = predict(policy, batch, at(batch.signal["states"], step), self.steps.level(step))
        with torch.no_grad():
            tau = self._levels(batch, step)
            x_tau, _ = noised(batch, x, tau)
            teacher = to_x0(x_tau, policy.velocity(x_tau, tau, batch.cond, REF, self.guidance), tau)
            fake = to_x0(x_tau, policy.velocity(x_tau, tau, batch.cond, FAKE), tau)
        loss, g = surrogate(x, fake, teacher)
        seen = x.detach()
        metrics = {
            "student/mean_minus_teacher": seen.mean() - teacher.mean(),
            "student/std_over_teacher": seen.std() / teacher.std().clamp(min=1e-8),
            "student/fake_distance": (fake - teacher).square().mean().sqrt(),
            "latent_gradient/matching": g.flatten(1).norm(dim=1).mean() / seen[0].numel(),
        }
        return LossOutput(loss, metrics)

    def _levels(self, batch: Batch, step: Tensor) -> Tensor:
        uniform = seeds.uniform((*batch.stream, 0), batch.sample.tolist(), batch.x0.device)
        if self.renoise == "student_steps":
            highest = float(self.levels(torch.tensor([self.high])))
            levels = torch.tensor(self.steps.sigmas[:-1], device=uniform.device).clamp(max=highest)
            return levels[(uniform * len(levels)).long()]
        low, high = torch.full_like(uniform, self.low), torch.full_like(uniform, self.high)
        if self.renoise in ("above_next", "between"):
            low = torch.maximum(low, self.levels.time(self.steps.after(step)).clamp(max=self.high - 1e-3))
        if self.renoise == "between":
            high = torch.minimum(high, self.levels.time(self.steps.level(step)))
        return self.levels(low + (high - low) * uniform)


@dataclass(frozen=True)
class ScoreMatching:
    """The fake's loss: flow matching on the student's x0-predictions, at the steps that distribution matching acts on.

    ``velocity``: mean |v - u|^2, u = eps - x0 (SenseFlow, SD3); ``eps``: mean |eps_hat - eps|^2 (DMD2, SDXL), the same error times
    ``(1 - sigma)^2``.

    Args:
        between: learn each step's predictions only at the levels that the step crosses, uniform in the time of ``levels``; else all at
            the levels of ``density``. The fake is one network for all steps: what it learns at a level is the mixture of those that
            it sees there, and a clean sample is then judged by the density of one-step predictions, too. With ``between`` every level
            belongs to one step, and that step is all that matters there: it is noised back to its lower end anyway.
    """

    steps: StudentSteps
    density: SigmaDensity = field(default_factory=SigmaDensity)
    target: Literal["velocity", "eps"] = "velocity"
    between: bool = False
    levels: Levels = field(default_factory=Levels)
    requires = ("predictions",)
    roles = (FAKE,)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        step = self.steps.pick(batch)
        x0 = at(batch.signal["predictions"], step)
        sigma = self._levels(step, seeds.uniform((*batch.stream, 0), batch.sample.tolist(), x0.device))
        x, u = noised(batch, x0, sigma)
        v = policy.answer(x, sigma, batch.cond, FAKE, 1.0)
        weight = (1 - sigma).square() if self.target == "eps" else torch.ones_like(sigma)
        return LossOutput(matching(v, u, [Square(weight)]).mean())

    def _levels(self, step: Tensor, uniform: Tensor) -> Tensor:
        if not self.between:
            return self.density(uniform)
        low, high = (self.levels.time(end) for end in (self.steps.after(step), self.steps.level(step)))
        return self.levels(low + (high - low) * uniform)
