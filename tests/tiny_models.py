"""Both adapters over tiny random pipelines, and what tests ask of them."""

from __future__ import annotations

from typing import Any

import torch
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl
from torch import Tensor, nn

from genrl.models._diffusers import DiffusersModel
from genrl.models.sd3 import SD3
from genrl.models.sdxl import SDXL

TINY = {SD3: tiny_sd3, SDXL: tiny_sdxl}
PROMPTS = ["a red circle", "a circle a red"]


def load(kind: type, folder: str, **options: Any) -> Any:
    own = {"max_sequence_length": 24, **options} if kind is SD3 else options
    return kind(folder, **own)


def velocity(model: DiffusersModel, network: nn.Module | None = None) -> Tensor:
    """Of the two prompts, from fixed noise at two levels."""
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return model.velocity(network or model.network, x, torch.tensor([0.3, 0.8]), model.encode(PROMPTS))


def gradient(model: DiffusersModel) -> Tensor:
    """Of the mean square of ``velocity``, for all weights in a row."""
    model.network.requires_grad_(True)
    model.network.zero_grad()
    velocity(model).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors are the same but for rounding, measured by the larger numbers in them."""
    return torch.allclose(a, b, atol=tolerance * b.abs().max().item(), rtol=0)
