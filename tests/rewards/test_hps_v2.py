"""HPSv2 against open_clip on pictures padded by torchvision, as the published code pads them."""

import os

import pytest
import tiny_clip
import torch
from tiny_clip import META, PROMPTS, SIZE, pictures
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T

from genrl.pixels import CLIP_MEAN, CLIP_STD
from genrl.rewards.hps_v2 import HpsV2

NAME = "genrl.rewards.hps_v2:HpsV2"


@pytest.fixture
def made(tmp_path):
    """A checkpoint as published (weights under ``state_dict``, beside numbers), and the model in it."""
    architecture, model = tiny_clip.open_clip_architecture(tmp_path), tiny_clip.open_clip_model()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    return model, {"model": str(tmp_path), "architecture": architecture}


def padded(images):
    """Longest side resized, black on both sides of the other, then normalised."""
    height, width = images.shape[-2:]
    scale = SIZE / max(height, width)
    size = [round(height * scale), round(width * scale)]
    small = T.resize(images, size, InterpolationMode.BICUBIC, antialias=True)
    down, right = SIZE - size[0], SIZE - size[1]
    return T.normalize(T.pad(small, [right // 2, down // 2, right - right // 2, down - down // 2]), CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize("shape", [(48, 64), (64, 40), (33, 50), (32, 32)])
def test_cosine_of_the_padded_picture(made, shape):
    import open_clip

    model, where = made
    images = pictures(*shape)
    with torch.no_grad():
        picture = model.encode_image(padded(images), normalize=True)
        text = model.encode_text(open_clip.tokenize(PROMPTS), normalize=True)
    expected = (picture * text).sum(-1)
    reward = HpsV2(**where)
    assert torch.allclose(reward(images, PROMPTS, META), expected, atol=0.005) and expected.std() > 0.02
    assert torch.allclose(reward(images.clone().requires_grad_(), PROMPTS, META), expected, atol=0.001)


def test_version_names_the_file(made, tmp_path):
    model, where = made
    tiny_clip.refuses(NAME, r"HPS_v2_compressed\.pt", **where, version="v2")
    other = tiny_clip.open_clip_model()
    torch.save({"state_dict": other.state_dict()}, tmp_path / "HPS_v2_compressed.pt")
    for version, expected in {"v2": other, "v2.1": model}.items():
        loaded = HpsV2(**where, version=version).clip.network
        assert torch.equal(loaded.text_projection, expected.text_projection)
    tiny_clip.refuses(NAME, "version must be one of v2, v2.1", **where, version="v3")


def test_gradients_and_memory(made):
    reward = HpsV2(**made[1])
    tiny_clip.climbs(reward)
    tiny_clip.remembers(reward.clip.texts, reward.clip.texts)


def test_what_cannot_be_loaded_says_why(made, tmp_path):
    tiny_clip.refuses(NAME, "could not load 'nobody/none'.*local copy", model="nobody/none")
    state = made[0].state_dict()
    del state["text_projection"]
    torch.save({"state_dict": state}, tmp_path / "part.pt")
    tiny_clip.refuses(NAME, "text_projection", **made[1] | {"model": str(tmp_path / "part.pt")})


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
@pytest.mark.parametrize("version", ["v2", "v2.1"])
def test_published_weights(version):
    score = HpsV2(version=version, device="cpu")(pictures(300, 400), PROMPTS, META)
    assert ((score > 0) & (score < 0.5)).all()
