# SPDX-License-Identifier: Apache-2.0
"""Tables that turn bytes into other bytes at random (spec.transition). They hold probabilities as counts of words.

These numbers become bits, so only operations that round alike everywhere are used: float64's + - * /, one after
another, and decimal powers.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..call.description import TRANSITION, PoissonTables
from ..ground.float_mode import float_mode

LEVELS = 256
_ODD = np.arange(LEVELS) % 2 == 1
MOST = 8  # tables of 256 levels that are kept together: each takes 320 KiB


def of_probabilities(matrix: NDArray[np.float64]) -> NDArray[np.void]:
    """Returns (.., 256) tables of (.., 256, 256) probabilities. Each row of probabilities has a sum other than 0."""
    reached = np.cumsum(matrix, axis=-1)
    reached /= reached[..., -1:].copy()
    return of_cumulative(reached)


def of_cumulative(reached: NDArray[np.float64]) -> NDArray[np.void]:
    """Returns tables from the probability of each byte or a smaller one, (.., 256, 256), each rounded to a multiple of
    2^-32. They are overwritten, because most of the time would go to new memory."""
    reached *= 2.0**32
    words = np.rint(reached, out=reached).astype(np.int64)  # how many of the 2^32 words give that byte
    words[..., -1] = 1 << 32
    words -= 1
    tables = np.zeros(words.shape[:-1], TRANSITION)
    tables["last"] = np.maximum(words, 0)
    # The search begins after the bytes that no remaining word gives. The words' upper bits count those bytes.
    words += 1 << 24
    words >>= 24
    places = words.reshape(-1, LEVELS)
    places += np.arange(len(places))[:, None] * (LEVELS + 1)
    counted = np.bincount(places.ravel(), minlength=len(places) * (LEVELS + 1)).reshape(-1, LEVELS + 1)
    tables["first"] = np.cumsum(counted, axis=1)[:, :-1].reshape(tables["first"].shape)
    tables.flags.writeable = False
    return tables


@lru_cache(64)
def of_poisson(peak: float, gamma: float) -> NDArray[np.void]:
    """Returns (256,) tables of 255 (N / peak)^(1 / gamma), rounded; N is Poisson with mean peak (level / 255)^gamma."""
    with float_mode():
        light = peak * np.arange(512) / 510 if gamma == 1 else peak * light_of(gamma)
        mean, halves = light[0::2].copy(), light[1::2]
        # This is the greatest N that gives a byte or a smaller one. Halfway between two bytes, the even one is next.
        floor = np.floor(halves)
        greatest = np.maximum.accumulate(floor - (_ODD & (floor == halves)))
        call = PoissonTables(mean, greatest, np.empty(LEVELS, TRANSITION))
        if backends.current().run(call) is not NotImplemented:
            call.tables.flags.writeable = False
            return call.tables
        spread = 12 * np.sqrt(mean) + 30  # less than 2^-60 of the probability lies beyond on either side
        lowest = np.maximum(np.floor(mean - spread), 0)
        ratios = np.ones((LEVELS, math.ceil(2 * spread[-1]) + 2))
        np.divide(mean[:, None], lowest[:, None] + np.arange(1, ratios.shape[1]), out=ratios[:, 1:])
        sums = np.cumsum(np.cumprod(ratios, axis=1), axis=1)
        at = np.minimum(greatest - lowest[:, None], ratios.shape[1] - 1).astype(np.int64)
        reached = np.take_along_axis(sums, np.maximum(at, 0), axis=1) / sums[:, -1:]
        return of_cumulative(np.where(at < 0, 0.0, reached))


def of_poissons(peaks: NDArray[np.float64], gamma: float) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Returns the different peaks' tables, one after another, and the table number of each peak."""
    given = peaks.tolist()
    places = {peak: n for n, peak in enumerate(dict.fromkeys(given))}
    together = _together if len(places) <= MOST else _together.__wrapped__
    return together(gamma, *places), np.array([places[peak] for peak in given], np.int64)


# Joining the tables of 8 peaks takes 100 us, and the next batch often has the same peaks.
@lru_cache(8)
def _together(gamma: float, *peaks: float) -> NDArray[np.void]:
    tables = [of_poisson(peak, gamma) for peak in peaks or (1.0,)]
    if len(tables) == 1:
        return tables[0]
    together = np.concatenate(tables)
    together.flags.writeable = False
    return together


@lru_cache(8)
def light_of(gamma: float) -> NDArray[np.float64]:
    """Returns (n / 510)^gamma, n = 0 .. 511. Mathematical libraries' powers differ in the last place."""
    from decimal import Context, Decimal  # they take a millisecond

    digits = Context(28)  # it does not depend on the caller's context
    return np.array([float(digits.power(digits.divide(n, 510), Decimal(gamma))) for n in range(512)])
