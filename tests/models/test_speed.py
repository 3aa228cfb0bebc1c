"""What makes a model faster leaves its answers what they are."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models import attention_processor
from tiny_models import close, gradient, load, velocity

from genrl.config import ConfigError, Speed
from genrl.models import _attention
from genrl.models.sd3 import SD3
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, OLD, REF, Copies

CPU = torch.device("cpu")


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
