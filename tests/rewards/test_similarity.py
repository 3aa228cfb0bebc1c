"""LPIPS with a random backbone, DINOv2 as a tiny random model against transformers' own preprocessing."""

import os

import pytest
import torch
from tiny_clip import pictures, refuses, spread

from genrl.pixels import to_pil
from genrl.reward import RewardError, check_metadata
from genrl.rewards.similarity import DinoSimilarity, LpipsSimilarity

NAME = "genrl.rewards.similarity"


def saved(images, folder) -> list[dict]:
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for picture, path in zip(to_pil(images), paths, strict=True):
        picture.save(path)
    return [{"reference": str(path)} for path in paths]


@pytest.fixture
def lpips() -> LpipsSimilarity:
    # random backbone, published heads: distances mean nothing, and are not negative
    return LpipsSimilarity.of(__import__("lpips").LPIPS(net="squeeze", pnet_rand=True, verbose=False), device="cpu")


@pytest.fixture
def dino(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = spread(Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)))
    model.save_pretrained(tmp_path / "dino")
    return model, DinoSimilarity(str(tmp_path / "dino"), device="cpu")


def climbs(reward, images, metadata) -> None:
    leaf = images.clone().requires_grad_()
    before = reward(leaf, [], metadata)
    (gradient,) = torch.autograd.grad(before.sum(), leaf)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (reward((images + step).requires_grad_(), [], metadata) > before).all()
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())


def test_lpips_of_the_same_is_zero_and_grows_with_noise(lpips, tmp_path):
    images = pictures(64, 64)
    metadata = saved(images, tmp_path)
    assert lpips(images, [], metadata).tolist() == [0, 0, 0]
    noise = torch.rand_like(images) - 0.5
    scores = [lpips((images + level * noise).clamp(0, 1), [], metadata) for level in (0.1, 0.3, 1.0)]
    assert (scores[0] < 0).all() and (scores[1] < scores[0]).all() and (scores[2] < scores[1]).all()


def test_lpips_is_the_package_s_own_number(lpips, tmp_path):
    images, others = pictures(64, 64), pictures(64, 64)
    metadata = saved(others, tmp_path)
    expected = -lpips.network(2 * images - 1, 2 * others - 1).flatten()
    assert torch.allclose(lpips(images, [], metadata), expected, atol=1e-6)
    turned = lpips(images, [], metadata[::-1])
    assert torch.allclose(turned[1], expected[1]) and not torch.allclose(turned[0], expected[0], atol=1e-4)
    climbs(lpips, images, metadata)


def test_lpips_heads_are_the_published_ones(lpips):
    """With use_dropout=False the package leaves them random, and some negative."""
    assert all((lpips.network.get_submodule(f"lin{n}").model[-1].weight >= 0).all() for n in range(lpips.network.L))


def test_a_reference_takes_the_size_of_the_images(lpips, tmp_path):
    small = pictures(64, 64)
    metadata = saved(torch.full_like(small, 0.4), tmp_path)
    assert lpips(torch.full((3, 3, 96, 72), 0.4), [], metadata).abs().max() < 1e-6


def test_dino_is_transformers_own(dino, tmp_path):
    from transformers import BitImageProcessor

    model, reward = dino
    images, others = pictures(300, 400), pictures(260, 390)
    settings = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    settings |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = BitImageProcessor(**settings)
    with torch.no_grad():
        a, b = (model(**processor(to_pil(x), return_tensors="pt")).last_hidden_state[:, 0] for x in (images, others))
    score = reward(images, [], saved(others, tmp_path))
    assert torch.allclose(score, torch.cosine_similarity(a, b), atol=2e-3) and score.std() > 5e-3
    assert torch.allclose(reward(others, [], saved(others, tmp_path)), torch.ones(3))
    climbs(reward, images, saved(others, tmp_path))


def test_dino_reads_each_reference_once(dino, tmp_path):
    reward, images = dino[1], pictures(64, 64)
    metadata = saved(images, tmp_path)
    first = reward(images, [], metadata)
    for given in metadata:
        os.remove(given["reference"])
    assert torch.equal(reward(images, [], metadata), first)


def test_what_is_missing_is_named(lpips, dino, tmp_path):
    for reward in (lpips, dino[1]):
        with pytest.raises(RewardError, match=r"none\.png"):
            reward(pictures()[:1], [""], [{"reference": str(tmp_path / "none.png")}])
        with pytest.raises(RewardError, match="lacks 'reference'"):
            check_metadata("similar", reward, ["a"], [{}])
    refuses(f"{NAME}:DinoSimilarity", "could not load 'nobody/dino'.*path of a local copy", model="nobody/dino")
    refuses(f"{NAME}:LpipsSimilarity", "net must be alex, vgg or squeeze", net="resnet")


def test_lpips_without_its_backbone_says_where_to_put_it(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("lpips.LPIPS", offline)
    refuses(f"{NAME}:LpipsSimilarity", "no network.*torchvision.*checkpoints")


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
@pytest.mark.parametrize("reward", [LpipsSimilarity, DinoSimilarity])
def test_published_weights(reward, tmp_path):
    """The same is nearest, a noisy copy next, another picture last."""
    images = pictures(224, 224)[:2]
    metadata = saved(images, tmp_path)
    made = reward(device="cpu")
    noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    same, near, far = (made(x, [], metadata) for x in (images, noisy, images.flip(0)))
    assert (same > near).all() and same[0].item() == pytest.approx(1.0 if reward is DinoSimilarity else 0.0, abs=1e-4)
    assert (same > far).all()
