"""PickScore against transformers, with the tokenizer apart and the old rule for the end token."""

import os

import pytest
import tiny_clip
import torch
from tiny_clip import META, PROMPTS, pictures

from genrl.pixels import normalise, shortest_side
from genrl.reward import about
from genrl.rewards.pick_score import PickScore


@pytest.fixture
def made(tmp_path):
    """Weights and tokenizer in two folders, and the model."""
    model = tiny_clip.hub_clip(tmp_path / "weights")
    for file in (tmp_path / "weights").glob("tokenizer*"):
        file.unlink()
    tiny_clip.tokenizer().save_pretrained(tmp_path / "processor")
    return model, {"model": str(tmp_path / "weights"), "processor": str(tmp_path / "processor")}


def logits(model, images):
    tokens = tiny_clip.tokenizer()(PROMPTS, padding="max_length", max_length=18, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, pixel_values=normalise(shortest_side(images, tiny_clip.SIZE))).logits_per_image.diag()


def test_logits_of_transformers_under_the_old_rule(made):
    model, where = made
    images = pictures()
    score = PickScore(**where)(images, PROMPTS, META)
    new_rule = logits(model, images)
    model.text_model.eos_token_id = 2
    assert torch.allclose(score, logits(model, images), atol=1e-4)
    assert not torch.allclose(score, new_rule, atol=0.1)  # in this vocabulary the end token is not the highest


def test_scale_is_the_models_and_within_bounds(made):
    model, where = made
    reward = PickScore(**where)
    assert reward.clip.scale == pytest.approx(model.logit_scale.exp().item())
    low, high = about(reward).bounds
    assert ((low <= reward(pictures(), PROMPTS, META)) & (reward(pictures(), PROMPTS, META) <= high)).all()


def test_gradients_and_memory(made):
    reward = PickScore(**made[1])
    tiny_clip.climbs(reward)
    tiny_clip.remembers(reward.clip.texts, reward.clip.texts)


def test_what_cannot_be_loaded_says_why(made):
    tiny_clip.refuses("genrl.rewards.pick_score:PickScore", "could not load 'nobody/weights'", model="nobody/weights")
    tiny_clip.refuses(
        "genrl.rewards.pick_score:PickScore", "could not load 'nobody/words'.*local copy", **made[1] | {"processor": "nobody/words"}
    )


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
def test_published_weights():
    from transformers import AutoModel, AutoProcessor

    from genrl.pixels import to_pil

    images = pictures(300, 400)
    processor = AutoProcessor.from_pretrained("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    model = AutoModel.from_pretrained("yuvalkirstain/PickScore_v1", dtype=torch.float32).eval()
    told = processor(text=PROMPTS, images=to_pil(images), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = model(**told).logits_per_image.diag()
    score = PickScore(device="cpu")(images, PROMPTS, META)
    assert torch.allclose(score, expected, atol=0.1) and (score > 10).all() and (score < 30).all()
