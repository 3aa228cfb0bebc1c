"""``accelerate launch`` with one and with two CPU processes, as a file and as a module."""

import pytest
import tiny_runs

SHORT = {"run__rounds": 2, "actor__warmup_rounds": 0, "evaluation__prompts": 6}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    tiny_runs.run(tiny_runs.arguments(folder, **SHORT), processes=1)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    tiny_runs.run(tiny_runs.arguments(folder, **SHORT), processes=2, module=True)
    return folder


def test_one_process_and_two_give_the_same_rewards(one, two):
    import json

    first, second = tiny_runs.metrics(one), tiny_runs.metrics(two)
    assert first[0]["reward/shapes_judge/mean"] == pytest.approx(second[0]["reward/shapes_judge/mean"], abs=1e-4)
    assert first[0]["reward/shapes_judge/std"] == pytest.approx(second[0]["reward/shapes_judge/std"], abs=1e-4)
    assert [line["images_seen"] for line in first] == [line["images_seen"] for line in second] == [16, 32]
    scores = [
        json.loads((folder / "tiny" / "evaluations" / "round-00000.json").read_text())["scores"]["shapes_judge"] for folder in (one, two)
    ]
    for ours, theirs in zip(*scores, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_two_processes_train_and_report(two):
    assert (two / "tiny" / "report.html").exists() and (two / "tiny" / "pipeline" / "model_index.json").exists()
    assert tiny_runs.metrics(two)[-1]["policy/w2"] > 0
