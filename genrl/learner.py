"""How updates learn: an optimiser each, minibatches in keyed order, gradients averaged over processes, finite or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genrl import checkpoint, seeds
from genrl.algorithm import Update
from genrl.policy import FlowPolicy
from genrl.types import Batch


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says where it broke and what to try."""


FUSED = ("cpu", "cuda")
"""Devices on which torch has AdamW as one kernel."""
BUCKET = 2**26
"""Numbers that travel together when gradients are averaged: few messages, and no second copy of all gradients."""


def optimizer_of(update: Update, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that an update asks for.

    Raises:
        ValueError: it needs a library that is not installed.
    """
    options: dict[str, Any] = {"lr": update.lr, "betas": update.betas, "weight_decay": update.weight_decay}
    if update.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=all(p.device.type in FUSED for p in parameters), **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"the optimizer {update.optimizer} of {update.name!r} needs bitsandbytes: pip install 'genrl-image[adamw8bit]'"
        ) from error
    return AdamW8bit(parameters, **options)


def buckets(tensors: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """The tensors in order, in runs of at most ``size`` numbers; one that is larger is a run of its own."""
    found: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if tensor.numel() > room:
            found.append([])
            room = size
        found[-1].append(tensor)
        room -= tensor.numel()
    return found


class Learner:
    """The optimisers of an algorithm's updates. Two updates of one role have a state each: their gradients differ in scale.

    Args:
        mean: a tensor's mean over processes; None with a single one (docs/decisions.md says why there is no wrapper).
    """

    def __init__(self, policy: FlowPolicy, updates: Sequence[Update], seed: int, mean: Callable[[Tensor], Tensor] | None = None):
        self.policy, self.updates, self.seed, self.mean = policy, updates, seed, mean
        self.optimizers = [optimizer_of(update, policy.parameters(*update.learners)) for update in updates]
        self.steps = [0] * len(updates)
        self.opened = [False] * len(updates)

    def due(self, index: int, round_: int, metrics: Mapping[str, float]) -> bool:
        """Whether an update has its turn in this round."""
        update = self.updates[index]
        self.opened[index] = self.opened[index] or update.start.open(round_, metrics)
        ended = update.until_round and round_ >= update.until_round
        return self.opened[index] and not ended and round_ % update.every_rounds == 0

    def learn(self, index: int, batch: Batch, round_: int) -> dict[str, float]:
        """All passes of one update over the round's samples; the means of what its loss reports."""
        update = self.updates[index]
        sums: dict[str, list[Tensor]] = {}
        with self.policy.only(*update.learners):
            for number in range(update.passes):
                # a group stays together: losses compare its members
                shuffled = seeds.permutation_by_group((self.seed, seeds.ORDER, round_, index, number), batch.group)
                parts = shuffled.split(update.minibatch)
                for first in range(0, len(parts), update.accumulate):
                    self._step(index, self.streamed(batch, round_, index, number), parts[first : first + update.accumulate], round_, sums)
        return {name: torch.stack(values).mean().item() for name, values in sums.items()}

    def streamed(self, batch: Batch, round_: int, index: int, number: int) -> Batch:
        """The batch with the noise that pass ``number`` of an update draws."""
        stream = (self.seed, seeds.LOSS, round_, index, number)
        return replace(batch, stream=stream)

    def _step(self, index: int, batch: Batch, parts: Sequence[Tensor], round_: int, sums: dict[str, list[Tensor]]) -> None:
        update, optimizer = self.updates[index], self.optimizers[index]
        parameters = self.policy.parameters(*update.learners)
        optimizer.zero_grad()
        total = sum(len(part) for part in parts)
        for part in parts:
            output = update.loss(self.policy, batch.index(part))
            (output.loss * (len(part) / total)).backward()
            for name, value in ((f"loss/{update.name}", output.loss.detach()), *output.metrics.items()):
                sums.setdefault(name, []).append(value)
        self._average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, update.clip)
        if not math.isfinite(norm):
            raise TrainingError(
                f"round {round_}: the gradient of {update.name!r} is not finite (loss {output.loss.item():.3g}); nothing was "
                f"updated. Try a smaller lr (now {update.lr:g}), fp32 precision, or look at the reward's scale"
            )
        self.steps[index] += 1
        for group in optimizer.param_groups:
            group["lr"] = update.lr_at(self.steps[index], round_)
        optimizer.step()
        # as large as the weights, and of no use until the next step
        optimizer.zero_grad()
        sums.setdefault(f"grad_norm/{update.name}", []).append(norm.detach())

    def _average_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self.mean is None:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for grads in buckets([parameter.grad for parameter in parameters if parameter.grad is not None], BUCKET):
            flat = self.mean(torch.cat([grad.flatten() for grad in grads]))
            parts = flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def tensors(self) -> dict[str, Tensor]:
        """The optimisers' state, for a checkpoint."""
        packed = {}
        for index, optimizer in enumerate(self.optimizers):
            packed |= checkpoint.pack_optimizer(f"optimizer/{index}", optimizer)
        return packed

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "opened": self.opened}

    def load(self, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
        for index, optimizer in enumerate(self.optimizers):
            checkpoint.unpack_optimizer(f"optimizer/{index}", optimizer, tensors)
        self.steps, self.opened = state["steps"], state["opened"]
