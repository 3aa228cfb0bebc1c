"""Any vision-language model as a judge, over an OpenAI-compatible server: ``VlmJudge`` scores a picture, ``VlmPreference`` compares two.

With ``mode: yes_probability`` the score is that of VQAScore (arXiv 2404.01291), in [0, 1]:

    P("yes") / (P("yes") + P("no"))         of the first token that answers 'Does this figure show "..."? Please answer yes or no.'

The paper takes P("Yes") of its own CLIP-FlanT5, not divided by the sum: a chat model also has mass on other words, which says nothing of
the picture (ours). Case and space variants of a word count together. With ``mode: grade`` the score is a number on a stated scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

from torch import Tensor

from genrl.pixels import to_pil
from genrl.reward import About, RewardError
from genrl.rewards._openai import Answer, ChatClient, picture, text

SHOWS = 'Does this figure show "{prompt}"? Please answer yes or no.'
GRADE = 'How well does this image show "{prompt}"? Grade it from {low} to {high}, {high} being the best. Answer with the number alone.'
BETTER = 'Which of these two images shows "{prompt}" better? Answer 1 for the first or 2 for the second, with the number alone.'
LIKELIEST = 20
"""Tokens asked for; servers allow no more by default."""


class VlmJudge:
    """What a vision-language model says of each picture, P(yes) or a grade; NaN where the model's answer cannot be read.

    In mode ``grade`` an answer counts if it holds one number, and that on the scale ("4", "Score: 4", "4/5", "3.5"). If it is one digit
    and log-probabilities came with it, the score is the expected grade under them at that place, over the digits of the scale: finer
    than the likeliest one, and at temperature 0 as repeatable.

    Args:
        url, model: see ChatClient, as for ``server``.
        question: ``{prompt}`` in it becomes the prompt, and in mode grade ``{low}`` and ``{high}`` the ends of the scale; SHOWS or GRADE
            if empty. In mode yes_probability it must ask for yes or no.
        mode: see above.
        grades: ends of the scale of mode grade.
        server: options of ChatClient.

    Raises:
        RewardError: a question that does not hold the prompt, or a scale that does not rise.
    """

    about = About(bounds=(0.0, 1.0), license="that of the model served", packages=("requests",), source="arXiv 2404.01291")

    def __init__(
        self,
        url: str,
        model: str,
        question: str = "",
        mode: Literal["yes_probability", "grade"] = "yes_probability",
        grades: tuple[int, int] = (1, 5),
        **server: Any,
    ):
        if mode not in ("yes_probability", "grade"):
            raise RewardError(f"mode must be yes_probability or grade; got {mode!r}")
        low, high = grades
        if not 0 <= low < high:
            raise RewardError(f"grades must rise from 0 or more; got {low} and {high}")
        self.client, self.mode, self.low, self.high = ChatClient(url, model, **server), mode, low, high
        self.question = asks(question or (SHOWS if mode == "yes_probability" else GRADE))
        if mode == "grade":
            self.question = self.question.replace("{low}", str(low)).replace("{high}", str(high))
            self.about = replace(self.about, bounds=(float(low), float(high)), scale=float(high), source="")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        questions = [
            [picture(image), text(self.question.replace("{prompt}", prompt))] for image, prompt in zip(to_pil(images), prompts, strict=True)
        ]
        if self.mode == "grade":
            return self.client.score(questions, self.grade, max_tokens=16, logprobs=True, top_logprobs=LIKELIEST)
        return self.client.score(questions, lambda a: a.odds("yes", "no"), max_tokens=1, logprobs=True, top_logprobs=LIKELIEST)

    def grade(self, answer: Answer) -> float:
        """The grade that an answer gives; NaN without one, or with several numbers."""
        said = re.sub(rf"(?<=\d)\s*(/|out of)\s*{self.high}(?![\d.]*\d)", "", answer.text)
        numbers = list(re.finditer(r"-?\d+(?:\.\d+)?", said))
        if len(numbers) != 1 or not self.low <= (grade := float(numbers[0][0])) <= self.high:
            return math.nan
        if self.high > 9 or len(numbers[0][0]) > 1:  # not one token in every vocabulary
            return grade
        ends = accumulate(len(token) for token in answer.tokens)
        place = next((k for k, end in enumerate(ends) if end > numbers[0].start()), len(answer.tokens))
        levels = range(self.low, self.high + 1)
        masses = answer.mass(place, [str(level) for level in levels])
        if not sum(masses):
            return grade
        return sum(level * mass for level, mass in zip(levels, masses, strict=True)) / sum(masses)


class VlmPreference:
    """The probability, by a vision-language model, that the first of two pictures shows the prompt better.

    ``P("1") / (P("1") + P("2"))`` of the first token of its answer; NaN where neither is among the likeliest. One order of the two is asked
    in a call: models favour a place, so ask the other one, too, as ``genrl.preference`` does.

    Args:
        url, model, server: see ChatClient.
        question: ``{prompt}`` in it becomes the prompt; it follows the pictures and must ask for 1 or 2. BETTER if empty.
    """

    about = About(kind="pairwise", bounds=(0.0, 1.0), license="that of the model served", packages=("requests",))

    def __init__(self, url: str, model: str, question: str = "", **server: Any):
        self.client, self.question = ChatClient(url, model, **server), asks(question or BETTER)

    def compare(self, first: Tensor, second: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        questions = [
            [text("Image 1:"), picture(one), text("Image 2:"), picture(two), text(self.question.replace("{prompt}", prompt))]
            for one, two, prompt in zip(to_pil(first), to_pil(second), prompts, strict=True)
        ]
        return self.client.score(questions, lambda a: a.odds("1", "2"), max_tokens=1, logprobs=True, top_logprobs=LIKELIEST)


def asks(question: str) -> str:
    """The question, if it holds the prompt."""
    if "{prompt}" not in question:
        raise RewardError(f"a question to a judge must hold {{prompt}}, which becomes the picture's prompt; got {question!r}")
    return question
