"""Re-noising, matching and the surrogate: Triton form, reference, and the formulas written out in double precision agree."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrl.kernels import noise, using
from genrl.kernels.matching import Square, matching, renoise, surrogate

FORMS = ["reference", "triton"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["plain", "signed", "implicit"]
# odd ones, one element, and two whose samples take several programs, the last of them not full
SHAPES = [(1,), (7,), (3, 5), (4, 3, 3), (2053,), (3, 2, 400)]
STRENGTH = 0.8
# a float32 gradient is exact to a few roundings; one of 16 bits is rounded twice, and the interpreter cuts off instead
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
FINEST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2**-23}  # float16 has no smaller numbers


@pytest.fixture(autouse=True, scope="module")
def device() -> Iterator[None]:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def seeds_of(rows):
    return torch.randint(-(2**63), 2**63 - 1, (rows,))


def field(rows, shape, dtype=torch.float32, strided=False):
    """Random numbers, on request in another order of memory than that of their axes."""
    if not strided:
        return torch.randn(rows, *shape).to(dtype)
    return torch.randn(*reversed(shape), rows).to(dtype).permute(*reversed(range(len(shape) + 1)))


def squares_of(kind, weight):
    return {
        "plain": [Square(weight)],
        "signed": [Square(weight), Square(-weight, u=0.0, ref=-1.0)],
        "implicit": [Square(weight, v=STRENGTH, old=1 - STRENGTH), Square(1 - weight, v=-STRENGTH, old=1 + STRENGTH)],
    }[kind]


def written_out(kind, weight, v, u, old, ref, beta, guidance, sigma):
    """The loss for each sample in double precision, as papers write it."""
    v, u, old, ref, weight = (t.double() for t in (v, u, old, ref, weight))
    v_c = v if guidance == 1.0 else v[len(u) :]
    v = v_c if guidance == 1.0 else v[: len(u)] + guidance * (v_c - v[: len(u)])

    def square(error):
        if sigma is None:
            return error.square().flatten(1).mean(1)
        error = sigma.double().view(-1, *[1] * (error.ndim - 1)) * error
        return error.square().flatten(1).mean(1) / error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)

    if kind == "plain":
        terms = weight * square(v - u)
    elif kind == "signed":
        terms = weight * (square(v - u) - square(v - ref))
    else:
        plus, minus = (1 - STRENGTH) * old + STRENGTH * v, (1 + STRENGTH) * old - STRENGTH * v
        terms = weight * square(plus - u) + (1 - weight) * square(minus - u)
    return terms + beta * (v_c - ref).square().flatten(1).mean(1)


# -- noise


@settings(max_examples=30)
@given(
    rows=st.integers(1, 3),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(TYPES),
    strided=st.booleans(),
    form=st.sampled_from(FORMS),
)
def test_renoise_is_the_path_with_the_noise_of_the_seed(rows, shape, dtype, strided, form):
    x0, seed, sigma = field(rows, shape, dtype, strided), seeds_of(rows), torch.rand(rows)
    with using(form):
        x, u = renoise(x0, seed, sigma)
    eps, s = noise.normal(seed, shape).double(), sigma.double().view(-1, *[1] * len(shape))
    assert x.dtype == u.dtype == torch.float32 and x.shape == u.shape == x0.shape
    assert torch.allclose(x.double(), (1 - s) * x0.double() + s * eps, atol=2e-6)
    assert torch.allclose(u.double(), eps - x0.double(), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_ends_of_the_path_are_exact_and_samples_are_data(form):
    x0, seed = torch.randn(2, 9, requires_grad=True), seeds_of(2)
    with using(form):
        x, u = renoise(x0, seed, torch.tensor([0.0, 1.0]))
        eps = noise.normal(seed, (9,))
    assert torch.equal(x[0], x0[0]) and torch.equal(x[1], eps[1])
    assert not x.requires_grad and not u.requires_grad


# -- matching


@settings(max_examples=80)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 3),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(TYPES),
    other=st.sampled_from(TYPES[:2]),
    guidance=st.sampled_from([1.0, 0.3, 4.5]),
    beta=st.sampled_from([0.0, 0.3]),
    endpoint=st.booleans(),
    strided=st.booleans(),
    form=st.sampled_from(FORMS),
)
def test_the_loss_and_its_gradient_are_those_written_out(kind, rows, shape, dtype, other, guidance, beta, endpoint, strided, form):
    v = field(rows * (1 if guidance == 1.0 else 2), shape, dtype, strided).requires_grad_()
    u, old, ref = field(rows, shape, strided=strided), field(rows, shape, other, strided), field(rows, shape, other)
    weight, upstream, sigma = torch.randn(rows), torch.randn(rows), torch.rand(rows) * 0.9 + 0.1 if endpoint else None
    with using(form):
        terms = matching(v, u, squares_of(kind, weight), old=old, ref=ref, beta=beta, guidance=guidance, sigma=sigma)
        (gradient,) = torch.autograd.grad(terms, v, upstream)
    exact = v.detach().double().requires_grad_()
    expected = written_out(kind, weight, exact, u, old, ref, beta, guidance, sigma)
    (slope,) = torch.autograd.grad(expected, exact, upstream.double())
    assert terms.dtype == torch.float32 and terms.shape == (rows,) and gradient.dtype == dtype and gradient.shape == v.shape
    assert torch.allclose(terms.double(), expected, rtol=2e-5, atol=2e-5)
    assert torch.allclose(gradient.double(), slope, rtol=TOLERANCE[dtype], atol=2e-5 / slope[0].numel() + FINEST[dtype])


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_reference_is_right(kind, guidance):
    v, (u, old, ref) = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 5, dtype=torch.float64)
    rows = 4 if guidance == 1.0 else 2
    squares = squares_of(kind, torch.randn(rows, dtype=torch.float64))

    def terms(v):
        return matching(v, u[:rows], squares, old=old[:rows], ref=ref[:rows], beta=0.3, guidance=guidance)

    with using("reference"):
        assert terms(v).dtype == torch.float64
        assert torch.autograd.gradcheck(terms, (v,))


@pytest.mark.parametrize("sigma", [None, torch.tensor([0.3, 0.9, 0.6])])
@pytest.mark.parametrize("form", FORMS)
def test_a_sample_does_not_depend_on_its_batch_nor_a_run_on_the_one_before(form, sigma):
    sigma = None if sigma is None else sigma.to(torch.get_default_device())
    v, u, old, ref = (field(3, (2053,)) for _ in range(4))
    v.requires_grad_()

    def run(rows):
        squares = squares_of("implicit", torch.tensor([0.2, 0.5, 0.9])[rows])
        level = None if sigma is None else sigma[rows]
        with using(form):
            terms = matching(v[rows], u[rows], squares, old=old[rows], ref=ref[rows], beta=0.1, sigma=level)
            return terms, torch.autograd.grad(terms.sum(), v)[0][rows]

    whole, again, part = run(slice(0, 3)), run(slice(0, 3)), run(slice(1, 2))
    for first, second, one in zip(whole, again, part, strict=True):
        assert torch.equal(first, second) and torch.equal(first[1:2], one)


@pytest.mark.parametrize("sigma", [None, 0.7])
@pytest.mark.parametrize("form", FORMS)
def test_only_the_velocity_learns_and_a_graph_that_is_kept_answers_twice(form, sigma):
    v, u, old, ref = (field(2, (6,)).requires_grad_() for _ in range(4))
    weight = torch.rand(2, requires_grad=True)
    level = None if sigma is None else torch.full((2,), sigma)
    with using(form):
        terms = matching(v, u, squares_of("implicit", weight), old=old, ref=ref, beta=0.1, sigma=level)
        first, *none = torch.autograd.grad(terms.sum(), (v, u, old, ref, weight), retain_graph=True, allow_unused=True)
        second, third = torch.autograd.grad(terms.sum(), v, retain_graph=True)[0], torch.autograd.grad(2 * terms.sum(), v)[0]
        with torch.no_grad():
            blind = matching(v, u, squares_of("implicit", weight), old=old, ref=ref, beta=0.1, sigma=level)
    assert none == [None] * 4 and torch.equal(blind, terms) and not blind.requires_grad
    assert torch.equal(first, second) and torch.allclose(third, 2 * first)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_without_error_has_no_gradient(form):
    v = torch.randn(2, 6, requires_grad=True)
    with using(form):
        terms = matching(v, v.detach().clone(), [Square(torch.ones(2))], sigma=torch.ones(2))
        terms.sum().backward()
    assert (terms == 0).all() and (v.grad == 0).all()


def test_what_does_not_fit_is_named():
    v, u, weight = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match=r"guidance 4\.5"):
        matching(v, u, [Square(weight)], guidance=4.5)
    with pytest.raises(ValueError, match="guidance 1"):
        matching(v[:1], u, [Square(weight)])
    with pytest.raises(ValueError, match="ref must be"):
        matching(v, u, [Square(weight)], beta=0.1)
    with pytest.raises(ValueError, match="old must be"):
        matching(v, u, [Square(weight, old=1.0)], old=u[:1])
    with pytest.raises(ValueError, match="one or two squares"):
        matching(v, u, [Square(weight)] * 3)


# -- surrogate


@settings(max_examples=40)
@given(
    rows=st.integers(1, 3),
    shape=st.sampled_from(SHAPES),
    strided=st.booleans(),
    distance=st.sampled_from([1.0, 1e-3, 1e-6]),
    form=st.sampled_from(FORMS),
)
def test_the_surrogate_is_a_small_difference_without_loss(rows, shape, strided, distance, form):
    """Fake and teacher as close as float32 tells apart: ``g`` is right to a few roundings of ``g`` itself."""
    x, teacher = field(rows, shape, strided=strided).requires_grad_(), field(rows, shape)
    fake = teacher + distance * field(rows, shape, strided=strided)
    with using(form):
        loss, g = surrogate(x, fake, teacher)
        (gradient,) = torch.autograd.grad(3 * loss, x)
    scale = (x.double() - teacher.double()).abs().flatten(1).mean(1).view(-1, *[1] * len(shape))
    exact = (fake.double() - teacher.double()) / scale
    assert g.dtype == torch.float32 and g.shape == x.shape and not g.requires_grad and loss.shape == ()
    assert torch.allclose(g.double(), exact.detach(), rtol=1e-6, atol=0)
    # the reference rounds x - g, and no better can be asked of it; the Triton form does not
    rounding = 0.0 if form == "triton" else (x.detach().abs().max().item() + g.abs().max().item()) * 2**-23
    assert torch.allclose(gradient * x.numel() / 3, g, rtol=1e-5, atol=rounding)
    half = 0.5 * exact.square().mean()
    assert (loss - half).abs() <= 1e-5 * half + rounding * (rounding + (2 * half).sqrt())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_surrogate_answers_in_the_type_of_its_samples(dtype, form):
    x = torch.randn(2, 33).to(dtype).requires_grad_()
    fake, teacher = torch.randn(2, 2, 33)
    with using(form):
        loss, g = surrogate(x, fake, teacher)
        loss.backward()
    exact = (fake - teacher) / (x.detach() - teacher).abs().mean(1, keepdim=True)
    assert g.dtype == x.grad.dtype == dtype
    assert torch.allclose(g.float(), exact, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered in divide")  # the interpreter's numpy
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_in_the_surrogate_is_nothing(form):
    x = torch.randn(3, 5)
    teacher, fake = torch.randn(2, 3, 5)
    teacher[0], fake[1, 2] = x[0], float("nan")
    x.requires_grad_()
    with using(form):
        loss, g = surrogate(x, fake, teacher)
        loss.backward()
    assert (g[0] == 0).all() and g[1, 2] == 0 and (g[1:] != 0).sum() == 9
    assert loss.isfinite() and torch.allclose(x.grad * 15, g, atol=1e-6)
