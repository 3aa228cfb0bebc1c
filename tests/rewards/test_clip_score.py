"""CLIPScore against transformers' and open_clip's own preprocessing and models."""

import os
import subprocess
import sys

import pytest
import tiny_clip
import torch
from tiny_clip import META, PROMPTS, SIZE, pictures
from torch.nn import functional as F

from genrl.pixels import to_pil
from genrl.reward import RewardError
from genrl.rewards.clip_score import ClipScore, read_weights, weights_file


def by_transformers(model, images, prompts=PROMPTS):
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    tokens = tiny_clip.tokenizer()(prompts, padding="max_length", max_length=18, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=processor(to_pil(images), return_tensors="pt").pixel_values)
    return out.logits_per_image.diag() / model.logit_scale.exp()


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (33, 50), (SIZE, SIZE)])
def test_the_cosine_of_transformers(tmp_path, shape):
    model, images = tiny_clip.hub_clip(tmp_path), pictures(*shape)
    score, expected = ClipScore(str(tmp_path))(images, PROMPTS, META), by_transformers(model, images)
    assert score.dtype == torch.float32 and score.shape == (3,) and expected.std() > 0.02
    assert torch.allclose(score, expected, atol=0.005)
    assert torch.allclose(ClipScore(str(tmp_path))(images.requires_grad_(), PROMPTS, META), expected, atol=0.02)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_cosine_of_open_clip(tmp_path, mode):
    import open_clip

    said = {"size": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": mode}
    tiny_clip.open_clip_folder(tmp_path, **said)
    name, images = f"local-dir:{tmp_path}", pictures(50, 33)
    model, _, transform = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        picture = model.eval().encode_image(torch.stack([transform(p) for p in to_pil(images)]), normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
    expected = (picture * text).sum(-1)
    score = ClipScore(f"open_clip:{name}")(images, PROMPTS, META)
    assert expected.std() > 0.02 and torch.allclose(score, expected, atol=0.005)
    assert torch.equal(ClipScore(name, backend="open_clip")(images, PROMPTS, META), score)


def test_an_open_clip_checkpoint_file(tmp_path):
    name, model = tiny_clip.open_clip_architecture(tmp_path), tiny_clip.open_clip_model()
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "mine.pt")
    loaded = ClipScore(f"open_clip:{name}/{tmp_path}/mine.pt").clip.network
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))


@pytest.mark.parametrize("backend", ["transformers", "open_clip"])
def test_gradients_memory_and_low_precision(tmp_path, backend):
    if backend == "transformers":
        tiny_clip.hub_clip(tmp_path)
        name = str(tmp_path)
    else:
        tiny_clip.open_clip_folder(tmp_path, size=SIZE)
        name = f"open_clip:local-dir:{tmp_path}"
    reward = ClipScore(name)
    tiny_clip.climbs(reward)
    tiny_clip.remembers(reward.clip.texts, reward.clip.texts)
    assert not any(p.requires_grad for p in reward.clip.network.parameters())
    images = pictures()
    low = ClipScore(name, dtype="bfloat16")(images, PROMPTS, META)
    full = reward(images, PROMPTS, META)
    assert low.dtype == torch.float32 and not torch.equal(low, full) and torch.allclose(low, full, atol=0.05)


def test_long_prompts_are_cut(tmp_path):
    tiny_clip.hub_clip(tmp_path)
    reward = ClipScore(str(tmp_path))
    assert reward(pictures()[:1], ["a red circle " * 50], [{}]).isfinite().all()


def test_what_cannot_be_loaded_says_why(tmp_path):
    tiny_clip.refuses("clip_score", r"could not load 'nobody/none'.*path of a local copy", model="nobody/none")
    tiny_clip.refuses("clip_score", "could not load", model=str(tmp_path / "none"))
    tiny_clip.refuses("clip_score", "names no weights", model="open_clip:ViT-B-32")
    tiny_clip.refuses("clip_score", "not a known tag", model="open_clip:ViT-B-32/none")
    tiny_clip.refuses("clip_score", "its own tokenizer", model="open_clip:ViT-B-32/openai", processor="x/y")
    tiny_clip.refuses("clip_score", "backend must be", backend="jax")
    tiny_clip.refuses("clip_score", "dtype must be", dtype="int8")
    tiny_clip.open_clip_folder(tmp_path, interpolation="bilinear")
    tiny_clip.refuses("clip_score", "only bicubic", model=f"open_clip:local-dir:{tmp_path}")


def test_missing_tensors_are_refused_rather_than_random(tmp_path):
    model = tiny_clip.hub_clip(tmp_path)
    state = {k: v for k, v in model.state_dict().items() if "visual_projection" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    tiny_clip.refuses("clip_score", "lacks 1 tensors: visual_projection.weight", model=str(tmp_path))


def test_weights_are_found_and_never_unpickled(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "a.pt")
    assert weights_file(str(tmp_path), "a.pt") == weights_file(str(tmp_path / "a.pt"), "other") == tmp_path / "a.pt"
    assert read_weights(tmp_path / "a.pt")["a"].tolist() == [1, 1]
    for missing in (str(tmp_path), str(tmp_path / "none.pt"), "none"):
        with pytest.raises(RewardError, match=r"a folder that holds 'b\.pt'"):
            weights_file(missing, "b.pt")
    with pytest.raises(RewardError, match="could not load 'nobody/none'"):
        weights_file("nobody/none", "b.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(RewardError, match="not unpickled"):
        read_weights(tmp_path / "module.pt")


def test_importing_is_light():
    modules = ", ".join(f"genrl.rewards.{m}" for m in ("clip_score", "pick_score", "aesthetic", "hps_v2", "image_reward", "mps"))
    code = f"import sys, {modules}; assert not {{'transformers', 'open_clip', 'huggingface_hub'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
def test_published_weights():
    from transformers import CLIPModel, CLIPProcessor

    name, images = "openai/clip-vit-large-patch14", pictures(300, 400)
    processor = CLIPProcessor.from_pretrained(name)
    with torch.no_grad():
        told = processor(text=PROMPTS, images=to_pil(images), padding=True, return_tensors="pt")
        out = CLIPModel.from_pretrained(name)(**told)
    expected = F.cosine_similarity(out.image_embeds, out.text_embeds)
    assert torch.allclose(ClipScore(name, device="cpu")(images, PROMPTS, META), expected, atol=0.003)
