"""AC-Flow learns: a short run on the shapes world raises the judge."""

import json

import pytest
import tiny_runs


@pytest.mark.slow
def test_ac_flow_raises_the_judge_on_held_out_prompts(tmp_path):
    config = tiny_runs.ROOT / "configs" / "ac_flow" / "shapes.yaml"
    tiny_runs.run(
        ["--config", str(config), "--run.folder", str(tmp_path), "--run.name", "short", "--run.rounds", "30", "--run.tracker", "none"]
    )
    summary = json.loads((tmp_path / "short" / "summary.json").read_text())
    assert summary["judge_gain_ci95"][0] > 0
    assert summary["diversity_after"] > 0.85 * summary["diversity_before"]
