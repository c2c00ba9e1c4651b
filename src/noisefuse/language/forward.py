# SPDX-License-Identifier: Apache-2.0
"""The forward process as rows, with the targets that networks learn. Here x0' = scale x0 + offset.

    x_t      = alpha x0' + sigma z                   (Ho et al. 2020, equation 4)
    target   = of_x0 x0' + of_z z                    (`views.target_factors`)
    residual = m1 - target                           a loss squares this

x0 and z are always active in x_t, whatever their numbers: 0 * inf is NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground.kept import kept_property
from ..views import Rates, Target, no_rates, target_factors
from .levels import DEFAULT_RANGE, Levels
from .rows import FastTable, Rows

Array: TypeAlias = npt.NDArray[np.float64]
OwnTime: TypeAlias = tuple[Callable[[Any], tuple[Any, ...]], Callable[[Any], tuple[Any, ...]], float]
"""A function that returns alpha and sigma of a float t, or of unchecked float64 (n,); one that returns also their
derivatives; and the greatest such t."""


class Columns(Protocol):
    """The columns of a schedule."""

    alpha: Array
    sigma: Array

    def step_coefficients(self) -> tuple[Array, Array]: ...

    def derivatives(self, t: Any) -> tuple[Array, Array]: ...


def forward(
    alpha: Array, sigma: Array, target: Target | None = None, scale: float = 1.0, offset: float = 0.0,
    rates: Rates = no_rates,
) -> Rows:  # fmt: skip
    """Returns rows with x_t as `out` and the target, if there is one, as `aux1`."""
    columns = {"out.x": alpha * scale, "out.z": sigma}
    if offset:
        columns["out.k"] = alpha * offset
    of_target = target_factors(target, alpha, sigma, rates) if target else None
    return Rows.of(columns | (_target("aux1", 1.0, *of_target, scale, offset) if of_target else {}))


def residual(
    alpha: Array, sigma: Array, target: Target | None, scale: float = 1.0, offset: float = 0.0, rates: Rates = no_rates
) -> Rows:
    assert target is not None
    columns = {"out.m1": np.ones_like(alpha)}
    return Rows.of(columns | _target("out", -1.0, *target_factors(target, alpha, sigma, rates), scale, offset))


def _target(
    output: str, sign: float, of_x0: Array | None, of_z: Array | None, scale: float, offset: float
) -> dict[str, Array]:
    columns = {}
    if of_x0 is not None:
        columns[f"{output}.x"] = sign * of_x0 * scale
        if offset:
            columns[f"{output}.k"] = sign * of_x0 * offset
    if of_z is not None:
        columns[f"{output}.z"] = sign * of_z
    return columns


Make: TypeAlias = Callable[[Array, Array, Target | None, float, float, Rates], Rows]


def fast_rows(rows: Sequence[Rows], times: Sequence[Any] = (None,) * 3, levels: Levels | None = None) -> FastTable:
    """Returns the rows for the fast path: for float x, for each of LEVELS, and the makers of rows for times."""
    if levels is not None:
        rows = [each.scaled(*levels.range) for each in rows]
    plain, *of_levels = ((*each.plain[:5], own) for each, own in zip(rows, times, strict=True))
    return (*plain[:3], *of_levels, plain[5])


class _FastTables(dict[Any, FastTable]):
    """Rows for the fast path, by target (in the default range), or by (target, range of x0, range of integer results),
    either range None."""

    def __init__(self, kept: KeptRows, make: Make) -> None:
        self._kept, self._make = kept, make

    def __missing__(self, key: Any) -> FastTable:
        if len(self) >= KeptRows.MOST:
            self.clear()
        of = self._kept.of
        target, x0_range, levels = key if isinstance(key, tuple) else (key, None, None)
        ranges = [x0_range or default for default in ((), *DEFAULT_RANGE.values())]
        times = [self._kept.times(self._make, target, levels, *each) for each in ranges]
        plain = self[key] = fast_rows([of(self._make, target, *each) for each in ranges], times, levels)
        return plain


class KeptRows:
    """The rows that one schedule's calls take, made once: a schedule never changes."""

    MOST: int = 64  # different targets and ranges (scale, offset); beyond that all are forgotten

    def __init__(self, schedule: Columns, own_time: OwnTime | None) -> None:
        self._alpha, self._sigma, self._steps = schedule.alpha, schedule.sigma, schedule.step_coefficients
        self._derivatives = schedule.derivatives
        self._own_time = own_time
        self._rows: dict[Any, Rows] = {}
        self.plain: dict[Any, FastTable] = _FastTables(self, forward)
        self.fast_residual: dict[Any, FastTable] = _FastTables(self, residual)

    def of(self, make: Make, target: Target | None, scale: float = 1.0, offset: float = 0.0) -> Rows:
        """Returns make(alpha, sigma, target, scale, offset), with a row for each step."""
        key = make, target, scale, offset
        if key not in self._rows:
            rows = make(self._alpha, self._sigma, target, scale, offset, lambda: self._rates)
            if len(self._rows) >= self.MOST:
                self._rows.clear()
            self._rows[key] = rows
        return self._rows[key]

    def times(
        self, make: Make, target: Target | None, levels: Levels | None, scale: float = 1.0, offset: float = 0.0
    ) -> tuple[Any, ...] | None:
        """Returns what the fast path needs to make rows of float times, or None if there are no float times: the
        function from a time to alpha, sigma and perhaps their derivatives, the greatest time, the rows where all of
        these are 0 and where one of them is 1, the range of integer results."""
        if self._own_time is None:
            return None
        at, at_with_rates, last = self._own_time
        alpha, sigma, d_alpha, d_sigma = np.eye(5)[1:]
        ends = make(alpha, sigma, target, scale, offset, lambda: (d_alpha, d_sigma))
        return at_with_rates if target == "velocity" else at, last, ends.table, levels and levels.range

    @kept_property
    def _rates(self) -> tuple[Array, Array]:
        return self._derivatives(np.arange(len(self._alpha)))

    @kept_property
    def markov(self) -> Rows:
        return forward(*self._steps())

    @kept_property
    def markov_of(self) -> dict[str | None, Rows]:
        """Returns q_step's rows for x of integer levels, or None."""
        rows: dict[str | None, Rows] = {None: self.markov}
        return rows | {name: forward(*self._steps(), None, *default) for name, default in DEFAULT_RANGE.items()}

    @kept_property
    def fast_markov(self) -> FastTable:
        return fast_rows([*self.markov_of.values()])

    def fast_markov_to(self, levels: Levels) -> FastTable:
        return fast_rows([*self.markov_of.values()], levels=levels)
