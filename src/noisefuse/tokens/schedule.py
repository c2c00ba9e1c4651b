# SPDX-License-Identifier: Apache-2.0
"""Schedules with one column: the probability that a token is masked, as a function of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ground.checks import check_choice, check_number, first_of, is_tracer, lie_within
from ..ground.docstrings import Shared, documented
from ..ground.libraries import library_of
from ..language.families import Formula

__all__ = ["MaskSchedule", "cosine", "geometric", "linear", "llada", "log_linear", "mdlm"]

_SHARED = Shared(returns="    A `MaskSchedule`.")


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
        """Returns p at times in [0, 1], float64 of t's shape. For times that JAX traces, it is JAX's array."""
        if is_tracer(t):
            return library_of(t).on_host(self, t, t.shape)  # type: ignore[union-attr]
        return np.asarray(np.clip(self.p(_times(t)), 0.0, 1.0))

    def weight(self, t: ArrayLike, kind: Literal["inverse", "elbo"] = "inverse") -> NDArray[np.float64]:
        """Returns the weight of a masked token in the loss at times t: 1 / p, or with "elbo" p' / p.

        1 / p is LLaDA's weight (Nie et al. 2025, equation 3). p' / p = -alpha' / (1 - alpha) makes the loss the
        negative evidence lower bound for uniform times (Sahoo et al. 2024, equation 10); for p = t both are 1 / t.
        Where p is 0 nothing is masked, and the weight is infinite.
        """
        check_choice("kind", kind, ("inverse", "elbo"))
        if is_tracer(t):
            return library_of(t).on_host(partial(self.weight, kind=kind), t, t.shape)  # type: ignore[union-attr]
        with np.errstate(divide="ignore"):
            return np.asarray((1.0 if kind == "inverse" else self.slope(_times(t))) / self(t))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """Returns the noise sigma = -ln(1 - p) at times t, which networks of MDLM and SEDD are told; infinite where p
        is 1."""
        if is_tracer(t):
            return library_of(t).on_host(self.sigma, t, t.shape)  # type: ignore[union-attr]
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log1p(-self(t)))

    def __repr__(self) -> str:
        return f"MaskSchedule({self.name})"


def _times(t: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(t)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"t: expected times, got {array.dtype if array.dtype != object else repr(t)}")
    times = array.astype(np.float64)
    if not lie_within(times, 0.0, 1.0):
        first = first_of("t", ~((times >= 0) & (times <= 1)), times)
        raise ValueError(f"{first}: expected times from 0, clean, to 1")
    return times


def _straight(name: str, slope: float, first: float) -> MaskSchedule:
    return MaskSchedule(name, Formula(_line, (slope, first)), Formula(_slope_of_line, (slope,)))


def _line(slope: float, first: float, t: Any) -> Any:
    return slope * t + first


def _slope_of_line(slope: float, t: Any) -> Any:
    return np.full_like(t, slope)


@documented(_SHARED)
def linear() -> MaskSchedule:
    """p = t: alpha = 1 - t, which Sahoo et al. 2024, equation 90, call log-linear: sigma = -ln(1 - t) is the noise.

    >>> nf.discrete.linear()([0.25, 1.0]).tolist()
    [0.25, 1.0]
    """
    return _straight("linear", 1.0, 0.0)


@documented(_SHARED)
def llada(eps: float = 1e-3) -> MaskSchedule:
    """p = (1 - eps) t + eps: LLaDA's ``forward_process``, whose weight 1 / p is never infinite (Nie et al. 2025).

    Args:
        eps: the least probability, at time 0.

    >>> round(float(nf.discrete.llada()(0.5)), 6)
    0.5005
    """
    eps = check_number("eps", eps, 0, below=1)
    return _straight(f"llada, eps={eps:g}", 1 - eps, eps)


@documented(_SHARED)
def cosine() -> MaskSchedule:
    """p = cos(pi / 2 (1 - t)): MaskGIT's share of masked tokens (Chang et al. 2022), and the cosine schedule of MD4
    (Shi et al. 2024). It masks more than `linear` at all times.

    (MDLM's ``CosineNoise`` is another one, ``mdlm("cosine")``, which masks less.)

    >>> round(float(nf.discrete.cosine()(0.5)), 4)
    0.7071
    """
    return MaskSchedule("cosine", _cosine, _cosine_slope)


def _cosine(t: Any) -> Any:
    return np.cos(math.pi / 2 * (1 - t))


def _cosine_slope(t: Any) -> Any:
    return math.pi / 2 * np.sin(math.pi / 2 * (1 - t))


@documented(_SHARED)
def log_linear(eps: float = 1e-3) -> MaskSchedule:
    """p = (1 - eps) t, of the noise sigma = -ln(1 - (1 - eps) t): SEDD's and MDLM's ``LogLinearNoise`` (Lou et al.
    2024, appendix C.1). A share eps of the tokens is never masked.

    Args:
        eps: the share of tokens that is never masked, not even at time 1.

    >>> round(float(nf.discrete.log_linear()(1.0)), 4)
    0.999
    """
    eps = check_number("eps", eps, 0, below=1)
    return _straight(f"log_linear, eps={eps:g}", 1 - eps, 0.0)


@documented(_SHARED)
def geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0) -> MaskSchedule:
    """p = 1 - exp(-sigma), sigma = sigma_min^(1 - t) sigma_max^t: SEDD's geometric noise (Lou et al. 2024, appendix
    C.1).

    Args:
        sigma_min, sigma_max: the noise at time 0 and at time 1.

    >>> nf.discrete.geometric()([0.0, 1.0]).round(4).tolist()
    [0.0001, 1.0]
    """
    low, high = check_number("sigma_min", sigma_min), check_number("sigma_max", sigma_max)
    if not 1e-100 <= low < high <= 1e100:
        raise ValueError(f"sigma_min = {low}, sigma_max = {high}: expected 1e-100 <= sigma_min < sigma_max <= 1e100")
    ratio = math.log(high / low)
    name = f"geometric, {low:g} to {high:g}"
    return MaskSchedule(name, Formula(_geometric, (low, ratio)), Formula(_geometric_slope, (low, ratio)))


def _geometric(low: float, ratio: float, t: Any) -> Any:
    return -np.expm1(-low * np.exp(ratio * t))


def _geometric_slope(low: float, ratio: float, t: Any) -> Any:
    sigma = low * np.exp(ratio * t)
    return ratio * sigma * np.exp(-sigma)


@documented(_SHARED)
def mdlm(kind: Literal["loglinear", "cosine", "cosinesqr", "linear", "geometric"], eps: float = 1e-3) -> MaskSchedule:
    """MDLM's schedules by the names of its ``get_noise`` (Sahoo et al. 2024, "Simple and effective masked diffusion
    language models", appendix E.1): "cosine", p = (1 - eps) (1 - cos(pi / 2 t)); "cosinesqr", p = (1 - eps) sin^2(pi /
    2 t); "linear", sigma = 10 t; "loglinear", which is `log_linear(eps)`; "geometric", which is `geometric(1e-3, 1)`.

    Args:
        kind: the name.
        eps: of the first, second and fourth, the share of tokens that is never masked.

    >>> nf.discrete.mdlm("cosine")([0.5, 1.0]).round(4).tolist()
    [0.2926, 0.999]
    """
    eps = check_number("eps", eps, 0, below=1)
    check_choice("kind", kind, ("loglinear", "cosine", "cosinesqr", "linear", "geometric"))
    if kind in ("loglinear", "geometric"):
        return log_linear(eps) if kind == "loglinear" else geometric(1e-3, 1.0)
    if kind == "linear":
        return MaskSchedule("mdlm, linear", _even_sigma, _even_sigma_slope)
    numbers = (2 * (1 - eps), math.pi / 4) if kind == "cosine" else (1 - eps, math.pi / 2)
    return MaskSchedule(f"mdlm, {kind}, eps={eps:g}", Formula(_sine, numbers), Formula(_sine_slope, numbers))


def _even_sigma(t: Any) -> Any:
    return -np.expm1(-10 * t)


def _even_sigma_slope(t: Any) -> Any:
    return 10 * np.exp(-10 * t)


def _sine(most: float, angle: float, t: Any) -> Any:
    return most * np.sin(angle * t) ** 2  # 1 - cos a = 2 sin^2(a / 2)


def _sine_slope(most: float, angle: float, t: Any) -> Any:
    return most * angle * np.sin(2 * angle * t)
