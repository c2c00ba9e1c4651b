# SPDX-License-Identifier: Apache-2.0
"""Rows as expressions: weighted sums of a row's symbols. tableau.py explains rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground import stored
from .rows import AFFINE, COLUMNS, HIGH, LOW, PAST_SYMBOLS, SYMBOLS

__all__ = ["ZERO", "Affine", "D", "Row", "equation", "k", "m1", "m2", "past", "x", "z"]

Array: TypeAlias = npt.NDArray[np.float64]

_PRINTED = {"k": "", "d": "D"}


def equation(coefficients: Mapping[str, float]) -> str:
    """Writes an equation: {"x": 1.0, "m1": -0.5} -> "x - 0.5 m1"."""
    text = ""
    for name, c in coefficients.items():
        if c == 0:
            continue
        symbol = _PRINTED.get(name, name)
        size = "" if (size := f"{abs(c):.6g}") == "1" and symbol else size
        sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
        text += sign + " ".join(part for part in (size, symbol) if part)
    return text or "0"


class Affine:
    """A weighted sum of a row's symbols, written with +, -, and * or / by numbers. It is immutable and equal by
    value. Arrays (n,) in place of numbers make the sums of n rows."""

    __array_ufunc__: None = None  # NumPy's arrays and scalars then leave the arithmetic to this class
    __slots__ = ("_terms",)

    _terms: dict[int, Any]  # factors by the symbol's number: floats, or arrays (n,); those that it lacks are 0

    def __init__(self, coefficients: Iterable[float]) -> None:
        self._terms = {symbol: c for symbol, c in enumerate(map(float, coefficients)) if c}

    @property
    def coefficients(self) -> tuple[Any, ...]:
        """The symbols' factors: numbers, or arrays (n,)."""
        columns = self._columns
        return tuple(columns[:, 0].tolist() if columns.shape[1] == 1 else columns)

    @property
    def _columns(self) -> Array:
        """The factors, (symbols, n), or (symbols, 1) if all rows have the same sum."""
        columns = np.zeros((len(SYMBOLS), _length(self._terms)))
        for symbol, c in self._terms.items():
            columns[symbol] = c
        return columns

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        return None, {"coefficients": self.coefficients}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        self._terms = {symbol: _number(c) for symbol, c in enumerate(state[1]["coefficients"])}

    def _of(self, terms: dict[int, Any]) -> Affine:
        affine = object.__new__(Affine)
        affine._terms = terms
        return affine

    def at(self, rows: Any) -> Affine:
        """Returns the sums of these of its rows, an index of arrays."""
        return self._of(
            {symbol: c if type(c) is float or len(c) == 1 else c[rows] for symbol, c in self._terms.items()}
        )

    def __add__(self, other: Affine) -> Affine:
        if not isinstance(other, Affine):
            raise TypeError(
                f"rows are affine: expected a sum of symbols, got {other!r}; a constant is a number times k"
            )
        terms = self._terms.copy()
        for symbol, c in other._terms.items():
            terms[symbol] = terms[symbol] + c if symbol in terms else c
        return self._of(terms)

    def __radd__(self, other: Affine | int) -> Affine:
        return self if isinstance(other, int) and other == 0 else self + other  # type: ignore[operator]  # sum() starts at 0

    def __sub__(self, other: Affine) -> Affine:
        return self + -other

    def __rsub__(self, other: Affine) -> Affine:
        return -self + other

    def __neg__(self) -> Affine:
        return self._of({symbol: -c for symbol, c in self._terms.items()})

    def __mul__(self, factor: float | npt.NDArray[Any]) -> Affine:
        if isinstance(factor, Affine):
            raise TypeError(f"rows are affine: {self} is multiplied by numbers, not by {factor}")
        factor = _number(factor)
        return self._of({symbol: _product(c, factor) for symbol, c in self._terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | npt.NDArray[Any]) -> Affine:
        if isinstance(divisor, Affine):
            raise TypeError(f"rows are affine: {self} is divided by numbers, not by {divisor}")
        if isinstance(divisor := _number(divisor), float) and divisor == 0:
            raise ZeroDivisionError(f"{self} is divided by 0")
        return self._of({symbol: c / divisor for symbol, c in self._terms.items()})

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self._columns, other._columns) if isinstance(other, Affine) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._columns + 0.0).tobytes())  # 0 and -0 are equal

    def __repr__(self) -> str:
        return ", ".join(equation(dict(zip(SYMBOLS, row, strict=True))) for row in self._columns.T.tolist())


def _number(factor: float | npt.NDArray[Any]) -> Any:
    """Returns an array (n,), or the float that is meant."""
    if type(factor) is np.ndarray and factor.ndim == 1:
        return factor if factor.dtype == np.float64 else factor.astype(np.float64)
    return float(1.0 * factor)


def _product(c: Any, factor: Any) -> Any:
    """Returns the product. The caller may write to its array later, so it is copied."""
    return factor.copy() if type(c) is float and c == 1 and type(factor) is np.ndarray else c * factor


def _length(terms: Mapping[int, Any]) -> int:
    """Returns the number of rows of these factors, 1 if all rows have the same ones."""
    return next((len(c) for c in terms.values() if type(c) is not float and len(c) != 1), 1)


def _symbol(name: str) -> Affine:
    return Affine(name == symbol for symbol in SYMBOLS)


ZERO = Affine([0.0] * len(SYMBOLS))
k: Affine = _symbol("k")
x: Affine = _symbol("x")
m1: Affine = _symbol("m1")
m2: Affine = _symbol("m2")
D: Affine = _symbol("d")
z: Affine = _symbol("z")
past: tuple[Affine, ...] = tuple(map(_symbol, PAST_SYMBOLS))
"""past[0] is the newest remembered array, the row's past1."""


@dataclass(frozen=True)
class Row:
    """One step as expressions; ``clean`` may use k, x, m1, m2 only. lo <= hi bound D; infinite bounds mean no clamp.

    Expressions with arrays (n,) as factors are n steps. Rows with equal expressions and bounds are equal.

    >>> from noisefuse.tableau import Row, m1, x
    >>> print(nf.Tableau([Row(out=0.5 * x + 0.5 * m1)]).equations())
      0: t = 0;  x' = 0.5 x + 0.5 m1
    """

    out: Affine
    clean: Affine = ZERO
    aux1: Affine = ZERO
    aux2: Affine = ZERO
    lo: float = -math.inf
    hi: float = math.inf

    def __post_init__(self) -> None:
        for name in ("out", "clean", "aux1", "aux2"):
            if not isinstance(expression := getattr(self, name), Affine):
                raise TypeError(f"{name}: expected an expression of x, m1, z, .., got {type(expression).__name__}")
        if any(symbol > 3 and np.any(c) for symbol, c in self.clean._terms.items()):
            raise ValueError(f"clean may only use k, x, m1 and m2, got {self.clean}")

    __setstate__: ClassVar[stored.SetState] = stored.make_again

    def numbers(self) -> Array:
        """Returns the row, or rows, (n, 36), in the layout of ``ROW``."""
        parts = zip((0, *AFFINE), (self.clean, self.out, self.aux1, self.aux2), strict=True)
        columns = {first + symbol: c for first, part in parts for symbol, c in part._terms.items()}
        table = np.zeros((_length(columns), COLUMNS))
        for column, c in {**columns, LOW: self.lo, HIGH: self.hi}.items():
            table[:, column] = c
        return table + 0.0  # no -0
