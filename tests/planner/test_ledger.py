"""Bytes and operations on tensors without data: closed forms, and what real tensors do."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from genrl.planner.ledger import Kept, Ledger, checkpoint, pretended, unlaunched


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def test_storages_are_followed_from_their_making_to_their_end():
    with Ledger() as ledger:
        a = meta(1000)
        assert (ledger.live, ledger.peak) == (4000, 4000)
        view = a.view(10, 100)[3:].t()
        assert ledger.live == 4000, "a view is no storage of its own"
        b = view + 1
        assert ledger.live == 4000 + 2800
        del b
        assert (ledger.live, ledger.peak) == (4000, 6800)
        del a
        assert ledger.live == 4000, "the view keeps it"
        del view
        assert (ledger.live, ledger.peak) == (0, 6800)


def test_what_was_there_before_counts_when_it_is_held_and_once():
    a = meta(10, dtype=torch.bfloat16)
    with Ledger() as ledger:
        ledger.hold([a, a.view(2, 5)])
        a.add_(1)
        assert ledger.live == 20


def test_cuda_rounds_allocations_up():
    with Ledger(rounded=512) as ledger:
        small, large = meta(1), meta(129)
        assert ledger.live == 512 + 1024
        del small, large


@pytest.mark.parametrize("bias", [False, True])
def test_operations_of_a_linear_layer(bias):
    """2 B I O forward; backward as much again for the weight, and once more for the input if that wants it."""
    b, i, o = 6, 5, 7
    weight, shift = meta(o, i, requires_grad=True), meta(o, requires_grad=True) if bias else None
    with Ledger() as ledger:
        with torch.no_grad():
            F.linear(meta(b, i), weight, shift)
        assert (ledger.plain, ledger.learning) == (2 * b * i * o, 0)
        torch.autograd.backward(F.linear(meta(b, i), weight, shift).sum())
        assert (ledger.plain, ledger.learning) == (2 * b * i * o, 4 * b * i * o)
        torch.autograd.backward(F.linear(meta(b, i, requires_grad=True), weight, shift).sum())
        assert ledger.learning == 10 * b * i * o


def test_operations_of_attention_and_of_a_convolution():
    b, h, n, d = 2, 3, 11, 8
    with pretended("cpu"), Ledger() as ledger:
        q = meta(b, h, n, d, requires_grad=True)
        torch.autograd.backward(F.scaled_dot_product_attention(q, q, q).sum())
        # scores and values forward; scores again and four products backward
        assert ledger.learning == 2 * 2 * b * h * n * n * d + 5 * 2 * b * h * n * n * d
        ledger.learning = 0
        F.conv2d(meta(4, 3, 10, 10), meta(16, 3, 3, 3), padding=1)
        assert ledger.learning == 2 * 4 * 16 * 10 * 10 * 3 * 3 * 3


def test_attention_keeps_no_scores():
    b, h, n, d = 2, 3, 40, 8
    made = [meta(b, h, n, d, requires_grad=True) for _ in range(3)]
    plain = F.scaled_dot_product_attention
    with pretended("cuda"), Ledger():
        kept = Kept(made)
        with kept.hooks():
            F.scaled_dot_product_attention(*made)
    # the output and the sums of the softmax
    assert kept.bytes == 4 * (b * h * n * d + b * h * n)
    assert F.scaled_dot_product_attention is plain


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 32), torch.nn.SiLU(), torch.nn.Linear(32, 4)
    )


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_as_on_real_tensors(compute, again):
    """Kept bytes, peak and operations of a training step, under autocast and with checkpointing."""

    def step(place):
        network = net().to(place)
        x = torch.ones(64, 16, device=place)
        first, rest = network[:3], network[3:]
        ledger, kept = Ledger(place=place), Kept(network.parameters())
        ledger.hold([x, *network.parameters()])
        with pretended("cpu"), ledger, kept.hooks():
            with torch.autocast("cpu", compute, enabled=compute != torch.float32):
                middle = checkpoint("cpu")(first, x) if again else first(x)
                loss = rest(middle).float().square().mean()
            torch.autograd.backward(loss)
        return kept.bytes, ledger.peak, ledger.learning

    real, counted = step("cpu"), step("meta")
    assert counted[2] == real[2] > 0
    # statistics of a layer norm are kept in the format of its input on a CPU
    assert counted[:2] == (real[:2] if compute == torch.float32 else pytest.approx(real[:2], rel=0.02))


def test_operations_are_those_of_torch():
    x = torch.ones(8, 16)
    with FlopCounterMode(display=False) as theirs:
        net()(x).sum().backward()
    with Ledger() as ours:
        torch.autograd.backward(net().to("meta")(x.to("meta")).sum())
    assert ours.learning == theirs.get_total_flops()


@pytest.mark.parametrize(("device", "after_norm"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_autocast_is_that_of_the_planned_device(device, after_norm):
    weight = meta(8, 8, requires_grad=True)
    with pretended(device), Ledger() as ledger, torch.autocast("cpu", torch.bfloat16):
        y = F.linear(meta(4, 8), weight)
        assert y.dtype == torch.bfloat16
        assert F.layer_norm(y, (8,)).dtype == after_norm
        before = ledger.live
        z = F.linear(y, weight)
        assert ledger.live - before == z.nbytes, "a trained weight is cast once"
        assert F.scaled_dot_product_attention(*[meta(1, 1, 4, 8)] * 3).dtype == torch.bfloat16
    with pretended(device):
        assert F.linear(meta(4, 8), weight).dtype == torch.float32


def test_where_numbers_are_asked_for_there_are_some():
    with Ledger():
        x = meta(5, 3)
        assert x.mean().item() == 1.0 and int(x.argmax()) == 1 and bool((x > 0).any())
        assert x[meta(5, dtype=torch.bool)].shape == (5, 3)
        there = x.to(torch.bfloat16).cpu()
        assert there.device.type == "cpu" and there.shape == (5, 3) and there.dtype == torch.bfloat16


def test_kernels_are_not_launched():
    pytest.importorskip("triton")
    from genrl.kernels import using
    from genrl.kernels.noise import normal

    with unlaunched(), using("triton"), Ledger() as ledger:
        drawn = normal(meta(3, dtype=torch.int64), (4, 5))
        assert drawn.shape == (3, 4, 5) and drawn.is_meta
        assert ledger.live == 4 * 3 * 4 * 5
    with using("triton"):
        assert normal(torch.arange(3), (4, 5)).std() > 0.1, "and are launched again afterwards"
