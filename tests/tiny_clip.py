"""Tiny random models of the architectures that rewards load, saved as the real ones are published, and what every such reward must do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from genrl.reward import RewardError, load_reward
from genrl.worlds.shapes import PIPELINE

PROMPTS = ["a red circle", "two blue rings", "a cross"]
META = [{}] * 3
SIZE = 16


def pictures(height: int = 48, width: int = 64) -> torch.Tensor:
    """Three pictures of whole levels, smooth: on white noise float and byte resampling differ by several levels."""
    return (F.interpolate(torch.rand(3, 3, 6, 8), (height, width), mode="bilinear") * 255).round() / 255


def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")


def clip_config(eos: int | None = None):
    from transformers import CLIPConfig

    words = tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": len(words), "max_position_embeddings": 18, "bos_token_id": words.bos_token_id}
    text |= {"eos_token_id": words.eos_token_id if eos is None else eos, "pad_token_id": words.pad_token_id}
    return CLIPConfig(text_config=text, vision_config=layers | {"image_size": SIZE, "patch_size": 8}, projection_dim=16)


def hub_clip(folder: Path, eos: int | None = None):
    """A CLIP of transformers with its tokenizer in ``folder``, and the model."""
    from transformers import CLIPModel

    model = spread(CLIPModel(clip_config(eos)).eval())
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that scores of different pictures and prompts differ by more than rounding."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.2)
            elif name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.1)
    return model.eval()


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def open_clip_model():
    import open_clip

    return spread(open_clip.model.CLIP(**OPEN_CLIP))


def open_clip_folder(folder: Path, **preprocess):
    """A folder for ``open_clip:local-dir:``, and the model in it."""
    model = open_clip_model()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocess}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def open_clip_architecture(folder: Path, name: str = "tiny-for-tests") -> str:
    """A name that ``open_clip.create_model`` knows from now on."""
    import open_clip

    (folder / f"{name}.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def climbs(reward) -> None:
    """The score has a gradient to every picture, and rises along it; the reward's own weights want none."""
    images = pictures(40, 24).requires_grad_()
    before = reward(images, PROMPTS, META)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.enable_grad():  # a step within the float path: bytes would round a small one away
        after = reward((images + 0.05 * gradient / length).detach().requires_grad_(), PROMPTS, META)
    assert (after > before).all()


def remembers(memory, ask) -> None:
    """Each prompt is encoded once, whatever the number of pictures and calls."""
    asked: list[str] = []
    encode = memory.encode
    memory.encode = lambda texts: asked.extend(texts) or encode(texts)
    memory.kept.clear()
    first = ask(["a cross", "a ring", "a cross"])
    again = ask(["a ring", "a cross", "a ring"])
    assert asked == ["a cross", "a ring"]
    assert torch.equal(first[0], first[2]) and torch.equal(first[0], again[1]) and not torch.allclose(first[0], first[1])


def refuses(name: str, why: str, **options) -> None:
    with pytest.raises(RewardError, match=why):
        load_reward(name, **options)
