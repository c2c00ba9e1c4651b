# SPDX-License-Identifier: Apache-2.0
"""Images of any size: a list of images, each of which is a sample with a key of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments.arrays import contiguous, float_dtype, is_array, output, overlap, same, wanted
from ..arguments.types import Array, DType
from ..backends import threads
from ..call.packed import address
from ..ground.libraries import Library, library_of
from ..language.levels import levels_of
from ..language.noise import one_each
from .numbers import as_numbers

_OBJECTS = np.dtype(object)
_AXES = {"std": 0, "mean": 0, "a": 0, "b": 0, "peak": 0, "amount": 0, "snr": 0, "matrix": 2}  # of one image's numbers
_LARGE = 1 << 15  # elements, which a thread of Python's is worth
_LINE = 64  # bytes, which kernels like results to begin at


class _Lists(Library):
    """Lists in place of arrays: `augmented` calls a function for each image, and returns a list."""

    def is_traced(self) -> bool:
        """Returns True, as the fast path takes no list."""
        return True

    def augmented(
        self, function: Callable[..., Array], x: Any, noise: Any, *, batched: bool | None = None, out: Any = None,
        dtype: DType | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        if isinstance(x, np.ndarray) and x.ndim != 1:
            raise ValueError(f"x: expected a list of images, or an array of numbers, got objects of shape {x.shape}")
        for b, image in enumerate(x):
            if beside_arrays(image) is self or not (is_array(image) or hasattr(image, "shape")):
                raise TypeError(f"x[{b}]: expected {wanted(image)}, got {type(image).__name__}")
        if batched is not None and not batched:
            raise ValueError("batched = False: expected None or True for a list, each image of which is a sample")
        names, options = one_each(noise, len(x)), options | {"batched": False, "dtype": dtype}
        of_numpy = all(isinstance(image, np.ndarray) for image in x)
        outs: Any = new_like(out, x) if out is not None else _outputs(x, dtype) if of_numpy else [None] * len(x)
        calls = deque(zip(range(len(x)), x, names, outs, _of_each(options, len(x)), strict=True))
        results: Any = [None] * len(x) if isinstance(x, list | tuple) else np.empty(len(x), object)
        errors: dict[int, Exception] = {}

        def taken() -> Iterator[Any]:
            with suppress(IndexError):  # none is left
                while True:
                    yield calls.popleft()

        def work() -> None:
            for b, image, name, into, given in taken():
                try:
                    results[b] = function(image, name, out=into, **given)
                except Exception as error:
                    error.add_note(f"This is of x[{b}], an image of a list.")
                    errors[b] = error
                    calls.clear()

        large = sum(image.size >= _LARGE for image in x) if of_numpy else 0
        threads.together(work, calls.clear, max(1, min(large, threads.count())))
        if errors:
            raise errors[min(errors)]
        return results if out is None else put(results, out)


LISTS = _Lists("lists")


def beside_arrays(x: object) -> Any:
    """Returns None for an array of NumPy's, `LISTS` for a list, or for objects in an array, else the library of x."""
    kind = type(x)
    if kind is np.ndarray:
        return LISTS if x.dtype is _OBJECTS else None  # type: ignore[attr-defined]
    return LISTS if kind is list or kind is tuple else library_of(x)


def is_traced(x: object) -> bool:
    """Tells whether x's library traces the call, to run it later."""
    return (other := beside_arrays(x)) is not None and bool(other.is_traced())


def _of_each(options: dict[str, Any], n: int) -> Iterable[dict[str, Any]]:
    """Returns the options of each image, with its own numbers."""
    given = options.get("numbers", options)
    found = {name: as_numbers(name, given[name]) for name in _AXES if np.ndim(given.get(name, 0)) > _AXES[name]}
    for name, values in found.items():
        if len(values) != n:
            raise ValueError(f"{name}: expected one for all, or for each of {n} images, got shape {values.shape}")
    if not found:
        return repeat(options, n)
    own = [{k: values[b] if values.ndim > 1 else float(values[b]) for k, values in found.items()} for b in range(n)]
    return [options | ({"numbers": given | numbers} if "numbers" in options else numbers) for numbers in own]


def new_like(out: Any, images: Any) -> list[NDArray[Any]]:
    """Returns memory for results that `put` copies to the caller's list of outputs, which is checked: an error of a
    later image then comes before anything is written."""
    if beside_arrays(out) is not LISTS:
        raise TypeError(f"out: expected a list of arrays for a list of images, got {type(out).__name__}")
    if len(out) != len(images):
        raise ValueError(f"out: expected one array for each of {len(images)} images, got {len(out)}")
    spans = []
    for b, (one, image) in enumerate(zip(out, images, strict=True)):
        if not (isinstance(one, np.ndarray) and isinstance(image, np.ndarray)):
            given = type(image if isinstance(one, np.ndarray) else one).__name__
            raise TypeError(f"out[{b}]: expected an array of NumPy's for an image of NumPy's, got {given}")
        output(f"out[{b}]", one, image.shape, one.dtype)
        if one.size and overlap(one, image) and not same(one, contiguous(image)):
            raise ValueError(f"out[{b}] overlaps x[{b}] in part: expected x[{b}] itself, or separate memory")
        spans.append((address(one), address(one) + one.nbytes, b))
    spans = sorted(span for span in spans if span[0] < span[1])
    for (_, end, b), (start, _, c) in pairwise(spans):
        if start < end:
            raise ValueError(f"out[{max(b, c)}] overlaps out[{min(b, c)}]: outputs must not share memory")
    return _placed(images, [one.dtype for one in out])


def put(results: Any, out: Any) -> Any:
    """Copies results to the caller's outputs, and returns these."""
    for one, result in zip(out, results, strict=True):
        one[...] = result
    return out


def _outputs(images: Any, dtype: DType | None) -> list[NDArray[Any]]:
    """Returns memory for results of this dtype, or those of the images."""
    given = None if dtype is None else np.dtype(levels_of(dtype) or float_dtype(dtype))
    return _placed(images, [given or image.dtype.newbyteorder("=") for image in images])


def _placed(images: Any, kinds: list[np.dtype[Any]]) -> list[NDArray[Any]]:
    """Returns new arrays, parts of one: its pages are large, and for arrays of their own the system takes as long as
    the kernel."""
    sizes = (-(-image.size * kind.itemsize // _LINE) * _LINE for image, kind in zip(images, kinds, strict=True))
    *starts, end = accumulate(sizes, initial=0)
    memory = backends.empty((end,), np.dtype(np.uint8))
    return [np.ndarray(i.shape, kind, memory, start) for i, kind, start in zip(images, kinds, starts, strict=True)]
