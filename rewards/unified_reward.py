"""UnifiedReward (arXiv 2503.05236), a vision-language model tuned to grade pictures, over an OpenAI-compatible server: 1 to 5.

Serve one of the published models (``vllm serve CodeGoat24/UnifiedReward-2.0-qwen-7b --served-model-name UnifiedReward``). Its
instruction is part of the model, and there are three (github CodeGoat24/UnifiedReward):

* ``score``, of its SGLang example and Flow-GRPO: the number after "Final Score:". For the LLaVA models, whose text starts with ``<image>``.
* ``elements``, of its Qwen example: the same after a list of what the picture shows.
* ``axes``, of version 2.0: the mean of alignment, coherence and style, or of those chosen (the mean is ours).

An answer without a number, or with one off the scale, is NaN; public trainers make it 0, which makes a stumbling judge a bad picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from genrl.pixels import to_pil
from genrl.reward import About, RewardError
from genrl.rewards._openai import Answer, ChatClient, picture, text

LOW, HIGH = 1.0, 5.0
AXES = ("alignment", "coherence", "style")

_CRITERIA = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image based on two key "
    "criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy of depicted "
    "objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color accuracy, and "
    "overall aesthetic appeal.\n"
)
_TASK = "Your task is provided as follows:\nText Caption: [{prompt}]"
FORMS = {
    "score": f"<image>\n{_CRITERIA}Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n{_TASK}",
    "elements": (
        f"{_CRITERIA}Extract key elements from the provided text caption, evaluate their presence in the generated image using the format: "
        "'element (type): value' (where value=0 means not generated, and value=1 means generated), and assign a score from 1 to 5 after "
        f"'Final Score:'.\n{_TASK}"
    ),
    "axes": (
        "You are presented with a generated image and its associated text caption. Your task is to analyze the image across multiple "
        "dimensions in relation to the caption. Specifically:\n"
        "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
        "- Alignment Score: How well the image matches the caption in terms of content.\n"
        "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
        "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
        "Output your evaluation using the format below:\n\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
        f"{_TASK}"
    ),
}


class UnifiedReward:
    """The model's final score, or the mean of its three; NaN where the answer cannot be read.

    Args:
        url, model, server: see ChatClient.
        form: the instruction.
        axes: those whose mean is the score, of form axes.
        size: pictures are squashed to so many pixels a side, bicubic; public trainers take 512. 0 leaves them as they are.

    Raises:
        RewardError: an unknown form or axis.
    """

    about = About(
        bounds=(LOW, HIGH),
        scale=HIGH,
        weights=("CodeGoat24/UnifiedReward-7b-v1.5", "CodeGoat24/UnifiedReward-qwen-7b", "CodeGoat24/UnifiedReward-2.0-qwen-7b"),
        license="MIT",
        packages=("requests",),
        source="arXiv 2503.05236, github CodeGoat24/UnifiedReward",
    )

    def __init__(
        self,
        url: str,
        model: str = "UnifiedReward",
        form: Literal["score", "elements", "axes"] = "score",
        axes: Sequence[str] = AXES,
        size: int = 512,
        **server: Any,
    ):
        if form not in FORMS:
            raise RewardError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        if not axes or not set(axes) <= set(AXES):
            raise RewardError(f"axes must be some of {', '.join(AXES)}; got {list(axes)}")
        self.client, self.form, self.size = ChatClient(url, model, **server), form, size
        titles = [f"{axis.capitalize()} Score (1-5):" for axis in axes] if form == "axes" else ["Final Score:"]
        self.patterns = [re.compile(rf"{re.escape(title)}\s*(-?\d+(?:\.\d+)?)") for title in titles]

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        pictures = [image.resize((self.size, self.size)) if self.size else image for image in to_pil(images)]
        questions = [
            [picture(image), text(FORMS[self.form].replace("{prompt}", prompt))] for image, prompt in zip(pictures, prompts, strict=True)
        ]
        return self.client.score(questions, self.read, max_tokens=4096)

    def read(self, answer: Answer) -> float:
        """The mean of the numbers an answer must give; NaN if one is missing or off the scale."""
        found = [pattern.search(answer.text) for pattern in self.patterns]
        numbers = [float(match[1]) if match else math.nan for match in found]
        return sum(numbers) / len(numbers) if all(LOW <= number <= HIGH for number in numbers) else math.nan
