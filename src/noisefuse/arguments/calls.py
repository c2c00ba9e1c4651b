# SPDX-License-Identifier: Apache-2.0
"""Turns the caller's arguments into a checked call for a backend. Errors come before anything is written."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..call.description import Draw, Step
from ..ground.checks import got, is_tracer
from ..ground.float_mode import float_mode
from ..ground.libraries import check_plain, library_for
from ..language.levels import levels_of
from ..language.noise import ELEMENTS, LOGITS, RACE, SAMPLES, STEPS, Noise, check_stream_0, names_of
from ..language.rows import M1, M2, PASTS, Rows, X, Z
from ..language.tableau import ARGUMENTS
from . import arrays
from .arrays import Array


class Index(NamedTuple):
    """Row numbers: their values, the number of elements that each covers, and a bound of the values. A Step explains
    the two other fields."""

    values: NDArray[np.int64]
    segment: int
    last: int = 0
    period: int = 0
    by_level: bool = False


# ---------------------------------------------------------------------------------------------------------- images


def is_batch(name: str, x: Any, batched: bool | None) -> bool:
    """Returns `batched` if the caller gives it. Otherwise it is True, axis 0 is the batch; but x may be one image: with
    its channels first it gives a warning, once.

    Raises:
        ValueError: x may be one image with its channels last, whose rows would each be a sample.
    """
    if batched is None and (layout := image_layout(name, x)) is not None:
        x = arrays.host_view(name, x)
        what = f"{name}: {x.dtype} of shape {tuple(x.shape)}"
        if layout == "HWC":
            raise ValueError(
                f"{what} may be one image and not a batch: expected batched=False for one image (H, W, C), or "
                "batched=True for a batch, of points (B, N, C) say"
            )
        if library_for(x).can_warn():
            said = "pass batched=False for one image (C, H, W), or batched=True"
            warn_once("image", f"{what} is taken for a batch of {x.shape[0]}; {said}")
    return True if batched is None else batched


def image_layout(name: str, x: Any) -> Literal["HWC", "CHW"] | None:
    """Returns the place of the channels if x may be one image: three axes of integers. (1, H, W) passes, because a
    batch of one image has the noise of that image. (fast_call.h repeats this rule, and declines both layouts.)"""
    seen = x if hasattr(x, "dtype") else arrays.host_view(name, x)
    if levels_of(getattr(seen, "dtype", None)) is None or len(seen.shape) != 3:
        return None
    first, middle, last = seen.shape
    if last in (1, 3, 4) and min(first, middle) >= 16:
        return "HWC"
    return "CHW" if first in (3, 4) and min(middle, last) >= 16 else None


def warn_once(what: str, message: str) -> None:
    """Warns once in a process, at the caller's line."""
    if what in WARNED:
        return
    WARNED.add(what)
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "noisefuse":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


WARNED: set[str] = set()


# ---------------------------------------------------------------------------------------------------------- times


def segments(name: str, t: ArrayLike, shape: tuple[int, ...]) -> tuple[Array, int]:
    """Returns t as a flat array, and how many elements of x each of its entries covers."""
    if is_tracer(t):
        raise TypeError(f"{name}: JAX traces it; expected JAX's arrays beside it, jnp.asarray(x)")
    times = arrays.as_numbers(name, t)
    if times.size == 0:
        times = times.astype(np.int64)  # NumPy makes an empty list float
    if times.dtype.kind not in "iuf" and not _beyond_int64(times):
        raise TypeError(f"{name}: expected integers or floats, got {times.dtype if times.dtype != object else repr(t)}")
    if times.size == 1:
        return times.reshape(1), max(1, math.prod(shape))
    if shape[: times.ndim] != times.shape:
        prefix = f"a scalar or a prefix of x's shape {shape}, such as {shape[:1]}"
        raise ValueError(f"{name}: expected {prefix}, got {times.shape}")
    return arrays.contiguous(times).reshape(-1), max(1, math.prod(shape[times.ndim :]))


def _beyond_int64(times: Array) -> bool:
    """Tells whether these are integers, objects only because one is so large: then that index is out of range."""
    return times.dtype == object and all(type(time) is int for time in times.flat)


def row_index(name: str, t: ArrayLike, n: int, shape: tuple[int, ...]) -> Index:
    """Returns checked row numbers 0 <= t < n. Those on a device are not read here: a row beyond the table gives NaN
    there."""
    return checked_rows(name, *segments(name, t, shape), n)


def checked_rows(name: str, times: Array, segment: int, n: int) -> Index:
    if times.dtype.kind == "f":
        raise TypeError(f"{name}: expected integers below {n}, got {times.dtype}")
    if not isinstance(times, np.ndarray):
        return Index(times.astype(np.int64, copy=False), segment, n - 1)
    times = times.copy()  # kernels read the numbers that were checked: another thread may change the caller's
    if times.size == 1:  # NumPy takes a microsecond for each reduction
        first = last = int(times[0])
    else:
        first, last = (int(times.min()), int(times.max())) if times.size else (0, 0)
    if times.size and (first < 0 or last >= n):
        bad = times[(times < 0) | (times >= n)][0]
        raise IndexError(f"{name} = {bad} is out of range: there are {n} steps, 0 <= {name} < {n}")
    return Index(times.astype(np.int64, copy=False), segment, last)


def kept_times(keep: Sequence[int] | None, n: int) -> NDArray[np.int64]:
    check_plain("keep", keep)
    times = np.arange(n) if keep is None else np.array(keep)
    if times.ndim != 1 or (times.dtype.kind not in "iu" and times.size):
        raise TypeError(f"keep: expected a sequence of integers, got {keep!r}")
    bad = (times < 0) | (times >= n)
    if bad.any():
        raise IndexError(f"keep: t = {times[bad][0]} is out of range: there are {n} steps, 0 <= t < {n}")
    times = times.astype(np.int64)
    if (np.diff(times) <= 0).any():
        raise ValueError(f"keep: expected strictly increasing times, got {keep!r}")
    return times


# ---------------------------------------------------------------------------------------------------------- noise


def names_or_array(
    noise: object, shape: tuple[int, ...], dtype: np.dtype[Any], batched: bool, stream: int, *, last_step: int = 0,
    any_stream: bool = False, drawn: bool = True,
) -> tuple[tuple[Noise, ...], Array | None]:  # fmt: skip
    """Returns the Noise or Noises on the operation's stream, or the caller's array, checked for x of this shape. If
    nothing is drawn, the keys are not checked."""
    if arrays.is_array(noise):
        z = arrays.as_array("noise", noise, tuple(dict.fromkeys(("float32", arrays.dtype_name(dtype)))))
        if z.shape != shape:
            raise ValueError(f"noise: expected shape {shape}, got {z.shape}")
        return (), z
    batch, sample_shape = arrays.batch_shape(shape, batched)
    if isinstance(noise, Noise):
        names: tuple[Noise, ...] = (noise,)
    elif isinstance(noise, list | tuple):
        names = tuple(names_of(noise))
        if len(names) != batch:
            raise ValueError(f"noise: expected one Noise for each of {batch} samples, got {len(names)}")
    else:
        raise TypeError(f"noise: expected a Noise, a list of them, or else {arrays.wanted(noise)}, got {got(noise)}")
    for name in names if drawn else ():
        most = LOGITS if stream == RACE else ELEMENTS
        _check_name(name, batch if len(names) == 1 else 1, sample_shape, last_step, most)
    if drawn and not any_stream:
        check_stream_0(noise)
    return tuple(n if n.stream == stream or (any_stream and n.stream) else n.at(stream=stream) for n in names), None


def _check_name(noise: Noise, rows: int, sample_shape: tuple[int, ...], last_step: int, most: int) -> None:
    if type(noise.seed) is not int or any(map(is_tracer, (noise.step, noise.sample, *noise.window_start))):
        raise TypeError("noise: JAX traces one of its numbers: expected JAX arrays, jnp.asarray(x), or a dtype of jnp")
    noise.check_shape(sample_shape)
    whole = noise.window_shape or sample_shape
    if math.prod(whole) > most:
        raise OverflowError(f"a sample of shape {whole} has more than 2^{most.bit_length() - 1} elements")
    if isinstance(noise.sample, np.ndarray):
        if len(noise.sample) != rows:
            raise ValueError(f"noise: has {len(noise.sample)} sample ids, expected one for each of {rows} rows")
    elif noise.sample + rows > SAMPLES:
        raise OverflowError(f"samples {noise.sample} .. {noise.sample + rows - 1} go beyond 2^56 - 1")
    if isinstance(noise.step, int) and noise.step + last_step >= STEPS:
        raise OverflowError(f"step {noise.step} + t = {last_step} goes beyond 2^32 - 1")


# ---------------------------------------------------------------------------------------------------------- arrays


def like(name: str, a: object, x: Array, allowed: tuple[str, ...]) -> Array:
    """Returns an array of x's shape. Kernels on hosts widen narrower floats as they read them; other dtypes are
    converted to x's."""
    array = arrays.as_array(name, a, allowed)
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, got {array.shape}")
    if array.dtype.itemsize < x.dtype.itemsize and isinstance(array, np.ndarray):
        return array
    return converted(array, x.dtype)


def readable(x: Array, dtype: np.dtype[Any]) -> Array:
    """Returns x as a kernel reads it for results of `dtype`. float64 arithmetic reads float64, float32 and integer
    levels; float32 arithmetic reads all but float64; other dtypes go through float32."""
    if x.dtype != dtype and levels_of(x.dtype) is None and np.float64 in (x.dtype, dtype):
        x = converted(x, np.dtype(np.float32))
    return arrays.contiguous(x)


def converted(x: Array, dtype: np.dtype[Any]) -> Array:
    """Returns x in another dtype. Too large a number becomes infinite without a warning, as in a kernel."""
    if x.dtype == dtype:
        return x
    with float_mode(), np.errstate(over="ignore", under="ignore"):
        return arrays.copy(x, dtype)


SLOTS = dict(zip((X, M1, M2, *PASTS, Z), ARGUMENTS.values(), strict=True))


def check_place(device: int | None, index: Index, names: tuple[Noise, ...]) -> None:
    """Raises ValueError if row numbers or step counters lie on another device than the arrays."""
    if arrays.device_of(index.values) not in (None, device):
        raise ValueError(f"t: lies {arrays.where(index.values)}, and the arrays do not: pass t.get()")
    for name in names:
        if type(name.step) is not int and arrays.device_of(name.step) != device:
            raise ValueError(f"noise.step: lies {arrays.where(name.step)}, and the arrays do not")


def make_call(
    shape: tuple[int, ...], dtype: np.dtype[Any], rows: Rows, index: Index, names: tuple[Noise, ...],
    inputs: dict[int, Array | None], outs: dict[str, Array | None], batched: bool = True, *, draw: Draw = "normal",
    step_by_index: bool = False, masked: bool = False, levels: str | None = None, transitions: Array | None = None,
) -> Step:  # fmt: skip
    """Returns the checked call. Missing outputs are allocated; with `levels` the first has that integer dtype. Nothing
    is drawn if there are no keys."""
    read = {slot: a for slot, a in inputs.items() if a is not None}
    written = [(name, out) for name, out in outs.items() if out is not None and arrays.is_array(out)]
    device = arrays.one_place([*((SLOTS[slot], a) for slot, a in read.items()), *written])
    check_place(device, index, names)
    kinds = [np.dtype(levels) if levels else dtype, *(dtype,) * len(outs)]
    results = {
        name: arrays.output(name, out, shape, kind, device)
        for (name, out), kind in zip(outs.items(), kinds, strict=False)
    }
    read = {slot: readable(a, dtype) for slot, a in read.items()}
    values = index.values
    if written:  # new memory overlaps nothing
        arrays.check_overlap(results.items(), read.values())
        if device is not None and any(arrays.overlap(values, out) for out in results.values()):
            values = values.copy()  # on hosts they are a copy already
    batch, sample_shape = arrays.batch_shape(shape, batched)
    three: list[Array | None] = [*results.values(), None, None, None]
    return Step(
        batch=batch,
        size=math.prod(sample_shape),
        sample_shape=sample_shape,
        rows=rows,
        index=values,
        segment=index.segment,
        inputs=tuple(map(read.get, range(Z + 1))),
        outputs=tuple(three[:3]),
        draw=draw if names else "none",
        step_by_index=step_by_index,
        noise=names,
        masked=masked,
        period=index.period,
        by_level=index.by_level,
        transitions=transitions,
    )


def run(call: Step) -> tuple[Any, ...]:
    """Returns the outputs, computed by the backend in use."""
    if call.batch * call.size:
        backends.of(call.outputs[0]).run(call)
    return tuple(out for out in call.outputs if out is not None)
