"""Roles that wait on the CPU: what moves and when, that answers and weights are the same, and what cannot wait there."""

import pytest
import torch
from linear_world import LinearModel, conditioning

from genrl import offload
from genrl.chain import OdeChain
from genrl.losses.weighted_matching import WeightedMatching
from genrl.offload import Offloaded
from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy
from genrl.rollout import rollout
from genrl.types import Batch, Prompt

ELSEWHERE = torch.device("cuda")


@pytest.fixture
def moves(monkeypatch):
    """A device that is not here: what goes to it and comes home is written down, and stays where it is."""
    found = []
    monkeypatch.setattr(offload, "at_home", lambda tensor, device: found.append(("home", device.type)) or tensor.clone())
    monkeypatch.setattr(offload, "brought", lambda home, device: found.append(("there", device.type)) or home.clone())
    return found


def net():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).requires_grad_(False).eval()


def test_a_visit_brings_all_weights_once_and_forgets_the_copies(moves):
    network = net()
    tensors = list(network.parameters())
    buffers = [b.data_ptr() for b in network.buffers()]
    away = Offloaded(network, ELSEWHERE)
    assert moves == [("home", "cuda")] * len(tensors)
    moves.clear()
    home = [t.data_ptr() for t in tensors]
    x, before = torch.randn(4, 2), network(torch.ones(4, 2))
    with away.visit() as lent:
        there = [t.data_ptr() for t in tensors]
        assert lent is network and not set(there) & set(home)
        with away.visit():
            assert [t.data_ptr() for t in tensors] == there, "a visit within a visit moves nothing"
        assert [t.data_ptr() for t in tensors] == there
        network(x)
    assert moves == [("there", "cuda")] * len(tensors)
    assert [t.data_ptr() for t in tensors] == home
    assert all(a is b for a, b in zip(network.parameters(), tensors, strict=True))
    assert [b.data_ptr() for b in network.buffers()] == buffers, "buffers, which roles share, stay where they are"
    assert torch.equal(network(torch.ones(4, 2)), before)


def test_it_comes_home_after_an_error(moves):
    network = net()
    away = Offloaded(network, ELSEWHERE)
    home = network[0].weight.data_ptr()
    with pytest.raises(RuntimeError, match="stop"), away.visit():
        raise RuntimeError("stop")
    assert network[0].weight.data_ptr() == home


def test_what_changes_at_home_is_what_visits(moves):
    network = net()
    away = Offloaded(network, ELSEWHERE)
    network[0].weight.fill_(7.0)
    with away.visit():
        assert (network[0].weight == 7).all()
        network[0].weight.fill_(5.0)  # a copy's change is lost
    assert (network[0].weight == 7).all()


def test_on_a_cpu_nothing_moves(moves):
    network = net()
    place = network[0].weight.data_ptr()
    with Offloaded(network, torch.device("cpu")).visit():
        assert network[0].weight.data_ptr() == place
    assert moves == []


def policy(monkeypatch, away):
    """``away``: as if the actor were on a device that is not here."""
    model = LinearModel(mean=0.4)
    if away:
        real = Offloaded.__init__
        monkeypatch.setattr(Offloaded, "__init__", lambda self, network, device: real(self, network, ELSEWHERE))
    return FlowPolicy(model, Copies(model.network, (ACTOR, OLD, REF), offload=(OLD, REF) if away else ()))


def played(who):
    """A rollout of the old role, a gradient of the actor that looks at old and reference, and a sync: everything that could differ."""
    drawn = rollout(
        who,
        OdeChain((1.0, 0.7, 0.3, 0.0)),
        [Prompt("")] * 6,
        conditioning(6),
        role=OLD,
        key=(0, 0, 0),
        samples=range(6),
        groups=[0] * 6,
        chunk=4,
    )
    signal = {"reward": torch.linspace(-1, 1, 6), "valid": torch.ones(6, dtype=torch.bool)}
    batch = Batch(drawn.group, drawn.sample, drawn.x0, drawn.cond, signal, stream=(0, 1, 0))
    WeightedMatching(weighting="implicit", baseline="none", beta=0.3)(who, batch).loss.backward()
    with torch.no_grad():
        for parameter in who.parameters(ACTOR):
            parameter.sub_(0.1 * parameter.grad)
    who.sync(OLD, ACTOR, decay=0.5)
    half = torch.cat([t.flatten().clone() for t in who.tensors(OLD).values()])
    who.sync(OLD, ACTOR)
    whole = torch.cat([t.flatten().clone() for t in who.tensors(OLD).values()])
    return drawn.x0, half, whole, who.velocity(drawn.x0, 0.5, conditioning(6), OLD)


def test_results_are_the_same(monkeypatch, moves):
    here = played(policy(monkeypatch, away=False))
    assert moves == []
    there = played(policy(monkeypatch, away=True))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    tensors = 2  # of a network
    assert moves.count(("home", "cuda")) == 2 * tensors
    # one visit for the whole rollout, one each of old and reference in the loss, one for the last velocity
    assert moves.count(("there", "cuda")) == 4 * tensors


def test_what_cannot_wait_on_the_cpu():
    model = LinearModel()
    with pytest.raises(ValueError, match=r"'actor' cannot be offloaded: it is trained"):
        Copies(model.network, (ACTOR, OLD), offload=[ACTOR])
    with pytest.raises(ValueError, match=r"'fake' cannot be offloaded: it is trained"):
        Copies(model.network, (ACTOR, "fake"), (ACTOR, "fake"), offload=["fake"])
    with pytest.raises(ValueError, match=r"'ref' cannot be offloaded: it is the network itself"):
        Copies(model.network, (REF,), (), offload=[REF])
    with pytest.raises(ValueError, match=r"no role 'average' to offload; there are actor, old"):
        Copies(model.network, (ACTOR, OLD), offload=["average"])


def test_weights_without_data_visit_as_copies():
    network = torch.nn.Linear(2, 3, device="meta").requires_grad_(False)
    away, storage = Offloaded(network, torch.device("meta")), network.weight.untyped_storage()
    with away.visit():
        assert network.weight.untyped_storage() is not storage
    assert network.weight.untyped_storage() is storage


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_sync_between_formats(decay):
    """A role in 16 bits follows one in 32: the result is the exact one, rounded once."""
    model = LinearModel(mean=0.7)
    half = LinearModel(mean=-0.3).network.to(torch.bfloat16)
    who = FlowPolicy(model, Copies(model.network, (ACTOR, OLD), given={OLD: half}))
    before = {name: t.float().clone() for name, t in who.tensors(OLD).items()}
    who.sync(OLD, ACTOR, decay)
    for name, tensor in who.tensors(OLD).items():
        exact = decay * before[name] + (1 - decay) * who.tensors(ACTOR)[name]
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), exact, rtol=2**-7, atol=1e-3)
        assert decay or torch.equal(tensor, who.tensors(ACTOR)[name].to(torch.bfloat16))


def test_a_copy_is_exact_even_of_what_is_not_finite():
    model = LinearModel()
    who = FlowPolicy(model, Copies(model.network, (ACTOR, OLD)))
    with torch.no_grad():
        who.tensors(OLD)["slope"].fill_(float("nan"))
    who.sync(OLD, ACTOR)
    assert torch.equal(who.tensors(OLD)["slope"], who.tensors(ACTOR)["slope"])
