import math

import pytest
import torch

from genrl.pool import RewardPool, weighted_sum
from genrl.reward import BUILT_IN, RewardError, check_scores, load_reward, reward_names

IMAGES, PROMPTS, META = torch.rand(5, 3, 8, 8), ["a"] * 5, [{}] * 5


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


def test_a_function_a_file_and_a_module_are_rewards(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Dark:\n    def __init__(self, gain=1.0):\n        self.gain = gain\n"
        "    def __call__(self, i, p, m):\n        return [-self.gain * x.mean() for x in i]\n"
    )
    dark = load_reward(f"{path}:Dark", gain=2.0)
    assert check_scores("dark", dark(IMAGES, PROMPTS, META), 5).tolist() == pytest.approx((-2 * brightness(IMAGES, PROMPTS, META)).tolist())
    assert load_reward("math:fsum") is math.fsum


def test_a_package_offers_a_reward_by_entry_point(monkeypatch):
    class Point:
        name, value = "acme", "math:sqrt"

    monkeypatch.setattr("genrl.reward.entry_points", lambda group: [Point] if group == "genrl.rewards" else [])
    assert "acme" in reward_names() and load_reward("acme") is math.sqrt


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(RewardError, match="did you mean shapes_judge"):
        load_reward("shape_judge")
    with pytest.raises(RewardError, match=r"known: .*jpeg_size"):
        load_reward("zzz")


@pytest.mark.parametrize(
    ("source", "why"),
    [("raise RuntimeError('no licence')", "no licence"), ("x = 1", "Mine"), ("def Mine(:", "SyntaxError")],
)
def test_a_module_that_fails_says_why(tmp_path, source, why):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(RewardError, match=why):
        load_reward(f"{path}:Mine")
    with pytest.raises(RewardError, match="no file"):
        load_reward(f"{tmp_path}/none.py:Mine")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (torch.zeros(4), r"shape \[4\]"),
        (torch.zeros(5, 1), r"shape \[5, 1\]"),
        (torch.tensor(1.0), r"shape \[\]"),
        (["good"] * 5, "numbers"),
        (None, "numbers"),
        ([0.0] * 6, r"shape \[6\]"),
    ],
)
def test_a_broken_answer_is_refused(answer, why):
    with pytest.raises(RewardError, match=why):
        RewardPool({"bad": lambda i, p, m: answer}).score(IMAGES, PROMPTS, META)


def test_a_raising_reward_is_named():
    def explode(images, prompts, metadata):
        raise KeyError("weights")

    with pytest.raises(RewardError, match="'boom' raised KeyError"):
        RewardPool({"boom": explode}).score(IMAGES, PROMPTS, META)


def test_cannot_score_is_nan_and_too_much_of_it_stops():
    pool = RewardPool({"some": lambda i, p, m: [1.0, None, float("inf"), 0.5, 2]})
    scores = pool.score(IMAGES, PROMPTS, META)["some"]
    assert scores.isnan().tolist() == [False, True, True, False, False]
    with pytest.raises(RewardError, match="only 60%"):
        RewardPool(pool.rewards, min_valid=0.9).score(IMAGES, PROMPTS, META)
    assert weighted_sum({"a": scores, "b": torch.ones(5)}, {"a": 1.0, "b": 2.0}).isnan().sum() == 2


def test_batches_keep_order_and_pairing():
    seen = []

    def paired(images, prompts, metadata):
        seen.append(len(images))
        return [float(p) + m["n"] for p, m in zip(prompts, metadata, strict=True)]

    scores = RewardPool({"paired": paired}, batch=2).score(IMAGES, list("01234"), [{"n": 10 * i} for i in range(5)])
    assert scores["paired"].tolist() == [0, 11, 22, 33, 44] and seen == [2, 2, 1]


def test_jpeg_size():
    reward = load_reward("jpeg_size")
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64)
    assert reward(flat, [""], [{}])[0] > reward(noise, [""], [{}])[0]
    assert load_reward("jpeg_size", grow=True)(noise, [""], [{}])[0] == -reward(noise, [""], [{}])[0]


def test_clip_rewards_on_a_tiny_model(tmp_path):
    """The same cosine as an independent computation with transformers' own processor, and gradients to the pixels."""
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from genrl.worlds.shapes import PIPELINE

    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"max_position_embeddings": 18, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # smooth: on white noise float and byte resampling differ by several levels
    pixels = (torch.nn.functional.interpolate(torch.rand(3, 3, 6, 8), (48, 64), mode="bilinear") * 255).round()
    prompts = ["a red circle", "two blue rings", "a cross"]
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pictures = [Image.fromarray(p.byte().permute(1, 2, 0).numpy()) for p in pixels]
    tokens = tokenizer(prompts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=processor(pictures, return_tensors="pt").pixel_values)
    images = (pixels / 255).requires_grad_()
    score = load_reward("clip_score", model=str(tmp_path))(images, prompts, [{}] * 3)
    assert torch.allclose(score, (out.image_embeds * out.text_embeds).sum(-1), atol=0.02)
    score.sum().backward()
    assert images.grad.abs().max() > 0
    pick = load_reward("pick_score", model=str(tmp_path))(images, prompts, [{}] * 3)
    assert torch.allclose(pick, model.logit_scale.exp() * score)


def test_every_built_in_name_exists():
    import importlib

    for where in BUILT_IN.values():
        module, name = where.split(":")
        assert hasattr(importlib.import_module(module), name)
