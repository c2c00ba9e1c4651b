# SPDX-License-Identifier: Apache-2.0
"""The loops of the Numba backend (jit.py): spec.py over tiles that stay in the first cache.

A tile goes through passes that LLVM vectorises one by one: words, normals, and one for two terms of a row.
Kernels get numbers and addresses only, so that each is compiled once for float32 and once for float64 arithmetic,
when it is first needed; Numba keeps the compiled code on disk.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy import float32, int64, uint8, uint16, uint32, uint64

from .. import rows as layout
from ..rows import AFFINE, COLUMNS, HIGH, LOW, D, X, Z
from . import device, inlining, loops, spec
from .call import LOSS_CHUNK
from .device import OPTIONS, SPEC, call_named, fma, inlined, mul, select
from .loops import each, whole_vectors

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: Numba compiles nothing")

TILE = 256  # elements
BLOCKS = QUARTER = TILE // 4  # of four words
TOGETHER = BLOCKS // 2  # blocks whose words are made and then made values of: few, so that the two overlap
# How an array is read and written: where it lies, copied, or converted.
IN_PLACE, SAME, F32, F64, F16, BF16, U8 = range(7)
NONE, NORMAL, UNIFORM = range(3)
ACCUMULATORS = 64  # of a chunk: docs/loss.md

# Scratch is one array of reals and one of words. Reals are rows of this length: the coefficients of each element, by
# column; its values, by slot; noise of whole blocks; results; a sum that is not yet one; zeros of both signs.
WIDTH = TILE + 16  # a line more, so that rows do not fall on one another in the cache
VALUES, BLOCK_VALUES, RESULT, SUM, ZERO, MINUS_ZERO, ROWS = (
    COLUMNS + n for n in (0, Z + 1, Z + 2, *range(Z + 5, Z + 9))
)
REALS = WIDTH * ROWS
# Words: counters (four rows); words of both pairs of each block, first ones and second ones, and their low words;
# pieces of noise, the first element and how many; the address of each row of reals, or of what stands in for it; key.
BLOCK, STEP, SAMPLE, TAG, FIRST, SECOND, LOW_FIRST, LOW_SECOND, PIECE, PIECE_SIZE, PLACES = (
    BLOCKS * n for n in range(11)
)
KEY0, KEY1, WORDS = (PLACES + 2 * ROWS + n for n in range(3))
NO_TAG, LOW_TAG = uint32(0), uint32(1 << 31)

philox4x32, join = SPEC.philox4x32, SPEC.join
normal_pair32, normal_pair64 = SPEC.normal_pair32, SPEC.normal_pair64
uniform32, uniform64, clamp = SPEC.uniform32, SPEC.uniform64, SPEC.clamp
add_square, sum_accumulators, add_piece = SPEC.add_square, SPEC.sum_accumulators, SPEC.add_piece
half_to_float, float_to_half = SPEC.half_to_float, SPEC.float_to_half
bfloat16_to_float, float_to_bfloat16 = SPEC.bfloat16_to_float, SPEC.float_to_bfloat16


# A call.Step in numbers, `p` below: elements of a sample; address of the rows (n, COLUMNS) of the arithmetic's type;
# bits of the columns that are read; address of the row of each segment, and its elements; how many forms there are, how
# many arrays are read and written, and the addresses of their tables; draw, step_by_index, masked; address of the one
# field or of that of each sample, and how many numbers each has.
CALL_SIZE, CALL_ROWS, CALL_COLUMNS, CALL_INDICES, CALL_SEGMENT, CALL_FORMS, CALL_PROGRAM, CALL_INPUTS = range(8)
CALL_OUTPUTS, CALL_STREAMS, CALL_DRAW, CALL_STEP_BY_INDEX, CALL_MASKED, CALL_FIELDS, CALL_FIELD_NUMBERS = range(8, 15)
CALL_FIELD_PER_SAMPLE, CALL_NUMBERS = 15, 16
# An affine form: the rows of its total and its constant; whether the total is clamped; how many terms there are, and
# for each of them the rows of the coefficients and the values.
FORM_TOTAL, FORM_CONSTANT, FORM_CLAMPED, FORM_TERMS, FORM_TERM = range(5)
FORM_NUMBERS = FORM_TERM + 2 * (Z + 1)
# An array: its address, kind and bytes of an element, and its row.
STREAM_ARRAY, STREAM_KIND, STREAM_BYTES, STREAM_ROW, STREAM_NUMBERS = range(5)
# A field: the seed's others, the first sample or the address of ids, step, stream, first element, elements of a run,
# how many axes runs are counted over; then the lengths of those axes, and the field's strides along them.
FIELD_KEY0, FIELD_KEY1, FIELD_SAMPLE, FIELD_IDS, FIELD_STEP, FIELD_STREAM, FIELD_START, FIELD_RUN, FIELD_AXES = range(9)
FIELD_LENGTHS = 9

# Where a small call has its counter, its index, its one field, its numbers, and its streams: at most eight inputs and
# three outputs. What its numbers are for all calls of one form, and then the rows of its streams, is in a table.
DESK_TAKEN, DESK_INDEX, DESK_FIELD, DESK_CALL = 0, 1, 2, 2 + FIELD_LENGTHS
DESK_STREAMS = DESK_CALL + CALL_NUMBERS
DESK = DESK_STREAMS + 11 * STREAM_NUMBERS


# ---- primitives --------------------------------------------------------------------------------------------


@intrinsic
def pointer(_: Any, address: Any, kind: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(address, kind), codegen


@intrinsic
def pairs(_: Any, words: Any, n: Any) -> Any:
    """The words from word n on, two in one number, of which the first is the lower half."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(64).as_pointer())

    return types.CPointer(types.uint64)(words, types.int64), codegen


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
        call_named(builder, "llvm.prefetch.p0", ir.VoidType(), where, word(0), word(3), word(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def float_mode(_: Any, wanted: Any) -> Any:
    """Sets the floating-point mode of this thread, and gives the one that was."""

    def x86(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        address = builder.bitcast(slot, ir.IntType(8).as_pointer())
        call_named(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), address)
        before = builder.zext(builder.load(slot), ir.IntType(64))
        builder.store(builder.trunc(arguments[0], ir.IntType(32)), slot)
        call_named(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), address)
        return before

    def arm(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        before = call_named(builder, "llvm.aarch64.get.fpcr", ir.IntType(64))
        call_named(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
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
def ask_for(p: Any, at: int, quarters: int) -> None:
    """The lines of some quarters of a tile, from `at` on: all at once would block the line-fill buffers."""
    for s in range(p[CALL_INPUTS] + p[CALL_OUTPUTS]):
        stream = pointer(p[CALL_STREAMS] + 8 * STREAM_NUMBERS * s, int64)
        width = stream[STREAM_BYTES]
        first = stream[STREAM_ARRAY] + width * at
        for line in range(quarters * width):
            prefetch(first + 64 * line)


@inlined
def copy(i: int, to: Any, source: Any) -> None:
    to[i] = source[i]


@inlined
def from_half(i: int, to: Any, bits: Any) -> None:
    to[i] = half_to_float(bits[i])


@inlined
def from_bfloat16(i: int, to: Any, bits: Any) -> None:
    to[i] = bfloat16_to_float(bits[i])


@inlined
def to_half(i: int, bits: Any, source: Any) -> None:
    bits[i] = float_to_half(float32(source[i]))


@inlined
def to_bfloat16(i: int, bits: Any, source: Any) -> None:
    bits[i] = float_to_bfloat16(float32(source[i]))


@inlined
def load(to: Any, stream: Any, at: int, n: int) -> None:
    """The n elements of an array from `at` on, in the arithmetic's type, which is not the array's."""
    kind, first = stream[STREAM_KIND], stream[STREAM_ARRAY] + stream[STREAM_BYTES] * at
    if kind == F32:
        each(n, copy, (to, pointer(first, float32)))
    elif kind == U8:
        each(n, copy, (to, pointer(first, uint8)))
    elif kind == F16:
        each(n, from_half, (to, pointer(first, uint16)))
    else:
        each(n, from_bfloat16, (to, pointer(first, uint16)))


@inlined
def store(source: Any, own: Any, stream: Any, others: Any, at: int, n: int) -> None:
    """Rounds n results to the array's type, and puts them at `at`."""
    kind, first = stream[STREAM_KIND], stream[STREAM_ARRAY] + stream[STREAM_BYTES] * at
    if kind <= SAME:
        each(n, copy, (pointer(first, own), source))
    elif others is not None:
        if kind == F16:
            each(n, to_half, (pointer(first, uint16), source))
        else:
            each(n, to_bfloat16, (pointer(first, uint16), source))


@inlined
def bring(p: Any, at: int, n: int, places: Any, tile: Any, others: Any) -> None:
    """The n elements of all inputs from `at` on: where they are, or into the tile. And where outputs are."""
    for s in range(p[CALL_INPUTS] + p[CALL_OUTPUTS]):
        stream = pointer(p[CALL_STREAMS] + 8 * STREAM_NUMBERS * s, int64)
        if stream[STREAM_KIND] == IN_PLACE:
            places[stream[STREAM_ROW]] = stream[STREAM_ARRAY] + stream[STREAM_BYTES] * at
        elif others is not None and s < p[CALL_INPUTS]:
            load(part(tile, WIDTH * stream[STREAM_ROW]), stream, at, n)


@inlined
def put(p: Any, at: int, n: int, tile: Any, own: Any, others: Any) -> None:
    """The n elements of all outputs from `at` on, where they are not yet."""
    for s in range(p[CALL_INPUTS], p[CALL_INPUTS] + p[CALL_OUTPUTS]):
        stream = pointer(p[CALL_STREAMS] + 8 * STREAM_NUMBERS * s, int64)
        if stream[STREAM_KIND] != IN_PLACE:
            store(part(tile, WIDTH * stream[STREAM_ROW]), own, stream, others, at, n)


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
def place_counter(j: int, counter: Any, first: int, step: int, number: int, tag: int) -> None:
    counter[BLOCK + j], counter[STEP + j], counter[SAMPLE + j], counter[TAG + j] = first + j, step, number, tag


@inlined
def plan(p: Any, at: int, end: int, alike: int, sample: int, place: int, words: Any) -> tuple[int, int]:
    """Counters, key and pieces of elements from `at` on: (elements, pieces).

    Whole tiles, where those of one run are among the next `alike` elements; or as many of one seed as fit into a tile.
    """
    field = pointer(p[CALL_FIELDS] + 8 * p[CALL_FIELD_NUMBERS] * sample * p[CALL_FIELD_PER_SAMPLE], int64)
    words[KEY0], words[KEY1] = key0, key1 = field[FIELD_KEY0], field[FIELD_KEY1]
    n, used, pieces = 0, 0, 0
    while (used < BLOCKS) & (at + n < end):
        if p[CALL_FIELD_PER_SAMPLE]:
            field = pointer(p[CALL_FIELDS] + 8 * p[CALL_FIELD_NUMBERS] * sample, int64)
            if (field[FIELD_KEY0] != key0) | (field[FIELD_KEY1] != key1):
                break
        element, left = locate(field, place)
        left = least(left, end - at - n)
        step, row = field[FIELD_STEP], sample * (1 - p[CALL_FIELD_PER_SAMPLE])
        if p[CALL_STEP_BY_INDEX]:
            segment = (at + n) // p[CALL_SEGMENT]
            left = least(left, (segment + 1) * p[CALL_SEGMENT] - at - n)
            step += pointer(p[CALL_INDICES], int64)[segment]
        number = pointer(field[FIELD_IDS], int64)[row] if field[FIELD_IDS] else field[FIELD_SAMPLE] + row
        skip, first, tag = element & 3, element >> 2, field[FIELD_STREAM] << 24 | number >> 32
        size = least(left, 4 * (BLOCKS - used) - skip)
        if (used == 0) & (least(left, alike) > size):
            size = (least(left, alike) + skip) // TILE * TILE - skip
        counter = part(words, used)
        last = (skip + size + 3) >> 2
        alone = (used == 0) & ((last >= BLOCKS) | (size == end - at))  # the only piece: one is told
        each(1 if alone else last, place_counter, (counter, first, step, number, tag))
        words[PIECE + pieces] = 4 * used + skip
        words[PIECE_SIZE + pieces] = size
        pieces += 1
        used += last
        n += size
        place += size
        if place == p[CALL_SIZE]:
            sample, place = sample + 1, 0
    return n, pieces


@inlined
def words_of_run(j: int, to: Any, block: int, step: int, sample: int, tag: int, key0: int, key1: int) -> None:
    w0, w1, w2, w3 = philox4x32(block + uint64(j), step, sample, tag, key0, key1)
    to[j], to[TOGETHER + j] = join(w2, w0), join(w3, w1)


@inlined
def words_of_runs(j: int, to: Any, c: Any, later: int, tag: int, key0: int, key1: int) -> None:
    w0, w1, w2, w3 = philox4x32(c[BLOCK + j], c[STEP + j] + later, c[SAMPLE + j], c[TAG + j] | tag, key0, key1)
    to[j], to[TOGETHER + j] = join(w2, w0), join(w3, w1)


@inlined
def make_words(run: Any, block: Any, later: int, c: Any, where: Any, tag: int, pieces: int) -> None:
    """Philox of the next counters, `later` steps after theirs.

    Of one piece they are numbered on from `block`, and the rest of them and the key, `run`, is the same for all.
    """
    step, sample, high, k0, k1 = run
    steps = uint32(later)
    if pieces == 1:
        name = uint64(step + steps), uint64(sample), uint64(high | tag)
        each(TOGETHER, words_of_run, (where, uint64(block), *name, k0, k1))
    else:
        each(TOGETHER, words_of_runs, (where, c, steps, tag, k0, k1))


@inlined
def packed(words: Any, tile: Any, pieces: int) -> None:
    """The pieces one after another, copied by fours into the row of slot Z."""
    whole, done = part(tile, BLOCK_VALUES * WIDTH), 0
    for piece in range(pieces):
        source, to = part(whole, words[PIECE + piece]), part(tile, (VALUES + Z) * WIDTH + done)
        each(words[PIECE_SIZE + piece], copy, (to, source))
        done += words[PIECE_SIZE + piece]


@inlined
def normals32(i: int, z: Any, u: Any, v: Any) -> None:
    z[2 * i], z[2 * i + 1] = normal_pair32(u[i], v[i])


@inlined
def noised32(i: int, out: Any, u: Any, v: Any, k: float, c: float, d: float, w: Any) -> None:
    z0, z1 = normal_pair32(u[i], v[i])
    out[2 * i], out[2 * i + 1] = fma(d, w[2 * i], fma(c, z0, k)), fma(d, w[2 * i + 1], fma(c, z1, k))


@inlined
def normals64(i: int, z: Any, u: Any, v: Any, low_u: Any, low_v: Any) -> None:
    z[2 * i], z[2 * i + 1] = normal_pair64(u[i], low_u[i], v[i], low_v[i])


@inlined
def uniforms32(i: int, z: Any, u: Any, v: Any) -> None:
    z[2 * i], z[2 * i + 1] = uniform32(u[i]), uniform32(v[i])


@inlined
def uniforms64(i: int, z: Any, u: Any, v: Any, low_u: Any, low_v: Any) -> None:
    z[2 * i], z[2 * i + 1] = uniform64(u[i], low_u[i]), uniform64(v[i], low_v[i])


@inlined
def place_of_noise(skip: int, pieces: int) -> Any:
    """Where in the tile the noise of the planned elements begins."""
    return BLOCK_VALUES * WIDTH + skip if pieces == 1 else (VALUES + Z) * WIDTH


def fill_noise(
    p: Any, run: Any, block: Any, later: Any, words: Any, tile: Any, pieces: int, size: Any, at_once: bool
) -> None:
    """The noise of the planned elements, of the tile's type: in whole blocks, and several pieces packed too.

    Of one piece blocks are made from `block` on, up to that of element `size`. `at_once`: of float32 the row of a
    normal and one more term, added up where the normal is made, in place of the noise.
    """
    raise NotImplementedError


@overload(fill_noise, jit_options=OPTIONS)
def _fill_noise(p, run, block, later, words, tile, pieces, size, at_once):  # type: ignore[no-untyped-def]
    def singles(p, run, block, later, words, tile, pieces, size, at_once):  # type: ignore[no-untyped-def]
        for first in range(0, (size + 3) // 4 if pieces == 1 else BLOCKS, TOGETHER):
            make_words(run, block + first, later, part(words, first), pairs(words, FIRST), NO_TAG, pieces)
            of_words, z = (part(words, FIRST), part(words, SECOND)), part(tile, BLOCK_VALUES * WIDTH + 4 * first)
            if at_once:
                form, places = pointer(p[CALL_PROGRAM], int64), pairs(words, PLACES)
                out, k = pointer(places[form[FORM_TOTAL]], float32), pointer(places[form[FORM_CONSTANT]], float32)
                c, d = pointer(places[form[FORM_TERM]], float32), pointer(places[form[FORM_TERM + 2]], float32)
                w = part(pointer(places[form[FORM_TERM + 3]], float32), 4 * first)
                each(2 * TOGETHER, noised32, (part(out, 4 * first), *of_words, k[0], c[0], d[0], w))
            elif p[CALL_DRAW] == NORMAL:
                each(2 * TOGETHER, normals32, (z, *of_words))
            else:
                each(2 * TOGETHER, uniforms32, (z, *of_words))
        if pieces > 1:
            packed(words, tile, pieces)

    def doubles(p, run, block, later, words, tile, pieces, size, at_once):  # type: ignore[no-untyped-def]
        for first in range(0, (size + 3) // 4 if pieces == 1 else BLOCKS, TOGETHER):
            make_words(run, block + first, later, part(words, first), pairs(words, FIRST), NO_TAG, pieces)
            make_words(run, block + first, later, part(words, first), pairs(words, LOW_FIRST), LOW_TAG, pieces)
            low = part(words, LOW_FIRST), part(words, LOW_SECOND)
            arguments = part(tile, BLOCK_VALUES * WIDTH + 4 * first), part(words, FIRST), part(words, SECOND), *low
            if p[CALL_DRAW] == NORMAL:
                each(2 * TOGETHER, normals64, arguments)
            else:
                each(2 * TOGETHER, uniforms64, arguments)
        if pieces > 1:
            packed(words, tile, pieces)

    return singles if tile.dtype == types.float32 else doubles


# ---- rows --------------------------------------------------------------------------------------------------


@inlined
def fill(i: int, to: Any, value: float) -> None:
    to[i] = value


@inlined
def select_rows(p: Any, rows: Any, at: int, n: int, tile: Any, filled: int) -> int:
    """Coefficients for each of n elements from `at` on. `filled` is the row of which the tile is full, or -1."""
    index, segment = pointer(p[CALL_INDICES], int64), at // p[CALL_SEGMENT]
    left = (segment + 1) * p[CALL_SEGMENT] - at
    row = index[segment] if left >= n else -1
    if row == filled and row >= 0:
        return row
    for column in range(COLUMNS):
        if p[CALL_COLUMNS] >> column & 1:
            done, now, size = 0, segment, TILE if left >= n else left
            while done < n:
                coefficient, to = rows[COLUMNS * index[now] + column], part(tile, column * WIDTH + done)
                each(least(size, TILE - done), fill, (to, coefficient))
                done += size
                now += 1
                size = p[CALL_SEGMENT]
    return row


@inlined
def term(i: int, to: Any, k: Any, c: Any, v: Any) -> None:
    to[i] = fma(c[i], v[i], k[i])


@inlined
def two_terms(i: int, to: Any, k: Any, c: float, v: Any, d: float, w: Any) -> None:
    to[i] = fma(d, w[i], fma(c, v[i], k[i]))


@inlined
def bounded(i: int, to: Any, low: Any, high: Any) -> None:
    to[i] = clamp(to[i], low[i], high[i])


@inlined
def add_within(i: int, out: Any, aux: Any, inside: Any, low: Any, high: Any, zero: Any) -> None:
    out[i] += select((low[i] <= inside[i]) & (inside[i] <= high[i]), aux[i], zero[i])  # NaN lies within no bounds


@inlined
def apply(p: Any, n: int, places: Any, own: Any, one_row: bool) -> None:
    """The affine forms of a row over a tile: spec.affine, two terms at a time where all elements have one row."""
    for f in range(p[CALL_FORMS]):
        form = pointer(p[CALL_PROGRAM] + 8 * FORM_NUMBERS * f, int64)
        total, terms, t = pointer(places[form[FORM_TOTAL]], own), form[FORM_TERMS], 0
        k, so_far = pointer(places[form[FORM_CONSTANT]], own), pointer(places[SUM], own)
        while t < terms:
            now = part(form, FORM_TERM + 2 * t)
            c, v = pointer(places[now[0]], own), pointer(places[now[1]], own)
            together = 2 if one_row and t + 1 < terms else 1
            t += together
            to = so_far if t < terms else total  # the total may lie on an input that is yet to be read
            if together == 2:
                d, w = pointer(places[now[2]], own), pointer(places[now[3]], own)
                each(n, two_terms, (to, k, c[0], v, d[0], w))
            else:
                each(n, term, (to, k, c, v))
            k = to
        if form[FORM_CLAMPED]:
            each(TILE, bounded, (total, pointer(places[LOW], own), pointer(places[HIGH], own)))
    if p[CALL_MASKED]:
        out, aux = pointer(places[RESULT], own), pointer(places[RESULT + 1], own)
        inside, zero = pointer(places[VALUES + D], own), pointer(places[ZERO], own)
        each(TILE, add_within, (out, aux, inside, pointer(places[LOW], own), pointer(places[HIGH], own), zero))


@inlined
def noised(i: int, x: Any, a: float, s: float, z: Any) -> None:
    x[i] = fma(a, x[i], mul(s, z[i]))


# ---- kernels -----------------------------------------------------------------------------------------------


def _text() -> str:
    """Of all that is compiled here: Numba's cache on disk knows of a function's own text, not of what it calls."""
    files = (__file__, layout.__file__, device.__file__, inlining.__file__, loops.__file__, spec.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _kernels(text: str) -> tuple[Any, ...]:
    """The compiled loops. That they hold on to `text` makes it part of their key in the cache.

    Threads share the elements of one call by a counter, `taken`: each takes the next `chunk` until `total` are.
    `others` is None where all arrays are of the arithmetic's type: then nothing is compiled that converts them.
    """

    def compiled(function: Any) -> Any:
        options = {"nogil": True, "error_model": "numpy", "pipeline_class": inlining.Lean}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to write to
            return njit(**options)(function)

    @compiled
    def step(reals, others, words, taken, total, chunk, call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        whole_vectors()
        p, before = pointer(call, int64), float_mode(NEAREST)
        first, width, own = reals.ctypes.data, reals.itemsize, reals.dtype
        tile, w, places = pointer(first, own), pointer(words, uint32), pointer(words + 4 * PLACES, int64)
        rows = pointer(p[CALL_ROWS], own)
        for row in range(ROWS):
            places[row] = first + width * WIDTH * row
        for i in range(WIDTH):
            tile[WIDTH * ZERO + i], tile[WIDTH * MINUS_ZERO + i] = 0.0, -0.0
        draws, form, at = p[CALL_DRAW] != NONE, pointer(p[CALL_PROGRAM], int64), take(taken, chunk)
        # float32, a normal and one more term. (`&` where `and` would do: branches take Numba long to compile.)
        short = (width == 4) & (p[CALL_DRAW] == NORMAL) & (p[CALL_FORMS] == 1)
        short &= (form[FORM_TERMS] == 2) & (form[FORM_TERM + 1] == VALUES + Z)
        sample_size, segment = p[CALL_SIZE], p[CALL_SEGMENT]
        while at < total:
            end, filled, sample, place = least(at + chunk, total), int64(-1), at // sample_size, at % sample_size
            while at < end:  # a stretch: whole tiles of one row and one run, or what one tile can hold
                alike = least((at // segment + 1) * segment, end) - at
                size, pieces = alike // TILE * TILE if alike > TILE else least(TILE, end - at), 1
                element = int64(0)
                if draws:
                    size, pieces = plan(p, at, end, alike, sample, place, w)
                    element = 4 * int64(w[BLOCK]) + (w[PIECE] if pieces == 1 else 0)
                    place += size
                    if place >= sample_size:
                        sample, place = sample + place // sample_size, place % sample_size
                filled = select_rows(p, rows, at, least(TILE, size), tile, filled)
                run, stop = (w[STEP], w[SAMPLE], w[TAG], w[KEY0], w[KEY1]), at + size
                at_once = short & (filled >= 0) & (pieces == 1) & (size >= TILE) & (element & 3 == 0)
                while at < stop:
                    block, skip = element >> 2, element & 3  # no number that is set back: LLVM would copy the loop
                    n = least(TILE - skip, stop - at)
                    bring(p, at, n, places, tile, others)
                    # int64(..): for literals, which have types of their own, Numba would compile everything again.
                    ask_for(p, at + TILE, 4 if at_once else 1)
                    if draws:
                        fill_noise(p, run, block, int64(0), w, tile, pieces, skip + n, at_once)
                    if not at_once:
                        if draws:
                            places[VALUES + Z] = first + width * place_of_noise(skip, pieces)
                        ask_for(p, at + TILE + QUARTER, int64(2))
                        apply(p, n, places, own, filled >= 0)
                        ask_for(p, at + TILE + 3 * QUARTER, int64(1))
                    put(p, at, n, tile, own, others)
                    at, element = at + n, element + n
            at = take(taken, chunk)
        float_mode(before)

    @compiled
    def walk(keep, times, reals, others, words, taken, total, chunk, call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        whole_vectors()
        p, before = pointer(call, int64), float_mode(NEAREST)
        own, w = reals.dtype, pointer(words, uint32)
        tile = pointer(reals.ctypes.data, own)
        rows, x, kept = pointer(p[CALL_ROWS], own), part(tile, WIDTH * VALUES), pointer(keep, int64)
        source, target = pointer(p[CALL_STREAMS], int64), pointer(p[CALL_STREAMS] + 8 * STREAM_NUMBERS, int64)
        at = take(taken, chunk)
        while at < total:
            end = least(at + chunk, total)
            while at < end:  # a tile of x0 goes through all times before the next one is read
                sample = at // p[CALL_SIZE]
                n, pieces = plan(p, at, end, TILE, sample, at % p[CALL_SIZE], w)
                run, block, skip = (w[STEP], w[SAMPLE], w[TAG], w[KEY0], w[KEY1]), int64(w[BLOCK]), int64(w[PIECE])
                z = part(tile, place_of_noise(skip, pieces))
                if source[STREAM_KIND] <= SAME:
                    each(n, copy, (x, pointer(source[STREAM_ARRAY] + reals.itemsize * at, own)))
                elif others is not None:
                    load(x, source, at, n)
                for t in range(times):
                    fill_noise(p, run, block, t, w, tile, pieces, skip + n, False)
                    each(
                        n, noised, (x, rows[COLUMNS * t + AFFINE[0] + 1 + X], rows[COLUMNS * t + AFFINE[0] + 1 + Z], z)
                    )
                    if kept[t] >= 0:
                        store(x, own, target, others, kept[t] * total + at, n)
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
                sums[chunk] = sum_accumulators(pointer(sum_of.ctypes.data, r.dtype))
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
    def note(desk, form, rows, arrays, index, key0, key1, sample, step, stream, size, total):  # type: ignore[no-untyped-def]
        """What a small call needs to have in memory. False: an output overlaps what it is not itself."""
        text  # noqa: B018
        d, constant = pointer(desk, int64), pointer(form, int64)
        d[DESK_TAKEN], d[DESK_INDEX] = 0, index
        field, call = part(d, DESK_FIELD), part(d, DESK_CALL)
        field[FIELD_KEY0], field[FIELD_KEY1], field[FIELD_SAMPLE], field[FIELD_IDS] = key0, key1, sample, 0
        field[FIELD_STEP], field[FIELD_STREAM], field[FIELD_START] = step, stream, 0
        field[FIELD_RUN], field[FIELD_AXES] = size, 0
        for i in range(CALL_NUMBERS):
            call[i] = constant[i]
        call[CALL_SIZE], call[CALL_SEGMENT], call[CALL_ROWS] = size, total, rows.ctypes.data
        call[CALL_INDICES], call[CALL_FIELDS] = desk + 8 * DESK_INDEX, desk + 8 * DESK_FIELD
        call[CALL_STREAMS] = desk + 8 * DESK_STREAMS
        for s in range(len(arrays)):
            array = part(d, DESK_STREAMS + STREAM_NUMBERS * s)
            in_place = s < constant[CALL_INPUTS] or constant[CALL_OUTPUTS] == 1
            array[STREAM_ARRAY], array[STREAM_KIND] = arrays[s].ctypes.data, IN_PLACE if in_place else SAME
            array[STREAM_BYTES], array[STREAM_ROW] = 4, constant[CALL_NUMBERS + s]
            for other in range(s if s >= constant[CALL_INPUTS] else 0):
                apart = abs(array[STREAM_ARRAY] - d[DESK_STREAMS + STREAM_NUMBERS * other + STREAM_ARRAY])
                if apart < 4 * total and (apart > 0 or other >= constant[CALL_INPUTS]):
                    return False
        return True

    return step, walk, philox, squares, add_up, note


step, walk, philox, squares, add_up, note = _kernels(_text())
