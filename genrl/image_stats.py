"""Statistics of pictures that need no model: what an over-optimised generator moves first.

Each maps images ``[B, 3, H, W]`` in [0, 1], at least two pixels high and wide, to one number per picture. Luma is Rec. 601's
``.299 R + .587 G + .114 B``. All but ``dark`` and ``flat``, which count pixels, carry a gradient; a standard deviation counts as
at least 1e-6, where its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "b 3 h w"]
PerPicture = Float[Tensor, "b"]

DARK = 0.1  # luma below it is dark (ours)
FLAT = 1.5 / 255  # neighbours that differ by at most one level of 8 bits are alike (ours)


def luma(images: Images) -> Float[Tensor, "b h w"]:
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype)
    return torch.einsum("bchw,c->bhw", images, weights)


def brightness(images: Images) -> PerPicture:
    """Mean luma, 0 to 1."""
    return luma(images).mean((1, 2))


def contrast(images: Images) -> PerPicture:
    """Standard deviation of the luma, 0 to .5."""
    return _root(luma(images).var((1, 2), correction=0))


def saturation(images: Images) -> PerPicture:
    """Mean saturation of HSV, ``(max - min) / max`` over the channels, 0 to 1; black has none."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp_min(1e-6)).mean((1, 2))


def colourfulness(images: Images) -> PerPicture:
    """Hasler & Suesstrunk (2003), on their scale of 8-bit values: 0 is grey, 15 slight, 45 average, above 109 extreme.

    With ``rg = R - G`` and ``yb = (R + G) / 2 - B``: ``sqrt(var rg + var yb) + .3 sqrt(mean(rg)^2 + mean(yb)^2)``.
    """
    red, green, blue = (images * 255).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = _root(rg.var((1, 2), correction=0) + yb.var((1, 2), correction=0))
    return spread + 0.3 * _root(rg.mean((1, 2)).square() + yb.mean((1, 2)).square())


def sharpness(images: Images) -> PerPicture:
    """Variance of the Laplacian (four neighbours, borders mirrored) of the luma, on the scale of 8-bit values as OpenCV has it."""
    grey = F.pad(luma(images * 255)[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * grey[:, 1:-1, 1:-1]).var((1, 2), correction=0)


def high_frequency(images: Images) -> PerPicture:
    """Share of the luma's spectral energy, its mean left out, above half of Nyquist (.25 cycles a pixel), 0 to 1; 0 where it is constant.

    No window: what differs between opposite borders counts as an edge.
    """
    grey = luma(images)
    energy = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square()
    down, across = (torch.fft.fftfreq(n, device=images.device) for n in grey.shape[1:])
    high = down[:, None].square() + across.square() > 0.25**2
    # a millionth of a level in every pixel: rounding of a constant picture must not count
    floor = (1e-6 * grey[0].numel()) ** 2
    return (energy * high).sum((1, 2)) / energy.sum((1, 2)).clamp_min(floor)


def dark(images: Images) -> PerPicture:
    """Share of pixels with a luma below .1, 0 to 1. No gradient."""
    return (luma(images) < DARK).to(images.dtype).mean((1, 2))


def flat(images: Images) -> PerPicture:
    """Share of pixels whose luma differs from the right and the lower neighbour's by at most one level of 255, 0 to 1. No gradient."""
    grey = luma(images)
    here = grey[:, :-1, :-1]
    step = torch.maximum((grey[:, 1:, :-1] - here).abs(), (grey[:, :-1, 1:] - here).abs())
    return (step < FLAT).to(images.dtype).mean((1, 2))


def _root(squared: Tensor) -> Tensor:
    # the gradient of a root is infinite at 0, and NaN after the chain rule
    return squared.clamp_min(1e-12).sqrt()


STATS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "colourfulness": colourfulness,
    "sharpness": sharpness,
    "high_frequency": high_frequency,
    "dark": dark,
    "flat": flat,
}


def image_stats(images: Images) -> dict[str, Tensor]:
    """Every statistic by name, each ``[B]``."""
    return {name: stat(images) for name, stat in STATS.items()}
