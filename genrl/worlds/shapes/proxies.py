"""Proxy rewards: five tiny CLIPs (open_clip) that learned from pictures and true captions what matches what, imperfectly.

Each has its own seed; members 0, 2, 4 saw one half of the pictures, 1 and 3 the other. They are useful and can be hacked,
as learned rewards are; the judge tells by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.worlds.shapes import ASSETS, PIPELINE
from genrl.worlds.shapes.captions import OPENINGS, caption, phrase, true_target
from genrl.worlds.shapes.scenes import COLOURS, RELATIONS, SHAPES, Scene, random_scene, render

MEMBERS = 5
STEPS, BATCH, PICTURES = 1_200, 64, 8_000


class Proxy(nn.Module):
    """A tiny CLIP over the shapes world's tokens: pictures ``[B, 3, 64, 64]`` in [0, 1] and prompts to unit features."""

    def __init__(self) -> None:
        super().__init__()
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
        from transformers import CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
        length = self.tokenizer.model_max_length
        text = CLIPTextCfg(context_length=length, vocab_size=len(self.tokenizer), width=48, heads=4, layers=2, pool_type="last")
        self.clip = CLIP(
            embed_dim=32, vision_cfg=CLIPVisionCfg(layers=3, width=48, head_width=12, patch_size=16, image_size=64), text_cfg=text
        )

    def image_features(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images * 2 - 1, normalize=True)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.clip.encode_text(tokens, normalize=True)

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each picture with its prompt, ``[B]``; differentiable in the pixels."""
        return (self.image_features(images) * self.text_features(prompts)).sum(-1)


@cache
def load_proxy(member: int) -> Proxy:
    """One of the members, frozen, float32.

    Raises:
        ValueError: no such member; FileNotFoundError: it has not been trained.
    """
    from safetensors.torch import load_file

    if not 0 <= member < MEMBERS:
        raise ValueError(f"the shapes world has proxies 0 to {MEMBERS - 1}; there is no {member}")
    path = ASSETS / "proxies" / f"{member}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"proxy {member} is not there; train the proxies: python -m genrl.worlds.shapes.build --stages proxies")
    # loaded once and then remembered: what is initialised after it must not depend on whether it was
    with torch.random.fork_rng(devices=[]):
        proxy = Proxy().requires_grad_(False).eval()
    proxy.clip.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return proxy


def wrong_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is wrong about one thing: a shape, a colour, or a number."""
    objects = [dict(thing) for thing in true_target(scene.things)["objects"]]
    thing = objects[int(rng.integers(len(objects)))]
    kind = rng.random()
    if kind < 0.4:
        thing["count"] = int(rng.choice([n for n in (1, 2, 3, 4) if n != thing["count"]]))
    elif kind < 0.7:
        thing["colour"] = str(rng.choice([c for c in COLOURS if c != thing["colour"]]))
    else:
        thing["shape"] = str(rng.choice([s for s in SHAPES if s != thing["shape"]]))
    return " and ".join(phrase(dict(t, size=None)) for t in objects)


def swapped_relation(text: str) -> str:
    """The caption with its relation turned round; unchanged without one."""
    for relation, opposite in zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True):
        if f" {relation} " in text:
            return text.replace(f" {relation} ", f" {opposite} ")
    return text


def build_proxies(assets: Path, work: Path) -> None:
    from safetensors.torch import save_file

    from genrl.worlds.shapes.pretrain import train

    (assets / "proxies").mkdir(parents=True, exist_ok=True)
    for member in range(MEMBERS):
        rng = np.random.default_rng((6, member % 2))
        scenes = [random_scene(rng) for _ in range(PICTURES)]
        images = torch.from_numpy(np.stack([(render(s) * 255).round() for s in scenes]).astype(np.uint8))
        torch.manual_seed(100 + member)
        proxy = Proxy()

        def loss_at(step: int, member: int = member, scenes=scenes, images=images, proxy=proxy) -> Tensor:
            draw = np.random.default_rng((7, member, step))
            pick = draw.integers(0, len(scenes), BATCH)
            texts = [caption(scenes[i], draw, careless=0.0) for i in pick]
            wrong = [swapped_relation(t) for t in texts]
            wrong = [w if w != t else wrong_caption(scenes[i], draw) for i, t, w in zip(pick, texts, wrong, strict=True)]
            opening = OPENINGS[int(draw.integers(len(OPENINGS)))]
            features = proxy.image_features(images[torch.from_numpy(pick)].float() / 255)
            told = proxy.text_features(texts + [opening + w for w in wrong])
            logits = proxy.clip.logit_scale.exp().clamp(max=100) * features @ told.T
            rows = torch.arange(BATCH)
            return (F.cross_entropy(logits, rows) + F.cross_entropy(logits[:, :BATCH].T, rows)) / 2

        train(f"proxy{member}", work, {"proxy": proxy}, STEPS, 2e-3, loss_at)
        save_file(
            {name: t.half().contiguous() for name, t in proxy.clip.state_dict().items()}, assets / "proxies" / f"{member}.safetensors"
        )
