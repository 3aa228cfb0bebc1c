"""What pictures become before sets of them are compared: features of frozen networks, and LPIPS between the pictures of a prompt.

=============  =================================================================================  =====
name           network                                                                            width
=============  =================================================================================  =====
``clip``       CLIP ViT-L/14 (openai/clip-vit-large-patch14), projected                           768
``clip_336``   the same at 336 pixels, what CMMD (arXiv 2401.09603) is defined on                 768
``dinov2``     DINOv2 ViT-L/14 (facebook/dinov2-large), class token: FD-DINOv2 (arXiv 2306.04675) 1024
``inception``  Inception v3 as TensorFlow had it, of torch-fidelity: FID, KID, PRDC               2048
``inception_patch``  the same of the middle 299 x 299, not resized: patch-FID                     2048
``shapes``     the five proxies of the shapes world side by side; ships inside                    160
=============  =================================================================================  =====

Each resizes with antialiasing as its authors do. A ``name:source`` takes other weights of that architecture: ``clip:/models/my-clip``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genrl.models._source import ModelError
from genrl.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, best_device, normalise, shortest_side, to_bytes

Extractor = Callable[[Tensor], Tensor]
"""Images ``[B, 3, H, W]`` in [0, 1] to features ``[B, D]`` float32 on the CPU."""

PATCH = 299


def extractor(name: str, device: str = "auto") -> Extractor:
    """A feature extractor by name.

    Raises:
        ModelError: an unknown name, or weights that cannot be had.
    """
    check_name(name)
    kind, _, source = name.partition(":")
    try:
        return EXTRACTORS[kind](source, best_device(device))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"the network behind the features {name!r} could not be made ready: {error}") from error


def check_name(name: str) -> None:
    """Raise ``ModelError`` for the name of no extractor; loads nothing."""
    kind = name.partition(":")[0]
    if kind not in EXTRACTORS:
        near = difflib.get_close_matches(kind, EXTRACTORS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(EXTRACTORS)}"
        raise ModelError(f"no features named {name!r}; {hint}")


def _clip(source: str, device: str, default: str = "openai/clip-vit-large-patch14") -> Extractor:
    from transformers import CLIPModel

    # the class of its vision tower alone cannot tell a projection's width from a whole model's configuration
    whole: Any = CLIPModel.from_pretrained(source or default)
    tower, projection = whole.vision_model.to(device).eval(), whole.visual_projection.to(device)
    side = whole.config.vision_config.image_size

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        pixels = normalise(shortest_side(images.to(device), side), CLIP_MEAN, CLIP_STD)
        return projection(tower(pixel_values=pixels).pooler_output).float().cpu()

    return features


def _clip_336(source: str, device: str) -> Extractor:
    return _clip(source, device, "openai/clip-vit-large-patch14-336")


def _dinov2(source: str, device: str) -> Extractor:
    from transformers import Dinov2Model

    network: Any = Dinov2Model.from_pretrained(source or "facebook/dinov2-large").to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        # as published: the shortest side to 256, the middle 224
        middle = shortest_side(images.to(device), 256)[..., 16:-16, 16:-16]
        return network(pixel_values=normalise(middle, IMAGENET_MEAN, IMAGENET_STD)).pooler_output.float().cpu()

    return features


def _inception(source: str, device: str, crop: bool = False) -> Extractor:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ModelError(f"Inception's features come from torch-fidelity: pip install 'genrl-image[fid]' ({error})") from error
    made = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=source or None)
    network: Any = made.to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        # it resizes by itself, as TensorFlow did
        pixels = middle_crop(images, PATCH) if crop else images
        return network(to_bytes(pixels).to(device))[0].float().cpu()

    return features


def _inception_patch(source: str, device: str) -> Extractor:
    return _inception(source, device, crop=True)


def _shapes(source: str, device: str) -> Extractor:
    # worlds stand beside models in the table of imports: each knows the other by name only
    from importlib import import_module

    proxies = import_module("genrl.worlds.shapes.proxies")
    models = [proxies.load_proxy(member) for member in range(proxies.MEMBERS)]

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        small = images if images.shape[-2:] == (64, 64) else shortest_side(images, 64)
        return torch.cat([model.image_features(small) for model in models], dim=-1).float().cpu()

    return features


EXTRACTORS: dict[str, Callable[[str, str], Extractor]] = {
    "clip": _clip,
    "clip_336": _clip_336,
    "dinov2": _dinov2,
    "inception": _inception,
    "inception_patch": _inception_patch,
    "shapes": _shapes,
}


def middle_crop(images: Tensor, side: int) -> Tensor:
    """The middle ``side x side`` pixels as they are.

    Raises:
        ModelError: the images are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise ModelError(f"a patch of {side} pixels does not fit into images of {height}x{width}")
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


class Lpips:
    """Mean LPIPS distance (arXiv 1801.03924, v0.1) over the pairs of a prompt's pictures.

    Args:
        net: ``alex``, ``vgg`` or ``squeeze``; its ImageNet weights come from torchvision. network: a ready ``lpips.LPIPS`` instead.

    Raises:
        ModelError: the backbone's weights cannot be had.
    """

    def __init__(self, net: str = "alex", device: str = "auto", network: Any = None):
        self.device = best_device(device)
        if network is None:
            try:
                import lpips

                # use_dropout stays on: without it lpips loads its heads under other names and leaves them random
                network = lpips.LPIPS(net=net, verbose=False)
            except Exception as error:
                raise ModelError(
                    f"LPIPS {net!r} could not be made ready: {error}. Its backbone comes from torchvision; without a network put that "
                    f"file into {torch.hub.get_dir()}/checkpoints"
                ) from error
        self.network = network.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> float:
        """Of ``[N, 3, H, W]``; NaN for a single image. Images of fewer than 64 pixels a side are enlarged to that."""
        if len(images) < 2:
            return float("nan")
        if min(images.shape[-2:]) < 64:
            images = F.interpolate(images, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        first, second = zip(*combinations(range(len(images)), 2), strict=True)
        pixels = images.to(self.device).float()
        distances = [
            self.network(pixels[list(first[i : i + 16])], pixels[list(second[i : i + 16])], normalize=True).flatten()
            for i in range(0, len(first), 16)
        ]
        return float(torch.cat(distances).mean())
