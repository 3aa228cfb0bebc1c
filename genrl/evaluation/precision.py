"""How far a replay's log-probabilities are from those of the rollout, format by format, against the range that ratios are clipped to.

A ratio ``exp(log p_replay - log p_rollout)`` should be 1 before anything has been learned. What it is instead is rounding, and where
it is not far below the clip range, clipping acts on noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain, SdeChain
from genrl.policy import ACTOR, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import replay, rollout
from genrl.types import Conditioning, Prompt, Trajectory


@dataclass(frozen=True)
class Line:
    """A line of the report: what was done, with which guidance, and the mean of ``|delta log p|`` over samples and steps: the replay in the
    rollout's own batch, and in halves of it; ``beyond``: share of samples in the first whose ratio is out of the clip range."""

    formats: str
    guidance: float
    same_batch: float
    half_batch: float
    beyond: float


VARIANTS = {
    "as configured": {},
    "states in bf16, sampled on": {"storage": "bf16"},
    "states in fp16, sampled on": {"storage": "fp16"},
    "guidance combined in bf16": {"combine": "bf16"},
    "chain in bf16": {"combine": "bf16", "chain": "bf16"},
}
"""What each line changes of the model's own formats."""

CAST = "states in bf16, cast afterwards"
"""Recorded in 16 bits while sampling went on from 32: the replay starts from states that sampling never saw."""


def report(
    policy: FlowPolicy,
    cond: Conditioning,
    *,
    steps: int = 10,
    guidance: Sequence[float] = (1.0, 4.5),
    clip: float = 1e-4,
    eta: float = 0.7,
) -> list[Line]:
    """Lines for every variant and guidance, on an SDE of so many steps with the prompts of ``cond [B]``, B at least 2."""
    chain, own = SdeChain(policy.model.sigmas(steps), eta), policy.precision  # pyright: ignore[reportAttributeAccessIssue]
    lines = []
    try:
        for scale in guidance:
            for name, changed in VARIANTS.items():
                policy.precision = replace(own, **changed)
                seen = _sample(policy, chain, cond, scale)
                lines.append(_line(policy, chain, seen, name, scale, clip))
                if name == "as configured" and own.storage == "fp32":
                    rounded = {**seen.recorded, "states": seen.recorded["states"].bfloat16()}
                    lines.append(_line(policy, chain, replace(seen, x0=seen.x0.bfloat16(), recorded=rounded), CAST, scale, clip))
    finally:
        policy.precision = own
    return lines


def _sample(policy: FlowPolicy, chain: Chain, cond: Conditioning, guidance: float) -> Trajectory:
    order = range(len(cond))
    return rollout(
        policy,
        chain,
        [Prompt("")] * len(cond),
        cond,
        role=ACTOR,
        key=(0, seeds.ROLLOUT),
        samples=order,
        groups=order,
        guidance=guidance,
        chunk=len(cond),
        record=("states", "log_probs"),
    )


def _line(policy: FlowPolicy, chain: Chain, seen: Trajectory, name: str, guidance: float, clip: float) -> Line:
    recorded = seen.recorded["log_probs"]
    same = (_replayed(policy, chain, seen, guidance, len(seen)) - recorded).abs()
    half = (_replayed(policy, chain, seen, guidance, -(-len(seen) // 2)) - recorded).abs()
    return Line(name, guidance, same.mean().item(), half.mean().item(), (same.expm1() > clip).float().mean().item())


@torch.no_grad()
def _replayed(policy: FlowPolicy, chain: Chain, seen: Trajectory, guidance: float, rows: int) -> Tensor:
    """``[B, T]``, ``rows`` samples at a time."""
    parts = []
    for part in torch.arange(len(seen), device=seen.x0.device).split(rows):
        states, x0, cond = seen.recorded["states"][part], seen.x0[part], seen.cond.index(part)
        steps = range(states.shape[1])
        parts.append(torch.stack([replay(policy, chain, k, states, x0, cond, role=ACTOR, guidance=guidance) for k in steps], 1))
    return torch.cat(parts)


def words(lines: Sequence[Line], own: Precision, clip: float) -> str:
    """The report as a table for a terminal."""
    head = ", ".join(f"{place} {kind}" for place, kind in asdict(own).items()) + f"; clip range {clip:g}"
    rows = [f"{'formats':34}{'guidance':>9}{'mean |dlogp|':>14}{'half batches':>14}{'beyond clip':>13}"]
    rows += [f"{line.formats:34}{line.guidance:>9g}{line.same_batch:>14.1e}{line.half_batch:>14.1e}{line.beyond:>13.1%}" for line in lines]
    return "\n".join([head, *rows])
