"""README quotes the committed result files and nothing else; each says where it comes from."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_readme_table_is_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, acflow = (importlib.import_module(name) for name in ("_results", "acflow_shapes"))
    shown = (ROOT / "README.md").read_text().split(results.begin("acflow_shapes"))[1].split(results.END)[0]
    assert shown.strip() == acflow.table().strip()


def test_readme_is_written_between_the_markers_only(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, readme = importlib.import_module("_results"), tmp_path / "README.md"
    text = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\nkept\n<!-- end -->\n"
    readme.write_text(text)
    results.write_readme("one", "new", readme)
    assert readme.read_text() == text.replace("old", "new")
    results.write_readme("three", "new", readme)
    assert readme.read_text() == text.replace("old", "new") and "no table" in capsys.readouterr().out


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_results_say_where_they_come_from(path):
    for row in json.loads(path.read_text())["rows"]:
        assert {"command", "commit", "torch", "diffusers", "device", "seed"} <= row["versions"].keys()
        assert row["versions"]["command"].startswith("python benchmarks/")
