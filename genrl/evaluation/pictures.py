"""Pictures on a page: each embedded once however often it is shown, grids drawn by a fixed seed or by a score, and the filmstrip."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genrl.evaluation.plots import number, signed
from genrl.evaluation.reading import Evaluation, on_common, pictures_of

THUMBNAIL = 256  # pixels; larger pictures are reduced to this side
FRAME = 160  # the same in a filmstrip, and beside many models
PAIRS = 12  # prompts of a grid drawn at random; as many again wait below it, and all are judged blind
EXTREMES = 8  # prompts of a grid of best or worst
STRIPS, FRAMES = 6, 24  # prompts and, at most, evaluations of the filmstrip
CHOICE_SEED = 0  # which prompts the random grid shows: fixed, so that nobody picks them

Files = Mapping[tuple[int, int], Path]  # (place of the prompt, image number) -> file


@dataclass(frozen=True)
class Picture:
    """What a page needs to show one: the id in its album and its size in pixels."""

    id: str
    width: int
    height: int


class Album:
    """The pictures of one page, at most ``side`` pixels wide and high. ``add`` a file to get what shows it; ``entries`` is embedded."""

    def __init__(self, side: int = THUMBNAIL) -> None:
        self.side = side
        self._known: dict[tuple[Path, int], Picture] = {}
        self._data: dict[str, str] = {}

    def add(self, file: Path, side: int | None = None) -> Picture:
        """Reduce the picture, to another ``side`` if given; the same file or the same bytes again cost nothing."""
        side = side or self.side
        if (file, side) not in self._known:
            data, (width, height) = thumbnail(file, side)
            picture = Picture(f"p{hashlib.sha256(data.encode()).hexdigest()[:12]}", width, height)
            self._known[file, side] = picture
            self._data[picture.id] = data
        return self._known[file, side]

    @property
    def entries(self) -> list[tuple[Picture, str]]:
        pictures = {picture.id: picture for picture in self._known.values()}
        return [(pictures[name], data) for name, data in self._data.items()]


def thumbnail(file: Path, side: int = THUMBNAIL) -> tuple[str, tuple[int, int]]:
    """A picture as a ``data:`` address, and its size; at most ``side`` pixels wide and high, small PNG files byte for byte."""
    with Image.open(file) as image:
        if max(image.size) <= side and image.format == "PNG":
            return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode(), image.size
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), image.size


def drawn(places: Sequence[int]) -> list[int]:
    """The places of prompts, shuffled by the fixed seed."""
    return np.random.default_rng(CHOICE_SEED).permutation(sorted(places)).tolist()


def drawn_rows(
    album: Album, prompts: Sequence[str], files: Mapping[str, Files], scores: Mapping[str, np.ndarray], most: int = 2 * PAIRS
) -> list[dict[str, Any]]:
    """Up to ``most`` prompts by the fixed seed, at the first picture that every model has; ``scores`` as for ``row``."""
    shared = _shared(files.values())
    first = {p: n for p, n in reversed(shared)}
    chosen = drawn(list(first))[:most]
    return [row(album, prompts, files, scores, p, first[p]) for p in sorted(chosen[:PAIRS]) + sorted(chosen[PAIRS:])]


def extremes(
    album: Album, prompts: Sequence[str], files: Mapping[str, Files], scores: Mapping[str, np.ndarray], base: str
) -> dict[str, list[dict[str, Any]]]:
    """The prompts with the largest gains and losses of any model over the base in one picture, at most one row a prompt.

    ``scores`` holds model -> [P, N] of one reward, NaN where it could not score. Returns ``{"best": rows, "worst": rows}``.
    """
    shared = _shared(files.values())
    others = [name for name in scores if name != base]
    gains: np.ndarray = np.full((len(others), *scores[base].shape), np.nan)  # [M, P, N]
    for p, n in shared:
        gains[:, p, n] = [scores[name][p, n] - scores[base][p, n] for name in others]
    found = {}
    for kind, sign in (("best", 1.0), ("worst", -1.0)):
        by_prompt = np.where(np.isnan(gains), -np.inf, sign * gains).transpose(1, 0, 2).reshape(gains.shape[1], -1)
        order = [int(p) for p in np.argsort(-by_prompt.max(axis=1), kind="stable")[:EXTREMES] if by_prompt[p].max() > 0]
        rows = []
        for p in order:
            model, n = divmod(int(by_prompt[p].argmax()), gains.shape[2])
            note = f"{others[model]} {signed(gains[model, p, n])}" if len(others) > 1 else ""
            rows.append(row(album, prompts, files, scores, p, n) | {"note": note})
        found[kind] = rows
    return found


def row(
    album: Album, prompts: Sequence[str], files: Mapping[str, Files], scores: Mapping[str, np.ndarray], p: int, n: int
) -> dict[str, Any]:
    """One prompt's picture ``n`` by every model. ``files`` and ``scores`` hold model -> files and [P, N] of one reward."""
    cells = []
    for name, known in files.items():
        picture = album.add(known[p, n]) if (p, n) in known else None
        cells.append({"model": name, "picture": picture, "score": float(scores[name][p, n])})
    known_scores = {cell["model"]: None if np.isnan(cell["score"]) else cell["score"] for cell in cells}
    return {"item": f"{p:05d}-{n}", "prompt": prompts[p], "cells": cells, "scores": known_scores, "note": ""}


def filmstrip(evaluations: list[Evaluation], judge: str, album: Album) -> dict[str, Any] | None:
    """The same prompts and noise in every evaluation that kept pictures; None if fewer than three did, or if they share none."""
    kept = [evaluation for evaluation in evaluations if evaluation.folder is not None and judge in evaluation.scores]
    if len(kept) < 3 or not set.intersection(*(set(evaluation.keys) for evaluation in kept)):
        return None
    picked = np.unique(np.linspace(0, len(kept) - 1, min(FRAMES, len(kept))).round().astype(int))
    columns = on_common([kept[i] for i in picked])
    files = [pictures_of(evaluation) for evaluation in columns]
    places = [p for p in range(len(columns[0].keys)) if all((p, 0) in known for known in files)]
    if not places:
        return None
    strips = []
    for p in sorted(drawn(places)[-STRIPS:]):  # the other end of the draw than the grid's, so that more prompts are seen
        frames = [
            {"round": evaluation.round, "picture": album.add(known[p, 0], FRAME), "score": number(evaluation.scores[judge][p, 0])}
            for evaluation, known in zip(columns, files, strict=True)
        ]
        strips.append({"prompt": columns[0].keys[p][0], "frames": frames})
    return {"strips": strips, "shown": len(columns), "kept": len(kept)}


def _shared(files: Any) -> list[tuple[int, int]]:
    """The (prompt, image) that every model has, in order."""
    return sorted(set.intersection(*(set(known) for known in files))) if files else []
