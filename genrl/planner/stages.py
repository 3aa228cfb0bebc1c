"""What a plan is made of: bytes that stay, and pieces of work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Bytes that stay from round to round, or through one: on the ``device``, on the ``cpu``, or there only ``before`` the first round."""

    name: str
    bytes: int
    place: str = "device"


@dataclass(frozen=True)
class Stage:
    """One piece of work and how often a round does it.

    Args:
        rows: samples in one piece; pieces: how many a round has, of one process, a smaller last one as its share.
        peak: bytes that live at once, all parts included; kept: those that autograd keeps from the forward pass to the backward pass.
        plain, learning: floating-point operations of a piece outside and inside of differentiated code.
        steps: optimiser steps a round; weights: what they update.
        every: the stage has its turn every so many rounds.
        update: index of the update that it is; diagnosed: of the one whose loss looks at fresh samples in it.
    """

    name: str
    rows: int
    pieces: float
    peak: int
    kept: int = 0
    plain: int = 0
    learning: int = 0
    steps: int = 0
    weights: int = 0
    every: int = 1
    update: int | None = None
    diagnosed: int | None = None


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found: the parts that stay, the stages of a round in order, and the network's weights."""

    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    weights: int
