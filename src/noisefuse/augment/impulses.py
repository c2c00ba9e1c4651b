# SPDX-License-Identifier: Apache-2.0
"""Impulse noise: some places of an image become salt, pepper or random values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import batch_shape, check_overlap, host_floats, output
from ..arguments.calls import is_batch
from ..arguments.types import Array, ArrayT, Images
from ..call.description import Impulses
from ..ground.checks import check_choice, check_number, first_of, lie_within
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..operations.words import drawing, words
from .lists import beside_arrays, is_traced
from .numbers import Layout, Region, image_on_host, keys_for, one_or_each
from .rows import inside


def impulse(
    x: Images[ArrayT], amount: ArrayLike, noise: Noise | Sequence[Noise], *, salt: float = 0.5,
    values: tuple[float, float] | None = None, random: bool = False, layout: Layout | None = None,
    shared: bool = False, batched: bool | None = None, out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """Makes impulse noise: each element, or each pixel, becomes salt or pepper with probability `amount`; or a random
    value (Gonzalez and Woods, "Digital image processing", section 5.2).

    Args:
        x: images, volumes or signals, axis 0 the batch; float32, float64, float16, bfloat16, uint8 or uint16, of NumPy
            or torch, in host memory.
        amount: the probability that an element changes, from 0 to 1: a number, or (B,) for each sample.
        noise: a Noise of stream 0 or 64 .. 127, or a list of one for each sample.
        salt: the fraction of the impulses that are salt, from 0 to 1.
        values: the values of pepper and salt, (low, high). None: 0 and the greatest integer, and 0 and 1 of floats.
        random: whether impulses are random values, uniform from low to high; then `salt` plays no part.
        layout: a sample's layout, for `shared`: "CHW", channels first, or "HWC", channels last.
        shared: whether all channels of a pixel change together.
        batched: False makes the whole array one sample: then amount is a number. None is True, with the exceptions of
            `gaussian`.
        out: an array to write to; C-contiguous, of x's shape and dtype; it may be x itself.
        region: as in `gaussian`.

    Returns:
        An array of x's shape, dtype and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 128, np.uint8)
    >>> noisy = nf.augment.impulse(image, 0.1, nf.Noise(7), layout="HWC", shared=True)
    >>> np.unique(noisy).tolist(), round(float((noisy != 128).mean()), 1)
    ([0, 128, 255], 0.1)
    """
    if region is not None:
        given: dict[str, Any] = {"salt": salt, "values": values, "random": random, "layout": layout, "shared": shared}
        return inside(region, impulse, x, amount, noise, batched=batched, out=out, **given)
    if values is None and (not shared or layout in _PLANES) and (type(x) is np.ndarray or not is_traced(x)):
        planes = _PLANES[layout] if shared and layout else None
        done: ArrayT = backends.fast_impulse(x, amount, noise, salt, random, planes, batched, out)
        if done is not NotImplemented:
            return done
    if (other := beside_arrays(x)) is not None:
        options: dict[str, Any] = {"amount": amount, "salt": salt, "values": values, "random": random}
        options |= {"layout": layout, "shared": shared, "batched": is_batch("x", x, batched), "out": out}
        return other.augmented(_impulse, x, noise, **options)
    batched = is_batch("x", x, batched)
    image = image_on_host(x)
    low, high = _values(values, image.dtype)
    salt = check_number("salt", salt, 0, 1)
    batch, sample = batch_shape(image.shape, batched)
    chances = _probabilities(amount, batch, batched)
    places, channels, planes = _places(sample, layout, shared)
    shape = batch, *places
    names = keys_for(noise, shape, "its words choose the places")
    result: Any = output("out", out, image.shape, image.dtype)
    check_overlap([("out", result)], [image])
    if not image.size:
        return result
    size = math.prod(shape) if chances.size == 1 else math.prod(places)
    drawn = drawing(shape, names, result.view(np.uint8))
    call = Impulses(
        drawn, image, result, chances, size, channels, salt, low, high, image.dtype, bool(random), planes
    )  # fmt: skip
    if backends.current().run(call) is NotImplemented:
        word = words(shape, names).reshape(batch, -1)
        hit, new = _impulses(word, chances[:, None], salt, (low, high), random, image.dtype)
        to = (batch, channels, -1) if planes else (batch, -1, channels)
        axis = 1 if planes else 2
        changed = np.where(np.expand_dims(hit, axis), np.expand_dims(new, axis), image.reshape(to))
        result.reshape(to)[...] = changed
    return result


_PLANES = {"CHW": True, "HWC": False}  # whether channels come first


def _impulse(x: Array, noise: Any, *, dtype: Any = None, amount: ArrayLike, **options: Any) -> Array:
    return impulse(x, amount, noise, **options)


def _impulses(
    word: NDArray[np.uint32], amount: NDArray[np.float64], salt: float, values: tuple[float, float], random: bool,
    dtype: np.dtype[Any],
) -> tuple[NDArray[np.bool_], Array]:  # fmt: skip
    """Returns where words make impulses, and their values."""
    low, high = values
    number = np.rint(amount * 2.0**32)
    hit = word < number
    if random:
        place = (word + 0.5) * np.divide(1.0, number, out=np.zeros_like(number), where=number > 0)
        place = np.where(hit, place, 0)
        new = low + (np.floor((high - low + 1) * place) if levels_of(dtype) else (high - low) * place)
    else:
        new = np.where(word < np.rint(amount * salt * 2.0**32), high, low)
    return hit, (new if dtype == np.float64 else new.astype(np.float32)).astype(dtype)


def _values(values: tuple[float, float] | None, dtype: np.dtype[Any]) -> tuple[float, float]:
    top = LEVELS.get(levels_of(dtype) or "")
    if values is None:
        return 0.0, float(1 if top is None else top)
    given = host_floats("values", values)
    if given.shape != (2,) or not np.isfinite(given).all() or given[0] > given[1]:
        raise ValueError(f"values = {values!r}: expected (low, high)")
    if top is not None and (given[0] < 0 or given[1] > top or (given != np.rint(given)).any()):
        raise ValueError(f"values = {values!r}: expected whole numbers from 0 to {top}, as x is {levels_of(dtype)}")
    return float(given[0]), float(given[1])


def _probabilities(amount: ArrayLike, batch: int, batched: bool) -> NDArray[np.float64]:
    values = host_floats("amount", amount)
    if not lie_within(values, 0.0, 1.0):
        raise ValueError(f"{first_of('amount', ~((values >= 0) & (values <= 1)), values)}: expected from 0 to 1")
    return one_or_each("amount", values, batch, batched)


def _places(sample: tuple[int, ...], layout: Layout | None, shared: bool) -> tuple[tuple[int, ...], int, bool]:
    """Returns the shape of a sample's places, the channels of each, and whether the channels come first."""
    if not shared:
        return sample, 1, False
    check_choice("layout", layout, ("CHW", "HWC"))
    if len(sample) < 2:
        raise ValueError(f"x: expected samples with a channel axis and another axis, got shape {sample}")
    return (sample[1:], sample[0], True) if layout == "CHW" else (sample[:-1], sample[-1], False)
