"""Discretised samplers, seen as Markov chains: from ``x`` at ``sigma`` and the velocity there to the law of ``x`` at ``sigma_next``.

All arithmetic is float32 whatever the model's precision.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from genrl.path import Sigma, expand, shift, to_x0


@dataclass(frozen=True)
class Step:
    """The law of the next state: ``mean [B, ...]`` and ``std`` (0: deterministic)."""

    mean: Tensor
    std: Sigma = 0.0


@runtime_checkable
class Chain(Protocol):
    """``sigmas``: levels from noise to data, strictly decreasing, ``T + 1`` of them; ``step``: the law of one transition."""

    @property
    def sigmas(self) -> tuple[float, ...]: ...

    def step(self, x: Tensor, v: Tensor, sigma: Sigma, sigma_next: Sigma) -> Step: ...


def check_grid(sigmas: tuple[float, ...]) -> None:
    """Raise ``ValueError`` unless the levels fall strictly from at most 1 to at least 0."""
    falls = all(a > b for a, b in itertools.pairwise(sigmas))
    if len(sigmas) < 2 or not falls or sigmas[0] > 1 or sigmas[-1] < 0:
        raise ValueError(f"sigmas must fall strictly, within [0, 1], over at least one step; got {list(sigmas)}")


@dataclass(frozen=True)
class OdeChain:
    """Euler steps of the probability-flow ODE: ``x' = x + (sigma' - sigma) v``; what diffusers' FlowMatchEuler scheduler does."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        check_grid(self.sigmas)

    def step(self, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Sigma, sigma_next: Sigma) -> Step:
        x = x.float()
        return Step(x + (expand(sigma_next, x) - expand(sigma, x)) * v.float())


@dataclass(frozen=True)
class RenoiseChain:
    """The sampler of few-step students: predict x0, add fresh noise of the next level.

        x' ~ N((1 - sigma') x0, sigma'^2 I),    x0 = x - sigma v

    DMD2 and Flash-DMD sample so (there in a variance-preserving scale), and LCM; diffusers' FlowMatchLCM and LCM schedulers do
    the same given the same grid. A last level of 0 makes the last step the prediction itself.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        check_grid(self.sigmas)

    def step(self, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Sigma, sigma_next: Sigma) -> Step:
        x0 = to_x0(x.float(), v.float(), sigma)
        return Step((1 - expand(sigma_next, x0)) * x0, sigma_next)


def trailing_grid(steps: int, factor: float = 3.0) -> tuple[float, ...]:
    """A student's levels: even steps down from pure noise, shifted as the teacher was trained; ``steps + 1``, the last one 0.

    SD3 with its shift of 3: {1, .9, .75, .5} for four steps. diffusers' own grid for as few steps is another one, and wrong for
    students: {1, .858, .602, .009}. The grid is ours; Flash-DMD does not give SD3's.
    """
    return tuple(float(shift(1 - k / steps, factor)) for k in range(steps + 1))
