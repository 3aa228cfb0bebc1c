"""One round's learning, AC-Flow's and Flash-DMD's: samples per second, peak memory and utilisation, against the plain eager form.

    python benchmarks/train_step.py                       # on whatever device there is
    python benchmarks/train_step.py --device cpu --tiny   # the harness itself

The plain form has the same losses, optimisers and samples with nothing on: the network as diffusers has it, eager, every kernel in plain
torch. Both learn in one process, alternating, and start from the same weights. MFU counts the operations of the plain form's forward and
backward passes, over the data sheet's dense bfloat16 rate. Flash-DMD's pixel GAN is left out on a GPU: the weights of its backbone are not
at hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _models import load
from _results import RESULTS, ROOT, keep, verdict, write_table
from _timing import alternate, flops, medians, peak, ratio, synchronize, versions

from genrl import config, seeds
from genrl.config import Speed
from genrl.kernels import using
from genrl.learner import Learner
from genrl.trainers import ac_flow, flash_dmd
from genrl.types import Batch, Prompt

NAME = "train_step"
MUST_HOLD = {"ac_flow": 1.2, "lora_mfu": 0.45}
FAST = {"cpu": Speed(compile=True), "cuda": Speed(kernels=True, cuda_graphs=True, attention="auto")}
TINY = Speed(kernels=True)
"""Where only the harness is tried: compilation takes minutes."""
TRAINERS = {"ac_flow": ac_flow, "flash_dmd": flash_dmd}


def settings_of(method: str, name: str, tune: str, batch: int) -> Any:
    """The shipped config of a method and model, one minibatch a round."""
    file = "shapes" if name == "tiny" else {"ac_flow": "sd3.5_medium_lora", "flash_dmd": "sd3_medium_lora"}[method]
    given = ["--config", str(ROOT / "configs" / method / f"{file}.yaml"), "--model.tune", tune, "--actor.minibatch", str(batch)]
    if name != "tiny":
        given += ["--model.source", "shapes", "--data.train", "shapes/train", "--data.held_out", "shapes/held_out"]
        given += ["--model.gradient_checkpointing", "false", "--actor.accumulate", "1"]
        given += ["--model.precision.weights", "bf16" if tune == "lora" else "fp32"]
    given += {
        "ac_flow": ["--actor.passes", "1", "--critic.minibatch", str(batch), "--critic.passes", "1"],
        "flash_dmd": ["--fake.passes", "1", "--rl.start_round", "0", *(["--gan.weight", "0"] if name != "tiny" else [])],
    }[method]
    return config.load(TRAINERS[method].Config, given)


class Side:
    """One of the two that learn: a model of its own, its optimisers, and a round's samples."""

    def __init__(self, method: str, name: str, tune: str, batch: int, device: torch.device, side: int, fast: Speed | None):
        self.device, self.fast, self.round = device, fast, 0
        settings = settings_of(method, name, tune, batch)
        model = load(name, device, precision=settings.model.precision, height=side, width=side, speed=fast or Speed())
        torch.manual_seed(0)
        algorithm, self.policy = TRAINERS[method].build(settings, model)
        self.learner = Learner(self.policy, [replace(u, start=replace(u.start, round=0)) for u in algorithm.updates], 0)
        self.batch = samples(model, batch, device, algorithm.requires)

    def learn(self) -> None:
        """All updates, a minibatch each."""
        with using("auto" if self.fast else "reference"):
            for index in range(len(self.learner.updates)):
                self.learner.learn(index, self.batch, self.round)
        self.round += 1

    def peak_gib(self) -> float | None:
        """Peak of allocated memory while it learns, with the other side's weights taken off."""
        if self.device.type != "cuda":
            return None
        synchronize(self.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.learn()
        own = sum(t.numel() * t.element_size() for t in self.tensors())
        return (torch.cuda.max_memory_allocated() - before + own) / 2**30

    def tensors(self) -> Sequence[torch.Tensor]:
        networks = {id(t): t for role in self.policy.roles for t in self.policy.tensors(role).values()}
        networks |= {id(t): t for t in self.policy.model.network.parameters()}
        states = [t for o in self.learner.optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
        return [*networks.values(), *states]


def samples(model: Any, batch: int, device: torch.device, requires: Any) -> Batch:
    """Random latents in groups of four, embeddings and signals."""
    x0 = seeds.normal((1,), range(batch), model.latent_shape, device)
    states = torch.stack([x0] * 4, 1)
    signal = {"reward": seeds.normal((2,), range(batch), (), device), "valid": torch.ones(batch, dtype=torch.bool, device=device)}
    signal |= {"states": states, "predictions": states, "real_latents": x0}
    if "real_images" in requires:
        with torch.no_grad():
            signal["real_images"] = model.decode(x0)
    prompts = ["a red circle left of a blue square"] * batch
    cond = model.encode(prompts).to(device)
    order = torch.arange(batch)
    used = {name: value for name, value in signal.items() if name in requires}
    return Batch(order // 4, order, x0, cond, used, (0,), tuple(Prompt(text) for text in prompts))


def measure(method: str, name: str, tune: str, device: torch.device, side: int, batch: int, runs: int, fast: Speed) -> dict[str, Any]:
    """A row of the result file."""
    make = lambda speed: Side(method, name, tune, batch, device, side, speed)  # noqa: E731
    if tune == "full" and device.type == "cuda":
        # two copies of every role and optimiser do not fit beside each other: one after the other
        found, peaks, operations = {}, {}, 0
        for what in ("plain", "ours"):
            one = make(fast if what == "ours" else None)
            found |= alternate({what: one.learn}, device, runs, warm=1)
            peaks[what] = one.peak_gib()
            operations = operations or flops(one.learn)
            del one
            torch.cuda.empty_cache()
    else:
        plain, ours = make(None), make(fast)
        found = alternate({"plain": plain.learn, "ours": ours.learn}, device, runs, warm=1)
        operations = flops(plain.learn)
        peaks = {"plain": plain.peak_gib(), "ours": ours.peak_gib()}
    rate = operations / medians(found)["ours"]
    top = peak(device)
    return {
        "method": method,
        "model": name,
        "tune": tune,
        "pixels": side,
        "batch": batch,
        "samples_per_s": {what: batch / taken for what, taken in medians(found).items()},
        "faster_than_plain": ratio(found, "plain", "ours"),
        "tflop_per_s": rate / 1e12,
        "mfu": rate / top if top else None,
        "peak_gib": peaks,
        "runs_s": found,
        "settings": asdict(fast),
        "versions": versions(device),
        "kind": device.type,
    }


def table(content: dict[str, Any]) -> str:
    """The table of docs/results.md; a device that nobody measured says so."""
    lines = []
    for kind in ("cpu", "cuda"):
        rows = [row for row in content["rows"] if row["kind"] == kind]
        if not rows:
            lines += [f"{'GPU' if kind == 'cuda' else 'CPU'}: not measured.", ""]
            continue
        lines += [
            f"{rows[0]['versions']['device']}:",
            "",
            "| method | network | tuned | pixels | batch | samples/s | plain eager form | MFU | peak GiB |",
        ]
        lines += ["|---" * 9 + "|"]
        for row in rows:
            memory, mfu = row["peak_gib"]["ours"], row["mfu"]
            cells = [row["method"], row["model"], row["tune"], row["pixels"], row["batch"], f"{row['samples_per_s']['ours']:.1f}"]
            cells += [f"{row['faster_than_plain']:.2f} x", f"{mfu:.0%}" if mfu else "–", f"{memory:.1f}" if memory else "–"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join([*lines, *claims(content)]).strip()


def claims(content: dict[str, Any]) -> list[str]:
    """What is claimed, and whether the rows bear it out."""
    cpu = [row for row in content["rows"] if row["kind"] == "cpu" and row["method"] == "ac_flow"]
    gpu = [row for row in content["rows"] if row["kind"] == "cuda" and row["tune"] == "lora"]
    found = [
        verdict(
            f"an update of AC-Flow on a CPU is {MUST_HOLD['ac_flow']} times as fast as the plain form",
            [("times", row["faster_than_plain"], row["faster_than_plain"] >= MUST_HOLD["ac_flow"]) for row in cpu],
        ),
        verdict(
            f"an update of LoRA factors on a GPU reaches {MUST_HOLD['lora_mfu']:.0%} of the peak's operations",
            [(row["method"], row["mfu"], row["mfu"] >= MUST_HOLD["lora_mfu"]) for row in gpu],
        ),
    ]
    return [line for line in found if line]


def plan(args: argparse.Namespace, device: torch.device) -> list[tuple[str, str, str, int, int]]:
    """Method, network, what is tuned, pixels and batch of each case."""
    if args.tiny:
        return [(method, "tiny", "full", 64, 8) for method in args.methods]
    if device.type == "cpu":
        return [(method, "tiny", "full", 64, batch) for method, batch in (("ac_flow", 64), ("flash_dmd", 32)) if method in args.methods]
    size = lambda tune: args.batch if tune == "lora" else min(args.batch, 16)  # noqa: E731
    return [(method, "sd3.5_medium", tune, 512, size(tune)) for tune in args.tunes for method in args.methods]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="eight samples, one run: is the harness whole?")
    parser.add_argument("--methods", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    parser.add_argument("--tunes", nargs="+", default=["lora", "full"], help="on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="on a GPU")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    args = parser.parse_args()
    device, rows = torch.device(args.device), []
    for method, name, tune, side, batch in plan(args, device):
        runs, fast = (1, TINY) if args.tiny else (args.runs, FAST[device.type])
        rows.append(measure(method, name, tune, device, side, batch, runs, fast))
        row = rows[-1]
        if not args.tiny:
            keep(args.out, device.type, rows)
        print(f"{method} {name} {tune}: {row['faster_than_plain']:.2f} x the plain form, MFU {row['mfu'] or math.nan:.2f}", flush=True)
    if not args.tiny:
        write_table(NAME, table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
