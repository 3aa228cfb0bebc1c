"""The planner against what then happens: bytes that live and seconds of a round, with random weights.

    python benchmarks/planner.py                  # on whatever device there is
    python benchmarks/planner.py --device cpu

Each case is planned as ``--dry-run`` plans it, then its round is played: sampling, decoding, every update with its optimiser, as
``genrl.trainer`` does. On CUDA bytes are ``torch.cuda.max_memory_allocated`` of each stage; on a CPU, whose allocator does not tell, they
are the storages of real tensors, counted as the planner counts those without data. ``error`` is predicted over measured, minus 1; the
claim is that it stays within 15 %, for bytes of every stage and for seconds of the whole round. Networks: on CUDA SD3.5-medium,
512 x 512, all weights and LoRA, 32 samples a round; on a CPU the shapes world's SD3 and SDXL. Rewards are in neither figure. Writes
``benchmarks/results/planner.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _models import SD3_NETWORKS, RandomSD3
from _results import RESULTS, ROOT, keep, verdict
from _timing import seconds, versions

from genrl import config
from genrl.algorithm import Algorithm
from genrl.learner import Learner
from genrl.models import skeletons
from genrl.planner import Plan, Stage, plan
from genrl.planner.ledger import Ledger
from genrl.planner.rehearsal import batch_of
from genrl.policy import FlowPolicy
from genrl.rollout import RECORDS, decode, rollout
from genrl.threads import fit_threads
from genrl.trainers._launch import load_model
from genrl.types import Batch, Prompt

NAME, ROUND = "planner", "seconds, a round"
WITHIN = 0.15
CASES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "cpu": {
        "ac_flow, shapes": ("ac_flow/shapes", []),
        "ac_flow, shapes, LoRA, checkpointing": ("ac_flow/shapes", ["--model.tune=lora", "--model.gradient_checkpointing=true"]),
        "flash_dmd, shapes_sdxl": ("flash_dmd/shapes_sdxl", ["--rl.start_round=0"]),
    },
    "cuda": {
        "ac_flow, sd3.5_medium, all weights": ("ac_flow/sd3.5_medium_full", []),
        "ac_flow, sd3.5_medium, LoRA": ("ac_flow/sd3.5_medium_lora", []),
        "ac_flow, sd3.5_medium, LoRA, no checkpointing": ("ac_flow/sd3.5_medium_lora", ["--model.gradient_checkpointing=false"]),
        "ac_flow, sd3.5_medium, 8 bits, offload": (
            "ac_flow/sd3.5_medium_full",
            ["--actor.optimizer=adamw8bit", "--speed.offload=[old, ref]"],
        ),
    },
}
ON_CUDA = ["--data.prompts=4", "--data.group_size=8", "--actor.passes=1", "--actor.accumulate=4", "--critic.passes=1"]


def configs_of(name: str, folder: Path) -> Path:
    """A pipeline's folder with nothing but configs; no text encoders."""
    pipeline = RandomSD3(name, device="meta").pipeline
    for part in ("transformer", "vae", "scheduler"):
        getattr(pipeline, part).save_config(folder / part)
    entries = {part: ["diffusers", type(getattr(pipeline, part)).__name__] for part in ("transformer", "vae", "scheduler")}
    absent = {part: [None, None] for number in ("", "_2", "_3") for part in (f"text_encoder{number}", f"tokenizer{number}")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **absent, **entries}))
    return folder


class Case:
    """A config, and how its algorithm and policy are made."""

    def __init__(self, trainer: str, changes: Sequence[str], device: torch.device, folder: Path):
        module = import_module(f"genrl.trainers.{trainer.split('/')[0]}")
        given = ["--config", str(ROOT / "configs" / f"{trainer}.yaml"), *changes]
        if device.type == "cuda":
            given += [*ON_CUDA, f"--model.source={folder}", "--data.train=shapes/train", "--data.held_out=shapes/held_out"]
        self.settings, self.device, self.module = config.load(module.Config, given), device, module

    def make(self) -> tuple[Algorithm, FlowPolicy]:
        return self.module.build(self.settings, load_model(self.settings.model, self.device, self.settings.speed))

    def plan(self, timed: bool) -> Plan:
        options = {"chunk": self.settings.sampling.chunk, "rounds": self.settings.run.rounds}
        return plan(self.make, device=self.device, timed=timed, **options)


class Round:
    """The stages of a round as the trainer has them, on real tensors."""

    def __init__(self, case: Case):
        with skeletons(case.device):
            self.algorithm, self.policy = case.make()
        self.policy.model.release_encoders()  # type: ignore[attr-defined]
        self.device, self.chunk = case.device, case.settings.sampling.chunk
        self.learner = Learner(self.policy, self.algorithm.updates, 0)
        self.rows = self.algorithm.prompts * self.algorithm.group_size
        self.batch = batch_of(self.algorithm, self.policy, self.rows, self.device)

    def play(self, stage: Stage) -> Callable[[], Any]:
        """What a stage does in a whole round."""
        if stage.update is not None:
            return lambda: self.learner.learn(stage.update or 0, self.batch, 0)
        if stage.diagnosed is not None:
            some = self.batch.index(torch.arange(0, self.rows, max(1, self.rows // self.chunk)))
            loss: Any = self.algorithm.updates[stage.diagnosed].loss
            return lambda: loss.diagnose(self.policy, some)
        if stage.name == "decoding":
            return lambda: [decode(self.policy, part) for part in self.batch.x0.split(self.chunk)]
        return self._draw

    def _draw(self) -> None:
        algorithm, rows = self.algorithm, self.rows
        record = [name for name in RECORDS if name in algorithm.requires]
        options = {"role": algorithm.behaviour, "key": (0, 0, 0), "samples": range(rows), "groups": [0] * rows}
        prompts = [Prompt("")] * rows
        rollout(
            self.policy, algorithm.chain, prompts, self.batch.cond, guidance=algorithm.guidance, chunk=self.chunk, record=record, **options
        )

    def tensors(self) -> list[torch.Tensor]:
        """What stays, weights and optimiser states and the batch."""
        networks = [self.policy.model.network, self.policy.model.vae, *self.policy.networks.values()]  # type: ignore[attr-defined]
        networks += [backbone for network in self.policy.networks.values() if (backbone := getattr(network, "backbone", None))]
        found = [tensor for role in self.policy.storage.roles for tensor in self.policy.tensors(role).values()]
        found += [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        states = [value for optimizer in self.learner.optimizers for state in optimizer.state.values() for value in state.values()]
        batch: Batch = self.batch
        return [*found, *(s for s in states if isinstance(s, torch.Tensor)), batch.x0, batch.cond.embeds, *batch.signal.values()]


@contextmanager
def peak_of(played: Round, found: dict[str, int], name: str) -> Any:
    """Notes the bytes that live at most within the block."""
    gc.collect()
    if played.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield
        found[name] = torch.cuda.max_memory_allocated()
        return
    ledger = Ledger(place="cpu")
    with ledger:
        ledger.hold(played.tensors())
        yield
    found[name] = ledger.peak


def compare(name: str, case: Case, repeats: int) -> list[dict[str, Any]]:
    """Rows of one case: bytes of each stage, and seconds of the round; plans and rounds alternate."""
    planned, played = case.plan(timed=False), Round(case)
    stages = [stage for stage in planned.stages if stage.pieces]
    for stage in stages:
        played.play(stage)()  # optimisers have their states afterwards
    peaks: dict[str, int] = {}
    for stage in stages:
        with peak_of(played, peaks, stage.name):
            played.play(stage)()
    rows = [row(name, f"peak bytes, {stage.name}", stage.peak, peaks[stage.name]) for stage in stages]
    predicted, measured = [], []
    for _ in range(repeats):
        times = case.plan(timed=True).times
        assert times is not None
        predicted.append([times.of(stage) for stage in stages])
        measured.append([seconds(played.play(stage), case.device) / stage.every for stage in stages])
    medians = [[statistics.median(column) for column in zip(*found, strict=True)] for found in (predicted, measured)]
    rows += [row(name, f"seconds, {stage.name}", *pair) for stage, *pair in zip(stages, *medians, strict=True)]
    return [*rows, row(name, ROUND, *map(sum, medians))]


def row(case: str, what: str, predicted: float, measured: float) -> dict[str, Any]:
    error = predicted / measured - 1
    print(f"{case:50s} {what:42s} predicted {predicted:.4g} measured {measured:.4g} error {error:+.1%}", flush=True)
    return {"case": case, "what": what, "predicted": predicted, "measured": measured, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="*", help="some of the cases, by a part of their names")
    parser.add_argument("--repeats", type=int, default=3, help="plans and rounds whose medians are compared")
    args = parser.parse_args()
    device, rows = torch.device(args.device), []
    fit_threads()
    chosen = {name: case for name, case in CASES[args.device].items() if not args.cases or any(part in name for part in args.cases)}
    with tempfile.TemporaryDirectory() if device.type == "cuda" else nullcontext("") as folder:
        source = configs_of("sd3.5_medium", Path(folder)) if folder else Path()
        assert "sd3.5_medium" in SD3_NETWORKS
        for name, (trainer, changes) in chosen.items():
            rows += compare(name, Case(trainer, changes, device, source), args.repeats)
            gc.collect()
    about = versions(device)
    keep(RESULTS / f"{NAME}.json", args.device, [{"kind": args.device, **one, "versions": about} for one in rows])
    claimed = [one for one in rows if one["what"].startswith("peak") or one["what"] == ROUND]
    worst = max(claimed, key=lambda one: abs(one["error"]))
    print(verdict("predictions are within 15 % of what happens", [(worst["what"], worst["error"], abs(worst["error"]) <= WITHIN)]))


if __name__ == "__main__":
    main()
