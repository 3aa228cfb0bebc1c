"""The weighting family: values written out by hand, what may not matter, and the closed forms of a Gaussian world."""

import math

import pytest
import torch
from linear_world import GaussianValue, LinearModel, conditioning

from genrl.chain import OdeChain
from genrl.kernels import using
from genrl.losses.noise import SigmaDensity, renoise
from genrl.losses.weighted_matching import WeightedMatching, _group_mean
from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy
from genrl.rollout import denoise
from genrl.types import Batch

STD = 0.6


def policy(critic=None):
    model = LinearModel(std=STD)
    return FlowPolicy(model, Copies(model.network, (ACTOR, OLD, REF)), {"critic": critic or GaussianValue(0.0, STD)})


def batch(count=64, reward=None, x0=None):
    x0 = torch.randn(count, 1, 1, 1) * STD if x0 is None else x0
    signal = {
        "reward": x0.flatten() if reward is None else reward,
        "group_reward": torch.zeros(len(x0)),
        "valid": torch.ones(len(x0), dtype=torch.bool),
    }
    return Batch(torch.zeros(len(x0), dtype=torch.long), torch.arange(len(x0)), x0, conditioning(len(x0)), signal, stream=(0, 1))


def move(network, amount=0.3):
    with torch.no_grad():
        network.offset += amount


@pytest.mark.parametrize("form", ["reference", "triton"])
@pytest.mark.parametrize("weighting", ["exp", "relu", "affine", "signed", "implicit", "outcome"])
def test_values_written_out(weighting, form):
    who, data = policy(), batch(32)
    with who.storage.use(ACTOR) as network:
        move(network)
    loss = WeightedMatching(weighting, tau=0.7, clip=0.5, strength=0.8, beta=0.25)
    x, sigma, u = renoise(data, loss.density)
    assert torch.allclose(x, data.x0 + sigma.view(-1, 1, 1, 1) * u, atol=1e-6)
    v, v_ref, v_old = (who.velocity(x, sigma, data.cond, role) for role in (ACTOR, REF, OLD))
    reward = data.signal["reward"]
    a = (reward - who.networks["critic"](x, sigma, data.cond.pooled)).clamp(-0.5, 0.5)
    square = lambda e: e.square().flatten(1).mean(1)  # noqa: E731
    p = (1 + a / 0.5) / 2
    expected = {
        "exp": (0.7 * a).exp() * square(v - u),
        "relu": a.clamp(min=0) * square(v - u),
        "affine": (1 + a / 0.5) * square(v - u),
        "signed": a * (square(v - u) - square(v - v_ref)),
        "implicit": p * square(0.2 * v_old + 0.8 * v - u) + (1 - p) * square(1.8 * v_old - 0.8 * v - u),
        "outcome": (0.7 * reward).exp() * square(v - u),
    }[weighting]
    with using(form):
        assert torch.allclose(loss(who, data).loss, (expected + 0.25 * square(v - v_ref)).mean(), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["exp", "relu", "affine", "signed", "implicit", "outcome"])
def test_only_the_actor_receives_gradient(weighting):
    critic = torch.nn.Linear(1, 1)
    critic.endpoint = False
    critic.forward = lambda x, sigma, pooled, endpoint=None: critic.weight * x.flatten()  # differentiable on purpose
    who = policy(critic)
    WeightedMatching(weighting, beta=0.1)(who, batch()).loss.backward()
    for role in (OLD, REF, "critic"):
        assert all(t.grad is None for t in who.tensors(role).values()), role
    assert any(t.grad.abs().max() > 0 for t in who.tensors(ACTOR).values())


def test_the_implicit_form_starts_like_the_signed_one():
    """At v = v_old = v_ref both gradients are 2 E[(A / clip) (v - u)], times the strength: derived in docs/methods/ac_flow.md."""
    data, gradients = batch(256), []
    for loss in (WeightedMatching("signed", clip=1.0), WeightedMatching("implicit", clip=1.0, strength=0.5)):
        who = policy()
        loss(who, data).loss.backward()
        gradients.append(torch.cat([t.grad for t in who.parameters(ACTOR)]))
    assert torch.allclose(gradients[0], gradients[1] / 0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("center", "one_for_all", "each_its_own"), [("none", True, True), ("batch", False, True), ("group", False, False)])
def test_centring_takes_out_a_mean_advantage_and_nothing_else(center, one_for_all, each_its_own):
    """Offsets of the reward, the same for all samples and one for each prompt, reach the gradient or do not."""
    data, group = batch(256), torch.arange(256) // 64

    def gradient(offset: torch.Tensor) -> torch.Tensor:
        who, signal = policy(), {**data.signal, "reward": data.signal["reward"] + offset}
        shifted = Batch(**{**data.__dict__, "signal": signal, "group": group})
        WeightedMatching("implicit", "none", clip=10.0, center=center, beta=0.0)(who, shifted).loss.backward()
        return torch.cat([t.grad for t in who.parameters(ACTOR)])

    plain = gradient(torch.zeros(256))
    for offset, reaches in ((torch.full((256,), 0.7), one_for_all), (0.7 * (group - 1.5), each_its_own)):
        moved = ((gradient(offset) - plain).norm() / plain.norm()).item()
        assert moved > 0.02 if reaches else moved < 1e-3, (center, moved)


def test_clipping_brings_no_mean_back():
    """Three just missed, one far better: after clipping at .1 their mean would be -.05 if it were not subtracted again."""
    who, data = policy(), batch(4, reward=torch.tensor([0.0, 0.0, 0.0, 2.0]))
    loss = WeightedMatching("implicit", "none", clip=0.1, center="group")
    advantage, clipped = loss._advantage(who, data, data.x0, torch.ones(4), None)
    assert torch.allclose(advantage, torch.tensor([-0.05, -0.05, -0.05, 0.15]))
    assert clipped.all() and loss(who, data).metrics["policy/clipped"] == 1


def test_centring_skips_what_could_not_be_scored():
    values, group = torch.tensor([1.0, 3.0, 50.0, 4.0]), torch.tensor([7, 7, 7, 2])
    mean = _group_mean(values, group, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert mean.tolist() == [2.0, 2.0, 2.0, 4.0]


def test_the_signed_form_is_convex_for_any_advantage():
    """The A v^2 terms cancel: along any line the loss is a parabola that opens upwards, however negative the advantages."""
    data = batch(64, reward=torch.full((64,), -50.0))
    loss, values = WeightedMatching("signed", baseline="none", clip=50.0, beta=0.1), []
    for amount in (-1.0, 0.0, 1.0):
        who = policy()
        with who.storage.use(ACTOR) as network:
            move(network, amount)
        values.append(loss(who, data).loss.item())
    assert values[0] + values[2] - 2 * values[1] > 0.01


def test_samples_that_cannot_be_scored_do_not_count():
    data = batch(16)
    half = Batch(**{**data.__dict__, "signal": {**data.signal, "valid": torch.arange(16) < 8}})
    loss = WeightedMatching("implicit")
    assert torch.allclose(loss(policy(), half).loss, loss(policy(), data.index(slice(0, 8))).loss)


def test_a_minibatch_does_not_change_a_samples_noise():
    data, loss = batch(16), WeightedMatching("exp", beta=0.3)
    whole = loss(policy(), data).loss
    parts = [loss(policy(), data.index(torch.tensor(rows))).loss for rows in ([3, 1, 2, 0, 7, 6, 5, 4], list(range(8, 16)))]
    assert torch.allclose(whole, torch.stack(parts).mean(), rtol=1e-5)


def test_an_error_on_the_endpoint_would_break_convexity():
    with pytest.raises(ValueError, match="signed"):
        WeightedMatching("signed", error="endpoint")


# -- closed forms: N(0, s^2), reward x, fitted exactly each round


@pytest.fixture
def draw_once(monkeypatch):
    """An optimiser asks for the same noise many times; draw it once."""
    known = {}

    def cached(data, density):
        if data.stream not in known:
            known.clear()
            known[data.stream] = renoise(data, density)
        return known[data.stream]

    monkeypatch.setattr("genrl.losses.weighted_matching.renoise", cached)


def fit(who, loss, data):
    """Minimise a loss that is quadratic in the actor's weights."""
    optimizer = torch.optim.LBFGS(who.parameters(ACTOR), max_iter=40, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(who, data).loss
        value.backward()
        return value

    optimizer.step(closure)


def online(loss, rounds, particles=4000, gain=1.0, offset=0.0, value_only=None):
    """Online rounds: sample, weigh, fit, refresh; mean and std of the samples, averaged over the last half of the rounds."""
    who, seen = policy(), []
    # fine steps: every round is fitted to the one before, so an integrator's error would add up
    chain = OdeChain(tuple(torch.linspace(1, 0, 201).tolist()))
    # evenly spread noise instead of random draws
    noise = torch.special.ndtri((torch.arange(particles) + 0.5) / particles)
    for round_ in range(rounds):
        generator = torch.Generator().manual_seed(round_)
        x = noise[torch.randperm(particles, generator=generator)].view(-1, 1, 1, 1)
        x0 = denoise(who, chain, x, conditioning(particles), role=OLD, guidance=1.0)
        seen.append((x0.mean().item(), x0.std().item()))
        who.networks["critic"] = value_only or GaussianValue(*seen[-1], gain, offset)
        data = batch(reward=gain * x0.flatten() + offset, x0=x0)
        fit(who, loss, Batch(**{**data.__dict__, "stream": (round_, 2)}))
        who.sync(OLD, ACTOR)
    mean, std = torch.tensor(seen[rounds // 2 :]).mean(0).tolist()
    return mean, std


def test_the_gaussian_is_tilted_as_predicted(draw_once):
    """Online fixed point of exp weights with the exact critic: p_ref tilted by exp((tau / beta) r), mean (tau / beta) s^2."""
    tau, beta = 0.3, 0.5
    mean, std = online(WeightedMatching("exp", tau=tau, beta=beta, clip=1e9), rounds=80)
    assert mean == pytest.approx(tau / beta * STD**2, rel=0.05)
    assert std == pytest.approx(STD, rel=0.05)


def test_a_weight_of_the_noisy_point_alone_does_not_move_the_policy(draw_once):
    """exp(tau V(x_sigma)) cancels in the minimiser; the same weight on the outcome moves the mean by 0.2."""

    class MinusValue(GaussianValue):
        def forward(self, x, sigma, pooled, endpoint=None):
            return -super().forward(x, sigma, pooled, endpoint)

    blind = WeightedMatching("exp", tau=0.3, beta=0.5, clip=1e9)
    mean, _ = online(blind, rounds=30, gain=0.0, value_only=MinusValue(0.0, STD))
    assert abs(mean) < 0.03


def test_a_reward_offset_leaves_ac_flow_alone_and_moves_orw(draw_once):
    moved = [online(WeightedMatching("exp", tau=0.3, beta=0.5, clip=1e9), 8, 2000, offset=b)[0] for b in (0.0, 2.0)]
    assert moved[0] == pytest.approx(moved[1], abs=1e-4)
    rival = [online(WeightedMatching("outcome", tau=0.3, beta=0.5), 8, 2000, offset=b)[0] for b in (0.0, 2.0)]
    assert rival[1] > rival[0] * 1.1, "exp(tau (r + b)) weighs the reward against W2 by e^(tau b) more"


def test_levels_follow_their_density():
    u = torch.linspace(0, 1, 2001)[1:-1]
    normal = SigmaDensity("logit_normal", mean=0.0, std=1.0)(u)
    assert normal.median().item() == pytest.approx(0.5, abs=1e-3)
    assert (normal < 1 / (1 + math.e)).float().mean().item() == pytest.approx(0.1587, abs=2e-3)
    assert SigmaDensity("uniform", low=0.2, high=0.4)(u).mean().item() == pytest.approx(0.3, abs=1e-3)
    assert SigmaDensity("uniform", shift=3.0)(u).median().item() == pytest.approx(0.75, abs=1e-3)
