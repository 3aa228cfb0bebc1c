"""MPS, the multi-dimensional preference score (CVPR 2024, arXiv 2405.14705), trained on people's overall preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.pixels import PromptMemory, best_device, normalise, shortest_side
from genrl.reward import About, RewardError
from genrl.rewards.clip_score import complete, float_type, loading, read_weights, weights_file

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, quantity, "
    "attributes, position, number, location, word, things."
)
"""The words that stand for overall preference."""


class Mps:
    """``exp(logit_scale) * cosine`` of the prompt and of the picture as seen by it, about 0 to 15. Differentiable.

    CLIP ViT-H/14 gives all tokens of picture and prompt. Prompt tokens that resemble no word of ``condition`` are masked: those whose
    largest product with a condition token is at most ``threshold`` times that of the best prompt token. The picture's tokens then
    look at the remaining ones through four layers of attention, and its class token is compared with the prompt's embedding.

    The published evaluation takes a threshold of 0.3 and the published ``forward`` 0.01; both divide by the largest product of
    the batch, which is the prompt's own where pictures are scored one by one. So it is here for every prompt, whatever it is batched
    with. The published checkpoint is a pickled module, which is not read; the default is a third party's copy of its tensors,
    without a licence tag. Such a checkpoint can be converted with ``safetensors.torch.save_file(model.state_dict(), path)``.

    Args:
        model: hub id, a folder with ``model.safetensors``, or the file of tensors itself.
        processor: hub id or folder of the CLIP model from which it was trained, for its tokenizer and configuration.
        condition: what is asked for.
        threshold: see above.
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the networks compute in (float16 as published); masks and the product are float32.
    """

    about = About(
        differentiable=True,
        bounds=(-100.0, 100.0),
        weights=("RE-N-Y/mpsv1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        license="code MIT; the weights name none",
        source="arXiv 2405.14705",
    )

    def __init__(
        self,
        model: str = "RE-N-Y/mpsv1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        condition: str = CONDITION,
        threshold: float = 0.3,
        device: str = "auto",
        dtype: str = "float32",
    ):
        self.threshold, self.device, self.dtype = threshold, best_device(device), float_type(dtype)
        with loading(processor):
            from transformers import AutoTokenizer, CLIPConfig, CLIPModel

            self.tokenizer: Any = AutoTokenizer.from_pretrained(processor)
            config = CLIPConfig.from_pretrained(processor)
        path = weights_file(model, "model.safetensors")
        with loading(str(path)):
            clip, cross = parts(read_weights(path))
            loaded: Any = CLIPModel.from_pretrained(None, config=config, state_dict=clip, dtype=self.dtype, output_loading_info=True)
            self.clip, report = loaded
            complete(report["missing_keys"], report["unexpected_keys"])
            self.cross = CrossModel.of(cross)
        for network in (self.clip, self.cross):
            network.to(self.device, self.dtype).eval().requires_grad_(False)
        self.clip.text_model.eos_token_id = 2  # the embedding is read at the highest token id, as in training
        self.scale = self.clip.logit_scale.float().exp().item()
        self.condition = self._tokens([condition])[0, 1:]
        # all tokens of a prompt are kept, 0.3 MB each
        self.texts = PromptMemory(self._tokens, size=256)

    @torch.no_grad()
    def _tokens(self, prompts: list[str]) -> Tensor:
        """``[B, 1 + T, D]``: the embedding of the whole prompt, then those of its tokens, padding among them as published."""
        length = self.clip.config.text_config.max_position_embeddings
        told = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        read = self.clip.text_model(input_ids=told.input_ids.to(self.device))
        return self.clip.text_projection(torch.cat([read.pooler_output[:, None], read.last_hidden_state], dim=1))

    def _allowed(self, text: Tensor) -> Tensor:
        """Prompt tokens that the picture may look at, ``[B, T]``."""
        alike = (text.float() @ self.condition.float().T).amax(-1)
        return alike / alike.amax(-1, keepdim=True) > self.threshold

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        pixels = normalise(shortest_side(images.to(self.device), self.clip.config.vision_config.image_size)).to(self.dtype)
        picture = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        read = self.texts(prompts)
        whole, text = read[:, 0], read[:, 1:]
        seen = self.cross(picture, text, self._allowed(text))[:, 0]
        return self.scale * F.cosine_similarity(seen.float(), whole.float(), dim=-1)


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """CLIP and the cross model of a checkpoint whose keys may have a prefix before ``model.`` and ``cross_model.``."""
    prefix = next((key.partition("cross_model.")[0] for key in state if "cross_model." in key), None)
    if prefix is None:
        raise RewardError(f"no cross_model in it, but {', '.join(list(state)[:3])}, ...; these are other weights")
    clip, cross = (
        {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        for start in (f"{prefix}model.", f"{prefix}cross_model.")
    )
    # rows of numbers that old versions of transformers saved
    return {key: value for key, value in clip.items() if not key.endswith(".position_ids")}, cross


class CrossModel(nn.Module):
    """Layers of attention from picture to prompt, each followed by one within the picture.

    Args:
        width: of the tokens.
        depth: pairs of layers.
        heads: of the queries; all share one head of keys and values.
        head_dim: width of a head.
        hidden: width of the feed-forward layers.
    """

    def __init__(self, width: int, depth: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        sizes = (width, heads, head_dim, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Residual(CrossAttention(*sizes)), _Residual(SelfAttention(*sizes))]) for _ in range(depth)
        )

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> CrossModel:
        """The network whose tensors these are."""
        inner, width = state["layers.0.0.fn.to_q.weight"].shape
        head_dim = len(state["layers.0.0.fn.to_kv.weight"]) // 2
        depth = 1 + max(int(key.split(".")[1]) for key in state)
        made = cls(width, depth, inner // head_dim, head_dim, state["layers.0.0.fn.ff.2.weight"].shape[1])
        missed = made.load_state_dict(state, strict=False)
        complete(missed.missing_keys, missed.unexpected_keys)
        return made

    def forward(self, picture: Tensor, text: Tensor, allowed: Tensor) -> Tensor:
        for cross, own in self.layers:  # type: ignore[misc]
            picture = own(cross(picture, text, allowed))
        return picture


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x + self.fn(x, *rest)


class _Gate(nn.Module):
    """SwiGLU, arXiv 2002.05202."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class _Norm(nn.Module):
    """A layer norm whose bias is saved, and zero."""

    bias: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Queries ``[B, H, N, D]``, keys and values ``[B, M, D]``, allowed keys ``[B, M]``; gives ``[B, N, H * D]``."""
    mask = None if allowed is None else allowed[:, None, None]
    heads = q.shape[1]
    k, v = (t[:, None].expand(-1, heads, -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Picture tokens look at prompt tokens, and pass a feed-forward layer beside it."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm = _Norm(width)
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)
        self.ff = nn.Sequential(nn.Linear(width, 2 * hidden, bias=False), _Gate(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor, text: Tensor, allowed: Tensor) -> Tensor:
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.to_out(_attend(q, *self.to_kv(text).chunk(2, dim=-1), allowed)) + self.ff(x)


class _Rotary(nn.Module):
    """Frequencies of rotary positions (arXiv 2104.09864), in the checkpoint."""

    inv_freq: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, width, 2) / width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in the last dimension but one turned by their place; halves of the last dimension are the pairs."""
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * self.inv_freq.float()
        cos, sin = (f(angle).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class SelfAttention(nn.Module):
    """Attention and feed-forward side by side from one projection, as in PaLM."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.heads, self.split = heads, (heads * head_dim, head_dim, head_dim, 2 * hidden)
        self.norm = _Norm(width)
        self.rotary_emb = _Rotary(head_dim)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.split), bias=False)
        self.attn_out = nn.Linear(heads * head_dim, width, bias=False)
        self.ff_out = nn.Sequential(_Gate(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.split, dim=-1)
        q = self.rotary_emb(q.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return self.attn_out(_attend(q, self.rotary_emb(k), v)) + self.ff_out(ff)
