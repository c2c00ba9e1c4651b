# SPDX-License-Identifier: Apache-2.0
"""The calls that the array API hands to every backend: plain, frozen values, already checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..language.levels import levels_of
from ..language.noise import Noise
from ..language.rows import M1, Rows, Z

# The annotation of a record's field tells its type in C (call/packed.py): int is int64_t, bool and np.dtype int32_t, an
# array is its address.
Array: TypeAlias = NDArray[Any]
Int32: TypeAlias = int
UInt64: TypeAlias = int
Draw: TypeAlias = Literal["none", "normal", "uniform", "words"]

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

AXES = 21  # a window's axes after merging: see window_runs
TRANSITION = np.dtype([("last", "u4", 256), ("first", "u1", 256)])  # csrc/core/transition.h
LOSS_CHUNK = 4096  # elements whose squares are added in the arithmetic's own type: docs/loss.md
ACCUMULATORS = 64  # sums in a chunk: docs/loss.md


class Step(NamedTuple):
    """One pass over `batch` samples of `size` elements: a row of numbers for each element, and its noise.

    An output may be exactly one of the inputs: each element is read before it is stored.
    """

    batch: int
    size: int
    sample_shape: tuple[int, ...]  # one sample's shape, without the batch axis; its product is `size`
    rows: Rows
    # The row of each segment of `segment` elements, in the flat order over batch and size.
    index: NDArray[np.int64]  # type: ignore[assignment]  # it hides a method of tuples
    segment: int
    inputs: tuple[Array | None, ...]  # nine, by slot: x, m1, m2, None (D is computed), past1 .. past4, z
    outputs: tuple[Array | None, ...]  # three, all of one dtype, but the first may hold integer levels
    draw: Draw
    step_by_index: bool  # the step word of a segment is noise.step + index[segment]
    noise: tuple[Noise, ...]  # none, one, or one for each sample
    # The rows are gradients of a clamp: with v = D before its clamp, the one output is out + (aux1 if lo <= v <= hi
    # else 0), and 0 where v is NaN.
    masked: bool = False
    # Instead of segments: the elements of a sample take the next `period` rows of index in turn; or the row of an
    # element is its x, a byte, and only out.k and out.z count.
    period: int = 0
    by_level: bool = False
    # For bytes that change at random: tables (rows, 256) by which the words turn x into other bytes (spec.transition).
    # The words serve nothing else. Rows choose the table, and their numbers are not used.
    # Without tables they are the result: `words` with one output, a float32 whose bits they are.
    transitions: Array | None = None

    @classmethod
    def of_one_row(
        cls, batch: int, sample: tuple[int, ...], rows: Rows, x: Array | None, out: Array, draw: Draw,
        noise: Sequence[Noise],
    ) -> Step:  # fmt: skip
        """Returns a pass with one row for all elements, which reads x alone and has one output."""
        size, index = math.prod(sample), np.zeros(1, np.int64)
        inputs, outputs = (x, *(None,) * Z), (out, None, None)
        return cls(batch, size, sample, rows, index, max(1, batch * size), inputs, outputs, draw, False, tuple(noise))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The outputs' dtype: float64 selects float64 arithmetic, all others float32. A loss without a gradient takes
        pred's. If only integer levels are written, it is the arithmetic's."""
        first, second, _ = self.outputs
        given = second if second is not None else first if first is not None else self.inputs[M1]
        assert given is not None
        if levels_of(given.dtype) is None:
            return given.dtype
        wide = any(a is not None and a.dtype == FLOAT64 for a in self.inputs)  # float32 arithmetic reads none
        return FLOAT64 if wide else FLOAT32

    @property
    def row_for_each(self) -> bool:
        """Tells whether each element has its own row."""
        return self.period > 0 or self.by_level

    @property
    def arithmetic(self) -> np.dtype[Any]:
        """float64 if that is the dtype, else float32."""
        return FLOAT64 if self.dtype == FLOAT64 else FLOAT32


class Walk(NamedTuple):
    """x_t = a_t x_(t-1) + s_t z_t for t = 0 .. T - 1 with step words noise.step + t.

    `first` holds x0 in inputs[0]; row t of its rows (T, 36) holds a_t in column 7 (out.x), s_t in column 15
    (out.z); outputs[0] has kept times x batch x size elements. Its index and segment are not used.
    """

    first: Step
    keep: NDArray[np.int64]  # (T,): the output row of each time, or -1


class Masks(NamedTuple):
    """Tokens that become the mask at random. A token does where its word lies below rint(2^32 p), or, with
    `complement`, where it does not; and only where `where` says so."""

    step: Step  # draws the words; outputs[0] is `masked`
    tokens: Array  # integers of 1, 2, 4 or 8 bytes
    out: Array  # of the same dtype; it may be `tokens`
    masked: NDArray[np.uint8]  # whether each token became the mask
    where: NDArray[np.bool_] | None
    p: NDArray[np.float64]  # one for each segment of `segment` tokens, in the flat order
    segment: int
    mask: UInt64
    vocabulary: UInt64  # beyond 0: a token of so many, of stream 15 (the step draws 14), in place of the mask
    bytes: Int32  # of a token
    complement: bool


class Impulses(NamedTuple):
    """Places of images that become salt, pepper or random values. With its word w a place becomes `high` where
    w < rint(2^32 amount salt), else `low` where w < rint(2^32 amount); or, with `random`, a value between them."""

    step: Step  # draws the words of places; outputs[0] is `out`, as bytes
    x: Array
    out: Array  # of x's shape and dtype; it may be x
    amount: NDArray[np.float64]  # one for each segment of `segment` places, in the flat order
    segment: int
    channels: int  # of a place, which share its word
    salt: float
    low: float
    high: float
    type: np.dtype[Any]
    random: bool
    planes: bool  # whether the places of a channel follow one another, not the channels of a place
    padding: Int32 = 0


class Rician(NamedTuple):
    """out = sqrt((x + std z_0)^2 + (std z_1)^2 + ..). Normal d of an element lies `apart` elements after the one
    before."""

    step: Step  # draws the normals; outputs[0] has their dtype
    x: Array
    out: Array  # of x's shape and dtype; it may be x
    std: NDArray[np.float64]  # one for each segment of `segment` elements, in the flat order
    segment: int
    draws: int
    apart: int
    type: np.dtype[Any]
    padding: Int32 = 0


class Poisson(NamedTuple):
    """out = top (N / peak)^(1 / gamma), N the Poisson number of mean peak (x / top)^gamma at an element's word."""

    step: Step  # draws the words; outputs[0] is `out`, as bytes
    x: Array
    out: Array  # of x's shape and dtype; it may be x
    peak: NDArray[np.float64]  # one for each segment of `segment` elements, in the flat order
    segment: int
    gamma: float
    top: float
    light: Array | None  # of bytes, which the fast path alone has
    type: np.dtype[Any]
    padding: Int32 = 0


class PoissonTables(NamedTuple):
    """Tables for Poisson numbers of 256 levels (docs/noise.md)."""

    mean: NDArray[np.float64]
    greatest: NDArray[np.float64]  # the greatest count that gives this byte or a smaller one, in order
    tables: NDArray[np.void]  # of TRANSITION


class Level(NamedTuple):
    """A coarser level of pyramid noise, and where rows and columns of the whole lie among its own."""

    planes: Array  # (n, height, width), of the whole's dtype
    above: NDArray[np.int32]  # for each row of the whole, the one before
    left: NDArray[np.int32]  # for each column
    down: Array  # and the fraction of the way to the next
    right: Array
    height: int
    width: int
    weight: float


class Pyramid(NamedTuple):
    """out = (out + weight * enlarged + ..) * scale."""

    out: Array  # (planes, height, width) float32 or float64
    scale: Array  # (height, width)
    levels: tuple[Level, ...]
    n_levels: int
    planes: int
    height: int
    width: int
    type: np.dtype[Any]
    padding: Int32 = 0


def window_runs(noise: Noise, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Returns a sample's first element in the field, how many elements are contiguous there, and the lengths and
    strides of the axes over such runs.

    Axes of length 1 are left out and contiguous axes are merged, so any shape has at most AXES.
    """
    full = noise.window_shape
    if full is None:
        return 0, math.prod(shape), (), ()
    strides = [math.prod(full[axis + 1 :]) for axis in range(len(full))]
    start = sum(s * stride for s, stride in zip(noise.window_start, strides, strict=True))
    # A run spans the trailing axes that the slice covers whole, and one more axis.
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


class Loss(NamedTuple):
    """Sums of squared residuals, and the gradient with respect to the prediction (docs/loss.md defines all bits).

    The linear combination `out` of `residual` is r = pred - target, with pred in its input m1. float64 pred selects
    float64 arithmetic, all others float32. The elements of a sample that share a row are a piece, which is taken in
    chunks of 4,096. A chunk's sum has the arithmetic's type and uses 64 accumulators. All later sums are float64: a
    piece is the sum of its chunks, in order; a sample is fma(weight, piece, sum so far) over its pieces, in order.
    """

    residual: Step  # outputs[0]: the gradient, of pred's shape and dtype (it may be an input), or None
    piece: int  # elements; they divide the sample evenly
    weights: NDArray[np.float64] | None  # one for each row of `residual`, or None: all are 1
    upstream: NDArray[np.float64]  # the gradient with respect to the losses: (), or (batch,) with one for each sample
    n: int  # the number of elements in a loss's mean: sums are divided by it once
    losses: NDArray[np.float64] | None  # (batch,): one for each sample; (): all of them, added in order; None: unwanted

    @property
    def pieces(self) -> int:
        """The number of pieces in all samples."""
        return self.residual.batch * self.residual.size // self.piece

    @property
    def chunks(self) -> int:
        """The number of chunks in a piece."""
        return -(-self.piece // LOSS_CHUNK)

    def weight(self) -> NDArray[np.float64] | None:
        """Returns the weight of each piece, if all arrays lie in host memory."""
        if self.weights is None:
            return None
        return np.ascontiguousarray(np.broadcast_to(self.weights[self.residual.index], (self.pieces,)))

    def factor(self, weight: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """Returns 2 w g / n for each piece. It is rounded to the arithmetic's dtype before it multiplies the
        residuals."""
        if self.residual.outputs[0] is None:
            return None
        of_samples = np.broadcast_to(self.upstream, (self.residual.batch,))
        of_pieces = np.repeat(of_samples, self.residual.size // self.piece)
        factor: NDArray[np.float64] = (2.0 if weight is None else 2.0 * weight) * of_pieces / self.n
        return factor


TOKENS, POSITIONS = 1 << 20, 1 << 31  # of a vocabulary, of a sample: docs/noise.md


@dataclass(frozen=True, slots=True)
class Parts:
    """The results of a race in a part of the vocabulary: for each row, and for each chunk of a row."""

    score: NDArray[np.float64]  # (rows,): of the winner
    winner: NDArray[np.float32]  # (rows,): its logit
    largest: NDArray[np.float32]  # (rows, chunks): the largest logit
    plain: NDArray[np.float64] | None  # (rows, chunks): sums of e^(x - largest)
    tempered: NDArray[np.float64] | None  # the same of x / temperature


class Race(NamedTuple):
    """Draws of categories (docs/noise.md defines all bits): a token of each row, and what `info` asks for."""

    rows: int
    of_sample: int  # rows of a sample, which follow one another
    n: int  # tokens
    first: int  # the first of them in the vocabulary, a multiple of LOSS_CHUNK
    x: Array | None  # (rows, n) of LOGITS; None: the parts have all chunks of whole rows
    position: NDArray[np.int64]  # (rows,)
    where: NDArray[np.bool_] | None  # (rows,): the others are left as they are
    temperature: NDArray[np.float64]  # (1,) or (samples,), as the next two
    top_p: NDArray[np.float64]
    top_k: NDArray[np.int64]  # 0: all
    fields: tuple[Noise, ...]  # one, or one for each sample
    token: Array | None  # (rows,) int64 or int32
    # What INFO names, (rows,), or None.
    log_prob: Array | None
    log_prob_raw: Array | None
    entropy: Array | None
    margin: Array | None
    rank: Array | None
    # `Parts`, or None; without the logits they are read.
    score: NDArray[np.float64] | None
    winner: NDArray[np.float32] | None
    chunk_largest: NDArray[np.float32] | None
    plain: NDArray[np.float64] | None
    tempered: NDArray[np.float64] | None
    bad: NDArray[np.uint8]  # (rows,), zeros; becomes 1 of a row with a NaN, 2 of one without a logit above -inf
    chunks: int
    type: np.dtype[Any]
    each: bool  # whether there are settings for each sample
    field_per_sample: bool
    token_is_32: bool
    hidden: int  # a token whose logit is -inf, whatever x holds; or -1


class CrossEntropy(NamedTuple):
    """A call for -log softmax(x)[id] of rows, and its gradient w g / n (softmax - 1 at the id), or, with the tokens
    `other` of x_t, for the divergences of rates in their place: docs/loss.md."""

    rows: int
    n: int  # tokens
    x: Array  # (rows, n) of LOGITS
    id: NDArray[np.int64]  # (rows,)
    other: NDArray[np.int64] | None  # (rows,); None: cross entropies
    p: NDArray[np.float64] | None  # (1,) or (rows,), of uniform tokens; None: of a flow
    masked: NDArray[np.bool_]  # (rows,): which rows count
    weight: NDArray[np.float64]  # (1,) or (rows,)
    upstream: NDArray[np.float64]  # (1,) or (rows,): the gradient with respect to the losses
    p_step: int
    weight_step: int
    upstream_step: int
    loss: NDArray[np.float64]  # (rows,): without weights; 0 of rows that do not count
    gradient: Array | None  # of the logits' shape and dtype; it may be the logits
    mean_of: float  # n of the mean
    type: np.dtype[Any]
    padding: Int32 = 0


class Philox(NamedTuple):
    """Philox4x32-10 of counters (blocks, 4) and keys (blocks, 2)."""

    counter: NDArray[np.uint32]
    key: NDArray[np.uint32]
    out: NDArray[np.uint32]
    blocks: int


class TorchNormals(NamedTuple):
    """Normals of `legacy.TorchCPU`, a multiple of 16: float32 from as many words, float64 from twice as many."""

    words: NDArray[np.uint64]
    out: Array
    n: int
    type: np.dtype[Any]
    padding: Int32 = 0


class StepAndLoss(NamedTuple):
    """A step, and a loss that reads what it writes."""

    step: Step
    loss: Loss


class RepeatedLoss(NamedTuple):
    """A loss at each of the next steps of its noises: its losses are (steps, batch)."""

    loss: Loss
