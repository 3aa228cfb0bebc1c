"""The hacking alarm, on made-up evaluations whose truth is known."""

import numpy as np
import pytest

from genrl.evaluation.reading import Evaluation
from genrl.evaluation.watch import DIVERSITY, DRIFT, FALL, GAP, STALL, Watch

PROMPTS, IMAGES = 40, 4
NOISE = np.random.default_rng(0).normal(size=(PROMPTS, IMAGES))  # the same prompts and noise at every evaluation


def evaluation(round_, proxy=0.0, held=0.0, diversity=0.2, gap=1.0, saturation=0.0, spread=0.1):
    """Scores of unit spread over prompts, moved as told; each evaluation wobbles by a little of its own."""
    own = np.random.default_rng(round_ + 1).normal(size=(2, PROMPTS, IMAGES)) * spread
    scores = {"proxy": NOISE + proxy + own[0], "held": NOISE[::-1] + held + own[1]}
    return Evaluation(
        round=round_,
        images_seen=0,
        seed=0,
        images_per_prompt=IMAGES,
        keys=tuple((f"prompt {i}", 0) for i in range(PROMPTS)),
        scores=scores,
        diversity={
            "layout": np.full(PROMPTS, diversity) + own[0][:, 0] / 100,
            "features of held": np.full(PROMPTS, 0.01 if round_ else 1.0),
        },
        shuffled={"proxy": scores["proxy"] - gap + own[1] / 10},
        statistics={"saturation": NOISE[:, 0] / NOISE[:, 0].std() + saturation},
        folder=None,
        rows=tuple(range(PROMPTS)),
    )


def heard(*evaluations, witnesses=("held",)):
    watch = Watch(["proxy"], witnesses)
    return [watch.hear(e) for e in evaluations]


def test_a_healthy_run_is_silent():
    assert heard(*(evaluation(i, proxy=0.2 * i, held=0.1 * i) for i in range(6))) == [[]] * 6


def test_what_is_not_up_cannot_be_hacked():
    # everything is lost and the trained reward with it: damage, which other alarms tell
    assert heard(evaluation(0), evaluation(1, proxy=-0.5, held=-3, diversity=0.01, gap=0, saturation=9)) == [[], []]


def test_a_held_out_reward_that_falls_from_its_best_speaks():
    # above the base still, but below where it was
    *quiet, last = heard(evaluation(0), evaluation(1, 0.5, 0.8), evaluation(2, 0.8, 0.3))
    assert quiet == [[], []] and len(last) == 1
    assert "proxy is up" in last[0] and "held-out held fell by 0" in last[0] and "since round 1" in last[0]


def test_a_fall_must_be_of_some_size_and_certain():
    assert heard(evaluation(0), evaluation(1, 0.5, 0.5), evaluation(2, 0.5, 0.5 - 0.6 * FALL)) == [[], [], []]
    uncertain = [evaluation(0), evaluation(1, 0.5, 0.5), evaluation(2, 3.0, 0.5 - 1.5 * FALL, spread=3.0)]
    assert heard(*uncertain) == [[], [], []]


def test_a_held_out_reward_that_stands_still_while_the_trained_one_goes_on_speaks():
    rose = evaluation(0), evaluation(1, 0.5, 0.5)
    assert heard(*rose, evaluation(2, 0.5 + 0.5 * STALL, 0.45))[-1] == []
    (words,) = heard(*rose, evaluation(2, 0.5 + 3 * STALL, 0.45))[-1]
    assert "stands still since round 1" in words
    # one that never rose measures something else
    assert heard(evaluation(0), evaluation(1, 0.5, -0.05), evaluation(2, 1.0, -0.05)) == [[], [], []]


@pytest.mark.parametrize(
    ("beyond", "within", "words"),
    [
        ({"diversity": 0.2 * (DIVERSITY - 0.1)}, {"diversity": 0.2 * (DIVERSITY + 0.1)}, "pictures of a prompt differ by only 60%"),
        ({"gap": GAP - 0.2}, {"gap": GAP + 0.2}, "proxy hardly minds another prompt"),
        ({"saturation": 1.2 * DRIFT}, {"saturation": 0.8 * DRIFT}, "saturation of the pictures moved by +1.2"),
        ({"saturation": -1.2 * DRIFT}, {"saturation": -0.8 * DRIFT}, "saturation of the pictures moved by -1.2"),
    ],
)
def test_every_other_witness_speaks_beyond_its_bound_only(beyond, within, words):
    assert heard(evaluation(0), evaluation(1, 0.5, 0.5, **within)) == [[], []]
    quiet, spoken = heard(evaluation(0), evaluation(1, 0.5, 0.5, **beyond))
    assert quiet == [] and len(spoken) == 1 and words in spoken[0]


def test_a_witness_speaks_once_until_it_was_silent():
    low = {"proxy": 0.5, "held": 0.5, "diversity": 0.1}
    spoken = heard(evaluation(0), evaluation(1, **low), evaluation(2, **low), evaluation(3, 0.5, 0.5), evaluation(4, **low))
    assert [len(words) for words in spoken] == [0, 1, 0, 0, 1]


def test_trained_rewards_are_no_witnesses_and_none_trained_is_no_hacking():
    fallen = evaluation(0), evaluation(1, 1.0, 1.0), evaluation(2, 1.0, -3.0)
    assert heard(*fallen, witnesses=("proxy",)) == [[], [], []]
    silent = Watch([], ["held"])
    assert [silent.hear(e) for e in fallen] == [[], [], []]


def test_evaluations_of_another_size_compare_on_what_they_share():
    small = evaluation(2, 1.0, -0.5).on([(f"prompt {i}", 0) for i in range(0, PROMPTS, 2)])
    assert len(heard(evaluation(0), evaluation(1, 0.5, 0.5), small)[-1]) == 1
