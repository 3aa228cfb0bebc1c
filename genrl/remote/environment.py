"""Virtual environments for rewards whose requirements do not go with genrl's.

Such an environment is an overlay: what it holds itself comes first, and behind that lie the packages of this process. So torch and
genrl are not installed a second time, while another version of, say, transformers hides the one outside. Installation is pip's and
not uv's, for pip sees the packages behind, and installs only what is missing or does not fit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genrl.reward import RewardError

LINES = 20


def environment(name: str, requirements: Sequence[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """The interpreter of an environment with these requirements; it is made when asked for the first time.

    A change of requirements, of Python, or of the environment this process runs in makes a new one. A folder as a requirement is
    installed as it is at that time.

    Args:
        name: part of the path, for people who look.
        requirements: as pip takes them, one each; options such as ``--no-deps`` too.
        folder: where environments are kept; ``$GENRL_ENVIRONMENTS``, or else ``~/.cache/genrl/environments``.

    Raises:
        RewardError: installation fails; pip's last lines say why.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RewardError(f"the name of an environment is letters, digits, '.', '_' and '-'; got {name!r}")
    root = Path(folder or os.environ.get("GENRL_ENVIRONMENTS") or Path.home() / ".cache" / "genrl" / "environments").absolute()
    behind = _installed()
    identity = json.dumps([sys.version, sys.base_prefix, behind, list(requirements)])
    path = root / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    # not resolved: the link in an environment is what makes its interpreter its own
    python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = path / "genrl_environment.json"
    if done.exists():
        return python
    root.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(path.suffix + ".lock")) as lock:
        if not done.exists():  # another process may have made it meanwhile
            shutil.rmtree(path, ignore_errors=True)  # what a killed one left
            try:
                _build(name, path, python, behind, list(requirements), lock)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
            done.write_text(identity)
    return python


def _build(name: str, path: Path, python: Path, behind: list[str], requirements: list[str], lock: int | None) -> None:
    own_pip = importlib.util.find_spec("pip") is None
    try:
        venv.EnvBuilder(symlinks=os.name != "nt", with_pip=own_pip).create(path)
    except (subprocess.CalledProcessError, OSError) as error:
        raise RewardError(f"the environment {name!r} cannot be made in {path}: {error}") from None
    purelib = Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # addsitedir, not bare lines: it also runs the .pth files of these folders, which is how editable installations work
    (purelib / "genrl_behind.pth").write_text("".join(f"import site; site.addsitedir({one!r})\n" for one in behind), encoding="utf-8")
    if requirements:
        pip = [str(python), "-m", "pip"] if own_pip else [sys.executable, "-m", "pip", "--python", str(python)]
        command = [*pip, "install", "--no-input", "--disable-pip-version-check", *requirements]
        inherited = () if lock is None else (lock,)  # were this process killed, pip would still hold the lock
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=inherited, errors="replace"
        )
        if run.returncode:
            last = "\n".join(f"  {line[:400]}" for line in run.stdout.splitlines()[-LINES:])
            raise RewardError(f"the environment {name!r} cannot be made: pip could not install {', '.join(requirements)}:\n{last}")
    if _ask(python, "import importlib.util as u; print(u.find_spec('genrl.remote.child') is not None)") != "True":
        raise RewardError(f"the environment {name!r} does not see genrl: install genrl (pip install -e . in a checkout), then try again")


def _installed() -> list[str]:
    """The folders of installed packages this process imports from, in order."""
    return [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages")) and os.path.isdir(entry)]


def _ask(python: Path, code: str) -> str:
    """The last line that some code prints there."""
    run = subprocess.run([str(python), "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if run.returncode:
        raise RewardError(f"{python} does not work: {run.stderr.strip()[-1000:]}")
    return run.stdout.strip().rpartition("\n")[2]


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """One process at a time; the system lets go of it when the holder dies."""
    try:
        import fcntl
    except ImportError:  # Windows: there two processes should not make the same environment at once
        yield None
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
