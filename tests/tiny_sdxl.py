"""A random SDXL pipeline of the published architecture, small enough to run anywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def tiny_sdxl(folder: Path, prediction: str = "epsilon", force_zeros: bool = True) -> Path:
    """Write it into ``folder`` and return it: 32 x 32 pixels, latents ``[4, 16, 16]``, SDXL's own betas and steps."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from genrl.worlds.shapes import PIPELINE

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=18,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.4,
    )
    encoders = CLIPTextModel(text(16)), CLIPTextModelWithProjection(text(24))
    for module in (unet, *encoders):
        for parameter in module.parameters():
            # trained weights are no longer small: what is told to the network must show in what it answers
            torch.nn.init.normal_(parameter, std=0.2)
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
            prediction_type=prediction,
        ),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
