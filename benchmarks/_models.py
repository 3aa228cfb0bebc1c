"""Networks of published architectures with random weights, for speed: nothing is downloaded, and what is drawn is noise."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from genrl.models import load_generator
from genrl.models._diffusers import DiffusersModel
from genrl.models.sd3 import SD3
from genrl.types import Conditioning
from genrl.worlds.shapes import PIPELINE

MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
SD3_NETWORKS: dict[str, dict[str, Any]] = {
    "sd3_medium": MEDIUM | {"pos_embed_max_size": 192},
    "sd3.5_medium": MEDIUM | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
}
"""The ``transformer/config.json`` of the published models."""

TOKENS = 77 + 256
"""CLIP's and T5's, as the published pipelines have them."""


def sd3_transformer(name: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The network alone, with random weights."""
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            network = SD3Transformer2DModel(**SD3_NETWORKS[name])
        finally:
            torch.set_default_dtype(before)
    for parameter in network.parameters():
        if parameter.ndim == 1 and not parameter.is_meta and parameter.eq(0).all():
            nn.init.normal_(parameter, std=0.02)  # zero biases would hide an addition that is missing
    return network.requires_grad_(False).eval()


class RandomSD3(SD3):
    """``SD3`` around a pipeline that was never on a disk; prompts become random embeddings of the published length."""

    def __init__(self, name: str, **options: Any):
        self.name = name
        super().__init__(name, **options)

    def _load(self, dtype: torch.dtype, **parts: None) -> Any:
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            sample_size=1024,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        return StableDiffusion3Pipeline(
            transformer=sd3_transformer(self.name, self.device, dtype),  # pyright: ignore[reportArgumentType]
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")),  # pyright: ignore
        )

    def encode(self, prompts: Any, chunk: int = 64) -> Conditioning:
        generator = torch.Generator().manual_seed(len(prompts))
        embeds = torch.randn(len(prompts), TOKENS, MEDIUM["joint_attention_dim"], generator=generator)
        return Conditioning(embeds, torch.randn(len(prompts), MEDIUM["pooled_projection_dim"], generator=generator))


def load(name: str, device: torch.device | str, **options: Any) -> DiffusersModel:
    """``tiny``: the shapes world's pipeline, with its own weights; else a network of ``SD3_NETWORKS``."""
    if name == "tiny":
        return load_generator(str(PIPELINE), device=device, t5=False, max_sequence_length=1, **options)
    return RandomSD3(name, device=device, **options)


def forward(model: DiffusersModel, x: Tensor, sigma: float, cond: Conditioning) -> Tensor:
    """The bare network, nothing of ours around it: what is called the floor."""
    dtype = next(model.network.parameters()).dtype
    return model.network(
        hidden_states=x.to(dtype),
        timestep=torch.full((len(x),), 1000 * sigma, device=x.device),
        encoder_hidden_states=cond.embeds.to(dtype),
        pooled_projections=cond.pooled.to(dtype),
        return_dict=False,
    )[0]
