import math

import pytest
import torch

from genrl.reward import BUILT_IN, RewardError, check_scores, load_reward, reward_names, source_of

IMAGES, PROMPTS, META = torch.rand(5, 3, 8, 8), ["a"] * 5, [{}] * 5


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


def test_a_function_a_file_and_a_module_are_rewards(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Dark:\n    def __init__(self, gain=1.0):\n        self.gain = gain\n"
        "    def __call__(self, i, p, m):\n        return [-self.gain * x.mean() for x in i]\n"
    )
    dark = load_reward(f"{path}:Dark", gain=2.0)
    assert check_scores("dark", dark(IMAGES, PROMPTS, META), 5).tolist() == pytest.approx((-2 * brightness(IMAGES, PROMPTS, META)).tolist())
    assert load_reward("math:fsum") is math.fsum


def test_a_package_offers_a_reward_by_entry_point(monkeypatch):
    class Point:
        name, value = "acme", "math:sqrt"

    monkeypatch.setattr("genrl.reward.entry_points", lambda group: [Point] if group == "genrl.rewards" else [])
    assert "acme" in reward_names() and load_reward("acme") is math.sqrt


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(RewardError, match="did you mean shapes_judge"):
        load_reward("shape_judge")
    with pytest.raises(RewardError, match=r"known: .*jpeg_size"):
        load_reward("zzz")


@pytest.mark.parametrize(
    ("source", "why"),
    [("raise RuntimeError('no licence')", "no licence"), ("x = 1", "Mine"), ("def Mine(:", "SyntaxError")],
)
def test_a_module_that_fails_says_why(tmp_path, source, why):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(RewardError, match=why):
        load_reward(f"{path}:Mine")
    with pytest.raises(RewardError, match="no file"):
        load_reward(f"{tmp_path}/none.py:Mine")


def test_every_built_in_name_exists():
    import importlib

    for where in BUILT_IN.values():
        module, name = where.split(":")
        assert hasattr(importlib.import_module(module), name)


def test_a_file_is_a_module_like_any_other(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Mine:\n    gain: float = 1.0\n    def __call__(self, i, p, m):\n        return [self.gain] * len(p)\n"
        "def plain(images, prompts, metadata, gain=1.0):\n    return [gain] * len(prompts)\n"
        "def make(gain=1.0):\n    return lambda images, prompts, metadata: [gain] * len(prompts)\n"
    )
    for name in ("Mine", "plain", "make"):
        assert load_reward(f"{path}:{name}", gain=2.0)(IMAGES, PROMPTS, META) == [2.0] * 5
        with pytest.raises(RewardError, match="loss"):
            load_reward(f"{path}:{name}", loss=2.0)
    with pytest.raises(RewardError, match=r"is a file; name what is in it: .*mine.py:Name"):
        load_reward(str(path))
    before = source_of(f"{path}:Mine")
    path.write_text(path.read_text() + "# changed\n")
    assert before and source_of(f"{path}:Mine") != before and source_of("nowhere.at_all:Reward") == b""


def test_a_name_that_a_file_lacks_is_told_with_those_it_has(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from math import sqrt\ndef bright(images, prompts, metadata): ...\nclass Dark: ...\n")
    with pytest.raises(RewardError, match=r"mine.py' has no 'bryt'; it has: bright, Dark"):
        load_reward(f"{path}:bryt")


@pytest.mark.parametrize(("options", "why"), [({}, "missing a required argument: 'stat'"), ({"stat": "dark", "goal": 1}, "'goal'")])
def test_options_that_do_not_fit_are_told_with_those_there_are(options, why):
    with pytest.raises(RewardError, match=rf"'image_stats' has the options \(stat: .*target: .*{why}; see `genrl rewards info"):
        load_reward("image_stats", **options)


@pytest.mark.parametrize(
    ("source", "why"),
    [("about = 'mine'", "must be a genrl.reward.About"), ("about = About(kind='pairwise')", "has no method 'compare'")],
)
def test_a_broken_about_is_told(tmp_path, source, why):
    path = tmp_path / "mine.py"
    path.write_text(f"from genrl.reward import About\nclass Mine:\n    {source}\n    def __call__(self, i, p, m):\n        return []\n")
    with pytest.raises(RewardError, match=why):
        load_reward(f"{path}:Mine")


def test_names_are_the_same_in_either_case_and_a_built_in_one_cannot_be_taken(monkeypatch):
    class Point:
        name, value = "Clip-Score", "math:sqrt"

    monkeypatch.setattr("genrl.reward.entry_points", lambda group: [Point])
    assert reward_names()["clip_score"] == BUILT_IN["clip_score"]
    assert type(load_reward("JPEG-Size")).__name__ == "JpegSize"
