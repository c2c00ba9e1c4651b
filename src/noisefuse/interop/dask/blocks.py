# SPDX-License-Identifier: Apache-2.0
"""Splits a call with dask's arrays into a call for each block. The block's place gives its noise."""

from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.base import normalize_token, tokenize
from dask.layers import ArraySliceDep

import noisefuse as nf

from ...ground.kept import kept_property
from ...language.noise import ELEMENTS, each, listed

Shape: TypeAlias = tuple[int, ...]
Chunks: TypeAlias = tuple[Shape, ...]  # of each axis
Axes: TypeAlias = Mapping[str, Shape]


def same(lengths: Shape) -> Shape:
    return lengths


def longer(shape: Shape) -> Shape:
    return (*shape, 0) if shape else (1, 0)  # one sample


def without_window(noise: Any) -> Any:
    def changed(name: Any) -> Any:
        if not isinstance(name, nf.Noise):
            return name
        return nf.Noise(name.seed, sample=name.sample, step=name.step, stream=name.stream)

    return each(noise, changed)


@dataclass(frozen=True)
class Call:
    """A function of x (or of a shape, if nothing is read), of a noise, and of arguments by name.

    Attributes:
        name: the name of the graph's layers.
        function: function(x, noise, **arrays, **constants) -> an array, or a tuple of several outputs.
        constants: the arguments that all blocks get.
        outputs: the number of arrays in the result. None: one array, and no tuple.
        kept: the length of the result's first axis, if that is a new one.
        counted: from the lengths of a sample, or a block's start in it, to those that the noise counts.
        result: the axes of x in the result's order.
        empty: from x's shape to one without elements. A call with it makes all the checks of a call with x's.
        last: the length of the result's last axis, if it is not that of x.
        most: how many elements a sample may have.
    """

    name: str
    function: Callable[..., Any]
    constants: dict[str, Any]
    outputs: int | None = None
    kept: int | None = None
    counted: Callable[[Shape], Shape] = same
    result: Callable[[Shape], Shape] = same
    empty: Callable[[Shape], Shape] = longer
    last: int | None = None
    most: int = ELEMENTS

    @property
    def batched(self) -> bool:
        return bool(self.constants.get("batched", True))

    def sample(self, lengths: Shape) -> Shape:
        """Returns the lengths that the noise counts for arrays of these lengths: those of one sample, without the
        batch."""
        return self.counted(lengths[1:] if self.batched else lengths)


def mapped(call: Call, x: Any, arrays: dict[str, Any], noise: Any, axes: Axes) -> Any:
    """Returns the result, lazily.

    Args:
        x: a dask array, or the chunks of the result, if nothing is read.
        arrays: the arguments with parts for the blocks, by name: dask's arrays, other arrays, or numbers.
        noise: the noise of an operation.
        axes: for each array, its axes as axes of x. Arrays that are missing have x's first axes, or one number for all.

    Raises:
        ValueError: an array has another shape or other chunks than x, or chunks have unknown sizes. Other errors are
            those of `function`.
    """
    chunks = x if isinstance(x, tuple) else known_chunks("x", x)
    if hasattr(noise, "shape") and not isinstance(noise, np.integer):
        arrays, axes, noise = {**arrays, "noise": noise}, {**axes, "noise": tuple(range(len(chunks)))}, None
    placed = {name: _in_chunks(name, array, chunks, axes.get(name)) for name, array in arrays.items()}
    metas = _tried(call, x, chunks, arrays, noise, axes)
    noise, cut, of_rows = _by_blocks(noise, call, chunks)
    placed |= of_rows
    if not isinstance(x, tuple):
        placed["x"] = x
    fixed = {name: array for name, array in placed.items() if not isinstance(array, da.Array)}
    parts = {name: array for name, array in placed.items() if isinstance(array, da.Array)}
    task = _Task(call, tuple(parts), fixed, noise, cut)
    index = tuple(range(len(chunks)))
    pairs: list[Any] = [ArraySliceDep(chunks), index]
    for name, array in parts.items():
        pairs += [array, axes.get(name, index[: array.ndim])]
    new = {} if call.kept is None else {len(chunks): call.kept}
    out = (*new, *call.result(index))
    token = tokenize(task, chunks, [array.name for array in parts.values()])
    options: dict[str, Any] = {"align_arrays": False, "new_axes": new}
    if call.last is not None:
        options["adjust_chunks"] = {index[-1]: call.last}
    whole = da.blockwise(task, out, *pairs, name=f"{call.name}-{token}", meta=metas[0], **options)
    if call.outputs is None:
        return whole
    return tuple(
        da.blockwise(operator.itemgetter(k), out, whole, out, name=f"{call.name}-{k}-{token}", meta=meta)
        for k, meta in enumerate(metas)
    )


def check_none(**outputs: Any) -> None:
    for name, out in outputs.items():
        if out is not None:
            raise TypeError(f"{name}: expected None, as the result is a new dask array, got {type(out).__name__}")


def check_whole(name: str, x: Any, first: int, end: int | None = None) -> None:
    """Raises ValueError if blocks hold only parts along these axes."""
    if any(len(sizes) > 1 for sizes in known_chunks("x", x)[first:end]):
        raise ValueError(f"{name}: expected each of them whole in one block, got chunks {x.chunks} of x: rechunk it")


def known_chunks(name: str, x: Any) -> Chunks:
    """Returns the chunks of a dask array. ValueError: their sizes are not known. TypeError: it is no such
    array."""
    if not isinstance(x, da.Array):
        raise TypeError(f"{name}: expected a dask array, got {type(x).__name__}")
    chunks: Chunks = x.chunks
    if any(math.isnan(size) for sizes in chunks for size in sizes):
        raise ValueError(f"{name}: its chunks {chunks} have unknown sizes: use {name}.compute_chunk_sizes() first")
    return chunks


def _in_chunks(name: str, value: Any, chunks: Chunks, axes: Shape | None) -> Any:
    """Returns the array in x's chunks along its axes, or a number, which all blocks get unchanged."""
    is_lazy, shape = isinstance(value, da.Array), tuple(map(sum, chunks))
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; pass {name}.data or {name}.filled(...)")
    array = value if is_lazy else np.asarray(value)
    own = known_chunks(name, array) if is_lazy else ()
    if array.ndim == 0 or (axes is None and array.size == 1):
        return array[(0,) * array.ndim] if is_lazy else value
    of_x = tuple(range(array.ndim)) if axes is None else axes
    expected = tuple(shape[axis] for axis in of_x if axis < len(shape))
    if array.shape != expected:
        prefix = f"a scalar or a prefix of x's shape {shape}, such as {shape[:1]}"
        raise ValueError(f"{name}: expected {prefix if axes is None else f'shape {expected}'}, got {array.shape}")
    along = tuple(chunks[axis] for axis in of_x)
    if not is_lazy:
        return da.from_array(array, along, name=f"{name}-{tokenize(array, along)}")
    if own != along:
        raise ValueError(f"{name}: has chunks {own}, and x {along} along the same axes: rechunk one of them")
    return value


def _by_blocks(noise: Any, call: Call, chunks: Chunks) -> tuple[Any, bool, dict[str, Any]]:
    """Returns the noise for all blocks; whether it is a window, because blocks are parts of samples; and each block's
    arguments for its rows: their ids, or a Noise for each."""
    cut = any(len(sizes) > 1 for sizes in (chunks[1:] if call.batched else chunks))
    if cut:
        noise = _windowed(noise, call.sample(tuple(map(sum, chunks))))
    rows = call.batched and bool(chunks)
    if isinstance(noise, list | tuple):
        names = np.empty(len(noise), object)
        names[:] = noise
        if not rows:
            return noise[0], cut, {}
        return None, cut, {"names": da.from_array(names, chunks[:1], name=f"noises-{tokenize(noise, chunks[0])}")}
    if rows and isinstance(noise, nf.Noise) and not isinstance(noise.sample, int):
        return noise.at(sample=0), cut, {"ids": _in_chunks("ids", noise.sample, chunks, (0,))}
    return noise, cut, {}


def _windowed(noise: Any, sample: Shape) -> Any:
    """Returns the noise as a window of samples of this shape, unless it is a window already."""

    def changed(name: Any) -> Any:
        if not isinstance(name, nf.Noise) or name.window_shape is not None:
            return name
        return name.window(sample, (0,) * len(sample))

    return each(noise, changed)


# ---- checks before anything is computed --------------------------------------------------------------------


def _tried(call: Call, x: Any, chunks: Chunks, arrays: dict[str, Any], noise: Any, axes: Axes) -> list[Any]:
    """Returns stand-ins for the blocks of the outputs (dask's meta), from a call with one more axis, of length 0.
    Nothing is computed, and wrong arguments raise their errors now."""
    shape, index = tuple(map(sum, chunks)), tuple(range(len(chunks)))
    empty = call.empty(shape)

    def stub(name: str, value: Any) -> Any:
        if axes.get(name) == index and name not in call.constants.get("numbers_of", ()):  # elements
            return np.empty(empty, value.dtype)
        if name in axes and len(empty) == len(shape) and any(empty[axis] < shape[axis] for axis in axes[name]):
            return np.empty(
                [empty[axis] for axis in axes[name]], getattr(value, "dtype", None) or np.asarray(value).dtype
            )
        if not isinstance(value, da.Array):
            return value
        return 0 if value.dtype.kind == "f" else np.zeros((), value.dtype)  # a time in every schedule

    like_x = empty if isinstance(x, tuple) else np.empty_like(meta_from_array(x), shape=empty)
    stubs = {name: stub(name, value) for name, value in arrays.items()}
    for name in listed(noise):
        if isinstance(name, nf.Noise):
            name.check_shape(sample := call.sample(shape))
            if math.prod(whole := name.window_shape or sample) > call.most:
                raise OverflowError(f"a sample of shape {whole} has more than 2^{call.most.bit_length() - 1} elements")
    results = call.function(like_x, stubs.pop("noise", without_window(noise)), **stubs, **call.constants)
    ndim = len(shape) + (call.kept is not None)
    return [np.empty_like(result, shape=(0,) * ndim) for result in ([results] if call.outputs is None else results)]


# ---- a block -----------------------------------------------------------------------------------------------


class _Task:
    """A call for each block, with its place (slices) and its parts. It is pickled in a form that each process reads
    once, so that the values that schedules and tableaus keep are kept.

    cut: whether noises have windows, which begin with a block. names: the parts' names. fixed: the arguments of all
    blocks.
    """

    def __init__(self, call: Call, names: tuple[str, ...], fixed: dict[str, Any], noise: Any, cut: bool) -> None:
        self.call, self.names, self.fixed, self.noise, self.cut = call, names, fixed, noise, cut
        self.batched, self.constants = call.batched, {**fixed, **call.constants}

    def __call__(self, where: tuple[slice, ...], *parts: Any) -> Any:
        arguments = {**self.constants, **dict(zip(self.names, parts, strict=True))}
        start = tuple([place.start for place in where])
        x = arguments.pop("x") if "x" in arguments else tuple([place.stop - place.start for place in where])
        noise = arguments.pop("noise", self.noise)
        if "names" in arguments:
            noise = [self._window(each, start) for each in arguments.pop("names")]
        elif isinstance(noise, nf.Noise):
            if "ids" in arguments:
                noise = noise.at(sample=arguments.pop("ids"))
            elif self.batched and start and start[0]:
                noise = noise.at(sample=noise.sample + start[0])
            noise = self._window(noise, start)
        return self.call.function(x, noise, **arguments)

    def _window(self, noise: nf.Noise, start: Shape) -> nf.Noise:
        if not self.cut:
            return noise
        shape, own, inside = noise.window_shape, noise.window_start, self.call.sample(start)
        return noise.window(shape, [a + b for a, b in zip(own, inside, strict=True)])  # type: ignore[arg-type]

    @kept_property
    def _fields(self) -> tuple[Any, ...]:
        return self.call, self.names, self.fixed, self.noise, self.cut

    @kept_property
    def _pickled(self) -> bytes:
        return pickle.dumps(self._fields, pickle.HIGHEST_PROTOCOL)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._pickled,)

    def __dask_tokenize__(self) -> Any:
        call = self.call
        named = call.name, call.function, sorted(call.constants.items()), call.outputs
        return normalize_token((nf.__version__, nf.NOISE_VERSION, *named, self.names, self.fixed, self.noise, self.cut))


@lru_cache(maxsize=64)
def _unpickled(pickled: bytes) -> _Task:
    return _Task(*pickle.loads(pickled))  # which dask's own task came by  # nosec B301
