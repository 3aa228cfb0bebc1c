"""Figures that reports and evaluations share: the critic's, the front of reward and diversity, differences with their intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from genrl.evaluation.plots import FOURTH, GRID, JUDGE, MUTED, PAPER, PROXY, TEXT, THIRD, Line, lines, number, short, svg

CALIBRATION = re.compile(r"critic/calibration/(.+)/(predicted|actual)/(\d+)$")
COLORS = (JUDGE, PROXY, THIRD, FOURTH)
MARKERS = ("o", "s", "^", "D")
NAMED = 4  # points of a plane that are named beside it; more get a legend


def look(place: int) -> tuple[str, str]:
    """Colour and marker of the model at this place; the base, at 0, is quiet. Colours repeat after four models, markers do not follow."""
    if place == 0:
        return MUTED, "o"
    turn, color = divmod(place - 1, len(COLORS))
    return COLORS[color], MARKERS[(color + turn) % len(MARKERS)]


def series(metrics: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Rounds and values of one metric, without the lines that lack it."""
    points = [(line["round"], line[key]) for line in metrics if line.get(key) is not None]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def critic(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Explained variance of the critic over rounds, in total and per noise bin; None if the run had no critic."""
    key = "critic/explained_variance"
    bins = sorted({k for line in metrics for k in line if k.startswith(f"{key}/")})
    curves = []
    for i, k in enumerate(bins):
        x, y = series(metrics, k)
        curves.append(Line(f"σ {k.removeprefix(f'{key}/')}", x, y, PROXY, faint=True, opacity=1 - 0.75 * i / len(bins)))
    x, y = series(metrics, key)
    if x:
        curves.append(Line("all noise levels", x, y))
    if not curves:
        return None
    alt = f"Explained variance of the critic over rounds, {number(curves[-1].y[-1])} at the end"
    plot = lines(curves, "Critic: explained variance", "round", alt, floor=-1.0)
    return {"svg": plot, "note": "1 is a perfect forecast of the reward, 0 no better than its mean; below −1 is cut off."}


def calibration(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the critic foretold against what came, a line per noise bin, a point per fifth of the predictions.

    From the last round that recorded ``critic/calibration/<bin>/predicted/<fifth>`` and ``.../actual/<fifth>``; None if no round did.
    Returns the plot, the round, and per bin the mean distance of its points from the diagonal.
    """
    for line in reversed(metrics):
        found: dict[str, dict[str, dict[int, float]]] = {}
        for key, value in line.items():
            if (match := CALIBRATION.match(key)) and value is not None:
                found.setdefault(match[1], {"predicted": {}, "actual": {}})[match[2]][int(match[3])] = float(value)
        curves = []
        for i, (name, points) in enumerate(sorted(found.items())):
            fifths = sorted(points["predicted"].keys() & points["actual"].keys())
            xy = sorted((points["predicted"][q], points["actual"][q]) for q in fifths)
            if xy:
                shade = 1 - 0.75 * i / len(found)
                curves.append(Line(f"σ {name}", [x for x, _ in xy], [y for _, y in xy], JUDGE, opacity=shade))
        if curves:
            off = {curve.label: float(np.mean(np.abs(np.subtract(curve.y, curve.x)))) for curve in curves}
            worst = max(off, key=lambda name: off[name])
            return {"svg": _calibration(curves, worst, off[worst]), "round": line["round"], "off": off, "worst": worst}
    return None


def _calibration(curves: Sequence[Line], worst: str, off: float) -> Markup:
    def draw(ax: Any) -> None:
        every = [value for curve in curves for value in (*curve.x, *curve.y)]
        ax.plot([min(every), max(every)], [min(every), max(every)], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for curve in curves:
            ax.plot(curve.x, curve.y, color=curve.color, marker="o", alpha=curve.opacity, label=curve.label)
        ax.legend(loc="upper left", labelcolor=TEXT)
        ax.set_title("Actual reward, mean of a fifth")
        ax.set_xlabel("predicted reward, mean of the same fifth")

    alt = f"Predicted against actual reward at {len(curves)} ranges of noise; farthest from the diagonal is {worst}, by {number(off)}"
    return svg(draw, alt, height=3.6)


def pareto(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Which points no other beats: none is at least as high in both and higher in one. A point with a NaN is never on the front."""
    points = list(zip(x, y, strict=True))

    def beaten(a: float, b: float) -> bool:
        return any(c >= a and d >= b and (c > a or d > b) for c, d in points)

    return [not (math.isnan(a) or math.isnan(b)) and not beaten(a, b) for a, b in points]


@dataclass(frozen=True)
class Named:
    """A point of a plane with its 95 % intervals; ``place`` is that of the model, 0 for the base."""

    name: str
    x: float
    y: float
    x_ci: tuple[float, float]
    y_ci: tuple[float, float]
    place: int = 0


def plane(points: Sequence[Named], title: str, xlabel: str, alt: str) -> Markup:
    """Models in a plane with crosses of their intervals; a dashed line joins those that no other beats in both (the Pareto front)."""

    def draw(ax: Any) -> None:
        best = [point for point, on in zip(points, pareto([p.x for p in points], [p.y for p in points]), strict=True) if on]
        best = sorted(best, key=lambda point: point.x)
        ax.step([p.x for p in best], [p.y for p in best], where="pre", color=MUTED, linewidth=1.2, linestyle=(0, (3, 3)), zorder=1)
        for point in points:
            color, marker = look(point.place)
            ax.plot(point.x_ci, [point.y] * 2, color=color, alpha=0.45, linewidth=1.4)
            ax.plot([point.x] * 2, point.y_ci, color=color, alpha=0.45, linewidth=1.4)
            face = color if point in best else PAPER
            style = {"facecolors": face, "edgecolors": color, "linewidths": 1.8, "zorder": 4}
            ax.scatter(point.x, point.y, s=52, marker=marker, label=short(point.name), **style)
        ax.margins(0.18)
        ax.locator_params(nbins=6)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        if len(points) > NAMED:
            _legend(ax, [point.name for point in points])
        else:
            _name(ax, points)

    return svg(draw, alt, height=3.4 + 0.1 * len(points) * (len(points) > NAMED))


def _name(ax: Any, points: Sequence[Named]) -> None:
    """Names beside the points, on the first of eight places where they cover neither a point nor another name."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    across, up = 300.0, 190.0  # the axes in points of type, about

    def at(point: Named) -> tuple[float, float]:
        return (point.x - left) / (right - left) * across, (point.y - low) / (high - low) * up

    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in map(at, points)]
    for point in points:
        name = short(point.name, 22)
        width, (x, y) = 5.2 * len(name), at(point)
        choices = [(dx, dy) for dy in (9, -19) for dx in (7, -7 - width, -width / 2)] + [(12, -5), (-12 - width, -5)]

        def crowd(offset: tuple[float, float], x: float = x, y: float = y, width: float = width) -> float:
            box = (x + offset[0], y + offset[1], x + offset[0] + width, y + offset[1] + 10)
            outside = max(0.0, -box[0]) + max(0.0, box[2] - across) + max(0.0, -box[1]) + max(0.0, box[3] - up)
            return 5 * outside + sum(_overlap(box, other) for other in taken)

        dx, dy = min(choices, key=crowd)
        taken.append((x + dx, y + dy, x + dx + width, y + dy + 10))
        ax.annotate(name, (point.x, point.y), xytext=(dx, dy), textcoords="offset points", fontsize=9, ha="left", va="bottom")


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@dataclass(frozen=True)
class Group:
    """Values with intervals of one model, in the order of the rows; NaN leaves a row out."""

    name: str
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int

    @classmethod
    def of(cls, name: str, rows: Sequence[Sequence[float]], place: int) -> Group:
        """From (middle, low, high) of each row."""
        middle, low, high = ([row[k] for row in rows] for k in range(3))
        return cls(name, middle, low, high, place)


def grouped(rows: Sequence[str], groups: Sequence[Group], title: str, alt: str) -> Markup:
    """A dot and its interval per row and model, first row on top, with a line at zero; hollow where the interval includes it."""

    def draw(ax: Any) -> None:
        ax.axvline(0, color=MUTED, linewidth=1)
        heights = np.arange(len(rows))[::-1]
        shifts = np.linspace(0.26, -0.26, len(groups)) if len(groups) > 1 else [0.0]
        for group, shift in zip(groups, shifts, strict=True):
            color, marker = look(group.place)
            ends = list(zip(group.low, group.high, strict=True))
            ax.hlines(heights + shift, group.low, group.high, color=color, linewidth=2)
            faces = [color if a > 0 or b < 0 else PAPER for a, b in ends]
            style = {"facecolors": faces, "edgecolors": color, "linewidths": 1.8, "zorder": 3}
            ax.scatter(group.middle, heights + shift, s=30, marker=marker, label=short(group.name), **style)
        if len(groups) > 1:
            _legend(ax, [group.name for group in groups])
        for height in heights[:-1]:
            ax.axhline(height - 0.5, color=GRID, linewidth=0.7)
        ax.set_yticks(heights, [short(row) for row in rows])
        ax.tick_params(axis="y", labelcolor=TEXT)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.locator_params(axis="x", nbins=6)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(title)

    return svg(draw, alt, height=0.9 + 0.1 * len(groups) + (0.2 + 0.13 * len(groups)) * len(rows))


def _legend(ax: Any, names: Sequence[str]) -> None:
    """A legend above the axes, in as many columns as the figure is wide enough for."""
    column = 24 + 5 * max(len(short(name)) for name in names)  # points of type, about
    columns = max(1, min(len(names), int(331 // column)))
    ax.figure.legend(loc="outside upper left", ncols=columns, labelcolor=TEXT, handletextpad=0.1, columnspacing=1.0)
