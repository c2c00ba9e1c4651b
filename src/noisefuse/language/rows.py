# SPDX-License-Identifier: Apache-2.0
"""A row of numbers: its 36 columns, and tables of rows as kernels take them (csrc/core/row.h names the same columns).

    D    = clamp(k + x x + m1 m1 + m2 m2, lo, hi)
    out  = k + x x + m1 m1 + m2 m2 + d D + past1 past1 + .. + past4 past4 + z z
    aux1 = the same again, aux2 = and again

tableau.py explains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground.float_mode import float_mode
from ..ground.kept import kept_property

PAST_SYMBOLS = "past1", "past2", "past3", "past4"  # every other count follows from these
SYMBOLS = ("k", "x", "m1", "m2", "d", *PAST_SYMBOLS, "z")
OUTPUTS = ("out", "aux1", "aux2")


def layout(cell: type) -> np.dtype[Any]:
    """Returns the dtype of a row with cells of this type."""
    clean = np.dtype([(name, cell) for name in (*SYMBOLS[:4], "lo", "hi")])
    affine = np.dtype([(name, cell) for name in SYMBOLS])
    return np.dtype([("clean", clean), *((output, affine) for output in OUTPUTS)])


ROW = layout(np.float64)
"""The dtype of a row: 36 float64; ``rows.view(float)`` is what a kernel reads."""

NAMES = tuple(f"{group}.{name}" for group in ROW.names or () for name in ROW[group].names or ())
COLUMNS = len(NAMES)
_NUMBER = {name: number for number, name in enumerate(NAMES)}
CLEAN, LOW, HIGH = (NAMES.index(f"clean.{name}") for name in ("k", "lo", "hi"))
AFFINE = tuple(NAMES.index(f"{output}.k") for output in OUTPUTS)  # the constant of each output's linear combination

# The values of a linear combination, in the order of its columns after the constant.
X, M1, M2, D, *PASTS, Z = range(len(SYMBOLS) - 1)
PAST1 = PASTS[0]
# The contract's order of terms differs from the order of columns.
ORDER = (Z, D, *reversed(PASTS), M2, M1, X)
# The bits of the noise in each output, and of both bounds of a clamp.
Z_BITS = sum(1 << first + 1 + Z for first in AFFINE)
BOUNDS = 1 << LOW | 1 << HIGH

# Activity bits beyond the columns: the noise is multiplied by D, or by D's root, before a row takes it.
TIMES_CLEAN, TIMES_ROOT = 1 << 40, 1 << 41

# Rows for float32 and for float64 arithmetic; active coefficients; the same rows for uint8 and for uint16 x, where they
# are allowed; the maker of rows for float times, if there are such times. A single call's rows have no float32 copy:
# the fast path rounds them.
FastTable: TypeAlias = tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float64], int, Any, Any, Any]


def read(table: npt.NDArray[np.float64], symbol: int) -> npt.NDArray[np.bool_]:
    """Returns which rows read this symbol in one of their outputs, (n,)."""
    out, aux1, aux2 = (table[:, first + symbol] for first in AFFINE)
    return np.logical_or(np.logical_or(out, aux1), aux2)


@lru_cache(256)
def _reads(active: int) -> frozenset[int]:
    firsts = [(first, Z + 1) for first in AFFINE] + [(CLEAN, M2 + 1)]
    return frozenset(slot for first, slots in firsts for slot in range(slots) if active >> (first + 1 + slot) & 1)


@dataclass(frozen=True)
class Rows:
    """A table of rows, unrounded, and its active coefficients.

    A column whose bit is 0 is not multiplied, and its input is not read. A clamp is active if either bound is, and
    takes both bounds from the row.
    """

    table: npt.NDArray[np.float64]  # (n, 36)
    active: int  # bit c: column c is multiplied; TIMES_CLEAN, TIMES_ROOT
    # The CUDA backend's copies of the table, by device and by whether they are float64.
    on_devices: dict[tuple[int, bool], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scaled: dict[tuple[float, float], Rows] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, columns: Mapping[str, npt.ArrayLike], flags: int = 0) -> Rows:
        """Makes rows of active columns, by names such as out.x. A column is one number or one for each row."""
        table = np.zeros((max(np.size(c) for c in columns.values()), COLUMNS))
        numbers = [_NUMBER[name] for name in columns]
        for number, values in zip(numbers, columns.values(), strict=True):
            table[:, number] = values
        return cls(table, sum(1 << number for number in numbers) | flags)

    @kept_property
    def single(self) -> npt.NDArray[np.float32]:
        """Returns the table for float32 arithmetic, with each coefficient rounded once."""
        with float_mode():  # the table is kept, so the caller's mode must not affect it
            return self.table.astype(np.float32)

    @kept_property
    def without_noise(self) -> Rows:
        """Returns the same rows without noise."""
        return Rows(self.table, self.active & ~Z_BITS)

    def scaled(self, scale: float, offset: float) -> Rows:
        """Returns the same rows with scale * out + offset in place of out. A few of them are kept."""
        if (kept := self._scaled.get((scale, offset))) is not None:
            return kept
        table, first = self.table.copy(), AFFINE[0]
        table[:, first : first + len(SYMBOLS)] *= scale
        table[:, first] += offset
        if len(self._scaled) >= 8:
            self._scaled.clear()
        rows = self._scaled[scale, offset] = Rows(table, self.active | 1 << first)
        return rows

    @kept_property
    def plain(self) -> FastTable:
        """Returns the rows as the fast path takes them."""
        return self.single, self.table, self.active, None, None, None

    @property
    def mask(self) -> npt.NDArray[np.void]:
        """Returns the active coefficients in the layout of a row."""
        flags = np.array([self.active >> column & 1 for column in range(COLUMNS)], np.bool_)
        return flags.view(layout(np.bool_))[0]

    @kept_property
    def reads(self) -> frozenset[int]:
        """Returns the values that a linear combination reads."""
        return _reads(self.active)

    @kept_property
    def draws(self) -> npt.NDArray[np.bool_]:
        """Returns whether each row has noise in one of its outputs, (n,)."""
        return read(self.table, 1 + Z)
