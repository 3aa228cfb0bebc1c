"""The reward contract, how a reward is found, and the pool that scores with several.

A reward is any callable

    reward(images, prompts, metadata) -> scores

``images`` float ``[B, 3, H, W]`` in [0, 1]; ``prompts`` B strings; ``metadata`` B mappings (what the prompt file says beside
the prompt). ``scores`` are B numbers, larger is better: a tensor, an array or a list. NaN (or None) says "cannot score";
the sample is then left out of learning. It is never a zero. A reward knows no trainer and runs alone, in a notebook say.

A class is instantiated with the options of the config; a function is used as it is. Names are looked up in this order:
built in -> entry point of the group ``genrl.rewards`` -> ``package.module:Name`` -> ``path/to/file.py:Name``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Reward = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], Any]

BUILT_IN = {
    "clip_score": "genrl.rewards.clip_score:ClipScore",
    "jpeg_size": "genrl.rewards.jpeg_size:JpegSize",
    "pick_score": "genrl.rewards.clip_score:PickScore",
    "shapes_judge": "genrl.rewards.shapes_judge:ShapesJudge",
    "shapes_proxy": "genrl.rewards.shapes_proxy:ShapesProxy",
}
GROUP = "genrl.rewards"


class RewardError(RuntimeError):
    """A reward that cannot be found, or that broke its contract; the message names it and says what to do."""


def reward_names() -> dict[str, str]:
    """Every reward known by name, built in or installed by other packages, and where it lives. Imports none of them."""
    return BUILT_IN | {point.name: point.value for point in entry_points(group=GROUP)}


def load_reward(name: str, **options: Any) -> Reward:
    """Find a reward and make it ready.

    Raises:
        RewardError: unknown name (near ones are listed), or its module, class or options fail.
    """
    known = reward_names()
    where = known.get(name, name)
    module_name, colon, attribute = where.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
        raise RewardError(f"no reward named {name!r}; {hint} (or give package.module:Name, or path/to/file.py:Name)")
    try:
        found: Any = getattr(_import(module_name), attribute)
        # the options of a plain function are bound to it; a class or factory is called with them
        if inspect.isclass(found):
            made: Any = found(**options)
            return made
        return (lambda *args: found(*args, **options)) if options else found
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} ({where}) could not be loaded: {type(error).__name__}: {error}") from error


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module)
    if not path.is_file():
        raise FileNotFoundError(f"no file {module!r}")
    loader = SourceFileLoader(f"genrl_reward_{path.stem}", str(path))
    loaded = ModuleType(loader.name)
    loaded.__file__ = str(path)
    loader.exec_module(loaded)
    return loaded


def check_scores(name: str, scores: Any, count: int) -> Tensor:
    """The scores as ``[count]`` float32 on the CPU, or a RewardError that says what came instead."""
    if isinstance(scores, Tensor):
        scores = scores.detach().float().cpu()
    else:
        try:
            scores = torch.tensor([math.nan if s is None else float(s) for s in scores], dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {name!r} must return {count} numbers, one per image; got {type(scores).__name__} ({error})"
            ) from None
    if scores.ndim != 1 or len(scores) != count:
        raise RewardError(f"reward {name!r} must return {count} scores, one per image, shape [{count}]; got shape {list(scores.shape)}")
    return torch.where(scores.isinf(), math.nan, scores)


class RewardPool:
    """Scores images with several rewards; raw scores, apart.

    Args:
        rewards: label -> reward.
        batch: images per call.
        min_valid: share of images a reward must be able to score; below it the run stops.
    """

    def __init__(self, rewards: Mapping[str, Reward], batch: int = 32, min_valid: float = 0.5):
        self.rewards = dict(rewards)
        self.batch = batch
        self.min_valid = min_valid

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Raw scores ``[B]`` per label, NaN where a reward could not score.

        Raises:
            RewardError: a reward raised, returned the wrong shape, or could score too few.
        """
        scores = {}
        for name, reward in self.rewards.items():
            parts = []
            for start in range(0, len(images), self.batch):
                rows = slice(start, start + self.batch)
                try:
                    got = reward(images[rows], prompts[rows], metadata[rows])
                except Exception as error:
                    raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
                parts.append(check_scores(name, got, len(prompts[rows])))
            scores[name] = torch.cat(parts)
            valid = scores[name].isfinite().float().mean().item()
            if valid < self.min_valid:
                raise RewardError(
                    f"reward {name!r} could score only {valid:.0%} of {len(images)} images (at least {self.min_valid:.0%} wanted)"
                )
        return scores


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum_k w_k r_k`` ``[B]``; NaN where any reward with a weight is NaN."""
    return torch.stack([scores[name] * weight for name, weight in weights.items()]).sum(0)
