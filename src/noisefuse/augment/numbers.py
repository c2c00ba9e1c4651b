# SPDX-License-Identifier: Apache-2.0
"""The numbers and options of augmentation, checked."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments.arrays import as_array, batch_shape, contiguous, host_floats, is_array
from ..arguments.calls import Index, names_or_array
from ..arguments.types import Array, DType
from ..call.description import FLOAT32
from ..ground.checks import check_choice, first_of, lie_within
from ..language.levels import FLOATS, LEVELS
from ..language.noise import FIELD, Noise

Layout: TypeAlias = Literal["CHW", "HWC"]
Clip: TypeAlias = tuple[float, float] | None
Region: TypeAlias = Array | Sequence[Array]


class Options(TypedDict, total=False):
    """The options of the functions that take every dtype. `gaussian` explains them."""

    batched: bool | None
    out: Array | None
    layout: Layout | None
    shared: bool
    order: Layout | None
    clip: Clip
    dtype: DType | None
    region: Region | None


def by_place(
    numbers: dict[str, ArrayLike], shape: tuple[int, ...], layout: Layout | None, batched: bool
) -> tuple[dict[str, NDArray[np.float64]], Index]:
    """Returns a row for all, one for each sample, or one for each of its channels: columns, and the elements' rows."""
    batch, sample = batch_shape(shape, batched)
    found = {name: as_numbers(name, given) for name, given in numbers.items()}
    if not batched:  # for the one sample
        found = {name: values[None] if values.ndim else values for name, values in found.items()}
    most = 0
    for name, values in found.items():
        most = max(most, ndim := values.ndim)
        if ndim and (ndim > 2 or values.shape[0] != batch):
            one = "(C,)" if not batched else f"({batch},) for the samples or ({batch}, C) for their channels"
            raise ValueError(f"{name}: expected a number, {one}, got shape {np.shape(numbers[name])}")
    if not math.prod(shape):
        return {name: np.zeros(()) for name in found}, Index(np.zeros(1, np.int64), 1)
    if most == 0:
        return found, Index(np.zeros(1, np.int64), max(1, math.prod(shape)))
    if most == 1:
        return found, Index(np.arange(batch), max(1, math.prod(sample)))
    widths = {values.shape[1] for values in found.values() if values.ndim == 2}
    channels = next(iter(widths)) if len(widths) == 1 else 0
    place = find_layout(layout, sample, channels, " and ".join(numbers))
    columns = {name: values.repeat(channels) if values.ndim == 1 else values.ravel() for name, values in found.items()}
    each = np.arange(batch * channels)
    if place == "CHW":
        return columns, Index(each, max(1, math.prod(sample) // channels))
    return columns, Index(each, max(1, math.prod(shape)), period=channels)


def as_numbers(name: str, given: ArrayLike) -> NDArray[np.float64]:
    negative = name in NOT_NEGATIVE
    least = 0 if negative else -MOST
    if type(given) in (float, int) and least <= given <= MOST:  # type: ignore[operator]
        return np.array(given, np.float64)  # the checks below take five times as long
    values = host_floats(name, given)
    if not lie_within(values, least, MOST):
        first = first_of(name, ~np.isfinite(values) | (negative & (values < 0)), values)
        raise ValueError(f"{first}: expected finite numbers{' of at least 0' if negative else ''}")
    return values


MOST = sys.float_info.max
NOT_NEGATIVE = ("std", "a", "noise_std", "scale_std", "std_table", "matrix")


def one_or_each(name: str, values: NDArray[np.float64], batch: int, batched: bool) -> NDArray[np.float64]:
    """Returns a number for all samples, (1,), or one for each, (B,)."""
    if values.shape != () and not (batched and values.shape == (batch,)):
        one = f"a number, or ({batch},) for the samples" if batched else "a number"
        raise ValueError(f"{name}: expected {one}, got shape {values.shape}")
    return contiguous(values).reshape(-1)


def image_on_host(x: object) -> NDArray[Any]:
    """Returns an image that a kernel on the host can read."""
    image = contiguous(as_array("x", x, (*FLOATS, *LEVELS)))
    if not isinstance(image, np.ndarray):
        raise NotImplementedError("x: expected an image in host memory, got an array on a device; copy it first")
    return image


def keys_for(noise: object, shape: tuple[int, ...], why: str, batched: bool = True) -> tuple[Noise, ...]:
    """Returns the checked keys of functions that take no array in their place; why: the reason, for the error."""
    if is_array(noise):
        raise TypeError(f"noise: expected a Noise or a list of them, as {why}, got an array")
    return names_or_array(noise, shape, FLOAT32, batched, FIELD, any_stream=True)[0]


def find_layout(layout: Layout | None, sample: tuple[int, ...], channels: int, names: str) -> Layout:
    """Returns where the channels of a sample are: the given layout, or the only one that fits."""
    if layout is not None:
        check_choice("layout", layout, ("CHW", "HWC"))
    axes: tuple[tuple[Layout, int], ...] = (("CHW", 0), ("HWC", -1))
    fits = [kind for kind, axis in axes if sample and channels and sample[axis] == channels]
    if layout in fits:
        return layout
    if layout is not None or not fits:
        raise ValueError(f"{names}: expected as many channels as samples of shape {sample} have, got {channels}")
    if len(fits) == 2 and len(sample) > 1:
        raise ValueError(
            f"layout: samples of shape {sample} may have {channels} channels first or last; pass layout='CHW' or 'HWC'"
        )
    return fits[0]


def as_bounds(clip: tuple[float, float]) -> tuple[float, float]:
    if type(clip) is tuple and {*map(type, clip)} == {float} and len(clip) == 2 and -MOST <= clip[0] <= clip[1] <= MOST:
        return clip  # the checks below take four microseconds
    bounds = as_numbers("clip", clip)
    if bounds.shape != (2,) or bounds[0] > bounds[1]:
        raise ValueError(f"clip = {clip!r}: expected (low, high)")
    return float(bounds[0]), float(bounds[1])
