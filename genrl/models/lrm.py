"""LPO's latent reward model for SDXL ("LRM-XL", arXiv 2502.01051): scores noisy latents of a prompt, without decoding them.

The down and middle blocks of an SDXL UNet and both text encoders, tuned on pairs of Pick-a-Pic. With ``f_k`` the output of the last layer
of down block k (before it is made smaller) and ``m`` that of the middle block, all averaged over space, ``c`` for the prompt and ``0`` for
the empty one,

    features = [f_1(c), f_2(c), f_3(c), m(0) + 7.5 (m(c) - m(0))]       320 + 640 + 1280 + 1280 wide
    score    = exp(logit_scale) cos(W features, pooled text embedding of text_encoder_2)

Layout and score as in the authors' code (github Kwai-Kolors/LPO), where the latent is scored as if it had the level it came from; here it
has its own, as in the model's training (ours).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch raises at a file that is more than tensors; nothing is unpickled here
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from genrl.models._diffusers import ModelError, input_of, unloadable
from genrl.models.sdxl import flow_level, to_vp
from genrl.policy import FlowPolicy
from genrl.types import Batch, Conditioning

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
GUIDANCE = 7.5
PIXELS_PER_LATENT = 8
HEAD = "state_dict.pt"
ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
LAYOUT = f"folders unet, text_encoder and text_encoder_2, and a file {HEAD}"


class LatentRewardXL(nn.Module):
    """The model above, frozen.

    Args:
        pipeline: its UNet (up blocks are never run), text encoders, tokenizers, and a scheduler with the table of betas; no VAE is needed.
        projection: W ``[P, D]``, P the width of a pooled text embedding, D the sum of the channels of all down blocks and the middle one.
        logit_scale: log of the factor before the cosine.
        guidance: of the middle block's features; the published model's is 7.5.

    Raises:
        ModelError: not an SDXL UNet, a projection of another shape, or a scheduler without betas.
    """

    levels: Tensor

    def __init__(self, pipeline: StableDiffusionXLPipeline, projection: Tensor, logit_scale: float, guidance: float = GUIDANCE):
        super().__init__()
        self.pipeline: Any = pipeline
        self.unet, self.text_encoder, self.text_encoder_2 = self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.text_encoder_2
        self.guidance = guidance
        config, schedule = self.unet.config, self.pipeline.scheduler.config
        if config.addition_embed_type != "text_time":
            raise ModelError("this is not the UNet of an SDXL; LRM-1.5 and LRM-2.1 score latents of other models: use LRM-XL")
        if "beta_start" not in schedule:
            raise ModelError(f"a {type(self.pipeline.scheduler).__name__} has no table of betas; give an SDXL pipeline as base")
        shape = (self.text_encoder_2.config.projection_dim, sum(config.block_out_channels) + config.block_out_channels[-1])
        if projection.shape != shape:
            raise ModelError(
                f"visual_projection is {tuple(projection.shape)}, not {shape}; LRM-XL projects all down blocks and the middle one"
            )
        kept = DDPMScheduler.from_config(schedule).alphas_cumprod
        self.register_buffer("levels", flow_level(((1 - kept) / kept) ** 0.5))
        self.projection, self.logit_scale = nn.Parameter(projection.float()), nn.Parameter(torch.tensor(float(logit_scale)))
        self.requires_grad_(False).eval()

    @classmethod
    def from_source(cls, source: str, base: str = BASE, dtype: torch.dtype = torch.float32) -> LatentRewardXL:
        """The model as its authors' code saves it.

        Args:
            source: folder or hub id, ``owner/name`` or ``owner/name/folder``, with ``unet``, both text encoders (without them the base's
                are taken: they may have been frozen) and ``state_dict.pt``: ``visual_projection`` with its ``weight``, and ``logit_scale``.
            base: SDXL's folder or hub id; tokenizers and the table of betas come from there.
            dtype: of UNet and text encoders; the authors score in float16.

        Raises:
            ModelError: nothing there, or something else.
        """
        folder = _folder_of(source)
        projection, logit_scale = _head_of(folder, source)
        given = [name for name in ENCODERS if (folder / name).is_dir()]
        if len(given) == 1:
            raise ModelError(f"{source!r} has {given[0]} alone; LRM-XL has {LAYOUT}: fetch it again")
        try:
            parts: dict[str, Any] = {name: ENCODERS[name].from_pretrained(str(folder / name), dtype=dtype) for name in given}
            parts["unet"] = UNet2DConditionModel.from_pretrained(str(folder / "unet"), torch_dtype=dtype)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"cannot load {source!r} as a latent reward model ({LAYOUT}): {error}") from error
        try:
            types: Any = {"default": dtype}
            pipeline = StableDiffusionXLPipeline.from_pretrained(str(Path(base).expanduser()), vae=None, dtype=types, **parts)
        except (OSError, ValueError, TypeError) as error:
            raise unloadable(base, "the SDXL pipeline that a latent reward model was made from", error) from error
        return cls(pipeline, projection, logit_scale)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of prompts by this model's own encoders, on its device, in their dtype."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.levels.device, do_classifier_free_guidance=False)
        return Conditioning(embeds, pooled)

    @torch.no_grad()
    def features(self, x: Tensor, sigma: Tensor, cond: Conditioning, empty: Conditioning) -> Tensor:
        """Features above ``[B, D]`` float32 of ``x [B, C, h, w]`` at flow levels ``sigma [B]``; ``empty`` is one row, that of ``""``.

        The timestep is the nearest of the table's.
        """
        count, dtype, side = len(x), self.unet.dtype, self.unet.config.sample_size * PIXELS_PER_LATENT
        timestep = (self.levels - sigma.to(self.levels)[:, None]).abs().argmin(1)
        told = Conditioning.cat([cond, empty.index(torch.zeros(count, dtype=torch.long, device=empty.pooled.device))])
        # the picture's size in the training of this model, whatever that of these latents
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=dtype, device=x.device).expand(2 * count, -1)
        found: list[Tensor] = []

        def keep(block: Any, _: Any, output: tuple) -> None:
            found.append(_pooled(output[1][len(block.resnets) - 1])[:count])

        handles = [block.register_forward_hook(keep) for block in self.unet.down_blocks]
        try:
            middle = input_of(
                self.unet.up_blocks[0],
                lambda: self.unet(
                    to_vp(x, sigma).to(dtype).repeat(2, 1, 1, 1),
                    timestep.repeat(2),
                    encoder_hidden_states=told.embeds.to(dtype),
                    added_cond_kwargs={"text_embeds": told.pooled.to(dtype), "time_ids": time_ids},
                ),
            )
        finally:
            for handle in handles:
                handle.remove()
        with_prompt, without = _pooled(middle).chunk(2)
        return torch.cat([*found, without + self.guidance * (with_prompt - without)], dim=1)

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning, empty: Conditioning) -> Tensor:
        """Scores ``[B]`` float32; arguments are those of ``features``."""
        seen = F.linear(self.features(x, sigma, cond, empty), self.projection)
        return self.logit_scale.exp() * F.cosine_similarity(seen, cond.pooled.float(), dim=1)


@dataclass(frozen=True)
class LrmRanker:
    """Candidates by a ``LatentRewardXL`` (``genrl.losses.preference.Ranker``), for policies over SDXL's latents.

    It encodes the texts of ``batch.prompts`` itself, once each, and remembers the latest ``keep`` of them on the CPU (ours).
    """

    reward: LatentRewardXL
    keep: int = 1024
    roles = ()
    _told: dict[str, Conditioning] = field(default_factory=dict, repr=False, compare=False)

    @torch.no_grad()
    def __call__(self, policy: FlowPolicy, batch: Batch, z: Tensor, sigma: Tensor) -> Tensor:
        cond = self._encode([*(prompt.text for prompt in batch.prompts), ""]).to(z.device)
        return self.reward(z, sigma, cond.index(slice(len(z))), cond.index(slice(len(z), None)))

    def _encode(self, texts: list[str]) -> Conditioning:
        known = {text: self._told.pop(text, None) for text in dict.fromkeys(texts)}
        new = [text for text, cond in known.items() if cond is None]
        if new:
            cond = self.reward.encode(new).to("cpu")
            known |= {text: cond.index(slice(row, row + 1)) for row, text in enumerate(new)}
        # the latest used come last
        self._told.update({text: cond for text, cond in known.items() if cond is not None})
        found = Conditioning.cat([self._told[text] for text in texts])
        for text in list(self._told)[: -self.keep]:
            del self._told[text]
        return found


def _pooled(x: Tensor) -> Tensor:
    return x.float().mean((2, 3))


def _folder_of(source: str) -> Path:
    """The folder of a source, fetched from the hub if it names one there."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(/[\w./-]+)?", source):
        raise ModelError(f"no folder {source!r}; a latent reward model is a folder with {LAYOUT}, or on the hub 'owner/name/folder'")
    owner, name, *inside = source.split("/", 2)
    # without a folder also the small files of every one, so that there is something to name
    wanted = [f"{inside[0].rstrip('/')}/*"] if inside else ["unet/*", *(f"{part}/*" for part in ENCODERS), f"*{HEAD}"]
    try:
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=wanted), *inside)
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no folder {source!r}, and the hub did not give it: {error}") from error


def _head_of(folder: Path, source: str) -> tuple[Tensor, float]:
    """The projection and the logit scale."""
    if not (folder / HEAD).is_file() or not (folder / "unet").is_dir():
        others = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{HEAD}"))
        hint = f"; there is one in each of {', '.join(others)}: name one of these" if others else ""
        raise ModelError(f"{source!r} holds no latent reward model, which has {LAYOUT}{hint}")
    try:
        state = torch.load(folder / HEAD, map_location="cpu", weights_only=True)
        return state["visual_projection"]["weight"], float(state["logit_scale"])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ModelError(
            f"{HEAD} of {source!r} does not read as {{'visual_projection': {{'weight'}}, 'logit_scale'}}; fetch it again: {error!r}"
        ) from error
