"""Short cuts of the SD3 adapter: near the plain network, undone afterwards, and closed to learning."""

from contextlib import contextmanager

import pytest
import torch
from tiny_sd3 import tiny_sd3

from genrl.chain import OdeChain, SdeChain
from genrl.models import _fp8
from genrl.models.sd3 import SD3, lora_config
from genrl.policy import ACTOR, OLD, REF, Adapters, Copies, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import rollout
from genrl.types import Prompt
from genrl.worlds.shapes import PIPELINES

PROMPTS = ["a red circle", "a circle a red", "red"]
ROLES = (ACTOR, OLD, REF)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd3(tmp_path_factory.mktemp("sd3"))


def policy_of(folder, storage="copies", **options):
    """A policy whose old role differs from its reference."""
    model = SD3(str(folder), max_sequence_length=24, **options)
    if storage == "copies":
        policy = FlowPolicy(model, Copies(model.network, ROLES))
    else:
        policy = FlowPolicy(model, Adapters(model.network, ROLES, lora_config(4, 8, ["to_q", "to_v", "to_out.0"])))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in policy.tensors(OLD).values():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=draw))
    return policy


@pytest.fixture(scope="module", params=["copies", "lora"])
def policy(request, folder):
    return policy_of(folder, request.param)


def draw(policy, samples=(0, 1, 2), steps=8, guidance=1.0, chunk=8, chain=None, **options):
    cond = policy.model.encode([PROMPTS[s % 3] for s in samples])
    chain = chain or OdeChain(policy.model.sigmas(steps))
    shared = {"role": OLD, "key": (0, 0), "samples": list(samples), "groups": list(samples), "guidance": guidance, "chunk": chunk}
    return rollout(policy, chain, [Prompt("")] * len(samples), cond, **shared, **options)


@contextmanager
def cheap(policy, **options):
    with policy.storage.use(OLD) as network, policy.model.cheap(network, **options):
        yield


def count_blocks(policy, role=OLD):
    """Rows that each block was given, forward by forward."""
    seen = []
    with policy.storage.use(role) as network:
        handles = [
            block.register_forward_pre_hook(
                lambda _, args, kwargs, place=place: seen.append((place, len(kwargs["hidden_states"]))), with_kwargs=True
            )
            for place, block in enumerate(network.transformer_blocks)
        ]
    return seen, handles


def rows_of(seen, place):
    return sum(rows for own, rows in seen if own == place)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_a_cache_that_tolerates_nothing_changes_nothing(policy, guidance):
    """A threshold that no change is below runs every block; so does none at all."""
    plain = draw(policy, guidance=guidance).x0
    for threshold in (0.0, 1e-9):
        with cheap(policy, cache=threshold):
            assert torch.equal(draw(policy, guidance=guidance).x0, plain)
    assert torch.equal(draw(policy, guidance=guidance).x0, plain)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_a_cache_spares_blocks_and_stays_near(policy, guidance):
    plain = draw(policy, guidance=guidance, steps=20).x0
    seen, handles = count_blocks(policy)
    with cheap(policy, cache=0.8):
        rough = draw(policy, guidance=guidance, steps=20).x0
    for handle in handles:
        handle.remove()
    first, others = rows_of(seen, 0), rows_of(seen, 1)
    assert first == 20 * 3 * (1 if guidance == 1 else 2) and rows_of(seen, 2) == others
    assert 0.1 * first < others < 0.9 * first
    error = (rough - plain).norm() / plain.norm()
    assert 1e-4 < error < 0.5


def test_what_is_cached_is_what_the_later_blocks_added(folder):
    """A threshold that everything is below: after the first step the later blocks add what they added there."""
    policy = policy_of(folder)
    model, cond = policy.model, policy.model.encode(PROMPTS[:2])
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    states = []
    with torch.no_grad(), policy.storage.use(OLD) as network:
        network.norm_out.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        one, other = torch.full((2,), 0.9), torch.full((2,), 0.8)
        blocks = network.transformer_blocks
        firsts = []
        handle = blocks[0].register_forward_hook(lambda _, args, output: firsts.append(output[1]))
        with model.cheap(network, cache=1e9):
            model.velocity(network, x, one, cond)
            model.velocity(network, 0.9 * x, other, cond)
        handle.remove()
    assert torch.allclose(states[1] - firsts[1], states[0] - firsts[0], atol=1e-4)
    assert (states[1] - states[0]).abs().max() > 1e-2


def test_an_image_depends_on_no_other(policy):
    """Neither on its chunk nor on what was drawn before: rows decide for themselves, and every chain begins afresh."""
    plain = draw(policy).x0
    with cheap(policy, cache=0.8):
        whole = draw(policy).x0
        again = draw(policy).x0
        parts = draw(policy, chunk=2).x0
        assert not torch.equal(whole, plain)
        alone = draw(policy, samples=(1,)).x0
        draw(policy, samples=(2, 0, 1), steps=3)
        after = draw(policy).x0
    assert torch.equal(whole, again) and torch.equal(whole, after)
    assert torch.allclose(whole, parts, atol=1e-4) and torch.allclose(whole[1:2], alone, atol=1e-4)


def test_nothing_is_learned_through_short_cuts(policy):
    x, cond = torch.zeros(1, *policy.model.latent_shape), policy.model.encode(PROMPTS[:1])
    for options in ({"cache": 0.1}, {"fp8": True}):
        with cheap(policy, **options):
            assert policy.model.is_cheap
            with pytest.raises(RuntimeError, match="short cuts"):
                policy.velocity(x, 0.5, cond, OLD)
            with pytest.raises(RuntimeError, match="short cuts"), torch.no_grad():
                policy.features(x, 0.5, cond, OLD)
            with pytest.raises(ValueError, match=r"do not record \['states', 'log_probs'\]"):
                draw(policy, chain=SdeChain(policy.model.sigmas(3)), record=("states", "log_probs"))
            with pytest.raises(RuntimeError, match="already"), cheap(policy, cache=0.1):
                pass
        assert not policy.model.is_cheap
    assert policy.velocity(x, 0.5, cond, ACTOR).requires_grad


def test_short_cuts_are_undone_whatever_happens(policy):
    with policy.storage.use(OLD) as network:
        before = dict(network.named_modules())
        with pytest.raises(KeyError), policy.model.cheap(network, fp8=True, cache=0.1):
            assert dict(network.named_modules()) != before
            raise KeyError
        assert dict(network.named_modules()) == before and list(before) == [name for name, _ in network.named_modules()]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_float8 = pytest.mark.skipif(not _fp8.available(DEVICE), reason="this device has no float8 products")


@needs_float8
def test_rows_are_scaled_to_eight_bits():
    """Three bits behind the leading one: a weight is within 1/16 of the truth, and the scale of a row does not matter."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=draw).to(DEVICE) for shape in ((32, 48), (32,), (5, 3, 48)))
    layer = _fp8.Fp8Linear(weight, bias, torch.float32)
    stored = layer.weight.float() * layer.scale.t()
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert ((stored - weight).abs() <= weight.abs() / 16 * 1.001 + layer.scale.t() * 2**-10).all()
    exact, answer = x @ weight.t(), layer(x) - bias
    assert answer.shape == (5, 3, 32) and answer.dtype == torch.float32
    assert 0.005 < (answer - exact).norm() / exact.norm() < 0.05
    without = _fp8.Fp8Linear(weight, None, torch.float32)
    small, large = without(torch.stack([x[0], 1e4 * x[0]]))
    assert torch.allclose(large / 1e4, small, atol=0.02 * small.abs().max().item())


@needs_float8
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("storage", ["copies", "lora"])
def test_eight_bits_stay_near_and_leave_no_trace(folder, storage, compute):
    policy = policy_of(folder, storage, precision=Precision(compute=compute))
    x = torch.randn(3, *policy.model.latent_shape, generator=torch.Generator().manual_seed(1))
    cond = policy.model.encode(PROMPTS)
    with torch.no_grad():
        plain = policy.velocity(x, 0.6, cond, OLD)
        with cheap(policy, fp8=True):
            rough = policy.velocity(x, 0.6, cond, OLD)
        assert torch.equal(policy.velocity(x, 0.6, cond, OLD), plain)
        base = policy.velocity(x, 0.6, cond, REF)
    error, moved = (rough - plain).norm() / plain.norm(), (base - plain).norm() / plain.norm()
    assert 1e-3 < error < 0.08, "random weights of sixteen columns: nothing averages out"
    assert moved > 2 * error, "the role's own weights were quantised, not the reference's"


@needs_float8
@pytest.mark.parametrize("sigma", [0.95, 0.8, 0.5, 0.2])
def test_eight_bits_are_a_few_percent_of_a_trained_velocity(sigma):
    model = SD3(str(PIPELINES["shapes"]), t5=False, max_sequence_length=1, device=DEVICE)
    x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    cond = model.encode(["a red circle left of a blue square", "two green stars", "a blue circle", ""]).to(DEVICE)
    level = torch.full((4,), sigma, device=DEVICE)
    with torch.no_grad():
        plain = model.velocity(model.network, x, level, cond)
        with model.cheap(model.network, fp8=True):
            rough = model.velocity(model.network, x, level, cond)
    assert 1e-3 < (rough - plain).norm() / plain.norm() < 0.05


@needs_float8
def test_a_float8_layer_compiles_in_one_piece():
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=draw).to(DEVICE) for shape in ((32, 16), (32,), (4, 5, 16)))
    layer = _fp8.Fp8Linear(weight, bias, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


@needs_float8
def test_eight_bits_follow_an_update(folder):
    """Weights are quantised on entry, so the next preview sees what was learned in between."""
    policy = policy_of(folder, "lora")
    x, cond = torch.randn(1, *policy.model.latent_shape, generator=torch.Generator().manual_seed(1)), policy.model.encode(PROMPTS[:1])
    answers = []
    for _ in range(2):
        with torch.no_grad():
            plain = policy.velocity(x, 0.6, cond, OLD)
            with cheap(policy, fp8=True):
                answers.append((plain, policy.velocity(x, 0.6, cond, OLD)))
            for tensor in policy.tensors(OLD).values():
                tensor.mul_(3.0)
    (before, rough), (after, rough_after) = answers
    moved = (after - before).norm()
    assert moved > 4 * (rough - before).norm() and moved > 4 * (rough_after - after).norm()


def test_without_float8_products_previews_keep_their_format(folder, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("no float8 here\nat all")

    policy = policy_of(folder)
    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    _fp8.available.cache_clear()
    plain = draw(policy).x0
    for _ in range(2):
        with cheap(policy, fp8=True):
            assert torch.equal(draw(policy).x0, plain)
    _fp8.available.cache_clear()
    assert [record.message for record in caplog.records if "float8" in record.message] == [
        "no float8 matrix products on cpu (no float8 here): previews keep their usual format"
    ]
