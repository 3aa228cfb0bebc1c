"""What both adapters do alike: feature maps, and being found by what a folder says it is."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl

from genrl.chain import RenoiseChain
from genrl.losses.noise import Levels
from genrl.models import load_generator
from genrl.models.sd3 import SD3, ModelError
from genrl.models.sdxl import SDXL
from genrl.path import start
from genrl.policy import ACTOR, Copies, FlowPolicy

TINY = {SD3: tiny_sd3, SDXL: tiny_sdxl}
LATER = {SD3: lambda n: [*n.transformer_blocks[2:], n.norm_out, n.proj_out], SDXL: lambda n: [*n.up_blocks, n.conv_out]}
MIDDLE = {SD3: lambda n: n.transformer_blocks[1], SDXL: lambda n: n.mid_block}


@pytest.fixture(scope="module", params=[SD3, SDXL])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return str(TINY[kind](tmp_path_factory.mktemp("tiny")))


def inputs(model):
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return x, torch.tensor([0.3, 0.8]), model.encode(["a red circle", "a circle a red"])


def test_features_are_the_middle_of_the_network_and_nothing_later_runs(kind, folder):
    model = load_generator(folder)
    x, sigma, cond = inputs(model)
    seen, later = [], []
    handles = [MIDDLE[kind](model.network).register_forward_hook(lambda *a: seen.append(a[2]))]
    model.velocity(model.network, x, sigma, cond)
    whole = seen.pop()
    handles += [module.register_forward_hook(lambda *a: later.append(a)) for module in LATER[kind](model.network)]
    got = model.features(model.network, x, sigma, cond)
    for handle in handles:
        handle.remove()
    assert got.shape == (2, model.feature_width, 8, 8) and got.dtype == torch.float32
    assert len(seen) == 1 and later == []
    if kind is SD3:
        tokens = whole[1]  # [B, 8 * 8, C], row by row
        assert torch.equal(got[:, :, 2, 5], tokens[:, 2 * 8 + 5])
    else:
        assert torch.equal(got, whole)
    assert not any(module._forward_pre_hooks for module in model.network.modules()), "the hook is gone"
    assert torch.isfinite(model.velocity(model.network, x, sigma, cond)).all(), "and the network whole again"


def test_features_of_a_wide_picture_lie_as_the_picture(folder):
    model = load_generator(folder, height=32, width=48)
    assert model.features(model.network, *inputs(model)).shape == (2, model.feature_width, 8, 12)


def test_features_carry_the_same_gradient_with_and_without_checkpointing(kind, folder):
    grads = []
    for checkpointing in (False, True):
        model = load_generator(folder, gradient_checkpointing=checkpointing)
        x, sigma, cond = inputs(model)
        model.features(model.network, x, sigma, cond).square().mean().backward()
        first = next(model.network.parameters()).grad
        assert x.grad.abs().max() > 0 and first.abs().max() > 0
        assert all(p.grad is None for module in LATER[kind](model.network) for p in module.parameters())
        grads.append((x.grad, first))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6 * a.abs().max().item()) for a, b in zip(*grads, strict=True))


def test_an_error_inside_the_network_is_not_swallowed(kind, folder):
    model = load_generator(folder)
    x, sigma, cond = inputs(model)
    with pytest.raises(RuntimeError):
        model.features(model.network, x[:, :2], sigma, cond)
    assert not any(module._forward_pre_hooks for module in model.network.modules())


def test_a_folder_says_which_adapter_it_takes(kind, folder):
    model = load_generator(folder, t5=False, max_sequence_length=24)
    assert type(model) is kind


def test_what_no_adapter_takes(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        load_generator("./nowhere")
    with pytest.raises(ModelError, match=r"cannot load .* as a diffusers pipeline"):
        load_generator(str(tmp_path))
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"cannot load .* as a diffusers pipeline"):
        load_generator(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match=r"FluxPipeline.*StableDiffusion3Pipeline and StableDiffusionXLPipeline"):
        load_generator(str(tmp_path))


def test_a_hub_id_is_asked_for_its_index(folder, kind, monkeypatch):
    asked = []

    def download(*args, **options):
        asked.append((args, options))
        return f"{folder}/model_index.json"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(kind, "__init__", lambda self, source, **options: asked.append((source, options)))
    assert type(load_generator("owner/name", revision="main", t5=True)) is kind
    assert asked[0] == (("owner/name", "model_index.json"), {"revision": "main"})
    assert asked[1] == ("owner/name", {"revision": "main", **({"t5": True} if kind is SD3 else {})})


def test_the_package_is_light():
    code = "import sys, genrl.models; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"diffusers", "transformers", "peft", "torch"}.isdisjoint(loaded)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_an_exported_student_needs_plain_diffusers_and_a_number_of_steps(folder, steps, tmp_path):
    """The pipeline's own call, no grid passed, no guidance: the renoise chain with the same noise."""
    model = load_generator(folder)
    model.export(model.network, tmp_path, student_steps=steps)
    pipeline = type(model).pipeline_class.from_pretrained(tmp_path)
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    options = {"max_sequence_length": model.max_sequence_length} if hasattr(model, "max_sequence_length") else {}
    height, width = model.size
    # diffusers' SD3 pipeline draws a scheduler's noise from the global generator, the SDXL one from the one it is given
    torch.manual_seed(7)
    theirs = pipeline(
        "a red circle",
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0 if options else 0.0,
        latents=noise.clone(),
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
        **options,
    ).images
    repeated = torch.Generator().manual_seed(7)
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    chain, cond = RenoiseChain(model.student_sigmas(steps)), model.encode(["a red circle"])
    ours = start(noise, chain.sigmas[0])
    for step, sigma in enumerate(chain.sigmas[:-1]):
        law = chain.law(step)
        ours = law.mean(ours, policy.velocity(ours, sigma, cond).detach())
        if law.std:
            ours = ours + law.std * torch.randn(1, *model.latent_shape, generator=repeated)
    assert (theirs - ours).abs().max() < 5e-3 * theirs.abs().max()


def test_levels_rise_in_the_models_own_time(folder):
    model = load_generator(folder)
    assert all(a < b for a, b in itertools.pairwise(model.levels)) and 0 <= model.levels[0] < 0.05
    times = Levels(model.levels).time(torch.tensor(model.student_sigmas(4)[:-1]))
    assert times.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=2e-3), "a student's steps are even in it"
