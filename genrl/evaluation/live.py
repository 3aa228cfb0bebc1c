"""A run while it goes on, in a terminal: where it is, its curves, its last evaluation, alarms in words, the newest pictures.

Everything is read from the run's folder, so that it works beside any run, also over a network file system, and does not disturb it. What
is being written at the moment is left out until it is whole.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from genrl.evaluation.bands import HELD_OUT, TOLD, Points, curves_of, evaluations_of
from genrl.evaluation.lines import read_lines
from genrl.evaluation.plots import count, duration, number, signed
from genrl.evaluation.reading import Evaluation, on_common
from genrl.evaluation.sheets import spread
from genrl.evaluation.statistics import paired_gain, prompt_means

BARS = "▁▂▃▄▅▆▇█"
EDGE = 20
"""Side of a thumbnail: so many columns, half as many lines of two pixels each."""
THUMBNAILS = 6
ALARMS = 3
QUIET_ROUNDS, QUIET_S = 10, 60.0
"""A run that has written nothing for so many of its rounds, and so many seconds, is called quiet (ours)."""


def watch(run: Path, every_s: float = 2.0, once: bool = False, console: Console | None = None) -> None:
    """Show a run until its ``summary.json`` appears; ``once`` prints one frame and ends.

    Raises:
        ValueError: ``every_s`` is not above 0, or the run is a file.
    """
    if run.is_file():
        raise ValueError(f"{run} is a file: name the folder of a run")
    if every_s <= 0:
        raise ValueError(f"a view that is drawn again every {every_s} s never rests: take a number above 0")
    console = console or Console()
    if not once:
        try:
            with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
                while not finished(run):
                    live.update(frame(run, console.width), refresh=True)
                    time.sleep(every_s)
        except KeyboardInterrupt:
            pass
    console.print(frame(run, console.width))


def frame(run: Path, width: int) -> RenderableType:
    """A run's state at this moment, ``width`` columns wide."""
    if not run.is_dir():
        return Panel(Text(f"{run} is not there yet: waiting for the run to begin"), width=width)
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        return Panel(Text(f"{run} holds no config.yaml, and so no run: no round is over yet"), width=width)
    config, evaluations = _config(run), evaluations_of(run)
    curves = curves_of(run) if (run / "metrics.jsonl").is_file() else {}
    parts: list[RenderableType] = [_header(run, config)]
    if curves:
        parts += [Text(), _sparklines(curves, width - 4), *_shared(evaluations)]
    if evaluations:
        parts += [Text(), *_judged(evaluations, _trained(config))]
    if raised := read_lines(run / "alarms.jsonl"):
        parts += [Text(), *(Text(f"round {line['round']}: {line['words']}", style="bold red") for line in raised[-ALARMS:])]
    if pictures := _pictures(run, evaluations, width - 4):
        parts += [Text(), pictures]
    return Panel(Group(*parts), title=Text(run.name), width=width)


def finished(run: Path) -> bool:
    """Whether the run has written its summary, of as many rounds as its config asks for now; one that judges nothing writes none, and
    ends with its last round."""
    rounds = _rounds(_config(run))
    try:
        return json.loads((run / "summary.json").read_text())["rounds"] >= rounds
    except (OSError, ValueError, LookupError, TypeError):
        judges = any((run / "evaluations").glob("round-*.json"))
        lines = [] if judges else read_lines(run / "metrics.jsonl")
        return bool(lines) and lines[-1]["round"] >= rounds > 0


def sparkline(values: Sequence[float], columns: int) -> str:
    """The values from lowest to highest as bars, at most ``columns`` of them: each the mean of its share of the values."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return ""
    means = np.array([part.mean() for part in np.array_split(known, min(columns, len(known)))])
    low, high = means.min(), means.max()
    if high - low < 1e-12:
        return BARS[len(BARS) // 2] * len(means)
    return "".join(BARS[int(place)] for place in np.round((means - low) / (high - low) * (len(BARS) - 1)))


@dataclass(frozen=True)
class Thumbnails:
    """Pictures as half blocks, two pixels in a character, side by side with a caption each; a line with their folder on a terminal
    without enough colours."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    when: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"{self.when}: {self.files[0].parent}", style="dim")
        if console.color_system in ("truecolor", "256"):
            drawn = [(picture, caption) for file, caption in zip(self.files, self.captions, strict=True) if (picture := half_blocks(file))]
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_row(*(picture for picture, _ in drawn))
            grid.add_row(*(Text(caption[: EDGE * 2 - 1], overflow="fold", style="dim") for _, caption in drawn))
            for column in grid.columns:
                column.width = EDGE
            yield grid


def half_blocks(file: Path) -> Text | None:
    """A picture in at most ``EDGE`` columns: the upper pixel is the colour of ▀, the lower that behind it; None if it cannot be read."""
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError):  # being written
        return None
    times = EDGE / max(picture.size)
    columns, lines = (max(1, round(side * times / step)) for side, step in zip(picture.size, (1, 2), strict=True))
    pixels = np.asarray(picture.resize((columns, 2 * lines), Image.Resampling.BOX)).tolist()
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    text.rstrip()
    return text


def _config(run: Path) -> dict[str, Any]:
    """The sections of the run's settings; empty where they are missing or half written."""
    try:
        found = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return {name: part for name, part in found.items() if isinstance(part, dict)} if isinstance(found, dict) else {}


def _rounds(config: dict[str, Any]) -> int:
    """How many the run is to have; 0 if it does not say."""
    rounds = config.get("run", {}).get("rounds", 0)
    return rounds if isinstance(rounds, int) else 0


def _trained(config: dict[str, Any]) -> set[str]:
    return {term.get("label") or term.get("name") for term in (config.get("rewards") or {}).get("train") or []}


def _header(run: Path, config: dict[str, Any]) -> Text:
    """Trainer, model, rounds, time and images, in words."""
    try:
        command = str(dict(json.loads((run / "versions.json").read_text())).get("command", ""))
    except (OSError, ValueError, TypeError):
        command = ""
    trainer = re.search(r"trainers[./\\](\w+)", command)
    rounds = _rounds(config)
    text = Text.assemble((trainer[1] if trainer else "training", "bold"), f" of {config.get('model', {}).get('source', 'a model')}\n")
    lines, timing = read_lines(run / "metrics.jsonl"), read_lines(run / "timing.jsonl")
    seconds = [line["seconds"] for line in timing if isinstance(line.get("seconds"), (int, float))]
    if not lines or not seconds:
        return text.append(f"no round of {rounds} is over yet" if rounds else "no round is over yet")
    done, each = lines[-1]["round"], statistics.median(seconds[-10:])
    over = finished(run)
    left = "finished" if over else f"about {duration(each * max(rounds - done, 0))} left"
    text.append(f"round {done} / {rounds or '?'}, {duration(sum(seconds))} of rounds, {left}, {count(lines[-1].get('images_seen'))} images")
    silence = time.time() - (run / "metrics.jsonl").stat().st_mtime
    if not over and done < rounds and silence > max(QUIET_S, QUIET_ROUNDS * each):
        text.append(f"\nnothing was written for {duration(silence)}: is it still running?", "bold red")
    return text


def _sparklines(curves: dict[str, Points], width: int) -> Table:
    """A line per curve, held-out ones first: name, course, first and last value."""
    order = (HELD_OUT, *(told.split("/")[0] for told in TOLD))
    names = sorted(curves, key=lambda name: (next(i for i, start in enumerate(order) if name.startswith(start)), name))
    longest = max(map(len, names))
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for name in names:
        values = [value for _, value in sorted(curves[name].items())]
        bars = sparkline(values, max(8, min(60, width - longest - 22)))
        table.add_row(name, Text(bars, style="cyan"), Text(f"{values[0]:.3g}", style="dim"), Text(f"{values[-1]:.3g}", style="bold"))
    return table


def _shared(evaluations: list[Evaluation]) -> list[Text]:
    """What the held-out curves are means of, which are fewer prompts than those of a full evaluation."""
    with suppress(ValueError):
        if len(evaluations) > 1:
            return [Text(f"held_out: over the {len(on_common(evaluations)[0].keys)} prompts that all evaluations have", style="dim")]
    return []


def _judged(evaluations: list[Evaluation], trained: set[str]) -> list[RenderableType]:
    """The last evaluation against the first, on the prompts and noise that both have, each score with its 95 % interval."""
    first, last = evaluations[0], evaluations[-1]
    if first is last:
        means = (f"{name} {number(float(np.nanmean(v)))}" for name, v in first.scores.items() if not np.isnan(v).all())
        return [Text(f"before training, {len(first.keys)} held-out prompts: {', '.join(means)}")]
    try:
        before, after = on_common([first, last])
    except ValueError:
        return [Text(f"rounds {first.round} and {last.round} were judged on prompts that have none in common")]
    images = min(before.images_per_prompt, after.images_per_prompt)
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in [name for name in before.scores if name in after.scores]:
        pair = [prompt_means(e.scores[name][:, :images]) for e in (before, after)]
        both = np.isfinite(pair[0]) & np.isfinite(pair[1])
        if not both.any():
            continue
        gain, low, high = paired_gain(pair[0][both], pair[1][both])
        style = "green" if low > 0 else "red" if high < 0 else "dim"
        ends = f"{number(pair[0][both].mean())} -> {number(pair[1][both].mean())}"
        change = Text(f"{signed(gain)} [{signed(low)}, {signed(high)}]", style=style)
        table.add_row(f"{name}{' (trained)' if name in trained else ''}", ends, change)
    return [Text(f"round {after.round} against {before.round}, {len(before.keys)} held-out prompts, 95 % interval:"), table]


def _pictures(run: Path, evaluations: list[Evaluation], width: int) -> Thumbnails | None:
    """The newest pictures: those that wait to be replaced, or of the last evaluation that kept its own."""
    passing = run / "evaluations" / "newest"
    with_pictures = [(e, folder) for e in evaluations if (folder := e.folder)]
    if passing.is_dir() and evaluations:
        with_pictures.append((evaluations[-1], passing))
    for evaluation, folder in reversed(with_pictures):
        files = sorted(folder.glob("*-0.png"))
        files = [files[i] for i in spread(len(files), min(THUMBNAILS, max(1, width // (EDGE + 2))))]
        if files:
            places = [int(file.stem.split("-")[0]) for file in files]
            captions = [evaluation.keys[place][0] if place < len(evaluation.keys) else "" for place in places]
            return Thumbnails(tuple(files), tuple(captions), f"pictures of round {evaluation.round}")
    return None
