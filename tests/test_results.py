"""README quotes the committed result files and nothing else; each says where it comes from."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_table_is_what_the_results_say():
    acflow = benchmark("acflow_shapes")
    shown = (ROOT / "README.md").read_text().split(acflow.BEGIN)[1].split(acflow.END)[0]
    assert shown.strip() == acflow.table().strip()


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_results_say_where_they_come_from(path):
    for row in json.loads(path.read_text())["rows"]:
        assert {"command", "commit", "torch", "diffusers", "device", "seed"} <= row["versions"].keys()
        assert row["versions"]["command"].startswith("python benchmarks/")
