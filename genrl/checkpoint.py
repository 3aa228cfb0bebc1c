"""Checkpoints from which the same command goes on exactly: safetensors and JSON, written aside and renamed when complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, TENSORS = "state.json", "tensors.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint that does not fit the run; the message says how to go on."""


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    done = sorted(path for path in folder.glob("round-*") if (path / STATE).is_file())
    return done[-1] if done else None


def save(folder: Path, round_: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write ``round-<n>``; a kill at any moment leaves either the old or the new checkpoint. Keeps the ``keep`` newest."""
    target = folder / f"round-{round_:06d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
    (aside / STATE).write_text(json.dumps(state, indent=1))
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    for stale in folder.glob(".round-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for old in sorted(folder.glob("round-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(path / TENSORS), json.loads((path / STATE).read_text())


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as named tensors. Its groups are rebuilt from the config, not stored."""
    entries, packed, seen = optimizer.state_dict()["state"], {}, set()
    for index, state in entries.items():
        for key, value in _flat(state):
            tensor = torch.as_tensor(value)
            # 8-bit states share their table of code words, which safetensors refuses to write twice
            packed[f"{prefix}/{index}/{key}"] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
    return packed


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries of a nested state, their keys joined by ``/``."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", found) for inner, found in _flat(value))
        else:
            yield key, value


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "/"):
            index, *path, key = name[len(prefix) + 1 :].split("/")
            inner = state.setdefault(int(index), {})
            for part in path:
                inner = inner.setdefault(part, {})
            # a count that was a plain number is one again
            inner[key] = tensor.item() if tensor.dtype == torch.int64 and not tensor.ndim else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_same_config(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Refuse to go on under another config; names what changed."""
    changed = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if changed:
        lines = "\n".join(f"  {key}: {saved.get(key)!r} -> {current.get(key)!r}" for key in changed[:8])
        raise CheckpointError(
            f"{where} was written under another config:\n{lines}\n"
            "give the run another name (--run.name), or --run.resume false to start it over"
        )
