"""A random LRM-XL of the published layout: an SDXL UNet of three down blocks, both text encoders, and a head."""

from __future__ import annotations

from pathlib import Path

import torch

CHANNELS = (8, 16, 24)
WIDTH, PROJECTION, SCALE = sum(CHANNELS) + CHANNELS[-1], 20, 2.6592


def tiny_lrm(folder: Path, base: Path) -> Path:
    """Write it into ``folder``, as the authors' code saves it, and return it; its encoders are not those of ``base``, a tiny SDXL."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=16 + 24,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + PROJECTION,
        ),
        "text_encoder": CLIPTextModel.from_pretrained(base / "text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2"),
    }
    for name, part in parts.items():
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        part.save_pretrained(folder / name)
    state = {"visual_projection": torch.nn.Linear(WIDTH, PROJECTION, bias=False).state_dict(), "logit_scale": SCALE}
    torch.save(state, folder / "state_dict.pt")
    return folder
