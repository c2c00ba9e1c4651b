# SPDX-License-Identifier: Apache-2.0
"""Paths between two arrays, for `noisefuse.interpolate`: x_t = a(t) x0 + b(t) x1 + g(t) z, t from 0 to 1.

A path is three functions of time and their derivatives. Where g is not 0 the path is stochastic, and z is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .ground.checks import check_number
from .ground.kept import kept_property
from .ground.lazy import show_public
from .ground.stored import SetState, make_again
from .language.families import Formula, as_shaped, check_finite
from .language.rows import COLUMNS, NAMES, FastTable, Rows

__all__ = [
    "Path", "brownian_bridge", "conditional_flow", "encoder_decoder", "i2sb", "linear", "stochastic",
    "variance_preserving",
]  # fmt: skip

show_public(__name__)

Array: TypeAlias = npt.NDArray[np.float64]
Function: TypeAlias = Callable[[Array], Any]
PathTarget: TypeAlias = Literal["velocity", "score", "denoiser"]
TARGETS = (None, *get_args(PathTarget))
OF_NOISE = ("score", "denoiser")  # targets that only paths with noise have


@dataclass(frozen=True)
class Path:
    """x_t = a(t) x0 + b(t) x1 + g(t) z, and its velocity a'(t) x0 + b'(t) x1 + g'(t) z.

    Args:
        name: The path's name in prints and errors.
        a, b, da, db: Functions of float64 arrays of times in [0, 1], which return arrays of the same shape. The same
            times give the same numbers: those of a few single times are kept.
        g, dg: Functions of the same kind. None: no noise.

    >>> path = nf.paths.Path("mine", lambda t: 1 - t, lambda t: t, lambda t: 0 * t - 1, lambda t: 0 * t + 1)
    >>> x0, x1 = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    >>> nf.interpolate(x0, x1, [0.25, 0.5], path)[:, 0].tolist()
    [0.25, 0.5]
    """

    name: str
    a: Function
    b: Function
    da: Function
    db: Function
    g: Function | None = None
    dg: Function | None = None

    def __post_init__(self) -> None:
        for name in ("a", "b", "da", "db"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function of t, got {type(getattr(self, name)).__name__}")
        if (self.g is None) != (self.dg is None):
            raise TypeError("g, dg: expected both of them, or neither")

    __setstate__: ClassVar[SetState] = make_again

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "a", "b", "da", "db", "g", "dg")}

    @kept_property
    def plain(self) -> dict[Any, FastTable | None]:
        """Returns the rows of a point and its target for the fast path, by target, with None for one that it lacks."""
        return _FastTables(_point, (self.a, self.b, self.g, self.da, self.db, self.dg))

    @kept_property
    def fast_residual(self) -> dict[Any, FastTable | None]:
        """Returns the rows of m1 minus the target, with x1 as m2, for the fast path of the loss."""
        return _FastTables(_residual, (self.a, self.b, self.g, self.da, self.db, self.dg))

    def __repr__(self) -> str:
        return f"Path({self.name}{'' if self.g is None else ', with noise'})"

    @property
    def draws(self) -> bool:
        """Tells whether noise is drawn."""
        return self.g is not None

    def columns(self, t: Array, target: PathTarget | None) -> dict[str, Array]:
        """The coefficients of x_t and of the target at these times, by the names of a row's columns.

        Raises:
            ValueError: A function returns another shape, or a number that float32 does not hold. The message says at
                which t.
        """
        with np.errstate(all="ignore"):
            found = {"out.x": self._at("a", t), "out.m1": self._at("b", t)}
            if self.draws:
                found["out.z"] = self._at("g", t)
            if target == "velocity":
                found |= {"aux1.x": self._at("da", t), "aux1.m1": self._at("db", t)}
                if self.draws:
                    found["aux1.z"] = self._at("dg", t)
            elif target == "score":
                found["aux1.z"] = check_finite("the score, -z / g,", -1 / found["out.z"], t)
            elif target == "denoiser":
                found["aux1.z"] = np.ones_like(t)
        return found

    def _at(self, name: str, t: Array) -> Array:
        return check_finite(f"{name} of {self.name}", as_shaped(name, getattr(self, name)(t.copy()), t), t)


def _one(t: Array) -> Array:
    return np.ones_like(t)


def _falling(t: Array) -> Array:
    return 1 - t


def _minus_one(t: Array) -> Array:
    return -np.ones_like(t)


def _same(t: Array) -> Array:
    return t


def linear() -> Path:
    """x_t = (1 - t) x0 + t x1: rectified flow, Liu et al. 2022; "ConditionalFlowMatcher" of torchcfm with sigma = 0.

    Returns:
        A `Path` without noise. Its velocity is x1 - x0.

    >>> nf.paths.linear()
    Path(linear)
    """
    return _LINEAR


_LINEAR = Path("linear", _falling, _same, _minus_one, _one)


def variance_preserving() -> Path:
    """x_t = cos(t pi / 2) x0 + sin(t pi / 2) x1: Albergo & Vanden-Eijnden 2023 (trigonometric); VP in torchcfm.

    Returns:
        A `Path` without noise.

    >>> nf.interpolate(np.ones((1, 2)), np.ones((1, 2)), 0.5, nf.paths.variance_preserving()).round(6).tolist()
    [[1.414214, 1.414214]]
    """
    return Path("variance_preserving", _falling_sine, _sine, _falling_sine_slope, _sine_slope)


def _sine(t: Array) -> Array:
    return np.sin(t * (math.pi / 2))


def _falling_sine(t: Array) -> Array:
    return _sine(1 - t)


def _sine_slope(t: Array) -> Array:
    return math.pi / 2 * _sine(1 - t)


def _falling_sine_slope(t: Array) -> Array:
    return -math.pi / 2 * _sine(t)


def conditional_flow(sigma: float) -> Path:
    """x_t = (1 - t) x0 + t x1 + sigma z: conditional flow matching, Tong et al. 2024 (I-CFM and OT-CFM of torchcfm).

    Args:
        sigma: Positive. It does not depend on t, so the velocity is x1 - x0.

    Returns:
        A `Path` with noise.

    Raises:
        ValueError: sigma is not positive.

    >>> nf.paths.conditional_flow(0.1)
    Path(conditional_flow, with noise)
    """
    check_number("sigma", sigma, above=0)
    g = Formula(_constant, (sigma,))
    return Path("conditional_flow", _falling, _same, _minus_one, _one, g, np.zeros_like)


def _constant(value: float, t: Array) -> Array:
    return np.full_like(t, value)


def stochastic(scale: float = 1.0) -> Path:
    """x_t = (1 - t) x0 + t x1 + sqrt(2 scale t (1 - t)) z: stochastic interpolants, Albergo et al. 2023 (section 4).

    Args:
        scale: Positive.

    Returns:
        A `Path` with noise. Its velocity and its score are infinite at t = 0 and t = 1.

    Raises:
        ValueError: scale is not positive.

    >>> nf.paths.stochastic()
    Path(stochastic, with noise)
    """
    return _bridge("stochastic", 2 * check_number("scale", scale, above=0))


def brownian_bridge(sigma: float = 1.0) -> Path:
    """x_t = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) z: a Brownian bridge; Schroedinger bridges of Tong et al. 2024.

    Args:
        sigma: The scale of the Brownian motion, positive.

    Returns:
        A `Path` with noise. Its velocity and its score are infinite at t = 0 and t = 1.

    Raises:
        ValueError: sigma is not positive.

    >>> nf.paths.brownian_bridge(0.5)
    Path(brownian_bridge, with noise)
    """
    return _bridge("brownian_bridge", check_number("sigma", sigma, above=0) ** 2)


def _bridge(name: str, variance: float) -> Path:
    """g = sqrt(variance t (1 - t))."""
    g, dg = Formula(_deviation, (variance,)), Formula(_deviation_slope, (variance,))
    return Path(name, _falling, _same, _minus_one, _one, g, dg)


def _deviation(variance: float, t: Array) -> Any:
    return np.sqrt(variance * (t * (1 - t)))


def _deviation_slope(variance: float, t: Array) -> Any:
    return 0.5 * variance * (1 - 2 * t) / _deviation(variance, t)


def _to_end(t: Array) -> Array:
    """Returns how far t is from the nearer end. It is exact, where 1 - t and pi t would cancel."""
    return np.minimum(t, 1 - t)


def encoder_decoder() -> Path:
    """x0 becomes noise until t = 1/2, and noise becomes x1 from then on: Albergo et al. 2023 (encoding-decoding).

        a = cos^2(pi t) for t < 1/2, else 0;   b = cos^2(pi t) for t > 1/2, else 0;   g = sin^2(pi t)

    Returns:
        A `Path` with noise, which is all of x_t at t = 1/2.

    >>> nf.paths.encoder_decoder()
    Path(encoder_decoder, with noise)
    """
    return Path("encoder_decoder", _encoded, _decoded, _encoded_slope, _decoded_slope, _noisy, _noisy_slope)


def _decoded(t: Array) -> Array:
    return np.where(t > 0.5, _clean(_to_end(t)), 0.0)


def _encoded(t: Array) -> Array:
    return np.where(t < 0.5, _clean(t), 0.0)


def _clean(end: Array) -> Any:
    """cos^2(pi t)."""
    return np.where(end < 0.25, np.cos(math.pi * end), np.sin(math.pi * (0.5 - end))) ** 2


def _decoded_slope(t: Array) -> Array:
    return np.where(t > 0.5, -_noisy_slope(t), 0.0)


def _encoded_slope(t: Array) -> Array:
    return np.where(t < 0.5, -_noisy_slope(t), 0.0)


def _noisy(t: Array) -> Any:
    return np.sin(math.pi * _to_end(t)) ** 2


def _noisy_slope(t: Array) -> Any:
    """pi sin(2 pi t)."""
    end = _to_end(t)
    return np.copysign(math.pi, 0.5 - t) * np.sin(2 * math.pi * np.minimum(end, 0.5 - end))


def i2sb(beta_max: float = 1.0, *, symmetric: bool = True) -> Path:
    """The bridge of I2SB, Liu et al. 2023 (equation 11), in continuous time; x0 is clean and x1 degraded.

        s = int_0^t beta,  r = int_t^1 beta:   a = r / (s + r),  b = s / (s + r),  g = sqrt(s r / (s + r))

    Args:
        beta_max: The largest beta, positive.
        symmetric: beta = beta_max (1 - |2 t - 1|)^2, the paper's symmetric schedule; False: beta = beta_max.

    Returns:
        A `Path` with noise. With ``symmetric=False`` it is `brownian_bridge` of sqrt(beta_max).

    Raises:
        ValueError: beta_max is not positive.

    >>> nf.paths.i2sb(0.3)
    Path(i2sb, with noise)
    """
    check_number("beta_max", beta_max, above=0)
    if not symmetric:
        return _bridge("i2sb", beta_max)

    g, dg = Formula(_i2sb, (beta_max,)), Formula(_i2sb_slope, (beta_max,))
    return Path("i2sb", _after, _before, _minus_rate, _rate, g, dg)


def _before(t: Array) -> Array:
    """Returns the share of the integral of beta up to t: 4 t^3 until 1/2, and its mirror image."""
    least = 4 * _to_end(t) ** 3
    return np.where(t < 0.5, least, 1 - least)


def _after(t: Array) -> Array:
    least = 4 * _to_end(t) ** 3
    return np.where(t < 0.5, 1 - least, least)


def _rate(t: Array) -> Array:
    return 12 * _to_end(t) ** 2


def _minus_rate(t: Array) -> Array:
    return -_rate(t)


def _i2sb(beta_max: float, t: Array) -> Any:
    return np.sqrt(beta_max / 3 * (_before(t) * _after(t)))


def _i2sb_slope(beta_max: float, t: Array) -> Any:
    end = _to_end(t)
    apart = np.copysign((1 - 2 * end) * (1 + 2 * end + 4 * end**2), 0.5 - t)  # after - before
    return 0.5 * (beta_max / 3) * _rate(t) * apart / _i2sb(beta_max, t)


# ---- the fast path ------------------------------------------------------------------------------------------

Functions: TypeAlias = tuple[Function, Function, Function | None, Function, Function, Function | None]


class _FastTables(dict[Any, FastTable | None]):
    """Rows for the fast path, by target: no rows, and the columns at times, as `rows_of_columns` of fast_rows.h takes
    them."""

    def __init__(self, columns: Callable[[Functions, PathTarget | None], dict[str, Function]], of: Functions) -> None:
        self._columns, self._of = columns, of

    def __missing__(self, target: Any) -> FastTable | None:
        if target not in TARGETS or (target in OF_NOISE and self._of[2] is None):
            return None
        columns = self._columns(self._of, target)
        active = Rows.of({name: 1.0 for name in columns if name in NAMES}).active
        affine = tuple(map(_affine, columns.values()))
        others = tuple(f for f, known in zip(columns.values(), affine, strict=True) if known is None)
        own = partial(_columns_at, others, {}), 1.0, None, affine
        made = self[target] = np.zeros((0, COLUMNS), np.float32), np.zeros((0, COLUMNS)), active, None, None, own
        return made


def _point(of: Functions, target: PathTarget | None) -> dict[str, Function]:
    """Returns the functions of the active columns, in their order."""
    a, b, g, da, db, dg = of
    columns = {"out.x": a, "out.m1": b, "out.z": g}
    if target == "velocity":
        columns |= {"aux1.x": da, "aux1.m1": db, "aux1.z": dg}
    elif target is not None:
        columns["aux1.z"] = _one if target == "denoiser" else g and partial(_score, g)
    return {name: function for name, function in columns.items() if function is not None}


def _residual(of: Functions, target: PathTarget | None) -> dict[str, Function]:
    """Returns those of the residual, then those of the point, which are only checked."""
    point, found = _point(of, None), _point(of, target)
    columns = {"out.x": "aux1.x", "out.m1": "", "out.m2": "aux1.m1", "out.z": "aux1.z"}
    active = {
        to: partial(_negative, found[name]) if name else _one
        for to, name in columns.items()
        if not name or name in found
    }
    return active | {f"of the point: {name}": function for name, function in point.items()}


def _columns_at(functions: tuple[Function, ...], kept: dict[float, Any], t: Any) -> tuple[Any, ...]:
    """Returns each function of float64 (n,), or of one float, for which some results are kept."""
    if type(t) is float and (found := kept.get(t)) is not None:
        return found
    times, columns = np.array([t]) if type(t) is float else t, []
    with np.errstate(all="ignore"):
        for function in functions:
            columns.append(function(times.copy()))  # noqa: PERF401 (a frame less)
    made = tuple(columns)
    if type(t) is float:
        if len(kept) >= _KEPT:
            kept.clear()
        kept[t] = made
    return made


_KEPT = 64  # single times: those of a sampler, say
_AFFINE: tuple[tuple[Function, tuple[float, float]], ...] = (
    (_falling, (1.0, -1.0)), (_same, (0.0, 1.0)), (_one, (1.0, 0.0)), (_minus_one, (-1.0, 0.0)),
    (np.zeros_like, (0.0, 0.0)),
)  # fmt: skip


def _affine(function: Any) -> tuple[float, float] | None:
    """Returns the constant and the slope of a function of which they have the bits, or None."""
    if isinstance(function, partial) and function.func is _negative:
        constant, slope = _affine(function.args[0]) or (0.0, 1.0)
        return (-constant, -slope) if slope == 0 else None
    if isinstance(function, Formula):
        return (float(function.numbers[0]), 0.0) if function.function is _constant else None
    return next((numbers for known, numbers in _AFFINE if function is known), None)


def _score(g: Function, t: Array) -> Any:
    return -1 / g(t)


def _negative(function: Function, t: Array) -> Any:
    return -function(t)
