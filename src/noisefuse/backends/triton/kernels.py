# SPDX-License-Identifier: Apache-2.0
"""The kernels of rows, the linear combinations of language/rows.py, element by element, and of masks of tokens.

Triton compiles one for each set of columns and dtypes, and fuses no product and sum but those of `tl.fma` (launches.py
tells it so). It reads the annotations of arguments, so they are no text here.
"""

import triton
import triton.language as tl

from ...language import rows
from .device import fours, ones, u64


def _terms(slots):
    """Returns the terms of a combination in their order: slots, and the bits of what is added up before them, counted
    from its constant."""
    return tl.constexpr(tuple((slot, 1 | sum(2 << earlier for earlier in slots[:n])) for n, slot in enumerate(slots)))


TERMS, TERMS_OF_CLEAN = _terms(rows.ORDER), _terms((rows.M2, rows.M1, rows.X))
CLEAN, LOW, HIGH = tl.constexpr(rows.CLEAN), tl.constexpr(rows.LOW), tl.constexpr(rows.HIGH)
OUT, AUX1, AUX2 = map(tl.constexpr, rows.AFFINE)
COLUMNS, BOUNDS = tl.constexpr(rows.COLUMNS), tl.constexpr(rows.BOUNDS)
TIMES_CLEAN, TIMES_ROOT = tl.constexpr(rows.TIMES_CLEAN), tl.constexpr(rows.TIMES_ROOT)
NUMBERS = tl.constexpr(5)  # of a name: seed, sample, step, stream, and the first element of its window
MOST = 2048  # elements of a program, or half as many float64: registers hold them


def block_of(span: int, most: int = MOST, least: int = 32) -> int:
    """Returns the elements of a program: a power of two."""
    return min(most, max(least, 1 << (span - 1).bit_length()))


@triton.jit
def coefficient(row, known, column: tl.constexpr, like):
    """Returns a number of the elements' rows: NaN where there is no such row."""
    return tl.broadcast_to(tl.load(row + column, mask=known, other=float("nan")), like.shape)


@triton.jit
def combination(row, known, values, like, ACTIVE: tl.constexpr, FIRST: tl.constexpr, TERMS: tl.constexpr):
    """Returns the combination whose constant is column FIRST. Without a constant its first term is a rounded product;
    each later one is an fma."""
    total = coefficient(row, known, FIRST, like) if ACTIVE >> FIRST & 1 else like
    for n in tl.static_range(len(TERMS.value)):
        if ACTIVE >> (FIRST + 1 + TERMS.value[n][0]) & 1:
            factor = coefficient(row, known, FIRST + 1 + TERMS.value[n][0], like)
            if ACTIVE >> FIRST & TERMS.value[n][1]:
                total = tl.fma(factor, values[TERMS.value[n][0]], total)
            else:
                total = factor * values[TERMS.value[n][0]]
    return total


@triton.jit
def value(pointer, at, inside, like):
    """Returns an input at these elements, in the type of arithmetic; `like` where there is none."""
    return like if pointer is None else tl.load(pointer + at, mask=inside, other=0).to(like.dtype)


@triton.jit
def put(pointer, at, inside, result, LEVELS: tl.constexpr):
    """Stores a wanted result, rounded once; LEVELS: the greatest of integer levels, of which NaN becomes 0."""
    if LEVELS:
        within = tl.where(result > 0, tl.where(result < LEVELS, result, LEVELS), 0).to(tl.float32)
        result = (within + 2.0**23).to(tl.int32, bitcast=True) & LEVELS
    if pointer is not None:
        tl.store(pointer + at, result.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def element_of(start, place, run, axes, AXES: tl.constexpr):
    """Returns the elements of the field at these places of a sample: in runs, which axes place."""
    if AXES == 0:
        return start + place
    element, rest = start + place % run, place // run
    for n in tl.static_range(AXES):
        length = tl.load(axes + AXES - 1 - n)
        element += rest % length * tl.load(axes + 2 * AXES - 1 - n)
        rest = rest // length
    return element


@triton.jit
def name_of(names, seed, sample, step, stream, start, samples, counter, entry):
    """Returns the numbers of an entry's name, and the first element of its window."""
    if names is not None:
        of_entry = names + entry * NUMBERS.value
        seed, sample, step = tl.load(of_entry), tl.load(of_entry + 1), tl.load(of_entry + 2)
        stream, start = tl.load(of_entry + 3), tl.load(of_entry + 4)
    elif samples is not None:
        sample = tl.load(samples + entry)
    else:
        sample += entry
    if counter is not None:
        step = tl.load(counter).to(tl.int64)
    return seed, sample, step, stream, start


@triton.jit
def drawn(
    seed, sample, step, stream, start, first, run, axes, DRAW: tl.constexpr, DOUBLE: tl.constexpr, AXES: tl.constexpr,
    FOURS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the noise of BLOCK places of a sample, from this one on. FOURS: they are whole blocks of the generator,
    one behind another."""
    if FOURS:
        block = (start + first >> 2) + tl.arange(0, BLOCK // 4)
        z0, z1, z2, z3 = fours(seed, sample, step, block, stream, DRAW, DOUBLE)
        return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))
    element = element_of(start, first + tl.arange(0, BLOCK), run, axes, AXES)
    return ones(seed, sample, step, element, stream, DRAW, DOUBLE)


@triton.jit
def combined(
    rows, n_rows, index, row, of_row, period, x, m1, m2, past1, past2, past3, past4, z,
    names, seed, sample, step, stream, start, samples, counter, axes, run, span, parts, number, tile,
    ACTIVE: tl.constexpr, DRAW: tl.constexpr, DOUBLE: tl.constexpr, BY_INDEX: tl.constexpr, BY_PERIOD: tl.constexpr,
    MASKED: tl.constexpr, AXES: tl.constexpr, FOURS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the three outputs of a tile of BLOCK elements of span `number`, their places in the flat order, and which
    of them lie within the span."""
    entry, first = (number // parts).to(tl.int64), (number % parts).to(tl.int64) * span + tile * BLOCK
    i = tile * BLOCK + tl.arange(0, BLOCK)
    inside, at = i < span, number.to(tl.int64) * span + i
    if BY_PERIOD:
        row = tl.load(index + entry * period + (first + tl.arange(0, BLOCK)) % period, mask=inside, other=0)
    elif index is not None:
        row = tl.load(index + number // of_row)
    known, numbers = (row >= 0) & (row < n_rows), rows + row * COLUMNS.value
    like = tl.full((BLOCK,), 0, tl.float64 if DOUBLE else tl.float32)

    if DRAW == "none":
        noise = value(z, at, inside, like)
    else:
        seed, sample, step, stream, start = name_of(names, seed, sample, step, stream, start, samples, counter, entry)
        step += row if BY_INDEX else 0
        noise = drawn(seed, sample, step, stream, start, first, run, axes, DRAW, DOUBLE, AXES, FOURS, BLOCK)
    x, m1, m2 = value(x, at, inside, like), value(m1, at, inside, like), value(m2, at, inside, like)
    past1, past2 = value(past1, at, inside, like), value(past2, at, inside, like)
    past3, past4 = value(past3, at, inside, like), value(past4, at, inside, like)
    clean = combination(numbers, known, (x, m1, m2), like, ACTIVE, CLEAN.value, TERMS_OF_CLEAN)
    low, high = like, like
    if ACTIVE & BOUNDS.value:
        low, high = coefficient(numbers, known, LOW.value, like), coefficient(numbers, known, HIGH.value, like)
        if not MASKED:
            clean = tl.where(clean < low, low, tl.where(clean > high, high, clean))
    if ACTIVE & TIMES_CLEAN.value:
        noise = noise * clean
    elif ACTIVE & TIMES_ROOT.value:
        noise = noise * (tl.sqrt(clean) if DOUBLE else tl.sqrt_rn(clean))
    values = (x, m1, m2, clean, past1, past2, past3, past4, noise)
    first = combination(numbers, known, values, like, ACTIVE, OUT.value, TERMS)
    if MASKED:
        passed = (low <= clean) & (clean <= high)
        first += tl.where(passed, combination(numbers, known, values, like, ACTIVE, AUX1.value, TERMS), 0.0)
    second = combination(numbers, known, values, like, ACTIVE, AUX1.value, TERMS)
    third = combination(numbers, known, values, like, ACTIVE, AUX2.value, TERMS)
    return first, second, third, at, inside


@triton.jit(do_not_specialize=["seed", "sample", "step", "stream", "start", "row"])
def affine(
    rows, index, x, m1, m2, past1, past2, past3, past4, z, names, axes, out, aux1, aux2,
    n_rows: tl.int64, row: tl.int64, of_row: tl.int32, period: tl.int64,
    seed: tl.uint64, sample: tl.int64, step: tl.int64, stream: tl.int64, start: tl.int64, samples, counter,
    run: tl.int64, span: tl.int64, parts: tl.int32, tiles: tl.int32,
    ACTIVE: tl.constexpr, DRAW: tl.constexpr, DOUBLE: tl.constexpr, BY_INDEX: tl.constexpr, BY_PERIOD: tl.constexpr,
    MASKED: tl.constexpr, LEVELS: tl.constexpr, AXES: tl.constexpr, FOURS: tl.constexpr, BLOCK: tl.constexpr,
    GIVEN: tl.constexpr = -1,
):  # fmt: skip
    """Computes the outputs of one pass. `tiles` programs of BLOCK elements have a span of the flat order; `parts` spans
    are a sample, and `of_row` spans take one row of numbers (or each element its own, by its place). FOURS: all spans,
    and the window, begin with whole blocks of the generator. GIVEN: the slots of inputs that there are, for jax-triton,
    which hands over arrays, and none for None."""
    program = tl.program_id(0)
    tile, number = (program % tiles).to(tl.int64), program // tiles
    # All is read before anything is written, as an output may be an input.
    first, second, third, at, inside = combined(
        rows, n_rows, index, row, of_row, period, x if GIVEN & 1 else None, m1 if GIVEN & 2 else None,
        m2 if GIVEN & 4 else None, past1 if GIVEN & 16 else None, past2 if GIVEN & 32 else None,
        past3 if GIVEN & 64 else None, past4 if GIVEN & 128 else None, z if GIVEN & 256 else None,
        names, seed, sample, step, stream, start, samples, counter, axes, run, span, parts, number, tile,
        ACTIVE, DRAW, DOUBLE, BY_INDEX, BY_PERIOD, MASKED, AXES, FOURS, BLOCK,
    )  # fmt: skip
    put(out, at, inside, first, LEVELS)
    put(aux1, at, inside, second, 0)
    put(aux2, at, inside, third, 0)


@triton.jit(do_not_specialize=["seed", "sample", "step", "stream", "start", "times"])
def walk(
    rows, keep, x, out, names, seed: tl.uint64, sample: tl.int64, step: tl.int64, stream: tl.int64, start: tl.int64,
    samples, counter, axes, run: tl.int64, span: tl.int64, total: tl.int64, tiles: tl.int32, times: tl.int32,
    ACTIVE: tl.constexpr, DOUBLE: tl.constexpr, AXES: tl.constexpr, FOURS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the kept times of a random walk of `tiles` programs for each sample. Only what is stored is rounded to 16
    bits, not the state."""
    tile, entry = (tl.program_id(0) % tiles).to(tl.int64), (tl.program_id(0) // tiles).to(tl.int64)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    inside, like = i < span, tl.full((BLOCK,), 0, tl.float64 if DOUBLE else tl.float32)
    seed, sample, step, stream, start = name_of(names, seed, sample, step, stream, start, samples, counter, entry)
    state = value(x, entry * span + i, inside, like)
    for time in range(times):
        noise = drawn(
            seed, sample, step + time, stream, start, tile * BLOCK, run, axes, "normal", DOUBLE, AXES, FOURS, BLOCK
        )
        values = (state, like, like, like, like, like, like, like, noise)
        place = tl.load(keep + time)
        state = combination(rows + time * COLUMNS.value, time < times, values, like, ACTIVE, OUT.value, TERMS)
        if place >= 0:
            tl.store(out + place * total + entry * span + i, state.to(out.dtype.element_ty), mask=inside)


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
    w = drawn(seed, sample, step, stream, start, tile * BLOCK, run, axes, "words", False, AXES, FOURS, BLOCK)
    if p is None:
        changed = w.to(tl.int64) < count
    else:
        chance = tl.load(p + at, mask=inside, other=0.0) if EACH else tl.load(p + entry)
        changed = w.to(tl.float64) < (chance * 2.0**32 + 2.0**52) - 2.0**52  # rounded, ties to even
    if COMPLEMENT:
        changed = changed == 0
    if where is not None:
        changed &= tl.load(where + at, mask=inside, other=0) != 0
    old = tl.load(tokens + at, mask=inside, other=0)
    new = mask
    if NEW:
        stream += 1
        high = drawn(seed, sample, step, stream, start, tile * BLOCK, run, axes, "words", False, AXES, FOURS, BLOCK)
        low = drawn(seed, sample, step, stream, start, tile * BLOCK, run, axes, "words", True, AXES, FOURS, BLOCK)
        new = (u64(high) * vocabulary + (u64(low) * vocabulary >> 32)) >> 32
    tl.store(out + at, tl.where(changed, new.to(old.dtype), old), mask=inside)
    tl.store(masked + at, changed, mask=inside)
