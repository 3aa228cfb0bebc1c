"""The adapter against ``StableDiffusionXLPipeline`` itself, on a tiny random model, and against closed forms."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from tiny_sdxl import tiny_sdxl

from genrl import path
from genrl.chain import OdeChain
from genrl.models.sd3 import ModelError, lora_config
from genrl.models.sdxl import PREDICTIONS, SDXL
from genrl.policy import ACTOR, OLD, REF, Adapters, Copies, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import denoise
from genrl.types import Conditioning

PROMPTS = ["a red circle", "a circle a red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(folder):
    return SDXL(str(folder))


def noise(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))


def draw(model, steps, guidance, network=None):
    z, levels = noise(model), model.sigmas(steps)
    policy = FlowPolicy(model, Copies(network or model.network, (ACTOR,)))
    return denoise(policy, OdeChain(levels), path.start(z, levels[0]), model.encode(PROMPTS), role=ACTOR, guidance=guidance)


def with_scheduler(folder, target, scheduler):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    scheduler.save_pretrained(target / "scheduler")
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (target / "model_index.json").write_text(json.dumps(index))
    return str(target)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("force_zeros", [True, False])
def test_same_prompts_and_noise_give_the_pipelines_latents(tmp_path, prediction, guidance, force_zeros):
    ours = SDXL(str(tiny_sdxl(tmp_path, prediction, force_zeros)))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    z = noise(ours)
    theirs, images = (
        pipeline(PROMPTS, guidance_scale=guidance, num_inference_steps=5, latents=z.clone(), output_type=kind).images
        for kind in ("latent", "np")
    )
    assert (theirs - z).abs().max() > 0.1
    got = draw(ours, 5, guidance)
    assert torch.allclose(got, theirs, atol=5e-6 * theirs.abs().max().item()), (got - theirs).abs().max()
    assert torch.allclose(ours.decode(got).permute(0, 2, 3, 1), torch.from_numpy(images), atol=1e-4)


def test_a_wide_picture_is_told_its_size(folder, model):
    wide = SDXL(str(folder), height=32, width=48)
    assert wide.latent_shape == (4, 16, 24)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    theirs = pipeline(
        PROMPTS, height=32, width=48, guidance_scale=1, num_inference_steps=2, latents=noise(wide), output_type="latent"
    ).images
    assert torch.allclose(draw(wide, 2, 1.0), theirs, atol=5e-6 * theirs.abs().max().item())
    x, sigma, cond = noise(model), torch.full((2,), 0.5), model.encode(PROMPTS)
    assert not torch.allclose(model.velocity(model.network, x, sigma, cond), wide.velocity(wide.network, x, sigma, cond), atol=1e-3)


def test_another_stored_scheduler_gives_the_grid_of_an_euler_with_its_settings(folder, model, tmp_path):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    other = SDXL(with_scheduler(folder, tmp_path, DDIMScheduler(**betas, timestep_spacing="trailing")))
    assert torch.equal(other._table, model._table)
    assert other.sigmas(4) == pytest.approx([0.936, 0.803, 0.617, 0.409, 0.0], abs=5e-4), "t = 999, 749, 499, 249"


def test_the_table_and_its_inverse(model):
    kept = EulerDiscreteScheduler.from_pretrained(model.source, subfolder="scheduler").alphas_cumprod.double()
    alpha, s = kept.sqrt(), (1 - kept).sqrt()
    table = s / (alpha + s)
    assert torch.equal(model.timestep(table.float()), torch.arange(1000.0))
    assert model.sigma_max == pytest.approx(table[-1].item(), rel=1e-6) and 0.9355 < model.sigma_max < 0.9365
    between = model.timestep((0.25 * table[500] + 0.75 * table[501]).float()[None])
    assert between.item() == pytest.approx(500.75, abs=1e-3)
    assert model.timestep(torch.tensor([0.0, 1.0, 0.94])).tolist() == [0, 999, 999]
    grid = torch.tensor(model.sigmas(4)[:-1], dtype=torch.float32)
    assert model.timestep(grid).tolist() == [751, 501, 251, 1], "a step asks for the timesteps of the pipeline"


def test_students_start_at_the_last_timestep(model):
    assert model.student_sigmas(4) == pytest.approx([0.936, 0.803, 0.617, 0.409, 0.0], abs=5e-4), "t = 999, 749, 499, 249"
    expected = [0.936, 0.879, 0.803, 0.714, 0.617, 0.517, 0.409, 0.285, 0.0]  # t = 999, 874, ... 124
    assert model.student_sigmas(8) == pytest.approx(expected, abs=5e-4)
    assert model.student_sigmas(1) == (model.sigma_max, 0.0)


def analytic(model, prediction, mean=0.7, std=0.4):
    """A network that knows ``x0 ~ N(mean, std^2)``: E[eps | x_t] or E[v | x_t], in the table of the scheduler."""
    kept = model._scheduler.alphas_cumprod

    class Posterior(torch.nn.Linear):
        def forward(self, x_t, t, **_):
            assert torch.equal(t, t.round())
            a = kept[t.long()].view(-1, 1, 1, 1).double()
            alpha, s = a.sqrt(), (1 - a).sqrt()
            rest = (x_t.double() - alpha * mean) / (alpha**2 * std**2 + s**2)
            eps, x0 = s * rest, mean + alpha * std**2 * rest
            return (eps if prediction == "epsilon" else alpha * eps - s * x0,)

    return Posterior(1, 1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_velocity_of_a_gaussian_is_its_closed_form(tmp_path, prediction):
    model, mean, std = SDXL(str(tiny_sdxl(tmp_path, prediction))), 0.7, 0.4
    sigma = model._table[torch.tensor([0, 300, 749, 999])]
    x = torch.randn(4, 4, 16, 16)
    cond = model.encode([""] * 4)
    got = model.velocity(analytic(model, prediction, mean, std), x, sigma, cond)
    level, x = sigma.double().view(-1, 1, 1, 1), x.double()
    rest = (x - (1 - level) * mean) / ((1 - level) ** 2 * std**2 + level**2)
    v = level * rest - (mean + (1 - level) * std**2 * rest)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), v, rtol=1e-4, atol=2e-5), (got - v).abs().amax((1, 2, 3))


class Constant(torch.nn.Linear):
    """Answers with a given tensor and remembers the ``x_t`` it was shown."""

    def __init__(self, out):
        super().__init__(1, 1)
        self.out = out

    def forward(self, x_t, t, **_):
        self.seen = x_t
        return (self.out,)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_change_of_variables_there_and_back(tmp_path, prediction):
    model = SDXL(str(tiny_sdxl(tmp_path, prediction)))
    x0, eps = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16)
    steps = torch.tensor([10, 500, 999])
    kept = model._scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    alpha, s = kept.sqrt(), (1 - kept).sqrt()
    x_t = alpha * x0 + s * eps
    sigma = (s / (alpha + s)).flatten()
    network = Constant(eps if prediction == "epsilon" else alpha * eps - s * x0)
    v = model.velocity(network, x_t / (alpha + s), sigma, model.encode([""] * 3))
    assert torch.allclose(network.seen, x_t, atol=1e-5)
    assert torch.allclose(v, eps - x0, atol=1e-4)
    assert torch.allclose(path.to_x0(x_t / (alpha + s), v, sigma), x0, atol=1e-4)
    assert torch.allclose(path.to_eps(x_t / (alpha + s), v, sigma), eps, atol=1e-4)


def test_above_its_last_level_the_model_answers_as_at_that_level(model):
    z, cond = noise(model), model.encode(PROMPTS)
    top = torch.full((2,), model.sigma_max)
    last = model.velocity(model.network, path.start(z, top), top, cond)
    assert last.isfinite().all()
    for level in (0.97, 1.0):
        high = torch.full((2,), level)
        assert torch.allclose(model.velocity(model.network, path.start(z, high), high, cond), last, rtol=1e-4, atol=1e-4)


def test_unconditional_is_zeros_only_where_the_pipeline_says_so(tmp_path, model):
    assert not model.unconditional.embeds.any() and not model.unconditional.pooled.any()
    other = SDXL(str(tiny_sdxl(tmp_path, force_zeros=False)))
    assert torch.equal(other.unconditional.embeds, other.encode([""]).embeds) and other.unconditional.pooled.any()
    assert other.unconditional.pooled.shape == (1, other.pooled_width)


def test_both_embeddings_matter(model):
    x, sigma, cond = noise(model), torch.full((2,), 0.5), model.encode(PROMPTS)
    assert model.encode(PROMPTS, chunk=1).pooled.shape == (2, model.pooled_width)
    base = model.velocity(model.network, x, sigma, cond)
    for changed in (Conditioning(cond.embeds.flip(0), cond.pooled), Conditioning(cond.embeds, cond.pooled.flip(0))):
        assert not torch.allclose(model.velocity(model.network, x, sigma, changed), base, atol=1e-3)


def test_released_encoders_are_gone_and_missed(folder):
    model = SDXL(str(folder))
    model.release_encoders()
    with pytest.raises(ModelError, match="released"):
        model.encode(["a"])


def test_lora_roles(folder):
    model = SDXL(str(folder))
    before = {name: p.clone() for name, p in model.network.named_parameters()}
    x, cond = noise(model), model.encode(PROMPTS)
    base = model.velocity(model.network, x, torch.full((2,), 0.7), cond)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q", "to_v"])))
    assert torch.equal(policy.velocity(x, 0.7, cond, REF), base)
    assert torch.allclose(policy.velocity(x, 0.7, cond, ACTOR), base, atol=1e-5), "an adapter starts as the base itself"
    optimizer = torch.optim.SGD(policy.parameters(ACTOR), lr=0.5)
    for _ in range(2):
        loss = (policy.velocity(x, 0.7, cond, ACTOR) - policy.velocity(x, 0.7, cond, OLD).detach() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = policy.velocity(x, 0.7, cond, ACTOR)
    assert (moved - base).abs().max() > 1e-3, "switching roles between forward and backward must not lose the gradient"
    assert torch.equal(policy.velocity(x, 0.7, cond, REF), base) and torch.allclose(policy.velocity(x, 0.7, cond, OLD), base, atol=1e-5)
    policy.sync(OLD, ACTOR)
    assert torch.equal(policy.velocity(x, 0.7, cond, OLD), moved)
    for name, parameter in model.network.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


def test_export_of_a_lora_is_a_plain_pipeline_that_draws_the_same(folder, tmp_path):
    model = SDXL(str(folder))
    untrained = draw(model, 3, 2.0)
    policy = FlowPolicy(model, Adapters(model.network, (ACTOR, OLD, REF), lora_config(4, 8, ["to_q", "to_v", "to_out.0"])))
    with torch.no_grad():
        for tensor in policy.parameters(ACTOR):
            tensor.normal_(std=0.3)
    with policy.storage.use(ACTOR) as network:
        trained = draw(model, 3, 2.0, network)
        model.release_encoders()
        model.export(network, tmp_path)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    theirs = pipeline(PROMPTS, guidance_scale=2.0, num_inference_steps=3, latents=noise(model), output_type="latent").images
    assert torch.allclose(trained, theirs, atol=1e-4 * theirs.abs().max().item())
    assert not torch.allclose(trained, untrained, atol=1e-2)


def test_bf16_stays_near_and_answers_in_float32(folder, model):
    low = SDXL(str(folder), precision=Precision("bf16", "bf16"))
    assert low.network.conv_out.weight.dtype == torch.bfloat16 and low.vae.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(low.vae.parameters(), model.vae.parameters(), strict=True)), "never rounded"
    x, sigma, cond = noise(model), torch.full((2,), 0.5), model.encode(PROMPTS)
    exact, rough = (m.velocity(m.network, x, sigma, cond) for m in (model, low))
    assert rough.dtype == torch.float32 and torch.allclose(exact, rough, atol=0.1 * exact.abs().max().item())
    assert not torch.equal(exact, rough)
    assert low.features(low.network, x, sigma, cond).dtype == torch.float32


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(prediction_type="sample"), FlowMatchEulerDiscreteScheduler()])
def test_what_the_network_predicts_must_be_understood(folder, tmp_path, scheduler):
    with pytest.raises(ModelError, match="epsilon or v_prediction over a table of betas"):
        SDXL(with_scheduler(folder, tmp_path, scheduler))


def test_a_missing_model_a_folder_of_something_else_and_a_wrong_size(folder, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        SDXL("/nowhere/at/all")
    with pytest.raises(ModelError, match=r"cannot load.*StableDiffusionXLPipeline"):
        SDXL(str(tmp_path))
    with pytest.raises(ModelError, match="multiples of 2"):
        SDXL(str(folder), height=33)
