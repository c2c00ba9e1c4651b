# SPDX-License-Identifier: Apache-2.0
"""The noise of a sensitive sensor, in the hue and the lightness of RGB images, as Albumentations' ISONoise makes it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments.types import Array
from ..call.description import FLOAT32
from ..ground.float_mode import float_mode
from ..language.levels import LEVELS, levels_of
from ..language.noise import UNIFORM, Noise
from ..operations.draw import randn
from ..operations.words import words

Floats = NDArray[np.float32]
_DTYPES = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)


def iso_noise(frames: Array, turn: float, intensity: float, noise: Noise) -> Array:
    """Changes frames (.., height, width, 3) of uint8, uint16 or float32, one sample of the noise.

    The lightness l becomes l + N intensity (1 - l), N Poisson with mean intensity times the standard deviation of
    lightness in the frame, and the hue turns by `turn` sixths of a circle times a normal number.
    """
    done: Array = backends.fast_iso(frames, turn, intensity, noise, _mean)
    if done is not NotImplemented:
        return done
    x = np.asarray(frames)
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    if x.ndim < 3 or x.shape[-1] != 3 or x.dtype not in _DTYPES:
        expected = "expected (.., height, width, 3) of uint8, uint16 or float32"
        raise TypeError(f"frames: {expected}, got {x.shape} of {x.dtype}")
    result: Array = backends.empty(x.shape, x.dtype)
    if not x.size:
        return result
    shape, top = x.shape[:-1], np.float32(LEVELS.get(levels_of(x.dtype) or "", 1))
    light = x.astype(FLOAT32) * np.float32(1 / float(top))
    z = randn(shape, noise, dtype="float32", batched=False)
    word = words((1, *shape), [noise.at(stream=UNIFORM)]).reshape(-1, shape[-2] * shape[-1])
    with float_mode(), np.errstate(invalid="ignore"):  # of pixels that are not finite
        both = (np.add(*_extremes(light)) * np.float32(2**16)).reshape(word.shape)
        whole = np.where(both > 0, both, 0).clip(0, 2**17).astype(np.uint64)
        sums = zip(whole.sum(1).tolist(), (whole * whole).sum(1).tolist(), strict=True)
        last = [_last_words(_mean(*of_frame, word.shape[1], intensity)) for of_frame in sums]
        counts = np.concatenate([np.searchsorted(*both) for both in zip(last, word, strict=True)], dtype=FLOAT32)
        changed = _changed(light, counts.reshape(shape), z * np.float32(turn), np.float32(intensity)) * top
    result[...] = changed if top == 1 else np.rint(changed)
    return result


def _mean(total: int, squares: int, pixels: int, intensity: float) -> float:
    """Returns the mean of a frame's Poisson numbers from the sums of twice the lightness of its pixels, and of its
    square, in units of 2^-16. (They are whole, so that they do not depend on the order.)"""
    deviation = math.sqrt((pixels * squares - total * total) / pixels**2) / 2**17
    return min(deviation * intensity, 100.0)  # beyond, all is white


def _last_words(mean: float) -> NDArray[np.uint32]:
    """Returns the last words that give 0, 1, .. of a Poisson distribution."""
    sums, total, weight, k = [1.0], 0.0, mean, 1
    while k <= mean or weight > total * 2**-54:  # smaller ones leave the total as it is
        total += weight
        sums.append(1 + total)
        k += 1
        weight *= mean / k
    last = [max(round(each / sums[-1] * 2**32), 1) - 1 for each in sums]  # word 0 has a number, however rare
    return np.array([word for word in last if word < 2**32 - 1], np.uint32)


def _changed(rgb: Floats, counts: Floats, turn: Floats, intensity: np.float32) -> Floats:
    """Returns pixels in other light and hue: lightness and saturation of HLS, and the hue in sixths of a circle."""
    one, r, g, b = np.float32(1), *np.moveaxis(rgb, -1, 0)
    most, few = _extremes(rgb)
    spread, both = most - few, most + few
    light, grey = both * np.float32(0.5), ~(spread > 0)
    part = np.where(grey, one, spread)
    saturation = np.where(grey, 0, spread / np.where(grey, one, np.where(both <= 1, both, 2 - both)))
    first, second = most == r, most == g
    sector = np.where(grey, 0, np.where(first, g - b, np.where(second, b - r, r - g)) / part)
    hue = (sector + np.where(first, 0, np.where(second, np.float32(2), np.float32(4)))) + turn
    lit = _within_one(light + (counts * intensity) * (1 - light))
    amplitude = saturation * np.minimum(lit, 1 - lit)
    place = hue[..., None] * 2 + np.array([0, 8, 4], np.float32)
    place = np.where(place < 0, place + 12, np.where(place >= 12, place - 12, place))
    down = np.minimum(place - 3, 9 - place)
    down = np.where(down < 1, np.maximum(down, np.float32(-1)), one)  # 1 where it is NaN
    changed: Any = lit[..., None] - amplitude[..., None] * down
    return _within_one(changed)


def _extremes(rgb: Floats) -> tuple[Any, Any]:
    """Returns the largest and smallest channels by the comparisons of the kernels, which say what a NaN gives."""
    r, g, b = np.moveaxis(rgb, -1, 0)
    most, few = np.where(r > g, r, g), np.where(r < g, r, g)
    return np.where(b > most, b, most), np.where(b < few, b, few)


def _within_one(x: Floats) -> Floats:
    return np.where(x > 0, np.minimum(x, np.float32(1)), np.float32(0))
