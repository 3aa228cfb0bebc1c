"""Over-optimisation on the shapes world: one poor proxy against ensembles of five, by rule, judged by the exact judge.

    python benchmarks/overoptimisation_shapes.py                     # every row, seeds 0 1 2, a run on each core
    python benchmarks/overoptimisation_shapes.py --rows single worst --seeds 0
    python benchmarks/overoptimisation_shapes.py --table            # only write the table from the committed results

The picture of Gao et al. (arXiv 2210.10760) and Coste et al. (arXiv 2310.02743) for images: proxy and judge against W2 from the
base. Row ``single`` is trained on proxy number ``seed``; the others on proxies 0 to 4 under a rule of ``rewards.mix``. All see the same
sixteen prompts, in training and in evaluation: few prompts are what lets a short run go far. Runs live in ``runs/``; a finished one is
reused, an interrupted one goes on. Writes ``benchmarks/results/overoptimisation_shapes.json``, ``docs/images/overoptimisation.png`` and the
table of docs/results.md.

* peak, end: judge at the best and at the last evaluation; kept is end / peak; gain lost is (peak - end) / (peak - base).
* hacked: the judge ends ``LOSS`` below its peak or more. alarm: the first round at which the hacking alarm speaks, from the better
  proxies that ship with the world, diversity, shuffled prompts and image statistics; the judge has no say. In time: at no evaluation
  before it has the judge been ``LOSS`` below its peak so far.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _results import RESULTS, ROOT, cell, provenance, said, save, spread, train, write_table
from weak_proxies import build

from genrl.data import load_prompts
from genrl.evaluation.reading import Evaluation, read_evaluations
from genrl.evaluation.statistics import prompt_means
from genrl.evaluation.watch import Watch

NAME = "overoptimisation_shapes"
CONFIG = ROOT / "benchmarks" / f"{NAME}.yaml"
FOLDER = ROOT / "runs" / "overoptimisation"
PROMPTS = 16
RULES: dict[str, dict[str, Any]] = {
    "single": {},
    "mean": {"rule": "mean"},
    "worst": {"rule": "worst"},
    "uncertain": {"rule": "uncertain", "coefficient": 0.5},
    "lower_bound": {"rule": "lower_bound", "coefficient": 1.0},
    "nominal_worst": {"rule": "nominal_worst", "coefficient": 0.5},
    "entropic": {"rule": "entropic", "coefficient": 0.3},
}
"""Row -> rewards.mix."""
MEMBERS = 5
JUDGE, WITNESS = "shapes_judge", "better proxies"
LOSS = 0.05


def prompt_file() -> Path:
    """Sixteen prompts spread evenly over the training set."""
    path = FOLDER / "prompts.jsonl"
    every = load_prompts("shapes/train")
    chosen = [every[round(i * (len(every) - 1) / (PROMPTS - 1))] for i in range(PROMPTS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": p.text, **p.metadata}) + "\n" for p in chosen))
    return path


def members(row: str, seed: int) -> list[int]:
    return [seed % MEMBERS] if row == "single" else list(range(MEMBERS))


def run(row: str, seed: int) -> Path:
    """Train a row's seed, unless it is done; its folder."""
    terms = [
        {"name": "benchmarks/weak_proxies.py:WeakProxy", "label": f"proxy {member}", "options": {"member": member}}
        for member in members(row, seed)
    ]
    prompts = str(FOLDER / "prompts.jsonl")
    overrides = ["--data.train", prompts, "--data.held_out", prompts, "--rewards.train", json.dumps(terms)]
    for key, value in RULES[row].items():
        overrides += [f"--rewards.mix.{key}", str(value)]
    folder = FOLDER / f"{row}_seed{seed}"
    train("ac_flow", CONFIG, folder, seed, overrides)
    return folder


def pinned(cores: Any) -> None:
    """Give a worker thread, and the processes it starts, a core of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {next(cores)})


def run_all(rows: Sequence[str], seeds: Sequence[int]) -> None:
    build()
    prompt_file()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    with ThreadPoolExecutor(len(cores), initializer=pinned, initargs=(iter(cores),)) as pool:
        # seed by seed: an interrupted benchmark has whole seeds
        done = [pool.submit(run, row, seed) for seed in seeds for row in rows]
        for future in done:
            future.result()


def mean(evaluation: Evaluation, name: str) -> float:
    return float(np.nanmean(prompt_means(evaluation.scores[name])))


def measure(row: str, seed: int) -> dict[str, Any]:
    """A finished run's curve and figures."""
    folder = FOLDER / f"{row}_seed{seed}"
    path = read_evaluations(folder)
    metrics = {line["round"]: line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}
    trained = [f"proxy {member}" for member in members(row, seed)]
    base = {name: (mean(path[0], name), float(np.nanstd(path[0].scores[name]))) for name in trained}
    judge = [mean(e, JUDGE) for e in path]
    proxy = [float(np.mean([(mean(e, name) - base[name][0]) / base[name][1] for name in trained])) for e in path]
    # the actor has not moved while the critic warms up
    w2 = [metrics.get(e.round, {}).get("policy/w2") or 0.0 for e in path]
    watch, spoken = Watch(trained, [WITNESS]), []
    for place, evaluation in enumerate(path):
        spoken += [(place, words) for words in watch.hear(evaluation)]
    peak, end = max(judge), judge[-1]
    alarm = spoken[0][0] if spoken else None
    lost_at = next((i for i in range(len(judge)) if max(judge[: i + 1]) - judge[i] >= LOSS), None)
    return {
        "row": row,
        "seed": seed,
        "figures": {
            "base": judge[0],
            "peak": peak,
            "end": end,
            "kept": end / peak,
            "gain_lost": (peak - end) / (peak - judge[0]) if peak > judge[0] else 0.0,
            "proxy_gain_z": proxy[-1],
            "seconds": sum(json.loads(line)["seconds"] for line in (folder / "timing.jsonl").read_text().splitlines()),
        },
        "hacked": peak - end >= LOSS,
        "alarm_round": None if alarm is None else path[alarm].round,
        "alarm": spoken[0][1] if spoken else "",
        "in_time": alarm is not None and (lost_at is None or alarm <= lost_at),
        "curve": [{"round": e.round, "w2": w, "proxy_z": p, "judge": j} for e, w, p, j in zip(path, w2, proxy, judge, strict=True)],
        "versions": provenance(folder, f"python benchmarks/{NAME}.py"),
    }


def claims(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What was asked of ensembles and of the alarm, with the numbers that decide."""
    found: dict[str, Any] = {}
    if "single" in rows and len(rows) > 1:
        lost = spread([record["figures"]["gain_lost"] for record in rows["single"]])
        kept = {row: spread([record["figures"]["kept"] for record in records]) for row, records in rows.items() if row != "single"}
        best = max(kept, key=lambda row: kept[row]["mean"])
        found["ensemble"] = {
            "says": "a rule for ensembles keeps .90 of the judge's peak where the single proxy loses a quarter of its gain",
            "holds": kept[best]["mean"] >= 0.9 and lost["mean"] >= 0.25,
            "numbers": {"gain lost by the single proxy": lost} | {f"peak kept by {row}": value for row, value in kept.items()},
        }
    records = [record for some in rows.values() for record in some]
    hacked = [record for record in records if record["hacked"]]
    in_time, false = sum(r["in_time"] for r in hacked), sum(r["alarm_round"] is not None for r in records if not r["hacked"])
    found["alarm"] = {
        "says": f"the alarm speaks before the judge has lost {LOSS} in every run that is hacked, and in no other",
        "holds": in_time == len(hacked) and not false,
        "numbers": {"hacked": len(hacked), "of them in time": in_time, "not hacked": len(records) - len(hacked), "alarms in those": false},
    }
    return found


def result(rows: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    measured = {row: [measure(row, seed) for seed in seeds] for row in rows}
    figures = {}
    for row, records in measured.items():
        figures[row] = {name: spread([record["figures"][name] for record in records]) for name in records[0]["figures"]}
    every = [record for records in measured.values() for record in records]
    return {"figures": figures, "claims": claims(measured), "seeds": list(seeds), "rows": every}


def table(content: dict[str, Any]) -> str:
    """The table and claims, from a result file's content."""
    lines = [
        "| trained on | judge: base | peak | end | of the peak kept | hacked | alarm in time | false alarms | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, f in content["figures"].items():
        records = [record for record in content["rows"] if record["row"] == row]
        hacked = [record for record in records if record["hacked"]]
        false = sum(record["alarm_round"] is not None for record in records if not record["hacked"])
        lines.append(
            f"| `{row}` | {cell(f['base'])} | {cell(f['peak'])} | {cell(f['end'])} | {cell(f['kept'])} | {len(hacked)} of {len(records)} "
            f"| {sum(r['in_time'] for r in hacked)} of {len(hacked)} | {false} of {len(records) - len(hacked)} "
            f"| {cell(f['seconds'], '.1f', 1 / 60)} |"
        )
    seeds = ", ".join(map(str, content["seeds"]))
    lines += ["", f"Seeds: {seeds}. ± is half of the 95 % t interval.", ""]
    for claim in content["claims"].values():
        numbers = ", ".join(f"{name} {cell(v) if isinstance(v, dict) else v}" for name, v in claim["numbers"].items())
        lines.append(said(claim["holds"], claim["says"], numbers))
    return "\n".join(lines)


def picture(content: dict[str, Any], path: Path) -> None:
    """Judge and proxy against W2 from the base: a thin line for each seed, a thick one through their means at each evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plots, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    colours = plt.get_cmap("tab10")
    for number, row in enumerate(content["figures"]):
        curves = [record["curve"] for record in content["rows"] if record["row"] == row]
        for axis, key in zip(axes, ("judge", "proxy_z"), strict=True):
            for curve in curves:
                axis.plot([p["w2"] for p in curve], [p[key] for p in curve], color=colours(number), alpha=0.25, linewidth=0.8)
            points = [[np.mean([curve[i][name] for curve in curves]) for name in ("w2", key)] for i in range(len(curves[0]))]
            axis.plot(*zip(*points, strict=True), color=colours(number), linewidth=2.2, label=row)
    axes[0].set_ylabel("judge: what the picture shows")
    axes[1].set_ylabel("trained proxies, base standard deviations")
    for axis in axes:
        axis.set_xlabel("W2 from the base (velocity)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.savefig(path, dpi=110)
    plt.close(plots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    if not args.table:
        run_all(args.rows, args.seeds)
        save(path, result(args.rows, args.seeds))
    content = json.loads(path.read_text())
    picture(content, ROOT / "docs" / "images" / "overoptimisation.png")
    write_table(NAME, table(content))


if __name__ == "__main__":
    main()
