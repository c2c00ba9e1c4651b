# SPDX-License-Identifier: Apache-2.0
"""Families of schedules with a continuous time: alpha and sigma as functions of t, ours and those of users."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground.checks import lie_within

Array: TypeAlias = npt.NDArray[np.float64]
AlphaSigma: TypeAlias = tuple[Array, Array]


class Family(NamedTuple):
    """A family's own time, and its levels.

    Attributes:
        symbol: of the time.
        first, last: the cleanest and the noisiest time.
        at: at(t, **parameters) gives alpha and sigma of a float, or of float64 (n,). Its results are not checked.
        slopes: slopes(t, alpha, sigma, **parameters) gives their derivatives there; None: they are not known.
    """

    symbol: str
    first: float
    last: float
    at: Callable[..., Any]
    slopes: Callable[..., Any] | None = None


# ---- ours --------------------------------------------------------------------------------------------------


def cosine(u: Array, *, s: float, **_: float) -> AlphaSigma:
    """alpha = cos((u + s) k) / cos(s k), k = pi / 2 / (1 + s); as sines nothing cancels, and alpha(1) = 0.

    cos((u + s) k) = sin((1 - u) k),  cos(s k) = sin(k),  cos^2 x - cos^2 y = sin(y - x) sin(y + x)
    """
    k = math.pi / 2 / (1 + s)
    alpha = np.sin((1 - u) * k) / math.sin(k)
    sigma = np.sqrt(np.sin(u * k) * np.sin((u + 2 * s) * k)) / math.sin(k)
    return alpha, sigma


def _cosine_slopes(u: Array, alpha: Array, sigma: Array, *, s: float, **_: float) -> AlphaSigma:
    k = math.pi / 2 / (1 + s)
    slope = -k * np.sin((u + s) * k) / math.sin(k)
    return slope, -alpha * slope / sigma  # alpha^2 + sigma^2 = 1


def flow(s: Array, *, shift: float) -> AlphaSigma:
    of_data, of_noise = 1 - s, shift * s
    scale = of_data + of_noise
    return of_data / scale, of_noise / scale


def _flow_slopes(s: Array, alpha: Array, sigma: Array, *, shift: float) -> AlphaSigma:
    scale = 1 - s + shift * s  # without a shift exactly 1, after rounding
    slope = shift / (scale * scale)
    return -slope, slope


def exploding(sigma: Array, **_: float) -> AlphaSigma:
    return sigma**0, sigma  # ones, also of one float


def _exploding_slopes(t: Array, alpha: Array, sigma: Array, **_: float) -> AlphaSigma:
    return 0 * t, t**0


def trig(t: Array) -> AlphaSigma:
    """alpha = cos(t pi / 2), as a sine, which is 0 at t = 1."""
    return np.sin((1 - t) * (math.pi / 2)), np.sin(t * (math.pi / 2))


def _trig_slopes(t: Array, alpha: Array, sigma: Array) -> AlphaSigma:
    return -math.pi / 2 * sigma, math.pi / 2 * alpha


def vp_linear(t: Array, *, beta_min: float, beta_max: float) -> AlphaSigma:
    return _of_integral(t * (beta_min + 0.5 * t * (beta_max - beta_min)))


def _vp_linear_slopes(t: Array, alpha: Array, sigma: Array, *, beta_min: float, beta_max: float) -> AlphaSigma:
    return _of_beta(beta_min + t * (beta_max - beta_min), alpha, sigma)


def imagen_linear(t: Array) -> AlphaSigma:
    return _of_integral(1e-4 + 10 * t * t)


def _imagen_linear_slopes(t: Array, alpha: Array, sigma: Array) -> AlphaSigma:
    return _of_beta(20 * t, alpha, sigma)


def imagen_cosine(t: Array, *, s: float) -> AlphaSigma:
    """cos and sin of (t + s) k, k = pi / 2 / (1 + s), the first as a sine, which is 0 at t = 1."""
    k = math.pi / 2 / (1 + s)
    return np.sin((1 - t) * k), np.sin((t + s) * k)


def _imagen_cosine_slopes(t: Array, alpha: Array, sigma: Array, *, s: float) -> AlphaSigma:
    k = math.pi / 2 / (1 + s)
    return -k * sigma, k * alpha


def _of_integral(b: Array) -> AlphaSigma:
    """alpha^2 = e^-b and sigma^2 = 1 - e^-b, b the integral of beta."""
    return np.exp(-0.5 * b), np.sqrt(-np.expm1(-b))


def _of_beta(beta: Array, alpha: Array, sigma: Array) -> AlphaSigma:
    """The slopes of `_of_integral`, where beta is b's."""
    return -0.5 * beta * alpha, 0.5 * beta * alpha * alpha / sigma


FAMILIES: dict[str, Family] = {
    "cosine": Family("u", 0.0, 1.0, cosine, _cosine_slopes),
    "flow": Family("s", 0.0, 1.0, flow, _flow_slopes),
    "karras": Family("sigma", 0.0, math.inf, exploding, _exploding_slopes),
    "exponential": Family("sigma", 0.0, math.inf, exploding, _exploding_slopes),
    "edm": Family("sigma", 0.0, math.inf, exploding, _exploding_slopes),
    "trig": Family("t", 0.0, 1.0, trig, _trig_slopes),
    "vp_linear": Family("t", 0.0, 1.0, vp_linear, _vp_linear_slopes),
    "imagen_linear": Family("t", 0.0, 1.0, imagen_linear, _imagen_linear_slopes),
    "imagen_cosine": Family("t", 0.0, 1.0, imagen_cosine, _imagen_cosine_slopes),
}
OURS = frozenset(FAMILIES)


@dataclass(frozen=True, slots=True)
class Formula:
    """A module's function of numbers and t, with these numbers. It can be pickled, and compared by value."""

    function: Callable[..., Any]
    numbers: tuple[float, ...]

    def __call__(self, t: Any) -> Any:
        return self.function(*self.numbers, t)


# ---- users' ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Functions:
    """alpha and sigma as functions of users', whose results are checked at each call: (t, **parameters) -> both."""

    alpha: Callable[..., Any]
    sigma: Callable[..., Any]

    def __call__(self, t: Any, **parameters: float) -> tuple[Any, Any]:
        if type(t) is float:
            return self._at_one(t, parameters)
        alpha = self.alpha(t.copy(), **parameters)  # a copy, which a function may write to
        sigma = self.sigma(t.copy(), **parameters)
        if _good(alpha, t, 1.0) and _good(sigma, t, _MAX):
            return alpha, sigma
        return _mended("alpha", alpha, t, 1.0), _mended("sigma", sigma, t, _MAX)

    def _at_one(self, t: float, parameters: dict[str, float]) -> tuple[float, float]:
        """Returns alpha and sigma at a number, in half of the time."""
        alpha, sigma = self.alpha(np.array([t]), **parameters), self.sigma(np.array([t]), **parameters)
        plain = type(alpha) is type(sigma) is np.ndarray and alpha.dtype is sigma.dtype is _FLOAT64
        if plain and alpha.shape == sigma.shape == (1,):
            a, s = alpha.item(), sigma.item()
            if 0 <= a <= 1 and 0 <= s <= _MAX:
                return a, s
        one = np.array([t])
        return _mended("alpha", alpha, one, 1.0).item(), _mended("sigma", sigma, one, _MAX).item()


@dataclass(frozen=True)
class Slopes:
    """The derivatives of `Functions`, as functions of users': (t, alpha, sigma, **parameters) -> both."""

    alpha: Callable[..., Any]
    sigma: Callable[..., Any]

    def __call__(self, t: Any, alpha: Any, sigma: Any, **parameters: float) -> AlphaSigma:
        times = np.array(t, np.float64, ndmin=1)
        d_alpha, d_sigma = (
            as_shaped(f"the derivative of {name}", function(times.copy(), **parameters), times)
            for name, function in (("alpha", self.alpha), ("sigma", self.sigma))
        )
        return (d_alpha[0], d_sigma[0]) if type(t) is float else (d_alpha, d_sigma)


def with_slopes(family: Family, parameters: dict[str, float], t: Any) -> tuple[Any, Any, Any, Any]:
    """Returns alpha, sigma and their derivatives at a float t, or at unchecked float64 (n,). ValueError: a derivative
    is infinite. A message says at which t."""
    assert family.slopes is not None
    alpha, sigma = family.at(t, **parameters)
    with np.errstate(all="ignore"):
        d_alpha, d_sigma = family.slopes(t, alpha, sigma, **parameters)
    if type(t) is not float or not (abs(d_alpha) <= _MOST and abs(d_sigma) <= _MOST):  # one number's check is short
        times = np.asarray(t)
        check_finite("the derivative of alpha", np.asarray(d_alpha), times)
        check_finite("the derivative of sigma", np.asarray(d_sigma), times)
    return alpha, sigma, d_alpha, d_sigma


_MAX = sys.float_info.max
_FLOAT64 = np.dtype(np.float64)


def _good(values: Any, t: Array, most: float) -> bool:
    """Tells whether a function's result can be taken as it is: a check of a microsecond."""
    if type(values) is not np.ndarray or values.dtype is not _FLOAT64 or values.shape != t.shape:
        return False
    return values.flags.c_contiguous and lie_within(values, 0, most)


def _mended(name: str, values: Any, t: Array, most: float) -> Array:
    """Returns a function's result as float64 of t's shape, or raises what is wrong with it."""
    array = as_shaped(name, values, t)
    if not lie_within(array, 0, most):
        k = np.flatnonzero(~((array >= 0) & (array <= most)))[0]
        expected = "in [0, 1]" if most == 1 else "of at least 0, and finite"
        raise ValueError(f"{name}: expected values {expected}, got {array.item(k)} at t = {t.item(k)}")
    return array


def as_shaped(name: str, values: Any, t: Array) -> Array:
    """Returns a function's result in float64, contiguous. ValueError: it has not t's shape, or holds no floats."""
    array = np.asarray(values)
    if array.shape != t.shape or array.dtype.kind != "f":
        expected = f"float64 of shape {t.shape}, as t has"
        raise ValueError(f"{name}: expected a function that returns {expected}, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array, np.float64)


def check_finite(what: str, values: Array, t: Array) -> Array:
    """Returns the values. ValueError: one does not fit float32, to which kernels round coefficients."""
    if not lie_within(values, -_MOST, _MOST):
        k = np.flatnonzero(~(np.abs(values) <= _MOST))[0]
        expected = "expected a finite number of float32's range; leave that time out"
        raise ValueError(f"{what} is {values.item(k)} at t = {t.item(k)}: {expected}")
    return values


_MOST = float(np.finfo(np.float32).max)

POINTS = 4097  # at which the functions of a family are looked at


def checked(family: Family, parameters: dict[str, float]) -> None:
    """Raises ValueError if alpha leaves [0, 1], sigma is negative, or alpha / sigma does not fall all the way."""
    t = np.linspace(family.first, family.last, POINTS)
    alpha, sigma = family.at(t, **parameters)
    ratio = log_snr(alpha, sigma)
    falling = ratio[1:] < ratio[:-1]
    inside = np.isfinite(ratio[1:-1])
    if not falling.all() or not inside.all():
        k = np.flatnonzero(~falling)[0] if not falling.all() else np.flatnonzero(~inside)[0] + 1
        raise ValueError(
            "alpha / sigma: expected a ratio that falls strictly, and is 0 or infinite at the ends alone; it goes from "
            f"{_ratio(alpha[k], sigma[k])} at t = {t[k]} to {_ratio(alpha[k + 1], sigma[k + 1])} at t = {t[k + 1]}"
        )
    if family.slopes is None:
        return
    levels, slopes = np.split(np.array(with_slopes(family, parameters, t[1:])), 2)  # at clean data they may be infinite
    for name, level, slope in zip(("alpha", "sigma"), levels, slopes, strict=True):
        rise, integral = level[-1] - level[0], np.diff(t[1:]) @ (slope[1:] + slope[:-1]) / 2
        if abs(rise - integral) > 0.01 * np.abs(np.diff(level)).sum() + 1e-9:
            raise ValueError(
                f"derivatives: expected those of alpha and sigma; the one of {name} makes it rise by {integral:.6g} "
                f"from t = {t[1]:.6g} to {t[-1]:.6g}, and it rises by {rise:.6g}"
            )


def time_at(family: Family, parameters: dict[str, float], log_snrs: Array) -> Array:
    """The times at which log(alpha^2 / sigma^2) has these values, by bisection: to the last bit but two of t."""
    if log_snrs.ndim == 0:
        return np.asarray(_time_at_one(family, parameters, log_snrs.item()))
    low, high = np.full(log_snrs.shape, family.first), np.full(log_snrs.shape, family.last)
    for _ in range(60):
        t = 0.5 * (low + high)
        cleaner = log_snr(*family.at(t, **parameters)) > log_snrs
        low, high = np.where(cleaner, t, low), np.where(cleaner, high, t)
    middle: Array = 0.5 * (low + high)
    return middle


def _time_at_one(family: Family, parameters: dict[str, float], log_snr: float) -> float:
    """Does `time_at` for one value, in a tenth of its time."""
    low, high = family.first, family.last
    for _ in range(60):
        t = 0.5 * (low + high)
        alpha, sigma = family.at(t, **parameters)
        cleaner = sigma == 0 or (alpha > 0 and 2 * (math.log(alpha) - math.log(sigma)) > log_snr)
        low, high = (t, high) if cleaner else (low, t)
    return 0.5 * (low + high)


def log_snr(alpha: Array, sigma: Array) -> Array:
    """log(alpha^2 / sigma^2)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference: Array = 2 * (np.log(alpha) - np.log(sigma))
    return difference


def _ratio(alpha: float, sigma: float) -> float:
    return math.inf if sigma == 0 else float(alpha / sigma)
