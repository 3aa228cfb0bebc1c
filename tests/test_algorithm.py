from dataclasses import replace

import pytest
import torch
from linear_world import LinearModel, conditioning

from genrl.algorithm import Algorithm, Slow, Start, Update
from genrl.chain import OdeChain
from genrl.feedback import ShapedReward
from genrl.learner import Learner
from genrl.losses.value import ValueRegression
from genrl.losses.weighted_matching import WeightedMatching
from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy
from genrl.types import Batch, LossOutput

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


def test_updates_and_slow_roles_have_their_turns():
    def rounds(update):
        learner = Learner(policy(ACTOR, OLD, REF), (update,), seed=0)
        return [r for r in range(10) if learner.due(0, r, {})]

    plain = Update(ACTOR, WeightedMatching(), 1e-3)
    assert rounds(plain) == list(range(10))
    assert rounds(replace(plain, every_rounds=4)) == [0, 4, 8]
    assert rounds(replace(plain, start=Start(3), until_round=6)) == [3, 4, 5]
    once = Slow(OLD, ACTOR, every_rounds=5, until_round=5)
    assert [r for r in range(1, 21) if once.due(r)] == [5]
    assert [r for r in range(1, 9) if Slow(OLD, ACTOR, every_rounds=2).due(r)] == [2, 4, 6, 8]


def test_an_update_may_teach_two_roles_from_one_loss():
    class Sum:
        requires = ()

        def __call__(self, who, batch):
            terms = [(p - 3).square().sum() for p in who.parameters(ACTOR, "critic")]
            return LossOutput(sum(terms))

    who = policy(ACTOR, REF)
    update = Update(ACTOR, Sum(), 1e-2, also=("critic",), label="both")
    assert replace(GOOD, behaviour=ACTOR, updates=(update,), slow=()).trained == (ACTOR, "critic")
    before = [p.detach().clone() for p in who.parameters(ACTOR, "critic")]
    batch = Batch(torch.arange(2), torch.arange(2), torch.zeros(2, 1, 1, 1), conditioning(2), {})
    metrics = Learner(who, (update,), seed=0).learn(0, batch, 0)
    assert set(metrics) == {"loss/both", "grad_norm/both"}
    assert all((a != b).any() for a, b in zip(before, who.parameters(ACTOR, "critic"), strict=True))


def test_without_feedback_a_sample_needs_no_siblings_and_signals_come_from_the_rollout():
    class Reads:
        requires = ("states", "predictions", "real_images")

        def __call__(self, who, batch):
            raise AssertionError

    free = replace(GOOD, feedback=None, group_size=1, updates=(Update(ACTOR, Reads(), 1e-3),))
    free.validate(policy(ACTOR, OLD, REF))
    assert free.requires == {"states", "predictions", "real_images"}
    with pytest.raises(ValueError, match=r"requires \['reward', 'valid'\]; there are states"):
        replace(free, updates=(Update(ACTOR, WeightedMatching("outcome"), 1e-3),)).validate(policy(ACTOR, OLD, REF))
    with pytest.raises(ValueError, match="every_rounds"):
        replace(free, updates=(Update(ACTOR, Reads(), 1e-3, every_rounds=0),)).validate(policy(ACTOR, OLD, REF))
