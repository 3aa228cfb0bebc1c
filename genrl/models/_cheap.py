"""Short cuts of a network for previews: samples to look at, never to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class CachedBlocks(nn.Module):
    """All blocks of an MM-DiT as one, of which only the first need run: a first-block cache (ParaAttention, and diffusers'
    ``FirstBlockCache``).

    Where the first block adds about what it added when last all blocks ran, the others are taken to add what they added then:

        mean |r - r'| <= threshold mean |r'|,    r = block_1(h) - h,   r' that of the last full pass

    Deviates from both in one point, which is ours: each row decides for itself and not the batch as a whole, so that an image does not
    depend on its company. diffusers' own cannot be used here: of an ``SD3Transformer2DModel`` it expects a text stream that the last
    block does not return.
    """

    def __init__(self, blocks: nn.ModuleList, threshold: float):
        super().__init__()
        self.blocks, self.threshold = blocks, threshold
        self.forget()

    def forget(self) -> None:
        """What comes next are other images."""
        self.added: Tensor | None = None
        self.rest: Tensor | None = None

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, **options: Any) -> tuple[None, Tensor]:
        context, hidden = self.blocks[0](hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb, **options)
        added = hidden - hidden_states
        if self.added is None or self.rest is None or self.added.shape != added.shape:
            full = self._others(hidden, context, temb, options)
            self.added, self.rest = added, full - hidden
            return None, full
        change, before = (added - self.added).flatten(1).abs().mean(1), self.added.flatten(1).abs().mean(1)
        # written so that a change that is no number runs all blocks
        rows = (~(change <= self.threshold * before)).nonzero().flatten()
        if not len(rows):
            return None, hidden + self.rest
        full = self._others(hidden[rows], context[rows], temb[rows], options)
        self.added = self.added.index_copy(0, rows, added[rows])
        self.rest = self.rest.index_copy(0, rows, full - hidden[rows])
        # a row that was computed is what was computed, not what is left of it after a subtraction and an addition
        return None, (hidden + self.rest).index_copy(0, rows, full)

    def _others(self, hidden: Tensor, context: Tensor, temb: Tensor, options: dict[str, Any]) -> Tensor:
        for block in self.blocks[1:]:
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=temb, **options)
        return hidden


class Shortcuts:
    """What is taken, and the guard that nothing is learned through it."""

    def __init__(self, cached: CachedBlocks | None):
        self.cached = cached
        self.level = -math.inf

    def enter(self, sigma: Tensor, whole: bool = True) -> None:
        """Before each forward at levels ``sigma [B]``; a level that does not fall begins other images.

        Args:
            whole: all blocks are asked for.

        Raises:
            RuntimeError: gradients are enabled, or a part of the network is asked for.
        """
        if torch.is_grad_enabled() or not whole:
            raise RuntimeError(
                "the network takes short cuts here: it gives velocities under torch.no_grad(), to look at and not to learn from"
            )
        if self.cached is not None:
            level = float(sigma[0])
            if level >= self.level:
                self.cached.forget()
            self.level = level


@contextmanager
def caching(network: Any, threshold: float) -> Iterator[CachedBlocks]:
    """Within the block, the network's ``transformer_blocks`` are ``CachedBlocks``; afterwards the very modules of before."""
    blocks = network.transformer_blocks
    cached = CachedBlocks(blocks, threshold)
    network.transformer_blocks = nn.ModuleList([cached])
    try:
        yield cached
    finally:
        network.transformer_blocks = blocks
