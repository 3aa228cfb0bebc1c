"""ImageReward v1.0 (arXiv 2304.05977): BLIP with a head that was trained on people's rankings of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from genrl.pixels import best_device, normalise, shortest_side
from genrl.reward import About
from genrl.rewards.aesthetic import folded
from genrl.rewards.clip_score import complete, float_type, loading, read_weights, weights_file

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the paper's training set."""
TOKENS = 35
HEAD_DIM = 64
"""Width of an attention head in every BLIP; the checkpoint does not tell it."""
RENAMED = {
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^blocks\.(\d+)\.norm([12])\.": r"encoder.layers.\1.layer_norm\2.",
    r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.\1.self_attn.qkv.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.\1.self_attn.projection.",
    r"^blocks\.(\d+)\.mlp\.": r"encoder.layers.\1.mlp.",
    r"^norm\.": "post_layernorm.",
}
"""Keys of the published picture tower -> keys of transformers."""


class ImageReward:
    """Predicted rank in deviations from the mean of the training set: about -2.3 to 2; public trainers take it raw. Differentiable.

    The prompt, 35 tokens of BERT, attends to the picture (shortest side to 224, middle cut out); a chain of five linear layers without
    non-linearity, multiplied out here, reads its first token. On BLIP of transformers, with keys renamed and the norms'
    epsilon of the original (1e-6 in the picture tower). Picture and prompt meet in every layer, so nothing of the prompt can be kept.

    Args:
        model: hub id, a folder with ``ImageReward.pt``, or the checkpoint itself. Sizes are read from its tensors.
        tokenizer: hub id or folder of BERT's uncased tokenizer.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what BLIP computes in; the head is float32.
    """

    about = About(
        differentiable=True,
        weights=("zai-org/ImageReward", "google-bert/bert-base-uncased"),
        license="Apache-2.0",
        source="arXiv 2304.05977",
    )

    def __init__(
        self,
        model: str = "zai-org/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str = "auto",
        dtype: str = "float32",
    ):
        self.device, self.dtype = best_device(device), float_type(dtype)
        with loading(tokenizer):
            from transformers import AutoTokenizer, BlipTextModel, BlipVisionModel

            self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
            self.tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        path = weights_file(model, "ImageReward.pt")
        with loading(str(path)):
            vision, text, head = parts(read_weights(path))
            self.vision = self._tower(BlipVisionModel, vision_config(vision), vision)
            # `is_decoder` builds the layers that look at the picture; the call says that attention is not causal
            self.text = self._tower(BlipTextModel, text_config(text), text, add_pooling_layer=False)
            self.weight, self.bias = (t.to(self.device) for t in folded(head))
        self.size = self.vision.config.image_size

    def _tower(self, kind: Any, config: Any, state: dict[str, Tensor], **options: Any) -> Any:
        made, report = kind.from_pretrained(None, config=config, state_dict=state, dtype=self.dtype, output_loading_info=True, **options)
        complete(report["missing_keys"], report["unexpected_keys"])
        return made.to(self.device).eval().requires_grad_(False)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        pixels = normalise(shortest_side(images.to(self.device), self.size)).to(self.dtype)
        picture = self.vision(pixel_values=pixels).last_hidden_state
        told = self.tokenizer(list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        told = told.to(self.device)
        read = self.text(
            input_ids=told.input_ids, attention_mask=told.attention_mask, encoder_hidden_states=picture, is_decoder=False
        ).last_hidden_state
        return (read[:, 0].float() @ self.weight + self.bias - MEAN) / STD


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The picture tower under the keys of transformers, the text tower and the head; the rest is of BLIP's pretraining."""
    prefixes = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
    vision, text, head = ({key.removeprefix(p): value for key, value in state.items() if key.startswith(p)} for p in prefixes)
    complete([] if vision and text and head else ["blip.visual_encoder.*, blip.text_encoder.* or mlp.*"])
    for old, new in RENAMED.items():
        vision = {re.sub(old, new, key): value for key, value in vision.items()}
    text.pop("embeddings.position_ids", None)  # a row of numbers that old versions of transformers saved
    return vision, text, head


def vision_config(state: Mapping[str, Tensor]) -> Any:
    from transformers import BlipVisionConfig

    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    side = round((state["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers(state),
        num_attention_heads=width // HEAD_DIM,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(state: Mapping[str, Tensor]) -> Any:
    from transformers import BlipTextConfig

    words, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=layers(state),
        num_attention_heads=width // HEAD_DIM,
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,
        # numbers of the tokenizer; not read here, and the defaults may lie outside the vocabulary
        **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id"), None),
        pad_token_id=0,
    )


def layers(state: Mapping[str, Tensor]) -> int:
    return 1 + max(int(found[1]) for key in state if (found := re.match(r"encoder\.layers?\.(\d+)\.", key)))
