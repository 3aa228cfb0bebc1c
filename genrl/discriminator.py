"""Discriminators: trainable heads on the maps of something frozen, a vision encoder on pixels or the fake network on latents.

Pixels after Flash-DMD (arXiv 2511.20549), which names a frozen SAM encoder, several of its levels, and "heads following ADM"; the head
is ADM's as secondary descriptions have it. Latents after DMD2 (arXiv 2405.14867). How far a map is halved before it is pooled is ours,
for the papers have one size of map and this library has many; so is the last layer's start. The losses are in
``genrl.losses.adversarial``: a logit above 0 means real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

GROUP = 8
"""Channels a normalisation group: ADM's 32 groups at its width of 256, and never single channels at smaller ones."""


@runtime_checkable
class Backbone(Protocol):
    """A frozen encoder of images ``[B, 3, H, W]`` in [0, 1] into one map ``[B, widths[i], h, w]`` per tap; differentiable in the pixels.

    ``sizes[i]`` is the shorter side of map i; it decides how deep the head on it is. ``genrl.models.backbones`` has some.
    """

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


def halvings(side: int, floor: int) -> int:
    """How often, three times at most, a map can be halved without falling below ``floor``."""
    return min(3, int(math.log2(max(side / floor, 1))))


def _convolved(inner: int, outer: int, kernel: int, stride: int) -> list[nn.Module]:
    if outer % GROUP:
        raise ValueError(f"a discriminator's width is a multiple of {GROUP}; got {outer}")
    return [nn.Conv2d(inner, outer, kernel, stride, padding=1), nn.GroupNorm(outer // GROUP, outer), nn.SiLU()]


def _started_small(last: nn.Linear | nn.Conv2d) -> nn.Module:
    # near 0, an untrained discriminator favours nobody; at 0 exactly, nothing but this layer would get a gradient
    nn.init.normal_(last.weight, std=0.01)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return last


def _head(inner: int, side: int, width: int) -> nn.Sequential:
    """ADM's head: up to three times [conv 4x4 by 2, GN, SiLU] and not below 4 x 4, conv 3x3, GN, SiLU, mean over the map, linear."""
    depth = halvings(side, 4)
    layers: list[nn.Module] = []
    for level in range(depth):
        layers += _convolved(inner if level == 0 else width, width, 4, 2)
    layers += _convolved(width if depth else inner, width, 3, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), _started_small(nn.Linear(width, 1)))


class PixelDiscriminator(nn.Module):
    """Logits of images: the mean over one head per tap of a frozen backbone. It sees no prompt.

    The backbone follows this module from device to device and is otherwise none of it: neither parameters, buffers nor state
    contain it, so that an optimiser cannot train it and a checkpoint does not keep it. The heads are float32, whatever it is.

    Args:
        backbone: see ``Backbone``.
        width: channels of the heads, a multiple of 8.

    Raises:
        ValueError: another width.
    """

    def __init__(self, backbone: Backbone, width: int = 256):
        super().__init__()
        self._hidden = (backbone,)  # in a tuple, where nn.Module does not look
        self.heads = nn.ModuleList(_head(c, side, width) for c, side in zip(backbone.widths, backbone.sizes, strict=True))

    @property
    def backbone(self) -> Backbone:
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if isinstance(self.backbone, nn.Module):
            self.backbone.to(next(self.parameters()).device)  # its dtype stays its own
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Logits ``[B]`` of images in [0, 1]; a positive one means real."""
        logits = [head(taken.float()) for head, taken in zip(self.heads, self.backbone(images), strict=True)]
        return torch.cat(logits, dim=1).mean(1)


class LatentHead(nn.Module):
    """DMD2's classifier on inner features of the fake network: [conv 4x4 by 2, GN, SiLU], 1x1, mean over the map.

    DMD2 halves SDXL's 32 x 32 three times and crosses the last 4 x 4 with one more convolution; here every place that is left gives a
    logit and they are averaged (ours), so that a map of any size will do. It is not halved below 2 x 2: one of 4 x 4 is halved once.

    Args:
        width_in: channels of the features, ``feature_width`` of a model.
        side: shorter side of the map; a map may be larger than that, not smaller.
        width: channels inside, a multiple of 8.

    Raises:
        ValueError: another width.
    """

    def __init__(self, width_in: int, side: int = 32, width: int = 256):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings(side, 2)):
            layers += _convolved(width_in, width, 4, 2)
            width_in = width
        self.layers = nn.Sequential(*layers, _started_small(nn.Conv2d(width_in, 1, 1)))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Logits ``[B]`` of feature maps; a positive one means real."""
        return self.layers(features.float()).flatten(1).mean(1)
