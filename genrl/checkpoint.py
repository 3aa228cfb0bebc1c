"""Checkpoints from which the same command goes on exactly: safetensors and JSON, written aside and renamed when complete."""

from __future__ import annotations

import json
import os
import shutil
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
    entries = optimizer.state_dict()["state"]
    return {f"{prefix}/{index}/{key}": torch.as_tensor(value) for index, state in entries.items() for key, value in state.items()}


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "/"):
            index, key = name[len(prefix) + 1 :].split("/")
            state.setdefault(int(index), {})[key] = tensor
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
