# SPDX-License-Identifier: Apache-2.0
"""What the loops of the Numba backend read of a call, the memory of a thread, and the program of a tile."""

from __future__ import annotations

from typing import Any

from numpy import int32, int64, uint32

from ...call.description import TRANSITION
from ...call.packed import CALL, DRAWS, DTYPES, FIELD, Layout
from ...language.rows import AFFINE, BOUNDS, CLEAN, COLUMNS, M2, ORDER, TIMES_CLEAN, TIMES_ROOT, D, Z
from .device import inlined
from .pointers import part, pointer

TILE = 256  # elements
BLOCKS = QUARTER = TILE // 4  # of four words
TOGETHER = BLOCKS // 2  # blocks whose words are made and then made values of: few, so that the two overlap

# ---- a call ------------------------------------------------------------------------------------------------


def offsets(record: Layout, *names: str) -> list[int]:
    """Returns where a record has these fields, each counted in its own size: for a pointer of int64, int32 or
    uint32."""
    fields: Any = record.dtype.fields
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
FIELD_BYTES, NEXT = FIELD.size, CALL.size // 8
LEVEL_BYTES, FIRST_BYTES = TRANSITION.itemsize, 4 * 256  # `first` stands behind `last`
NONE, NORMAL, UNIFORM, WORDS_ALONE = DRAWS.values()
# What is not named here is refused when this is loaded: `load` and `store` (arrays.py) would have to know it.
F32, F64, F16, BF16, U8, U16 = DTYPES.values()
BYTES = 4, 8, 2, 2, 1, 2

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
    """Lists the input arrays, then the output arrays; `own` is the dtype of the arithmetic."""
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
    """Lists the terms of the linear combination whose columns begin with `first`, in the contract's order."""
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
    """Lists the linear combinations: D, if an output, the noise or a mask reads it, and that of each output."""
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
