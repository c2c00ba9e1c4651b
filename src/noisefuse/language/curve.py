# SPDX-License-Identifier: Apache-2.0
"""Noise levels: two columns, and the functions of time behind them, where they are known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_integer, first_of, is_tracer, lie_within
from ..ground.constants import Constant
from ..ground.kept import kept_property
from ..ground.libraries import NUMPY, check_plain, library_for, library_of
from ..views import Prediction, Target, own_time, view
from . import families
from .axis import Axis, ModelTime, Place
from .families import FAMILIES, AlphaSigma, Array, Family
from .forward import KeptRows, OwnTime, forward
from .tableau import Tableau, of_rows


class Curve(Constant):
    """The noise levels of a `Schedule`, at each of its times."""

    alpha: Array
    sigma: Array
    kind: str
    name: str
    _parameters: dict[str, float]
    _betas: Array | None
    _family: Family | None
    kept: KeptRows

    def __init__(
        self, alpha: npt.ArrayLike, sigma: npt.ArrayLike, *, name: str | None = None, _kind: str = "columns",
        _parameters: Mapping[str, float] | None = None, _betas: Array | None = None, _family: Family | None = None,
    ) -> None:  # fmt: skip
        alpha = column("alpha", alpha, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")
        sigma = column("sigma", sigma, lambda v: (v > 0) & (v < math.inf), "positive and finite")
        if len(alpha) != len(sigma):
            raise ValueError(f"alpha and sigma must have one length, got {len(alpha)} and {len(sigma)}")
        if _betas is not None and len(_betas) != len(alpha):
            raise ValueError(f"betas: expected {len(alpha)}, one for each step, got {len(_betas)}")
        if not isinstance(name, str | None):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        rising = np.flatnonzero(np.diff(alpha / sigma) >= 0)
        if rising.size:
            t = int(rising[0])
            raise ValueError(
                "the signal-to-noise ratio alpha / sigma must strictly decrease, but (alpha, sigma) is "
                f"({alpha[t]}, {sigma[t]}) at {t} and ({alpha[t + 1]}, {sigma[t + 1]}) at {t + 1}"
            )
        self.__dict__.update(  # this bypasses __setattr__, which refuses
            alpha=frozen(alpha),
            sigma=frozen(sigma),
            kind=_kind,
            name=_kind if name is None else name,
            _parameters=_parameters or {},
            _betas=_betas,
            _family=_family or FAMILIES.get(_kind),
        )
        self.__dict__["kept"] = KeptRows(self, self._own_time())

    def _own_time(self) -> OwnTime | None:
        """Returns the functions by which the fast path makes rows of float times, which are at least 0; or None."""
        if self._family is None or self._family.first != 0:
            return None
        at, known = partial(self._family.at, **self._parameters), self._family
        return at, partial(families.with_slopes, known, self._parameters), known.last

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Schedule is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Schedule is immutable: cannot delete {name!r}")

    def __len__(self) -> int:
        return len(self.alpha)

    @kept_property
    def axis(self) -> Axis:
        """The schedule's noise level as one coordinate."""
        return Axis(self, self._family)

    @property
    def times(self) -> tuple[float, float] | None:
        """The cleanest and the noisiest float time, (0, 1) for most; None if there are no float times."""
        return self._family and (self._family.first, self._family.last)

    @property
    def continuous(self) -> bool:
        """Tells whether ``schedule(t)`` takes a float t, the family's own time."""
        return self._family is not None

    def __call__(self, t: npt.ArrayLike) -> AlphaSigma:
        """(alpha, sigma) at t: two float64 arrays of t's shape.

        Args:
            t: integers are indices, 0 <= t < T. Floats are the family's own time: u in [0, 1] for cosine, s in [0, 1]
                for flow, any finite sigma >= 0 for karras, exponential and edm. So 1.0 is the noisiest time of cosine
                and flow, and the index 1 is nearly the cleanest.

        Raises:
            IndexError: an integer lies outside.
            ValueError: a float lies outside.
            TypeError: a float t for another family, or t neither integer nor float.
        """
        check_plain("t", t)
        if is_tracer(t):
            return self._in_program(t)
        t = np.asarray(t)
        if t.dtype.kind in "iu":
            if not lie_within(t, 0, len(self) - 1):
                require((t >= 0) & (t < len(self)), "t", t, f"an index, 0 <= t < {len(self)}", IndexError)
            return np.asarray(self.alpha[t]), np.asarray(self.sigma[t])
        if t.dtype.kind != "f":
            raise TypeError(f"t must be integers (an index) or floats (a time), got dtype {t.dtype}")
        if self._family is None:
            raise TypeError(
                f"a {self.kind} schedule has no continuous time: t must be integers (an index), got {t.dtype}"
            )
        symbol, first, last, at, _ = self._family
        t = t.astype(np.float64)
        if not lie_within(t, first, min(last, sys.float_info.max)):
            upper = f"{last:g}]" if last < math.inf else "inf)"
            valid = (t >= first) & (t <= last) & np.isfinite(t)
            wanted = f"in [{first:g}, {upper}, the time {symbol} of the {self.kind} schedule (an index is an integer)"
            require(valid, "t", t, wanted, ValueError)
        # Python's arithmetic gives one float the same bits, sooner.
        alpha, sigma = at(t if t.ndim else t.item(), **self._parameters)
        return np.asarray(alpha), np.asarray(sigma)

    def _in_program(self, t: Any) -> AlphaSigma:
        """Returns (alpha, sigma) as JAX's arrays. An index that lies outside is the first or the last one."""
        index = t.dtype.kind in "iu"
        at = (lambda t: self(np.clip(t, 0, len(self) - 1))) if index else self
        levels: AlphaSigma = library_of(t).on_host(at, t, t.shape, 2)
        return levels

    def derivatives(self, t: npt.ArrayLike) -> AlphaSigma:
        """The derivatives of alpha and sigma by the schedule's own time, at t: those of the target "velocity".

        Args:
            t: as in ``schedule(t)``. An integer stands for the time at which the functions have its level.

        Returns:
            (d alpha / dt, d sigma / dt), two float64 arrays of t's shape.

        Raises:
            TypeError: the schedule is no function of time, or a schedule `from_functions` without ``derivatives=``.
            ValueError: a derivative is infinite: that of sigma at the time of clean data, for cosine and vp_linear.
            IndexError, ValueError, TypeError: as ``schedule(t)``.

        >>> d_alpha, d_sigma = nf.Schedule.flow(shift=3.0).derivatives(0.5)
        >>> float(d_alpha), float(d_sigma)
        (-0.75, 0.75)
        """
        known, levels, t = self._family, self(t), np.asarray(t)
        if known is None or known.slopes is None:
            missing = "is no function of time" if known is None else "needs from_functions(.., derivatives=)"
            raise TypeError(
                f'the velocity needs derivatives by time: a {self.kind} schedule {missing}. "epsilon", "v", "sample" '
                'and "flow" (z - x0) need none'
            )
        own = t.astype(np.float64) if t.dtype.kind == "f" else self.time_at(families.log_snr(*levels))
        d_alpha, d_sigma = families.with_slopes(known, self._parameters, own if own.ndim else own.item())[2:]
        return np.asarray(d_alpha), np.asarray(d_sigma)

    def time_at(self, log_snr: npt.ArrayLike) -> Array:
        """The time at which log(alpha^2 / sigma^2) has this value, by bisection.

        Args:
            log_snr: Numbers of any shape. Values beyond the ends give the ends.

        Returns:
            Float times of this schedule in float64, of the shape of log_snr.

        Raises:
            TypeError: The schedule has no continuous time.

        >>> round(float(nf.Schedule.flow().time_at(0.0)), 6)
        0.5
        """
        if self._family is None:
            raise TypeError(f"a {self.kind} schedule has no continuous time")
        values = np.asarray(log_snr, np.float64)
        if self._family.last == math.inf:  # alpha = 1 and the time is sigma
            return np.exp(-0.5 * values)
        return families.time_at(self._family, self._parameters, values)

    def model_time(self, t: Any, kind: ModelTime | None = None, prediction: Prediction | None = None) -> Any:
        """Returns the time that a network is given at t: the numbers that samplers of this ``model_time`` give it.

        Args:
            t: as in `q_sample`, integers or floats of any shape: a number, an array, a tensor, or an array of JAX's.
            kind: "index", "sigma", "schedule" or a function, as the samplers' ``model_time``. An own time t has the
                index (t - first) / (last - first) T - 1. None: sigma where alpha = 1 or alpha + sigma = 1, else the
                index.
            prediction: as that of samplers. One with a time of its own, such as "edm", takes no kind.

        Returns:
            Times of t's shape, kind and device. Indices of indices are t itself, all others float64, which tensors and
            JAX's arrays round to float32 unless t is float64.

        Raises:
            ValueError: an index would lie below 0, or as for ``schedule(t)``; a kind for such a prediction.
            TypeError: the schedule has no time of its own, for "schedule"; or as for ``schedule(t)``.

        >>> flow = nf.Schedule.flow(1000, shift=3.0)
        >>> flow.model_time(0.5), flow.model_time(0.5, "schedule"), flow.model_time(0.5, "index")
        (0.75, 0.5, 499.0)
        """
        check_plain("t", t)
        library = library_for(t)
        times = np.asarray(library.to_numpy(t))
        levels = self(times)
        own, is_index = view(prediction or "epsilon", self), times.dtype.kind in "iu"
        if own.time is not own_time:
            if kind is not None:
                raise ValueError(f'kind: expected none, as a prediction of "{own.name}" has a time of its own')
            alpha, sigma = (column.ravel().tolist() for column in levels)
            network_times = np.array([own.time(a, s, math.nan) for a, s in zip(alpha, sigma, strict=True)]).reshape(
                times.shape
            )
        elif is_index and self.axis.kind(kind) == "index":
            network_times = times
        else:
            axis = self.axis
            numbers = times.astype(np.float64)
            network_times = axis.times(Place(*levels, at=numbers) if is_index else Place(*levels, own=numbers), kind)
            if axis.kind(kind) == "index" and np.any(network_times < 0):
                raise ValueError(f"t = {times[network_times < 0][0]:g}: expected a time from the first index on")
        if library is NUMPY:
            return network_times if network_times.ndim else network_times.item()
        if network_times is times:
            return t
        return library.moved(network_times.astype(np.float64 if times.dtype == np.float64 else np.float32), t)

    def forward(
        self, target: Target | None = None, *, scale: float = 1.0, offset: float = 0.0, t: npt.ArrayLike | None = None
    ) -> Tableau:
        """Returns the forward process as a table: row t is x_t = alpha_t x0' + sigma_t z with x0' = scale x0 + offset.

        diffusers calls this add_noise; `q_sample` is ``update`` with this table, except for the noise's stream.

        Args:
            target: the networks' target, as in `q_sample`. It is the table's aux1.
            t: times (B,), integers or floats for ``schedule(t)``: the table then has a row for each time, not for each
                step.
        """
        if t is None:
            return of_rows(self.kept.of(forward, target, scale, offset), f"q_sample, {self.name}")
        times = np.ravel(t)
        rows = forward(*self(times), target, scale, offset, lambda: self.derivatives(times))
        return of_rows(rows, f"q_sample, {self.name}")

    def markov(self) -> Tableau:
        """The Markov steps as a table: row t is x_t = a_t x_(t-1) + s_t z, with a and s of ``step_coefficients``."""
        return of_rows(self.kept.markov, f"q_step, {self.name}")

    @kept_property
    def snr(self) -> Array:
        """SNR_t = alpha_t^2 / sigma_t^2, (T,); 0 at the end if the last alpha is 0."""
        return frozen((self.alpha / self.sigma) ** 2)

    @kept_property
    def betas(self) -> Array:
        """beta_t = 1 - alpha_t^2 / alpha_{t-1}^2, (T,); exactly the given ones, if betas were given.

        AttributeError: alpha^2 + sigma^2 is not 1 (to 1e-12). ``hasattr(schedule, "betas")`` tells.
        """
        if self._betas is not None:
            return self._betas
        self._check_variance_preserving("betas", AttributeError)
        return frozen(self.step_coefficients()[1] ** 2)

    @kept_property
    def alphas_cumprod(self) -> Array:
        """abar_t = alpha_t^2, (T,); AttributeError if alpha^2 + sigma^2 is not 1 (to 1e-12)."""
        self._check_variance_preserving("alphas_cumprod", AttributeError)
        return frozen(self.alpha**2)

    def step_coefficients(self) -> AlphaSigma:
        """Returns (a, s), each (T,) and read-only, of one Markov step x_t = a_t x_{t-1} + s_t z.

            a_t = alpha_t / alpha_{t-1},   s_t^2 = sigma_t^2 - a_t^2 sigma_{t-1}^2

        with alpha_{-1} = 1, sigma_{-1} = 0; exactly sqrt(1 - beta), sqrt(beta) if betas were given. The composed steps
        of every family give alpha and sigma again, to 1e-12 (relative).
        """
        return self._step_coefficients

    @kept_property
    def _step_coefficients(self) -> AlphaSigma:
        if self._betas is not None:
            return frozen(np.sqrt(1 - self._betas)), frozen(np.sqrt(self._betas))
        a = self.alpha / np.append(1.0, self.alpha[:-1])
        carried = a * np.append(0.0, self.sigma[:-1])
        # the difference of squares as a product, which cancels less; rounding alone could make it negative
        variance = np.maximum((self.sigma - carried) * (self.sigma + carried), 0.0)
        return frozen(a), frozen(np.sqrt(variance))

    def rescale_zero_terminal_snr(self) -> Self:
        """Returns a schedule whose last step is pure noise: Lin et al. 2023 (algorithm 1).

            alpha'_t = alpha_0 (alpha_t - alpha_{T-1}) / (alpha_0 - alpha_{T-1}),  sigma' = sqrt(1 - alpha'^2)

        Returns:
            A `Schedule` of as many steps, or itself if the last alpha is 0 already.

        Raises:
            ValueError: alpha^2 + sigma^2 is not 1, or there is only one step.

        >>> nf.Schedule.linear(1000).rescale_zero_terminal_snr().alpha[-1].item()
        0.0
        """
        self._check_variance_preserving("rescale_zero_terminal_snr", ValueError)
        first, last = self.alpha[0], self.alpha[-1]
        if last == 0:
            return self
        if first == last:
            raise ValueError("rescale_zero_terminal_snr needs at least 2 steps: it keeps the first, got 1")
        alpha = first * ((self.alpha - last) / (first - last))
        sigma = np.sqrt((1 - alpha) * (1 + alpha))
        return type(self)(alpha, sigma, _kind=f"{self.kind}_zero_terminal_snr", _parameters=self._parameters)

    def _check_variance_preserving(self, what: str, error: type[Exception]) -> None:
        variance = self.alpha**2 + self.sigma**2
        off = np.flatnonzero(np.abs(variance - 1) > 1e-12)
        if off.size:
            t = int(off[0])
            raise error(
                f"{what} needs a variance-preserving schedule, alpha^2 + sigma^2 = 1; "
                f"in this one ({self.kind}) it is {variance[t]} at index {t}"
            )


def require(
    valid: Any, name: str, values: npt.NDArray[Any], expected: str, error: type[Exception] = ValueError
) -> None:
    """Raises an error that names the first of values that is not valid."""
    if not np.all(valid):
        raise error(f"{name} must be {expected}; got {first_of(name, ~np.asarray(valid), values)}")


def column(name: str, values: npt.ArrayLike, valid: Callable[[Array], Any], expected: str) -> Array:
    check_plain(name, values)
    column = np.asarray(values)
    if column.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got dtype {column.dtype}")
    if column.ndim != 1 or not column.size:
        raise ValueError(f"{name} must be one-dimensional with at least one step, got shape {column.shape}")
    column = column.astype(np.float64)
    require(valid(column), name, column, expected)
    return column


def betas_of(values: npt.ArrayLike) -> Array:
    return column("betas", values, lambda v: (v > 0) & (v <= 1), "in (0, 1]")


def frozen(column: Array) -> Array:
    column = column + 0.0  # a copy, which turns -0.0 into 0.0, for equality
    column.flags.writeable = False
    return column


def grid(steps: int) -> Array:
    """Returns 0, 1/T, .., 1."""
    return np.arange(check_integer("steps", steps, 1) + 1) / steps
