# SPDX-License-Identifier: Apache-2.0
"""Weights of training losses as rows: one number for each step of a schedule, for `mse_loss(weight=...)`.

The literature states weights for the loss of one target, and networks learn another. Let d be the error of the clean
sample D that a prediction m implies, D = p_x x + p_m m. Then the losses of all targets are multiples of each other:

    |m - target|^2 = |d|^2 / p_m^2
    epsilon p_m = -sigma / alpha,  v -sigma / (alpha^2 + sigma^2),  flow -sigma / (alpha + sigma),  sample 1
    velocity -sigma / (alpha d sigma - sigma d alpha)

So each function takes the target that the network learns, and returns the weights for its loss. With `t` it returns the
weights at these times, in t's shape. Times are integers, or floats of a continuous schedule.

A row is also a density: `draw` draws times from it. Such times have the same expected gradient as uniform times with
weights, and less variance if the weights differ much.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ground.checks import check_number, lie_within
from .ground.docstrings import Shared, documented
from .ground.lazy import show_public
from .ground.libraries import check_plain
from .language.schedule import Schedule, check_schedule
from .views import Rates, Target, check_target, target_factors

__all__ = ["cosmap", "draw", "edm", "like", "logit_normal", "min_snr", "mode"]

show_public(__name__)

Array: TypeAlias = npt.NDArray[np.float64]
_Errors: TypeAlias = Callable[[Target], tuple[Array, Array]]  # see `_errors`

_SHARED = Shared(
    args={
        "schedule": "    schedule: the levels of noise, a `Schedule`.",
        "target": """\
    target: what the network learns: "epsilon", "v", "flow", "sample" or "velocity", as in `q_sample`. The weights
        multiply the plain loss of this target.""",
        "t": """\
    t: times of any shape, as ``schedule(t)`` takes them: integers, or floats of a continuous schedule. None: all steps
        of the schedule.""",
    },
    returns="    Weights in float64, (T,), one for each step of the schedule; for t in t's shape.",
    raises="""\
    ValueError: target is another one, or a float t lies outside of the schedule's time.
    IndexError: an integer t lies outside of the schedule.
    TypeError: schedule is no `Schedule`, t is no number, or t is a float and the schedule is not continuous.""",
)


@documented(_SHARED)
def min_snr(schedule: Schedule, target: Target, *, gamma: float = 5.0, t: npt.ArrayLike | None = None) -> Array:
    """min(SNR, gamma) on the loss of the clean sample: Hang et al. 2023, SNR = alpha^2 / sigma^2.

    For epsilon it is min(SNR, gamma) / SNR, for v in a variance preserving schedule min(SNR, gamma) / (SNR + 1).

    Args:
        gamma: the largest SNR that counts.

    Raises:
        ValueError: gamma is not positive.

    >>> nf.weights.min_snr(nf.Schedule.linear(1000), "epsilon", t=[0, 500, 999]).round(4).tolist()
    [0.0005, 1.0, 1.0]
    """
    return _weights(_min_snr, schedule, target, t, check_number("gamma", gamma, above=0, finite=False))


@documented(_SHARED)
def edm(schedule: Schedule, target: Target, *, sigma_data: float = 0.5, t: npt.ArrayLike | None = None) -> Array:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on the loss of the clean sample: Karras et al. 2022 (table 1).

    s = sigma / alpha is the noise level of x / alpha. The weight is infinite for "epsilon" if alpha = 0, for "sample"
    if sigma = 0.

    Args:
        sigma_data: the data's standard deviation.

    Raises:
        ValueError: sigma_data is not positive.

    >>> nf.weights.edm(nf.Schedule.karras(3), "sample").round(4).tolist()
    [250004.0, 4.1581, 4.0002]
    """
    return _weights(_edm, schedule, target, t, check_number("sigma_data", sigma_data, above=0))


@documented(_SHARED)
def logit_normal(
    schedule: Schedule, target: Target, *, mean: float = 0.0, std: float = 1.0, t: npt.ArrayLike | None = None
) -> Array:
    """The density of logit-normal times on the loss of the flow: Esser et al. 2024 (SD3, section 3.1).

    Here, in `mode` and in `cosmap`, the time is s = sigma / (alpha + sigma), that of rectified flow at the same SNR.

    Args:
        mean: the mean of the logit, log(s / (1 - s)).
        std: its standard deviation.

    Raises:
        ValueError: std is not positive.

    >>> nf.weights.logit_normal(nf.Schedule.flow(1000), "flow", t=[0.1, 0.5, 0.9]).round(4).tolist()
    [0.3966, 1.5958, 0.3966]
    """
    deviation = check_number("std", std, above=0)
    return _weights(_of_flow, schedule, target, t, _logit_normal, check_number("mean", mean), deviation)


@documented(_SHARED)
def mode(schedule: Schedule, target: Target, *, scale: float = 1.29, t: npt.ArrayLike | None = None) -> Array:
    """The density of times f(u), u uniform, on the loss of the flow: Esser et al. 2024.

        f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u)

    The weight is infinite for "epsilon" if alpha = 0, for "sample" if sigma = 0.

    Args:
        scale: in [-1, 2 / (pi - 2)], where f is monotone; above 0 it favours the middle, below 0 the ends.

    Raises:
        ValueError: scale lies outside this range.

    >>> nf.weights.mode(nf.Schedule.flow(1000), "flow", t=[0.1, 0.5, 0.9]).round(4).tolist()
    [0.5015, 3.7926, 0.5015]
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale must be in [-1, 2 / (pi - 2)], got {scale}")
    return _weights(_of_flow, schedule, target, t, _mode, float(scale))


@documented(_SHARED)
def cosmap(schedule: Schedule, target: Target, *, t: npt.ArrayLike | None = None) -> Array:
    """2 / (pi - 2 pi s + 2 pi s^2) on the loss of the flow, as for cosine schedules: Esser et al. 2024.

    The weight is infinite for "epsilon" if alpha = 0, for "sample" if sigma = 0.

    >>> nf.weights.cosmap(nf.Schedule.flow(1000), "flow", t=[0.1, 0.5, 0.9]).round(4).tolist()
    [0.7764, 1.2732, 0.7764]
    """
    return _weights(_of_flow, schedule, target, t, _cosmap)


@documented(_SHARED)
def like(schedule: Schedule, target: Target, other: Target, *, t: npt.ArrayLike | None = None) -> Array:
    """Returns the weights that turn the loss of `target` into the plain loss of the target `other`.

    like(schedule, "sample", "flow") is 1 / sigma^2 on rectified flow, diffusers' "sigma_sqrt". The weight is infinite
    for "epsilon" if alpha = 0 and for "sample" if sigma = 0, where the prediction does not determine the other target.

    Args:
        other: the target with the plain loss.

    >>> nf.weights.like(nf.Schedule.flow(1000), "sample", "flow", t=[0.1, 0.5, 1.0]).round(4).tolist()
    [100.0, 4.0, 1.0]
    """
    check_target(other)
    return _weights(_like, schedule, target, t, other)


def draw(row: npt.ArrayLike, u: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Draws times t with probabilities in proportion to a row of weights.

    Args:
        row: the weights, (T,), finite, at least 0 and not all 0.
        u: uniform numbers in [0, 1), of any shape, such as `nf.uniform(B, noise)`, which can be drawn again.

    Returns:
        Indices 0 .. T - 1 in int64, of u's shape.

    Raises:
        ValueError: row is wrong, or a u lies outside [0, 1), or is NaN.

    >>> nf.weights.draw([1, 0, 3], [0.1, 0.3, 0.9]).tolist()
    [0, 2, 2]
    """
    for name, given in (("row", row), ("u", u)):
        check_plain(name, given)
    weights = np.asarray(row, np.float64)
    if weights.ndim != 1 or not lie_within(weights, 0, sys.float_info.max) or not weights.any():
        raise ValueError(f"row: expected (T,) finite numbers >= 0, not all 0, got shape {weights.shape}")
    total = np.cumsum(weights)
    uniforms = np.asarray(u, np.float64)
    if not lie_within(uniforms, 0, math.nextafter(1, 0)):
        inside = (uniforms >= 0) & (uniforms < 1)  # false for NaN
        raise ValueError(f"u = {uniforms[~inside][0]}: expected numbers in [0, 1)")
    return np.searchsorted(total / total[-1], uniforms, side="right")


def _weights(make: Callable[..., Array], schedule: Schedule, target: Target, t: Any, *options: Any) -> Array:
    """Returns make(errors, target, *options) for each step, or at the times t."""
    check_schedule(schedule)
    check_target(target)
    if t is None:
        return _row(make, schedule, target, *options).copy()
    t = np.asarray(t)
    levels = schedule(t)
    if t.dtype.kind == "f":
        errors = partial(_errors, *levels, lambda: schedule.derivatives(t))
        return np.asarray(make(errors, target, *options))
    return np.asarray(_row(make, schedule, target, *options)[t])


# A training loop needs the same row at each step, and a row takes 10 to 1300 us.
@lru_cache(maxsize=16)
def _row(make: Callable[..., Array], schedule: Schedule, target: Target, *options: Any) -> Array:
    rates = lambda: schedule.derivatives(np.arange(len(schedule)))  # noqa: E731
    return make(partial(_errors, schedule.alpha, schedule.sigma, rates), target, *options)


def _min_snr(errors: _Errors, target: Target, gamma: float) -> Array:
    of_x0, of_z = errors(target)
    return np.minimum(of_z**2, gamma * of_x0**2)  # SNR |d|^2 is the loss of z


def _edm(errors: _Errors, target: Target, sigma_data: float) -> Array:
    of_x0, of_z = errors(target)
    return (of_x0 / sigma_data) ** 2 + of_z**2


def _like(errors: _Errors, target: Target, other: Target) -> Array:
    of_x0, of_z = errors(target)
    if target == other:
        return np.ones_like(of_x0)
    others_of_x0, others_of_z = errors(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = of_x0 / others_of_x0
        ratio = np.where(np.isnan(ratio), of_z / others_of_z, ratio)  # 0 / 0 where sigma is 0, and z tells
    return ratio**2


def _of_flow(errors: _Errors, target: Target, density: Callable[..., Array], *options: float) -> Array:
    weights, factor = density(errors("flow")[0], *options), _like(errors, target, "flow")
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0.0, weights * factor)  # a density falls faster than the factor rises


def _logit_normal(s: Array, mean: float, std: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        logit = np.log(s) - np.log1p(-s)
        bell = np.exp(-0.5 * ((logit - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        return np.where((s > 0) & (s < 1), bell / (s * (1 - s)), 0.0)


def _mode(s: Array, scale: float) -> Array:
    low, high = np.zeros(s.shape), np.ones(s.shape)
    for _ in range(60):  # f falls from 1 to 0: halve the interval around f(u) = s
        u = (low + high) / 2
        above = 1 - u - scale * (np.cos(math.pi * u / 2) ** 2 - 1 + u) > s
        low, high = np.where(above, u, low), np.where(above, high, u)
    return 1 / (1 + scale - scale * math.pi / 2 * np.sin(math.pi * u))


def _cosmap(s: Array) -> Array:
    return 2 / (math.pi * (1 - 2 * s + 2 * s**2))


def _errors(alpha: Array, sigma: Array, rates: Rates, target: Target) -> tuple[Array, Array]:
    """Returns the factors from an error of the prediction to the implied error of x0, |p_m|, and to that of z.

    With x = alpha x0 + sigma z and m = p x0 + q z these are sigma / |alpha q - sigma p| and alpha / |alpha q - sigma
    p|.
    """
    p, q = target_factors(target, alpha, sigma, rates)
    determinant = np.abs((0 if q is None else alpha * q) - (0 if p is None else sigma * p))
    with np.errstate(divide="ignore", invalid="ignore"):
        return sigma / determinant, np.ones_like(alpha) if p is None else alpha / determinant
