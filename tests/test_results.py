"""README quotes the committed result files and nothing else; each says where it comes from."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_readme_table_is_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, acflow = (importlib.import_module(name) for name in ("_results", "acflow_shapes"))
    shown = (ROOT / "README.md").read_text().split(results.begin("acflow_shapes"))[1].split(results.END)[0]
    assert shown.strip() == acflow.table().strip()


def test_the_over_optimisation_table_is_what_its_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, bench = (importlib.import_module(name) for name in ("_results", "overoptimisation_shapes"))
    shown = (ROOT / "README.md").read_text().split(results.begin(bench.NAME))[1].split(results.END)[0]
    assert shown.strip() == bench.table(json.loads((results.RESULTS / f"{bench.NAME}.json").read_text())).strip()


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


def benchmark(monkeypatch, name):
    """A benchmark by its file: ``kernels`` is also a folder of tests."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["chain", "train_step", "kernels", "speed_learning"])
def test_the_tables_of_speed_are_what_their_results_say(monkeypatch, name):
    bench = benchmark(monkeypatch, name)
    results = importlib.import_module("_results")
    shown = (ROOT / "README.md").read_text().split(results.begin(name))[1].split(results.END)[0]
    path = results.RESULTS / f"{name}.json"
    assert shown.strip() == bench.table(json.loads(path.read_text()) if path.exists() else None).strip()


@pytest.mark.parametrize("name", ["chain", "train_step", "kernels"])
def test_what_nobody_measured_is_not_guessed(monkeypatch, name):
    bench = benchmark(monkeypatch, name)
    assert "GPU: not measured." in bench.table({"rows": []}) and "olds" not in bench.table({"rows": []})


@pytest.mark.parametrize("name", ["chain", "train_step", "kernels"])
def test_the_harness_runs_everything_on_a_cpu(monkeypatch, tmp_path, capsys, name):
    """Every way to sample, learn or call a kernel, on the smallest case; nothing is written."""
    bench, before = benchmark(monkeypatch, name), {path: path.read_bytes() for path in [*RESULTS, ROOT / "README.md"]}
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--device", "cpu", "--tiny"])
    bench.main()
    printed = capsys.readouterr().out
    assert {"chain": "guidance 4.5", "train_step": "flash_dmd tiny", "kernels": "bias + GELU"}[name] in printed
    assert before == {path: path.read_bytes() for path in before}
