import numpy as np
import pytest
from scipy import optimize, stats

from genrl.evaluation import statistics
from genrl.evaluation.statistics import (
    bootstrap_interval,
    holm,
    minimum_detectable,
    outcomes,
    paired_gain,
    paired_interval,
    paired_test,
    spearman,
    studentised_interval,
    win_rate,
)


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


# differences of one prompt, [trials, prompts], and their true mean
DIFFERENCES = {
    "normal": (lambda rng, shape: rng.normal(0.1, 1, shape), 0.1),
    "skewed": (lambda rng, shape: rng.exponential(1, shape), 1.0),
    "heavy tails": (lambda rng, shape: rng.standard_t(3, shape), 0.0),
    "mostly none": (lambda rng, shape: rng.choice([-0.25, 0, 0.25], p=[0.12, 0.7, 0.18], size=shape), 0.015),
}
TRIALS = 400


@pytest.mark.parametrize("prompts", [16, 32, 64])
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_paired_intervals_cover_at_their_rate(kind, prompts):
    draw, truth = DIFFERENCES[kind]
    rng = np.random.default_rng(prompts)
    before = rng.normal(0, 10, (TRIALS, prompts))
    found = [paired_interval(one, one + difference) for one, difference in zip(before, draw(rng, before.shape), strict=True)]
    covered = np.mean([low <= truth <= high for _, low, high in found])
    assert 0.92 <= covered <= 0.985


def test_of_few_skewed_prompts_a_percentile_interval_covers_too_little():
    values = np.random.default_rng(2).exponential(1, (TRIALS, 16))
    percentile, studentised = (
        np.mean([low <= 1 <= high for low, high in map(interval, values)]) for interval in (bootstrap_interval, studentised_interval)
    )
    assert percentile < 0.91 and studentised > 0.93


def test_an_interval_is_no_narrower_than_that_of_student():
    rng = np.random.default_rng(3)
    for values in (rng.normal(5, 2, 12), rng.exponential(1, 40), np.eye(1, 16)[0], np.array([1.0, 3.0])):
        low, high = studentised_interval(values)
        student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert low <= student.low + 1e-12 and high >= student.high - 1e-12
    # a long tail to the right may hide more of itself there
    values = rng.exponential(1, 20)
    low, high = studentised_interval(values)
    assert high - values.mean() > 1.3 * (values.mean() - low)


def test_intervals_move_and_scale_with_the_values():
    values = np.random.default_rng(4).exponential(1, 25)
    low, high = studentised_interval(values)
    assert studentised_interval(1e-7 * values - 1) == pytest.approx((1e-7 * low - 1, 1e-7 * high - 1), abs=1e-15)
    assert studentised_interval(values, seed=1) != (low, high) == studentised_interval(values)
    assert studentised_interval(np.append(values, np.nan)) == (low, high)


def test_intervals_of_nearly_nothing():
    assert studentised_interval(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)
    assert np.isnan(studentised_interval(np.array([1.0, np.nan]))).all()
    assert np.isnan(paired_interval(np.array([np.nan]), np.array([1.0]))).all()
    mean, low, high = paired_interval(np.array([1.0, 2.0, np.nan]), np.array([2.0, 5.0, 9.0]))
    assert mean == 2 and low < 2 < high


@pytest.mark.parametrize("prompts", [32, 64, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_an_exchangeable_copy_wins_half(prompts, ties):
    rng = np.random.default_rng(prompts)
    a, b = rng.normal(size=(2, TRIALS, prompts))
    if ties:
        a, b = a.round(), b.round()  # about a quarter are equal
    found = np.array([win_rate(one, two) for one, two in zip(a, b, strict=True)])
    assert found[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    covered = ((found[:, 1] <= 0.5) & (found[:, 2] >= 0.5)).mean()
    assert 0.92 <= covered <= 0.985


@pytest.mark.parametrize(
    ("win", "lose", "prompts", "least", "most"),
    [
        (0.5, 0.5, 8, 0.929, 0.931),
        (0.5, 0.5, 16, 0.922, 0.924),
        (0.5, 0.5, 32, 0.949, 0.951),
        (0.25, 0.25, 16, 0.95, 0.96),
        (0.7, 0.3, 32, 0.94, 0.96),
        (0.6, 0.1, 16, 0.95, 0.97),
        (0.95, 0.0, 16, 0.95, 0.97),
        (0.05, 0.0, 16, 0.99, 1.0),
    ],
)
def test_win_rates_are_covered_as_the_docstring_says(win, lose, prompts, least, most):
    """Exactly: every outcome of the trinomial, by its probability."""
    covered, truth = 0.0, win + (1 - win - lose) / 2
    for wins in range(prompts + 1):
        for losses in range(prompts + 1 - wins):
            probability = stats.multinomial.pmf([wins, losses, prompts - wins - losses], prompts, [win, lose, 1 - win - lose])
            if probability > 1e-9:
                a = np.repeat([1.0, -1.0, 0.0], [wins, losses, prompts - wins - losses])
                _, low, high = win_rate(a, np.zeros(prompts))
                covered += probability * (low <= truth <= high)
    assert least <= covered <= most


def test_without_ties_a_win_rate_has_the_interval_of_wilson():
    for wins, prompts in ((0, 5), (3, 10), (16, 16), (40, 64)):
        wilson = stats.binomtest(wins, prompts).proportion_ci(0.95, "wilson")
        found = win_rate(np.arange(prompts) < wins, np.full(prompts, 0.5))
        assert found == pytest.approx((wins / prompts, wilson.low, wilson.high), abs=1e-6)


def test_at_the_ends_of_a_win_rate_the_score_test_just_rejects():
    wins, losses, ties = 9, 3, 8
    rate, *ends = win_rate(np.repeat([1.0, -1.0, 0.0], [wins, losses, ties]), np.zeros(20))
    assert rate == 13 / 20
    for end in ends:
        d = 2 * end - 1

        def unlikely(lose, d=d):
            return -(wins * np.log(lose + d) + losses * np.log(lose) + ties * np.log(1 - 2 * lose - d))

        lose = optimize.minimize_scalar(
            unlikely, bounds=(max(0, -d) + 1e-9, (1 - d) / 2 - 1e-9), method="bounded", options={"xatol": 1e-10}
        ).x
        score = (wins - losses - 20 * d) / np.sqrt(20 * (2 * lose + d - d**2))
        assert abs(score) == pytest.approx(1.959964, rel=1e-4)


def test_ties_are_equal_up_to_the_order_of_summation():
    a = np.array([0.1 + 0.2 + 0.3, 1.0, 2.0, np.nan, 0.0, 3.0])
    b = np.array([0.3 + 0.2 + 0.1, 2.0, 1.0, 1.0, 0.0, np.inf])
    assert a[0] != b[0]
    assert outcomes(a, b) == pytest.approx([0.5, 0, 1, np.nan, 0.5, np.nan], nan_ok=True)
    assert win_rate(a, b)[0] == 0.5
    assert paired_test(a[:1], b[:1]) == 1 and paired_interval(a[:1], b[:1])[0] == 0
    assert np.isnan(win_rate(np.array([np.nan]), np.array([1.0]))).all()


def test_sign_flips_by_hand_and_by_another_library():
    zero = np.zeros(5)
    assert paired_test(zero, np.ones(5)) == 2 / 2**5
    assert paired_test(zero, zero) == 1.0 and np.isnan(paired_test(zero, np.full(5, np.nan)))
    # of 1, 2, 4 with signs the size is 7, 5, 3, 1: two in eight are 5 or more, besides two of 7
    assert paired_test(np.zeros(3), np.array([-1.0, 2.0, 4.0])) == 4 / 8
    difference = np.random.default_rng(5).normal(0.5, 1, 9)
    theirs = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_test(np.zeros(9), difference) == pytest.approx(theirs.pvalue)
    assert paired_test(np.zeros(30), np.append(difference, [*np.zeros(20), np.nan])) == pytest.approx(theirs.pvalue), "ties say nothing"


def test_drawn_sign_flips_agree_with_all(monkeypatch):
    difference = np.random.default_rng(6).normal(0.5, 1, 13)
    exact = paired_test(np.zeros(13), difference)
    monkeypatch.setattr(statistics, "EXACT_PROMPTS", 0)
    drawn = paired_test(np.zeros(13), difference)
    assert drawn == pytest.approx(exact, abs=4 * (exact / 1e4) ** 0.5) and drawn == paired_test(np.zeros(13), difference)
    assert drawn != paired_test(np.zeros(13), difference, seed=1)
    assert paired_test(np.zeros(40), np.ones(40), draws=99) == 1 / 100, "the observed signs are among those tried"


@pytest.mark.parametrize("prompts", [10, 24])
def test_false_alarms_come_at_their_rate(prompts):
    same = np.random.default_rng(7).standard_t(3, (1000, prompts))
    alarms = np.mean([paired_test(np.zeros(prompts), difference, draws=399) <= 0.05 for difference in same])
    assert 0.03 < alarms < 0.07


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, never falling
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([np.nan, 0.02, 0.04])) == pytest.approx([np.nan, 0.04, 0.04], nan_ok=True)
    assert len(holm(np.array([]))) == 0


def test_holm_keeps_the_share_of_families_with_a_false_discovery():
    p_values = np.random.default_rng(8).random((4000, 5))
    assert (p_values.min(1) < 0.05).mean() > 0.2
    assert 0.035 < np.mean([holm(family).min() <= 0.05 for family in p_values]) < 0.065


@pytest.mark.parametrize(("prompts", "power"), [(8, 0.8), (32, 0.8), (32, 0.5)])
def test_the_minimum_detectable_effect_is_detected_that_often(prompts, power):
    rng = np.random.default_rng(9)
    like = rng.normal(size=prompts)
    like = 3 * (like - like.mean()) / like.std(ddof=1)
    effect = minimum_detectable(like, power)
    noise = rng.normal(0, 3, (3000, prompts))
    found = (stats.ttest_1samp(noise + effect, 0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(power, abs=0.03)
    # by what the table itself tests
    ours = np.mean([paired_test(np.zeros(prompts), one + effect, draws=399) <= 0.05 for one in noise[:TRIALS]])
    assert ours == pytest.approx(power, abs=0.08)


def test_the_minimum_detectable_effect_shrinks_with_prompts():
    values = np.random.default_rng(10).normal(size=50)
    one, four = minimum_detectable(values), minimum_detectable(np.tile(values, 4))
    assert one / four == pytest.approx(2, rel=0.03)
    assert minimum_detectable(values, alpha=0.01) > 1.2 * one
    assert minimum_detectable(10 * np.append(values, np.nan)) == pytest.approx(10 * one)
    assert np.isnan(minimum_detectable(np.ones(1))) and minimum_detectable(np.ones(4)) == 0
    assert np.isfinite(minimum_detectable(np.array([0.0, 1.0])))
