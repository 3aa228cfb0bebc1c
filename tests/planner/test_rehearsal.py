"""A round without data: bytes in closed form, and what LoRA, checkpointing, minibatch, 8 bits and offloading do to them."""

import json
from functools import cache

import pytest
import tiny_runs
import torch
from tiny_sd3 import tiny_sd3

from genrl import config
from genrl.models import skeletons
from genrl.planner.ledger import Ledger
from genrl.planner.rehearsal import batch_of, rehearse
from genrl.trainers import ac_flow, dmd2, flash_dmd, latent_reward
from genrl.trainers._launch import load_model

MODULES = {"ac_flow": ac_flow, "flash_dmd": flash_dmd, "dmd2": dmd2, "latent_reward": latent_reward}
MIB = 2**20


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two blocks, of which only the configs are ever read."""
    folder = tiny_sd3(tmp_path_factory.mktemp("tiny"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2, "dual_attention_layers": []}))
    return str(folder)


def make(source, trainer="ac_flow", **changes):
    """Settings, algorithm and policy of a tiny run, in whatever way models are built now."""
    plain = {"actor__baseline": "group"} if trainer == "ac_flow" else {}
    given = {"model__source": source, "sampling__chunk": 8, **plain, **changes}
    settings = config.load(MODULES[trainer].Config, tiny_runs.arguments("", trainer=trainer, **given))
    return settings, *MODULES[trainer].build(settings, load_model(settings.model, torch.device("cpu"), settings.speed))


@cache
def rehearsed(source, trainer="ac_flow", device="cpu", world=1, **changes):
    with skeletons():
        settings, algorithm, policy = make(source, trainer, **changes)
        return rehearse(algorithm, policy, chunk=settings.sampling.chunk, rounds=settings.run.rounds, device=device, world=world)


def parts(found):
    return {part.name: part.bytes for part in found.parts}


def stage(found, name):
    return next(stage for stage in found.stages if stage.name == name)


def test_what_stays_in_closed_form(source):
    found = rehearsed(source, actor__baseline="critic")
    with skeletons():
        _, _, policy = make(source, actor__baseline="critic")
    weights = sum(p.numel() for p in policy.parameters("actor"))
    critic = sum(p.numel() for p in policy.networks["critic"].parameters())
    held = parts(found)
    assert found.weights == weights
    assert held["actor"] == held["old"] == held["ref"] == held["average"] == 4 * weights
    assert held["critic"] == 4 * critic and held["optimizer states of critic"] == 8 * critic
    assert held["optimizer states of actor"] == 8 * weights
    # 16 samples of 4 x 16 x 16 latents, 18 + 1 tokens 40 wide in float32; two rewards and a mask
    assert held["a round's latents and embeddings"] == pytest.approx(16 * 4 * (4 * 16 * 16 + 19 * 40), rel=0.01)
    assert {part.place for part in found.parts if part.name == "text encoders"} == {"before"}
    assert stage(found, "embedding the prompts").peak == pytest.approx(
        sum(size for name, size in held.items() if not name.startswith(("optimizer", "a round's")))
    )


def test_how_often_things_are_done(source):
    found = rehearsed(source, actor__passes=3, actor__minibatch=4, actor__accumulate=2)
    assert stage(found, "sampling").pieces == 2 and stage(found, "decoding").rows == 8
    assert (stage(found, "actor").pieces, stage(found, "actor").steps) == (12, 6)
    half = rehearsed(source, world=2, actor__passes=3, actor__minibatch=4, actor__accumulate=2)
    assert stage(half, "sampling").pieces == 1 and stage(half, "actor").pieces == 6


def test_roles_that_a_loss_looks_at_are_in_its_operations(source):
    """Implicit weighting asks old, W2 asks ref, both without gradient."""
    without, with_ref = (stage(rehearsed(source, actor__beta=beta), "actor") for beta in (0.0, 0.15))
    assert with_ref.plain == pytest.approx(2 * without.plain, rel=0.01) and with_ref.learning == without.learning
    # backward costs twice the forward, attention two and a half times
    assert 2.9 < without.learning / without.plain < 3.4


def test_sampling_costs_its_steps_and_twice_with_guidance(source):
    few, many = (stage(rehearsed(source, sampling__steps=n), "sampling").plain for n in (2, 6))
    assert many == 3 * few
    assert stage(rehearsed(source, sampling__steps=2, sampling__guidance=3.0), "sampling").plain == 2 * few


def test_lora_against_full(source):
    full = rehearsed(source)
    lora = rehearsed(source, model__tune="lora", model__lora__rank=4)
    with skeletons():
        _, _, policy = make(source, model__tune="lora", model__lora__rank=4)
    weights = sum(t.numel() for t in policy.tensors("actor").values())
    layers = [m for m in policy.model.network.modules() if hasattr(m, "lora_A")]
    assert weights == sum(4 * (m.in_features + m.out_features) for m in layers) > 0
    held = parts(lora)
    assert held["actor"] == held["old"] == 4 * weights and "ref" not in held
    assert held["optimizer states of actor"] == 8 * weights
    assert held["shared base"] == pytest.approx(parts(full)["actor"], rel=0.2)
    assert sum(held.values()) < sum(parts(full).values()) / 2


def test_checkpointing_keeps_less_and_computes_more(source):
    plain, again = (stage(rehearsed(source, model__gradient_checkpointing=on), "actor") for on in (False, True))
    assert again.kept < plain.kept / 4 and again.peak < plain.peak
    assert plain.learning < again.learning < 1.5 * plain.learning


def test_a_larger_minibatch_keeps_more(source):
    small, large = (stage(rehearsed(source, actor__minibatch=n), "actor") for n in (4, 16))
    assert large.kept == pytest.approx(4 * small.kept, rel=0.05) and large.peak > small.peak


def test_accumulated_gradients_are_there_meanwhile(source):
    one, two = (rehearsed(source, actor__minibatch=8, actor__accumulate=n) for n in (1, 2))
    gradients = 4 * one.weights
    assert stage(two, "actor").peak - stage(one, "actor").peak == pytest.approx(gradients, rel=0.3)


def test_eight_bits(source):
    full, eight = rehearsed(source), rehearsed(source, actor__optimizer="adamw8bit")
    saved = parts(full)["optimizer states of actor"] - parts(eight)["optimizer states of actor"]
    with skeletons():
        _, _, policy = make(source)
    large = sum(p.numel() for p in policy.parameters("actor") if p.numel() >= 4096)
    assert saved == pytest.approx(large * (6 - 8 / 256), rel=0.001) and saved > 0
    for name in ("sampling", "actor"):
        assert stage(full, name).peak - stage(eight, name).peak == saved


def test_an_offloaded_role_is_there_only_while_it_is_used(source):
    here, away = rehearsed(source), rehearsed(source, speed__offload=("ref", "average"))
    weights = 4 * here.weights
    assert {part.name for part in away.parts if part.place == "cpu"} == {"ref", "average"}
    assert stage(here, "sampling").peak - stage(away, "sampling").peak == pytest.approx(2 * weights, rel=0.01), "old draws"
    # to learn, the actor looks at ref, too, which visits and goes before the backward pass
    assert stage(here, "actor").peak - stage(away, "actor").peak == pytest.approx(2 * weights, rel=0.01)
    looked = "actor, on fresh samples"
    assert stage(here, looked).peak - stage(away, looked).peak == pytest.approx(weights, rel=0.05)


def test_half_the_bytes_under_autocast_on_cuda(source):
    plain = stage(rehearsed(source, device="cuda"), "actor")
    half = stage(rehearsed(source, device="cuda", model__precision__compute="bf16"), "actor")
    assert 0.5 * plain.kept < half.kept < 0.95 * plain.kept and half.learning == plain.learning


@pytest.mark.parametrize("trainer", ["flash_dmd", "dmd2", "latent_reward"])
def test_every_trainer_can_be_rehearsed(source, trainer):
    own = {"gan__weight": 0.0} if trainer == "flash_dmd" else {}
    own |= {"rl__start_round": 2, "rl__rewards": [{"name": "shapes_judge"}]} if trainer == "flash_dmd" else {}
    found = rehearsed_once(source, trainer, own)
    names = [stage.name for stage in found.stages]
    wanted = {"flash_dmd": ["fake", "actor", "preference"], "dmd2": ["fake", "actor"], "latent_reward": ["latent_reward"]}[trainer]
    assert [name for name in names if name in ("fake", "actor", "preference", "latent_reward")] == wanted
    assert all(stage.learning > 0 for stage in found.stages if stage.steps)
    if trainer == "flash_dmd":
        steps, forward = 4, stage(found, "sampling").plain / stage(found, "sampling").rows
        fake, actor, preference = (stage(found, name).plain / stage(found, name).rows for name in ("fake", "actor", "preference"))
        # a teacher with guidance, and the fake; the anchor, four candidates, and their pictures
        assert fake == 0 and actor == 3 * forward / steps and preference > 5 * forward / steps


def rehearsed_once(source, trainer, changes):
    with skeletons():
        settings, algorithm, policy = make(source, trainer, **changes)
        return rehearse(algorithm, policy, chunk=8, rounds=settings.run.rounds, device="cpu")


def test_an_update_that_ended_is_left_out(source):
    found = rehearsed_once(
        source,
        "flash_dmd",
        {"gan__weight": 0.0, "rl__start_round": 2, "rl__mode": "sequential", "rl__rewards": [{"name": "shapes_judge"}]},
    )
    assert [stage.name for stage in found.stages if stage.steps] == ["preference"]


@pytest.mark.parametrize("changes", [{}, {"model__tune": "lora", "model__gradient_checkpointing": True}], ids=["full", "lora"])
def test_the_peak_of_an_update_is_that_of_real_tensors(source, changes):
    predicted = stage(rehearsed(source, **changes), "actor")
    with skeletons("cpu"):
        _, algorithm, policy = make(source, **changes)
    update = algorithm.updates[-1]
    batch = batch_of(algorithm, policy, 16, torch.device("cpu"))
    with Ledger(place="cpu") as ledger, policy.only("actor"):
        networks = [policy.model.network, policy.model.vae, *policy.networks.values()]
        ledger.hold([t for network in networks for t in (*network.parameters(), *network.buffers())])
        ledger.hold([t for role in policy.storage.roles for t in policy.tensors(role).values()])
        ledger.hold([batch.x0, batch.cond.embeds, batch.cond.pooled, *batch.signal.values()])
        output = update.loss(policy, batch.index(torch.arange(8)))
        output.loss.backward()
    states = sum(part.bytes for part in rehearsed(source, **changes).parts if part.name.startswith("optimizer"))
    assert predicted.peak == pytest.approx(ledger.peak + states, rel=0.001)
    assert ledger.peak > MIB / 4
