"""A small client of OpenAI-compatible chat-completions servers (vLLM, SGLang, llama.cpp, OpenAI), shared by rewards that ask one."""

from __future__ import annotations

import base64
import io
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from genrl.reward import RewardError

Content = Sequence[Mapping[str, Any]]

MARKS = " \t\r\n\u0120\u2581"
"""What vocabularies put before a word; a server may send these tokens raw."""


@dataclass(frozen=True)
class Answer:
    """What a model said: its text, its tokens in order, and for each the log-probabilities of the likeliest ones (none if not sent)."""

    text: str
    tokens: tuple[str, ...] = ()
    likely: tuple[tuple[tuple[str, float], ...], ...] = ()

    def mass(self, place: int, words: Sequence[str]) -> list[float]:
        """Probability of each word as the token at a place, in any case and with any space around; 0 if not among the likeliest."""
        found = dict.fromkeys(words, 0.0)
        for token, logprob in self.likely[place] if place < len(self.likely) else ():
            if (word := token.strip(MARKS).lower()) in found:
                found[word] += math.exp(logprob)
        return list(found.values())

    def odds(self, yes: str, no: str) -> float:
        """``P(yes) / (P(yes) + P(no))`` of the first token; NaN without log-probabilities or with neither word among them."""
        chosen, other = self.mass(0, (yes, no))
        return chosen / (chosen + other) if chosen + other > 0 else math.nan


def picture(image: Image.Image) -> dict[str, Any]:
    """A picture as a part of a message: a PNG, so that the server sees exactly these pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


class ChatClient:
    """Asks a server many questions at once.

    Connection errors, time-outs, 429 and 5xx are tried again, each wait twice the last and jittered; 4xx are not.

    Args:
        url: where the API begins, ``http://host:8000/v1``.
        model: the name the server knows the model by.
        key_env: environment variable that holds the API key; none is sent if empty.
        concurrency: questions under way at a time.
        tries: of each question.
        backoff_s: the first wait.
        connect_timeout_s, read_timeout_s: of each try.

    Raises:
        RewardError: ``key_env`` names a variable that is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str = "",
        concurrency: int = 16,
        tries: int = 4,
        backoff_s: float = 0.5,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
    ):
        import requests

        if not url.startswith(("http://", "https://")):
            raise RewardError(f"url must be where a chat-completions API begins, like 'http://127.0.0.1:8000/v1'; got {url!r}")
        if concurrency < 1 or tries < 1:
            raise RewardError(f"concurrency and tries must be at least 1; got {concurrency} and {tries}")
        self.url, self.model, self.concurrency, self.tries, self.backoff_s = url.rstrip("/"), model, concurrency, tries, backoff_s
        self.timeout = (connect_timeout_s, read_timeout_s)
        self.headers: dict[str, str] = {}
        if key_env:
            if not (key := os.environ.get(key_env)):
                raise RewardError(f"{key_env} is not set; export the API key of {url} under that name, or leave key_env out")
            self.headers["Authorization"] = f"Bearer {key}"
        self.jitter = random.Random()  # its own: training draws from the global one
        self.session = requests.Session()
        self.session.mount(self.url, requests.adapters.HTTPAdapter(pool_maxsize=concurrency))

    def score(self, questions: Sequence[Content], read: Callable[[Answer], float], **options: Any) -> list[float]:
        """A number for each question, in order: what ``read`` makes of the answer, NaN where there is none.

        Raises:
            RewardError: the server cannot be reached, goes on failing, or does not let this client in.
        """
        body = {"model": self.model, "temperature": 0, **options}

        def one(content: Content) -> float:
            answer = self._ask({**body, "messages": [{"role": "user", "content": list(content)}]})
            return math.nan if answer is None else read(answer)

        with ThreadPoolExecutor(min(self.concurrency, max(len(questions), 1))) as threads:
            return list(threads.map(one, questions))

    def _ask(self, body: Mapping[str, Any]) -> Answer | None:
        from requests import ConnectionError, Timeout
        from requests.exceptions import ChunkedEncodingError

        failure = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1) * self.jitter.uniform(0.5, 1.5))
            try:
                reply = self.session.post(f"{self.url}/chat/completions", json=body, headers=self.headers, timeout=self.timeout)
            except (ConnectionError, Timeout, ChunkedEncodingError) as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == 429 or reply.status_code >= 500:
                failure = f"status {reply.status_code}: {reply.text[:300]}"
                continue
            return self._read(reply)
        raise RewardError(
            f"no answer from {self.url} in {self.tries} tries ({failure}). Start the server there, or correct url (where its API begins, "
            "often .../v1); if it is only slow, raise read_timeout_s or lower concurrency"
        )

    def _read(self, reply: Any) -> Answer | None:
        said = reply.text[:300]
        if reply.status_code in (401, 403, 404):
            raise RewardError(
                f"{self.url} answers {reply.status_code} to a question for the model {self.model!r}: {said}. "
                "Check url (often .../v1), model, and key_env"
            )
        if reply.status_code != 200:
            warnings.warn(f"{self.url} refuses a question ({reply.status_code}: {said}); it counts as not scored", stacklevel=2)
            return None
        try:
            return _answer(reply.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            warnings.warn(f"{self.url} answers what is no chat completion ({error!r}: {said}); it counts as not scored", stacklevel=2)
            return None


def _answer(reply: Mapping[str, Any]) -> Answer:
    choice = reply["choices"][0]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return Answer(
        choice["message"]["content"] or "",
        tuple(str(token["token"]) for token in tokens),
        tuple(tuple((str(o["token"]), float(o["logprob"])) for o in token.get("top_logprobs") or ()) for token in tokens),
    )
