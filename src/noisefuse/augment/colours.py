# SPDX-License-Identifier: Apache-2.0
"""Coloured noise: normals as a spectrum, which rises or falls with the frequency, and its inverse Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import batch_shape
from ..arguments.types import Array, ArrayT, Images
from ..call.description import FLOAT32, FLOAT64
from ..ground.checks import check_choice, check_number
from ..language.noise import Noise, listed
from ..operations.draw import randn
from .lists import beside_arrays
from .numbers import Region, image_on_host, keys_for
from .rows import gaussian, inside, rms, std_at, warn_of_one_clip

Colour: TypeAlias = Literal["brown", "pink", "white", "blue", "violet"]
_OCTAVE = 10 * math.log10(2)  # decibels of a power that doubles with the frequency
_COLOURS = {"brown": -2, "pink": -1, "white": 0, "blue": 1, "violet": 2}
_COMPLEX = {FLOAT32: np.dtype(np.complex64), FLOAT64: np.dtype(np.complex128)}
Gains: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]


def coloured(
    x: Images[ArrayT], snr: ArrayLike, noise: Noise | Sequence[Noise], slope: float | Colour, *, floor: float = 0.0,
    batched: bool | None = None, out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """Adds coloured noise at a signal-to-noise ratio in decibels: the density of its power is a power of the frequency.

    The noise is the inverse Fourier transform of keyed normals (Timmer and König 1995, "On generating power law
    noise"), scaled so that each sample has the ratio of their measured root mean squares. Its numbers agree between
    machines to 1e-6 of that, and not to the last bit, as Fourier transforms do not.

    Args:
        x: signals, float32, float64, float16 or bfloat16; axis 0 the batch and the last axis time; other axes are
            channels, whose noise is independent. In host memory.
        snr: the ratio in dB, finite: a number, or (B,) for each sample.
        noise: a Noise of stream 0 or 64 .. 127 without a window, or a list of one for each sample.
        slope: the slope of the noise's density in dB an octave, from -12 to 12, or a name: "brown" (-6.02), "pink"
            (-3.01), "white" (0), "blue" (3.01) or "violet" (6.02).
        floor: the frequency below which the density is flat, in cycles a sample, from 0 to 1/2; 20 / 44100 is 20 Hz.
            With 0 most of brown noise lies in periods as long as the signal.
        batched, out, region: as in `gaussian`, but a single clip in stereo gives a warning as in `at_snr`.

    Returns:
        An array of x's shape, dtype and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> clips = np.sin(np.linspace(0, 100, 44100, dtype=np.float32))[None]
    >>> pink = nf.augment.coloured(clips, 20.0, nf.Noise(7), "pink", floor=20 / 44100) - clips
    >>> round(float(20 * np.log10(np.std(clips) / np.std(pink))))
    20
    >>> power = abs(np.fft.rfft(pink[0])) ** 2
    >>> round(float(10 * np.log10(power[2000:4000].mean() / power[4000:8000].mean())))  # an octave
    3
    """
    if isinstance(slope, str):
        check_choice("slope", slope, tuple(_COLOURS))
        slope = _COLOURS[slope] * _OCTAVE
    gains = slope_gains(check_number("slope", slope, -12, 12), check_number("floor", floor, 0, 0.5))
    if batched is None:
        warn_of_one_clip(x)
        batched = True
    if region is not None:
        return inside(region, coloured, x, snr, noise, slope, floor=floor, batched=batched, out=out)
    if (other := beside_arrays(x)) is not None:
        options: dict[str, Any] = {"slope": slope, "floor": floor, "batched": batched, "out": out}
        return other.augmented(_coloured, x, noise, snr=snr, **options)
    samples = image_on_host(x)
    std = std_at(samples, snr, batched)
    return add_spectrum(samples, std, noise, gains, batched, out)


def _coloured(x: Array, noise: Any, *, dtype: Any = None, snr: ArrayLike, slope: Any, **options: Any) -> Array:
    return coloured(x, snr, noise, slope, **options)


def slope_gains(slope: float, floor: float) -> Gains:
    """Returns the amplitudes of a slope in decibels an octave."""
    return lambda f: np.power(np.maximum(f, floor, out=f), slope / _OCTAVE / 2, out=f)


def add_spectrum(
    x: Array, std: NDArray[np.float64] | float, noise: Noise | Sequence[Noise], gains: Gains, batched: bool,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """Adds noise of this standard deviation, or one for each sample. gains: a function from an array of frequencies, in
    cycles a sample, to amplitudes; it may write to the array."""
    samples = image_on_host(x)
    batch, sample = batch_shape(samples.shape, batched)
    if not sample:
        raise ValueError(f"x: expected signals, whose last axis is time, got shape {samples.shape}")
    if any(getattr(name, "window_shape", None) is not None for name in listed(noise)):
        raise ValueError("noise: expected one without a window, as a signal's spectrum is that of the whole")
    length = _period(sample[-1])
    shape = batch, *sample[:-1], length
    names = keys_for(noise, shape, "its normals are a spectrum")
    if not samples.size:
        return gaussian(samples, 0.0, noise, batched=batched, out=out)
    real = FLOAT64 if samples.dtype == FLOAT64 else FLOAT32
    z = randn(shape, names if len(names) > 1 else names[0], dtype=real)
    spectrum = backends.empty((*shape[:-1], length // 2 + 1), _COMPLEX[real])
    spectrum[..., 0] = 0
    frequency: NDArray[Any] = np.arange(1, length // 2 + 1, dtype=real)
    frequency /= length
    np.multiply(z.view(spectrum.dtype), gains(frequency), out=spectrum[..., 1:])
    spectrum[..., -1] = math.sqrt(2) * spectrum[..., -1].real  # of the variance of the others, whose mirrors it lacks
    signal = np.fft.irfft(spectrum, length)[..., : sample[-1]]
    z = np.ascontiguousarray(signal, dtype=real).reshape(batch, *sample)
    each = std / rms(z)
    return gaussian(
        samples, each if batched else float(each[0]), z.reshape(samples.shape), batched=batched, out=out
    )  # fmt: skip


@lru_cache(256)  # 6 us, of the 60 that a clip of 4,000 samples takes
def _period(n: int) -> int:
    """Returns the least even number from n on whose prime factors are 2, 3 and 5: its transform is fast."""
    return min(k << ((n - 1) // k | 1).bit_length() for k in takewhile(lambda k: k <= max(n, 1), _ODD))


_ODD = sorted(3**i * 5**j for i in range(22) for j in range(15))
