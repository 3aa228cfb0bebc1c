import math
from dataclasses import replace

import pytest
import torch
from gaussian_world import batch_of, gaussian_policy
from torch import nn

from genrl.losses.latent_reward import LATENT_REWARD
from genrl.losses.preference import ANCHOR, LatentPreference, PixelRanker, log_ratio_difference
from genrl.losses.student import StudentSteps
from genrl.policy import ACTOR, REF
from genrl.pool import RewardPool
from genrl.types import Prompt

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)
EARLY = StudentSteps(GRID, (0, 1))


class Brightness(nn.Module):
    """Prefers features with a large mean: in this world velocities, which at high noise rise with the latent."""

    def forward(self, features, sigma, pooled):
        return features.flatten(1).mean(1)


def policy(anchor=(0.5, 0.8)):
    return gaussian_policy({ACTOR: (0.5, 0.8), ANCHOR: anchor, REF: (0.5, 0.8)}, {LATENT_REWARD: Brightness()})


def batch(count=32, seed=0):
    return batch_of(count, torch.randn(count, 4, 1, 2, 2, generator=torch.Generator().manual_seed(seed)), seed=seed)


def test_h_is_the_explicit_difference_of_log_probabilities():
    draw = torch.Generator().manual_seed(0)
    x0, x0_ref, best, worst = torch.randn(4, 3, 1, 2, 2, generator=draw, dtype=torch.float64)
    after = torch.tensor([0.9, 0.75, 0.5], dtype=torch.float64)
    s = after.view(-1, 1, 1, 1)
    z_best, z_worst = ((1 - s) * x0 + s * eps for eps in (best, worst))

    def log_p(z, mean):
        return torch.distributions.Normal((1 - s) * mean, s).log_prob(z).flatten(1).sum(1)

    explicit = (log_p(z_best, x0) - log_p(z_best, x0_ref)) - (log_p(z_worst, x0) - log_p(z_worst, x0_ref))
    assert torch.allclose(log_ratio_difference(x0, x0_ref, best, worst, after), explicit, atol=1e-9)


def test_at_the_reference_h_is_zero_and_the_gradient_as_derived():
    """dL/dx0 = -beta / 2 (a / s) (eps^w - eps^l) / D per sample."""
    x0 = torch.randn(2, 1, 2, 2, requires_grad=True)
    best, worst = torch.randn(2, 2, 1, 2, 2)
    after, beta = torch.tensor([0.9, 0.5]), 50.0
    h = log_ratio_difference(x0, x0.detach(), best, worst, after) / 4
    assert torch.equal(h, torch.zeros(2))
    (-nn.functional.logsigmoid(beta * h)).sum().backward()
    expected = -beta / 2 * ((1 - after) / after).view(-1, 1, 1, 1) * (best - worst) / 4
    assert torch.allclose(x0.grad, expected, atol=1e-5)


def test_a_fresh_anchor_gives_log_two_and_a_push_towards_the_preferred():
    who = policy()
    output = LatentPreference(EARLY)(who, batch())
    assert output.loss.item() == pytest.approx(math.log(2), abs=1e-6) and output.metrics["preference/h"].abs() < 1e-7
    output.loss.backward()
    assert who.parameters(ACTOR)[0].grad < 0 and output.metrics["preference/margin"] > 0
    assert all(p.grad is None for p in who.parameters(ANCHOR))


def test_the_preferred_becomes_likely():
    who = policy()
    optimizer = torch.optim.Adam(who.parameters(ACTOR), lr=0.02)
    for seed in range(40):
        optimizer.zero_grad()
        LatentPreference(EARLY, beta=20.0)(who, batch(seed=seed)).loss.backward()
        optimizer.step()
    assert who.parameters(ACTOR)[0].item() > 0.7 and who.parameters(ANCHOR)[0].item() == pytest.approx(0.5)


def test_beyond_the_clamp_nothing_is_learned():
    far = policy(anchor=(5.0, 0.8))
    LatentPreference(EARLY, clamp=1e-6)(far, batch()).loss.backward()
    assert all(p.grad is None or p.grad.abs() < 1e-9 for p in far.parameters(ACTOR))
    free = policy(anchor=(5.0, 0.8))
    LatentPreference(EARLY)(free, batch()).loss.backward()
    assert free.parameters(ACTOR)[0].grad.abs() > 1e-6


def test_what_makes_no_preference_is_refused():
    with pytest.raises(ValueError, match="two candidates"):
        LatentPreference(EARLY, candidates=1)
    with pytest.raises(ValueError, match="adds no noise"):
        LatentPreference(StudentSteps(GRID, (3,)))


def test_pictures_can_be_ranked_by_any_reward():
    """Brightness of the predicted picture; a candidate that cannot be scored is neither best nor worst."""
    seen = []

    def bright(images, prompts, metadata):
        seen.append((prompts, metadata, images.shape))
        score = images.mean((1, 2, 3))
        score[0] = float("nan")
        return score

    ranker = PixelRanker(RewardPool({"bright": bright}), {"bright": 2.0})
    who = gaussian_policy({ACTOR: (0.5, 0.8), ANCHOR: (0.5, 0.8)})
    one = replace(batch(8), prompts=tuple(Prompt(f"p{i}", metadata={"i": i}) for i in range(8)))
    loss = LatentPreference(EARLY, ranker)
    assert loss.roles == (ACTOR, ANCHOR, ACTOR)
    output = loss(who, one.index(torch.tensor([2, 5, 7])))
    output.loss.backward()
    assert who.parameters(ACTOR)[0].grad < 0, "towards brighter pictures"
    assert len(seen) == 4 and seen[0][0] == ["p2", "p5", "p7"] and seen[0][1][1] == {"i": 5} and seen[0][2] == (3, 3, 2, 2)
    assert output.metrics["preference/margin"].isfinite()
