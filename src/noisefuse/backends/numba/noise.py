# SPDX-License-Identifier: Apache-2.0
"""The noise of a tile: counters and runs, words, and what is made of them."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload
from numpy import int32, int64, uint32, uint64

from ...language.rows import Z
from ..spec import Integers
from .arrays import copy
from .device import OPTIONS, SPEC, fma, inlined
from .internals import each
from .pointers import least, part, pointer
from .program import *

philox4x32: Any = SPEC.philox4x32
join: Any = SPEC.join
normal_pair32: Any = SPEC.normal_pair32
normal_pair64: Any = SPEC.normal_pair64
uniform32: Any = SPEC.uniform32
uniform64: Any = SPEC.uniform64


@inlined
def locate(field: Any, place: int) -> tuple[int, int]:
    """Returns the element of the field at this place of the sample, and how many from there on are in one run."""
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
    """Writes counters, key and runs of the next elements, from `at` on, and returns how many (elements, runs) they are.

    They are whole tiles if the next `alike` elements have them in one run; or as many of one seed as a tile holds.
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
    """Writes the words of the next counters, `later` steps after theirs.

    If there is one run, its counters are numbered on from `block`, and share all else, `run`.
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
    """Copies the runs, one after another, to the row of slot Z."""
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
    """Adds up rows of a normal and one more term, from element `first` of a tile on."""
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
    """Returns where in the tile the noise of the planned elements begins."""
    return BLOCK_VALUES * WIDTH + skip if runs == 1 else (VALUES + Z) * WIDTH


def fill_noise(
    p: Any, run: Any, block: Any, later: Any, words: Any, tile: Any, runs: int, size: Any, at_once: bool
) -> None:
    """Draws the noise of the planned elements, of the tile's type, in whole blocks; several runs are packed, too.

    If there is one run, its blocks are made from `block` on, up to that of element `size`. at_once: in float32, rows of
    a normal and one more term are added up where the normal is made, in place of the noise.
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
