"""A reward that is served elsewhere, called like one that runs here."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.auth
import torch
import urllib3
from torch import Tensor

from genrl.pixels import to_bytes
from genrl.remote import wire
from genrl.remote.server import OUT_OF_MEMORY, check_token, is_own, token_from
from genrl.reward import About, RewardError

log = logging.getLogger(__name__)
Metadata = Sequence[Mapping[str, Any]]


class Unreachable(RewardError):
    """No answer came: the connection failed, broke off, or took too long."""


class RemoteReward:
    """The reward behind a URL, as ``genrl rewards serve`` answers there.

    What it says of itself is asked at once, so a wrong address or token ends a run before it begins. Pictures travel as 8 bits per
    channel. Failures that may pass (no connection, no answer in time, status 429 and 5xx) are tried again after a pause that doubles;
    anything else is a ``RewardError``, and never a score. Scores carry no gradient.

    Args:
        url: ``http://host:port`` or https.
        token: what the server asks for.
        token_env: environment variable that holds it instead.
        timeout_s: for a whole answer; longer than the reward takes for one call.
        connect_timeout_s: for a connection.
        retries: tries after the first.
        encoding: raw, or png: smaller, slower, the same scores.
        max_response_bytes: a longer answer is refused.

    Raises:
        RewardError: as above.
    """

    remote = True
    pause_s, longest_pause_s = 0.5, 20.0

    def __init__(
        self,
        url: str,
        token: str = "",
        token_env: str = "",
        timeout_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        retries: int = 3,
        encoding: str = "raw",
        max_response_bytes: int = 16 * 2**20,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RewardError(f"the url of a reward must look like http://host:8765; got {url!r}")
        if encoding not in wire.ENCODINGS:
            raise RewardError(f"encoding must be {' or '.join(wire.ENCODINGS)}; got {encoding!r}")
        self.url, self.encoding, self.retries = url.rstrip("/"), encoding, retries
        self.timeout_s, self.connect_timeout_s, self.max_response_bytes = timeout_s, connect_timeout_s, max_response_bytes
        self._chance = random.Random()  # the global generators belong to training
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.trust_env = not is_own(parts.hostname)  # no proxy stands between a machine and itself
        if token := check_token(token) or token_from(token_env):
            self._session.auth = _Bearer(token)
        self.name, self.about, self._max_bytes = self._info()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Scores ``[B]`` of images ``[B, 3, H, W]``, float in [0, 1] or uint8; NaN where there is none."""
        return self._send("score", _bytes(images), prompts, metadata)

    def compare(self, first: Tensor, second: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Probability ``[B]`` that ``first[i]`` is preferred to ``second[i]``, both ``[B, 3, H, W]``."""
        return self._send("compare", torch.cat([_bytes(first), _bytes(second)]), prompts, metadata)

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def _info(self) -> tuple[str, About, int]:
        found = self._parsed(wire.parse_json, self._ask("GET", "/info"), "the answer to /info")
        if not isinstance(found, dict) or found.get("version") != wire.VERSION:
            said = found.get("version") if isinstance(found, dict) else found
            raise RewardError(
                f"{self.url} does not speak version {wire.VERSION} of genrl's reward protocol (it says {said!r:.80}); "
                "install the same genrl on both sides"
            )
        said = self._parsed(wire.about_from_json, found.get("about"))
        if said.kind == "latent":
            raise RewardError(f"{self.url} serves a latent reward; those run beside their model only")
        largest = found.get("max_bytes")
        return str(found.get("name", "")), replace(said, differentiable=False), largest if isinstance(largest, int) else 2**63

    def _send(self, method: str, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        if not len(prompts):
            return torch.zeros(0)
        body = wire.encode_request(wire.Request(method, images, list(prompts), list(metadata)), self.encoding)  # type: ignore[arg-type]
        if len(body) > self._max_bytes:
            raise RewardError(
                f"{len(images)} pictures are {len(body)} bytes and {self.url} takes at most {self._max_bytes}; "
                "score fewer at a time, or start the server with a larger --max-mb"
            )
        scores, errors = self._parsed(wire.decode_response, self._ask("POST", f"/{method}", body), len(prompts))
        if errors:
            log.warning("%s could not score %d of %d pictures; the first: %s", self.url, len(errors), len(prompts), errors[0][:500])
        return scores

    def _parsed(self, parse: Any, *arguments: Any) -> Any:
        try:
            return parse(*arguments)
        except wire.WireError as error:
            raise RewardError(f"{self.url}: {error}. Is it a genrl reward server?") from None

    def _ask(self, verb: str, path: str, body: bytes | None = None) -> bytes:
        """The body of an answer with status 200, after as many tries as it takes."""
        trouble: Exception = RewardError(f"{self.url}{path} was not asked: retries is {self.retries}")
        for attempt in range(self.retries + 1):
            if attempt:
                pause = min(self.pause_s * 2 ** (attempt - 1), self.longest_pause_s) * self._chance.uniform(0.5, 1.5)
                log.warning("%s; trying again in %.1f s", trouble, pause)
                time.sleep(pause)
            try:
                status, content = self._once(verb, path, body)
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
                trouble = Unreachable(f"{self.url}{path} gave no answer: {type(error).__name__}: {error!s:.500}")
                continue
            if status == 200:
                return content
            trouble = self._refused(status, path, content)
            if status != 429 and (status < 500 or status == OUT_OF_MEMORY):
                break
        if isinstance(trouble, Unreachable) and self.retries:
            raise Unreachable(f"{trouble} (tried {self.retries + 1} times). Is the server running? See genrl rewards serve")
        raise trouble

    def _once(self, verb: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        deadline = time.monotonic() + self.timeout_s
        asked: dict[str, Any] = {
            "data": body,
            "headers": {"Content-Type": wire.BINARY},
            "timeout": (self.connect_timeout_s, self.timeout_s),
        }
        with self._session.request(verb, self.url + path, stream=True, allow_redirects=False, **asked) as answer:
            content = bytearray()
            while chunk := answer.raw.read1(65536):  # what has come, while iter_content waits for a whole chunk
                content += chunk
                if len(content) > self.max_response_bytes:
                    raise RewardError(f"{self.url}{path} answered with more than {self.max_response_bytes} bytes; scores are far smaller")
                if time.monotonic() > deadline:  # the other time-out is for silence, and this one for a trickle
                    raise requests.exceptions.ReadTimeout(f"the answer took longer than {self.timeout_s:g} s")
            return answer.status_code, bytes(content)

    def _refused(self, status: int, path: str, content: bytes) -> Exception:
        """What a status other than 200 means, and what to do about it."""
        try:
            said = str(wire.parse_json(content, "the answer")["error"])
        except (wire.WireError, TypeError, LookupError):
            said = f"{content[:200]!r}"
        if status == OUT_OF_MEMORY:
            return torch.OutOfMemoryError(said)  # whoever batches halves the batch
        todo = {
            401: ". Give token_env, the environment variable that holds the server's token",
            404: ". Is it a genrl reward server? See genrl rewards serve",
            413: ". Score fewer pictures at a time, or start the server with a larger --max-mb",
        }.get(status, "")
        return RewardError(f"{self.url}{path} answered {status}: {said}{todo}")


class _Bearer(requests.auth.AuthBase):
    """As ``auth``, for a plain header would give way to an entry in .netrc."""

    def __init__(self, token: str):
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8 or not len(images):
        return images.to(torch.uint8)
    # one by one the floats in between stay in the cache: several times faster on a CPU
    return torch.stack([to_bytes(image) for image in images.detach()])
