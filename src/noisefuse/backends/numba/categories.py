# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a race of categories: docs/noise.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, int64, uint32, uint64
from numpy.typing import NDArray

from ...call.description import ACCUMULATORS
from ..spec import ROUND32
from .device import SPEC, fma, pasted, select
from .pointers import pointer

philox4x32: Any = SPEC.philox4x32
counter_of: Any = SPEC.counter
race_element: Any = SPEC.race_element
race_key: Any = SPEC.race_key
race_score: Any = SPEC.race_score
chunk_term32: Any = SPEC.chunk_term32
exp64: Any = SPEC.exp64
minus_two_ln64: Any = SPEC.minus_two_ln64
sum_accumulators: Any = SPEC.sum_accumulators


def score_tokens(
    x: NDArray[np.float32], token: NDArray[np.int64], position: int, beta: float, step: int, sample: int, stream: int,
    seed: Any, out: NDArray[np.float64],
) -> None:  # fmt: skip
    """Writes the scores of a row's tokens."""
    k0, k1 = race_key(position, uint32(seed & uint64(0xFFFFFFFF)), uint32(seed >> uint64(32)))
    for i in range(len(x)):
        word, element = token[i] & int64(3), race_element(position, token[i])
        c = counter_of(element, step, sample, stream, 0)
        w = philox4x32(c[0], c[1], c[2], c[3], k0, k1)
        c = counter_of(element, step, sample, stream, 1)
        v = philox4x32(c[0], c[1], c[2], c[3], k0, k1)
        out[i] = race_score(x[i], beta, of_four(w, word), of_four(v, word))


@pasted
def of_four(w: Any, i: Any) -> Any:
    return select(i < 2, select(i < 1, w[0], w[1]), select(i < 3, w[2], w[3]))


@pasted
def limits(largest: Any, high: Any, rate: Any, reach: Any) -> Any:
    """Returns what terms subtract from their logits, the largest result, the exponent's floor and the least result."""
    scaled = largest * high
    shift = select((scaled < float32(512)) & (scaled > float32(-512)), float32(0), largest)
    top = largest - shift
    return shift, top, fma(top, rate, ROUND32) - float32(126), top - reach


def write_terms(
    x: NDArray[np.float32], largest: Any, high: Any, low: Any, rate: Any, reach: Any, out: NDArray[np.float32]
) -> Any:
    """The terms of a row in units of its largest logit's, which are returned."""
    shift, top, floor, least = limits(largest, high, rate, reach)
    for i in range(len(x)):
        moved = x[i] - shift
        out[i] = chunk_term32(select(moved > least, moved, least), high, low, rate, floor)
    return chunk_term32(top, high, low, rate, floor)


def sum_terms(
    chunk: NDArray[np.float32], largest: NDArray[np.float32], high: Any, low: Any, rate: Any, reach: Any,
    sums: NDArray[np.float64], spreads: NDArray[np.float64],
) -> None:  # fmt: skip
    """Sums the terms of each chunk, and the terms' products with largest - x, in units of the largest term."""
    total, spread = np.empty(ACCUMULATORS), np.empty(ACCUMULATORS)
    for c in range(len(chunk)):
        shift, top, floor, least = limits(largest[c], high, rate, reach)
        total[:], spread[:] = 0, 0
        for first in range(0, chunk.shape[1], ACCUMULATORS):
            for j in range(ACCUMULATORS):
                moved = chunk[c, first + j] - shift
                z = select(moved > least, moved, least)
                term = np.float64(chunk_term32(z, high, low, rate, floor))
                total[j] += term
                spread[j] = fma(term, np.float64(top) - np.float64(z), spread[j])
        unit = np.float64(chunk_term32(top, high, low, rate, floor))
        sums[c] = sum_accumulators(pointer(total.ctypes.data, total.dtype)) / unit
        spreads[c] = sum_accumulators(pointer(spread.ctypes.data, spread.dtype)) / unit
