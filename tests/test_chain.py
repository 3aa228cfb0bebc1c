import itertools
import math

import pytest
import torch

from genrl.chain import CpsChain, Guidance, OdeChain, RenoiseChain, SdeChain, trailing_grid
from genrl.kernels import chain as kernels

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)


def integrate(steps, velocity, x):
    chain = OdeChain(tuple(torch.linspace(1, 0, steps + 1).tolist()))
    for k, sigma in enumerate(chain.sigmas[:-1]):
        law = chain.law(k)
        x = law.keep * x + law.move * velocity(x, sigma)
    return x


def test_a_velocity_solvable_by_hand():
    """dx/dsigma = 3 sigma^2 from x(1) = 1 gives x(0) = 0; dx/dsigma = x gives x(0) = x(1) / e. Euler's error halves with the step."""
    one = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(integrate(n, lambda x, s: 3 * s**2 * torch.ones_like(x), one).item()) for n in (200, 400)]
    assert errors[0] < 0.01 and errors[1] == pytest.approx(errors[0] / 2, rel=0.05)
    assert integrate(1000, lambda x, s: x, one).item() == pytest.approx(1 / math.e, rel=1e-3)


def test_equals_the_scheduler_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    chain = OdeChain(tuple(scheduler.sigmas.tolist()))
    ours = theirs = torch.randn(2, 4, 3, 3)
    for index, t in enumerate(scheduler.timesteps):
        v = torch.randn(2, 4, 3, 3)
        theirs = scheduler.step(v, t, theirs, return_dict=False)[0]
        law = chain.law(index)
        ours = law.mean(ours, v)
        assert law.std == 0
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_arithmetic_is_float32():
    x = torch.randn(1, 4).bfloat16()
    assert OdeChain((1.0, 0.0)).law(0).mean(x, x).dtype == torch.float32


@pytest.mark.parametrize("grid", [(1.0,), (0.0, 1.0), (1.0, 0.5, 0.5, 0.0), (1.2, 0.0), (1.0, -0.1)])
@pytest.mark.parametrize("chain", [OdeChain, SdeChain, CpsChain, RenoiseChain])
def test_a_grid_that_does_not_fall_is_refused(chain, grid):
    with pytest.raises(ValueError, match="fall strictly"):
        chain(grid)


@pytest.mark.parametrize(
    ("chain", "options", "said"),
    [
        (SdeChain, {"eta": 0.0}, "positive eta"),
        (CpsChain, {"eta": 1.1}, "at most 1"),
        (SdeChain, {"window": (4,)}, "chain of 4 lacks"),
        (CpsChain, {"window": (-1,)}, "chain of 4 lacks"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(chain, options, said):
    with pytest.raises(ValueError, match=said):
        chain(GRID, **options)
    with pytest.raises(ValueError, match="infinite noise"):
        SdeChain((1.0, 0.0))


def test_renoise_is_the_law_of_the_next_state():
    chain = RenoiseChain((1.0, 0.75, 0.0))
    x, v = torch.randn(2, 3, 4)
    first, last = chain.law(0), chain.law(1)
    assert torch.allclose(first.mean(x, v), 0.25 * (x - v)) and first.std == 0.75
    assert torch.allclose(last.mean(x, v), x - 0.75 * v) and last.std == 0.0


def marginal(chain, mean, std):
    """Mean and standard deviation after each step for data N(mean, std^2), whose exact velocity is affine: in closed form."""
    sigma = chain.sigmas[0]
    m, variance, found = (1 - sigma) * mean, ((1 - sigma) * std) ** 2 + sigma**2, []
    for k, sigma in enumerate(chain.sigmas[:-1]):
        law, spread = chain.law(k), ((1 - sigma) * std) ** 2 + sigma**2
        slope = (sigma - (1 - sigma) * std**2) / spread
        offset = -mean - slope * (1 - sigma) * mean
        gain = law.keep + law.move * slope
        m, variance = gain * m + law.move * offset, gain**2 * variance + law.std**2
        found.append((chain.sigmas[k + 1], m, variance**0.5))
    return found


@pytest.mark.parametrize("kind", [OdeChain, SdeChain])
def test_marginals_are_those_of_the_path(kind):
    """x_sigma ~ N((1 - sigma) m, ((1 - sigma) s)^2 + sigma^2), to the error of the discretisation, which falls with the step."""
    errors = []
    for steps in (200, 800):
        chain = kind(tuple(1 - k / steps for k in range(steps + 1)))
        errors.append(
            max(
                max(abs(m - (1 - sigma) * 0.5), abs(std - math.hypot((1 - sigma) * 0.8, sigma)))
                for sigma, m, std in marginal(chain, 0.5, 0.8)
                if sigma < 0.9  # at its very start the SDE's noise is unbounded
            )
        )
    assert errors[1] < 0.02 and errors[1] < 0.6 * errors[0]


def test_cps_keeps_the_level_of_noise():
    """Where x0 and eps are known exactly, the next state holds (1 - s') x0 and noise of spread s', whatever eta."""
    x0, eps, sigma, after = 2.0, -1.0, 0.75, 0.5
    x, v = (1 - sigma) * x0 + sigma * eps, eps - x0
    for eta in (0.1, 0.5, 1.0):
        law = CpsChain(GRID, eta).law(2)
        kept = law.keep * x + law.move * v - (1 - after) * x0
        assert kept**2 / eps**2 + law.std**2 == pytest.approx(after**2)


def test_the_sde_is_that_of_flow_grpo():
    """Its public step, written out: prev_sample_mean and std_dev_t of its scheduler, with eta as noise level."""
    x, v, eta = torch.randn(3, 4), torch.randn(3, 4), 0.7
    for k, (sigma, after) in enumerate(itertools.pairwise(GRID)):
        std = math.sqrt(sigma / (1 - (GRID[1] if sigma == 1 else sigma))) * eta
        dt = after - sigma
        mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
        law = SdeChain(GRID, eta).law(k)
        assert torch.allclose(law.mean(x, v), mean, atol=1e-6) and law.std == pytest.approx(std * math.sqrt(-dt))


def test_a_window_is_stochastic_and_the_rest_is_not():
    chain = SdeChain(GRID, window=(1, 2))
    assert [chain.law(k).std > 0 for k in range(4)] == [False, True, True, False]
    assert chain.law(0) == OdeChain(GRID).law(0) and chain.law(1) == SdeChain(GRID).law(1)


def test_guidance_has_an_interval():
    guidance = Guidance(4.5, 0.3, 0.8)
    assert [guidance.at(sigma) for sigma in (1.0, 0.8, 0.5, 0.3, 0.1)] == [1.0, 4.5, 4.5, 4.5, 1.0]
    with pytest.raises(ValueError, match="low and high"):
        Guidance(4.5, 0.8, 0.3)


def test_the_log_probability_is_the_normal_density():
    x, v, law = torch.randn(3, 5), torch.randn(3, 5), SdeChain(GRID).law(1)
    after = torch.randn(3, 5)
    exact = torch.distributions.Normal(law.mean(x, v), law.std).log_prob(after).mean(1)
    assert torch.allclose(kernels.log_prob(x, v, after, law), exact, atol=1e-5)
    with pytest.raises(ValueError, match="deterministic"):
        kernels.log_prob(x, v, after, OdeChain(GRID).law(1))


def test_student_grids():
    assert trailing_grid(4) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))
    assert trailing_grid(8) == pytest.approx((1.0, 0.95454545, 0.9, 0.83333333, 0.75, 0.64285714, 0.5, 0.3, 0.0))
    assert trailing_grid(1) == (1.0, 0.0) and trailing_grid(2, 1.0) == (1.0, 0.5, 0.0)


def test_renoise_equals_the_lcm_scheduler_of_diffusers():
    """Same grid, same noise: FlowMatchLCMScheduler draws its own from a generator, which is repeated here."""
    from diffusers import FlowMatchLCMScheduler

    grid = trailing_grid(4)
    scheduler = FlowMatchLCMScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(grid[:-1]))
    chain = RenoiseChain(grid)
    generator, repeated = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    ours = theirs = torch.randn(2, 4, 3, 3)
    for index, t in enumerate(scheduler.timesteps):
        v = torch.randn(2, 4, 3, 3)
        theirs = scheduler.step(v, t, theirs, generator=generator, return_dict=False)[0]
        law = chain.law(index)
        ours = law.mean(ours, v) + (law.std * torch.randn(2, 4, 3, 3, generator=repeated) if law.std else 0)
        assert torch.allclose(ours, theirs, atol=1e-5), index
