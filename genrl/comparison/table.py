"""From scores to statements: what each subject has over the base, with intervals, and whether it is more than noise.

The prompt is the unit: images of one prompt are averaged, prompts are paired, and intervals and tests are over prompts. Metrics are
corrected for their number within a subject (Holm), so that one of many does not look better by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrl.evaluation.ranking import ranking
from genrl.evaluation.statistics import (
    holm,
    minimum_detectable,
    paired_interval,
    paired_test,
    prompt_means,
    studentised_interval,
    win_rate,
)
from genrl.types import Prompt

Column = Mapping[str, np.ndarray]
"""Metric -> a value per prompt ``[P]``, NaN where there is none."""

DIVERSITY = "diversity: "
"""How the metrics of diversity begin; no reward may."""
ALPHA = 0.05
FEWEST = 3
"""Prompts below which a category gets no interval (ours)."""


def columns(scores: Mapping[str, Mapping[str, np.ndarray]], diversity: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Column]:
    """Per subject, every metric as a value per prompt: rewards by their label, diversity as ``diversity: layout``."""
    return {
        label: {name: prompt_means(values) for name, values in scores[label].items()}
        | {f"{DIVERSITY}{name}": np.asarray(values, float) for name, values in diversity[label].items()}
        for label in scores
    }


def comparison(found: Mapping[str, Column], base: str) -> list[dict[str, Any]]:
    """A row for each metric and subject; those of the base have no difference."""
    rows = []
    for label, column in found.items():
        own = [_row(name, label, values, found[base][name] if label != base else None) for name, values in column.items()]
        tested = [row for row in own if not math.isnan(row.get("p", math.nan))]
        for row, adjusted in zip(tested, holm(np.array([row["p"] for row in tested])), strict=True):
            row["p_adjusted"] = float(adjusted)
            row["verdict"] = _verdict(row)
        rows += own
    return rows


def _row(metric: str, label: str, values: np.ndarray, base: np.ndarray | None) -> dict[str, Any]:
    known = np.isfinite(values) if base is None else np.isfinite(values) & np.isfinite(base)
    row: dict[str, Any] = {"metric": metric, "model": label, "prompts": int(known.sum())}
    if known.sum() < 2:
        return row
    values = values[known]
    row |= {"mean": float(values.mean()), "ci95": list(studentised_interval(values))}
    if base is None:
        return row
    base = base[known]
    difference, *interval = paired_interval(base, values)
    rate, low, high = win_rate(values, base)
    return row | {
        "base_mean": float(base.mean()),
        "difference": difference,
        "difference_ci95": interval,
        "p": paired_test(base, values),
        "win_rate": rate,
        "win_ci95": [low, high],
        "minimum_detectable": minimum_detectable(values - base),
    }


def _verdict(row: Mapping[str, Any]) -> str:
    """Interval and corrected test must agree before a difference is called more than noise (ours)."""
    low, high = row["difference_ci95"]
    if row["p_adjusted"] >= ALPHA or low <= 0 <= high:
        return "no more than noise"
    return "better" if row["difference"] > 0 else "worse"


def categories(found: Mapping[str, Column], prompts: Sequence[Prompt], base: str) -> list[dict[str, Any]]:
    """A row for each metric, category and subject, where the prompts have categories."""
    kinds = [prompt.category for prompt in prompts]
    rows = []
    for category in dict.fromkeys(kind for kind in kinds if kind):
        chosen = np.array([kind == category for kind in kinds])
        for label, column in found.items():
            for metric, values in column.items():
                own, under = values[chosen], found[base][metric][chosen]
                known = np.isfinite(own) & np.isfinite(under)
                if not known.any():
                    continue
                row: dict[str, Any] = {"metric": metric, "category": category, "model": label, "prompts": int(known.sum())}
                row["mean"] = float(own[known].mean())
                if label != base:
                    row["difference"], *interval = paired_interval(under[known], own[known])
                    row["difference_ci95"] = interval if known.sum() >= FEWEST else None
                rows.append(row)
    return rows


def rankings(found: Mapping[str, Column], base: str, rewards: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Bradley-Terry strengths by each reward, strongest first; empty for fewer than three subjects."""
    labels = [base, *(label for label in found if label != base)]
    if len(labels) < 3:
        return {}
    ranked = {reward: ranking({label: found[label][reward] for label in labels}) for reward in rewards}
    return {reward: sorted(rows, key=lambda row: -np.nan_to_num(row["strength"])) for reward, rows in ranked.items()}


def curve(models: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every metric of subjects that were drawn with several numbers of steps, in order of source and steps."""
    several: dict[str, list[Mapping[str, Any]]] = {}
    for model in models:
        if model["settings"] and model["settings"].get("steps"):
            several.setdefault(model["source"], []).append(model)
    found = []
    for source, drawn in several.items():
        if len({model["settings"]["steps"] for model in drawn}) < 2:
            continue
        for model in sorted(drawn, key=lambda model: model["settings"]["steps"]):
            found += [
                {
                    "source": model["label"].rpartition("@")[0] or source,
                    "steps": model["settings"]["steps"],
                    "metric": row["metric"],
                    "mean": row["mean"],
                    "ci95": row["ci95"],
                    "seconds_per_image": model["seconds_per_image"],
                }
                for row in rows
                if row["model"] == model["label"] and "mean" in row
            ]
    return found


def words(result: Mapping[str, Any]) -> list[str]:
    """What came out, for the terminal: a sentence for each subject and reward, and how much less diverse a subject is."""
    said = []
    for row in result["comparison"]:
        if row["model"] == result["base"] or row["metric"].startswith(DIVERSITY):
            continue
        if "difference" not in row:
            said.append(f"{row['model']} cannot be compared by {row['metric']}: too few prompts have scores of both, {row['prompts']}.")
            continue
        low, high = row["difference_ci95"]
        interval = f"{row['difference']:+.3g} [{low:+.3g}, {high:+.3g}]"
        better = {"better": "is better than", "worse": "is worse than"}.get(row["verdict"], "differs by no more than noise from")
        # where no difference varies, nothing is known of what would have been seen
        quiet = row["verdict"] == "no more than noise" and row["minimum_detectable"] > 0
        least = f"; {row['minimum_detectable']:.2g} would have been seen" if quiet else ""
        if least and not low <= 0 <= high:
            least = f"; of so many metrics one is that far by chance (corrected p {row['p_adjusted']:.2g})"
        if least and not low <= 0 <= high and row["p"] >= ALPHA:
            least = f"; interval and permutation test do not agree (p {row['p']:.2g}): too few prompts"
        said.append(
            f"{row['model']} {better} {result['base']} by {row['metric']}: {interval} over {row['prompts']} prompts, "
            f"higher for {row['win_rate']:.0%} of them{least}."
        )
    fewer: dict[str, list[str]] = {}
    for row in result["comparison"]:
        if row["metric"].startswith(DIVERSITY) and row.get("verdict") == "worse":
            ends = f"{row['base_mean']:.3g} -> {row['mean']:.3g}"
            fewer.setdefault(row["model"], []).append(f"{row['metric'].removeprefix(DIVERSITY)} {ends}")
    for model, listed in fewer.items():
        said.append(f"{model} draws a prompt with less variety than {result['base']}, beyond noise: {', '.join(listed)}.")
    return said
