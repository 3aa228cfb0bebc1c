"""Sampling: prompts and their embeddings to a Trajectory of finished latents, and whatever of the way there a loss asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain
from genrl.path import start, to_x0
from genrl.policy import FlowPolicy
from genrl.types import Conditioning, Prompt, Trajectory

RECORDS = ("states", "predictions")
"""What a rollout can record, each ``[B, T, ...]`` for the T steps: the state a step starts from, and the x0 predicted there."""


@torch.no_grad()
def rollout(
    policy: FlowPolicy,
    chain: Chain,
    prompts: Sequence[Prompt],
    cond: Conditioning,
    *,
    role: str,
    key: Sequence[int],
    samples: Sequence[int],
    groups: Sequence[int],
    guidance: float = 1.0,
    chunk: int = 64,
    record: Sequence[str] = (),
    finished: Callable[[slice, Tensor], None] | None = None,
) -> Trajectory:
    """Sample one latent per row.

    Args:
        prompts: B prompts; ``cond`` their embeddings, row by row, on any device.
        role: who draws.
        key, samples: sample i starts from the noise of ``(*key, samples[i])``: the same image in any chunk, on any process.
            The noise of step k of a stochastic chain is that of ``(*key, k, samples[i])``.
        groups: index of each sample's prompt in the round.
        chunk: rows per forward pass; bounds memory, does not change images beyond float rounding.
        record: names out of ``RECORDS``.
        finished: called with the rows and latents of each chunk, while the next are still to be drawn.
    """
    device = next(policy.model.network.parameters()).device
    shape = policy.model.latent_shape
    parts, kept = [], {name: [] for name in record}
    for first in range(0, len(samples), chunk):
        rows = slice(first, first + chunk)

        def noise(step: int, own: Sequence[int] = samples[rows]) -> Tensor:
            return seeds.normal((*key, step), own, shape).to(device)

        x = start(seeds.normal(key, samples[rows], shape).to(device), chain.sigmas[0])
        way: dict[str, list[Tensor]] = {name: [] for name in record}
        parts.append(denoise(policy, chain, x, cond.index(rows).to(device), role=role, guidance=guidance, noise=noise, way=way))
        for name in record:
            kept[name].append(torch.stack(way[name], 1))
        if finished:
            finished(rows, parts[-1])
    recorded = {name: torch.cat(pieces) for name, pieces in kept.items()}
    return Trajectory(tuple(prompts), torch.tensor(groups), torch.tensor(samples), torch.cat(parts), cond.to(device), recorded)


@torch.no_grad()
def denoise(
    policy: FlowPolicy,
    chain: Chain,
    x: Float[Tensor, "b *d"],
    cond: Conditioning,
    *,
    role: str,
    guidance: float,
    noise: Callable[[int], Tensor] | None = None,
    way: Mapping[str, list[Tensor]] | None = None,
) -> Float[Tensor, "b *d"]:
    """Run a chain from ``x`` at its first level to its last.

    Args:
        noise: ``noise(k)`` is the standard normal noise of step k; a deterministic chain never asks for it.
        way: lists by some of the names of ``RECORDS``, to which every step appends.

    Raises:
        ValueError: a stochastic chain without noise.
    """
    for index, (sigma, sigma_next) in enumerate(zip(chain.sigmas, chain.sigmas[1:], strict=False)):
        v = policy.velocity(x, sigma, cond, role, guidance)
        for name, kept in (way or {}).items():
            kept.append(x if name == "states" else to_x0(x, v, sigma))
        law = chain.step(x, v, sigma, sigma_next)
        x = law.mean
        if law.std != 0:
            if noise is None:
                raise ValueError(f"{type(chain).__name__} is stochastic and needs the noise of each step")
            x = x + law.std * noise(index)
    return x


@torch.no_grad()
def decode(policy: FlowPolicy, latents: Float[Tensor, "b *d"], chunk: int = 32) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] on the CPU, decoded ``chunk`` at a time."""
    return torch.cat([policy.decode(part).float().cpu() for part in latents.split(chunk)])
