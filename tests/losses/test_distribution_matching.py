import pytest
import torch
from gaussian_world import batch_of, gaussian_policy

from genrl.losses.distribution_matching import DistributionMatching, ScoreMatching, surrogate
from genrl.losses.noise import Levels, SigmaDensity
from genrl.losses.student import FAKE, StudentSteps, early
from genrl.policy import ACTOR, REF

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)
NOISY = StudentSteps(GRID, (0, 1, 2))
ROLES = {ACTOR: (0.5, 0.8), FAKE: (0.3, 0.9), REF: (1.0, 0.4)}


def states(count=64, seed=0):
    return torch.randn(count, 4, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_the_surrogates_gradient_is_the_normalised_difference():
    x = torch.randn(3, 4, 2, 2, requires_grad=True)
    fake, teacher = torch.randn(2, 3, 4, 2, 2)
    loss, g = surrogate(x, fake, teacher)
    loss.backward()
    expected = (fake - teacher) / (x.detach() - teacher).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(g, expected, atol=1e-6)
    assert torch.allclose(x.grad, expected / x.numel(), atol=1e-7)


def test_the_surrogate_is_double_inside():
    """A difference far below the predictions' own size survives."""
    teacher = torch.full((1, 1, 2, 2), 100.0)
    fake = teacher + torch.tensor([1, -1, 2, 0.0]).view(1, 1, 2, 2) * 2**-17
    _, g = surrogate(teacher + 1, fake, teacher)
    assert torch.allclose(g * 2**17, torch.tensor([1, -1, 2, 0.0]).view(1, 1, 2, 2), rtol=1e-6)


def test_a_sample_on_the_teacher_has_no_gradient():
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss, g = surrogate(x, x.detach(), x.detach())
    loss.backward()
    assert (g == 0).all() and (x.grad == 0).all()


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_on_gaussians_it_is_the_analytic_score_difference(tau):
    """``g`` times its norm and ``(1 - tau) / tau^2`` is ``s_fake - s_teacher`` of the two known densities, turned round."""
    policy = gaussian_policy(ROLES)
    loss = DistributionMatching(NOISY, low=tau - 1e-6, high=tau)
    batch = batch_of(64, states())
    seen = {}
    velocity = policy.velocity
    policy.velocity = lambda x, sigma, cond, role, *rest: seen.setdefault(role, (x, sigma)) and velocity(x, sigma, cond, role, *rest)
    output = loss(policy, batch)
    step = NOISY.pick(batch)
    level = NOISY.level(step)
    state = batch.signal["states"][torch.arange(64), step]
    prediction = (state - level.view(-1, 1, 1, 1) * velocity(state, level, batch.cond, ACTOR)).detach().requires_grad_()
    x_tau = seen[REF][0]

    def score(mean, std):
        return -(x_tau - (1 - tau) * mean) / (((1 - tau) * std) ** 2 + tau**2)

    x0_teacher = (x_tau + tau**2 * score(*ROLES[REF])) / (1 - tau)
    difference = score(*ROLES[REF]) - score(*ROLES[FAKE])
    norm = (prediction - x0_teacher).abs().mean((1, 2, 3), keepdim=True)
    expected = -(tau**2) / (1 - tau) * difference / norm  # = (x0_fake - x0_teacher) / norm, by Tweedie's formula
    # the student's gradient is that, pulled back through its own prediction
    parameters = policy.parameters(ACTOR)
    ours = torch.autograd.grad(output.loss, parameters)
    again = state - level.view(-1, 1, 1, 1) * velocity(state, level, batch.cond, ACTOR)
    theirs = torch.autograd.grad((again * expected.detach() / again.numel()).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)
        assert a.abs() > 1e-3


def test_zero_where_fake_equals_teacher_without_guidance():
    policy = gaussian_policy({**ROLES, FAKE: ROLES[REF]})
    output = DistributionMatching(NOISY)(policy, batch_of(32, states()))
    output.loss.backward()
    assert all(p.grad.abs().max() < 1e-6 for p in policy.parameters(ACTOR))


def test_no_gradient_reaches_teacher_or_fake():
    policy = gaussian_policy(ROLES)
    DistributionMatching(NOISY)(policy, batch_of(32, states())).loss.backward()
    assert all(p.grad is None for role in (FAKE, REF) for p in policy.parameters(role))
    assert all(p.grad is not None for p in policy.parameters(ACTOR))


SHIFTED = Levels(tuple(3 * t / (1 + 2 * t) for t in torch.linspace(0, 1, 1001).tolist()))


@pytest.mark.parametrize("levels", [Levels(), SHIFTED])
@pytest.mark.parametrize("renoise", ["full", "above_next", "between", "student_steps"])
def test_re_noise_levels_keep_their_range(renoise, levels):
    loss = DistributionMatching(NOISY, levels=levels, renoise=renoise)
    batch = batch_of(2000, torch.zeros(2000, 4, 1, 2, 2))
    step = NOISY.pick(batch)
    tau = loss._levels(batch, step)
    low, top = levels(torch.tensor([0.02, 0.98])).tolist()
    assert tau.max() <= top + 1e-6 and tau.min() >= low - 1e-6
    assert set(step.tolist()) == {0, 1, 2}
    if renoise == "above_next":
        assert (tau >= NOISY.after(step) - 1e-5).all() and (tau < NOISY.after(step) + 0.1).any()
    elif renoise == "between":
        assert (tau >= NOISY.after(step) - 1e-5).all() and (tau <= NOISY.level(step) + 1e-5).all()
        share = (levels.time(tau) - levels.time(NOISY.after(step))) / (levels.time(NOISY.level(step)) - levels.time(NOISY.after(step)))
        assert share[step > 0].mean().item() == pytest.approx(0.5, abs=0.02), "uniform in the model's time"
    elif renoise == "student_steps":
        assert {round(t, 3) for t in tau.tolist()} == {round(top, 3), 0.9, 0.75, 0.5}
    else:
        assert tau.min() < low + 0.05 and levels.time(tau).mean().item() == pytest.approx(0.5, abs=0.02), "uniform in the model's time"


def test_a_models_time_and_back():
    time = torch.tensor([0.0, 0.1234, 0.5, 0.98, 1.0])
    assert torch.allclose(SHIFTED(time), 3 * time / (1 + 2 * time), atol=1e-5)
    assert torch.allclose(SHIFTED.time(SHIFTED(time)), time, atol=1e-5)
    assert Levels((0.2, 0.9))(torch.tensor([0.5])).item() == pytest.approx(0.55)
    density = SigmaDensity("model", levels=SHIFTED)
    assert density(torch.tensor([0.5])).item() == pytest.approx(0.75)


def test_the_draws_of_a_sample_do_not_depend_on_its_minibatch():
    loss, batch = DistributionMatching(NOISY), batch_of(16, states(16))
    whole, part = loss._levels(batch, NOISY.pick(batch)), batch.index(torch.tensor([3, 7]))
    assert torch.equal(whole[[3, 7]], loss._levels(part, NOISY.pick(part)))


@pytest.mark.parametrize("target", ["velocity", "eps"])
def test_the_fake_learns_the_students_distribution(target):
    """Predictions N(0.7, 0.5^2): the score matching optimum is that Gaussian, in either target."""
    policy = gaussian_policy(ROLES)
    predictions = 0.7 + 0.5 * states(512, seed=3)
    loss = ScoreMatching(NOISY, SigmaDensity(low=0.05, high=0.95), target)
    optimizer = torch.optim.Adam(policy.parameters(FAKE), lr=0.02)
    for seed in range(250):
        optimizer.zero_grad()
        loss(policy, batch_of(512, predictions, seed=seed)).loss.backward()
        optimizer.step()
    mean, std = policy.parameters(FAKE)
    assert mean.item() == pytest.approx(0.7, abs=0.04) and std.abs().item() == pytest.approx(0.5, abs=0.04)
    assert all(p.grad is None for role in (ACTOR, REF) for p in policy.parameters(role))


@pytest.mark.parametrize("levels", [Levels(), SHIFTED])
def test_between_the_fake_learns_each_step_where_it_is_asked_about_it(levels):
    """One law of the levels, for matching and for the fake: those that the sample's step crosses."""
    whole = StudentSteps(GRID, (0, 1, 2, 3))
    loss = ScoreMatching(whole, between=True, levels=levels)
    batch = batch_of(4000, torch.zeros(4000, 4, 1, 2, 2))
    seen = {}
    policy = gaussian_policy(ROLES)
    answer = policy.answer
    policy.answer = lambda x, sigma, *rest: seen.setdefault("sigma", sigma) is not None and answer(x, sigma, *rest)
    loss(policy, batch)
    step, sigma = whole.pick(batch), seen["sigma"]
    assert (sigma >= whole.after(step) - 1e-5).all() and (sigma <= whole.level(step) + 1e-5).all()
    matching = DistributionMatching(whole, levels=levels, renoise="between", low=1e-4, high=1.0)
    for k in range(4):
        asked, learned = levels.time(matching._levels(batch, step)[step == k]), levels.time(sigma[step == k])
        assert asked.mean().item() == pytest.approx(learned.mean().item(), abs=0.02)


def test_a_student_follows_its_teacher():
    """Distribution matching with a fake that follows takes N(0.5, 0.8) to the teacher's N(1, 0.4): mean and spread."""
    policy = gaussian_policy({ACTOR: (0.0, 0.8), FAKE: (0.0, 0.8), REF: (1.0, 0.4)})
    one = StudentSteps((1.0, 0.0), (0,))
    matching, scoring = DistributionMatching(one), ScoreMatching(one, SigmaDensity(low=0.02, high=0.98))
    students = torch.optim.Adam(policy.parameters(ACTOR), lr=0.01)
    fakes = torch.optim.Adam(policy.parameters(FAKE), lr=0.03)
    for seed in range(300):
        noise = torch.randn(256, 1, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            sigma = torch.ones(256)
            drawn = noise[:, 0] - policy.velocity(noise[:, 0], sigma, batch_of(256, noise).cond, ACTOR)
        batch = batch_of(256, noise, drawn[:, None], seed=seed)
        for optimizer, loss in ((fakes, scoring), (students, matching)):
            for parameter in policy.parameters(*policy.roles):
                parameter.grad = None
            loss(policy, batch).loss.backward()
            optimizer.step()
    # at sigma 1 the exact flow of a Gaussian predicts its mean only: what the student can match is where the samples lie
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.15)


def test_steps_are_of_the_sampler():
    assert early(4) == (0, 1, 2) and early(8, 2) == tuple(range(6)) and early(1) == (0,)
    with pytest.raises(ValueError, match="0 to 3"):
        StudentSteps(GRID, (4,))
    with pytest.raises(ValueError, match="at least one"):
        StudentSteps(GRID, ())
    with pytest.raises(ValueError, match="re-noise times"):
        DistributionMatching(NOISY, low=0.5, high=0.4)
