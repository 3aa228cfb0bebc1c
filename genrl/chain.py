"""Discretised samplers, seen as Markov chains: from ``x`` at a level and the velocity there to the law of ``x`` at the next level.

Every one of them is affine with the same spread everywhere: a chain is a grid of levels and three numbers for each of its steps.

=============  ===================================================  ====================================================
chain          law of ``x'`` at ``s' < s``, with ``d = s' - s``     source
=============  ===================================================  ====================================================
``ode``        x + d v                                              Euler; FlowMatchEuler of diffusers
``sde``        x + d (v + g^2 / (2 s) (x + (1 - s) v)),             Flow-GRPO (arXiv 2505.05470), eq. 9 with t = s;
               spread g sqrt(-d), g = eta sqrt(s / (1 - s))         at s = 1 the level below stands in 1 - s, as in its code
``cps``        (1 - s') x0 + s' cos(eta pi / 2) eps,                Coefficients-Preserving Sampling (arXiv 2509.05952):
               spread s' sin(eta pi / 2)                            keeps the noise level, so its samples are clean
``renoise``    (1 - s') x0, spread s'                               DMD2, LCM; FlowMatchLCM and LCM of diffusers
=============  ===================================================  ====================================================

with ``x0 = x - s v`` and ``eps = x + (1 - s) v``. As steps grow small ``ode`` and ``sde`` keep the marginals of the path; ``cps`` and
``renoise`` keep the levels of signal and noise, but predictions have less spread than what they predict.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from genrl.path import shift


class Law(NamedTuple):
    """``x' ~ N(keep x + move v, std^2 I)``; ``std`` 0 is deterministic."""

    keep: float
    move: float
    std: float = 0.0

    def mean(self, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """In float32 whatever the model's precision."""
        return self.keep * x.float() + self.move * v.float()


@runtime_checkable
class Chain(Protocol):
    """``sigmas``: levels from noise to data, strictly decreasing, ``T + 1`` of them; ``law(k)``: how step k goes on."""

    @property
    def sigmas(self) -> tuple[float, ...]: ...

    def law(self, step: int) -> Law: ...


def check_grid(sigmas: tuple[float, ...]) -> None:
    """Raise ``ValueError`` unless the levels fall strictly from at most 1 to at least 0."""
    falls = all(a > b for a, b in itertools.pairwise(sigmas))
    if len(sigmas) < 2 or not falls or sigmas[0] > 1 or sigmas[-1] < 0:
        raise ValueError(f"sigmas must fall strictly, within [0, 1], over at least one step; got {list(sigmas)}")


@dataclass(frozen=True)
class OdeChain:
    """Euler steps of the probability-flow ODE: ``x' = x + (sigma' - sigma) v``."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        check_grid(self.sigmas)

    def law(self, step: int) -> Law:
        return Law(1.0, self.sigmas[step + 1] - self.sigmas[step])


@dataclass(frozen=True)
class _Stochastic(ABC):
    """Noise of strength ``eta`` at the steps ``window`` (all of them if empty), Euler steps elsewhere (MixGRPO's window).

    Raises:
        ValueError: a grid that does not fall, an ``eta`` that is not positive, or a step that the grid lacks.
    """

    sigmas: tuple[float, ...]
    eta: float = 0.7
    window: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_grid(self.sigmas)
        if self.eta <= 0:
            raise ValueError(f"a stochastic chain needs a positive eta; got {self.eta}: take OdeChain for none")
        if any(not 0 <= k < len(self.sigmas) - 1 for k in self.window):
            raise ValueError(f"the window {list(self.window)} names steps that a chain of {len(self.sigmas) - 1} lacks")

    def law(self, step: int) -> Law:
        if self.window and step not in self.window:
            return Law(1.0, self.sigmas[step + 1] - self.sigmas[step])
        return self._noisy(step, self.sigmas[step], self.sigmas[step + 1])

    @abstractmethod
    def _noisy(self, step: int, sigma: float, after: float) -> Law:
        """The law of a stochastic step between two levels."""


@dataclass(frozen=True)
class SdeChain(_Stochastic):
    """Euler-Maruyama steps of the reverse SDE with the marginals of the flow, noise ``eta sqrt(sigma / (1 - sigma))``."""

    def _noisy(self, step: int, sigma: float, after: float) -> Law:
        variance = self.eta**2 * sigma / (1 - (sigma if sigma < 1 else after))
        delta, drift = after - sigma, variance / (2 * sigma)
        return Law(1 + delta * drift, delta * (1 + drift * (1 - sigma)), math.sqrt(-delta * variance))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigmas[0] == 1 and self.sigmas[1] == 0:
            raise ValueError("an SDE of a single step from 1 to 0 has infinite noise; take more steps")


@dataclass(frozen=True)
class CpsChain(_Stochastic):
    """Part of the predicted noise is exchanged for fresh noise, so that the level of each state is exactly the grid's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta > 1:
            raise ValueError(f"eta of CPS is the share of noise that is exchanged, at most 1; got {self.eta}")

    def _noisy(self, step: int, sigma: float, after: float) -> Law:
        kept, std = after * math.cos(self.eta * math.pi / 2), after * math.sin(self.eta * math.pi / 2)
        return Law(1 - after + kept, (1 - sigma) * kept - sigma * (1 - after), std)


@dataclass(frozen=True)
class RenoiseChain:
    """The sampler of few-step students: predict x0, add fresh noise of the next level.

        x' ~ N((1 - sigma') x0, sigma'^2 I),    x0 = x - sigma v

    DMD2 and Flash-DMD sample so (there in a variance-preserving scale), and LCM. A last level of 0 makes the last step the
    prediction itself.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        check_grid(self.sigmas)

    def law(self, step: int) -> Law:
        sigma, after = self.sigmas[step], self.sigmas[step + 1]
        return Law(1 - after, -(1 - after) * sigma, after)


def trailing_grid(steps: int, factor: float = 3.0) -> tuple[float, ...]:
    """A student's levels: even steps down from pure noise, shifted as the teacher was trained; ``steps + 1``, the last one 0.

    SD3 with its shift of 3: {1, .9, .75, .5} for four steps. diffusers' own grid for as few steps is another one, and wrong for
    students: {1, .858, .602, .009}. The grid is ours; Flash-DMD does not give SD3's.
    """
    return tuple(float(shift(1 - k / steps, factor)) for k in range(steps + 1))


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance ``scale`` at levels in ``[low, high]``, none elsewhere (guidance interval, arXiv 2404.07724)."""

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"guidance acts between levels low and high in [0, 1]; got {self.low} to {self.high}")

    def at(self, sigma: float) -> float:
        return self.scale if self.low <= sigma <= self.high else 1.0
