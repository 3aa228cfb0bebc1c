"""The reward contract, and how a reward is found.

A reward is any callable

    reward(images, prompts, metadata) -> scores

``images`` float ``[B, 3, H, W]`` in [0, 1]; ``prompts`` B strings; ``metadata`` B mappings (what the prompt file says beside
the prompt). ``scores`` are B numbers, larger is better: a tensor of any type on any device, an array or a list. NaN (or None) says
"cannot score"; the sample is then left out of learning. It is never a zero. A reward knows no trainer and runs alone, in a
notebook say. What it wants beyond that it says in an attribute ``about`` (``About``), which is checked before a run begins.

Three further kinds, named by ``about.kind``, differ in what one call holds:

* ``group``: the same call, but all B images are those of one prompt: a score may depend on its siblings.
* ``pairwise``: a preference model. ``reward.compare(first, second, prompts, metadata)`` gives the probability in [0, 1] that ``first[i]``
  is preferred to ``second[i]``; ``genrl.preference`` makes a group reward of it.
* ``latent``: scores noisy latents, ``reward.score_latents(x, sigma, prompts)`` with ``x [B, C, h, w]`` at levels ``sigma [B]`` in
  flow coordinates; used where candidates are ranked inside a model's own latent space.

A name is looked up in this order: built in -> entry point of the group ``genrl.rewards`` -> ``package.module:Name`` ->
``path/to/file.py:Name``. It may name a class or a factory, which are called with the options of the config, or the function itself.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

Reward = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], Any]
Kind = Literal["pointwise", "group", "pairwise", "latent"]

BUILT_IN = {
    "aesthetic": "genrl.rewards.aesthetic:Aesthetic",
    "bradley_terry": "genrl.preference:BradleyTerry",
    "clip_score": "genrl.rewards.clip_score:ClipScore",
    "dino_similarity": "genrl.rewards.similarity:DinoSimilarity",
    "geneval": "genrl.rewards.geneval:Geneval",
    "hps_v2": "genrl.rewards.hps_v2:HpsV2",
    "hps_v3": "genrl.rewards.hps_v3:HpsV3",
    "http": "genrl.rewards.http:Http",
    "image_reward": "genrl.rewards.image_reward:ImageReward",
    "image_stats": "genrl.rewards.image_stats:ImageStat",
    "jpeg_size": "genrl.rewards.jpeg_size:JpegSize",
    "lpips_similarity": "genrl.rewards.similarity:LpipsSimilarity",
    "lrm": "genrl.rewards.lrm:LatentRewardXL",
    "mps": "genrl.rewards.mps:Mps",
    "ocr": "genrl.rewards.ocr:Ocr",
    "pick_score": "genrl.rewards.pick_score:PickScore",
    "shapes_judge": "genrl.rewards.shapes_judge:ShapesJudge",
    "shapes_proxy": "genrl.rewards.shapes_proxy:ShapesProxy",
    "unified_reward": "genrl.rewards.unified_reward:UnifiedReward",
    "vlm_judge": "genrl.rewards.vlm_judge:VlmJudge",
    "vlm_preference": "genrl.rewards.vlm_judge:VlmPreference",
    "win_rate": "genrl.preference:WinRate",
}
GROUP = "genrl.rewards"


class RewardError(RuntimeError):
    """A reward that cannot be found, or that broke its contract; the message names it and says what to do."""


@dataclass(frozen=True)
class About:
    """What a reward says of itself; every field may be left out.

    Args:
        kind: what one call holds, see the module's first lines.
        metadata: keys that the metadata of every prompt must have.
        reads_prompt: the score depends on the prompt, so exchanging prompts must lower it.
        differentiable: scores carry a gradient to images that require one.
        bounds: no score lies outside.
        scale: what public trainers divide this score by before they add it to others.
        weights: hub ids of the published weights.
        license: of the weights.
        packages: distributions that must be installed, beyond genrl's own.
        source: paper or repository.
        golden: known scores as (picture of ``genrl.doctor.shown``, prompt, score, tolerance).
    """

    kind: Kind = "pointwise"
    metadata: tuple[str, ...] = ()
    reads_prompt: bool = True
    differentiable: bool = False
    bounds: tuple[float, float] | None = None
    scale: float = 1.0
    weights: tuple[str, ...] = ()
    license: str = "none needed"
    packages: tuple[str, ...] = ()
    source: str = ""
    golden: tuple[tuple[str, str, float, float], ...] = ()


def about(reward: Any) -> About:
    """What a reward says of itself; the defaults for one that says nothing.

    Raises:
        RewardError: its ``about`` is something else, or its kind lacks the method that goes with it.
    """
    said = getattr(reward, "about", None) or About()
    if not isinstance(said, About):
        raise RewardError(f"{_called(reward)}.about must be a genrl.reward.About; got {type(said).__name__}")
    method = {"pairwise": "compare", "latent": "score_latents"}.get(said.kind)
    if method and not callable(getattr(reward, method, None)):
        raise RewardError(f"{_called(reward)} says that it is {said.kind}, and has no method {method!r}")
    if not method and not callable(reward):
        raise RewardError(f"{_called(reward)} cannot be called; a reward is reward(images, prompts, metadata) -> scores")
    return said


def check_metadata(name: str, reward: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``RewardError`` where a prompt lacks what the reward reads from its metadata."""
    wanted = about(reward).metadata
    for prompt, given in zip(prompts, metadata, strict=True):
        if missing := [key for key in wanted if key not in given]:
            raise RewardError(
                f"reward {name!r} reads {', '.join(map(repr, wanted))} from each prompt's metadata; the prompt {prompt!r} lacks "
                f"{', '.join(map(repr, missing))}. Use a prompt file that has it, or another reward"
            )


def reward_names() -> dict[str, str]:
    """Every reward known by name, built in or installed by other packages, and where it lives. Imports none of them."""
    return {_plain(point.name): point.value for point in entry_points(group=GROUP)} | BUILT_IN


def describe(name: str) -> str:
    """What is known of a reward without making it: where it lives, what it says of itself, its options. Imports its module.

    Raises:
        RewardError: unknown name, or its module fails.
    """
    where, found = _find(name)
    said = about(found) if hasattr(found, "about") else About()
    lines = [f"{name}: {where}", *(inspect.getdoc(found) or "no description").splitlines(), ""]
    for entry in fields(About):
        value = getattr(said, entry.name)
        if value != entry.default or entry.name in ("kind", "license"):
            lines.append(f"{entry.name:16}{', '.join(map(str, value)) if isinstance(value, tuple) else value}")
    if inspect.isclass(found) or _is_factory(found, {}):
        lines.append(f"{'options':16}{inspect.signature(found)}")
    return "\n".join(lines)


def load_reward(name: str, **options: Any) -> Any:
    """Find a reward and make it ready.

    Names are the same in either case, with ``-`` and ``_``. A function that can be called with the options alone is a factory, and so
    is a class; of any other function the options are bound.

    Raises:
        RewardError: unknown name (near ones are listed), or its module, class or options fail.
    """
    where, found = _find(name)
    if inspect.isclass(found):
        _check_options(name, found, options)
    try:
        made = found(**options) if inspect.isclass(found) or _is_factory(found, options) else found
        if made is found and options:
            inspect.signature(found).bind_partial(**options)  # an option it does not have is told now, not at the first call
            made = partial(found, **options)
            made.about = about(found)  # type: ignore[attr-defined]
        about(made)
        return made
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} ({where}) could not be loaded: {type(error).__name__}: {error}") from error


def _check_options(name: str, found: Any, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:  # some classes that are not written in Python have none
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        raise RewardError(f"reward {name!r} has the options {signature}: {error}; see `genrl rewards info {name}`") from None


def _find(name: str) -> tuple[str, Any]:
    """Where a name leads, and what is there."""
    known = reward_names()
    where = known.get(_plain(name), name)
    module_name, colon, attribute = where.rpartition(":")
    if not colon and name.endswith(".py"):
        raise RewardError(f"{name!r} is a file; name what is in it: {name}:Name")
    if not colon:
        near = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
        raise RewardError(f"no reward named {name!r}; {hint} (or give package.module:Name, or path/to/file.py:Name)")
    try:
        module = _import(module_name)
        if not hasattr(module, attribute):
            inside = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
            raise RewardError(f"{module_name!r} has no {attribute!r}; it has: {', '.join(inside) or 'no class or function of its own'}")
        return where, getattr(module, attribute)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} ({where}) could not be loaded: {type(error).__name__}: {error}") from error


def _is_factory(found: Any, options: Mapping[str, Any]) -> bool:
    if not inspect.isfunction(found):
        return False
    signature = inspect.signature(found)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) or "images" in signature.parameters:
        return False
    try:
        signature.bind(**options)
    except TypeError:
        # three parameters and more are images, prompts and metadata: a wrong option of a factory is told by calling it
        return len(signature.parameters) < 3
    return True


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {module!r}")
    loader = SourceFileLoader(f"genrl_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", str(path))
    loaded = ModuleType(loader.name)
    loaded.__file__ = str(path)
    # dataclasses and inspect look a class's module up by name
    sys.modules[loader.name] = loaded
    loader.exec_module(loaded)
    return loaded


def source_of(name: str) -> bytes:
    """The text of the file that defines a reward; empty where it is not to be had."""
    module = reward_names().get(_plain(name), name).rpartition(":")[0]
    path: Path | None = None
    if module.endswith(".py"):
        path = Path(module).expanduser()
    else:
        with suppress(ImportError):  # it may be installed in an environment of its own only
            spec = importlib.util.find_spec(module)
            path = Path(spec.origin) if spec and spec.origin else None
    return path.read_bytes() if path and path.is_file() else b""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _called(reward: Any) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def check_scores(name: str, scores: Any, count: int) -> Tensor:
    """The scores as ``[count]`` float32 on the CPU, or a RewardError that says what came instead.

    ``(scores, info)``, as rewards of DDPO's line return it, counts as its scores.
    """
    if isinstance(scores, tuple) and len(scores) == 2 and isinstance(scores[1], Mapping):
        scores = scores[0]
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
