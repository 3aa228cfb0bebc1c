"""PickScore (arXiv 2305.01569): a CLIP ViT-H/14 trained on which of two pictures people picked for a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.reward import About
from genrl.rewards.clip_score import HubClip


class PickScore:
    """``exp(logit_scale) * cosine``, about 18 to 24; base models 20 to 22.5. Public trainers divide it by 26. Differentiable.

    The difference of two scores is the logit of the one being picked. ``logit_scale`` is clipped to a factor of 100 in CLIP, hence the
    bounds. The weights have no licence tag.

    Args:
        model: hub id or folder of the weights.
        processor: hub id or folder of the tokenizer, which lies elsewhere.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the towers compute in; the score is float32, for bfloat16 has steps of 0.125 at 22.
    """

    about = About(
        differentiable=True,
        bounds=(-100.0, 100.0),
        scale=26.0,
        weights=("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        license="code MIT; the weights' card names none",
        source="arXiv 2305.01569",
    )

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        device: str = "auto",
        dtype: str = "float32",
    ):
        self.clip = HubClip(model, processor, device, dtype, legacy_eos=True)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.clip.scale * self.clip.cosine(images, prompts)
