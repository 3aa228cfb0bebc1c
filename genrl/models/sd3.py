"""Stable Diffusion 3 and 3.5, from any diffusers folder or hub id, with or without T5."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn

from genrl import path
from genrl.chain import trailing_grid
from genrl.models._cheap import Shortcuts, caching
from genrl.models._diffusers import DiffusersModel
from genrl.models._fp8 import fp8 as in_fp8
from genrl.models._fused import fuse
from genrl.models._lora import lora_config
from genrl.models._probe import input_of
from genrl.models._source import ModelError
from genrl.types import Conditioning

__all__ = ["SD3", "ModelError", "lora_config"]

USUAL_LENGTH = 256
"""diffusers' tokens of T5."""
MOST_TOKENS = 512
"""Tokens of T5 beyond which diffusers refuses to go."""


class SD3(DiffusersModel):
    """The model contract of ``genrl.policy.Generator`` over a ``StableDiffusion3Pipeline``.

    Args:
        source, options: those of ``DiffusersModel``.
        t5: load the T5 encoder if the model has one. Without it SD3 sees zeros in its place.
        max_sequence_length: tokens of T5, or of those zeros (diffusers' default is 256). With 0, the first call of ``encode`` decides:
            as many as its longest prompt has, in steps of 8, for that and every later call.

    Raises:
        ModelError, ValueError: those of ``DiffusersModel``; or a length of 0 without T5.
    """

    pipeline_class = StableDiffusion3Pipeline
    part = "transformer"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def __init__(self, source: str, *, t5: bool = True, max_sequence_length: int = 256, **options: Any):
        self.max_sequence_length = max_sequence_length
        self._shortcuts: Shortcuts | None = None
        super().__init__(source, **options, **({} if t5 else {"text_encoder_3": None, "tokenizer_3": None}))
        if not max_sequence_length and not self._skeleton and self.pipeline.tokenizer_3 is None:
            raise ModelError("max_sequence_length 0 cuts T5's tokens to the prompts, and there is no T5: name the number of its zeros")

    @property
    def pooled_width(self) -> int:
        return self.network.config.pooled_projection_dim

    @property
    def embed_shape(self) -> tuple[int, int]:
        # a length that prompts will decide is at most the usual one, if they are like others
        length = self.max_sequence_length or USUAL_LENGTH
        return self.pipeline.tokenizer_max_length + length, self.network.config.joint_attention_dim

    @property
    def tokens(self) -> int:
        return self.latent_shape[1] * self.latent_shape[2] // self.network.config.patch_size**2 + self.embed_shape[0]

    @property
    def feature_width(self) -> int:
        return self.network.inner_dim

    @property
    def feature_side(self) -> int:
        return min(self.latent_shape[1:]) // self.network.config.patch_size

    @property
    def chosen(self) -> dict[str, Any]:
        return {**super().chosen, "max_sequence_length": self.max_sequence_length}

    def _fuse(self) -> None:
        fuse(self.network)

    def encode(self, prompts: Sequence[str], chunk: int = 64) -> Conditioning:
        if not self.max_sequence_length and not self._skeleton:
            self.max_sequence_length = self._length_of(prompts)
        return super().encode(prompts, chunk)

    def _length_of(self, prompts: Sequence[str]) -> int:
        """T5's tokens of the longest prompt, its end included, in steps of 8."""
        longest = max(len(tokens) for tokens in self.pipeline.tokenizer_3([*prompts]).input_ids)
        return min(-(-longest // 8) * 8, MOST_TOKENS)

    def _empty(self) -> Conditioning:
        if not self.max_sequence_length and not self._skeleton:
            raise ModelError("max_sequence_length 0 is decided by the prompts: encode them before guidance asks for the empty one")
        return super()._empty()

    def _encoding(self) -> dict[str, Any]:
        return {**super()._encoding(), "max_sequence_length": self.max_sequence_length}

    def _encode(self, texts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(embeds, pooled)

    def _answer(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning, **options: Any) -> Tensor:
        if self._shortcuts:
            self._shortcuts.enter(sigma, whole=not options)
        dtype = next(network.parameters()).dtype
        with self.formats(x):
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
        return self._replayed(network, x, sigma, cond)

    @contextmanager
    def cheap(self, network: nn.Module, *, fp8: bool = False, cache: float = 0.0) -> Iterator[None]:
        """Within the block, a network that one of the roles has lent answers approximately and faster, to look and not to learn.

        A network that is shared by several roles plays, whichever is asked for, the one that was active on entry.

        Args:
            fp8: large layers in float8, see ``genrl.models._fp8``; without a device that can, they stay as they are, with a warning.
            cache: threshold of the first-block cache, see ``genrl.models._cheap``; 0 is without.

        Raises:
            RuntimeError: in the block, for a forward pass with gradients enabled; for a block in a block.
        """
        if self._shortcuts:
            raise RuntimeError("the model takes short cuts already")
        own = self.precision.dtype("weights" if self.precision.compute == "fp32" else "compute")
        with ExitStack() as stack:
            if fp8:
                stack.enter_context(in_fp8(network, network.transformer_blocks, own))
            self._shortcuts = Shortcuts(stack.enter_context(caching(network, cache)) if cache else None)
            # graphs of other weights are of no use here, nor these afterwards; and no graph decides whether a block runs
            graphs, self._graphs = self._graphs, None if cache or self._graphs is None else self._new_graphs()
            self.is_cheap = True
            try:
                yield
            finally:
                self._shortcuts, self.is_cheap, self._graphs = None, False, graphs

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
