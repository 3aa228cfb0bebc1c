"""The run folder: what a run writes for people and tools, in files that a resumed run continues exactly.

``metrics.jsonl`` has a line per round and nothing that differs between two runs of the same command; clock times are in
``timing.jsonl``. ``evaluations/round-NNNNN.json`` hold scores per prompt, with pictures beside them for the full ones.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genrl.alarms import Alarm, Alarms, Leader
from genrl.evaluation import sheets
from genrl.evaluation.judging import Protocol
from genrl.evaluation.lines import read_lines
from genrl.evaluation.reading import evaluation_of
from genrl.evaluation.watch import Watch

LINES = ("metrics.jsonl", "timing.jsonl", "alarms.jsonl")
NEWEST = "newest"
"""Folder of pictures that are not kept."""
UNTRACKED = "critic/calibration/"
"""Metrics that no tracker gets: dozens of curves that say nothing alone. They are in ``metrics.jsonl``."""


class Recorder:
    """Writes into one run folder; only the main process does.

    Args:
        track: also called with each round's metrics, ``track(values, step=round)``.
        alarms: metrics with bounds; watch: what listens to evaluations. Their words go to ``alarms.jsonl``.
        trackers: accelerate's; those that can are shown pictures of the evaluations.
    """

    def __init__(
        self,
        folder: Path,
        main: bool,
        track: Callable[..., None],
        watch: Watch,
        alarms: Iterable[Alarm] = (),
        trackers: Sequence[Any] = (),
    ):
        self.folder = folder
        self.main = main
        self.track = track
        self.alarms = Alarms(alarms)
        self.leader = Leader()
        self.watch = watch
        self.galleries = [tracker for tracker in trackers if hasattr(tracker, "log_images")]

    def open(self, round_: int, fresh: bool, notes: Mapping[str, str]) -> None:
        """Make the folder with its notes (file name -> text), and drop what was written after ``round_``: it will be played again."""
        if not self.main:
            return
        if fresh and self.folder.exists():
            for name in ("checkpoints", "evaluations", "pipeline", *LINES, "summary.json", "report.html"):
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self.folder / "evaluations").mkdir(parents=True, exist_ok=True)
        for name, text in notes.items():
            (self.folder / name).write_text(text)
        for name in LINES:
            path = self.folder / name
            kept = [line for line in read_lines(path) if line["round"] <= round_]
            aside = path.with_suffix(".tmp")
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            aside.replace(path)
        for line in read_lines(self.folder / "metrics.jsonl"):
            self.alarms.hear(line)
            self.leader.hear(line)
        records = [json.loads(path.read_text()) for path in sorted((self.folder / "evaluations").glob("round-*.json"))]
        for record in records:
            if record["round"] <= round_:
                self.watch.hear(evaluation_of(self.folder, record))

    def log(self, line: Mapping[str, float], seconds: float) -> list[str]:
        """Write down a round; returns the words of the alarms that it raises."""
        if not self.main:
            return []
        raised = self.alarms.hear(line) + self.leader.hear(line)
        self.warn(int(line["round"]), raised)
        for name, content in (("metrics.jsonl", line), ("timing.jsonl", {"round": line["round"], "seconds": round(seconds, 3)})):
            with (self.folder / name).open("a") as file:
                file.write(json.dumps({k: _plain(v) for k, v in content.items()}) + "\n")
        tracked = {k: v for k, v in line.items() if k != "round" and not k.startswith(UNTRACKED)}
        self.track(tracked, step=int(line["round"]))
        return raised

    def warn(self, round_: int, raised: Iterable[str]) -> None:
        with (self.folder / "alarms.jsonl").open("a") as file:
            file.writelines(json.dumps({"round": round_, "words": words}) + "\n" for words in raised)

    def pictures(self, name: str, kept: bool) -> Path:
        """Folder for the pictures of an evaluation; those that are not kept lie in ``NEWEST`` until the next."""
        return self.folder / "evaluations" / (name if kept else NEWEST)

    def show(self, group: str, round_: int, rows: Sequence[Mapping[str, Any]], pictures: Path | None) -> None:
        """Show trackers the pictures of some rows: kept ones a strip per prompt, tagged ``group/prompt``; others on one sheet."""
        if not self.main or pictures is None:
            return
        kept = pictures.name != NEWEST
        if kept:
            shutil.rmtree(self.folder / "evaluations" / NEWEST, ignore_errors=True)
        if not self.galleries:
            return
        values = {f"{group}/{prompt}": strip for prompt, strip in sheets.strips(rows, pictures).items()} if kept else {}
        if not kept and (sheet := sheets.overview(rows, pictures)) is not None:
            values[f"{group}/small evaluation"] = sheet
        for tracker in self.galleries:
            # TensorBoard wants to be told that channels come last; others would pass the word on to who does not know it
            tracker.log_images(values, step=round_, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))

    def judged(
        self, name: str, round_: int, images_seen: int, protocol: Protocol, rows: Sequence[Mapping[str, Any]], pictures: Path | None
    ) -> dict[str, float]:
        """Write an evaluation; returns the mean of each score."""
        scores = list(rows[0]["scores"])
        record = {
            "round": round_,
            "images_seen": images_seen,
            "seed": protocol.seed,
            "images_per_prompt": protocol.images_per_prompt,
            "prompts": [row["prompt"] for row in rows],
            "scores": {score: [[_plain(v) for v in row["scores"][score]] for row in rows] for score in scores},
            "shuffled": {name: [[_plain(v) for v in row["shuffled"][name]] for row in rows] for name in rows[0]["shuffled"]},
            **{
                column: {name: [_plain(row[column][name]) for row in rows] for name in rows[0][column]}
                for column in ("diversity", "statistics")
            },
            "images": f"evaluations/{pictures.name}" if pictures and pictures.name != NEWEST else None,
        }
        if self.main:
            path = self.folder / "evaluations" / f"{name}.json"
            path.with_suffix(".tmp").write_text(json.dumps(record))
            path.with_suffix(".tmp").replace(path)
        means = {}
        for score in scores:
            numbers = [v for row in rows for v in row["scores"][score] if math.isfinite(v)]
            means[score] = sum(numbers) / max(len(numbers), 1)
        return means

    def follow(self, name: str, means: Mapping[str, float]) -> list[str]:
        """Track the means of an evaluation of the result; returns what the watch says of it."""
        if not self.main:
            return []
        record = json.loads((self.folder / "evaluations" / f"{name}.json").read_text())
        self.track({f"held_out/{score}": value for score, value in means.items()}, step=record["round"])
        raised = self.watch.hear(evaluation_of(self.folder, record))
        self.warn(record["round"], raised)
        return raised


def progress_bar(shown: bool) -> Progress:
    """Rounds done, time taken, time left."""
    done = TextColumn("{task.completed}/{task.total}")
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), done, TimeElapsedColumn(), TimeRemainingColumn(), disable=not shown
    )


def describe(metrics: Mapping[str, float], judged: Mapping[str, float]) -> str:
    """A round in one line: rewards, the judges on the fixed prompts, distance from the reference, quality of the critic."""
    means = {name: value for name, value in metrics.items() if name.startswith("reward/") and name.endswith("/mean")}
    # a reward of a file has slashes of its own
    parts = [f"{name.removeprefix('reward/').removesuffix('/mean')} {value:.3f}" for name, value in means.items()]
    parts += [f"held-out {name} {value:.3f}" for name, value in judged.items()]
    short = {"policy/w2": "W2", "critic/explained_variance": "EV"}
    parts += [f"{label} {metrics[name]:.3f}" for name, label in short.items() if name in metrics]
    return "  ".join(parts)


def _plain(value: float) -> float | int | None:
    """JSON has no NaN: null says "no number"."""
    return value if isinstance(value, int) else float(value) if math.isfinite(value) else None
