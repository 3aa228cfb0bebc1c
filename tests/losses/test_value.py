import pytest
import torch
from linear_world import GaussianValue, LinearModel, conditioning

from genrl.critic import ValueNet, sigma_features
from genrl.losses.noise import SigmaDensity
from genrl.losses.value import ValueRegression, value
from genrl.policy import ACTOR, REF, Copies, FlowPolicy
from genrl.types import Batch


def batch(reward, x0):
    signal = {"reward": reward, "valid": torch.ones(len(x0), dtype=torch.bool)}
    return Batch(torch.zeros(len(x0), dtype=torch.long), torch.arange(len(x0)), x0, conditioning(len(x0)), signal, stream=(3,))


def world(critic):
    model = LinearModel()
    return FlowPolicy(model, Copies(model.network, (ACTOR, REF)), {"critic": critic})


def test_the_exact_value_explains_what_can_be_explained():
    """Reward x0 ~ N(0, s^2): at level sigma the posterior mean explains (1-sigma)^2 s^2 / ((1-sigma)^2 s^2 + sigma^2) of its variance."""
    x0 = 0.6 * torch.randn(40_000, 1, 1, 1)
    metrics = ValueRegression().diagnose(world(GaussianValue(0.0, 0.6)), batch(x0.flatten(), x0))
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        sigma = torch.linspace(low, high, 201)
        known = ((1 - sigma) * 0.6) ** 2
        assert metrics[f"critic/explained_variance/{low}-{high}"] == pytest.approx((known / (known + sigma**2)).mean().item(), abs=0.03)
    blind = ValueRegression().diagnose(world(GaussianValue(0.0, 0.6, gain=0.0)), batch(x0.flatten(), x0))
    assert abs(blind["critic/explained_variance"]) < 1e-5


def fifths(metrics, bin_="0.4-0.6"):
    return tuple([metrics[f"critic/calibration/{bin_}/{kind}/{q}"] for q in range(5)] for kind in ("predicted", "actual"))


def test_calibration_in_fifths_of_the_prediction():
    """At one level the prediction is normal, so its fifths have known means; the exact value is right in each, twice of it wrong."""
    x0, sigma = 0.6 * torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(2)), 0.5
    known = ((1 - sigma) * 0.6) ** 2
    edges = torch.special.ndtri(torch.linspace(0, 1, 6))
    density = torch.exp(-(edges**2) / 2) / (2 * torch.pi) ** 0.5
    expected = (5 * 0.6 * (known / (known + sigma**2)) ** 0.5 * (density[:-1] - density[1:])).tolist()
    loss = ValueRegression(SigmaDensity(low=sigma, high=sigma))
    predicted, actual = fifths(loss.diagnose(world(GaussianValue(0.0, 0.6)), batch(x0.flatten(), x0)))
    assert predicted == pytest.approx(expected, abs=0.01) and actual == pytest.approx(expected, abs=0.02)
    bold = fifths(loss.diagnose(world(GaussianValue(0.0, 0.6, gain=2.0, offset=1.0)), batch(x0.flatten(), x0)))
    assert bold[0] == pytest.approx([1 + 2 * mean for mean in expected], abs=0.02) and bold[1] == pytest.approx(actual, abs=1e-4)


def test_calibration_needs_ten_samples_that_count():
    x0 = torch.randn(12, 1, 1, 1)
    data, policy = batch(x0.flatten(), x0), world(GaussianValue(0.0, 1.0))
    loss = ValueRegression(SigmaDensity(low=0.5, high=0.5))
    data.signal["valid"][:2] = False
    data.signal["reward"][:2] = 1e6
    assert max(fifths(loss.diagnose(policy, data))[1]) < 10, "what does not count is left out"
    data.signal["valid"][:3] = False
    assert not any("calibration" in name for name in loss.diagnose(policy, data))


def test_huber_of_the_residual():
    x0, reward = torch.zeros(4, 1, 1, 1), torch.tensor([0.5, -0.5, 3.0, 0.0])
    loss = ValueRegression(delta=1.0)(world(GaussianValue(0.0, 0.6, gain=0.0)), batch(reward, x0)).loss
    assert loss.item() == pytest.approx((0.125 + 0.125 + 2.5 + 0) / 4)


def test_an_untrained_critic_predicts_nothing():
    critic = ValueNet(channels=4, pooled=6, width=16)
    out = critic(torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 6), torch.randn(3, 4, 8, 8))
    assert out.shape == (3,) and (out == 0).all()


def test_the_critic_learns_from_each_of_its_inputs():
    """Fits a value that needs picture, level and prompt, on fresh data each step; with any of them withheld it cannot."""

    def error_without(withheld):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        critic, errors = ValueNet(4, 6, width=8, depth=1, endpoint=False), []
        optimizer = torch.optim.AdamW(critic.parameters(), lr=5e-3)
        for _ in range(200):
            mean, sigma, pooled = (
                torch.randn(64, generator=generator),
                torch.rand(64, generator=generator),
                torch.randn(64, 6, generator=generator),
            )
            # the value lies in the left half only: a critic that averages over the map would miss it
            picture = torch.zeros(64, 4, 8, 8)
            picture[..., :4], picture[..., 4:] = mean.view(-1, 1, 1, 1), -mean.view(-1, 1, 1, 1)
            inputs = {"picture": picture, "level": sigma, "prompt": pooled}
            inputs = {name: torch.zeros_like(value) if name == withheld else value for name, value in inputs.items()}
            loss = (critic(*inputs.values()) - mean - 4 * sigma - pooled[:, 0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(loss.item())
        return sum(errors[-20:]) / 20

    whole = error_without("nothing")
    assert all(whole < 0.5 * error_without(name) for name in ("picture", "level", "prompt"))


def test_an_endpoint_must_be_given_or_is_computed():
    critic = ValueNet(channels=1, pooled=1, width=16, depth=1, endpoint=True)
    with pytest.raises(ValueError, match="endpoint"):
        critic(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1, 1))
    assert value(world(critic), torch.zeros(2, 1, 8, 8), torch.ones(2), conditioning(2)).shape == (2,)


def test_features_of_levels_tell_them_apart():
    features = sigma_features(torch.linspace(0, 1, 101), 64)
    distance = torch.cdist(features, features) + 10 * torch.eye(101)
    assert distance.min() > 0.1


def test_the_critic_hears_a_faint_prompt():
    """Pooled embeddings of the shapes model differ by a few hundredths; a critic must tell prompts apart nevertheless."""
    torch.manual_seed(0)
    prompts = 0.3 + 0.05 * torch.randn(2, 32)
    critic = ValueNet(4, 32, width=16, depth=2, endpoint=False)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    for _ in range(80):
        which = torch.randint(2, (32,))
        loss = (critic(torch.randn(32, 4, 8, 8), torch.rand(32), prompts[which]) - (2.0 * which - 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
