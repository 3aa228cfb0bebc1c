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
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _models import forward, load
from _results import RESULTS, keep, verdict, write_table
from _timing import alternate, flops, matmul_rate, medians, peak, ratio, versions
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from genrl import seeds
from genrl.chain import OdeChain, SdeChain
from genrl.config import Speed
from genrl.path import start
from genrl.policy import ACTOR, Copies, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import decode, denoise, rollout
from genrl.types import Conditioning, Prompt

NAME = "chain"
MUST_HOLD = {"floor": 1.05, "pipeline": {"cpu": 1.3, "cuda": 1.6}, "mfu": 0.5, "preview": 1.5}
PROMPT = "a red circle left of a blue square"


FAST = {"cpu": Speed(compile=True), "cuda": Speed(kernels=True, cuda_graphs=True, attention="auto")}
"""What ours runs with: the settings of ``speed`` in a config."""
TINY = Speed(kernels=True)
"""What it runs with where only the harness is tried: compilation takes minutes."""


class Case:
    """One network, size, batch and guidance, and every way to sample with it."""

    def __init__(self, name: str, device: torch.device, side: int, batch: int, guidance: float, steps: int, speed: Speed):
        self.device, self.batch, self.guidance, self.steps = device, batch, guidance, steps
        formats = Precision("bf16", "bf16") if device.type == "cuda" else Precision()
        options = {"precision": formats, "height": side, "width": side}
        self.plain_model = load(name, device, **options)
        self.model = load(name, device, **options, speed=speed)
        self.model.network.load_state_dict(self.plain_model.network.state_dict())
        self.policy = FlowPolicy(self.model, Copies(self.model.network, (ACTOR,)))
        self.texts = [PROMPT] * batch
        self.cond = self.model.encode(self.texts).to(device)
        self.dtype = next(self.model.network.parameters()).dtype
        self.ode, self.sde = OdeChain(self.model.sigmas(steps)), SdeChain(self.model.sigmas(steps))
        self.noise = start(seeds.normal((0,), range(batch), self.model.latent_shape, device), 1.0)

    def floor(self, model: Any) -> None:
        x, cond = self.noise, self.cond
        if self.guidance != 1:
            x, cond = torch.cat([x, x]), Conditioning.cat([self.blank(), cond])
        with torch.no_grad():
            for sigma in self.ode.sigmas[:-1]:
                forward(model, x, sigma, cond)

    def blank(self) -> Conditioning:
        empty = self.model.unconditional.to(self.device)
        return Conditioning(empty.embeds.expand(self.batch, -1, -1), empty.pooled.expand(self.batch, -1))

    def ours(self) -> Tensor:
        return denoise(self.policy, self.ode, self.noise, self.cond, role=ACTOR, guidance=self.guidance)

    def ours_sde(self) -> Any:
        order = range(self.batch)
        return rollout(
            self.policy, self.sde, [Prompt(PROMPT)] * self.batch, self.cond, role=ACTOR, key=(0,), samples=order, groups=order,
            guidance=self.guidance, chunk=self.batch, record=("states", "log_probs"),
        )  # fmt: skip

    def ours_pictures(self) -> Tensor:
        # a run has encoded its prompts before its first round
        return decode(self.policy, self.ours(), chunk=self.batch)

    def pipeline(self, pictures: bool = False) -> Any:
        pipe: StableDiffusion3Pipeline = self.plain_model.pipeline
        blank = self.blank()
        given = {
            "prompt_embeds": self.cond.embeds.to(self.dtype),
            "pooled_prompt_embeds": self.cond.pooled.to(self.dtype),
            "negative_prompt_embeds": blank.embeds.to(self.dtype),
            "negative_pooled_prompt_embeds": blank.pooled.to(self.dtype),
        }
        height, width = self.model.size
        return pipe(
            **({"prompt": self.texts, "max_sequence_length": 1} if pictures else given),
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            latents=self.noise.to(self.dtype),
            output_type="pt" if pictures else "latent",
        ).images  # pyright: ignore

    @torch.no_grad()
    def plain(self) -> Any:
        """The SDE step of Flow-GRPO, as its public code has it: branches concatenated anew, scheduler arithmetic and noise apart."""
        network, x, guided = self.plain_model.network, self.noise.to(self.dtype), self.guidance != 1
        embeds, pooled = self.cond.embeds.to(self.dtype), self.cond.pooled.to(self.dtype)
        if guided:
            blank = self.blank()
            embeds = torch.cat([blank.embeds.to(self.dtype), embeds])
            pooled = torch.cat([blank.pooled.to(self.dtype), pooled])
        states, log_probs, grid = [x], [], self.sde.sigmas
        for sigma, after in itertools.pairwise(grid):
            both = torch.cat([x] * 2) if guided else x
            level = torch.full((len(both),), 1000 * sigma, device=x.device)
            v = network(hidden_states=both, timestep=level, encoder_hidden_states=embeds, pooled_projections=pooled, return_dict=False)[0]
            if guided:
                v_0, v_c = v.chunk(2)
                v = v_0 + self.guidance * (v_c - v_0)
            v, state, dt = v.float(), x.float(), after - sigma
            std = math.sqrt(sigma / (1 - (grid[1] if sigma == 1 else sigma))) * self.sde.eta
            mean = state * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
            spread = std * math.sqrt(-dt)
            new = mean + spread * torch.randn_like(mean)
            density = -((new - mean) ** 2) / (2 * spread**2) - math.log(spread) - math.log(math.sqrt(2 * math.pi))
            log_probs.append(density.mean(dim=tuple(range(1, density.ndim))))
            x = new.to(self.dtype)
            states.append(x)
        return torch.stack(states, 1), torch.stack(log_probs, 1)

    def calls(self) -> dict[str, Callable[[], Any]]:
        found = {
            "floor, eager": lambda: self.floor(self.plain_model),
            "floor": lambda: self.floor(self.model),
            "ours": self.ours,
            "pipeline": self.pipeline,
            "ours (sde)": self.ours_sde,
            "plain (sde)": self.plain,
        }
        if self.plain_model.pipeline.text_encoder is not None:
            found |= {"ours (pictures)": self.ours_pictures, "pipeline (pictures)": lambda: self.pipeline(pictures=True)}
        return found

    def previews(self, runs: int) -> dict[str, float]:
        """Median seconds of previews in float8, of as many steps and of half as many; nothing else fits between them, for the network is
        another one while they run."""
        half = OdeChain(self.model.sigmas(max(1, self.steps // 2)))
        draw = lambda chain: denoise(self.policy, chain, self.noise, self.cond, role=ACTOR, guidance=self.guidance)  # noqa: E731
        with self.model.cheap(self.model.network, fp8=True):  # pyright: ignore[reportAttributeAccessIssue]
            found = alternate({"fp8": lambda: draw(self.ode), "fp8, half the steps": lambda: draw(half)}, self.device, runs)
        return medians(found)

    def agreement(self) -> float:
        """Largest difference of ours from the pipeline's latents, relative to their spread."""
        theirs = self.pipeline().float()
        return ((self.ours() - theirs).abs().max() / theirs.std()).item()


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
