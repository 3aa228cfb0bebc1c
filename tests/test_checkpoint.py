import json

import pytest
import torch

from genrl import checkpoint
from genrl.checkpoint import CheckpointError


def test_saved_and_loaded(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    path = checkpoint.save(tmp_path, 7, tensors, {"round": 7}, keep=2)
    got, state = checkpoint.load(path)
    assert all(torch.equal(got[name], tensors[name]) for name in tensors) and state == {"round": 7}
    assert checkpoint.latest(tmp_path) == path


def test_only_complete_ones_count_and_only_the_newest_stay(tmp_path):
    for round_ in (1, 2, 3):
        checkpoint.save(tmp_path, round_, {"a": torch.zeros(1)}, {"round": round_}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-000002", "round-000003"]
    (tmp_path / "round-000009").mkdir()  # a folder without its state is not a checkpoint
    (tmp_path / ".round-000010.123").mkdir()  # nor is one that a kill left aside
    assert checkpoint.latest(tmp_path).name == "round-000003"
    assert checkpoint.latest(tmp_path / "none") is None


def test_an_optimiser_goes_on_exactly(tmp_path):
    def train(optimizer, weight, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (weight.square().sum() + weight.sum()).backward()
            optimizer.step()

    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.randn(5))
    one = torch.optim.AdamW([first], lr=0.1)
    train(one, first, 3)
    path = checkpoint.save(tmp_path, 1, {"w": first, **checkpoint.pack_optimizer("o/0", one)}, {}, keep=1)
    train(one, first, 4)
    tensors, _ = checkpoint.load(path)
    second = torch.nn.Parameter(tensors["w"])
    other = torch.optim.AdamW([second], lr=0.1)
    checkpoint.unpack_optimizer("o/0", other, tensors)
    train(other, second, 4)
    assert torch.equal(first, second)


def test_another_config_is_refused_by_name(tmp_path):
    checkpoint.check_same_config({"a": 1}, {"a": 1}, tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)actor\.lr: 0\.1 -> 0\.2.*--run\.resume false"):
        checkpoint.check_same_config({"actor.lr": 0.1, "b": 2}, {"actor.lr": 0.2, "b": 2}, tmp_path)


def test_a_torn_line_is_left_out(tmp_path):
    from genrl.evaluation.watch import Watch
    from genrl.recorder import Recorder, read_lines

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"round": 3, "lo')
    assert [line["round"] for line in read_lines(path)] == [1, 2]
    Recorder(tmp_path, main=True, track=lambda *a, **k: None, watch=Watch([], [])).open(1, fresh=False, notes={"config.yaml": "a: 1"})
    assert path.read_text() == '{"round": 1}\n'
    other = Recorder(tmp_path, main=True, track=lambda *a, **k: None, watch=Watch([], []))
    other.log({"round": 2, "loss": float("nan")}, seconds=1.0)
    assert json.loads(path.read_text().splitlines()[1]) == {"round": 2, "loss": None}
