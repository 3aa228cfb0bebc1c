"""How different the images of one prompt are: what reinforcement learning destroys first."""

from __future__ import annotations

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
