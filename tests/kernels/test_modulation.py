"""The kernels of an MM-DiT block: references against their formulas, Triton forms (interpreted on a CPU) against references in fp64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrl.kernels import _triton_modulation, using
from genrl.kernels.modulation import (
    gate_residual,
    gate_residual_norm_modulate,
    gelu_tanh_bias,
    layer_norm_modulate,
    linear_gelu,
    rms_norm,
)

EPS = 1e-6
# relative to the largest entry; the interpreter cuts off what bfloat16 does not hold, where a GPU rounds
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def gelu(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def gate_then_norm(x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    after = x + gate[:, None] * h
    return after, norm(after) * (1 + scale[:, None]) + shift[:, None]


# the kernel, its formula, and its arguments: of shape [B, L, D], [B, D] or [D]
CASES: dict[str, tuple[Callable, Callable, tuple[str, ...]]] = {
    "layer_norm_modulate": (
        layer_norm_modulate,
        lambda x, scale, shift: norm(x) * (1 + scale[:, None]) + shift[:, None],
        ("BLD", "BD", "BD"),
    ),
    "gate_residual": (gate_residual, lambda x, h, gate: x + gate[:, None] * h, ("BLD", "BLD", "BD")),
    "gate_residual_norm_modulate": (gate_residual_norm_modulate, gate_then_norm, ("BLD", "BLD", "BD", "BD", "BD")),
    "rms_norm": (rms_norm, lambda x, weight: x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight, ("BLD", "D")),
    "rms_norm, no weight": (rms_norm, lambda x: x / (x.square().mean(-1, keepdim=True) + EPS).sqrt(), ("BLD",)),
    "gelu_tanh_bias": (gelu_tanh_bias, lambda h, bias: gelu(h + bias), ("BLD", "D")),
    "gelu_tanh_bias, no bias": (gelu_tanh_bias, gelu, ("BLD",)),
}
every_case = pytest.mark.parametrize("case", CASES)


def arguments(shapes: tuple[str, ...], sizes: dict[str, int], dtype: torch.dtype, strided: bool = False) -> list[Tensor]:
    """Normal numbers; ``strided`` lays no argument out in order: transposed activations, chunks of a wider tensor."""
    wide = torch.randn(sizes["B"], 6 * sizes["D"]).to(dtype).chunk(6, 1)
    found = []
    for number, shape in enumerate(shapes):
        if strided and shape == "BD":
            found.append(wide[number])
        elif strided:
            found.append(torch.randn([sizes[side] for side in reversed(shape)]).to(dtype).permute(*reversed(range(len(shape)))))
        else:
            found.append(torch.randn([sizes[side] for side in shape]).to(dtype))
    return found


def results(function: Callable, inputs: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """What a function answers, and its gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    return [*(x.detach() for x in outs), *torch.autograd.grad(outs, leaves, [g.expand_as(x) for g, x in zip(upstream, outs, strict=False)])]


def compare(case: str, sizes: dict[str, int], dtype: torch.dtype, strided: bool = False) -> None:
    kernel, _, shapes = CASES[case]
    inputs = arguments(shapes, sizes, dtype, strided)
    upstream = arguments(("BLD", "BLD"), sizes, dtype, strided)
    with using("triton"):
        got = results(kernel, inputs, upstream)
    exact = results(kernel, [x.double() for x in inputs], [g.double() for g in upstream])
    for number, (ours, wanted) in enumerate(zip(got, exact, strict=True)):
        assert ours.dtype == dtype and ours.shape == wanted.shape
        error = ((ours - wanted).abs().max() / wanted.abs().max()).item()
        assert error < TOLERANCE[dtype], f"{case}, result {number} of {sizes}: {error:.1e}"


@every_case
def test_the_reference_is_its_formula_and_has_its_gradient(case):
    kernel, formula, shapes = CASES[case]
    inputs = arguments(shapes, {"B": 2, "L": 2, "D": 4}, torch.float64)
    got, wanted = kernel(*inputs), formula(*inputs)
    for ours, theirs in zip(got if isinstance(got, tuple) else (got,), wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)
    assert torch.autograd.gradcheck(kernel, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_case
def test_the_reference_rounds_once(case, dtype):
    kernel, _, shapes = CASES[case]
    inputs = arguments(shapes, {"B": 2, "L": 9, "D": 64}, dtype)
    got, exact = kernel(*inputs), kernel(*(x.double() for x in inputs))
    # the norm of a pair is that of the rounded state, so only the state is within half a unit of the exact one
    got, exact = (x[0] if isinstance(x, tuple) else x for x in (got, exact))
    assert got.dtype == dtype and ((got - exact).abs() <= 0.5001 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


@every_case
@given(data=st.data())
@settings(max_examples=9)
def test_any_shape_type_and_layout(case, data):
    sizes = {
        "B": data.draw(st.integers(1, 3)),
        "L": data.draw(st.integers(1, 37)),
        "D": data.draw(st.one_of(st.integers(6, 70), st.sampled_from([16, 32, 64]))),
    }
    torch.manual_seed(data.draw(st.integers(0, 99)))
    compare(case, sizes, data.draw(st.sampled_from(list(TOLERANCE))), data.draw(st.booleans()))


@every_case
def test_many_programs_each_with_many_turns(case, monkeypatch):
    """Tiles of a few rows, so that sums over rows run in loops and over programs, and a row wider than a block of columns."""
    monkeypatch.setattr(_triton_modulation, "TILE", 256)
    monkeypatch.setattr(_triton_modulation, "COLUMNS", 32)
    monkeypatch.setattr("genrl.kernels._triton_epilogue.COLUMNS", 32)
    monkeypatch.setattr("genrl.kernels._triton_epilogue.PROGRAMS", 5)
    compare(case, {"B": 2, "L": 37, "D": 50}, torch.float32, strided=True)


@every_case
def test_rows_as_wide_as_a_real_model(case):
    compare(case, {"B": 1, "L": 3, "D": 1536}, torch.float32)


def test_types_may_differ():
    """Under autocast the modulation is of 16 bits and a bias is not; each gradient has the type of its own argument."""
    x, h, gate, scale, shift = arguments(CASES["gate_residual_norm_modulate"][2], {"B": 2, "L": 5, "D": 24}, torch.float32)
    mixed = [x, h.half(), gate.half(), scale.half(), shift]
    upstream = arguments(("BLD", "BLD"), {"B": 2, "L": 5, "D": 24}, torch.float32)
    exact = results(gate_residual_norm_modulate, [t.double() for t in mixed], [g.double() for g in upstream])
    for form in ("triton", "reference"):
        with using(form):
            got = results(gate_residual_norm_modulate, mixed, upstream)
        types = [torch.float32] * 3 + [torch.float16] * 3 + [torch.float32]
        assert [t.dtype for t in got] == types
        for ours, wanted in zip(got, exact, strict=True):
            assert torch.allclose(ours.double(), wanted, atol=TOLERANCE[ours.dtype] * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("case", ["layer_norm_modulate", "gate_residual", "gate_residual_norm_modulate", "rms_norm", "gelu_tanh_bias"])
def test_what_is_frozen_costs_nothing(case):
    """Over a frozen base the modulation and the weights have no gradient: activations get theirs, and none is kept for the others."""
    kernel, _, shapes = CASES[case]
    inputs = arguments(shapes, {"B": 2, "L": 5, "D": 24}, torch.float32)
    kept: list[Tensor] = []
    gradients = []
    for frozen in (False, True):
        leaves = [x.detach().requires_grad_(shape == "BLD" or not frozen) for x, shape in zip(inputs, shapes, strict=True)]
        with using("triton"), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            kept.clear()
            out = kernel(*leaves)
            out = sum(out) if isinstance(out, tuple) else out
            activations = sum(x.dim() == 3 for x in kept)
            out.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves if leaf.dim() == 3])
        assert all((leaf.grad is None) == (frozen and leaf.dim() < 3) for leaf in leaves)
        if "gate" in case:
            whole = 1 if case == "gate_residual" else 2
            assert activations == whole - frozen
        else:
            assert activations == 1
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("case", ["layer_norm_modulate", "gate_residual", "gate_residual_norm_modulate", "rms_norm", "gelu_tanh_bias"])
def test_a_second_derivative_is_refused(case):
    kernel, _, shapes = CASES[case]
    leaves = [x.requires_grad_() for x in arguments(shapes, {"B": 1, "L": 2, "D": 8}, torch.float32)]
    with using("triton"):
        out = kernel(*leaves)
    out = out[1] if isinstance(out, tuple) else out
    (first,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # its reciprocal is the zero that is meant
def test_large_entries_of_either_sign_leave_gelu_finite():
    z = torch.tensor([[-60000.0, -40.0, 0.0, 40.0, 60000.0]])
    with using("triton"):
        out, gradient = results(gelu_tanh_bias, [z], [torch.ones(1, 1)])
    assert torch.equal(out, z.clamp(min=0)) and torch.equal(gradient, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))


@pytest.mark.parametrize("form", ["triton", "reference"])
def test_shapes_that_do_not_fit_are_refused(form):
    x, vector = torch.zeros(2, 3, 8), torch.zeros(2, 8)
    with using(form):
        for call in (
            lambda: layer_norm_modulate(x, vector[:1], vector),
            lambda: layer_norm_modulate(x[0], vector, vector),
            lambda: gate_residual(x, x[:, :1], vector),
            lambda: gate_residual_norm_modulate(x, x, vector, vector, vector[:, :4]),
            lambda: rms_norm(x, vector),
            lambda: gelu_tanh_bias(x, vector[0, :1]),
        ):
            with pytest.raises(ValueError, match="expected"):
                call()


@pytest.mark.parametrize("form", ["reference", "triton"])
def test_a_norm_writes_where_it_is_joined(form):
    """Parts of one tensor, of several samples: each lands in its own place and nowhere else."""
    x, text, weight = torch.randn(3, 5, 2, 8), torch.randn(3, 4, 2, 8), torch.randn(8)
    joint = torch.full((3, 9, 2, 8), torch.nan)
    with using(form), torch.no_grad():
        rms_norm(x, weight, EPS, joint[:, :5])
        assert joint[:, 5:].isnan().all()
        rms_norm(text, weight, EPS, joint[:, 5:])
        assert torch.allclose(joint, torch.cat([rms_norm(x, weight, EPS), rms_norm(text, weight, EPS)], 1), atol=1e-6)
    with pytest.raises(ValueError, match="where nothing is differentiated"):
        rms_norm(x.requires_grad_(), weight, EPS, joint[:, :5])
    with pytest.raises(ValueError, match="look like x"):
        rms_norm(text, weight, EPS, joint[:, :5])


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_gelu(bias):
    x, weight = torch.randn(2, 3, 5, requires_grad=True), torch.randn(7, 5)
    offset = torch.randn(7) if bias else None
    wanted = gelu(x @ weight.t() + (offset if offset is not None else 0))
    found = linear_gelu(x, weight, offset)
    assert torch.allclose(found, wanted, atol=1e-5)
    upstream = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(out, x, upstream)[0] for out in (found, wanted))
    assert torch.allclose(ours, theirs, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(linear_gelu(x, weight, offset), wanted, atol=1e-5)
