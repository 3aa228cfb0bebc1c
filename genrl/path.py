"""The one noise path: rectified flow, written once for every model, chain and loss.

Convention (that of SD3's own checkpoints): ``sigma`` 1 is noise, 0 is data,

    x_sigma = (1 - sigma) x0 + sigma eps        v = d x_sigma / d sigma = eps - x0

so ``x0 = x - sigma v`` and ``eps = x + (1 - sigma) v``. The AC-Flow and ORW papers count time the other way round,
``t = 1 - sigma`` with ``u = x1 - x0 = -v``; squared errors are the same.

``sigma`` is a float, a scalar tensor or ``[B]``; ``x, x0, eps, v`` are ``[B, ...]`` of one shape.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Sigma = float | Float[Tensor, "..."]


def expand(sigma: Sigma, like: Float[Tensor, "b ..."]) -> Tensor:
    """``sigma`` with trailing axes so that it multiplies ``like``; raises if it is neither scalar nor one value per sample."""
    sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != like.shape[:1]:
        raise ValueError(f"sigma must be a scalar or [{like.shape[0]}], one value per sample; got shape {tuple(sigma.shape)}")
    return sigma.view(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], sigma: Sigma) -> Float[Tensor, "b *d"]:
    """``x_sigma = (1 - sigma) x0 + sigma eps``."""
    s = expand(sigma, x0)
    return (1 - s) * x0 + s * eps


def velocity_target(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """``v = eps - x0``, the regression target of flow matching."""
    return eps - x0


def to_x0(x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Sigma) -> Float[Tensor, "b *d"]:
    """The one-step endpoint ``x0 = x - sigma v``."""
    return x - expand(sigma, x) * v


def to_eps(x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Sigma) -> Float[Tensor, "b *d"]:
    """The noise ``eps = x + (1 - sigma) v``."""
    return x + (1 - expand(sigma, x)) * v


def to_score(x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Sigma) -> Float[Tensor, "b *d"]:
    """``grad log p_sigma(x) = -eps / sigma``; infinite at sigma 0, where the path has no noise."""
    return -to_eps(x, v, sigma) / expand(sigma, x)


def shift(sigma: Sigma, factor: float) -> Sigma:
    """Resolution shift ``factor s / (1 + (factor - 1) s)`` (Stable Diffusion 3, eq. 23): keeps 0 and 1, raises what lies between."""
    return factor * sigma / (1 + (factor - 1) * sigma)


def start(noise: Float[Tensor, "b *d"], sigma: Sigma) -> Float[Tensor, "b *d"]:
    """The state at a chain's first level: ``noise * hypot(1 - sigma, sigma)``, that is, noise itself at sigma 1.

    A variance-preserving model ends short of pure noise (SDXL at .936) and yet is started from ``x_t = eps``, as its samplers do.
    """
    s = expand(sigma, noise)
    return noise * torch.hypot(1 - s, s)
