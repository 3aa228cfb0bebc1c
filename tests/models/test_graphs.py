"""CUDA graphs of answers, with recordings that stand in for the device's: what is replayed, for whom, and when not."""

import pytest
import torch
from tiny_models import PROMPTS, close, gradient, load, velocity

from genrl.config import Speed
from genrl.models._graphs import Graphs, adapter_of
from genrl.models._source import ModelError
from genrl.models.sd3 import SD3, lora_config
from genrl.policy import ACTOR, OLD, REF, Adapters, FlowPolicy
from genrl.types import Conditioning


@pytest.fixture
def replays(monkeypatch):
    """CUDA graphs on the CPU: a replay does again what was recorded, into the same output. Returns the list of recordings."""
    recorded = []

    def record(self, call):
        output = call().clone()
        recorded.append(output)
        return output, lambda: output.copy_(call())

    monkeypatch.setattr(Graphs, "_record", record)
    return recorded


def with_graphs(model):
    model._graphs = Graphs(lambda network, x, sigma, *cond: model._answer(network, x, sigma, Conditioning(*cond)))
    return model


def test_graphs_are_replayed_for_each_shape_and_not_where_something_is_learned(kind, folder, replays):
    plain, model = load(kind, folder), with_graphs(load(kind, folder))
    x, sigma, cond = torch.randn(3, *plain.latent_shape), torch.tensor([0.2, 0.5, 0.9]), plain.encode([*PROMPTS, "a"])
    with torch.no_grad():
        answers = []
        for rows in (slice(0, 2), slice(0, 3), slice(1, 3), slice(0, 2)):
            answers.append(model.velocity(model.network, x[rows], sigma[rows], cond.index(rows)))
            assert torch.equal(answers[-1], plain.velocity(plain.network, x[rows], sigma[rows], cond.index(rows)))
        assert len(replays) == 2 and torch.equal(answers[0], answers[-1]) and not torch.equal(answers[0], answers[2])
        for network in (model.network, plain.network):
            next(network.parameters()).mul_(1.5)
        assert torch.equal(velocity(model), velocity(plain)), "weights that are changed in place are read where they lie"
    assert close(gradient(model), gradient(plain)) and len(replays) == 2


def test_graphs_know_roles_apart(sd3, replays):
    model = with_graphs(SD3(sd3, max_sequence_length=24))
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q"])))
    with torch.no_grad():
        for number, tensor in enumerate(policy.parameters(ACTOR)):
            tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    x, cond = torch.randn(2, *model.latent_shape), model.encode(PROMPTS)
    expected = {role: policy.velocity(x, 0.5, cond, role).detach() for role in (ACTOR, OLD, REF)}
    assert not torch.allclose(expected[ACTOR], expected[OLD], atol=1e-3)
    with torch.no_grad():
        for role in (ACTOR, OLD, REF, ACTOR, OLD):
            assert torch.equal(policy.velocity(x, 0.5, cond, role), expected[role]), role
    assert len(replays) == 3
    with policy.storage.use(OLD) as network:
        assert adapter_of(network) == (OLD,)


def test_graphs_are_given_up_for_weights_that_move(replays):
    network = torch.nn.Linear(2, 2)
    graphs, x = Graphs(lambda network, x: network(x)), torch.ones(1, 2)
    graphs(network, x)
    network.weight.data = network.weight.data.clone() * 2
    assert torch.equal(graphs(network, x), network(x)) and torch.equal(graphs(network, x), network(x))
    assert len(replays) == 1 and not graphs._kept, "each visit of offloaded weights would need a graph of its own"


def test_what_cannot_be_captured_runs_without_and_says_so_once(monkeypatch, caplog):
    def refuse(self, call):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(Graphs, "_record", refuse)
    graphs, network = Graphs(lambda network, x: network(x)), torch.nn.Linear(2, 2)
    for rows in (1, 2):
        assert torch.equal(graphs(network, torch.ones(rows, 2)), network(torch.ones(rows, 2)))
    assert caplog.text.count("runs without graphs: operation not permitted when stream is capturing") == 1


def test_few_graphs_are_kept(monkeypatch, replays):
    monkeypatch.setattr("genrl.models._graphs.MOST", 2)
    graphs, network = Graphs(lambda network, x: network(x)), torch.nn.Linear(2, 2)
    for rows in (1, 2, 3, 3, 1):
        graphs(network, torch.ones(rows, 2))
    assert len(replays) == 4 and len(graphs._kept) == 2


def test_graphs_need_cuda(sd3):
    with pytest.raises(ModelError, match=r"speed.cuda_graphs needs a CUDA device, and this model is on cpu"):
        SD3(sd3, speed=Speed(cuda_graphs=True))
