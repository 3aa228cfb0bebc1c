"""HPSv3 on a tiny random Qwen2-VL saved as the published file is, against the library's own processor and forward pass."""

import hashlib
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from genrl.pixels import to_pil
from genrl.reward import RewardError, about, load_reward
from genrl.rewards.hps_v3 import CHAT, FILE, INSTRUCTION, PIXELS, TOKEN, HpsV3, rename, size_of

# SHA-256 of the published instruction with the prompt "a cat", of
# hpsv3/dataset/data_collator_qwen.py, INSTRUCTION + prompt_with_special_token
PUBLISHED = "58f765b8739946ac474c741df3766ebc3df8c43e966cea2edbdce196c41a2bd4"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PROMPTS = ["a cat", "two red dogs <|im_end|> on a {beach}"]
HIDDEN = 32


def bytes_tokenizer():
    """One token for each byte, and Qwen2-VL's control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    return tokenizer


def published(key):
    """A key of transformers 5 as the published file has it."""
    return key if key.startswith("visual.") else key.replace("language_model.", "model.", 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2vl")
    tokenizer = bytes_tokenizer()
    tokenizer.save_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids
    Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 50,  # larger than the tokenizer, as the original's
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": HIDDEN, "mlp_ratio": 2, "patch_size": 14},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(base):
    """The backbone, its table cut to the tokenizer with the reward token, and the head's weights."""
    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = len(bytes_tokenizer()) + 1
    torch.manual_seed(1)
    backbone = Qwen2VLModel(config).eval()
    for name, parameter in backbone.named_parameters():
        if parameter.ndim > 1:
            # sharp attention, or thousands of tokens average to the same score
            torch.nn.init.normal_(parameter, std=0.6 if "q_proj" in name or "k_proj" in name else 0.25)
    sizes = {"0": (1024, HIDDEN), "3": (16, 1024), "5": (2, 16)}
    head = {f"{k}.weight": torch.randn(size) / math.sqrt(size[1]) for k, size in sizes.items()}
    return backbone, head | {f"{k}.bias": torch.randn(size[0]) for k, size in sizes.items()}


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    backbone, head = parts
    state = {published(key): value.clone() for key, value in backbone.state_dict().items()}
    state |= {f"rm_head.{key}": value for key, value in head.items()}
    save_file(state | {"lm_head.weight": torch.zeros(3, HIDDEN)}, folder / FILE)
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "visual.patch_embed.proj.weight"} <= set(state)
    return folder


def load(folder, base, **options):
    return HpsV3(str(folder), str(base), **{"dtype": "float32", "device": "cpu"} | options)


@pytest.fixture(scope="module")
def reward(folder, base):
    return load(folder, base)


def pictures(count=2, height=60, width=90):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def by_hand(parts, picture, prompt):
    """One picture, unpadded, by the library's image processor and forward pass, and the head written out."""
    backbone, head = parts
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    height, width = size_of(*picture.shape[-2:])
    (pil,) = to_pil(picture[None])
    seen = Qwen2VLImageProcessorPil()(pil.resize((width, height)), return_tensors="pt")  # PIL's default for RGB is bicubic
    text = CHAT.replace("{image}", "<|image_pad|>" * (height // 28 * width // 28)).replace("{prompt}", prompt)
    ids = tokenizer(text, return_tensors="pt").input_ids
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    hidden = backbone(ids, position_ids=positions, pixel_values=seen.pixel_values, image_grid_thw=seen.image_grid_thw).last_hidden_state
    (place,) = (ids[0] == len(tokenizer) - 1).nonzero()
    x = hidden[0, place].squeeze(0)
    for layer in "035":
        x = head[f"{layer}.weight"] @ (x if layer == "0" else x.clamp(min=0)) + head[f"{layer}.bias"]
    return x


def test_the_instruction_is_the_published_one():
    assert hashlib.sha256(INSTRUCTION.replace("{prompt}", "a cat").encode()).hexdigest() == PUBLISHED
    assert CHAT.count(TOKEN) == CHAT.count("{image}") == CHAT.count("{prompt}") == 1


def test_scores_are_those_of_the_librarys_forward_pass(parts, reward):
    images = pictures()
    got = reward.distribution(images, PROMPTS)
    expected = torch.stack([by_hand(parts, images[k], PROMPTS[k].replace("<|", "< |")) for k in range(2)])
    assert got.shape == (2, 2) and got.dtype == torch.float32 and not got.requires_grad
    # pixels equal PIL's within a level or two of 255
    assert torch.allclose(got, expected, atol=5e-3), (got, expected)
    others = by_hand(parts, images[1], "a cat"), by_hand(parts, images[0], PROMPTS[1].replace("<|", "< |"))
    assert all((expected[0] - other).abs().max() > 5e-2 for other in others), "picture and prompt must matter more than the tolerance"
    assert torch.equal(reward(images, PROMPTS, [{}, {}]), got[:, 0])


def test_a_score_depends_on_its_own_prompt_and_picture_only(reward):
    images = pictures()
    both = reward(images, PROMPTS, [{}, {}])
    alone = torch.cat([reward(images[k : k + 1], PROMPTS[k : k + 1], [{}]) for k in range(2)])
    assert torch.allclose(both, alone, atol=1e-4), "padding of the shorter prompt counts"
    swapped = reward(images, PROMPTS[::-1], [{}, {}])
    assert (both - swapped).abs().max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(448, 448), (60, 90), (512, 300)])
def test_patches_are_the_librarys(reward, height, width):
    images = pictures(2, height, width)
    got, grid = reward.patches(images)
    rows, columns = size_of(height, width)
    expected = Qwen2VLImageProcessorPil()([pil.resize((columns, rows)) for pil in to_pil(images)], return_tensors="pt")
    assert torch.equal(grid, expected.image_grid_thw) and got.shape == expected.pixel_values.shape
    # in levels of 255, by the smallest of the three standard deviations
    assert (got - expected.pixel_values).abs().max() <= 2.01 / 255 / 0.26


@pytest.mark.parametrize("size", [(512, 512), (448, 448), (1024, 1024), (768, 1344), (64, 64), (100, 333), (30, 1000)])
def test_the_size_is_the_librarys(size):
    assert size_of(*size) == smart_resize(*size, factor=28, min_pixels=PIXELS, max_pixels=PIXELS)
    assert size_of(512, 512) == (448, 448)


def test_it_carries_a_gradient_to_the_pixels(reward):
    images = pictures().requires_grad_()
    reward(images, PROMPTS, [{}, {}])[0].backward()
    assert images.grad[0].abs().sum() > 0 and images.grad[1].abs().sum() == 0
    assert about(reward).differentiable and all(p.grad is None for p in reward.backbone.parameters())


def test_later_layouts_of_the_file_load_too(folder, base, reward, tmp_path):
    state = load_file(folder / FILE)
    later = {f"model.{rename(key)}" if key.startswith(("model.", "visual.")) else key: value for key, value in state.items()}
    assert "model.language_model.embed_tokens.weight" in later and "model.visual.patch_embed.proj.weight" in later
    save_file(later, tmp_path / FILE)
    assert torch.equal(load(tmp_path, base)(pictures(), PROMPTS, [{}, {}]), reward(pictures(), PROMPTS, [{}, {}]))


def test_bfloat16_keeps_the_head_in_float32(folder, base, reward):
    half = load_reward("genrl.rewards.hps_v3:HpsV3", model=str(folder), base=str(base), device="cpu")
    assert half.backbone.dtype == torch.bfloat16 and half.head[0].weight.dtype == torch.float32
    got, expected = half(pictures(), PROMPTS, [{}, {}]), reward(pictures(), PROMPTS, [{}, {}])
    assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=0.3), (got, expected)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop("model.embed_tokens.weight"), "lacks the embedding table or the head"),
        (lambda s: [s.pop(key) for key in list(s) if key.startswith("rm_head.")], "lacks the embedding table or the head"),
        (lambda s: s.pop("rm_head.5.bias"), "does not fit"),
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), r"see \['language_model.layers.1.mlp.up_proj.weight'"),
        (lambda s: s.update(extra=torch.zeros(1)), r"see \['extra'"),
        (lambda s: s.update({"model.embed_tokens.weight": torch.zeros(20, HIDDEN)}), "knows 20 tokens"),
    ],
)
def test_another_file_is_refused(folder, base, tmp_path, change, why):
    state = load_file(folder / FILE)
    change(state)
    save_file(state, tmp_path / FILE)
    with pytest.raises(RewardError, match=why):
        load(tmp_path, base)


def test_an_empty_folder_is_refused(base, tmp_path):
    with pytest.raises(RewardError, match=f"holds no {FILE}"):
        load(tmp_path, base)


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="needs HPSv3 (17 GB) from the hub and a GPU: set GENRL_WEIGHTS=1")
def test_the_published_weights_prefer_the_prompt_that_fits():
    reward = HpsV3()
    assert len(reward.tokenizer) == len(reward.backbone.get_input_embeddings().weight), "the file's table is the tokenizer's with one more"
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 448, 448)
    right, wrong = reward(red, ["a plain red picture", "two dogs playing on a beach"], [{}, {}]).tolist()
    assert right > wrong and -20 < wrong < right < 20
