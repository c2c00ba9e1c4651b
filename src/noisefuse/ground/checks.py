# SPDX-License-Identifier: Apache-2.0
"""Checks of single arguments. Those that raise are `check_*`: errors say what was given, and what is expected."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_integer(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> int:
    """Returns an integer from least to most as an int."""
    try:
        if isinstance(given, bool):  # operator.index refuses NumPy's
            raise TypeError
        number = operator.index(given)
    except TypeError:
        raise TypeError(f"{name} = {_shown(given)}: expected an integer, got {type(given).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} = {number}: expected an integer{_range(least, most)}")
    return number


def check_number(
    name: str, given: Any, least: float = -math.inf, most: float = math.inf, *, above: float | None = None,
    below: float | None = None, finite: bool = True, hint: str = "",
) -> float:  # fmt: skip
    """Returns a number from least to most as a float. hint: ends the error for what is no number."""
    try:
        if isinstance(given, str | bool):
            raise TypeError
        number = float(given)
    except OverflowError:  # of an int
        number = math.inf if given > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} = {_shown(given)}: expected a number, got {type(given).__name__}{hint}") from None
    inside = (above is None or number > above) and (below is None or number < below)
    if not (inside and least <= number <= most) or (finite and math.isinf(number)):
        kind = "a finite number" if finite else "a number"
        raise ValueError(f"{name} = {_shown(given)}: expected {kind}{_range(least, most, above, below)}")
    return number


def _shown(given: object) -> str:
    """Returns the beginning of a value's repr, in one line."""
    return " ".join(repr(given).split())[:60]


def _range(least: float, most: float, above: float | None = None, below: float | None = None) -> str:
    if -math.inf < least <= most < math.inf:
        return f" from {least} to {most}"
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    told = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None and math.isfinite(bound)]
    return f" {' and '.join(told)}" if told else ""


def check_choice(name: str, given: object, choices: Iterable[str]) -> None:
    """Raises ValueError if the value is none of the choices."""
    *most, last = choices
    if not isinstance(given, str) or given not in (*most, last):
        expected = f"{', '.join(map(repr, most))} or {last!r}" if most else repr(last)
        raise ValueError(f"{name} = {_shown(given)}: expected {expected}")


def first_of(name: str, wrong: Any, values: NDArray[Any]) -> str:
    """Returns, for errors, the first of the values that are wrong, with its place: "t[1, 0] = -1"."""
    at = tuple(np.argwhere(wrong)[0].tolist())
    return f"{name}[{', '.join(map(str, at))}] = {values[at]}" if at else f"{name} = {values[at]}"


def lie_within(values: NDArray[Any], low: float, high: float) -> bool:
    """Tells whether no value is below low, above high or NaN. (For few values argmin takes a quarter of min's time.)"""
    return not values.size or bool(low <= values.item(values.argmin()) and values.item(values.argmax()) <= high)


class Unknown:
    """A number of a JAX program that is known only when the program runs, and has more bits than JAX's own."""

    __slots__ = ()


def is_tracer(value: object) -> bool:
    """Tells whether it is a traced number or array of a JAX program, known only when the program runs."""
    core = sys.modules.get("jax.core")
    return core is not None and not isinstance(value, int) and isinstance(value, (core.Tracer, Unknown))


def got(noise: object) -> str:
    """Describes, for errors, the argument given in place of a Noise."""
    name = type(noise).__name__
    if isinstance(noise, int | np.integer) and not isinstance(noise, bool):
        return (
            f"{noise!r}: a bare seed would give the same noise at every call; "
            f"pass nf.Noise({noise!r}, step=...) with a step of its own for each"
        )
    if name not in ("Generator", "RandomState"):
        return name
    made = "Noise(generator.initial_seed())" if type(noise).__module__.startswith("torch") else "Noise.from_rng(rng)"
    return f"{name}: a noise is a key and not a state, such as Noise(seed) or {made}"
