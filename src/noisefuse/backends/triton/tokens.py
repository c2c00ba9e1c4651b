# SPDX-License-Identifier: Apache-2.0
"""Kernels of tokens: masks, and tokens of the whole vocabulary."""

import triton
import triton.language as tl

from .device import block_words, chosen, place, u64
from .kernels import element_of, name_of


@triton.jit
def word(
    seed, sample, step, stream, start, place_, run, axes, block,
    LOW: tl.constexpr, AXES: tl.constexpr, FOURS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the words of BLOCK elements: of places of a sample, or of blocks of the generator."""
    if FOURS:
        w0, w1, w2, w3 = block_words(seed, sample, step, start // 4 + block, stream, LOW)
        drawn = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK,))
    else:
        element = element_of(start, place_, run, axes, AXES)
        number, _, _ = place(element)
        w0, w1, w2, w3 = block_words(seed, sample, step, number, stream, LOW)
        drawn = chosen(element, w0, w1, w2, w3)
    return drawn


@triton.jit
def rint(x):
    """Returns a float64 from 0 to 2^51, rounded to an integer, ties to even."""
    return (x + 2.0**52) - 2.0**52


@triton.jit(do_not_specialize=["count", "mask", "vocabulary", "seed", "sample", "step", "stream", "start"])
def masks(
    tokens, out, masked, where, p, count: tl.int64, mask: tl.int64, vocabulary: tl.int64,
    names, seed: tl.uint64, sample: tl.int64, step: tl.int64, stream: tl.int64, start: tl.int64, samples, counter, axes,
    run: tl.int64, size: tl.int64,
    EACH: tl.constexpr, NEW: tl.constexpr, COMPLEMENT: tl.constexpr, AXES: tl.constexpr, FOURS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Masks the tokens whose words lie below rint(2^32 p), or draws them anew. p is one for each sample, or for
    each token (EACH), or there is the count."""
    entry, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) + (tl.program_id(2).to(tl.int64) << 15)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    inside, at = i < size, entry * size + i
    seed, sample, step, stream, start = name_of(names, seed, sample, step, stream, start, samples, counter, entry)
    block = tile * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    drawn = word(seed, sample, step, stream, start, i, run, axes, block, 0, AXES, FOURS, BLOCK)
    if p is None:
        changed = drawn.to(tl.int64) < count
    elif EACH:
        changed = drawn.to(tl.float64) < rint(tl.load(p + at, mask=inside, other=0.0) * 2.0**32)
    else:
        changed = drawn.to(tl.float64) < rint(tl.load(p + entry) * 2.0**32)
    if COMPLEMENT:
        changed = changed == 0
    if where is not None:
        changed &= tl.load(where + at, mask=inside, other=0) != 0
    old = tl.load(tokens + at, mask=inside, other=0)
    new = mask
    if NEW:
        high = word(seed, sample, step, stream + 1, start, i, run, axes, block, 0, AXES, FOURS, BLOCK).to(tl.uint64)
        low = word(seed, sample, step, stream + 1, start, i, run, axes, block, 1, AXES, FOURS, BLOCK).to(tl.uint64)
        new = (high * u64(vocabulary) + (low * u64(vocabulary) >> 32)) >> 32
    tl.store(out + at, tl.where(changed, new.to(old.dtype), old), mask=inside)
    tl.store(masked + at, changed, mask=inside)
