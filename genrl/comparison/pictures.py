"""The pictures of each subject on disk: drawn once, kept, and read back one prompt at a time.

``models/<label>/00007-2.png`` is image 2 of the prompt in place 7, and ``drawn.json`` beside them says how they came about. What is there
and was drawn the same way is not drawn again, so an evaluation that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genrl.comparison.folders import assigned, opened
from genrl.comparison.subjects import Subject, SubjectError
from genrl.data import INDEX
from genrl.models.drawing import Painter
from genrl.pixels import from_pil, to_pil
from genrl.types import Prompt
from genrl.worlds.shapes import PIPELINES

DRAWN = "drawn.json"


def seed_of(seed: int, prompt: str, image: int) -> int:
    """The seed of an image: the same for a prompt in every model and whatever prompts stand beside it; below 2^63."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{image}\n{prompt}".encode()).digest()[:8], "big") >> 1


def name_of(place: int, image: int) -> str:
    return f"{place:05d}-{image}.png"


def draw(
    subject: Subject,
    prompts: Sequence[Prompt],
    images: int,
    seed: int,
    folder: Path,
    batch: int = 16,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Draw what is missing into ``folder``; returns the record of the subject for the result.

    Args:
        images: of each prompt; batch: images per call of the pipeline. tell: hears how far it is.

    Raises:
        ModelError: the model cannot be loaded or called; SubjectError: a picture folder that does not have what is asked for.
    """
    if subject.kind == "pictures":
        return adopt(subject, prompts, images, folder, tell)
    cuda = torch.device(device).type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    painter = Painter(str(PIPELINES.get(subject.source, subject.source)), subject.settings, subject.lora, device, dtype)
    how = {
        "sha256": painter.sha256(),
        "settings": painter.used,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": hashlib.sha256("\n".join(p.text for p in prompts).encode()).hexdigest(),
    }
    clock, missing = _kept(folder, how), []
    for place in range(len(prompts)):
        missing += [(place, image) for image in range(images) if not (folder / name_of(place, image)).is_file()]
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        began = time.perf_counter()
        drawn = painter([prompts[place].text for place, _ in some], [seed_of(seed, prompts[place].text, image) for place, image in some])
        # the first call warms up
        clock += [(time.perf_counter() - began) / len(some)] if start and len(some) == batch else []
        for (place, image), picture in zip(some, to_pil(drawn), strict=True):
            # a kill leaves no half picture behind
            aside = folder / f".{name_of(place, image)}"
            picture.save(aside, format="PNG")
            aside.rename(folder / name_of(place, image))
        _write(folder, how, clock)
        tell(f"{subject.label}: {min(start + batch, len(missing))} of {len(missing)} pictures drawn")
    # rewards may wait on the same device
    peak = torch.cuda.max_memory_allocated(device) - before if cuda else None
    middle = sorted(clock)[len(clock) // 2] if clock else None
    return _record(subject, how["sha256"], how["settings"], middle, peak)


def adopt(subject: Subject, prompts: Sequence[Prompt], images: int, folder: Path, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Copy pictures drawn elsewhere to where those of the others are; ``tell`` hears of sizes that differ between prompts.

    Raises:
        SubjectError: some are missing or cannot be read, those of a prompt are of several sizes, or they are those of this evaluation.
    """
    found = assigned(Path(subject.source).expanduser(), prompts)
    if any(path.resolve().is_relative_to(folder.parent.resolve()) for paths in found.values() for path in paths):
        raise SubjectError(f"{subject.source!r} holds pictures of this evaluation, which it would replace: give another folder with --out")
    if short := [place for place in range(len(prompts)) if len(found.get(place, ())) < images]:
        have = len(found.get(short[0], ()))
        raise SubjectError(
            f"{subject.source!r} has {have} pictures of the prompt {prompts[short[0]].text!r}, and {images} of each are compared "
            f"({len(short)} of {len(prompts)} prompts lack some). Ask for fewer with --images, or say in {INDEX} which picture shows what"
        )
    _clear(folder)
    seen: Counter[tuple[int, int]] = Counter()
    for place, paths in found.items():
        sizes = set()
        for image, path in enumerate(paths[:images]):
            picture = opened(path)
            sizes.add(picture.size)
            picture.save(folder / name_of(place, image))
        if len(sizes) > 1:
            raise SubjectError(
                f"{subject.source!r} has pictures of {len(sizes)} sizes for the prompt {prompts[place].text!r}: give them one size"
            )
        seen.update(sizes)
    if len(seen) > 1:
        listed = ", ".join(f"{width}x{height} for {count} prompts" for (width, height), count in seen.most_common())
        tell(f"{subject.label}: pictures of several sizes ({listed}), which scores may depend on")
    return _record(subject, hash_of_pictures(sorted(folder.glob("*.png"))), None, None, None)


def by_prompt(folder: Path, prompts: int, images: int) -> Iterator[Tensor]:
    """The pictures of one prompt after the other, ``[N, 3, H, W]`` in [0, 1]."""
    for place in range(prompts):
        opened = [Image.open(folder / name_of(place, image)) for image in range(images)]
        try:
            yield from_pil(opened)
        finally:
            for picture in opened:
                picture.close()


def in_blocks(folder: Path, prompts: int, images: int, size: int = 64) -> Iterator[tuple[range, Tensor]]:
    """Places of neighbouring prompts and their pictures ``[B, 3, H, W]``, at least ``size`` together unless height and width change."""
    first, held = 0, []
    for place, pictures in enumerate(by_prompt(folder, prompts, images)):
        if held and (held[0].shape[1:] != pictures.shape[1:] or len(held) * images >= size):
            yield range(first, place), torch.cat(held)
            first, held = place, []
        held.append(pictures)
    if held:
        yield range(first, prompts), torch.cat(held)


def hash_of_pictures(files: Iterable[Path]) -> str:
    """sha256 over names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _kept(folder: Path, how: dict[str, Any]) -> list[float]:
    """Seconds of what is there, if it was drawn this way; else what is there goes."""
    try:
        record = json.loads((folder / DRAWN).read_text())
        if {name: record.get(name) for name in how} == how:
            return list(record["seconds"])
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        pass
    _clear(folder)
    # before the first picture, so that those of an interrupted start are not taken for what was there before
    _write(folder, how, [])
    return []


def _clear(folder: Path) -> None:
    """Without the record first: half of it done, what is left belongs to nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DRAWN).unlink(missing_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()


def _write(folder: Path, how: dict[str, Any], seconds: list[float]) -> None:
    aside = folder / f".{DRAWN}"
    aside.write_text(json.dumps({**how, "seconds": seconds}, indent=1) + "\n")
    aside.rename(folder / DRAWN)


def _record(subject: Subject, sha256: str, settings: dict[str, Any] | None, seconds: float | None, peak: int | None) -> dict[str, Any]:
    shown = subject.source if subject.kind != "lora" else f"{subject.source} + {subject.lora}"
    return {
        "label": subject.label,
        "source": shown,
        "kind": subject.kind,
        "sha256": sha256,
        "settings": settings,
        "seconds_per_image": seconds,
        "peak_bytes": peak,
    }
