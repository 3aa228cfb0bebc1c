"""Rewards made of comparisons: win rates and fitted strengths of known preferences, places, ties, missing answers, schedules."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrl.preference import BradleyTerry, WinRate, pairwise_of, schedule, strengths
from genrl.reward import About, RewardError, about

NAN = math.nan


def pictures(*values):
    """Pictures whose first pixel tells them apart."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def value(images):
    return images[:, 0, 0, 0]


class Judge:
    """Prefers by a function of two values, and counts what it is asked."""

    about = About(kind="pairwise", metadata=("target",), weights=("some/judge",), license="MIT", source="a paper")

    def __init__(self, probability):
        self.probability, self.asked, self.largest = probability, 0, 0

    def compare(self, first, second, prompts, metadata):
        assert len(first) == len(second) == len(prompts) == len(metadata)
        self.asked, self.largest = self.asked + len(first), max(self.largest, len(first))
        return self.probability(value(first), value(second))


def logistic(a, b):
    return torch.sigmoid(a - b)


def ask(reward, images):
    return reward(images, ["p"] * len(images), [{"target": i} for i in range(len(images))])


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, torch.as_tensor(b), rtol=0, atol=atol, equal_nan=True)


# -- win rates


def test_a_win_rate_is_the_mean_over_siblings():
    images = pictures(0.0, 1.0, 3.0)
    p01, p02, p12 = (1 / (1 + math.exp(gap)) for gap in (1, 3, 2))
    close(ask(WinRate(Judge(logistic)), images), [(p01 + p02) / 2, (1 - p01 + p12) / 2, (2 - p02 - p12) / 2])


def test_a_cycle_has_no_winner():
    judge = Judge(lambda a, b: ((b - a) % 3 == 1).float())  # 0 beats 1 beats 2 beats 0
    close(ask(WinRate(judge), pictures(0, 1, 2)), [0.5, 0.5, 0.5])
    close(ask(BradleyTerry(judge), pictures(0, 1, 2)), [0.0, 0.0, 0.0])
    close(ask(WinRate(judge), pictures(0, 1)), [1.0, 0.0])


def test_ties_are_halves():
    close(ask(WinRate(Judge(lambda a, b: 0.5 + 0.5 * (a - b).sign())), pictures(1, 1, 2)), [0.25, 0.25, 1.0])


def test_both_orders_take_out_the_favourite_place():
    def fair(a, b):
        return 0.5 + 0.1 * (a - b)

    images = pictures(0, 1, 2, 3)
    wanted = ask(WinRate(Judge(fair)), images)
    biased = Judge(lambda a, b: fair(a, b) + 0.15)
    close(ask(WinRate(biased), images), wanted)
    assert biased.asked == 12
    once = ask(WinRate(biased, both_orders=False), images)
    assert biased.asked == 12 + 6 and (once - wanted).abs().max() > 0.01


def test_a_comparison_without_an_answer_is_dropped():
    def unsure(a, b):
        return torch.where((a == 0) & (b == 1), NAN, (a > b).float())

    # 0 against 1 is answered in one order only: neither counts
    close(ask(WinRate(Judge(unsure)), pictures(0, 1, 2)), [0.0, 0.0, 1.0])
    close(ask(WinRate(Judge(lambda a, b: torch.where((a == 2) | (b == 2), NAN, (a > b).float()))), pictures(0, 1, 2)), [0.0, 1.0, NAN])
    silent = Judge(lambda a, b: [None] * len(a))
    for reward in (WinRate(silent), BradleyTerry(silent)):
        close(ask(reward, pictures(0, 1)), [NAN, NAN])
        close(ask(reward, pictures(3)), [NAN])


@given(st.permutations(range(6)), st.sampled_from([WinRate, BradleyTerry]))
def test_scores_follow_their_pictures(order, kind):
    values = torch.tensor([0.1, -2.0, 0.7, 0.7, 3.0, -0.4])
    reward = kind(Judge(lambda a, b: torch.sigmoid(a - b + 0.3 * (a * b).sin())))
    close(ask(reward, pictures(*values[order].tolist())), ask(reward, pictures(*values.tolist()))[order], 1e-5)


# -- strengths


def test_strengths_are_recovered():
    truth = torch.tensor([-1.5, 0.0, 0.25, 2.0, -0.75])
    for pairs in (0, 2):
        close(ask(BradleyTerry(Judge(logistic), pairs_per_sample=pairs, ridge=1e-7), pictures(*truth.tolist())), truth, 1e-4)
    shrunk = ask(BradleyTerry(Judge(logistic), ridge=1.0), pictures(*truth.tolist()))
    assert shrunk.norm() < 0.9 * truth.norm() and shrunk.sum().abs() < 1e-5 and (shrunk.argsort() == truth.argsort()).all()


def test_an_undefeated_picture_stays_finite():
    """At the top of two, ``s(-2 t) = ridge t``."""
    low, high = ask(BradleyTerry(Judge(lambda a, b: (a > b).float()), ridge=0.01), pictures(0, 1)).tolist()
    assert low == pytest.approx(-high) and 1 / (1 + math.exp(2 * high)) == pytest.approx(0.01 * high, rel=1e-4)
    alone = ask(BradleyTerry(Judge(lambda a, b: 0.5 + 0.5 * (a - b).sign())), pictures(*[0] * 15, 1))
    assert alone[-1].item() == pytest.approx(5.3, abs=0.05)
    hard = ask(BradleyTerry(Judge(lambda a, b: (a > b).float())), pictures(*range(16)))
    assert (hard.diff() > 0).all() and hard.isfinite().all()


def test_strengths_solve_their_equation():
    won = torch.rand(7, 7, generator=torch.Generator().manual_seed(1))
    won = torch.where(torch.rand(7, 7, generator=torch.Generator().manual_seed(2)) < 0.2, NAN, won)
    won = ((won + 1 - won.T) / 2).fill_diagonal_(NAN)
    theta = strengths(won, 0.05)
    expected = torch.sigmoid(theta[:, None] - theta)
    close((won - expected).nansum(1), 0.05 * theta, 1e-5)


def test_who_was_beaten_counts_for_strengths_only():
    won = torch.full((4, 4), NAN)
    for winner, loser in ((0, 1), (1, 2), (3, 2)):  # 0 and 3 both won their only comparison; 0 against the better one
        won[winner, loser], won[loser, winner] = 0.9, 0.1
    theta = strengths(won, 0.01)
    assert theta[0] > theta[3] + 1 and won[0].nanmean() == won[3].nanmean()


# -- schedules and pointwise rewards


@given(st.integers(2, 25), st.integers(0, 30))
def test_a_schedule_is_regular_and_connected(count, pairs):
    chosen = schedule(count, pairs)
    assert len({frozenset(pair) for pair in chosen.tolist()}) == len(chosen) and (chosen[:, 0] != chosen[:, 1]).all()
    degree = torch.bincount(chosen.flatten(), minlength=count)
    wanted = min(pairs or count - 1, count - 1)
    assert set(degree.tolist()) == {wanted + (wanted % 2 and count % 2)}
    first = torch.bincount(chosen[:, 0], minlength=count)
    assert (2 * first - degree).abs().max() <= 1, "no picture stands first more often than second"
    if wanted >= 2:
        near = torch.eye(count)
        near[chosen[:, 0], chosen[:, 1]] = near[chosen[:, 1], chosen[:, 0]] = 1
        assert (torch.linalg.matrix_power(near, count) > 0).all()


def test_a_sparse_schedule_asks_less_and_in_small_calls():
    judge = Judge(logistic)
    got = ask(WinRate(judge, pairs_per_sample=4, batch=5), pictures(*range(10)))
    assert judge.asked == 2 * 10 * 4 // 2 and judge.largest == 5 and got.isfinite().all()


def test_a_pointwise_reward_becomes_pairwise_and_scores_each_picture_once():
    scored = []

    def reward(images, prompts, metadata):
        scored.extend(value(images).tolist())
        return [None if v == 5 else 2 * v for v in value(images).tolist()]

    values = [0.0, 1.0, 5.0, 3.0]
    preference = pairwise_of(reward, scale=2.0)
    assert about(preference).kind == "pairwise"
    rows = (["p"] * 2, [{}] * 2)
    close(preference.compare(pictures(0, 5), pictures(1, 1), *rows), [1 / (1 + math.e), NAN])
    scored.clear()
    got = ask(WinRate(preference, batch=3), pictures(*values))
    assert scored == values
    close(got[[0, 1, 3]], ask(WinRate(Judge(logistic)), pictures(0, 1, 3)))
    assert got[2].isnan()
    close(ask(BradleyTerry(reward, scale=2.0, ridge=1e-7), pictures(*values)), torch.tensor([0, 1, NAN, 3]) - 4 / 3, 1e-4)


def test_what_is_known_of_the_inner_reward_is_kept():
    for kind in (WinRate, BradleyTerry):
        said = about(kind(Judge(logistic)))
        assert said.kind == "group" and (said.metadata, said.weights, said.license) == (("target",), ("some/judge",), "MIT")
        assert said.bounds == ((0.0, 1.0) if kind is WinRate else None)


def test_a_reward_may_be_given_by_name():
    reward = WinRate("jpeg_size", options={"grow": True}, scale=0.5)
    images = torch.stack([torch.zeros(3, 32, 32), torch.rand(3, 32, 32)])
    assert ask(reward, images)[1] > 0.5 > ask(reward, images)[0]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: WinRate(WinRate(Judge(logistic))), "takes a preference model"),
        (lambda: WinRate(Judge(logistic), scale=2.0), "takes a preference model"),
        (lambda: WinRate(Judge(logistic), options={"a": 1}), "options belong"),
        (lambda: WinRate(Judge(logistic), pairs_per_sample=-1), "pairs_per_sample"),
        (lambda: BradleyTerry(Judge(logistic), pairs_per_sample=1), "pairs_per_sample 1"),
        (lambda: BradleyTerry(Judge(logistic), ridge=0.0), "ridge"),
        (lambda: pairwise_of(Judge(logistic)), "takes a pointwise reward"),
        (lambda: pairwise_of(len, scale=0.0), "scale must be positive"),
        (lambda: ask(WinRate(Judge(lambda a, b: a - b)), pictures(0, 4)), "probabilities"),
        (lambda: ask(WinRate(Judge(lambda a, b: a[:1])), pictures(0, 4, 5)), "3 scores"),
    ],
)
def test_what_makes_no_sense_is_refused(make, why):
    with pytest.raises(RewardError, match=why):
        make()
