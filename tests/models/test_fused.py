"""SD3 through fused blocks is the SD3 that diffusers runs: values, gradients, adapters, copies; in both forms of the kernels."""

import copy

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from tiny_sd3 import tiny_sd3

from genrl.config import Speed
from genrl.kernels import using
from genrl.models import _fused
from genrl.models._fused import fuse, unfuse
from genrl.models.sd3 import SD3, lora_config
from genrl.policy import ACTOR, OLD, REF, Adapters, FlowPolicy
from genrl.precision import Precision
from genrl.worlds.shapes import PIPELINE

LORA = ["to_q", "to_out.0", "add_k_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "norm1.linear"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_sd3(tmp_path_factory.mktemp("sd3")))


def load(source, **options):
    return SD3(str(source), t5=False, max_sequence_length=2, **options)


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def model(request, folder):
    """Without fused blocks; tests fuse deep copies of its network."""
    return load(folder if request.param == "tiny" else PIPELINE)


def fused_copy(network):
    network = copy.deepcopy(network)
    fuse(network)
    return network


def question(model, rows=2, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    cond = model.encode(["a red circle", "a circle a red"][:rows])
    return {
        "hidden_states": torch.randn(rows, *model.latent_shape, generator=draw).to(dtype),
        "timestep": torch.tensor([700.0, 200.0])[:rows],
        "encoder_hidden_states": cond.embeds.to(dtype),
        "pooled_projections": cond.pooled.to(dtype),
    }


def answer(network, asked):
    return network(**asked, return_dict=False)[0]


def gradients(network, asked):
    network.zero_grad()
    answer(network, asked).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def distance(a, b):
    """The largest difference, relative to the largest entry of the second."""
    return ((a - b).abs().max() / b.abs().max()).item()


def assert_same_gradients(got, wanted, tolerance):
    """Of every parameter, relative to the largest entry of any, for some are all but zero."""
    assert got.keys() == wanted.keys() and got
    largest = max(g.abs().max() for g in wanted.values())
    for name in wanted:
        assert (got[name] - wanted[name]).abs().max() < tolerance * largest, name


def test_values_and_gradients_are_those_of_diffusers(model):
    network, asked = fused_copy(model.network.requires_grad_(True)), question(model)
    assert distance(answer(network, asked), answer(model.network, asked)) < 1e-5
    assert_same_gradients(gradients(network, asked), gradients(model.network, asked), 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_triton_forms_fit_together(folder, checkpointing):
    """Interpreted on a CPU: the dual block, the last block, and the bias that the kernel adds."""
    model = load(folder)
    network, asked = fused_copy(model.network.requires_grad_(True)), question(model, rows=1)
    if checkpointing:
        network.enable_gradient_checkpointing()
    with using("triton"):
        network.zero_grad()
        out = answer(network, asked)
        out.square().mean().backward()
    assert distance(out, answer(model.network, asked)) < 1e-5
    assert_same_gradients({name: p.grad for name, p in network.named_parameters()}, gradients(model.network, asked), 1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_near_to_float32_as_that_of_diffusers(model, autocast):
    asked = question(model)
    exact = answer(model.network, asked)
    low = model.network if autocast else copy.deepcopy(model.network).to(torch.bfloat16)
    asked = asked if autocast else question(model, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, ours = answer(low, asked), answer(fused_copy(low), asked)
    assert ours.dtype == plain.dtype == torch.bfloat16
    error = [(x.float() - exact).square().mean().sqrt() for x in (ours, plain)]
    assert 0 < error[0] < 1.5 * error[1], error


def test_every_kernel_is_called_in_its_place_and_attention_is_torchs_own(folder, monkeypatch):
    model = load(folder, speed=Speed(kernels=True))
    asked = question(model)
    calls = dict.fromkeys(("layer_norm_modulate", "gate_residual", "gate_residual_norm_modulate", "rms_norm", "gelu_tanh_bias"), 0)
    calls["scaled_dot_product_attention"] = 0

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in calls:
        home = torch.nn.functional if name == "scaled_dot_product_attention" else _fused
        monkeypatch.setattr(home, name, counted(name, getattr(home, name)))
    answer(model.network, asked)
    # three blocks of two streams, the first with a second attention, the last without text after its attention
    assert calls == {
        "layer_norm_modulate": 3 * 2 + 1,
        "gate_residual": 3 * 2 - 1 + 1,
        "gate_residual_norm_modulate": 3 * 2 - 1,
        "rms_norm": 3 * 4 + 2,
        "gelu_tanh_bias": 3 * 2 - 1,
        "scaled_dot_product_attention": 3 + 1,
    }


def test_without_the_setting_nothing_is_replaced(model):
    assert not any("forward" in vars(block) for block in model.network.transformer_blocks)


@pytest.mark.parametrize("qk_norm", [None, "layer_norm"])
def test_other_norms_of_queries_and_keys(qk_norm):
    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 6, "caption_projection_dim": 16}
    network = SD3Transformer2DModel(
        sample_size=4, in_channels=4, out_channels=4, num_layers=2, pooled_projection_dim=6, pos_embed_max_size=4, qk_norm=qk_norm,
        dual_attention_layers=(0,), **sizes,
    )  # fmt: skip
    asked = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([900.0, 10.0]),
        "encoder_hidden_states": torch.randn(2, 3, 6),
        "pooled_projections": torch.randn(2, 6),
    }
    other = fused_copy(network)
    assert distance(answer(other, asked), answer(network, asked)) < 1e-5
    assert_same_gradients(gradients(other, asked), gradients(network, asked), 1e-5)


@pytest.mark.parametrize(("first", "form"), [("fuse", "triton"), ("adapt", "reference")])
def test_adapters_work_whichever_came_first(folder, first, form):
    plain, ours = load(folder), load(folder, speed=Speed(kernels=first == "fuse"))
    policies = []
    for model in (plain, ours):
        torch.manual_seed(0)
        policy = FlowPolicy(model, Adapters(model.network, (ACTOR, REF), lora_config(4, 8, LORA)))
        with torch.no_grad():
            for tensor in policy.parameters(ACTOR):
                tensor.add_(0.1 * torch.randn(tensor.shape))
        policies.append(policy)
    if first == "adapt":
        fuse(ours.network)
    x, cond = question(plain, rows=1)["hidden_states"], plain.encode(["a red circle"])
    answers = []
    for policy in policies:
        with using(form):
            out = policy.velocity(x, 0.7, cond, ACTOR)
            out.square().mean().backward()
            with torch.no_grad():
                answers.append((out.detach(), policy.velocity(x, 0.7, cond, REF)))
    (wanted, base), (got, got_base) = answers
    assert distance(got, wanted) < 1e-5 and distance(got_base, base) < 1e-5
    assert distance(got, base) > 1e-2, "the adapter must matter"
    found = [{name: t.grad for name, t in policy.tensors(ACTOR).items()} for policy in policies]
    assert_same_gradients(found[1], found[0], 1e-5)


def test_a_deep_copy_runs_its_own_weights(model):
    """Roles are deep copies of the actor: a block's forward must not stay bound to the block that it was copied from."""
    original, asked = fused_copy(model.network), question(model)
    before = answer(original, asked)
    other, plain = copy.deepcopy(original), copy.deepcopy(model.network)
    for network in (other, plain):
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in network.transformer_blocks.parameters():
                parameter.add_(0.05 * parameter.abs().mean() * torch.randn(parameter.shape))
    assert distance(answer(other, asked), answer(plain, asked)) < 1e-5
    assert torch.equal(answer(original, asked), before) and distance(answer(other, asked), before) > 1e-3
    for parameter in original.transformer_blocks.parameters():
        parameter.data.zero_()
    assert distance(answer(other, asked), answer(plain, asked)) < 1e-5
    unfuse(other)
    assert distance(answer(other, asked), answer(plain, asked)) < 1e-5


def test_checkpointed_gradients_are_the_same(model):
    network, asked = fused_copy(model.network.requires_grad_(True)), question(model)
    plain = gradients(network, asked)
    network.enable_gradient_checkpointing()
    assert_same_gradients(gradients(network, asked), plain, 1e-7)


def test_features_from_the_middle(model):
    network, cond = fused_copy(model.network), model.encode(["a red circle", "a circle a red"])
    x, sigma = question(model)["hidden_states"], torch.tensor([0.7, 0.2])
    assert distance(model.features(network, x, sigma, cond), model.features(model.network, x, sigma, cond)) < 1e-5


def test_forward_in_chunks(folder):
    model = load(folder)
    network, asked = fused_copy(model.network), question(model)
    network.enable_forward_chunking(5, 1)
    seen = []
    network.transformer_blocks[1].ff.net[2].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    assert distance(answer(network, asked), answer(model.network, asked)) < 1e-5
    assert max(seen) == 5 and sum(seen) == 64


def test_blocks_compile_whole(folder):
    model = load(folder)
    network, asked = fused_copy(model.network), question(model)
    network.transformer_blocks[0].compile(fullgraph=True, backend="eager")
    network.transformer_blocks[2].compile(fullgraph=True, backend="eager")
    assert distance(answer(network, asked), answer(model.network, asked)) < 1e-5


def test_a_hook_on_the_first_linear_layer_of_the_mlp_is_heard(folder):
    model = load(folder, speed=Speed(kernels=True))
    heard = []
    model.network.transformer_blocks[1].ff.net[0].proj.register_forward_hook(lambda *_: heard.append(True))
    with using("triton"), torch.no_grad():
        answer(model.network, question(model, rows=1))
    assert heard == [True]


def test_unfuse_undoes_it(model):
    network, asked = copy.deepcopy(model.network), question(model)
    names = list(network.state_dict())
    fuse(network)
    fuse(network)
    assert list(network.state_dict()) == names
    unfuse(network)
    assert all("forward" not in vars(block) for block in network.transformer_blocks)
    assert {type(processor) for processor in network.attn_processors.values()} == {JointAttnProcessor2_0}
    assert torch.equal(answer(network, asked), answer(model.network, asked))


def test_an_export_is_a_plain_pipeline(folder, tmp_path):
    model = load(folder, speed=Speed(kernels=True))
    model.export(model.network, tmp_path)
    again, asked = load(tmp_path), question(model)
    assert type(again.network.transformer_blocks[0].attn.processor) is JointAttnProcessor2_0
    assert distance(answer(model.network, asked), answer(again.network, asked)) < 1e-5


def test_roles_in_half_precision(folder):
    """The way a run uses it: bfloat16 weights and compute, adapters in float32, one optimiser step."""
    model = load(folder, speed=Speed(kernels=True), precision=Precision("bf16", "bf16"), gradient_checkpointing=True)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, LORA)))
    x, cond = question(model)["hidden_states"], model.encode(["a red circle", "a circle a red"])
    optimizer = torch.optim.SGD(policy.parameters(ACTOR), lr=0.5)
    before = policy.velocity(x, 0.7, cond, REF).detach()
    for _ in range(2):
        optimizer.zero_grad()
        (policy.velocity(x, 0.7, cond, ACTOR).float() - 1).square().mean().backward()
        optimizer.step()
    assert torch.equal(policy.velocity(x, 0.7, cond, REF), before)
    assert (policy.velocity(x, 0.7, cond, ACTOR) - before).abs().max() > 1e-3


def test_what_cannot_be_fused_says_so(model):
    with pytest.raises(ValueError, match="those of SD3"):
        fuse(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="those of SD3"):
        unfuse(torch.nn.Linear(2, 2))
    network = copy.deepcopy(model.network)
    block = network.transformer_blocks[0]
    block.forward = block.forward
    with pytest.raises(ValueError, match="another forward already"):
        fuse(network)
