"""Execute the notebooks and keep their outputs, small.

    python notebooks/_run.py            # all of them: some minutes on two cores
    python notebooks/_run.py 1 3_       # those whose names begin so

Kept are what a cell prints and its pictures. Execution times, and what torch's loggers say of the machine, are left out. A warning or a
path of this machine is an error, and nothing is written. The figure of the cell that is tagged ``first-look`` also becomes the picture of
the first cell: what the reader will see.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9]_*.ipynb"))
STARVED_S = 900  # a kernel may take long on a machine that is busy with other things
LARGEST = 200_000
"""Bytes of a notebook with its outputs."""
TAG, PICTURE = "first-look", "first-look.png"
KERNEL = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm would like widgets
}
LOGGERS = re.compile(r"^[WIE]\d{4} .*\n?", re.MULTILINE)  # "W1126 17:05:13 ...] No CUDA runtime is found"


def execute(notebook: nbformat.NotebookNode, temporary: Path) -> nbformat.NotebookNode:
    """Run it beside where it is kept, with its temporary files in ``temporary``; fails with the cell and its error."""
    settings = {"timeout": STARVED_S, "startup_timeout": STARVED_S, "kernel_name": "python3", "record_timing": False}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}, **settings)
    client.execute(env={**os.environ, **KERNEL, "TMPDIR": str(temporary)})
    return notebook


def tidy(notebook: nbformat.NotebookNode, name: str) -> None:
    """Leave of the outputs what is worth keeping.

    Raises:
        ValueError: a warning, a progress bar, or a path of this machine.
    """
    for number, cell in enumerate(notebook.cells):
        kept = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                if said := LOGGERS.sub("", output.text).strip():
                    raise ValueError(f"{name}, cell {number}: a notebook that is kept has no warnings, and this one has: {said}")
                continue
            if "\x1b" in output.get("text", ""):
                raise ValueError(f"{name}, cell {number}: a progress bar or colours; send them to a file")
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": smaller(output.data["image/png"])}
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            if kept and output.output_type == "stream" == kept[-1].output_type:
                kept[-1].text += output.text
            else:
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    text = nbformat.writes(notebook)
    for path in (str(Path.home()), str(FOLDER.parent), tempfile.gettempdir() + "/"):
        if path in text:
            place = text.index(path)
            raise ValueError(f"{name} shows a path of this machine: ...{text[max(place - 60, 0) : place + 80]}...")


def smaller(png: str) -> str:
    """The picture with a palette, if that takes less room; base64 both."""
    found = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    # median cut, the default, gives small shapes of strong colour the colours of others
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    packed = base64.b64encode(found.getvalue()).decode()
    return packed if len(packed) < len(png) else png


def show_first(notebook: nbformat.NotebookNode, name: str) -> None:
    """Put the figure of the tagged cell into the first.

    Raises:
        ValueError: no such figure.
    """
    pictures = [
        output.data["image/png"]
        for cell in notebook.cells
        if TAG in cell.metadata.get("tags", ())
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    if len(pictures) != 1:
        raise ValueError(f"{name}: one cell is tagged {TAG!r} and draws one figure; found {len(pictures)} figures")
    notebook.cells[0].attachments = {PICTURE: {"image/png": pictures[0]}}


def main(names: list[str]) -> None:
    chosen = [path for path in NOTEBOOKS if not names or any(path.stem.startswith(name) for name in names)]
    if not chosen:
        raise SystemExit(f"error: no notebook begins with {', '.join(names)}; there are {', '.join(path.stem for path in NOTEBOOKS)}")
    for path in chosen:
        with tempfile.TemporaryDirectory() as temporary:
            notebook = execute(nbformat.read(path, 4), Path(temporary))
        tidy(notebook, path.stem)
        show_first(notebook, path.stem)
        if (size := len(nbformat.writes(notebook))) > LARGEST:
            raise ValueError(f"{path.name} would have {size:,} bytes with its outputs, and {LARGEST:,} are the most: draw smaller figures")
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
