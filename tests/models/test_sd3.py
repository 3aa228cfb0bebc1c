"""The adapter against ``StableDiffusion3Pipeline`` itself, on a tiny random model with T5."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_sd3 import tiny_sd3

from genrl.chain import OdeChain
from genrl.models.sd3 import SD3, ModelError, lora_config
from genrl.policy import ACTOR, OLD, REF, Adapters, Copies, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import denoise

PROMPTS = ["a red circle", "a circle a red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def model(folder):
    return SD3(str(folder), max_sequence_length=24)


def noise(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_same_prompts_and_noise_give_the_pipelines_latents(folder, guidance, t5):
    ours = SD3(str(folder), t5=t5, max_sequence_length=24)
    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **without)
    start = noise(ours)
    theirs = pipeline(
        PROMPTS, guidance_scale=guidance, num_inference_steps=5, latents=start.clone(), output_type="latent", max_sequence_length=24
    ).images
    policy = FlowPolicy(ours, Copies(ours.network, (ACTOR,)))
    got = denoise(policy, OdeChain(ours.sigmas(5)), start, ours.encode(PROMPTS), role=ACTOR, guidance=guidance)
    assert (theirs - start).abs().max() > 0.1
    assert torch.allclose(got, theirs, atol=1e-4 * theirs.abs().max().item()), (got - theirs).abs().max()
    images = torch.from_numpy(
        pipeline(
            PROMPTS, guidance_scale=guidance, num_inference_steps=5, latents=start.clone(), output_type="np", max_sequence_length=24
        ).images
    )
    assert torch.allclose(policy.decode(got).permute(0, 2, 3, 1), images, atol=1e-3)


def test_t5_matters(folder, model):
    with_t5, without = model.encode(PROMPTS[:1]), SD3(str(folder), t5=False, max_sequence_length=24).encode(PROMPTS[:1])
    assert with_t5.embeds.shape == without.embeds.shape
    assert not torch.allclose(with_t5.embeds, without.embeds)
    assert (without.embeds[:, 18:] == 0).all()


def test_released_encoders_are_gone_and_missed(folder):
    model = SD3(str(folder))
    model.release_encoders()
    with pytest.raises(ModelError, match="released"):
        model.encode(["a"])


def test_students_take_the_models_shift(model):
    assert model.student_sigmas(4) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_lora_roles(folder):
    model = SD3(str(folder), max_sequence_length=24)
    before = {name: p.clone() for name, p in model.network.named_parameters()}
    x, cond = noise(model), model.encode(PROMPTS)
    base = model.velocity(model.network, x, torch.full((2,), 0.7), cond)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q", "to_v"])))
    assert torch.equal(policy.velocity(x, 0.7, cond, REF), base)
    assert torch.allclose(policy.velocity(x, 0.7, cond, ACTOR), base, atol=1e-6), "an adapter starts as the base itself"
    optimizer = torch.optim.SGD(policy.parameters(ACTOR), lr=0.5)
    for _ in range(2):
        loss = (policy.velocity(x, 0.7, cond, ACTOR) - policy.velocity(x, 0.7, cond, OLD).detach() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = policy.velocity(x, 0.7, cond, ACTOR)
    assert (moved - base).abs().max() > 1e-3, "switching roles between forward and backward must not lose the gradient"
    assert torch.equal(policy.velocity(x, 0.7, cond, REF), base) and torch.allclose(policy.velocity(x, 0.7, cond, OLD), base, atol=1e-6)
    policy.sync(OLD, ACTOR)
    assert torch.equal(policy.velocity(x, 0.7, cond, OLD), moved)
    for name, parameter in model.network.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


def test_adapters_over_a_bfloat16_base_learn_in_float32(folder):
    model = SD3(str(folder), precision=Precision("bf16", "bf16"), max_sequence_length=24)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, REF), lora_config(4, 8, ["to_q"])))
    assert model.network.proj_out.weight.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in policy.parameters(ACTOR))
    policy.velocity(noise(model), 0.5, model.encode(PROMPTS)).square().mean().backward()
    assert any(t.grad.abs().max() > 0 for t in policy.parameters(ACTOR))


def test_export_of_a_lora_is_a_plain_pipeline(folder, tmp_path):
    model = SD3(str(folder), max_sequence_length=24)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q", "to_out.0"])))
    with torch.no_grad():
        for tensor in policy.parameters(ACTOR):
            tensor.normal_(std=0.3)
    x, cond = noise(model), model.encode(PROMPTS)
    with policy.storage.use(ACTOR) as network:
        model.export(network, tmp_path)
    again = SD3(str(tmp_path), max_sequence_length=24)
    expected = policy.velocity(x, 0.4, cond, ACTOR)
    assert torch.allclose(again.velocity(again.network, x, torch.full((2,), 0.4), cond), expected, atol=1e-4)
    assert not torch.allclose(expected, policy.velocity(x, 0.4, cond, REF), atol=1e-2)


def test_bf16_stays_near_and_a_policy_answers_in_float32(folder, model):
    low = SD3(str(folder), precision=Precision(compute="bf16"), max_sequence_length=24)
    x, cond = noise(model), model.encode(PROMPTS)
    exact, rough = (FlowPolicy(m, Copies(m.network, (ACTOR,))).velocity(x, 0.5, cond).detach() for m in (model, low))
    assert low.velocity(low.network, x, torch.full((2,), 0.5), cond).dtype == torch.bfloat16
    assert rough.dtype == torch.float32 and torch.allclose(exact, rough, atol=0.1 * exact.abs().max().item())
    assert not torch.equal(exact, rough)


def test_checkpointed_gradients_are_the_same(folder, model):
    checkpointed = SD3(str(folder), gradient_checkpointing=True, max_sequence_length=24)
    x, cond = noise(model), model.encode(PROMPTS)
    grads = []
    for m in (model, checkpointed):
        m.network.requires_grad_(True)
        m.network.zero_grad()
        m.velocity(m.network, x, torch.full((2,), 0.5), cond).square().mean().backward()
        grads.append(m.network.proj_out.weight.grad.clone())
    assert torch.allclose(*grads)


@pytest.mark.parametrize(
    ("source", "why"), [("/nowhere/at/all", "no model folder"), ("./nowhere", "no model folder"), ("sd3", "no model folder")]
)
def test_a_missing_model_says_so(source, why):
    with pytest.raises(ModelError, match=why):
        SD3(source)


def test_a_folder_of_something_else_and_a_wrong_size(folder, tmp_path):
    with pytest.raises(ModelError, match="cannot load"):
        SD3(str(tmp_path))
    with pytest.raises(ModelError, match="multiples of 4"):
        SD3(str(folder), height=33)


def test_two_adapters_learn_beside_each_other_under_checkpointing(folder):
    """Teacher, student and fake over one base: each loss reaches its own adapter, re-computed activations included."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = SD3(str(folder), max_sequence_length=24, gradient_checkpointing=checkpointing)
        policy = FlowPolicy(model, Adapters(model.network, (ACTOR, "fake", REF), lora_config(4, 8, ["to_q", "to_v"]), (ACTOR, "fake")))
        if checkpointing:
            model.network.train()
        own = [policy.tensors(role) for role in (ACTOR, "fake")]
        assert all(torch.equal(own[0][name], own[1][name]) for name in own[0]), "both start from the same factors"
        with torch.no_grad():
            for tensor in policy.parameters("fake"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
        x, cond = noise(model), model.encode(PROMPTS)
        with policy.only("fake"):
            loss = policy.velocity(x, 0.7, cond, "fake").square().mean()
            policy.velocity(x, 0.7, cond, REF)
            loss.backward()
        assert not any(t.grad is not None and t.grad.any() for t in policy.parameters(ACTOR))
        gradients.append(torch.cat([t.grad.flatten() for t in policy.parameters("fake")]))
        with policy.only(ACTOR):
            loss = policy.velocity(x, 0.7, cond, ACTOR).square().mean()
            with torch.no_grad():
                policy.velocity(x, 0.7, cond, "fake")
            loss.backward()
        gradients.append(torch.cat([t.grad.flatten() for t in policy.parameters(ACTOR)]))
    assert gradients[0].abs().max() > 0 and gradients[1].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[2], atol=1e-5) and torch.allclose(gradients[1], gradients[3], atol=1e-5)


def test_the_fake_is_pulled_towards_the_student_as_factors(folder):
    """Decay 1 leaves it, 0 copies; between, its product differs from the mean of products by decay (1 - decay) (B1 - B2)(A1 - A2)."""
    model = SD3(str(folder), max_sequence_length=24)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, "fake", REF), lora_config(4, 4, ["to_q"]), (ACTOR, "fake")))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in policy.parameters(ACTOR, "fake"):
            tensor.add_(0.01 * torch.randn(tensor.shape, generator=draw))
    start = {name: t.detach().clone() for name, t in policy.tensors("fake").items()}
    policy.sync("fake", ACTOR, 1.0)
    assert all(torch.equal(start[name], t) for name, t in policy.tensors("fake").items())
    policy.sync("fake", ACTOR, 0.75)
    student, name = policy.tensors(ACTOR), next(name for name in start if "lora_A" in name)
    other = name.replace("lora_A", "lora_B")
    product = policy.tensors("fake")[other] @ policy.tensors("fake")[name]
    wanted = 0.75 * start[other] @ start[name] + 0.25 * student[other] @ student[name]
    cross = 0.75 * 0.25 * (start[other] - student[other]) @ (start[name] - student[name])
    assert torch.allclose(product, wanted - cross, atol=1e-7)
    policy.sync("fake", ACTOR, 0.0)
    assert all(torch.equal(student[name], t) for name, t in policy.tensors("fake").items())
