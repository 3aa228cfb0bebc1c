"""What distillation costs in passes through the generator's network, counted from a run's settings.

A sample's forward pass through a whole network counts 1, with classifier-free guidance 2; backward passes are not counted, nor are
the autoencoder, the discriminator's backbone and evaluations. For each of a round's P samples, with T steps of the student,
g = 2 if the teacher is guided (else 1), and f for a look at inner features:

    rollout                 T, every round
    update of the fake      1; with DMD2's latent GAN also 2 f (its sample and a real one)
    distribution matching   1 + g + 1: student, teacher, fake
    pixel GAN               1: student at a low-noise step, of the samples it looks at; ``either`` draws one of the two losses, and counts
                            half of both
    latent GAN (DMD2)       1 + f: student, fake
    preference              2 + K f: student, anchor, K candidates; K instead of K f where pictures are ranked

each as often as its update has its turn, times its passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FEATURES = 0.6
"""f: the middle of a network is three of five blocks in the shapes world's SD3; in SDXL down and middle blocks, about as much."""


@dataclass(frozen=True)
class Cost:
    """Optimiser steps of the generator, the samples they saw together, and passes through the network."""

    updates: int
    samples: int
    evaluations: float


def turns(rounds: int, start: int = 0, until: int = 0, every: int = 1) -> int:
    """Rounds out of ``0 .. rounds - 1`` in which an update is due; see ``genrl.algorithm.Update``."""
    return sum(round_ % every == 0 for round_ in range(start, min(until or rounds, rounds)))


def cost(trainer: str, settings: dict[str, Any]) -> Cost:
    """Of a run of ``dmd2`` or ``flash_dmd``; ``settings`` nested, as ``config.yaml`` has them."""
    rounds, samples, steps = settings["run"]["rounds"], settings["data"]["prompts"], settings["sampling"]["steps"]
    learning, fake, gan = settings["actor"], settings["fake"]["passes"], settings["gan"]
    matching = 3 if settings["teacher"]["guidance"] == 1 else 4
    per_pass = math.ceil(math.ceil(samples / learning["minibatch"]) / learning["accumulate"])
    if trainer == "dmd2":
        latent = bool(gan["student_weight"])
        student = turns(rounds, every=settings["fake_per_student"])
        passes = rounds * fake * (1 + 2 * FEATURES * latent) + student * (matching + (1 + FEATURES) * latent)
        return Cost(student * per_pass, student * samples, samples * (rounds * steps + passes))
    rl = settings["rl"]
    student = turns(rounds, until=rl["start_round"] if rl["mode"] == "sequential" else 0)
    minibatch = min(samples, learning["minibatch"])
    looked_at = min(gan["images"] or minibatch, minibatch) / minibatch
    both = matching + looked_at * bool(gan["weight"])
    passes = student * (fake + (both / 2 if gan["weight"] and gan["together"] == "either" else both))
    preferred = turns(rounds, rl["start_round"]) * rl["passes"] if rl["start_round"] else 0
    passes += preferred * (2 + rl["candidates"] * (1 if rl["rewards"] else FEATURES))
    updates = student * per_pass + preferred * math.ceil(samples / learning["minibatch"])
    return Cost(updates, (student + preferred) * samples, samples * (rounds * steps + passes))
