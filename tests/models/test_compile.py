"""Compiled blocks: the same answers, in every copy and role, with few graphs, and plain blocks where that fails."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import close
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl

from genrl.config import Speed
from genrl.models import _compile, _diffusers
from genrl.models._compile import Compiled, compile_blocks
from genrl.models.sd3 import SD3, lora_config
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, OLD, REF, Adapters, Copies, FlowPolicy

PROMPTS = ["a red circle", "a circle a red", "a", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_sd3(tmp_path_factory.mktemp("sd3")))


@pytest.fixture(autouse=True)
def fresh():
    """What was compiled before would be found again: every test counts from nothing."""
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit


@pytest.fixture
def counted():
    """A backend that compiles nothing and counts its graphs and their runs."""

    def backend(graph, _):
        backend.graphs += 1

        def run(*inputs):
            backend.runs += 1
            return graph.forward(*inputs)

        return run

    backend.graphs = backend.runs = 0
    return backend


def model_of(folder, blocks=1, **options):
    """A model whose network has only its last blocks: a kind of block is a graph, and graphs take seconds."""
    model = SD3(folder, max_sequence_length=24, **options)
    model.network.transformer_blocks = model.network.transformer_blocks[-blocks:]
    return model


def inputs(model, rows=2):
    draw = torch.Generator().manual_seed(rows)
    x, sigma = torch.randn(rows, *model.latent_shape, generator=draw), torch.rand(rows, generator=draw)
    return x, sigma, model.encode(PROMPTS[:rows])


def gradients(model, network=None, rows=2):
    network = network or model.network
    network.zero_grad()
    model.velocity(network, *inputs(model, rows)).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_one_graph_serves_all_batches_and_blocks_built_alike(folder, counted):
    plain, model = model_of(folder), model_of(folder)
    twin = copy.deepcopy(model.network.transformer_blocks[0])
    compile_blocks(model.network, counted)
    compile_blocks(model.network, counted)
    with torch.no_grad():
        for rows in (2, 3, 4, 2):
            assert close(model.velocity(model.network, *inputs(model, rows)), plain.velocity(plain.network, *inputs(plain, rows)))
    assert (counted.graphs, counted.runs) == (1, 4)
    for rows in (2, 4):
        assert close(gradients(model, rows=rows), gradients(plain, rows=rows), 1e-4)
    assert (counted.graphs, counted.runs) == (2, 6), "one without gradient and one with it"
    compile_blocks(twin, counted)
    with torch.no_grad():
        args = torch.ones(2, 9, 16), torch.ones(2, 5, 16), torch.ones(2, 16)
        twin(*args)
        model.network.transformer_blocks[0](*args)
    assert counted.graphs == 3, "blocks that are built alike share a graph, here one for other numbers of tokens"


def test_every_role_runs_its_own_weights_compiled(folder, counted):
    plain, model = model_of(folder), model_of(folder)
    compile_blocks(model.network, counted)
    policies = [FlowPolicy(m, Copies(m.network, (ACTOR, OLD, REF))) for m in (model, plain)]
    for policy in policies:
        with torch.no_grad():
            for number, tensor in enumerate(policy.parameters(ACTOR)):
                tensor.mul_(0.5 + 0.1 * (number % 5))
        policy.sync(OLD, ACTOR, 0.5)
    x, _, cond = inputs(model)
    with torch.no_grad():
        ours, theirs = ([policy.velocity(x, 0.6, cond, role) for role in (ACTOR, OLD, REF)] for policy in policies)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not close(ours[0], ours[1], 0.01) and not close(ours[1], ours[2], 0.01)
    assert counted.runs == 3, "copies are compiled, too"
    for role in (ACTOR, OLD, REF):
        with policies[0].storage.use(role) as network:
            assert all(block.forward.__self__ is block for block in network.transformer_blocks)


def test_adapters_and_checkpointing(folder, counted):
    """Roles over one network: each has graphs of its own, found again whenever it returns."""
    learned, graphs = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = model_of(folder, gradient_checkpointing=True)
        if compiled:
            compile_blocks(model.network, counted)
        policy = FlowPolicy(model, Adapters(model.network, (ACTOR, "fake", REF), lora_config(4, 8, ["to_q", "to_out.0"]), (ACTOR, "fake")))
        model.network.train()
        with torch.no_grad():
            for number, tensor in enumerate(policy.parameters(ACTOR, "fake")):
                tensor.normal_(std=0.2, generator=torch.Generator().manual_seed(number))
        x, _, cond = inputs(model)
        for turn in range(2):
            with torch.no_grad():
                found = [policy.velocity(x, 0.6, cond, role) for role in (ACTOR, "fake", REF)]
            with policy.only(ACTOR):
                loss = policy.velocity(x, 0.6, cond, ACTOR).square().mean()
                with torch.no_grad():
                    policy.velocity(x, 0.6, cond, "fake")
                loss.backward()
            graphs.append(counted.graphs)
            assert turn == 0 or graphs[-1] == graphs[-2], "the second turn compiles nothing"
        learned.append([*found, torch.cat([t.grad.flatten() for t in policy.parameters(ACTOR)])])
    assert graphs[:2] == [0, 0] and graphs[-1] == 5, "three roles without gradient, one with it, and one that must not learn"
    assert all(close(a, b, 1e-4) for a, b in zip(*learned, strict=True)) and learned[0][-1].abs().max() > 0


def test_names_of_weights_and_exports_do_not_know(folder, counted, tmp_path):
    plain, model = SD3(folder, max_sequence_length=24), SD3(folder, max_sequence_length=24)
    compile_blocks(model.network, counted)
    assert list(model.network.state_dict()) == list(plain.network.state_dict())
    model.export(model.network, tmp_path)
    again = SD3(str(tmp_path), max_sequence_length=24)
    with torch.no_grad():
        assert torch.equal(again.velocity(again.network, *inputs(again)), plain.velocity(plain.network, *inputs(plain)))
    assert not any("forward" in vars(module) for module in again.network.modules())


def test_sdxls_transformer_blocks(tmp_path, counted):
    folder = str(tiny_sdxl(tmp_path))
    plain, model = SDXL(folder), SDXL(folder)
    compile_blocks(model.network, counted)
    with torch.no_grad():
        assert close(model.velocity(model.network, *inputs(model)), plain.velocity(plain.network, *inputs(plain)))
    assert 0 < counted.graphs < counted.runs, "the same graph for blocks of the same size"


def test_the_setting_compiles_with_the_usual_compiler(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(_diffusers, "compile_blocks", lambda *given: asked.append(given))
    model, _ = SD3(folder, speed=Speed(compile=True)), SD3(folder)
    assert asked == [(model.network,)]
    monkeypatch.setattr(torch, "compile", lambda forward, **options: SimpleNamespace(options=options))
    compile_blocks(model.network)
    forward = model.network.transformer_blocks[0].forward.__func__
    assert isinstance(forward, Compiled) and forward.compiled.options == {"fullgraph": True, "backend": "inductor"}
    with pytest.raises(ValueError, match="a Linear has no JointTransformerBlock or BasicTransformerBlock"):
        compile_blocks(torch.nn.Linear(1, 1))


def test_what_does_not_compile_runs_plain_and_says_why_once(folder, caplog):
    def broken(graph, _):
        raise RuntimeError("no compiler here\nand more")

    plain, model = model_of(folder, 2), model_of(folder, 2)
    compile_blocks(model.network, broken)
    for rows in (2, 3):
        assert torch.equal(gradients(model, rows=rows), gradients(plain, rows=rows))
    assert caplog.text.count("does not compile") == 1 and "no compiler here" in caplog.text
    assert len({id(block.forward.__func__) for block in model.network.transformer_blocks}) == 1, "all of them, not half"
    roles = Copies(model.network, (ACTOR, OLD))
    with roles.use(OLD) as old, torch.no_grad():
        assert torch.equal(model.velocity(old, *inputs(model)), plain.velocity(plain.network, *inputs(plain)))
    assert caplog.text.count("does not compile") == 1


def test_too_many_kinds_of_blocks_are_an_end_too(folder, counted, monkeypatch, caplog):
    """torch would go on uncompiled without a word."""
    monkeypatch.setattr(_compile, "VARIANTS", 1)
    torch._dynamo.config.recompile_limit = 1
    plain, model = model_of(folder, 2), model_of(folder, 2)
    compile_blocks(model.network, counted)
    with torch.no_grad():
        assert close(model.velocity(model.network, *inputs(model)), plain.velocity(plain.network, *inputs(plain)))
    assert "FailOnRecompileLimitHit" in caplog.text and counted.graphs == 1


def test_errors_of_the_network_itself_are_not_taken_for_the_compilers(folder, counted):
    model = model_of(folder)
    compile_blocks(model.network, counted)
    x, sigma, cond = inputs(model)
    with torch.no_grad(), pytest.raises(RuntimeError):
        model.velocity(model.network, x[:, :2], sigma, cond)
    assert not model.network.transformer_blocks[0].forward.__func__.failure


@pytest.mark.slow
def test_inductor_itself(folder):
    plain, model = model_of(folder), model_of(folder, gradient_checkpointing=True, speed=Speed())
    compile_blocks(model.network)
    with torch.no_grad():
        for rows in (2, 3):
            assert close(model.velocity(model.network, *inputs(model, rows)), plain.velocity(plain.network, *inputs(plain, rows)))
    model.network.train()
    assert close(gradients(model), gradients(plain), 1e-4)
    assert not model.network.transformer_blocks[0].forward.__func__.failure


@pytest.mark.slow
def test_a_machine_without_a_compiler(folder, monkeypatch, caplog):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    plain, model = model_of(folder), model_of(folder)
    compile_blocks(model.network)
    with torch.no_grad():
        assert torch.equal(model.velocity(model.network, *inputs(model)), plain.velocity(plain.network, *inputs(plain)))
    assert "No working C++ compiler" in caplog.text
