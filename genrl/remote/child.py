"""What ``genrl.remote.worker`` starts: serves one reward to the process that started it, and ends with it.

The first line of stdin says what to do, as JSON: {reward, options, token, path, threads, cuda_device, max_bytes, ready}. The file
``ready`` then gets {"url": ...} or {"error": ...}. After that stdin is only a lifeline: it ends when the parent does, however it dies.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any

FOREVER_S = 10**9


def main() -> None:
    parent, lifeline = os.getppid(), os.dup(0)
    job = json.loads(_line(lifeline))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a reward that reads stdin finds its end, not the lifeline
    os.close(nothing)
    threading.Thread(target=_end_with, args=(parent, lifeline), daemon=True).start()
    # what the parent can import, this process can; its own packages come first
    sys.path.extend(entry for entry in job["path"] if entry not in sys.path)
    ready = Path(job["ready"])
    try:
        app, bound, url = _prepare(job)
    except Exception as error:
        from genrl.reward import RewardError

        said = str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"
        _write(ready, {"error": said})
        raise
    from genrl.remote.server import run

    _write(ready, {"url": url})
    # the parent may be silent for hours, and must never meet a connection that is just being closed
    run(app, bound, keep_alive_s=FOREVER_S)


def _prepare(job: dict[str, Any]) -> tuple[Any, Any, str]:
    import torch

    from genrl.remote.server import address, build_app, listen
    from genrl.reward import load_reward

    torch.set_num_threads(job["threads"])  # sums over threads, and so the last bits of a score, follow their number
    if job["cuda_device"] is not None:
        torch.cuda.set_device(job["cuda_device"])
    app = build_app(load_reward(job["reward"], **job["options"]), job["reward"], job["token"], job["max_bytes"])
    bound = listen("127.0.0.1", 0)
    return app, bound, address(bound)


def _line(descriptor: int) -> bytes:
    """One line, and not a byte more."""
    found = b""
    while not found.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        found += byte
    return found


def _end_with(parent: int, lifeline: int) -> None:
    """End this process at once when its parent has ended.

    A process that the parent forked may keep the other end of the pipe open, so the parent is looked for as well.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([lifeline], [], [], 1.0)
        if readable and not os.read(lifeline, 1):
            break
    os._exit(0)


def _write(path: Path, content: dict[str, Any]) -> None:
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content), encoding="utf-8")
    half.replace(path)


if __name__ == "__main__":
    main()
