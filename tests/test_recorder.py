"""What a run says while it goes on."""

from genrl.recorder import describe


def test_a_round_in_one_line():
    metrics = {"reward/mine/colour.py:named/mean": 0.25, "reward/mine/colour.py:named/std": 0.1, "policy/w2": 0.01, "images_seen": 3}
    assert describe(metrics, {"judge": 0.5}) == "mine/colour.py:named 0.250  held-out judge 0.500  W2 0.010"
