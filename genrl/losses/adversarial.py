"""Adversarial losses on decoded images (Flash-DMD's pixel GAN) and on the fake network's features (DMD2's latent GAN).

Pixel, hinge (the form Flash-DMD's Algorithm 1 names), D a frozen vision backbone with trainable heads:

    L_D = E relu(1 - D(V(x_real))) + E relu(1 + D(V(y)))            L_G = -E D(V(y))

``y`` is the student's x0-prediction at a low-noise step, V the autoencoder's decoder. Real images are *decoded encodings*: else D
tells them by the autoencoder's fingerprints and the student can never win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from genrl import seeds
from genrl.losses.noise import SigmaDensity, noised
from genrl.losses.student import FAKE, StudentSteps, at, predict
from genrl.path import add_noise
from genrl.policy import ACTOR, FlowPolicy
from genrl.types import Batch, LossOutput

DISCRIMINATOR = "discriminator"
Origin = Literal["inference", "literal"]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss over logits."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of images a discriminator tells right: .5 means it knows nothing, 1 that it has won."""
    return ((real > 0).float().mean() + (fake < 0).float().mean()) / 2


@dataclass(frozen=True)
class PixelGan:
    """The student's side.

    Args:
        steps: the low-noise steps it acts on.
        origin: the states those steps start from. ``inference``: the recorded ones, which the sampler meets (default); ``literal``:
            the finished sample re-noised to that level, as Algorithm 1 is written, which costs nothing more here but is smoother.
        images: at most so many of a minibatch are drawn, decoded and looked at (ours: decoding is what costs); 0 for all.
        checkpointing: decode and look under activation checkpointing.
    """

    steps: StudentSteps
    origin: Origin = "inference"
    images: int = 0
    checkpointing: bool = False
    requires = ("states",)
    roles = (ACTOR, DISCRIMINATOR)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        batch = at_most(batch, self.images)
        step = self.steps.pick(batch)
        sigma = self.steps.level(step)
        states = at(batch.signal["states"], step)
        if self.origin == "literal":
            states, _ = noised(batch, batch.x0, sigma, 3)
        y = predict(policy, batch, states, sigma)

        def judged(latents: Tensor) -> Tensor:
            return -policy.networks[DISCRIMINATOR](policy.decode(latents)).mean()

        loss, gradient = through(judged, y, self.checkpointing)
        strength = gradient.flatten(1).norm(dim=1).mean() * len(y)
        return LossOutput(loss, {"discriminator/student_logit": -loss.detach(), "latent_gradient/adversarial": strength})


def at_most(batch: Batch, images: int) -> Batch:
    """The first samples of a minibatch, whose order is random anyway; all of them for 0."""
    return batch.index(torch.arange(images)) if 0 < images < len(batch) else batch


def through(objective: Callable[[Tensor], Tensor], y: Tensor, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
    """``objective(y)`` and its gradient in ``y``; the value's own graph begins at ``y``.

    What lies between objective and ``y`` (decoder, backbone) is walked backwards at once and its memory freed before the
    student's graph is; and the gradient at the latent is there to be watched.
    """
    if not torch.is_grad_enabled():
        return objective(y), torch.zeros_like(y)
    leaf = y.detach().requires_grad_()
    value = checkpoint(objective, leaf, use_reentrant=False) if checkpointing else objective(leaf)
    assert isinstance(value, Tensor)
    (gradient,) = torch.autograd.grad(value, leaf)
    carried = (y * gradient).sum()
    return value.detach() + carried - carried.detach(), gradient


@dataclass(frozen=True)
class PixelDiscrimination:
    """The discriminator's side: real images against the student's recorded predictions at its low-noise steps; ``images`` as above."""

    steps: StudentSteps
    images: int = 0
    requires = ("predictions", "real_images")
    roles = (DISCRIMINATOR,)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        batch = at_most(batch, self.images)
        with torch.no_grad():
            y = at(batch.signal["predictions"], self.steps.pick(batch))
            images = torch.cat([batch.signal["real_images"], policy.decode(y)])
        real, fake = policy.networks[DISCRIMINATOR](images).chunk(2)
        return LossOutput(hinge(real, fake), {"discriminator/accuracy": accuracy(real, fake).detach()})


@dataclass(frozen=True)
class LatentGan:
    """DMD2's student side: ``softplus(-h)``, h the head's logits on the fake network's features of the re-noised prediction."""

    steps: StudentSteps
    density: SigmaDensity = field(default_factory=SigmaDensity)
    requires = ("states",)
    roles = (ACTOR, FAKE, DISCRIMINATOR)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        step = self.steps.pick(batch)
        y = predict(policy, batch, at(batch.signal["states"], step), self.steps.level(step))
        logits = latent_logits(policy, batch, y, self.density, 6)
        return LossOutput(F.softplus(-logits).mean(), {"discriminator/student_logit": logits.detach().mean()})


@dataclass(frozen=True)
class LatentDiscrimination:
    """DMD2's discriminator side, of head and fake network together: ``softplus(h(x)) + softplus(-h(real))``, both re-noised."""

    steps: StudentSteps
    density: SigmaDensity = field(default_factory=SigmaDensity)
    requires = ("predictions", "real_latents")
    roles = (FAKE, DISCRIMINATOR)

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput:
        fake = latent_logits(policy, batch, at(batch.signal["predictions"], self.steps.pick(batch)), self.density, 6)
        real = latent_logits(policy, batch, batch.signal["real_latents"], self.density, 8)
        loss = F.softplus(fake).mean() + F.softplus(-real).mean()
        return LossOutput(loss, {"discriminator/accuracy": accuracy(real, fake).detach()})


def latent_logits(policy: FlowPolicy, batch: Batch, x0: Tensor, density: SigmaDensity, salt: int) -> Tensor:
    """Logits ``[B]`` of latents re-noised at levels of their own."""
    samples = batch.sample.tolist()
    sigma = density(seeds.uniform((*batch.stream, salt), samples, x0.device))
    eps = seeds.normal((*batch.stream, salt + 1), samples, x0.shape[1:], x0.device)
    return policy.networks[DISCRIMINATOR](policy.features(add_noise(x0, eps, sigma), sigma, batch.cond, FAKE))
