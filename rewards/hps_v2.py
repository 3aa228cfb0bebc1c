"""Human Preference Score v2 and v2.1 (arXiv 2306.09341): a CLIP ViT-H/14 trained on people's rankings, HPDv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.pixels import longest_side
from genrl.reward import About, RewardError
from genrl.rewards.clip_score import OpenClip, weights_file

FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HpsV2:
    """Cosine of picture and prompt, in [-1, 1], without the model's logit scale. Differentiable.

    Averages over the published benchmark are 0.235 to 0.279 for v2 and 0.145 to 0.313 for v2.1 (printed there times 100). Unlike its
    relatives it resizes the *longest* side to 224 and fills up with black before normalising, so nothing is cut off. The published
    code resizes float tensors; here pictures without a gradient pass through 8 bits like everywhere else (under one level of 255 in the
    smooth, up to 12 at hard edges). It also multiplies in half precision; here the towers compute in ``dtype``, the product in float32.

    Args:
        model: hub id, a folder with the published file, or the checkpoint itself.
        version: ``v2`` or ``v2.1``: which file of the hub or folder; not read where ``model`` is a checkpoint.
        architecture: name of the open_clip configuration.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the towers compute in.
    """

    about = About(
        differentiable=True,
        bounds=(-1.0, 1.0),
        weights=("xswu/HPSv2",),
        license="Apache-2.0",
        source="arXiv 2306.09341",
    )

    def __init__(
        self,
        model: str = "xswu/HPSv2",
        version: str = "v2.1",
        architecture: str = "ViT-H-14",
        device: str = "auto",
        dtype: str = "float32",
    ):
        if version not in FILES:
            raise RewardError(f"version must be one of {', '.join(FILES)}; got {version!r}")
        path = weights_file(model, FILES[version])
        self.clip = OpenClip(f"{architecture}/{path}", device, dtype, geometry=longest_side)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.clip.cosine(images, prompts)
