"""SD3's transformer through the kernels of ``genrl.kernels.modulation``.

``fuse`` gives every joint block of a diffusers network another forward and its attention another processor. Both are written in terms of
the block's own submodules: weights, their names and adapters that peft put in or will put in stay what and where they are. The forward is a
bound method in the block's ``__dict__``, so a deep copy of the network has one that is bound to the copied block.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from genrl.kernels import fused
from genrl.kernels.modulation import gate_residual, gate_residual_norm_modulate, gelu_tanh_bias, layer_norm_modulate, linear_gelu, rms_norm
from genrl.models._lora import linear


def fuse(network: nn.Module) -> None:
    """Run the joint blocks of an SD3 transformer through fused kernels; once more changes nothing.

    Raises:
        ValueError: another architecture, or a block whose forward something else has replaced.
    """
    for block in _blocks(network):
        if _is_fused(block):
            continue
        if "forward" in vars(block):
            raise ValueError("a block has been given another forward already, by hooks for offloading perhaps; fuse first")
        block.forward = MethodType(_forward, block)
        for attention in _attentions(block):
            attention.set_processor(JointAttention(attention.processor))


def unfuse(network: nn.Module) -> None:
    """Undo ``fuse``; a network that is not fused stays as it is, and so does a processor that has been set since.

    Raises:
        ValueError: another architecture.
    """
    for block in _blocks(network):
        if _is_fused(block):
            del block.forward
            for attention in _attentions(block):
                if isinstance(attention.processor, JointAttention):
                    attention.set_processor(attention.processor.replaced)


def _blocks(network: nn.Module) -> list[Any]:
    if not isinstance(network, SD3Transformer2DModel):
        raise ValueError(f"fused blocks are those of SD3; got a {type(network).__name__}")
    return list(network.transformer_blocks)


def _attentions(block: Any) -> list[Any]:
    return [attention for attention in (block.attn, block.attn2) if attention is not None]


def _is_fused(block: Any) -> bool:
    return getattr(vars(block).get("forward"), "__func__", None) is _forward


class JointAttention:
    """A processor for diffusers' ``Attention``: over image and text tokens together, or over image tokens alone.

    Heads stay next to one another, as the projections leave them, up to the attention itself, which is torch's own: a back end that
    was chosen for it holds.
    """

    def __init__(self, replaced: Any):
        self.replaced = replaced

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        image = hidden_states.shape[1]
        q, k, v = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        own = (attn.norm_q, attn.norm_k)
        if encoder_hidden_states is None:
            q, k = (_head_norm(norm, x) for norm, x in zip(own, (q, k), strict=True))
        else:
            added = _heads(attn, encoder_hidden_states, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
            norms = ((own[0], attn.norm_added_q), (own[1], attn.norm_added_k), (None, None))
            q, k, v = (_joined(x, text, *pair) for x, text, pair in zip((q, k, v), added, norms, strict=True))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return _through(attn.to_out, out)
        text_out = out[:, image:]
        return _through(attn.to_out, out[:, :image]), text_out if attn.context_pre_only else linear(attn.to_add_out, text_out)


def _heads(attn: Any, x: Tensor, projections: tuple[Any, ...]) -> list[Tensor]:
    """Queries, keys and values ``[B, L, heads, d]``."""
    return [linear(project, x).unflatten(2, (attn.heads, -1)) for project in projections]


def _joined(x: Tensor, text: Tensor, norm: Any, text_norm: Any) -> Tensor:
    """Image and text tokens normalised, one after the other; without gradient the norms write where they are joined."""
    if fused(x, text) and not torch.is_grad_enabled() and _is_kernel(norm) and _is_kernel(text_norm) and x.dtype == text.dtype:
        out = x.new_empty(x.shape[0], x.shape[1] + text.shape[1], *x.shape[2:])
        rms_norm(x, norm.weight, norm.eps, out[:, : x.shape[1]])
        rms_norm(text, text_norm.weight, text_norm.eps, out[:, x.shape[1] :])
        return out
    return torch.cat([_head_norm(norm, x), _head_norm(text_norm, text)], 1)


def _is_kernel(norm: Any) -> bool:
    """Whether it is the norm that ``rms_norm`` computes."""
    return type(norm) is RMSNorm and norm.bias is None


def _head_norm(norm: Any, x: Tensor) -> Tensor:
    if norm is None:
        return x
    if _is_kernel(norm):
        return rms_norm(x, norm.weight, norm.eps)
    return norm(x)


def _through(modules: Any, x: Tensor) -> Tensor:
    for module in modules:
        x = linear(module, x)
    return x


def _mlp(block: Any, ff: Any, x: Tensor) -> Tensor:
    """The feed-forward half, in the chunks that ``enable_forward_chunking`` asks for."""
    if block._chunk_size is not None:
        return torch.cat([_feed_forward(ff, part) for part in x.split(block._chunk_size, block._chunk_dim)], block._chunk_dim)
    return _feed_forward(ff, x)


def _feed_forward(ff: Any, x: Tensor) -> Tensor:
    proj = ff.net[0].proj
    # an adapter, or a hook, is no plain linear layer: it is called as a module, with its bias. So is any layer where no kernel adds it.
    if fused(x) and type(proj) is nn.Linear and not (proj._forward_hooks or proj._forward_pre_hooks or "forward" in vars(proj)):
        h = linear_gelu(x, proj.weight, proj.bias)
    else:
        h = gelu_tanh_bias(linear(proj, x))
    return _through(ff.net[1:], h)


def _forward(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, joint_attention_kwargs: dict[str, Any] | None = None
) -> tuple[Tensor | None, Tensor]:
    """A joint block's forward, with diffusers' signature: text ``[B, M, D]`` (None after the last block) and image tokens ``[B, L, D]``."""
    x, text, options = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
    emb, eps = self.norm1.silu(temb), self.norm1.norm.eps
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *dual = self.norm1.linear(emb).chunk(9 if self.use_dual_attention else 6, 1)
    of_text = self.norm1_context.linear(emb).chunk(2 if self.context_pre_only else 6, 1)
    text_scale, text_shift = of_text if self.context_pre_only else (of_text[1], of_text[0])
    out, text_out = self.attn(
        hidden_states=layer_norm_modulate(x, scale, shift, eps),
        encoder_hidden_states=layer_norm_modulate(text, text_scale, text_shift, self.norm1_context.norm.eps),
        **options,
    )
    if self.use_dual_attention:
        second = self.attn2(hidden_states=layer_norm_modulate(x, dual[1], dual[0], eps), **options)
        x, out, gate = gate_residual(x, out, gate), second, dual[2]
    x, normed = gate_residual_norm_modulate(x, out, gate, scale_mlp, shift_mlp, self.norm2.eps)
    x = gate_residual(x, _mlp(self, self.ff, normed), gate_mlp)
    if self.context_pre_only:
        return None, x
    _, _, gate, shift_mlp, scale_mlp, gate_mlp = of_text
    text, normed = gate_residual_norm_modulate(text, text_out, gate, scale_mlp, shift_mlp, self.norm2_context.eps)
    return gate_residual(text, _mlp(self, self.ff_context, normed), gate_mlp), x
