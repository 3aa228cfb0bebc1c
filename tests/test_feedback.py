import pytest
import torch

from genrl.feedback import ShapedReward, group_mean, shape_reward

NAN = float("nan")


def test_tanh_is_bounded_monotone_and_centred():
    reward = torch.linspace(-5, 5, 41)
    shaped = shape_reward(reward, mean=1.0, std=0.5, kind="tanh", scale=2.0)
    assert shaped.abs().max() <= 1 and (shaped.diff() >= 0).all()
    assert shape_reward(torch.tensor([1.0, 2.0]), 1.0, 0.5).tolist() == pytest.approx([0.0, torch.tanh(torch.tensor(1.0)).item()])


def test_zscore_clips():
    shaped = shape_reward(torch.tensor([-9.0, 0.5, 9.0]), mean=0.0, std=1.0, kind="zscore", scale=3.0)
    assert shaped.tolist() == [-3.0, 0.5, 3.0]


def test_statistics_are_those_of_the_first_round_and_then_frozen():
    feedback = ShapedReward()
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    group = torch.tensor([0, 0, 1, 1])
    feedback(first, group)
    assert feedback.mean == 2.5 and feedback.std == pytest.approx(first.std(correction=0).item())
    later = feedback(first + 10, group)["reward"]
    assert feedback.mean == 2.5 and (later > 0.9).all()
    resumed = ShapedReward()
    resumed.load_state(feedback.state())
    assert torch.equal(resumed(first, group)["reward"], feedback(first, group)["reward"])


def test_an_offset_and_a_scale_of_the_reward_change_nothing():
    """Shaping removes any affine change of the reward: AC-Flow does not see it. (ORW's exp(tau r) does.)"""
    reward, group = torch.randn(64), torch.arange(64) // 8
    plain, moved = ShapedReward(), ShapedReward()
    assert torch.allclose(plain(reward, group)["reward"], moved(3 * reward + 100, group)["reward"], atol=1e-4)


def test_what_cannot_be_scored_is_marked_and_left_out_of_means():
    feedback = ShapedReward(mean=0.0, std=1.0)
    signal = feedback(torch.tensor([1.0, NAN, 1.0, NAN]), torch.tensor([0, 0, 1, 2]))
    assert signal["valid"].tolist() == [True, False, True, False]
    assert signal["reward"][1] == 0 and signal["group_reward"][0] == signal["reward"][0] and signal["group_reward"][3] == 0


def test_group_mean_does_not_care_for_order():
    values, group = torch.tensor([1.0, 10.0, 3.0, 20.0]), torch.tensor([5, 2, 5, 2])
    assert group_mean(values, group, torch.ones(4, dtype=torch.bool)).tolist() == [2.0, 15.0, 2.0, 15.0]


def test_a_round_that_nobody_could_score_freezes_no_statistics():
    feedback = ShapedReward()
    signal = feedback(torch.full((4,), NAN), torch.tensor([0, 0, 1, 1]))
    assert not signal["valid"].any() and signal["reward"].tolist() == [0.0] * 4 and feedback.mean is None
    assert feedback(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1]))["reward"].isfinite().all()
