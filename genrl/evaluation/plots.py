"""What a page carries inside: plots as inline SVG, and numbers as words.

matplotlib draws with stand-in colours; afterwards each is replaced by a CSS variable of the page (``var(--judge)``, ``currentColor``),
so one plot follows the reader's theme. Text stays text, in the page's font: small, sharp and searchable. The figures are drawn
about as wide as a phone, so that their labels stay readable when a page lays them out in one column.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

# stand-in colour -> what the page puts in its place; the values only have to be distinct and unlikely
TEXT, GRID, PAPER = "#010203", "#010204", "#010205"
JUDGE, PROXY, MUTED, THIRD, FOURTH = "#010206", "#010207", "#010208", "#010209", "#01020a"
_CSS = {
    TEXT: "currentColor",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    JUDGE: "var(--judge)",
    PROXY: "var(--proxy)",
    MUTED: "var(--muted)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a score called "a$b$" is a name, not a formula
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": TEXT,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": TEXT,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}
_WIDTH, _HEIGHT = 4.6, 3.0  # inches of 72 units


@dataclass(frozen=True)
class Line:
    """One curve: ``x, y`` of one length, with an optional band ``low..high``; a faint line is drawn thin and without markers."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = JUDGE
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False
    opacity: float = 1.0


def lines(curves: Sequence[Line], title: str, xlabel: str, alt: str, floor: float | None = None, doubling: bool = False) -> Markup:
    """Curves over a common axis. ``floor`` cuts the view from below (not the data): one early outlier must not flatten the rest.
    With ``doubling`` the axis of x is logarithmic and named at the points, as numbers of steps ask for."""

    def draw(ax: Any) -> None:
        for curve in curves:
            if curve.low is not None and curve.high is not None:
                ax.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.16, linewidth=0)
            few = len(curve.x) <= 40 and not curve.faint
            width = 1.1 if curve.faint else 1.8
            ax.plot(curve.x, curve.y, color=curve.color, marker="o" if few else "", linewidth=width, alpha=curve.opacity, label=curve.label)
        if floor is not None and ax.get_ylim()[0] < floor:
            ax.set_ylim(bottom=floor)
        if len(curves) > 1:
            ax.legend(loc="best", ncols=2 if len(curves) > 4 else 1, labelcolor=TEXT)
        if doubling:
            ticks = sorted({x for curve in curves for x in curve.x})
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.set_xticks([], minor=True)
        ax.set_title(title)
        ax.set_xlabel(xlabel)

    return svg(draw, alt)


def intervals(labels: Sequence[str], middle: Sequence[float], low: Sequence[float], high: Sequence[float], title: str, alt: str) -> Markup:
    """A dot and its interval per row, first label on top, with a line at zero. Hollow dots: the interval includes zero."""

    def draw(ax: Any) -> None:
        rows = np.arange(len(labels))[::-1]
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.hlines(rows, low, high, color=JUDGE, linewidth=2)
        sure = [bool(a > 0 or b < 0) for a, b in zip(low, high, strict=True)]
        ax.scatter(middle, rows, s=34, facecolors=[JUDGE if s else PAPER for s in sure], edgecolors=JUDGE, linewidths=1.8, zorder=3)
        ax.set_yticks(rows, [short(label) for label in labels])
        ax.tick_params(axis="y", labelcolor=TEXT)
        ax.set_ylim(-0.7, len(labels) - 0.3)
        ax.locator_params(axis="x", nbins=6)
        ax.grid(axis="y", visible=False)
        ax.set_title(title)

    return svg(draw, alt, height=0.9 + 0.3 * len(labels))


def path(
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    title: str,
    xlabel: str,
    alt: str,
    diagonal: bool = False,
    ringed: Sequence[bool] = (),
) -> Markup:
    """The way of a run through a plane, one point per evaluation: first hollow, last filled, both named by ``names``; some ``ringed``."""

    def draw(ax: Any) -> None:
        rings = [(a, b) for a, b, ring in zip(x, y, ringed, strict=False) if ring]
        ax.scatter([a for a, _ in rings], [b for _, b in rings], s=150, facecolors="none", edgecolors=PROXY, linewidths=1.6, zorder=2)
        if diagonal:
            ends = [min(0.0, *x, *y), max(0.0, *x, *y)]
            ax.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        ax.plot(x, y, color=JUDGE, linewidth=1.3, alpha=0.5)
        ax.scatter(x[1:-1], y[1:-1], s=16, color=JUDGE, alpha=0.6, linewidths=0, zorder=3)
        ax.scatter(x[:1], y[:1], s=46, facecolors=PAPER, edgecolors=JUDGE, linewidths=1.8, zorder=4)
        ax.scatter(x[-1:], y[-1:], s=50, color=JUDGE, zorder=4)
        ax.margins(0.16, 0.22 if ringed else 0.16)
        for i in {0, len(x) - 1}:
            # away from the other end, so that the words do not lie on the path
            up = y[i] >= y[-1 - i]
            away = (9 + 3 * bool(ringed)) * (1 if up else -1)
            ax.annotate(names[i], (x[i], y[i]), xytext=(0, away), textcoords="offset points", ha="center", va="bottom" if up else "top")
        ax.set_title(title)
        ax.set_xlabel(xlabel)

    return svg(draw, alt)


def scatter(groups: Sequence[tuple[str, np.ndarray, np.ndarray, str]], title: str, xlabel: str, alt: str) -> Markup:
    """Clouds of points, ``(label, x [P], y [P], colour)`` each."""

    def draw(ax: Any) -> None:
        for label, x, y, color in groups:
            ax.scatter(x, y, s=11, color=color, alpha=0.55, linewidths=0, label=label)
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=len(groups),
            labelcolor=TEXT,
            handletextpad=0,
            columnspacing=1,
            markerscale=2,
        )
        ax.set_title(title, pad=22)
        ax.set_xlabel(xlabel)

    return svg(draw, alt)


def svg(draw: Callable[[Any], None], alt: str, height: float = _HEIGHT) -> Markup:
    """Run ``draw`` on fresh axes and return an ``<svg>`` for inlining: no fixed size, no metadata, no fixed colours."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = _STYLE | {"svg.hashsalt": alt}
    with matplotlib.rc_context(style):  # the salt keeps ids of the figures of one page apart, and constant
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    viewbox = re.search(r'viewBox="([^"]*)"', text)
    assert viewbox is not None, "matplotlib wrote an SVG without a viewBox"
    text = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{viewbox[1]}"' + text[text.index(">") :]
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    return Markup(text.strip())  # matplotlib escapes the texts, ``escape`` the label: nothing from outside is markup


def short(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def number(value: float | None) -> str:
    """Three decimals below 1, fewer above, without a leading zero: ``.561``, ``21.3``; a dash when unknown."""
    value = as_float(value)
    if math.isnan(value):
        return "–"
    size = abs(value)
    text = f"{size:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"
    text = text[1:] if text.startswith("0.") else text
    return f"−{text}" if value < 0 and float(text) != 0 else text


def fine(value: float | None) -> str:
    """``number``, but two digits of what is closer to zero than .01, as kernel distances are: ``.00031``; below a millionth ``3.1e-07``."""
    value = as_float(value)
    if math.isnan(value) or value == 0 or abs(value) >= 0.01:
        return number(value)
    size = abs(value)
    text = f"{size:.{1 - math.floor(math.log10(size))}f}"[1:] if size >= 1e-6 else f"{size:.1e}"
    return f"−{text}" if value < 0 else text


def signed(value: float | None) -> str:
    """``number`` with its sign, for gains."""
    text = number(value)
    return text if text[0] in "−–" else f"+{text}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def percent(value: float | None) -> str:
    return "–" if math.isnan(as_float(value)) else f"{100 * as_float(value):.0f}\u00a0%"


def duration(seconds: float | None) -> str:
    """``2 h 14 min``, ``3 min 20 s``, ``12 s``."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(bytes_: float | None) -> str:
    """``812 MB``, ``14.2 GB``; a dash when unknown."""
    if bytes_ is None:
        return "–"
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


def as_float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
