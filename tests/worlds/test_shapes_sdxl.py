"""The SDXL of the shapes world: what is built is what plain diffusers and the adapter read, and it learns and draws."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from genrl import path
from genrl.chain import OdeChain
from genrl.data import load_prompts
from genrl.models import load_generator
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, Copies, FlowPolicy
from genrl.rollout import denoise
from genrl.worlds.shapes import PIPELINE, PIPELINE_SDXL, pretrain_sdxl
from genrl.worlds.shapes.captions import caption
from genrl.worlds.shapes.judge import judge
from genrl.worlds.shapes.scenes import pair_scene, random_scene, render

PROMPTS = ["a red circle left of a blue square", "two green rings"]
RNG = np.random.default_rng(21)
SCENES = [pair_scene(RNG) if i % 2 else random_scene(RNG) for i in range(16)]
IMAGES = torch.from_numpy(np.stack([render(scene) for scene in SCENES]))


@pytest.fixture(scope="module")
def untrained():
    """Noise on every parameter: trained parts are not silent, so what is told to the network must show in what it answers."""
    pipeline = pretrain_sdxl.new_pipeline(PIPELINE)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return pipeline


@pytest.fixture(scope="module")
def folder(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "pipeline_sdxl"
    pretrain_sdxl.save(untrained, folder)
    untrained.unet.float()
    untrained.vae.float()
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_generator(str(folder), t5=False, max_sequence_length=1)


@pytest.fixture(scope="module")
def plain(folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_folder_is_small_and_names_no_machine(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8e6
    assert {file.suffix for file in files} <= {".safetensors", ".json"}
    assert not [file for file in files if file.suffix == ".json" and "_name_or_path" in file.read_text()]
    same = "vae/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"
    assert all((folder / name).read_bytes() == (PIPELINE / name).read_bytes() for name in same), "git keeps these once"


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_plain_diffusers_and_the_adapter_draw_the_same(model, plain, guidance):
    assert isinstance(model, SDXL) and model.latent_shape == (16, 8, 8) and model.size == (64, 64) and model.pooled_width == 64
    z, levels = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)), model.sigmas(5)
    theirs, images = (
        plain(PROMPTS, guidance_scale=guidance, num_inference_steps=5, latents=z.clone(), output_type=kind).images
        for kind in ("latent", "pt")
    )
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    ours = denoise(policy, OdeChain(levels), path.start(z, levels[0]), model.encode(PROMPTS), role=ACTOR, guidance=guidance)
    assert (theirs - z).abs().max() > 0.1
    assert torch.allclose(ours, theirs, atol=5e-6 * theirs.abs().max().item()), (ours - theirs).abs().max()
    assert torch.allclose(model.decode(ours), images, atol=1e-4)


def test_prompts_reach_the_network_as_sdxl_tells_them(untrained, model):
    cond = model.encode([*PROMPTS, ""])
    assert cond.embeds.shape == (3, 18, 128) and cond.pooled.shape == (3, 64)
    tokens = untrained.tokenizer_2(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = untrained.text_encoder_2(tokens).text_embeds
    assert torch.allclose(cond.pooled[:2], pooled, atol=1e-6), "the second encoder's, not the first's"
    assert torch.equal(cond.embeds[2], model.unconditional.embeds[0]), "no prompt is the empty prompt, which training knows"


def test_decoded_encodings_are_near_the_scene(model, plain):
    latents = model.encode_images(IMAGES)
    assert 0.8 < latents.std() < 1.2 and latents.mean().abs() < 0.1
    theirs = plain(
        [""] * len(latents),
        num_inference_steps=1,
        guidance_scale=1.0,
        callback_on_step_end=lambda *_: {"latents": latents},
        output_type="pt",
    ).images
    # the autoencoder alone, whatever its scale and shift
    vae = AutoencoderKL.from_pretrained(PIPELINE / "vae")
    with torch.no_grad():
        alone = (vae.decode(vae.encode(IMAGES * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    assert (alone - IMAGES).abs().mean() < 0.03
    for images in (model.decode(latents), theirs):
        assert torch.allclose(images, alone, atol=1e-4)


def test_the_flows_velocity_is_that_of_the_networks_noise(model):
    x0 = model.encode_images(IMAGES[:2])
    noise, t = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), torch.tensor([300, 950])
    kept = model._scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    alpha, s = kept.sqrt(), (1 - kept).sqrt()
    x_t, cond = alpha * x0 + s * noise, model.encode(PROMPTS)
    told = {"text_embeds": cond.pooled, "time_ids": torch.tensor([pretrain_sdxl.TIME_IDS] * 2).float()}
    sigma = pretrain_sdxl.levels(model._scheduler)[t]
    with torch.no_grad():
        eps = model.network(x_t, t, encoder_hidden_states=cond.embeds, added_cond_kwargs=told).sample
        v = model.velocity(model.network, path.add_noise(x0, noise, sigma), sigma, cond)
    expected = eps - (x_t - s * eps) / alpha
    assert torch.allclose(v, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_half_of_the_timesteps_lie_where_places_are_decided(untrained):
    torch.manual_seed(0)
    sigmas = pretrain_sdxl.levels(untrained.scheduler)
    t = pretrain_sdxl.draw_timesteps(sigmas, 20_000, 0.5)
    assert t.min() < 5 and t.max() > 994
    assert (sigmas[t] >= pretrain_sdxl.HIGH).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_untrained_network_answers_its_input():
    x, t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([10, 990])
    told = {"text_embeds": torch.randn(2, 64), "time_ids": torch.tensor([pretrain_sdxl.TIME_IDS] * 2).float()}
    unet = pretrain_sdxl.new_unet()
    with torch.no_grad():
        answer = unet(x, t, encoder_hidden_states=torch.randn(2, 18, 128), added_cond_kwargs=told).sample
    scale = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    assert torch.allclose(answer, x / scale, atol=1e-3)


def test_training_lowers_the_loss():
    pipeline = pretrain_sdxl.new_pipeline(PIPELINE)
    rng = np.random.default_rng(0)
    texts = [caption(scene, rng, 0.0) for scene in SCENES]
    with torch.no_grad():
        x0 = pipeline.vae.encode(IMAGES * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise, t = torch.randn(x0.shape, generator=torch.Generator().manual_seed(4)), torch.linspace(20, 980, len(x0)).long()
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=5e-4)
    losses = []
    for _ in range(30):
        loss = pretrain_sdxl.denoising_loss(pipeline, texts, x0, t, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pipeline.unet.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    assert all(p.grad is None for part in (pipeline.text_encoder, pipeline.text_encoder_2) for p in part.parameters())


def test_the_base_draws():
    prompts = load_prompts("shapes/held_out")[::5][:60]
    pipeline = StableDiffusionXLPipeline.from_pretrained(PIPELINE_SDXL)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [p.text for p in prompts],
        num_inference_steps=10,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert 0.35 < np.mean([v.score for v in judge(images.numpy(), [p.metadata for p in prompts])]) < 0.75
