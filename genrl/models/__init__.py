"""Model adapters: the only place, besides rewards and worlds, that knows diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.models._source import ModelError, folder_of, unloadable

if TYPE_CHECKING:
    from genrl.models._diffusers import DiffusersModel

T5_OPTIONS = ("t5", "max_sequence_length")
SHAPED_BY = ("in_channels", "sample_size", "joint_attention_dim", "cross_attention_dim", "pooled_projection_dim")
"""Keys of a network's config that say what it is called with."""


@dataclass(frozen=True)
class Weightless:
    """How models are built that are only to be counted or timed.

    Args:
        device: where; on ``meta`` tensors have a shape and no data.
        cut: leave a few blocks of a large network, and no text encoders.
    """

    device: Any = "meta"
    cut: bool = False


_weightless: ContextVar[Weightless | None] = ContextVar("weightless", default=None)


def weightless() -> Weightless | None:
    """How models are built without their weights; None where they are loaded."""
    return _weightless.get()


@contextmanager
def skeletons(device: Any = "meta", cut: bool = False) -> Iterator[None]:
    """Within the block, generators and backbones are built from their configs on ``device`` and no weights are read; see ``Weightless``."""
    token = _weightless.set(Weightless(device, cut))
    try:
        yield
    finally:
        _weightless.reset(token)


def load_generator(source: str, **options: Any) -> DiffusersModel:
    """The adapter of the class that the ``model_index.json`` of a folder or hub id names: ``SD3`` or ``SDXL``.

    ``options`` go to that adapter. ``t5`` and ``max_sequence_length`` say nothing to a model that has no T5 and are dropped for it.

    Raises:
        ModelError: nothing there, no pipeline, or one of a class without adapter.
    """
    # diffusers takes seconds to import, so this module does not
    from genrl.models.sd3 import SD3
    from genrl.models.sdxl import SDXL

    known = {model.pipeline_class.__name__: model for model in (SD3, SDXL)}
    name = _read(source, "model_index.json", options.get("revision")).get("_class_name")
    if name not in known:
        raise ModelError(f"{source!r} is a {name}; there are adapters for {' and '.join(known)}")
    if known[name] is SDXL:
        options = {key: value for key, value in options.items() if key not in T5_OPTIONS}
    return known[name](source, **options)


def check_same_latents(source: str, other: str) -> None:
    """Raise ``ModelError`` unless two pipelines are of one class and their networks take the same latents and prompts.

    Reads a few lines of JSON of each; no weights.
    """
    found = []
    for model in (source, other):
        index = _read(model, "model_index.json")
        part = "transformer" if "transformer" in index else "unet"
        config = _read(model, f"{part}/config.json")
        found.append({"pipeline": index.get("_class_name"), **{key: config.get(key) for key in SHAPED_BY if key in config}})
    ours, theirs = found
    keys = dict.fromkeys([*ours, *theirs])
    differing = [f"{key}: {ours.get(key)} and {theirs.get(key)}" for key in keys if ours.get(key) != theirs.get(key)]
    if differing:
        raise ModelError(f"{source!r} and {other!r} do not take the same latents and prompts: {'; '.join(differing)}")


def _read(source: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON file of a pipeline's folder or hub id."""
    from huggingface_hub import hf_hub_download

    folder = folder_of(source)
    try:
        path = folder / name if folder else Path(hf_hub_download(source, name, revision=revision))
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found}
    except (OSError, ValueError, TypeError) as error:
        raise unloadable(source, "a diffusers pipeline", error) from error
