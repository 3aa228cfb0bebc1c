"""The pool: batches, threads, groups, memory, and what cannot be scored."""

import threading
import time

import pytest
import torch

from genrl.pool import Remembered, RewardPool
from genrl.reward import About, RewardError

IMAGES, PROMPTS, META = torch.rand(5, 3, 8, 8), ["a"] * 5, [{}] * 5


def mean(images, prompts, metadata):
    return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (torch.zeros(4), r"shape \[4\]"),
        (torch.zeros(5, 1), r"shape \[5, 1\]"),
        (torch.tensor(1.0), r"shape \[\]"),
        (["good"] * 5, "numbers"),
        (None, "numbers"),
        ([0.0] * 6, r"shape \[6\]"),
    ],
)
def test_a_broken_answer_is_refused(answer, why):
    with pytest.raises(RewardError, match=why):
        RewardPool({"bad": lambda i, p, m: answer}).score(IMAGES, PROMPTS, META)


def test_valid_is_counted_over_a_whole_and_not_a_part():
    pool = RewardPool({"half": lambda i, p, m: [None if x == "?" else 1.0 for x in p]}, min_valid=0.5)
    scoring = pool.begin()
    scoring.add(IMAGES, ["?"] * 5, META)
    scoring.add(IMAGES, ["a"] * 5, META)
    pool.require_valid(scoring.result())
    with pytest.raises(RewardError, match="only 0%"):
        pool.score(IMAGES, ["?"] * 5, META)


def test_a_raising_reward_is_named():
    def explode(images, prompts, metadata):
        raise KeyError("weights")

    with pytest.raises(RewardError, match=r"'boom' raised KeyError: 'weights' \(test_pool.py:\d+\)"):
        RewardPool({"boom": explode}).score(IMAGES, PROMPTS, META)


def test_cannot_score_is_nan_and_too_much_of_it_stops():
    pool = RewardPool({"some": lambda i, p, m: [1.0, None, float("inf"), 0.5, 2]})
    scores = pool.score(IMAGES, PROMPTS, META)["some"]
    assert scores.isnan().tolist() == [False, True, True, False, False]
    with pytest.raises(RewardError, match="only 60%"):
        RewardPool(pool.rewards, min_valid=0.9).score(IMAGES, PROMPTS, META)


def test_batches_keep_order_and_pairing():
    seen = []

    def paired(images, prompts, metadata):
        seen.append(len(images))
        return [float(p) + m["n"] for p, m in zip(prompts, metadata, strict=True)]

    scores = RewardPool({"paired": paired}, batch=2).score(IMAGES, list("01234"), [{"n": 10 * i} for i in range(5)])
    assert scores["paired"].tolist() == [0, 11, 22, 33, 44] and seen == [2, 2, 1]


def test_a_reward_sees_what_a_png_holds():
    seen = []
    image = torch.full((1, 3, 2, 2), 0.5004).to(memory_format=torch.channels_last)
    RewardPool({"look": lambda i, p, m: seen.append(i) or [0.0] * len(i)}).score(image, ["a"], [{}])
    assert seen[0].is_contiguous()
    assert seen[0].dtype == torch.float32 and seen[0].unique().tolist() == pytest.approx([128 / 255])


def test_scoring_overlaps_what_its_caller_does():
    entered, may_end = threading.Event(), threading.Event()

    def slow(images, prompts, metadata):
        entered.set()
        assert may_end.wait(20)
        return [1.0] * len(images)

    pool = RewardPool({"slow": slow, "fast": mean}, min_valid=0)
    scoring = pool.begin()
    scoring.add(IMAGES, PROMPTS, META)  # returns while the reward is still at work
    assert entered.wait(20)
    scoring.add(IMAGES, PROMPTS, META)
    may_end.set()
    assert scoring.result()["slow"].tolist() == [1.0] * 10
    pool.close()


def test_rewards_do_not_wait_for_one_another():
    meet = threading.Barrier(2, timeout=20)  # breaks unless both are inside at once

    def together(images, prompts, metadata):
        meet.wait()
        return [0.0] * len(images)

    RewardPool({"a": together, "b": lambda *args: together(*args)}).score(IMAGES, PROMPTS, META)


def test_an_error_ends_the_round_and_not_the_pool():
    calls = []

    def once(images, prompts, metadata):
        calls.append(len(images))
        if len(calls) == 1:
            raise OSError("gone")
        return [0.0] * len(images)

    pool = RewardPool({"once": once})
    with pytest.raises(RewardError, match="'once' raised OSError: gone"):
        pool.score(IMAGES, PROMPTS, META)
    assert pool.score(IMAGES, PROMPTS, META)["once"].tolist() == [0.0] * 5


def test_out_of_memory_halves_the_batch_from_then_on(caplog):
    sizes = []

    def hungry(images, prompts, metadata):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [float(p) for p in prompts]

    pool = RewardPool({"hungry": hungry}, batch=8)
    assert pool.score(IMAGES, list("01234"), META)["hungry"].tolist() == [0, 1, 2, 3, 4]
    assert sizes == [5, 2, 2, 1] and "from now on it gets 2" in caplog.text
    sizes.clear()
    pool.score(IMAGES, list("01234"), META)
    assert sizes == [2, 2, 1]


def test_one_image_that_does_not_fit_is_an_error():
    def never(images, prompts, metadata):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RewardError, match="ran out of memory with 1 images of 8x8"):
        RewardPool({"never": never}, batch=2).score(IMAGES, PROMPTS, META)


class Rank:
    """Place among siblings: needs the whole group in one call."""

    about = About(kind="group", reads_prompt=False)

    def __init__(self):
        self.calls = []

    def __call__(self, images, prompts, metadata):
        self.calls.append(list(prompts))
        return mean(images, prompts, metadata).argsort().argsort()


def test_a_group_reward_gets_whole_groups_whatever_the_chunks():
    images = torch.tensor([3, 1, 2, 0, 5, 4]).view(6, 1, 1, 1).expand(6, 3, 2, 2) / 10
    prompts, groups = ["x", "y", "x", "y", "x", "y"], torch.tensor([0, 1, 0, 1, 0, 1])
    rank = Rank()
    scoring = RewardPool({"rank": rank, "mean": mean}, batch=1).begin()
    for rows in (slice(0, 3), slice(3, 6)):
        scoring.add(images[rows], prompts[rows], [{}] * 3, groups[rows])
    found = scoring.result()
    assert found["rank"].tolist() == [1, 1, 0, 0, 2, 2] and rank.calls == [["x"] * 3, ["y"] * 3]
    assert found["mean"].tolist() == pytest.approx([0.3, 0.1, 0.2, 0.0, 0.5, 0.4], abs=0.003)
    # without numbers, equal prompts are a group
    assert RewardPool({"rank": Rank()}).score(images, prompts, [{}] * 6)["rank"].tolist() == [1, 1, 0, 0, 2, 2]


class Brighter:
    about = About(kind="pairwise", reads_prompt=False)

    def compare(self, first, second, prompts, metadata):
        return torch.sigmoid(100 * (mean(first, 0, 0) - mean(second, 0, 0)))


def test_a_preference_model_becomes_a_win_rate():
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert RewardPool({"brighter": Brighter()}).score(images, ["a"] * 3, [{}] * 3)["brighter"].tolist() == pytest.approx([0, 0.5, 1])


def test_a_latent_reward_has_no_place_in_a_pool():
    class Latent:
        about = About(kind="latent")

        def score_latents(self, x, sigma, prompts):
            return x

    with pytest.raises(RewardError, match="latent_reward"):
        RewardPool({"latent": Latent()})


def test_missing_metadata_is_told_before_anything_is_drawn():
    def counted(images, prompts, metadata):
        return [m["count"] for m in metadata]

    counted.about = About(metadata=("count",))  # type: ignore[attr-defined]
    pool = RewardPool({"counted": counted})
    pool.check(["two dogs"], [{"count": 2}])
    with pytest.raises(RewardError, match=r"'counted' reads 'count' .*'dogs' lacks 'count'"):
        pool.check(["two dogs", "dogs"], [{"count": 2}, {}])


def test_scores_are_remembered_by_all_that_they_depend_on(tmp_path):
    calls = []

    def counted(images, prompts, metadata):
        calls.append(len(images))
        return [float("nan") if m.get("skip") else i.mean() for i, m in zip(images, metadata, strict=True)]

    reward = Remembered(counted, b"counted", tmp_path / "scores.sqlite")
    images = torch.rand(3, 3, 4, 4)
    first = reward(images, ["a"] * 3, [{}] * 3)
    assert torch.equal(reward(images, ["a"] * 3, [{}] * 3), first) and calls == [3]
    reward(images[:1], ["b"], [{}])  # another prompt
    reward(images[:1], ["a"], [{"n": 1}])  # other metadata
    reward(1 - images[:1], ["a"], [{}])  # another picture
    reward(images[:2].flip(-1), ["a"] * 2, [{}] * 2)
    Remembered(counted, b"counted with options", tmp_path / "scores.sqlite")(images[:1], ["a"], [{}])
    assert calls == [3, 1, 1, 1, 2, 1]
    skipped = [{"skip": True}]
    assert reward(images[:1], ["a"], skipped).isnan().all() and reward(images[:1], ["a"], skipped).isnan().all()
    assert calls[6:] == [1, 1]  # what could not be scored is tried again
    again = Remembered(counted, b"counted", tmp_path / "scores.sqlite")
    assert torch.equal(again(images, ["a"] * 3, [{}] * 3), first) and len(calls) == 8


def test_threads_end_with_the_pool():
    pool = RewardPool({"mean": mean})
    pool.score(IMAGES, PROMPTS, META)
    names = {thread.name for thread in threading.enumerate()}
    pool.close()
    for _ in range(100):
        if not any(name.startswith("reward mean") for name in (t.name for t in threading.enumerate())):
            break
        time.sleep(0.05)
    assert any(name.startswith("reward mean") for name in names)
    assert not any(thread.name.startswith("reward mean") for thread in threading.enumerate())


def test_what_goes_over_a_wire_goes_as_bytes():
    class Far:
        remote = True

        def __call__(self, images, prompts, metadata):
            assert images.dtype == torch.uint8
            return images.float().mean((1, 2, 3)) / 255

    found = RewardPool({"far": Far(), "near": mean}).score(IMAGES, PROMPTS, META)
    assert torch.allclose(found["far"], found["near"])
