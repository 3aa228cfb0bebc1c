"""All randomness, keyed by what it is for: (run seed, stream..., sample). Nothing depends on batch size, order or process,
and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from genrl.kernels import noise

# streams: the second part of every key
ROLLOUT, LOSS, ORDER, PROMPTS, EVALUATION, INIT, REAL = range(7)


def number(*key: int) -> int:
    """The key as a number, uniform in [0, 2^63)."""
    digest = hashlib.blake2b(b",".join(str(int(part)).encode() for part in key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numbers(key: Sequence[int], samples: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """A seed for each sample, ``[B]`` int64; that of row i depends on ``(*key, samples[i])`` only."""
    return torch.tensor([number(*key, sample) for sample in samples], dtype=torch.int64).to(device, non_blocking=True)


def normal(key: Sequence[int], samples: Iterable[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise ``[B, *shape]`` float32; row i depends on ``(*key, samples[i])`` only, on any device."""
    return noise.normal(numbers(key, samples, device), shape)


def uniform(key: Sequence[int], samples: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), ``[B]`` float32; row i depends on ``(*key, samples[i])`` only."""
    return (numbers(key, samples, device) >> 39).float() * 2.0**-24


def permutation(key: Sequence[int], length: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(number(*key)))


def permutation_by_group(key: Sequence[int], group: Tensor) -> Tensor:
    """A random order of samples with groups ``[B]`` that leaves each group in one piece; groups and their members in random order."""
    order = permutation(key, len(group))
    _, own = group[order].unique(return_inverse=True)
    turn = permutation((*key, 0), int(own.max()) + 1)
    return order[turn[own].argsort(stable=True)]
