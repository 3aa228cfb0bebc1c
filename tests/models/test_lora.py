"""The short way through a LoRA layer gives what peft's own gives."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from genrl.models._lora import linear


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.proj = nn.Linear(12, 20, bias=bias)

    def forward(self, x):
        return self.proj(x)


def adapted(bias=True, dtype=torch.float32, **options):
    torch.manual_seed(0)
    net = Net(bias).to(dtype).requires_grad_(False)
    for name in ("one", "two"):
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["proj"], init_lora_weights=False, **options), net, name)
    net.proj.set_adapter("one")
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_("one" in name)
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12)])
def test_answer_and_gradients_are_those_of_peft(bias, shape):
    net = adapted(bias)
    x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 20)
    found = []
    for call in (net.proj, lambda x: linear(net.proj, x)):
        net.zero_grad()
        own = x.clone().requires_grad_()
        out = call(own)
        out.backward(upstream)
        factors = (net.proj.lora_A["one"].weight.grad.clone(), net.proj.lora_B["one"].weight.grad.clone())
        found.append((out.detach(), own.grad, *factors))
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5), (theirs - ours).abs().max()
    assert not torch.allclose(found[0][0], net.proj.base_layer(x), atol=1e-2)


def test_gradcheck():
    net = adapted().double()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    factors = (net.proj.lora_A["one"].weight, net.proj.lora_B["one"].weight)
    assert torch.autograd.gradcheck(lambda x, *_: linear(net.proj, x), (x, *factors))


def test_sixteen_bits_under_autocast_are_as_exact_as_pefts():
    net, wide = adapted(dtype=torch.bfloat16), adapted().double()
    wide.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    x = torch.randn(64, 12)
    exact = wide.proj(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = net.proj(x), linear(net.proj, x)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 1.2 * (theirs.double() - exact).norm()


def test_the_active_adapter_answers_or_none():
    net, x = adapted(), torch.randn(3, 12)
    for name in ("two", "one"):
        net.proj.set_adapter(name)
        assert torch.allclose(linear(net.proj, x), net.proj(x), atol=1e-5)
    net.proj.enable_adapters(False)
    assert torch.equal(linear(net.proj, x), net.proj.base_layer(x))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_what_is_not_plain_goes_the_long_way(options):
    net, x = adapted(**options).eval(), torch.randn(3, 12)
    assert torch.equal(linear(net.proj, x), net.proj(x))


def test_other_layers_merged_ones_and_hooks():
    net, x = adapted(), torch.randn(3, 12)
    assert torch.equal(linear(net.proj.base_layer, x), net.proj.base_layer(x))
    merged = copy.deepcopy(net)
    merged.proj.merge()
    assert torch.allclose(linear(merged.proj, x), net.proj(x), atol=1e-5)
    seen = []
    net.proj.register_forward_hook(lambda *_: seen.append(1))
    linear(net.proj, x)
    assert seen == [1]
