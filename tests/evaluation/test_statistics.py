import numpy as np
import pytest
import torch

from genrl.evaluation.diversity import feature_diversity, layout_diversity
from genrl.evaluation.statistics import bootstrap_interval, paired_gain, spearman


def test_intervals_cover_at_their_rate():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 60), seed=trial, draws=500)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_a_paired_gain_sees_what_an_unpaired_one_would_not():
    rng = np.random.default_rng(1)
    before = rng.normal(0, 10, 100)
    gain, low, high = paired_gain(before, before + 0.5 + rng.normal(0, 0.1, 100))
    assert gain == pytest.approx(0.5, abs=0.05) and 0.4 < low < high < 0.6
    same = paired_gain(before, before + rng.normal(0, 0.1, 100))
    assert same[1] < 0 < same[2]


def test_what_is_no_number_is_left_out():
    gain, *_ = paired_gain(np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, 4.0]))
    assert gain == 1.0
    assert all(np.isnan(bootstrap_interval(np.array([np.nan]))))


def test_rank_correlation():
    x = np.arange(20.0)
    assert spearman(x, np.exp(x)) == pytest.approx(1.0) and spearman(x, -x) == pytest.approx(-1.0)
    assert np.isnan(spearman(x, np.ones(20)))


def test_diversity_of_known_sets():
    same = torch.rand(1, 3, 64, 64).expand(4, -1, -1, -1)
    assert layout_diversity(same) == pytest.approx(0, abs=1e-6)
    halves = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    assert layout_diversity(halves) == pytest.approx(1.0)
    assert np.isnan(layout_diversity(same[:1]))
    assert feature_diversity(torch.eye(5)) == pytest.approx(1.0)
    assert feature_diversity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)
    assert feature_diversity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)
