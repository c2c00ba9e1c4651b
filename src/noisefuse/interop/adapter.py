# SPDX-License-Identifier: Apache-2.0
"""Users' own array types: an adapter of two methods passes them through NumPy's arrays, in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.kinds import Library, library_of


def _through(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(self: ThroughNumPy, *arguments: Any, **options: Any) -> Any:
        return self.through(function, *arguments, **options)

    return operation


class ThroughNumPy(Library, ABC):
    """A library of arrays whose operations are NumPy's: they run on `to_numpy`'s arrays, and `from_numpy` wraps
    results.

    Its arrays have a `shape` and a `dtype`. `register` tells noisefuse the library's types. Every operation then takes
    and returns them.

    >>> class Tagged:
    ...     def __init__(self, values):
    ...         self.values, self.shape, self.dtype = values, values.shape, values.dtype
    >>> class TaggedArrays(nf.interop.ThroughNumPy):
    ...     def to_numpy(self, x):
    ...         return x.values
    ...
    ...     def from_numpy(self, array, like):
    ...         return Tagged(array)
    >>> nf.interop.register(Tagged, TaggedArrays("Tagged"))
    >>> x_t = nf.q_sample(Tagged(np.ones((2, 3), np.float32)), 3, nf.Schedule.linear(10), nf.Noise(7))
    >>> type(x_t).__name__, x_t.shape
    ('Tagged', (2, 3))
    """

    is_written = False

    @abstractmethod
    def to_numpy(self, x: Any) -> Any:
        """Returns x as a NumPy array. If `is_written`, it is a view of x's memory, and `out=` is taken."""

    @abstractmethod
    def from_numpy(self, array: Any, like: Any) -> Any:
        """Returns a result as an array of the library. `like` is the first of its arrays that the call was given."""

    def through(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls a function of NumPy's arrays with arrays of the library. Returns results as arrays of the library."""
        given: list[tuple[Any, Any]] = []

        def inward(x: Any) -> Any:
            if library_of(x) is self:
                given.append((self.to_numpy(x), x))
                return given[-1][0]
            return type(x)(map(inward, x)) if type(x) in (tuple, list) else x

        def outward(result: Any) -> Any:
            if type(result) in (tuple, list):
                return type(result)(map(outward, result))
            if type(result) is dict:
                return {name: outward(value) for name, value in result.items()}
            if not isinstance(result, np.ndarray):
                return result
            own = next((x for array, x in given if array is result), None)  # it was written to
            return self.from_numpy(result, given[0][1]) if own is None else own

        for name in ("out", "target_out", "aux_out"):
            self._need_output(name, options.get(name))
        arguments = tuple(map(inward, arguments))
        options = {name: inward(value) for name, value in options.items()}
        return outward(function(*arguments, **options))

    def _need_output(self, name: str, out: Any) -> None:
        if isinstance(out, list | tuple):
            for one in out:
                self._need_output(name, one)
        elif not self.is_written and hasattr(out, "shape"):
            raise TypeError(f"{name}: expected None, as arrays of {self.name} are not written to")
        elif hasattr(out, "shape") and library_of(out) is not self:
            raise TypeError(f"{name}: expected an array of {self.name}, got {type(out).__name__}")

    def moved(self, x: Any, to: Any) -> Any:
        return self.from_numpy(x, to)

    def zeros_like(self, x: Any) -> Any:
        return self.through(np.zeros_like, x)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self.through(np.where, condition, a, b)

    def times(self, x: Any, t: Any, kind: str) -> Any:
        return self.from_numpy(np.full(x.shape[:1], t, kind), x)

    def augmented(self, function: Callable[..., Any], x: Any, noise: Any, **options: Any) -> Any:
        return self.through(function, x, noise, **options)

    def update_with_log_prob(
        self, table: Any, i: Any, x: Any, model_output: Any, noise: Any, *, past: Any, out: Any, aux_out: Any,
        **law: Any,
    ) -> Any:  # fmt: skip
        made = self.update(table, i, x, model_output, past=past, noise=noise, out=out, aux_out=aux_out)
        first = made[0] if isinstance(aux_out, int) else made
        return made, self.log_prob(table, i, x, model_output, first, past=past, **law)

    randn: Callable[..., Any] = _through(nf.randn)
    randn_like: Callable[..., Any] = _through(nf.randn_like)
    uniform: Callable[..., Any] = _through(nf.uniform)
    q_sample: Callable[..., Any] = _through(nf.q_sample)
    q_step: Callable[..., Any] = _through(nf.q_step)
    q_walk: Callable[..., Any] = _through(nf.q_walk)
    update: Callable[..., Any] = _through(nf.update)
    categorical: Callable[..., Any] = _through(nf.categorical)
    masked_cross_entropy: Callable[..., Any] = _through(nf.masked_cross_entropy)
    masked_cross_entropy_and_grad: Callable[..., Any] = _through(nf.masked_cross_entropy_and_grad)
    mse_loss: Callable[..., Any] = _through(nf.mse_loss)
    mse_loss_and_grad: Callable[..., Any] = _through(nf.mse_loss_and_grad)
    mse_loss_grad: Callable[..., Any] = _through(nf.mse_loss_grad)
    interpolate_loss: Callable[..., Any] = _through(nf.interpolate_loss)
    interpolate_loss_and_grad: Callable[..., Any] = _through(nf.interpolate_loss_and_grad)
    log_prob: Callable[..., Any] = _through(nf.density.log_prob)
    log_prob_grad: Callable[..., Any] = _through(nf.density.log_prob_grad)
    kl: Callable[..., Any] = _through(nf.density.kl)
    kl_grad: Callable[..., Any] = _through(nf.density.kl_grad)
    prepare: Callable[..., Any] = _through(nf.augment.prepare)
