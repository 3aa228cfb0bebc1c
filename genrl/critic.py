"""Value networks on noisy latents: what reward is to be expected from ``(x_sigma, sigma, prompt)``.

Form after secondary descriptions of AC-Flow ("lightweight critic: MLP layers with layer normalisation, and CNNs"); sizes
are ours. The last layer starts at zero, so that an untrained critic predicts 0: the advantage is then the shaped reward.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F


def sigma_features(sigma: Float[Tensor, " b"], width: int) -> Float[Tensor, "b w"]:
    """Sinusoidal features of the noise level, frequencies 1 to 1000, ``[B, width]``."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=sigma.device))
    angles = sigma.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _Block(nn.Module):
    """Residual 3x3 convolution that halves the map, modulated by the embedding of noise level and prompt."""

    def __init__(self, inner: int, outer: int, embedding: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, inner)
        self.film = nn.Linear(embedding, 2 * inner)
        self.first = nn.Conv2d(inner, outer, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, bias = self.film(e)[:, :, None, None].chunk(2, dim=1)
        inside = self.second(F.silu(self.first(F.silu(self.norm(h) * (1 + scale) + bias))))
        return inside + self.skip(F.avg_pool2d(h, 2, ceil_mode=True))


class ValueNet(nn.Module):
    """``V(x_sigma, sigma, prompt)``: strided residual convolutions with FiLM, pooled to 2 x 2, an MLP with layer normalisation.

    Pooling keeps four quarters apart: a critic that averages over the whole map cannot tell left from right. The prompt
    embedding is normalised first, for models differ in its scale by orders of magnitude.

    Args:
        channels: latent channels C.
        pooled: width P of the pooled prompt embedding.
        width: channels of the first block; the following ones have twice as many.
        depth: number of blocks, each halving the latent map.
        endpoint: also look at the reference's one-step endpoint ``x - sigma v_ref`` (ours; it makes the value at high
            noise far easier, and the W2 term has computed it already).
    """

    def __init__(self, channels: int, pooled: int, width: int = 64, depth: int = 2, endpoint: bool = True):
        super().__init__()
        self.shape = {"channels": channels, "pooled": pooled, "width": width, "depth": depth, "endpoint": endpoint}
        self.endpoint = endpoint
        self.sigma_width = 64
        embedding = 2 * width
        self.prompt_norm = nn.LayerNorm(pooled, elementwise_affine=False)
        self.embed = nn.Sequential(
            nn.Linear(self.sigma_width + pooled, embedding), nn.LayerNorm(embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d(channels * (2 if endpoint else 1), width, 3, padding=1)
        widths = [width] + [2 * width] * depth
        self.blocks = nn.ModuleList(_Block(a, b, embedding) for a, b in itertools.pairwise(widths))
        self.norm = nn.GroupNorm(8, widths[-1])
        joined = 4 * widths[-1] + embedding
        last = nn.Linear(embedding, 1)
        self.head = nn.Sequential(nn.Linear(joined, embedding), nn.LayerNorm(embedding), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        pooled: Float[Tensor, "b p"],
        endpoint: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Values ``[B]`` in units of the shaped reward; ``endpoint`` is required if the network was built for it."""
        if self.endpoint:
            if endpoint is None:
                raise ValueError("this critic was built with endpoint=True and needs the endpoint x - sigma v_ref")
            x = torch.cat([x, endpoint], dim=1)
        e = self.embed(torch.cat([sigma_features(sigma, self.sigma_width), self.prompt_norm(pooled.float())], dim=-1))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, e)
        quarters = F.adaptive_avg_pool2d(F.silu(self.norm(h)), 2).flatten(1)
        return self.head(torch.cat([quarters, e], dim=-1)).squeeze(-1)


def save_value(network: ValueNet, path: Path, **facts: str) -> None:
    """Write a value network as safetensors that says how to build it; ``facts`` go into its header."""
    header = {**facts, "shape": json.dumps(network.shape)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, path, metadata=header)


def load_value(path: Path) -> ValueNet:
    """A value network from its file, frozen, float32.

    Raises:
        ValueError: no such file, or one that ``save_value`` has not written.
    """
    if not path.is_file():
        raise ValueError(f"no value network {str(path)!r}; give a file that a trainer has written")
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if "shape" not in header:
            raise ValueError(f"{str(path)!r} does not say what network it holds; give a file that a trainer has written")
        network = ValueNet(**json.loads(header["shape"]))
        network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return network.requires_grad_(False).eval()
