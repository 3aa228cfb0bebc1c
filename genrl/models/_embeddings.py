"""Text embeddings on disk, so that a prompt set is encoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from genrl.types import Conditioning

log = logging.getLogger(__name__)


class EmbeddingCache:
    """One file for each list of prompts, named by a hash of those prompts and of all that decides what they become.

    Args:
        folder: where the files lie; made when the first is written.
        identity: source, fingerprint of the encoders, their options and format: plain values, compared as JSON.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        libraries = {name: version(name) for name in ("diffusers", "transformers")}
        self.identity = json.dumps({**identity, **libraries}, sort_keys=True, default=str)

    def path(self, prompts: Sequence[str]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps([self.identity, *prompts]).encode()).hexdigest()[:32]}.safetensors"

    def read(self, prompts: Sequence[str]) -> Conditioning | None:
        """The embeddings of exactly these prompts, on the CPU; None if they are not there, or, with a warning, cannot be read."""
        path = self.path(prompts)
        if not path.is_file():
            return None
        try:
            found = load_file(path)
            # where a file puts them they are not aligned as in memory, and a network's last bits depend on that
            cond = Conditioning(found["embeds"].clone(), found["pooled"].clone())
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("speed.embeddings: %s cannot be read (%s), so its prompts are encoded again", path, error)
            return None
        return cond

    def write(self, prompts: Sequence[str], cond: Conditioning) -> None:
        """Keep the embeddings; whole or not at all, also where several processes write the same file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        os.close(handle)
        try:
            save_file({"embeds": cond.embeds.contiguous(), "pooled": cond.pooled.contiguous()}, aside)
            Path(aside).replace(self.path(prompts))
        finally:
            Path(aside).unlink(missing_ok=True)


def fingerprint(source: str, folder: Path | None, revision: str | None) -> Any:
    """What changes when the encoders of a pipeline change: the commit of a hub id; name, size and time of a folder's encoder files."""
    if folder is None:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source, "model_index.json", revision=revision)).parent.name
    parts = [part for part in folder.iterdir() if part.name.startswith(("text_encoder", "tokenizer"))]
    files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
    return [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def identity_of(source: str, folder: Path | None, revision: str | None) -> dict[str, Any]:
    """Which model the encoders are of, however its folder is written, and that they are still the same."""
    place = str(folder.resolve()) if folder else source
    return {"source": place, "revision": revision, "fingerprint": fingerprint(source, folder, revision)}
