"""Does the picture say what it should? Text rendering by OCR, as Flow-GRPO (arXiv 2505.05470) rewards it, with another reader."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from genrl.pixels import to_pil
from genrl.reward import About, RewardError

QUOTED = re.compile('"([^"]*)"|“([^”]*)”')


class Ocr:
    """``1 - min(edit distance, n) / n`` of the text that is read and the target of n characters, 0 to 1.

    Both are lower-cased and lose their white space. The target is metadata's ``text``, else what stands between the prompt's first pair
    of double quotes; without either the score is NaN. A target that is contained in the text counts as exact, as published: a picture
    full of text may then earn 1, which ``strict`` or ``max_extra_chars`` prevent.

    Published with PaddleOCR 2.9.1; here PP-OCRv6 small in RapidOCR, whose wheel holds the models, so that nothing is downloaded. Lines read
    with a confidence below .5 are dropped (published: only those of 0), no angle classifier runs, as published. A
    recognition that fails is NaN with a warning (published: 0). Runs on the CPU.

    Args:
        strict: the full edit distance, without the rule for contained targets.
        max_extra_chars: characters beyond the target's length that a contained target may come with; each further one costs ``1 / n``.
    """

    about = About(
        bounds=(0.0, 1.0),
        license="Apache-2.0",
        packages=("rapidocr", "onnxruntime"),
        source="arXiv 2505.05470; reader: https://github.com/RapidAI/RapidOCR",
    )

    def __init__(self, strict: bool = False, max_extra_chars: int | None = None):
        if strict and max_extra_chars is not None:
            raise RewardError("strict counts every extra character already; leave out `strict` or `max_extra_chars`")
        self.strict, self.max_extra_chars = strict, max_extra_chars
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise RewardError(f"the OCR reward needs rapidocr and onnxruntime ({error}): pip install 'genrl-image[ocr]'") from error
        try:
            self.reader: Any = RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})
        except Exception as error:
            raise RewardError(
                f"RapidOCR could not be made ready: {type(error).__name__}: {error}. Its wheel holds the models: "
                "pip install --force-reinstall 'genrl-image[ocr]'"
            ) from error

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float | None]:
        targets = [plain(target(prompt, given)) for prompt, given in zip(prompts, metadata, strict=True)]
        return [self._score(picture, wanted) for picture, wanted in zip(to_pil(images), targets, strict=True)]

    def _score(self, picture: Image.Image, wanted: str) -> float | None:
        if not wanted:
            return None
        try:
            found = plain("".join(self.reader(picture).txts or ()))
        except Exception as error:
            warnings.warn(f"OCR failed, and its picture has no score: {type(error).__name__}: {error}", stacklevel=2)
            return None
        return similarity(found, wanted, self.strict, self.max_extra_chars)


def target(prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text that a prompt asks for; empty where it asks for none."""
    if metadata.get("text") is not None:
        return str(metadata["text"])
    quoted = QUOTED.search(prompt)
    return (quoted[1] or quoted[2] or "") if quoted else ""


def plain(text: str) -> str:
    return "".join(text.lower().split())


def similarity(found: str, wanted: str, strict: bool = False, max_extra_chars: int | None = None) -> float:
    """The score of plain texts; see ``Ocr``."""
    if not strict and wanted in found:
        extra = 0 if max_extra_chars is None else max(len(found) - len(wanted) - max_extra_chars, 0)
        return max(1 - extra / len(wanted), 0.0)
    return 1 - min(edit_distance(found, wanted), len(wanted)) / len(wanted)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein: the fewest insertions, deletions and substitutions that make ``b`` of ``a``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (x != y)))
    return row[-1]
