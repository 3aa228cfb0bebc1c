"""Rules that make one reward of several: closed forms, identities between them, what NaN does, whose share is how large."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrl import rules

NAN = math.nan


def drawn(members=3, samples=24, seed=0):
    scores = torch.randn(members, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores, torch.ones(members, dtype=torch.float64), torch.arange(samples) // 6


def close(a, b, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=0, atol=atol, equal_nan=True)


# -- rules


def test_rules_on_one_sample_by_hand():
    scores, weights = torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 1.0])
    close(rules.weighted_sum(scores, weights), [7.0])
    close(rules.mean(scores, weights), [1.75])
    close(rules.worst(scores), [1.0])
    close(rules.uncertain(scores, torch.ones(2), 0.5), [2.5 - 0.5 * 2.25])
    close(rules.lower_bound(scores, torch.ones(2), 2.0), [2.5 - 2 * 1.5])
    close(rules.nominal_worst(scores.flip(0), 0.25), [0.25 * 4 + 0.75 * 1])
    close(rules.entropic(scores, torch.ones(2), 1.0), [-math.log((math.exp(-1) + math.exp(-4)) / 2)], 1e-6)
    close(rules.product(scores, torch.tensor([2.0, 0.5]), 1e-3), [2.0], 1e-6)
    close(rules.constrained(scores, torch.tensor([0.3])), [0.7 + 1.2], 1e-6)


def test_no_penalty_is_the_mean():
    scores, weights, _ = drawn()
    close(rules.uncertain(scores, weights, 0.0), scores.mean(0))
    close(rules.lower_bound(scores, weights, 0.0), scores.mean(0))
    assert (rules.uncertain(scores, weights, 0.1) < scores.mean(0)).all()


def test_entropic_goes_from_the_least_to_the_mean_and_expands_to_the_variance():
    scores, weights, _ = drawn()
    mean, variance = scores.mean(0), scores.var(0, correction=0)
    close(rules.entropic(scores, weights, 1e-4), scores.amin(0), 1e-3)
    close(rules.entropic(scores, weights, 1e5), mean, 1e-4)
    errors = [(rules.entropic(scores, weights, beta) - (mean - variance / (2 * beta))).abs().max() for beta in (20.0, 40.0)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1), "what remains falls with beta squared"
    close(rules.uncertain(scores, weights, 1 / 80), mean - variance / 80)


@given(st.integers(0, 10_000), st.floats(0.05, 50))
def test_pessimism_lies_between_the_least_and_the_mean(seed, beta):
    scores, weights, _ = drawn(seed=seed)
    least, mean = rules.worst(scores), rules.mean(scores, weights)
    assert (least <= scores).all()
    for between in (rules.entropic(scores, weights, beta), rules.nominal_worst(torch.cat([mean[None], scores]), 0.3)):
        assert (between >= least - 1e-9).all() and (between <= mean + 1e-9).all()


def test_the_ends_of_nominal_worst():
    scores, _, _ = drawn()
    close(rules.nominal_worst(scores, 1.0), scores[0])
    close(rules.nominal_worst(scores, 0.0), scores.amin(0))


def test_product():
    weights = torch.tensor([1.0, 2.0])
    close(rules.product(torch.ones(2, 4), weights, 1e-3), torch.ones(4))
    close(rules.product(torch.tensor([[0.5, -7.0], [0.2, 1.0]]), weights, 1e-3), [0.02, 1e-3], 1e-7)


def test_gated():
    main, guards, floors = torch.tensor([3.0, 1.0, -2.0, 5.0]), torch.tensor([[0.5, 0.4, 0.9, 0.1]]), torch.tensor([0.5])
    close(rules.gated(main, guards, floors, -9.0), [3.0, -9.0, -2.0, -9.0])
    close(rules.gated(main, guards, floors, None), [3.0, -2.0, -2.0, -2.0])
    close(rules.gated(main, torch.tensor([[0.5, NAN, 0.9, 0.1]]), floors, 0.0), [3.0, NAN, -2.0, 0.0])


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 2))
def test_gdpo_and_group_scores_do_not_see_an_affine_change_of_a_reward(factor, shift, changed):
    scores, _, group = drawn()
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    other = scores.clone()
    other[changed] = factor * other[changed] + shift
    close(rules.gdpo(other, weights, group), rules.gdpo(scores, weights, group), 1e-6)
    close(rules.zscore(other, group), rules.zscore(scores, group), 1e-6)
    other[changed] = -other[changed]
    assert not torch.allclose(rules.gdpo(other, weights, group), rules.gdpo(scores, weights, group), atol=0.1)


def test_gdpo_keeps_apart_what_a_z_score_of_the_sum_confuses():
    scores, group = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 10.0, 10.0]]), torch.zeros(4, dtype=torch.long)
    close(rules.gdpo(scores, torch.ones(2), group), torch.tensor([-2.0, 0.0, 0.0, 2.0]) / math.sqrt(2), 1e-6)


def test_scores_within_a_group():
    scores, group = torch.tensor([[1.0, 3.0, NAN, 0.1, 0.1, 0.1, 5.0]]), torch.tensor([7, 7, 7, 2, 2, 2, 0])
    close(rules.zscore(scores, group), [[-1.0, 1.0, NAN, 0.0, 0.0, 0.0, 0.0]])
    mean, std = rules.group_moments(scores, group)
    close(mean, [[2.0, 2.0, 2.0, 0.1, 0.1, 0.1, 5.0]], 1e-6)
    close(std[0, :3], [1.0, 1.0, 1.0])


def test_groups_with_fewer_than_two_scores_are_skipped():
    total, group = torch.tensor([1.0, NAN, 2.0, 3.0, NAN, 4.0]), torch.tensor([5, 5, 1, 1, 1, 0])
    assert rules.valid_groups(total, group).tolist() == [False, False, True, True, False, False]


def test_a_multiplier_rises_below_the_floor_and_falls_above():
    mu = torch.tensor([0.2, 0.2])
    close(rules.dual_ascent(mu, torch.tensor([1.0, -1.0]), 0.1, 0.9), [0.3, 0.1], 1e-6)
    close(rules.dual_ascent(mu, torch.tensor([0.0, -9.0]), 0.1, 0.9), [0.2, 0.0], 1e-6)
    close(rules.dual_ascent(mu, torch.tensor([4.0, 1.0]), 1.0, 0.9), [0.9 * 4.2 / 5.4, 0.9 * 1.2 / 5.4], 1e-6)


# -- NaN


def test_a_missing_needed_score_makes_the_total_missing():
    scores, weights = torch.tensor([[1.0, NAN, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, NAN]]), torch.ones(3)
    totals = [
        rules.weighted_sum(scores, weights),
        rules.worst(scores),
        rules.nominal_worst(scores, 0.5),
        rules.product(scores, weights, 1e-3),
    ]
    totals += [rules.constrained(scores, torch.tensor([0.1, 0.1])), rules.gdpo(scores, weights, torch.zeros(3, dtype=torch.long))]
    assert all(total.isnan().tolist() == [False, True, True] for total in totals)
    assert rules.weighted_sum(scores, torch.tensor([1.0, 1.0, 0.0])).tolist()[0::2] == [2.0, 2.0], "weight 0 is not needed"


def test_ensembles_go_on_with_two():
    scores, weights = torch.tensor([[2.0, NAN, NAN], [4.0, 4.0, 4.0], [9.0, 9.0, NAN]]), torch.tensor([1.0, 1.0, 3.0])
    close(rules.mean(scores, weights), [33 / 5, 31 / 4, NAN], 1e-6)
    pair, plain = torch.tensor([[4.0], [9.0]]), torch.ones(3)
    for rule in (rules.uncertain, rules.lower_bound, rules.entropic):
        got = rule(scores, plain, 0.7)
        assert got.isnan().tolist() == [False, False, True]
        close(got[1:2], rule(pair, torch.ones(2), 0.7), 1e-6)


# -- shares


def test_shares_of_a_sum_are_weight_times_spread():
    group = torch.arange(12) // 6
    base = torch.tensor([0.0, 1.0, 2.0, 2.0, 3.0, 4.0] * 2, dtype=torch.float64)
    # the third differs between the groups only, so it ranks nothing within one
    scores = torch.stack([base, 5 * base.flip(0), group * 100.0])
    parts = rules.shares(lambda s: rules.weighted_sum(s, torch.tensor([3.0, -1.0, 1.0]).double()), scores, group)
    close(parts, [3 / 8, 5 / 8, 0.0])


def test_shares_of_the_worst_are_how_often_it_is_one():
    group = torch.zeros(4, dtype=torch.long)
    scores = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 2.0, -2.0]])
    # the least: first, second, first, second; std 1 and sqrt 2
    weighted = torch.tensor([2 * 1.0, 2 * math.sqrt(2)])
    close(rules.shares(rules.worst, scores, group), weighted / weighted.sum(), 1e-6)


def test_shares_of_members_that_agree_or_are_missing():
    group = torch.zeros(4, dtype=torch.long)
    same = torch.tensor([[1.0, 2.0, 3.0, NAN]]).repeat(3, 1)
    for rule in (rules.mean, lambda s, w: rules.lower_bound(s, w, 1.0), lambda s, w: rules.entropic(s, w, 1.0)):
        close(rules.shares(lambda s, rule=rule: rule(s, torch.ones(3)), same, group), torch.full((3,), 1 / 3), 1e-6)
    close(rules.shares(rules.worst, torch.ones(2, 4), group), [0.0, 0.0])
