"""Losses on velocities at re-noised samples, each in as few passes over the latents as it needs.

    x_sigma = (1 - sigma) x0 + sigma eps        u = eps - x0

``matching`` is the loss of ``genrl.losses.weighted_matching`` for each sample, all its weightings alike: with ``|.|^2`` a mean over
latent dimensions and ``v = v_0 + g (v_c - v_0)`` the guided velocity,

    sum_k weight_k |a_k v + b_k u + c_k v_old + d_k v_ref|^2 + beta |v_c - v_ref|^2

``surrogate`` is that of ``genrl.losses.distribution_matching``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genrl.kernels.dispatch import fused, wide
from genrl.kernels.noise import normal_reference

SMALLEST_ERROR = 1e-5
"""What an endpoint's error is divided by at least: a sample without error has no gradient, not an infinite one."""


class Square(NamedTuple):
    """``weight |v v + u u + old v_old + ref v_ref|^2``: a weight for each sample ``[B]`` and the number before each field.

    By default ``weight |v - u|^2``.
    """

    weight: Tensor
    v: float = 1.0
    u: float = -1.0
    old: float = 0.0
    ref: float = 0.0


def renoise(x0: Tensor, seed: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``x_sigma`` and ``u = eps - x0``, both ``[B, ...]`` float32, with the noise that ``genrl.kernels.noise.normal`` draws.

    No gradient: the samples ``x0 [B, ...]`` are data. ``seed [B]`` int64, ``sigma [B]``.
    """
    x0 = x0.detach()
    if fused(x0, seed, sigma):
        from genrl.kernels._triton_matching import renoise_triton

        return renoise_triton(x0, seed, sigma)
    x0, eps = x0.float(), normal_reference(seed, x0[0].numel()).view_as(x0)
    return torch.lerp(x0, eps, sigma.view(-1, *[1] * (x0.ndim - 1)).float()), eps - x0


def matching(
    v: Tensor,
    u: Tensor,
    squares: Sequence[Square],
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    beta: float = 0.0,
    guidance: float = 1.0,
    sigma: Tensor | None = None,
) -> Tensor:
    """The loss above for each sample, ``[B]`` float32, with gradient to ``v`` alone.

    Args:
        v: the network's answer ``[B, ...]``, or ``[2B, ...]`` (unconditional, then conditional) under guidance.
        u, old, ref: the velocities beside it ``[B, ...]``; ``ref`` is needed where ``beta`` is positive.
        squares: one or two.
        sigma: ``[B]``; where given, errors are those of the endpoint ``x0 = x - sigma v``, each sample's divided by its own mean:
            ``sigma^2 |e|^2 / max(mean |sigma e|, 1e-5)`` in place of each ``|e|^2`` (DiffusionNFT), the divisor without gradient.

    Raises:
        ValueError: fields of another shape, or one that is missing.
    """
    if not 1 <= len(squares) <= 2:
        raise ValueError(f"one or two squares; got {len(squares)}")
    branches = 1 if guidance == 1.0 else 2
    if v.shape != (branches * len(u), *u.shape[1:]):
        raise ValueError(f"the velocity at guidance {guidance:g} must be {[branches * len(u), *u.shape[1:]]}; got {list(v.shape)}")
    needed = {"old": any(square.old for square in squares), "ref": beta > 0 or any(square.ref for square in squares)}
    for name, field in (("old", old), ("ref", ref)):
        if needed[name] and (field is None or field.shape != u.shape):
            raise ValueError(f"{name} must be {list(u.shape)}; got {None if field is None else list(field.shape)}")
    old, ref = old if needed["old"] else None, ref if needed["ref"] else None
    if fused(v, u):
        from genrl.kernels._triton_matching import Matching

        return Matching.apply(v, u, old, ref, sigma, beta, guidance, squares)
    return matching_reference(v, u, squares, old, ref, beta, guidance, sigma)


def matching_reference(
    v: Tensor,
    u: Tensor,
    squares: Sequence[Square],
    old: Tensor | None,
    ref: Tensor | None,
    beta: float,
    guidance: float,
    sigma: Tensor | None,
) -> Tensor:
    """In float64 if ``v`` is."""
    v_c = wide(v)
    if guidance != 1.0:
        v_0, v_c = v_c.chunk(2)
    guided = v_c if guidance == 1.0 else torch.lerp(v_0, v_c, guidance)
    fields = [None if field is None else wide(field.detach()) for field in (u, old, ref)]
    terms = v_c.new_zeros(len(v_c))
    for weight, *numbers in squares:
        error = guided if numbers[0] == 1.0 else numbers[0] * guided
        for number, field in zip(numbers[1:], fields, strict=True):
            if number and field is not None:
                error = error.add(field, alpha=number)
        square = _mean(error.square())
        if sigma is not None:
            square = sigma.square() * square / (sigma * _mean(error.detach().abs())).clamp(min=SMALLEST_ERROR)
        terms = terms + weight.detach() * square
    if beta and fields[2] is not None:
        terms = terms + beta * _mean((v_c - fields[2]).square())
    return terms


def surrogate(x: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """With ``g = (x0_fake - x0_teacher) / mean |x - x0_teacher|``, the mean over a sample's latent dimensions: the loss

        L = 1/2 mean (x - sg[x - g])^2,     dL/dx = g / numel

    a scalar, and ``g [B, ...]`` in the type of ``x``. What is not finite in ``g`` is 0: a sample on the teacher has no gradient.

    The reference works in double precision, as DMD2 does, and rounds ``x - g`` to the type of ``x``: in its loss and gradient an element
    of ``g`` has lost up to half a unit of ``x``, 2^-24 of it in float32. The Triton form needs neither. A difference of two float32
    numbers is rounded once, by 2^-24 of itself however small it is, and ``x - (x - g)`` is ``g``: its loss is ``1/2 mean g^2``.
    """
    if fused(x, x0_fake, x0_teacher):
        from genrl.kernels._triton_surrogate import Surrogate

        return Surrogate.apply(x, x0_fake, x0_teacher)
    return surrogate_reference(x, x0_fake, x0_teacher)


def surrogate_reference(x: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """In float64."""
    with torch.no_grad():
        x_d, fake, teacher = x.double(), x0_fake.double(), x0_teacher.double()
        scale = _mean((x_d - teacher).abs()).view(-1, *[1] * (x.ndim - 1))
        g = ((fake - teacher) / scale).nan_to_num(0.0, 0.0, 0.0)
        target = (x_d - g).to(x.dtype)
    return 0.5 * (x - target).square().mean(), g.to(x.dtype)


def _mean(field: Tensor) -> Tensor:
    """``[B, ...]`` to ``[B]``."""
    return field.flatten(1).mean(1)
