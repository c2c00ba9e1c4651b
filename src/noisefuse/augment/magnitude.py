# SPDX-License-Identifier: Apache-2.0
"""Rician noise: the magnitude of a signal with noise in its real and imaginary parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import backends
from ..arguments.arrays import batch_shape, check_overlap, output
from ..arguments.calls import is_batch
from ..arguments.types import Array, ArrayT, Images
from ..call.description import FLOAT32, FLOAT64, Rician, Step
from ..ground.checks import check_integer
from ..ground.float_mode import float_mode
from ..language.noise import ELEMENTS, Noise
from ..operations.draw import UNIT, randn
from .lists import beside_arrays, is_traced
from .numbers import Region, as_numbers, image_on_host, keys_for, one_or_each
from .rows import gaussian, inside


def rician(
    x: Images[ArrayT], std: ArrayLike, noise: Noise | Sequence[Noise], *, coils: int = 1, batched: bool | None = None,
    out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """The noise of magnitude images, as magnetic resonance gives them: sqrt((x + std z_0)^2 + (std z_1)^2).

    This is Rician noise (Gudbjartsson and Patz 1995, "The Rician distribution of noisy MRI data"). With more coils the
    sum has the squares of 2 coils normals, and the result a noncentral chi distribution (Constantinides, Atalar and
    McVeigh 1997, "Signal-to-noise measurements in magnitude images from NMR phased arrays").

    Args:
        x: the signal: images or volumes, axis 0 the batch; float32, float64, float16, bfloat16, uint8 or uint16, of
            NumPy or torch, in host memory.
        std: the standard deviation in each part, in the units of x: a number, or (B,) for each sample.
        noise: a Noise of stream 0 or 64 .. 127, or a list of one for each sample. Its normals are those of
            ``randn((B, 2 * coils, *shape), noise)``; the first are `gaussian`'s.
        coils: the number of coils, from 1 to 32, of which each has a real and an imaginary part.
        batched: False makes the whole array one sample: then std is a number. None is True, with the exceptions of
            `gaussian`.
        out: an array to write to; C-contiguous, of x's shape and dtype; it may be x itself.
        region: as in `gaussian`.

    Returns:
        An array of x's shape, dtype and kind; integers are rounded and clipped as by `gaussian`.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.
        OverflowError: a sample has more than 2^34 / (2 coils) elements.

    >>> nothing = np.zeros((1, 64, 64), np.float32)
    >>> noisy = nf.augment.rician(nothing, 1.0, nf.Noise(7))  # Rayleigh's distribution, of mean sqrt(pi / 2) = 1.253
    >>> round(float(noisy.mean()), 1)
    1.3
    """
    if region is not None:
        return inside(region, rician, x, std, noise, coils=coils, batched=batched, out=out)
    if type(x) is np.ndarray or not is_traced(x):
        done: ArrayT = backends.fast_rician(x, std, noise, coils, batched, out)
        if done is not NotImplemented:
            return done
    if (other := beside_arrays(x)) is not None:
        options: dict[str, Any] = {"std": std, "coils": coils, "batched": is_batch("x", x, batched), "out": out}
        return other.augmented(_rician, x, noise, **options)
    batched = is_batch("x", x, batched)
    signal = image_on_host(x)
    draws = 2 * check_integer("coils", coils, 1, 32)
    batch, sample = batch_shape(signal.shape, batched)
    strength = one_or_each("std", as_numbers("std", std), batch, batched)
    shape = batch, *sample
    names = keys_for(noise, shape, "each element takes several normals")
    apart, *others = {math.prod(name.window_shape or sample) for name in names}
    if others:
        raise ValueError("noise: expected windows of samples of one size, got several")
    if draws * apart > ELEMENTS:
        raise OverflowError(f"coils = {coils}: a sample of {apart} elements needs more than 2^34 normals")
    result: Any = output("out", out, signal.shape, signal.dtype)
    check_overlap([("out", result)], [signal])
    if not signal.size:
        return result
    of_each = math.prod(shape) if strength.size == 1 else math.prod(sample)
    arithmetic = FLOAT64 if signal.dtype == FLOAT64 else FLOAT32
    normals = Step.of_one_row(batch, sample, UNIT, None, np.empty(1, arithmetic), "normal", names)
    call = Rician(normals, signal, result, strength, of_each, draws, apart, signal.dtype)
    if backends.current().run(call) is not NotImplemented:
        return result
    each = strength.reshape(-1, *[1] * len(sample)).astype(arithmetic)
    total: Array = signal.reshape(shape).astype(arithmetic)
    with float_mode(), np.errstate(all="ignore"):
        for d in range(draws):
            part = [_part(name, draws, d, sample) for name in names]
            z = randn((batch, 1, *sample), part[0] if len(part) == 1 else part, dtype=arithmetic)
            value = each * z[:, 0] if d else total + each * z[:, 0]
            total = total + value * value if d else value * value
        total = np.sqrt(total).reshape(signal.shape)
    return gaussian(total, 0.0, noise, batched=batched, dtype=signal.dtype, out=result)


def _rician(x: Array, noise: Any, *, dtype: Any = None, std: ArrayLike, **options: Any) -> Array:
    return rician(x, std, noise, **options)


def _part(name: Noise, draws: int, d: int, sample: tuple[int, ...]) -> Noise:
    """Returns the field of normal d of each element, a window of those of all draws."""
    shape, start = name.window_shape or sample, name.window_start or (0,) * len(sample)
    return name.window((draws, *shape), (d, *start))
