"""A stand-in for a chat-completions server on 127.0.0.1: it keeps what it was sent and answers as a test says."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

Reply = tuple[int, bytes]


@dataclass
class Seen:
    """What came in: decoded bodies, headers and paths, in order, and the most questions that were open at a time."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most: int = 0

    def text(self, number: int = 0) -> str:
        return self.bodies[number]["messages"][0]["content"][-1]["text"]

    def pixels(self, number: int = 0) -> list[torch.Tensor]:
        """The PNGs of a question as uint8 ``[3, H, W]``."""
        urls = [p["image_url"]["url"] for p in self.bodies[number]["messages"][0]["content"] if p["type"] == "image_url"]
        start = "data:image/png;base64,"
        assert all(url.startswith(start) for url in urls)
        found = [Image.open(io.BytesIO(base64.b64decode(url[len(start) :], validate=True))) for url in urls]
        assert all(image.format == "PNG" and image.mode == "RGB" for image in found)
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in found]


def says(text: str | None, *likely: dict[str, float], tokens: list[str] | None = None) -> Reply:
    """A completion; ``likely`` holds, for each token, probabilities of the likeliest ones."""
    content = [
        {
            "token": tokens[k] if tokens else max(one, key=lambda t: one[t]),
            "logprob": math.log(max(one.values())),
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in one.items()],
        }
        for k, one in enumerate(likely)
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": {"content": content} if likely else None}
    return 200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Seen]:
    """Answers question ``number`` (from 0) with ``answer(number, body)``."""
    seen, lock, opened = Seen(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.bodies)
                seen.bodies.append(body)
                seen.headers.append(dict(self.headers))
                seen.paths.append(self.path)
                opened[0] += 1
                seen.most = max(seen.most, opened[0])
            status, data = answer(number, body)
            with lock:
                opened[0] -= 1
            with suppress(ConnectionError):  # a client that did not wait
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slowly(seconds: float, reply: Reply) -> Reply:
    time.sleep(seconds)
    return reply
