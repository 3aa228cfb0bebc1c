from dataclasses import replace

import pytest
import torch
from linear_world import LinearModel

from genrl.algorithm import Algorithm, Slow, Start, Update
from genrl.chain import OdeChain
from genrl.feedback import ShapedReward
from genrl.losses.value import ValueRegression
from genrl.losses.weighted_matching import WeightedMatching
from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy

GOOD = Algorithm(
    chain=OdeChain((1.0, 0.0)),
    behaviour=OLD,
    feedback=ShapedReward(),
    updates=(Update("critic", ValueRegression(), 1e-3), Update(ACTOR, WeightedMatching("implicit"), 1e-3)),
    slow=(Slow(OLD, ACTOR),),
)


def policy(*roles, critic=True):
    model = LinearModel()
    return FlowPolicy(model, Copies(model.network, roles), {"critic": torch.nn.Linear(1, 1)} if critic else {})


def test_an_algorithm_that_fits():
    GOOD.validate(policy(ACTOR, OLD, REF))
    assert GOOD.trained == ("critic", ACTOR)


@pytest.mark.parametrize(
    ("algorithm", "who", "why"),
    [
        (GOOD, policy(ACTOR, OLD), r"\['ref'\]"),
        (GOOD, policy(ACTOR, OLD, REF, critic=False), "critic"),
        (replace(GOOD, behaviour="teacher"), policy(ACTOR, OLD, REF), "teacher"),
        (replace(GOOD, group_size=1), policy(ACTOR, OLD, REF), "groups of at least 2"),
        (replace(GOOD, prompts=0), policy(ACTOR, OLD, REF), "at least one prompt"),
        (replace(GOOD, updates=(Update(OLD, WeightedMatching(), 1e-3),)), policy(ACTOR, OLD, REF), "no trainable weights"),
        (replace(GOOD, updates=(Update(ACTOR, WeightedMatching(), 0.0),)), policy(ACTOR, OLD, REF), "positive lr"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(algorithm, who, why):
    with pytest.raises(ValueError, match=why):
        algorithm.validate(who)


def test_a_missing_signal_is_named():
    class Mute(ShapedReward):
        signals = ("reward", "valid")

    grouped = Update(ACTOR, WeightedMatching("implicit", baseline="group"), 1e-3)
    with pytest.raises(ValueError, match=r"requires \['group_reward'\]"):
        replace(GOOD, feedback=Mute(), updates=(grouped,)).validate(policy(ACTOR, OLD, REF))


def test_warm_up_ends_by_rounds_or_by_a_metric():
    start = Start(round=5, metric="critic/explained_variance", above=0.3)
    assert [start.open(r, {"critic/explained_variance": ev}) for r, ev in ((0, 0.1), (2, 0.31), (5, 0.0))] == [False, True, True]
    assert not start.open(4, {}) and Start(0).open(0, {})


def test_the_learning_rate_warms_up_and_halves():
    plain = Update(ACTOR, None, lr=0.8)
    assert plain.lr_at(1, 0) == plain.lr_at(999, 50) == 0.8
    update = Update(ACTOR, None, lr=0.8, lr_warmup_updates=4, lr_halving_rounds=10)
    assert [update.lr_at(step, 0) for step in (1, 2, 4, 9)] == pytest.approx([0.2, 0.4, 0.8, 0.8])
    assert [update.lr_at(9, round_) for round_ in (10, 15, 20)] == pytest.approx([0.4, 0.8 / 2**1.5, 0.2])
