"""How far two sets of images are from each other, as distributions: distances between their features.

=============  ==================================================================================================================
``kid``        unbiased, any number of images, zero in expectation for one distribution
``cmmd``       for CLIP features; biased upwards by few images, so compare values of equally many only
``frechet``    FID, FD-DINOv2, CLIP-FID, patch-FID, by the features; needs several images per feature: ``frechet_note``
``prdc``       says which way two sets differ: quality (precision, density) or variety (recall, coverage)
=============  ==================================================================================================================

All in double precision, on features ``[N, D]`` that were made elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional as F

ROWS_PER_FEATURE = 5  # ours: between two such samples of one Gaussian the Frechet distance is still a tenth of the total variance
ROWS_AT_ONCE = 1024  # rows of a table of pairs that are held at a time

Features = Float[Tensor, "n d"] | Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance (over ``count - 1``) of features, all that the Frechet distance needs: the cache of a reference set."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int

    @classmethod
    def of(cls, features: Features) -> Self:
        """Raises ValueError for fewer than two rows or another shape than ``[N, D]``."""
        rows = _rows(features).numpy()
        if len(rows) < 2:
            raise ValueError(f"a covariance needs at least two rows of features; got {len(rows)}")
        return cls(rows.mean(0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1]), len(rows))

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file({"mean": self.mean, "covariance": self.covariance}, aside, metadata={"count": str(self.count)})
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError for a file that ``save`` did not write, FileNotFoundError for none."""
        try:
            with safe_open(path, "numpy") as file:
                return cls(file.get_tensor("mean"), file.get_tensor("covariance"), int(file.metadata()["count"]))
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no statistics of features ({error}): delete it and make them anew") from error


def frechet(a: Features, b: Features) -> float:
    """Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500); see ``frechet_of_statistics``.

    Biased upwards by few images: ask ``frechet_note`` what to say beside the number.
    """
    one, two = Statistics.of(a), Statistics.of(b)
    return frechet_of_statistics(one.mean, one.covariance, two.mean, two.covariance)


def frechet_of_statistics(
    mean_a: Float[np.ndarray, " d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    covariance_b: Float[np.ndarray, "d d"],
) -> float:
    """Frechet distance between two Gaussians, squared as FID is.

        |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

    The last trace is the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``. That equals the roots of the eigenvalues of ``S_a S_b``,
    which others sum, but loses no half of the digits where the covariances are singular, as they are below one image per feature.

    Raises:
        ValueError: statistics of different widths.
    """
    if mean_a.shape != mean_b.shape or not covariance_a.shape == covariance_b.shape == 2 * mean_a.shape:
        shapes = [list(x.shape) for x in (mean_a, covariance_a, mean_b, covariance_b)]
        raise ValueError(f"means must be [D] and covariances [D, D], of the same features on both sides; got {shapes}")
    root_a, root_b = (_root(torch.from_numpy(np.asarray(s, float))) for s in (covariance_a, covariance_b))
    overlap = float(torch.linalg.svdvals(root_a @ root_b).sum())
    found = float(((mean_a - mean_b) ** 2).sum() + np.trace(covariance_a) + np.trace(covariance_b)) - 2 * overlap
    return max(found, 0.0)  # rounding alone can make it negative


def frechet_note(rows: int, width: int) -> str:
    """What to print beside a Frechet distance of ``rows`` images (of the smaller side) and ``width`` features: nothing if enough."""
    if rows >= ROWS_PER_FEATURE * width:
        return ""
    few = f"only {rows} images for {width} features, {ROWS_PER_FEATURE * width} would do: biased upwards"
    return f"{few}; compare it only with values of as many images, or read KID"


def cmmd(a: Features, b: Features, sigma: float = 10.0) -> float:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603) between CLIP features, which are scaled to length one here, times 1000.

        k(x, y) = exp(-|x - y|^2 / (2 sigma^2))
        1000 (mean over i, j of k(a_i, a_j)  +  mean over i, j of k(b_i, b_j)  -  2 mean over i, j of k(a_i, b_j))

    The V-statistic of the authors' code: ``i = j`` counts, so two samples of one distribution do not give 0 but, in expectation,
    ``1000 (1/n + 1/m) (1 - E k)``. Compare values of equally many images only.

    Args:
        a, b: features ``[N, D]`` and ``[M, D]``; published numbers are those of CLIP ViT-L/14 at 336 pixels.

    Raises:
        ValueError: no rows, or features of different widths.
    """
    x, y = (F.normalize(rows, dim=-1) for rows in _both(a, b))

    def mean_kernel(one: Tensor, two: Tensor) -> float:
        found = sum(float(torch.exp(-squared / (2 * sigma**2)).sum()) for _, squared in _squared_distances(one, two))
        return found / (len(one) * len(two))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


class Prdc(NamedTuple):
    """Precision, recall and coverage are shares in [0, 1]; density is 1 in expectation for one distribution, and may exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Features, fake: Features, k: int = 5) -> Prdc:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    The ball of a row is open and reaches to its k-th nearest neighbour in its own set, as in the code of the second paper:

        precision   share of fake rows in the ball of any real one
        recall      share of real rows in the ball of any fake one
        density     balls of real rows that a fake row is in, over k: mean over fake rows
        coverage    share of real rows whose ball holds a fake one

    Identical sets without duplicates give exactly 1 four times. All four depend on the numbers of images: compare equal ones only.

    Raises:
        ValueError: k below 1, not more than k rows on a side, or features of different widths.
    """
    x, y = _both(real, fake)
    if k < 1 or min(len(x), len(y)) <= k:
        raise ValueError(f"the {k}-th neighbours need k >= 1 and more than {k} rows on both sides; got {len(x)} and {len(y)}")
    centre = x.mean(0)  # does not change distances, and spares their digits
    x, y = x - centre, y - centre
    of_real, of_fake = _radii(x, k), _radii(y, k)
    precise = torch.zeros(len(y), dtype=torch.bool)
    inside, covered, recalled = 0, 0, 0
    for start, squared in _squared_distances(x, y):
        hits = squared < of_real[start : start + len(squared), None]
        precise |= hits.any(0)
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
        recalled += int((squared < of_fake[None, :]).any(1).sum())
    return Prdc(float(precise.double().mean()), recalled / len(x), inside / (k * len(y)), covered / len(x))


def kid(
    a: Features,
    b: Features,
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
    x, y = _both(a, b)
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


def _rows(features: Features) -> Float[Tensor, "n d"]:
    rows = torch.as_tensor(features).detach().cpu().double()
    if rows.ndim != 2:
        raise ValueError(f"features must be [N, D]; got {list(rows.shape)}")
    return rows


def _both(a: Features, b: Features) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    shapes = [list(np.shape(rows)) for rows in (a, b)]
    if any(len(shape) != 2 or shape[0] == 0 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features must be [N, D] and [M, D]; got {shapes[0]} and {shapes[1]}")
    return _rows(a), _rows(b)


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root; what rounding made negative counts as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Iterator[tuple[int, Float[Tensor, "c m"]]]:
    """Rows of the table of squared distances, some at a time, with the number of the first."""
    of_x, of_y = x.square().sum(1), y.square().sum(1)
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        lengths = of_x[rows, None] + of_y[None, :]
        found = lengths - 2 * x[rows] @ y.T
        # below this a difference of products is rounding: features are single precision at best, so these rows are the same
        yield start, torch.where(found > 1e-12 * lengths, found, torch.zeros_like(found))


def _radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Squared distance to the k-th nearest other row, a trace less: that neighbour itself is not inside, however the last digit falls."""
    return torch.cat([squared.kthvalue(k + 1, dim=1).values for _, squared in _squared_distances(x, x)]) * (1 - 1e-9)
