"""LRM-XL on a tiny random model of the published layout, against a computation by hand on the whole UNet."""

import copy
import math
import os

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tiny_lrm import CHANNELS, PROJECTION, SCALE, WIDTH, tiny_lrm
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl
from torch.nn.functional import normalize
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from genrl import config
from genrl.losses.preference import ANCHOR, LatentPreference, LatentRanker, LatentRewardRanker, Ranker
from genrl.losses.student import StudentSteps
from genrl.models.sd3 import SD3
from genrl.models.sdxl import SDXL
from genrl.policy import ACTOR, Copies, FlowPolicy
from genrl.reward import RewardError, about
from genrl.rewards.jpeg_size import JpegSize
from genrl.rewards.lrm import HEAD, LatentRewardXL
from genrl.trainers.flash_dmd import Rl, head_of, ranker_of
from genrl.types import Batch, Prompt

TEXTS = ["a red circle", "a circle a red", "a blue square"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(base):
    return SDXL(str(base))


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return tiny_lrm(tmp_path_factory.mktemp("lrm"), base)


@pytest.fixture(scope="module")
def lrm(folder, base):
    return load(folder, base)


def load(folder, base, **options):
    return LatentRewardXL(str(folder), str(base), device="cpu", **options)


def latents(count=3, seed=0):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(model, z, texts=TEXTS):
    order = torch.arange(len(z))
    prompts = tuple(Prompt(text) for text in texts)
    return Batch(order, order, z, model.encode(texts), {"states": z[:, None].repeat(1, 4, 1, 1, 1)}, (0, 1), prompts)


def encoded(folder, base, text):
    """Embeddings ``[1, L, D]`` and pooled ``[1, P]`` of one text by the tuned encoders."""
    hidden, pooled = [], None
    for tokens, part, kind in (
        ("tokenizer", "text_encoder", CLIPTextModel),
        ("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection),
    ):
        tokenizer = CLIPTokenizer.from_pretrained(base / tokens)
        ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
        output = kind.from_pretrained(folder / part)(ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
        pooled = output[0]
    return torch.cat(hidden, -1), pooled


def maps_by_hand(unet, x_t, timestep, told):
    """Outputs of the last layers of the down blocks, as the up blocks are handed them, and of the middle block."""
    seen, handles = [], []
    for block in unet.up_blocks:
        handles.append(block.register_forward_pre_hook(lambda _, __, kw: seen.append(kw["res_hidden_states_tuple"][-1]), with_kwargs=True))
    handles.append(unet.mid_block.register_forward_hook(lambda _, __, output: seen.append(output)))
    ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
    unet(x_t, timestep, encoder_hidden_states=told[0], added_cond_kwargs={"text_embeds": told[1], "time_ids": ids})
    for handle in handles:
        handle.remove()
    middle, third, second, first = (found.mean((2, 3)) for found in seen)
    return first, second, third, middle


@torch.no_grad()
def score_by_hand(folder, base, x_t, timestep, text):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    told = encoded(folder, base, text)
    *down, middle = maps_by_hand(unet, x_t, timestep, told)
    plain = maps_by_hand(unet, x_t, timestep, encoded(folder, base, ""))[-1]
    state = torch.load(folder / HEAD)
    image = torch.cat([*down, plain + 7.5 * (middle - plain)], 1) @ state["visual_projection"]["weight"].T
    return math.exp(SCALE) * (normalize(image) * normalize(told[1])).sum()


def test_scores_are_those_computed_by_hand(folder, base, lrm, model):
    """A latent of the variance-preserving process at a timestep, given as the flow's: from the table of SDXL itself."""
    assert isinstance(LatentRewardRanker(lrm), Ranker) and LatentRewardRanker(lrm).roles == ()
    kept = DDPMScheduler.from_pretrained(base, subfolder="scheduler").alphas_cumprod
    timesteps, x_t = (999, 749, 1), latents()
    alpha, noise = kept[list(timesteps)] ** 0.5, (1 - kept[list(timesteps)]) ** 0.5
    z, sigma = x_t / (alpha + noise).view(-1, 1, 1, 1), noise / (alpha + noise)
    got = lrm.score_latents(z, sigma, TEXTS)
    ranked = LatentRewardRanker(lrm)(FlowPolicy(model, Copies(model.network, (ACTOR,))), batch(model, z), z, sigma)
    assert torch.equal(ranked, got)
    expected = torch.stack([score_by_hand(folder, base, x_t[k : k + 1], timesteps[k], TEXTS[k]) for k in range(3)])
    assert got.shape == (3,) and got.dtype == torch.float32 and not got.requires_grad
    assert expected.std() > 0.1 and torch.allclose(got, expected, atol=1e-3), (got, expected)


def test_only_the_middle_block_is_enhanced(lrm):
    z, sigma, cond, empty = latents(), torch.tensor([0.9, 0.7, 0.2]), lrm.encode(TEXTS), lrm.encode([""])
    other = copy.copy(lrm)

    def features(guidance):
        other.guidance = guidance
        return other.features(z, sigma, cond, empty)

    plain, told, enhanced = features(0.0), features(1.0), lrm.features(z, sigma, cond, empty)
    assert lrm.guidance == 7.5 and enhanced.shape == (3, WIDTH)
    down = slice(0, sum(CHANNELS))
    assert torch.equal(plain[:, down], told[:, down]) and torch.equal(told[:, down], enhanced[:, down])
    middle = slice(sum(CHANNELS), None)
    assert (told - plain)[:, middle].abs().max() > 1e-2
    assert torch.allclose(enhanced[:, middle], (7.5 * told - 6.5 * plain)[:, middle], atol=1e-4)


def test_the_up_blocks_do_not_run_and_nothing_stays_hooked(lrm):
    ran = []
    handles = [block.register_forward_hook(lambda *_: ran.append(1)) for block in lrm.unet.up_blocks]
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lrm.unet.modules())
    lrm.score_latents(latents(), torch.full((3,), 0.5), TEXTS)
    assert not ran and before == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lrm.unet.modules())
    for handle in handles:
        handle.remove()
    assert not any(p.requires_grad for p in lrm.parameters())


def test_a_score_does_not_depend_on_the_company(lrm):
    z, sigma = latents(), torch.tensor([0.9, 0.7, 0.2])
    scores = lrm.score_latents(z, sigma, TEXTS)
    for row in (2, 0, 1):
        alone = lrm.score_latents(z[row : row + 1], sigma[row : row + 1], TEXTS[row : row + 1])
        assert torch.allclose(alone, scores[row : row + 1], atol=1e-4)
    turned = torch.tensor([1, 2, 0])
    again = lrm.score_latents(z[turned], sigma[turned], [TEXTS[k] for k in turned])
    assert torch.allclose(again, scores[turned], atol=1e-4)


def test_a_prompt_is_encoded_once_and_the_latest_are_kept(folder, base, monkeypatch):
    lrm = load(folder, base, keep=3)
    asked, encode = [], lrm.encode
    monkeypatch.setattr(lrm, "encode", lambda texts: asked.append(list(texts)) or encode(texts))
    z, sigma = latents(), torch.full((3,), 0.5)
    twice = [TEXTS[0], TEXTS[0], TEXTS[1]]
    first = lrm.score_latents(z, sigma, twice)
    assert asked == [[TEXTS[0], TEXTS[1], ""]]
    assert torch.equal(lrm.score_latents(z, sigma, twice), first) and len(asked) == 1
    assert lrm.score_latents(z, sigma, TEXTS).isfinite().all(), "more texts at once than are kept"
    assert asked[1:] == [[TEXTS[2]]]
    lrm.score_latents(z[:1], sigma[:1], [TEXTS[1]])
    assert len(asked) == 2
    lrm.score_latents(z[:1], sigma[:1], [TEXTS[0]])
    assert asked[2:] == [[TEXTS[0]]]


def test_it_says_what_it_is_and_another_kind_ranks_no_latents(lrm):
    assert about(lrm).kind == "latent"
    with pytest.raises(RewardError, match="JpegSize is a pointwise reward"):
        LatentRewardRanker(JpegSize())


def test_candidates_that_it_ranks_teach_the_actor_alone(base, lrm):
    model = SDXL(str(base))
    policy = FlowPolicy(model, Copies(model.network, (ACTOR, ANCHOR)))
    steps = StudentSteps(model.student_sigmas(4), (0, 1))
    loss, data = LatentPreference(steps, LatentRewardRanker(lrm)), batch(model, latents())
    assert loss.roles == (ACTOR, ANCHOR)
    first = loss(policy, data)
    first.loss.backward()
    assert first.loss.item() == pytest.approx(math.log(2), abs=1e-4) and first.metrics["preference/margin"] > 0
    gradients = [p.grad for p in policy.parameters(ACTOR) if p.grad is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0
    assert all(p.grad is None for p in [*policy.parameters(ANCHOR), *lrm.parameters()])
    with torch.no_grad():
        for parameter in policy.parameters(ACTOR):
            if parameter.grad is not None:
                parameter -= 1e-4 / norm * parameter.grad
    after = loss(policy, data)
    assert after.metrics["preference/h"] > 0 and after.loss < first.loss


def test_encoders_that_were_frozen_are_the_bases(folder, base, tmp_path):
    (tmp_path / "unet").symlink_to(folder / "unet")
    state = torch.load(folder / HEAD)
    torch.save({**state, "logit_scale": torch.tensor(1.5)}, tmp_path / HEAD)
    lrm, pipeline = load(tmp_path, base), StableDiffusionXLPipeline.from_pretrained(base)
    assert lrm.logit_scale == 1.5
    embeds, _, pooled, _ = pipeline.encode_prompt(TEXTS, device="cpu", do_classifier_free_guidance=False)
    got = lrm.encode(TEXTS)
    assert torch.allclose(got[0], embeds) and torch.allclose(got[1], pooled)


def test_float16_as_its_authors_score(folder, base, lrm):
    half = load(folder, base, dtype="float16")
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16 and half.projection.dtype == torch.float32
    scores = [m.score_latents(latents(), torch.tensor([0.9, 0.7, 0.2]), TEXTS) for m in (lrm, half)]
    assert scores[1].dtype == torch.float32 and torch.allclose(*scores, atol=0.5), scores


def broken(folder, target, *without):
    for part in {"unet", "text_encoder", "text_encoder_2", HEAD} - set(without):
        (target / part).symlink_to(folder / part)
    return target


@pytest.mark.parametrize("part", ["unet", HEAD, "text_encoder"])
def test_a_missing_part_is_named(folder, base, tmp_path, part):
    with pytest.raises(RewardError, match=f"{part}.*fetch it again" if part == "text_encoder" else part):
        load(broken(folder, tmp_path, part), base)


def test_a_folder_of_several_names_them(folder, base, tmp_path):
    (tmp_path / "lrm_sdxl").symlink_to(folder)
    with pytest.raises(RewardError, match="lrm_sdxl: name one of these"):
        load(tmp_path, base)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"logit_scale": 1.0}, "KeyError"),
        ({"visual_projection": {"weight": torch.zeros(PROJECTION, CHANNELS[-1])}, "logit_scale": 1.0}, r"\(20, 24\), not \(20, 72\)"),
        (None, "does not read"),
    ],
)
def test_another_head_is_refused(folder, base, tmp_path, state, why):
    target = broken(folder, tmp_path, HEAD)
    if state is None:
        (target / HEAD).write_bytes(b"version https://git-lfs")
    else:
        torch.save(state, target / HEAD)
    with pytest.raises(RewardError, match=why):
        load(target, base)


@pytest.mark.parametrize("source", ["/no/such/lrm", "lrm", "casiatao/LRM", "casiatao/LRM/lrm_sdxl"])
def test_nothing_there(source, base):
    with pytest.raises(RewardError, match=f"no folder '{source}'"):
        load(source, base)


def test_no_base(folder):
    with pytest.raises(RewardError, match="/no/base"):
        load(folder, "/no/base")


def test_the_trainer_takes_it_for_sdxl_alone(folder, model, tmp_path):
    rl, judges = Rl(latent_reward=str(folder)), config.Judges()
    assert head_of("x.safetensors") and head_of("runs/head.safetensors") and head_of(str(folder)) is None
    assert isinstance(ranker_of(Rl(latent_reward="runs/head.safetensors"), judges, model), LatentRanker)
    ranker = ranker_of(rl, judges, model)
    assert isinstance(ranker, LatentRewardRanker) and isinstance(ranker.reward, LatentRewardXL)
    z = latents()
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    assert ranker(policy, batch(model, z), z, torch.full((3,), 0.5)).isfinite().all()
    with pytest.raises(config.ConfigError, match=r"SDXL alone.*SD3.*latent_reward\.py.*rl\.rewards"):
        ranker_of(rl, judges, SD3(str(tiny_sd3(tmp_path))))


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="needs LRM-XL and SDXL from the hub: set GENRL_WEIGHTS=1")
def test_the_published_model_prefers_the_prompt_of_a_latent_at_low_noise():
    """Its latents come from the published SDXL itself; the order of two prompts is all that is claimed of it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float16).to("cuda")
    texts = ["a photo of a red apple on a table", "a snowy mountain at night"]
    generator = torch.Generator("cuda").manual_seed(0)
    x0 = pipeline(texts, num_inference_steps=20, output_type="latent", generator=generator).images.float()
    lrm = LatentRewardXL("casiatao/LRM/lrm_sdxl", dtype="float16")
    sigma = torch.full((2,), 0.2, device="cuda")
    z = 0.8 * x0 + 0.2 * torch.randn_like(x0)
    right, wrong = lrm.score_latents(z, sigma, texts), lrm.score_latents(z, sigma, texts[::-1])
    assert (right > wrong + 1).all(), (right, wrong)
