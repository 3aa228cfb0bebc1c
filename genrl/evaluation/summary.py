"""``summary.json``: a run in numbers, from its first and last full evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrl.evaluation.statistics import paired_gain, prompt_means


def full_evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations with most pictures, that is over the whole held-out set, oldest first."""
    every = [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("round-*.json"))]
    sizes = [len(record["prompts"]) * record["images_per_prompt"] for record in every]
    return [record for record, size in zip(every, sizes, strict=True) if size == max(sizes)]


def summarise(run: Path, judge: str, proxy: str, trained: Sequence[str]) -> dict[str, Any]:
    """Compare the first full evaluation with the last and write ``summary.json``.

    Args:
        judge: score that judges; proxy: the trained one (may be the same), or a second opinion where none was.
        trained: all that training asked; empty for a distillation without reinforcement learning.
    """
    evaluations = full_evaluations(run)
    before, after = evaluations[0], evaluations[-1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines()]
    first, last = prompt_means(before["scores"][judge]), prompt_means(after["scores"][judge])
    gain, low, high = paired_gain(first, last)
    categories = np.asarray([prompt["category"] for prompt in before["prompts"]])
    table = {}
    for category in dict.fromkeys(categories.tolist()):
        rows = categories == category
        value, *interval = paired_gain(first[rows], last[rows])
        table[category or "all"] = {
            "before": float(np.nanmean(first[rows])),
            "after": float(np.nanmean(last[rows])),
            "gain": value,
            "ci95": interval,
            "prompts": int(rows.sum()),
        }
    metric = next(iter(before["diversity"]), "")

    def diversity(record: dict[str, Any]) -> dict[str, float]:
        return {name: float(np.nanmean(np.asarray(values, float))) for name, values in record["diversity"].items()}

    summary = {
        "judge": judge,
        "proxy": proxy,
        "trained": list(trained),
        "judge_before": float(np.nanmean(first)),
        "judge_after": float(np.nanmean(last)),
        "judge_gain": gain,
        "judge_gain_ci95": [low, high],
        "proxy_before": float(np.nanmean(prompt_means(before["scores"][proxy]))),
        "proxy_after": float(np.nanmean(prompt_means(after["scores"][proxy]))),
        "diversity_metric": metric,
        "diversity_before": diversity(before).get(metric),
        "diversity_after": diversity(after).get(metric),
        "diversity_all": {"before": diversity(before), "after": diversity(after)},
        "w2": next((line["policy/w2"] for line in reversed(lines) if "policy/w2" in line), None),
        "rounds": after["round"],
        "images_seen": lines[-1]["images_seen"] if lines else 0,
        "reward_calls": lines[-1]["reward_calls"] if lines else 0,
        "wall_s": round(sum(seconds), 1),
        "per_category": table,
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary
