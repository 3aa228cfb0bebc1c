"""``--dry-run``: what a run would take, predicted from its settings and printed instead of a run."""

from __future__ import annotations

import os
from typing import Any

import torch

from genrl import config
from genrl.planner import plan
from genrl.planner.table import show
from genrl.threads import fit_threads
from genrl.trainers._launch import Build, load_model

DRY_RUN = ("--dry-run", "--dry_run")


def dry_run(settings: Any, build: Build, *_: Any) -> None:
    """Print a plan, once for all processes of a launcher. Loads no weights, writes nothing."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")):
        return
    chosen = settings.run.device
    device = torch.device(chosen if chosen != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        fit_threads(world)
    speed = getattr(settings, "speed", config.Speed())
    make = lambda: build(settings, load_model(settings.model, device, speed))  # noqa: E731
    show(plan(make, chunk=settings.sampling.chunk, rounds=settings.run.rounds, device=device, world=world))
