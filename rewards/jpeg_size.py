"""Size of the picture as JPEG: the reward of DDPO (arXiv 2305.13301) that needs no model. Small is easy to compress."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor


class JpegSize:
    """Minus the size in kB (1000 bytes) at quality 95; with ``grow`` plus the size ("incompressibility")."""

    def __init__(self, grow: bool = False):
        self.sign = 1.0 if grow else -1.0

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        sizes = []
        for pixels in (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
            sizes.append(self.sign * buffer.tell() / 1000)
        return sizes
