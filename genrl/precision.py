"""Which number format is used where: one record for a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Format = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Formats by place.

    Args:
        weights: frozen weights (what is trained is float32 always).
        compute: the network under autocast; fp32 is without.
        combine: the guided velocity.
        chain: a step's mean.
        storage: recorded states. The chain goes on from the rounded state, so a replay sees what sampling saw.

    Log-probabilities are float32 always: in 16 bits one of -1 resolves to .004, and ratios are clipped at 1e-4.
    """

    weights: Format = "fp32"
    compute: Format = "fp32"
    combine: Format = "fp32"
    chain: Format = "fp32"
    storage: Format = "fp32"

    def dtype(self, place: str) -> torch.dtype:
        return DTYPES[getattr(self, place)]
