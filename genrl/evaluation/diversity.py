"""How different the images of one prompt are: what reinforcement learning destroys first."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

GRID = 16


def layout_diversity(images: Float[Tensor, "n 3 h w"]) -> float:
    """Mean pairwise distance of the images of one prompt, averaged to a 16 x 16 grid: root mean square, in [0, 1] (ours).

    Needs no network; sees colours and where things are, not fine texture. NaN for a single image.
    """
    if len(images) < 2:
        return float("nan")
    small = F.adaptive_avg_pool2d(images.float(), GRID).flatten(1)
    distances = torch.pdist(small) / small.shape[1] ** 0.5
    return float(distances.mean())


def feature_diversity(features: Float[Tensor, "n d"]) -> float:
    """Mean pairwise ``1 - cosine`` of image features, in [0, 2]. NaN for a single image."""
    if len(features) < 2:
        return float("nan")
    unit = F.normalize(features.float(), dim=-1)
    cosine = unit @ unit.T
    n = len(unit)
    return float((n * n - cosine.sum()) / (n * (n - 1)))


def vendi(features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> float:
    """Vendi score (Friedman and Dieng 2022, arXiv 2210.02410): how many different images there are in effect, from 1 to n.

        exp(-sum of l log l),  l the eigenvalues of K / n,  K_ij = cosine of i and j

    In double precision. K has the eigenvalues of the ``d x d`` matrix of the unit features, which is used where it is smaller. Never
    above n or d: compare equal numbers of images only. NaN for no image.

    Raises:
        ValueError: another shape than ``[N, D]``, or a row of zeros, which has no cosine.
    """
    rows = torch.as_tensor(features).detach().cpu().double()
    if rows.ndim != 2:
        raise ValueError(f"features must be [N, D]; got {list(rows.shape)}")
    if len(rows) == 0:
        return float("nan")
    if (lengths := rows.norm(dim=1)).min() == 0:
        raise ValueError(f"row {int(lengths.argmin())} of the features is all zeros and has no cosine with others: leave it out")
    unit = rows / lengths[:, None]
    n, d = unit.shape
    gram = unit @ unit.T if n <= d else unit.T @ unit
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    return float(torch.exp(torch.special.entr(values).sum()))
