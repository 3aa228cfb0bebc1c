"""Flow-GRPO runs, resumes and learns on the shapes world."""

import json

import pytest
import tiny_runs


def test_a_short_run_and_its_continuation(tmp_path):
    """The first update of a round starts from a ratio of 1: what the rollout recorded is what a replay finds."""
    changes = {"run__rounds": 3, "run__save_every_rounds": 1, "noise__kind": "cps", "noise__window": [0, 1], "sampling__guidance": 2.0}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "whole", "flow_grpo", **changes))
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "parts", "flow_grpo", **{**changes, "run__rounds": 2}))
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "parts", "flow_grpo", **changes))
    whole, parts = (tiny_runs.metrics(tmp_path, name) for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 3
    assert 0 < whole[0]["policy/ratio_off_one"] < 0.5 and (tmp_path / "whole" / "pipeline" / "model_index.json").is_file()


def test_with_a_learning_rate_of_nothing_the_ratio_stays_one(tmp_path):
    changes = {"run__rounds": 1, "actor__lr": 1e-12, "actor__minibatch": 16, "sampling__chunk": 16, "evaluation__prompts": 2}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "still", "flow_grpo", **changes))
    assert tiny_runs.metrics(tmp_path, "still")[0]["policy/ratio_off_one"] <= 1e-6


@pytest.mark.slow
def test_it_raises_the_judge(tmp_path):
    config = tiny_runs.ROOT / "configs" / "flow_grpo" / "shapes.yaml"
    tiny_runs.run(
        ["--config", str(config), "--run.folder", str(tmp_path), "--run.name", "short", "--run.rounds", "40", "--run.tracker", "none"]
    )
    summary = json.loads((tmp_path / "short" / "summary.json").read_text())
    assert summary["judge_gain_ci95"][0] > 0
