import math

import pytest
import torch

from genrl.chain import OdeChain, RenoiseChain, trailing_grid


def integrate(steps, velocity, x):
    chain = OdeChain(tuple(torch.linspace(1, 0, steps + 1).tolist()))
    for sigma, sigma_next in zip(chain.sigmas, chain.sigmas[1:], strict=False):
        x = chain.step(x, velocity(x, sigma), sigma, sigma_next).mean
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
        step = chain.step(ours, v, chain.sigmas[index], chain.sigmas[index + 1])
        ours = step.mean
        assert step.std == 0
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_arithmetic_is_float32():
    x = torch.randn(1, 4).bfloat16()
    assert OdeChain((1.0, 0.0)).step(x, x, 1.0, 0.0).mean.dtype == torch.float32


@pytest.mark.parametrize("grid", [(1.0,), (0.0, 1.0), (1.0, 0.5, 0.5, 0.0), (1.2, 0.0), (1.0, -0.1)])
def test_a_grid_that_does_not_fall_is_refused(grid):
    with pytest.raises(ValueError, match="fall strictly"):
        OdeChain(grid)


def test_renoise_is_the_law_of_the_next_state():
    chain = RenoiseChain((1.0, 0.75, 0.0))
    x, v = torch.randn(2, 3, 4)
    step = chain.step(x, v, 1.0, 0.75)
    assert torch.allclose(step.mean, 0.25 * (x - v)) and step.std == 0.75
    last = chain.step(x, v, 0.75, 0.0)
    assert torch.allclose(last.mean, x - 0.75 * v) and last.std == 0.0


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
        law = chain.step(ours, v, grid[index], grid[index + 1])
        ours = law.mean + (law.std * torch.randn(2, 4, 3, 3, generator=repeated) if law.std else 0)
        assert torch.allclose(ours, theirs, atol=1e-5), index
