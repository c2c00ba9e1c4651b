# SPDX-License-Identifier: Apache-2.0
"""Augmentation with noise, for images, volumes and audio, in the units of their own values, in one pass.

    x' = x + mean + std z,    z ~ N(0, 1)

Bytes give bytes, rounded to nearest even and clipped to 0 .. 255; uint16 likewise, to 0 .. 65535. The noise has a key,
so an image has the same noise in every process and after every restart: ``Noise(seed, sample=index, step=epoch)``.
Stages that follow one another each need a stream, ``noise.at(stream=64)``, so that they draw different z.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import backends
from .arguments.arrays import (
    as_array,
    batch_shape,
    count,
    device_of,
    fast_dtype,
    float_dtype,
    host_floats,
    host_view,
    is_array,
    is_lazy,
    output,
)
from .arguments.calls import Index, is_batch, make_call, names_or_array, run, warn_once
from .arguments.options import FAST_LEVELS, at_times
from .arguments.types import Array, ArrayT, DType, Like, NoiseLike
from .call.description import Step
from .ground.checks import check_choice, check_number, first_of, lie_within
from .ground.lazy import show_public
from .ground.libraries import check_plain, library_for, library_of
from .language.levels import FLOATS, LEVELS, level_bounds, levels_of
from .language.noise import AUGMENT, FIELD, SAMPLES, STREAMS, Noise, name_id, names_of
from .language.rows import NAMES, TIMES_CLEAN, TIMES_ROOT, FastTable, Rows, X, Z
from .language.schedule import Schedule
from .operations import byte_tables
from .operations.draw import randn, uniform
from .operations.loss import mean_squares

__all__ = [
    "at_snr", "by_level", "gaussian", "multiplicative", "poisson", "prepare", "rms", "sample_id", "sensor", "strengths",
    "transition",
]  # fmt: skip

show_public(__name__)

Layout: TypeAlias = Literal["CHW", "HWC"]
Clip: TypeAlias = tuple[float, float] | None


class PrepareOptions(TypedDict, total=False):
    """The options of `prepare` that its result's type does not depend on."""

    scale_mean: ArrayLike
    scale_std: ArrayLike
    scale: float | None
    noise_std: ArrayLike
    dtype: DType | None
    batched: bool
    out: Array | None


class Options(TypedDict, total=False):
    """The options of the functions that take every dtype. `gaussian` explains them."""

    batched: bool | None
    out: Array | None
    layout: Layout | None
    shared: bool
    order: Layout | None
    clip: Clip
    dtype: DType | None


def gaussian(
    x: Like[ArrayT], std: ArrayLike, noise: NoiseLike, *, mean: ArrayLike = 0.0, layout: Layout | None = None,
    shared: bool = False, order: Layout | None = None, clip: Clip = None, dtype: DType | None = None,
    batched: bool | None = None, out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """Adds Gaussian noise: x + mean + std z.

    Args:
        x: images, volumes or signals, axis 0 the batch; float32, float64, float16, bfloat16, uint8 or uint16, of NumPy,
            CuPy or torch.
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
        out: an array to write to; C-contiguous, of x's shape; it may be x itself.

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 128, np.uint8)
    >>> noisy = nf.augment.gaussian(image, 10.0, nf.Noise(7))
    >>> noisy.dtype, round(float(noisy.std()))
    (dtype('uint8'), 10)
    """
    return _apply(
        x, noise, _GAUSSIAN, {"std": std, "mean": mean}, layout=layout, shared=shared, order=order, clip=clip,
        dtype=dtype, batched=batched, out=out,
    )  # fmt: skip


def multiplicative(x: Like[ArrayT], std: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """Multiplies by noise around 1, as speckle does: x (1 + std z).

    Args:
        x, noise, **options: as in `gaussian`.
        std: the standard deviation of the factor: a number, (B,), or (B, C), as in `gaussian`.

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.multiplicative(image, 0.05, nf.Noise(7)).std()))
    10
    """
    return _apply(x, noise, _MULTIPLICATIVE, {"std": std}, **options)


def sensor(x: Like[ArrayT], a: ArrayLike, b: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """The noise of a camera, whose variance is linear in the signal: x + sqrt(max(a x + b, 0)) z.

    This is the Poissonian-Gaussian model of Foi, Trimeche, Katkovnik and Egiazarian (2008), "Practical
    Poissonian-Gaussian noise modeling and fitting for single-image raw-data": a for the photons, b for the electronics.

    Args:
        x, noise, **options: as in `gaussian`.
        a, b: a is in x's units, b in their square. Each is a number, (B,), or (B, C), as in `gaussian`. b may be
            negative (a pedestal).

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.sensor(image, 0.5, 0.0, nf.Noise(7)).std()))
    10
    """
    return _apply(x, noise, _SENSOR, {"a": a, "b": b}, **options)


def by_level(
    x: Like[ArrayT], mean_table: ArrayLike, std_table: ArrayLike, noise: NoiseLike, *, dtype: DType | None = None,
    batched: bool | None = None, out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """Adds noise that depends on the grey level in any way, for bytes: mean_table[x] + std_table[x] z.

    A camera's calibration measures such tables: the mean and the standard deviation at each grey level.
    (`multiplicative` and `sensor` compute these numbers. They are a third faster than the two lookups.)

    Args:
        x: uint8, of any shape; axis 0 the batch.
        mean_table, std_table: the values at each grey level, (256,), in units of the result.
        noise, batched, out: as in `gaussian`.
        dtype: the result's dtype: uint8 by default, uint16 or a float.

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> levels = np.arange(256)
    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> round(float(nf.augment.by_level(image, levels, 0.05 * levels, nf.Noise(7)).std()))
    10
    """
    batched = is_batch("x", x, batched)
    options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out}
    if (other := None if type(x) is np.ndarray else library_of(x)) is not None:
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


def poisson(
    x: Like[ArrayT], peak: ArrayLike, noise: Noise | Sequence[Noise], *, gamma: float = 1.0,
    batched: bool | None = None, out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """The noise of counted photons, for bytes: 255 (N / peak)^(1 / gamma), rounded and clipped to 0 .. 255, where N is
    Poisson with mean peak (x / 255)^gamma.

    Args:
        x: uint8, of any shape; axis 0 the batch.
        peak: the number of photons for a grey level of 255: a number, or (B,) for each sample; at most 1e6. (For more,
            `sensor` with a = 255 / peak is as good.) The table of a new peak takes some milliseconds to build; 64
            tables are kept.
        noise: as in `gaussian`, but not an array.
        gamma: the display's gamma, if grey levels are not linear in light, such as 2.2. 1 is linear light.
        batched, out: as in `gaussian`.

    Returns:
        uint8, of x's shape and kind. Each result gets its exact share of the 2^32 words of the noise, rounded to one
        word.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> noisy = nf.augment.poisson(image, 255.0, nf.Noise(7))
    >>> round(float(noisy.mean())), round(float(noisy.var()), -1)
    (200, 200.0)
    """
    batched = is_batch("x", x, batched)
    peaks, gammas = _numbers("peak", peak), _numbers("gamma", gamma)
    for name, values, most in (("peak", peaks, 1), ("gamma", gammas, 0)):
        if values.ndim > most:
            one = "a number or one for each sample" if most else "a number"
            raise ValueError(f"{name}: expected {one}, got shape {values.shape}")
    if not lie_within(peaks, math.nextafter(0, 1), 1e6):
        raise ValueError(f"peak = {peak!r}: expected photons, more than 0 and at most 1e6")
    check_number("gamma", float(gammas), 0.1, 10)
    if (other := None if type(x) is np.ndarray else library_of(x)) is not None:
        return other.augmented(_poisson, x, noise, peak=peak, gamma=gamma, batched=batched, out=out)
    tables, each = byte_tables.of_poissons(peaks.reshape(-1), float(gammas))
    return _become(x, tables, "peak", peaks.shape, each, noise, batched, out)


def transition(
    x: Like[ArrayT], matrix: ArrayLike, noise: Noise | Sequence[Noise], *, batched: bool | None = None,
    out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """Changes each byte at random: matrix[i, j] is the probability that grey level i becomes j.

    This is a discrete memoryless channel. Examples are any noise that depends on the grey level alone, with its
    rounding and clipping, such as salt and pepper, and the forward process of discrete diffusion, q(x_t | x_0) =
    Cat(x_0 Q_1 .. Q_t) (Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces", equation
    3).

    Args:
        x: uint8, of any shape; axis 0 the batch.
        matrix: the probabilities, (256, 256), or (B, 256, 256) with one for each sample; at least 0, the rows with sums
            of 1 to 1e-6. They are divided by their sums, and the cumulated probabilities are rounded to multiples of
            2^-32. A new matrix takes a millisecond; a matrix that equals one of the last 8 takes a fiftieth of that.
            Tables of batches of more than 8 are not kept.
        noise, batched, out: as in `poisson`.

    Returns:
        uint8, of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> pepper = 0.9 * np.eye(256)
    >>> pepper[:, 0] += 0.1
    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> noisy = nf.augment.transition(image, pepper, nf.Noise(7))
    >>> np.unique(noisy).tolist(), round(float((noisy == 0).mean()), 1)
    ([0, 200], 0.1)
    """
    batched = is_batch("x", x, batched)
    if (other := None if type(x) is np.ndarray else library_of(x)) is not None:
        return other.augmented(_transition, x, noise, matrix=matrix, batched=batched, out=out)
    given = _Matrix(matrix if type(matrix) is np.ndarray else _numbers("matrix", matrix))
    shape = given.numbers.shape
    if shape[-2:] != (256, 256) or len(shape) > 3:
        raise ValueError(f"matrix: expected shape (256, 256), or (B, 256, 256) for each sample, got {shape}")
    n = math.prod(shape[:-2])
    tables = (_tables_of if n <= byte_tables.MOST else _tables_of.__wrapped__)(given)
    return _become(x, tables, "matrix", shape[:-2], np.arange(n), noise, batched, out)


class _Matrix:
    """Probabilities as the key of kept tables. An array can be written to, so two of them are compared by all their
    numbers. This takes 20 us, and the tables take 1,000."""

    def __init__(self, numbers: NDArray[Any]) -> None:
        self.numbers = numbers

    def __hash__(self) -> int:
        return hash((self.numbers.shape, self.numbers[..., ::17, ::19].tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Matrix) and np.array_equal(self.numbers, other.numbers)


@lru_cache(8)
def _tables_of(matrix: _Matrix) -> NDArray[np.void]:
    """Returns the tables of all samples, one after another."""
    matrix.numbers = probabilities = _numbers("matrix", matrix.numbers)  # a copy, which the caller cannot write to
    far = abs(probabilities.sum(axis=-1) - 1) > 1e-6
    if far.any():
        row = tuple(np.argwhere(far)[0].tolist())
        raise ValueError(f"matrix[{', '.join(map(str, row))}]: expected a sum of 1, got {probabilities[row].sum():.9g}")
    return byte_tables.of_probabilities(probabilities).reshape(-1)


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


def at_snr(x: Like[ArrayT], snr: ArrayLike, noise: NoiseLike, **options: Unpack[Options]) -> ArrayT:
    """Adds Gaussian noise at a signal-to-noise ratio in decibels: x + rms(x) 10^(-snr / 20) z.

    rms is the root mean square of a sample, summed in the fixed order of the losses (docs/loss.md), so the bits do not
    depend on the batch or on the number of threads.

    Args:
        x: signals, float32, float64, float16 or bfloat16; axis 0 the batch. A silent one stays silent. A single clip in
            stereo, (2, n), needs batched=False; without it there is a warning, once.
        snr: the ratio in dB, finite: a number, or (B,) for each sample.
        noise, **options: as in `gaussian`.

    Returns:
        An array of x's shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> clips = np.sin(np.linspace(0, 100, 44100, dtype=np.float32))[None]
    >>> noisy = nf.augment.at_snr(clips, 20.0, nf.Noise(7))
    >>> round(float(20 * np.log10(np.std(clips) / np.std(noisy - clips))))
    20
    """
    if (batched := options.get("batched")) is None:
        _warn_of_one_clip(x)
        batched = options["batched"] = True
    if (other := None if type(x) is np.ndarray else library_of(x)) is not None:
        return other.augmented(_snr, x, noise, snr=snr, **options)
    samples: Any = as_array("x", x)
    batch, _ = batch_shape(samples.shape, batched)
    decibels = _numbers("snr", snr)
    if decibels.shape not in ((), (batch,)):
        raise ValueError(f"snr: expected a number or shape ({batch},), got shape {decibels.shape}")
    std = rms(samples, batched=batched) * 10 ** (-decibels / 20)
    if not all(map(math.isfinite, std.tolist())):
        raise ValueError("x: has values that are not finite, so a sample has no signal-to-noise ratio")
    return gaussian(samples, std if batched else float(std[0]), noise, **options)


def _warn_of_one_clip(x: Any) -> None:
    """Warns if x may be one clip in stereo. (One in mono, (1, n), is the same as a batch of one.)"""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    if len(shape) == 2 and shape[0] == 2 and shape[1] >= 1000:
        what = f"x: shape {tuple(shape)} is taken for a batch of two clips"
        warn_once("clip", f"{what}; pass batched=False for one clip in stereo, or batched=True")


@overload
def prepare(
    images: Like[ArrayT], *, noise: NoiseLike | None = None, t: None = None, schedule: None = None,
    **options: Unpack[PrepareOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def prepare(
    images: Like[ArrayT], *, noise: NoiseLike, t: ArrayLike, schedule: Schedule, **options: Unpack[PrepareOptions]
) -> tuple[ArrayT, NDArray[Any]]: ...
def prepare(
    images: Array, *, noise: NoiseLike | None = None, scale_mean: ArrayLike = 0.0, scale_std: ArrayLike = 1.0,
    scale: float | None = None, noise_std: ArrayLike = 0.0, t: ArrayLike | None = None,
    schedule: Schedule | None = None, dtype: DType | None = None, batched: bool = True, out: Array | None = None,
) -> Any:  # fmt: skip
    """Turns decoded images into a network's input: normalised, noised, channels first.

        x = (scale * image - scale_mean) / scale_std,    result = x + noise_std z,    or alpha_t x + sigma_t z

    torchvision's ToDtype, Normalize and GaussianNoise do the first form one after the other. The second form is the
    noise conditioning augmentation of cascades and video models (Ho et al. 2022, "Cascaded diffusion models").

    Args:
        images: (B, H, W, C), or (H, W, C) if not batched: channels last, as decoders give them. uint8, uint16 or float.
        noise: as in `gaussian`; its elements are counted in the result. None is enough if noise_std is 0 and there is
            no t.
        scale_mean, scale_std: Normalize's mean and std, which apply after ``scale``: a number, or (C,), one for each
            channel.
        scale: a number. None: 1/255, for uint16 1/65535.
        noise_std: the noise's standard deviation in units of the result: a number, or (B,).
        t, schedule: given in place of noise_std; times for ``schedule(t)``, a number or (B,).
        dtype: the result's dtype: float32 by default, float64, float16 or bfloat16.
        batched: False for a single image.
        out: an array to write to; C-contiguous, of the result's shape and dtype.

    Returns:
        (B, C, H, W), of the images' kind; with t, the pair of the result and the times (B,).

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> images = np.full((2, 8, 8, 3), 255, np.uint8)
    >>> x = nf.augment.prepare(images, scale_mean=[0.5, 0.5, 0.5], scale_std=[0.25, 0.5, 1])
    >>> x.shape, x[0, :, 0, 0].round(3).tolist()
    ((2, 3, 8, 8), [2.0, 1.0, 0.5])
    """
    first, images = 1 if batched else 0, host_view("images", images)
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) < first + 3:
        wanted, hint = ("(B, H, W, C)", "; batched=False takes (H, W, C)") if batched else ("(H, W, C)", "")
        raise ValueError(f"images: expected shape {wanted}, got {tuple(shape)}{hint}")
    if scale is None:
        scale = 1 / LEVELS.get(levels_of(getattr(images, "dtype", None)) or "uint8", 255)
    if noise is None:
        if t is not None or is_lazy(noise_std) or _numbers("noise_std", noise_std).any():
            why = "noise_std is not 0" if t is None else "t is given"
            raise TypeError(f"noise: expected a Noise, as {why}, got None")
        noise = Noise(0)  # nothing is drawn from it
    if (prepare := library_for(images).prepare) is not None:
        given: Any = {"scale_mean": scale_mean, "scale_std": scale_std, "scale": scale, "batched": batched}
        given |= {"noise_std": noise_std, "t": t, "schedule": schedule, "dtype": dtype, "out": out}
        return prepare(images, noise=noise, **given)
    batch, channels = shape[0] if batched else 1, shape[-1]
    if shape[-3] in (1, 3, 4) and min(shape[-2:]) >= 16:
        what = f"images: shape {tuple(shape)} is taken for images of {channels} channels, which are last"
        warn_once("channels", f"{what}; move yours there, such as images.movedim(-3, -1)")
    gain, shift = _normalisation(scale, scale_mean, scale_std, channels)
    strength, alpha, times = _numbers("noise_std", noise_std), np.ones(1), None
    if (t is None) != (schedule is None) or (t is not None and strength.any()):
        raise ValueError("t, schedule: expected both of them, without noise_std, or neither")
    if t is not None and schedule is not None:
        check_plain("t", t)
        if np.shape(t) not in ((), (batch,)):
            raise ValueError(f"t: expected a number or shape ({batch},), got shape {np.shape(t)}")
        times = np.broadcast_to(np.asarray(t), (batch,))
        alpha, strength = at_times(schedule, times)
    if dtype is None:
        dtype = getattr(out, "dtype", "float32")
    if levels_of(dtype):
        raise TypeError(f"dtype {levels_of(dtype)}: expected a float dtype, as normalised values are floats")
    numbers: dict[str, ArrayLike] = {
        name: np.broadcast_to(alpha[:, None] * values, (batch, channels)).squeeze(() if batched else 0)
        for name, values in (("gain", gain), ("shift", shift))
    }
    numbers["noise_std"] = strength if batched or strength.ndim == 0 else strength[0]
    of_torch = hasattr(images, "movedim")
    moved = images.movedim(-1, first).contiguous() if of_torch else np.moveaxis(images, -1, first)
    result = _apply(moved, noise, _PREPARED, numbers, layout="CHW", dtype=dtype, batched=batched, out=out)
    return result if times is None else (result, times)


def _normalisation(scale: float, mean: ArrayLike, std: ArrayLike, channels: int) -> tuple[Any, Any]:
    """Returns the factor of an image, and the term that is added to it, for each channel."""
    given = {"scale": scale, "scale_mean": mean, "scale_std": std}
    columns = {name: _numbers(name, numbers) for name, numbers in given.items()}
    for name, values in columns.items():
        if values.shape not in ((), (channels,)):
            wanted = f"a number or one for each of {channels} channels, which are last"
            raise ValueError(f"{name}: expected {wanted}, got {values.shape}")
    if not columns["scale_std"].all():
        raise ValueError(f"scale_std = {std!r}: expected numbers other than 0")
    return columns["scale"] / columns["scale_std"], -columns["scale_mean"] / columns["scale_std"]


def strengths(
    n: int, low: float, high: float, noise: Noise | Sequence[Noise], *, p: float = 1.0
) -> NDArray[np.float64]:
    """Draws a random strength for each of n samples by its key: uniform in [low, high), or 0 with probability 1 - p.

    They are drawn from stream 8. Its elements 2 s and 2 s + 1 belong to a noise of stream s, so stages on different
    streams have different strengths.

    Args:
        n: the number of strengths, if noise is a Noise.
        low, high: the range of the strengths.
        noise: a Noise, or a list of one for each sample.
        p: the probability of a strength other than 0, from 0 to 1.

    Returns:
        float64 (n,), for `gaussian` and the other functions.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected.

    >>> noise = nf.Noise(7, sample=[3, 1, 4])
    >>> nf.augment.strengths(3, 5.0, 20.0, noise).shape
    (3,)
    >>> images = np.full((3, 8, 8, 3), 128, np.uint8)
    >>> noisy = nf.augment.gaussian(images, nf.augment.strengths(3, 5.0, 20.0, noise, p=0.5), noise)
    """
    low, high, p = (float(_numbers(name, value)) for name, value in (("low", low), ("high", high), ("p", p)))
    if low > high or not 0 <= p <= 1:
        raise ValueError(f"low = {low}, high = {high}, p = {p}: expected low <= high and 0 <= p <= 1")
    one = (n if isinstance(noise, Noise) else 1, 2)
    drawn = [uniform(one, _parameters(name), dtype="float64") for name in names_of(noise)]
    u = np.concatenate(drawn)
    return np.where(u[:, 1] < p, low + (high - low) * u[:, 0], 0.0)


def strength(noise: Noise, low: float, high: float, p: float = 1.0) -> float:
    """Returns one sample's strength from checked arguments: `strengths` in a tenth of its time."""
    if low == high and p == 1:
        return low
    drawn = uniform((1, 2), _parameters(noise), dtype="float64").tolist()[0]
    return low + (high - low) * drawn[0] if drawn[1] < p else 0.0


def sample_id(key: int | str) -> int:
    """Returns the sample id of an item's key.

    Args:
        key: an int in [0, 2^56), or a str.

    Returns:
        The int itself, or the first 56 bits of a str's BLAKE2b hash.

    Raises:
        OverflowError: an int lies outside [0, 2^56).
        TypeError: key is neither int nor str.

    >>> nf.augment.sample_id(17), nf.augment.sample_id("n01440764/n01440764_10026.JPEG")
    (17, 40181326664737271)
    """
    if isinstance(key, str):
        return name_id(key)
    if isinstance(key, bool) or not isinstance(key, int | np.integer):
        raise TypeError(f"key = {key!r}: expected an int or a str, got {type(key).__name__}")
    if not 0 <= key < SAMPLES:
        raise OverflowError(f"key = {key}: expected an int in [0, 2^56)")
    return int(key)


def _parameters(noise: Noise) -> Noise:
    return noise.at(stream=AUGMENT).window((2 * STREAMS,), (2 * noise.stream,))


# ---- rows --------------------------------------------------------------------------------------------------


_NUMBERS = int, float, np.integer, np.floating


class _Model:
    """A kind of noise as a row: its active columns, each a number or an argument's name; and further activity bits."""

    def __init__(self, columns: tuple[tuple[str, float | str], ...], flags: int = 0) -> None:
        self.columns, self.flags = columns, flags
        self.template = Rows.of({name: 0.0 if isinstance(c, str) else c for name, c in columns}, flags)
        self.places = [(NAMES.index(name), c) for name, c in columns if isinstance(c, str)]

    def rows(self, numbers: Mapping[str, ArrayLike]) -> Rows:
        return Rows.of({name: numbers[c] if isinstance(c, str) else c for name, c in self.columns}, self.flags)

    def plain(self, numbers: Mapping[str, ArrayLike], n: int = 1) -> FastTable:
        """Returns n rows for the fast path, quickly: a transform has other rows for each image."""
        table = self.template.table.repeat(n, 0)
        for column, name in self.places:
            table[:, column] = numbers[name]
        plain = None, table, self.template.active
        of_levels = *plain, None, None, None
        return (*plain, of_levels, of_levels, None)


_PREPARED = _Model((("out.x", "gain"), ("out.z", "noise_std"), ("out.k", "shift")))
_GAUSSIAN = _Model((("out.x", 1.0), ("out.z", "std"), ("out.k", "mean")))
_MULTIPLICATIVE = _Model((("clean.x", 1.0), ("out.x", 1.0), ("out.z", "std")), TIMES_CLEAN)
_VARIANCE = (("clean.x", "a"), ("clean.k", "b"), ("clean.lo", 0.0), ("clean.hi", math.inf))
_BY_LEVEL = _Model((("out.k", "mean_table"), ("out.z", "std_table")))
_SENSOR = _Model((*_VARIANCE, ("out.x", 1.0), ("out.z", 1.0)), TIMES_ROOT)


@lru_cache(256)
def _plain(model: _Model, *numbers: tuple[str, float]) -> FastTable | None:
    """Returns a row for the fast path, or None if the numbers are wrong."""
    if not all(math.isfinite(value) and (value >= 0 or name not in _NOT_NEGATIVE) for name, value in numbers):
        return None
    return model.plain(dict(numbers))


def _fast_rows(
    model: _Model, numbers: dict[str, ArrayLike], shape: tuple[int, ...], layout: Layout | None, batched: bool
) -> tuple[FastTable | None, Any]:
    """Returns rows for the fast path, or None if the numbers are wrong, and x's row numbers, whose shape begins x's
    shape or, with channels last, is (B, 1, .., C)."""
    try:
        columns, index = _by_place(numbers, shape, layout, batched)
    except (TypeError, ValueError):
        return None, 0
    rows, n = index.values, len(index.values)
    if index.period:
        rows = rows.reshape(-1, *(1,) * (len(shape) - 2), index.period)
    elif shape and 0 < shape[0] < n:
        rows = rows.reshape(shape[0], -1)
    return model.plain(columns, n), rows


def _apply(
    x: Array, noise: NoiseLike, model: _Model, numbers: dict[str, ArrayLike], *, layout: Layout | None = None,
    shared: bool = False, order: Layout | None = None, clip: Clip = None, dtype: DType | None = None,
    batched: bool | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Does one pass. It clips a result piece by piece as it is written; where the fast path does not take the call, a
    second pass clips it."""
    other = None if type(x) is np.ndarray else library_of(x)
    if order == layout:
        order = None
    if (shared or order is not None) and other is None:
        batched, x = is_batch("x", x, batched), as_array("x", x, (*FLOATS, *LEVELS))
        noise = _stored(x, noise, layout, shared, order, _kinds(x, dtype, out)[0], batched)
        shared, order = False, None
    wanted = getattr(x if out is None else out, "dtype", None) if dtype is None else dtype
    if dtype is None and out is None and type(x) is np.ndarray and not x.dtype.isnative:
        wanted = x.dtype.newbyteorder("=")
    if order is None and not shared and wanted is not None and not (other is not None and other.is_traced()):
        bounds = None if clip is None else _bounds(clip)
        rows: Any = 0
        if not (alone := {*map(type, numbers.values())} == {float}):
            numbers = {name: float(n) if isinstance(n, _NUMBERS) else n for name, n in numbers.items()}
            alone = {*map(type, numbers.values())} == {float}
        if alone:
            table = _plain(model, *numbers.items())
        elif is_lazy(x):
            table = None
        else:
            table, rows = _fast_rows(model, numbers, tuple(x.shape), layout, batched is not False)
        if table is not None:
            levels = levels_of(wanted) or ""
            if levels and model is _GAUSSIAN:
                strength = numbers if alone else {name: table[1][:, column] for column, name in model.places}
                _warn_of_little(strength, LEVELS[levels])
            asked = FAST_LEVELS.get(levels) or fast_dtype(wanted, other)
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


_LITTLE = 0.2  # grey levels: one value in 80 is rounded to another one


def _warn_of_little(numbers: Mapping[str, Any], top: int) -> None:
    """Warns once if hardly a value changes, as results are rounded to whole levels up to `top`. Other libraries take a
    fraction of the range."""
    std = numbers["std"] if type(numbers["std"]) is float else numbers["std"].max()
    if 0 < std <= _LITTLE and not np.any(numbers["mean"]):
        said = f"std = {std:g} is in grey levels, which are whole numbers: it hardly changes any"
        warn_once("std", f"{said}; if a fraction of the range 0 .. {top} was meant, pass std = {std * top:g}")


def _apply_call(
    x: Array, noise: NoiseLike, *, model: _Model, numbers: dict[str, ArrayLike], layout: Layout | None, clip: Clip,
    dtype: DType | None, batched: bool, out: Array | None = None,
) -> tuple[Step, Clip]:  # fmt: skip
    """Returns the pass as a checked call, and the bounds of its result."""
    x = as_array("x", x, (*FLOATS, *LEVELS))
    columns, index = _by_place(numbers, x.shape, layout, batched)
    bounds = None if clip is None else _bounds(clip)
    kind, levels = _kinds(x, dtype, out)
    return _call(x, model.rows(columns), index, noise, kind, levels, batched, out), bounds


def _level_tables(mean_table: ArrayLike, std_table: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Returns the numbers of both tables by their names."""
    tables = {name: _numbers(name, given) for name, given in (("mean_table", mean_table), ("std_table", std_table))}
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
def _row(model: _Model, *numbers: tuple[str, float]) -> Rows | None:
    plain = _plain(model, *numbers)
    return None if plain is None else Rows(plain[1], plain[2])


def _snr(x: Array, noise: NoiseLike, *, snr: ArrayLike, **options: Any) -> Array:
    return at_snr(x, snr, noise, **options)


def _levels(x: Array, noise: NoiseLike, *, mean_table: ArrayLike, std_table: ArrayLike, **options: Any) -> Array:
    return by_level(x, mean_table, std_table, noise, **options)


def _poisson(x: Array, noise: Any, *, dtype: DType | None = None, peak: ArrayLike, **options: Any) -> Array:
    return poisson(x, peak, noise, **options)


def _transition(x: Array, noise: Any, *, dtype: DType | None = None, matrix: ArrayLike, **options: Any) -> Array:
    return transition(x, matrix, noise, **options)


def _become(
    x: Array, tables: NDArray[np.void], name: str, given: tuple[int, ...], each: NDArray[np.int64], noise: object,
    batched: bool, out: Array | None,
) -> Array:  # fmt: skip
    """Changes bytes by tables of 256 levels: by the first table if `given` is (), else by table `each[b]` in sample
    b."""
    copies = _copies(max(1, len(tables) // 256))
    if type(x) is np.ndarray and (given == () or (batched and given == x.shape[:1])):
        rows, plain = each if given else 0, copies.plain[:3]
        table, asked = (*plain, (*plain, None, None, tables), None, tables), FAST_LEVELS["uint8"]
        done: Array = backends.fast_row(table, rows, x, None, None, noise, -1, out, None, asked, batched)
        if done is not NotImplemented:
            return done
    x = as_array("x", x, ("uint8",))
    if is_array(noise):
        raise TypeError("noise: expected a Noise or a list of them, as its words choose the bytes, got an array")
    batch, sample = batch_shape(x.shape, batched)
    if given not in ((), (batch,)) or (given and not batched):
        raise ValueError(f"{name}: expected one for all{f', or for each of {batch} samples' if batched else ''}")
    kind = np.dtype(np.float32)
    names, _ = names_or_array(noise, x.shape, kind, batched, FIELD, any_stream=True)
    index = Index(each, max(1, count(sample))) if given else Index(np.zeros(1, np.int64), max(1, x.size))
    call = make_call(
        x.shape, kind, copies, index, names, {X: x}, {"out": out}, batched, draw="words", levels="uint8",
        transitions=tables,
    )  # fmt: skip
    return run(call)[0]


@lru_cache(64)
def _copies(n: int) -> Rows:
    return Rows.of({"out.x": np.ones(n)})


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


# ---- arguments -----------------------------------------------------------------------------------------------------


def _by_place(
    numbers: dict[str, ArrayLike], shape: tuple[int, ...], layout: Layout | None, batched: bool
) -> tuple[dict[str, NDArray[np.float64]], Index]:
    """Returns a row for all, one for each sample, or one for each of its channels: columns, and the elements' rows."""
    batch, sample = batch_shape(shape, batched)
    found = {name: _numbers(name, given) for name, given in numbers.items()}
    if not batched:  # for the one sample
        found = {name: values[None] if values.ndim else values for name, values in found.items()}
    most = 0
    for name, values in found.items():
        most = max(most, ndim := values.ndim)
        if ndim and (ndim > 2 or values.shape[0] != batch):
            one = "(C,)" if not batched else f"({batch},) for the samples or ({batch}, C) for their channels"
            raise ValueError(f"{name}: expected a number, {one}, got shape {np.shape(numbers[name])}")
    if not count(shape):
        return {name: np.zeros(()) for name in found}, Index(np.zeros(1, np.int64), 1)
    if most == 0:
        return found, Index(np.zeros(1, np.int64), max(1, count(shape)))
    if most == 1:
        return found, Index(np.arange(batch), max(1, count(sample)))
    widths = {values.shape[1] for values in found.values() if values.ndim == 2}
    channels = next(iter(widths)) if len(widths) == 1 else 0
    place = find_layout(layout, sample, channels, " and ".join(numbers))
    columns = {name: values.repeat(channels) if values.ndim == 1 else values.ravel() for name, values in found.items()}
    each = np.arange(batch * channels)
    if place == "CHW":
        return columns, Index(each, max(1, count(sample) // channels))
    return columns, Index(each, max(1, count(shape)), period=channels)


def _numbers(name: str, given: ArrayLike) -> NDArray[np.float64]:
    negative, most = name in _NOT_NEGATIVE, sys.float_info.max
    least = 0 if negative else -most
    if type(given) in (float, int) and least <= given <= most:  # type: ignore[operator]
        return np.array(given, np.float64)  # the checks below take five times as long
    values = host_floats(name, given)
    if not lie_within(values, least, most):
        first = first_of(name, ~np.isfinite(values) | (negative & (values < 0)), values)
        raise ValueError(f"{first}: expected finite numbers{' of at least 0' if negative else ''}")
    return values


_NOT_NEGATIVE = ("std", "a", "noise_std", "scale_std", "std_table", "matrix")


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


def _bounds(clip: tuple[float, float]) -> tuple[float, float]:
    bounds = _numbers("clip", clip)
    if bounds.shape != (2,) or bounds[0] > bounds[1]:
        raise ValueError(f"clip = {clip!r}: expected (low, high)")
    return float(bounds[0]), float(bounds[1])
