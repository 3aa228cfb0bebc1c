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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.pixels import PromptMemory, best_device
from genrl.reward import About, RewardError

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
GUIDANCE = 7.5
PIXELS_PER_LATENT = 8
HEAD = "state_dict.pt"
ENCODERS = ("text_encoder", "text_encoder_2")
LAYOUT = f"folders unet, text_encoder and text_encoder_2, and a file {HEAD}"

Told = tuple[Tensor, Tensor]
"""Embeddings ``[B, L, D]`` and pooled embeddings ``[B, P]`` of prompts."""


class LatentRewardXL(nn.Module):
    """Frozen; ``score_latents`` is what it is asked by.

    Args:
        source: folder or hub id, ``owner/name`` or ``owner/name/folder``, with ``unet``, both text encoders (without them the base's are
            taken: they may have been frozen) and ``state_dict.pt``: ``visual_projection`` with its ``weight`` ``[P, D]``, P the width
            of a pooled text embedding, D the sum of the channels of all down blocks and the middle one, and ``logit_scale``.
        base: SDXL's folder or hub id; tokenizers and the table of betas come from there.
        dtype: of UNet and text encoders; the authors score in float16.
        device: where it runs.
        keep: prompts whose embeddings are remembered on the CPU (ours).

    Raises:
        RewardError: nothing there, not an SDXL UNet, a projection of another shape, or a scheduler without betas.
    """

    about = About(
        kind="latent",
        weights=("casiatao/LRM",),
        license="unverified; its base is under CreativeML Open RAIL++-M",
        source="arXiv 2502.01051, github Kwai-Kolors/LPO",
    )
    levels: Tensor

    def __init__(
        self,
        source: str,
        base: str = BASE,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        device: str = "auto",
        keep: int = 1024,
    ):
        super().__init__()
        folder = _folder_of(source)
        projection, logit_scale = _head_of(folder, source)
        self.pipeline: Any = _pipeline_of(folder, source, base, getattr(torch, dtype))
        self.unet, self.text_encoder, self.text_encoder_2 = self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.text_encoder_2
        self.guidance = GUIDANCE
        config = self.unet.config
        if config.addition_embed_type != "text_time":
            raise RewardError("this is not the UNet of an SDXL; LRM-1.5 and LRM-2.1 score latents of other models: use LRM-XL")
        shape = (self.text_encoder_2.config.projection_dim, sum(config.block_out_channels) + config.block_out_channels[-1])
        if projection.shape != shape:
            raise RewardError(
                f"visual_projection is {tuple(projection.shape)}, not {shape}; LRM-XL projects all down blocks and the middle one"
            )
        self.register_buffer("levels", _levels(self.pipeline.scheduler))
        self.projection, self.logit_scale = nn.Parameter(projection.float()), nn.Parameter(torch.tensor(logit_scale))
        self.requires_grad_(False).eval().to(best_device(device))
        self.memory = PromptMemory(self._packed, keep)

    @torch.no_grad()
    def score_latents(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` float32 of ``x [B, C, h, w]`` at flow levels ``sigma [B]``, on the device of ``x``."""
        device = self.levels.device
        told = self._unpacked(self.memory([*prompts, ""]).to(device))
        cond, empty = tuple(t[: len(x)] for t in told), tuple(t[len(x) :] for t in told)
        seen = F.linear(self.features(x.to(device), sigma.to(device), cond, empty), self.projection)
        return (self.logit_scale.exp() * F.cosine_similarity(seen, cond[1].float(), dim=1)).to(x.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Told:
        """What this model's own encoders make of prompts, on its device, in their dtype."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.levels.device, do_classifier_free_guidance=False)
        return embeds, pooled

    def _packed(self, prompts: list[str]) -> Tensor:
        embeds, pooled = self.encode(prompts)
        return torch.cat([embeds.flatten(1), pooled], dim=1).cpu()

    def _unpacked(self, packed: Tensor) -> Told:
        width = self.text_encoder_2.config.projection_dim
        return packed[:, :-width].unflatten(1, (-1, self.unet.config.cross_attention_dim)), packed[:, -width:]

    @torch.no_grad()
    def features(self, x: Tensor, sigma: Tensor, cond: Told, empty: Told) -> Tensor:
        """Features above ``[B, D]`` float32 of ``x [B, C, h, w]`` at flow levels ``sigma [B]``; ``empty`` is one row, that of ``""``.

        The timestep is the nearest of the table's.
        """
        count, dtype, side = len(x), self.unet.dtype, self.unet.config.sample_size * PIXELS_PER_LATENT
        timestep = (self.levels - sigma.to(self.levels)[:, None]).abs().argmin(1)
        # back to the variance-preserving process that the UNet knows: x_t = x_sigma / hypot(1 - sigma, sigma)
        x_t = x / torch.hypot(1 - sigma, sigma).view(-1, 1, 1, 1)
        embeds, pooled = (torch.cat([c, e.expand_as(c)]).to(dtype) for c, e in zip(cond, empty, strict=True))
        # the picture's size in the training of this model, whatever that of these latents
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=dtype, device=x.device).expand(2 * count, -1)
        found: list[Tensor] = []

        def keep(block: Any, _: Any, output: tuple) -> None:
            found.append(_pooled(output[1][len(block.resnets) - 1])[:count])

        handles = [block.register_forward_hook(keep) for block in self.unet.down_blocks]
        try:
            middle = _input_of(
                self.unet.up_blocks[0],
                lambda: self.unet(
                    x_t.to(dtype).repeat(2, 1, 1, 1),
                    timestep.repeat(2),
                    encoder_hidden_states=embeds,
                    added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
                ),
            )
        finally:
            for handle in handles:
                handle.remove()
        with_prompt, without = _pooled(middle).chunk(2)
        return torch.cat([*found, without + self.guidance * (with_prompt - without)], dim=1)


def _pooled(x: Tensor) -> Tensor:
    return x.float().mean((2, 3))


class _Reached(Exception):
    def __init__(self, value: Tensor):
        self.value = value


def _input_of(block: nn.Module, call: Callable[[], Any]) -> Tensor:
    """The map that ``call`` hands to an up block; neither the block nor anything after it runs."""

    def leave(_: nn.Module, args: tuple, kwargs: dict) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = block.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        call()
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise RuntimeError(f"the UNet never called its {type(block).__name__}")


def _levels(scheduler: Any) -> Tensor:
    """Flow levels of the table's timesteps: ``sigma = r / (1 + r)`` with ``r = s / alpha`` of the variance-preserving process."""
    from diffusers import DDPMScheduler

    if "beta_start" not in scheduler.config:
        raise RewardError(f"a {type(scheduler).__name__} has no table of betas; give an SDXL pipeline as base")
    kept = DDPMScheduler.from_config(scheduler.config).alphas_cumprod
    ratio = ((1 - kept) / kept) ** 0.5
    return ratio / (1 + ratio)


def _pipeline_of(folder: Path, source: str, base: str, dtype: torch.dtype) -> Any:
    """The base's pipeline with the tuned parts in it; up blocks are never run, and no VAE is needed."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    given = [name for name in ENCODERS if (folder / name).is_dir()]
    if len(given) == 1:
        raise RewardError(f"{source!r} has {given[0]} alone; LRM-XL has {LAYOUT}: fetch it again")
    kinds: dict[str, Any] = dict(zip(ENCODERS, (CLIPTextModel, CLIPTextModelWithProjection), strict=True))
    try:
        parts: dict[str, Any] = {name: kinds[name].from_pretrained(str(folder / name), dtype=dtype) for name in given}
        parts["unet"] = UNet2DConditionModel.from_pretrained(str(folder / "unet"), torch_dtype=dtype)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise RewardError(f"cannot load {source!r} as a latent reward model ({LAYOUT}): {error}") from error
    where, types = Path(base).expanduser(), {"default": dtype}
    try:
        return StableDiffusionXLPipeline.from_pretrained(str(where), vae=None, dtype=types, **parts)
    except (OSError, ValueError, TypeError) as error:
        absent = "" if where.is_dir() else " (there is no such folder, so it was looked up on the hub)"
        raise RewardError(f"cannot load {base!r} as the SDXL pipeline that a latent reward model was made from{absent}: {error}") from error


def _folder_of(source: str) -> Path:
    """The folder of a source, fetched from the hub if it names one there."""
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(/[\w./-]+)?", source):
        raise RewardError(f"no folder {source!r}; a latent reward model is a folder with {LAYOUT}, or on the hub 'owner/name/folder'")
    owner, name, *inside = source.split("/", 2)
    # without a folder also the small files of every one, so that there is something to name
    wanted = [f"{inside[0].rstrip('/')}/*"] if inside else ["unet/*", *(f"{part}/*" for part in ENCODERS), f"*{HEAD}"]
    try:
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=wanted), *inside)
    except (OSError, ValueError) as error:
        raise RewardError(f"there is no folder {source!r}, and the hub did not give it: {error}") from error


def _head_of(folder: Path, source: str) -> tuple[Tensor, float]:
    """The projection and the logit scale."""
    if not (folder / HEAD).is_file() or not (folder / "unet").is_dir():
        others = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{HEAD}"))
        hint = f"; there is one in each of {', '.join(others)}: name one of these" if others else ""
        raise RewardError(f"{source!r} holds no latent reward model, which has {LAYOUT}{hint}")
    try:
        state = torch.load(folder / HEAD, map_location="cpu", weights_only=True)
        return state["visual_projection"]["weight"], float(state["logit_scale"])
    except Exception as error:  # of any type: what a foreign file makes torch raise shares no class
        raise RewardError(
            f"{HEAD} of {source!r} does not read as {{'visual_projection': {{'weight'}}, 'logit_scale'}}; fetch it again: {error!r}"
        ) from error
