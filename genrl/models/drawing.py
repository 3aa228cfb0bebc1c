"""Pictures of a finished model, drawn as its users would: by plain diffusers, whatever the class of its pipeline."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor

from genrl.models._source import ModelError, folder_of, unloadable

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of the file that holds an exported adapter."""
WEIGHTS = (".safetensors", ".bin", ".json")
OURS = ("prompt", "generator", "output_type")
"""Arguments of a pipeline's call that a painter gives itself."""


@dataclass(frozen=True)
class Settings:
    """How a pipeline is called; what is None is its own default.

    Args:
        steps, guidance: of sampling.
        height, width: pixels.
        options: further arguments of the call, such as SD3's ``max_sequence_length``.
        absent: parts of the pipeline that are left out, such as SD3's ``text_encoder_3``.

    Raises:
        ModelError: a number that no pipeline can be called with.
    """

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ModelError(f"{name} must be a whole number above 0; got {value!r}")
        if self.guidance is not None and (type(self.guidance) not in (int, float) or not math.isfinite(self.guidance)):
            raise ModelError(f"guidance must be a number; got {self.guidance!r}")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call."""
        named = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "height": self.height, "width": self.width}
        return {name: value for name, value in named.items() if value is not None} | dict(self.options)


class Painter:
    """Draws with a diffusers pipeline of any class.

    Args:
        source: folder or hub id; lora: folder, file or hub id of an adapter that is put on it.
        settings: how it is called.
        device: where; dtype: of its weights.

    Raises:
        ModelError: nothing there, no text-to-image pipeline, an adapter that does not fit, or a setting the pipeline does not have.
    """

    def __init__(
        self,
        source: str,
        settings: Settings,
        lora: str = "",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        # a bar for each part of a pipeline, and each batch's too long prompts, say nothing to who waits for pictures
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        self.source, self.settings, self.device = source, settings, torch.device(device)
        folder = folder_of(source)
        absent: Any = dict.fromkeys(settings.absent)
        try:
            # of a hub id a folder on this machine, whose name is the commit
            self.folder = folder or Path(DiffusionPipeline.download(source))
            self.pipeline: Any = DiffusionPipeline.from_pretrained(str(self.folder), dtype=dtype, **absent)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise unloadable(source, "a diffusers pipeline", error) from error
        self.lora = lora
        if lora:
            self._adapt(lora)
        known = inspect.signature(self.pipeline.__call__).parameters
        for name in (*OURS, *settings.arguments()):
            if name not in known:
                what = "is no text-to-image pipeline" if name == "prompt" else f"has no setting {name!r}"
                raise ModelError(f"{source!r}, a {type(self.pipeline).__name__}, {what}")
        if taken := [name for name in OURS if name in settings.options]:
            raise ModelError(f"{', '.join(taken)} of the call of {source!r} is set for each picture, and cannot be a setting")
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device)

    def _adapt(self, lora: str) -> None:
        try:
            self.pipeline.load_lora_weights(lora)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(f"cannot put the adapter {lora!r} on {self.source!r}: {error}") from error

    @property
    def used(self) -> dict[str, Any]:
        """The settings with the pipeline's own defaults filled in, for the record."""
        defaults = inspect.signature(self.pipeline.__call__).parameters
        filled = dict.fromkeys(("num_inference_steps", "guidance_scale", "height", "width")) | self.settings.arguments()
        shown = {name: defaults[name].default if value is None and name in defaults else value for name, value in filled.items()}
        named = {"steps": shown.pop("num_inference_steps"), "guidance": shown.pop("guidance_scale")}
        return named | shown | ({"absent": list(self.settings.absent)} if self.settings.absent else {})

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] on the CPU; image i starts from the noise of ``seeds[i]``, whatever batch and device."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        settings = self.settings.arguments()
        try:
            images = self.pipeline(list(prompts), generator=generators, output_type="pt", **settings).images.float().cpu()
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            # what the value of a setting leads to is found out by calling
            raise ModelError(f"{self.source!r} cannot be called with {settings}: {error}") from error
        if len(images) != len(prompts):
            raise ModelError(f"{self.source!r}, called with {settings}, drew {len(images)} pictures of {len(prompts)} prompts")
        return images

    def sha256(self) -> str:
        """Of the files of pipeline and adapter, names and contents: two folders that draw alike because they are alike agree."""
        digest = hashlib.sha256(hash_of(self.folder).encode())
        if self.lora and Path(self.lora).exists():
            digest.update(hash_of(Path(self.lora)).encode())
        elif self.lora:
            digest.update(self.lora.encode())
        return digest.hexdigest()


def hash_of(path: Path) -> str:
    """sha256 over the weights and configurations of a file or folder, in order of their names."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS and file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
