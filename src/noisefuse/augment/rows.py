# SPDX-License-Identifier: Apache-2.0
"""Augmentation that is one row of numbers: out = a x + b z + c, and times a mean or a root."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import (
    as_array,
    batch_shape,
    device_of,
    fast_dtype,
    float_dtype,
    host_view,
    is_array,
    is_lazy,
    output,
)
from ..arguments.calls import Index, is_batch, make_call, names_or_array, run, warn_once
from ..arguments.options import FAST_LEVELS
from ..arguments.types import Array, ArrayT, DType, Images, NoiseLike
from ..call.description import Step
from ..ground.docstrings import Shared, documented
from ..ground.libraries import library_of
from ..language.levels import FLOATS, LEVELS, OF_NUMPY, level_bounds, levels_of
from ..language.noise import FIELD, Noise
from ..language.rows import NAMES, TIMES_CLEAN, TIMES_ROOT, FastTable, Rows, X, Z
from ..operations.draw import randn
from ..operations.loss import mean_squares
from .lists import LISTS, beside_arrays, new_like, put
from .numbers import NOT_NEGATIVE, Clip, Layout, Options, Region, as_bounds, as_numbers, by_place
from .regions import chosen, copied, mask_of, of_each

_SHARED = Shared(
    returns="    An array of x's shape and kind.",
    raises="    TypeError, ValueError: the message says what was given and what was expected; nothing is written then.",
)


@documented(_SHARED)
def gaussian(
    x: Images[ArrayT], std: ArrayLike, noise: NoiseLike, *, mean: ArrayLike = 0.0, layout: Layout | None = None,
    shared: bool = False, order: Layout | None = None, clip: Clip = None, dtype: DType | None = None,
    batched: bool | None = None, out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """Adds Gaussian noise: x + mean + std z.

    Args:
        x: images, volumes or signals, axis 0 the batch; float32, float64, float16, bfloat16, uint8 or uint16, of NumPy,
            CuPy or torch. Or a list of images of any sizes (or an array of objects), each of which is a sample; that
            gives a list.
        std: the standard deviation in the units of x's values, grey levels for integers: a number, (B,) for each
            sample, or (B, C) for each channel of each sample, with `layout` for the channels' axis. One that hardly
            changes a grey level, up to 0.2, gives a warning, once: it may be a fraction of the range.
        noise: a Noise of stream 0 or 64 .. 127, a list of one for each sample, or an array of x's shape.
        mean: the mean, in the form of std.
        layout: a sample's layout: "CHW", channels first, or "HWC", channels last, whatever the number of axes.
        shared: whether all channels of a pixel have the same z (grey noise); its elements count pixels.
        order: the layout in which the noise counts the elements, if it is not x's own. With "CHW", images in HWC get
            the noise that they would have with channels first. Like `shared`, this stores the noise and takes twice as
            long.
        clip: the result's bounds (low, high). None: bytes are clipped to 0 .. 255, uint16 to 0 .. 65535, floats are
            not.
        dtype: the result's dtype. None: x's. Integers can become floats, in grey levels.
        batched: False makes the whole array one sample: then std and mean are numbers, or (C,). None is True. Integers
            of shape (H, W, C), with 1, 3 or 4 channels and sides of 16 or more, may be one image and need True or
            False; (C, H, W) gives a warning, once.
        out: an array to write to; C-contiguous, of x's shape; it may be x itself. A list of images of NumPy's has a
            list of such arrays, which are written after the last image's noise is made.
        region: where noise is put; elsewhere x stays as it is, only converted to the result's dtype. A mask of bools,
            (H, W), (B, H, W), of a sample's shape or with x's axes; or boxes (x0, y0, x1, y1) in pixels, whose ends x1
            and y1 lie outside: (N, 4) for all samples, or (B, N, 4) or a list of (N, 4) for each. A list of images has
            a list of regions, or one for all.

    >>> image = np.full((1, 64, 64, 3), 128, np.uint8)
    >>> noisy = nf.augment.gaussian(image, 10.0, nf.Noise(7))
    >>> noisy.dtype, round(float(noisy.std()))
    (dtype('uint8'), 10)
    """
    return _apply(
        x, noise, _GAUSSIAN, {"std": std, "mean": mean}, layout=layout, shared=shared, order=order, clip=clip,
        dtype=dtype, batched=batched, out=out, region=region,
    )  # fmt: skip


@documented(_SHARED)
def multiplicative(x: Images[ArrayT], std: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """Multiplies by noise around 1, as speckle does: x (1 + std z).

    Args:
        x, noise, **options: as in `gaussian`.
        std: the standard deviation of the factor: a number, (B,), or (B, C), as in `gaussian`.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.multiplicative(image, 0.05, nf.Noise(7)).std()))
    10
    """
    return _apply(x, noise, _MULTIPLICATIVE, {"std": std}, **options)


@documented(_SHARED)
def sensor(x: Images[ArrayT], a: ArrayLike, b: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """The noise of a camera, whose variance is linear in the signal: x + sqrt(max(a x + b, 0)) z.

    This is the Poissonian-Gaussian model of Foi, Trimeche, Katkovnik and Egiazarian (2008), "Practical
    Poissonian-Gaussian noise modeling and fitting for single-image raw-data": a for the photons, b for the electronics.

    Args:
        x, noise, **options: as in `gaussian`.
        a, b: a is in x's units, b in their square. Each is a number, (B,), or (B, C), as in `gaussian`. b may be
            negative (a pedestal).

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.sensor(image, 0.5, 0.0, nf.Noise(7)).std()))
    10
    """
    return _apply(x, noise, _SENSOR, {"a": a, "b": b}, **options)


@documented(_SHARED)
def by_level(
    x: Images[ArrayT], mean_table: ArrayLike, std_table: ArrayLike, noise: NoiseLike, *, dtype: DType | None = None,
    batched: bool | None = None, out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """Adds noise that depends on the grey level in any way, for bytes: mean_table[x] + std_table[x] z.

    A camera's calibration measures such tables: the mean and the standard deviation at each grey level.
    (`multiplicative` and `sensor` compute these numbers. They are a third faster than the two lookups.)

    Args:
        x: uint8, of any shape; axis 0 the batch.
        mean_table, std_table: the values at each grey level, (256,), in units of the result.
        noise, batched, out, region: as in `gaussian`.
        dtype: the result's dtype: uint8 by default, uint16 or a float.

    >>> levels = np.arange(256)
    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.by_level(image, levels, 0.05 * levels, nf.Noise(7)).std()))
    10
    """
    batched = is_batch("x", x, batched)
    options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out}
    if region is not None:
        return inside(region, by_level, x, mean_table, std_table, noise, **options)
    if (other := beside_arrays(x)) is not None:
        return other.augmented(_levels, x, noise, mean_table=mean_table, std_table=std_table, **options)
    tables = _level_tables(mean_table, std_table)
    wanted = getattr(x if out is None else out, "dtype", None) if dtype is None else dtype
    kind = FAST_LEVELS.get(levels_of(wanted) or "") or fast_dtype(wanted, None)
    rows = _BY_LEVEL.plain(tables, 256)[:3]
    table = *rows, (*rows, None, None, True), None, True  # True: the row of an element is its level
    done: Array = backends.fast_row(table, 0, x, None, None, noise, -1, out, None, kind, batched)
    if done is not NotImplemented:
        return done
    return run(_levels_call(x, noise, tables, **options))[0]


def rms(x: Array, *, batched: bool = True) -> NDArray[np.float64]:
    """Returns the root mean square of each sample, summed in the fixed order of the losses: the same bits everywhere.

    Args:
        x: float32, float64, float16 or bfloat16, of NumPy or CuPy; axis 0 the batch, if it is batched.
        batched: False makes the whole array one sample.

    Returns:
        float64 (B,), or (1,) if the whole array is one sample; in host memory.

    Raises:
        TypeError: x is no array, or has another dtype.

    >>> nf.augment.rms(np.full((2, 44100), 0.5, np.float32)).tolist()
    [0.5, 0.5]
    """
    return np.sqrt(mean_squares(x, batched))


@documented(_SHARED)
def at_snr(x: Images[ArrayT], snr: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """Adds Gaussian noise at a signal-to-noise ratio in decibels: x + rms(x) 10^(-snr / 20) z.

    rms is the root mean square of a sample, summed in the fixed order of the losses (docs/loss.md), so the bits do not
    depend on the batch or on the number of threads.

    Args:
        x: signals, float32, float64, float16 or bfloat16; axis 0 the batch. A silent one stays silent. A single clip in
            stereo, (2, n), needs batched=False; without it there is a warning, once.
        snr: the ratio in dB, finite: a number, or (B,) for each sample.
        noise, **options: as in `gaussian`.

    >>> clips = np.sin(np.linspace(0, 100, 44100, dtype=np.float32))[None]
    >>> noisy = nf.augment.at_snr(clips, 20.0, nf.Noise(7))
    >>> round(float(20 * np.log10(np.std(clips) / np.std(noisy - clips))))
    20
    """
    if (batched := options.get("batched")) is None:
        warn_of_one_clip(x)
        batched = options["batched"] = True
    if (region := options.pop("region", None)) is not None:
        given: Any = options
        return inside(region, at_snr, x, snr, noise, **given)
    if (other := beside_arrays(x)) is not None:
        return other.augmented(_snr, x, noise, snr=snr, **options)
    samples: Any = as_array("x", x)
    std = std_at(samples, snr, batched)
    return gaussian(samples, std if batched else float(std[0]), noise, **options)


def std_at(samples: Array, snr: ArrayLike, batched: bool) -> NDArray[np.float64]:
    """Returns the standard deviation of noise at this ratio for each sample."""
    batch, _ = batch_shape(samples.shape, batched)
    decibels = as_numbers("snr", snr)
    if decibels.shape not in ((), (batch,)):
        raise ValueError(f"snr: expected a number or shape ({batch},), got shape {decibels.shape}")
    std = rms(samples, batched=batched) * 10 ** (-decibels / 20)
    if not all(map(math.isfinite, std.tolist())):
        raise ValueError("x: has values that are not finite, so a sample has no signal-to-noise ratio")
    return std


def warn_of_one_clip(x: Any) -> None:
    """Warns if x may be one clip in stereo. (One in mono, (1, n), is the same as a batch of one.)"""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    if len(shape) == 2 and shape[0] == 2 and shape[1] >= 1000:
        what = f"x: shape {tuple(shape)} is taken for a batch of two clips"
        warn_once("clip", f"{what}; pass batched=False for one clip in stereo, or batched=True")


def inside(region: Region, function: Callable[..., Array], x: Any, *arguments: Any, **options: Any) -> Any:
    """Returns what a function of this module makes of x, inside of the region, and x outside."""
    layout, out = options.get("layout"), options.get("out")
    if beside_arrays(x) is LISTS:
        if out is not None:
            options["out"] = new_like(out, x)
        noisy = function(x, *arguments, **options)
        for b, (name, one) in enumerate(of_each(region, len(x))):
            image = host_view(f"x[{b}]", x[b])
            noisy[b] = _chosen(mask_of(name, one, image, layout, False), noisy[b], image, False)
        return noisy if out is None else put(noisy, out)
    x = host_view("x", x)
    if not hasattr(x, "shape"):
        return function(x, *arguments, **options)  # says what it expects
    if not getattr(x.dtype, "isnative", True):
        x = x.astype(x.dtype.newbyteorder("="))
    batched = is_batch("x", x, options.get("batched"))
    mask = mask_of("region", region, x, layout, batched)
    before = x if out is None else copied(x)  # as out may be x
    made = _chosen(mask, function(x, *arguments, **options | {"batched": batched}), before, batched)
    if out is None or made is out:
        return made
    out[...] = made
    return out


def _chosen(mask: Array, noisy: Array, x: Array, batched: bool) -> Array:
    if noisy.dtype != x.dtype:
        x = _apply(x, Noise(0), _GAUSSIAN, {"std": 0.0, "mean": 0.0}, batched=batched, dtype=noisy.dtype)
    return chosen(mask, noisy, x)


# ---- rows --------------------------------------------------------------------------------------------------


_NUMBERS = int, float, np.integer, np.floating


class Model:
    """A kind of noise as a row: its active columns, each a number or an argument's name; and further activity bits."""

    def __init__(self, columns: tuple[tuple[str, float | str], ...], flags: int = 0) -> None:
        self._columns, self._flags = columns, flags
        self._template = Rows.of({name: 0.0 if isinstance(c, str) else c for name, c in columns}, flags)
        self.places: list[tuple[int, str]] = [(NAMES.index(name), c) for name, c in columns if isinstance(c, str)]
        ends = np.concatenate([self._template.table, np.zeros((2, self._template.table.shape[1]))])
        for k, (column, _) in enumerate(self.places[:2]):
            ends[k + 1, column] = 1
        self.least_0: str | None = next((name for _, name in self.places if name in NOT_NEGATIVE), None)
        rows, of_pair = (self._template.single, self._template.table, self._template.active), (None, None, ends, None)
        of_levels = *rows, None, None, of_pair
        self.of_pair: FastTable = *rows, of_levels, of_levels, of_pair

    def rows(self, numbers: Mapping[str, ArrayLike]) -> Rows:
        return Rows.of({name: numbers[c] if isinstance(c, str) else c for name, c in self._columns}, self._flags)

    def plain(self, numbers: Mapping[str, ArrayLike], n: int = 1) -> FastTable:
        """Returns n rows for the fast path, quickly: a transform has other rows for each image."""
        table = self._template.table.repeat(n, 0)
        for column, name in self.places:
            table[:, column] = numbers[name]
        plain = None, table, self._template.active
        of_levels = *plain, None, None, None
        return (*plain, of_levels, of_levels, None)


_GAUSSIAN = Model((("out.x", 1.0), ("out.z", "std"), ("out.k", "mean")))
_MULTIPLICATIVE = Model((("clean.x", 1.0), ("out.x", 1.0), ("out.z", "std")), TIMES_CLEAN)
_VARIANCE = (("clean.x", "a"), ("clean.k", "b"), ("clean.lo", 0.0), ("clean.hi", math.inf))
_BY_LEVEL = Model((("out.k", "mean_table"), ("out.z", "std_table")))
_SENSOR = Model((*_VARIANCE, ("out.x", 1.0), ("out.z", 1.0)), TIMES_ROOT)


def _fast_rows(
    model: Model, numbers: dict[str, ArrayLike], shape: tuple[int, ...], layout: Layout | None, batched: bool
) -> tuple[FastTable | None, Any]:
    """Returns rows for the fast path, or None if the numbers are wrong, and x's row numbers, whose shape begins x's
    shape or, with channels last, is (B, 1, .., C)."""
    try:
        columns, index = by_place(numbers, shape, layout, batched)
    except (TypeError, ValueError):
        return None, 0
    rows, n = index.values, len(index.values)
    if index.period:
        rows = rows.reshape(-1, *(1,) * (len(shape) - 2), index.period)
    elif shape and 0 < shape[0] < n:
        rows = rows.reshape(shape[0], -1)
    return model.plain(columns, n), rows


def _apply(
    x: Array, noise: NoiseLike, model: Model, numbers: dict[str, ArrayLike], *, layout: Layout | None = None,
    shared: bool = False, order: Layout | None = None, clip: Clip = None, dtype: DType | None = None,
    batched: bool | None = None, out: Array | None = None, region: Region | None = None,
) -> Array:  # fmt: skip
    """Does one pass. It clips a result piece by piece as it is written; where the fast path does not take the call, a
    second pass clips it."""
    if region is not None:
        options: Any = {"layout": layout, "shared": shared, "order": order, "clip": clip, "dtype": dtype, "out": out}
        return inside(region, _apply, x, noise, model, numbers, batched=batched, **options)
    like: Any = x if out is None else out
    known = _ASKED.get(x.dtype) if type(x) is np.ndarray and dtype is None else None
    if known and out is not None:
        known = _ASKED.get(out.dtype) if type(out) is np.ndarray else None
    other = None if known else beside_arrays(x)
    if order == layout:
        order = None
    if (shared or order is not None) and other is None:
        batched, x = is_batch("x", x, batched), as_array("x", x, (*FLOATS, *LEVELS))
        noise = _stored(x, noise, layout, shared, order, _kinds(x, dtype, out)[0], batched)
        shared, order = False, None
    if known:
        wanted = like.dtype
    elif dtype is None and out is None and type(x) is np.ndarray:
        wanted = x.dtype.newbyteorder("=")
    else:
        wanted = getattr(like, "dtype", None) if dtype is None else dtype
    if order is None and not shared and wanted is not None and not (other is not None and other.is_traced()):
        bounds = None if clip is None else as_bounds(clip)
        levels, asked = known or _asked(wanted, other)
        few = levels and model is _GAUSSIAN
        if rows := _pair(numbers):
            table = None if model.least_0 and rows[0] < 0 else model.of_pair
            if few and rows[0] <= _LITTLE:
                _warn_of_little(rows[0], rows[1], LEVELS[levels])
        elif is_lazy(x):
            table = None
        else:
            table, rows = _fast_rows(model, numbers, tuple(x.shape), layout, batched is not False)
            if few and table is not None:
                std, mean = (table[1][:, column] for column, _ in model.places)
                _warn_of_little(float(std.max()), float(abs(mean).max()), LEVELS[levels])
        if table is not None:
            within = None if bounds is None or not asked else _bounds_in(asked[1], bounds)
            done: Array = backends.fast_row(table, rows, x, None, None, noise, -1, out, None, asked, batched, within)
            if done is not NotImplemented:
                return done
    batched = is_batch("x", x, batched)
    given: dict[str, Any] = {"layout": layout, "clip": clip, "batched": batched}
    given |= {"model": model, "numbers": numbers, "dtype": dtype, "out": out}
    if other is not None:
        return other.augmented(_apply, x, noise, shared=shared, order=order, **given)
    call, bounds = _apply_call(x, noise, **given)
    result = run(call)[0]
    return result if bounds is None else _clipped(result, bounds)


def _asked(dtype: Any, library: Any) -> tuple[str, Any]:
    """Returns which levels a result's dtype is, or "", and the dtype as the fast path takes it."""
    levels = levels_of(dtype) or ""
    return levels, FAST_LEVELS.get(levels) or fast_dtype(dtype, library)


_ASKED = {np.dtype(name): _asked(np.dtype(name), None) for name in OF_NUMPY}  # by the dtype of a native array


def _pair(numbers: Mapping[str, ArrayLike]) -> Any:
    """Returns the one or two numbers of a call, and 0, if they are plain: of finite ones the fast path makes a row."""
    pair: tuple[Any, ...] = (*numbers.values(), 0.0)
    if type(pair[0]) is type(pair[1]) is float:
        return pair
    return tuple(map(float, pair)) if all(isinstance(n, _NUMBERS) for n in pair) else None


_LITTLE = 0.2  # grey levels: one value in 80 is rounded to another one


def _warn_of_little(std: float, mean: float, top: int) -> None:
    """Warns once if hardly a value changes, as results are rounded to whole levels up to `top`. Other libraries take a
    fraction of the range."""
    if 0 < std <= _LITTLE and not mean:
        said = f"std = {std:g} is in grey levels, which are whole numbers: it hardly changes any"
        warn_once("std", f"{said}; if a fraction of the range 0 .. {top} was meant, pass std = {std * top:g}")


def _apply_call(
    x: Array, noise: NoiseLike, *, model: Model, numbers: dict[str, ArrayLike], layout: Layout | None, clip: Clip,
    dtype: DType | None, batched: bool, out: Array | None = None,
) -> tuple[Step, Clip]:  # fmt: skip
    """Returns the pass as a checked call, and the bounds of its result."""
    x = as_array("x", x, (*FLOATS, *LEVELS))
    columns, index = by_place(numbers, x.shape, layout, batched)
    bounds = None if clip is None else as_bounds(clip)
    kind, levels = _kinds(x, dtype, out)
    return _call(x, model.rows(columns), index, noise, kind, levels, batched, out), bounds


def _level_tables(mean_table: ArrayLike, std_table: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Returns the numbers of both tables by their names."""
    tables = {name: as_numbers(name, given) for name, given in (("mean_table", mean_table), ("std_table", std_table))}
    for name, table in tables.items():
        if table.shape != (256,):
            raise ValueError(f"{name}: expected one number for each of 256 levels, got shape {table.shape}")
    return tables


def _levels_call(
    x: Array, noise: NoiseLike, tables: Mapping[str, ArrayLike], *, dtype: DType | None, batched: bool,
    out: Array | None = None,
) -> Step:  # fmt: skip
    x = as_array("x", x, ("uint8",))
    index = Index(np.zeros(1, np.int64), max(1, x.size), by_level=True)
    return _call(x, _BY_LEVEL.rows(tables), index, noise, *_kinds(x, dtype, out), batched, out)


def call_inside(function: Any, x: Array, noise: NoiseLike, **options: Any) -> tuple[Step, Clip] | None:
    """Returns the work of `_of_tensors` as a checked call and the bounds of its result, for an x that stands for an
    array whose values are not known yet. None: it is more than one call of a row."""
    if function is _levels:
        tables = _level_tables(options.pop("mean_table"), options.pop("std_table"))
        return _levels_call(x, noise, tables, **options), None
    if function is not _apply or options.pop("shared") or options.pop("order") not in (None, options["layout"]):
        return None
    return _apply_call(x, noise, **options)


def row_inside(function: Any, options: Mapping[str, Any]) -> Rows | None:
    """The row of what `_of_tensors` hands on, where one row of plain numbers is all of it."""
    if function is not _apply or options["shared"] or options["order"] not in (None, options["layout"]):
        return None
    if options["clip"] is not None or {*map(type, options["numbers"].values())} != {float}:
        return None
    return _row(options["model"], *options["numbers"].items())


@lru_cache(256)  # with what it rounds to in float32, a third of a call of JAX's
def _row(model: Model, *numbers: tuple[str, float]) -> Rows | None:
    if not all(math.isfinite(value) and (value >= 0 or name not in NOT_NEGATIVE) for name, value in numbers):
        return None
    return model.rows(dict(numbers))


def _snr(x: Array, noise: NoiseLike, *, snr: ArrayLike, **options: Any) -> Array:
    return at_snr(x, snr, noise, **options)


def _levels(x: Array, noise: NoiseLike, *, mean_table: ArrayLike, std_table: ArrayLike, **options: Any) -> Array:
    return by_level(x, mean_table, std_table, noise, **options)


def _kinds(x: Array, dtype: DType | None, out: Array | None) -> tuple[np.dtype[Any], str | None]:
    """Returns the result's dtype, and None; for integer levels the arithmetic's dtype, and which levels they are."""
    wanted = getattr(out, "dtype", x.dtype) if dtype is None else dtype
    if (levels := levels_of(wanted)) is None:
        return float_dtype(wanted), None
    return x.dtype if x.dtype.name in FLOATS else np.dtype(np.float32), levels


def _call(
    x: Array, rows: Rows, index: Index, noise: NoiseLike, kind: np.dtype[Any], levels: str | None, batched: bool,
    out: Array | None,
) -> Step:  # fmt: skip
    names, z = names_or_array(noise, x.shape, kind, batched, FIELD, any_stream=True)
    reads = {X, *rows.reads} if index.by_level else rows.reads
    inputs: dict[int, Array | None] = {slot: a for slot, a in ((X, x), (Z, z)) if slot in reads}
    return make_call(x.shape, kind, rows, index, names, inputs, {"out": out}, batched, levels=levels)


def _clipped(result: Array, bounds: tuple[float, float]) -> Array:
    """Clips the result in place, and returns it."""
    # torch clamps no uint16; where a tensor comes here, it lies in host memory
    if levels_of(result.dtype) is None and library_of(result) is not None:
        return result.clamp_(*bounds)
    memory: Any = result if library_of(result) is None else result.numpy()
    low, high = map(memory.dtype.type, _bounds_in(memory.dtype, bounds))
    np.clip(memory, low, high, out=memory)
    return result


def _bounds_in(dtype: np.dtype[Any], bounds: tuple[float, float]) -> tuple[float, float]:
    """Returns the bounds as the dtype holds them."""
    levels, (low, high) = levels_of(dtype), bounds
    return level_bounds(levels, bounds) if levels else (float(dtype.type(low)), float(dtype.type(high)))


def _stored(
    x: Array, noise: NoiseLike, layout: Layout | None, shared: bool, order: Layout | None, kind: np.dtype[Any],
    batched: bool,
) -> Array:  # fmt: skip
    """Returns the noise as an array: of pixels, for all their channels, or counted in another layout."""
    for name, given in (("layout", layout), ("order", order or "CHW")):
        if given not in ("CHW", "HWC"):
            raise ValueError(f"{name} = {given!r}: expected 'CHW' or 'HWC' with shared= or order=")
    if is_array(noise):
        raise TypeError("noise: expected a Noise with shared= or order=, got an array")
    first = 1 if batched else 0
    if x.ndim < first + 2:
        raise ValueError(f"x: expected samples with a channel axis and another axis, got shape {x.shape}")
    channel = first if layout == "CHW" else x.ndim - 1
    lengths = [n for axis, n in enumerate(x.shape) if axis != channel]
    place = first if order == "CHW" else x.ndim - 1  # the channels' axis, in the layout in which elements are counted
    if not shared:
        lengths.insert(place, x.shape[channel])
    real = np.dtype(np.float64 if kind == np.float64 else np.float32)
    empty = None if device_of(x) is None else output("out", None, tuple(lengths), real, device_of(x))
    z = randn(lengths, noise, dtype=real, batched=batched, out=empty)
    if shared:
        return np.broadcast_to(z.reshape(*x.shape[:channel], 1, *x.shape[channel + 1 :]), x.shape)
    axes = [axis for axis in range(x.ndim) if axis != place]
    axes.insert(channel, place)
    return z.transpose(axes)
