"""Distillation end to end: what it leaves behind, every part learning, exact resume, LoRA."""

import json

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_sd3 import tiny_sd3

from genrl import config
from genrl.checkpoint import latest
from genrl.trainers import _student as student
from genrl.trainers import flash_dmd
from genrl.trainers._launch import load_model
from genrl.worlds.shapes import PIPELINE

RL = {"rl__start_round": 3, "rl__passes": 2, "rl__rewards": '[{"name": "shapes_proxy"}]'}


def tensors(folder):
    return load_file(latest(folder / "tiny" / "checkpoints") / "tensors.safetensors")


def roles(found):
    return {name.split("/")[1] for name in found if name.startswith("role/")}


@pytest.fixture(scope="module")
def flash(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flash")
    tiny_runs.run_here(tiny_runs.arguments(folder, trainer="flash_dmd", **RL))
    return folder


def test_every_part_of_flash_dmd_learns(flash):
    lines = tiny_runs.metrics(flash)
    assert [line["round"] for line in lines] == list(range(1, 7))
    for name in ("fake", "discriminator", "actor"):
        assert all(line[f"grad_norm/{name}"] > 0 for line in lines), name
    assert ["loss/preference" in line for line in lines] == [False] * 3 + [True] * 3
    assert all(line["latent_gradient/matching"] > 0 and line["latent_gradient/adversarial"] > 0 for line in lines)
    assert {line["reward_calls"] for line in lines} == {0}, "nothing is scored in training"
    found = tensors(flash)
    assert roles(found) == {"actor", "fake", "discriminator", "anchor", "average"}
    actor, anchor = ({n.split("/", 2)[2]: t for n, t in found.items() if n.startswith(f"role/{role}/")} for role in ("actor", "anchor"))
    assert any((actor[name] != anchor[name]).any() for name in actor), "the anchor is the student of round 3"
    assert not any("backbone" in name for name in found)
    summary = json.loads((flash / "tiny" / "summary.json").read_text())
    assert summary["judge"] == "shapes_judge" and summary["proxy"] == "shapes_proxy" and summary["trained"] == ["shapes_proxy"]


def test_a_stopped_run_goes_on_bit_for_bit(flash, tmp_path):
    short, whole = (tiny_runs.arguments(tmp_path, trainer="flash_dmd", **RL, run__rounds=n) for n in (4, 6))
    tiny_runs.run_here(short)
    tiny_runs.run_here(whole)
    one, other = tensors(flash), tensors(tmp_path)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (flash / "tiny" / "metrics.jsonl").read_bytes() == (tmp_path / "tiny" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_latent_reward_is_trained_and_then_ranks(tmp_path):
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer="latent_reward"))
    lines = tiny_runs.metrics(tmp_path)
    assert all(line["grad_norm/latent_reward"] > 0 and 0 <= line["latent_reward/ranked_right"] <= 1 for line in lines)
    head = tmp_path / "tiny" / "latent_reward.safetensors"
    changes = {**RL, "rl__rewards": "[]", "rl__latent_reward": str(head), "run__rounds": 4}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, "ranked", trainer="flash_dmd", **changes))
    assert tiny_runs.metrics(tmp_path, "ranked")[-1]["preference/margin"] >= 0


@pytest.mark.slow
def test_sequential_reinforcement_ends_the_distillation(tmp_path):
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer="flash_dmd", **RL, rl__mode="sequential"))
    lines = tiny_runs.metrics(tmp_path)
    assert ["loss/actor" in line for line in lines] == ["loss/fake" in line for line in lines] == [True] * 3 + [False] * 3
    assert ["loss/preference" in line for line in lines] == [False] * 3 + [True] * 3


def test_dmd2(tmp_path):
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer="dmd2"))
    lines = tiny_runs.metrics(tmp_path)
    assert ["loss/actor" in line for line in lines] == [True, False] * 3
    assert all(line["loss/fake"] > 0 and 0 <= line["discriminator/accuracy"] <= 1 for line in lines)
    assert {"actor", "fake", "discriminator"} <= roles(tensors(tmp_path))


def test_lora_keeps_one_base_for_teacher_student_and_fake(tmp_path):
    changes = {"model__tune": "lora", "model__gradient_checkpointing": True, "run__rounds": 3, **RL, "rl__start_round": 2}
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer="flash_dmd", **changes))
    found = tensors(tmp_path)
    assert roles(found) >= {"actor", "fake", "anchor"} and all("lora" in n for n in found if n.startswith(("role/actor", "role/fake")))
    assert all(line["grad_norm/fake"] > 0 and line["grad_norm/actor"] > 0 for line in tiny_runs.metrics(tmp_path))


@pytest.mark.parametrize(
    ("trainer", "change", "why"),
    [
        ("flash_dmd", {"sampling__sigmas": "[1.0, 0.5, 0.7, 0.3]"}, "fall strictly"),
        ("flash_dmd", {"sampling__sigmas": "[1.0, 0.5]"}, "2 levels for 4 steps"),
        ("flash_dmd", {"sampling__steps": 0}, "at least one step"),
        ("flash_dmd", {"gan__backbone": "sam", "gan__source": "/no/such/sam"}, "/no/such/sam"),
        ("flash_dmd", {"gan__images": -1}, "gan.images is -1"),
        ("flash_dmd", {"data__real": "/no/pictures"}, "/no/pictures"),
        ("flash_dmd", {"rewards__judges": "[]"}, "rewards.judges is empty"),
        ("flash_dmd", {"matching__low": 0}, "re-noise times"),
        ("flash_dmd", {"rl__rewards": "[]"}, "name rl.rewards or an rl.latent_reward"),
        ("flash_dmd", {"teacher__source": "/no/teacher"}, "/no/teacher"),
        ("flash_dmd", {"teacher__source": "shapes", "model__tune": "lora"}, "share one base"),
        ("flash_dmd", {"matching__renoise": "between", "fake__sigma": "logit_normal"}, "would not be read"),
        ("dmd2", {"model__tune": "lora", "model__gradient_checkpointing": True}, "gan.student_weight 0"),
    ],
)
def test_what_cannot_be_distilled_is_said(trainer, change, why, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer=trainer, **change))
    message = capsys.readouterr().err
    assert why in message and message.count("error:") == 1
    assert not list((tmp_path / "tiny").glob("*.jsonl"))


def test_another_teacher_of_the_same_latents(tmp_path, capsys):
    """The student starts from one model and follows another; one of other latents is refused before anything is loaded."""
    tiny_runs.run_here(tiny_runs.arguments(tmp_path, trainer="flash_dmd", teacher__source=str(PIPELINE), run__rounds=1))
    assert tiny_runs.metrics(tmp_path)[0]["loss/actor"] > 0
    other = tiny_sd3(tmp_path / "other")
    with pytest.raises(SystemExit):
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, "other", trainer="flash_dmd", teacher__source=str(other)))
    message = capsys.readouterr().err
    assert "do not take the same latents and prompts: in_channels: 16 and 4" in message


def test_what_stage_two_ranks_by_is_known_to_the_report():
    judges = config.Judges(judges=[config.Term("shapes_judge", label="truth"), config.Term("shapes_proxy")])
    ranking = [config.Term("shapes_judge", label="ranking"), config.Term("brightness.py")]
    assert flash_dmd.asked(flash_dmd.Rl(start_round=3, rewards=ranking), judges) == ("truth", "brightness.py")
    assert flash_dmd.asked(flash_dmd.Rl(start_round=3, latent_reward="head.safetensors"), judges) == ("head.safetensors",)
    assert flash_dmd.asked(flash_dmd.Rl(rewards=ranking), judges) == ()


def test_the_gan_may_share_its_steps_with_distribution_matching():
    model = load_model(config.Model(source="shapes", t5=False, max_sequence_length=1), torch.device("cpu"))
    for shared, expected in ((False, (0, 1, 2)), (True, (0, 1, 2, 3))):
        settings = config.load(flash_dmd.Config, ["--config", "flash_dmd/shapes.yaml", f"--gan.shared={shared}", "--rl.start_round=0"])
        algorithm, _ = flash_dmd.build(settings, model)
        losses = {update.name: update.loss for update in algorithm.updates}
        (matching, _), (gan, _) = losses["actor"].parts
        assert matching.steps.chosen == losses["fake"].steps.chosen == expected
        assert gan.steps.chosen == losses["discriminator"].steps.chosen == (3,)


def test_student_and_fake_halve_their_learning_rates_together():
    settings = student.Learning(lr=2.0, lr_halving_rounds=3)
    updates = student.actor_update(settings, None), student.fake_update(student.Fake(lr=4.0), settings, None)
    assert [update.lr_at(1, 6) for update in updates] == [0.5, 1.0]
