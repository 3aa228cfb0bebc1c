"""``evaluation.html``: what ``result.json`` says, for readers; one file, without a network, without JavaScript and on a phone.

``write_page(folder)`` reads ``folder/result.json`` and the pictures in ``folder/models``. The page computes nothing that decides: verdicts,
intervals and corrected p-values are those of the result. It draws, sorts and says in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrl.comparison import charts
from genrl.comparison.reading import Result, Row, read
from genrl.evaluation import pictures, rendering
from genrl.evaluation.pictures import FRAME, THUMBNAIL, Album
from genrl.evaluation.plots import as_float, fine, number, signed

FEW = 3  # models whose pictures are embedded large; of more they are also shown smaller
MARKS = {"better": "▲", "worse": "▼", "no more than noise": "≈"}
TONES = {"better": "rose", "worse": "fell", "no more than noise": "noise"}


def write_page(folder: Path) -> Path:
    """Write ``folder/evaluation.html`` from ``folder/result.json`` and return its path.

    Raises:
        FileNotFoundError: there is no result; ValueError: it is one of another schema.
    """
    folder = Path(folder)
    found = read(folder)
    album = Album(THUMBNAIL if len(found.models) <= FEW else FRAME)
    drawn, grids = picture_rows(found, album)
    name = folder.resolve().name
    lead = found.metrics[0] if found.metrics else ""
    context = {
        "name": name,
        "models": found.models,
        "base": found.base,
        "others": found.models[1:],
        "listed": _listed(found.models[1:], most=8) if found.models[1:] else "",
        "lead": lead,
        "judge": found.rewards[0] if found.rewards else "",
        "sentences": sentences(found),
        "matrix": matrix(found),
        "details": {model: details(found, model) for model in found.models[1:]},
        "gains": charts.gains(found),
        "ranking": charts.ranking(found),
        "order": order(found),
        "drawn": drawn,
        "shown": pictures.PAIRS,
        "grids": grids,
        # who drew pictures elsewhere had seeds of his own
        "shared_noise": all(model["kind"] != "pictures" for model in found.raw["models"]),
        "votes": {"key": f"genrl votes {name} {found.digest}", "file": f"votes-{name}.json"},
        "categories": categories(found),
        "planes": charts.planes(found),
        "distances": distances(found),
        "curves": charts.curves(found),
        "costs": found.raw["models"],
        "protocol": found.raw["protocol"],
        "digest": found.digest,
    }
    return rendering.write(folder / "evaluation.html", Path(__file__).parent / "evaluation.html.j2", context, album)


def amount(row: Mapping[str, Any]) -> str:
    """A difference and its interval without signs, as words like "worse by" ask for: ``.12 [.08, .16]``."""
    sign = math.copysign(1.0, row["difference"])
    low, high = sorted(sign * as_float(end) for end in row["difference_ci95"])
    return f"{number(sign * row['difference'])} [{number(low)},\u00a0{number(high)}]"


def sentences(found: Result) -> list[Row]:
    """What came out, in words: for each model the verdict on the first reward, and on what else it is better or worse."""
    said = []
    for model in found.models[1:]:
        rows = [found.rows(metric)[model] for metric in found.metrics if found.rows(metric).get(model, {}).get("verdict")]
        if not rows:
            said.append({"model": model, "tone": "noise", "first": "", "after": f" could not be compared with {found.base}.", "rest": ""})
            continue
        lead, rest = rows[0], rows[1:]
        if lead["verdict"] == "no more than noise":
            low, high = map(signed, lead["difference_ci95"])
            first, after = (
                "differs by no more than noise",
                f" from {found.base} on {lead['metric']}, {signed(lead['difference'])} [{low},\u00a0{high}]",
            )
            if least := lead.get("minimum_detectable"):
                after += f"; {fine(least)} would have been seen"
        else:
            first, after = f"is {lead['verdict']} than {found.base}", f" by {amount(lead)} on {lead['metric']}: more than noise"
        groups = {word: [row["metric"] for row in rest if row["verdict"] == word] for word in MARKS}
        also = [f"{word} on {_listed(names)}" for word, names in groups.items() if names and word != "no more than noise"]
        if quiet := groups["no more than noise"]:
            also.append(f"no more than noise on {_listed(quiet)}")
        said.append({"model": model, "tone": TONES[lead["verdict"]], "first": first, "after": f"{after}.", "rest": "; ".join(also)})
    return said


def _listed(names: Sequence[str], most: int = 4) -> str:
    names = [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def by_chance(p: float | None) -> str:
    """How often no difference would look like this one or more: ``3 in 100``."""
    p = as_float(p)
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "under 1 in 1\u202f000"
    whole = 1000 if p < 0.01 else 100 if p < 0.1 else 10
    return "nearly always" if round(p * whole) == whole else f"{round(p * whole)} in {whole}".replace("1000", "1\u202f000")


def matrix(found: Result) -> list[Row]:
    """A row per metric: the base's mean with its interval, then per model mean, paired difference and verdict; None where unknown."""
    rows = []
    for metric in found.metrics:
        known = found.rows(metric)
        own = [known.get(model, {}) for model in found.models]
        cells = []
        for row in own[1:]:
            verdict = row.get("verdict")
            mark = {"mark": MARKS[verdict], "tone": TONES[verdict], "verdict": verdict} if verdict else {}
            cells.append(row | mark if "difference" in row else None)
        rows.append({"metric": metric, "base": own[0] if "mean" in own[0] else None, "cells": cells})
    return rows


def details(found: Result, model: str) -> list[Row]:
    """Everything the result says of one model against the base, a row per metric that could be compared."""
    rows = [found.rows(metric).get(model, {}) for metric in found.metrics]
    return [
        row | {"base": found.rows(row["metric"]).get(found.base, {}), "chance": by_chance(row.get("p_adjusted"))}
        for row in rows
        if "difference" in row
    ]


def order(found: Result) -> dict[str, list[str]]:
    """The models by their Bradley-Terry strength, strongest first, for each reward; without those that have none."""
    ranked = found.raw["ranking"].items()
    known = {reward: [row for row in rows if row["strength"] is not None] for reward, rows in ranked}
    return {reward: [row["model"] for row in sorted(rows, key=lambda row: -row["strength"])] for reward, rows in known.items()}


def picture_rows(found: Result, album: Album) -> tuple[list[Row], list[Row]]:
    """Rows of all models: drawn by the fixed seed, with the first reward's scores, and per reward the largest gains and losses."""
    files = {model: known for model, known in found.files.items() if known}
    if not files or not found.rewards:
        return [], []
    scores = {reward: {model: found.scores[model][reward] for model in files} for reward in found.rewards}
    drawn = pictures.drawn_rows(album, found.prompts, files, scores[found.rewards[0]])
    if found.base not in files or len(files) < 2:
        return drawn, []
    return drawn, [
        {"reward": reward, **pictures.extremes(album, found.prompts, files, scores[reward], found.base)} for reward in found.rewards
    ]


def categories(found: Result) -> list[Row]:
    """Per metric a table: a row per category with its prompts and, per model, mean and difference to the base."""
    tables = []
    for metric in found.metrics:
        here = [row for row in found.raw["categories"] if row["metric"] == metric]
        rows = []
        for category in dict.fromkeys(row["category"] for row in here):
            known = {row["model"]: row for row in here if row["category"] == category}
            cells = [_with_tone(known.get(model, {})) for model in found.models]
            rows.append({"category": category, "prompts": max(row["prompts"] for row in known.values()), "cells": cells})
        if rows:
            tables.append({"metric": metric, "rows": rows})
    return tables


def _with_tone(row: Row) -> Row:
    low, high = map(as_float, row.get("difference_ci95") or (math.nan, math.nan))
    return row | {"tone": "rose" if low > 0 else "fell" if high < 0 else "noise", "low": low, "high": high}


def distances(found: Result) -> list[Row]:
    """A row per distance between sets: the value of each model, and what the notes say of it."""
    tables = found.raw["distances"]
    rows = []
    for metric in dict.fromkeys(name for table in tables.values() for name in table):
        known = [tables.get(model, {}).get(metric) or {} for model in found.models]
        notes = dict.fromkeys(entry["note"] for entry in known if entry.get("note"))
        rows.append({"metric": metric, "cells": [entry.get("value") for entry in known], "notes": "; ".join(notes)})
    return rows
