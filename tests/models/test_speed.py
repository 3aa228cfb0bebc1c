"""What makes a model faster leaves its answers what they are."""

import copy
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models import attention_processor
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl

from genrl.config import ConfigError, Speed
from genrl.models import _attention, _embeddings
from genrl.models._diffusers import ModelError
from genrl.models._graphs import Graphs, adapter_of
from genrl.models.sd3 import SD3, lora_config
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, OLD, REF, Adapters, Copies, FlowPolicy
from genrl.types import Conditioning

TINY = {SD3: tiny_sd3, SDXL: tiny_sdxl}
PROMPTS = ["a red circle", "a circle a red"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[SD3, SDXL])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return str(TINY[kind](tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return str(tiny_sd3(tmp_path_factory.mktemp("sd3")))


def load(kind, folder, **options):
    own = {"max_sequence_length": 24, **options} if kind is SD3 else options
    return kind(folder, **own)


def velocity(model, network=None):
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return model.velocity(network or model.network, x, torch.tensor([0.3, 0.8]), model.encode(PROMPTS))


def gradient(model):
    model.network.requires_grad_(True)
    model.network.zero_grad()
    velocity(model).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])


def close(a, b, tolerance=1e-5):
    return torch.allclose(a, b, atol=tolerance * b.abs().max().item(), rtol=0)


# -- attention


@pytest.mark.parametrize("name", ["math", "flash"])
def test_a_named_attention_answers_the_same_and_is_the_one_that_runs(kind, folder, name):
    """Also in the second forward pass of gradient checkpointing, which backward starts."""
    plain, named = load(kind, folder), load(kind, folder, gradient_checkpointing=True, speed=Speed(attention=name))
    allowed = []
    first = next(module for module in named.network.modules() if isinstance(module, attention_processor.Attention))
    sdp = torch.backends.cuda
    first.to_q.register_forward_hook(lambda *_: allowed.append((sdp.math_sdp_enabled(), sdp.flash_sdp_enabled())))
    with torch.no_grad():
        assert close(velocity(named), velocity(plain))
    named.network.train()
    assert close(gradient(named), gradient(plain), 1e-4)
    assert allowed == [(name == "math", name == "flash")] * 3, "once without gradient, once with it, once again in backward"
    assert sdp.math_sdp_enabled() and sdp.flash_sdp_enabled(), "and nothing of it stays"
    assert (named.attention, named.chosen["attention"], plain.attention) == (name, name, "sdpa")


def test_an_attention_that_does_not_run_says_why_and_what_does(sd3, monkeypatch):
    with pytest.raises(ValueError, match=r"attention cudnn does not run on cpu in float32 with heads 8 wide: .+ do: sdpa, flash, math"):
        SD3(sd3, speed=Speed(attention="cudnn"))
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ValueError, match=r"attention xformers does not run on cpu.*xformers.*These do: sdpa"):
        SD3(sd3, speed=Speed(attention="xformers"))
    with pytest.raises(ValueError, match="no attention 'best'; there are auto, sdpa"):
        _attention.choose("best", CPU, torch.float32, heads=2, head_dim=8, tokens=4)


def test_an_attention_library_may_import_and_not_run(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nwith inputs")

    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=refuse))
    assert _attention.probe("xformers", CPU, torch.float32, 8) == "No operator found for `memory_efficient_attention_forward`"
    wrong = SimpleNamespace(memory_efficient_attention=lambda q, k, v: q * float("nan"))
    monkeypatch.setitem(sys.modules, "xformers.ops", wrong)
    assert "not finite" in (_attention.probe("xformers", CPU, torch.float32, 8) or "")
    assert _attention.probe("math", CPU, torch.bfloat16, 8) is None


def test_xformers_is_called_where_it_is_chosen(kind, folder, monkeypatch):
    """With a stand-in of the same signature: queries ``[B, L, d]`` or ``[B, L, heads, d]``."""
    calls = []

    def stand_in(q, k, v, attn_bias=None, op=None, scale=None):
        calls.append(q.shape)
        q, k, v = (x if x.ndim == 3 else x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
        return out if out.ndim == 3 else out.transpose(1, 2)

    ops = SimpleNamespace(memory_efficient_attention=stand_in)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops), raising=False)
    expected = velocity(load(kind, folder))
    model = load(kind, folder, speed=Speed(attention="xformers"))
    calls.clear()
    assert close(velocity(model), expected)
    everywhere = [module for module in model.network.modules() if isinstance(module, attention_processor.Attention)]
    assert len(calls) == len(everywhere) > 2


def test_auto_takes_the_fastest_that_runs(monkeypatch):
    assert _attention.choose("auto", CPU, torch.float32, heads=2, head_dim=8, tokens=4) == "sdpa"
    seconds = {"sdpa": 3.0, "flash": 2.0, "cudnn": 0.5, "efficient": 1.0, "math": 0.1, "xformers": 4.0}

    class Stopwatch:
        def __init__(self, stmt, globals):
            self.call = lambda: eval(stmt, globals)
            self.name = globals["name"]

        def timeit(self, number):
            self.call()
            return SimpleNamespace(median=seconds[self.name])

    ran = []
    monkeypatch.setattr(_attention, "Timer", Stopwatch)
    monkeypatch.setattr(_attention, "probe", lambda name, *_: "not here" if name == "cudnn" else None)
    monkeypatch.setattr(_attention, "attend", lambda name, q, k, v: ran.append(name) or q * k * v)
    assert _attention.fastest(CPU, torch.float32, 2, 8, 16) == "efficient", "math is no candidate, and cudnn does not run"
    assert set(ran) == {"sdpa", "flash", "efficient", "xformers"}
    monkeypatch.setattr(_attention, "fastest", lambda device, *_: f"fastest on {device.type}")
    assert _attention.choose("auto", torch.device("cuda"), torch.float32, heads=2, head_dim=8, tokens=4) == "fastest on cuda"


# -- kernels, autoencoder


def test_fused_kernels_answer_the_same_and_sdxl_says_it_has_none(kind, folder, caplog):
    plain, fused = load(kind, folder), load(kind, folder, speed=Speed(kernels=True))
    assert close(velocity(fused), velocity(plain)) and close(gradient(fused), gradient(plain), 1e-4)
    replaced = ["forward" in vars(module) for module in fused.network.modules()]
    assert any(replaced) == (kind is SD3)
    assert ("no fused kernels for the blocks of SDXL" in caplog.text) == (kind is SDXL)


def test_kernels_and_compilation_exclude_each_other():
    with pytest.raises(ConfigError, match="choose one"):
        Speed(kernels=True, compile=True)


def test_pictures_are_decoded_the_same_one_by_one_and_in_pieces(kind, folder, monkeypatch):
    plain, sliced, tiled = (load(kind, folder, speed=Speed(vae=how)) for how in ("none", "slicing", "tiling"))
    latents = torch.randn(3, *plain.latent_shape, generator=torch.Generator().manual_seed(2))
    expected, sizes, whole = plain.decode(latents), [], AutoencoderKL._decode
    monkeypatch.setattr(AutoencoderKL, "_decode", lambda self, z, *a, **k: sizes.append(len(z)) or whole(self, z, *a, **k))
    assert close(sliced.decode(latents), expected) and sizes == [1, 1, 1]
    assert close(tiled.decode(latents), expected), "a picture that fits into a tile is not cut"
    tiled.vae.tile_latent_min_size, tiled.vae.tile_sample_min_size = 8, 16
    pieces = tiled.decode(latents)
    assert pieces.shape == expected.shape and not torch.equal(pieces, expected)


# -- graphs


@pytest.fixture
def replays(monkeypatch):
    """CUDA graphs on the CPU: a replay does again what was recorded, into the same output. Returns the list of recordings."""
    recorded = []

    def record(self, call):
        output = call().clone()
        recorded.append(output)
        return output, lambda: output.copy_(call())

    monkeypatch.setattr(Graphs, "_record", record)
    return recorded


def with_graphs(model):
    model._graphs = Graphs(lambda network, x, sigma, *cond: model._answer(network, x, sigma, Conditioning(*cond)))
    return model


def test_graphs_are_replayed_for_each_shape_and_not_where_something_is_learned(kind, folder, replays):
    plain, model = load(kind, folder), with_graphs(load(kind, folder))
    x, sigma, cond = torch.randn(3, *plain.latent_shape), torch.tensor([0.2, 0.5, 0.9]), plain.encode([*PROMPTS, "a"])
    with torch.no_grad():
        answers = []
        for rows in (slice(0, 2), slice(0, 3), slice(1, 3), slice(0, 2)):
            answers.append(model.velocity(model.network, x[rows], sigma[rows], cond.index(rows)))
            assert torch.equal(answers[-1], plain.velocity(plain.network, x[rows], sigma[rows], cond.index(rows)))
        assert len(replays) == 2 and torch.equal(answers[0], answers[-1]) and not torch.equal(answers[0], answers[2])
        for network in (model.network, plain.network):
            next(network.parameters()).mul_(1.5)
        assert torch.equal(velocity(model), velocity(plain)), "weights that are changed in place are read where they lie"
    assert close(gradient(model), gradient(plain)) and len(replays) == 2


def test_graphs_know_roles_apart(sd3, replays):
    model = with_graphs(SD3(sd3, max_sequence_length=24))
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q"])))
    with torch.no_grad():
        for number, tensor in enumerate(policy.parameters(ACTOR)):
            tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    x, cond = torch.randn(2, *model.latent_shape), model.encode(PROMPTS)
    expected = {role: policy.velocity(x, 0.5, cond, role).detach() for role in (ACTOR, OLD, REF)}
    assert not torch.allclose(expected[ACTOR], expected[OLD], atol=1e-3)
    with torch.no_grad():
        for role in (ACTOR, OLD, REF, ACTOR, OLD):
            assert torch.equal(policy.velocity(x, 0.5, cond, role), expected[role]), role
    assert len(replays) == 3
    with policy.storage.use(OLD) as network:
        assert adapter_of(network) == (OLD,)


def test_graphs_are_given_up_for_weights_that_move(replays):
    network = torch.nn.Linear(2, 2)
    graphs, x = Graphs(lambda network, x: network(x)), torch.ones(1, 2)
    graphs(network, x)
    network.weight.data = network.weight.data.clone() * 2
    assert torch.equal(graphs(network, x), network(x)) and torch.equal(graphs(network, x), network(x))
    assert len(replays) == 1 and not graphs._kept, "each visit of offloaded weights would need a graph of its own"


def test_what_cannot_be_captured_runs_without_and_says_so_once(monkeypatch, caplog):
    def refuse(self, call):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(Graphs, "_record", refuse)
    graphs, network = Graphs(lambda network, x: network(x)), torch.nn.Linear(2, 2)
    for rows in (1, 2):
        assert torch.equal(graphs(network, torch.ones(rows, 2)), network(torch.ones(rows, 2)))
    assert caplog.text.count("runs without graphs: operation not permitted when stream is capturing") == 1


def test_few_graphs_are_kept(monkeypatch, replays):
    monkeypatch.setattr("genrl.models._graphs.MOST", 2)
    graphs, network = Graphs(lambda network, x: network(x)), torch.nn.Linear(2, 2)
    for rows in (1, 2, 3, 3, 1):
        graphs(network, torch.ones(rows, 2))
    assert len(replays) == 4 and len(graphs._kept) == 2


def test_graphs_need_cuda(sd3):
    with pytest.raises(ModelError, match=r"speed.cuda_graphs needs a CUDA device, and this model is on cpu"):
        SD3(sd3, speed=Speed(cuda_graphs=True))


# -- embeddings


@pytest.fixture
def own(kind, folder, tmp_path):
    """A copy of the pipeline that a test may change, and a cache that does not exist yet."""
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    return str(tmp_path / "model"), Speed(embeddings=str(tmp_path / "embeddings"))


def read_encoders(model):
    return model.pipeline.text_encoder is not None


def same(a, b):
    return torch.equal(a.embeds, b.embeds) and torch.equal(a.pooled, b.pooled)


def test_prompts_are_encoded_once(kind, own):
    source, speed = own
    expected = load(kind, source)
    first, again = load(kind, source, speed=speed), load(kind, source, speed=speed)
    for model, read in ((first, True), (again, False)):
        assert same(model.encode(PROMPTS), expected.encode(PROMPTS)) and same(model.unconditional, expected.unconditional)
        assert read_encoders(model) == read
        assert torch.equal(velocity(model), velocity(expected))
    assert not same(again.encode(PROMPTS[::-1]), expected.encode(PROMPTS)), "another order is another set"
    assert read_encoders(again)
    again.release_encoders()
    assert same(again.encode(PROMPTS), expected.encode(PROMPTS))
    with pytest.raises(ModelError, match="released"):
        again.encode(["a"])


def test_embeddings_of_another_model_or_option_are_not_taken(kind, own, tmp_path):
    source, speed = own
    load(kind, source, speed=speed).encode(PROMPTS)
    files = sorted(os.listdir(speed.embeddings))
    assert len(files) == 1 and not files[0].endswith(".tmp")

    def misses(**options):
        model = load(kind, source, speed=speed, **options)
        model.encode(PROMPTS)
        return read_encoders(model)

    assert not misses()
    if kind is SD3:
        assert misses(max_sequence_length=32) and misses(t5=False)
    weights = next(path for path in (tmp_path / "model" / "text_encoder").iterdir() if path.suffix == ".safetensors")
    os.utime(weights, ns=(1, 1))
    assert misses()


def test_a_broken_file_is_written_again(kind, own, caplog):
    source, speed = own
    expected = load(kind, source, speed=speed).encode(PROMPTS)
    (path,) = (os.path.join(speed.embeddings, name) for name in os.listdir(speed.embeddings))
    with open(path, "r+b") as file:
        file.truncate(100)
    assert same(load(kind, source, speed=speed).encode(PROMPTS), expected)
    assert "cannot be read" in caplog.text and "encoded again" in caplog.text
    again = load(kind, source, speed=speed)
    assert same(again.encode(PROMPTS), expected) and not read_encoders(again)


def test_a_model_of_the_hub_is_told_by_its_commit(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append((a, k)) or "/cache/snapshots/0a1b/model_index.json")
    assert _embeddings.fingerprint("owner/name", None, "main") == "0a1b"
    assert asked == [(("owner/name", "model_index.json"), {"revision": "main"})]


# -- length of T5


def test_a_cut_to_the_prompts_is_that_length(sd3):
    long = "a red circle a red circle a red"
    cut, named = SD3(sd3, max_sequence_length=0), SD3(sd3, max_sequence_length=16)
    assert len(cut.pipeline.tokenizer_3(long).input_ids) == 9
    prompts = [PROMPTS[0], long]
    assert same(cut.encode(prompts), named.encode(prompts)) and cut.chosen["max_sequence_length"] == 16
    assert same(cut.unconditional, named.unconditional) and same(cut.encode(["a"]), named.encode(["a"])), "the same for all that follows"
    assert cut.unconditional.embeds.shape[1:] == cut.embed_shape


def test_a_cut_wants_prompts_and_t5(sd3):
    with pytest.raises(ModelError, match="encode them before"):
        _ = SD3(sd3, max_sequence_length=0).unconditional
    with pytest.raises(ModelError, match="there is no T5: name the number"):
        SD3(sd3, max_sequence_length=0, t5=False)


def test_very_long_prompts_are_cut_where_diffusers_cuts_them(sd3):
    model = SD3(sd3, max_sequence_length=0)
    assert model._length_of(["a " * 600]) == 512 and model._length_of(["a"]) == 8


# -- wiring


def test_speed_may_change_when_a_run_goes_on_and_what_was_chosen_is_written_down(monkeypatch):
    from genrl import config
    from genrl.trainers import _launch
    from genrl.trainers.ac_flow import Config

    seen = {}
    monkeypatch.setattr(_launch, "fit", lambda *_, **options: seen.update(options))
    accelerator = SimpleNamespace(init_trackers=lambda *_: None, device="cpu", num_processes=1)
    policy = SimpleNamespace(model=SimpleNamespace(chosen={"attention": "math"}))
    settings = config.load(Config, ["--speed.attention", "auto", "--sampling.guidance_low", "0.2"])
    _launch.fit_task(settings, None, policy, None, accelerator)
    assert not any(key.startswith("speed.") for key in seen["settings"]) and seen["settings"]["sampling.guidance_low"] == 0.2
    assert json.loads(seen["notes"]["versions.json"])["attention"] == "math" and "attention: auto" in seen["notes"]["config.yaml"]


def test_a_trainers_settings_reach_the_model(kind, folder, monkeypatch):
    from genrl import config
    from genrl.trainers import _launch, _student

    options = config.Model(source=folder, tune="full", max_sequence_length=24)
    speed = Speed(attention="math", vae="slicing")
    model = _launch.load_model(options, CPU, speed)
    assert (model.attention, model.vae.use_slicing) == ("math", True)
    loaded = []
    monkeypatch.setattr(_student, "load_model", lambda *given: loaded.append(given) or _launch.load_model(*given))
    _student.storage(options, _student.Teacher(source=folder), model, (ACTOR, "fake", REF))
    assert loaded[0][1:] == (CPU, speed), "another teacher is as fast as the student"


def test_a_copy_of_a_model_keeps_what_was_set(sd3):
    model = SD3(sd3, max_sequence_length=24, speed=Speed(attention="math", kernels=True), gradient_checkpointing=True)
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(velocity(model, network), velocity(model), atol=1e-2)
    roles = Copies(model.network, (ACTOR, OLD))
    with roles.use(OLD) as old:
        assert torch.equal(velocity(model, old), velocity(model))
