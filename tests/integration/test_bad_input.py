"""What people get wrong: one clear message, a failing exit code, nothing half-written."""

import pytest
import tiny_runs

from genrl.trainers._launch import launch
from genrl.trainers.ac_flow import Config, build


def attempt(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        launch(Config, build, arguments)
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and "Traceback" not in message
    return message


@pytest.fixture
def reward(tmp_path):
    def write(body):
        path = tmp_path / "mine.py"
        path.write_text("import torch\n" + body)
        return f'[{{"name": "{path}:mine"}}]'

    return write


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model__source": "/no/such/model"}, "no model folder '/no/such/model'"),
        ({"rewards__train": '[{"name": "shape_judge"}]'}, "did you mean shapes_judge"),
        ({"rewards__train": "[]"}, "rewards.train is empty"),
        ({"data__train": "shapes/trian"}, "did you mean 'shapes/train'"),
        ({"data__group_size": 1}, "groups of at least 2"),
        ({"actor__lr": 0}, "positive lr"),
        ({"actor__lr_halving_rounds": -5}, "0 keeps the learning rate"),
        ({"actor__clip": 0}, "clip must be positive"),
        ({"actor__minibatch": 1}, "actor.minibatch must be at least 2"),
        ({"run__rounds": "many"}, "run.rounds"),
        ({"run__sead": 1}, "did you mean run.seed"),
        ({"sampling__steps": 0}, "at least one step"),
        ({"actor__weighting": "signed", "actor__error": "endpoint"}, "signed"),
    ],
)
def test_before_anything_runs(change, why, tmp_path, capsys):
    assert why in attempt(capsys, tiny_runs.arguments(tmp_path, **change))
    assert not list((tmp_path / "tiny").glob("*.jsonl")) and not (tmp_path / "tiny" / "checkpoints").exists()


def test_an_empty_prompt_file(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    assert "no prompts in it" in attempt(capsys, tiny_runs.arguments(tmp_path, data__train=str(tmp_path / "empty.txt")))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("def mine(i, p, m): raise ValueError('server down')", "raised ValueError: server down"),
        ("def mine(i, p, m): return torch.full((len(i),), float('nan'))", "could score only 0%"),
        ("def mine(i, p, m): return torch.zeros(len(i) - 1)", "one per image"),
        ("def mine(i, p, m): return torch.zeros(len(i), 2)", "one per image"),
        ("def mine(i, p, m): return 'good'", "numbers"),
    ],
)
def test_a_reward_that_breaks_its_contract(body, why, reward, tmp_path, capsys):
    assert why in attempt(capsys, tiny_runs.arguments(tmp_path, rewards__train=reward(body)))
    assert not (tmp_path / "tiny" / "summary.json").exists() and not (tmp_path / "tiny" / "pipeline").exists()


def test_training_that_is_not_finite(tmp_path, capsys):
    message = attempt(capsys, tiny_runs.arguments(tmp_path, actor__weighting="exp", actor__tau=1e5, actor__warmup_rounds=0))
    assert "not finite" in message and "round 0" in message
    assert not (tmp_path / "tiny" / "checkpoints").exists()
