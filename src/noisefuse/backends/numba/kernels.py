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
from numba import config, njit
from numpy import int32, int64, uint32
from numpy.typing import NDArray

from ...call import description
from ...call import packed as calls
from ...language import levels
from ...language import rows as layout
from ...language.rows import AFFINE, COLUMNS, X, Z
from .. import spec
from . import arrays, categories, device, internals, loss, noise, pointers, program, rows
from .arrays import ask_for, bring, copy, load, put, store
from .categories import exp64, minus_two_ln64, score_tokens, sum_terms, write_terms
from .device import fma, pasted
from .internals import each, whole_vectors
from .loss import sum_pieces, sum_squares
from .noise import fill_noise, philox4x32, place_of_noise, plan
from .pointers import NEAREST, address, float_mode, least, part, pointer, take
from .program import *
from .rows import apply, become, noised, row_for_each, select_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from numba.core.dispatcher import Dispatcher

    from ..spec import Bools, Integers

    F = TypeVar("F", bound=Callable[..., object])

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: Numba compiles nothing")


# Threads share the elements of a call by a number behind it, NEXT: each takes the next `chunk`, until `end` is reached
# or it has done `turns` of them.
# `others` is None where all arrays are of the arithmetic's type: then nothing is compiled that converts them.


def _version() -> str:
    """Returns a hash of every compiled source file, a part of the cache's key."""
    own = sys.modules[__name__], arrays, categories, device, internals, loss, noise, pointers, program, rows
    modules = *own, layout, levels, description, calls, spec
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()[:16]


VERSION = _version()


def compiled(function: F) -> Dispatcher[F]:
    """Compiles a kernel, whose name gets the version: Numba's cache on disk looks at no function that another calls."""
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
    """Writes the initial contents of the workspace; `own` is the dtype of the arithmetic."""
    m, places = program_of(words), pointer(part(words, PLACES), int64)
    list_arrays(p, m, own)
    list_combinations(p, m)
    for row in range(ROWS):
        places[row] = address(part(tile, WIDTH * row))
    for i in range(WIDTH):
        tile[WIDTH * ZERO + i], tile[WIDTH * MINUS_ZERO + i] = 0.0, -0.0


@pasted
def compute_tiles(
    p: Any, w: Any, tile: Any, others: Any, at: int, end: int, element: Integers, runs: int, draws: bool,
    at_once: Bools, one_row: Bools,
) -> None:  # fmt: skip
    """Computes elements at .. end - 1: whole tiles of one row and one run, or what one tile can hold."""
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
                become(p, at, n, pointer(places[VALUES + Z], uint32), pointer(places[RESULT], tile))
            else:
                apply(m, masked, n, places, tile, one_row)
            ask_for(m, at + TILE + 3 * QUARTER, int64(1))
        put(m, at, n, tile, others)
        at, element = at + n, element + n


@pasted
def compute_chunk(p: Any, w: Any, tile: Any, others: Any, at: int, end: int, at_once: bool) -> None:
    """Computes elements at .. end - 1. at_once: whether a row may be added up where its normal is made."""
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
    """Walks a tile of x0 through all times, and returns how many elements it has."""
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
def philox(n: int, counter: int, key: int, out: int) -> None:
    for i in range(n):
        c, k = pointer(counter + 16 * i, uint32), pointer(key + 8 * i, uint32)
        to = pointer(out + 16 * i, uint32)
        to[0], to[1], to[2], to[3] = philox4x32(c[0], c[1], c[2], c[3], k[0], k[1])


@compiled
def functions(x: NDArray[np.float64], exp: NDArray[np.float64], minus_two_ln: NDArray[np.float64]) -> None:
    for i in range(len(x)):
        exp[i], minus_two_ln[i] = exp64(x[i]), minus_two_ln64(x[i])


@compiled
def fmas(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    for i in range(len(out)):
        out[i] = fma(a[i], b[i], c[i])


# The caller of these, and of the two above, sets the floating-point mode.
squares: Any = compiled(sum_squares)
pieces: Any = compiled(sum_pieces)
scores: Any = compiled(score_tokens)
terms: Any = compiled(write_terms)
term_sums: Any = compiled(sum_terms)
