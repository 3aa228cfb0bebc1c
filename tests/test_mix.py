"""Several rewards become one: normalisation, multipliers, who leads, state and settings."""

import json
import math

import pytest
import torch

from genrl import rules
from genrl.config import ConfigError, Rewards, Term, load
from genrl.config import Mix as Settings
from genrl.mix import RULES, Mix

NAN = math.nan


def drawn(members=3, samples=24, seed=0):
    scores = torch.randn(members, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores, torch.ones(members, dtype=torch.float64), torch.arange(samples) // 6


def close(a, b, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=0, atol=atol, equal_nan=True)


def mixed(rule="weighted_sum", terms=None, **settings):
    """A mix of terms a, b, c ..., each given as a mapping of its settings."""
    return Mix({"abcdef"[i]: Term(**t) for i, t in enumerate(terms or [{}, {}])}, Settings(rule=rule, **settings))


def named(scores):
    return {"abcdef"[i]: row.float() for i, row in enumerate(scores)}


# -- rounds


def test_the_leader_and_the_metrics_of_a_round():
    scores, _, group = drawn(2)
    got = mixed(terms=[{"weight": 1.0}, {"weight": 3.0}])(named([scores[0], NAN * scores[0].where(group > 0, 1.0)]), group)
    assert got.leader is None and got.total.isnan().sum() == 24, "nothing can be judged, so nothing leads"
    scores[1] = scores[0]
    got = mixed(terms=[{"weight": 1.0}, {"weight": 3.0}])(named(scores), group)
    assert got.leader == "b" and got.metrics["mix/share/a"] == pytest.approx(0.25) and got.metrics["mix/disagreement"] == 0
    assert got.total.dtype == torch.float32 and got.metrics["mix/valid"] == 1.0
    scores[1] = scores[0] + 2
    got = mixed(terms=[{}, {}])(named(scores), group)
    assert got.metrics["mix/disagreement"] == pytest.approx(1.0, abs=1e-6)
    alone = mixed(terms=[{"weight": 0.5}])(named(scores[:1]), group)
    assert alone.leader == "a" and alone.metrics == {"mix/valid": 1.0}
    torch.testing.assert_close(alone.total, 0.5 * scores[0].float(), rtol=0, atol=0)


def test_the_share_of_a_guard_that_fails():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 1.0]])
    got = mixed("gated", [{}, {"floor": 0.5}], penalty=-1.0)(named(scores), torch.zeros(4, dtype=torch.long))
    assert got.total.tolist() == [-1.0, 2.0, 3.0, 4.0]
    assert got.metrics["mix/below/b"] == 0.25 and got.leader == "a"
    scaled = mixed("gated", [{"mean": 1.0, "std": 2.0}, {"floor": 0.5, "mean": 9.0}])(named(scores), torch.zeros(4, dtype=torch.long))
    assert scaled.total.tolist() == [0.0, 0.5, 1.0, 1.5], "a floor is in the reward's own units"


# -- normalisation


def test_fixed_and_none():
    scores, _, group = drawn(2)
    got = mixed(terms=[{"mean": 1.0, "std": 2.0}, {"weight": 3.0}])(named(scores), group).total
    close(got, (scores[0] - 1) / 2 + 3 * scores[1], 1e-5)
    close(mixed("worst", normalise="none")(named(scores), group).total, scores.amin(0), 1e-6)


def test_base_is_the_first_round_and_stays():
    first, _, group = drawn(2, seed=1)
    second = 10 + 5 * drawn(2, seed=2)[0]
    mean, std = first.mean(1, keepdim=True), first.std(1, correction=0, keepdim=True)
    mix = mixed("mean")
    close(mix(named(first), group).total, ((first - mean) / std).mean(0), 1e-5)
    close(mix(named(second), group).total, ((second - mean) / std).mean(0), 1e-4)


def test_a_reward_that_the_base_model_never_earns_does_not_explode():
    _, _, group = drawn(2)
    mix = mixed("mean")
    rounds = [torch.zeros(2, 24), torch.zeros(2, 24)]
    rounds[1][:, ::2] = 1.0
    assert mix(named(rounds[0]), group).total.tolist() == [0.0] * 24
    close(mix(named(rounds[1]), group).total, rounds[1].mean(0) / 0.5, 1e-5)


def test_running_is_of_all_rounds_so_far_and_of_the_first_in_the_first():
    mix, seen = mixed("mean", normalise="running"), []
    for number in range(3):
        scores, _, group = drawn(2, seed=number)
        scores = scores * (number + 1) + number
        scores[0, 0] = NAN if number == 1 else scores[0, 0]
        seen.append(scores)
        every = torch.cat(seen, 1).float().double()
        mean = every.nanmean(1, keepdim=True)
        std = (every - mean).square().nanmean(1, keepdim=True).sqrt()
        z = (scores - mean) / std
        close(mix(named(scores), group).total, torch.where(z.isfinite().all(0), z.mean(0), NAN), 1e-5)


def test_group_normalisation_in_a_sum_is_gdpo_but_for_the_last_scale():
    scores, weights, group = drawn(2)
    total = mixed(normalise="group")(named(scores), group).total.double()
    gdpo = mixed("gdpo")(named(1000 * scores), group)
    close(gdpo.total, total / total.std(correction=0), 1e-5)
    close(gdpo.total, rules.gdpo(scores, weights, group), 1e-5)
    assert gdpo.metrics["mix/share/a"] == pytest.approx(0.5)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "gated"])
def test_every_rule_gives_the_same_whatever_the_order_of_samples(rule):
    scores, _, group = drawn(3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    given, shuffled = (mixed(rule, [{}] * 3)(named(s), g) for s, g in ((scores, group), (scores[:, order], group[order])))
    close(shuffled.total, given.total[order], 1e-5)
    assert shuffled.metrics == pytest.approx(given.metrics, abs=1e-6) and shuffled.leader == given.leader
    assert sum(v for k, v in given.metrics.items() if "/share/" in k) == pytest.approx(1)


# -- constrained


def test_the_floor_that_is_not_given_is_the_base_models_mean():
    scores, _, group = drawn(2)
    mix = mixed("constrained", dual_lr=0.1)
    first = mix(named(scores), group)
    assert first.metrics["mix/multiplier/b"] == 0
    std = scores[1].std(correction=0)
    lowered = scores - torch.tensor([[0.0], [2.0]]) * std
    assert mix(named(lowered), group).metrics["mix/multiplier/b"] == pytest.approx(0, abs=1e-7), "on the floor nothing moves"
    third = mix(named(lowered), group)
    assert third.metrics["mix/multiplier/b"] == pytest.approx(0.1 * 2, abs=1e-6), "two standard deviations below"
    normal = (lowered - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)
    close(third.total, 0.8 * normal[0] + 0.2 * normal[1], 1e-5)
    for _ in range(20):
        last = mix(named(lowered), group)
    assert last.metrics["mix/multiplier/b"] == pytest.approx(0.9)
    for _ in range(20):
        last = mix(named(scores + 5), group)
    assert last.metrics["mix/multiplier/b"] == 0


def test_the_fixed_point_where_the_rewards_conflict():
    """The best answer to ``(1 - mu) (-(x - 1)^2) + mu (-(x + 1)^2)`` is x = 1 - 2 mu; the floor -1 is met at x = 0, so mu = 1/2."""
    mix = mixed("constrained", [{}, {"floor": -1.0}], normalise="none", dual_lr=0.02)
    group, spread = torch.zeros(16, dtype=torch.long), torch.linspace(-0.3, 0.3, 16, dtype=torch.float64)
    x, history = 1.0, []
    for _ in range(400):
        samples = x + spread
        got = mix(named(torch.stack([-((samples - 1) ** 2), -((samples + 1) ** 2) + spread.square().mean()])), group)
        mu = got.metrics["mix/multiplier/b"]
        history.append(mu)
        x = 1 - 2 * mu
    assert history[0] == 0 and history[5] > 0
    assert history[-1] == pytest.approx(0.5, abs=1e-3) and -((x + 1) ** 2) == pytest.approx(-1, abs=1e-2)


# -- state and settings


@pytest.mark.parametrize(("rule", "normalise"), [("constrained", "base"), ("mean", "running"), ("uncertain", "base")])
def test_a_resumed_mix_goes_on_exactly(rule, normalise):
    rounds = [drawn(3, seed=number)[0] * (1 + number) for number in range(4)]
    rounds[0][2] = NAN  # a term whose first scores come later
    group = drawn()[2]
    terms = [{}, {"floor": 5.0 if rule == "constrained" else None}, {}]
    whole, half = (mixed(rule, terms, normalise=normalise) for _ in range(2))
    expected = [whole(named(scores), group) for scores in rounds]
    for scores in rounds[:2]:
        half(named(scores), group)
    resumed = mixed(rule, terms, normalise=normalise)
    resumed.load_state(json.loads(json.dumps(half.state(), allow_nan=False)))
    assert resumed.state() == half.state() and (rule != "constrained" or half.state()["multipliers"][0] > 0)
    for scores, before in zip(rounds[2:], expected[2:], strict=True):
        after = resumed(named(scores), group)
        torch.testing.assert_close(after.total, before.total, rtol=0, atol=0, equal_nan=True)
        assert after.metrics == before.metrics


@pytest.mark.parametrize(
    ("rule", "terms", "settings", "why"),
    [
        ("worst", [{}], {}, "rewards.mix.rule 'worst' needs two rewards"),
        ("mean", [{}, {"weight": 0.0}], {}, "rewards.mix.rule 'mean' needs two rewards"),
        ("weighted_sum", [{"weight": 0.0}], {}, "all weights are 0"),
        ("weighted_sum", [{}], {"coefficient": 1.0}, "rewards.mix.coefficient"),
        ("entropic", [{}, {}], {"coefficient": 0.0}, "rewards.mix.coefficient must be between 0"),
        ("nominal_worst", [{}, {}], {"coefficient": 1.5}, "rewards.mix.coefficient must be from 0 to 1"),
        ("constrained", [{}, {}], {"coefficient": 1.0}, "rewards.mix.coefficient"),
        ("constrained", [{}, {}], {"dual_lr": 0.0}, "rewards.mix.dual_lr"),
        ("mean", [{}, {}], {"dual_lr": 0.5}, "rewards.mix.dual_lr is read by the rule 'constrained'"),
        ("mean", [{}, {}], {"penalty": 0.0}, "rewards.mix.penalty is read by the rule 'gated'"),
        ("gated", [{}, {}], {}, "'b': floor is missing"),
        ("gated", [{"floor": 1.0}, {"floor": 1.0}], {}, "'a': floor is read from the second"),
        ("weighted_sum", [{}, {"floor": 1.0}], {}, "'b': floor is read"),
        ("nominal_worst", [{"weight": 0.0}, {}, {}], {}, "'a': weight is 0"),
        ("mean", [{}, {"weight": -1.0}], {}, "'b': weight must be positive"),
        ("worst", [{}, {"weight": 2.0}], {}, "'b': weight must be 1"),
        ("weighted_sum", [{"std": 0.0}], {}, "'a': std must be positive"),
        ("mean", [{"std": 2.0}, {}], {}, "'a': mean and std are read by rewards.mix.normalise fixed"),
        ("product", [{}, {}], {"normalise": "group"}, "rewards.mix.normalise: the rule 'product'"),
        ("gdpo", [{}, {}], {"normalise": "base"}, "rewards.mix.normalise: the rule 'gdpo'"),
        ("gpdo", [{}, {}], {}, "rewards.mix.rule 'gpdo' is unknown"),
    ],
)
def test_a_contradiction_is_named(rule, terms, settings, why):
    with pytest.raises(ConfigError) as error:
        mixed(rule, terms, **settings)
    assert why in str(error.value)


def test_settings_come_from_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train:\n- {name: a}\n- {name: b, floor: 0.5}\nmix: {rule: constrained, coefficient: 0.8}\n")
    rewards = load(Rewards, ["--config", str(path), "--mix.dual_lr", "0.1"])
    mix = Mix({term.name: term for term in rewards.train}, rewards.mix)
    assert (mix.normalise, mix.coefficient, mix.settings.dual_lr, mix.floors[1].item()) == ("base", 0.8, 0.1, 0.5)
    assert {
        Mix({"a": Term(), "b": Term(floor=0.0 if rule == "gated" else None)}, Settings(rule=rule)).settings.rule for rule in RULES
    } == set(RULES)
