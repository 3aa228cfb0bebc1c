"""``genrl report``, ``watch`` and ``compare-run``: what is done with the folder of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OUTSIDE = 3
"""Exit code of ``compare-run`` where a run leaves the band."""


def add_commands(commands: Any) -> None:
    sub = commands.add_parser("report", help="write a run's report.html again")
    sub.add_argument("run", type=Path)
    sub.set_defaults(call=report)
    sub = commands.add_parser("watch", help="follow a run in the terminal, until it ends")
    sub.add_argument("run", type=Path)
    sub.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    sub.add_argument("--once", action="store_true", help="print one frame and end")
    sub.set_defaults(call=watch)
    sub = commands.add_parser(
        "compare-run", help=f"compare a run's curves with those of reference runs; exit code {OUTSIDE} where it leaves their band"
    )
    sub.add_argument("run", type=Path)
    sub.add_argument("--reference", required=True, help="name of a shipped curve, or a JSON file of benchmarks/reference_curves.py")
    sub.set_defaults(call=compare)


def report(args: argparse.Namespace) -> None:
    from genrl.evaluation.report import write_report

    print(write_report(args.run))


def watch(args: argparse.Namespace) -> None:
    from genrl.evaluation.live import watch as follow

    follow(args.run, args.every, args.once)


def compare(args: argparse.Namespace) -> None:
    from genrl.evaluation.curves import compare_run, words

    comparison = compare_run(args.run, args.reference)
    print(words(comparison))
    raise SystemExit(0 if comparison.inside else OUTSIDE)
