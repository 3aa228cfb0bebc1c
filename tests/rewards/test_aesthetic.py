"""The aesthetic predictor against its published form: five linear layers, one after the other."""

import os

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import META, PROMPTS, pictures
from torch import nn

from genrl.pixels import normalise, shortest_side
from genrl.rewards.aesthetic import Aesthetic, folded

NAME = "genrl.rewards.aesthetic:Aesthetic"


def head(width: int = 16) -> nn.Module:
    """As published: module ``layers`` with linear layers 0, 2, 4, 6, 7 and dropouts between."""
    made = nn.Module()
    made.layers = nn.Sequential(
        *(nn.Linear(width, 24), nn.Dropout(0.2), nn.Linear(24, 12), nn.Dropout(0.2), nn.Linear(12, 8), nn.Dropout(0.1)),
        *(nn.Linear(8, 4), nn.Linear(4, 1)),
    )
    return made.eval()


@pytest.fixture
def made(tmp_path):
    model, mlp = tiny_clip.hub_clip(tmp_path / "clip"), head()
    torch.save(mlp.state_dict(), tmp_path / "aesthetic-model.pth")
    return model, mlp, {"model": str(tmp_path / "clip"), "head": str(tmp_path)}


def test_five_layers_on_the_unit_embedding(made, tmp_path):
    model, mlp, where = made
    images = pictures(33, 50)
    with torch.no_grad():
        embedding = model.get_image_features(pixel_values=normalise(shortest_side(images, tiny_clip.SIZE))).pooler_output
        expected = mlp.layers(embedding / embedding.norm(dim=-1, keepdim=True)).squeeze(1)
        unnormalised = mlp.layers(embedding).squeeze(1)
    score = Aesthetic(**where)(images, PROMPTS, META)
    assert torch.allclose(score, expected, atol=1e-6) and expected.std() > 1e-4
    assert not torch.allclose(score, unnormalised, atol=1e-4)
    save_file(mlp.state_dict(), tmp_path / "head.safetensors")
    assert torch.equal(Aesthetic(**where | {"head": str(tmp_path / "head.safetensors")})(images, PROMPTS, META), score)


def test_it_reads_no_prompt_and_loads_no_text_tower(made):
    reward, images = Aesthetic(**made[2]), pictures()
    assert torch.equal(reward(images, PROMPTS, META), reward(images, PROMPTS[::-1], META))
    assert not any("text" in name for name, _ in reward.clip.network.named_parameters())


def test_gradients(made):
    tiny_clip.climbs(Aesthetic(**made[2]))


def test_folding_any_prefix_and_refusing_what_is_no_head():
    mlp, x = head(5), torch.randn(7, 5)
    weight, bias = folded({f"mlp.{key}": value for key, value in mlp.state_dict().items()})
    assert torch.allclose(x @ weight + bias, mlp.layers(x).squeeze(1), atol=1e-6)


def test_what_cannot_be_loaded_says_why(made, tmp_path):
    tiny_clip.refuses(NAME, "could not load 'nobody/head'", head="nobody/head")
    tiny_clip.refuses(NAME, "a folder that holds 'aesthetic-model.pth'", head=str(tmp_path / "clip"))
    torch.save(head(9).state_dict(), tmp_path / "nine.pth")
    tiny_clip.refuses(NAME, "reads embeddings of 9 numbers.*has 16", **made[2] | {"head": str(tmp_path / "nine.pth")})
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    tiny_clip.refuses(NAME, "no linear layers", head=str(tmp_path / "other.pth"))
    torch.save(nn.ModuleDict({"layers": nn.Sequential(nn.Linear(16, 2))}).state_dict(), tmp_path / "two.pth")
    tiny_clip.refuses(NAME, "gives 2 numbers", head=str(tmp_path / "two.pth"))


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
def test_published_weights():
    score = Aesthetic(device="cpu")(pictures(300, 400), PROMPTS, META)
    assert ((score > 1) & (score < 10)).all()
