# SPDX-License-Identifier: Apache-2.0
"""This module finds a noise level's place in a schedule, and the time that a network is given there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from .families import AlphaSigma, Array, Family

ModelTime: TypeAlias = Literal["index", "sigma", "schedule"] | Callable[[Array, Array, Array], Any]
"""It says which time a network is given: the index, sigma, the schedule's own time, or a function of (alpha, sigma, t),
where t is the own time, or the index of a schedule that has none."""


class Columns(Protocol):
    """A schedule."""

    alpha: Array
    sigma: Array
    kind: str

    @property
    def continuous(self) -> bool: ...

    def __call__(self, t: Any) -> AlphaSigma: ...

    def time_at(self, log_snr: Any) -> Array: ...


class Place(NamedTuple):
    """Places in a schedule, and what they were given by: indices, the schedule's own times, or levels."""

    alpha: Array
    sigma: Array
    at: Array | None = None
    own: Array | None = None
    level: Array | None = None


def _are_ones(values: Array) -> bool:
    """Tells whether they are 1 up to rounding, in a tenth of np.allclose's time."""
    return bool((abs(values - 1) <= 1e-12).all())


class Axis:
    """A schedule's noise level as one coordinate, the level.

    It is sigma / alpha, but sigma if alpha = 1 or alpha + sigma = 1. The time that a network is given by default is
    sigma in these two families, and the index in others.
    """

    schedule: Columns
    family: str
    timed_by_index: bool
    levels: Array

    def __init__(self, schedule: Columns, known: Family | None) -> None:
        self.schedule, self._known = schedule, known
        alpha, sigma = schedule.alpha, schedule.sigma
        if np.all(alpha == 1):
            self.family = "exploding"
        elif _are_ones(alpha + sigma):
            self.family = "flow"
        elif _are_ones(alpha**2 + sigma**2):
            self.family = "preserving"
        else:
            self.family = "other"
        self.timed_by_index = self.family in ("preserving", "other")
        with np.errstate(divide="ignore"):  # an infinite coordinate at zero terminal SNR
            self.levels = sigma / alpha if self.timed_by_index else sigma

    # ---- places --------------------------------------------------------------------------------------------

    def at_index(self, index: Array) -> Place:
        """Returns the columns at whole indices. Between them the levels are interpolated; but if the schedule is a
        function of time and not variance preserving, they are its own."""
        below = np.floor(index)
        is_whole, nearest = index == below, below.astype(int)
        alpha, sigma = self.schedule.alpha[nearest], self.schedule.sigma[nearest]
        if not is_whole.all():
            if self._known is not None and self.family in ("flow", "other"):
                between = self.schedule(self._own_at(index))
                between = self.columns(between[1]) if self.family == "flow" else between
            else:
                between = self.columns(np.interp(index, np.arange(len(self.levels)), self.levels))
            alpha, sigma = np.where(is_whole, alpha, between[0]), np.where(is_whole, sigma, between[1])
        return Place(alpha, sigma, at=index)

    def at_time(self, t: Array) -> Place:
        """Returns the places of the schedule's own times."""
        return Place(*self.schedule(t), own=t)

    def at_level(self, level: Array) -> Place:
        return Place(*self.columns(level), level=level)

    def columns(self, level: Array) -> AlphaSigma:
        """Returns (alpha, sigma) at a level."""
        if self.family == "exploding":
            return np.ones_like(level), level
        if self.family == "flow":
            return 1 - level, level
        if self.family == "preserving":
            with np.errstate(invalid="ignore"):  # pure noise, whose level is infinite, is a column of its own
                size = np.hypot(1, level)
                return 1 / size, level / size
        if self._known is None:
            raise ValueError("this schedule is unknown between its indices: use whole indices, or a spacing by index")
        with np.errstate(divide="ignore"):
            alpha, sigma = self.schedule(self.schedule.time_at(-2 * np.log(level)))
        if not np.allclose(sigma, level * alpha, rtol=1e-6):
            raise ValueError(f"levels: expected sigma / alpha within those of the schedule, got {level}")
        return alpha, sigma

    # ---- times ---------------------------------------------------------------------------------------------

    def kind(self, model_time: ModelTime | None) -> ModelTime:
        """Returns the kind of time that was chosen, or the default."""
        if model_time not in (None, "index", "sigma", "schedule") and not callable(model_time):
            raise ValueError(f'model_time = {model_time!r}: expected "index", "sigma", "schedule" or a function')
        return model_time or ("index" if self.timed_by_index else "sigma")

    def times(self, place: Place, model_time: ModelTime | None = None) -> Array:
        """Returns the time that a network is given at these places. An index may lie below 0: no network has that."""
        kind = self.kind(model_time)
        if kind == "sigma":
            return place.sigma
        if kind == "index":
            return self._index(place)
        if kind == "schedule":
            return self._own(place)
        t = self._index(place) if self._known is None else self._own(place)
        times = np.asarray(kind(place.alpha, place.sigma, t), np.float64)
        if times.shape != t.shape:
            raise ValueError(f"model_time: expected a function that returns shape {t.shape}, got {times.shape}")
        return times

    def _index(self, place: Place) -> Array:
        if place.at is not None:
            return place.at
        if self._known is None or self._known.last == math.inf or (place.own is None and self.family == "preserving"):
            level = place.sigma if place.level is None else place.level
            with np.errstate(divide="ignore"):  # clean data is at index 0
                return np.interp(np.log(level), np.log(self.levels), np.arange(len(self.levels)))
        _, first, last, *_ = self._known
        index = (self._own(place) - first) / (last - first) * len(self.levels) - 1
        whole = np.round(index)
        return np.where(np.abs(index - whole) < 1e-9, whole, index)  # a column's own time, up to rounding

    def _own(self, place: Place) -> Array:
        if self._known is None:
            raise TypeError(f'a {self.schedule.kind} schedule has no time of its own for model_time="schedule"')
        if place.own is not None:
            return place.own
        if self._known.last == math.inf:
            return place.sigma
        if place.at is not None:
            return self._own_at(place.at)
        with np.errstate(divide="ignore"):
            return self.schedule.time_at(2 * (np.log(place.alpha) - np.log(place.sigma)))

    def _own_at(self, index: Array) -> Array:
        assert self._known is not None
        _, first, last, *_ = self._known
        return first + (index + 1) / len(self.levels) * (last - first)
