"""Row-wise float8: the Triton form, the reference, and what eight bits can hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrl.kernels import using
from genrl.kernels.quantise import LARGEST, quantise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=40)
@given(rows=st.integers(1, 5), columns=st.integers(1, 300), power=st.integers(-6, 4), form=st.sampled_from(["reference", "triton"]))
def test_what_eight_bits_hold_comes_back_exactly(rows, columns, power, form):
    """Numbers of the format times a power of two, the largest in every row."""
    held = torch.randint(0, 127, (rows, columns), dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn).float()
    held[:, 0] = LARGEST
    with using(form):
        q, scale = quantise(held * 2.0**power)
    assert q.dtype == torch.float8_e4m3fn and q.is_contiguous() and scale.shape == (rows, 1)
    assert torch.equal(scale, torch.full((rows, 1), 2.0**power, device=DEVICE)) and torch.equal(q.float(), held)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [16, 130, 1000])
def test_both_forms_agree_on_strided_rows(dtype, columns):
    x = torch.randn(7, 2 * columns, generator=torch.Generator().manual_seed(columns)).to(DEVICE, dtype)[:, :columns]
    x[1] = 0
    with using("reference"):
        q, scale = quantise(x)
    with using("triton"):
        fused, fused_scale = quantise(x)
        turned, _ = quantise(x.t().contiguous().t())
    assert torch.equal(scale, fused_scale) and torch.equal(fused.view(torch.uint8), turned.view(torch.uint8))
    # where rounding carries into the exponent the interpreter forgets the carry, and is off by a factor of two
    different = (q.float() != fused.float()).float().mean()
    assert different < 0.05


def test_the_error_is_a_sixteenth_at_most():
    x = torch.randn(32, 400, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    q, scale = quantise(x)
    error = (q.float() * scale - x).abs()
    # below 2^-6 of the scale numbers are evenly spaced, 2^-9 apart
    assert (error <= x.abs() / 16 * 1.001 + scale * 2.0**-10).all()
    assert error.max() > 0 and (q[x == 0] == 0).all()
    assert not quantise(torch.zeros(2, 16))[0].float().any()
