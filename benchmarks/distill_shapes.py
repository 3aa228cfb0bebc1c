"""Distillation on a shapes world, a table of rows over seeds: teacher, DMD2, Flash-DMD, and reinforcement learning with and without it.

    python benchmarks/distill_shapes.py                                   # every row, seeds 0 1 2
    python benchmarks/distill_shapes.py --world shapes_sdxl --rows dmd2 flash
    python benchmarks/distill_shapes.py --table                          # only write the table from the committed results

Runs live in ``runs/``; a finished one is reused, an interrupted one goes on. Writes ``benchmarks/results/distill_<world>.json`` from
all rows that are finished for these seeds, and the table of docs/results.md. Columns:

* judge, proxy, diversity: last full evaluation, all held-out prompts; the teachers' from the views that the run ``flash`` leaves
  behind, without which no row of its seed is measured.
* KID against the teacher's 28-step pictures of the same prompts and starting noise, in the space of the five proxies:
  features scaled so that the kernel is ``(mean of the five cosines + 1)^3``, pictures of one prompt not compared with each other.
* updates x batch: optimiser steps of the generator, mean samples in each. Network passes: see ``_cost.py``. Seconds: of the rounds.

``curve`` in the result file is [seconds, judge, KID] on the prompts of the small evaluations. A claim holds if the means over seeds do;
differences and ratios are of runs of one seed. Seconds compare only where all rows ran alone on one machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _cost import cost
from _results import RESULTS, ROOT, cell, provenance, said, save, spread, train, write_table
from PIL import Image

from genrl import config
from genrl.evaluation.distances import kid
from genrl.evaluation.reading import Evaluation, evaluation_of, on_common, pictures_of, read_evaluations
from genrl.evaluation.statistics import prompt_means
from genrl.trainers import dmd2, flash_dmd
from genrl.worlds.shapes.proxies import MEMBERS, load_proxy

TRAINED: dict[str, tuple[str, tuple[str, ...]]] = {
    "dmd2": ("dmd2", ("teacher.steps=0",)),
    "flash": ("flash_dmd", ("rl.start_round=0",)),
    "flash_joint": ("flash_dmd", ("rl.start_round={n1}", "rl.mode=joint", "teacher.steps=0")),
    "flash_then_rl": ("flash_dmd", ("rl.start_round={n1}", "rl.mode=sequential", "teacher.steps=0")),
    # as many updates by preference as the other two have; its first round is one of distillation, which starts the reference
    "rl_alone": ("flash_dmd", ("rl.start_round=1", "rl.mode=sequential", "run.rounds={n2}", "teacher.steps=0")),
}
"""Row -> trainer, what it changes of configs/<trainer>/<world>.yaml. ``n1`` is that file's rl.start_round, or half its rounds; ``n2`` one
more than the rounds that are left then."""
EVERY = ("evaluation.pictures=all",)
"""What all rows change: KID on the way needs the pictures of the small evaluations."""
VIEWS = {"teacher_28": "teacher", "teacher_4": "teacher-4"}
"""Row -> view among the evaluations of the run ``flash``: nothing is trained for it."""
ROWS = (*VIEWS, *TRAINED)
WORLDS = ("shapes", "shapes_sdxl")
SCHEMAS: dict[str, type] = {"dmd2": dmd2.Config, "flash_dmd": flash_dmd.Config}
SUBSETS, SUBSET = 100, 1000
# a run is the same whatever it is called and however often it is saved
INCIDENTAL = {f"run.{name}" for name in ("name", "folder", "seed", "save_every_rounds", "keep", "resume", "tracker")}


@dataclass(frozen=True)
class Bench:
    """The rows of one world and the folder of their runs; ``extra`` are settings ``key=value`` of a trial, for trainers that have them."""

    world: str
    runs: Path = ROOT / "runs"
    extra: tuple[str, ...] = ()

    def folder(self, row: str, seed: int) -> Path:
        return self.runs / f"distill_{self.world}_{'flash' if row in VIEWS else row}_seed{seed}"

    def config(self, row: str) -> Path:
        return ROOT / "configs" / self.trainer(row) / f"{self.world}.yaml"

    def trainer(self, row: str) -> str:
        return TRAINED["flash" if row in VIEWS else row][0]

    def overrides(self, row: str) -> list[str]:
        """What the row and the trial change of the config, as arguments."""
        trainer, own = TRAINED["flash" if row in VIEWS else row]
        known = set(config.keys(SCHEMAS[trainer]))
        extra = [f"--{item}" for item in self.extra if item.split("=")[0] in known]
        base: Any = config.load(SCHEMAS[trainer], ["--config", str(self.config(row)), *extra])
        n1 = 0 if trainer == "dmd2" else base.rl.start_round or base.run.rounds // 2
        return [*extra, *(f"--{item.format(n1=n1, n2=base.run.rounds - n1 + 1)}" for item in (*EVERY, *own))]

    def finished(self, row: str, seed: int) -> bool:
        """Whether the row's run is there and done.

        Raises:
            ValueError: done, but under other settings than it would have now.
        """
        folder = self.folder(row, seed)
        if not (folder / "summary.json").exists():
            return False
        then = config.flatten(yaml.safe_load((folder / "config.yaml").read_text()))
        now = config.flatten(config.load(SCHEMAS[self.trainer(row)], ["--config", str(self.config(row)), *self.overrides(row)]))
        # a setting that only one of them has came or went with the code
        both = sorted((then.keys() & now.keys()) - INCIDENTAL)
        if now.get("rl.start_round") == 0:
            # reinforcement learning may be tuned after stage 1 has been measured
            both = [key for key in both if key == "rl.start_round" or not key.startswith("rl.")]
        if changed := [f"{key}: {then[key]!r} -> {now[key]!r}" for key in both if then[key] != now[key]]:
            raise ValueError(f"{folder} was finished under other settings ({', '.join(changed)}); remove it to run it again")
        return True

    def train(self, row: str, seed: int) -> None:
        """Run what the row is measured on, unless it is done."""
        if not self.finished(row, seed):
            train(self.trainer(row), self.config(row), self.folder(row, seed), seed, self.overrides(row))

    def measure(self, row: str, seed: int) -> dict[str, Any]:
        """A finished row's figures for a seed; None where a column does not apply."""
        folder = self.folder(row, seed)
        summary = json.loads((folder / "summary.json").read_text())
        # the same prompts and starting noise in every run of a seed
        teacher = view(self.folder("flash", seed), "teacher")
        evaluations = read_evaluations(folder)
        shown = view(folder, VIEWS[row]) if row in VIEWS else evaluations[-1]
        diversity = {name: float(np.nanmean(values)) for name, values in shown.diversity.items()}
        figures: dict[str, float | None] = {
            "judge": mean_score(shown, summary["judge"]),
            "proxy": mean_score(shown, summary["proxy"]),
            "kid": None if VIEWS.get(row) == "teacher" else distance(shown, teacher),
            "diversity": diversity.get("layout"),
            "diversity_features": next((value for name, value in diversity.items() if name.startswith("features")), None),
        }
        curve = []
        if row in TRAINED:
            lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
            common = on_common(evaluations)
            spent_at = [sum(t["seconds"] for t in lines if t["round"] <= e.round) for e in common]
            curve = [[s, mean_score(e, summary["judge"]), distance(e, teacher)] for s, e in zip(spent_at, common, strict=True)]
            spent = cost(self.trainer(row), yaml.safe_load((folder / "config.yaml").read_text()))
            figures |= {"updates": spent.updates, "batch": spent.samples / max(spent.updates, 1), "network_passes": spent.evaluations}
            figures |= {"seconds": sum(t["seconds"] for t in lines)}
        world = "" if self.world == "shapes" else f" --world {self.world}"
        versions = provenance(folder, f"python benchmarks/distill_shapes.py{world}")
        return {"row": row, "seed": seed, "figures": figures, "curve": curve, "versions": versions}


def view(folder: Path, name: str) -> Evaluation:
    path = folder / "evaluations" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: the config must have teacher.steps and teacher.curve that draw {name}")
    return evaluation_of(folder, json.loads(path.read_text()))


def mean_score(shown: Evaluation, name: str) -> float:
    return float(np.nanmean(prompt_means(shown.scores[name])))


def distance(shown: Evaluation, teacher: Evaluation) -> float:
    """KID between the pictures of two evaluations; those of one prompt are a group, for both sides draw the same prompts."""
    files = [sorted(pictures_of(evaluation).items()) for evaluation in on_common([shown, teacher])]
    ours, theirs = (features([path for _, path in found]) for found in files)
    prompts = [[prompt for (prompt, _), _ in found] for found in files]
    return kid(ours, theirs, SUBSETS, min(SUBSET, len(ours), len(theirs)), groups=(prompts[0], prompts[1]))[0]


@torch.no_grad()
def features(paths: Sequence[Path]) -> torch.Tensor:
    """``[N, D]``: unit features of the proxies side by side, scaled so that ``x . y / D`` is the mean of their cosines."""
    images, found = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in paths], []
    for some in torch.stack(images).permute(0, 3, 1, 2).split(256):
        found.append(torch.cat([load_proxy(member).image_features(some / 255) for member in range(MEMBERS)], 1))
    joined = torch.cat(found)
    return joined * (joined.shape[1] / MEMBERS) ** 0.5


Records = dict[str, list[dict[str, Any]]]
"""Row -> its records, in the order of seeds."""


def per_seed(rows: Records, one: str, other: str, name: str, compare: Callable[[float, float], float]) -> dict[str, Any]:
    """A figure of one row compared with that of another, seed by seed."""
    pairs = zip(rows[one], rows[other], strict=True)
    return spread([compare(a["figures"][name], b["figures"][name]) for a, b in pairs])


def ratio(a: float, b: float) -> float:
    return a / b


def lead(a: float, b: float) -> float:
    return a - b


def faster(flash: list[dict[str, Any]], dmd2: list[dict[str, Any]]) -> dict[str, Any]:
    """Claim A, from the curves of both: the first evaluation at which Flash-DMD is as good as DMD2 in the end, in judge and in KID, and
    where both are when the first of them has ended."""
    reached, shares, judges, kids = [], [], [], []
    for ours, theirs in zip(flash, dmd2, strict=True):
        (_, judge, far), end = theirs["curve"][-1], min(record["curve"][-1][0] for record in (ours, theirs))
        reached.append(next((at[0] for at in ours["curve"] if at[1] >= judge and at[2] <= far), None))
        shares.append(None if reached[-1] is None else reached[-1] / theirs["curve"][-1][0])
        now, then = ([at for at in record["curve"] if at[0] <= end][-1] for record in (ours, theirs))
        judges.append(now[1] - then[1])
        kids.append(now[2] - then[2])
    share = None if None in shares else spread(shares)
    numbers = {"share of the seconds": share, "lead at equal seconds": spread(judges), "KID above DMD2's then": spread(kids)}
    # reached before any training: DMD2 has learned nothing, and there is nothing to compare
    holds = share is not None and min(reached) > 0 and share["mean"] <= 0.5
    return {
        "says": "Flash-DMD reaches DMD2's final judge and KID in at most half of its seconds, and is better in both at equal seconds",
        "numbers": numbers,
        "holds": holds and numbers["lead at equal seconds"]["mean"] > 0 > numbers["KID above DMD2's then"]["mean"],
        "reached_s": reached,
    }


def claims(rows: Records) -> dict[str, Any]:
    """The claims whose rows are there: what they say, their numbers, whether they hold. Diversity is that of layouts; that of features
    is told beside it, for it falls anyway when more pictures show what the prompt says."""
    found = {}
    if rows.keys() >= {"flash", "dmd2"}:
        found["A"] = faster(rows["flash"], rows["dmd2"])
    if rows.keys() >= {"flash", "teacher_28"}:
        pair = ("flash", "teacher_28")
        numbers = {
            "judge kept": per_seed(rows, *pair, "judge", ratio),
            "diversity kept": per_seed(rows, *pair, "diversity", ratio),
            "diversity of features kept": per_seed(rows, *pair, "diversity_features", ratio),
        }
        holds = numbers["judge kept"]["mean"] >= 0.95 and numbers["diversity kept"]["mean"] >= 0.85
        says = "the student keeps .95 of the judge of its teacher's 28 steps, and .85 of the diversity"
        found["B"] = {"says": says, "numbers": numbers, "holds": holds}
    if rows.keys() >= {"flash", "flash_joint", "flash_then_rl", "rl_alone"}:
        leads = {f"lead over {row}": per_seed(rows, "flash_joint", row, "judge", lead) for row in ("flash", "flash_then_rl", "rl_alone")}
        kept = {
            "diversity kept": per_seed(rows, "flash_joint", "flash", "diversity", ratio),
            "diversity of features kept": per_seed(rows, "flash_joint", "flash", "diversity_features", ratio),
        }
        holds = leads["lead over flash"]["mean"] >= 0.05 and kept["diversity kept"]["mean"] >= 0.95
        holds = holds and min(figure["mean"] for figure in leads.values()) > 0
        says = "joint RL raises the judge by .05 over stage 1 for at most 5 % of the diversity, and beats RL after it and RL alone"
        found["C"] = {"says": says, "numbers": leads | kept, "holds": holds}
    return found


def result(bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    """The result file's content: every row that is finished for all seeds, once ``flash`` is."""
    done = [row for row in ROWS if all(bench.finished(one, seed) for one in ("flash", row) for seed in seeds)]
    rows = {row: [bench.measure(row, seed) for seed in seeds] for row in done}
    figures = {}
    for row, records in rows.items():
        columns = {name: [record["figures"][name] for record in records] for name in records[0]["figures"]}
        figures[row] = {name: spread(values) for name, values in columns.items() if None not in values}
    return {"figures": figures, "claims": claims(rows), "seeds": list(seeds), "rows": [record for row in done for record in rows[row]]}


def table(content: dict[str, Any]) -> str:
    """The table and claims, from a result file's content."""
    head = "| row | judge | proxy | KID x 1000 | diversity: layout | features | updates x batch | minutes | network passes, millions |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row, f in content["figures"].items():
        learned = f"{f['updates']['mean']:.0f} x {f['batch']['mean']:.0f}" if "updates" in f else "–"
        cells = [cell(f.get(name)) for name in ("judge", "proxy")] + [cell(f.get("kid"), ".2f", 1000)]
        cells += [cell(f.get(name)) for name in ("diversity", "diversity_features")]
        cells += [learned, cell(f.get("seconds"), ".1f", 1 / 60), cell(f.get("network_passes"), ".2f", 1e-6)]
        lines.append(f"| `{row}` | {' | '.join(cells)} |")
    several = " ± is half of the 95 % t interval." if len(content["seeds"]) > 1 else ""
    lines += ["", f"Seeds: {', '.join(map(str, content['seeds']))}.{several}", ""]
    for claim in content["claims"].values():
        numbers = ", ".join(f"{what} {'never reached' if figure is None else cell(figure)}" for what, figure in claim["numbers"].items())
        lines.append(said(claim["holds"], claim["says"], numbers))
    return "\n".join(lines).strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a trial: its runs and its result file
    parser.add_argument("--overrides", nargs="+", default=[], help=argparse.SUPPRESS)  # of a trial: key=value
    args = parser.parse_args(arguments)
    if args.overrides and not args.folder:
        parser.error("--overrides is for trials, which need a --folder of their own")
    path = (args.folder or RESULTS) / f"distill_{args.world}.json"
    if not args.table:
        bench = Bench(args.world, (args.folder or ROOT / "runs").resolve(), tuple(args.overrides))
        for row in dict.fromkeys(["flash", *args.rows]):
            for seed in args.seeds:
                bench.train(row, seed)
        save(path, result(bench, args.seeds))
    shown = table(json.loads(path.read_text()))
    print(shown)
    if not args.folder:
        write_table(f"distill_{args.world}", shown)


if __name__ == "__main__":
    main()
