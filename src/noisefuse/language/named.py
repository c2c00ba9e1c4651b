# SPDX-License-Identifier: Apache-2.0
"""Noise levels with a name: they are printed, compared and stored, with functions of users by that name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from ..ground import notebook, stored
from ..ground.drawing import plot_levels
from ..ground.kept import kept_property
from . import families
from .curve import Curve, betas_of, frozen, grid
from .families import FAMILIES, Array, Family, Functions, Slopes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Named(Curve):
    """Noise levels as a value with a name."""

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value}" for name, value in self._parameters.items())
        alpha, sigma = (f"{column[0]:.4g} .. {column[-1]:.4g}" for column in (self.alpha, self.sigma))
        kind = self.kind if self.name == self.kind else f"{self.name}: {self.kind}"
        times = ""
        if self._family is not None:
            symbol, first, last, *_ = self._family
            ends = f" from {first}, the cleanest, to {last}, the noisiest" if last < math.inf else ""
            times = f"\n  a float t is {symbol}{ends}; an integer t is a step from 0 to {len(self) - 1}"
        return (
            f"Schedule({kind}, steps={len(self)}{parameters})\n"
            f"  alpha {alpha}, sigma {sigma}, terminal SNR {self.snr[-1]:.4g}{times}"
        )

    def _repr_html_(self) -> str:
        """The repr with a plot, for notebooks."""
        title, *lines = repr(self).splitlines()
        return notebook.table(title, [[line.strip()] for line in lines], notebook.levels(self.alpha, self.sigma, "t"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plots alpha, sigma (left axis) and log-SNR (right axis) against the index t; returns the left axis.

        If alpha is 1 (variance exploding), it plots sigma alone, on a logarithmic axis.

        Args:
            ax: matplotlib Axes to draw on; None: a new figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot_levels(ax, self.alpha, self.sigma, "t", f"{self.name}, {len(self)} steps")

    def with_name(self, name: str) -> Self:
        """Returns the same schedule with this name. The two are equal."""
        return self._rebuilt(name)(self.alpha, self.sigma)

    def _rebuilt(self, name: str) -> Callable[..., Self]:
        rebuild = partial(type(self), name=name, _kind=self.kind, _parameters=self._parameters, _betas=self._betas)
        return partial(rebuild, _family=self._family) if self._has_functions else rebuild

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Named) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @kept_property
    def _key(self) -> tuple[object, ...]:
        betas = b"" if self._betas is None else self._betas.tobytes()
        functions = (self._family,) if self._has_functions else ()
        return self.kind, *self._parameters.items(), self.alpha.tobytes(), self.sigma.tobytes(), betas, *functions

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Equal schedules give layers of dask's graphs equal names."""
        return "noisefuse.Schedule", *self._key

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @classmethod
    def from_functions(
        cls, alpha: Callable[..., npt.ArrayLike], sigma: Callable[..., npt.ArrayLike], *, name: str, steps: int = 1000,
        times: tuple[float, float] = (0.0, 1.0),
        derivatives: tuple[Callable[..., npt.ArrayLike], Callable[..., npt.ArrayLike]] | None = None,
        **parameters: float,
    ) -> Self:  # fmt: skip
        """A schedule of your own in continuous time: alpha and sigma as functions of t.

        Columns, for integer t and samplers, are those at t = times[0] + (i + 1) / T (times[1] - times[0]).

        Args:
            alpha, sigma: functions alpha(t, **parameters), which take a float64 array of times and return an array of
                its shape. alpha lies in [0, 1] and sigma is at least 0. alpha / sigma falls strictly from times[0] to
                times[1]; it may be infinite or 0 at these ends alone.
            name: The schedule's name in prints and files. It is not the name of a family of noisefuse.
            steps: How many columns, T, at least 1.
            times: The cleanest and the noisiest time, finite. A float t lies between them.
            derivatives: Those of alpha and of sigma by t, two functions of the same kind, which the target and the
                prediction "velocity" need. They are finite, but perhaps at times[0].
            parameters: Numbers, which the functions get by name.

        Returns:
            A `Schedule`. It can be pickled, and written as JSON, if `register` knows its functions by this name.

        Raises:
            ValueError: A function breaks a rule. The message says at which t.
            TypeError: An argument of another type.

        >>> mine = nf.Schedule.from_functions(lambda t: 1 - t**2, lambda t: t, name="mine")
        >>> x_t = nf.q_sample(np.ones((2, 3), np.float32), [0.25, 0.75], mine, nf.Noise(7))
        >>> [float(column) for column in mine(0.5)]
        [0.75, 0.5]
        """
        family = _family_of(cls, name, alpha, sigma, times, derivatives)
        numbers = {key: stored.number(key, value) for key, value in parameters.items()}
        families.checked(family, numbers)
        return cls._of_family(name, steps, family, **numbers)

    @classmethod
    def register(
        cls, name: str, alpha: Callable[..., npt.ArrayLike], sigma: Callable[..., npt.ArrayLike], *,
        times: tuple[float, float] = (0.0, 1.0),
        derivatives: tuple[Callable[..., npt.ArrayLike], Callable[..., npt.ArrayLike]] | None = None,
    ) -> None:  # fmt: skip
        """Registers functions under a name. Pickles and JSON of a schedule `from_functions` store this name.

        A process that reads such a schedule registers the same functions first: call this in a module that it imports.

        Args:
            name, alpha, sigma, times, derivatives: As in `from_functions`. A later call with the same name replaces the
                functions.

        Raises:
            TypeError, ValueError: As in `from_functions`, for the name, the times and the derivatives' type.

        >>> def alpha(t, power): return 1 - t**power
        >>> def sigma(t, power): return t
        >>> nf.Schedule.register("power", alpha, sigma)
        >>> schedule = nf.Schedule.from_functions(alpha, sigma, name="power", power=3.0)
        >>> nf.Schedule.from_json(schedule.to_json()) == schedule
        True
        """
        FAMILIES[name] = _family_of(cls, name, alpha, sigma, times, derivatives)

    @classmethod
    def _of_family(cls, kind: str, steps: int, own: Family | None = None, **parameters: float) -> Self:
        family = own or FAMILIES[kind]
        t = family.first + grid(steps)[1:] * (family.last - family.first)
        alpha, sigma = family.at(t, **parameters)
        return cls(alpha, sigma, _kind=kind, _parameters=parameters, _family=own)

    @property
    def _has_functions(self) -> bool:
        """Tells whether alpha and sigma are functions of a user's."""
        return self._family is not None and isinstance(self._family.at, Functions)

    def _check_registered(self) -> None:
        if self._has_functions and FAMILIES.get(self.kind) != self._family:
            raise TypeError(
                f"a schedule of functions is stored by its name, and {self.kind!r} does not name these: call "
                f"nf.Schedule.register({self.kind!r}, alpha, sigma) first, with the same times and derivatives"
            )

    def to_json(self) -> str:
        """Returns plain JSON. ``from_json`` restores every bit of alpha, sigma and betas.

        >>> schedule = nf.Schedule.cosine(1000)
        >>> nf.Schedule.from_json(schedule.to_json()) == schedule
        True
        """
        import json

        self._check_registered()
        columns = {"alpha": self.alpha, "sigma": self.sigma, "betas": self._betas}
        fields: dict[str, Any] = {
            "noisefuse schedule": 1,
            "name": self.name,
            "kind": self.kind,
            "parameters": {**self._parameters},
        }
        if self._has_functions:
            fields["functions"] = True
        return json.dumps(fields | {key: None if c is None else c.tolist() for key, c in columns.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the JSON of ``to_json``.

        Args:
            text: JSON.

        Returns:
            A `Schedule` equal to the original, with its name.

        Raises:
            ValueError: the text is not a schedule, or one of another version; or its name is registered for other
                functions than those that were stored.

        >>> schedule = nf.Schedule.karras(10).with_name("mine")
        >>> nf.Schedule.from_json(schedule.to_json()).name
        'mine'
        """
        return stored.read("schedule", text, cls._of_stored)

    @classmethod
    def _of_stored(cls, fields: dict[str, Any]) -> Self:
        kind, parameters, betas = (fields.pop(key) for key in ("kind", "parameters", "betas"))
        if not isinstance(kind, str) or not isinstance(parameters, dict):
            raise TypeError(f"kind and parameters: expected a str and a dict, got {kind!r:.60} and {parameters!r:.60}")
        if fields.pop("functions", False):
            _check_family(kind)
        parameters = {name: stored.number(name, value) for name, value in parameters.items()}
        for name in {"alpha", "sigma"} & {*fields}:
            fields[name] = stored.numbers(name, fields[name])
        frozen_betas = None if betas is None else frozen(betas_of(stored.numbers("betas", betas)))
        schedule = cls(**fields, _kind=kind, _parameters=parameters, _betas=frozen_betas)
        if schedule.continuous:
            with np.errstate(all="ignore"):
                level = schedule(0.5)  # TypeError: a parameter of its family is missing
            if not np.all(np.isfinite(level)):
                raise ValueError(f"parameters: expected those of a {kind} schedule, got {parameters}")
        if schedule._has_functions:
            _check_same_functions(schedule)
        return schedule

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._has_functions:
            self._check_registered()
            return _of_registered, (type(self), self.name, self.kind, self._parameters, self.alpha, self.sigma)
        return self._rebuilt(self.name), (self.alpha, self.sigma)  # unpickled arrays would be writable

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)


def _family_of(cls: type, name: str, alpha: Any, sigma: Any, times: Any, derivatives: Any) -> Family:
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected a str, got {name!r:.60}")
    if name in families.OURS or hasattr(cls, name):
        raise ValueError(f"name = {name!r}: expected one that noisefuse does not have itself")
    for what, function in (("alpha", alpha), ("sigma", sigma)):
        if not callable(function):
            raise TypeError(f"{what}: expected a function of t, got {type(function).__name__}")
    pair = derivatives if isinstance(derivatives, tuple | list) else ()
    if derivatives is not None and not (len(pair) == 2 and all(map(callable, pair))):
        raise TypeError(f"derivatives: expected a pair of functions of t, got {derivatives!r:.60}")
    ends = np.asarray(times, np.float64)
    if ends.shape != (2,) or not np.isfinite(ends).all() or not ends[0] < ends[1]:
        raise ValueError(f"times = {times!r}: expected (first, last), finite and rising")
    return Family("t", float(ends[0]), float(ends[1]), Functions(alpha, sigma), Slopes(*pair) if pair else None)


def _check_family(kind: str) -> None:
    if kind not in FAMILIES:
        raise ValueError(
            f"{kind!r} names functions that are not known here: call nf.Schedule.register({kind!r}, alpha, sigma) first"
        )


def _of_registered(
    cls: type[Named], name: str, kind: str, parameters: dict[str, float], alpha: Array, sigma: Array
) -> Named:
    _check_family(kind)
    schedule = cls(alpha, sigma, name=name, _kind=kind, _parameters=parameters)
    _check_same_functions(schedule)
    return schedule


def _check_same_functions(schedule: Named) -> None:
    """Raises ValueError if the registered functions are not those of the stored columns."""
    functions = type(schedule)._of_family(schedule.kind, len(schedule), None, **schedule._parameters)
    for name in ("alpha", "sigma"):
        stored_column, column = getattr(schedule, name), getattr(functions, name)
        if (far := ~np.isclose(column, stored_column, rtol=1e-6, atol=1e-12)).any():  # machines round differently
            t = int(np.argmax(far))
            raise ValueError(
                f"{schedule.kind!r} is registered for other functions here than those that were stored: {name} is "
                f"{column[t]} at index {t}, expected {stored_column[t]}"
            )
