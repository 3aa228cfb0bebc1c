"""Pipelines of a folder or hub id, and their outlines: the classes that it names, built from its configs alone, without weights.

On the meta device they are shapes, for counting; on a real one their weights are random, and with ``cut`` they are few, for timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from genrl.models import Weightless, _read, weightless
from genrl.models._source import folder_of, unloadable

CUT_ABOVE = 200_000_000
"""Weights of a network above which it may be cut."""


def read_pipeline(kind: Any, source: str, revision: str | None, dtype: torch.dtype, parts: Mapping[str, None]) -> Any:
    """The pipeline of a folder or hub id, weights as ``dtype``; within ``genrl.models.skeletons()`` its outline. ``parts`` are left out.

    Raises:
        ModelError: nothing there, or not a pipeline of this class.
    """
    place, how = str(folder_of(source) or source), weightless()
    # rounded once, the VAE would stay so; it runs in float32
    dtypes: Any = {"default": dtype, "vae": torch.float32}
    try:
        if how:
            return outline(kind, place, revision, dtype, how, parts)
        return kind.from_pretrained(place, revision=revision, dtype=dtypes, **parts)
    except (OSError, ValueError, TypeError) as error:
        raise unloadable(source, f"a {kind.__name__}", error) from error


def outline(kind: type, source: str, revision: str | None, dtype: torch.dtype, how: Weightless, parts: Mapping[str, None]) -> Any:
    """A pipeline of class ``kind`` for ``source``; ``parts`` are left out.

    Its network (``transformer`` or ``unet``), autoencoder and text encoders come from their configs, tokenizers and scheduler are real.
    Cut, it has no text encoders.

    Raises:
        OSError, ValueError: a config is not there, or makes no sense.
    """
    index = _read(source, "model_index.json", revision)
    where = {"pretrained_model_name_or_path": source, "revision": revision}
    found: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or name in parts or entry[1] is None:
            continue
        library, class_name = entry
        cls = getattr(diffusers if library == "diffusers" else transformers, class_name)
        if name in ("transformer", "unet", "vae"):
            config = {**cls.load_config(source, subfolder=name, revision=revision)}
            # the autoencoder is float32 always
            found[name] = _built(cls, config, how, torch.float32 if name == "vae" else dtype)
        elif name.startswith("text_encoder") and not how.cut:
            with torch.device(how.device):
                found[name] = cls(cls.config_class.from_pretrained(source, subfolder=name, revision=revision)).to(dtype)
        elif name in ("tokenizer", "scheduler"):
            found[name] = cls.from_pretrained(**where, subfolder=name)
    missing = {name: None for name, entry in index.items() if isinstance(entry, list) and name not in found}
    options = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    return kind(**found, **missing, **options)


def _built(cls: Any, config: dict[str, Any], how: Weightless, dtype: torch.dtype) -> Any:
    if how.cut and "latent_channels" not in config:
        with torch.device("meta"):
            whole = sum(parameter.numel() for parameter in cls.from_config(config).parameters())
        config = config if whole <= CUT_ABOVE else config | cut(config)
    with torch.device(how.device):
        # plain torch's, for diffusers warns of every conversion
        return nn.Module.to(cls.from_config(config), dtype)


def cut(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to change in a network's config so that few of its blocks are left, every kind of them: three of a transformer, one transformer
    layer in each block of a UNet."""
    if "num_layers" in config:
        dual = tuple(layer for layer in config.get("dual_attention_layers") or () if layer < 3)
        return {"num_layers": 3, **({"dual_attention_layers": dual} if dual else {})}
    return {"transformer_layers_per_block": 1}
