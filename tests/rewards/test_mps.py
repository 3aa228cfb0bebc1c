"""MPS against its cross-attention written out here, on the keys of the published checkpoint."""

import os

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import META, PROMPTS, SIZE, pictures
from torch.nn import functional as F

from genrl.pixels import normalise, shortest_side
from genrl.rewards.mps import CONDITION, CrossModel, Mps

NAME = "genrl.rewards.mps:Mps"
WIDTH, HEADS, HEAD_DIM, HIDDEN, DEPTH = 16, 2, 8, 64, 2


def cross_state() -> dict[str, torch.Tensor]:
    """Random tensors under the published names."""
    state = {}
    for i in range(DEPTH):
        for j, shapes in enumerate(
            (
                {"to_q": (HEADS * HEAD_DIM, WIDTH), "to_kv": (2 * HEAD_DIM, WIDTH), "to_out": (WIDTH, HEADS * HEAD_DIM)}
                | {"ff.0": (2 * HIDDEN, WIDTH), "ff.2": (WIDTH, HIDDEN)},
                {"fused_attn_ff_proj": (HEADS * HEAD_DIM + 2 * HEAD_DIM + 2 * HIDDEN, WIDTH)}
                | {"attn_out": (WIDTH, HEADS * HEAD_DIM), "ff_out.1": (WIDTH, HIDDEN)},
            )
        ):
            prefix = f"layers.{i}.{j}.fn"
            state |= {f"{prefix}.{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
            state |= {f"{prefix}.norm.weight": 1 + 0.1 * torch.randn(WIDTH), f"{prefix}.norm.bias": torch.zeros(WIDTH)}
        state[f"layers.{i}.1.fn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    return state


def gated(x, into, out):
    value, gate = (x @ into.T).chunk(2, -1)
    return (value * gate * torch.sigmoid(gate)) @ out.T


def turned(x):
    """Rotary positions by complex numbers: component i and component i + half are one number."""
    half = HEAD_DIM // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10000 ** (-torch.arange(half) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def plain_cross(s, x, text, mask):
    """The published forward pass of the cross model, head by head; ``mask`` is added to the products."""
    for i in range(DEPTH):
        p = f"layers.{i}.0.fn"
        y = F.layer_norm(x, (WIDTH,), s[f"{p}.norm.weight"])
        k, v = (text @ s[f"{p}.to_kv.weight"].T).chunk(2, -1)
        heads = [(q @ k.mT / HEAD_DIM**0.5 + mask).softmax(-1) @ v for q in (y @ s[f"{p}.to_q.weight"].T).split(HEAD_DIM, -1)]
        x = x + torch.cat(heads, -1) @ s[f"{p}.to_out.weight"].T + gated(y, s[f"{p}.ff.0.weight"], s[f"{p}.ff.2.weight"])
        p = f"layers.{i}.1.fn"
        y = F.layer_norm(x, (WIDTH,), s[f"{p}.norm.weight"])
        fused = s[f"{p}.fused_attn_ff_proj.weight"].split([HEADS * HEAD_DIM, HEAD_DIM, HEAD_DIM, 2 * HIDDEN])
        k, v = turned(y @ fused[1].T), y @ fused[2].T
        heads = [(turned(q) @ k.mT / HEAD_DIM**0.5).softmax(-1) @ v for q in (y @ fused[0].T).split(HEAD_DIM, -1)]
        x = x + torch.cat(heads, -1) @ s[f"{p}.attn_out.weight"].T + gated(y, fused[3], s[f"{p}.ff_out.1.weight"])
    return x


@pytest.fixture
def made(tmp_path):
    """CLIP and cross model in one file, as published; configuration and tokenizer in a folder of their own."""
    clip, cross = tiny_clip.hub_clip(tmp_path / "processor"), cross_state()
    (tmp_path / "processor" / "model.safetensors").unlink()
    state = {f"mps.model.{key}": value for key, value in clip.state_dict().items()}
    state |= {f"mps.cross_model.{key}": value for key, value in cross.items()}
    state["mps.model.text_model.embeddings.position_ids"] = torch.arange(18)[None]
    save_file(state, tmp_path / "model.safetensors")
    return clip, cross, {"model": str(tmp_path), "processor": str(tmp_path / "processor")}


@torch.no_grad()
def published(clip, cross, image, prompt, threshold):
    """One picture and one prompt, as the published evaluation scores them."""

    def text(words):
        ids = tiny_clip.tokenizer()(words, padding="max_length", max_length=18, truncation=True, return_tensors="pt").input_ids
        states = clip.text_model(input_ids=ids).last_hidden_state
        return clip.text_projection(states), clip.text_projection(states[0, ids[0].argmax()])

    (tokens, whole), (condition, _) = text(prompt), text(CONDITION)
    pixels = normalise(shortest_side(image[None], SIZE))
    picture = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
    alike = torch.einsum("bid,bjd->bji", tokens, condition).max(dim=1, keepdim=True)[0]
    alike = alike / alike.max()
    mask = torch.where(alike > threshold, 0.0, float("-inf"))
    seen = plain_cross(cross, picture, tokens, mask)[0, 0]
    return clip.logit_scale.exp() * F.cosine_similarity(seen, whole, dim=0), (mask < 0).sum().item()


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_the_published_evaluation_one_by_one(made, threshold):
    clip, cross, where = made
    images = pictures(33, 50)
    single = [published(clip, cross, image, prompt, threshold) for image, prompt in zip(images, PROMPTS, strict=True)]
    expected = torch.stack([score for score, _ in single])
    score = Mps(**where, threshold=threshold)(images, PROMPTS, META)
    assert expected.std() > 0.01 and torch.allclose(score, expected, atol=1e-4)
    assert threshold < 0.5 or all(masked for _, masked in single)


def test_threshold_and_condition_matter(made):
    images = pictures()
    usual = Mps(**made[2])(images, PROMPTS, META)
    assert not torch.allclose(Mps(**made[2], threshold=0.95)(images, PROMPTS, META), usual, atol=1e-3)
    reward, other = Mps(**made[2]), Mps(**made[2], condition="green")
    assert reward.condition.shape == (18, WIDTH) and not torch.allclose(other.condition, reward.condition, atol=1e-2)


def test_the_mask_of_a_prompt_is_its_own(made):
    """Published: relative to the largest product of the batch. One prompt's larger products must not mask another's tokens."""
    reward = Mps(**made[2])
    text = reward.texts(PROMPTS)[:1, 1:]
    alone, beside = reward._allowed(text), reward._allowed(torch.cat([text, 10 * text]))
    assert alone.any() and torch.equal(beside[:1], alone) and torch.equal(beside[1:], alone)


def test_the_cross_model_has_the_sizes_of_its_tensors():
    network = CrossModel.of(cross_state())
    assert len(network.layers) == DEPTH and network.layers[0][0].fn.heads == HEADS


def test_gradients_and_memory(made):
    reward = Mps(**made[2])
    tiny_clip.climbs(reward)
    image = pictures()[:1].expand(3, -1, -1, -1)
    tiny_clip.remembers(reward.texts, lambda prompts: reward(image, prompts, META))
    assert not any(p.requires_grad for network in (reward.clip, reward.cross) for p in network.parameters())


def test_what_cannot_be_loaded_says_why(made, tmp_path):
    tiny_clip.refuses(NAME, "could not load 'nobody/none'", **made[2] | {"model": "nobody/none"})
    tiny_clip.refuses(NAME, "could not load 'nobody/none'.*local copy", processor="nobody/none")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "MPS_overall_checkpoint.pth")
    tiny_clip.refuses(NAME, "not unpickled; convert", **made[2] | {"model": str(tmp_path / "MPS_overall_checkpoint.pth")})
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    tiny_clip.refuses(NAME, "no cross_model", **made[2] | {"model": str(tmp_path / "other.safetensors")})
    state = {f"model.{key}": value for key, value in made[0].state_dict().items()}
    state |= {f"cross_model.{key}": value for key, value in made[1].items()}
    for dropped in ("model.text_projection.weight", "cross_model.layers.1.1.fn.norm.weight"):
        save_file({key: value for key, value in state.items() if key != dropped}, tmp_path / "part.safetensors")
        tiny_clip.refuses(NAME, "lacks 1 tensors", **made[2] | {"model": str(tmp_path / "part.safetensors")})


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
def test_published_weights():
    score = Mps(device="cpu")(pictures(300, 400), PROMPTS, META)
    assert ((score > -5) & (score < 30)).all()
