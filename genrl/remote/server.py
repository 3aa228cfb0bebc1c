"""Serves one reward over HTTP; the format is in ``genrl.remote.wire``.

``GET /health`` says that the process lives, ``GET /info`` what the reward says of itself, ``POST /score`` and ``POST /compare`` score.
Everything but ``/health`` wants the token, if there is one.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from genrl import __version__
from genrl.remote import wire
from genrl.reward import RewardError, about, check_metadata, check_scores, load_reward

log = logging.getLogger(__name__)
READING = 4  # bodies held in memory at a time; the others wait in their sockets
BODY_TIMEOUT_S = 300.0
OUT_OF_MEMORY = 507


def build_app(reward: Any, name: str = "reward", token: str = "", max_bytes: int = 256 * 2**20) -> Starlette:
    """The HTTP application around a reward.

    Calls follow one another in a single thread, for rewards are not thread-safe; ``/health`` answers meanwhile.

    Args:
        name: what messages call the reward.
        token: what clients must send as ``Authorization: Bearer``; empty asks for none.
        max_bytes: largest body, and most pixels in bytes once unpacked.

    Raises:
        RewardError: a latent reward.
    """
    service = _Service(reward, name, token, max_bytes)
    routes = [
        Route("/health", _health),
        Route("/info", service.info),
        Route("/score", service.score, methods=["POST"]),
        Route("/compare", service.compare, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refusal, Exception: _failure})


def serve(name: str, options: Mapping[str, Any], host: str = "127.0.0.1", port: int = 8765, token_env: str = "", max_mb: int = 256) -> None:
    """Load a reward and answer until interrupted.

    Args:
        name: as ``load_reward`` takes it.
        options: of the reward.
        host: other addresses than this machine's own need a token.
        port: 0 takes a free one, which is printed.
        token_env: environment variable that holds the token.
        max_mb: largest request in MB (2^20 bytes).

    Raises:
        RewardError: no token where one is needed, an address in use, or a reward that cannot be loaded or served.
    """
    token = token_from(token_env)
    if not token and not is_own(host):
        raise RewardError(
            f"{host} can be reached from other machines, so clients must prove who they are: put a secret into an environment variable "
            "and name it, REWARD_TOKEN=... genrl rewards serve ... --token-env REWARD_TOKEN"
        )
    with listen(host, port) as bound:
        app = build_app(load_reward(name, **options), name, token, max_mb * 2**20)
        print(f"reward {name!r} answers at {address(bound)}; stop with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            run(app, bound)


def token_from(token_env: str) -> str:
    """The token an environment variable holds; empty for no name.

    Raises:
        RewardError: the variable is named, and not set.
    """
    token = os.environ.get(token_env, "") if token_env else ""
    if token_env and not token:
        raise RewardError(f"the environment variable {token_env!r} should hold the token of the reward server and is not set")
    return check_token(token)


def check_token(token: str) -> str:
    """The token, if it can stand in a header; a message of the HTTP library would show it."""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RewardError("the token of a reward server must be ASCII without spaces or line ends")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: clients may connect, and wait, before the application runs."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.create_server(where[:2], family=family, backlog=128)
        # connections inherit it; without it each answer waits 40 ms for the client to acknowledge its headers
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return bound
    except OSError as error:
        raise RewardError(f"cannot listen at {host}:{port}: {error}") from None


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: Starlette, keep_alive_s: int = 75) -> uvicorn.Server:
    """A uvicorn server, to be run with a socket of ``listen``; ``should_exit`` ends it."""
    quiet = {"log_level": "warning", "access_log": False}
    return uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", timeout_keep_alive=keep_alive_s, **quiet))


def run(app: Starlette, bound: socket.socket, keep_alive_s: int = 75) -> None:
    """Answer on a listening socket until interrupted."""
    server(app, keep_alive_s).run(sockets=[bound])


class _Service:
    def __init__(self, reward: Any, name: str, token: str, max_bytes: int):
        self.reward, self.name, self.max_bytes = reward, name, max_bytes
        self.about = about(reward)
        if self.about.kind == "latent":
            raise RewardError(f"reward {name!r} scores noisy latents of a model it shares with the trainer; it cannot be served")
        self.expected = f"Bearer {token}".encode() if token else b""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward {name}")
        self.reading = asyncio.Semaphore(READING)

    async def info(self, request: Request) -> Response:
        self._admit(request)
        said = {"version": wire.VERSION, "genrl": __version__, "name": self.name, "max_bytes": self.max_bytes}
        return JSONResponse(said | {"about": wire.about_to_json(self.about)})

    async def score(self, request: Request) -> Response:
        return await self._answer(request, "score")

    async def compare(self, request: Request) -> Response:
        return await self._answer(request, "compare")

    async def _answer(self, request: Request, method: str) -> Response:
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (wire.BINARY, wire.JSON):
            raise HTTPException(415, f"the content type must be {wire.BINARY} or {wire.JSON}; got {kind!r}")
        async with self.reading:
            body = await self._body(request)
            answer = await asyncio.get_running_loop().run_in_executor(self.thread, self._scores, method, kind, body)
        return Response(answer, media_type=wire.JSON)

    def _admit(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self.expected and not hmac.compare_digest(given, self.expected):
            raise HTTPException(401, "a token is needed, and what came is not it", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytearray:
        """The body, never more of it than allowed."""
        too_large = HTTPException(
            413, f"the request is larger than {self.max_bytes} bytes; send fewer pictures at a time, or raise --max-mb"
        )
        body = bytearray()
        try:
            if int(request.headers.get("content-length", 0)) > self.max_bytes:
                raise too_large
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self.max_bytes:
                        raise too_large
                    body += chunk
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client left") from None
        return body

    @torch.no_grad()
    def _scores(self, method: str, kind: str, body: bytearray) -> bytes:
        """From body to body, in the reward's thread."""
        try:
            if kind == wire.JSON:
                asked = wire.decode_json_request(body, method, self.max_bytes)
            else:
                asked = wire.decode_request(body, self.max_bytes)
            if asked.method != method or (method == "compare") != (self.about.kind == "pairwise"):
                fits = "compare" if self.about.kind == "pairwise" else "score"
                raise RewardError(f"reward {self.name!r} is {self.about.kind}: POST /{fits}, with that method in the header")
            check_metadata(self.name, self.reward, asked.prompts, asked.metadata)
        except RewardError as error:
            raise HTTPException(400, str(error)) from None
        images = asked.images.float().div_(255)
        try:
            if method == "compare":
                got = self.reward.compare(*images.chunk(2), asked.prompts, asked.metadata)
            else:
                got = self.reward(images, asked.prompts, asked.metadata)
            return wire.encode_response(check_scores(self.name, got, len(asked.prompts)))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise HTTPException(OUT_OF_MEMORY, f"reward {self.name!r} ran out of memory with {len(images)} images: {error}") from None
        except RewardError as error:
            raise HTTPException(500, str(error)) from None
        except Exception as error:
            log.exception("reward %r failed", self.name)
            said = " ".join(str(error).split())[:2000]
            raise HTTPException(500, f"reward {self.name!r} raised {type(error).__name__}: {said}") from None


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed: {type(error).__name__}: {error}"}, 500)


def is_own(host: str) -> bool:
    """Only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
