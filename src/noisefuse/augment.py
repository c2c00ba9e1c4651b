# SPDX-License-Identifier: Apache-2.0
"""Augmentation with noise: of images, volumes, audio, in the units of their own values, in one pass.

    x' = x + mean + std z,    z ~ N(0, 1)

Bytes come in and bytes go out, rounded to nearest even and clipped to 0 .. 255. The noise is named, so an image has
the same noise in every process and after every restart: ``Noise(seed, sample=index, step=epoch)``. Stages that follow
one another take a stream each, ``noise.at(stream=64)``, so that they do not draw the same z.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import backends
from .arrays import FLOATS, as_array, batch_shape, count, fast_dtype, float_dtype, interop
from .calls import Index, make_call, names_or_array, run
from .noise import FIELD
from .ops import BYTES, Array, DType, NoiseLike, is_bytes
from .rows import Plain, Rows, X, Z

__all__ = ["gaussian"]

Layout: TypeAlias = Literal["CHW", "HWC"]
Clip: TypeAlias = tuple[float, float] | None


def gaussian(
    x: Array,
    std: ArrayLike,
    noise: NoiseLike,
    *,
    mean: ArrayLike = 0.0,
    layout: Layout | None = None,
    clip: Clip = None,
    dtype: DType | None = None,
    batched: bool = True,
    out: Array | None = None,
) -> Array:
    """Adds Gaussian noise: x + mean + std z.

    Args:
        x: images, volumes or signals, axis 0 the batch; float32, float64, float16, bfloat16 or uint8, of NumPy, CuPy or
            torch.
        std: in the units of x's values, grey levels for bytes: a number, (B,) for each sample, or (B, C) for each
            channel of each sample, where `layout` says which axis that is.
        noise: Noise of stream 0 or 64 .. 127, a list of one for each sample, or an array of x's shape.
        mean: as std.
        layout: of a sample: "CHW", channels first, or "HWC", channels last, whatever the number of axes.
        clip: (low, high) of the result. None: bytes are clipped to 0 .. 255, floats are not.
        dtype: of the result; x's. Bytes can become floats, in grey levels.
        batched: False makes the whole array one sample: then std and mean are numbers, or (C,).
        out: where to write; C-contiguous, of x's shape; it may be x itself.

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 128, np.uint8)
    >>> noisy = nf.augment.gaussian(image, 10.0, nf.Noise(7))
    >>> noisy.dtype, round(float(noisy.std()))
    (dtype('uint8'), 10)
    """
    other = None if type(x) is np.ndarray else interop(x)
    if type(std) is float and type(mean) is float and clip is None:
        done = _fast(_gaussian(std, mean), x, noise, dtype, batched, out, other)
        if done is not NotImplemented:
            return done
    if other is not None:
        given = {"mean": mean, "layout": layout, "clip": clip, "batched": batched}
        return other.augmented(gaussian, x, std, noise=noise, dtype=dtype, out=out, **given)
    x = as_array("x", x, (*FLOATS, "uint8"))
    columns, index = _by_place({"std": std, "mean": mean}, x.shape, layout, batched)
    rows = Rows.of({"out.x": 1.0, "out.z": columns["std"], "out.k": columns["mean"]})
    return _run(x, rows, index, noise, clip, dtype, batched, out)


@lru_cache(64)
def _gaussian(std: float, mean: float) -> Plain | None:
    """What the fast path takes, if these are right."""
    if not (0 <= std < math.inf and math.isfinite(mean)):
        return None
    plain = Rows.of({"out.x": 1.0, "out.z": std, "out.k": mean}).plain
    return (*plain[:3], plain)


def _fast(
    table: Plain | None, x: Array, noise: NoiseLike, dtype: DType | None, batched: bool, out: Array | None, other: Any
) -> Any:
    wanted = getattr(x if out is None else out, "dtype", None) if dtype is None else dtype
    if table is None or wanted is None:
        return NotImplemented
    kind = BYTES if is_bytes(wanted) else fast_dtype(wanted, other)
    return backends.fast_row(table, 0, x, None, None, noise, -1, out, None, kind, batched)


def _run(
    x: NDArray[Any], rows: Rows, index: Index, noise: NoiseLike, clip: Clip, dtype: DType | None, batched: bool,
    out: Array | None,
) -> Array:  # fmt: skip
    """One pass, and another one over the result where it is clipped to a range."""
    bounds = _bounds(clip)
    wanted = (x if out is None else out).dtype if dtype is None else dtype
    to_bytes = is_bytes(wanted)
    kind = float_dtype(wanted) if not to_bytes else x.dtype if x.dtype.name in FLOATS else np.dtype(np.float32)
    names, z = names_or_array(noise, x.shape, kind, batched, FIELD, any_stream=True)
    call = make_call(x.shape, kind, rows, index, names, {X: x, Z: z}, {"out": out}, batched, to_bytes=to_bytes)
    result = run(call)[0]
    if bounds is not None:
        for limit, bound in ((np.maximum, bounds[0]), (np.minimum, bounds[1])):
            limit(result, result.dtype.type(np.clip(np.rint(bound), 0, 255) if to_bytes else bound), out=result)
    return result


# ---- arguments -----------------------------------------------------------------------------------------------------


def _by_place(
    numbers: dict[str, ArrayLike], shape: tuple[int, ...], layout: Layout | None, batched: bool
) -> tuple[dict[str, NDArray[np.float64]], Index]:
    """A row for all, one for each sample, or one for each of its channels: columns, and the rows that elements take."""
    batch, sample = batch_shape(shape, batched)
    found = {name: _numbers(name, given) for name, given in numbers.items()}
    if not batched:  # of the one sample
        found = {name: values[None] if values.ndim else values for name, values in found.items()}
    most = max(values.ndim for values in found.values())
    for name, values in found.items():
        if values.ndim > 2 or (values.ndim and values.shape[0] != batch):
            one = "(C,)" if not batched else f"({batch},) for the samples or ({batch}, C) for their channels"
            raise ValueError(f"{name}: expected a number, {one}, got shape {np.shape(numbers[name])}")
    if not count(shape):
        return {name: np.zeros(()) for name in found}, Index(np.zeros(1, np.int64), 1)
    if most == 0:
        return found, Index(np.zeros(1, np.int64), max(1, count(shape)))
    if most == 1:
        columns = {name: np.broadcast_to(values, (batch,)) for name, values in found.items()}
        return columns, Index(np.arange(batch), max(1, count(sample)))
    widths = {values.shape[1] for values in found.values() if values.ndim == 2}
    channels = next(iter(widths)) if len(widths) == 1 else 0
    place = _layout(layout, sample, channels, " and ".join(numbers))
    columns = {
        name: np.broadcast_to(values if values.ndim == 2 else np.reshape(values, (-1, 1)), (batch, channels)).ravel()
        for name, values in found.items()
    }
    each = np.arange(batch * channels)
    if place == "CHW":
        return columns, Index(each, max(1, count(sample) // channels))
    pixels = count(sample) // channels
    return columns, Index(np.tile(each.reshape(batch, 1, channels), (1, pixels, 1)).ravel(), 1)


def _numbers(name: str, given: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.array(given, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers, got {given!r}") from None
    if not np.isfinite(values).all() or (name in _NOT_NEGATIVE and (values < 0).any()):
        least = " of at least 0" if name in _NOT_NEGATIVE else ""
        raise ValueError(f"{name} = {given!r}: expected finite numbers{least}")
    return values


_NOT_NEGATIVE = ("std",)


def _layout(layout: Layout | None, sample: tuple[int, ...], channels: int, names: str) -> Layout:
    """Where the channels of a sample are: the layout that is given, or the only one that fits."""
    if layout not in (None, "CHW", "HWC"):
        raise ValueError(f"layout = {layout!r}: expected 'CHW' or 'HWC'")
    axes: tuple[tuple[Layout, int], ...] = (("CHW", 0), ("HWC", -1))
    fits = [kind for kind, axis in axes if sample and channels and sample[axis] == channels]
    if layout in fits:
        return layout
    if layout is not None or not fits:
        raise ValueError(f"{names}: expected as many channels as samples of shape {sample} have, got {channels}")
    if len(fits) == 2 and len(sample) > 1:
        raise ValueError(f"layout: samples of shape {sample} may have {channels} channels first or last; say which")
    return fits[0]


def _bounds(clip: Clip) -> tuple[float, float] | None:
    if clip is None:
        return None
    bounds = _numbers("clip", clip)
    if bounds.shape != (2,) or bounds[0] > bounds[1]:
        raise ValueError(f"clip = {clip!r}: expected (low, high)")
    return float(bounds[0]), float(bounds[1])
