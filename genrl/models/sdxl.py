"""Stable Diffusion XL, from any diffusers folder or hub id, seen as a rectified flow.

A variance-preserving model lives at ``x_t = alpha x0 + s eps``, ``alpha^2 + s^2 = 1``. With ``sigma = s / (alpha + s)`` the state
of the flow is ``x_sigma = x_t / (alpha + s)``; back again, with ``n = hypot(1 - sigma, sigma)``,

    alpha = (1 - sigma) / n,    s = sigma / n,    x_t = x_sigma / n,

and ``v = eps - x0``. Samplers write the same level as ``s / alpha = sigma / (1 - sigma)``. SDXL's last level (t = 999) is .936.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn

from genrl.models._diffusers import DiffusersModel
from genrl.models._probe import input_of
from genrl.models._source import ModelError
from genrl.path import expand
from genrl.types import Conditioning

PREDICTIONS = ("epsilon", "v_prediction")


def flow_level(ratio: Tensor) -> Tensor:
    """``sigma`` of samplers' levels ``s / alpha``."""
    return ratio / (1 + ratio)


class SDXL(DiffusersModel):
    """The model contract of ``genrl.policy.Generator`` over a ``StableDiffusionXLPipeline``.

    A level above ``sigma_max``, which the model does not know, is played as its last one: ``x_t`` as ever, ``alpha`` and ``s`` of t = 999.
    So pure noise at sigma 1 gets the answer that the model gives to pure noise.

    Args:
        source, options: those of ``DiffusersModel``.

    Raises:
        ModelError: nothing there, not an SDXL pipeline, one that does not predict eps or v over a table of betas, or a size it cannot draw.
    """

    pipeline_class = StableDiffusionXLPipeline
    part = "unet"
    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, source: str, **options: Any):
        super().__init__(source, **options)
        scheduler = self.pipeline.scheduler
        self.prediction = scheduler.config.get("prediction_type", "epsilon")
        if "beta_start" not in scheduler.config or self.prediction not in PREDICTIONS:
            raise ModelError(
                f"{source!r} has a {type(scheduler).__name__} with prediction_type {self.prediction!r}; "
                f"SDXL is understood with {' or '.join(PREDICTIONS)} over a table of betas"
            )
        euler = isinstance(scheduler, EulerDiscreteScheduler)
        self._scheduler: Any = scheduler if euler else EulerDiscreteScheduler.from_config(scheduler.config)
        kept = self._scheduler.alphas_cumprod
        table = flow_level(((1 - kept) / kept) ** 0.5)
        self._levels: tuple[float, ...] = tuple(table.tolist())
        self._table = table.to(self.device)
        self._time_ids = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=torch.float32, device=self.device)

    def _empty(self) -> Conditioning:
        empty = super()._empty()
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return Conditioning(torch.zeros_like(empty.embeds), torch.zeros_like(empty.pooled))

    @property
    def sigma_max(self) -> float:
        """The highest level the model knows, that of its last timestep."""
        return self._levels[-1]

    @property
    def pooled_width(self) -> int:
        # the rest of that vector is the embedding of the six time ids
        config = self.network.config
        return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    @property
    def tokens(self) -> int:
        # the first attention stands where latents have been halved once
        return self.latent_shape[1] * self.latent_shape[2] // 4

    @property
    def embed_shape(self) -> tuple[int, int]:
        return self.pipeline.tokenizer.model_max_length, self.network.config.cross_attention_dim

    @property
    def feature_width(self) -> int:
        return self.network.config.block_out_channels[-1]

    @property
    def feature_side(self) -> int:
        return min(self.latent_shape[1:]) // 2 ** (len(self.network.config.block_out_channels) - 1)

    def _encode(self, texts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        return Conditioning(embeds, pooled)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timesteps ``[B]`` of levels ``[B]``: exact at the table's, linear in ``sigma`` between them, and never beyond its ends.

        To 1/256 of a timestep, so that a level of the table is known again however its float32 was computed.
        """
        above = torch.searchsorted(self._table, sigma.contiguous()).clamp(1, len(self._table) - 1)
        low, high = self._table[above - 1], self._table[above]
        return above - 1 + ((sigma - low) / (high - low)).clamp(0, 1).mul(256).round() / 256

    def _answer(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """What the network says of ``x_t [B, C, H, W]``: eps or v of the variance-preserving process."""
        dtype = next(network.parameters()).dtype
        with self.formats(x):
            return network(
                x.to(dtype),
                self.timestep(sigma),
                encoder_hidden_states=cond.embeds.to(dtype),
                added_cond_kwargs={"text_embeds": cond.pooled.to(dtype), "time_ids": self._time_ids.expand(len(x), -1)},
                return_dict=False,
            )[0]

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Unguided velocity ``[B, C, H, W]`` float32 at ``x``, ``sigma [B]``.

        From eps: ``v = eps - x0 = (eps - x_sigma) / (1 - sigma)``, which amplifies by 16 at t = 999. From the model's own
        ``alpha eps - s x0``: ``eps = s x_t + alpha out`` and ``x0 = alpha x_t - s out``.
        """
        x_t = to_vp(x, sigma)
        out = self._replayed(network, x_t, sigma, cond).float()
        level = expand(sigma.clamp(max=self._table[-1]), x)
        n = torch.hypot(1 - level, level)
        if self.prediction == "epsilon":
            return (out - n * x_t) / (1 - level)
        alpha, s = (1 - level) / n, level / n
        return (s - alpha) * x_t + (s + alpha) * out

    def features(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The middle block's output ``[B, feature_width, h, w]``; the up blocks do not run."""
        later: Any = network.up_blocks
        return input_of(later[0], lambda: self._answer(network, to_vp(x, sigma), sigma, cond)).float()

    @property
    def levels(self) -> tuple[float, ...]:
        return self._levels

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The levels of the pipeline's ``EulerDiscreteScheduler`` (or of one built from the scheduler it has), the last one 0.

        Start from ``path.start(noise, sigmas[0])``.
        """
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps)
        return tuple(flow_level(scheduler.sigmas).tolist())

    def student_sigmas(self, steps: int) -> tuple[float, ...]:
        """DMD2's levels: timesteps evenly down from the last, for four steps 999, 749, 499, 249; then 0."""
        total = len(self._levels)
        return (*(self._levels[round(total * (1 - k / steps)) - 1] for k in range(steps)), 0.0)

    def student_scheduler(self, steps: int) -> LCMScheduler:
        """LCM's grid is every so many of ``original_inference_steps`` timesteps: as many as are wanted, and it is DMD2's."""
        found = LCMScheduler.from_config(self.pipeline.scheduler.config, original_inference_steps=steps)
        assert isinstance(found, LCMScheduler)
        return found


def to_vp(x: Tensor, sigma: Tensor) -> Tensor:
    """``x_t = x_sigma / hypot(1 - sigma, sigma)`` for ``x [B, ...]``, ``sigma [B]``."""
    s = expand(sigma, x)
    return x / torch.hypot(1 - s, s)
