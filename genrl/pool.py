"""The pool that scores pictures with several rewards: in batches, beside sampling, with an eye on what cannot be scored."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.pixels import to_bytes
from genrl.preference import WinRate
from genrl.reward import About, RewardError, about, check_metadata, check_scores

log = logging.getLogger(__name__)

Metadata = Sequence[Mapping[str, Any]]


class RewardPool:
    """Scores images with several rewards; raw scores, apart.

    A reward sees pictures as a PNG would hold them, so a score does not depend on whether the reward runs here, in another process or on a
    saved file. Each reward has a thread of its own, in which its calls follow one another: several rewards, and sampling, go on together.

    Args:
        rewards: label -> reward. Preference models become win rates within a group; latent rewards have no place here.
        batch: images per call; halved for a reward that runs out of memory, from then on.
        min_valid: share of images a reward must be able to score; below it the run stops.

    Raises:
        RewardError: a latent reward, or a broken ``about``.
    """

    def __init__(self, rewards: Mapping[str, Any], batch: int = 32, min_valid: float = 0.5):
        self.rewards = {label: _scoring(label, reward) for label, reward in rewards.items()}
        self.batch = dict.fromkeys(self.rewards, batch)
        self.min_valid = min_valid
        self._threads: dict[str, ThreadPoolExecutor] = {}

    def check(self, prompts: Sequence[str], metadata: Metadata) -> None:
        """Raise ``RewardError`` where a prompt lacks what a reward declares to need: before anything is loaded or drawn."""
        for label, reward in self.rewards.items():
            check_metadata(label, reward, prompts, metadata)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Metadata, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Raw scores ``[B]`` per label, NaN where a reward could not score.

        Args:
            groups: which prompt each image belongs to ``[B]``; without it, equal prompts are a group.

        Raises:
            RewardError: a reward raised, returned the wrong shape, or could score too few.
        """
        scoring = self.begin()
        scoring.add(images, prompts, metadata, groups)
        found = scoring.result()
        self.require_valid(found)
        return found

    def require_valid(self, scores: Mapping[str, Tensor]) -> None:
        """Raise ``RewardError`` where a reward could score too few of what stands for the whole: a round, or an evaluation."""
        for label, values in scores.items():
            valid = values.isfinite().float().mean().item()
            if valid < self.min_valid:
                raise RewardError(
                    f"reward {label!r} could score only {valid:.0%} of {len(values)} images (at least {self.min_valid:.0%} wanted)"
                )

    def begin(self) -> Scoring:
        """Scores that are computed while more pictures are being drawn."""
        return Scoring(self)

    def thread(self, label: str) -> ThreadPoolExecutor:
        if label not in self._threads:
            self._threads[label] = ThreadPoolExecutor(1, thread_name_prefix=f"reward {label}")
        return self._threads[label]

    def close(self) -> None:
        """End threads, and the processes of rewards that have one."""
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)
        for reward in self.rewards.values():
            if callable(close := getattr(reward, "close", None)):
                close()

    @torch.no_grad()
    def call(self, label: str, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        """Scores ``[B]`` of one reward, with as many images a call as fit."""
        reward, parts, start = self.rewards[label], [], 0
        whole = about(reward).kind == "group"
        while start < len(images):
            rows = slice(start, len(images) if whole else start + self.batch[label])
            # what goes over a wire goes as bytes
            some = images[rows] if getattr(reward, "remote", False) else images[rows].float() / 255
            try:
                got = reward(some, list(prompts[rows]), list(metadata[rows]))
            except torch.OutOfMemoryError as error:
                if whole or len(some) == 1:
                    raise RewardError(f"reward {label!r} ran out of memory with {len(some)} images of {_size(some)}: {error}") from error
                self.batch[label] = len(some) // 2
                torch.cuda.empty_cache()
                log.warning("reward %r ran out of memory with %d images; from now on it gets %d", label, len(some), self.batch[label])
                continue
            except RewardError:
                raise
            except Exception as error:
                raise RewardError(f"reward {label!r} raised {type(error).__name__}: {error}{_place(error)}") from error
            parts.append(check_scores(label, got, len(some)))
            start += len(some)
        return torch.cat(parts)


def _place(error: Exception) -> str:
    """Where in a reward's own code it was raised: the innermost line below the pool that is no library's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "site-packages" not in frame.filename]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


class Scoring:
    """Pictures on their way through a pool: ``add`` returns at once, ``result`` waits. Rows keep the order in which they were added."""

    def __init__(self, pool: RewardPool):
        self.pool = pool
        self.pending: dict[str, list[Future[Tensor]]] = {label: [] for label in pool.rewards}
        self.held: list[tuple[Tensor, Sequence[str], Metadata, Tensor | None]] = []

    def add(self, images: Tensor, prompts: Sequence[str], metadata: Metadata, groups: Tensor | None = None) -> None:
        """Hand over images ``[B, 3, H, W]`` in [0, 1] with their prompts."""
        # contiguous, as they come off a wire: sums follow the order in memory, and so the last bits of a score
        pixels = to_bytes(images).cpu().contiguous()
        self.held.append((pixels, prompts, metadata, groups))
        for label, reward in self.pool.rewards.items():
            if about(reward).kind == "pointwise":
                self.pending[label].append(self.pool.thread(label).submit(self.pool.call, label, pixels, prompts, metadata))

    def result(self) -> dict[str, Tensor]:
        """Scores ``[N]`` per label of everything added; rewards that compare siblings begin now, for only now are groups whole.

        Raises:
            RewardError: a reward raised, or returned the wrong shape.
        """
        order = self._by_group()
        try:
            return {label: torch.cat([part.result() for part in self.pending[label]])[order[label]] for label in self.pending}
        except BaseException:
            for part in (part for parts in self.pending.values() for part in parts):
                part.cancel()
            raise

    def _by_group(self) -> dict[str, Any]:
        """Start the rewards of groups; label -> how their scores are put back into the order of rows."""
        order: dict[str, Any] = {label: slice(None) for label in self.pending}
        labels = [label for label, reward in self.pool.rewards.items() if about(reward).kind == "group"]
        if not labels:
            return order
        pixels = torch.cat([held[0] for held in self.held])
        prompts = [prompt for held in self.held for prompt in held[1]]
        metadata = [entry for held in self.held for entry in held[2]]
        if all(held[3] is not None for held in self.held):
            group: Sequence[Any] = torch.cat([torch.as_tensor(held[3]) for held in self.held]).tolist()
        else:
            group = prompts
        rows = [[row for row, own in enumerate(group) if own == one] for one in dict.fromkeys(group)]
        back = torch.tensor([row for members in rows for row in members]).argsort()
        for label in labels:
            order[label] = back
            for members in rows:
                own = pixels[members], [prompts[row] for row in members], [metadata[row] for row in members]
                self.pending[label].append(self.pool.thread(label).submit(self.pool.call, label, *own))
        return order


def _scoring(label: str, reward: Any) -> Any:
    kind = about(reward).kind
    if kind == "latent":
        raise RewardError(f"reward {label!r} scores noisy latents, not pictures: name it where latents are ranked (rl.latent_reward)")
    return WinRate(reward) if kind == "pairwise" else reward


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"


class Remembered:
    """A pointwise reward that keeps its scores in a file: an evaluation that draws the same pictures again costs nothing.

    The key is everything a score depends on: pixels, prompt, metadata, and ``identity``.

    Args:
        identity: whatever makes this reward the one it is: name, options, the text of the file that defines it.
        path: SQLite file, shared by rewards and processes.
    """

    def __init__(self, reward: Any, identity: bytes, path: Path):
        self.reward, self.path = reward, path
        self.about: About = about(reward)
        if self.about.kind != "pointwise":
            raise RewardError("scores that depend on siblings cannot be remembered picture by picture")
        if hasattr(reward, "features"):
            self.features = reward.features
        self.identity = hashlib.sha256(identity).digest()
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as db, db:
            db.execute("create table if not exists scores (key blob primary key, score real) without rowid")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Tensor:
        keys = [self._key(*row) for row in zip(to_bytes(images).cpu(), prompts, metadata, strict=True)]
        with closing(self._open()) as db:
            found = [db.execute("select score from scores where key = ?", (key,)).fetchall() for key in keys]
        scores = torch.tensor([rows[0][0] if rows else math.nan for rows in found])
        new = [row for row, rows in enumerate(found) if not rows]
        if new:
            got = self.reward(images[new], [prompts[row] for row in new], [metadata[row] for row in new])
            scores[new] = check_scores(type(self.reward).__name__, got, len(new))
            # what could not be scored is tried again next time
            kept = [(keys[row], scores[row].item()) for row in new if scores[row].isfinite()]
            with closing(self._open()) as db, db:
                db.executemany("insert or replace into scores values (?, ?)", kept)
        return scores

    def close(self) -> None:
        if callable(close := getattr(self.reward, "close", None)):
            close()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def _key(self, pixels: Tensor, prompt: str, metadata: Mapping[str, Any]) -> bytes:
        said = json.dumps([list(pixels.shape), prompt, metadata], sort_keys=True, default=str)
        return hashlib.sha256(self.identity + said.encode() + pixels.contiguous().numpy().tobytes()).digest()
