"""What the benchmarks share: runs that are reused, means over seeds with intervals, result files, tables and claims between markers."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
"""Where tables stand; README also lists the claims of the other."""
END = "<!-- end -->"
CLAIM = re.compile(r"^\* \*\*(Holds|Does not hold)\*\*: (.+?) \(.*\)\.$", re.MULTILINE)


def begin(name: str) -> str:
    """The marker in front of a table."""
    return f"<!-- results: {name} -->"


def train(trainer: str, config: Path, folder: Path, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train into ``folder`` unless its ``summary.json`` is there; the same command goes on with a run that was interrupted."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, str(ROOT / "trainers" / f"{trainer}.py"), "--config", str(config), *overrides]
    command += ["--run.name", folder.name, "--run.folder", str(folder.parent), "--run.seed", str(seed)]
    subprocess.run(command, check=True, cwd=ROOT)


def provenance(folder: Path, command: str) -> dict[str, Any]:
    """Commit, versions, device and seed of a run, with the command that repeats it."""
    return json.loads((folder / "versions.json").read_text()) | {"command": command}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % t interval; no interval for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def cell(figure: dict[str, Any] | None, form: str = ".3f", scale: float = 1.0) -> str:
    """Mean, and half of its interval."""
    if figure is None:
        return "–"
    low, high = figure["ci95"] or (0.0, 0.0)
    return f"{figure['mean'] * scale:{form}}" + (f" ± {(high - low) / 2 * scale:{form}}" if figure["ci95"] else "")


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def keep(path: Path, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows that were measured on one kind of device; those of other kinds stay as they are in the file."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    save(path, {"rows": [row for row in old if row["kind"] != kind] + list(rows)})


def said(holds: bool, claim: str, figures: str) -> str:
    """A line of a table's claims."""
    return f"* **{'Holds' if holds else 'Does not hold'}**: {claim} ({figures})."


def verdict(claim: str, checks: Sequence[tuple[str, float, bool]]) -> str:
    """A line that says whether every check of a claim came out true, with its figures; empty without any."""
    figures = ", ".join(f"{name} {figure:.3g}" for name, figure, _ in checks)
    return said(all(holds for *_, holds in checks), claim, figures) if checks else ""


def claims(page: str) -> str:
    """All claims that stand below the tables of a page, and whether they hold."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, table in re.findall(r"<!-- results: (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL):
        for holds, claim in CLAIM.findall(table):
            found.setdefault((claim, holds), []).append(f"[`{name}`](benchmarks/results/{name}.json)")
    lines = ["| claim | holds | measured by |", "|---|---|---|"]
    for (claim, holds), files in found.items():
        lines.append(f"| {claim[0].upper()}{claim[1:]} | {'yes' if holds == 'Holds' else '**no**'} | {', '.join(files)} |")
    return "\n".join(lines)


def write_table(name: str, table: str, pages: Sequence[Path] = PAGES) -> None:
    """Put a table between its markers on each of the pages that has them, and the claims of the last page on the first."""
    places = [page for page in pages if _put(page, name, table)]
    if not places:
        print(f"no page has {begin(name)} ... {END}: no table written")
    _put(pages[0], "claims", claims(pages[-1].read_text()))


def _put(page: Path, name: str, text: str) -> bool:
    head, _, rest = page.read_text().partition(begin(name))
    _, end, tail = rest.partition(END)
    if end:
        page.write_text(f"{head}{begin(name)}\n{text}\n{END}{tail}")
    return bool(end)
