# SPDX-License-Identifier: Apache-2.0
"""The noise of counted photons for floats and uint16, without tables: docs/noise.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments.arrays import batch_shape, check_overlap, output
from ..arguments.types import Array
from ..call.description import FLOAT32, FLOAT64, Poisson
from ..ground.float_mode import float_mode
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..operations.words import drawing, words
from .numbers import image_on_host, keys_for, one_or_each

Reals = NDArray[np.float64]


def photons(
    x: Array, peaks: Reals, gamma: float, noise: Noise | Sequence[Noise], batched: bool, out: Array | None
) -> Array:
    """Returns top (N / peak)^(1 / gamma), N Poisson with mean peak (x / top)^gamma; top is 1 of floats."""
    light = image_on_host(x)
    batch, sample = batch_shape(light.shape, batched)
    peaks = one_or_each("peak", peaks, batch, batched)
    shape = batch, *sample
    names = keys_for(noise, shape, "its words choose the numbers", batched)
    result: Any = output("out", out, light.shape, light.dtype)
    check_overlap([("out", result)], [light])
    if not light.size:
        return result
    of_each, top = math.prod(shape if peaks.size == 1 else sample), float(LEVELS.get(levels_of(light.dtype) or "", 1))
    drawn = drawing(shape, names, np.empty(1, FLOAT32))
    call = Poisson(drawn, light, result, peaks, of_each, gamma, top, None, light.dtype)
    if backends.current().run(call) is NotImplemented:
        u = (words(shape, names) + 0.5) * 2.0**-32
        with float_mode(), np.errstate(all="ignore"):
            single = light.reshape(shape).astype(FLOAT64 if light.dtype == FLOAT64 else FLOAT32)
            real = single.astype(np.float64)
            counted = top * _counted(real * (1 / top), u, peaks.reshape(-1, *[1] * len(sample)), gamma)
            if light.dtype != FLOAT64:
                counted = counted.astype(FLOAT32)
            if levels_of(light.dtype):
                counted = np.rint(counted.clip(0, np.float32(top)))
            result[...] = counted.astype(light.dtype).reshape(light.shape)
    return result


def _counted(light: Reals, u: Any, peak: Reals, gamma: float) -> Reals:
    """Returns the light of the photons, of numbers whose greatest is 1 and the fractions u of the distribution."""
    if gamma != 1:
        light = _raised(light, gamma)
    mean = np.where(light < 0, 0, light) * peak
    small = np.where(mean < 32, mean, 0)
    target, weight, total = _exponential(small) * u, np.ones_like(mean), np.ones_like(mean)
    number, k = np.zeros_like(mean), 0
    while (more := total <= target).any():
        number += more
        k += 1
        weight *= small * (1 / k)
        total += weight
    number = np.where(mean < 32, number, np.where(mean < 2.0**40, _expanded(mean, u), mean)) / peak
    return number if gamma == 1 else _raised(number, 1 / gamma)


def _logarithm(x: Reals) -> Reals:
    bits = x.view(np.int64)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    f = (bits - (e << 52)).view(np.float64)
    s = (f - 1) / (f + 1)
    total: Any = 1 / 11
    for k in (9, 7, 5, 3, 1):
        total = total * (s * s) + 1 / k
    return e * math.log(2) + 2 * s * total


def _exponential(x: Reals) -> Reals:
    shifted = x * float.fromhex("0x1.71547652b82fep+0") + 1.5 * 2.0**52
    n = shifted - 1.5 * 2.0**52
    r = (x - n * float.fromhex("0x1.62e42fefa3800p-1")) - n * float.fromhex("0x1.ef35793c76730p-45")
    total: Any = 1 / math.factorial(9)
    for k in range(8, -1, -1):
        total = total * r + 1 / math.factorial(k)
    bits: NDArray[np.int64] = total.view(np.int64) + (shifted.view(np.int64) << 52)
    return bits.view(np.float64)


def _raised(x: Reals, exponent: float) -> Reals:
    """Returns a power; 0, infinities and NaN stay."""
    y = _logarithm(x) * exponent
    return np.where((x > 0) & (x < math.inf), _exponential(y.clip(-700, 700)), x)


def _expanded(m: Reals, u: Reals) -> Reals:
    """Returns Poisson numbers of large means (Giles 2016, "Algorithm 955: approximation of the inverse Poisson
    cumulative distribution function"), by normal numbers (Wichura 1988, "Algorithm AS 241", PPND7)."""
    q = u - 0.5
    near, tail = 0.180625 - q * q, np.sqrt(-_logarithm(np.where(q < 0, u, 1 - u))) - 1.6
    over = ((59.109374720 * near + 159.29113202) * near + 50.434271938) * near + 3.3871327179
    under = ((67.187563600 * near + 78.757757664) * near + 17.895169469) * near + 1
    far = ((0.17023821103 * tail + 1.3067284816) * tail + 2.7568153900) * tail + 1.4234372777
    z = np.where(near >= 0, over * q, far) / np.where(
        near >= 0, under, (0.12021132975 * tail + 0.7370016425) * tail + 1
    )
    z = np.where((near >= 0) | (q > 0), z, -z)
    root, square = np.sqrt(m), z * z
    each = 1 / root
    x = ((m + root * z) + (square + 2) * (1 / 6)) - (z * (square + 2)) * (each * (1 / 72))
    return np.floor(x + ((3 * square + 7) * square - 16) * ((each * each) * (1 / 810)))
