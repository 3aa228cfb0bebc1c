"""A reward in a process of its own: it may crash, leak, print, or need packages that do not go with this process's."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.remote.client import RemoteReward, Unreachable
from genrl.reward import RewardError

log = logging.getLogger(__name__)
Metadata = Sequence[Mapping[str, Any]]
LINES = 15  # of the log, quoted in messages
MAX_BYTES = 4 * 2**30


class Worker:
    """A reward in another process, called like one that runs here, with the same scores.

    If the process dies, in the middle of a call say, it is started again and gets the same batch. It ends with this process, however
    this one ends. What the reward prints goes into a log, whose last lines a failure quotes.

    Args:
        name: as ``load_reward`` takes it.
        options: of the reward; JSON must be able to hold them.
        python: interpreter of the environment the reward needs, see ``genrl.remote.environment``.
        timeout_s: for one call.
        start_timeout_s: until the reward is loaded.
        restarts: in this worker's life.

    Raises:
        RewardError: the reward does not load (with its own reason), broke its contract, is too slow, or died too often.
    """

    remote = True

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        python: str | os.PathLike[str] = sys.executable,
        timeout_s: float = 600.0,
        start_timeout_s: float = 1800.0,
        restarts: int = 3,
    ):
        self.name, self.options, self.python = name, dict(options or {}), os.fspath(python)
        self.timeout_s, self.start_timeout_s, self.restarts = timeout_s, start_timeout_s, restarts
        self._lock, self._closed = threading.Lock(), False
        self._start()
        self.about = self._client.about

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Scores ``[B]`` of images ``[B, 3, H, W]``, float in [0, 1] or uint8; NaN where there is none."""
        return self._send(lambda: self._client(images, prompts, metadata))

    def compare(self, first: Tensor, second: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Probability ``[B]`` that ``first[i]`` is preferred to ``second[i]``, both ``[B, 3, H, W]``."""
        return self._send(lambda: self._client.compare(first, second, prompts, metadata))

    @property
    def pid(self) -> int:
        """Of the process as it is now."""
        return self._process.pid

    def close(self) -> None:
        """End the process. May be called twice."""
        self._closed = True
        self._client.close()
        self._end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, ask: Callable[[], Tensor]) -> Tensor:
        with self._lock:
            while True:
                if self._closed:
                    raise RewardError(f"the process of reward {self.name!r} has been closed; make a new Worker")
                try:
                    return ask()
                except Unreachable as error:
                    how = self._death()
                    if how is None:
                        raise RewardError(
                            f"reward {self.name!r} runs in process {self.pid} and did not answer within {self.timeout_s:g} s "
                            f"({error}); raise timeout_s, or score fewer pictures at a time.{self._last_lines()}"
                        ) from None
                    self._restart(how)
                except RewardError as error:
                    # the address of a server on this machine says nothing to anybody
                    raise RewardError(f"reward {self.name!r} in its own process: {error}") from None

    def _death(self) -> str | None:
        """How the process ended; None while it lives. Its connections close a moment before it is gone."""
        with suppress(subprocess.TimeoutExpired):
            return _ended(self._process.wait(timeout=2.0))
        return None

    def _restart(self, how: str) -> None:
        if self.restarts < 1:
            raise RewardError(f"the process of reward {self.name!r} {how}, and was started again often enough.{self._last_lines()}")
        self.restarts -= 1
        log.warning(
            "the process of reward %r %s; it is started again and gets the same pictures (%d more times before this run stops).%s",
            self.name,
            how,
            self.restarts,
            self._last_lines(),
        )
        self._client.close()
        self._end()
        self._start()

    def _start(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="genrl_reward_"))
        self._log, ready, token = folder / "log.txt", folder / "ready.json", secrets.token_urlsafe(32)
        try:
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(
                    [self.python, "-m", "genrl.remote.child"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the run, which ends this one in its own time
                )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RewardError(f"reward {self.name!r}: cannot run {self.python}: {error}") from None
        self._end = weakref.finalize(self, _stop, self._process, folder)  # also when this process ends
        job = {"reward": self.name, "options": self.options, "token": token, "path": _import_path(), "ready": str(ready)}
        job |= {"threads": torch.get_num_threads(), "cuda_device": _cuda_device(), "max_bytes": MAX_BYTES}
        try:
            self._hand_over(job)
            url = self._wait(ready)
            self._client = RemoteReward(url, token, retries=0)
            self._client.timeout_s = self.timeout_s
        except BaseException:
            self._end()
            raise

    def _hand_over(self, job: dict[str, Any]) -> None:
        """The job goes through the pipe: arguments and environment can be read by others."""
        try:
            line = json.dumps(job).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise RewardError(f"the options of reward {self.name!r} cannot go to another process: {error}") from None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died; _wait says how
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _wait(self, ready: Path) -> str:
        """Where it answers, once it does."""
        deadline, pause = time.monotonic() + self.start_timeout_s, 0.02
        while True:
            status = self._process.poll()
            if ready.exists():
                found = json.loads(ready.read_text(encoding="utf-8"))
                if "error" in found:
                    raise RewardError(f"in its own process ({self.python}): {found['error']}")
                return found["url"]
            if status is not None:
                raise RewardError(f"reward {self.name!r} did not start: its process ({self.python}) {_ended(status)}.{self._last_lines()}")
            if time.monotonic() > deadline:
                raise RewardError(
                    f"reward {self.name!r} was not ready after {self.start_timeout_s:g} s; raise start_timeout_s.{self._last_lines()}"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _last_lines(self) -> str:
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 8192))
            if lines := file.read().decode(errors="replace").splitlines()[-LINES:]:
                return "\nThe last it wrote:\n" + "\n".join(f"  {line[:300]}" for line in lines)
        return " It wrote nothing."


def _import_path() -> list[str]:
    """Where this process imports from beyond its interpreter and what is installed: a script's folder, a checkout."""
    own = {os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")}
    folders = [os.path.abspath(entry) for entry in sys.path]
    return [
        one for one in folders if os.path.isdir(one) and os.path.realpath(one) not in own and not one.endswith(("-packages", "lib-dynload"))
    ]


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return f"was killed by signal {-status}"


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Let go of the lifeline; a process that does not end then is killed."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    try:
        process.wait(timeout=3.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
