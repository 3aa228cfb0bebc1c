"""Likeness to a reference picture: LPIPS (arXiv 1801.03924) and DINOv2 (arXiv 2304.07193)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.pixels import IMAGENET_MEAN, IMAGENET_STD, PromptMemory, best_device, from_pil, normalise, resize, shortest_side
from genrl.reward import About, RewardError
from genrl.rewards.clip_score import complete, float_type, loading


def read_reference(path: str) -> Tensor:
    """The picture at a path as ``[1, 3, H, W]``."""
    try:
        with Image.open(path) as picture:
            return from_pil([picture])
    except OSError as error:
        raise RewardError(f"the reference picture {path!r} in a prompt's metadata cannot be read: {error}") from error


class LpipsSimilarity:
    """Minus the LPIPS distance (v0.1) to the picture at metadata's ``reference``: 0 for the same, about -.7 for unrelated ones.

    The reference takes the size of the images (bicubic), whatever its shape; at least 32 x 32. Relative paths start at
    the working directory. Differentiable.

    Args:
        net: ``alex`` (the authors' choice for judging), ``vgg`` or ``squeeze``; its ImageNet weights come from torchvision.
        device: ``auto`` is this process's GPU, or the CPU.
    """

    about = About(
        metadata=("reference",),
        reads_prompt=False,
        differentiable=True,
        license="heads BSD-2-Clause, backbone BSD-3-Clause",
        source="arXiv 1801.03924",
    )

    def __init__(self, net: str = "alex", device: str = "auto"):
        if net not in ("alex", "vgg", "squeeze"):
            raise RewardError(f"net must be alex, vgg or squeeze; got {net!r}")
        try:
            import lpips

            # use_dropout stays on, and eval mode disables it: without it lpips loads its heads under other names and leaves them random
            network = lpips.LPIPS(net=net, verbose=False)
        except Exception as error:
            raise RewardError(
                f"LPIPS {net!r} could not be made ready: {type(error).__name__}: {error}. Its backbone comes from torchvision; without a "
                f"network put that file into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self._use(network, device)

    @classmethod
    def of(cls, network: nn.Module, device: str = "auto") -> LpipsSimilarity:
        """The same with a ready ``lpips.LPIPS``."""
        made = cls.__new__(cls)
        made._use(network, device)
        return made

    def _use(self, network: nn.Module, device: str) -> None:
        self.device = best_device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        paths = [str(given["reference"]) for given in metadata]
        read = {path: resize(read_reference(path), *images.shape[-2:]) for path in dict.fromkeys(paths)}
        references = torch.cat([read[path] for path in paths]).to(self.device)
        return -self.network(images.to(self.device).float(), references, normalize=True).flatten()


class DinoSimilarity:
    """Cosine of DINOv2's class tokens, of the picture and the one at metadata's ``reference``, in [-1, 1].

    As published: shortest side 256 (bicubic), the middle 224 x 224, the token behind the last layer norm. Each reference is encoded
    once. Relative paths start at the working directory. Differentiable.

    Args:
        model: hub id or folder of a DINOv2 of transformers.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the network computes in; cosines are float32.
    """

    about = About(
        metadata=("reference",),
        reads_prompt=False,
        differentiable=True,
        bounds=(-1.0, 1.0),
        weights=("facebook/dinov2-base",),
        license="Apache-2.0",
        source="arXiv 2304.07193",
    )

    def __init__(self, model: str = "facebook/dinov2-base", device: str = "auto", dtype: str = "float32"):
        self.device, self.dtype = best_device(device), float_type(dtype)
        with loading(model):
            from transformers import Dinov2Model

            loaded: Any = Dinov2Model.from_pretrained(model, dtype=self.dtype, output_loading_info=True)
            network, report = loaded
            complete(report["missing_keys"])
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self.references = PromptMemory(lambda paths: torch.cat([self.features(read_reference(path)) for path in paths]))

    def features(self, images: Tensor) -> Tensor:
        """Unit class tokens ``[B, D]``."""
        edge = (256 - 224) // 2
        middle = shortest_side(images.to(self.device), 256)[..., edge:-edge, edge:-edge]
        pixels = normalise(middle, IMAGENET_MEAN, IMAGENET_STD).to(self.dtype)
        return F.normalize(self.network(pixel_values=pixels).pooler_output.float(), dim=-1)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return (self.features(images) * self.references([str(given["reference"]) for given in metadata])).sum(-1)
