"""All randomness, keyed by what it is for: (run seed, stream..., sample). Nothing depends on batch size, order or process,
and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# streams: the second part of every key
ROLLOUT, LOSS, ORDER, PROMPTS, EVALUATION, INIT, REAL = range(7)


def generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by the key."""
    digest = hashlib.blake2b(b",".join(str(int(part)).encode() for part in key), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(key: Sequence[int], samples: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise ``[B, *shape]`` float32 on the CPU; row i depends on ``(*key, samples[i])`` only."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(*key, sample)) for sample in samples])


def uniform(key: Sequence[int], samples: Iterable[int]) -> Tensor:
    """Uniform numbers in [0, 1), ``[B]``; row i depends on ``(*key, samples[i])`` only."""
    return torch.stack([torch.rand((), generator=generator(*key, sample)) for sample in samples])


def permutation(key: Sequence[int], length: int) -> Tensor:
    return torch.randperm(length, generator=generator(*key))


def permutation_by_group(key: Sequence[int], group: Tensor) -> Tensor:
    """A random order of samples with groups ``[B]`` that leaves each group in one piece; groups and their members in random order."""
    order = permutation(key, len(group))
    _, own = group[order].unique(return_inverse=True)
    turn = permutation((*key, 0), int(own.max()) + 1)
    return order[turn[own].argsort(stable=True)]
