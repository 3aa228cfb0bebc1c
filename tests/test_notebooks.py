"""Every notebook runs from top to bottom, without a network, and keeps what it shows: small, and without a word about the machine."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "_run.py")
assert SPEC and SPEC.loader
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)

PATHS = notebooks.NOTEBOOKS
QUICK = ("1", "3")
"""Those that train nothing; the others take more than 20 seconds on two cores."""
EXECUTED = [pytest.param(path, id=path.stem, marks=() if path.stem[0] in QUICK else pytest.mark.slow) for path in PATHS]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
CALLED = re.compile(r"^(?:import|from) genrl(?:\.\w+)*\._\w+|^from genrl\S* import _\w+", re.MULTILINE)

every = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def stored(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, 4)


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def statuses(text: str) -> list[str]:
    """The doctor's lines, without what differs from machine to machine."""
    return [line[:24] for line in text.splitlines() if line.startswith(("ok ", "warn ", "fail ", "skip "))]


def kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """Of each cell what it left: printed text, a value, a picture. Warnings differ from machine to machine, and do not count."""
    return [
        {
            "picture" if "image/png" in output.get("data", {}) else output.output_type
            for output in cell.get("outputs", [])
            if output.get("name") != "stderr"
        }
        for cell in notebook.cells
    ]


def test_there_are_six_in_their_order():
    assert [path.stem for path in PATHS] == [
        "1_evaluate_a_checkpoint",
        "2_write_a_reward",
        "3_compare_methods",
        "4_inside_the_chain",
        "5_distil_to_four_steps",
        "6_was_it_hacked",
    ]


@pytest.mark.parametrize("path", EXECUTED)
def test_it_runs_and_says_what_it_shows(path, tmp_path):
    before = sorted(notebooks.FOLDER.iterdir())
    kept, again = stored(path), notebooks.execute(stored(path), tmp_path)
    assert kinds(again) == kinds(kept), "the outputs kept in the notebook are not those of its code: python notebooks/_run.py"
    assert statuses(printed(again)) == statuses(printed(kept))
    # nothing is left behind, and nothing was written where the notebook is
    assert not [path for path in tmp_path.iterdir() if path.is_dir()] and sorted(notebooks.FOLDER.iterdir()) == before


@every
def test_it_is_small_and_shows_neither_a_machine_nor_an_error(path):
    text, notebook = path.read_text("utf-8"), stored(path)
    assert len(text) <= notebooks.LARGEST
    for place in ("/home/", "/root/", "/tmp/", str(Path.home()), str(ROOT)):
        assert place not in text
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"Traceback|Warning\b|it/s\]|\d%\||\x1b", printed(notebook))
    assert all("execution" not in cell.metadata for cell in notebook.cells)


@every
def test_all_its_outputs_are_kept(path):
    cells = [cell for cell in stored(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictured = [any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells]
    # a call that shows a figure, not the body of a function that does
    assert pictured == [bool(re.search(r"^(plt\.)?show\(", cell.source, re.MULTILINE)) for cell in cells] and any(pictured)


@every
def test_it_opens_with_what_one_will_see_and_ends_with_a_next_step(path):
    notebook = stored(path)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    title, words = first.source.split("\n", 1)
    assert (
        title.startswith(f"# {path.stem[0]} · ") and words.lstrip().startswith("**You will see**") and "It takes" in " ".join(words.split())
    )
    assert f"(attachment:{notebooks.PICTURE})" in first.source
    tagged = next(cell for cell in notebook.cells if notebooks.TAG in cell.metadata.get("tags", ()))
    drawn = [output.data["image/png"] for output in tagged.outputs if "image/png" in output.get("data", {})]
    assert drawn == [first.attachments[notebooks.PICTURE]["image/png"]], "the opening picture is not the figure of the code"
    assert LINK.findall(last.source.partition("**Next**")[2])


@every
def test_its_links_lead_somewhere(path):
    for cell in stored(path).cells:
        for target in LINK.findall(cell.source) if cell.cell_type == "markdown" else ():
            assert target.startswith("attachment:") or (path.parent / target).is_file(), target


@every
def test_it_uses_the_public_api_only(path):
    code = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "code")
    assert not CALLED.search(code)


def test_the_notebook_about_rewards_shows_what_it_promises():
    text = printed(stored(PATHS[1]))
    found = statuses(text)
    assert "fail  varies            " in found and "fail  shuffled prompts  " in found and "fail  pairing           " in found
    assert "mix/share/colours" in text and "both_orders=True" in text


def test_a_broken_notebook_fails(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.execute(broken, tmp_path)


def noted(*outputs: dict) -> nbformat.NotebookNode:
    """A notebook whose one cell left these outputs."""
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.from_dict(output) for output in outputs])
    cell.metadata["tags"] = [notebooks.TAG]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python", "version": "3.99"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1"), cell], metadata=metadata)


def test_a_kept_picture_takes_less_room_and_has_the_colours_it_had():
    rng = np.random.default_rng(0)
    pixels = rng.integers(225, 240, (120, 160, 3), dtype=np.uint8)
    pixels[50:56, 70:76] = strong = rng.integers(0, 255, (6, 6, 3))
    found = io.BytesIO()
    Image.fromarray(pixels).save(found, "PNG")
    kept = base64.b64decode(notebooks.smaller(base64.b64encode(found.getvalue()).decode()))
    again = np.asarray(Image.open(io.BytesIO(kept)).convert("RGB")).astype(int)
    assert len(kept) < 0.7 * len(found.getvalue())
    assert abs(again[50:56, 70:76] - strong).max() < 16 and abs(again - pixels).mean() < 4


def test_what_loggers_say_of_a_machine_is_left_out_and_a_warning_is_not_kept():
    logged = {"output_type": "stream", "name": "stderr", "text": "W1126 17:12:26.6 31 torch/x.py:183] No CUDA runtime is found\n"}
    said = {"output_type": "stream", "name": "stdout", "text": "fine\n"}
    notebook = noted(logged, said)
    notebooks.tidy(notebook, "one")
    assert [output.text for output in notebook.cells[1].outputs] == ["fine\n"] and "3.99" not in json.dumps(notebook)
    with pytest.raises(ValueError, match=r"one, cell 1: .*UserWarning: look"):
        notebooks.tidy(noted({**logged, "text": logged["text"] + "UserWarning: look\n"}), "one")


def test_a_progress_bar_is_not_kept():
    with pytest.raises(ValueError, match="progress bar"):
        notebooks.tidy(noted({"output_type": "stream", "name": "stdout", "text": "\x1b[2Ksampling 3/45"}), "one")


def test_a_path_of_the_machine_is_not_kept():
    with pytest.raises(ValueError, match="shows a path of this machine"):
        notebooks.tidy(noted({"output_type": "stream", "name": "stdout", "text": f"wrote {ROOT}/runs\n"}), "one")


def test_an_opening_without_its_figure_is_refused():
    with pytest.raises(ValueError, match="found 0 figures"):
        notebooks.show_first(noted(), "one")
