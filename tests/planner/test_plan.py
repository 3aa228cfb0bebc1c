"""``--dry-run``: what it prints, that it loads nothing, and how seconds and hints follow from what was counted and timed."""

import importlib
import io
import json

import pytest
import safetensors
import safetensors.torch
import tiny_runs
import torch
from rich.console import Console
from tiny_sd3 import tiny_sd3

from genrl.config import ConfigError
from genrl.planner import Part, Plan, Stage, Times, clock, plan
from genrl.planner.clock import measure
from genrl.planner.stages import Rehearsed
from genrl.planner.table import hints, sentences, show
from genrl.trainers import _launch, ac_flow
from genrl.trainers._launch import launch, storage_of

GIB = 2**30


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two blocks, of which only the configs are ever read."""
    folder = tiny_sd3(tmp_path_factory.mktemp("tiny"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2, "dual_attention_layers": []}))
    return str(folder)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("weights were read")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", refuse)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    monkeypatch.setattr(_launch, "load_rewards", refuse)
    monkeypatch.setattr(_launch, "fit", refuse)


def test_a_dry_run_prints_a_plan_and_loads_nothing(source, tmp_path, capsys, nothing_is_loaded, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    arguments = tiny_runs.arguments(tmp_path / "runs", model__source=source, actor__passes=1, critic__passes=1)
    launch(ac_flow.Config, ac_flow.build, [*arguments, "--dry-run"])
    printed = capsys.readouterr().out
    for words in ("predicted", "GiB", "optimizer states of actor", "sampling", "decoding", "critic", "seconds a round", "rewards and eval"):
        assert words in printed
    assert "does not fit" not in printed
    assert not (tmp_path / "runs").exists()


def test_the_flag_may_stand_anywhere_and_be_written_as_keys_are(source, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr("genrl.trainers._plan.dry_run", lambda settings, *_: planned.append(settings.model.source))
    launch(ac_flow.Config, ac_flow.build, ["--dry_run", *tiny_runs.arguments(tmp_path, model__source=source)])
    assert planned == [source]


def test_one_process_of_a_launcher_prints(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch(ac_flow.Config, ac_flow.build, [*tiny_runs.arguments(tmp_path, model__source=source), "--dry-run"])
    assert capsys.readouterr().out == ""


def test_what_is_wrong_with_the_settings_is_said_before(source, tmp_path, capsys):
    wrong = tiny_runs.arguments(tmp_path, model__source=source, model__tune="lora", speed__offload=["old"])
    with pytest.raises(SystemExit) as stopped:
        launch(ac_flow.Config, ac_flow.build, [*wrong, "--dry-run"])
    assert stopped.value.code == 1 and "leave speed.offload empty" in capsys.readouterr().err


def test_a_device_that_is_not_here_has_bytes_and_no_seconds(source, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = importlib.import_module("genrl.config").load(ac_flow.Config, tiny_runs.arguments(tmp_path, model__source=source))

    def make():
        return ac_flow.build(settings, _launch.load_model(settings.model, torch.device("cpu"), settings.speed))

    found = plan(make, chunk=8, rounds=6, device=torch.device("cuda"))
    assert found.seconds is None and found.capacity == 0 and found.peak.peak > found.resident > 0
    assert any("there is no such device here" in line for line in sentences(found))


def test_adapters_cannot_be_offloaded():
    settings = importlib.import_module("genrl.config").Model(tune="lora")
    with pytest.raises(ConfigError, match=r"model\.tune lora.*none to offload"):
        storage_of(settings, None, ("actor", "ref"), offload=["ref"])


def made(peak, kept=0, capacity=80, **changes):
    """A plan of SD3.5's size, sizes in GiB."""
    parts = {"actor": 10, "old": 10, "ref": 10, "optimizer states of actor": 20} | changes
    found = [Part(name, int(size * GIB)) for name, size in parts.items()]
    stages = (
        Stage("embedding the prompts", 0, 0, 40 * GIB),
        Stage("sampling", 16, 6, 55 * GIB, plain=10**15),
        Stage("decoding", 16, 6, 60 * GIB, plain=10**14),
        Stage("actor", 4, 24, int(peak * GIB), int(kept * GIB), 10**14, 10**14, steps=3, weights=int(2.5 * GIB), update=0),
    )
    return Plan("a GPU", capacity * GIB, tuple(found), stages, None, "not asked for")


def test_what_fits_needs_no_hint():
    assert hints(made(70)) == [] and "does not fit" not in " ".join(sentences(made(70)))
    assert "at most 70.00 GiB of 80.00, while actor" in sentences(made(70))[0]


def test_what_does_not_fit_is_told_what_to_change():
    found = made(90, kept=30)
    said = " ".join(hints(found))
    for words in (
        "half the minibatch of actor",
        "model.gradient_checkpointing",
        "adamw8bit saves 15.00 GiB",
        "speed.offload [old]",
        "[ref]",
    ):
        assert words in said
    assert "this does not fit" in sentences(found)[-1]
    # what has been done is not asked for again
    small = " ".join(hints(made(90, kept=1, **{"optimizer states of actor": 5, "old": 0, "ref": 0, "shared base": 20})))
    assert "minibatch" in small and not any(words in small for words in ("checkpointing", "adamw8bit", "offload"))
    assert "speed.vae slicing" in " ".join(hints(made(90, capacity=50))) and "sampling.chunk" in " ".join(hints(made(90, capacity=50)))
    assert "model.t5 false" in " ".join(hints(made(90, capacity=40)))


def test_the_tables_name_what_they_show():
    out = io.StringIO()
    show(made(90, kept=30), Console(file=out, width=160))
    for words in (
        "Memory that stays, predicted",
        "in all, through a round",
        "50.00",
        "A round, stage by stage, predicted",
        "90.00",
        "30.00",
    ):
        assert words in out.getvalue()


def test_seconds_of_a_round():
    times = Times({"actor": 0.5, "sampling": 2.0}, per_weight=1e-9, plain=1.0, learning=1.0)
    sampling, actor = Stage("sampling", 8, 3.0, 0), Stage("actor", 4, 10, 0, steps=2, weights=10**9, every=5)
    assert times.of(sampling) == 6.0
    assert times.of(actor) == pytest.approx((10 * 0.5 + 2 * 1.0) / 5)
    assert Plan("", 0, (), (sampling, actor), times).seconds == pytest.approx(6.0 + 1.4)


def test_what_was_cut_away_is_added_by_its_operations(monkeypatch):
    """A device that does 100 operations a second without gradient and 50 with, and has 2 seconds of overhead in an update."""

    def stages(factor):
        return (
            Stage("embedding", 0, 0, 0),
            Stage("sampling", 8, 1, 0, plain=1000 * factor),
            Stage("actor", 8, 1, 0, plain=200 * factor, learning=400 * factor, steps=1, weights=10, update=0),
            Stage("critic", 8, 1, 0, plain=200 * factor, learning=7, steps=1, weights=1, update=1),
        )

    small, large = (Rehearsed((), stages(factor), 0) for factor in (1, 8))
    monkeypatch.setattr(clock._Clock, "step_seconds", lambda self: 0.1)
    monkeypatch.setattr(clock._Clock, "affordable", lambda self, stage, seconds: stage.rows // 2)
    monkeypatch.setattr(clock._Clock, "call", lambda self, stage, rows: (stage, rows / stage.rows))

    def seconds(self, call):
        stage, share = call
        return share * (stage.plain / 100 + stage.learning / 50 + 0.1 * stage.weights)

    monkeypatch.setattr(clock._Clock, "seconds", seconds)
    found = measure(None, None, large, small, device=torch.device("cpu"))
    assert (found.plain, found.learning) == pytest.approx((100, 50))
    assert found.pieces == pytest.approx({"sampling": 80.0, "actor": 16.0 + 64.0, "critic": 16.0 + 7 / 50})
    # the same for a network that was not cut
    whole = measure(None, None, large, large, device=torch.device("cpu"))
    assert whole.pieces == pytest.approx(found.pieces)


def test_a_slow_device_plays_fewer_samples(monkeypatch):
    one = clock._Clock(None, None, torch.device("cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    stage = Stage("actor", 64, 1, 0, plain=10**10, learning=3 * 10**10)
    assert one.affordable(stage, seconds=10.0) == 64
    assert one.affordable(stage, seconds=1.0) == 32
    assert one.affordable(stage, seconds=1e-6) == 2
