"""``genrl evaluate``: draw, measure, compare, write ``result.json`` and ``evaluation.html``."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrl.comparison import measuring, table
from genrl.comparison.page import write_page
from genrl.comparison.pictures import draw
from genrl.comparison.protocol import RESULT, SCHEMA, Protocol
from genrl.comparison.subjects import Subject, SubjectError, check_label
from genrl.data import load_prompts
from genrl.pixels import best_device
from genrl.pool import RewardPool
from genrl.preference import BradleyTerry, WinRate
from genrl.prompt_sets import leaks
from genrl.reward import RewardError, about, load_reward
from genrl.types import Prompt

PACKAGES = ("genrl-image", "torch", "diffusers", "transformers", "peft", "numpy")


def evaluate(
    subjects: Sequence[Subject],
    protocol: Protocol,
    out: Path,
    *,
    batch: int = 16,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    command: str = "",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare subjects, the first being the base; returns what ``out/result.json`` then holds, and writes ``out/evaluation.html``.

    Pictures and features that ``out`` has from before, of the same models and protocol, are taken as they are.

    Args:
        batch: images per call of a pipeline, and per call of a reward; device, dtype: where and in what the models draw.
        command: what repeats this, for the record. tell: hears how far it is.

    Raises:
        SubjectError, ModelError: a subject that cannot be drawn. RewardError: a reward that cannot be had, or score these prompts.
        ValueError: no subject, no prompt, no image.
    """
    _check(subjects, protocol)
    # the cheap failures first: rewards are loaded, and asked whether they know these prompts, before anything is drawn
    extraction = measuring.Extraction(protocol.features, out / "features", device)
    measuring.look(protocol.reference, extraction.names)
    pool = RewardPool({label: load_reward(term["name"], **term.get("options", {})) for label, term in protocol.rewards.items()}, batch)
    try:
        if siblings := [label for label, reward in pool.rewards.items() if isinstance(reward, (WinRate, BradleyTerry))]:
            raise RewardError(f"{', '.join(siblings)} compares the pictures of a prompt with each other: every model has the same mean")
        prompts = protocol.prompts.prompts
        pool.check([prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])
        (out / "models").mkdir(parents=True, exist_ok=True)
        where, models = best_device(device), []
        for subject in subjects:
            folder = out / "models" / subject.label
            models.append(draw(subject, prompts, protocol.images, protocol.seed, folder, batch, where, dtype, tell))
        measured = _measure(models, prompts, protocol, pool, extraction, out, tell)
        result = _result(models, protocol, pool, measured, subjects, command, where)
    finally:
        pool.close()
    aside = out / f".{RESULT}"
    aside.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")
    aside.rename(out / RESULT)
    write_page(out)
    return result


def _check(subjects: Sequence[Subject], protocol: Protocol) -> None:
    if not subjects:
        raise SubjectError("nothing to evaluate: name at least one model or folder of pictures")
    if not protocol.prompts.prompts:
        raise ValueError(f"the prompt set {protocol.prompts.name!r} is empty")
    if protocol.images < 1:
        raise ValueError(f"{protocol.images} images of each prompt; at least one is drawn")
    for subject in subjects:
        check_label(subject.label)
    if taken := [label for label in protocol.rewards if not label or label.startswith(table.DIVERSITY)]:
        raise ValueError(f"a reward cannot be called {taken[0]!r}: write label=name")
    if len({subject.label for subject in subjects}) < len(subjects):
        raise SubjectError(f"two subjects are called alike: {', '.join(subject.label for subject in subjects)}")
    if twice := [text for text, times in Counter(prompt.text for prompt in protocol.prompts.prompts).items() if times > 1]:
        raise ValueError(f"the prompt set {protocol.prompts.name!r} has {twice[0]!r} twice; ask for more images of it instead")


def _measure(
    models: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    protocol: Protocol,
    pool: RewardPool,
    extraction: measuring.Extraction,
    out: Path,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Scores, diversity and distances of each subject, by its label."""
    scores, diversity, distances, reference = {}, {}, {}, None
    for place, model in enumerate(models):
        label, folder = model["label"], out / "models" / model["label"]
        tell(f"{label}: measuring")
        scores[label] = measuring.scores(pool, folder, prompts, protocol.images)
        pictures = partial(measuring.blocks, folder, len(prompts), protocol.images)
        features = extraction.of(label, measuring.stamp(folder, len(prompts), protocol.images), pictures)
        lpips = extraction.lpips if extraction.nets else None
        diversity[label] = measuring.diversity(folder, len(prompts), protocol.images, features, lpips)
        if place == 0:
            reference = measuring.reference_of(protocol.reference, extraction, label, features, protocol.images)
        # the base is not compared with itself
        against = None if reference and protocol.reference == "base" and place == 0 else reference
        distances[label] = measuring.distances(features, against, protocol.images)
    return {"scores": scores, "diversity": diversity, "distances": distances, "reference": {"found": reference}}


def _result(
    models: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    pool: RewardPool,
    measured: Mapping[str, Mapping[str, Any]],
    subjects: Sequence[Subject],
    command: str,
    device: str,
) -> dict[str, Any]:
    base, reference = models[0]["label"], measured["reference"]["found"]
    columns = table.columns(measured["scores"], measured["diversity"])
    rows = table.comparison(columns, base)
    collection = protocol.prompts
    return {
        "genrl_evaluation": SCHEMA,
        "protocol": {
            "prompt_set": {name: getattr(collection, name) for name in ("name", "sha256", "licence", "source")},
            "prompts": [{**prompt.metadata, "prompt": prompt.text, "category": prompt.category} for prompt in collection.prompts],
            "images_per_prompt": protocol.images,
            "seed": protocol.seed,
            "rewards": {label: dict(term) | _said(pool.rewards[label]) for label, term in protocol.rewards.items()},
            "extractors": list(protocol.features),
            "reference": {"source": protocol.reference, "images": reference.images} if reference else None,
            "leaked": _leaked(subjects, protocol),
            "versions": versions(device),
            "command": command,
        },
        "base": base,
        "models": list(models),
        **{name: measured[name] for name in ("scores", "diversity", "distances")},
        "comparison": rows,
        "categories": table.categories(columns, collection.prompts, base),
        "ranking": table.rankings(columns, base, list(protocol.rewards)),
        "curve": table.curve(models, rows),
        "subjects": [asdict(subject) for subject in subjects],
    }


def _said(reward: Any) -> dict[str, Any]:
    said = about(reward)
    return {"licence": said.license, "weights": list(said.weights)}


def _leaked(subjects: Sequence[Subject], protocol: Protocol) -> list[str]:
    files = dict.fromkeys(path for path in (protocol.train, *(subject.train for subject in subjects)) if path)
    found: list[str] = []
    for path in files:
        # what a run was trained on may have been moved since
        with_path = path == protocol.train
        try:
            train = load_prompts(path)
        except ValueError:
            if with_path:
                raise
            continue
        found += leaks(train, protocol.prompts.prompts)
    return list(dict.fromkeys(found))


def versions(device: str) -> dict[str, Any]:
    """What an evaluation ran with."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {
        "commit": _commit() or "not a git checkout",
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        **{package: version(package) for package in PACKAGES},
    }


def _commit() -> str:
    """Of the checkout that this is; empty for an installed package, be it inside somebody's repository, and where there is no git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return git.stdout.strip()


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, NaN as null."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (np.floating, np.integer)):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
