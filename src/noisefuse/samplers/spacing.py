# SPDX-License-Identifier: Apache-2.0
"""The noise levels that a sampler visits.

The names of Lin et al. 2024 ("Common diffusion noise schedules and sample steps are flawed", table 2) pick indices of
the schedule; the other spacings place n noise levels between its least noisy and its noisiest one:

    leading      0, r, 2 r, ..                r = T // n, plus steps_offset
    trailing     T - 1, T - 1 - T / n, ..
    linspace     0 .. T - 1, both ends; a single step: T - 1
    karras       (s_max^(1/rho) + i / (n - 1) (s_min^(1/rho) - s_max^(1/rho)))^rho      Karras et al. 2022 (5)
    exponential  s_max (s_min / s_max)^(i / (n - 1))
    beta         s_min + (s_max - s_min) times quantiles of Beta(0.6, 0.6)               Lee et al. 2024
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from ..ground.kinds import need_plain
from ..schedule import Schedule

Array: TypeAlias = npt.NDArray[np.float64]
_OF_INDICES = ("leading", "trailing", "linspace")
_OF_LEVELS = ("karras", "exponential", "beta")
Spacing: TypeAlias = Literal["leading", "trailing", "linspace", "karras", "exponential", "beta"]
Steps: TypeAlias = int | Sequence[float] | npt.NDArray[np.floating | np.integer]


class SpacingOptions(TypedDict, total=False):
    """Options that every sampler accepts beside ``steps`` and ``spacing``.

    Attributes:
        steps_offset: a number added to the indices of "leading" (1 for Stable Diffusion). Default 0.
        final: the end of the last step. "zero" (default): clean data; "sigma_min": the least noisy level; or a time
            like those of ``steps``: a list of sigmas as in k-diffusion is ``steps=sigmas[:-1], final=sigmas[-1]``.
        sigma_min, sigma_max: the ends of "karras", "exponential" and "beta". Default: the schedule's.
        rho: the exponent of "karras". Default 7.
    """

    steps_offset: int
    final: Literal["zero", "sigma_min"] | float
    sigma_min: float
    sigma_max: float
    rho: float


class Axis:
    """A schedule's noise level as one coordinate.

    The coordinate is sigma / alpha if alpha^2 + sigma^2 = 1, and sigma if alpha = 1 or alpha + sigma = 1. The time that
    a model is given is the index in the first family (between two indices, log-levels are interpolated), and the noise
    level itself in the others. Other schedules are visited at whole indices only.
    """

    schedule: Schedule
    family: str
    timed_by_index: bool
    levels: Array

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, such as Schedule.linear(), got {schedule!r}")
        self.schedule = schedule
        alpha, sigma = schedule.alpha, schedule.sigma
        if np.all(alpha == 1):
            self.family = "exploding"
        elif np.allclose(alpha + sigma, 1, rtol=0, atol=1e-12):
            self.family = "flow"
        elif np.allclose(alpha**2 + sigma**2, 1, rtol=0, atol=1e-12):
            self.family = "preserving"
        else:
            self.family = "other"
        self.timed_by_index = self.family in ("preserving", "other")
        with np.errstate(divide="ignore"):  # an infinite coordinate at zero terminal SNR
            self.levels = sigma / alpha if self.timed_by_index else sigma

    def columns(self, level: Array) -> tuple[Array, Array]:
        """Returns (alpha, sigma) at a coordinate."""
        if self.family == "exploding":
            return np.ones_like(level), level
        if self.family == "flow":
            return 1 - level, level
        if self.family == "preserving":
            with np.errstate(invalid="ignore"):  # pure noise, whose level is infinite, is a column of its own
                return 1 / np.hypot(1, level), level / np.hypot(1, level)
        raise ValueError("this schedule is unknown between its indices: use whole indices, or a spacing by index")

    def times(self, level: Array) -> Array:
        """Returns the times that a model is given at these coordinates."""
        if not self.timed_by_index:
            return level
        return np.interp(np.log(level), np.log(self.levels), np.arange(len(self.levels)))

    def at_index(self, t: Array) -> tuple[Array, Array, Array]:
        """Returns (alpha, sigma, time) at indices: the schedule's at whole ones, elsewhere interpolated by
        coordinate."""
        whole = t == np.floor(t)
        nearest = np.floor(t).astype(int)
        alpha, sigma = self.schedule.alpha[nearest], self.schedule.sigma[nearest]
        if not np.all(whole):
            if self.family == "flow" and self.schedule.continuous:
                level = self.schedule((t + 1) / len(self.levels))[1]
            else:
                level = np.interp(t, np.arange(len(self.levels)), self.levels)
            between = self.columns(level)
            alpha, sigma = np.where(whole, alpha, between[0]), np.where(whole, sigma, between[1])
        return alpha, sigma, t if self.timed_by_index else sigma


class Grid(NamedTuple):
    """The n visited noise levels, in order, and the end: (n + 1,) each. times are given to the model."""

    alpha: Array
    sigma: Array
    times: npt.NDArray[np.float64 | np.int64]


def grid(
    axis: Axis,
    steps: Steps,
    spacing: Spacing,
    *,
    whole: bool = True,
    drop_last: bool = False,
    steps_offset: int = 0,
    final: Literal["zero", "sigma_min"] | float = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Grid:
    """Returns the noise levels that a sampler visits.

    Args:
        axis: the schedule's axis.
        steps: a number; or the times themselves, in any order (``spacing`` is then not used).
        whole: round the indices of "linspace".
        drop_last: place one more index in "leading" and "linspace" and drop the least noisy one.

    Raises:
        ValueError: the spacing is unknown, there are more steps than the schedule has, a time lies outside it, the ends
            are impossible, or final="sigma_min" lies above the last noise level.
    """
    if not isinstance(steps, int | np.integer):
        alpha, sigma, times = _explicit(axis, steps)
    elif steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    elif spacing in _OF_INDICES:
        indices = _indices(spacing, len(axis.levels), int(steps), steps_offset, drop_last)
        alpha, sigma, times = axis.at_index(np.round(indices) if whole else indices)
    elif spacing in _OF_LEVELS:
        least = axis.levels[0] if sigma_min is None else sigma_min
        most = axis.levels[-1] if sigma_max is None else sigma_max
        if axis.family == "flow" and most > 1:
            raise ValueError(f"sigma_max must be at most 1 where alpha + sigma = 1, got {most}")
        level = _levels(spacing, int(steps), least, most, rho)
        alpha, sigma = axis.columns(level)
        times = axis.times(level)
    else:
        raise ValueError(f"spacing must be one of {', '.join(_OF_INDICES + _OF_LEVELS)}, got {spacing!r}")
    alpha, sigma, times = map(np.append, (alpha, sigma, times), _end(axis, final))
    if final == "sigma_min" and sigma[-1] * alpha[-2] > (1 + 1e-9) * sigma[-2] * alpha[-1]:
        raise ValueError('final="sigma_min", the schedule\'s least noisy level, is above the last one of these steps')
    if axis.timed_by_index and np.all(times == np.floor(times)):
        times = times.astype(np.int64)  # networks embed a whole time as an integer
    return Grid(alpha, sigma, times)


def _explicit(axis: Axis, steps: Steps) -> tuple[Array, Array, Array]:
    need_plain("steps", steps)
    try:
        times = np.zeros(0) if isinstance(steps, str) else np.asarray(steps, np.float64)
    except (TypeError, ValueError):
        times = np.zeros(0)
    if times.ndim != 1 or not times.size:
        raise ValueError(f"steps must be an integer or a list of times, got {steps!r}")
    if not axis.timed_by_index and not np.all(times):
        last = np.all(times[:-1])
        hint = "drop the 0, the last step goes there by itself" if last else "take a small level in place of 0"
        raise ValueError(f"steps must be noise levels above 0, got {times}: {hint}")
    return _at_times(axis, times, "steps")


def _end(axis: Axis, final: str | float) -> tuple[Any, ...]:
    """Returns (alpha, sigma, time) at the end of the last step."""
    if final == "zero":
        return 1.0, 0.0, 0.0
    if final == "sigma_min":
        return axis.at_index(np.zeros(1))
    try:
        time = np.array([float(final)])
    except (TypeError, ValueError):
        raise ValueError(f"final must be zero or sigma_min or a time, got {final!r}") from None
    return _at_times(axis, time, "final")


def _at_times(axis: Axis, times: Array, name: str) -> tuple[Array, Array, Array]:
    """Returns (alpha, sigma, time) at a model's times."""
    if axis.timed_by_index:
        _inside(times, len(axis.levels))
        return axis.at_index(times)
    if not np.all((times >= 0) & (times <= 1 if axis.family == "flow" else times < np.inf)):
        raise ValueError(f"{name} must be noise levels of the schedule, got {times}")
    return (*axis.columns(times), times)


def _inside(t: Array, length: int) -> None:
    if not np.all((t >= 0) & (t <= length - 1)):
        raise ValueError(f"a schedule of {length} steps has times 0 .. {length - 1}, got {t[0]:g} .. {t[-1]:g}")


def _indices(spacing: Spacing, length: int, n: int, offset: int, drop_last: bool) -> Array:
    """Returns n falling indices, as floats; those of "linspace" may lie between two indices."""
    laid = n + drop_last
    if n > length:
        raise ValueError(f"{n} steps do not fit into a schedule of {length}")
    if spacing == "trailing":
        indices = np.round(length - np.arange(n) * (length / n)) - 1
    elif spacing == "leading":
        indices = np.arange(laid)[::-1][:n] * float(length // laid) + offset
    else:
        indices = np.linspace(0, length - 1, laid)[::-1][:n] if laid > 1 else np.array([length - 1.0])
    if not np.all(np.diff(np.round(indices)) < 0):
        hint = 'one more is laid and left out; spacing="trailing" has room'
        raise ValueError(f"{n} steps do not fit into a schedule of {length} by {spacing!r}: {hint}")
    _inside(indices, length)
    return indices


def _levels(spacing: Spacing, n: int, least: float, most: float, rho: float) -> Array:
    """Returns n falling noise levels from most to least."""
    if not 0 < least < most < np.inf:
        hint = " (zero terminal SNR: use a spacing of indices)" if most == np.inf else ""
        raise ValueError(f"sigma_min and sigma_max must satisfy 0 < min < max < inf, got {least}, {most}{hint}")
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}")
    if spacing == "karras":
        return np.asarray(np.linspace(most ** (1 / rho), least ** (1 / rho), n) ** rho)
    if spacing == "exponential":
        return np.exp(np.linspace(np.log(most), np.log(least), n))
    try:
        beta = importlib.import_module("scipy.stats").beta
    except ImportError as error:
        raise ImportError('spacing "beta" needs SciPy: pip install scipy') from error
    return np.asarray(least + beta.ppf(np.linspace(1, 0, n), 0.6, 0.6) * (most - least))
