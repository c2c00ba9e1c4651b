# SPDX-License-Identifier: Apache-2.0
"""Rows: the coefficients of each element of a tile, and the linear combinations that they make."""

from __future__ import annotations

from typing import Any

from numpy import int32, int64, uint8, uint32

from ...language.rows import COLUMNS, HIGH, LOW, TIMES_CLEAN, TIMES_ROOT, D, Z
from ..spec import Integers
from .device import SPEC, fma, inlined, mul
from .internals import each
from .pointers import address, least, part, pointer
from .program import *

clamp: Any = SPEC.clamp
within: Any = SPEC.within
times: Any = SPEC.times
times_root: Any = SPEC.times_root
transition: Any = SPEC.transition


@inlined
def fill(i: int, to: Any, value: float) -> None:
    to[i] = value


@inlined
def row_for_each(p: Any) -> Any:
    return (p[CALL_PERIOD] > 0) | (pointer(p, int32)[CALL_BY_LEVEL] > 0)


@inlined
def row_of_element(p: Any, at: int) -> Any:
    """Returns the row of an element, in a call where each element has its own."""
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
    """Writes coefficients for each of n elements from `at` on. filled: the row of which the tile is full, or -1."""
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
    """Writes noise * D, or noise * sqrt(D), to the tile: the input may be the caller's memory."""
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
    """Computes a row's linear combinations, spec.affine: two terms at a time if all elements have one row."""
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
    """Turns n bytes from `at` on into others. Without tables the words' bits are the result."""
    if p[CALL_TRANSITIONS] == 0:
        bits = pointer(address(to), uint32)
        for k in range(n):
            bits[k] = words[k]
        return
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
