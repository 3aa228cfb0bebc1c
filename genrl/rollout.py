"""Sampling: prompts and their embeddings to a Trajectory of finished latents, and whatever of the way there a loss asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain, Guidance
from genrl.kernels import chain as kernels
from genrl.path import start, to_x0
from genrl.policy import FlowPolicy
from genrl.types import Conditioning, Prompt, Trajectory

RECORDS = ("states", "predictions", "log_probs")
"""What a rollout can record of its T steps: the state each starts from and the x0 predicted there, ``[B, T, ...]``, and the
log-probability of its outcome, ``[B, T]`` (a mean over latent dimensions, 0 for a deterministic step)."""


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
    guidance: float | Guidance = 1.0,
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

    Raises:
        ValueError: a way is to be recorded that the model takes by short cuts: no replay would find it again.
    """
    if record and getattr(policy.model, "is_cheap", False):
        raise ValueError(
            f"the model takes short cuts now, and what it does on the way is not to be learned from: do not record {list(record)}"
        )
    device = next(policy.model.network.parameters()).device
    cond = cond.to(device)
    parts, kept = [], {name: [] for name in record}
    # lent once for all steps, so that a role that waits on the CPU comes to the device once
    with policy.storage.use(role):
        for first in range(0, len(samples), chunk):
            rows, own = slice(first, first + chunk), samples[first : first + chunk]
            x = start(seeds.normal(key, own, policy.model.latent_shape, device), chain.sigmas[0])
            way: dict[str, list[Tensor]] = {name: [] for name in record}
            parts.append(denoise(policy, chain, x, cond.index(rows), role=role, guidance=guidance, key=key, samples=own, way=way))
            for name in record:
                kept[name].append(torch.stack(way[name], 1))
            if finished:
                finished(rows, parts[-1])
    recorded = {name: torch.cat(pieces) for name, pieces in kept.items()}
    return Trajectory(tuple(prompts), torch.tensor(groups), torch.tensor(samples), torch.cat(parts), cond, recorded)


@torch.no_grad()
def denoise(
    policy: FlowPolicy,
    chain: Chain,
    x: Float[Tensor, "b *d"],
    cond: Conditioning,
    *,
    role: str,
    guidance: float | Guidance = 1.0,
    key: Sequence[int] = (),
    samples: Sequence[int] = (),
    way: Mapping[str, list[Tensor]] | None = None,
) -> Float[Tensor, "b *d"]:
    """Run a chain from ``x`` at its first level to its last; float32.

    Args:
        key, samples: of the noise, see ``rollout``; a deterministic chain never asks for it.
        way: lists by some of the names of ``RECORDS``, to which every step appends.

    Raises:
        ValueError: a stochastic chain without samples.
    """
    guidance, formats, way = as_guidance(guidance), policy.precision, way or {}
    storage = formats.dtype("storage")
    x = x.to(storage)
    for index, sigma in enumerate(chain.sigmas[:-1]):
        law, scale, seed = chain.law(index), guidance.at(sigma), None
        if law.std:
            if len(samples) != len(x):
                raise ValueError(f"{type(chain).__name__} is stochastic and needs the key and the samples of its noise")
            seed = seeds.numbers((*key, index), samples, x.device)
        v = policy.answer(x, sigma, cond, role, scale)
        after, log_prob = kernels.step(
            x, v, law, guidance=scale, seed=seed, combine=formats.dtype("combine"), chain=formats.dtype("chain"), storage=storage
        )
        for name, kept in way.items():
            if name == "predictions":
                kept.append(to_x0(x.float(), kernels.guided(v, scale, formats.dtype("combine")), sigma))
            else:
                kept.append(x if name == "states" else log_prob)
        x = after
    return x.float()


def replay(
    policy: FlowPolicy,
    chain: Chain,
    step: int,
    states: Float[Tensor, "b t *d"],
    x0: Float[Tensor, "b *d"],
    cond: Conditioning,
    *,
    role: str,
    guidance: float | Guidance = 1.0,
) -> Float[Tensor, " b"]:
    """Log-probability ``[B]`` of what a rollout did at a step, under a role as it is now, with gradient.

    Right after the rollout, for its own role and in chunks of the same size, it is the recorded one (a network's answer depends in its
    last bits on how many rows it is asked for at once: ``genrl precision-report`` says how much that is).

    Args:
        step: index of a stochastic step; ``states``: the recorded ones; ``x0``: where they led.
    """
    sigma, formats = chain.sigmas[step], policy.precision
    scale = as_guidance(guidance).at(sigma)
    x, after = states[:, step], states[:, step + 1] if step + 1 < states.shape[1] else x0
    v = policy.answer(x, sigma, cond, role, scale)
    combine, rounded = formats.dtype("combine"), formats.dtype("chain")
    return kernels.log_prob(x, v, after, chain.law(step), guidance=scale, combine=combine, chain=rounded)


def as_guidance(guidance: float | Guidance) -> Guidance:
    return guidance if isinstance(guidance, Guidance) else Guidance(guidance)


@torch.no_grad()
def decode(policy: FlowPolicy, latents: Float[Tensor, "b *d"], chunk: int = 32) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] on the CPU, decoded ``chunk`` at a time."""
    return torch.cat([policy.decode(part).float().cpu() for part in latents.split(chunk)])
