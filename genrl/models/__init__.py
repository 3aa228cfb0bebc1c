"""Model adapters: the only place, besides rewards and worlds, that knows diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrl.models._diffusers import DiffusersModel

T5_OPTIONS = ("t5", "max_sequence_length")


def load_generator(source: str, **options: Any) -> DiffusersModel:
    """The adapter of the class that the ``model_index.json`` of a folder or hub id names: ``SD3`` or ``SDXL``.

    ``options`` go to that adapter. ``t5`` and ``max_sequence_length`` say nothing to a model that has no T5 and are dropped for it.

    Raises:
        ModelError: nothing there, no pipeline, or one of a class without adapter.
    """
    # diffusers takes seconds to import, so this module does not
    from huggingface_hub import hf_hub_download

    from genrl.models._diffusers import ModelError, folder_of, unloadable
    from genrl.models.sd3 import SD3
    from genrl.models.sdxl import SDXL

    known = {model.pipeline_class.__name__: model for model in (SD3, SDXL)}
    folder, index = folder_of(source), "model_index.json"
    try:
        path = folder / index if folder else Path(hf_hub_download(source, index, revision=options.get("revision")))
        name = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise unloadable(source, "a diffusers pipeline", error) from error
    if name not in known:
        raise ModelError(f"{source!r} is a {name}; there are adapters for {' and '.join(known)}")
    if known[name] is SDXL:
        options = {key: value for key, value in options.items() if key not in T5_OPTIONS}
    return known[name](source, **options)
