"""Pictures as rewards want them: resized, cropped, padded, normalised; exact where scores are compared, differentiable where learned from.

Images are float ``[B, 3, H, W]`` in [0, 1]. Resizing is bicubic with antialiasing, as PIL does it. Without a gradient it goes through
8 bits, which equals PIL within a level or two of 255; a float path differs by up to 12 levels at hard edges (measured). Where the
images require a gradient the float path is taken, for bytes have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Images = Float[Tensor, "b 3 h w"]


def to_bytes(images: Images) -> Tensor:
    """What a PNG would hold: uint8 ``[B, 3, H, W]``."""
    if images.device.type == "cpu" and len(images):
        # picture by picture: the steps between stay in the cache, which makes it several times as fast
        return torch.stack([(image.clamp(0, 1) * 255).round().to(torch.uint8) for image in images])
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(images: Images) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in to_bytes(images.detach()).permute(0, 2, 3, 1).cpu().numpy()]


def from_pil(pictures: Sequence[Image.Image]) -> Images:
    """Pictures of one size to images."""
    return torch.stack([torch.from_numpy(np.array(as_rgb(p))).permute(2, 0, 1) for p in pictures]).float() / 255


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode, 8 bits a colour: PIL by itself cuts grey of 16 bits off at 255, which is white nearly everywhere."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def resize(images: Images, height: int, width: int) -> Images:
    """To a size, bicubic with antialiasing."""
    if images.shape[-2:] == (height, width):
        return images
    if torch.is_grad_enabled() and images.requires_grad:
        return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    small = F.interpolate(to_bytes(images).cpu(), (height, width), mode="bicubic", antialias=True)
    return small.to(images.device).float() / 255


def shortest_side(images: Images, size: int) -> Images:
    """Shortest side to ``size``, then the middle ``size x size``: CLIP's."""
    height, width = images.shape[-2:]
    short = min(height, width)
    # whole numbers: size / short * long may come out a hair below one, and lose a pixel
    images = resize(images, size * height // short, size * width // short)
    top, left = round((images.shape[-2] - size) / 2), round((images.shape[-1] - size) / 2)
    return images[..., top : top + size, left : left + size]


def longest_side(images: Images, size: int) -> Images:
    """Longest side to ``size``, the rest filled with black on both sides: HPSv2's."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    images = resize(images, round(height * scale), round(width * scale))
    down, right = size - images.shape[-2], size - images.shape[-1]
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalise(images: Images, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """``(images - mean) / std`` per channel."""
    m, s = (torch.tensor(v, device=images.device, dtype=images.dtype).view(3, 1, 1) for v in (mean, std))
    return (images - m) / s


def best_device(device: str = "auto") -> str:
    """``auto`` is this process's GPU, or the CPU without one."""
    if device != "auto":
        return device
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


class PromptMemory:
    """Remembers what a text encoder made of a prompt: a group has one prompt, and prompts come back each epoch.

    Args:
        encode: texts to ``[N, ...]``.
        size: prompts kept, the latest.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], size: int = 4096):
        self.encode, self.size = encode, size
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``[B, ...]``, row by row; each new prompt is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        if new:
            self.kept |= dict(zip(new, self.encode(new), strict=True))
        found = torch.stack([self.kept[prompt] for prompt in prompts])
        while len(self.kept) > self.size:
            del self.kept[next(iter(self.kept))]
        return found
