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

from ..arguments.calls import warn_once
from ..ground.checks import check_choice, check_integer, check_number, lie_within
from ..ground.libraries import check_plain
from ..language.axis import Axis, ModelTime, Place
from ..language.schedule import Schedule, check_schedule

Array: TypeAlias = npt.NDArray[np.float64]
_OF_INDICES = ("leading", "trailing", "linspace")
_OF_LEVELS = ("karras", "exponential", "beta")
Spacing: TypeAlias = Literal["leading", "trailing", "linspace", "karras", "exponential", "beta"]
Levels: TypeAlias = Sequence[float] | npt.NDArray[np.floating | np.integer]
Steps: TypeAlias = int | Sequence[float] | npt.NDArray[np.floating | np.integer]


class SpacingOptions(TypedDict, total=False):
    """Options that every sampler accepts beside ``steps`` and ``spacing``.

    Attributes:
        steps_offset: a number added to the indices of "leading" (1 for Stable Diffusion). Default 0.
        levels: noise levels, in place of ``steps``: sigma where alpha = 1 or alpha + sigma = 1, else sigma / alpha.
        final: the end of the last step. "zero" (default): clean data; "sigma_min": the least noisy level; or a time
            like those of ``steps``.
        final_level: a noise level, in place of ``final``: a list of sigmas as in k-diffusion is ``levels=sigmas[:-1],
            final_level=sigmas[-1]``.
        model_time: what the network is given as its time: "index"; "sigma"; "schedule", the schedule's own time; or a
            function of float64 arrays (alpha, sigma, t), where t is the own time, or the index of a schedule that has
            none. Default: sigma where alpha = 1 or alpha + sigma = 1, else the index. `Schedule.model_time` gives the
            same numbers for training. A prediction with a time of its own ("edm", "edm_v", some Views) takes none.
        sigma_min, sigma_max: the ends of "karras", "exponential" and "beta". Default: the schedule's.
        rho: the exponent of "karras". Default 7.
    """

    steps_offset: int
    levels: Levels
    final: Literal["zero", "sigma_min"] | float
    final_level: float
    model_time: ModelTime
    sigma_min: float
    sigma_max: float
    rho: float


def axis_of(schedule: Schedule) -> Axis:
    check_schedule(schedule)
    return schedule.axis


class Grid(NamedTuple):
    """The n visited noise levels, in order, and the end: (n + 1,) each. The model is given `told`, by default times."""

    alpha: Array
    sigma: Array
    times: npt.NDArray[np.float64 | np.int64]
    told: npt.NDArray[np.float64 | np.int64]


def grid(
    axis: Axis, steps: Steps, spacing: Spacing, *, whole: bool = True, drop_last: bool = False, steps_offset: int = 0,
    levels: Levels | None = None, final: Literal["zero", "sigma_min"] | float = "zero",
    final_level: float | None = None, model_time: ModelTime | None = None, sigma_min: float | None = None,
    sigma_max: float | None = None, rho: float = 7.0,
) -> Grid:  # fmt: skip
    """Returns the noise levels that a sampler visits.

    Args:
        axis: the schedule's axis.
        steps: a number; or the times themselves, in any order (``spacing`` is then not used).
        levels: noise levels, in place of steps.
        model_time: what the model is given as its time.
        whole: round the indices of "linspace".
        drop_last: place one more index in "leading" and "linspace" and drop the least noisy one.

    Raises:
        ValueError: the spacing is unknown, there are more steps than the schedule has, a time lies outside it, the ends
            are impossible, or final="sigma_min" lies above the last noise level.
    """
    if levels is not None or not isinstance(steps, int | np.integer):
        visited = _at_times(axis, "steps", steps) if levels is None else _at_levels(axis, "levels", levels)
        if not np.all(visited.sigma > 0):
            last = np.all(visited.sigma[:-1] > 0)
            hint = "drop the 0, the last step goes there by itself" if last else "take a small level in place of 0"
            raise ValueError(
                f"{'steps' if levels is None else 'levels'} must be noise levels above 0, got {visited.sigma}: {hint}"
            )
    elif spacing in _OF_INDICES:
        indices = _indices(spacing, axis, check_integer("steps", steps, 1), steps_offset, drop_last)
        visited = axis.at_index(np.rint(indices) if whole else indices)
    else:
        check_choice("spacing", spacing, _OF_INDICES + _OF_LEVELS)
        least = axis.levels[0] if sigma_min is None else sigma_min
        most = axis.levels[-1] if sigma_max is None else sigma_max
        if axis.family == "flow" and most > 1:
            raise ValueError(f"sigma_max must be at most 1 where alpha + sigma = 1, got {most}")
        visited = axis.at_level(_levels(spacing, check_integer("steps", steps, 1), least, most, rho))
    if final_level == 0 or (final_level is None and final == "zero"):
        end = Place(np.ones(1), np.zeros(1), at=np.zeros(1))
    elif final_level is None and final == "sigma_min":
        end = axis.at_index(np.zeros(1))
        if end.sigma[0] * visited.alpha[-1] > (1 + 1e-9) * visited.sigma[-1] * end.alpha[0]:
            raise ValueError(
                'final="sigma_min", the schedule\'s least noisy level, is above the last one of these steps'
            )
    elif final_level is None:
        end = _at_times(axis, "final", [final])
    else:
        end = _at_levels(axis, "final_level", [final_level])
    times = _times(axis, visited, end, None)
    told = times if model_time is None else _times(axis, visited, end, model_time)
    alpha, sigma = (np.concatenate(ends) for ends in zip(visited[:2], end[:2], strict=True))
    return Grid(alpha, sigma, times, told)


def _times(axis: Axis, visited: Place, end: Place, kind: ModelTime | None) -> Any:
    """Returns the times of a kind. Clean data has none: no model is called there."""
    times = np.concatenate((axis.times(visited, kind), axis.times(end, kind) if end.sigma[0] else np.zeros(1)))
    if axis.kind(kind) == "index" and np.count_nonzero(times == np.floor(times)) == len(times):
        return times.astype(np.int64)  # networks embed a whole time as an integer
    return times


def _at_levels(axis: Axis, name: str, levels: Any) -> Place:
    """Returns the places of noise levels."""
    numbers = _numbers(name, levels).astype(np.float64)
    if not np.all((numbers >= 0) & (numbers <= 1 if axis.family == "flow" else numbers < np.inf)):
        raise ValueError(f"{name} must be noise levels of the schedule, got {numbers}")
    return axis.at_level(numbers)


def _at_times(axis: Axis, name: str, times: Any) -> Place:
    """Returns the places of times: integers are indices, and floats the schedule's own times. If it has none, they are
    places between indices."""
    numbers = _numbers(name, times)
    of_indices = numbers.dtype.kind in "iu"
    if of_indices or not axis.schedule.continuous:
        _inside(axis, numbers)
        place = axis.at_index(numbers.astype(np.float64))
        if of_indices and (axis.family == "exploding" or (axis.family == "flow" and np.all(numbers <= 1))):
            _warn(name, "integers are indices")
        elif not of_indices and not axis.timed_by_index:
            _warn(name, "floats are places between indices")
        return place
    try:
        place = axis.at_time(numbers.astype(np.float64))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if axis.family == "flow" and not np.allclose(place.sigma, numbers, rtol=0, atol=1e-12):
        _warn(name, "floats are times of the schedule, before its shift")
    return place


def _warn(name: str, meaning: str) -> None:
    """Warns of numbers that were noise levels. Version 0.2 does not."""
    warn_once(meaning, f"{name}: {meaning}; noise levels, as these were until now, are levels= and final_level=")


_EXPECTED = {"steps": "an integer or a list of times", "final": "zero or sigma_min or a time"}


def _numbers(name: str, given: Any) -> npt.NDArray[Any]:
    """Returns the numbers of a list (n,), integers or floats. ValueError: they are none, or times of both kinds."""
    check_plain(name, given)
    try:
        numbers = np.asarray(given)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or not numbers.size:
        shown = given[0] if name.startswith("final") else given
        raise ValueError(f"{name} must be {_EXPECTED.get(name, 'noise levels')}, got {shown!r}")
    of_floats = numbers.dtype.kind == "f" and isinstance(given, list | tuple)
    if name in _EXPECTED and of_floats and any(isinstance(number, int | np.integer) for number in given):
        raise ValueError(f"{name} must be integers, which are indices, or floats, which are times, got {given!r}")
    return numbers


def _inside(axis: Axis, t: npt.NDArray[Any]) -> None:
    length, hint = len(axis.levels), "" if axis.timed_by_index else "; noise levels are levels="
    if not lie_within(t, 0, length - 1):
        raise ValueError(f"a schedule of {length} steps has indices 0 .. {length - 1}, got {t[0]:g} .. {t[-1]:g}{hint}")


def _indices(spacing: Spacing, axis: Axis, n: int, offset: int, drop_last: bool) -> Array:
    """Returns n falling indices, as floats; those of "linspace" may lie between two indices."""
    length, laid = len(axis.levels), n + drop_last
    if n > length:
        raise ValueError(f"{n} steps do not fit into a schedule of {length}")
    if spacing == "trailing":
        indices = np.round(length - np.arange(n) * (length / n)) - 1
    elif spacing == "leading":
        indices = np.arange(laid)[::-1][:n] * float(length // laid) + offset
    else:
        indices = np.linspace(0, length - 1, laid)[::-1][:n] if laid > 1 else np.array([length - 1.0])
    rounded = np.rint(indices)
    if np.count_nonzero(rounded[1:] < rounded[:-1]) < n - 1:
        hint = 'one more is laid and left out; spacing="trailing" has room'
        raise ValueError(f"{n} steps do not fit into a schedule of {length} by {spacing!r}: {hint}")
    _inside(axis, indices)
    return indices


def _levels(spacing: Spacing, n: int, least: float, most: float, rho: float) -> Array:
    """Returns n falling noise levels from most to least."""
    if not 0 < least < most < np.inf:
        hint = " (zero terminal SNR: use a spacing of indices)" if most == np.inf else ""
        raise ValueError(f"sigma_min and sigma_max must satisfy 0 < min < max < inf, got {least}, {most}{hint}")
    check_number("rho", rho, above=0)
    if spacing == "karras":
        return np.asarray(np.linspace(most ** (1 / rho), least ** (1 / rho), n) ** rho)
    if spacing == "exponential":
        return np.exp(np.linspace(np.log(most), np.log(least), n))
    try:
        beta = importlib.import_module("scipy.stats").beta
    except ImportError as error:
        raise ImportError('spacing "beta" needs SciPy: pip install scipy') from error
    return np.asarray(least + beta.ppf(np.linspace(1, 0, n), 0.6, 0.6) * (most - least))
