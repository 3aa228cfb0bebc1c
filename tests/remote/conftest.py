"""Servers on loopback: a real one around a reward, and one that answers whatever a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from genrl.remote import server as served
from genrl.remote.client import RemoteReward


@contextmanager
def _serve(reward: Any, **settings: Any) -> Iterator[str]:
    app = served.build_app(reward, **{"name": "tested", **settings})
    with served.listen("127.0.0.1", 0) as bound:
        running = served.server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield served.address(bound)
        finally:
            running.should_exit = running.force_exit = True
            thread.join(10)


@pytest.fixture
def serve() -> Callable[..., Any]:
    """``with serve(reward, token=...) as url``."""
    return _serve


class Scripted:
    """A server whose answers to POST are scripted: (status, body) in turn, the last for ever; a callable makes its own."""

    def __init__(self, *answers: Any, about: Any = None, version: int = 1):
        self.answers, self.asked, self.bodies = list(answers), 0, []
        self.info = {"version": version, "name": "scripted", "max_bytes": 2**30, "about": about or {"kind": "pointwise"}}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._reply(self, 200, json.dumps(outer.info).encode())

            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                answer = outer.answers[min(outer.asked, len(outer.answers) - 1)]
                outer.asked += 1
                if callable(answer):
                    answer(self)
                else:
                    outer._reply(self, *answer)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @staticmethod
    def _reply(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*answers: Any, **info: Any) -> Scripted:
        made.append(Scripted(*answers, **info))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short."""
    monkeypatch.setattr(RemoteReward, "pause_s", 0.01)


@pytest.fixture
def pictures() -> torch.Tensor:
    """uint8 ``[4, 3, 24, 40]``."""
    return torch.randint(0, 256, (4, 3, 24, 40), dtype=torch.uint8)


def eventually(true: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., bool]:
    return eventually
