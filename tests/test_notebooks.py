"""Every notebook runs from top to bottom, without a network, and quotes what it prints."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
STARVED_S = 600  # a kernel may take long to start on a machine that is busy with other things


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs it in ``folder``; HF_HUB_OFFLINE is inherited. Fails with the cell and its error."""
    settings = {"timeout": STARVED_S, "startup_timeout": STARVED_S, "kernel_name": "python3", "record_timing": False}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **settings).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def statuses(text: str) -> list[str]:
    """The doctor's lines, without what differs from machine to machine."""
    return [line[:24] for line in text.splitlines() if line.startswith(("ok ", "warn ", "fail ", "skip "))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_runs_and_says_what_it_shows(path, tmp_path):
    stored = printed(nbformat.read(path, 4))
    again = printed(execute(nbformat.read(path, 4), tmp_path))
    assert statuses(again) == statuses(stored), "the outputs kept in the notebook are not those of the code"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_is_small_and_shows_no_path_of_a_machine(path):
    text = path.read_text("utf-8")
    assert len(text) < 200_000 and "/home/" not in text and str(Path.home()) not in text and str(path.parents[1]) not in text


def test_the_notebook_about_rewards_shows_what_it_promises():
    text = printed(nbformat.read(next(path for path in NOTEBOOKS if path.stem == "write_a_reward"), 4))
    found = statuses(text)
    assert "fail  varies            " in found and "fail  shuffled prompts  " in found and "fail  pairing           " in found
    assert "mix/share/colours" in text and "both_orders=True" in text


def test_a_broken_notebook_fails(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(broken, tmp_path)
