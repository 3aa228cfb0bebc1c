"""Rewards in a run: several of them mixed, one that dies, one that cannot score, one that needs what prompts lack."""

import json

import pytest
import tiny_runs

MORTAL = """
import os
from pathlib import Path

CALLS = []

def mortal(images, prompts, metadata, grave=""):
    CALLS.append(1)
    if grave and len(CALLS) == 4 and not Path(grave).exists():
        Path(grave).touch()
        os._exit(9)  # as an out-of-memory kill: no word, in mid-call
    return images.mean((1, 2, 3))
"""


def terms(*given):
    return json.dumps(list(given))


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_loses_nothing(tmp_path):
    source = tmp_path / "mortal.py"
    source.write_text(MORTAL)
    name = f"{source}:mortal"
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "here", rewards__train=terms({"name": name, "label": "mortal"})))
    grave = tmp_path / "grave"
    dying = terms({"name": name, "label": "mortal", "where": "process", "options": {"grave": str(grave)}})
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "dying", rewards__train=dying))
    assert grave.exists()
    assert tiny_runs.metrics(tmp_path, "dying") == tiny_runs.metrics(tmp_path, "here")


@pytest.mark.slow
def test_rewards_are_mixed_and_a_resumed_run_mixes_on(tmp_path):
    train = terms({"name": "shapes_judge"}, {"name": "shapes_proxy"}, {"name": "jpeg_size"})
    changes = {"rewards__train": train, "rewards__mix__rule": "uncertain", "rewards__mix__normalise": "running"}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "whole", **changes))
    for rounds in (4, 6):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, "halves", run__rounds=rounds, **changes))
    whole = tiny_runs.metrics(tmp_path, "whole")
    assert whole == tiny_runs.metrics(tmp_path, "halves")
    shares = [sum(line[f"mix/share/{name}"] for name in ("shapes_judge", "shapes_proxy", "jpeg_size")) for line in whole]
    assert shares == pytest.approx([1.0] * 6)


def test_evaluations_record_what_the_alarm_hears(tmp_path, capsys):
    changes = {"rewards__train": terms({"name": "shapes_proxy"}), "rewards__judges": terms({"name": "shapes_judge"})}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, run__rounds=4, rewards__cache=str(tmp_path / "scores.sqlite"), **changes))
    (verdict,) = [line for line in capsys.readouterr().out.splitlines() if "the trained reward shapes_proxy" in line]
    assert verdict.startswith(("Not hacked: ", "Partly hacked: ", "Not confirmed: ", "Hacked: "))
    small = json.loads((tmp_path / "tiny" / "evaluations" / "round-00003.json").read_text())
    assert small["images_per_prompt"] == 2 and set(small["shuffled"]) == {"shapes_proxy"}
    assert {"saturation", "sharpness", "flat"} <= small["statistics"].keys() and all(small["diversity"]["layout"])
    assert (tmp_path / "scores.sqlite").stat().st_size > 0


def test_metadata_that_prompts_lack_is_told_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("genrl.trainers._launch.load_model", lambda *args: pytest.fail("a model was loaded"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    with pytest.raises(SystemExit):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, data__train=str(prompts)))
    assert "'shapes_judge' reads 'objects'" in capsys.readouterr().err


def test_a_reward_that_can_score_too_little_stops_the_run(tmp_path, capsys):
    source = tmp_path / "blind.py"
    source.write_text("def blind(images, prompts, metadata):\n    return [None] * len(prompts)\n")
    train = terms({"name": "shapes_judge"}, {"name": f"{source}:blind", "label": "blind"})
    with pytest.raises(SystemExit):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, rewards__train=train))
    assert "'blind' could score only 0%" in capsys.readouterr().err


def test_requirements_belong_to_an_environment(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, rewards__train=terms({"name": "shapes_judge", "requirements": ["six"]})))
    assert "only where: environment installs" in capsys.readouterr().err
