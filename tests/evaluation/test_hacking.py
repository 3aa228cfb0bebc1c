"""The verdict on a run, on made-up scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from genrl.evaluation import hacking
from genrl.evaluation.statistics import bootstrap_interval, paired_gain, spearman


def tables(judge: float, proxy: float, agree: float = 1.0, prompts: int = 60) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores ``[P, 2]`` before and after; ``agree`` is how much of the proxy's order after training is the judge's."""
    rng = np.random.default_rng(0)
    skill = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.1, (prompts, 2))
    other = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.1, (prompts, 2))
    before = {"judge": skill, "proxy": 10 + 2 * skill}
    after = {"judge": skill + judge + rng.normal(0, 0.1, skill.shape), "proxy": 10 + 2 * (agree * skill + (1 - agree) * other + proxy)}
    return before, after


@pytest.mark.parametrize(
    ("judge", "proxy", "agree", "level"),
    [
        (0.5, 0.5, 1.0, "not hacked"),
        (0.5, 0.6, 1.0, "not hacked"),  # behind, but not by a material amount
        (0.5, 1.5, 1.0, "partly hacked"),
        (2.0, 1.5, 0.3, "partly hacked"),  # the judge even leads, yet the two no longer agree on prompts
        (0.0, 1.0, 1.0, "hacked"),
        (-1.0, 1.0, 1.0, "hacked"),
        (0.5, -0.5, 1.0, "not hacked"),
        (0.0, 0.1, 1.0, "not confirmed"),  # both within a small effect: nothing is known of the judge
        (-0.1, 0.1, 1.0, "hacked"),  # a small fall, beyond noise
    ],
)
def test_verdict_levels(judge: float, proxy: float, agree: float, level: str) -> None:
    found = hacking.verdict(*tables(judge, proxy, agree), "judge", "proxy")
    assert found.level == level, found.sentence


def test_verdict_numbers_are_paired_and_in_base_units() -> None:
    before, after = tables(0.5, 1.5)
    n = hacking.verdict(before, after, "judge", "proxy").numbers
    gain, low, high = paired_gain(before["proxy"].mean(1), after["proxy"].mean(1))
    assert (n["proxy_gain"], n["proxy_gain_low"], n["proxy_gain_high"]) == pytest.approx((gain, low, high))
    assert n["proxy_gain_z"] == pytest.approx(gain / before["proxy"].mean(1).std())
    assert n["rank_before"] == pytest.approx(spearman(before["proxy"].mean(1), before["judge"].mean(1)))
    # the gap is resampled as a paired difference, not as the difference of two intervals
    z = {name: (after[name].mean(1) - before[name].mean(1)) / before[name].mean(1).std() for name in before}
    assert (n["gap_z_low"], n["gap_z_high"]) == pytest.approx(bootstrap_interval(z["proxy"] - z["judge"]))
    # z does not care about the scale of a score
    scaled = hacking.verdict(before | {"proxy": 7 * before["proxy"]}, after | {"proxy": 7 * after["proxy"]}, "judge", "proxy").numbers
    assert scaled["gap_z"] == pytest.approx(n["gap_z"]) and scaled["proxy_gain"] == pytest.approx(7 * n["proxy_gain"])


def test_verdict_cannot_tell() -> None:
    before, after = tables(0.5, 0.5, prompts=hacking.MIN_PROMPTS)
    assert hacking.verdict(before, after, "judge", "proxy").level == "not hacked"
    before["judge"][0] = np.nan  # one prompt fewer than needed
    assert hacking.verdict(before, after, "judge", "proxy").level == "cannot tell"
    assert hacking.verdict(before, after, "judge", "elsewhere").level == "cannot tell"


def test_prompts_that_one_of_them_cannot_score_are_counted() -> None:
    before, after = tables(0.5, 0.5)
    whole = hacking.verdict(before, after, "judge", "proxy").sentence
    after["proxy"][:10] = np.nan
    found = hacking.verdict(before, after, "judge", "proxy").sentence
    assert "both could score" not in whole and found.endswith(f"of {len(before['judge'])} prompts that both could score.")


def test_nothing_is_said_of_a_reward_that_compares_siblings() -> None:
    before, after = tables(-0.3, 0.0)
    # a win rate: whatever the pictures are like, the mean of a prompt's is a half
    rates = np.tile([0.25, 0.75], (len(before["judge"]), 1))
    found = hacking.verdict(before | {"proxy": rates}, after | {"proxy": rates[:, ::-1]}, "judge", "proxy")
    assert found.level == "cannot tell" and "same mean for every prompt" in found.sentence


def test_a_base_that_does_not_vary_has_no_units() -> None:
    before, after = tables(0.5, 0.5)
    before["proxy"] = np.full_like(before["proxy"], 3.0)
    found = hacking.verdict(before, after, "judge", "proxy")
    assert np.isnan(found.numbers["gap_z"]) and np.isnan(found.numbers["rank_before"])
    assert found.level == "not hacked"


def test_prompt_means_leave_out_what_was_not_scored() -> None:
    means = hacking.prompt_means(np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, 3.0]]))
    np.testing.assert_array_equal(means, [1.0, np.nan, 2.0])


def test_base_units() -> None:
    base = np.array([0.0, 2.0, np.nan])
    np.testing.assert_allclose(hacking.in_base_units([base, base + 3]), [0.0, 3.0])
