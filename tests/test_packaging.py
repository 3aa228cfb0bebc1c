"""The wheel holds what the tree holds, works without it, and the mapped folders refuse any other name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("configs", "rewards", "trainers")
ASSETS = "genrl/worlds/shapes/assets"


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


def build_wheel(tree: Path, out: Path) -> Path:
    """Build through the backend that pip would call, offline. Works in ``tree``, so give it a copy."""
    out.mkdir()
    run = python(f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})", tree)
    assert run.returncode == 0, run.stderr
    (wheel,) = out.glob("genrl_image-*.whl")
    return wheel


def copy_tree(to: Path) -> Path:
    """Copy what a build reads, without what earlier builds and runs left behind."""
    for folder in ("genrl", *MAPPED):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, to)
    return to


def expected(tree: Path) -> set[str]:
    """What the wheel must hold beside its dist-info, by the rules of the house rather than by pyproject.toml."""
    wanted = {tree / "genrl/py.typed"}
    for folder in ("genrl", *MAPPED):
        wanted |= set((tree / folder).rglob("*.py"))
    wanted |= set((tree / "configs").rglob("*.yaml"))
    wanted |= set((tree / "genrl/comparison").rglob("*.j2")) | set((tree / "genrl/evaluation").rglob("*.j2"))
    wanted |= {path for folder in ("pages", "references") for path in (tree / "genrl/evaluation" / folder).glob("*.*")}
    wanted |= set((tree / "genrl/prompts").rglob("*.jsonl"))
    wanted |= {path for path in (tree / ASSETS).rglob("*") if path.is_file()}
    names = {path.relative_to(tree).as_posix() for path in wanted}
    return {f"genrl/{name}" if name.split("/")[0] in MAPPED else name for name in names}


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_tree(folder / "tree"), folder / "dist")


def test_the_wheel_holds_the_tree(wheel: Path):
    assert contents(wheel) == expected(wheel.parents[1] / "tree")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"genrl", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_a_forgotten_folder_is_noticed(tmp_path: Path):
    tree = copy_tree(tmp_path / "tree")
    (tree / "rewards/geneval").mkdir()
    (tree / "rewards/geneval/__init__.py").touch()
    (tree / ASSETS / "judge.pt").touch()
    missing = expected(tree) - contents(build_wheel(tree, tmp_path / "dist"))
    assert missing == {"genrl/rewards/geneval/__init__.py", f"{ASSETS}/judge.pt"}


def test_the_wheel_works_without_the_tree(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import genrl, genrl.rewards, genrl.trainers; from importlib.resources import files;"
        "print(genrl.__version__, genrl.__file__, *(p.name for p in files('genrl.configs').iterdir()))"
    )
    run = python(code, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert run.returncode == 0, run.stderr
    version, file, *configs = run.stdout.split()
    assert version == wheel.name.split("-")[1]
    assert Path(file).is_relative_to(tmp_path)
    assert {path.name for path in (ROOT / "configs").iterdir() if path.name != "__pycache__"} <= {*configs}


@pytest.mark.parametrize("folder", MAPPED)
def test_a_mapped_folder_refuses_any_other_name(folder: str):
    run = python(f"import {folder}", ROOT)
    assert run.returncode == 1
    assert f"ImportError: This folder is the package genrl.{folder}" in run.stderr
    assert "pip install -e ." in run.stderr
    assert python(f"import genrl.{folder}", ROOT).returncode == 0
