"""LAION aesthetic predictor v2 (github.com/christophschuhmann/improved-aesthetic-predictor): how people rate such a picture, 1 to 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrl.reward import About, RewardError
from genrl.rewards.clip_score import HubClip, loading, read_weights, weights_file


class Aesthetic:
    """Predicted mean rating on a scale of 1 to 10; pictures lie at 4.5 to 7. Reads no prompt. Differentiable.

    Five linear layers on the unit embedding of CLIP ViT-L/14, without any non-linearity between them: here they are multiplied out
    into one affine map of 769 numbers, equal up to rounding. That is also why the score is easily hacked: a single direction
    in CLIP's space earns it.

    Args:
        model: hub id or folder of the CLIP model; its picture tower alone is kept.
        head: ``sac+logos+ava1-l14-linearMSE.pth`` or a copy (.pth or .safetensors), or a folder or hub id with ``aesthetic-model.pth``.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the tower computes in; the affine map is float32.
    """

    about = About(
        reads_prompt=False,
        differentiable=True,
        weights=("openai/clip-vit-large-patch14", "trl-lib/ddpo-aesthetic-predictor"),
        license="head Apache-2.0, CLIP MIT",
        source="https://github.com/christophschuhmann/improved-aesthetic-predictor",
    )

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        device: str = "auto",
        dtype: str = "float32",
    ):
        # the small file first: what is wrong with it is said before a large download
        path = weights_file(head, "aesthetic-model.pth")
        with loading(str(path)):
            weight, bias = folded(read_weights(path))
        self.clip = HubClip(model, device=device, dtype=dtype, text=False)
        wide = self.clip.network.config.projection_dim
        if wide != len(weight):
            raise RewardError(f"the head reads embeddings of {len(weight)} numbers, the CLIP model {model!r} has {wide}")
        self.weight, self.bias = weight.to(self.clip.device), bias.to(self.clip.device)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.clip.pictures(images) @ self.weight + self.bias


def folded(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A chain of linear layers ``layers.<n>.weight|bias`` as one: weights ``[D]`` and bias, float32.

    ``W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)``, multiplied in float64.
    """
    numbers = sorted({int(key.split(".")[-2]) for key in state if key.endswith(".weight")})
    prefix = next((key.rpartition("layers.")[0] for key in state), "")
    if not numbers:
        raise RewardError(f"no linear layers in it, but {', '.join(list(state)[:3])}")
    layers = [tuple(state[f"{prefix}layers.{n}.{part}"].double() for part in ("weight", "bias")) for n in numbers]
    weight, bias = layers[0]
    for w, b in layers[1:]:
        weight, bias = w @ weight, w @ bias + b
    if len(weight) != 1:
        raise RewardError(f"the last layer gives {len(weight)} numbers, not one score")
    return weight[0].to(torch.float32), bias[0].to(torch.float32)
