"""Sampling: prompts and their embeddings to a Trajectory of finished latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain
from genrl.policy import FlowPolicy
from genrl.types import Conditioning, Prompt, Trajectory


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
) -> Trajectory:
    """Sample one latent per row.

    Args:
        prompts: B prompts; ``cond`` their embeddings, row by row, on any device.
        role: who draws.
        key, samples: sample i starts from the noise of ``(*key, samples[i])``: the same image in any chunk, on any process.
        groups: index of each sample's prompt in the round.
        chunk: rows per forward pass; bounds memory, does not change images beyond float rounding.
    """
    device = next(policy.model.network.parameters()).device
    parts = []
    for start in range(0, len(samples), chunk):
        rows = slice(start, start + chunk)
        noise = seeds.normal(key, samples[rows], policy.model.latent_shape).to(device)
        parts.append(denoise(policy, chain, noise, cond.index(rows).to(device), role=role, guidance=guidance))
    return Trajectory(tuple(prompts), torch.tensor(groups), torch.tensor(samples), torch.cat(parts), cond.to(device))


@torch.no_grad()
def denoise(policy: FlowPolicy, chain: Chain, x: Float[Tensor, "b *d"], cond: Conditioning, *, role: str, guidance: float) -> Tensor:
    """Run a deterministic chain from noise ``x`` to data."""
    for sigma, sigma_next in zip(chain.sigmas, chain.sigmas[1:], strict=False):
        x = chain.step(x, policy.velocity(x, sigma, cond, role, guidance), sigma, sigma_next).mean
    return x


@torch.no_grad()
def decode(policy: FlowPolicy, latents: Float[Tensor, "b *d"], chunk: int = 32) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] on the CPU, decoded ``chunk`` at a time."""
    return torch.cat([policy.decode(part).float().cpu() for part in latents.split(chunk)])
