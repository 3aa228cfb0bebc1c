"""Where a model is: a folder or a hub id, and the error that says it is not there. Imports no model library."""

from __future__ import annotations

from pathlib import Path


class ModelError(ValueError):
    """A model that cannot be loaded or used; the message says what to do."""


def folder_of(source: str) -> Path | None:
    """The folder that a source names; None if it is a hub id.

    Raises:
        ModelError: it reads like a path, and nothing is there.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelError(f"no model folder {source!r}; give a diffusers folder, or a hub id like 'owner/name'")
    return None


def unloadable(source: str, what: str, error: Exception) -> ModelError:
    """The error that says what a source was tried as, where, and what came of it."""
    absent = "" if folder_of(source) else " (there is no such folder, so it was looked up on the hub)"
    return ModelError(f"cannot load {source!r} as {what}{absent}: {error}")
