"""Environments for rewards: an overlay over this one, made once, whole or not at all."""

import fcntl
import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from genrl.remote.environment import environment
from genrl.remote.worker import Worker
from genrl.reward import RewardError

OFFLINE = ["--no-index", "--no-build-isolation", "--no-deps"]


def package(folder: Path, version: str = "99.0") -> Path:
    """A local distribution that hides the jinja2 of this environment."""
    (folder / "jinja2").mkdir(parents=True)
    (folder / "jinja2" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "jinja2"\nversion = "{version}"\n[tool.setuptools]\npackages = ["jinja2"]\n'
    )
    return folder


def say(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, timeout=300).stdout.strip()


def test_an_overlay_hides_one_package_and_shows_the_rest(tmp_path: Path, monkeypatch, pictures):
    import jinja2

    monkeypatch.setenv("GENRL_ENVIRONMENTS", str(tmp_path / "environments"))
    requirements = [*OFFLINE, str(package(tmp_path / "package"))]
    python = environment("old_jinja", requirements)
    assert python.is_relative_to(tmp_path / "environments") and python.exists()
    code = "from importlib.util import find_spec as f; import jinja2, genrl, sys; v = jinja2.__version__, f('torch').origin, genrl.__file__"
    version, torch_file, genrl_file, prefix = say(python, f"{code}; print(*v, sys.prefix, sep='|')").split("|")
    assert version == "99.0" != jinja2.__version__
    assert torch_file == torch.__file__ and Path(genrl_file).parts[-2] == "genrl" and prefix == str(python.parents[1])

    begun = python.stat().st_mtime_ns, sorted(os.listdir(tmp_path / "environments"))
    assert environment("old_jinja", requirements) == python
    assert begun == (python.stat().st_mtime_ns, sorted(os.listdir(tmp_path / "environments")))

    plug_in = tmp_path / "plug_in.py"
    plug_in.write_text(
        textwrap.dedent("""
        import jinja2
        from genrl.rewards.jpeg_size import JpegSize
        def Reward(images, prompts, metadata):
            return [float(jinja2.__version__)] * len(images)
    """)
    )
    with Worker(f"{plug_in}:Reward", python=python) as worker:
        assert worker(pictures, ["a"] * 4, [{}] * 4).tolist() == [99.0] * 4


def test_what_is_here_already_is_not_installed_again(tmp_path: Path):
    python = environment("bare", ["--no-index", "torch"], tmp_path)
    assert say(python, "import importlib.metadata as m; print(m.version('torch'))") == importlib.metadata.version("torch")
    assert not list(python.parents[1].glob("lib/*/site-packages/torch*"))
    assert environment("bare", [], tmp_path) != python


def test_what_a_killed_build_left_is_not_used(tmp_path: Path):
    python = environment("bare", [], tmp_path)
    (python.parents[1] / "genrl_environment.json").unlink()
    python.unlink()
    assert environment("bare", [], tmp_path) == python and say(python, "print(1)") == "1"


def test_a_failed_installation_says_why_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(RewardError, match=r"(?s)environment 'bad' cannot be made: pip could not install.*no-such-distribution-anywhere"):
        environment("bad", ["--no-index", "no-such-distribution-anywhere==1"], tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_two_at_once_make_one(tmp_path: Path, monkeypatch):
    import genrl.remote.environment as module

    built, build, found = [], module._build, []
    monkeypatch.setattr(module, "_build", lambda *given: (built.append(1), build(*given)))
    threads = [threading.Thread(target=lambda: found.append(environment("bare", [], tmp_path))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert built == [1] and len(found) == 3 and len(set(found)) == 1


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x"])
def test_a_name_is_a_name(tmp_path: Path, name: str):
    with pytest.raises(RewardError, match="the name of an environment"):
        environment(name, [], tmp_path)


def test_a_lock_outlives_a_killed_builder_as_long_as_its_pip(tmp_path: Path):
    code = f"""
import os, subprocess, sys
from pathlib import Path
from genrl.remote.environment import _lock
with _lock(Path({str(tmp_path / "lock")!r})) as lock:
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=(lock,))
    os._exit(9)
"""
    builder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert builder.wait(300) == 9 and builder.stdin
    with (tmp_path / "lock").open("w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        builder.stdin.close()
        fcntl.flock(file, fcntl.LOCK_EX)
