"""HPSv3 (arXiv 2508.03789): human preference by a vision-language model, about 9 to 11 for good generators, below 0 for poor pictures.

Qwen2-VL-7B reads picture, criteria and prompt; the hidden state of a special token goes through an MLP 3584 -> 1024 -> 16 -> 2 to the
mean and the log standard deviation of a normal distribution. The score is the mean.

As in the published code (github MizzenAI/HPSv3, PyPI hpsv3 1.0.0), text positions count up through the picture: it calls the language
model with embeddings alone, so that Qwen2-VL's positions in rows and columns are never made. Ours: a control token inside a prompt
("<|im_end|>") is broken up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genrl.pixels import best_device, normalise, resize
from genrl.reward import About, RewardError

BASE = "Qwen/Qwen2-VL-7B-Instruct"
WEIGHTS = "MizzenAI/HPSv3"
FILE = "HPSv3.safetensors"
TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28

# two spaces before a line break and the blank lines are the model's
INSTRUCTION = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score to estimate "
    "the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the best. \n"
    "\n**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body structures or "
    "nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, with no blurring "
    "or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., hair, "
    "clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, atmosphere, depth "
    "of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult material. If such "
    "content is present, the image quality and satisfaction score should be the lowest possible. \n"
    "\n**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with the textual "
    "description. The subject should match the description in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image adheres to this "
    "style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically fit the "
    "scenario described in the prompt. The environment should support and enhance the subject without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, expressions, "
    "actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The generated "
    "content should not introduce elements that conflict with or distort the original description.\n"
    "Textual prompt - {prompt}\n\n\n"
    f"\nPlease provide the overall ratings of this image: {TOKEN}\n\nEND\n"
)
# Qwen2-VL's chat template, spelled out
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{{image}}<|vision_end|>{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)


class HpsV3:
    """``mu`` of the published head, as it is; differentiable in the pixels.

    Args:
        model: hub id or folder that holds ``HPSv3.safetensors``.
        base: hub id or folder of Qwen2-VL-7B-Instruct; its config and tokenizer are read, not its weights.
        dtype: of the Qwen2-VL; the authors run bfloat16. The head is float32 always.
        device: where it runs.

    Raises:
        RewardError: a file that lacks weights, or that does not fit the tokenizer.
    """

    about = About(
        differentiable=True,
        weights=(WEIGHTS, BASE),
        license="MIT (code; check the card of the weights), base Apache-2.0",
        source="arXiv 2508.03789, github MizzenAI/HPSv3",
    )

    def __init__(
        self,
        model: str = WEIGHTS,
        base: str = BASE,
        dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16",
        device: str = "auto",
    ):
        from transformers import AutoConfig, AutoTokenizer

        self.device = best_device(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="right")
        self.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
        self.token = self.tokenizer.convert_tokens_to_ids(TOKEN)
        config = AutoConfig.from_pretrained(base)
        self.image_token = self.tokenizer.convert_ids_to_tokens(config.image_token_id)
        self.backbone, self.head = _load(model, config, self.token, getattr(torch, dtype))
        self.backbone, self.head = self.backbone.to(self.device), self.head.to(self.device)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.distribution(images, prompts)[:, 0]

    def distribution(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean and log standard deviation ``[B, 2]`` float32."""
        pixels, grid = self.patches(images.to(self.device))
        vision = self.backbone.visual
        merged = (grid.prod(-1) // vision.spatial_merge_size**2).tolist()
        text = [
            CHAT.replace("{image}", self.image_token * count).replace("{prompt}", prompt.replace("<|", "< |"))
            for count, prompt in zip(merged, prompts, strict=True)
        ]
        told = self.tokenizer(text, padding=True, return_tensors="pt").to(self.device)
        embeds = self.backbone.get_input_embeddings()(told.input_ids)
        seen = vision(pixels.to(vision.dtype), grid_thw=grid).pooler_output.to(embeds)
        places = (told.input_ids == self.backbone.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(places, seen)
        hidden = self.backbone.language_model(inputs_embeds=embeds, attention_mask=told.attention_mask, use_cache=False).last_hidden_state
        return self.head(hidden[told.input_ids == self.token].float())

    def patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Qwen2-VL's patches ``[N, 1176]``, those of a picture in merged squares, and the grids ``[B, 3]`` of patches."""
        vision = self.backbone.config.vision_config
        side, merge, twice = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        height, width = size_of(*images.shape[-2:], side * merge)
        rows, columns = height // side, width // side
        cut = normalise(resize(images.float(), height, width)).unflatten(-2, (rows // merge, merge, side))
        cut = cut.unflatten(-1, (columns // merge, merge, side)).permute(0, 2, 5, 3, 6, 1, 4, 7)  # squares, within them, channels, pixels
        # a picture is a film of equal frames
        cut = cut.unsqueeze(6).expand(*cut.shape[:6], twice, side, side)
        grid = torch.tensor([[1, rows, columns]], device=images.device).repeat(len(images), 1)
        return cut.reshape(len(images) * rows * columns, -1), grid


def size_of(height: int, width: int, factor: int = 28) -> tuple[int, int]:
    """Multiples of ``factor`` near so many PIXELS and near these proportions: Qwen2-VL's, whose least and most the model sets equal."""
    near = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if near[0] * near[1] > PIXELS:
        shrink = math.sqrt(height * width / PIXELS)
        near = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif near[0] * near[1] < PIXELS:
        grow = math.sqrt(PIXELS / (height * width))
        near = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return near[0], near[1]


def rename(key: str) -> str:
    """A key of the published file (transformers 4.45's) as that of today's ``Qwen2VLModel``, or of the head; later layouts stay right."""
    key = key.removeprefix("model.") if key.startswith(("model.visual.", "model.language_model.")) else key
    return "language_model." + key.removeprefix("model.") if key.startswith("model.") else key


def _load(model: str, config: Any, token: int, dtype: torch.dtype) -> tuple[Any, nn.Sequential]:
    """The backbone and the head, frozen, from the file alone."""
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file
    from transformers import Qwen2VLModel

    path = Path(model).expanduser() / FILE if Path(model).expanduser().is_dir() else Path(hf_hub_download(model, FILE))
    if not path.is_file():
        raise RewardError(f"{model!r} holds no {FILE}; give the folder that does, or {WEIGHTS!r}")
    state = {rename(key): value for key, value in load_file(path).items() if not key.startswith("lm_head.")}
    first = {key.removeprefix("rm_head."): state.pop(key).float() for key in [key for key in state if key.startswith("rm_head.")]}
    table = state.get("language_model.embed_tokens.weight")
    if table is None or not first:
        raise RewardError(f"{FILE} of {model!r} is no HPSv3: it lacks the embedding table or the head (rm_head); fetch it again")
    if len(table) <= token:
        raise RewardError(f"{FILE} of {model!r} knows {len(table)} tokens, and {TOKEN} would be token {token}: base is another tokenizer's")
    config.text_config.vocab_size = len(table)  # the authors cut the table to the tokenizer's length
    # the identity stands where training has its dropout
    layers = nn.Linear(config.text_config.hidden_size, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    head = nn.Sequential(*layers)
    try:
        head.load_state_dict(first)
        made: Any = Qwen2VLModel.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    except (RuntimeError, ValueError) as error:
        raise RewardError(f"{FILE} of {model!r} does not fit {type(config).__name__} of base: {error}") from error
    backbone, told = made
    if wrong := [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]:
        raise RewardError(f"{FILE} of {model!r} does not fit the base, see {wrong[:3]}; fetch it again, or name its base")
    return backbone.eval().requires_grad_(False), head.eval().requires_grad_(False)
