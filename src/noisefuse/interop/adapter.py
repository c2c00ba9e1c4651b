# SPDX-License-Identifier: Apache-2.0
"""Users' own array types: an adapter of two methods passes them through NumPy's arrays, in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ground.libraries import Library, on_views


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

    def view(self, name: str, x: Any) -> Any:
        return self.to_numpy(x)

    def in_memory(self, x: Any) -> bool:
        return self.is_written

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

    prepare: Callable[..., Any] = on_views("augment.prepare")
