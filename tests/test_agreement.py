"""Kendall's tau between the scores of previews and of full pictures."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrl.preview import agreement


def pairs(ours, theirs):
    """Kendall's tau-b by its definition."""
    signs = [((a > b) - (a < b), (x > y) - (x < y)) for (a, x), (b, y) in itertools.combinations(zip(ours, theirs, strict=True), 2)]
    together = sum(a * x for a, x in signs)
    return together / math.sqrt(sum(a != 0 for a, _ in signs) * sum(x != 0 for _, x in signs))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_agreement_is_kendalls_tau(points):
    ours, theirs = ([float(p[k]) for p in points] for k in (0, 1))
    found = agreement(torch.tensor(ours), torch.tensor(theirs), torch.zeros(len(ours), dtype=torch.long))
    if len(set(theirs)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(pairs(ours, theirs) if len(set(ours)) > 1 else 0.0, abs=1e-9)


def test_agreement_is_within_prompts_and_passes_over_what_is_unknown():
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    full = torch.tensor([1.0, 2.0, 3.0, 7.0, 8.0, 9.0, 5.0, 5.0, 5.0])
    assert agreement(full, full, group) == 1.0
    turned = torch.tensor([3.0, 2.0, 1.0, 9.0, 8.0, 7.0, 1.0, 2.0, 3.0])
    assert agreement(turned, full, group) == -1.0, "prompts differ more than their pictures, which is not what counts"
    half = torch.tensor([1.0, 2.0, math.nan, 9.0, 8.0, math.nan, 0.0, 0.0, 0.0])
    assert agreement(half, full, group) == 0.0
    assert math.isnan(agreement(torch.full((9,), math.nan), full, group))
