import pytest
import torch
from gaussian_world import batch_of, gaussian_policy
from torch import nn

from genrl.losses.adversarial import (
    DISCRIMINATOR,
    LatentDiscrimination,
    LatentGan,
    PixelDiscrimination,
    PixelGan,
    accuracy,
    hinge,
    through,
)
from genrl.losses.combined import Combined
from genrl.losses.distribution_matching import DistributionMatching
from genrl.losses.student import FAKE, StudentSteps
from genrl.policy import ACTOR, REF

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)
LATE, NOISY = StudentSteps(GRID, (3,)), StudentSteps(GRID, (0, 1, 2))


class MeanLogit(nn.Module):
    """Logit = gain * (mean over everything - 0.5)."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, images):
        return self.gain * (images.flatten(1).mean(1) - 0.5)


def policy_with_judge():
    return gaussian_policy({ACTOR: (0.5, 0.8), FAKE: (0.3, 0.9), REF: (1.0, 0.4)}, {DISCRIMINATOR: MeanLogit()})


def batch(count=16):
    draw = torch.Generator().manual_seed(1)
    states, predictions = torch.randn(2, count, 4, 1, 2, 2, generator=draw)
    return batch_of(count, states, predictions, 2 + torch.randn(count, 1, 2, 2, generator=draw))


def test_hinge_and_accuracy():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])
    assert hinge(real, fake).item() == pytest.approx(0.25 + 1.0)
    assert accuracy(real, fake).item() == pytest.approx(0.75)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_carried_through_are_the_gradients(checkpointing):
    weight = torch.randn(4, requires_grad=True)
    y = torch.outer(torch.randn(3), weight)
    value, gradient = through(lambda z: z.square().sin().sum(), y, checkpointing)
    direct = y.square().sin().sum()
    assert value.item() == pytest.approx(direct.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(value, weight, retain_graph=True)[0], torch.autograd.grad(direct, weight)[0], atol=1e-5)
    assert gradient.shape == y.shape


@pytest.mark.parametrize("origin", ["inference", "literal"])
def test_the_student_is_pushed_towards_real_and_nobody_else_learns(origin):
    policy = policy_with_judge()
    with policy.only(ACTOR):
        output = PixelGan(LATE, origin)(policy, batch())
        output.loss.backward()
    mean = policy.parameters(ACTOR)[0]
    assert mean.grad < 0, "a larger mean is what this discriminator calls real, so descent must raise it"
    assert all(p.grad is None for p in policy.parameters(FAKE, REF, DISCRIMINATOR))
    assert policy.model.gain.grad is None
    assert output.metrics["latent_gradient/adversarial"] > 0


def test_the_origins_differ_only_in_the_states():
    policy, one = policy_with_judge(), batch()
    inference, literal = (PixelGan(LATE, origin)(policy, one).loss.item() for origin in ("inference", "literal"))
    assert inference != pytest.approx(literal)


def test_the_discriminator_learns_and_nobody_else():
    policy = policy_with_judge()
    with torch.no_grad():
        policy.networks[DISCRIMINATOR].gain.fill_(0.1)
    optimizer = torch.optim.Adam(policy.parameters(DISCRIMINATOR), lr=0.3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = PixelDiscrimination(LATE)(policy, batch(64))
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] - 0.5 and output.metrics["discriminator/accuracy"] > 0.6
    assert all(p.grad is None for p in policy.parameters(ACTOR, FAKE, REF))


def test_the_latent_gan_looks_through_the_fake_without_teaching_it():
    policy = policy_with_judge()
    with policy.only(ACTOR):
        LatentGan(LATE)(policy, batch()).loss.backward()
    assert all(p.grad.abs() > 0 for p in policy.parameters(ACTOR))
    assert all(p.grad is None for p in policy.parameters(FAKE, REF, DISCRIMINATOR))
    policy = policy_with_judge()
    with policy.only(FAKE, DISCRIMINATOR):
        LatentDiscrimination(LATE)(policy, batch()).loss.backward()
    assert all(p.grad.abs() > 0 for p in policy.parameters(FAKE, DISCRIMINATOR))
    assert all(p.grad is None for p in policy.parameters(ACTOR, REF))


def test_losses_add_up_or_take_turns():
    policy, one = policy_with_judge(), batch()
    parts = [(DistributionMatching(NOISY), 1.0), (PixelGan(LATE), 0.5)]
    alone = [loss(policy, one).loss.item() for loss, _ in parts]
    both = Combined(parts)
    assert both(policy, one).loss.item() == pytest.approx(alone[0] + 0.5 * alone[1], rel=1e-5)
    assert set(both.requires) == {"states"} and set(both.roles) == {ACTOR, FAKE, REF, DISCRIMINATOR}
    turns = [batch_of(16, one.signal["states"], one.signal["predictions"], seed=seed) for seed in range(12)]
    keys = [set(Combined(parts, "either")(policy, turn).metrics) for turn in turns]
    assert any("latent_gradient/adversarial" in k for k in keys) and any("latent_gradient/matching" in k for k in keys)
    assert all(("latent_gradient/adversarial" in k) != ("latent_gradient/matching" in k) for k in keys)


def test_at_most_so_many_images_are_looked_at():
    policy, whole = policy_with_judge(), batch(8)
    for loss in (PixelGan(LATE, images=3), PixelDiscrimination(LATE, images=3)):
        few = type(loss)(LATE)(policy, whole.index(torch.arange(3))).loss
        assert torch.equal(loss(policy, whole).loss, few) and not torch.equal(few, type(loss)(LATE)(policy, whole).loss)
        assert torch.equal(type(loss)(LATE, images=99)(policy, whole).loss, type(loss)(LATE)(policy, whole).loss)
