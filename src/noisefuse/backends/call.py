# SPDX-License-Identifier: Apache-2.0
"""What the array API hands to a backend, the same for all of them: plain, frozen values, already checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..noise import Noise

Array: TypeAlias = NDArray[Any]
Draw: TypeAlias = Literal["none", "normal", "uniform"]

# A row is 36 numbers (tableau.py): D = clamp(k + x x + m1 m1 + m2 m2, lo, hi), then out, aux1 and aux2, each
# k + x x + m1 m1 + m2 m2 + d D + past1 past1 + ... + past4 past4 + z z.
COLUMNS = 36
CLEAN, LOW, HIGH = 0, 4, 5
AFFINE = (6, 16, 26)  # column of the constant k of each output's form

# The values that a form can hold, in the order of its columns after the constant.
X, M1, M2, D, PAST1, PAST2, PAST3, PAST4, Z = range(9)
# The contract's order of terms, which is not that of the columns.
ORDER = (Z, D, PAST4, PAST3, PAST2, PAST1, M2, M1, X)
# Of the noise in each output, as columns and as their bits; and the bits of both bounds of a clamp.
Z_COLUMNS = [first + 1 + Z for first in AFFINE]
Z_BITS = sum(1 << column for column in Z_COLUMNS)
BOUNDS = 1 << LOW | 1 << HIGH

LOSS_CHUNK = 4096  # elements whose squares are added in the arithmetic's own type: docs/loss.md


@dataclass(frozen=True)
class Rows:
    """A table of rows, unrounded, and the columns that count.

    A column whose bit is 0 is not multiplied, and its input not read; a clamp counts where either bound does, and takes
    both from the row.
    """

    table: NDArray[np.float64]  # (n, 36)
    present: int  # bit c: column c counts

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """For float32 arithmetic: each coefficient rounded once."""
        return self.table.astype(np.float32)

    @cached_property
    def without_noise(self) -> Rows:
        """The same rows where nothing is drawn."""
        return Rows(self.table, self.present & ~Z_BITS)

    def reads(self, slot: int) -> bool:
        """Whether a form holds this value."""
        firsts = (*AFFINE, CLEAN) if slot <= M2 else AFFINE
        return any(self.present >> (first + 1 + slot) & 1 for first in firsts)

    @cached_property
    def plain(self) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
        """What a backend's short cut takes."""
        return self.single, self.table, self.present


@dataclass(frozen=True, slots=True)
class Step:
    """One pass over `batch` samples of `size` elements: a row of numbers for each element, and its noise.

    An output may be exactly one of the inputs: each element is read before it is stored.
    """

    batch: int
    size: int
    sample_shape: tuple[int, ...]  # of one sample, without the batch axis; its product is `size`
    rows: Rows
    index: NDArray[np.int64]  # row of each segment of `segment` elements, in the flat order over batch and size
    segment: int
    inputs: tuple[Array | None, ...]  # nine, by slot: x, m1, m2, None (D is computed), past1 .. past4, z
    outputs: tuple[Array | None, ...]  # three; float64 outputs mean float64 arithmetic, all others float32
    draw: Draw
    step_by_index: bool  # the step word of a segment is noise.step + index[segment]
    noise: tuple[Noise, ...]  # none, one, or one for each sample
    # The rows are gradients of a clamp: with v = D before its clamp, the one output is out + (aux1 if lo <= v <= hi
    # else 0), and 0 where v is NaN.
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """x_t = a_t x_(t-1) + s_t z_t for t = 0 .. T - 1 with step words noise.step + t.

    `first` holds x0 in inputs[0]; row t of its rows (T, 36) holds a_t in column 7 (out.x), s_t in column 15
    (out.z); outputs[0] has kept times x batch x size elements. Its index and segment play no part.
    """

    first: Step
    keep: NDArray[np.int64]  # (T,): for each time its row in the output, or -1


def window_runs(noise: Noise, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Of a sample of this shape: its first element in the field, how many elements lie together there, and the lengths
    and strides of the axes over such runs.

    Axes of length 1 are left out, and those that lie together are one: so of any shape there are at most 21.
    """
    full = noise.window_shape
    if full is None:
        return 0, math.prod(shape), (), ()
    strides = [math.prod(full[axis + 1 :]) for axis in range(len(full))]
    start = sum(s * stride for s, stride in zip(noise.window_start, strides, strict=True))
    # A run takes in the trailing axes that the slice covers whole, and one axis more.
    outer = len(full)
    while outer > 0 and (outer == len(full) or shape[outer] == full[outer]):
        outer -= 1
    merged: list[tuple[int, int]] = []
    for length, stride in zip(shape[:outer], strides, strict=False):
        if merged and merged[-1][1] == length * stride:
            merged[-1] = merged[-1][0] * length, stride
        elif length != 1:
            merged.append((length, stride))
    return start, math.prod(shape[outer:]), tuple(n for n, _ in merged), tuple(s for _, s in merged)


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums of squared residuals, and the gradient with respect to the prediction (docs/loss.md says all bits).

    The form `out` of `residual` is r = pred - target, with pred in its input m1; float64 pred means float64 arithmetic,
    all others float32. Elements of a sample that share one row of it are a piece, and a piece is taken in chunks of
    4,096. The sum of a chunk is one of the arithmetic, from 64 accumulators. All later sums are float64: a piece is the
    sum of its chunks, in order; a sample is fma(weight, piece, sum so far) over its pieces, in order.
    """

    residual: Step  # outputs[0]: where the gradient goes, of pred's shape and dtype (it may be an input); or None
    piece: int  # elements; they divide the sample evenly
    weights: NDArray[np.float64] | None  # one for each row of `residual`, or None: all are 1
    upstream: NDArray[np.float64]  # the gradient with respect to the losses, (), or (batch,) for each sample its own
    n: int  # elements that a loss is the mean over: sums are divided by it once
    losses: NDArray[np.float64] | None  # (batch,) for each sample its own; () of all, added in order; None: not wanted

    @property
    def double(self) -> bool:
        pred = self.residual.inputs[M1]
        assert pred is not None
        return pred.dtype == np.float64

    @property
    def pieces(self) -> int:
        """Of all samples."""
        return self.residual.batch * self.residual.size // self.piece

    @property
    def chunks(self) -> int:
        """Of a piece."""
        return -(-self.piece // LOSS_CHUNK)

    def weight(self) -> NDArray[np.float64] | None:
        """Of each piece, where all arrays lie in host memory."""
        if self.weights is None:
            return None
        return np.ascontiguousarray(np.broadcast_to(self.weights[self.residual.index], (self.pieces,)))

    def factor(self, weight: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """2 w g / n of each piece, which its residuals are multiplied with, once that is rounded to the arithmetic."""
        if self.residual.outputs[0] is None:
            return None
        of_samples = np.broadcast_to(self.upstream, (self.residual.batch,))
        of_pieces = np.repeat(of_samples, self.residual.size // self.piece)
        factor: NDArray[np.float64] = (2.0 if weight is None else 2.0 * weight) * of_pieces / self.n
        return factor
