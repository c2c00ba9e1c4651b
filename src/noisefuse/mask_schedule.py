# SPDX-License-Identifier: Apache-2.0
"""Schedules with one column: the probability that a token is masked, as a function of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .language.families import lie_within

__all__ = ["MaskSchedule", "cosine", "geometric", "linear", "llada", "log_linear"]


@dataclass(frozen=True)
class MaskSchedule:
    """A schedule of one column: the probability p(t) that a token is masked at time t, from 0, clean, to 1.

    For schedules of uniform tokens p is the probability that a token was drawn anew. alpha is 1 - p.

    Attributes:
        name: how it was made.
        p: t -> p, for float64 arrays.
        slope: t -> p'(t).
    """

    name: str
    p: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    slope: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def __call__(self, t: ArrayLike) -> NDArray[np.float64]:
        """Returns p at times in [0, 1], float64 of t's shape."""
        return np.asarray(np.clip(self.p(_times(t)), 0.0, 1.0))

    def weight(self, t: ArrayLike, kind: Literal["inverse", "elbo"] = "inverse") -> NDArray[np.float64]:
        """Returns the weight of a masked token in the loss at times t: 1 / p, or with "elbo" p' / p.

        1 / p is LLaDA's weight (Nie et al. 2025, equation 3). p' / p = -alpha' / (1 - alpha) makes the loss the
        negative evidence lower bound for uniform times (Sahoo et al. 2024, equation 10); for p = t both are 1 / t.
        Where p is 0 nothing is masked, and the weight is infinite.
        """
        if kind not in ("inverse", "elbo"):
            raise ValueError(f"kind = {kind!r}: expected 'inverse' or 'elbo'")
        with np.errstate(divide="ignore"):
            return np.asarray((1.0 if kind == "inverse" else self.slope(_times(t))) / self(t))

    def __repr__(self) -> str:
        return f"MaskSchedule({self.name})"


def _times(t: ArrayLike) -> NDArray[np.float64]:
    times = np.asarray(t, np.float64)
    if not lie_within(times, 0.0, 1.0):
        bad = times[~((times >= 0) & (times <= 1))].ravel()[0]
        raise ValueError(f"t = {bad}: expected times from 0, clean, to 1")
    return times


def linear() -> MaskSchedule:
    """p = t: alpha = 1 - t, which Sahoo et al. 2024, equation 90, call log-linear: sigma = -ln(1 - t) is the noise.

    Returns:
        A `MaskSchedule`.

    >>> nf.discrete.linear()([0.25, 1.0]).tolist()
    [0.25, 1.0]
    """
    return MaskSchedule("linear", lambda t: t, np.ones_like)


def llada(eps: float = 1e-3) -> MaskSchedule:
    """p = (1 - eps) t + eps: LLaDA's ``forward_process``, whose weight 1 / p is never infinite (Nie et al. 2025).

    Args:
        eps: the least probability, of time 0.

    Returns:
        A `MaskSchedule`.

    >>> round(float(nf.discrete.llada()(0.5)), 6)
    0.5005
    """
    eps = _between("eps", eps, 0.0, 1.0)
    return MaskSchedule(f"llada, eps={eps:g}", lambda t: (1 - eps) * t + eps, lambda t: np.full_like(t, 1 - eps))


def cosine() -> MaskSchedule:
    """p = cos(pi / 2 (1 - t)): MaskGIT's share of masked tokens (Chang et al. 2022), and the cosine schedule of MD4
    (Shi et al. 2024). It masks more than `linear` at all times.

    (MDLM's ``CosineNoise`` is another one, p = 1 - cos(pi / 2 t), which masks less.)

    Returns:
        A `MaskSchedule`.

    >>> round(float(nf.discrete.cosine()(0.5)), 4)
    0.7071
    """
    half = math.pi / 2
    return MaskSchedule("cosine", lambda t: np.cos(half * (1 - t)), lambda t: half * np.sin(half * (1 - t)))


def log_linear(eps: float = 1e-3) -> MaskSchedule:
    """p = (1 - eps) t, of the noise sigma = -ln(1 - (1 - eps) t): SEDD's and MDLM's ``LogLinearNoise`` (Lou et al.
    2024, appendix C.1). A share eps of the tokens is never masked.

    Args:
        eps: the share of tokens that is never masked, not even at time 1.

    Returns:
        A `MaskSchedule`.

    >>> round(float(nf.discrete.log_linear()(1.0)), 4)
    0.999
    """
    eps = _between("eps", eps, 0.0, 1.0)
    return MaskSchedule(f"log_linear, eps={eps:g}", lambda t: (1 - eps) * t, lambda t: np.full_like(t, 1 - eps))


def geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0) -> MaskSchedule:
    """p = 1 - exp(-sigma), sigma = sigma_min^(1 - t) sigma_max^t: SEDD's geometric noise (Lou et al. 2024, appendix
    C.1).

    Args:
        sigma_min, sigma_max: the noise at time 0 and at time 1.

    Returns:
        A `MaskSchedule`.

    >>> nf.discrete.geometric()([0.0, 1.0]).round(4).tolist()
    [0.0001, 1.0]
    """
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min = {low}, sigma_max = {high}: expected 0 < sigma_min < sigma_max")
    ratio = math.log(high / low)

    def sigma(t: Any) -> Any:
        return low * np.exp(ratio * t)

    name = f"geometric, {low:g} to {high:g}"
    return MaskSchedule(name, lambda t: -np.expm1(-sigma(t)), lambda t: ratio * sigma(t) * np.exp(-sigma(t)))


def _between(name: str, given: float, low: float, high: float) -> float:
    number = float(given)
    if not low <= number < high:
        raise ValueError(f"{name} = {given!r}: expected from {low:g} to below {high:g}")
    return number
