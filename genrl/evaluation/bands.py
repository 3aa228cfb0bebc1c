"""Reference curves: what the metrics of a healthy run look like over its rounds, as a band that one new run should stay within.

``reference_of`` makes one from the finished folders of runs that differ in nothing but their seed. At each point of a curve, with n
seeds of mean m and standard deviation s, the band is a prediction interval for the value of *one more* run,

    m ± max(t_{.975, n-1} s sqrt(1 + 1/n), floor).

The form is the usual one for normal values; what follows is *ours*. ``s`` is pooled with that of the ``NEAR`` points on either side,
because three seeds agree by chance every so often; the degrees of freedom stay n - 1, as neighbouring rounds of a run go together. The
floor of a curve over held-out prompts is what the luck of single pictures makes of it: 1.96 sqrt(1 + 1/n) standard errors of a run's mean
over P prompts, from the variance over seeds within each prompt. That of any other curve is ``FLOOR`` of its median half width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from genrl.evaluation.lines import read_lines
from genrl.evaluation.reading import Evaluation, Key, read_evaluation
from genrl.evaluation.statistics import prompt_means
from genrl.settings import flatten

HELD_OUT, DIVERSITY = "held_out/", "held_out/diversity/"
TOLD = (
    "reward/*/mean",
    "policy/*",
    "critic/explained_variance",
    "mix/valid",
    "student/*",
    "discriminator/accuracy",
    "preference/margin",
    "preview/trust",
)
"""Metrics of ``metrics.jsonl`` that have a curve: what alarms listen to and reports draw."""
FREE = ("run.*", "speed.*", "rewards.cache", "evaluation.pictures")
"""Settings that may differ between runs that are compared."""
NEAR = 2
FLOOR = 0.1
TINY = 1e-3
"""Half width of a band of a curve in which all seeds agree everywhere, as a share of its largest value."""
DIGITS = 4

Points = dict[int, float]  # round -> value


def curves_of(run: Path, keys: Sequence[Key] | None = None) -> dict[str, Points]:
    """The curves of a run, finished or not: those ``TOLD`` of its rounds, and over held-out prompts ``held_out/{score}`` and
    ``held_out/diversity/{metric}``, means of the prompts ``keys``; by default of those that all its evaluations have.

    Evaluations without one of these prompts are left out, and so are values that are no number.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    if not (run / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{run} has no metrics.jsonl: it is no run folder, or its first round is not over yet")
    found: dict[str, Points] = {}
    for line in read_lines(run / "metrics.jsonl"):
        for name, value in line.items():
            if isinstance(value, (int, float)) and np.isfinite(value) and any(fnmatch(name, told) for told in TOLD):
                found.setdefault(name, {})[line["round"]] = float(value)
    evaluations = evaluations_of(run)
    for evaluation in evaluations:
        for name, values in _per_prompt(evaluation, common_keys(evaluations) if keys is None else keys).items():
            if not np.isnan(values).all():
                found.setdefault(name, {})[evaluation.round] = float(np.nanmean(values))
    return found


def evaluations_of(run: Path) -> list[Evaluation]:
    """The evaluations of a run so far, by round; one that cannot be read, as it is being copied, is left out."""
    found = []
    for file in sorted((run / "evaluations").glob("round-*.json")):
        try:
            found.append(read_evaluation(run, file))
        except (ValueError, OSError):
            continue
    return sorted(found, key=lambda evaluation: evaluation.round)


def common_keys(evaluations: Sequence[Evaluation]) -> list[Key]:
    """Prompts that all evaluations have, in the order of the first."""
    shared = set.intersection(*(set(e.keys) for e in evaluations)) if evaluations else set()
    return [key for key in evaluations[0].keys if key in shared] if evaluations else []


def settings_of(run: Path) -> dict[str, Any]:
    """Dotted key -> value of a run's ``config.yaml``, without what is ``FREE``; empty without the file.

    Raises:
        ValueError: the file holds no settings.
    """
    file = run / "config.yaml"
    try:
        flat = flatten(yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} holds no settings of a run: {error}") from error
    return {name: value for name, value in flat.items() if not any(fnmatch(name, free) for free in FREE)}


def reference_of(runs: Sequence[Path], name: str, command: str) -> dict[str, Any]:
    """The reference curve of finished runs, ready for JSON; numbers have ``DIGITS`` significant digits.

    Raises:
        ValueError: there are fewer than two runs, one of them has no end, they differ in more than their seed or have nothing in common.
        FileNotFoundError: a folder without metrics.jsonl or versions.json.
    """
    if len(runs) < 2:
        raise ValueError(f"a band takes runs of two seeds or more, better three; got {len(runs)}")
    if endless := [str(run) for run in runs if not (run / "summary.json").is_file()]:
        raise ValueError(f"{', '.join(endless)} without summary.json: only finished runs make a reference")
    versions = [json.loads((run / "versions.json").read_text()) for run in runs]
    seeds = [version["seed"] for version in versions]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have seeds {seeds}: one seed twice says nothing about the spread")
    settings = [settings_of(run) for run in runs]
    for run, other in zip(runs[1:], settings[1:], strict=True):
        if differ := differences(other, settings[0]):
            raise ValueError(f"{run} has other settings than {runs[0]}: {'; '.join(differ)}")
    keys = common_keys([evaluation for run in runs for evaluation in evaluations_of(run)])
    every, luck = [curves_of(run, keys) for run in runs], _luck(runs, keys)
    shared = [metric for metric in every[0] if all(metric in curves for curves in every)]
    curves = {metric: band([one[metric] for one in every], luck.get(metric)) for metric in shared}
    if not any(curve["round"] for curve in curves.values()):
        raise ValueError(f"{', '.join(map(str, runs))} have no metric at a common round")
    about = {key: value for key, value in versions[0].items() if key not in ("command", "seed", "commit")}
    return {
        "name": name,
        "config": _config(versions[0].get("command", "")),
        "rounds": int(max(max(curve["round"], default=0) for curve in curves.values())),
        "seeds": seeds,
        "commit": versions[0].get("commit", ""),
        "versions": about,
        "command": command,
        "settings": settings[0],
        "prompts": [list(key) for key in keys],
        "curves": {metric: curve for metric, curve in curves.items() if curve["round"]},
    }


def band(seeds: Sequence[Points], luck: Points | None = None) -> dict[str, list[float]]:
    """``round``, ``mean``, ``low`` and ``high`` at the rounds that all seeds have; ``luck`` is the standard error of one run's mean at
    each of them, where it is known."""
    rounds = sorted(set.intersection(*(set(points) for points in seeds)))
    if not rounds:
        return {"round": [], "mean": [], "low": [], "high": []}
    values = np.array([[points[r] for r in rounds] for points in seeds])  # [n, R]
    n, wide = len(seeds), np.sqrt(1 + 1 / len(seeds))
    variance, mean = values.var(axis=0, ddof=1), values.mean(axis=0)
    pooled = np.array([variance[max(0, i - NEAR) : i + NEAR + 1].mean() for i in range(len(rounds))])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt(pooled) * wide
    least = TINY * (np.abs(mean).max() or 1.0)
    floor = np.array([1.96 * luck[r] * wide for r in rounds]) if luck else FLOOR * np.median(half)
    half = np.maximum(np.maximum(half, floor), least)
    columns = {"mean": mean, "low": mean - half, "high": mean + half}
    return {"round": rounds, **{name: [float(f"{v:.{DIGITS}g}") for v in column] for name, column in columns.items()}}


def differences(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Settings that are not those of the reference, in words."""
    return [
        f"{name} {settings.get(name, 'not set')} (reference: {reference.get(name, 'not set')})"
        for name in sorted({*settings, *reference})
        if settings.get(name, "not set") != reference.get(name, "not set")
    ]


def _per_prompt(evaluation: Evaluation, keys: Sequence[Key]) -> dict[str, np.ndarray]:
    """The means ``[P]`` of each score, and each diversity, of these prompts; empty if one is missing."""
    if not keys or not set(keys) <= set(evaluation.keys):
        return {}
    some = evaluation.on(keys)
    found = {f"{HELD_OUT}{name}": prompt_means(values) for name, values in some.scores.items()}
    return found | {f"{DIVERSITY}{name}": values for name, values in some.diversity.items()}


def _luck(runs: Sequence[Path], keys: Sequence[Key]) -> dict[str, Points]:
    """Standard error of a run's mean over prompts, by curve and round: from the variance over seeds within each prompt."""
    stacks: dict[tuple[str, int], list[np.ndarray]] = {}
    for run in runs:
        for evaluation in evaluations_of(run):
            for name, values in _per_prompt(evaluation, keys).items():
                stacks.setdefault((name, evaluation.round), []).append(values)
    found: dict[str, Points] = {}
    for (name, round_), stack in stacks.items():
        within = np.var(stack, axis=0, ddof=1) if len(stack) == len(runs) else np.zeros(0)
        within = within[~np.isnan(within)]
        found.setdefault(name, {})[round_] = float(np.sqrt(within.mean() / len(within))) if len(within) else 0.0
    return found


def _config(command: str) -> str:
    """``ac_flow/shapes.yaml`` of a trainer's command line; empty if it names none."""
    words = command.split()
    after = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
    return "/".join(Path(after[0]).parts[-2:]) if after else ""
