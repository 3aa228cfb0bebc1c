"""A whole run: what it leaves behind, and that it goes on exactly after a kill."""

import json
import os
import random
import signal
import time

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from genrl.checkpoint import latest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, tiny_runs.run(tiny_runs.arguments(folder))


def test_what_a_run_leaves_behind(whole):
    folder, output = whole
    run = folder / "tiny"
    assert "held-out prompts" in output and "report.html" in output
    assert all(f"round {done}/6  shapes_judge " in output for done in range(1, 7)), "where no bar is seen, a line a round"
    summary = json.loads((run / "summary.json").read_text())
    wanted = "judge_before judge_after judge_gain_ci95 proxy_before proxy_after diversity_before diversity_after w2 images_seen"
    assert {*wanted.split(), "reward_calls", "wall_s", "per_category"} <= summary.keys()
    assert summary["images_seen"] == 6 * 16 == summary["reward_calls"]
    lines = tiny_runs.metrics(folder)
    assert [line["round"] for line in lines] == list(range(1, 7))
    assert all("loss/critic" in line for line in lines)
    assert ["loss/actor" in line for line in lines] == [False, False, True, True, True, True], "two rounds of critic warm-up"
    assert "critic/explained_variance/0.6-0.8" in {key for line in lines for key in line}
    evaluations = sorted(path.name for path in (run / "evaluations").glob("*.json"))
    assert evaluations == ["round-00000.json", "round-00003.json", "round-00006.json"]
    assert len(list((run / "evaluations" / "round-00006").glob("*.png"))) == 24
    assert (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "versions.json").read_text())["seed"] == 0


def test_the_pipeline_loads_without_genrl(whole):
    """Plain diffusers, in a process in which importing genrl fails, with its default arguments."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['genrl'] = None\n"
        "from diffusers import StableDiffusion3Pipeline\n"
        "pipeline = StableDiffusion3Pipeline.from_pretrained(sys.argv[1])\n"
        "print(pipeline('a red circle', num_inference_steps=3).images[0].size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole[0] / "tiny" / "pipeline")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "(64, 64)" in done.stdout, done.stderr[-2000:]


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    """SIGKILL at a random moment, the same command again: weights, critic, optimisers and metrics are those of a run left alone."""
    chance = random.Random(os.getpid())
    arguments = tiny_runs.arguments(tmp_path)
    process = tiny_runs.start(arguments)
    # let it get past a checkpoint, then kill it wherever it is
    while process.poll() is None and not latest(tmp_path / "tiny" / "checkpoints"):
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 1.5))
    assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()[0][-2000:]}"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    tiny_runs.run(arguments)
    one, other = (latest(folder / "tiny" / "checkpoints") for folder in (whole[0], tmp_path))
    assert one.name == other.name == "round-000006"
    first, second = (load_file(path / "tensors.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert {name.split("/")[0] for name in first} == {"role", "optimizer"}
    assert {name.split("/")[1] for name in first if name.startswith("role")} == {"actor", "average", "old", "critic"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole[0] / "tiny" / "metrics.jsonl").read_bytes() == (tmp_path / "tiny" / "metrics.jsonl").read_bytes()
    for name in ("round-00000", "round-00003", "round-00006"):
        read = [json.loads((folder / "tiny" / "evaluations" / f"{name}.json").read_text()) for folder in (whole[0], tmp_path)]
        assert read[0] == read[1]


def test_another_config_under_the_same_name_is_refused_or_started_over(whole, tmp_path, capsys):
    import shutil

    shutil.copytree(whole[0], tmp_path / "copy")
    from genrl.trainers._launch import launch
    from genrl.trainers.ac_flow import Config, build

    with pytest.raises(SystemExit):
        launch(Config, build, tiny_runs.arguments(tmp_path / "copy", actor__lr=1e-5))
    message = capsys.readouterr().err
    assert "actor.lr: " in message and " -> 1e-05" in message and "--run.resume false" in message
    for name in ("metrics.jsonl", "config.yaml", "versions.json"):
        read = [(folder / "tiny" / name).read_bytes() for folder in (tmp_path / "copy", whole[0])]
        assert read[0] == read[1], "nothing was touched"
