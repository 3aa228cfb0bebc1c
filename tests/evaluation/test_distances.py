import numpy as np
import pytest
import torch

from genrl.evaluation.distances import kid


def k(x, y):
    return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3


def directly(a, b):
    """The formula as it is written, a pair at a time."""

    def within(rows):
        pairs = [k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


def estimates(shift, trials=200, rows=40, width=6):
    rng = np.random.default_rng(0)
    return np.array([kid(rng.normal(size=(rows, width)), rng.normal(shift, 1, (rows, width)), 1, rows)[0] for _ in range(trials)])


def test_known_by_hand():
    # in one dimension, of 0, 0 and 1, 1: k is 1 within the zeros, 8 within the ones, 1 across
    assert kid(np.zeros((2, 1)), np.ones((2, 1)), 1, 2) == (7.0, 0.0)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_the_formula(rows):
    rng = np.random.default_rng(rows)
    a, b = rng.normal(size=(rows, 3)), rng.normal(0.5, 2, (rows, 3))
    value, deviation = kid(a, b, subsets=4, size=rows)
    assert value == pytest.approx(directly(a.tolist(), b.tolist()), rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12), "every subset is the whole"
    assert kid(b, a, 1, rows)[0] == pytest.approx(value, rel=1e-12)


def test_numpy_and_torch_agree_in_double_precision():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(30, 8)).astype(np.float32) for _ in range(2))
    assert kid(a, b, 5, 20) == kid(torch.from_numpy(a).requires_grad_(), torch.from_numpy(b), 5, 20)
    # a constant that single precision would drown the differences in
    far = kid(a + 1e4, b + 1e4, 1, 30)[0]
    assert far == pytest.approx(directly((a + 1e4).tolist(), (b + 1e4).tolist()), rel=1e-2)


def test_subsets_come_from_the_seed_and_agree_with_the_whole():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 5)), rng.normal(0.5, 1, (200, 5))
    whole = kid(a, b, 1, 200)[0]
    mean, deviation = kid(a, b, 200, 50)
    assert (mean, deviation) == kid(a, b, 200, 50) != kid(a, b, 200, 50, seed=1)
    assert deviation > 0 and abs(mean - whole) < 4 * deviation / 200**0.5


def test_unbiased_so_negative_at_times():
    same = estimates(0.0)
    assert abs(same.mean()) < 4 * same.std() / len(same) ** 0.5
    assert 0.3 < (same < 0).mean() < 0.8


def of_prompts(rng, prompts, images, features=4):
    """Images that mostly show their prompt, and the prompts' numbers."""
    shown = np.repeat(prompts, images, axis=0) + rng.normal(0, 0.3, (len(prompts) * images, features))
    return shown, np.repeat(np.arange(len(prompts)), images).tolist()


@pytest.mark.parametrize("images", [(1, 1), (4, 4), (1, 4)])
def test_images_of_the_same_prompts_bias_it_unless_they_are_grouped(images):
    rng, plain, grouped = np.random.default_rng(3), [], []
    for _ in range(300):
        prompts = rng.normal(size=(12, 4))
        (a, of_a), (b, of_b) = (of_prompts(rng, prompts, count) for count in images)
        size = min(len(a), len(b))
        plain.append(kid(a, b, 1, size)[0])
        grouped.append(kid(a, b, 1, size, groups=(of_a, of_b))[0])
    error = np.std(grouped) / len(grouped) ** 0.5
    assert abs(np.mean(grouped)) < 4 * error, "unbiased"
    assert np.mean(plain) < -10 * error, "or this test shows nothing"


def test_grouped_pairs_are_left_out():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    groups = ([0, 0, 1, 2, 2], [0, 1, 1, 3, 2])
    pairs = [
        [k(x, y) for x, g in zip(one, of_one, strict=True) for y, h in zip(two, of_two, strict=True) if g != h]
        for one, of_one, two, of_two in ((a, groups[0], a, groups[0]), (b, groups[1], b, groups[1]), (a, groups[0], b, groups[1]))
    ]
    own, other, across = (sum(values) / len(values) for values in pairs)
    assert kid(a, b, 1, 5, groups=groups)[0] == pytest.approx(own + other - 2 * across, rel=1e-12)
    assert kid(a, a, 1, 5, groups=(groups[0], groups[0]))[0] == pytest.approx(0, abs=1e-12)


def test_grows_with_a_shift_of_the_mean():
    means = [estimates(shift, trials=30).mean() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert means == sorted(means) and means[1] > 0.1


@pytest.mark.parametrize(
    ("a", "b", "options", "why"),
    [
        ((5, 3), (9, 3), {"size": 6}, "subsets of 6 rows need as many on both sides; got 5 and 9"),
        ((5, 3), (5, 3), {}, "subsets of 1000 rows"),
        ((5, 3), (5, 4), {"size": 5}, "got [5, 3] and [5, 4]"),
        ((5,), (5,), {"size": 5}, "must be [N, D]"),
        ((5, 3), (5, 3), {"size": 1}, "at least two rows"),
        ((5, 3), (5, 3), {"size": 5, "subsets": 0}, "at least one subset"),
        ((2, 3), (2, 3), {"size": 2, "groups": ([0, 0], [0, 1])}, "of one group"),
        ((2, 3), (2, 3), {"size": 2, "groups": ([0, 1], [0])}, "got 2 and 1 for 2 and 2 rows"),
    ],
)
def test_what_cannot_be_estimated_is_said(a, b, options, why):
    with pytest.raises(ValueError) as error:
        kid(np.zeros(a), np.zeros(b), **options)
    assert why in str(error.value)
