import numpy as np
import pytest
from scipy import optimize, special, stats

from genrl.evaluation.ranking import PRIOR, bradley_terry, ranking

TRIALS = 250


def gumbel_scores(rng, strengths, prompts):
    """Scores by which model i beats j on a prompt with probability 1 / (1 + exp(s_j - s_i)), exactly."""
    return {f"m{i}": strength + rng.gumbel(size=prompts) for i, strength in enumerate(strengths)}


def strengths_of(ranks):
    return [rank["strength"] for rank in ranks]


def test_known_strengths_are_found_again():
    truth = [0.0, 0.5, -1.0, 2.0]
    ranks = ranking(gumbel_scores(np.random.default_rng(0), truth, 8000), draws=50)
    assert [rank["model"] for rank in ranks] == ["m0", "m1", "m2", "m3"]
    assert strengths_of(ranks) == pytest.approx(truth, abs=0.08)
    assert ranks[0]["ci95"] == [0, 0], "the base is what others are measured against"


def test_an_independent_fit_agrees():
    wins = np.random.default_rng(1).integers(1, 30, (5, 5)).astype(float)

    def unlikely(free):
        strengths = np.concatenate([[0.0], free])
        return -sum(wins[i, j] * special.log_expit(strengths[i] - strengths[j]) for i in range(5) for j in range(5) if i != j)

    theirs = optimize.minimize(unlikely, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    assert bradley_terry(wins) == pytest.approx([0, *theirs], abs=1e-5)
    # many tables at once, and what they say of themselves is of no account
    many = bradley_terry(np.stack([wins, wins + 100 * np.eye(5), wins.T]))
    assert many[1] == pytest.approx(many[0], abs=1e-9) and many[2] == pytest.approx(-many[0], abs=1e-9)


def test_of_two_models_it_is_the_log_odds_and_the_interval_of_jeffreys():
    wins, losses = 12, 3
    base, other = np.zeros(15), np.repeat([1.0, -1.0], [wins, losses])
    rank = ranking({"base": base, "other": other}, draws=8000)[1]
    assert rank["strength"] == pytest.approx(np.log(12.5 / 3.5), rel=1e-9)
    jeffreys = special.logit(stats.beta.ppf([0.025, 0.975], wins + 0.5, losses + 0.5))
    assert rank["ci95"] == pytest.approx(jeffreys, abs=0.05)


def test_another_base_only_moves_the_zero():
    scores = gumbel_scores(np.random.default_rng(2), [0.0, 1.0, -0.5], 50)
    one = {rank["model"]: rank["strength"] for rank in ranking(scores, draws=10)}
    two = {rank["model"]: rank["strength"] for rank in ranking({name: scores[name] for name in ("m2", "m0", "m1")}, draws=10)}
    assert two == pytest.approx({name: value - one["m2"] for name, value in one.items()}, abs=1e-9)


@pytest.mark.parametrize(("prompts", "truth"), [(24, [0.0, 0.5, 0.0]), (48, [0.0, 2.0, -1.0])])
def test_intervals_cover_at_their_rate(prompts, truth):
    rng, covered = np.random.default_rng(prompts), np.zeros(3)
    for trial in range(TRIALS):
        ranks = ranking(gumbel_scores(rng, truth, prompts), seed=trial, draws=300)
        covered += [rank["ci95"][0] <= value <= rank["ci95"][1] for rank, value in zip(ranks, truth, strict=True)]
    assert (covered[1:] / TRIALS >= 0.915).all() and (covered[1:] / TRIALS <= 0.99).all()


def test_who_always_wins_stays_finite_and_uncertain():
    scores = {"base": np.zeros(16), "good": np.ones(16), "better": np.full(16, 2.0)}
    base, good, better = ranking(scores)
    assert base["strength"] == 0 < good["strength"] < better["strength"] < 10
    for rank in (good, better):
        low, high = rank["ci95"]
        assert 0 < low < rank["strength"] < high < 20
    assert better["ci95"][1] - better["ci95"][0] > 2, "sixteen wins do not fix the odds"


def test_ties_are_half_a_win_each():
    rank = ranking({"base": np.zeros(40), "same": np.zeros(40)})[1]
    assert rank["strength"] == pytest.approx(0, abs=1e-9) and rank["ci95"][0] < 0 < rank["ci95"][1]
    mixed = ranking({"base": np.zeros(40), "half": np.repeat([1.0, 0.0], 20)})[1]
    assert mixed["strength"] == pytest.approx(np.log((20 + 10 + PRIOR) / (10 + PRIOR)), rel=1e-9)


def test_what_was_not_scored_is_left_out():
    rng = np.random.default_rng(3)
    scores = gumbel_scores(rng, [0.0, 1.0], 30)
    alone = ranking(scores)
    ranks = ranking({**scores, "unscored": np.full(30, np.nan)})
    assert ranks[:2] == alone and np.isnan([ranks[2]["strength"], *ranks[2]["ci95"]]).all()
    hidden = {name: np.append(values, [9.0, np.nan]) for name, values in scores.items()}
    hidden["m1"][-2] = np.nan
    assert strengths_of(ranking(hidden)) == pytest.approx(strengths_of(alone))
    assert np.isnan(strengths_of(ranking({"base": np.full(30, np.nan), **scores}))).all(), "nothing to be measured against"


def test_what_cannot_be_ranked_is_said():
    with pytest.raises(ValueError, match=r"two models or more on the same prompts; got \{'a': 3\}"):
        ranking({"a": np.zeros(3)})
    with pytest.raises(ValueError, match=r"got \{'a': 3, 'b': 4\}"):
        ranking({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(ValueError, match="above 0 off the diagonal"):
        bradley_terry(np.array([[0.0, 3.0], [0.0, 0.0]]))
