"""What the site adds to MkDocs: tables and curves out of result files, settings out of dataclasses, pictures that follow the theme.

A page holds a place between two comments, with words for those who read the Markdown itself; the build puts there what the first names:

    <!-- results: acflow_shapes -->
    README shows this table.
    <!-- end -->

================  ====================================================================================================
``results: X``    the table of ``benchmarks/X.py``, from the result files that it wrote, or what a function of ``SAID`` says of such a file
``curve: X``      a plot of ``CURVES``, from such a file
``config: T.S``   section S of the settings of the trainer T: options, defaults, meaning
``abstract: C``   what a subclass of C must have
``modules: P``    the reference of all public modules of a package
``help: X``       what ``genrl X --help`` says
``source: P``     a file of the repository
================  ====================================================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"<!-- (results|curve|config|abstract|modules|help|source): (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
INLINE = ("concepts.svg",)
"""Pictures that become part of the page: only there can they follow its palette."""


# -- what MkDocs calls


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return local(expand(markdown), page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    for name in INLINE:
        drawing = (ROOT / "docs" / "images" / name).read_text("utf-8")
        html = re.sub(rf'<img [^>]*src="[^"]*{re.escape(name)}"[^>]*>', lambda _: drawing, html)  # noqa: B023
    return html


# -- places


def expand(markdown: str) -> str:
    """Put into every place what its comment names.

    Raises:
        KeyError, AttributeError, ModuleNotFoundError: there is no such table, curve or section.
    """
    makers: dict[str, Callable[[str], str]] = {
        "results": results,
        "curve": curve,
        "config": settings,
        "abstract": abstract,
        "modules": modules,
        "help": help_of,
        "source": quoted,
    }
    return PLACE.sub(lambda found: f"{makers[found[1]](found[2])}\n", markdown)


def local(markdown: str, source: str) -> str:
    """Links to files of the repository that are not part of the site become the file's path."""

    def path(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if "://" in target:
            return found[0]
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target))
        if place.startswith("docs/"):
            return found[0]
        name = f"`{place}`"
        return name if words.strip("`") in (place, posixpath.basename(place)) else f"{words} ({name})"

    return LINK.sub(path, markdown)


@cache
def benchmark(name: str) -> Any:
    """A benchmark's module, by its file: their folder is not a package, and ``kernels`` may be somebody else's name."""
    folder = ROOT / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def results(name: str) -> str:
    """The Markdown table of a benchmark: ``acflow_shapes``, ``distill_shapes_sdxl``, ``recipes``."""
    if name in SAID:
        return SAID[name]()
    module = benchmark("distill_shapes" if name.startswith("distill_shapes") else name)
    if not inspect.signature(module.table).parameters:
        return module.table()
    path = RESULTS / f"{name}.json"
    return module.table(json.loads(path.read_text())) if path.exists() else "Not measured."


def demo() -> str:
    """What a run of the demo's config prints at its end, of the first seed in its result file."""
    summary = json.loads((RESULTS / "shapes.json").read_text())["rows"][0]["summary"]
    low, high = summary["judge_gain_ci95"]
    ends = "{judge}: {judge_before:.3f} -> {judge_after:.3f} ({judge_gain:+.3f}"
    ends = ends.replace("{judge}", "{judge} on held-out prompts").format(**summary)
    return f"```\n{ends}, 95 % interval {low:+.3f} to {high:+.3f})\nreport: runs/demo/report.html\n```"


def predictions() -> str:
    """How far the planner was from what then happened, at the worst."""
    rows, lines = json.loads((RESULTS / "planner.json").read_text())["rows"], []
    for device in dict.fromkeys(row["versions"]["device"] for row in rows):
        own = [row for row in rows if row["versions"]["device"] == device]
        size = max(abs(row["error"]) for row in own if row["what"].startswith("peak bytes"))
        time = max(abs(row["error"]) for row in own if row["what"] in ("seconds, a round", "seconds of a round"))
        lines.append(f"* {device}: peaks of bytes were within {size:.0%} of what was measured, seconds of a round within {time:.0%}.")
    return "\n".join(lines)


SAID: dict[str, Callable[[], str]] = {"demo": demo, "planner": predictions}


# -- code


def help_of(command: str) -> str:
    """What a command of ``genrl`` says of itself."""
    from genrl.cli import main

    said = io.StringIO()
    with redirect_stdout(said), patch.dict(os.environ, {"COLUMNS": "100"}), suppress(SystemExit):
        main([*command.split("."), "--help"])
    return f"```text\n{said.getvalue().rstrip()}\n```"


def quoted(path: str) -> str:
    """A file as a code block."""
    return f"```{Path(path).suffix.lstrip('.')}\n{(ROOT / path).read_text('utf-8').rstrip()}\n```"


def modules(package: str) -> str:
    """The marks that mkdocstrings replaces, of a package and its public modules."""
    folder = ROOT.joinpath(*package.split("."))
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return "\n\n".join(f"::: {name}" for name in (package, *(f"{package}.{name}" for name in names))) + "\n"


def abstract(name: str) -> str:
    """The abstract members of a class and the first sentence of what is said of each."""
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    lines = ["| member | |", "|---|---|"]
    for member in sorted(found.__abstractmethods__):
        value = inspect.getattr_static(found, member)
        call = "" if isinstance(value, property) else f"({', '.join(list(inspect.signature(value).parameters)[1:])})"
        words = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()).replace("``", "`")
        lines.append(f"| `{member}{call}` | {words} |")
    return "\n".join(lines)


# -- settings


def settings(name: str) -> str:
    """A section of a trainer's settings as a Markdown table."""
    trainer, _, section = name.partition(".")
    kind = importlib.import_module(f"genrl.trainers.{trainer}").Config
    prefix = f"--{section}." if section else "--"
    for part in section.split(".") if section else ():
        kind = get_type_hints(kind)[part]
    said = meanings(kind)
    lines = ["| option | default | |", "|---|---|---|"]
    for entry in fields(kind):
        if is_dataclass(get_type_hints(kind)[entry.name]):
            continue
        lines.append(f"| `{prefix}{entry.name}` | `{default(entry)}` | {said[entry.name]} |")
    return "\n".join(lines)


def meanings(kind: type) -> dict[str, str]:
    """What the ``Args`` of a dataclass's docstring say of each of its fields."""
    said: dict[str, str] = {}
    for line in (inspect.getdoc(kind) or "").partition("Args:")[2].splitlines():
        found = re.match(r" {4}(\w+): (.*)", line)
        if found:
            said[found[1]] = found[2]
        elif line.startswith("     ") and said:
            said[next(reversed(said))] += f" {line.strip()}"
    return said


def default(entry: Any) -> str:
    value = entry.default if entry.default is not MISSING else entry.default_factory()
    return json.dumps(value) if not isinstance(value, str) else value or '""'


# -- curves


def curve(name: str) -> str:
    return f'<figure class="plot" markdown="0">{CURVES[name]()}</figure>\n'


def distillation(world: str) -> str:
    """Judge against seconds of DMD2, Flash-DMD, and Flash-DMD with reinforcement learning: means over seeds, and the span of these."""
    from genrl.evaluation import plots

    rows = json.loads((RESULTS / f"{world}.json").read_text())["rows"]
    shown = {"dmd2": plots.MUTED, "flash": plots.JUDGE, "flash_joint": plots.PROXY}
    found = []
    for row, colour in shown.items():
        seeds = [record["curve"] for record in rows if record["row"] == row]
        points = list(zip(*seeds, strict=True))
        seconds, judged = ([[one[i] for one in point] for point in points] for i in (0, 1))
        x, y = ([sum(values) / len(values) for values in column] for column in (seconds, judged))
        found.append(plots.Line(row, x, y, colour, [min(v) for v in judged], [max(v) for v in judged]))
    ends = ", ".join(f"{line.label} {line.y[-1]:.3f}" for line in found)
    title = f"{world.removeprefix('distill_')}: judge of the student's 4 steps"
    return plots.lines(found, title, "seconds of rounds", f"{title}, against seconds; at the end {ends}")


def proxies() -> str:
    """Judge over rounds of AC-Flow trained on one poor proxy and on the mean of five: means over seeds, and the span of these."""
    from genrl.evaluation import plots

    rows = json.loads((RESULTS / "overoptimisation_shapes.json").read_text())["rows"]
    found = []
    for row, colour in {"single": plots.PROXY, "mean": plots.JUDGE}.items():
        points = list(zip(*(record["curve"] for record in rows if record["row"] == row), strict=True))
        judged = [[one["judge"] for one in point] for point in points]
        x, y = [point[0]["round"] for point in points], [sum(values) / len(values) for values in judged]
        label = "trained on one proxy" if row == "single" else "on the mean of five"
        found.append(plots.Line(label, x, y, colour, [min(v) for v in judged], [max(v) for v in judged]))
    ends = ", ".join(f"{line.label} {line.y[-1]:.3f}" for line in found)
    return plots.lines(found, "exact judge, held-out prompts", "round", f"Judge over rounds; at the end: {ends}")


CURVES: dict[str, Callable[[], str]] = {
    "distill_shapes": lambda: distillation("distill_shapes"),
    "distill_shapes_sdxl": lambda: distillation("distill_shapes_sdxl"),
    "overoptimisation_shapes": proxies,
}
