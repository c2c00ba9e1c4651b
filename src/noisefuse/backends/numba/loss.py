# SPDX-License-Identifier: Apache-2.0
"""The sums of losses: docs/loss.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...call.description import ACCUMULATORS, LOSS_CHUNK
from .device import SPEC
from .pointers import least, pointer

add_square: Any = SPEC.add_square
sum_accumulators: Any = SPEC.sum_accumulators
add_piece: Any = SPEC.add_piece


def sum_squares(r: NDArray[Any], sums: NDArray[np.float64]) -> None:
    """Writes the sums of squares of chunks of the rows of r."""
    sum_of, chunks = np.empty(ACCUMULATORS, r.dtype), len(sums) // len(r)
    for row in range(len(r)):
        for c in range(chunks):
            sum_of[:] = 0
            last = least((c + 1) * LOSS_CHUNK, r.shape[1])
            for first in range(c * LOSS_CHUNK, last, ACCUMULATORS):
                for j in range(least(ACCUMULATORS, last - first)):
                    sum_of[j] = add_square(sum_of[j], r[row, first + j])
            sums[row * chunks + c] = sum_accumulators(pointer(sum_of.ctypes.data, r.dtype))


def sum_pieces(chunk_sums: NDArray[np.float64], weights: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
    """Of samples, which have the same number of pieces each, the weighted sums of their chunks."""
    pieces = len(weights) // len(sums)
    for sample in range(len(sums)):
        total = 0.0
        for piece in range(sample * pieces, (sample + 1) * pieces):
            sum_of_piece = 0.0
            for c in range(chunk_sums.shape[1]):
                sum_of_piece += chunk_sums[piece, c]
            total = add_piece(total, weights[piece], sum_of_piece)
        sums[sample] = total
