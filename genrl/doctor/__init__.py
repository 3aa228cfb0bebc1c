"""``genrl rewards doctor NAME``: is this reward what it says it is, before a run of days depends on it?

It is asked about pictures of the shapes world (`pictures`), whose captions are known to be true, or about pictures of one's own. Every
check says what it saw; a failure is one that would harm training. Thresholds are ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genrl.doctor.shown import SIZE, golden_picture, pictures, read_pictures
from genrl.pixels import to_bytes
from genrl.reward import About, RewardError, about, check_metadata, check_scores, load_reward

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """What a check of the name saw; a ``fail`` would harm training."""

    check: str
    status: Status
    words: str


@dataclass(frozen=True)
class Patient:
    """A reward and what it is asked about: ``images [B, 3, H, W]`` multiples of 1/255, prompts and metadata."""

    name: str
    reward: Any
    images: Tensor
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]

    @property
    def about(self) -> About:
        return about(self.reward)

    @cached_property
    def scores(self) -> Tensor:
        """Of all pictures with their own prompts."""
        return self.ask()

    @cached_property
    def strange(self) -> Tensor:
        """Of all pictures with other prompts, two each: ``[2, B]``."""
        count = len(self.prompts)
        return torch.stack([self.ask(prompts_from=[(i + k) % count for i in range(count)]) for k in (1, count // 2)])

    def ask(self, rows: Sequence[int] | slice = slice(None), prompts_from: Sequence[int] | None = None) -> Tensor:
        """Checked scores of some rows, with other rows' prompts if asked."""
        picked = list(range(len(self.prompts)))[rows] if isinstance(rows, slice) else list(rows)
        told = list(prompts_from) if prompts_from is not None else picked
        prompts, metadata = [self.prompts[i] for i in told], [self.metadata[i] for i in told]
        if self.about.kind == "pairwise":
            other = self.images[[(i + 1) % len(self.prompts) for i in picked]]
            got = self.reward.compare(self.images[picked], other, prompts, metadata)
        else:
            got = self.reward(self.images[picked], prompts, metadata)
        return check_scores(self.name, got, len(picked))


def examine(name: str, options: Mapping[str, Any] | None = None, size: int = SIZE, own: Path | None = None) -> list[Finding]:
    """Load a reward and run every check that fits its kind. A reward that does not load is one failed finding."""
    began = time.perf_counter()
    try:
        reward = load_reward(name, **(options or {}))
        images, prompts, metadata = read_pictures(own) if own else pictures(size)
    except RewardError as error:
        return [Finding("loads", "fail", str(error))]
    if about(reward).kind == "group":  # one call holds the pictures of one prompt
        prompts, metadata = [prompts[0]] * len(prompts), [metadata[0]] * len(metadata)
    patient = Patient(name, reward, (to_bytes(images).float() / 255), prompts, metadata)
    said = patient.about
    found = [Finding("loads", "ok", f"{said.kind}, in {time.perf_counter() - began:.1f} s"), _papers(said), _packages(said)]
    if said.kind == "latent":
        return [*found, Finding("scores", "skip", "latent rewards score latents of their own model; nothing to show it here")]
    try:
        check_metadata(name, reward, prompts, metadata)
    except RewardError as error:
        words = f"{error}. Give pictures whose prompts have it: --pictures file.jsonl"
        return [*found, Finding("scores", "skip", words)]
    checks: list[Callable[[Patient], Finding]] = [_scores, _precision, _repeats, _golden, _speed]
    if said.kind == "pairwise":
        checks += [_order]
    else:
        checks += [_constant, _shuffled]
    if said.kind == "pointwise":
        checks += [_pairing, _gradient]
    for check in checks:
        try:
            found.append(check(patient))
            if check is _scores and not patient.scores.isfinite().any():
                break
        except Exception as error:  # whatever a plug-in raises is what the user came to read
            found.append(Finding(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}"))
            break
    return found


def _papers(said: About) -> Finding:
    weights = f"weights {', '.join(said.weights)}; " if said.weights else "no weights; "
    status: Status = "warn" if said.license.lower() in ("unknown", "") else "ok"
    return Finding("licence", status, f"{weights}licence: {said.license or 'unknown'}" + (f"; {said.source}" if said.source else ""))


def _packages(said: About) -> Finding:
    missing, there = [], []
    for package in said.packages:
        try:
            there.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}")
    return Finding("packages", "ok", ", ".join(there) or "none beyond genrl's own")


def _scores(patient: Patient) -> Finding:
    scores, bounds = patient.scores, patient.about.bounds
    valid = scores.isfinite()
    if not valid.any():
        words = f"none of {len(scores)} pictures could be scored; show it some that can: --pictures file.jsonl"
        return Finding("scores", "fail", words)
    low, high = scores[valid].min().item(), scores[valid].max().item()
    words = f"{low:.4g} to {high:.4g} over {int(valid.sum())} of {len(scores)} pictures"
    words += "" if valid.all() else ", NaN for the others, which training leaves out"
    if bounds and not (bounds[0] - 1e-4 <= low and high <= bounds[1] + 1e-4):
        return Finding("scores", "fail", f"{words}: outside its bounds {bounds[0]:g} to {bounds[1]:g}")
    return Finding("scores", "ok" if valid.all() else "warn", words)


def _precision(patient: Patient) -> Finding:
    """bf16 leaves steps of .125 at a PickScore of 22, as large as what tells the samples of a group apart."""
    scores = _known(patient.scores)
    for dtype in (torch.bfloat16, torch.float16):
        if len(scores.unique()) > 2 and (scores == scores.to(dtype).float()).all() and not (scores == scores.round(decimals=2)).all():
            return Finding("dtype", "warn", f"scores look rounded to {dtype}: if a network gives them, normalise and multiply in float32")
    return Finding("dtype", "ok", "scores have float32's resolution, or few values")


def _repeats(patient: Patient) -> Finding:
    first, second = patient.scores, patient.ask()
    if not torch.equal(first.nan_to_num(math.inf), second.nan_to_num(math.inf)):
        return Finding(
            "repeats", "warn", f"the same pictures again: scores differ by up to {(first - second).abs().nan_to_num().max():.3g}"
        )
    return Finding("repeats", "ok", "the same pictures have the same scores again")


def _constant(patient: Patient) -> Finding:
    # true captions may all be worth the same, so others belong to it
    seen = [patient.scores, patient.strange.flatten()] if patient.about.reads_prompt else [patient.scores]
    spread = _known(torch.cat(seen)).std(correction=0).item()
    if spread == 0:
        return Finding("varies", "fail", "every picture has the same score: weights missing, or an error that became a number")
    return Finding("varies", "ok", f"standard deviation over pictures and prompts {spread:.3g}")


def _shuffled(patient: Patient) -> Finding:
    """Each picture with its own prompt against the same with another's; catches scores paired with the wrong prompt, too."""
    if not patient.about.reads_prompt:
        return Finding("shuffled prompts", "skip", "does not read prompts, it says")
    if patient.about.kind == "group":
        return Finding("shuffled prompts", "skip", "scores are relative to siblings")
    gaps = _known((patient.scores - patient.strange).flatten())
    mean, error = gaps.mean().item(), gaps.std().item() / len(gaps) ** 0.5
    words = f"a picture's own prompt is worth {mean:+.3g} ± {2 * error:.2g} more than another"
    if mean <= 0:
        return Finding("shuffled prompts", "fail", f"{words}: it does not read the prompt, or pairs it with the wrong picture")
    return Finding("shuffled prompts", "ok" if mean > 2 * error else "warn", words)


def _pairing(patient: Patient) -> Finding:
    """Scores follow their pictures, alone or in any company."""
    together, count = patient.scores, len(patient.prompts)
    order = list(reversed(range(count)))
    apart = max(
        _apart(together[order], patient.ask(order)), _apart(together[:1], patient.ask([0])), _apart(together[1:4], patient.ask([1, 2, 3]))
    )
    scale = max(_known(together).std(correction=0).item(), 1e-12)
    words = f"alone, in another order, in a smaller batch: within {apart:.2g}"
    if apart > 0.5 * scale:
        return Finding("pairing", "fail", f"{words}, where pictures differ by {scale:.2g}: scores are mixed up, or depend on the batch")
    return Finding("pairing", "warn" if apart > 0.01 * scale else "ok", words)


def _order(patient: Patient) -> Finding:
    """Does a preference model favour a place?"""
    here = patient.images
    other = here.roll(-1, 0)
    forth = check_scores(patient.name, patient.reward.compare(here, other, patient.prompts, patient.metadata), len(here))
    back = check_scores(patient.name, patient.reward.compare(other, here, patient.prompts, patient.metadata), len(here))
    bias = _known(forth + back - 1).mean().item()
    words = f"the first place is favoured by {bias / 2:+.3f} (both orders are asked and averaged)"
    return Finding("order", "warn" if abs(bias) > 0.1 else "ok", words)


def _golden(patient: Patient) -> Finding:
    if not patient.about.golden:
        return Finding("golden scores", "skip", "none known")
    wrong = []
    for picture, prompt, expected, tolerance in patient.about.golden:
        got = check_scores(patient.name, patient.reward(golden_picture(picture), [prompt], [{}]), 1).item()
        if not abs(got - expected) <= tolerance:
            wrong.append(f"{picture} {prompt!r}: {got:.5g}, expected {expected:.5g} ± {tolerance:.2g}")
    if wrong:
        return Finding("golden scores", "fail", "; ".join(wrong))
    return Finding("golden scores", "ok", f"all {len(patient.about.golden)} as known")


def _speed(patient: Patient) -> Finding:
    patient.ask([0])
    rates = []
    for rows in ([0], list(range(len(patient.prompts)))):
        began = time.perf_counter()
        patient.ask(rows)
        rates.append(len(rows) / max(time.perf_counter() - began, 1e-9))
    side = "x".join(map(str, patient.images.shape[:1:-1]))
    return Finding("speed", "ok", f"{rates[0]:.1f} images/s one by one, {rates[1]:.1f} in a batch of {len(patient.prompts)}, {side} pixels")


def _gradient(patient: Patient) -> Finding:
    """A small step along the gradient must raise the score it is the gradient of."""
    if not patient.about.differentiable:
        return Finding("gradient", "skip", "none promised")
    some = min(4, len(patient.prompts))
    images = patient.images[:some].clone().requires_grad_()
    scores = patient.reward(images, patient.prompts[:some], patient.metadata[:some])
    if not isinstance(scores, Tensor) or not scores.requires_grad:
        return Finding("gradient", "fail", "promised, but scores carry none")
    (slope,) = torch.autograd.grad(scores.sum(), images)
    if not slope.isfinite().all() or not slope.abs().sum() > 0:
        return Finding("gradient", "fail", "promised, but it is zero or not finite")
    # a normalised step, small enough that the score is still straight
    moved = (images + 1e-3 * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)).detach().requires_grad_()
    rose = (patient.reward(moved, patient.prompts[:some], patient.metadata[:some]) - scores).mean().item()
    return Finding("gradient", "ok" if rose > 0 else "fail", f"a small step along it changes the score by {rose:+.2g}")


def _known(values: Tensor) -> Tensor:
    return values[values.isfinite()]


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference; infinite where one has a score and the other none."""
    return float((a.nan_to_num(math.inf) - b.nan_to_num(math.inf)).nan_to_num(0.0, posinf=math.inf, neginf=math.inf).abs().max())
