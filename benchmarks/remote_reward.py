"""What it costs to run a reward in another process: pictures per second of a whole loop, and of the reward alone.

    python benchmarks/remote_reward.py

The loop is training's: the main thread draws a batch of 16 pictures of 512 px while another thread has the batch before it scored.
Drawing is a stand-in, 24 or 96 convolutions on latents of that size: with 24 it takes hardly longer than scoring, with 96 less than a
second, which is still faster than a generator draws sixteen such pictures. The reward is of realistic cost: it resizes to 224 px and
runs a small vision transformer with random weights. It runs in this process, or in another one on this machine, over the same HTTP
that goes to other machines. Runs alternate; figures are medians over runs, and the ratio that of the medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import torch
from _results import RESULTS, ROOT, save
from torch import Tensor, nn

from genrl.pixels import normalise, resize
from genrl.remote.worker import Worker
from genrl.reward import About

BATCH, SIDE, BATCHES, MUST_HOLD = 16, 512, 8, 0.9
PASSES = (24, 96)
THREADS = 1  # sampling and scoring have a core each, as they would have a device each


class Tower:
    """A vision transformer's score; its weights are the same in every process."""

    about = About(reads_prompt=False)

    def __init__(self, width: int = 256, layers: int = 3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
            self.patches = nn.Conv2d(3, width, 32, 32)
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
            self.head = nn.Linear(width, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """``[B]``."""
        tokens = self.patches(normalise(resize(images, 224, 224))).flatten(2).mT
        return self.head(self.layers(tokens).mean(1))[:, 0]


class Sampler:
    """Takes as long as its passes take; the pictures are noise."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        self.latents = torch.randn(BATCH, 32, SIDE // 8, SIDE // 8, generator=generator)
        self.layer = nn.Conv2d(32, 32, 3, padding=1)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        x = self.latents
        for _ in range(self.passes):
            x = self.layer(x).clamp(-1, 1)
        return self.pixels.float() / 255


def loop(sampler: Sampler, reward: Callable[..., Tensor]) -> float:
    """Pictures per second, drawing one batch while the one before is scored."""
    prompts, metadata = ["a picture"] * BATCH, [{}] * BATCH
    with ThreadPoolExecutor(1) as thread:
        begun, pending = time.perf_counter(), None
        for _ in range(BATCHES):
            images = sampler()
            if pending is not None:
                pending.result()
            pending = thread.submit(reward, images, prompts, metadata)
        assert pending is not None
        pending.result()
        return BATCHES * BATCH / (time.perf_counter() - begun)


def alone(sampler: Sampler, reward: Callable[..., Tensor]) -> float:
    """Pictures per second of the reward, with nothing beside it."""
    images, begun = sampler.pixels.float() / 255, time.perf_counter()
    for _ in range(BATCHES):
        reward(images, ["a picture"] * BATCH, [{}] * BATCH)
    return BATCHES * BATCH / (time.perf_counter() - begun)


def versions(seed: int) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    device = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    packages = {name: version(name) for name in ("torch", "diffusers", "starlette", "uvicorn", "requests")}
    said = {"command": "python benchmarks/remote_reward.py", "commit": commit or "unknown", "device": device, "seed": seed}
    return said | packages | {"python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    samplers, here = {passes: Sampler(passes) for passes in PASSES}, Tower()
    with Worker(f"{__file__}:Tower") as there:
        places = {"in process": here, "in another process": there}
        images = samplers[PASSES[0]]()
        scores = [place(images, ["a picture"] * BATCH, [{}] * BATCH) for place in places.values()]
        assert torch.equal(*scores), "scores differ between processes"
        cases = {f"loop, {passes} passes": (loop, sampler) for passes, sampler in samplers.items()}
        cases["alone"] = (alone, samplers[PASSES[0]])
        measured: dict[str, dict[str, list[float]]] = {what: {place: [] for place in places} for what in cases}
        for number in range(args.runs + 1):
            # whoever goes first changes from run to run; the first run warms up
            for place in list(places)[:: -1 if number % 2 else 1]:
                for what, (measure, sampler) in cases.items():
                    figure = measure(sampler, places[place])
                    measured[what][place] += [figure] if number else []
    rows = []
    for what, found in measured.items():
        medians = {place: statistics.median(figures) for place, figures in found.items()}
        ratio = medians["in another process"] / medians["in process"]
        row = {"what": what, "images_per_s": medians, "ratio": ratio, "runs": found, "batch": BATCH, "side_px": SIDE}
        rows.append(row | {"threads": THREADS, "must_hold": MUST_HOLD if what != "alone" else None, "versions": versions(0)})
        print(f"{what:16} {', '.join(f'{place} {figure:.1f} images/s' for place, figure in medians.items())}, ratio {ratio:.3f}")
    save(RESULTS / "remote_reward.json", {"rows": rows})
    lowest = min(row["ratio"] for row in rows if row["must_hold"])
    if lowest < MUST_HOLD:
        raise SystemExit(f"the loop with a remote reward must reach {MUST_HOLD:.0%} of the one in process; it reached {lowest:.1%}")


if __name__ == "__main__":
    main()
