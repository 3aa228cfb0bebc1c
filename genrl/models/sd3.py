"""Stable Diffusion 3 and 3.5, from any diffusers folder or hub id, with or without T5."""

from __future__ import annotations

import copy
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn

from genrl import path
from genrl.chain import trailing_grid
from genrl.models._diffusers import DiffusersModel, ModelError, input_of, lora_config
from genrl.types import Conditioning

__all__ = ["SD3", "ModelError", "lora_config"]


class SD3(DiffusersModel):
    """The model contract of ``genrl.policy.Generator`` over a ``StableDiffusion3Pipeline``.

    Args:
        source, options: those of ``DiffusersModel``.
        t5: load the T5 encoder if the model has one. Without it SD3 sees zeros in its place.
        max_sequence_length: tokens of T5, or of those zeros (diffusers' default is 256).

    Raises:
        ModelError: nothing there, not an SD3 pipeline, or a size the model cannot draw.
    """

    pipeline_class = StableDiffusion3Pipeline
    part = "transformer"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def __init__(self, source: str, *, t5: bool = True, max_sequence_length: int = 256, **options: Any):
        self.max_sequence_length = max_sequence_length
        super().__init__(source, **options, **({} if t5 else {"text_encoder_3": None, "tokenizer_3": None}))

    @property
    def pooled_width(self) -> int:
        return self.network.config.pooled_projection_dim

    @property
    def feature_width(self) -> int:
        return self.network.inner_dim

    @property
    def feature_side(self) -> int:
        return min(self.latent_shape[1:]) // self.network.config.patch_size

    def _encode(self, texts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(embeds, pooled)

    def _answer(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning, **options: Any) -> Tensor:
        dtype = next(network.parameters()).dtype
        with self.autocast(x):
            return network(
                hidden_states=x.to(dtype),
                timestep=sigma * 1000,
                encoder_hidden_states=cond.embeds.to(dtype),
                pooled_projections=cond.pooled.to(dtype),
                return_dict=False,
                **options,
            )[0]

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Unguided velocity ``[B, C, H, W]`` at ``x``, ``sigma [B]``: SD3's networks predict it at timestep 1000 sigma."""
        return self._answer(network, x, sigma, cond)

    def features(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Image tokens after the middle joint block (index ``blocks // 2``) on the grid of patches: ``[B, feature_width, h, w]``."""
        blocks, patch = len(network.transformer_blocks), network.config.patch_size
        # the later blocks are skipped, not left by an exception: checkpointing wraps a block, and must see it end
        later = list(range(blocks // 2 + 1, blocks))
        tokens = input_of(network.norm_out, lambda: self._answer(network, x, sigma, cond, skip_layers=later))
        return tokens.float().transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(reversed(trailing_grid(1000, self.pipeline.scheduler.config.shift)))

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The scheduler's own grid for so many steps: ``steps + 1`` levels from 1 to 0."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        return tuple(scheduler.sigmas.tolist())

    def student_sigmas(self, steps: int) -> tuple[float, ...]:
        """Even steps down from 1 through the model's own shift, see ``genrl.chain.trailing_grid``."""
        return trailing_grid(steps, self.pipeline.scheduler.config.shift)

    def student_scheduler(self, steps: int) -> FlowMatchEulerDiscreteScheduler:
        """diffusers shifts an even grid down to its ``sigma_min`` and can then stretch it to another end; a student's grid is an even
        one without its end, shifted. Both are quotients linear in the step, so one shift and one end make them the same (ours).
        """
        shift, last = self.pipeline.scheduler.config.shift, self.student_sigmas(steps)[-2]
        if steps == 1:
            return FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
        # equal poles: of the student's grid at step n s / (s - 1), of diffusers' at (n - 1) even / (even - 1) / (1 - sigma_min)
        even, lowest = shift, 0.0
        for _ in range(20):
            ratio = (shift - 1) * (steps - 1) / (steps * shift * (1 - lowest))
            even = 1 + ratio / (1 - ratio)
            lowest = float(path.shift(1 / 1000, even))
        return FlowMatchEulerDiscreteScheduler(shift=even, shift_terminal=last, stochastic_sampling=True)
