"""A ``result.json`` of ``genrl evaluate``, read back for its page."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrl.comparison.table import DIVERSITY
from genrl.evaluation.pictures import Files
from genrl.evaluation.plots import as_float
from genrl.evaluation.statistics import prompt_means

SCHEMA = 1

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A ``result.json``, with its tables as arrays. ``models`` are the labels, base first; ``rewards`` in the order of the protocol."""

    raw: Mapping[str, Any]
    models: tuple[str, ...]
    rewards: tuple[str, ...]
    scores: Mapping[str, Mapping[str, np.ndarray]]  # model -> reward -> [P, N]
    files: Mapping[str, Files]  # model -> pictures
    digest: str  # of the file

    @property
    def base(self) -> str:
        return self.models[0]

    @property
    def prompts(self) -> list[str]:
        return [line["prompt"] for line in self.raw["protocol"]["prompts"]]

    def rows(self, metric: str) -> dict[str, Row]:
        """The rows of one metric in the comparison, by model; the base's has no difference."""
        return {row["model"]: row for row in self.raw["comparison"] if row["metric"] == metric}

    @property
    def metrics(self) -> list[str]:
        """Rewards in the order of the protocol, then the rest."""
        every = dict.fromkeys(row["metric"] for row in self.raw["comparison"])
        return [name for name in self.rewards if name in every] + [name for name in every if name not in self.rewards]


def read(folder: Path) -> Result:
    """Read ``result.json`` and find the pictures; a model without any is shown without."""
    file = folder / "result.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no result.json: a page needs what `genrl evaluate` wrote")
    text = file.read_bytes()
    raw = json.loads(text)
    if raw.get("genrl_evaluation") != SCHEMA:
        raise ValueError(f"{file} is of schema {raw.get('genrl_evaluation')}, this version reads {SCHEMA}: evaluate again")
    models = tuple(model["label"] for model in raw["models"])
    scores = {
        label: {name: np.array(values, dtype=float) for name, values in tables.items()}  # null becomes NaN
        for label, tables in raw["scores"].items()
    }
    size = len(raw["protocol"]["prompts"]), raw["protocol"]["images_per_prompt"]
    files = {label: _pictures(folder / "models" / label, *size) for label in models}
    return Result(raw, models, tuple(raw["protocol"]["rewards"]), scores, files, hashlib.sha256(text).hexdigest()[:12])


def _pictures(folder: Path, prompts: int, images: int) -> dict[tuple[int, int], Path]:
    """(place of the prompt, image number) -> file; without what an earlier, larger evaluation left in the folder."""
    found = {}
    for file in folder.glob("*-*.png"):
        place, _, image = file.stem.partition("-")
        if place.isdigit() and image.isdigit() and int(place) < prompts and int(image) < images:
            found[int(place), int(image)] = file
    return found


def means(found: Result, model: str, metric: str) -> tuple[float, tuple[float, float]]:
    """Mean of a metric over prompts and its 95 % interval; NaN where the result has none."""
    row = found.rows(metric).get(model, {})
    if "mean" not in row:
        return math.nan, (math.nan, math.nan)
    return float(row["mean"]), (as_float(row["ci95"][0]), as_float(row["ci95"][1]))


def spread(found: Result, metric: str) -> float:
    """Standard deviation of a metric over the base's prompts: what differences of unlike metrics are counted in; NaN if it is 0."""
    if metric.startswith(DIVERSITY):
        values = np.array(found.raw["diversity"][found.base][metric.removeprefix(DIVERSITY)], dtype=float)
    else:
        values = prompt_means(found.scores[found.base][metric])
    known = values[~np.isnan(values)]
    deviation = float(known.std()) if len(known) else 0.0
    return deviation if deviation > 0 else math.nan
