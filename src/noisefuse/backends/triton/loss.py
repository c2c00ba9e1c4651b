# SPDX-License-Identifier: Apache-2.0
"""The kernels of losses: sums of squares in the fixed order of docs/loss.md.

Triton's own sums have no fixed order. So a chunk's 64 accumulators are a block, and groups of 64 residuals are taken
apart (a split is exact) and added one by one. No function calls itself, which Triton 3.2 does not compile.
"""

import triton
import triton.language as tl

from ...call import description
from .kernels import combined, put

CHUNK, ACCUMULATORS = tl.constexpr(description.LOSS_CHUNK), tl.constexpr(description.ACCUMULATORS)


@triton.jit
def halves(x):
    """Returns the halves of each of these rows."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def add_squares(sums, r, GROUPS: tl.constexpr):
    """Adds the squares of r, (accumulators, groups), to their accumulators, group by group; of up to 8 groups."""
    for number in tl.static_range(GROUPS):
        group = r
        for level in tl.static_range(3):
            if GROUPS >> level > 1:
                first, second = halves(group)
                group = second if number & GROUPS >> level + 1 else first
        group = tl.reshape(group, sums.shape)
        sums = tl.fma(group, group, sums)
    return sums


@triton.jit
def halved(sums):
    """Returns the sums of rows of accumulators, (rows, 1): j is added to j + 32, then to j + 16, and so on."""
    for _ in tl.static_range(6):
        lower, upper = halves(sums)
        sums = lower + upper
    return sums


@triton.jit
def row_of(weights, n_rows, index, row, of_row, number):
    """Returns the row of a piece, and its weight: NaN where there is no such row."""
    weight = tl.full((), 1, tl.float64)
    if index is not None:
        row = tl.load(index + number // of_row)
    if weights is not None:
        weight = tl.load(weights + row, mask=(row >= 0) & (row < n_rows), other=float("nan"))
    return row, weight


@triton.jit(do_not_specialize=["seed", "sample", "step", "stream", "start", "row", "g", "n"])
def chunks(
    rows, n_rows: tl.int64, index, row: tl.int64, of_row: tl.int32, x, m1, m2, past1, past2, past3, past4, z, gradient,
    names, seed: tl.uint64, sample: tl.int64, step: tl.int64, stream: tl.int64, start: tl.int64, samples, counter, axes,
    run: tl.int64, span: tl.int64, parts: tl.int32, n_chunks: tl.int32, sums, weights, upstream, g: tl.int64,
    n: tl.int64, ACTIVE: tl.constexpr, DRAW: tl.constexpr, DOUBLE: tl.constexpr, AXES: tl.constexpr,
    FOURS: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the sum of squared residuals of a chunk, and their gradient. A span is a piece. The upstream gradient is
    the float64 of bits g, or that of the sample, or (not EACH) of all."""
    number, chunk = tl.program_id(0) // n_chunks, (tl.program_id(0) % n_chunks).to(tl.int64)
    above = g.to(tl.float64, bitcast=True) if upstream is None else tl.load(upstream + (number // parts if EACH else 0))
    total = tl.full((ACCUMULATORS.value,), 0, tl.float64 if DOUBLE else tl.float32)
    row, weight = row_of(weights, n_rows, index, row, of_row, number)
    factor = (2.0 * weight * above / n.to(tl.float64)).to(total.dtype)
    first, last = chunk * CHUNK.value, tl.minimum(chunk * CHUNK.value + CHUNK.value, span)
    for tile in range(first // BLOCK, tl.cdiv(last, BLOCK)):
        r, _, _, at, inside = combined(
            rows, n_rows, None, row, 1, 1, x, m1, m2, past1, past2, past3, past4, z,
            names, seed, sample, step, stream, start, samples, counter, axes, run, span, parts, number, tile,
            ACTIVE, DRAW, DOUBLE, False, False, False, AXES, FOURS, BLOCK,
        )  # fmt: skip
        if sums is not None:
            groups = tl.reshape(tl.where(inside, r, 0.0), (BLOCK // ACCUMULATORS.value, ACCUMULATORS.value))
            total = add_squares(total, tl.permute(groups, (1, 0)), BLOCK // ACCUMULATORS.value)
        put(gradient, at, inside, factor * r, 0)
    if sums is not None:
        whole = halved(tl.reshape(total, (1, ACCUMULATORS.value)))
        tl.store(sums + tl.program_id(0) + tl.reshape(tl.arange(0, 1), (1, 1)), whole.to(tl.float64))


@triton.jit(do_not_specialize=["row", "pieces", "n_chunks", "n"])
def samples(
    sums, weights, n_rows: tl.int64, index, row: tl.int64, of_row: tl.int32, losses, pieces: tl.int64,
    n_chunks: tl.int64, n: tl.int64,
):  # fmt: skip
    """Writes the loss of a sample: the weighted sum of its pieces, each of which is the sum of its chunks, over n."""
    sample = tl.program_id(0).to(tl.int64)
    total = tl.full((), 0, tl.float64)
    for number in range(sample * pieces, (sample + 1) * pieces):
        piece = tl.full((), 0, tl.float64)
        for chunk in range(number * n_chunks, (number + 1) * n_chunks):
            piece += tl.load(sums + chunk)
        _, weight = row_of(weights, n_rows, index, row, of_row, number)
        total = tl.fma(weight, piece, total)
    tl.store(losses + sample, total / n.to(tl.float64))


@triton.jit(do_not_specialize=["n", "count"])
def total(losses, n: tl.int64, count: tl.int64, out, BLOCK: tl.constexpr):
    """Adds n losses in order, and divides once by the count. Zeros beyond the end change no sum."""
    found = tl.full((), 0.0, tl.float64)
    for first in range(0, n, BLOCK):
        for i in tl.static_range(BLOCK):
            found += tl.load(losses + first + i, mask=first + i < n, other=0.0)
    tl.store(out, found / count.to(tl.float64))
