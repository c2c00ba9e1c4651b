# SPDX-License-Identifier: Apache-2.0
"""The loops of the Numba backend (jit.py): spec.py over tiles that stay in the first cache.

A tile goes through passes that LLVM vectorises one by one: counters, words, normals, and one for each term of a row.
Kernels get numbers and addresses only, so that each is compiled once for float32 and once for float64 arithmetic,
when it is first needed; Numba keeps the compiled code on disk.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy import float32, float64, int64, uint8, uint16, uint32, uint64

from . import device, spec
from .call import AFFINE, COLUMNS, HIGH, LOW, D, X, Z
from .device import OPTIONS, SPEC, fma, inlined, mul, select

TILE = 256  # elements
BLOCKS = QUARTER = TILE // 4  # of four words
F32, F64, F16, BF16, U8 = range(5)
NONE, NORMAL, UNIFORM = range(3)
LOSS_CHUNK, ACCUMULATORS = 4096, 64  # docs/loss.md

# Scratch is one array of reals and one of words, with rows of these lengths; below stands where each part begins.
WIDTH = TILE + 8  # stretches are copied by fours, and then go over their ends
# Reals: the coefficients of each element, by column; its values, by slot; noise of whole blocks; results; zeros.
VALUES, BLOCK_VALUES, RESULT, ZERO, REALS = (WIDTH * (COLUMNS + n) for n in (0, Z + 1, Z + 2, Z + 5, Z + 6))
# Words: counters, their words and low words (four rows each), pieces of noise: the first element, and how many.
BLOCK, STEP, SAMPLE, TAG, WORD, LOW_WORD, PIECE, PIECE_SIZE, WORDS = (
    BLOCKS * n for n in (0, 1, 2, 3, 4, 8, 12, 13, 14)
)
WORD1, WORD2, WORD3 = WORD + BLOCKS, WORD + 2 * BLOCKS, WORD + 3 * BLOCKS
NO_TAG, LOW_TAG = uint32(0), uint32(1 << 31)

philox4x32, normal_pair32, normal_pair64 = SPEC.philox4x32, SPEC.normal_pair32, SPEC.normal_pair64
uniform32, uniform64, clamp = SPEC.uniform32, SPEC.uniform64, SPEC.clamp
add_square, sum_accumulators, add_piece = SPEC.add_square, SPEC.sum_accumulators, SPEC.add_piece
half_to_float, float_to_half = SPEC.half_to_float, SPEC.float_to_half
bfloat16_to_float, float_to_bfloat16 = SPEC.bfloat16_to_float, SPEC.float_to_bfloat16


class Pass(NamedTuple):
    """call.Step in numbers. What is not a number is the address of a table of int64, or of an array."""

    size: int
    rows: int  # (n, COLUMNS) of the arithmetic's type
    columns: int  # bit c: column c is read
    indices: int  # the row of each segment
    segment: int
    forms: int  # how many affine forms, and FORM_.. of each
    program: int
    inputs: int  # how many arrays are read and written, and STREAM_.. of each
    outputs: int
    streams: int
    draw: int
    step_by_index: int
    masked: int
    fields: int  # FIELD_.. of the one, or of each sample
    numbers: int  # for each of them
    field_per_sample: int


# An affine form: where in the reals its total goes, and where its constant is, or -1; whether the total is clamped;
# how many terms there are, and for each of them where the coefficients and the values are, or -1 for the noise.
FORM_TOTAL, FORM_CONSTANT, FORM_CLAMPED, FORM_TERMS, FORM_TERM = range(5)
FORM_NUMBERS = FORM_TERM + 2 * (Z + 1)
# An array: its address, kind and bytes of an element, and where in the reals its elements go or come from.
STREAM_ARRAY, STREAM_KIND, STREAM_BYTES, STREAM_REALS, STREAM_NUMBERS = range(5)
# A field: the seed's halves, the first sample or the address of ids, step, stream, first element, elements of a run,
# how many axes runs are counted over; then the lengths of those axes, and the field's strides along them.
FIELD_KEY0, FIELD_KEY1, FIELD_SAMPLE, FIELD_IDS, FIELD_STEP, FIELD_STREAM, FIELD_START, FIELD_RUN, FIELD_AXES = range(9)
FIELD_LENGTHS = 9

# Where a small call has its counter, its index, its one field, and its streams: at most eight inputs and three outputs.
DESK_TAKEN, DESK_INDEX, DESK_FIELD, DESK_STREAMS = 0, 1, 2, 2 + FIELD_LENGTHS
DESK = DESK_STREAMS + 11 * STREAM_NUMBERS


# ---- primitives --------------------------------------------------------------------------------------------


def _call(builder: Any, name: str, returned: Any, *arguments: Any) -> Any:
    """A call of an LLVM function."""
    kind = ir.FunctionType(returned, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def pointer(_: Any, address: Any, kind: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(address, kind), codegen


@intrinsic
def take(_: Any, address: Any, n: Any) -> Any:
    """What the int64 at this address was before n was added, in one atomic step."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", where, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def prefetch(_: Any, address: Any) -> Any:
    """Asks for the line at this address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where, word = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()), ir.IntType(32)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), where, word(0), word(3), word(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def float_mode(_: Any, wanted: Any) -> Any:
    """Sets the floating-point mode of this thread, and gives the one that was."""

    def x86(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        address = builder.bitcast(slot, ir.IntType(8).as_pointer())
        _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), address)
        before = builder.zext(builder.load(slot), ir.IntType(64))
        builder.store(builder.trunc(arguments[0], ir.IntType(32)), slot)
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), address)
        return before

    def arm(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        before = _call(builder, "llvm.aarch64.get.fpcr", ir.IntType(64))
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
        return before

    def none(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.int64(types.int64), x86 if X86 else arm if ARM else none


X86, ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")
NEAREST = 0x1F80 if X86 else 0  # subnormal numbers kept, no exception raised


@intrinsic
def part(_: Any, array: Any, n: Any) -> Any:
    """The array from its element n on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return array(array, types.int64), codegen


@intrinsic
def least(_: Any, a: Any, b: Any) -> Any:
    """The smaller one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return types.int64(types.int64, types.int64), codegen


# ---- arrays ------------------------------------------------------------------------------------------------


@inlined
def ask_for(p: Pass, at: int) -> None:
    """The lines of a quarter of a tile, from `at` on: all at once would block the line-fill buffers."""
    for s in range(p.inputs + p.outputs):
        stream = pointer(p.streams + 8 * STREAM_NUMBERS * s, int64)
        width = stream[STREAM_BYTES]
        first = stream[STREAM_ARRAY] + width * at
        for line in range(width):
            prefetch(first + 64 * line)


@inlined
def load(to: Any, stream: Any, halves: Any, at: int, n: int) -> None:
    """The n elements of an array from `at` on, in the arithmetic's type."""
    kind, first = stream[STREAM_KIND], stream[STREAM_ARRAY] + stream[STREAM_BYTES] * at
    if kind == F32:
        singles = pointer(first, float32)
        for i in range(n):
            to[i] = singles[i]
    elif kind == F64:
        doubles = pointer(first, float64)
        for i in range(n):
            to[i] = doubles[i]
    elif kind == U8:
        characters = pointer(first, uint8)
        for i in range(n):
            to[i] = characters[i]
    elif halves is not None:
        bits = pointer(first, uint16)
        if kind == F16:
            for i in range(n):
                to[i] = half_to_float(bits[i])
        else:
            for i in range(n):
                to[i] = bfloat16_to_float(bits[i])


@inlined
def store(source: Any, stream: Any, halves: Any, at: int, n: int) -> None:
    """Rounds n results to the array's type, and puts them at `at`."""
    kind, first = stream[STREAM_KIND], stream[STREAM_ARRAY] + stream[STREAM_BYTES] * at
    if kind == F32:
        singles = pointer(first, float32)
        for i in range(n):
            singles[i] = source[i]
    elif kind == F64:
        doubles = pointer(first, float64)
        for i in range(n):
            doubles[i] = source[i]
    elif halves is not None:
        bits = pointer(first, uint16)
        if kind == F16:
            for i in range(n):
                bits[i] = float_to_half(source[i])
        else:
            for i in range(n):
                bits[i] = float_to_bfloat16(source[i])


# ---- noise -------------------------------------------------------------------------------------------------


@inlined
def locate(field: Any, place: int) -> tuple[int, int]:
    """The element of the field at this place of the sample, and how many from there on are in one run."""
    axes, run = field[FIELD_AXES], field[FIELD_RUN]
    if axes == 0:
        return field[FIELD_START] + place, run - place
    rest, within = place // run, place % run
    element = field[FIELD_START] + within
    for axis in range(axes - 1, -1, -1):
        length = field[FIELD_LENGTHS + axis]
        element += rest % length * field[FIELD_LENGTHS + axes + axis]
        rest //= length
    return element, run - within


@inlined
def plan(p: Pass, at: int, end: int, sample: int, place: int, words: Any) -> tuple[int, int]:
    """Counters and pieces of the elements from `at` on, of one seed and as many as fit: (elements, pieces)."""
    field = pointer(p.fields + 8 * p.numbers * sample * p.field_per_sample, int64)
    key0, key1 = field[FIELD_KEY0], field[FIELD_KEY1]
    n, used, pieces = 0, 0, 0
    while used < BLOCKS and at + n < end:
        if p.field_per_sample:
            field = pointer(p.fields + 8 * p.numbers * sample, int64)
            if field[FIELD_KEY0] != key0 or field[FIELD_KEY1] != key1:
                break
        element, left = locate(field, place)
        left = least(left, end - at - n)
        step, row = field[FIELD_STEP], sample * (1 - p.field_per_sample)
        if p.step_by_index:
            segment = (at + n) // p.segment
            left = least(left, (segment + 1) * p.segment - at - n)
            step += pointer(p.indices, int64)[segment]
        number = pointer(field[FIELD_IDS], int64)[row] if field[FIELD_IDS] else field[FIELD_SAMPLE] + row
        skip, first, tag = element & 3, element >> 2, field[FIELD_STREAM] << 24 | number >> 32
        size = least(left, 4 * (BLOCKS - used) - skip)
        counter = part(words, used)
        last = (skip + size + 3) >> 2
        for j in range(
            1 if used == 0 and (last == BLOCKS or size == end - at) else last
        ):  # the only piece: one is told
            counter[BLOCK + j] = first + j
            counter[STEP + j] = step
            counter[SAMPLE + j] = number
            counter[TAG + j] = tag
        words[PIECE + pieces] = 4 * used + skip
        words[PIECE_SIZE + pieces] = size
        pieces += 1
        used += last
        n += size
        place += size
        if place == p.size:
            sample, place = sample + 1, 0
    return n, pieces


@inlined
def make_words(p: Pass, sample: int, later: int, c: Any, where: int, tag: int, pieces: int) -> None:
    """Philox of all counters, `later` steps after theirs. Of one piece, the blocks are numbered on from the first."""
    field = pointer(p.fields + 8 * p.numbers * sample * p.field_per_sample, int64)
    k0, k1, steps, to = uint32(field[FIELD_KEY0]), uint32(field[FIELD_KEY1]), uint32(later), part(c, where)
    if pieces == 1:
        block, step, id, high = uint64(c[BLOCK]), uint64(c[STEP] + steps), uint64(c[SAMPLE]), uint64(c[TAG] | tag)
        for j in range(BLOCKS):
            w = philox4x32(block + uint64(j), step, id, high, k0, k1)
            to[j], to[BLOCKS + j], to[2 * BLOCKS + j], to[3 * BLOCKS + j] = w
    else:
        for j in range(BLOCKS):
            w = philox4x32(c[BLOCK + j], c[STEP + j] + steps, c[SAMPLE + j], c[TAG + j] | tag, k0, k1)
            to[j], to[BLOCKS + j], to[2 * BLOCKS + j], to[3 * BLOCKS + j] = w


@inlined
def packed(words: Any, tile: Any, pieces: int) -> Any:
    """The pieces one after another, copied by fours into the tile of slot Z."""
    whole, done = part(tile, BLOCK_VALUES), 0
    for piece in range(pieces):
        source, to = part(whole, words[PIECE + piece]), part(tile, VALUES + Z * WIDTH + done)
        for i in range(0, words[PIECE_SIZE + piece], 4):
            to[i], to[i + 1], to[i + 2], to[i + 3] = source[i], source[i + 1], source[i + 2], source[i + 3]
        done += words[PIECE_SIZE + piece]
    return part(tile, VALUES + Z * WIDTH)


def fill_noise(p: Pass, sample: int, later: int, words: Any, tile: Any, pieces: int) -> Any:
    """The noise of the planned elements, of the type of the tile: an array of them."""
    raise NotImplementedError


@overload(fill_noise, jit_options=OPTIONS)
def _fill_noise(p, sample, later, words, tile, pieces):  # type: ignore[no-untyped-def]
    def singles(p, sample, later, words, tile, pieces):  # type: ignore[no-untyped-def]
        make_words(p, sample, later, words, WORD, NO_TAG, pieces)
        w0, w1, w2, w3 = part(words, WORD), part(words, WORD1), part(words, WORD2), part(words, WORD3)
        to = part(tile, BLOCK_VALUES)
        if p.draw == NORMAL:
            for j in range(BLOCKS):
                to[4 * j], to[4 * j + 1] = normal_pair32(w0[j], w1[j])
                to[4 * j + 2], to[4 * j + 3] = normal_pair32(w2[j], w3[j])
        else:
            for j in range(BLOCKS):
                to[4 * j], to[4 * j + 1] = uniform32(w0[j]), uniform32(w1[j])
                to[4 * j + 2], to[4 * j + 3] = uniform32(w2[j]), uniform32(w3[j])
        return part(to, words[PIECE]) if pieces == 1 else packed(words, tile, pieces)

    def doubles(p, sample, later, words, tile, pieces):  # type: ignore[no-untyped-def]
        make_words(p, sample, later, words, WORD, NO_TAG, pieces)
        make_words(p, sample, later, words, LOW_WORD, LOW_TAG, pieces)
        w0, w1, w2, w3 = part(words, WORD), part(words, WORD1), part(words, WORD2), part(words, WORD3)
        v0, v1, v2, v3 = part(w0, 4 * BLOCKS), part(w1, 4 * BLOCKS), part(w2, 4 * BLOCKS), part(w3, 4 * BLOCKS)
        to = part(tile, BLOCK_VALUES)
        if p.draw == NORMAL:
            for j in range(BLOCKS):
                to[4 * j], to[4 * j + 1] = normal_pair64(w0[j], v0[j], w1[j], v1[j])
                to[4 * j + 2], to[4 * j + 3] = normal_pair64(w2[j], v2[j], w3[j], v3[j])
        else:
            for j in range(BLOCKS):
                to[4 * j], to[4 * j + 1] = uniform64(w0[j], v0[j]), uniform64(w1[j], v1[j])
                to[4 * j + 2], to[4 * j + 3] = uniform64(w2[j], v2[j]), uniform64(w3[j], v3[j])
        return part(to, words[PIECE]) if pieces == 1 else packed(words, tile, pieces)

    return singles if tile.dtype == types.float32 else doubles


# ---- rows --------------------------------------------------------------------------------------------------


@inlined
def select_rows(p: Pass, rows: Any, at: int, n: int, tile: Any, filled: int) -> int:
    """Coefficients for each of n elements from `at` on. `filled` is the row of which the tile is full, or -1."""
    index, segment = pointer(p.indices, int64), at // p.segment
    left = (segment + 1) * p.segment - at
    row = index[segment] if left >= n else -1
    if row == filled and row >= 0:
        return row
    for column in range(COLUMNS):
        if p.columns >> column & 1:
            done, now, size = 0, segment, TILE if left >= n else left
            while done < n:
                coefficient, to = rows[COLUMNS * index[now] + column], part(tile, column * WIDTH + done)
                for i in range(least(size, TILE - done)):
                    to[i] = coefficient
                done += size
                now += 1
                size = p.segment
    return row


@inlined
def apply(p: Pass, n: int, tile: Any, z: Any) -> None:
    """The affine forms of a row over a tile: spec.affine, term by term. z: the values of slot Z."""
    for f in range(p.forms):
        form = pointer(p.program + 8 * FORM_NUMBERS * f, int64)
        total, terms = part(tile, form[FORM_TOTAL]), form[FORM_TERMS]
        k = part(tile, form[FORM_CONSTANT])
        if terms == 0:
            for i in range(n):
                total[i] = k[i]
        for t in range(terms):
            c, row = part(tile, form[FORM_TERM + 2 * t]), form[FORM_TERM + 2 * t + 1]
            v = part(tile, row) if row >= 0 else z
            if t:
                for i in range(n):
                    total[i] = fma(c[i], v[i], total[i])
            elif form[FORM_CONSTANT] >= 0:
                for i in range(n):
                    total[i] = fma(c[i], v[i], k[i])
            else:
                for i in range(n):
                    total[i] = mul(c[i], v[i])
        if form[FORM_CLAMPED]:
            low, high = part(tile, LOW * WIDTH), part(tile, HIGH * WIDTH)
            for i in range(n):
                total[i] = clamp(total[i], low[i], high[i])
    if p.masked:  # NaN lies within no bounds
        inside, low, high = part(tile, VALUES + D * WIDTH), part(tile, LOW * WIDTH), part(tile, HIGH * WIDTH)
        out, aux, zero = part(tile, RESULT), part(tile, RESULT + WIDTH), part(tile, ZERO)
        for i in range(n):
            out[i] += select((low[i] <= inside[i]) & (inside[i] <= high[i]), aux[i], zero[i])


# ---- kernels -----------------------------------------------------------------------------------------------


def _text() -> str:
    """Of all that is compiled here: Numba's cache on disk knows of a function's own text, not of what it calls."""
    files = (__file__, device.__file__, spec.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _kernels(text: str) -> tuple[Any, ...]:
    """The compiled loops. That they hold on to `text` makes it part of their key in the cache.

    Threads share the elements of one call by a counter, `taken`: each takes the next `chunk` until `total` are.
    `halves` is None where no array is of 16 bits: then nothing is compiled that converts them.
    """

    def compiled(function: Any) -> Any:
        try:
            return njit(nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # no folder to write to
            return njit(nogil=True, error_model="numpy")(function)

    @compiled
    def step(reals, halves, words, taken, total, chunk, *call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        p, before = Pass(*call), float_mode(NEAREST)
        tile, w = pointer(reals.ctypes.data, reals.dtype), pointer(words, uint32)
        rows, z = pointer(p.rows, reals.dtype), tile
        for i in range(WIDTH):
            tile[ZERO + i] = 0
        at = take(taken, chunk)
        while at < total:
            end, filled, sample, place = least(at + chunk, total), -1, at // p.size, at % p.size
            while at < end:
                n = least(TILE, end - at)
                ask_for(p, at + TILE)
                if p.draw != NONE:
                    n, pieces = plan(p, at, end, sample, place, w)
                    z = fill_noise(p, sample, 0, w, tile, pieces)
                    place += n
                    if place >= p.size:
                        sample, place = sample + place // p.size, place % p.size
                ask_for(p, at + TILE + QUARTER)
                for s in range(p.inputs):
                    stream = pointer(p.streams + 8 * STREAM_NUMBERS * s, int64)
                    load(part(tile, stream[STREAM_REALS]), stream, halves, at, n)
                ask_for(p, at + TILE + 2 * QUARTER)
                filled = select_rows(p, rows, at, n, tile, filled)
                apply(p, n, tile, z)
                ask_for(p, at + TILE + 3 * QUARTER)
                for s in range(p.inputs, p.inputs + p.outputs):
                    stream = pointer(p.streams + 8 * STREAM_NUMBERS * s, int64)
                    store(part(tile, stream[STREAM_REALS]), stream, halves, at, n)
                at += n
            at = take(taken, chunk)
        float_mode(before)

    @compiled
    def walk(keep, times, reals, halves, words, taken, total, chunk, *call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        p, before = Pass(*call), float_mode(NEAREST)
        tile, w = pointer(reals.ctypes.data, reals.dtype), pointer(words, uint32)
        rows, x, kept = pointer(p.rows, reals.dtype), part(tile, VALUES), pointer(keep, int64)
        source, target = pointer(p.streams, int64), pointer(p.streams + 8 * STREAM_NUMBERS, int64)
        at = take(taken, chunk)
        while at < total:
            end = least(at + chunk, total)
            while at < end:  # a tile of x0 goes through all times before the next one is read
                sample = at // p.size
                n, pieces = plan(p, at, end, sample, at % p.size, w)
                load(x, source, halves, at, n)
                for t in range(times):
                    z = fill_noise(p, sample, t, w, tile, pieces)
                    a, s = rows[COLUMNS * t + AFFINE[0] + 1 + X], rows[COLUMNS * t + AFFINE[0] + 1 + Z]
                    for i in range(n):
                        x[i] = fma(a, x[i], mul(s, z[i]))
                    if kept[t] >= 0:
                        store(x, target, halves, kept[t] * total + at, n)
                at += n
            at = take(taken, chunk)
        float_mode(before)

    @compiled
    def philox(n, counter, key, out):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        for i in range(n):
            c, k = pointer(counter + 16 * i, uint32), pointer(key + 8 * i, uint32)
            to = pointer(out + 16 * i, uint32)
            to[0], to[1], to[2], to[3] = philox4x32(c[0], c[1], c[2], c[3], k[0], k[1])

    @compiled
    def squares(r, piece, sums):  # type: ignore[no-untyped-def]
        """Of the pieces of r, one after another, the sums over their chunks."""
        text  # noqa: B018
        before, sum_of, chunk = float_mode(NEAREST), np.empty(ACCUMULATORS, r.dtype), 0
        for begin in range(0, len(r), piece):
            for first in range(begin, begin + piece, LOSS_CHUNK):
                sum_of[:] = 0
                end = least(first + LOSS_CHUNK, begin + piece)
                for at in range(first, end, ACCUMULATORS):
                    for j in range(least(ACCUMULATORS, end - at)):
                        sum_of[j] = add_square(sum_of[j], r[at + j])
                sums[chunk] = sum_accumulators(sum_of)
                chunk += 1
        float_mode(before)

    @compiled
    def add_up(chunk_sums, weights, sums):  # type: ignore[no-untyped-def]
        """Of (samples, pieces, chunks) sums the sums of samples."""
        text  # noqa: B018
        before = float_mode(NEAREST)
        for sample in range(len(sums)):
            total = 0.0
            for p in range(chunk_sums.shape[1]):
                piece = 0.0
                for chunk in range(chunk_sums.shape[2]):
                    piece += chunk_sums[sample, p, chunk]
                total = add_piece(total, weights[sample, p], piece)
            sums[sample] = total
        float_mode(before)

    @compiled
    def note(desk, rows, arrays, streams, index, key0, key1, sample, step, stream, size):  # type: ignore[no-untyped-def]
        """What a small call needs to have in memory; returns the address of the rows."""
        text  # noqa: B018
        desk[DESK_TAKEN], desk[DESK_INDEX] = 0, index
        field = desk[DESK_FIELD:]
        field[FIELD_KEY0], field[FIELD_KEY1], field[FIELD_SAMPLE], field[FIELD_IDS] = key0, key1, sample, 0
        field[FIELD_STEP], field[FIELD_STREAM], field[FIELD_START] = step, stream, 0
        field[FIELD_RUN], field[FIELD_AXES] = size, 0
        for s in range(len(arrays)):
            array = desk[DESK_STREAMS + STREAM_NUMBERS * s :]
            array[STREAM_ARRAY], array[STREAM_KIND], array[STREAM_BYTES] = arrays[s].ctypes.data, F32, 4
            array[STREAM_REALS] = streams[s]
        return rows.ctypes.data

    return step, walk, philox, squares, add_up, note


step, walk, philox, squares, add_up, note = _kernels(_text())
