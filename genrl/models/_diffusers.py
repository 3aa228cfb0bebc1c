"""What the adapters share: a diffusers pipeline is loaded, its prompts are encoded, its latents decoded, and it is written out again."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from genrl.config import Speed
from genrl.models import weightless
from genrl.models._attention import checkpointed, choose, heads_of, use_xformers, using
from genrl.models._compile import compile_blocks
from genrl.models._embeddings import EmbeddingCache, identity_of
from genrl.models._graphs import Graphs
from genrl.models._pipelines import read_pipeline
from genrl.models._source import ModelError, folder_of
from genrl.precision import Precision
from genrl.types import Conditioning

log = logging.getLogger(__name__)


class DiffusersModel(ABC):
    """The model contract of ``genrl.policy.Generator`` over a diffusers pipeline; a subclass knows one architecture.

    Args:
        source: folder or hub id; revision: of the hub.
        precision: number formats; ``weights`` of 16 bits halve memory where only adapters are trained. The VAE is float32 always.
        height, width: pixels; 0 takes the model's own.
        speed: what makes it faster or smaller and leaves its answers what they are, to rounding.
        absent: parts of the pipeline to leave out, as ``None``.

    Raises:
        ModelError: nothing there, not a pipeline of this class, a size the model cannot draw, or CUDA graphs on another device.
        ValueError: an attention that does not run here.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    part: ClassVar[str]
    """Name of the network in the pipeline."""
    encoders: ClassVar[tuple[str, ...]]
    """Names of the text encoders in the pipeline; the first is always there."""
    is_cheap: bool = False
    """Whether the model takes short cuts now."""

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = Precision(),  # noqa: B008
        height: int = 0,
        width: int = 0,
        gradient_checkpointing: bool = False,
        speed: Speed = Speed(),  # noqa: B008
        **absent: None,
    ):
        self.source, self.revision = source, revision
        self._skeleton = weightless()
        self.device = torch.device(self._skeleton.device if self._skeleton else device)
        self.precision = precision
        self.speed, self._absent = speed, absent
        self._released, self._unconditional = False, None
        # encoders that a cache may make superfluous are read when something is missing there
        unread = dict.fromkeys(self.encoders) if speed.embeddings else {}
        self.pipeline: Any = self._load(precision.dtype("weights"), **{**absent, **unread})
        self.pipeline.set_progress_bar_config(disable=True)
        self.network: Any = getattr(self.pipeline, self.part).to(self.device)
        self.vae = self.pipeline.vae.to(self.device).requires_grad_(False).eval()
        factor = self.pipeline.vae_scale_factor
        native = self.network.config.sample_size * factor
        self.size = (height or native, width or native)
        step = factor * self.network.config.get("patch_size", 1)
        if self.size[0] % step or self.size[1] % step:
            raise ModelError(f"{source!r} draws multiples of {step} pixels; got {self.size[0]}x{self.size[1]}")
        self.latent_shape: tuple[int, ...] = (self.network.config.in_channels, self.size[0] // factor, self.size[1] // factor)
        self.attention = self._hasten()
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing(checkpointed(self.attention))

    def _hasten(self) -> str:
        """Do to network and autoencoder what ``speed`` says; the name of the attention in use.

        In this order: fused blocks bring an attention of their own, and what is compiled is what has become of the blocks.
        """
        speed, device, on_meta = self.speed, self.device, self.device.type == "meta"
        if speed.kernels:
            self._fuse()
        if speed.vae != "none":
            self.vae.enable_slicing() if speed.vae == "slicing" else self.vae.enable_tiling()
        heads, width = heads_of(self.network)
        attention = "sdpa" if on_meta else choose(speed.attention, device, self.dtype, heads=heads, head_dim=width, tokens=self.tokens)
        if attention == "xformers":
            use_xformers(self.network)
        if speed.compile and not on_meta:
            compile_blocks(self.network)
        if speed.cuda_graphs and device.type not in ("cuda", "meta"):
            raise ModelError(f"speed.cuda_graphs needs a CUDA device, and this model is on {device}")
        self._graphs = self._new_graphs() if speed.cuda_graphs and not on_meta else None
        return attention

    def _new_graphs(self) -> Graphs:
        return Graphs(lambda network, x, sigma, *cond: self._answer(network, x, sigma, Conditioning(*cond)))

    def _fuse(self) -> None:
        log.warning("speed.kernels: there are no fused kernels for the blocks of %s, which run as they are", type(self).__name__)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.precision.dtype("weights" if self.precision.compute == "fp32" else "compute")

    @property
    def chosen(self) -> dict[str, Any]:
        """What was decided when the model met its device and its prompts, for the record of a run."""
        return {"attention": self.attention}

    def _load(self, dtype: torch.dtype, **parts: None) -> Any:
        return read_pipeline(self.pipeline_class, self.source, self.revision, dtype, parts)

    @abstractmethod
    def _encode(self, texts: list[str]) -> Conditioning:
        """Embeddings as the pipeline computes them, on any device."""

    def _empty(self) -> Conditioning:
        """What guidance's other branch is told, one row."""
        return self.encode([""])

    @property
    def unconditional(self) -> Conditioning:
        """The conditioning of guidance's other branch, one row, on the model's device; encoded when it is first asked for.

        Raises:
            ModelError: that is too late or too early, see ``encode``.
        """
        if self._unconditional is None:
            self._unconditional = self._empty().to(self.device)
        return self._unconditional

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that the network's first attention looks at, a picture's and a prompt's."""

    @property
    @abstractmethod
    def embed_shape(self) -> tuple[int, int]:
        """Tokens and width of a ``Conditioning``'s embeddings."""

    @abstractmethod
    def _answer(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """What the network says, in whatever it predicts."""

    def _replayed(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """``_answer``, from a CUDA graph where there are such and nothing is learned from it."""
        if self._graphs is None or torch.is_grad_enabled():
            return self._answer(network, x, sigma, cond)
        return self._graphs(network, x, sigma, cond.embeds, cond.pooled)

    @abstractmethod
    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Unguided velocity ``[B, C, H, W]`` of a network, in the format it computes in, at ``x [B, C, H, W]``, ``sigma [B]``."""

    @abstractmethod
    def features(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """A map ``[B, feature_width, h, w]`` float32 from the middle of a network, with its graph; the later half does not run."""

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """Channels of ``features``."""

    @property
    @abstractmethod
    def feature_side(self) -> int:
        """The shorter side of ``features``."""

    @property
    @abstractmethod
    def pooled_width(self) -> int:
        """Width of a ``Conditioning``'s pooled embedding."""

    @property
    @abstractmethod
    def levels(self) -> tuple[float, ...]:
        """Noise levels, rising, evenly spaced in the time that the model was trained by."""

    @abstractmethod
    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The levels, ``steps + 1`` of them and falling, that the pipeline itself goes through in so many steps."""

    @abstractmethod
    def student_sigmas(self, steps: int) -> tuple[float, ...]:
        """The levels, ``steps + 1`` of them and falling to 0, of a student that is distilled to so many steps."""

    @abstractmethod
    def student_scheduler(self, steps: int) -> Any:
        """A scheduler of diffusers that, asked for so many steps, renoises through ``student_sigmas(steps)``."""

    def autocast(self, x: Tensor) -> torch.autocast:
        # on meta there is none: that of the CPU says what is wanted, and genrl.planner does it
        place = "cpu" if x.is_meta else x.device.type
        return torch.autocast(place, self.precision.dtype("compute"), enabled=self.precision.compute != "fp32")

    @contextmanager
    def formats(self, x: Tensor) -> Iterator[None]:
        """Within the block the network computes in the format and with the attention that it should."""
        with self.autocast(x), using(self.attention):
            yield

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], chunk: int = 64) -> Conditioning:
        """Embeddings of prompts, on the CPU, as the pipeline itself computes them; remembered where ``speed.embeddings`` says.

        Raises:
            ModelError: the encoders have been released.
        """
        if self._skeleton:
            return self._unread(len(prompts))
        cache = EmbeddingCache(Path(self.speed.embeddings).expanduser(), self._encoding()) if self.speed.embeddings else None
        if cache and (found := cache.read(prompts)):
            return found
        for encoder in self._read_encoders():
            encoder.to(self.device)
        firsts = range(0, len(prompts), chunk)
        cond = Conditioning.cat([self._encode(list(prompts[first : first + chunk])).to("cpu") for first in firsts])
        if cache:
            cache.write(prompts, cond)
        return cond

    def _encoding(self) -> dict[str, Any]:
        """What decides what a prompt becomes."""
        own = {"pipeline": self.pipeline_class.__name__, "weights": self.precision.weights, "absent": sorted(self._absent)}
        return {**own, **identity_of(self.source, folder_of(self.source), self.revision)}

    def _read_encoders(self) -> list[nn.Module]:
        """The text encoders that there are; read now if they have not been."""
        if self._released:
            raise ModelError("the text encoders have been released; encode every prompt before")
        if getattr(self.pipeline, self.encoders[0]) is None:
            loaded = self._load(self.precision.dtype("weights"), **{**self._absent, self.part: None, "vae": None})
            for name in self.encoders:
                setattr(self.pipeline, name, getattr(loaded, name))
        return [encoder for name in self.encoders if (encoder := getattr(self.pipeline, name)) is not None]

    def _unread(self, count: int) -> Conditioning:
        """Embeddings of the right shape and format, for prompts that nobody reads."""
        options: dict[str, Any] = {"device": "meta" if self.device.type == "meta" else "cpu", "dtype": self.precision.dtype("weights")}
        return Conditioning(torch.randn(count, *self.embed_shape, **options), torch.randn(count, self.pooled_width, **options))

    def release_encoders(self) -> None:
        """Drop the text encoders; an export reads them again from the source."""
        # guidance will ask for it
        _ = self.unconditional
        self._released = True
        for name in self.encoders:
            setattr(self.pipeline, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        config = self.vae.config
        images = self.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0), return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to latents ``[B, C, h, w]`` on the model's device: the posterior's mode, scaled."""
        config = self.vae.config
        raw = self.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mode()
        return (raw - (config.shift_factor or 0)) * config.scaling_factor

    def export(self, network: nn.Module, folder: Path, student_steps: int = 0) -> None:
        """Write a whole pipeline that plain diffusers loads, the network's active adapter (if any) merged in.

        With ``student_steps`` its scheduler is a student's: right for that number of steps and no other.
        """
        network = copy.deepcopy(network)
        if getattr(network, "peft_config", None):
            network.fuse_lora(adapter_names=network.active_adapters())
            network.unload_lora()
        # the whole source again, parts included that were not used: plain diffusers cannot load a pipeline without them
        pipeline = self._load(torch.float32, **{self.part: None})
        parts = {self.part: network.requires_grad_(False)}
        if student_steps:
            parts["scheduler"] = self.student_scheduler(student_steps)
        pipeline.register_modules(**parts)
        pipeline.save_pretrained(folder)
