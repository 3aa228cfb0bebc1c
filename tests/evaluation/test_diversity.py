import numpy as np
import pytest
import torch

from genrl.evaluation.diversity import feature_diversity, layout_diversity, vendi


def test_diversity_of_known_sets():
    same = torch.rand(1, 3, 64, 64).expand(4, -1, -1, -1)
    assert layout_diversity(same) == pytest.approx(0, abs=1e-6)
    halves = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    assert layout_diversity(halves) == pytest.approx(1.0)
    assert np.isnan(layout_diversity(same[:1]))
    assert feature_diversity(torch.eye(5)) == pytest.approx(1.0)
    assert feature_diversity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)
    assert feature_diversity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)


def test_vendi_counts_what_differs():
    rows, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))
    assert vendi(rows[:6]) == pytest.approx(6, rel=1e-12)
    assert vendi(np.tile(rows[:1], (6, 1))) == pytest.approx(1, rel=1e-12) == vendi(rows[:1])
    # two kinds, of five and of one: exp of their entropy, whatever their lengths
    kinds = np.concatenate([np.outer([1, 2, 3, 4, 5], rows[0]), rows[1:2]])
    assert vendi(kinds) == pytest.approx(6 / 5 ** (5 / 6), rel=1e-12)
    # two at an angle: eigenvalues (1 +- cos) / 2
    high, low = (1 + 0.6) / 2, (1 - 0.6) / 2
    assert vendi(torch.tensor([[1.0, 0.0], [0.6, 0.8]])) == pytest.approx(high**-high * low**-low, rel=1e-6)
    assert np.isnan(vendi(np.zeros((0, 3))))


@pytest.mark.parametrize("rows", [3, 8, 9, 40])
def test_vendi_of_the_smaller_matrix_is_that_of_the_larger(rows):
    features = np.random.default_rng(rows).normal(0.5, 1, (rows, 8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    primal = np.linalg.eigvalsh(unit @ unit.T / rows)
    primal = primal[primal > 1e-12]
    assert vendi(features) == pytest.approx(np.exp(-(primal * np.log(primal)).sum()), rel=1e-9)


def test_another_library_finds_the_same():
    rng = np.random.default_rng(20)
    # vendi-score 0.0.3, score_X and score_dual
    assert vendi(rng.normal(size=(200, 12))) == pytest.approx(11.669627474001079, rel=1e-12)


def test_what_has_no_vendi_is_said():
    with pytest.raises(ValueError, match="row 1 of the features is all zeros"):
        vendi(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"must be \[N, D\]; got \[3\]"):
        vendi(np.ones(3))
