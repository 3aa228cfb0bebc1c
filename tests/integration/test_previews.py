"""A run with previews of few steps, cached blocks and eight bits: what it logs, and that it goes on exactly."""

from importlib.resources import files

import tiny_runs
import torch
from safetensors.torch import load_file

from genrl.checkpoint import latest

PREVIEWS = {
    "preview__factor": 2,
    "preview__steps": 2,
    "preview__cache": 0.3,
    "preview__fp8": True,
    "preview__min_tau": -1.0,
    "preview__check_every_rounds": 1,
    "preview__check_prompts": 1,
    "data__prompts": 2,
    "actor__warmup_rounds": 0,
    "evaluation__prompts": 2,
    "evaluation__small_prompts": 1,
    "evaluation__images_per_prompt": 1,
}


def run(folder, rounds):
    prompts = folder.parent / "prompts.jsonl"
    lines = (files("genrl.worlds.shapes") / "assets" / "prompts" / "train.jsonl").read_text().splitlines(keepends=True)
    prompts.write_text("".join(lines[:6]))
    own = {"data__train": prompts, "data__held_out": prompts, "run__rounds": rounds, "run__save_every_rounds": 1}
    tiny_runs.run_here(tiny_runs.arguments(folder, **own, **PREVIEWS))
    tensors = load_file(latest(folder / "tiny" / "checkpoints") / "tensors.safetensors")
    return (folder / "tiny" / "metrics.jsonl").read_bytes(), tensors


def test_a_run_with_previews_goes_on_bit_for_bit(tmp_path):
    whole, tensors = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    again, others = run(tmp_path / "parts", 2)
    assert whole == again and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    lines = tiny_runs.metrics(tmp_path / "whole")
    # of 2 prompts with 4 samples and twice as many candidates; a check draws one prompt's 8 candidates in full
    assert [line["previews"] for line in lines] == [16, 32]
    assert [line["images_seen"] for line in lines] == [8 + 8, 16 + 16]
    assert [line["reward_calls"] for line in lines] == [32, 64]
    assert all(line["preview/valid"] == 1 and -1 <= line["preview/tau"] <= 1 for line in lines)
    assert all("preview/tau/shapes_judge" in line for line in lines)
