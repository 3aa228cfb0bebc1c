"""The evaluations of a run, read back: ``evaluations/round-*.json``, and those of views."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Key = tuple[str, int]  # a prompt and how often it came before: lists may repeat a prompt


@dataclass(frozen=True)
class Evaluation:
    """One ``round-*.json``, or one of a view: P prompts, N images each; NaN = cannot score."""

    round: int
    images_seen: int
    seed: int
    images_per_prompt: int
    keys: tuple[Key, ...]  # [P]
    scores: dict[str, np.ndarray]  # name -> [P, N]
    diversity: dict[str, np.ndarray]  # metric -> [P]
    shuffled: dict[str, np.ndarray]  # name -> [P, N], with another prompt
    statistics: dict[str, np.ndarray]  # of the pictures, name -> [P]
    folder: Path | None  # the pictures, {prompt:05d}-{image}.png
    rows: tuple[int, ...]  # [P] the prompt number in the picture names

    def on(self, keys: Sequence[Key]) -> Evaluation:
        """The same evaluation with only these prompts, in this order."""
        place = {key: i for i, key in enumerate(self.keys)}
        pick = [place[key] for key in keys]
        columns = ("scores", "diversity", "shuffled", "statistics")
        picked = {column: {name: values[pick] for name, values in getattr(self, column).items()} for column in columns}
        return replace(self, keys=tuple(keys), rows=tuple(self.rows[i] for i in pick), **picked)


def read_evaluations(run: Path) -> list[Evaluation]:
    """All evaluations of a run, by round; at least the one before and the one after training."""
    found = [read_evaluation(run, file) for file in (run / "evaluations").glob("round-*.json")]
    if len(found) < 2:
        raise FileNotFoundError(f"{run / 'evaluations'} has {len(found)} round-*.json: a report compares at least two")
    return sorted(found, key=lambda evaluation: evaluation.round)


def read_evaluation(run: Path, file: Path) -> Evaluation:
    """One of the files.

    Raises:
        ValueError: it holds no evaluation.
    """
    try:
        found = evaluation_of(run, json.loads(file.read_text()))
        per_image, per_prompt = [found.scores, found.shuffled], [found.diversity, found.statistics]
        for axes, tables in ((2, per_image), (1, per_prompt)):
            if any(values.ndim != axes or len(values) != len(found.keys) for table in tables for values in table.values()):
                raise ValueError("its tables are not of its prompts")
        if not isinstance(found.round, int) or not isinstance(found.images_per_prompt, int):
            raise ValueError("its round or number of images is no number")
        return found
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no evaluation of a run ({type(error).__name__}: {error})") from error


def full_ends(evaluations: list[Evaluation]) -> list[Evaluation]:
    """First and last evaluation over the whole held-out set; simply first and last if the run ended before the second of these."""
    most = max(len(evaluation.keys) for evaluation in evaluations)
    full = [evaluation for evaluation in evaluations if len(evaluation.keys) == most]
    ends = full if len(full) > 1 else evaluations
    return [ends[0], ends[-1]]


def on_common(evaluations: list[Evaluation]) -> list[Evaluation]:
    """The evaluations reduced to the prompts that all of them have, in the order of the first."""
    common = set.intersection(*(set(evaluation.keys) for evaluation in evaluations))
    if not common:
        raise ValueError(f"the evaluations of rounds {[e.round for e in evaluations]} have no prompt in common")
    keys = [key for key in evaluations[0].keys if key in common]
    return [evaluation.on(keys) for evaluation in evaluations]


def evaluation_of(run: Path, raw: dict[str, Any]) -> Evaluation:
    seen: Counter[str] = Counter()
    keys = []
    for entry in raw["prompts"]:
        keys.append((entry["prompt"], seen[entry["prompt"]]))
        seen[entry["prompt"]] += 1
    folder = run / raw["images"] if raw.get("images") else None
    return Evaluation(
        round=raw["round"],
        images_seen=raw["images_seen"],
        seed=raw["seed"],
        images_per_prompt=raw["images_per_prompt"],
        keys=tuple(keys),
        scores={name: np.array(values, dtype=float) for name, values in raw["scores"].items()},  # null becomes NaN
        # runs of before had neither of the last two
        **{
            column: {name: np.array(values, dtype=float) for name, values in raw.get(column, {}).items()}
            for column in ("diversity", "shuffled", "statistics")
        },
        folder=folder if folder is not None and folder.is_dir() else None,
        rows=tuple(range(len(keys))),
    )


def pictures_of(evaluation: Evaluation) -> dict[tuple[int, int], Path]:
    """(position of the prompt, image number) -> file, for the pictures that exist."""
    if evaluation.folder is None:
        return {}
    place = {row: p for p, row in enumerate(evaluation.rows)}
    found = {}
    for file in evaluation.folder.glob("*-*.png"):
        row, image = (int(part) for part in file.stem.split("-"))
        if row in place and image < evaluation.images_per_prompt:
            found[place[row], image] = file
    return found
