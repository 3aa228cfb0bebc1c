import pytest
import torch
from linear_world import LinearModel, conditioning

from genrl.policy import ACTOR, OLD, REF, Copies, FlowPolicy
from genrl.types import Conditioning


@pytest.fixture
def policy():
    model = LinearModel()
    return FlowPolicy(model, Copies(model.network, (ACTOR, OLD, REF)), {"critic": torch.nn.Linear(2, 1)})


def test_copies_start_equal_and_only_the_actor_learns(policy):
    x = torch.randn(5, 1, 1, 1)
    v = [policy.velocity(x, 0.5, conditioning(5), role) for role in (ACTOR, OLD, REF)]
    assert torch.equal(v[0], v[1]) and torch.equal(v[0], v[2])
    assert policy.parameters(ACTOR) and not policy.parameters(OLD) and not policy.parameters(REF)
    assert len(policy.parameters("critic")) == 2


def test_sync_copies_or_averages(policy):
    with torch.no_grad():
        for tensor in policy.parameters(ACTOR):
            tensor.fill_(1.0)
    for tensor in policy.tensors(OLD).values():
        tensor.zero_()
    policy.sync(OLD, ACTOR, decay=0.9)
    assert all(torch.allclose(t, torch.full_like(t, 0.1)) for t in policy.tensors(OLD).values())
    policy.sync(OLD, ACTOR)
    assert all((t == 1).all() for t in policy.tensors(OLD).values())
    assert not any((t == 1).all() for t in policy.tensors(REF).values()), "the reference stays"


def test_guidance_combines_the_two_branches():
    class Echo(LinearModel):
        """Velocity = the conditioning's pooled value."""

        unconditional = Conditioning(torch.zeros(1, 1, 1), torch.tensor([[2.0]]))
        calls = 0

        def velocity(self, network, x, sigma, cond):
            self.calls += 1
            return cond.pooled.view(-1, 1, 1, 1).expand_as(x)

    model = Echo()
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    x, cond = torch.zeros(3, 1, 1, 1), Conditioning(torch.zeros(3, 1, 1), torch.tensor([[5.0], [6.0], [7.0]]))
    assert policy.velocity(x, 0.5, cond).flatten().tolist() == [5, 6, 7] and model.calls == 1
    assert policy.velocity(x, 0.5, cond, guidance=3.0).flatten().tolist() == [2 + 3 * (c - 2) for c in (5, 6, 7)]
    assert model.calls == 2, "both branches are one forward pass"
    assert policy.answer(x, 0.5, cond, ACTOR, 3.0).flatten().tolist() == [2, 2, 2, 5, 6, 7]


def test_an_unknown_role_is_named(policy):
    with pytest.raises(ValueError, match=r"no role 'fake'.*actor, old, ref, critic"):
        policy.tensors("fake")


def test_only_the_named_roles_learn():
    model = LinearModel()
    policy = FlowPolicy(model, Copies(model.network, (ACTOR, "fake", REF), (ACTOR, "fake")), {"critic": torch.nn.Linear(2, 1)})
    every = policy.parameters(*policy.roles)
    with policy.only("fake", "critic"):
        assert not policy.parameters(ACTOR) and policy.parameters("fake") and policy.parameters("critic")
    assert len(policy.parameters(*policy.roles)) == len(every), "and afterwards all that learned before"


def test_copies_share_buffers_and_nothing_else():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    storage = Copies(network, (ACTOR, OLD))
    with storage.use(ACTOR) as one, storage.use(OLD) as other:
        assert [a is b for a, b in zip(one.buffers(), other.buffers(), strict=True)] == [True] * 3
        assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in other.parameters()}
