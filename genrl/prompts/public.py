"""Public prompt sets: where each is to be had, under which licence, how its files are read, and what they must hold.

None of their prompts is in this repository. ``sha256`` is ``digest`` of the prompts, taken from the files at ``where`` (of DrawBench, whose
original is a spreadsheet, from two copies that agree); where it is empty, no copy could be compared, and only the count is checked.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrl.data import PromptError
from genrl.types import Prompt

COLUMNS = ("prompt", "prompts", "prompt_en", "caption", "text")
"""What the column of the prompts is called in a table, in any case; the first that is there."""
COMPBENCH = "color shape texture spatial 3d_spatial numeracy non_spatial complex"
COCO_10K = 10_000

Reader = Callable[[Sequence[Path]], list[Prompt]]


@dataclass(frozen=True)
class Public:
    """A public set.

    ``categories``: how many, 0 without any. ``files``: names, or one pattern, at the hub's dataset ``hub`` (empty: the hub has them in no
    form that is read here) below ``folder``; several make a folder on disk. ``where`` says where a person finds them. ``sha256`` empty:
    not known.
    """

    count: int
    categories: int
    licence: str
    where: str
    files: tuple[str, ...]
    read: Reader
    hub: str = ""
    folder: str = ""
    sha256: str = ""

    @property
    def one_file(self) -> bool:
        return len(self.files) == 1 and "*" not in self.files[0]


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of the texts, one a line: two files with the same prompts in the same order agree, whatever their format."""
    return hashlib.sha256("".join(f"{prompt.text.strip()}\n" for prompt in prompts).encode()).hexdigest()


def table(path: Path, category: str = "category", **form: Any) -> list[Prompt]:
    """A ``.csv`` or ``.tsv`` file with a header; every column but the prompt's becomes metadata.

    Raises:
        PromptError: no table, no column of prompts, or a row without one.
    """
    try:
        return _rows(path, category, form)
    except (csv.Error, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: no table in UTF-8 ({error})") from None


def _rows(path: Path, category: str, form: Mapping[str, Any]) -> list[Prompt]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", **form)
        names = {name.strip().lower(): name for name in rows.fieldnames or ()}
        column = next((names[name] for name in COLUMNS if name in names), None)
        if column is None:
            raise PromptError(f"{path}: no column of prompts; call it {COLUMNS[0]!r}. Its columns: {', '.join(names) or 'none'}")
        found = []
        for row in rows:
            if not (text := (row[column] or "").strip()):
                raise PromptError(f"{path}:{rows.line_num}: no prompt in this row")
            rest = {str(name): value for name, value in row.items() if name != column}
            found.append(Prompt(text, (row.get(names.get(category, "")) or "").strip(), rest))
    return found


def lines(path: Path, category: str = "") -> list[Prompt]:
    texts = path.read_text("utf-8-sig").splitlines()
    return [Prompt(text.strip(), category, {"category": category}) for text in texts if text.strip()]


def partiprompts(paths: Sequence[Path]) -> list[Prompt]:
    return table(paths[0])


def drawbench(paths: Sequence[Path]) -> list[Prompt]:
    return table(paths[0])


def geneval(paths: Sequence[Path]) -> list[Prompt]:
    """Objects a line, as the ``geneval`` reward reads them; the category is the tag."""
    records = [(number, line) for number, line in enumerate(paths[0].read_text("utf-8").splitlines(), 1) if line.strip()]
    return [_geneval(_json(line, f"{paths[0]}:{number}"), f"{paths[0]}:{number}") for number, line in records]


def _geneval(record: Any, where: str) -> Prompt:
    if not isinstance(record, dict) or not {"prompt", "tag", "include"} <= record.keys():
        raise PromptError(f'{where}: wants an object with "prompt", "tag" and "include", got {str(record)[:80]}')
    return Prompt(record["prompt"].strip(), record["tag"], {name: value for name, value in record.items() if name != "prompt"})


def hpdv2(paths: Sequence[Path]) -> list[Prompt]:
    """A list of prompts a style."""
    found = []
    for path in paths:
        texts = _json(path.read_text("utf-8"), str(path))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise PromptError(f"{path}: wants a list of prompts")
        found += [Prompt(text.strip(), path.stem, {"category": path.stem}) for text in texts]
    return found


def compbench(paths: Sequence[Path]) -> list[Prompt]:
    """A prompt a line, a file a category."""
    return [prompt for path in paths for prompt in lines(path, path.stem.removesuffix("_val"))]


def dpg_bench(paths: Sequence[Path]) -> list[Prompt]:
    """A prompt a file. The category is the source that the file's name begins with; "numbered" where it is a number."""
    found = []
    for path in paths:
        letters = re.match("[A-Za-z]*", path.stem)
        category = (letters and letters[0]) or "numbered"
        found.append(Prompt(path.read_text("utf-8-sig").strip(), category, {"category": category, "id": path.stem}))
    return found


def unigenbench(paths: Sequence[Path]) -> list[Prompt]:
    """Test points in ``sub_dims_en`` as an object in JSON; the category is its primary one."""
    found = []
    for number, prompt in enumerate(table(paths[0])):
        points = _json(str(prompt.metadata.get("sub_dims_en")), f"{paths[0]}, prompt {number}")
        found.append(Prompt(prompt.text, points.get("Primary Categories", ""), {**prompt.metadata, "sub_dims_en": points}))
    return found


def coco_10k(paths: Sequence[Path]) -> list[Prompt]:
    """From COCO's annotations as DMD2 draws them (``dmd2_captions``), or from a list in that order: ``.txt`` or a table."""
    path = paths[0]
    if path.suffix == ".txt":
        return lines(path)
    if path.suffix in (".csv", ".tsv"):
        return table(path)
    if path.suffix != ".json":
        raise PromptError(f"{path}: wants captions_val2014.json, or the captions as .txt, .csv or .tsv; pickled lists are not opened")
    annotations = _json(path.read_text("utf-8"), str(path))
    if not isinstance(annotations, dict) or not {"images", "annotations"} <= annotations.keys():
        raise PromptError(f'{path}: wants COCO\'s caption annotations, an object with "images" and "annotations"')
    if other := next((i["file_name"] for i in annotations["images"] if not i["file_name"].startswith("COCO_val2014_")), None):
        raise PromptError(f"{path}: holds {other}, so it is not COCO 2014's validation split")
    captions = dmd2_captions(annotations, COCO_10K)
    return [Prompt(caption.strip(), "", {"file_name": name}) for name, caption in captions]


def dmd2_captions(annotations: Mapping[str, Any], count: int) -> list[tuple[str, str]]:
    """(file name, caption) of ``count`` images, one caption each: the draw of DMD2's ``main/sdxl/data_process.py`` (arXiv 2405.14867).

    There pandas shuffles the captions, keeps the first of each image and draws of these, with NumPy's seed 123. The same numbers come
    of the permutations here (compared with pandas 2.2 and 3.1). Whether DMD2's published list is this draw could not be checked.
    """
    captions: dict[int, list[str]] = {}
    for annotation in annotations["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    rows = [(image["file_name"], caption) for image in annotations["images"] for caption in captions.get(image["id"], ())]
    rng = np.random.RandomState(123)
    first: dict[str, str] = {}
    for index in rng.permutation(len(rows)):
        first.setdefault(*rows[index])
    drawn = list(first.items())
    return [drawn[index] for index in rng.permutation(len(drawn))[:count]]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error})") from None


PUBLIC: Mapping[str, Public] = {
    "partiprompts": Public(
        count=1632,
        categories=12,
        licence="Apache-2.0",
        where="https://github.com/google-research/parti/blob/main/PartiPrompts.tsv",
        files=("PartiPrompts.tsv",),
        read=partiprompts,
        hub="nateraw/parti-prompts",
        sha256="7591393c2de0ef55b9417826583bf3aa23ffd620e0b467943ba3679911ac4c1d",
    ),
    "geneval": Public(
        count=553,
        categories=6,
        licence="MIT",
        where="https://github.com/djghosh13/geneval/blob/main/prompts/evaluation_metadata.jsonl",
        files=("evaluation_metadata.jsonl",),
        read=geneval,
        sha256="55b6e3650e980c13daf30569eb666e000faf19bfc2b7b4cbe999fcdb7aa9d680",
    ),
    "drawbench": Public(
        count=200,
        categories=11,
        licence="unknown: published without one",
        where="https://huggingface.co/datasets/sayakpaul/drawbench",
        files=("DrawBench Prompts - Sheet1.csv",),
        read=drawbench,
        hub="sayakpaul/drawbench",
        sha256="266321db2953aea2de25f6e2655a746edf9e219308b582129465300415788170",
    ),
    "hpdv2": Public(
        count=3200,
        categories=4,
        licence="none on the data set's card; the repository is Apache-2.0; texts of DiffusionDB and COCO",
        where="https://huggingface.co/datasets/zhwang/HPDv2/tree/main/benchmark",
        files=("anime.json", "concept-art.json", "paintings.json", "photo.json"),
        read=hpdv2,
        hub="zhwang/HPDv2",
        folder="benchmark",
    ),
    "t2i-compbench": Public(
        count=2400,
        categories=8,
        licence="MIT",
        where="https://github.com/Karine-Huang/T2I-CompBench/tree/main/examples/dataset",
        files=tuple(f"{category}_val.txt" for category in COMPBENCH.split()),
        read=compbench,
        sha256="d30a2a62156c520326c65bc9f83e2062ebb083aa52108236a1b8fb4fc3c594f2",
    ),
    "dpg-bench": Public(
        count=1065,
        categories=12,
        licence="Apache-2.0; texts derived from COCO, PartiPrompts, DSG-1k and Objects365",
        where="https://github.com/TencentQQGYLab/ELLA/tree/main/dpg_bench/prompts",
        files=("*.txt",),
        read=dpg_bench,
        sha256="b59acbac7cae1f4aa73acb1d6817bb1a558207b2aa130b20b46ea8f859039e15",
    ),
    "unigenbench": Public(
        count=600,
        categories=5,
        licence="CC-BY-4.0 in its repository; the hub's card says MIT",
        where="https://github.com/CodeGoat24/UniGenBench/blob/main/data/test_prompts_en.csv",
        files=("test_en.csv",),
        read=unigenbench,
        hub="CodeGoat24/UniGenBench",
        folder="eval",
        sha256="f9897e93926b9b7518221e63447c82558e19a7ff51b7c578fd1c5cd1aff91eba",
    ),
    "coco-10k": Public(
        count=COCO_10K,
        categories=0,
        licence="CC-BY-4.0 (COCO's annotations)",
        where="annotations/captions_val2014.json in http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        files=("captions_val2014.json",),
        read=coco_10k,
    ),
}
