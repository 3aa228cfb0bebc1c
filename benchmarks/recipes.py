"""What the recipes of docs/scale.md take: the planner's memory and operations, of graphics cards that need not be here.

    python benchmarks/recipes.py

Each recipe is a shipped config and what it changes for a number of GPUs, so that every optimiser step sees as many samples on one as on
eight. It is planned as ``--dry-run`` plans it, from the configs of the published networks (``_models.SD3_NETWORKS``, and below),
with no weights read. Bytes and operations are of one process, which has a GPU of its own.

The planner times pieces on the device that the run is to be on. Where that is not here it says no seconds, and neither does the table: it
has the operations of the network, and what they take at the rates that ``chain.json`` and ``train_step.json`` measured on another card.
That is a lower bound, by division, and no prediction: decoding, rewards, evaluations and the optimiser come on top. Writes
``benchmarks/results/recipes.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _models import SD3_NETWORKS
from _results import RESULTS, ROOT, save
from _timing import versions

NAME = "recipes"
GIB = 2**30
FAST = ("--speed.kernels=true", "--speed.attention=auto", "--speed.cuda_graphs=true")


@dataclass(frozen=True)
class Recipe:
    """A config of ``configs/ac_flow`` on so many GPUs of so many gigabytes (10^9 bytes) each, and what it changes."""

    config: str
    gpus: int
    gigabytes: int
    changes: tuple[str, ...] = ()


RECIPES = {
    "LoRA": Recipe("sd3.5_medium_lora", 1, 80, (*FAST, "--actor.accumulate=64", "--critic.minibatch=128")),
    "LoRA, as shipped": Recipe("sd3.5_medium_lora", 8, 80, FAST),
    "LoRA, more prompts": Recipe("sd3.5_medium_lora", 64, 80, (*FAST, "--data.prompts=64", "--actor.accumulate=1", "--critic.minibatch=2")),
    "LoRA, small card": Recipe(
        "sd3.5_medium_lora",
        1,
        24,
        (*FAST, "--data.prompts=8", "--sampling.chunk=8", "--actor.accumulate=32", "--critic.minibatch=64", "--speed.vae=slicing"),
    ),
    "all weights": Recipe("sd3.5_medium_full", 8, 80, FAST),
    "all weights, less memory": Recipe("sd3.5_medium_full", 8, 80, (*FAST, "--actor.optimizer=adamw8bit", "--speed.offload=[old, ref]")),
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The configs of the published models' parts."""
NETWORK = ("sampling", "actor", "actor, on fresh samples", "critic", "critic, on fresh samples")
"""Stages whose operations are the network's, nearly all of them."""


def outline_of(folder: Path) -> Path:
    """A folder with the configs of the published SD3.5-medium, and nothing else."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, T5Config

    with torch.device("meta"):
        SD3Transformer2DModel(**SD3_NETWORKS["sd3.5_medium"]).save_config(folder / "transformer")
        AutoencoderKL(**AUTOENCODER).save_config(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_config(folder / "scheduler")
    CLIPTextConfig(**CLIP_L).save_pretrained(folder / "text_encoder")
    CLIPTextConfig(**CLIP_G).save_pretrained(folder / "text_encoder_2")
    T5Config(**T5_XXL).save_pretrained(folder / "text_encoder_3")
    clip = ["transformers", "CLIPTextModelWithProjection"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        **{name: [None, None] for name in ("tokenizer", "tokenizer_2", "tokenizer_3")},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def measure(name: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """A row of the result file."""
    from genrl import config
    from genrl.planner import plan
    from genrl.planner.table import NEARLY, hints
    from genrl.trainers import ac_flow
    from genrl.trainers._launch import load_model

    given = ["--config", str(ROOT / "configs" / "ac_flow" / f"{recipe.config}.yaml"), *recipe.changes]
    given += [f"--model.source={folder}", "--data.train=shapes/train", "--data.held_out=shapes/held_out"]
    settings, device = config.load(ac_flow.Config, given), torch.device("cuda")
    make = lambda: ac_flow.build(settings, load_model(settings.model, device, settings.speed))  # noqa: E731
    found = plan(make, chunk=settings.sampling.chunk, rounds=settings.run.rounds, device=device, world=recipe.gpus)
    capacity = found.capacity or recipe.gigabytes * 10**9
    sized = replace(found, capacity=capacity)
    stages = [
        {
            "stage": stage.name,
            "samples": stage.rows,
            "pieces": stage.pieces,
            "peak_bytes": stage.peak,
            "plain_flop": stage.plain * stage.pieces / stage.every,
            "learning_flop": stage.learning * stage.pieces / stage.every,
        }
        for stage in found.stages
    ]
    return {
        "recipe": name,
        "config": f"ac_flow/{recipe.config}.yaml",
        "gpus": recipe.gpus,
        "capacity_bytes": capacity,
        "changes": list(recipe.changes),
        "samples_a_round": settings.data.prompts * settings.data.group_size // recipe.gpus,
        "samples_a_step": recipe.gpus * settings.actor.minibatch * settings.actor.accumulate,
        "rounds": settings.run.rounds,
        "resident_bytes": found.resident,
        "peak_bytes": found.peak.peak,
        "peak_stage": found.peak.name,
        "fits": found.peak.peak <= NEARLY * capacity,
        "hints": hints(sized),
        "parts": [{"name": part.name, "bytes": part.bytes, "place": part.place} for part in found.parts],
        "stages": stages,
        "seconds_a_round": found.seconds,
        "untimed": found.untimed,
        "planned_for": found.device,
        "versions": versions(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def rates() -> dict[str, Any]:
    """Operations per second that SD3.5-medium reached at 512 pixels, unguided sampling and learning of LoRA factors; and on what."""
    sampling = next(
        row
        for row in json.loads((RESULTS / "chain.json").read_text())["rows"]
        if (row["model"], row["pixels"], row["guidance"]) == ("sd3.5_medium", 512, 1)
    )
    learning = next(
        row
        for row in json.loads((RESULTS / "train_step.json").read_text())["rows"]
        if (row["model"], row["tune"]) == ("sd3.5_medium", "lora")
    )
    devices = {row["versions"]["device"] for row in (sampling, learning)}
    return {"sampling": sampling["tflop_per_s"] * 1e12, "learning": learning["tflop_per_s"] * 1e12, "device": " and ".join(devices)}


def operations(row: dict[str, Any]) -> tuple[float, float]:
    """Floating-point operations of the network in a round of one process, without and with gradients."""
    stages = [stage for stage in row["stages"] if stage["stage"] in NETWORK]
    return sum(stage["plain_flop"] for stage in stages), sum(stage["learning_flop"] for stage in stages)


def at_least(row: dict[str, Any], measured: dict[str, Any]) -> float:
    """Seconds of a round that the network's operations take at the measured rates."""
    plain, learning = operations(row)
    return plain / measured["sampling"] + learning / measured["learning"]


def table(content: dict[str, Any]) -> str:
    """The table of docs/scale.md."""
    measured = rates()
    head = ["recipe", "GPUs", "GB each", "images a round", "per step", "stays, GiB", "peak, GiB", "while", "fits", "PFLOP a round, each"]
    head += ["at least, s a round"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in content["rows"]:
        seconds = row["seconds_a_round"]
        cells = [row["recipe"], row["gpus"], f"{row['capacity_bytes'] / 1e9:.0f}", row["samples_a_round"] * row["gpus"]]
        cells += [row["samples_a_step"], f"{row['resident_bytes'] / GIB:.1f}", f"{row['peak_bytes'] / GIB:.1f}", row["peak_stage"]]
        cells += ["yes" if row["fits"] else "no", f"{sum(operations(row)) / 1e15:.2f}"]
        cells += [f"{at_least(row, measured):.0f}" if seconds is None else f"{seconds:.0f}, predicted"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = outline_of(Path(folder))
        rows = []
        for name, recipe in RECIPES.items():
            rows.append(measure(name, recipe, source))
            peak = rows[-1]["peak_bytes"] / GIB
            print(f"{name}, {recipe.gpus} x {recipe.gigabytes} GB: {peak:.1f} GiB while {rows[-1]['peak_stage']}", flush=True)
    save(args.out, {"rows": rows})


if __name__ == "__main__":
    main()
