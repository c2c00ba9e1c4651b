# SPDX-License-Identifier: Apache-2.0
"""The library that an array belongs to. `interop` registers the array libraries beside NumPy here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import numpy as np


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Library, *arguments: Any, **options: Any) -> Any:
        raise self._refusal(name)

    return refuse


def on_views(path: str) -> Callable[..., Any]:
    """Returns an operation that runs noisefuse's own function on NumPy's views."""

    def operation(self: Library, *arguments: Any, **options: Any) -> Any:
        return self.through(attrgetter(path)(sys.modules["noisefuse"]), *arguments, **options)

    return operation


class Library:
    """What a library of arrays offers to noisefuse. Each default is NumPy's answer, or a refusal in plain words.

    Attributes:
        name: The library's name, for messages.
        is_written: Whether results may be written to its arrays.
        is_lazy: Whether its arrays are computed later.
        floating: The dtypes of its arrays that are no integer levels.
        time: The default of `Sampler.model_input`'s argument `time` for arrays of the library.
        fast_row, fast_random: Replacements of the fast path while `is_traced()` is true, or None.
        sample: A function that runs `Sampler.sample` in one compiled loop, or None.
        prepare: `augment.prepare`, or None if `augmented` is enough.
        of_arrays: Wraps a model that answers NumPy's arrays so that it takes arrays of the library, or None.
    """

    is_written = True
    is_lazy = False
    floating: frozenset[Any] = frozenset(map(np.dtype, "efd"))
    time: Literal["scalar", "batch"] = "scalar"
    fast_row: Callable[..., Any] | None = None
    fast_random: Callable[..., Any] | None = None
    sample: Callable[..., Any] | None = None
    prepare: Callable[..., Any] | None = None
    of_arrays: Callable[..., Any] | None = None

    def __init__(self, name: str, **offered: Any) -> None:
        """Takes what the library offers, by the names of this class. TypeError: the class has no such name."""
        self.name = name
        for key, value in offered.items():
            if not hasattr(Library, key):
                raise TypeError(f"{key}: noisefuse.interop.Library has no such attribute")
            setattr(self, key, value)

    def adds_draws(self) -> bool:
        """Tells whether the library takes increments, which are sums of draws."""
        return not self.is_traced()

    # ---- arrays --------------------------------------------------------------------------------------------

    def is_traced(self) -> bool:
        """Tells whether a compiler traces the call. It cannot trace the fast path."""
        return False

    def can_warn(self) -> bool:
        """Tells whether a warning may be given: a compiler cannot trace one."""
        return True

    def untraced(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function that a compiler cannot trace."""
        return function(*arguments)

    def check_plain(self, name: str, x: Any) -> None:
        """Raises TypeError if x is an array of the library that stands for several, or for a part of one."""

    def to_numpy(self, x: Any) -> Any:
        """Returns x as a NumPy array in host memory."""
        return x.get() if hasattr(x, "get") else np.asarray(x)  # CuPy's arrays are copied when they are asked to

    def in_memory(self, x: Any) -> bool:
        """Tells whether x is host memory that operations may write to."""
        return isinstance(x, np.ndarray)

    def moved(self, x: Any, to: Any) -> Any:
        """Returns NumPy's x as an array of the library, on the device of the array `to`."""
        return x

    def zeros_like(self, x: Any) -> Any:
        """Returns zeros of x's shape and dtype, in C order."""
        return np.zeros_like(x, order="C")

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Returns a where the condition holds, else b."""
        return np.where(condition, a, b)

    def times(self, x: Any, t: Any, kind: str) -> Any:
        """Returns t for each sample of x, in this dtype."""
        return (
            np.full(x.shape[:1], t, kind) if isinstance(x, np.ndarray) else np.full_like(x, t, kind, shape=x.shape[:1])
        )

    def following(self, result: Any, *products: tuple[Any, Any, int]) -> Any:
        """Returns a result that has gradients with respect to numbers in which it is linear. A product is (number,
        derivative, sign)."""
        return result

    def time_of(self, times: Any, i: Any) -> Any:
        """Returns the time of a row whose number is traced."""
        raise self._refusal("a row number that is traced")

    def chosen(self, numbers: Any, i: Any, choices: Any) -> Any:
        """Returns the choice of a row whose number is traced."""
        raise self._refusal("a row number that is traced")

    def on_host(self, function: Any, given: Any, shape: tuple[int, ...], n: int | None = None) -> Any:
        """Returns function(given), an array of float64, or n of them, of this shape, for times or a Noise that are
        traced."""
        raise self._refusal("times that are traced")

    def empty(self, shape: Any, dtype: Any, device: Any) -> Any:
        """Returns an array on a device, for `randn(.., device=..)`."""
        raise self._refusal("device=")

    def from_key(self, key: Any) -> Any:
        """Returns `Noise.from_key` of a key of the library."""
        raise self._refusal("Noise.from_key")

    def in_graph(self, row: Any, arguments: Any, name: str, table: Any, options: Any) -> Any:
        """Returns `row(*arguments)`, the plain call of a function with this name, table and options, with gradients.
        NotImplemented: autograd watches none of the arrays, or the call is not plain."""
        return NotImplemented

    def with_gradient(
        self, name: str, made: Any, first: Any, names: Any, tensors: Any, rest: Any = (), constant: Any = ()
    ) -> Any:
        """Returns the loss of a function of this name, whose fast path made it and its gradient by the first array,
        because autograd watches it. The function's arguments have these names: tensors (or None), the rest, and what
        nobody can change."""
        raise self._refusal(name)

    def token_log_prob(self, sampler: Any, i: int, x: Any, logits: Any, x_next: Any, where: Any) -> Any:
        """Returns `DiscreteSampler.log_prob` of the library's arrays."""
        return self.through(sampler.log_prob, i, x, logits, x_next, where=where)

    def on_device(self, x: Any, device: Any) -> Any:
        """Returns NumPy's x as an array of the library on a device."""
        raise self._refusal("device=")

    def _refusal(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{what}: noisefuse does not offer that for arrays of {self.name}")

    # ---- operations ----------------------------------------------------------------------------------------
    # Their arguments are those of the functions of the same names; `augmented` calls a function of `augment`. What a
    # library leaves out runs on views of its arrays, if it has `view` and `from_numpy`.

    randn: Callable[..., Any] = on_views("randn")
    randn_like: Callable[..., Any] = on_views("randn_like")
    uniform: Callable[..., Any] = on_views("uniform")
    q_sample: Callable[..., Any] = on_views("q_sample")
    q_step: Callable[..., Any] = on_views("q_step")
    q_walk: Callable[..., Any] = on_views("q_walk")
    update: Callable[..., Any] = on_views("update")
    q_mask: Callable[..., Any] = on_views("q_mask")
    categorical: Callable[..., Any] = on_views("categorical")
    masked_cross_entropy: Callable[..., Any] = on_views("masked_cross_entropy")
    masked_cross_entropy_and_grad: Callable[..., Any] = on_views("masked_cross_entropy_and_grad")
    rate_loss: Callable[..., Any] = on_views("rate_loss")
    rate_loss_and_grad: Callable[..., Any] = on_views("rate_loss_and_grad")
    mse_loss: Callable[..., Any] = on_views("mse_loss")
    mse_loss_and_grad: Callable[..., Any] = on_views("mse_loss_and_grad")
    mse_loss_grad: Callable[..., Any] = on_views("mse_loss_grad")
    interpolate: Callable[..., Any] | None = None  # without it, noise is drawn and `update` reads it; and so for noised
    noised: Callable[..., Any] | None = None
    interpolate_loss: Callable[..., Any] = on_views("interpolate_loss")
    interpolate_loss_and_grad: Callable[..., Any] = on_views("interpolate_loss_and_grad")
    log_prob: Callable[..., Any] = on_views("density.log_prob")
    log_prob_grad: Callable[..., Any] = on_views("density.log_prob_grad")
    kl: Callable[..., Any] = on_views("density.kl")
    kl_grad: Callable[..., Any] = on_views("density.kl_grad")
    update_with_log_prob: Callable[..., Any] = _refused("update_with_log_prob")
    augmented: Callable[..., Any] = _refused("augment")

    def view(self, name: str, x: Any) -> Any:
        """Returns NumPy's view of x's memory. `name` is the operation, for errors."""
        raise self._refusal(name)

    def from_numpy(self, array: Any, like: Any) -> Any:
        """Returns a result as an array of the library, beside the array `like`."""
        raise self._refusal("from_numpy")

    def written(self, x: Any, array: Any) -> Any:
        """Returns x, to whose view an operation wrote."""
        return x

    def through(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls a function of NumPy's arrays with views of the library's. Returns results as arrays of the library."""
        call = partial(self._through, function, *arguments, **options)
        return self.untraced(call) if self.is_traced() else call()

    def _through(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        name, given = function.__name__.removeprefix("_"), []

        def inward(x: Any) -> Any:
            if hasattr(x, "shape") and library_of(x) is self:
                given.append((self.view(name, x), x))
                return given[-1][0]
            return type(x)(map(inward, x)) if type(x) in (tuple, list) else x

        def outward(result: Any) -> Any:
            if isinstance(result, tuple | list):
                return getattr(result, "_make", type(result))(map(outward, result))  # the first, of a NamedTuple
            if not hasattr(type(result), "__array_function__"):  # an array of NumPy, or of a device
                return result
            own = next((x for array, x in given if array is result), None)
            return self.from_numpy(result, given[0][1]) if own is None else self.written(own, result)

        for output in ("out", "target_out", "aux_out"):
            self._check_output(output, options.get(output))
        arguments = tuple(map(inward, arguments))
        options = {key: inward(value) for key, value in options.items()}
        if not given:
            raise self._refusal(name)
        return outward(function(*arguments, **options))

    def _check_output(self, name: str, out: Any) -> None:
        if isinstance(out, list | tuple):
            for one in out:
                self._check_output(name, one)
        elif not self.is_written and hasattr(out, "shape"):
            raise TypeError(f"{name}: expected None, as arrays of {self.name} are not written to")
        elif hasattr(out, "shape") and library_of(out) is not self:
            raise TypeError(f"{name}: expected an array of {self.name}, got {type(out).__name__}")


NUMPY = Library("NumPy")  # CuPy answers like NumPy

_loaders: dict[Any, Callable[[], Library]] = {}  # by type, or by the root module of a library's types
_libraries: dict[type, Any] = dict.fromkeys((np.ndarray, type(None), bool, int, float, str, list, tuple, type), None)
_libraries |= dict.fromkeys((type(np.dtype(code)) for code in "efd"), None)


def register(of: type | str, library: Library | Callable[[], Library]) -> None:
    """Registers a library for arrays of a type, or for those of all types of a root module.

    Args:
        of: The type, which stands for its subclasses too, or the name of a root module.
        library: The library, or a function that loads it when the first such array is seen.

    Raises:
        TypeError: `of` is neither a type nor a name, or `library` is neither a library nor a function.
    """
    if not isinstance(of, type | str):
        raise TypeError(f"of: expected a type of arrays, or the name of a module, got {type(of).__name__}")
    if isinstance(library, type) or not (isinstance(library, Library) or callable(library)):
        kind = f"the class {library.__name__}: pass {library.__name__}(name)" if isinstance(library, type) else library
        raise TypeError(f"library: expected a Library, or a function that returns one, got {kind}")
    _loaders[of] = (lambda: library) if isinstance(library, Library) else library
    for seen, found in list(_libraries.items()):
        if found is not None:  # it is found again, perhaps in this library
            _libraries.pop(seen, None)


def library(root: str) -> Any:
    """Returns the library that was registered for a root module."""
    return _loaders[root]()


def library_of(x: object) -> Any:
    """Returns the library of an array, or of a dtype. It is None for NumPy's, and for types that nobody registered."""
    try:
        return _libraries[type(x)]
    except KeyError:
        found = _library_of(type(x))
    if found is not None:  # the number of other types is not bounded
        _libraries[type(x)] = found
    return found


def check_plain(name: str, x: object) -> None:
    """Raises TypeError if x is masked, or a tensor that stands for several or for a part of one. Lists pass."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; pass {name}.data or {name}.filled(...)")
    if (other := library_of(x)) is not None:
        other.check_plain(name, x)


def library_for(x: object) -> Any:
    """Returns the library of an array. It is `NUMPY` where `library_of` returns None."""
    return library_of(x) or NUMPY


def _library_of(kind: type) -> Any:
    for base in kind.__mro__:
        for of in (base, base.__module__.partition(".")[0]):
            if (load := _loaders.get(of)) is not None:
                return load()
    return None
