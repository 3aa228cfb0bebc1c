"""The report of a run: one HTML file with everything inside, readable without a network, without JavaScript and on a phone.

``write_report(run)`` reads what the trainer left in the run folder and writes ``run/report.html``. Needed are ``summary.json`` and two
evaluations; ``metrics.jsonl``, ``versions.json``, ``config.yaml`` and the picture folders may be absent, and the page then says so.

The prompt is the unit of every interval: images of one prompt are not independent. Tables and the verdict compare the first with the
last full evaluation, on all prompts both have; curves use the prompts that *all* evaluations have, so that a curve never moves because its
prompts changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from genrl.evaluation import figures, hacking, pictures, plots, rendering, views
from genrl.evaluation.lines import read_lines
from genrl.evaluation.pictures import Album
from genrl.evaluation.plots import as_float, nanmean, number, signed
from genrl.evaluation.reading import Evaluation, full_ends, on_common, pictures_of, read_evaluations
from genrl.evaluation.statistics import bootstrap_interval, paired_gain

ENDS: tuple[str, str] = ("base model", "trained model")
NEEDED = ("judge", "proxy", "judge_before", "judge_after", "judge_gain", "judge_gain_ci95", "rounds", "images_seen", "wall_s")
OPTIONAL = ("proxy_before", "proxy_after", "diversity_before", "diversity_after", "reward_calls")
"""What the page takes from ``summary.json``; all else it asks for."""


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from the files of a finished run and return its path."""
    run = Path(run)
    evaluations = read_evaluations(run)
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(f"{run} has no summary.json: a report needs a run that finished")
    summary: dict[str, Any] = _object(run / "summary.json")
    if lacking := [name for name in NEEDED if name not in summary]:
        raise ValueError(f"{run / 'summary.json'} is no summary of a run: it lacks {', '.join(lacking)}")
    summary = {**dict.fromkeys(OPTIONAL), **summary}
    judge, proxy = summary["judge"], summary["proxy"]
    # runs of older versions always trained the proxy
    trained = summary.setdefault("trained", [proxy])
    first, last = on_common(full_ends(evaluations))
    path = on_common(evaluations)
    _check_paired(first, last, judge)
    verdict = hacking.verdict(first.scores, last.scores, judge, proxy, trained)
    metrics = read_lines(run / "metrics.jsonl")
    versions = _object(run / "versions.json") if (run / "versions.json").is_file() else {}
    album = Album()
    name = run.resolve().name
    drawn, grids = picture_grids(first, last, judge, album)
    context = {
        "name": name,
        "summary": summary,
        "outcome": outcome(summary),
        "verdict": verdict,
        "second": "trained reward" if proxy in trained else "second opinion",
        "views": views.page(run, full_ends(evaluations)[-1], judge, album),
        "drawn": drawn,
        "shown": pictures.PAIRS,
        "grids": grids,
        "votes": {"key": f"genrl votes {name} {pair_hash(first, last)}", "file": f"votes-{name}.json", "models": ENDS},
        "film": pictures.filmstrip(evaluations, judge, album),
        "calibration": figures.calibration(metrics),
        "kept": as_float(summary.get("diversity_after")) / (summary.get("diversity_before") or math.nan),
        "curves": curve_plots(path, metrics, summary),
        "has_metrics": bool(metrics),
        "curve_prompts": len(path[0].keys),
        "prompts": len(first.keys),
        "scores": score_rows(first, last),
        "categories": category_rows(summary),
        "category_plot": category_plot(summary),
        "diversity_plot": diversity_plot(path, summary),
        "hacking_plots": hacking.figures(
            [e.scores for e in path], [f"round {e.round}" for e in path], first.scores, last.scores, judge, proxy
        )
        if verdict.numbers
        else [],
        "thresholds": {"gap": hacking.MATERIAL_GAP_Z, "rank": hacking.RANK_DROP},
        "alarms": read_lines(run / "alarms.jsonl"),
        "versions": versions,
        "evaluation": first,
        "prompts_hash": hashlib.sha256("\n".join(key[0] for key in first.keys).encode()).hexdigest()[:12],
        "config": _read(run / "config.yaml"),
    }
    return rendering.write(run / "report.html", Path(__file__).parent / "report.html.j2", context, album)


def _check_paired(first: Evaluation, last: Evaluation, judge: str) -> None:
    """Every "before and after" of the page is paired by prompt and seed; refuse to compare what is not."""
    if judge not in first.scores:
        raise ValueError(f"round {first.round} has no scores of the judge {judge!r}, only {sorted(first.scores)}")
    for what in ("seed", "images_per_prompt"):
        if getattr(first, what) != getattr(last, what):
            raise ValueError(
                f"rounds {first.round} and {last.round} are not paired: {what} {getattr(first, what)} and {getattr(last, what)}"
            )
    if first.scores.keys() != last.scores.keys() or first.diversity.keys() != last.diversity.keys():
        raise ValueError(f"rounds {first.round} and {last.round} were not scored by the same rewards and diversity metrics")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _object(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no object in JSON: {error}") from error


def outcome(summary: dict[str, Any]) -> dict[str, str]:
    """The judge's gain in words: ``rose``, ``fell`` or ``noise``, decided by whether the 95 % interval excludes zero."""
    low, high = map(as_float, summary["judge_gain_ci95"])
    if low > 0 or high < 0:
        direction = "rose" if low > 0 else "fell"
        return {"direction": direction, "verb": direction, "remark": "more than noise"}
    return {"direction": "noise", "verb": "went", "remark": "not distinguishable from noise"}


def score_rows(first: Evaluation, last: Evaluation) -> list[dict[str, Any]]:
    """Every score and diversity metric before and after, with the paired gain and the share of prompts that got better (ties half)."""
    rows = []
    columns = {name: (hacking.prompt_means(first.scores[name]), hacking.prompt_means(last.scores[name])) for name in first.scores}
    columns |= {f"diversity: {name}": (first.diversity[name], last.diversity[name]) for name in first.diversity}
    for name, (before, after) in columns.items():
        known = ~np.isnan(before) & ~np.isnan(after)
        before, after = before[known], after[known]
        row: dict[str, Any] = {"name": name, "prompts": int(known.sum())}
        if row["prompts"]:
            gain, low, high = paired_gain(before, after)
            wins = float(((after > before) + 0.5 * (after == before)).mean())
            row |= {"before": before.mean(), "after": after.mean(), "gain": gain, "low": low, "high": high, "wins": wins}
        rows.append(row)
    return rows


def category_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The categories of ``summary.json``, largest gain first."""
    rows = [{"name": name, **row} for name, row in summary.get("per_category", {}).items()]
    return sorted(rows, key=lambda row: (row["gain"] is None, -as_float(row["gain"])))


def picture_grids(first: Evaluation, last: Evaluation, judge: str, album: Album) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Before and after at the same seed: pairs drawn at random, with the judge's scores, and per reward those that gained and lost most."""
    before, after = ENDS
    files: dict[str, pictures.Files] = {before: pictures_of(first), after: pictures_of(last)}
    if not files[before].keys() & files[after].keys():
        return [], []
    prompts = [prompt for prompt, _ in first.keys]
    scores = {name: {before: first.scores[name], after: last.scores[name]} for name in first.scores}
    drawn = pictures.drawn_rows(album, prompts, files, scores[judge])
    names = sorted(scores, key=lambda name: name != judge)  # the judge first
    return drawn, [{"reward": name, **pictures.extremes(album, prompts, files, scores[name], before)} for name in names]


def pair_hash(first: Evaluation, last: Evaluation) -> str:
    """What two evaluations measured, in twelve hexadecimal digits: votes on other pictures must not be counted as votes on these."""
    scores = [[name, evaluation.scores[name].tolist()] for evaluation in (first, last) for name in sorted(evaluation.scores)]
    text = json.dumps([first.keys, first.seed, first.round, last.round, scores])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def curve_plots(path: list[Evaluation], metrics: list[dict[str, Any]], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Judge, trained reward or second opinion, W2 and explained variance over rounds; those that the run did not measure are left out."""
    found = []
    judge, proxy, trained = summary["judge"], summary["proxy"], summary["trained"]
    wanted = [
        (judge, plots.JUDGE, "judge and trained reward" if judge in trained else "judge"),
        (proxy, plots.PROXY, "trained reward" if proxy in trained else "second opinion"),
    ]
    for name, color, role in wanted[: 1 if judge == proxy else 2]:
        if not all(name in e.scores for e in path):
            continue
        means = [hacking.prompt_means(e.scores[name]) for e in path]
        known = [values[~np.isnan(values)] for values in means]
        bands = [bootstrap_interval(values) if len(values) else (math.nan, math.nan) for values in known]
        low, high = ([band[end] for band in bands] for end in (0, 1))
        line = plots.Line("held-out prompts", [e.round for e in path], [nanmean(v) for v in means], color, low, high)
        lines = [line]
        x, y = figures.series(metrics, f"reward/{name}/mean")
        if x:
            lines.insert(0, plots.Line("training batches", x, y, plots.MUTED, faint=True, opacity=0.5))
        alt = f"{name} ({role}) over rounds: {number(line.y[0])} at round {path[0].round}, {number(line.y[-1])} at round {path[-1].round}"
        found.append({"svg": plots.lines(lines, f"{name} ({role})", "round", alt), "note": f"95 % band over {len(path[0].keys)} prompts."})
    x, y = figures.series(metrics, "policy/w2")
    if x:
        alt = f"W2 distance to the base model over rounds, {number(y[-1])} at the end"
        svg = plots.lines([plots.Line("W2", x, y, plots.MUTED)], "W2: distance to the base model", "round", alt)
        found.append({"svg": svg, "note": "How far the policy has moved from where it started."})
    critic = figures.critic(metrics)
    return [*found, critic] if critic else found


def category_plot(summary: dict[str, Any]) -> Markup | None:
    rows = [row for row in category_rows(summary) if not math.isnan(as_float(row["gain"]))]
    if not rows:
        return None
    names, gains = [row["name"] for row in rows], [row["gain"] for row in rows]
    low, high = zip(*(map(as_float, row["ci95"]) for row in rows), strict=True)
    ends = f"from {names[0]} ({signed(gains[0])}) to {names[-1]} ({signed(gains[-1])})"
    alt = f"Gain of {summary['judge']} per category with 95 % intervals, {ends}"
    return plots.intervals(names, gains, low, high, f"Gain in {summary['judge']}, with 95 % interval", alt)


def diversity_plot(path: list[Evaluation], summary: dict[str, Any]) -> dict[str, Any] | None:
    """Diversity kept (relative to the first evaluation) against the judge, a point per evaluation, and the names of those on the front."""
    metric, judge = summary.get("diversity_metric") or "", summary["judge"]
    measured = [e for e in path if metric in e.diversity and judge in e.scores]
    base = nanmean(measured[0].diversity[metric]) if measured else math.nan
    if len(measured) < 2 or not base > 0:
        return None
    x = [100 * nanmean(e.diversity[metric]) / base for e in measured]
    y = [nanmean(hacking.prompt_means(e.scores[judge])) for e in measured]
    names = [f"round {e.round}" for e in measured]
    front = figures.pareto(x, y)
    alt = f"{judge} against diversity kept: from {number(y[0])} at 100 % to {number(y[-1])} at {x[-1]:.0f} %"
    svg = plots.path(x, y, names, judge, f"diversity kept, % of the base ({metric})", alt, ringed=front)
    return {"svg": svg, "points": len(front), "front": [name for name, on in zip(names, front, strict=True) if on]}
