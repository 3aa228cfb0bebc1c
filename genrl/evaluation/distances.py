"""How far two sets of images are from each other, as distributions: distances between their features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def kid(
    a: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    b: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
    groups: tuple[Sequence[int], Sequence[int]] | None = None,
) -> tuple[float, float]:
    """Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401): mean over random subsets, and their standard deviation.

    The unbiased estimate of the squared maximum mean discrepancy, between subsets of ``size`` rows drawn without replacement from each:

        k(x, y) = (x . y / d + 1)^3
        mean over i != j of k(a_i, a_j)  +  mean over i != j of k(b_i, b_j)  -  2 mean over i, j of k(a_i, b_j)

    Zero in expectation for two samples of one distribution, and so negative at times; the size of the subsets moves its spread alone.
    In double precision. The features need not be Inception's; the kernel is not scale-free, so theirs is part of the number.

    Args:
        a, b: features ``[N, D]`` and ``[M, D]``.
        groups: a number for each row of ``a`` and of ``b``, where rows depend on each other: the images of one prompt do, within a side
            and across. Pairs of one group are left out of all three means, which else are biased, downwards if both sides show the same
            prompts (Gretton et al. 2012 leave out i = j across, too, where row i of both sides is a pair; groups: ours).

    Raises:
        ValueError: features of different widths, fewer rows than a subset takes, or a subset of a single group.
    """
    x, y = (torch.as_tensor(rows).detach().cpu().double() for rows in (a, b))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D]; got {list(x.shape)} and {list(y.shape)}")
    if subsets < 1 or size < 2:
        raise ValueError(f"needs at least one subset of at least two rows; got {subsets} of {size}")
    if min(len(x), len(y)) < size:
        raise ValueError(f"subsets of {size} rows need as many on both sides; got {len(x)} and {len(y)}: give more, or a smaller size")
    # without groups every row is one of its own
    own = groups or (range(len(x)), range(len(x), len(x) + len(y)))
    of_x, of_y = (torch.as_tensor(list(numbers)) for numbers in own)
    if len(of_x) != len(x) or len(of_y) != len(y):
        raise ValueError(f"groups number every row; got {len(of_x)} and {len(of_y)} for {len(x)} and {len(y)} rows")
    rng, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        i, j = (torch.from_numpy(rng.choice(len(rows), size, replace=False)) for rows in (x, y))
        across = _mean_kernel(x[i], of_x[i], y[j], of_y[j])
        found.append(_mean_kernel(x[i], of_x[i], x[i], of_x[i]) + _mean_kernel(y[j], of_y[j], y[j], of_y[j]) - 2 * across)
    return float(np.mean(found)), float(np.std(found))


def _mean_kernel(x: Tensor, of_x: Tensor, y: Tensor, of_y: Tensor) -> float:
    """Mean of the kernel over the pairs of different groups."""
    apart = of_x[:, None] != of_y[None, :]
    if not apart.any():
        raise ValueError("all rows of a subset are of one group: there is no pair to compare")
    return float(((x @ y.T / x.shape[1] + 1) ** 3)[apart].mean())
