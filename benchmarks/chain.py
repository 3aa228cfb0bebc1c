"""Sampling against diffusers' pipeline, against a loop as RL trainers write it, and against the bare network: pictures per second.

    python benchmarks/chain.py                       # on whatever device there is
    python benchmarks/chain.py --device cpu --tiny   # the harness itself, in a minute

One process, the same network, weights, steps, guidance, embeddings and noise; whoever goes first changes from run to run. What is compared:

floor      the network's own forward passes, nothing between them, eager and in the form that ours runs in
ours       ``genrl.rollout.denoise`` along the ODE; ``ours (sde)`` records states and log-probabilities
pipeline   ``StableDiffusion3Pipeline.__call__``; here and in ours from embeddings to latents, and, where the text encoders are at hand,
           ``(pictures)`` from prompts to decoded pictures: ours takes embeddings from its cache, as a run does
plain      a loop with the SDE step and its log-probability as public trainers have it, recording the same

A ratio is the median over rounds of the quotient within a round. MFU counts the operations of the network's matrix products and
attention, over the data sheet's dense bfloat16 rate.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _chain import Case
from _results import RESULTS, keep, verdict, write_table
from _timing import alternate, flops, matmul_rate, medians, peak, ratio, versions

from genrl.config import Speed

NAME = "chain"
MUST_HOLD = {"floor": 1.05, "pipeline": {"cpu": 1.3, "cuda": 1.6}, "mfu": 0.5, "preview": 1.5}
FAST = {"cpu": Speed(compile=True), "cuda": Speed(kernels=True, cuda_graphs=True, attention="auto")}
"""What ours runs with: the settings of ``speed`` in a config."""
TINY = Speed(kernels=True)
"""What it runs with where only the harness is tried: compilation takes minutes."""


def measure(name: str, device: torch.device, side: int, batch: int, guidance: float, steps: int, runs: int, speed: Speed) -> dict[str, Any]:
    """A row of the result file."""
    case = Case(name, device, side, batch, guidance, steps, speed)
    found = alternate(case.calls(), device, runs, warm=1)
    row: dict[str, Any] = {
        "model": name,
        "pixels": case.model.size[0],
        "batch": batch,
        "guidance": guidance,
        "steps": steps,
        "images_per_s": {what: batch / taken for what, taken in medians(found).items()},
        "over_floor": ratio(found, "ours", "floor"),
        "over_eager_floor": ratio(found, "ours", "floor, eager"),
        "faster_than_pipeline": ratio(found, "pipeline", "ours"),
        "faster_than_plain": ratio(found, "plain (sde)", "ours (sde)"),
        "differs_from_pipeline": case.agreement(),
    }
    if device.type == "cuda":
        row["previews_faster"] = {what: medians(found)["ours"] / taken for what, taken in case.previews(runs).items()}
    if "pipeline (pictures)" in found:
        row["faster_than_pipeline_pictures"] = ratio(found, "pipeline (pictures)", "ours (pictures)")
    operations = flops(lambda: case.floor(case.plain_model))
    row["tflop_per_image"] = operations / batch / 1e12
    rate = operations / medians(found)["ours"]
    row["tflop_per_s"] = rate / 1e12
    row["mfu"] = rate / top if (top := peak(device)) else None
    row["of_measured_matmul"] = rate / matmul_rate(device, case.dtype, 8192 if device.type == "cuda" else 1024)
    return row | {"runs_s": found, "settings": asdict(speed), "versions": versions(device)}


COLUMNS = (
    "model",
    "pixels",
    "batch",
    "guidance",
    "over the floor",
    "diffusers' pipeline",
    "with text and decoding",
    "plain SDE loop",
    "MFU",
    "FP8 on top",
    "and half the steps (rounded down)",
)


def table(content: dict[str, Any]) -> str:
    """The table of docs/results.md; a device that nobody measured says so."""
    lines = []
    for kind in ("cpu", "cuda"):
        rows = [row for row in content["rows"] if row["kind"] == kind]
        if not rows:
            lines += [f"{'GPU' if kind == 'cuda' else 'CPU'}: not measured.", ""]
            continue
        lines += [f"{rows[0]['versions']['device']}, {rows[0]['steps']} steps:", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for row in rows:
            pictures, mfu, previews = row.get("faster_than_pipeline_pictures"), row["mfu"], row.get("previews_faster", {})
            cells = [row["model"], row["pixels"], row["batch"], f"{row['guidance']:g}", f"{row['over_floor']:.3f}"]
            cells += [f"{row['faster_than_pipeline']:.2f} x", f"{pictures:.2f} x" if pictures else "–", f"{row['faster_than_plain']:.2f} x"]
            cells += [f"{mfu:.1%}" if mfu else "–", *(f"{value:.2f} x" for value in previews.values() or ())]
            lines.append("| " + " | ".join(map(str, cells + ["–"] * (len(COLUMNS) - len(cells)))) + " |")
        lines.append("")
    return "\n".join([*lines, *claims(content)]).strip()


def claims(content: dict[str, Any]) -> list[str]:
    """What is claimed, and whether the rows bear it out."""
    cpu, gpu = ([row for row in content["rows"] if row["kind"] == kind] for kind in ("cpu", "cuda"))
    aim = [row for row in gpu if (row["model"], row["pixels"]) == ("sd3.5_medium", 512) and row["guidance"] > 1]
    least, bound = MUST_HOLD["pipeline"], MUST_HOLD["floor"]
    name = lambda row: f"batch {row['batch']} guidance {row['guidance']:g}"  # noqa: E731
    found = [
        verdict(
            f"sampling on a CPU takes at most {bound} times the bare network's time",
            [(name(row), row["over_floor"], row["over_floor"] <= bound) for row in cpu],
        ),
        verdict(
            f"sampling on a CPU is {least['cpu']} times as fast as diffusers' pipeline",
            [(name(row), row["faster_than_pipeline"], row["faster_than_pipeline"] >= least["cpu"]) for row in cpu],
        ),
        verdict(
            f"SD3.5-medium on a GPU at 512 pixels, guided, samples {least['cuda']} times as fast as diffusers, at half of the peak's rate",
            [
                check
                for row in aim
                for check in (
                    ("times", row["faster_than_pipeline"], row["faster_than_pipeline"] >= least["cuda"]),
                    ("MFU", row["mfu"], row["mfu"] >= MUST_HOLD["mfu"]),
                )
            ],
        ),
        verdict(
            f"a preview in float8 with half the steps is {MUST_HOLD['preview']} times as fast again",
            [
                (what, value, value >= MUST_HOLD["preview"] or what == "fp8")
                for row in aim
                for what, value in row["previews_faster"].items()
            ],
        ),
    ]
    return [line for line in found if line]


def plan(args: argparse.Namespace, device: torch.device) -> list[tuple[str, int, int]]:
    """Network, pixels and batch of each case."""
    if args.tiny:
        return [("tiny", 64, 4)]
    if device.type == "cpu":
        return [("tiny", 64, batch) for batch in args.batches or (1, 16, 64)]
    return [(name, side, batch) for name in args.models for side, batch in zip((512, 1024), args.batches or (16, 4), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="the shapes world's network, four samples, one run: is the harness whole?")
    parser.add_argument("--models", nargs="+", default=["sd3.5_medium", "sd3_medium"])
    parser.add_argument("--batches", nargs="+", type=int, help="samples at 512 and at 1024 pixels; on a CPU as many cases")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 4.5])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = []
    for name, side, batch in plan(args, device):
        for guidance in args.guidance:
            steps, runs, speed = (2, 1, TINY) if args.tiny else (args.steps, args.runs, FAST[device.type])
            row = measure(name, device, side, batch, guidance, steps, runs, speed)
            rows.append(row | {"kind": device.type})
            print(
                f"{name} {side} px, batch {batch}, guidance {guidance:g}: {row['over_floor']:.3f} of the floor, "
                f"{row['faster_than_pipeline']:.2f} x pipeline, {row['faster_than_plain']:.2f} x plain, MFU {row['mfu'] or math.nan:.2f}",
                flush=True,
            )
            if not args.tiny:
                keep(args.out, device.type, rows)
    if not args.tiny:
        write_table(NAME, table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
