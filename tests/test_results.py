"""README and docs/results.md quote the committed result files and nothing else; each says where it comes from."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


PLACE = re.compile(r"<!-- results: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
TABLES = {page: dict(PLACE.findall((ROOT / page).read_text("utf-8"))) for page in ("README.md", "docs/results.md")}


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, tables in TABLES.items() for name in tables])
def test_a_table_is_what_the_results_say(monkeypatch, page, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    if name == "claims":
        said = importlib.import_module("_results").claims((ROOT / "docs" / "results.md").read_text("utf-8"))
    elif name == "acflow_shapes":
        said = importlib.import_module(name).table()
    else:
        bench = benchmark(monkeypatch, "distill_shapes" if name.startswith("distill_shapes") else name)
        said = bench.table(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()))
    assert TABLES[page][name].strip() == said.strip()


def test_all_tables_and_claims_are_shown():
    assert TABLES["README.md"].keys() == {"acflow_shapes", "claims"}
    assert TABLES["docs/results.md"].keys() >= {"acflow_shapes", "distill_shapes", "distill_shapes_sdxl", "overoptimisation_shapes"}
    assert TABLES["docs/results.md"].keys() >= {"chain", "train_step", "kernels", "speed_learning"}
    written = sum(line.startswith("* **") for table in TABLES["docs/results.md"].values() for line in table.splitlines())
    listed = [line for line in TABLES["README.md"]["claims"].splitlines() if line.startswith("|")][2:]
    assert written == sum(line.count("benchmarks/results/") for line in listed) >= 15


@pytest.mark.parametrize(
    ("kept", "gain_lost", "alarm_round", "in_time", "ensemble", "alarm"),
    [
        (0.95, 0.5, 9, True, True, True),
        (0.85, 0.5, 9, True, False, True),  # the ensemble loses, too
        (0.95, 0.1, 9, True, False, True),  # the single proxy was not hacked enough to compare
        (0.95, 0.5, 12, False, True, False),  # late
        (0.95, 0.5, None, False, True, False),  # never
    ],
)
def test_what_is_claimed_of_over_optimisation(monkeypatch, kept, gain_lost, alarm_round, in_time, ensemble, alarm):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("overoptimisation_shapes")

    def record(hacked, **figures):
        told = {"alarm_round": alarm_round if hacked else None, "in_time": in_time if hacked else False}
        return {"figures": {"kept": 0.8, "gain_lost": 0.0} | figures, "hacked": hacked, **told}

    rows = {"single": [record(True, gain_lost=gain_lost)] * 2, "mean": [record(False, kept=kept)] * 2}
    found = bench.claims(rows)
    assert (found["ensemble"]["holds"], found["alarm"]["holds"]) == (ensemble, alarm)
    rows["mean"][0]["alarm_round"] = 3  # false
    assert not bench.claims(rows)["alarm"]["holds"]


def test_tables_are_written_between_the_markers_only_and_their_claims_listed(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, readme, page = importlib.import_module("_results"), tmp_path / "README.md", tmp_path / "results.md"
    text = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\nkept\n<!-- end -->\n"
    readme.write_text("a\n<!-- results: claims -->\n<!-- end -->\n")
    page.write_text(text)
    lines = [results.said(True, "it is fast", "seconds 1"), results.verdict("it is good", [("score", 0.5, True), ("other", 0.1, False)])]
    table = "\n".join(["new", *lines])
    results.write_table("one", table, (readme, page))
    assert page.read_text() == text.replace("old", table)
    lines = readme.read_text().splitlines()
    assert lines[4:-1] == [
        "| It is fast | yes | [`one`](benchmarks/results/one.json) |",
        "| It is good | **no** | [`one`](benchmarks/results/one.json) |",
    ]
    results.write_table("three", "new", (readme, page))
    assert page.read_text() == text.replace("old", table) and "no table" in capsys.readouterr().out


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_results_say_where_they_come_from(path):
    for row in json.loads(path.read_text())["rows"]:
        assert {"command", "commit", "torch", "diffusers", "device", "seed"} <= row["versions"].keys()
        assert row["versions"]["command"].startswith("python benchmarks/")


def benchmark(monkeypatch, name):
    """A benchmark by its file: ``kernels`` is also a folder of tests."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["chain", "train_step", "kernels"])
def test_what_nobody_measured_is_not_guessed(monkeypatch, name):
    bench = benchmark(monkeypatch, name)
    assert "GPU: not measured." in bench.table({"rows": []}) and "olds" not in bench.table({"rows": []})


@pytest.mark.parametrize("name", ["chain", "train_step", "kernels"])
def test_the_harness_runs_everything_on_a_cpu(monkeypatch, tmp_path, capsys, name):
    """Every way to sample, learn or call a kernel, on the smallest case; nothing is written."""
    bench, before = benchmark(monkeypatch, name), {path: path.read_bytes() for path in [*RESULTS, *(ROOT / page for page in TABLES)]}
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--device", "cpu", "--tiny"])
    bench.main()
    printed = capsys.readouterr().out
    assert {"chain": "guidance 4.5", "train_step": "flash_dmd tiny", "kernels": "bias + GELU"}[name] in printed
    assert before == {path: path.read_bytes() for path in before}
