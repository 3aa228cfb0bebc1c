"""Previews: who is kept, that what is kept is drawn as ever, and that the guard sees when previews say nothing."""

import dataclasses
import json
import math
import threading

import pytest
import torch
from accelerate import Accelerator
from gaussian_world import gaussian_policy
from hypothesis import given
from hypothesis import strategies as st

from genrl import config, seeds
from genrl.algorithm import Algorithm, Preview, Slow, Update
from genrl.chain import OdeChain
from genrl.checkpoint import latest, load
from genrl.data import PromptSet
from genrl.evaluation.watch import Watch
from genrl.feedback import ShapedReward
from genrl.losses.weighted_matching import WeightedMatching
from genrl.mix import Mix
from genrl.policy import ACTOR, OLD, REF
from genrl.pool import RewardPool
from genrl.preview import Previews, agreement, extremes
from genrl.rollout import rollout
from genrl.task import Task
from genrl.trainer import Loop, fit
from genrl.types import Conditioning, Prompt

FULL = OdeChain((1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0))
FEW = OdeChain((1.0, 0.6, 0.0))
PROMPTS, SIZE = 4, 4


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


def contrast(images, prompts, metadata):
    return images.flatten(1).std(1)


def last_bits(images, prompts, metadata):
    """A score that nothing but the very same picture has again: previews cannot tell it."""
    pixels = (images * 255).round().flatten(1).double()
    return ((pixels * torch.arange(1, pixels.shape[1] + 1).sqrt()).sum(1) % 1.0).float()


def settings_of(**changes):
    return config.Preview(**{"factor": 3, "check_every_rounds": 2, "check_prompts": 2, **changes})


def task_of(*rewards):
    train = PromptSet([Prompt(f"prompt {i}") for i in range(7)], Conditioning(torch.zeros(7, 1, 1), torch.zeros(7, 1)))
    pool = RewardPool({reward.__name__: reward for reward in rewards})
    mix = Mix({reward.__name__: config.Term(weight=1.0 + k) for k, reward in enumerate(rewards)}, config.Mix())
    return Task(train, train, pool, mix, pool, Watch((), ()))


def algorithm_of(preview, chain=FEW):
    loss = WeightedMatching("implicit", baseline="group", beta=0.0)
    return Algorithm(
        FULL,
        OLD,
        ShapedReward(),
        (Update(ACTOR, loss, lr=0.01, minibatch=8),),
        slow=(Slow(OLD, ACTOR),),
        prompts=PROMPTS,
        group_size=SIZE,
        result=None,
        preview=Preview(chain, preview) if preview else None,
    )


def parts(folder, preview, rewards=(brightness,), rounds=4, chain=FEW):
    policy = gaussian_policy({ACTOR: (0.0, 0.8), OLD: (0.0, 0.8), REF: (0.0, 0.8)})
    run = config.Run(name="run", folder=str(folder), rounds=rounds, save_every_rounds=1, tracker="none", device="cpu")
    return algorithm_of(preview, chain), policy, task_of(*rewards), run


def loop_of(folder, preview, **options):
    algorithm, policy, task, run = parts(folder, preview, **options)
    return Loop(algorithm, policy, task, run, 16, config.Evaluation(), {}, Accelerator(cpu=True))


def play(folder, preview, **options):
    """A whole run; its lines, its last tensors and state, and its alarms."""
    algorithm, policy, task, run = parts(folder, preview, **options)
    algorithm.validate(policy)
    fit(algorithm, policy, task, run=run, chunk=16, evaluate=config.Evaluation(), settings={}, accelerator=Accelerator(cpu=True))
    tensors, state = load(latest(folder / "run" / "checkpoints"))
    lines, alarms = (folder / "run" / name for name in ("metrics.jsonl", "alarms.jsonl"))
    read = lines.read_text(), tensors, state, [json.loads(line) for line in alarms.read_text().splitlines()]
    return read


# -- who is kept


@given(
    scores=st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=12),
    count=st.integers(1, 12),
)
def test_the_extremes(scores, count):
    count = min(count, len(scores))
    kept = extremes(torch.tensor(scores), count).tolist()
    known = [row for row, score in enumerate(scores) if math.isfinite(score)]
    assert kept == sorted(set(kept)) and len(kept) == count
    taken = [row for row in kept if row in known]
    assert len(taken) == min(count, len(known)), "what has no score is taken only when nothing else is left"
    ranked = sorted(known, key=lambda row: (-scores[row], row))
    if count < len(known):
        best = math.ceil(count / 2)
        assert taken == sorted(ranked[:best] + ranked[len(ranked) - (count - best) :])


def test_best_and_worst_by_preview_score_are_kept(tmp_path):
    loop = loop_of(tmp_path, settings_of(), rewards=(brightness, contrast))
    groups = range(PROMPTS)
    seen = loop.previews.look(groups)
    kept = loop.previews.keep(seen, groups)
    assert len(set(kept)) == PROMPTS * SIZE and seen.sample.tolist() == list(range(3 * PROMPTS * SIZE))
    mixed = seen.scores["brightness"] + 2 * seen.scores["contrast"]
    for group in groups:
        own = mixed[group * 12 : group * 12 + 12]
        ranked = [group * 12 + row for row in own.argsort(descending=True).tolist()]
        assert [n for n in kept if n // 12 == group] == sorted(ranked[:2] + ranked[-2:])
    assert loop.task.mix.state() == task_of(brightness, contrast).mix.state(), "looking leaves the mix as it was"


def test_what_is_kept_is_drawn_as_it_always_is(tmp_path):
    """The batch holds what a rollout of these numbers gives, its own full scores, and nothing of the previews."""
    loop = loop_of(tmp_path, settings_of())
    policy = loop.policy
    batch, metrics = loop.collect()
    numbers = batch.sample.tolist()
    cond = Conditioning(torch.zeros(len(numbers), 1, 1), torch.zeros(len(numbers), 1))
    key = (0, seeds.ROLLOUT, 0)
    direct = rollout(policy, FULL, [Prompt("")] * len(numbers), cond, role=OLD, key=key, samples=numbers, groups=numbers, chunk=16)
    assert torch.equal(batch.x0, direct.x0) and batch.group.tolist() == [n // 12 for n in numbers]
    scores = loop.task.rewards.score(policy.decode(direct.x0), [""] * len(numbers), [{}] * len(numbers))["brightness"]
    expected = ShapedReward()(scores, batch.group)
    assert torch.allclose(batch.signal["reward"], expected["reward"], atol=1e-6)
    assert metrics["reward/brightness/mean"] == pytest.approx(scores.mean().item(), abs=1e-6)
    rough = rollout(policy, FEW, [Prompt("")] * len(numbers), cond, role=OLD, key=key, samples=numbers, groups=numbers, chunk=16)
    assert (rough.x0 - direct.x0).abs().max() > 0.05, "a preview is another picture"


def test_counters_tell_previews_from_pictures(tmp_path):
    loop = loop_of(tmp_path, settings_of(), rewards=(brightness, contrast))
    for expected in (48 + 24, 48, 48 + 24):
        before = dict(loop.counters)
        loop.collect()
        loop.round += 1
        added = {name: loop.counters[name] - before[name] for name in before}
        extra = expected - 48
        assert added["previews"] == 48 and added["images_seen"] == 16 + extra
        assert added["reward_calls"] == 2 * (48 + 16 + extra)


def test_without_previews_nothing_changes(tmp_path):
    """Switched off, a round is that of an algorithm that has none, to the last bit."""
    without, off = loop_of(tmp_path / "a", None), loop_of(tmp_path / "b", settings_of())
    off.previews.on = False
    for loop in (without, off):
        loop.restore({})
    for _ in range(2):
        (one, _), (other, _) = without.collect(), off.collect()
        assert torch.equal(one.sample, other.sample) and torch.equal(one.x0, other.x0)
        assert all(torch.equal(value, other.signal[name]) for name, value in one.signal.items())
        assert without.play() == off.play()
    for name, tensor in without.policy.tensors(ACTOR).items():
        assert torch.equal(tensor, off.policy.tensors(ACTOR)[name])
    assert "previews" not in without.counters


# -- the guard


def test_the_guard_stays_on_where_previews_rank_well(tmp_path):
    lines, _, state, alarms = play(tmp_path, settings_of(), rewards=(brightness, contrast))
    found = [json.loads(line) for line in lines.splitlines()]
    checked = [line for line in found if "preview/tau" in line]
    assert [line["round"] for line in checked] == [1, 3], "rounds are counted from 1 in the log"
    assert all(line[name] > 0.7 for line in checked for name in ("preview/tau", "preview/tau/brightness", "preview/trust"))
    assert state["previews"]["on"] and len(state["previews"]["taus"]) == 2 and not alarms
    assert found[-1]["previews"] == 4 * 48


def test_the_guard_switches_previews_off_where_they_say_nothing(tmp_path):
    lines, _, state, alarms = play(tmp_path, settings_of(min_tau=0.6), rewards=(last_bits,))
    found = [json.loads(line) for line in lines.splitlines()]
    assert abs(found[0]["preview/tau"]) < 0.5 and not state["previews"]["on"]
    assert [line["previews"] for line in found] == [48] * 4, "previews of the first round, and none after it"
    assert [line["round"] for line in found if "preview/tau" in line] == [1]
    (alarm,) = alarms
    assert alarm["round"] == 1 and "every sample is drawn in full" in alarm["words"] and "0.6" in alarm["words"]


def test_extremes_alone_would_flatter(tmp_path):
    """Why all candidates are drawn in a check: among the kept, previews of much noise still agree."""
    draw = torch.Generator().manual_seed(0)
    full = torch.randn(400, generator=draw)
    cheap = full + 0.8 * torch.randn(400, generator=draw)
    group = torch.arange(400) // 20
    kept = torch.cat([extremes(cheap[group == g], 4) + 20 * g for g in range(20)])
    assert agreement(cheap[kept], full[kept], group[kept]) > agreement(cheap, full, group) + 0.1


# -- resuming, processes, and what does not fit


@pytest.mark.parametrize("rewards", [(brightness, contrast), (last_bits,)], ids=["on", "off"])
def test_a_resumed_run_goes_on_exactly(tmp_path, rewards):
    preview = settings_of(min_tau=0.6)
    whole = play(tmp_path / "whole", preview, rewards=rewards, rounds=5)
    play(tmp_path / "parts", preview, rewards=rewards, rounds=3)
    again = play(tmp_path / "parts", preview, rewards=rewards, rounds=5)
    assert whole[0] == again[0] and whole[3] == again[3]
    assert all(torch.equal(tensor, again[1][name]) for name, tensor in whole[1].items())
    whole[2]["counters"].pop("wall_s"), again[2]["counters"].pop("wall_s")
    assert whole[2] == again[2]


def test_two_processes_choose_what_one_does(tmp_path):
    """Each draws whole groups; scores are chosen from together, in the order of their numbers."""
    alone = loop_of(tmp_path / "one", settings_of(), rewards=(brightness, contrast))
    batch, metrics = alone.collect()
    meeting, given_in, results = threading.Barrier(2), [None, None], [None, None]

    def gather(rank, values):
        given_in[rank] = values.cpu()
        meeting.wait(60)
        whole = torch.cat(given_in)
        meeting.wait(60)
        return whole

    def process(rank):
        loop = loop_of(tmp_path / f"rank{rank}", settings_of(), rewards=(brightness, contrast))
        loop.rank, loop.world = rank, 2
        loop._gather = lambda values: gather(rank, values)
        loop.previews = Previews(loop.algorithm, loop.policy, loop.task.rewards, loop.task.mix, loop._draw, loop._gather, 2)
        results[rank] = (*loop.collect(), loop.counters)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (first, one_metrics, one_counters), (second, other_metrics, other_counters) = results
    assert not set(first.group.tolist()) & set(second.group.tolist())
    sample, order = torch.cat([first.sample, second.sample]).sort()
    assert torch.equal(sample, batch.sample)
    assert torch.allclose(torch.cat([first.x0, second.x0])[order], batch.x0, atol=1e-6)
    assert one_metrics == other_metrics == pytest.approx(metrics, abs=1e-6)
    assert {**one_counters} == {**other_counters} == alone.counters


def test_previews_that_cannot_work_are_refused_before_anything_is_drawn():
    policy = gaussian_policy({ACTOR: (0.0, 0.8), OLD: (0.0, 0.8), REF: (0.0, 0.8)})
    good = algorithm_of(settings_of())
    good.validate(policy)
    for changes, why in (
        ({"factor": 1}, "factor must be at least 2"),
        ({"check_every_rounds": 0}, "at least 1"),
        ({"check_prompts": 0}, "at least 1"),
        ({"cache": -0.1}, "not negative"),
        ({"cache": 0.1}, "GaussianModel knows no short cuts"),
        ({"fp8": True}, "GaussianModel knows no short cuts"),
    ):
        with pytest.raises(ValueError, match=why):
            algorithm_of(settings_of(**changes)).validate(policy)
    loss = WeightedMatching("implicit", baseline="group", beta=0.0)
    unscored = dataclasses.replace(good, feedback=None, updates=(dataclasses.replace(good.updates[0], loss=Unscored(loss)),))
    with pytest.raises(ValueError, match="scores nothing"):
        unscored.validate(policy)


class Unscored:
    """A loss that reads nothing."""

    requires = ()

    def __init__(self, loss):
        self.loss = loss
