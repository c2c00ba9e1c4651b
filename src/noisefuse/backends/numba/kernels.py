# SPDX-License-Identifier: Apache-2.0
"""The loops of the Numba backend (jit.py): spec.py over tiles that stay in the first cache.

A tile goes through passes that LLVM vectorises one by one: words, normals, and one for two terms of a row.
Kernels get the bytes of a CALL, so that each is compiled once for float32 and once for float64 arithmetic,
when it is first needed; Numba keeps the compiled code on disk.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import config, njit, types
from numba.extending import overload
from numpy import float32, int32, int64, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

from ...call import description
from ...call import packed as calls
from ...call.description import ACCUMULATORS, LOSS_CHUNK, TRANSITION
from ...call.packed import CALL, DRAWS, DTYPES, FIELD
from ...language import rows as layout
from ...language.rows import AFFINE, BOUNDS, CLEAN, COLUMNS, HIGH, LOW, M2, ORDER, TIMES_CLEAN, TIMES_ROOT, D, X, Z
from .. import spec
from . import device, internals, pointers
from .device import OPTIONS, SPEC, fma, inlined, mul, pasted
from .internals import each, whole_vectors
from .pointers import NEAREST, address, float_mode, least, part, pointer, prefetch, take

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from numba.core.dispatcher import Dispatcher

    F = TypeVar("F", bound=Callable[..., object])

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: Numba compiles nothing")

TILE = 256  # elements
BLOCKS = QUARTER = TILE // 4  # of four words
TOGETHER = BLOCKS // 2  # blocks whose words are made and then made values of: few, so that the two overlap

# ---- a call ------------------------------------------------------------------------------------------------


def offsets(record: np.dtype[Any], *names: str) -> list[int]:
    """Where a record has these, each counted in its own size: for an int64 pointer or, of those of 32 bits, an int32
    or uint32 one."""
    fields: Any = record.fields
    return [fields[name][1] // fields[name][0].base.itemsize for name in names]


# A CALL, `p` below, and the fields that it points to.
CALL_SIZE, CALL_ROWS, CALL_ACTIVE, CALL_INDEX, CALL_SEGMENT, CALL_PERIOD = (
    offsets(CALL, "size", "rows", "active", "index", "segment", "period")
)  # fmt: skip
CALL_IN, CALL_OUT, CALL_FIELDS, CALL_KEEP, CALL_TIMES = offsets(CALL, "in", "out", "fields", "keep", "times")
CALL_IN_TYPE, CALL_TYPE, CALL_OUT_TYPE, CALL_DRAW, CALL_STEP_BY_INDEX, CALL_MASKED, CALL_FIELD_PER_SAMPLE = (
    offsets(CALL, "in_type", "type", "out_type", "draw", "step_by_index", "masked", "field_per_sample")
)  # fmt: skip
CALL_BY_LEVEL, CALL_TRANSITIONS = offsets(CALL, "by_level", "transitions")
FIELD_SEED, FIELD_SAMPLE, FIELD_SAMPLES, FIELD_START, FIELD_RUN, FIELD_AXES, FIELD_SHAPE, FIELD_STRIDE = (
    offsets(FIELD, "seed", "sample", "samples", "start", "run", "axes", "shape", "stride")
)  # fmt: skip
FIELD_STEP, FIELD_STREAM = offsets(FIELD, "step", "stream")
FIELD_BYTES, NEXT = FIELD.itemsize, CALL.itemsize // 8
LEVEL_BYTES, (FIRST_BYTES,) = TRANSITION.itemsize, offsets(TRANSITION, "first")
NONE, NORMAL, UNIFORM, WORDS_ALONE = DRAWS.values()
# What is not named here is refused when this is loaded: `load` and `store` would have to know it.
F32, F64, F16, BF16, U8, U16 = DTYPES.values()
BYTES = tuple({F32: 4, F64: 8, F16: 2, BF16: 2, U8: 1, U16: 2}[code] for code in DTYPES.values())

# ---- the workspace -----------------------------------------------------------------------------------------
# Of a thread, for one call: reals, and then words. Reals are rows of this length: the coefficients of each element, by
# column; its values, by slot; noise of whole blocks; results; a sum that is not yet one; zeros of both signs.
WIDTH = TILE + 16  # a line more, so that rows do not fall on one another in the cache
VALUES, BLOCK_VALUES, RESULT, SUM, ZERO, MINUS_ZERO, ROWS = (
    COLUMNS + n for n in (0, Z + 1, Z + 2, *range(Z + 5, Z + 9))
)
REALS = WIDTH * ROWS
# Words: counters (four rows); words of both pairs of each block, first ones and second ones, and their low words; the
# runs in a tile, where the noise of each begins and how much it is; key; int64: the address of each row of reals, or of
# what stands in for it, and the program.
BLOCK, STEP, SAMPLE, TAG, FIRST, SECOND, LOW_FIRST, LOW_SECOND, RUN_BEGIN, RUN_SIZE, KEY0 = (
    BLOCKS * n for n in range(11)
)
KEY1, PLACES = KEY0 + 1, KEY0 + 2
PROGRAM = PLACES + 2 * ROWS
NO_TAG, LOW_TAG = uint32(0), uint32(1 << 31)

# The program, `m` below, is what a tile needs of a call: bits of the columns that are read; how many arrays are read,
# how many there are, and how many linear combinations; then all of these.
READ_COLUMNS, INPUTS, ARRAYS, COMBINATIONS, FIRST_ARRAY = range(5)
# An array: its address; its dtype, or that it is used in place, or copied as it is; bytes of an element; its row.
ARRAY_PLACE, ARRAY_KIND, ARRAY_BYTES, ARRAY_ROW, ARRAY_NUMBERS = range(5)
IN_PLACE, SAME = -2, -1
# A linear combination: the rows of its total and its constant; whether the total is clamped; how many terms there are,
# and for each of them the rows of the coefficients and the values.
TOTAL, CONSTANT, CLAMPED, TERMS, TERM = range(5)
COMBINATION_NUMBERS = TERM + 2 * (Z + 1)
FIRST_COMBINATION = FIRST_ARRAY + ARRAY_NUMBERS * (Z + 1 + len(AFFINE))
FIRSTS = (CLEAN, *AFFINE)
WORDS = PROGRAM + 2 * (FIRST_COMBINATION + COMBINATION_NUMBERS * len(FIRSTS))
WORKSPACE = REALS + WORDS  # in reals, of which words take one at most

if TYPE_CHECKING:
    from ..spec import (
        Bools,
        Integers,
        add_piece,
        add_square,
        bfloat16_to_float,
        clamp,
        float_to_bfloat16,
        float_to_half,
        half_to_float,
        join,
        normal_pair32,
        normal_pair64,
        philox4x32,
        sum_accumulators,
        times,
        times_root,
        to_level,
        transition,
        uniform32,
        uniform64,
        within,
    )
else:
    philox4x32, join = SPEC.philox4x32, SPEC.join
    normal_pair32, normal_pair64 = SPEC.normal_pair32, SPEC.normal_pair64
    uniform32, uniform64, clamp, within = SPEC.uniform32, SPEC.uniform64, SPEC.clamp, SPEC.within
    times, times_root = SPEC.times, SPEC.times_root
    add_square, sum_accumulators, add_piece = SPEC.add_square, SPEC.sum_accumulators, SPEC.add_piece
    half_to_float, float_to_half = SPEC.half_to_float, SPEC.float_to_half
    bfloat16_to_float, float_to_bfloat16, to_level = SPEC.bfloat16_to_float, SPEC.float_to_bfloat16, SPEC.to_level
    transition = SPEC.transition


# ---- the program -------------------------------------------------------------------------------------------


@inlined
def program_of(words: Any) -> Any:
    return pointer(part(words, PROGRAM), int64)


@inlined
def array_of(m: Any, n: int) -> Any:
    return part(m, FIRST_ARRAY + ARRAY_NUMBERS * n)


@inlined
def combination_of(m: Any, n: int) -> Any:
    return part(m, FIRST_COMBINATION + COMBINATION_NUMBERS * n)


@inlined
def list_arrays(p: Any, m: Any, own: int) -> None:
    """Those that are read, then those that are written; `own` is the dtype of the arithmetic."""
    q, outputs = pointer(p, int32), (p[CALL_OUT] != 0) + (p[CALL_OUT + 1] != 0) + (p[CALL_OUT + 2] != 0)
    # One of several outputs, or one to which a mask adds, may lie on an input that is still read after it is computed.
    copied = (outputs > 1) | (q[CALL_MASKED] != 0)
    m[INPUTS], m[ARRAYS] = 0, 0
    for n in range(Z + 1 + len(AFFINE)):
        is_input = n <= Z
        place = p[CALL_IN + n] if is_input else p[CALL_OUT + n - (Z + 1)]
        if place != 0:
            array = array_of(m, m[ARRAYS])
            kind = q[CALL_IN_TYPE + n] if is_input else q[CALL_OUT_TYPE if n == Z + 1 else CALL_TYPE]
            array[ARRAY_PLACE], array[ARRAY_BYTES] = place, BYTES[kind]
            array[ARRAY_KIND] = kind if kind != own else SAME if copied and not is_input else IN_PLACE
            array[ARRAY_ROW] = VALUES + n if is_input else RESULT + n - (Z + 1)
            m[INPUTS] += is_input
            m[ARRAYS] += 1


@inlined
def list_terms(c: Any, active: int, first: int, slots: int) -> None:
    """Of the linear combination whose columns begin with `first`, in the contract's order."""
    n = 0
    for slot in ORDER:
        if slot < slots and active >> (first + 1 + slot) & 1:
            c[TERM + 2 * n], c[TERM + 2 * n + 1] = first + 1 + slot, VALUES + slot
            n += 1
    # A first term without a constant is added to -0, which changes no bit; without terms x - 0 is x, -0 too.
    c[CONSTANT] = first if active >> first & 1 else MINUS_ZERO if n > 0 else ZERO
    if n == 0:
        c[TERM], c[TERM + 1], n = ZERO, MINUS_ZERO, 1
    c[TERMS] = n


@inlined
def list_combinations(p: Any, m: Any) -> None:
    """D where one of the others reads it, the noise or a mask, and that of each output."""
    active, masked = p[CALL_ACTIVE], pointer(p, int32)[CALL_MASKED] != 0
    bounded = active & BOUNDS != 0
    # A clamp takes both bounds, also where one alone is active; a mask where none is.
    m[READ_COLUMNS] = active | (BOUNDS if bounded | masked else 0)
    m[COMBINATIONS], reads_clean = 0, masked | (active & (TIMES_CLEAN | TIMES_ROOT) != 0)
    for o in range(len(AFFINE)):
        reads_clean |= (p[CALL_OUT + o] != 0) & (active >> (AFFINE[o] + 1 + D) & 1 != 0)
    for n in range(len(FIRSTS)):
        if reads_clean if n == 0 else (p[CALL_OUT + n - 1] != 0) | (masked & (n == 2)):
            c = combination_of(m, m[COMBINATIONS])
            list_terms(c, active, FIRSTS[n], M2 + 1 if n == 0 else Z + 1)
            c[TOTAL], c[CLAMPED] = VALUES + D if n == 0 else RESULT + n - 1, (n == 0) & bounded & (not masked)
            m[COMBINATIONS] += 1


# ---- arrays ------------------------------------------------------------------------------------------------


@inlined
def ask_for(m: Any, at: int, quarters: Integers) -> None:
    """The lines of some quarters of a tile, from `at` on: all at once would block the line-fill buffers."""
    for n in range(m[ARRAYS]):
        array = array_of(m, n)
        width = array[ARRAY_BYTES]
        first = array[ARRAY_PLACE] + width * at
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
def to_uint8(i: int, to: Any, source: Any) -> None:
    to[i] = to_level(source[i], 255.0)


@inlined
def to_uint16(i: int, to: Any, source: Any) -> None:
    to[i] = to_level(source[i], 65535.0)


@inlined
def load(to: Any, array: Any, at: int, n: int) -> None:
    """The n elements of an array from `at` on, in the arithmetic's type, which is not the array's."""
    kind, first = array[ARRAY_KIND], array[ARRAY_PLACE] + array[ARRAY_BYTES] * at
    if kind == F32:
        each(n, copy, (to, pointer(first, float32)))
    elif kind == U8:
        each(n, copy, (to, pointer(first, uint8)))
    elif kind == U16:
        each(n, copy, (to, pointer(first, uint16)))
    elif kind == F16:
        each(n, from_half, (to, pointer(first, uint16)))
    elif kind == BF16:
        each(n, from_bfloat16, (to, pointer(first, uint16)))


@inlined
def store(source: Any, array: Any, others: Any, at: int, n: int) -> None:
    """Rounds n results to the array's type, and puts them at `at`."""
    kind, first = array[ARRAY_KIND], array[ARRAY_PLACE] + array[ARRAY_BYTES] * at
    if kind < 0:
        each(n, copy, (pointer(first, source), source))
    elif others is not None:
        if kind == F16:
            each(n, to_half, (pointer(first, uint16), source))
        elif kind == BF16:
            each(n, to_bfloat16, (pointer(first, uint16), source))
        elif kind == U8:
            each(n, to_uint8, (pointer(first, uint8), source))
        elif kind == U16:
            each(n, to_uint16, (pointer(first, uint16), source))


@inlined
def bring(m: Any, at: int, n: int, places: Any, tile: Any, others: Any) -> None:
    """The n elements of all inputs from `at` on: where they are, or into the tile. And where outputs are."""
    for a in range(m[ARRAYS]):
        array = array_of(m, a)
        if array[ARRAY_KIND] == IN_PLACE:
            places[array[ARRAY_ROW]] = array[ARRAY_PLACE] + array[ARRAY_BYTES] * at
        elif others is not None and a < m[INPUTS]:
            load(part(tile, WIDTH * array[ARRAY_ROW]), array, at, n)


@inlined
def put(m: Any, at: int, n: int, tile: Any, others: Any) -> None:
    """The n elements of all outputs from `at` on, where they are not yet."""
    for a in range(m[INPUTS], m[ARRAYS]):
        array = array_of(m, a)
        if array[ARRAY_KIND] != IN_PLACE:
            store(part(tile, WIDTH * array[ARRAY_ROW]), array, others, at, n)


# ---- noise -------------------------------------------------------------------------------------------------


@inlined
def locate(field: Any, place: int) -> tuple[int, int]:
    """The element of the field at this place of the sample, and how many from there on are in one run."""
    run = field[FIELD_RUN]
    if field[FIELD_AXES] == 0:
        return field[FIELD_START] + place, run - place
    rest, within = place // run, place % run
    element = field[FIELD_START] + within
    for axis in range(field[FIELD_AXES] - 1, -1, -1):
        length = field[FIELD_SHAPE + axis]
        element += rest % length * field[FIELD_STRIDE + axis]
        rest //= length
    return element, run - within


@inlined
def place_counter(j: int, counter: Any, first: int, step: int, number: int, tag: int) -> None:
    counter[BLOCK + j], counter[STEP + j], counter[SAMPLE + j], counter[TAG + j] = first + j, step, number, tag


@inlined
def plan(p: Any, at: int, end: int, alike: Integers, sample: int, place: int, words: Any) -> tuple[int, int]:
    """Counters, key and runs of elements from `at` on: how many (elements, runs).

    Whole tiles, where those of one run are among the next `alike` elements; or as many of one seed as fit into a tile.
    """
    q = pointer(p, int32)
    seed = pointer(p[CALL_FIELDS] + FIELD_BYTES * sample * q[CALL_FIELD_PER_SAMPLE], int64)[FIELD_SEED]
    words[KEY0], words[KEY1] = seed, seed >> 32
    n, used, runs = 0, 0, 0
    while (used < BLOCKS) & (at + n < end):
        field = pointer(p[CALL_FIELDS] + FIELD_BYTES * sample * q[CALL_FIELD_PER_SAMPLE], int64)
        if field[FIELD_SEED] != seed:
            break
        element, left = locate(field, place)
        left = least(left, end - at - n)
        step, row = int64(pointer(field, uint32)[FIELD_STEP]), sample * (1 - q[CALL_FIELD_PER_SAMPLE])
        if q[CALL_STEP_BY_INDEX]:
            segment = (at + n) // p[CALL_SEGMENT]
            left = least(left, (segment + 1) * p[CALL_SEGMENT] - at - n)
            step += pointer(p[CALL_INDEX], int64)[segment]
        number = pointer(field[FIELD_SAMPLES], int64)[row] if field[FIELD_SAMPLES] else field[FIELD_SAMPLE] + row
        skip, first, tag = element & 3, element >> 2, int64(pointer(field, uint32)[FIELD_STREAM]) << 24 | number >> 32
        size = least(left, 4 * (BLOCKS - used) - skip)
        if (used == 0) & (least(left, alike) > size):
            size = (least(left, alike) + skip) // TILE * TILE - skip
        last = (skip + size + 3) >> 2
        alone = (used == 0) & ((last >= BLOCKS) | (size == end - at))  # the only run: one counter is enough
        each(1 if alone else last, place_counter, (part(words, used), first, step, number, tag))
        words[RUN_BEGIN + runs] = 4 * used + skip
        words[RUN_SIZE + runs] = size
        runs += 1
        used += last
        n += size
        place += size
        if place == p[CALL_SIZE]:
            sample, place = sample + 1, 0
    return n, runs


@inlined
def words_of_run(j: int, to: Any, block: int, step: int, sample: int, tag: int, key0: int, key1: int) -> None:
    w0, w1, w2, w3 = philox4x32(block + uint64(j), step, sample, tag, key0, key1)
    to[j], to[TOGETHER + j] = join(w2, w0), join(w3, w1)


@inlined
def words_of_runs(j: int, to: Any, c: Any, later: int, tag: int, key0: int, key1: int) -> None:
    w0, w1, w2, w3 = philox4x32(c[BLOCK + j], c[STEP + j] + later, c[SAMPLE + j], c[TAG + j] | tag, key0, key1)
    to[j], to[TOGETHER + j] = join(w2, w0), join(w3, w1)


@inlined
def make_words(run: Any, block: Any, later: int, c: Any, where: Any, tag: Integers, runs: int) -> None:
    """Philox of the next counters, `later` steps after theirs.

    Of one run they are numbered on from `block`, and the rest of them and the key, `run`, is the same for all.
    """
    step, sample, high, k0, k1 = run
    steps = uint32(later)
    if runs == 1:
        name = uint64(step + steps), uint64(sample), uint64(high | tag)
        each(TOGETHER, words_of_run, (where, uint64(block), *name, k0, k1))
    else:
        each(TOGETHER, words_of_runs, (where, c, steps, tag, k0, k1))


@inlined
def packed(words: Any, tile: Any, runs: int) -> None:
    """The runs one after another, copied to the row of slot Z."""
    whole, done = part(tile, BLOCK_VALUES * WIDTH), 0
    for run in range(runs):
        source, to = part(whole, words[RUN_BEGIN + run]), part(tile, (VALUES + Z) * WIDTH + done)
        each(words[RUN_SIZE + run], copy, (to, source))
        done += words[RUN_SIZE + run]


@inlined
def normals32(i: int, z: Any, u: Any, v: Any) -> None:
    z[2 * i], z[2 * i + 1] = normal_pair32(u[i], v[i])


@inlined
def noised32(i: int, out: Any, u: Any, v: Any, k: float, c: float, d: float, w: Any) -> None:
    z0, z1 = normal_pair32(u[i], v[i])
    out[2 * i], out[2 * i + 1] = fma(d, w[2 * i], fma(c, z0, k)), fma(d, w[2 * i + 1], fma(c, z1, k))


@inlined
def add_at_once(words: Any, of_words: Any, first: int, tile: Any) -> None:
    """The row of a normal and one more term, from element `first` of a tile on."""
    c, places = combination_of(program_of(words), 0), pointer(part(words, PLACES), int64)
    out, k = pointer(places[c[TOTAL]], tile), pointer(places[c[CONSTANT]], tile)
    a, b = pointer(places[c[TERM]], tile), pointer(places[c[TERM + 2]], tile)
    v = part(pointer(places[c[TERM + 3]], tile), first)
    each(2 * TOGETHER, noised32, (part(out, first), *of_words, k[0], a[0], b[0], v))


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
def words32(i: int, z: Any, u: Any, v: Any) -> None:
    z[2 * i], z[2 * i + 1] = u[i], v[i]


@inlined
def place_of_noise(skip: Integers, runs: int) -> Any:
    """Where in the tile the noise of the planned elements begins."""
    return BLOCK_VALUES * WIDTH + skip if runs == 1 else (VALUES + Z) * WIDTH


def fill_noise(
    p: Any, run: Any, block: Any, later: Any, words: Any, tile: Any, runs: int, size: Any, at_once: bool
) -> None:
    """The noise of the planned elements, of the tile's type: in whole blocks, and several runs packed too.

    Of one run blocks are made from `block` on, up to that of element `size`. `at_once`: of float32 the row of a normal
    and one more term, added up where the normal is made, in place of the noise.
    """
    raise NotImplementedError


@overload(fill_noise, jit_options=OPTIONS)
def _fill_noise(p, run, block, later, words, tile, runs, size, at_once):  # type: ignore[no-untyped-def]
    def singles(p, run, block, later, words, tile, runs, size, at_once):  # type: ignore[no-untyped-def]
        for first in range(0, (size + 3) // 4 if runs == 1 else BLOCKS, TOGETHER):
            make_words(run, block + first, later, part(words, first), pointer(part(words, FIRST), uint64), NO_TAG, runs)
            of_words, z = (part(words, FIRST), part(words, SECOND)), part(tile, BLOCK_VALUES * WIDTH + 4 * first)
            if at_once:
                add_at_once(words, of_words, 4 * first, tile)
            elif pointer(p, int32)[CALL_DRAW] == NORMAL:
                each(2 * TOGETHER, normals32, (z, *of_words))
            elif pointer(p, int32)[CALL_DRAW] == UNIFORM:
                each(2 * TOGETHER, uniforms32, (z, *of_words))
            else:
                each(2 * TOGETHER, words32, (pointer(z, uint32), *of_words))
        if runs > 1:
            packed(words, tile, runs)

    def doubles(p, run, block, later, words, tile, runs, size, at_once):  # type: ignore[no-untyped-def]
        for first in range(0, (size + 3) // 4 if runs == 1 else BLOCKS, TOGETHER):
            make_words(run, block + first, later, part(words, first), pointer(part(words, FIRST), uint64), NO_TAG, runs)
            make_words(
                run, block + first, later, part(words, first), pointer(part(words, LOW_FIRST), uint64), LOW_TAG, runs
            )
            low = part(words, LOW_FIRST), part(words, LOW_SECOND)
            arguments = part(tile, BLOCK_VALUES * WIDTH + 4 * first), part(words, FIRST), part(words, SECOND), *low
            if pointer(p, int32)[CALL_DRAW] == NORMAL:
                each(2 * TOGETHER, normals64, arguments)
            else:
                each(2 * TOGETHER, uniforms64, arguments)
        if runs > 1:
            packed(words, tile, runs)

    return singles if tile.dtype == types.float32 else doubles


# ---- rows --------------------------------------------------------------------------------------------------


@inlined
def fill(i: int, to: Any, value: float) -> None:
    to[i] = value


@inlined
def row_for_each(p: Any) -> Any:
    return (p[CALL_PERIOD] > 0) | (pointer(p, int32)[CALL_BY_LEVEL] > 0)


@inlined
def row_of_element(p: Any, at: int) -> Any:
    """Where each has a row of its own."""
    if pointer(p, int32)[CALL_BY_LEVEL]:
        return int64(pointer(p[CALL_IN], uint8)[at])
    return pointer(p[CALL_INDEX], int64)[at // p[CALL_SIZE] * p[CALL_PERIOD] + at % p[CALL_SIZE] % p[CALL_PERIOD]]


@inlined
def select_own_rows(p: Any, columns: int, at: int, n: int, tile: Any) -> None:
    rows = pointer(p[CALL_ROWS], tile)
    for i in range(n):
        row = COLUMNS * row_of_element(p, at + i)
        for column in range(COLUMNS):
            if columns >> column & 1:
                part(tile, column * WIDTH)[i] = rows[row + column]


@inlined
def select_rows(p: Any, columns: int, at: int, n: int, tile: Any, filled: Integers) -> Integers:
    """Coefficients for each of n elements from `at` on. `filled` is the row of which the tile is full, or -1."""
    if row_for_each(p):
        select_own_rows(p, columns, at, n, tile)
        return -1
    rows, index, segment = pointer(p[CALL_ROWS], tile), pointer(p[CALL_INDEX], int64), at // p[CALL_SEGMENT]
    left = (segment + 1) * p[CALL_SEGMENT] - at
    row = index[segment] if left >= n else -1
    if row == filled and row >= 0:
        return row
    for column in range(COLUMNS):
        if columns >> column & 1:
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
def scale(i: int, to: Any, z: Any, clean: Any) -> None:
    to[i] = times(z[i], clean[i])


@inlined
def scale_by_root(i: int, to: Any, z: Any, clean: Any) -> None:
    to[i] = times_root(z[i], clean[i])


@inlined
def scale_noise(active: int, n: int, places: Any, tile: Any) -> None:
    """The noise times D or its root, in the tile: what is given may be the caller's."""
    z, clean, to = (
        pointer(places[VALUES + Z], tile),
        pointer(places[VALUES + D], tile),
        part(tile, WIDTH * (VALUES + Z)),
    )
    if active & TIMES_CLEAN:
        each(n, scale, (to, z, clean))
    else:
        each(n, scale_by_root, (to, z, clean))
    places[VALUES + Z] = address(to)


@inlined
def add_within(i: int, out: Any, aux: Any, inside: Any, low: Any, high: Any, zero: Any) -> None:
    out[i] += within(inside[i], low[i], high[i], aux[i], zero[i])


@inlined
def apply(m: Any, masked: bool, n: int, places: Any, tile: Any, one_row: bool) -> None:
    """The linear combinations of a row: spec.affine, two terms at a time where all elements have one row."""
    low, high = pointer(places[LOW], tile), pointer(places[HIGH], tile)
    for f in range(m[COMBINATIONS]):
        combination = combination_of(m, f)
        total, terms, t = pointer(places[combination[TOTAL]], tile), combination[TERMS], 0
        k, so_far = pointer(places[combination[CONSTANT]], tile), pointer(places[SUM], tile)
        while t < terms:
            now = part(combination, TERM + 2 * t)
            c, v = pointer(places[now[0]], tile), pointer(places[now[1]], tile)
            together = 2 if one_row and t + 1 < terms else 1
            t += together
            to = so_far if t < terms else total  # the total may lie on an input that is yet to be read
            if together == 2:
                d, w = pointer(places[now[2]], tile), pointer(places[now[3]], tile)
                each(n, two_terms, (to, k, c[0], v, d[0], w))
            else:
                each(n, term, (to, k, c, v))
            k = to
        if combination[CLAMPED]:
            each(TILE, bounded, (total, low, high))
        if (f == 0) & (m[READ_COLUMNS] & (TIMES_CLEAN | TIMES_ROOT) != 0):
            scale_noise(m[READ_COLUMNS], n, places, tile)
    if masked:
        out, aux = pointer(places[RESULT], tile), pointer(places[RESULT + 1], tile)
        inside, zero = pointer(places[VALUES + D], tile), pointer(places[ZERO], tile)
        each(TILE, add_within, (out, aux, inside, low, high, zero))


@inlined
def become(p: Any, at: int, n: int, words: Any, to: Any) -> None:
    """What n bytes from `at` on become."""
    tables, index, x, i = p[CALL_TRANSITIONS], pointer(p[CALL_INDEX], int64), pointer(p[CALL_IN], uint8), 0
    while i < n:
        segment = (at + i) // p[CALL_SEGMENT]
        of_row, last = tables + LEVEL_BYTES * 256 * index[segment], least(n, (segment + 1) * p[CALL_SEGMENT] - at)
        while i < last:
            level = LEVEL_BYTES * int64(x[at + i])
            first = pointer(of_row + level + FIRST_BYTES, uint8)[words[i] >> uint32(24)]
            to[i] = transition(words[i], int64(first), pointer(of_row, uint32), level >> 2)
            i += 1


@inlined
def noised(i: int, x: Any, a: float, s: float, z: Any) -> None:
    x[i] = fma(a, x[i], mul(s, z[i]))


# ---- kernels -----------------------------------------------------------------------------------------------
# Threads share the elements of a call by a number behind it, NEXT: each takes the next `chunk`, until `end` is reached
# or it has done `turns` of them.
# `others` is None where all arrays are of the arithmetic's type: then nothing is compiled that converts them.


def _version() -> str:
    """Of all that is compiled here."""
    modules = sys.modules[__name__], layout, description, calls, device, internals, pointers, spec
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()[:16]


VERSION = _version()


def compiled(function: F) -> Dispatcher[F]:
    """A kernel, in whose name the version stands: Numba's cache on disk looks at no function that another calls."""
    function.__qualname__ = f"{function.__name__}_{VERSION}"
    options = {"nogil": True, "error_model": "numpy"}
    made: Dispatcher[F]
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to
        made = njit(**options)(function)
    return made


@pasted
def prepare(p: Any, words: Any, tile: Any, own: int) -> None:
    """What the workspace holds before the first tile; `own` is the dtype of the arithmetic."""
    m, places = program_of(words), pointer(part(words, PLACES), int64)
    list_arrays(p, m, own)
    list_combinations(p, m)
    for row in range(ROWS):
        places[row] = address(part(tile, WIDTH * row))
    for i in range(WIDTH):
        tile[WIDTH * ZERO + i], tile[WIDTH * MINUS_ZERO + i] = 0.0, -0.0


@pasted
def compute_tiles(
    p: Any,
    w: Any,
    tile: Any,
    others: Any,
    at: int,
    end: int,
    element: Integers,
    runs: int,
    draws: bool,
    at_once: Bools,
    one_row: Bools,
) -> None:
    """Elements at .. end - 1: whole tiles of one row and one run, or what one tile can hold."""
    m, places, masked = program_of(w), pointer(part(w, PLACES), int64), pointer(p, int32)[CALL_MASKED] != 0
    run, transitions = (w[STEP], w[SAMPLE], w[TAG], w[KEY0], w[KEY1]), pointer(p, int32)[CALL_DRAW] == WORDS_ALONE
    while at < end:
        block, skip = element >> 2, element & 3  # no number that is set back: LLVM would copy the loop
        n = least(TILE - skip, end - at)
        bring(m, at, n, places, tile, others)
        # int64(..): for literals, which have types of their own, Numba would compile everything again.
        ask_for(m, at + TILE, 4 if at_once else 1)
        if draws:
            fill_noise(p, run, block, int64(0), w, tile, runs, skip + n, at_once)
        if not at_once:
            if draws:
                places[VALUES + Z] = address(part(tile, place_of_noise(skip, runs)))
            ask_for(m, at + TILE + QUARTER, int64(2))
            if transitions:
                become(p, at, n, pointer(places[VALUES + Z], uint32), part(tile, WIDTH * RESULT))
            else:
                apply(m, masked, n, places, tile, one_row)
            ask_for(m, at + TILE + 3 * QUARTER, int64(1))
        put(m, at, n, tile, others)
        at, element = at + n, element + n


@pasted
def compute_chunk(p: Any, w: Any, tile: Any, others: Any, at: int, end: int, at_once: bool) -> None:
    """Elements at .. end - 1. `at_once`: whether the row is added up where the normal is made, where that can be."""
    sample_size, segment, columns = p[CALL_SIZE], p[CALL_SEGMENT], program_of(w)[READ_COLUMNS]
    draws, filled, sample, place = pointer(p, int32)[CALL_DRAW] != NONE, int64(-1), at // sample_size, at % sample_size
    while at < end:
        alike = 1 if row_for_each(p) else least((at // segment + 1) * segment, end) - at
        size, runs, element = alike // TILE * TILE if alike > TILE else least(TILE, end - at), 1, int64(0)
        if draws:
            size, runs = plan(p, at, end, alike, sample, place, w)
            element = 4 * int64(w[BLOCK]) + (w[RUN_BEGIN] if runs == 1 else 0)
            place += size
            if place >= sample_size:
                sample, place = sample + place // sample_size, place % sample_size
        filled = select_rows(p, columns, at, least(TILE, size), tile, filled)
        now = at_once & (filled >= 0) & (runs == 1) & (size >= TILE) & (element & 3 == 0)
        compute_tiles(p, w, tile, others, at, at + size, element, runs, draws, now, filled >= 0)
        at += size


@compiled
def step(workspace: NDArray[Any], others: Any, call: NDArray[np.int64], end: int, chunk: int, turns: int) -> None:
    whole_vectors()
    before, p = float_mode(NEAREST), pointer(call.ctypes.data, int64)
    tile = pointer(workspace.ctypes.data, workspace.dtype)
    w, short = pointer(part(tile, REALS), uint32), workspace.itemsize == 4
    prepare(p, w, tile, F32 if short else F64)
    # float32, a normal and one more term. (`&` where `and` would do: branches take Numba long to compile.)
    c = combination_of(program_of(w), 0)
    at_once = short & (pointer(p, int32)[CALL_DRAW] == NORMAL) & (program_of(w)[COMBINATIONS] == 1)
    at_once &= (c[TERMS] == 2) & (c[TERM + 1] == VALUES + Z)
    at = take(part(p, NEXT), chunk)
    while at < end:
        compute_chunk(p, w, tile, others, at, least(at + chunk, end), at_once)
        turns -= 1
        at = take(part(p, NEXT), chunk) if turns > 0 else end
    float_mode(before)


@compiled
def walk(workspace: NDArray[Any], others: Any, call: NDArray[np.int64], end: int, chunk: int, turns: int) -> None:
    whole_vectors()
    before, p = float_mode(NEAREST), pointer(call.ctypes.data, int64)
    tile = pointer(workspace.ctypes.data, workspace.dtype)
    w = pointer(part(tile, REALS), uint32)
    prepare(p, w, tile, F32 if workspace.itemsize == 4 else F64)
    at = take(part(p, NEXT), chunk)
    while at < end:
        last = least(at + chunk, end)
        while at < last:
            at += walk_tile(p, w, tile, others, at, last, end)
        turns -= 1
        at = take(part(p, NEXT), chunk) if turns > 0 else end
    float_mode(before)


@pasted
def walk_tile(p: Any, w: Any, tile: Any, others: Any, at: int, end: int, total: int) -> int:
    """A tile of x0 goes through all times before the next one is read. Gives its elements."""
    rows, kept, x = pointer(p[CALL_ROWS], tile), pointer(p[CALL_KEEP], int64), part(tile, WIDTH * VALUES)
    source, target = array_of(program_of(w), 0), array_of(program_of(w), 1)
    n, runs = plan(p, at, end, int64(TILE), at // p[CALL_SIZE], at % p[CALL_SIZE], w)
    run, block, skip = (w[STEP], w[SAMPLE], w[TAG], w[KEY0], w[KEY1]), int64(w[BLOCK]), int64(w[RUN_BEGIN])
    z = part(tile, place_of_noise(skip, runs))
    if source[ARRAY_KIND] < 0:
        each(n, copy, (x, pointer(source[ARRAY_PLACE] + source[ARRAY_BYTES] * at, tile)))
    elif others is not None:
        load(x, source, at, n)
    for t in range(p[CALL_TIMES]):
        fill_noise(p, run, block, t, w, tile, runs, skip + n, False)
        a, s = rows[COLUMNS * t + AFFINE[0] + 1 + X], rows[COLUMNS * t + AFFINE[0] + 1 + Z]
        each(n, noised, (x, a, s, z))
        if kept[t] >= 0:
            store(x, target, others, kept[t] * total + at, n)
    return n


@compiled
def squares(r: NDArray[Any], sums: NDArray[np.float64]) -> None:
    """Of chunks of the rows of r, the sums of their squares: docs/loss.md."""
    before, sum_of, chunks = float_mode(NEAREST), np.empty(ACCUMULATORS, r.dtype), len(sums) // len(r)
    for row in range(len(r)):
        for c in range(chunks):
            sum_of[:] = 0
            last = least((c + 1) * LOSS_CHUNK, r.shape[1])
            for first in range(c * LOSS_CHUNK, last, ACCUMULATORS):
                for j in range(least(ACCUMULATORS, last - first)):
                    sum_of[j] = add_square(sum_of[j], r[row, first + j])
            sums[row * chunks + c] = sum_accumulators(pointer(sum_of.ctypes.data, r.dtype))
    float_mode(before)


@compiled
def add_up(chunk_sums: NDArray[np.float64], weights: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
    """Of samples, which have the same number of pieces each, the weighted sums of their chunks."""
    before, pieces = float_mode(NEAREST), len(weights) // len(sums)
    for sample in range(len(sums)):
        total = 0.0
        for piece in range(sample * pieces, (sample + 1) * pieces):
            sum_of_piece = 0.0
            for c in range(chunk_sums.shape[1]):
                sum_of_piece += chunk_sums[piece, c]
            total = add_piece(total, weights[piece], sum_of_piece)
        sums[sample] = total
    float_mode(before)


@compiled
def philox(n: int, counter: int, key: int, out: int) -> None:
    for i in range(n):
        c, k = pointer(counter + 16 * i, uint32), pointer(key + 8 * i, uint32)
        to = pointer(out + 16 * i, uint32)
        to[0], to[1], to[2], to[3] = philox4x32(c[0], c[1], c[2], c[3], k[0], k[1])
