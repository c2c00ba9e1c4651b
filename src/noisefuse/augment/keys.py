# SPDX-License-Identifier: Apache-2.0
"""Strengths and samples by the key of an item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..language.noise import AUGMENT, SAMPLES, STREAMS, Noise, name_id, names_of
from ..operations.draw import uniform
from .numbers import as_numbers


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
    low, high, p = (float(as_numbers(name, value)) for name, value in (("low", low), ("high", high), ("p", p)))
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


def named(seed: int, sample: int, step: int) -> Noise:
    """Makes a Noise of checked numbers quickly."""
    return backends.named(seed, sample, step)


def _parameters(noise: Noise) -> Noise:
    return noise.at(stream=AUGMENT).window((2 * STREAMS,), (2 * noise.stream,))
