# SPDX-License-Identifier: Apache-2.0
"""Counted photons, and bytes that become other bytes at random, by tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import as_array, batch_shape, host_view
from ..arguments.calls import Index, is_batch, make_call, run
from ..arguments.options import FAST_LEVELS
from ..arguments.types import Array, ArrayT, DType, Images
from ..ground.checks import check_number, lie_within
from ..language.levels import levels_of
from ..language.noise import Noise
from ..language.rows import Rows, X
from ..operations import byte_tables
from .lists import beside_arrays, is_traced
from .numbers import Region, as_numbers, keys_for
from .photons import photons
from .rows import inside


def poisson(
    x: Images[ArrayT], peak: ArrayLike, noise: Noise | Sequence[Noise], *, gamma: float = 1.0,
    batched: bool | None = None, out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """The noise of counted photons: top (N / peak)^(1 / gamma), where N is Poisson with mean peak (x / top)^gamma.

    top, the value of white, is 255 of bytes, 65535 of uint16, and 1 of floats. Integers are rounded and clipped.

    Args:
        x: float32, float64, float16, bfloat16, uint8 or uint16, of any shape; axis 0 the batch. Floats and uint16 are
            in host memory; what is negative has no light.
        peak: the number of photons for white: a number, or (B,) for each sample; at most 1e6. (For more, `sensor` with
            a = top / peak is as good.)
        noise: as in `gaussian`, but not an array.
        gamma: the display's gamma, if grey levels are not linear in light, such as 2.2. 1 is linear light.
        batched, out, region: as in `gaussian`.

    Returns:
        An array of x's shape, dtype and kind. Each byte gets its exact share of the 2^32 words of the noise, rounded to
        one word. Of floats and uint16 N is the same but for one word in 10^4, and all other results are exact to 1e-10.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> image = np.full((1, 64, 64, 3), 200, np.uint8)
    >>> noisy = nf.augment.poisson(image, 255.0, nf.Noise(7))
    >>> round(float(noisy.mean())), round(float(noisy.var()), -1)
    (200, 200.0)
    """
    if region is not None:
        return inside(region, poisson, x, peak, noise, gamma=gamma, batched=batched, out=out)
    if type(x) is np.ndarray or not is_traced(x):
        done: ArrayT = backends.fast_photons(x, peak, gamma, noise, byte_tables.light_of, batched, out)
        if done is not NotImplemented:
            return done
    batched = is_batch("x", x, batched)
    peaks, gammas = as_numbers("peak", peak), as_numbers("gamma", gamma)
    for name, values, most in (("peak", peaks, 1), ("gamma", gammas, 0)):
        if values.ndim > most:
            one = "a number or one for each sample" if most else "a number"
            raise ValueError(f"{name}: expected {one}, got shape {values.shape}")
    if not lie_within(peaks, math.nextafter(0, 1), 1e6):
        raise ValueError(f"peak = {peak!r}: expected photons, more than 0 and at most 1e6")
    gamma = check_number("gamma", float(gammas), 0.1, 10)
    if (other := beside_arrays(x)) is not None:
        return other.augmented(_poisson, x, noise, peak=peak, gamma=gamma, batched=batched, out=out)
    x = host_view("x", x)
    if levels_of(getattr(x, "dtype", np.uint8)) != "uint8":
        return photons(x, peaks, gamma, noise, batched, out)
    if peaks.ndim == 0:
        return _become(x, byte_tables.of_poisson(float(peaks), gamma), "peak", (), _NONE, noise, batched, out)
    tables, each = byte_tables.of_poissons(peaks, gamma)
    return _become(x, tables, "peak", peaks.shape, each, noise, batched, out)


def transition(
    x: Images[ArrayT], matrix: ArrayLike, noise: Noise | Sequence[Noise], *, batched: bool | None = None,
    out: Images[ArrayT] | None = None, region: Region | None = None,
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
        noise, batched, out, region: as in `poisson`.

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
    if region is not None:
        return inside(region, transition, x, matrix, noise, batched=batched, out=out)
    if (other := beside_arrays(x)) is not None:
        return other.augmented(_transition, x, noise, matrix=matrix, batched=batched, out=out)
    given = _Matrix(matrix if type(matrix) is np.ndarray else as_numbers("matrix", matrix))
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
    matrix.numbers = probabilities = as_numbers("matrix", matrix.numbers)  # a copy, which the caller cannot write to
    far = abs(probabilities.sum(axis=-1) - 1) > 1e-6
    if far.any():
        row = tuple(np.argwhere(far)[0].tolist())
        raise ValueError(f"matrix[{', '.join(map(str, row))}]: expected a sum of 1, got {probabilities[row].sum():.9g}")
    return byte_tables.of_probabilities(probabilities).reshape(-1)


_NONE = np.zeros(0, np.int64)


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
    batch, sample = batch_shape(x.shape, batched)
    if given not in ((), (batch,)) or (given and not batched):
        raise ValueError(f"{name}: expected one for all{f', or for each of {batch} samples' if batched else ''}")
    kind = np.dtype(np.float32)
    names = keys_for(noise, x.shape, "its words choose the bytes", batched)
    index = Index(each, max(1, math.prod(sample))) if given else Index(np.zeros(1, np.int64), max(1, x.size))
    call = make_call(
        x.shape, kind, copies, index, names, {X: x}, {"out": out}, batched, draw="words", levels="uint8",
        transitions=tables,
    )  # fmt: skip
    return run(call)[0]


@lru_cache(64)
def _copies(n: int) -> Rows:
    return Rows.of({"out.x": np.ones(n)})
