"""Over-optimisation on the shapes world: one poor proxy against ensembles of five, by rule, judged by the exact judge.

    python benchmarks/overoptimisation_shapes.py                     # every row, seeds 0 1 2, a run on each core
    python benchmarks/overoptimisation_shapes.py --rows single worst --seeds 0
    python benchmarks/overoptimisation_shapes.py --readme            # only write README's table from the committed results

The picture of Gao et al. (arXiv 2210.10760) and Coste et al. (arXiv 2310.02743) for images: proxy and judge against W2 from the
base. Row ``single`` is trained on proxy number ``seed``; the others on proxies 0 to 4 under a rule of ``rewards.mix``. All see the same
sixteen prompts, in training and in evaluation: few prompts are what lets a short run go far. Runs live in ``runs/``; a finished one is
reused, an interrupted one goes on. Writes ``benchmarks/results/overoptimisation_shapes.json``, ``docs/images/overoptimisation.png`` and
README's table.

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
from _results import ROOT, provenance, train
from weak_proxies import build

from genrl.data import load_prompts
from genrl.evaluation.reading import Evaluation, read_evaluations
from genrl.evaluation.statistics import prompt_means
from genrl.evaluation.watch import Watch

NAME = "overoptimisation_shapes"
CONFIG = ROOT / "configs" / "ac_flow" / "shapes_overoptimised.yaml"
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
    w2 = [0.0 if e.round == 0 else metrics[e.round].get("policy/w2") for e in path]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    run_all(args.rows, args.seeds)


if __name__ == "__main__":
    main()
