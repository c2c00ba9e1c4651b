# SPDX-License-Identifier: Apache-2.0
"""The Numba backend: spec.py compiled for this processor, with loops over tiles that stay in the first cache.

A tile goes through passes that LLVM vectorises one by one: counters, words, normals, and one pass for each term of a
row. Kernels get numbers and addresses only, so that each is compiled once for float32 and once for float64 arithmetic,
when it is first needed; Numba keeps the compiled code on disk.
"""

from __future__ import annotations

import hashlib
import math
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from ..noise import Noise
from . import device, spec, threads
from .call import AFFINE, CLEAN, COLUMNS, HIGH, LOW, ORDER, Array, D, Step, Walk, X, Z
from .device import SPEC, fma, inlined, mul
from .selftest import self_test

TILE = 256  # elements
BLOCKS = TILE // 4  # of four words
CHUNK = 1 << 15  # elements that a thread takes at a time, and least for which another is asked
SLOTS = Z + 1

F32, F64, F16, BF16, U8 = range(5)
KINDS = {"float32": F32, "float64": F64, "float16": F16, "bfloat16": BF16, "uint8": U8}
NONE, NORMAL, UNIFORM = range(3)
DRAWS = {"none": NONE, "normal": NORMAL, "uniform": UNIFORM}

# Scratch, in rows of a tile. Reals: the coefficients of each element by column, its values by slot, then
VALUES = COLUMNS
BLOCK_VALUES, RESULT = VALUES + SLOTS, VALUES + SLOTS + 1  # the noise of whole blocks; three results
REALS, WIDTH = RESULT + 3, TILE + 8  # stretches are copied by fours, and then go over their ends
# Words, in rows of BLOCKS: counters, their words and low words, pieces of noise (first element, how many).
COUNTER, WORD, LOW_WORD, PIECE, WORDS = 0, 4, 8, 12, 14
# The four forms of a row, D first: their columns, and where their totals go.
FIRST, TOTAL = (CLEAN, *AFFINE), (VALUES + D, RESULT, RESULT + 1, RESULT + 2)

philox4x32, normal_pair32, normal_pair64 = SPEC.philox4x32, SPEC.normal_pair32, SPEC.normal_pair64
uniform32, uniform64, clamp = SPEC.uniform32, SPEC.uniform64, SPEC.clamp
half_to_float, float_to_half = SPEC.half_to_float, SPEC.float_to_half
bfloat16_to_float, float_to_bfloat16 = SPEC.bfloat16_to_float, SPEC.float_to_bfloat16
float32, float64, uint8, uint16, uint32, uint64, int64 = (
    np.float32,
    np.float64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.int64,
)


class Pass(NamedTuple):
    """call.Step in numbers: addresses in place of arrays, 0 where there is none."""

    batch: int
    size: int
    present: int
    columns: int  # bit c: column c counts, or is a bound of the clamp
    forms: int  # bit f: form f is computed
    rows: int
    indices: int
    segment: int
    inputs: tuple[int, ...]  # SLOTS
    kinds: tuple[int, ...]
    outputs: tuple[int, ...]  # 3
    kind: int
    draw: int
    step_by_index: int
    masked: int
    fields: NDArray[np.int64]  # one row, or one for each sample, of the columns that follow


# Columns of a field: the seed's halves, first sample, address of ids, step, stream, first element, elements of a run,
# number of axes over which runs are counted; then the lengths of those axes, and the field's strides along them.
KEY0, KEY1, SAMPLE, IDS, STEP, STREAM, START, RUN, AXES, LENGTHS = range(10)


# ---- memory ------------------------------------------------------------------------------------------------


@intrinsic
def pointer(_: Any, address: Any, kind: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(address, kind), codegen


@intrinsic
def take(_: Any, counter: Any, n: Any) -> Any:
    """What counter[0] was before n was added, in one atomic step."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, arguments[1], "monotonic")

    return types.int64(counter, types.int64), codegen


@intrinsic
def float_mode(_: Any, wanted: Any) -> Any:
    """Sets the floating-point mode of this thread, and gives the one that was."""
    word, pointer_to = ir.IntType(32), ir.IntType(8).as_pointer()

    def x86(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slot = cgutils.alloca_once(builder, word)
        kind = ir.FunctionType(ir.VoidType(), [pointer_to])
        address = builder.bitcast(slot, pointer_to)
        get = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        put = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(get, [address])
        before = builder.zext(builder.load(slot), ir.IntType(64))
        builder.store(builder.trunc(arguments[0], word), slot)
        builder.call(put, [address])
        return before

    def arm(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        long = ir.IntType(64)
        get = cgutils.get_or_insert_function(builder.module, ir.FunctionType(long, []), "llvm.aarch64.get.fpcr")
        put = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [long]), "llvm.aarch64.set.fpcr"
        )
        before = builder.call(get, [])
        builder.call(put, [arguments[0]])
        return before

    def none(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.int64(types.int64), {"x86_64": x86, "AMD64": x86, "aarch64": arm, "arm64": arm}.get(
        platform.machine(), none
    )


# To nearest even, subnormal numbers kept, no exception raised.
NEAREST = 0x1F80 if platform.machine() in ("x86_64", "AMD64") else 0


@inlined
def fixed(array: Any, shape: Any) -> Any:
    """The array with a shape that the compiler knows."""
    return carray(pointer(int64(array.ctypes.data), array.dtype), shape)


@inlined
def load(to: Any, address: int, kind: int, at: int, n: int) -> None:
    """The n elements from `at` on of an array, in the arithmetic's type."""
    if kind == F32:
        singles = carray(pointer(address + 4 * at, float32), n)
        for i in range(n):
            to[i] = singles[i]
    elif kind == F64:
        doubles = carray(pointer(address + 8 * at, float64), n)
        for i in range(n):
            to[i] = doubles[i]
    elif kind == U8:
        characters = carray(pointer(address + at, uint8), n)
        for i in range(n):
            to[i] = characters[i]
    else:
        halves = carray(pointer(address + 2 * at, uint16), n)
        if kind == F16:
            for i in range(n):
                to[i] = half_to_float(halves[i])
        else:
            for i in range(n):
                to[i] = bfloat16_to_float(halves[i])


@inlined
def store(source: Any, address: int, kind: int, at: int, n: int) -> None:
    """Rounds n results to the array's type, and puts them at `at`."""
    if kind == F32:
        singles = carray(pointer(address + 4 * at, float32), n)
        for i in range(n):
            singles[i] = source[i]
    elif kind == F64:
        doubles = carray(pointer(address + 8 * at, float64), n)
        for i in range(n):
            doubles[i] = source[i]
    else:
        halves = carray(pointer(address + 2 * at, uint16), n)
        if kind == F16:
            for i in range(n):
                halves[i] = float_to_half(source[i])
        else:
            for i in range(n):
                halves[i] = float_to_bfloat16(source[i])


# ---- noise -------------------------------------------------------------------------------------------------


@inlined
def locate(field: Any, place: int) -> tuple[int, int]:
    """The element of the field at this place of the sample, and how many follow it in one run."""
    run = field[RUN]
    within = place % run
    element = field[START] + within
    rest = place // run
    axes = field[AXES]
    for axis in range(axes - 1, -1, -1):
        length = field[LENGTHS + axis]
        element += rest % length * field[LENGTHS + axes + axis]
        rest //= length
    return element, run - within


@inlined
def plan(p: Pass, at: int, end: int, words: Any) -> tuple[int, int, int]:
    """The blocks of the elements from `at` on, of one seed and as many as fit: counters and pieces into `words`.

    Returns (elements, blocks, pieces).
    """
    sample, place = at // p.size, at % p.size
    within = at % p.segment if p.step_by_index else 0
    segment = at // p.segment if p.step_by_index else 0
    index = carray(pointer(p.indices, int64), 1 << 40)
    single = len(p.fields) == 1
    field = p.fields[0 if single else sample]
    n, used, pieces = 0, 0, 0
    while used < BLOCKS and at + n < end:
        if not single:
            following = p.fields[sample]
            if following[KEY0] != field[KEY0] or following[KEY1] != field[KEY1]:
                break
            field = following
        element, left = locate(field, place)
        if p.step_by_index:
            left = min(left, p.segment - within)
        skip = element & 3
        size = min(min(left, end - at - n), 4 * (BLOCKS - used) - skip)
        row = sample if single else 0
        number = carray(pointer(field[IDS], int64), row + 1)[row] if field[IDS] else field[SAMPLE] + row
        step = field[STEP] + (index[segment] if p.step_by_index else 0)
        words[PIECE, pieces], words[PIECE + 1, pieces] = 4 * used + skip, size
        pieces += 1
        last = used + (skip + size + 3) // 4
        for j in range(last - used):
            words[COUNTER, used + j] = uint32((element >> 2) + j)
            words[COUNTER + 1, used + j] = uint32(step)
            words[COUNTER + 2, used + j] = uint32(number)
            words[COUNTER + 3, used + j] = uint32(field[STREAM] << 24 | number >> 32)
        used = last
        n += size
        place += size
        within += size
        while within >= p.segment and p.step_by_index:
            within -= p.segment
            segment += 1
        if place == p.size:
            place = 0
            sample += 1
    return n, used, pieces


@inlined
def make_words(words: Any, to: int, blocks: int, key0: int, key1: int, later: int, low: int) -> None:
    """Philox of the counters, `later` steps after theirs."""
    k0, k1, tag, steps = uint32(key0), uint32(key1), uint32(low << 31), uint32(later)
    for j in range(blocks):
        w = philox4x32(
            words[COUNTER, j],
            uint32(words[COUNTER + 1, j] + steps),
            words[COUNTER + 2, j],
            words[COUNTER + 3, j] | tag,
            k0,
            k1,
        )
        words[to, j], words[to + 1, j], words[to + 2, j], words[to + 3, j] = w


def make_values(draw: int, key0: int, key1: int, later: int, blocks: int, words: Any, to: Any) -> None:
    """The normals or uniforms of whole blocks, of the type of `to` and in the order of their elements."""
    raise NotImplementedError


@overload(make_values, jit_options={"forceinline": True, "error_model": "numpy"})
def _make_values(draw, key0, key1, later, blocks, words, to):  # type: ignore[no-untyped-def]
    def singles(draw, key0, key1, later, blocks, words, to):  # type: ignore[no-untyped-def]
        make_words(words, WORD, blocks, key0, key1, later, 0)
        w = words[WORD : WORD + 4]
        if draw == NORMAL:
            for j in range(blocks):
                to[4 * j], to[4 * j + 1] = normal_pair32(w[0, j], w[1, j])
                to[4 * j + 2], to[4 * j + 3] = normal_pair32(w[2, j], w[3, j])
        else:
            for j in range(blocks):
                for i in range(4):
                    to[4 * j + i] = uniform32(w[i, j])

    def doubles(draw, key0, key1, later, blocks, words, to):  # type: ignore[no-untyped-def]
        make_words(words, WORD, blocks, key0, key1, later, 0)
        make_words(words, LOW_WORD, blocks, key0, key1, later, 1)
        w, v = words[WORD : WORD + 4], words[LOW_WORD : LOW_WORD + 4]
        if draw == NORMAL:
            for j in range(blocks):
                to[4 * j], to[4 * j + 1] = normal_pair64(w[0, j], v[0, j], w[1, j], v[1, j])
                to[4 * j + 2], to[4 * j + 3] = normal_pair64(w[2, j], v[2, j], w[3, j], v[3, j])
        else:
            for j in range(blocks):
                for i in range(4):
                    to[4 * j + i] = uniform64(w[i, j], v[i, j])

    return singles if to.dtype == types.float32 else doubles


@inlined
def fill_noise(p: Pass, at: int, later: int, words: Any, reals: Any, blocks: int, pieces: int) -> None:
    """The noise of the planned elements into the tile of slot Z."""
    field = p.fields[0 if len(p.fields) == 1 else at // p.size]
    source, to = reals[BLOCK_VALUES], reals[VALUES + Z]
    make_values(p.draw, field[KEY0], field[KEY1], later, blocks, words, source)
    done = 0
    for piece in range(pieces):
        first, size = int(words[PIECE, piece]), int(words[PIECE + 1, piece])
        for i in range(0, size, 4):
            for w in range(4):
                to[done + i + w] = source[first + i + w]
        done += size


# ---- rows --------------------------------------------------------------------------------------------------


@inlined
def select_rows(p: Pass, at: int, n: int, reals: Any, filled: int) -> int:
    """Coefficients for each of n elements from `at` on. `filled` is the row of which the tile is full, or -1."""
    segment, within = at // p.segment, at % p.segment
    index = carray(pointer(p.indices, int64), 1 << 40)
    table = carray(pointer(p.rows, reals.dtype), (1 << 40, COLUMNS))
    one = p.segment - within >= n
    row = index[segment] if one else -1
    if one and row == filled:
        return row
    for column in range(COLUMNS):
        if p.columns >> column & 1:
            done, now, left = 0, segment, TILE if one else p.segment - within
            while done < n:
                size = min(left, TILE - done)
                coefficient = table[index[now], column]
                for i in range(done, done + size):
                    reals[column, i] = coefficient
                done += size
                now += 1
                left = p.segment
    return row


@inlined
def apply(p: Pass, n: int, reals: Any) -> None:
    """The forms of a row over a tile: spec.affine, term by term. D is clamped, or, for its gradients, decides."""
    for form in range(4):
        if p.forms >> form & 1:
            first, slots, total = FIRST[form], 3 if form == 0 else SLOTS, reals[TOTAL[form]]
            constant = p.present >> first & 1
            k = reals[first]
            terms = 0
            for slot in ORDER:
                if slot < slots and p.present >> (first + 1 + slot) & 1:
                    c, v = reals[first + 1 + slot], reals[VALUES + slot]
                    if terms:
                        for i in range(n):
                            total[i] = fma(c[i], v[i], total[i])
                    elif constant:
                        for i in range(n):
                            total[i] = fma(c[i], v[i], k[i])
                    else:
                        for i in range(n):
                            total[i] = mul(c[i], v[i])
                    terms += 1
            if terms == 0:
                for i in range(n):
                    total[i] = k[i] if constant else 0
            if form == 0 and p.columns >> LOW & 1 and not p.masked:
                low, high = reals[LOW], reals[HIGH]
                for i in range(n):
                    total[i] = clamp(total[i], low[i], high[i])
    if p.masked:  # NaN lies within no bounds
        inside, out, aux, low, high = reals[VALUES + D], reals[RESULT], reals[RESULT + 1], reals[LOW], reals[HIGH]
        for i in range(n):
            out[i] += aux[i] if low[i] <= inside[i] and inside[i] <= high[i] else out.dtype.type(0)


# ---- kernels -----------------------------------------------------------------------------------------------


def _text() -> str:
    """Of all that is compiled here: Numba's cache on disk knows of a function's own text, not of what it calls."""
    return hashlib.sha256(
        b"".join(Path(m).read_bytes() for m in (__file__, device.__file__, spec.__file__))
    ).hexdigest()


def _kernels(text: str) -> tuple[Any, ...]:
    """The compiled loops. That they hold on to `text` makes it part of their key in the cache."""

    def compiled(function: Any) -> Any:
        try:
            return njit(nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # no folder to write to
            return njit(nogil=True, error_model="numpy")(function)

    @compiled
    def step(reals, words, taken, total, chunk, *call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        p = Pass(*call)
        before = float_mode(NEAREST)
        tile, counters = fixed(reals, (REALS, WIDTH)), fixed(words, (WORDS, BLOCKS))
        at = take(taken, chunk)
        while at < total:
            end = min(at + chunk, total)
            filled = -1
            while at < end:
                n, blocks, pieces = min(TILE, end - at), 0, 0
                if p.draw != NONE:
                    n, blocks, pieces = plan(p, at, end, counters)
                    fill_noise(p, at, 0, counters, tile, blocks, pieces)
                for slot in range(SLOTS):
                    if p.inputs[slot]:
                        load(tile[VALUES + slot], p.inputs[slot], p.kinds[slot], at, n)
                filled = select_rows(p, at, n, tile, filled)
                apply(p, n, tile)
                for o in range(3):
                    if p.outputs[o]:
                        store(tile[RESULT + o], p.outputs[o], p.kind, at, n)
                at += n
            at = take(taken, chunk)
        float_mode(before)

    @compiled
    def walk(keep, times, reals, words, taken, total, chunk, *call):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        p = Pass(*call)
        before = float_mode(NEAREST)
        tile, counters = fixed(reals, (REALS, WIDTH)), fixed(words, (WORDS, BLOCKS))
        kept = carray(pointer(keep, int64), times)
        table = carray(pointer(p.rows, reals.dtype), (times, COLUMNS))
        x, z = tile[VALUES + X], tile[VALUES + Z]
        at = take(taken, chunk)
        while at < total:
            end = min(at + chunk, total)
            while at < end:  # a tile of x0 goes through all times before the next one is read
                n, blocks, pieces = plan(p, at, end, counters)
                load(x, p.inputs[X], p.kinds[X], at, n)
                for t in range(times):
                    fill_noise(p, at, t, counters, tile, blocks, pieces)
                    a, s = table[t, AFFINE[0] + 1 + X], table[t, AFFINE[0] + 1 + Z]
                    for i in range(n):
                        x[i] = fma(a, x[i], mul(s, z[i]))
                    if kept[t] >= 0:
                        store(x, p.outputs[0], p.kind, kept[t] * p.size * p.batch + at, n)
                at += n
            at = take(taken, chunk)
        float_mode(before)

    @compiled
    def words_of(n, counter, key, out):  # type: ignore[no-untyped-def]
        text  # noqa: B018
        c, k = carray(pointer(counter, uint32), (n, 4)), carray(pointer(key, uint32), (n, 2))
        to = carray(pointer(out, uint32), (n, 4))
        for i in range(n):
            to[i, 0], to[i, 1], to[i, 2], to[i, 3] = philox4x32(c[i, 0], c[i, 1], c[i, 2], c[i, 3], k[i, 0], k[i, 1])

    return step, walk, words_of


_step, _walk, _words_of = _kernels(_text())

# Compiling takes seconds, the first time: no more than is needed, and each kind of arithmetic when it is.
tests_itself = True
_tested: set[bool] = set()


# ---- calls -------------------------------------------------------------------------------------------------


def step(call: Step) -> None:
    chunk = CHUNK if call.draw != "none" else 8 * CHUNK  # without noise there is eight times less to do
    _run(_step, call, chunk)


def walk(call: Walk) -> None:
    times = len(call.keep)
    tiles = max(1, CHUNK // TILE // times)
    _run(_walk, call.first, TILE * tiles, call.keep.ctypes.data, times)


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    _words_of(len(counter), counter.ctypes.data, key.ctypes.data, out.ctypes.data)
    return out


def _run(kernel: Any, call: Step, chunk: int, *first: int) -> None:
    """All parts of a call, shared out among threads by a counter."""
    total, double = call.batch * call.size, _double(call)
    if double not in _tested:
        _tested.add(double)
        self_test("numba", step, "float64" if double else "float32")
    taken, numbers = np.zeros(1, np.int64), _numbers(call, double)

    def work() -> None:
        reals = np.empty((REALS, WIDTH), np.float64 if double else np.float32)
        kernel(*first, reals, np.empty((WORDS, BLOCKS), np.uint32), taken, total, chunk, *numbers)

    def stop() -> None:
        taken[0] = total

    threads.together(work, stop, min(threads.count(), -(-total // chunk)))


def _double(call: Step) -> bool:
    return next(out for out in call.outputs if out is not None).dtype == np.float64


def _numbers(call: Step, double: bool) -> tuple[Any, ...]:
    outputs = [out for out in call.outputs if out is not None]
    rows, present = call.rows.table if double else call.rows.single, call.rows.present
    return (
        call.batch,
        call.size,
        present,
        present | (3 << LOW if present >> LOW & 3 else 0),
        _forms(call),
        rows.ctypes.data,
        call.index.ctypes.data,
        call.segment,
        tuple(map(_address, call.inputs)),
        tuple(0 if a is None else KINDS[a.dtype.name] for a in call.inputs),
        tuple(map(_address, call.outputs)),
        KINDS[outputs[0].dtype.name],
        DRAWS[call.draw],
        int(call.step_by_index),
        int(call.masked),
        _fields(call),
    )


def _forms(call: Step) -> int:
    """Bits of the forms that are wanted: D's where one of the others holds it."""
    if call.masked:
        return 0b0111
    wanted = [o for o, out in enumerate(call.outputs) if out is not None]
    clean = any(call.rows.present >> (AFFINE[o] + 1 + D) & 1 for o in wanted)
    return sum(2 << o for o in wanted) | clean


def _address(array: Array | None) -> int:
    return 0 if array is None else array.ctypes.data


def _fields(call: Step) -> NDArray[np.int64]:
    rows = [_field(noise, call.sample_shape) for noise in call.noise] or [(0,) * LENGTHS]
    longest = max(map(len, rows))
    return np.array([row + (0,) * (longest - len(row)) for row in rows], np.int64)


def _field(noise: Noise, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One row: see KEY0, KEY1, .. above."""
    ids = noise.sample
    sample = (0, ids.ctypes.data) if isinstance(ids, np.ndarray) else (ids, 0)
    name = (noise.seed & 0xFFFFFFFF, noise.seed >> 32, *sample, noise.step, noise.stream)
    full = noise.window_shape
    if full is None:
        return *name, 0, max(1, math.prod(shape)), 0
    strides = [math.prod(full[axis + 1 :]) for axis in range(len(full))]
    start = sum(s * stride for s, stride in zip(noise.window_start, strides, strict=True))
    # A run takes in the trailing axes that the slice covers whole, and one axis more.
    outer = len(full)
    while outer > 0 and (outer == len(full) or shape[outer] == full[outer]):
        outer -= 1
    return *name, start, max(1, math.prod(shape[outer:])), outer, *shape[:outer], *strides[:outer]
