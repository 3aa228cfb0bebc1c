"""Size of the picture as JPEG: the reward of DDPO (arXiv 2305.13301) that needs no model. Small is easy to compress."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.pixels import to_pil
from genrl.reward import About


class JpegSize:
    """Minus the size in kB (1000 bytes) at quality 95, without chroma subsampling; with ``grow`` plus the size ("incompressibility").

    At 512 x 512 between -8 (one colour) and -634 (white noise). DDPO leaves subsampling to its library; here it is off, so that fine
    colour counts as much as fine brightness. Bytes depend a little on the JPEG library that Pillow was built with.

    Args:
        grow: large is good.
    """

    about = About(reads_prompt=False, scale=500.0, source="arXiv 2305.13301")

    def __init__(self, grow: bool = False):
        self.sign = 1.0 if grow else -1.0

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        sizes = []
        for picture in to_pil(images):
            buffer = io.BytesIO()
            picture.save(buffer, format="JPEG", quality=95, subsampling=0)
            sizes.append(self.sign * buffer.tell() / 1000)
        return sizes
