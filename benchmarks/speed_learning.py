"""Does what makes a run faster change what it learns? Thirty rounds of AC-Flow on the shapes world with everything off, and on.

    python benchmarks/speed_learning.py            # three seeds of each row; runs are resumed or reused
    python benchmarks/speed_learning.py --table   # only write the table from the committed results

``off``: nothing. ``on``: blocks compiled, states (were they recorded) in bf16, embeddings from disk, sliced decoding; on a CPU there is
no more. Kernels that need no setting are in both. A round has a quarter of the demo's samples, so that six runs end in minutes. What is
learned is within the spread of seeds if the mean gains differ by no more than the half width of the 95 % interval of ``off``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from _results import RESULTS, ROOT, provenance, said, save, spread, train, write_table

NAME = "speed_learning"
ROUNDS = 30
COMMON = ["--run.rounds", str(ROUNDS), "--run.tracker", "none", "--evaluation.every_rounds", str(ROUNDS)]
COMMON += ["--data.prompts", "4", "--data.group_size", "8", "--actor.minibatch", "32", "--critic.minibatch", "32"]
COMMON += ["--evaluation.prompts", "100", "--evaluation.images_per_prompt", "2", "--model.precision.storage"]
CACHE = ["--speed.embeddings", str(ROOT / "runs" / "embeddings"), "--speed.vae", "slicing"]
ROWS = {
    "off": [*COMMON, "fp32"],
    "on": [*COMMON, "bf16", *CACHE, "--speed.compile", "true"],
}


def one(row: str, seed: int) -> dict[str, Any]:
    """Train a seed of a row, or take it from its finished folder."""
    folder = ROOT / "runs" / f"{NAME}_{row}_seed{seed}"
    train("ac_flow", ROOT / "configs" / "ac_flow" / "shapes.yaml", folder, seed, ROWS[row])
    summary = json.loads((folder / "summary.json").read_text())
    summary["diversity_kept"] = summary["diversity_after"] / summary["diversity_before"]
    kept = {name: summary[name] for name in ("judge_before", "judge_after", "judge_gain", "diversity_kept", "wall_s")}
    return {"row": row, "seed": seed, "summary": kept, "versions": provenance(folder, f"python benchmarks/{NAME}.py")}


def collect(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and what is claimed."""
    figures: dict[str, Any] = {}
    for row in ROWS:
        found = [record["summary"] for record in rows if record["row"] == row]
        if found:
            figures[row] = {name: spread([summary[name] for summary in found]) for name in found[0]}
    low, high = figures["off"]["judge_gain"]["ci95"]
    differences = {row: figures[row]["judge_gain"]["mean"] - figures["off"]["judge_gain"]["mean"] for row in figures if row != "off"}
    holds = all(abs(difference) <= (high - low) / 2 for difference in differences.values())
    return {"figures": figures, "differences": differences, "half_width": (high - low) / 2, "holds": holds, "rows": rows}


def table(content: dict[str, Any] | None) -> str:
    """The table of docs/results.md; without results it says so."""
    if content is None:
        return "Not measured."
    lines = ["| row | judge before | judge after | gain | difference from off | diversity kept |", "|---|---|---|---|---|---|"]
    for row, found in content["figures"].items():
        mean = {name: figure["mean"] for name, figure in found.items()}
        half = statistics.fmean(abs(end - mean["judge_gain"]) for end in found["judge_gain"]["ci95"])
        difference = f"{content['differences'][row]:+.3f}" if row in content["differences"] else "–"
        lines.append(
            f"| `{row}` | {mean['judge_before']:.3f} | {mean['judge_after']:.3f} | {mean['judge_gain']:+.3f} ± {half:.3f} "
            f"| {difference} | {mean['diversity_kept']:.0%} |"
        )
    lines += ["", f"{ROUNDS} rounds, seeds 0, 1, 2; ± is half of the 95 % t interval.", ""]
    figures = f"half width of the seeds' interval {content['half_width']:.3f}"
    lines += [said(content["holds"], "with everything under `speed` on, a run learns as much, within the spread of seeds", figures)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    if not args.table:
        rows = [one(row, seed) for seed in args.seeds for row in args.rows]
        if args.rows == list(ROWS):
            save(path, collect(rows))
    write_table(NAME, table(json.loads(path.read_text()) if path.exists() else None))


if __name__ == "__main__":
    main()
