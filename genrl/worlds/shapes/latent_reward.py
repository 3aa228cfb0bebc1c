"""A latent reward model of the shapes world: which of two noisy latents of a prompt will end better, by the judge.

Flash-DMD takes LPO's for SDXL; none exists for SD3's latents. This one has the form of AC-Flow's critic and learns from pairs of the
base model's own pictures that the judge has scored: Bradley-Terry at any noise level (ours).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.critic import ValueNet
from genrl.path import add_noise, shift
from genrl.worlds.shapes import ASSETS, PIPELINE

WIDTH = 48
PROMPTS, PICTURES, DRAWN_IN, STEPS, BATCH = 1_500, 8, 8, 3_000, 96


def new_latent_reward() -> ValueNet:
    return ValueNet(channels=16, pooled=128, width=WIDTH, depth=2, endpoint=False)


def load_latent_reward() -> nn.Module:
    """The shipped one, frozen, float32.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    from safetensors.torch import load_file

    path = ASSETS / "latent_reward.safetensors"
    if not path.is_file():
        raise FileNotFoundError("the latent reward is not there; train it: python -m genrl.worlds.shapes.build --stages latent_reward")
    model = new_latent_reward()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.requires_grad_(False).eval()


@torch.no_grad()
def labelled() -> tuple[Tensor, Tensor, Tensor]:
    """The base's pictures of train prompts: latents ``[P, K, 16, 8, 8]``, judge's scores ``[P, K]``, pooled prompts ``[P, 128]``."""
    from diffusers import StableDiffusion3Pipeline

    from genrl.data import load_prompts
    from genrl.worlds.shapes.judge import judge

    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(str(PIPELINE))
    pipeline.set_progress_bar_config(disable=True)
    every = load_prompts("shapes/train")
    prompts = [every[i] for i in np.random.default_rng(30).permutation(len(every))[:PROMPTS]]
    options = {"num_inference_steps": DRAWN_IN, "guidance_scale": 1.0, "output_type": "latent", "max_sequence_length": 1}
    latents, scores, pooled = [], [], []
    for first in range(0, len(prompts), 8):
        some = prompts[first : first + 8]
        texts = [p.text for p in some]
        noise = torch.Generator().manual_seed(1_000 + first)
        drawn = pipeline(texts, num_images_per_prompt=PICTURES, generator=noise, **options).images
        raw = drawn / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
        images = (pipeline.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        verdicts = judge(images.numpy(), [p.metadata for p in some for _ in range(PICTURES)])
        latents.append(drawn.unflatten(0, (-1, PICTURES)))
        scores.append(torch.tensor([v.score for v in verdicts]).view(-1, PICTURES))
        pooled.append(pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False, max_sequence_length=1)[2])
    return torch.cat(latents), torch.cat(scores), torch.cat(pooled)


def build_latent_reward(assets: Path, work: Path) -> None:
    from safetensors.torch import save_file

    from genrl.worlds.shapes.pretrain import train

    path = work / "labelled.pt"
    if not path.exists():
        torch.save(labelled(), path)
    latents, scores, pooled = torch.load(path, weights_only=True)
    torch.manual_seed(32)
    model = new_latent_reward()
    kept = len(latents) * 9 // 10  # the last tenth of the prompts is never trained on

    def loss_at(step: int) -> Tensor:
        return ranking_loss(model, latents[:kept], scores[:kept], pooled[:kept], step)[0]

    train("latent_reward", work, {"model": model}, STEPS, 1e-3, loss_at, ema=0.995)
    with torch.no_grad():
        rights = [ranking_loss(model, latents[kept:], scores[kept:], pooled[kept:], -1 - step)[1].item() for step in range(50)]
    print(f"pairs of prompts never seen, ranked right: {np.mean(rights):.3f}", flush=True)
    save_file({name: t.half().contiguous() for name, t in model.state_dict().items()}, assets / "latent_reward.safetensors")


def ranking_loss(model: nn.Module, latents: Tensor, scores: Tensor, pooled: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Bradley-Terry of a random batch of pairs, weighted by the difference of their scores; and the share ranked right."""
    draw = torch.Generator().manual_seed(1_000_003 + step)
    row = torch.randint(len(latents), (BATCH,), generator=draw)
    pair = torch.rand(BATCH, PICTURES, generator=draw).argsort(1)[:, :2]
    x0 = latents[row[:, None], pair].flatten(0, 1)
    sigma = torch.as_tensor(shift(torch.rand(BATCH, generator=draw), 3.0)).repeat_interleave(2)
    x = add_noise(x0, torch.randn(x0.shape, generator=draw), sigma)
    value = model(x, sigma, pooled[row].repeat_interleave(2, 0)).view(-1, 2)
    gap = scores[row[:, None], pair] @ torch.tensor([1.0, -1.0])
    margin = (value[:, 0] - value[:, 1]) * gap.sign()
    weight = gap.abs()
    right = ((margin > 0) * weight).sum() / weight.sum().clamp(min=1e-6)
    return (F.softplus(-margin) * weight).sum() / weight.sum().clamp(min=1e-6), right
