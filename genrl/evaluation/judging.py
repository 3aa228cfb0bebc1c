"""Draw fixed prompts with fixed seeds, score the pictures, measure how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain, Guidance
from genrl.evaluation.diversity import feature_diversity, layout_diversity
from genrl.image_stats import image_stats
from genrl.pixels import to_bytes, to_pil
from genrl.policy import FlowPolicy
from genrl.pool import RewardPool
from genrl.reward import about
from genrl.rollout import decode, rollout
from genrl.types import Conditioning, Prompt

MOST_IMAGES = 1 << 16


@dataclass(frozen=True)
class Protocol:
    """How an evaluation draws. Sample k of prompt p starts from the same noise in every model and at every round.

    ``shuffled`` names the rewards that score each picture once more with another prompt: a reward that does not mind has stopped reading.
    """

    chain: Chain
    guidance: float | Guidance
    chunk: int
    seed: int
    images_per_prompt: int
    shuffled: tuple[str, ...] = ()


def judge_images(
    policy: FlowPolicy,
    role: str,
    prompts: Sequence[Prompt],
    cond: Conditioning,
    chosen: Mapping[int, int],
    judges: RewardPool,
    protocol: Protocol,
    pictures: Path | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the chosen prompts (place in the evaluation -> index in ``prompts``), a row each: ``place``, ``prompt``,
    ``scores`` name -> [N], ``shuffled`` the same with the prompt half the set away, ``diversity`` metric -> number, ``statistics`` of the
    pictures -> number.

    Writes PNG files ``{place:05d}-{image}.png`` into ``pictures`` if given.
    """
    n, rows = protocol.images_per_prompt, []
    block = max(1, protocol.chunk // n)
    places = list(chosen)
    for start in range(0, len(places), block):
        here = places[start : start + block]
        indices = [chosen[place] for place in here for _ in range(n)]
        # the same noise for image k, however many there are
        samples = [chosen[place] * MOST_IMAGES + k for place in here for k in range(n)]
        some = [prompts[i] for i in indices]
        trajectory = rollout(
            policy,
            protocol.chain,
            some,
            cond.index(torch.tensor(indices)),
            role=role,
            key=(protocol.seed, seeds.EVALUATION),
            samples=samples,
            groups=indices,
            guidance=protocol.guidance,
            chunk=protocol.chunk,
        )
        images = decode(policy, trajectory.x0)
        scoring = judges.begin()
        scoring.add(images, [p.text for p in some], [p.metadata for p in some], torch.tensor(indices))
        scores = scoring.result()
        shuffled = _shuffled(judges, protocol.shuffled, images, [prompts[(i + len(prompts) // 2) % len(prompts)] for i in indices])
        statistics = image_stats(images)
        features = {name: reward.features(images) for name, reward in judges.rewards.items() if n > 1 and hasattr(reward, "features")}
        for row, place in enumerate(here):
            own, prompt = slice(row * n, row * n + n), prompts[chosen[place]]
            rows.append(
                {
                    "place": place,
                    "prompt": {"prompt": prompt.text, "category": prompt.category},
                    "scores": {name: values[own].tolist() for name, values in scores.items()},
                    "shuffled": {name: values[own].tolist() for name, values in shuffled.items()},
                    "statistics": {name: values[own].mean().item() for name, values in statistics.items()},
                    "diversity": _diversity(images[own], {name: value[own] for name, value in features.items()}),
                }
            )
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                for k, picture in enumerate(to_pil(images[own])):
                    picture.save(pictures / f"{place:05d}-{k}.png")
    # over the whole evaluation: a reward may rightly be unable to score a few prompts that stand together
    judges.require_valid(
        {name: torch.tensor([v for row in rows for v in row["scores"][name]]) for name in (judges.rewards if rows else ())}
    )
    return rows


def _diversity(images: Tensor, features: dict[str, Tensor]) -> dict[str, float]:
    found = {"layout": layout_diversity(images)} if len(images) > 1 else {}
    return found | {f"features of {name}": feature_diversity(value) for name, value in features.items()}


def _shuffled(judges: RewardPool, names: Sequence[str], images: Tensor, others: Sequence[Prompt]) -> dict[str, Tensor]:
    """Scores of pictures with other prompts than their own, by the rewards that read prompts and score one picture at a time."""
    asked = {name: judges.rewards[name] for name in names}
    read = [name for name, reward in asked.items() if about(reward).reads_prompt and about(reward).kind == "pointwise"]
    pixels, texts, metadata = to_bytes(images), [p.text for p in others], [p.metadata for p in others]
    return {name: judges.call(name, pixels, texts, metadata) for name in read}
