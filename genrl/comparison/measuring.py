"""Everything that is measured of a subject's pictures: rewards, diversity within prompts, and distances between sets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl.comparison.folders import opened
from genrl.comparison.pictures import by_prompt, hash_of_pictures, in_blocks, name_of
from genrl.data import PICTURES, PromptError
from genrl.evaluation.distances import Statistics, cmmd, frechet, frechet_note, frechet_of_statistics, kid, prdc
from genrl.evaluation.diversity import feature_diversity, layout_diversity, vendi
from genrl.models._source import ModelError
from genrl.models.features import Lpips, check_name, extractor
from genrl.pixels import from_pil
from genrl.pool import RewardPool
from genrl.types import Prompt

LPIPS = "lpips"
KID_ROWS = 1000
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""


@dataclass(frozen=True)
class Reference:
    """What sets of pictures are compared with: features of pictures, or statistics kept from an earlier time (Frechet distance alone).

    ``groups`` numbers rows that depend on each other, as the pictures of a prompt do; None where each stands alone.
    """

    name: str
    features: Mapping[str, Tensor]
    statistics: Mapping[str, Statistics]
    images: int
    groups: Sequence[int] | None = None


def scores(pool: RewardPool, folder: Path, prompts: Sequence[Prompt], images: int) -> dict[str, np.ndarray]:
    """Raw scores ``label -> [P, N]``; NaN where a reward could not score.

    Raises:
        RewardError: a reward failed, or could score too few.
    """
    parts: dict[str, list[Tensor]] = {label: [] for label in pool.rewards}
    # a block at a time: a whole set of large pictures does not fit in memory
    for places, pictures in in_blocks(folder, len(prompts), images):
        some = [prompts[place] for place in places for _ in range(images)]
        groups = torch.tensor([place for place in places for _ in range(images)])
        scoring = pool.begin()
        scoring.add(pictures, [prompt.text for prompt in some], [prompt.metadata for prompt in some], groups)
        for label, values in scoring.result().items():
            parts[label].append(values)
    found = {label: torch.cat(values) for label, values in parts.items()}
    pool.require_valid(found)
    return {label: values.view(len(prompts), images).double().numpy() for label, values in found.items()}


class Extraction:
    """Features of folders, each picture once: kept in files that are read again if folder and network are the same.

    Args:
        names: those of ``genrl.models.features``, and ``lpips``.
        kept: folder of the files; device: where networks run.

    Raises:
        ModelError: an unknown name. Networks are loaded when they are first asked for.
    """

    def __init__(self, names: Sequence[str], kept: Path, device: str = "auto"):
        self.names = [name for name in names if name.partition(":")[0] != LPIPS]
        self.nets = [name.partition(":")[2] or "alex" for name in names if name.partition(":")[0] == LPIPS]
        for name in self.names:
            check_name(name)
        if len(self.nets) > 1 or not set(self.nets) <= {"alex", "vgg", "squeeze"}:
            raise ModelError(f"LPIPS is of one network, lpips:alex, lpips:vgg or lpips:squeeze; got {', '.join(self.nets)}")
        self.kept, self.device = kept, device
        self._extractors: dict[str, Callable[[Tensor], Tensor]] = {}
        self._lpips: Lpips | None = None

    def of(self, label: str, stamp: str, pictures: Callable[[], Any]) -> dict[str, Tensor]:
        """Features ``name -> [M, D]`` of all pictures that an iterable of ``[B, 3, H, W]`` gives; ``stamp`` says which these are."""
        found = {}
        for name in self.names:
            key = hashlib.sha256(f"{name}\n{stamp}".encode()).hexdigest()[:16]
            path = self.kept / f"{label}-{key}.safetensors"
            try:
                found[name] = load_file(path)["features"]
            except (OSError, SafetensorError, KeyError):
                found[name] = self._computed(name, pictures, path)
        return found

    def _computed(self, name: str, pictures: Callable[[], Any], path: Path) -> Tensor:
        if name not in self._extractors:
            self._extractors[name] = extractor(name, self.device)
        rows = torch.cat([self._extractors[name](part) for part in pictures()]).contiguous()
        self.kept.mkdir(parents=True, exist_ok=True)
        # a kill leaves no half file behind
        aside = path.with_name(f".{path.name}")
        save_file({"features": rows}, aside)
        aside.rename(path)
        return rows

    def lpips(self, images: Tensor) -> float:
        if self._lpips is None:
            self._lpips = Lpips(self.nets[0], self.device)
        return self._lpips(images)


def blocks(folder: Path, prompts: int, images: int) -> Iterator[Tensor]:
    """The pictures of a folder in order, some at a time."""
    return (pictures for _, pictures in in_blocks(folder, prompts, images))


def stamp(folder: Path, prompts: int, images: int) -> str:
    """What says which pictures of a subject are compared: those of the places asked for, whatever else its folder holds."""
    return hash_of_pictures(folder / name_of(place, image) for place in range(prompts) for image in range(images))


def diversity(
    folder: Path, prompts: int, images: int, features: Mapping[str, Tensor], lpips: Callable[[Tensor], float] | None
) -> dict[str, np.ndarray]:
    """How different the pictures of each prompt are, ``metric -> [P]``: empty for one picture a prompt."""
    if images < 2:
        return {}
    found: dict[str, list[float]] = {"layout": []}
    for pictures in by_prompt(folder, prompts, images):
        found["layout"].append(layout_diversity(pictures))
        if lpips:
            found.setdefault(LPIPS, []).append(lpips(pictures))
    for name, values in features.items():
        groups = values.view(prompts, images, -1)
        found[name] = [feature_diversity(group) for group in groups]
        found[f"vendi/{name}"] = [vendi(group) for group in groups]
    return {name: np.array(values) for name, values in found.items()}


def distances(features: Mapping[str, Tensor], reference: Reference | None, images: int) -> dict[str, dict[str, Any]]:
    """Numbers of a whole set, ``metric -> {"value", "note"}``: its Vendi score, and how far it is from the reference."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in features.items():
        found[f"vendi/{name}"] = {"value": vendi(rows), "note": f"effective number of different pictures among {len(rows)}"}
        if reference is None or min(len(rows), reference.images) < 2:
            continue
        if name in reference.features:
            found |= _to_pictures(name, rows, reference, images)
        elif name in reference.statistics:
            known, real = Statistics.of(rows), reference.statistics[name]
            value = frechet_of_statistics(known.mean, known.covariance, real.mean, real.covariance)
            found[_frechet_name(name)] = {"value": value, "note": frechet_note(min(len(rows), reference.images), rows.shape[1])}
    return found


def _to_pictures(name: str, rows: Tensor, reference: Reference, images: int) -> dict[str, dict[str, Any]]:
    real = reference.features[name]
    smaller = min(len(rows), len(real))
    size = min(KID_ROWS, smaller)
    own = [row // images for row in range(len(rows))]
    # pictures of the reference belong to prompts, too, if it is a subject; else each is its own
    theirs = reference.groups or [-1 - row for row in range(len(real))]
    note = frechet_note(smaller, rows.shape[1])
    found: dict[str, dict[str, Any]] = {_frechet_name(name): {"value": frechet(rows, real), "note": note}}
    # pairs of one prompt do not count: there must be others in every subset
    if size > max(*Counter(own).values(), *Counter(theirs).values()):
        mean, deviation = kid(rows, real, size=size, groups=(own, theirs))
        found[f"kid/{name}"] = {"value": mean, "note": f"standard deviation over subsets of {size}: {deviation:.2g}"}
    if name.startswith("clip"):
        paper = "" if name.startswith("clip_336") else "; the paper's network is clip_336"
        found[f"cmmd/{name}"] = {"value": cmmd(rows, real), "note": f"of {len(rows)} and {len(real)} pictures{paper}"}
    if smaller > NEIGHBOURS:
        for metric, value in prdc(real, rows, NEIGHBOURS)._asdict().items():
            found[f"{metric}/{name}"] = {"value": value, "note": f"k = {NEIGHBOURS}"}
    return found


def _frechet_name(name: str) -> str:
    known = {"inception": "fid", "inception_patch": "patch_fid", "dinov2": "fd_dinov2"}
    return known.get(name, f"fd/{name}")


def reference_of(source: str, extraction: Extraction, base: str, features: Mapping[str, Tensor], images: int) -> Reference | None:
    """What the sets are compared with.

    Args:
        source: ``base`` for the base's own pictures, ``none``, a folder of pictures, or one of statistics, ``<features>.safetensors`` each,
            as an evaluation against pictures leaves in ``features/reference``.
        base, features, images: the base's label, features, and images of each prompt.

    Raises:
        PromptError: see ``look``.
    """
    if source == "none":
        return None
    if source == "base":
        rows = next(iter(features.values()), torch.empty(0, 0))
        return Reference(base, features, {}, len(rows), [row // images for row in range(len(rows))])
    files, kept = look(source, extraction.names)
    if not files:
        return Reference(source, {}, kept, min(one.count for one in kept.values()))
    rows = extraction.of("reference", hash_of_pictures(files), lambda: _read(files))
    for name, values in rows.items():
        Statistics.of(values).save(extraction.kept / "reference" / statistics_file(name))
    return Reference(source, rows, {}, len(files))


def look(source: str, names: Sequence[str]) -> tuple[list[Path], dict[str, Statistics]]:
    """Pictures and statistics in the folder of a reference; none for ``base`` and ``none``.

    Raises:
        PromptError: no such folder, or neither pictures nor statistics in it, or a single picture.
    """
    if source in ("base", "none"):
        return [], {}
    path = Path(source).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    files = [file for file in inside if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
    kept = {name: Statistics.load(file) for name in names if (file := path / statistics_file(name)).is_file()}
    if not files and not kept:
        raise PromptError(f"no reference {source!r}: give a folder of pictures, one of <features>.safetensors statistics, base or none")
    if len(files) == 1:
        raise PromptError(f"the reference {source!r} is a single picture, and sets of pictures are compared: give more")
    return files, kept


def statistics_file(name: str) -> str:
    return f"{name.partition(':')[0]}.safetensors"


def _read(files: Sequence[Path]) -> Iterator[Tensor]:
    for file in files:
        yield from_pil([opened(file)])
