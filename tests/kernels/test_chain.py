"""The chain step, its noise and its log-probability: Triton form, reference, and closed form in double precision agree."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrl.chain import CpsChain, OdeChain, RenoiseChain, SdeChain
from genrl.kernels import chain, noise, using

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)
CHAINS = [OdeChain(GRID), SdeChain(GRID), CpsChain(GRID), RenoiseChain(GRID), SdeChain(GRID, window=(1,))]
FORMS = ["reference", "triton"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def seeds_of(rows):
    return torch.randint(-(2**63), 2**63 - 1, (rows,))


def exact(x, v, law, guidance):
    """The mean in double precision."""
    x, v = x.double(), v.double()
    if guidance != 1.0:
        v_0, v_c = v.chunk(2)
        v = v_0 + guidance * (v_c - v_0)
    return law.keep * x + law.move * v


@settings(max_examples=25)
@given(rows=st.integers(1, 4), shape=SHAPES)
def test_the_noise_is_the_same_in_both_forms_and_independent_of_the_shape(rows, shape):
    seed = seeds_of(rows)
    with using("triton"):
        fused = noise.normal(seed, shape)
    plain = noise.normal(seed, shape)
    assert fused.shape == plain.shape == (rows, *shape)
    assert torch.allclose(fused, plain, atol=1e-6)
    assert torch.equal(noise.normal(seed, (math.prod(shape),)), plain.flatten(1))


def test_noise_of_a_long_sample_has_no_seam():
    """Several programs make one sample, the last of them not full."""
    seed = seeds_of(2)
    with using("triton"):
        assert torch.allclose(noise.normal(seed, (4 * 700 + 3,)), noise.normal_reference(seed, 4 * 700 + 3), atol=1e-6)


@settings(max_examples=40)
@given(
    which=st.sampled_from(CHAINS),
    step=st.integers(0, 3),
    rows=st.integers(1, 3),
    shape=SHAPES,
    guidance=st.sampled_from([1.0, 4.5]),
    dtype=st.sampled_from(TYPES),
    form=st.sampled_from(FORMS),
)
def test_a_step_is_its_law(which, step, rows, shape, guidance, dtype, form):
    law, seed = which.law(step), seeds_of(rows)
    x, v = torch.randn(rows, *shape), torch.randn(rows * (1 if guidance == 1 else 2), *shape).to(dtype)
    with using(form):
        after, log_prob = chain.step(x, v, law, guidance=guidance, seed=seed)
    mean, n = exact(x, v, law, guidance), noise.normal(seed, shape).double()
    assert after.dtype == log_prob.dtype == torch.float32 and log_prob.shape == (rows,)
    assert torch.allclose(after.double(), mean + law.std * n, atol=2e-6, rtol=2e-6)
    if not law.std:
        assert (log_prob == 0).all()
        return
    density = torch.distributions.Normal(mean, law.std).log_prob(mean + law.std * n).flatten(1).mean(1)
    assert torch.allclose(log_prob.double(), density, atol=1e-5)
    # the replay sees float32 states: their rounding over a small spread is all the difference there is
    with using(form):
        again = chain.log_prob(x, v, after, law, guidance=guidance)
    assert (again - log_prob).abs().max() <= 1e-6


@settings(max_examples=40)
@given(
    which=st.sampled_from(CHAINS[1:4]),
    rows=st.integers(1, 3),
    shape=SHAPES,
    guidance=st.sampled_from([1.0, 4.5]),
    dtype=st.sampled_from(TYPES),
)
def test_the_gradient_of_the_log_probability(which, rows, shape, guidance, dtype):
    law = which.law(1)
    x, v = torch.randn(rows, *shape), torch.randn(rows * (1 if guidance == 1 else 2), *shape).to(dtype)
    after, upstream = torch.randn(rows, *shape), torch.randn(rows)
    double = v.double().requires_grad_()
    density = torch.distributions.Normal(exact(x, double, law, guidance), law.std).log_prob(after.double()).flatten(1).mean(1)
    (wanted,) = torch.autograd.grad((density * upstream).sum(), double)
    for form in FORMS:
        own = v.clone().requires_grad_()
        with using(form):
            (found,) = torch.autograd.grad((chain.log_prob(x, own, after, law, guidance=guidance) * upstream).sum(), own)
        assert found.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-7, form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
def test_the_log_probability_is_that_of_the_rounded_state(form, storage):
    x, v, law, seed = torch.randn(2, 3, 33), torch.randn(2, 3, 33), SdeChain(GRID).law(2), seeds_of(2)
    with using(form):
        after, log_prob = chain.step(x, v, law, seed=seed, storage=storage)
        unrounded, other = chain.step(x, v, law, seed=seed)
        assert after.dtype == storage and (after.float() - unrounded).abs().max() > 1e-4
        assert (chain.log_prob(x, v, after, law) - log_prob).abs().max() <= 1e-6
    assert (other - log_prob).abs().max() > 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_contiguous_and_rounding_on_the_way(form):
    x, v = torch.randn(2, 6, 5, 3).transpose(1, 3), torch.randn(4, 6, 5, 3).transpose(1, 3)
    law = SdeChain(GRID).law(1)
    seed = seeds_of(2)
    with using(form):
        after, _ = chain.step(x, v, law, guidance=3.0, seed=seed)
        rough, _ = chain.step(x, v, law, guidance=3.0, seed=seed, combine=torch.bfloat16)
        rougher, _ = chain.step(x, v, law, guidance=3.0, seed=seed, chain=torch.bfloat16)
    wanted = exact(x, v, law, 3.0) + law.std * noise.normal(seed, x.shape[1:]).double()
    assert torch.allclose(after.double(), wanted, atol=1e-5)
    for other in (rough, rougher):
        assert 1e-4 < (other - after).abs().max() < 0.1


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_reference_passes_gradcheck(guidance):
    x, after = torch.randn(2, 2, 5, dtype=torch.float64)
    v = torch.randn(2 if guidance == 1 else 4, 5, dtype=torch.float64, requires_grad=True)
    law = CpsChain(GRID).law(1)
    assert torch.autograd.gradcheck(lambda v: chain.log_prob(x, v, after, law, guidance=guidance), (v,))


def test_noise_needs_a_seed():
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match="seed for each sample"):
        chain.step(x, x, SdeChain(GRID).law(1))
    assert torch.allclose(chain.step(x, x, OdeChain(GRID).law(1))[0], 0.85 * x, atol=1e-6)
