"""The protocol of an evaluation, kept in its result so that others can repeat it: ``genrl evaluate --like result.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from genrl.comparison.subjects import Kind, Subject
from genrl.models.drawing import Settings
from genrl.prompt_sets import Collection
from genrl.prompts.public import digest
from genrl.types import Prompt

RESULT = "result.json"
SCHEMA = 1


@dataclass(frozen=True)
class Protocol:
    """What must be the same for two evaluations to be comparable.

    Args:
        prompts: what is drawn; images: of each; seed: of all noise.
        rewards: label -> {"name", "options"}: what judges.
        features: names of ``genrl.models.features``, and ``lpips``: what diversity and distances are measured in.
        reference: what sets are compared with: ``base``, ``none``, a folder of pictures, or a file of statistics.
        train: a prompt file that was trained on, beside those of the runs, to look for leaks.
    """

    prompts: Collection
    images: int = 4
    seed: int = 0
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    features: Sequence[str] = ()
    reference: str = "base"
    train: str = ""


def like(path: Path) -> tuple[list[Subject], Protocol, dict[str, Any]]:
    """Subjects and protocol of an earlier ``result.json``, and the result itself.

    Raises:
        ValueError: no such file, or it is no result of this schema.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        earlier = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {str(path)!r} as a result of genrl evaluate: {error}") from error
    if not isinstance(earlier, dict) or earlier.get("genrl_evaluation") != SCHEMA:
        raise ValueError(f"{str(path)!r} is no result of genrl evaluate of this version (it says {SCHEMA} at genrl_evaluation)")
    try:
        _means(earlier)  # read when all is drawn; what is wrong with it is told now
        return [_subject(kept) for kept in earlier["subjects"]], _protocol(earlier["protocol"]), earlier
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(path)!r} cannot be repeated, its protocol was edited or is incomplete: {what}") from error


def _protocol(told: Mapping[str, Any]) -> Protocol:
    prompts = [
        Prompt(line["prompt"], line["category"], {key: value for key, value in line.items() if key != "prompt"}) for line in told["prompts"]
    ]
    collection = Collection(prompts=prompts, **told["prompt_set"])
    if digest(prompts) != collection.sha256:
        raise ValueError(f"the prompts have the SHA-256 {digest(prompts)}, and {collection.sha256} is noted")
    rewards = {label: {"name": str(term["name"]), "options": dict(term.get("options", {}))} for label, term in told["rewards"].items()}
    reference = str(told["reference"]["source"]) if told["reference"] else "none"
    images, seed, extractors = told["images_per_prompt"], told["seed"], [str(name) for name in told["extractors"]]
    if type(images) is not int or type(seed) is not int:
        raise ValueError(f"images_per_prompt and seed must be whole numbers; got {images!r} and {seed!r}")
    return Protocol(collection, images, seed, rewards, extractors, reference)


def _subject(kept: Mapping[str, Any]) -> Subject:
    if kept["kind"] not in get_args(Kind) or not all(isinstance(kept[name], str) for name in ("label", "source", "lora", "train")):
        raise ValueError(f"no subject: {str(kept)[:200]}")
    given = kept["settings"]
    settings = Settings(**{**given, "options": dict(given["options"]), "absent": tuple(given["absent"])})
    return Subject(**{**kept, "settings": settings, "given": tuple(kept["given"])})


def repeated(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the means of the same models by the same metrics differ from an earlier result, in words."""
    old, new = _means(earlier), _means(now)
    both = [key for key in old if key in new]
    if not both:
        return ["Nothing to compare with the earlier result: no model of the same label has a mean by the same metric."]
    far = [(abs(old[key] - new[key]), key) for key in both]
    most, (model, metric) = max(far)
    if most == 0:
        return [f"All {len(both)} means are those of the earlier result, to the last digit."]
    then, this = old[model, metric], new[model, metric]
    return [f"Of {len(both)} means the farthest from the earlier result is {metric} of {model}: {then:.6g} then, {this:.6g} now."]


def _means(result: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    rows = [row for row in result["comparison"] if row.get("mean") is not None]
    return {(str(row["model"]), str(row["metric"])): float(row["mean"]) for row in rows}
