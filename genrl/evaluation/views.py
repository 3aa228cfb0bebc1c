"""The report's page of what a run was compared with: a teacher at full length, student and teacher at few steps."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genrl.evaluation import pictures, plots
from genrl.evaluation.pictures import Album
from genrl.evaluation.plots import nanmean, number
from genrl.evaluation.reading import Evaluation, evaluation_of, on_common, pictures_of
from genrl.evaluation.statistics import bootstrap_interval, paired_gain, prompt_means

STEPS = re.compile(r"(.+)-(\d+)$")


def page(run: Path, last: Evaluation, judge: str, album: Album) -> dict[str, Any] | None:
    """The section's content: a row per view, the curve over steps, pictures beside the first full view; None without views."""
    files = [path for path in sorted((run / "evaluations").glob("*.json")) if not path.stem.startswith("round-")]
    views = {path.stem: evaluation_of(run, json.loads(path.read_text())) for path in files}
    views = {name: view for name, view in views.items() if judge in view.scores}
    if not views:
        return None
    ordered = sorted(views, key=lambda name: (STEPS.match(name) is not None, _steps(name)))
    full = [name for name in ordered if not STEPS.match(name)]
    return {
        "rows": [_row("this run", last, last, judge), *(_row(name, views[name], last, judge) for name in ordered)],
        "curve": _curve(views, judge),
        "beside": full[0] if full else None,
        "pairs": _pairs(full[0], views[full[0]], last, judge, album) if full else [],
    }


def _steps(name: str) -> tuple[str, int]:
    found = STEPS.match(name)
    return (found[1], int(found[2])) if found else (name, 0)


def _row(name: str, view: Evaluation, last: Evaluation, judge: str) -> dict[str, Any]:
    """A view's judge, the run's lead over it on the same prompts with its interval, and its diversity."""
    mine, theirs = on_common([last, view])
    own = prompt_means(theirs.scores[judge])
    lead = paired_gain(own, prompt_means(mine.scores[judge])) if view is not last else (math.nan,) * 3
    metric = next(iter(view.diversity), None)
    return {
        "name": name,
        "judge": nanmean(own),
        "lead": lead,
        "diversity": nanmean(view.diversity[metric]) if metric else math.nan,
    }


def _curve(views: dict[str, Evaluation], judge: str) -> Markup | None:
    """Judge over numbers of steps, a line for each kind of view."""
    kinds: dict[str, list[tuple[int, Evaluation]]] = {}
    for name, view in views.items():
        if found := STEPS.match(name):
            kinds.setdefault(found[1], []).append((int(found[2]), view))
    lines = []
    for kind, color in zip(sorted(kinds), (plots.JUDGE, plots.PROXY, plots.MUTED), strict=False):
        points = sorted(kinds[kind], key=lambda point: point[0])
        means = [prompt_means(view.scores[judge]) for _, view in points]
        bands = [bootstrap_interval(values) for values in means]
        low, high = ([band[end] for band in bands] for end in (0, 1))
        lines.append(plots.Line(kind, [steps for steps, _ in points], [nanmean(v) for v in means], color, low, high))
    if not lines or len(lines[0].x) < 2:
        return None
    alt = "; ".join(f"{line.label}: {number(line.y[0])} at {line.x[0]} steps, {number(line.y[-1])} at {line.x[-1]}" for line in lines)
    return plots.lines(lines, judge, "steps", f"{judge} over steps of sampling; {alt}", doubling=True)


def _pairs(name: str, view: Evaluation, last: Evaluation, judge: str, album: Album) -> list[dict[str, Any]]:
    """Pictures of the view and of the run from the same starting noise, of prompts drawn at random."""
    theirs, ours = on_common([view, last])
    files = {name: pictures_of(theirs), "this run": pictures_of(ours)}
    scores = {name: theirs.scores[judge], "this run": ours.scores[judge]}
    return pictures.drawn_rows(album, [prompt for prompt, _ in theirs.keys], files, scores, most=pictures.PAIRS)
