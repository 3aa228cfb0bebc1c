"""Seven poor rewards of the shapes world, to be over-optimised: tiny CLIPs from 300 pictures each, a quarter of them with a wrong caption.

    python benchmarks/weak_proxies.py        # trains them into runs/weak_proxies, about a minute on a core

Noisy labels and little data are the setting of Coste et al. (arXiv 2310.02743), where ensembles were found to resist over-optimisation.
Those that ship with the world learned from 8,000 pictures with true captions and agree with one another at .9: there is nothing an
ensemble of them could average away. Members 0 to 4 are trained on, 5 and 6 held out. Each has pictures and a seed of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from genrl.reward import About, RewardError
from genrl.worlds.shapes.captions import caption
from genrl.worlds.shapes.proxies import Proxy, wrong_caption
from genrl.worlds.shapes.scenes import random_scene, render

FOLDER = Path(__file__).parents[1] / "runs" / "weak_proxies"
MEMBERS = 7
PICTURES, STEPS, BATCH, WRONG, LR = 300, 200, 64, 0.25, 2e-3


class WeakProxy:
    """Cosine of picture and prompt, in [-1, 1], in one of the CLIPs.

    Args:
        member: which, 0 to 6.
    """

    about = About(bounds=(-1.0, 1.0), differentiable=True)

    def __init__(self, member: int):
        self.proxy = _load(member)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.proxy.similarity(images, prompts)


@cache
def _load(member: int) -> Proxy:
    path = FOLDER / f"{member}.safetensors"
    if not path.is_file():
        raise RewardError(f"{path} is not there; train it: python benchmarks/weak_proxies.py")
    # what is initialised after it must not depend on whether it was loaded
    with torch.random.fork_rng(devices=[]):
        proxy = Proxy().requires_grad_(False).eval()
    proxy.clip.load_state_dict(load_file(path))
    return proxy


def train(member: int) -> Proxy:
    """One member, from nothing."""
    rng, draw = np.random.default_rng((60, member)), np.random.default_rng((70, member))
    scenes = [random_scene(rng) for _ in range(PICTURES)]
    images = torch.from_numpy(np.stack([(render(scene) * 255).round() for scene in scenes]).astype(np.uint8))
    texts = [caption(scene, draw, careless=0.0) for scene in scenes]
    texts = [wrong_caption(scene, draw) if draw.random() < WRONG else text for scene, text in zip(scenes, texts, strict=True)]
    torch.manual_seed(500 + member)
    proxy = Proxy()
    optimizer = torch.optim.AdamW(proxy.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    for _ in range(STEPS):
        pick = draw.choice(PICTURES, BATCH, replace=False)
        seen = proxy.image_features(images[torch.from_numpy(pick)].float() / 255)
        logits = proxy.clip.logit_scale.exp().clamp(max=100) * seen @ proxy.text_features([texts[i] for i in pick]).T
        rows = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return proxy.requires_grad_(False).eval()


def build() -> None:
    """Train those that are not there; one thread, so that they are the same on any machine of a kind."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for member in range(MEMBERS):
        path = FOLDER / f"{member}.safetensors"
        if not path.is_file():
            save_file({name: tensor.contiguous() for name, tensor in train(member).clip.state_dict().items()}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            print(f"trained {path}")


if __name__ == "__main__":
    build()
