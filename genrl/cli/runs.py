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


def report(args: argparse.Namespace) -> None:
    from genrl.evaluation.report import write_report

    print(write_report(args.run))
