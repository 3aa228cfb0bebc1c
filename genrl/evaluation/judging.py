"""Draw fixed prompts with fixed seeds, score the pictures, measure how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genrl import seeds
from genrl.chain import Chain
from genrl.evaluation.diversity import feature_diversity, layout_diversity
from genrl.policy import FlowPolicy
from genrl.pool import RewardPool
from genrl.rollout import decode, rollout
from genrl.types import Conditioning, Prompt


@dataclass(frozen=True)
class Protocol:
    """How an evaluation draws. Sample k of prompt p starts from the same noise in every model and at every round."""

    chain: Chain
    guidance: float
    chunk: int
    seed: int
    images_per_prompt: int


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
    ``scores`` name -> [N], ``diversity`` metric -> number.

    Writes PNG files ``{place:05d}-{image}.png`` into ``pictures`` if given.
    """
    n, rows = protocol.images_per_prompt, []
    block = max(1, protocol.chunk // n)
    places = list(chosen)
    for start in range(0, len(places), block):
        here = places[start : start + block]
        indices = [chosen[place] for place in here for _ in range(n)]
        samples = [chosen[place] * n + k for place in here for k in range(n)]
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
        scores = judges.score(images, [p.text for p in some], [p.metadata for p in some])
        features = {name: reward.features(images) for name, reward in judges.rewards.items() if n > 1 and hasattr(reward, "features")}
        for row, place in enumerate(here):
            own, prompt = slice(row * n, row * n + n), prompts[chosen[place]]
            rows.append(
                {
                    "place": place,
                    "prompt": {"prompt": prompt.text, "category": prompt.category},
                    "scores": {name: values[own].tolist() for name, values in scores.items()},
                    "diversity": _diversity(images[own], {name: value[own] for name, value in features.items()}),
                }
            )
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                for k, image in enumerate(images[own]):
                    to_pil(image).save(pictures / f"{place:05d}-{k}.png")
    return rows


def _diversity(images: Tensor, features: dict[str, Tensor]) -> dict[str, float]:
    found = {"layout": layout_diversity(images)} if len(images) > 1 else {}
    return found | {f"features of {name}": feature_diversity(value) for name, value in features.items()}


def to_pil(image: Tensor) -> Image.Image:
    """``[3, H, W]`` in [0, 1] to a picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
