"""Statistics against closed forms, and against scipy and colorsys where those define the same."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from genrl.image_stats import STATS, image_stats, luma
from genrl.reward import RewardError, about, load_reward
from genrl.rewards.image_stats import COUNTED, UNIT

NAME = "genrl.rewards.image_stats:ImageStat"
GREY = torch.full((1, 3, 16, 16), 0.5)
BOARD = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
NOISE = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def pure(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 16, 16)


CLOSED = [
    (
        GREY,
        {"brightness": 0.5, "contrast": 0, "saturation": 0, "colourfulness": 0, "sharpness": 0, "high_frequency": 0, "dark": 0, "flat": 1},
    ),
    (
        0 * GREY,
        {"brightness": 0, "contrast": 0, "saturation": 0, "colourfulness": 0, "sharpness": 0, "high_frequency": 0, "dark": 1, "flat": 1},
    ),
    # each pixel differs from its four neighbours by 255: the Laplacian is +-4 * 255 everywhere, also at mirrored borders
    (
        BOARD,
        {"brightness": 0.5, "contrast": 0.5, "sharpness": (4 * 255) ** 2, "high_frequency": 1, "dark": 0.5, "flat": 0, "colourfulness": 0},
    ),
    # rg = 255, yb = 127.5 without spread
    (pure(1, 0, 0), {"brightness": 0.299, "saturation": 1, "colourfulness": 0.3 * 127.5 * math.sqrt(5), "contrast": 0}),
    (pure(0.4, 0.4, 0.8), {"saturation": 0.5, "colourfulness": 0.3 * 255 * 0.4, "brightness": 0.4 * 0.886 + 0.8 * 0.114}),
]


@pytest.mark.parametrize(("images", "expected"), CLOSED)
def test_closed_forms(images, expected):
    got = image_stats(images)
    assert list(got) == list(STATS) and all(value.shape == (1,) for value in got.values())
    assert {name: got[name].item() for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_colourfulness_of_two_halves():
    """Half red, half green: rg is +-255, yb is 127.5; the mean of rg is 0."""
    images = torch.cat([pure(1, 0, 0)[..., :8], pure(0, 1, 0)[..., :8]], dim=-1)
    assert STATS["colourfulness"](images).item() == pytest.approx(255 + 0.3 * 127.5)


def test_a_wave_counts_as_high_from_half_of_nyquist():
    x = torch.arange(32)
    for cycles, high in ((4, 0.0), (8, 0.0), (9, 1.0), (14, 1.0)):
        wave = (0.5 + 0.4 * torch.cos(2 * math.pi * cycles * x / 32)).expand(1, 3, 32, 32)
        assert STATS["high_frequency"](wave).item() == pytest.approx(high, abs=1e-5), cycles


def test_the_same_as_scipy_and_colorsys():
    grey = (luma(NOISE) * 255).double().numpy()
    laplacian = [ndimage.laplace(picture, mode="mirror").var() for picture in grey]
    assert STATS["sharpness"](NOISE).tolist() == pytest.approx(laplacian, rel=1e-4)
    hsv = [np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.flatten(1).T.tolist()]) for picture in NOISE]
    assert STATS["saturation"](NOISE).tolist() == pytest.approx(hsv, rel=1e-4)


def test_flat_is_one_level_of_eight_bits():
    step = torch.arange(16) / 255
    assert STATS["flat"](0.3 + step.expand(1, 3, 16, 16)).item() == 1
    assert STATS["flat"](0.3 + 2 * step.expand(1, 3, 16, 16)).item() == 0
    assert STATS["flat"](0.3 + 2 * step[:, None].expand(1, 3, 16, 16)).item() == 0


def test_golden_numbers():
    ramp = torch.linspace(0, 1, 16 * 16 * 3).view(1, 16, 16, 3).permute(0, 3, 1, 2).square()
    golden = {
        "brightness": 0.33331,
        "contrast": 0.29842,
        "saturation": 0.030438,
        "colourfulness": 0.52628,
        "sharpness": 226.33,
        "high_frequency": 0.092102,
        "dark": 0.31641,
        "flat": 0.017778,
    }
    assert {name: value.item() for name, value in image_stats(ramp).items()} == pytest.approx(golden, rel=1e-3)


@pytest.mark.parametrize("name", STATS)
def test_gradients_are_as_announced(name):
    reward = load_reward(NAME, stat=name)
    assert about(reward).differentiable == (name not in COUNTED)
    if name in COUNTED:
        return
    for images in (NOISE, GREY, 0 * GREY):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(leaf, [], []).sum(), leaf)
        assert gradient.isfinite().all() and (images is not NOISE or gradient.abs().max() > 0)


def test_the_reward_is_the_statistic_or_minus_its_distance_to_the_target():
    plain = load_reward(NAME, stat="contrast")(NOISE, [], [])
    assert torch.equal(plain, STATS["contrast"](NOISE))
    near = load_reward(NAME, stat="contrast", target=plain[0].item())(NOISE, [], [])
    assert near[0] == 0 and near[1].item() == pytest.approx(-abs(plain[1] - plain[0]).item())
    for name in UNIT:
        assert about(load_reward(NAME, stat=name)).bounds == (0, 1)
        assert about(load_reward(NAME, stat=name, target=0.5)).bounds is None
    with pytest.raises(RewardError, match="known: brightness, contrast"):
        load_reward(NAME, stat="beauty")
