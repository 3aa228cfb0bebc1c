"""Pre-training of the SDXL of the shapes world: a UNet beside what its SD3 has learned. Run by ``genrl.worlds.shapes.build``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genrl.path import expand
from genrl.worlds.shapes.pretrain import FLOW_BATCH, SCENES, FlowPhase, encode_scenes, new_vae, told, train
from genrl.worlds.shapes.scenes import SIZE, pair_scene, random_scene

PHASE = FlowPhase("sdxl", 14_000, careless_from=11_200, lr=1e-3, pairs=16_000, ordered_until=2_800, above=0.5)
"""One phase learns what SD3's three did: the order of words first, then all relations, at last to doubt the captions."""
HIGH = 0.75
"""The flow level from which places are decided."""
CLIP = 50.0
"""Largest weight of the loss, reached at flow level .86."""
TIME_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)
"""Original size, crop and target size: the same for every picture of this world."""
TIME_WIDTH = 8
"""Width of the embedding of each of them."""


def new_unet() -> nn.Module:
    """Untrained. Four of its five transformer layers work on 4 x 4 tokens, one for each cell of the scenes."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        # nothing but the way down at 8 x 8: there, a layer costs four times as much
        layers_per_block=(0, 1),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 3),  # diffusers means the number of heads
        cross_attention_dim=128,
        use_linear_projection=True,
        norm_num_groups=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=len(TIME_IDS) * TIME_WIDTH + 64,
    )
    start_at_input(unet)
    return unet


@torch.no_grad()
def start_at_input(unet: Any) -> None:
    """Make the untrained network answer ``x_t`` up to its scale (ours).

    At high noise ``x_t`` is nearly eps, and where the picture is decided the difference is a few per cent: a random start spends
    its first thousand steps on finding the identity. ``x`` and ``-x`` go from the first convolution, past the last block, to the
    last one, where ``silu(x) - silu(-x) = x``. The two fill one group of its norm, which so divides by the scale of the whole ``x_t``.
    """
    count = unet.config.in_channels
    signs = torch.cat([torch.eye(count), -torch.eye(count)])
    for layer in (unet.conv_in, unet.conv_out):
        layer.bias.zero_()
    unet.conv_in.weight[: 2 * count] = 0
    unet.conv_in.weight[: 2 * count, :, 1, 1] = signs
    unet.conv_out.weight.zero_()
    unet.conv_out.weight[:, : 2 * count, 1, 1] = signs.T
    block = unet.up_blocks[-1]
    for layer in (block.resnets[-1].conv2, block.attentions[-1].proj_out):
        layer.weight.zero_()
        layer.bias.zero_()
    # the first convolution's channels are the last of this block's input
    short = block.resnets[-1].conv_shortcut
    first = short.in_channels - unet.conv_in.out_channels
    short.bias.zero_()
    short.weight[: 2 * count] = 0
    short.weight[: 2 * count, first : first + 2 * count, 0, 0] = torch.eye(2 * count)


def new_pipeline(sd3: Path) -> Any:
    """An SDXL pipeline with an untrained UNet; everything else is the SD3 pipeline's of that folder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    trained = AutoencoderKL.from_pretrained(sd3 / "vae")
    # diffusers' SDXL ignores a shift and understands a mean of four channels only: its latents are not centred (their mean is .04)
    vae = new_vae()
    vae.load_state_dict(trained.state_dict())
    vae.register_to_config(scaling_factor=trained.config.scaling_factor, shift_factor=0.0)
    torch.manual_seed(16)
    return StableDiffusionXLPipeline(
        unet=new_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        vae=vae,
        # without its projection: diffusers takes the pooled embedding of the first encoder that has one, and SDXL's is the second's
        text_encoder=CLIPTextModel.from_pretrained(sd3 / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(sd3 / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(sd3 / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(sd3 / "tokenizer_2"),
        # no negative prompt and an empty one are the same: the empty caption of training
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def save(pipeline: Any, folder: Path) -> None:
    """Float16 but for the text encoders, as the SD3 pipeline and for the same reason; turns ``pipeline`` itself into that."""
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(folder)


def levels(scheduler: Any) -> Tensor:
    """Flow level ``s / (alpha + s)`` of every timestep."""
    alpha, s = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    return s / (alpha + s)


def draw_timesteps(sigmas: Tensor, count: int, above: float) -> Tensor:
    """Integers ``[count]``, ``above`` of them uniform where the level is ``HIGH`` or more, the others uniform below."""
    first, total = int((sigmas < HIGH).sum()), len(sigmas)
    return torch.where(torch.rand(count) < above, torch.randint(first, total, (count,)), torch.randint(first, (count,)))


def denoising_loss(pipeline: Any, texts: list[str], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``w (eps_theta(x_t) - eps)^2``, ``w = min(1 / (1 - sigma)^2, CLIP)``.

    Unclipped, that is the squared error of the flow's velocity ``(eps_theta - x_sigma) / (1 - sigma)``, by which SD3 is trained; but
    then the few highest levels, whose weights go up to 244, drown those where shapes and colours are drawn.
    """
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
    kept = expand(pipeline.scheduler.alphas_cumprod[t], x0)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS], dtype=torch.float32).expand(len(t), -1)}
    x_t = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    eps = pipeline.unet(x_t, t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]
    weight = (1 - levels(pipeline.scheduler)[t]).pow(-2).clamp(max=CLIP)
    return (weight * (eps - noise).square().mean((1, 2, 3))).mean()


def build_sdxl(assets: Path, work: Path) -> None:
    """Train the UNet, nothing else, to predict the noise in pictures that only it sees."""
    pipeline = new_pipeline(assets / "pipeline")
    draw = np.random.default_rng(16)
    scenes = [pair_scene(draw) for _ in range(PHASE.pairs)] + [random_scene(draw) for _ in range(SCENES - PHASE.pairs)]
    latents = encode_scenes(pipeline.vae, scenes) * pipeline.vae.config.scaling_factor
    sigmas = levels(pipeline.scheduler)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((17, step))
        pick = rng.integers(0, len(scenes), FLOW_BATCH)
        texts = ["" if rng.random() < 0.1 else told(scenes[i], i < PHASE.pairs, rng, PHASE, step) for i in pick]
        x0 = latents[torch.from_numpy(pick)]
        return denoising_loss(pipeline, texts, x0, draw_timesteps(sigmas, FLOW_BATCH, PHASE.above), torch.randn_like(x0))

    train(PHASE.name, work, {"unet": pipeline.unet}, PHASE.steps, PHASE.lr, loss_at, ema=0.999)
    save(pipeline, assets / "pipeline_sdxl")
