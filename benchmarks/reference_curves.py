"""Reference curves for ``genrl compare-run``: the band of a config's metrics over its rounds, from finished runs of several seeds.

    for seed in 0 1 2; do
      python trainers/ac_flow.py --config configs/ac_flow/shapes.yaml --run.name shapes_seed$seed --run.seed $seed
    done
    python benchmarks/reference_curves.py --runs runs/shapes_seed0 runs/shapes_seed1 runs/shapes_seed2 --name shapes

The runs may differ in nothing but their seed. Writes ``genrl/evaluation/references/<name>.json``; how the band is made stands in
``genrl/evaluation/bands.py``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _results import ROOT

from genrl.evaluation.bands import reference_of

FOLDER = ROOT / "genrl" / "evaluation" / "references"


def text(content: dict[str, Any]) -> str:
    """JSON with a line for each list of numbers: small, and a change shows where it is."""
    curves = ",\n".join(
        f"  {json.dumps(metric)}: {{\n" + ",\n".join(f"   {json.dumps(name)}: {json.dumps(column)}" for name, column in curve.items()) + "}"
        for metric, curve in content["curves"].items()
    )
    head = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items() if key != "curves"]
    return "{\n" + ",\n".join([*head, f' "curves": {{\n{curves}}}']) + "}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="finished run folders")
    parser.add_argument("--name", required=True, help="of the reference")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result")
    args = parser.parse_args()
    runs = " ".join(f"runs/{run.resolve().name}" for run in args.runs)
    content = reference_of(args.runs, args.name, f"python benchmarks/reference_curves.py --runs {runs} --name {args.name}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.name}.json"
    path.write_text(text(content))
    metrics, last = len(content["curves"]), content["rounds"]
    print(f"{path}: {metrics} metrics over {last} rounds, seeds {content['seeds']}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
