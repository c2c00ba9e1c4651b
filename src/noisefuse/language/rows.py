# SPDX-License-Identifier: Apache-2.0
"""A row of numbers: its 36 columns, and tables of rows as kernels take them (csrc/core/row.h names the same columns).

    D    = clamp(k + x x + m1 m1 + m2 m2, lo, hi)
    out  = k + x x + m1 m1 + m2 m2 + d D + past1 past1 + .. + past4 past4 + z z
    aux1 = the same again, aux2 = and again

tableau.py says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground.float_mode import float_mode

PAST_SYMBOLS = "past1", "past2", "past3", "past4"  # all else counts them
SYMBOLS = ("k", "x", "m1", "m2", "d", *PAST_SYMBOLS, "z")
OUTPUTS = ("out", "aux1", "aux2")


def layout(cell: type) -> np.dtype[Any]:
    """The dtype of a row with cells of this type."""
    clean = np.dtype([(name, cell) for name in (*SYMBOLS[:4], "lo", "hi")])
    affine = np.dtype([(name, cell) for name in SYMBOLS])
    return np.dtype([("clean", clean), *((output, affine) for output in OUTPUTS)])


ROW = layout(np.float64)
"""The dtype of a row: 36 float64; ``rows.view(float)`` is what a kernel reads."""

NAMES = tuple(f"{group}.{name}" for group in ROW.names or () for name in ROW[group].names or ())
COLUMNS = len(NAMES)
CLEAN, LOW, HIGH = (NAMES.index(f"clean.{name}") for name in ("k", "lo", "hi"))
AFFINE = tuple(NAMES.index(f"{output}.k") for output in OUTPUTS)  # the constant of each output's linear combination

# The values of a linear combination, in the order of its columns after the constant.
X, M1, M2, D, *PASTS, Z = range(len(SYMBOLS) - 1)
PAST1 = PASTS[0]
# The contract's order of terms, which is not that of the columns.
ORDER = (Z, D, *reversed(PASTS), M2, M1, X)
# Of the noise in each output, as columns and as their bits; and the bits of both bounds of a clamp.
Z_COLUMNS = [first + 1 + Z for first in AFFINE]
Z_BITS = sum(1 << column for column in Z_COLUMNS)
BOUNDS = 1 << LOW | 1 << HIGH


# Bits of what is active, beyond the columns: the noise is multiplied by D, or by its root, before a row takes it.
TIMES_CLEAN, TIMES_ROOT = 1 << 40, 1 << 41

# Rows for float32 and for float64 arithmetic, active coefficients; the same for x of uint8 and of uint16, where they
# are allowed; what makes rows of float times, where there are such times. Of rows of one call there are no
# float32: the fast path rounds them.
Plain: TypeAlias = tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float64], int, Any, Any, Any]


@dataclass(frozen=True)
class Rows:
    """A table of rows, unrounded, and its active coefficients.

    A column whose bit is 0 is not multiplied, and its input not read; a clamp is active where either bound is, and
    takes both from the row.
    """

    table: npt.NDArray[np.float64]  # (n, 36)
    active: int  # bit c: column c is multiplied; TIMES_CLEAN, TIMES_ROOT
    # Copies of the table, by device and whether in float64: the CUDA backend's.
    on_devices: dict[tuple[int, bool], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scaled: dict[tuple[float, float], Rows] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, columns: Mapping[str, npt.ArrayLike], flags: int = 0) -> Rows:
        """Of active columns by their names, such as out.x, each a number or one for each row."""
        table = np.zeros((max(np.size(c) for c in columns.values()), COLUMNS))
        numbers = [NAMES.index(name) for name in columns]
        for number, values in zip(numbers, columns.values(), strict=True):
            table[:, number] = values
        return cls(table, sum(1 << number for number in numbers) | flags)

    @cached_property
    def single(self) -> npt.NDArray[np.float32]:
        """For float32 arithmetic: each coefficient rounded once."""
        with float_mode():  # it is kept, and the caller's mode may not be
            return self.table.astype(np.float32)

    @cached_property
    def without_noise(self) -> Rows:
        """The same rows where nothing is drawn."""
        return Rows(self.table, self.active & ~Z_BITS)

    def scaled(self, scale: float, offset: float) -> Rows:
        """The same rows with scale * out + offset in place of out; a few of them are kept."""
        if (found := self._scaled.get((scale, offset))) is not None:
            return found
        table, first = self.table.copy(), AFFINE[0]
        table[:, first : first + len(SYMBOLS)] *= scale
        table[:, first] += offset
        if len(self._scaled) >= 8:
            self._scaled.clear()
        made = self._scaled[scale, offset] = Rows(table, self.active | 1 << first)
        return made

    @cached_property
    def plain(self) -> Plain:
        """What the fast path takes."""
        return self.single, self.table, self.active, None, None, None

    @property
    def mask(self) -> npt.NDArray[np.void]:
        """The active coefficients in the layout of a row."""
        flags = np.array([self.active >> column & 1 for column in range(COLUMNS)], np.bool_)
        return flags.view(layout(np.bool_))[0]  # type: ignore[no-any-return]

    @cached_property
    def reads(self) -> frozenset[int]:
        """The values that a linear combination reads."""
        firsts = [(first, Z + 1) for first in AFFINE] + [(CLEAN, M2 + 1)]
        return frozenset(
            slot for first, slots in firsts for slot in range(slots) if self.active >> (first + 1 + slot) & 1
        )

    @cached_property
    def draws(self) -> npt.NDArray[np.bool_]:
        """(n,): whether a row has noise in one of its outputs."""
        return np.asarray(self.table[:, Z_COLUMNS].any(axis=1))
