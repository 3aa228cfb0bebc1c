"""Stable Diffusion 3 and 3.5, from any diffusers folder or hub id, with or without T5."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from torch import Tensor, nn

from genrl.types import Conditioning


class ModelError(ValueError):
    """A model that cannot be loaded or used; the message says what to do."""


def lora_config(rank: int, alpha: int, targets: Sequence[str]) -> LoraConfig:
    """Gaussian factor A, zero factor B: an adapter that starts as the base itself."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")


class SD3:
    """The model contract of ``genrl.policy.Generator`` over a ``StableDiffusion3Pipeline``.

    Args:
        source: folder or hub id; revision: of the hub.
        precision: ``bf16`` runs the networks under bfloat16 autocast; what this class takes and returns stays float32.
        frozen_dtype: dtype of the loaded weights; bfloat16 halves memory where only adapters are trained.
        height, width: pixels; 0 takes the model's own.
        t5: load the T5 encoder if the model has one. Without it SD3 sees zeros in its place.
        max_sequence_length: tokens of T5, or of those zeros (diffusers' default is 256).

    Raises:
        ModelError: nothing there, not an SD3 pipeline, or a size the model cannot draw.
    """

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        frozen_dtype: torch.dtype = torch.float32,
        height: int = 0,
        width: int = 0,
        t5: bool = True,
        max_sequence_length: int = 256,
        gradient_checkpointing: bool = False,
    ):
        self.source, self.revision = source, revision
        self.device = torch.device(device)
        self.precision = precision
        self.max_sequence_length = max_sequence_length
        self._skip = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        self.pipeline = self._load(frozen_dtype, **self._skip)
        self.pipeline.set_progress_bar_config(disable=True)
        self.network: nn.Module = self.pipeline.transformer.to(self.device)
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        self.vae = self.pipeline.vae.to(self.device, torch.float32).requires_grad_(False).eval()
        factor = self.pipeline.vae_scale_factor
        native = self.network.config.sample_size * factor
        height, width = height or native, width or native
        step = factor * self.network.config.patch_size
        if height % step or width % step:
            raise ModelError(f"{source!r} draws multiples of {step} pixels; got {height}x{width}")
        self.latent_shape: tuple[int, ...] = (self.pipeline.transformer.config.in_channels, height // factor, width // factor)
        self.pooled_width: int = self.pipeline.transformer.config.pooled_projection_dim
        self.unconditional = self.encode([""])

    def _load(self, dtype: torch.dtype, **parts) -> StableDiffusion3Pipeline:
        looks_like_path = self.source.startswith((".", "/", "~")) or self.source.count("/") != 1
        if looks_like_path and not Path(self.source).expanduser().is_dir():
            raise ModelError(f"no model folder {self.source!r}; give a diffusers folder, or a hub id like 'owner/name'")
        try:
            return StableDiffusion3Pipeline.from_pretrained(self.source, revision=self.revision, dtype=dtype, **parts)
        except (OSError, ValueError, TypeError) as error:
            absent = "" if Path(self.source).expanduser().is_dir() else " (there is no such folder, so it was looked up on the hub)"
            raise ModelError(f"cannot load {self.source!r} as a StableDiffusion3Pipeline{absent}: {error}") from error

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], chunk: int = 64) -> Conditioning:
        """Embeddings of prompts, on the CPU, as the pipeline itself computes them.

        Raises:
            ModelError: the encoders have been released.
        """
        encoders = [getattr(self.pipeline, f"text_encoder{suffix}") for suffix in ("", "_2", "_3")]
        if encoders[0] is None:
            raise ModelError("the text encoders have been released; encode every prompt before")
        for encoder in encoders:
            if encoder is not None:
                encoder.to(self.device)
        parts = []
        for start in range(0, len(prompts), chunk):
            texts = list(prompts[start : start + chunk])
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                texts, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
            )
            parts.append(Conditioning(embeds, pooled).to("cpu"))
        return Conditioning.cat(parts)

    def release_encoders(self) -> None:
        """Drop the text encoders; an export reads them again from the source."""
        self.pipeline.text_encoder = self.pipeline.text_encoder_2 = self.pipeline.text_encoder_3 = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Unguided velocity ``[B, C, H, W]`` float32 at ``x``, ``sigma [B]``: SD3's networks predict it at timestep 1000 sigma."""
        dtype = next(network.parameters()).dtype
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out = network(
                hidden_states=x.to(dtype),
                timestep=sigma * 1000,
                encoder_hidden_states=cond.embeds.to(dtype),
                pooled_projections=cond.pooled.to(dtype),
                return_dict=False,
            )[0]
        return out.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        config = self.vae.config
        images = self.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The scheduler's own grid for so many steps: ``steps + 1`` levels from 1 to 0."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        return tuple(scheduler.sigmas.tolist())

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write a whole pipeline that plain diffusers loads, the transformer's active adapter (if any) merged in."""
        network = copy.deepcopy(network)
        if getattr(network, "peft_config", None):
            network.fuse_lora(adapter_names=network.active_adapters())
            network.unload_lora()
        # the whole source again, T5 included even if it was not used: plain diffusers cannot load a pipeline without it
        pipeline = self._load(torch.float32, transformer=None)
        pipeline.register_modules(transformer=network.requires_grad_(False))
        pipeline.save_pretrained(folder)
