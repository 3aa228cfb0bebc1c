"""CLIPScore, the cosine of picture and prompt in a CLIP model (without the published factor 2.5), and PickScore beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipScore:
    """Cosine in [-1, 1]; 0.15 to 0.35 for the default model. Differentiable in the pixels.

    Args:
        model: hub id or folder of a CLIP model with its tokenizer.
        device: where it runs.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14", device: str = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        self.model: Any = CLIPModel.from_pretrained(model).to(device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.device = device

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        size = self.model.config.vision_config.image_size
        picture = self.model.get_image_features(pixel_values=preprocess(images.to(self.device), size))
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
            self.device
        )
        text = self.model.get_text_features(**tokens)
        return F.cosine_similarity(_embedding(picture).float(), _embedding(text).float())


def preprocess(images: Tensor, size: int) -> Tensor:
    """CLIP's: shortest side to ``size`` (bicubic, antialiased), centre crop, normalise."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    images = F.interpolate(images, (round(height * scale), round(width * scale)), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    images = images[..., top : top + size, left : left + size]
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def _embedding(output: Any) -> Tensor:
    """transformers 5 wraps the projected embedding."""
    return output if isinstance(output, Tensor) else output.pooler_output


class PickScore:
    """PickScore (arXiv 2305.01569), a CLIP ViT-H/14 trained on people's choices between two pictures of one prompt:
    ``exp(logit_scale) * cosine``, about 18 to 24. Public trainers divide it by 26 (``weight: 0.0385``).

    Args:
        model: hub id or folder of the weights with their tokenizer.
        device: where it runs.
    """

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1", device: str = "cpu"):
        self.clip = ClipScore(model, device)
        self.scale = self.clip.model.logit_scale.exp().item()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.scale * self.clip(images, prompts, metadata)
