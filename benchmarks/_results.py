"""What the benchmarks share: runs that are reused, means over seeds with intervals, result files, README's tables between markers."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
END = "<!-- end -->"


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


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def keep(path: Path, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows that were measured on one kind of device; those of other kinds stay as they are in the file."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    save(path, {"rows": [row for row in old if row["kind"] != kind] + list(rows)})


def verdict(claim: str, checks: Sequence[tuple[str, float, bool]]) -> str:
    """A line that says whether every check of a claim came out true, with its figures; empty without any."""
    if not checks:
        return ""
    figures = ", ".join(f"{name} {figure:.3g}" for name, figure, _ in checks)
    return f"* **{'Holds' if all(holds for *_, holds in checks) else 'Does not hold'}**: {claim} ({figures})."


def write_readme(name: str, table: str, path: Path = ROOT / "README.md") -> None:
    """Put a table between its markers, if they are there."""
    head, marker, rest = path.read_text().partition(begin(name))
    _, end, tail = rest.partition(END)
    if end:
        path.write_text(f"{head}{marker}\n{table}\n{END}{tail}")
    else:
        print(f"{path.name} has no {begin(name)} ... {END}: no table written")
