"""Optimisers: 32 and 8 bits, fused or not, exact after a checkpoint; gradients averaged in buckets."""

import importlib.util
import sys

import pytest
import torch
from linear_world import LinearModel, conditioning

from genrl import checkpoint
from genrl.algorithm import Update
from genrl.learner import Learner, buckets, optimizer_of
from genrl.losses.weighted_matching import WeightedMatching
from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy
from genrl.types import Batch

EIGHT_BITS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra adamw8bit is not installed")
MATCHING = WeightedMatching(weighting="outcome", baseline="none", beta=0.0)


def update(**changes):
    return Update(ACTOR, MATCHING, lr=0.01, **changes)


def weights():
    """One tensor of 8192 numbers, which 8-bit states quantise, and one of 10, which they do not."""
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 128), (10,))]


def train(optimizer, tensors, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        sum(((t - 0.1 * step) ** 2).sum() for t in tensors).backward()
        optimizer.step()


def moved(optimizer, tensors, steps=20):
    train(optimizer, tensors, steps)
    return torch.cat([t.detach().flatten() for t in tensors])


def test_the_fused_form_is_chosen_and_agrees_with_the_plain_one():
    ours, theirs = weights(), weights()
    fused = optimizer_of(update(weight_decay=0.1), ours)
    assert fused.defaults["fused"]
    plain = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, foreach=False)
    start = torch.cat([t.detach().flatten() for t in ours])
    one, other = moved(fused, ours), moved(plain, theirs)
    assert (one - other).abs().max() < 1e-5 * (one - start).abs().max()


@EIGHT_BITS
def test_eight_bits_go_where_thirty_two_go_with_a_quarter_of_the_state():
    ours, theirs = weights(), weights()
    eight, full = optimizer_of(update(optimizer="adamw8bit"), ours), optimizer_of(update(), theirs)
    start = torch.cat([t.detach().flatten() for t in ours])
    one, other = moved(eight, ours), moved(full, theirs)
    assert 0 < (one - other).norm() < 0.1 * (other - start).norm()

    def size(optimizer):
        tensors = {t.data_ptr(): t for t in checkpoint.pack_optimizer("o", optimizer).values()}
        return sum(t.nbytes for t in tensors.values() if t.numel() != 256)  # without the tables of code words

    assert size(full) == 8 * 8192 + 8 * 10 + 2 * 4
    assert size(eight) == pytest.approx(2 * 8192 + 8 * 10, rel=0.03)


@pytest.mark.parametrize("kind", ["adamw", pytest.param("adamw8bit", marks=EIGHT_BITS)])
def test_an_optimiser_goes_on_exactly_from_a_file(tmp_path, kind):
    tensors = weights()
    first = optimizer_of(update(optimizer=kind), tensors)
    train(first, tensors, 5)
    named = {f"w{k}": t for k, t in enumerate(tensors)}
    path = checkpoint.save(tmp_path, 1, {**named, **checkpoint.pack_optimizer("o/0", first)}, {}, keep=1)
    loaded, _ = checkpoint.load(path)
    again = [torch.nn.Parameter(loaded[name].clone()) for name in named]
    second = optimizer_of(update(optimizer=kind), again)
    checkpoint.unpack_optimizer("o/0", second, loaded)
    train(first, tensors, 5, first=5)
    train(second, again, 5, first=5)
    assert all(torch.equal(a, b) for a, b in zip(tensors, again, strict=True))
    fresh = [torch.nn.Parameter(loaded[name].clone()) for name in named]
    train(optimizer_of(update(optimizer=kind), fresh), fresh, 5, first=5)
    assert not torch.equal(tensors[0], fresh[0]), "without its state it would have gone elsewhere"


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r"'actor'.*pip install 'genrl-image\[adamw8bit\]'"):
        optimizer_of(update(optimizer="adamw8bit"), weights())


def test_buckets_keep_the_order_and_their_size():
    tensors = [torch.zeros(n) for n in (3, 4, 9, 1, 1, 6)]
    assert [[len(t) for t in some] for some in buckets(tensors, 8)] == [[3, 4], [9], [1, 1, 6]]
    assert buckets([], 8) == []


@pytest.mark.parametrize("size", [1, 2**26])
def test_gradients_are_averaged_over_processes(monkeypatch, size):
    """The other process has none: halves, and AdamW without its epsilon would not notice; so the gradient itself is looked at."""
    monkeypatch.setattr("genrl.learner.BUCKET", size)
    messages = []

    def mean(flat):
        messages.append(len(flat))
        return flat / 2

    def learned(mean):
        model = LinearModel(mean=0.5)
        policy = FlowPolicy(model, Copies(model.network, (ACTOR, OLD, REF)))
        x0 = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(1))
        signal = {"reward": torch.ones(8), "valid": torch.ones(8, dtype=torch.bool)}
        batch = Batch(torch.zeros(8, dtype=torch.int64), torch.arange(8), x0, conditioning(8), signal)
        learner, seen = Learner(policy, (update(clip=1e9),), seed=0, mean=mean), []
        step = learner.optimizers[0].step
        learner.optimizers[0].step = lambda: (seen.extend(p.grad.clone() for p in policy.parameters(ACTOR)), step())
        metrics = learner.learn(0, batch, 0)
        assert all(p.grad is None for p in policy.parameters(ACTOR)), "gradients go as soon as they have been used"
        return metrics["grad_norm/actor"], seen

    alone, halved = learned(None), learned(mean)
    assert halved[0] == pytest.approx(alone[0] / 2, rel=1e-6) and alone[0] > 0
    assert all(torch.allclose(b, a / 2) for a, b in zip(alone[1], halved[1], strict=True))
    assert len(messages) == (2 if size == 1 else 1)
