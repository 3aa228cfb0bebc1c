"""Objectives: pure functions of policy and batch. Each says in ``requires`` which signals it reads."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from genrl.policy import FlowPolicy
from genrl.types import Batch, LossOutput


@runtime_checkable
class Loss(Protocol):
    """Pure objective. ``requires``: the signals it reads. It may also offer ``diagnose(policy, batch) -> metrics``, called
    once a round on fresh samples, before any update, and ``roles``, the roles it evaluates."""

    @property
    def requires(self) -> tuple[str, ...]: ...

    def __call__(self, policy: FlowPolicy, batch: Batch) -> LossOutput: ...
