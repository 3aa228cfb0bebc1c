import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrl import path


@given(st.floats(0.01, 0.99), st.integers(0, 1000))
def test_conversions_are_inverse(sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x, v = path.add_noise(x0, eps, sigma), path.velocity_target(x0, eps)
    assert torch.allclose(path.to_x0(x, v, sigma), x0)
    assert torch.allclose(path.to_eps(x, v, sigma), eps)
    assert torch.allclose(path.to_score(x, v, sigma), -eps / sigma)


def test_direction_of_sigma():
    x0, eps = torch.zeros(1, 1), torch.ones(1, 1)
    assert path.add_noise(x0, eps, 1.0).item() == 1.0, "sigma 1 is noise"
    assert path.add_noise(x0, eps, 0.0).item() == 0.0, "sigma 0 is data"
    assert path.velocity_target(x0, eps).item() == 1.0, "v points from data to noise"


def test_levels_per_sample():
    x0, eps = torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1)
    assert path.add_noise(x0, eps, torch.tensor([0.25, 0.75])).flatten(1).mean(1).tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match="one value per sample"):
        path.add_noise(x0, eps, torch.tensor([0.1, 0.2, 0.3]))


def test_score_of_a_gaussian():
    """For x0 ~ N(0, 1) the marginal is N(0, (1-s)^2 + s^2); its score is linear."""
    sigma = 0.3
    variance = (1 - sigma) ** 2 + sigma**2
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    v = x * (sigma - (1 - sigma)) / variance  # E[eps - x0 | x]
    assert torch.allclose(path.to_score(x, v, sigma), -x / variance)


@given(st.floats(0.2, 5.0))
def test_shift_keeps_the_ends_and_the_order(factor):
    sigma = torch.linspace(0, 1, 11)
    shifted = path.shift(sigma, factor)
    assert shifted[0] == 0 and torch.isclose(shifted[-1], torch.tensor(1.0))
    assert (shifted.diff() > 0).all()
    assert (shifted[5] > 0.5) == (factor > 1) or factor == pytest.approx(1, abs=1e-6)


def test_start_is_noise_at_the_top_and_keeps_a_variance_preserving_models_spread():
    noise = torch.randn(3, 2, 4, 4)
    assert torch.equal(path.start(noise, 1.0), noise)
    alpha, s = 0.0683, (1 - 0.0683**2) ** 0.5  # SDXL's last level
    assert torch.allclose(path.start(noise, s / (alpha + s)), noise / (alpha + s))
    levels = path.start(torch.ones(2, 1), torch.tensor([1.0, 0.5]))
    assert levels.flatten().tolist() == pytest.approx([1.0, 0.5**0.5])


def test_shapes_are_checked():
    with pytest.raises(Exception, match=r"(?s)eps"):
        path.add_noise(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4), 0.5)
