"""The figures of ``evaluation.html``. A model has one colour and marker in all of them; the base is grey."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from genrl.comparison.reading import Result, means, spread
from genrl.comparison.table import DIVERSITY
from genrl.evaluation import plots
from genrl.evaluation.figures import Group, Named, grouped, look, pareto, plane
from genrl.evaluation.plots import Line, as_float, number, signed

NOTHING = (math.nan, math.nan, math.nan)


def gains(found: Result) -> Markup | None:
    """Differences to the base with their intervals, a row per metric, in standard deviations of the base over prompts."""
    units = {metric: spread(found, metric) for metric in found.metrics}
    rows = [metric for metric in found.metrics if not math.isnan(units[metric])]
    groups = []
    for place, model in enumerate(found.models[1:], 1):
        values = []
        for metric in rows:
            row = found.rows(metric).get(model, {})
            value = (row["difference"], *row["difference_ci95"]) if row.get("difference_ci95") else NOTHING
            values.append([as_float(end) / units[metric] for end in value])
        groups.append(Group.of(model, values, place))
    if not groups or not rows:
        return None
    ends = "; ".join(f"{group.name} {signed(group.middle[0])} on {rows[0]}" for group in groups)
    return grouped(rows, groups, "difference, standard deviations", f"Differences to {found.base}: {ends}")


def ranking(found: Result) -> Markup | None:
    """Bradley-Terry strengths with their intervals, a row per reward; None for fewer than three models."""
    ranked = found.raw["ranking"]
    if not ranked:
        return None
    rewards, groups = list(ranked), []
    for place, model in enumerate(found.models):
        if place == 0:
            continue  # the strengths are over the base: it is the line at zero
        known = [{row["model"]: row for row in ranked[reward]}.get(model) for reward in rewards]
        values = [(row["strength"], *row["ci95"]) if row else NOTHING for row in known]
        groups.append(Group.of(model, [[as_float(end) for end in value] for value in values], place))
    first = ", ".join(row["model"] for row in ranked[rewards[0]])
    return grouped(rewards, groups, "strength, log-odds", f"Bradley-Terry strengths; by {rewards[0]}: {first}")


def planes(found: Result) -> list[dict[str, Any]]:
    """Diversity against the first reward, a plot per measure of diversity, with the names of the models on the front."""
    if not found.rewards:
        return []
    drawn = []
    for metric in (name for name in found.metrics if name.startswith(DIVERSITY)):
        points = []
        for place, model in enumerate(found.models):
            (x, x_ci), (y, y_ci) = means(found, model, metric), means(found, model, found.rewards[0])
            if not math.isnan(x + y):
                points.append(Named(model, x, y, x_ci, y_ci, place))
        if len(points) < 2:
            continue
        on = pareto([point.x for point in points], [point.y for point in points])
        front = [point.name for point, best in zip(points, on, strict=True) if best]
        alt = f"{found.rewards[0]} against {metric}; on the front: {', '.join(front)}"
        drawn.append(
            {"svg": plane(points, found.rewards[0], metric.replace(DIVERSITY, "diversity, "), alt), "metric": metric, "front": front}
        )
    return drawn


def curves(found: Result) -> list[dict[str, Any]]:
    """Per metric what more steps buy: its mean over the number of steps, and over seconds per image where they were measured."""
    rows = found.raw["curve"]
    drawn = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        here = [row for row in rows if row["metric"] == metric]
        sources = list(dict.fromkeys(row["source"] for row in here))
        quiet = [source for source in sources if found.base in (source, f"{source}@{found.base.rpartition('@')[2]}")]
        places = {source: place for place, source in enumerate([*(quiet or [""]), *(s for s in sources if s not in quiet)])}
        plotted = []
        for axis, label in (("steps", "steps"), ("seconds_per_image", "seconds per image")):
            lines = [line for source in sources if (line := _curve(here, source, axis, places[source]))]
            if lines:
                ends = "; ".join(f"{line.label} from {number(line.y[0])} to {number(line.y[-1])}" for line in lines)
                plotted.append(plots.lines(lines, metric, label, f"{metric} over {label}: {ends}", doubling=axis == "steps"))
        drawn.append({"metric": metric, "plots": plotted})
    return drawn


def _curve(rows: list[dict[str, Any]], source: str, axis: str, place: int) -> Line | None:
    here = sorted((row for row in rows if row["source"] == source and row[axis] is not None), key=lambda row: row[axis])
    if len(here) < 2:
        return None
    low, high = zip(*(map(as_float, row["ci95"] or (None, None)) for row in here), strict=True)
    color, _ = look(place)
    return Line(source, [row[axis] for row in here], [as_float(row["mean"]) for row in here], color, low, high)
