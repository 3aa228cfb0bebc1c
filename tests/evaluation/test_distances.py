from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from genrl.evaluation import distances
from genrl.evaluation.distances import Statistics, cmmd, frechet, frechet_note, frechet_of_statistics, kid, prdc


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


def two_sets():
    """What the other libraries were given, in double precision."""
    rng = np.random.default_rng(20)
    return rng.normal(size=(200, 12)), rng.normal(0.3, 1.2, (200, 12))


def test_other_libraries_find_the_same():
    a, b = two_sets()
    # torch-fidelity 0.4.0, fid_statistics_to_metric; torchmetrics 1.9.0, _compute_fid: 2.3949
    assert frechet(a, b) == pytest.approx(2.394883303439709, rel=1e-12)
    # torch-fidelity 0.4.0, kid_features_to_metric of one subset; torchmetrics 1.9.0, poly_mmd: 0.4684800482286242
    assert kid(a, b, 1, 200)[0] == pytest.approx(0.46848004822862377, rel=1e-12)
    # torch-fidelity 0.4.0, mmd2(mmd_est="biased") of kernel_rbf, sigma 10; scikit-learn 1.9.1, rbf_kernel: 0.7695317709666138
    assert cmmd(a, b) == pytest.approx(0.7695317709668359, rel=1e-9)
    # prdc 0.2, compute_prdc(a, b, 5); torch-fidelity 0.4.0, prc_features_to_metric: precision .59, recall .96
    assert prdc(a, b, 5) == pytest.approx((0.59, 0.96, 0.417, 0.775), rel=1e-12)


def test_frechet_of_shifted_and_scaled_sets():
    rng = np.random.default_rng(5)
    a, shift = rng.normal(size=(60, 4)) * [1, 2, 3, 4] + 7, np.array([1.0, -2.0, 0.5, 3.0])
    assert frechet(a, a + shift) == pytest.approx((shift**2).sum(), rel=1e-9)
    middle = a - a.mean(0)
    assert frechet(middle, 3 * middle) == pytest.approx(4 * np.cov(a.T).trace(), rel=1e-9), "(3 - 1)^2 of every variance"
    assert frechet(torch.from_numpy(a), a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + shift) == pytest.approx(frechet(a + shift, a))


def test_frechet_of_different_covariances():
    # what does not commute: of 2 x 2 matrices, tr((AB)^(1/2)) is the root of tr(AB) + 2 sqrt(det AB)
    one, two = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[4.0, -1.5], [-1.5, 1.0]])
    mixed = np.sqrt(np.trace(one @ two) + 2 * np.sqrt(np.linalg.det(one @ two)))
    shift = np.array([0.3, -0.4])
    expected = 0.25 + one.trace() + two.trace() - 2 * mixed
    assert frechet_of_statistics(np.zeros(2), one, shift, two) == pytest.approx(expected, rel=1e-12)
    # in one dimension, (difference of means)^2 + (difference of deviations)^2
    assert frechet_of_statistics(np.zeros(1), np.array([[9.0]]), np.ones(1), np.array([[1.0]])) == pytest.approx(1 + 4)


def test_frechet_where_images_are_fewer_than_features():
    a = np.random.default_rng(6).normal(size=(10, 40))
    assert frechet(a, a) < 1e-9
    assert frechet(a, a + 1) == pytest.approx(40, rel=1e-9)


def test_frechet_says_when_images_are_few():
    assert frechet_note(5 * 768, 768) == ""
    assert "only 3839 images for 768 features, 3840 would do: biased upwards" in frechet_note(5 * 768 - 1, 768)
    rng = np.random.default_rng(7)
    bias = [frechet(rng.normal(size=(rows, 30)), rng.normal(size=(rows, 30))) / 30 for rows in (60, 150, 600)]
    assert bias[0] > 0.2 and 0.07 < bias[1] < 0.14 and bias[2] < 0.05, (
        "at the border a tenth of the variance, as the constant's comment says"
    )


def test_statistics_are_kept_exactly(tmp_path: Path):
    a = np.random.default_rng(8).normal(size=(30, 5)).astype(np.float32)
    made = Statistics.of(torch.from_numpy(a))
    assert made.count == 30 and made.mean == pytest.approx(a.mean(0), abs=1e-6)
    made.save(tmp_path / "cache" / "reference.safetensors")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["reference.safetensors"]
    read = Statistics.load(tmp_path / "cache" / "reference.safetensors")
    assert read.count == 30 and (read.mean == made.mean).all() and (read.covariance == made.covariance).all()
    assert Statistics.of(a[:, :1]).covariance.shape == (1, 1)


def test_what_is_no_file_of_statistics_is_said(tmp_path: Path):
    save_file({"mean": np.zeros(3)}, tmp_path / "half")
    (tmp_path / "text").write_text("mean, covariance")
    save_file({"mean": np.zeros(3), "covariance": np.eye(3)}, tmp_path / "uncounted")
    for name in ("half", "text", "uncounted"):
        with pytest.raises(ValueError, match=f"{name} holds no statistics of features"):
            Statistics.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "none")


def test_cmmd_by_hand():
    # lengths do not matter; of unit vectors at right angles the squared distance is 2
    assert cmmd(np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])) == pytest.approx(1000 * 2 * (1 - np.exp(-0.01)), rel=1e-9)
    # {e1, e2} against {e1}: (2 + 2k)/4 + 1 - 2 (1 + k)/2 with k = exp(-.01)
    pair = np.eye(2)
    assert cmmd(pair, pair[:1]) == pytest.approx(1000 * (0.5 - np.exp(-0.01) / 2), rel=1e-9)
    a = np.random.default_rng(9).normal(size=(20, 6))
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9) and cmmd(a, 3 * a) == pytest.approx(0, abs=1e-9)


def test_cmmd_is_biased_as_it_says():
    rng, rows = np.random.default_rng(10), 40
    found = np.mean([cmmd(rng.normal(size=(rows, 8)), rng.normal(size=(rows, 8))) for _ in range(100)])
    # for directions without a preference, E|x - y|^2 = 2, and k is close to linear
    assert found == pytest.approx(1000 * 2 / rows * 0.01, rel=0.05)


def test_prdc_of_the_same_and_of_far_sets():
    rng = np.random.default_rng(11)
    a = rng.normal(size=(50, 6)) + 100
    assert prdc(a, a) == (1, 1, 1, 1) == prdc(a, a, k=3)
    # in another order products round otherwise, and a neighbour at the border must not come inside by that
    assert prdc(a, rng.permutation(a)) == (1, 1, 1, 1)
    assert prdc(a, a + 1000) == (0, 0, 0, 0)
    # one of two kinds of picture: faithful, and half of what there is
    both = np.concatenate([a, a + 1000])
    assert prdc(both, a) == (1, 0.5, 1, 0.5)
    assert prdc(a, both) == (0.5, 1, 0.5, 1)


def test_prdc_is_its_definition(monkeypatch):
    rng, k = np.random.default_rng(12), 2
    real, fake = rng.normal(size=(23, 3)), rng.normal(0.7, 1, (17, 3))

    def radii(rows):
        return [sorted(np.linalg.norm(rows - row, axis=1))[k] for row in rows]

    apart = np.linalg.norm(real[:, None] - fake[None], axis=2)
    in_real = apart < np.array(radii(real))[:, None]
    in_fake = apart < np.array(radii(fake))[None]
    expected = (in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum() / (k * 17), in_real.any(1).mean())
    assert prdc(real, fake, k) == pytest.approx(expected)
    assert min(expected) > 0 and max(expected) < 1, "or this test shows little"
    monkeypatch.setattr(distances, "ROWS_AT_ONCE", 4)
    assert prdc(real, fake, k) == pytest.approx(expected)


def test_density_of_one_distribution_is_about_one():
    rng = np.random.default_rng(13)
    found = np.mean([prdc(rng.normal(size=(100, 4)), rng.normal(size=(100, 4))) for _ in range(40)], axis=0)
    assert found[2] == pytest.approx(1, abs=0.05)


def test_duplicates_lie_in_no_ball():
    rng = np.random.default_rng(14)
    # the same picture in batches of different sizes: features differ by the last digit of single precision
    same = rng.normal(size=(1, 70)) * (1 + 1e-8 * rng.normal(size=(9, 70)))
    far = 50 + rng.normal(size=(9, 70))
    assert prdc(np.concatenate([same, far]), same) == (0, 0, 0, 0), "balls of no radius hold nothing, whatever the products round to"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (lambda: Statistics.of(np.zeros((1, 3))), "at least two rows"),
        (lambda: Statistics.of(np.zeros(3)), "must be [N, D]; got [3]"),
        (lambda: frechet(np.zeros((5, 3)), np.zeros((5, 4))), "got [[3], [3, 3], [4], [4, 4]]"),
        (lambda: cmmd(np.zeros((5, 3)), np.zeros((5, 4))), "got [5, 3] and [5, 4]"),
        (lambda: cmmd(np.zeros((0, 3)), np.zeros((5, 3))), "got [0, 3] and [5, 3]"),
        (lambda: prdc(np.zeros((5, 3)), np.zeros((9, 3))), "more than 5 rows on both sides; got 5 and 9"),
        (lambda: prdc(np.zeros((5, 3)), np.zeros((9, 3)), k=0), "k >= 1"),
    ],
)
def test_what_has_no_distance_is_said(found, why):
    with pytest.raises(ValueError) as error:
        found()
    assert why in str(error.value)
