# SPDX-License-Identifier: Apache-2.0
"""The arrays of a call: tiles brought into the arithmetic's type, and results rounded to the array's."""

from __future__ import annotations

from typing import Any

from numpy import float32, uint8, uint16

from ..spec import Integers
from .device import SPEC, inlined
from .internals import each
from .pointers import part, pointer, prefetch
from .program import *

half_to_float: Any = SPEC.half_to_float
float_to_half: Any = SPEC.float_to_half
bfloat16_to_float: Any = SPEC.bfloat16_to_float
float_to_bfloat16: Any = SPEC.float_to_bfloat16
to_level: Any = SPEC.to_level


@inlined
def ask_for(m: Any, at: int, quarters: Integers) -> None:
    """Prefetches the lines of some quarters of a tile, from `at` on: all at once would block the line-fill buffers."""
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
    """Loads n elements of an array, from `at` on, and converts them to the arithmetic's type."""
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
    """Brings n elements of all inputs, from `at` on, into the tile, or notes where they are; and where outputs are."""
    for a in range(m[ARRAYS]):
        array = array_of(m, a)
        if array[ARRAY_KIND] == IN_PLACE:
            places[array[ARRAY_ROW]] = array[ARRAY_PLACE] + array[ARRAY_BYTES] * at
        elif others is not None and a < m[INPUTS]:
            load(part(tile, WIDTH * array[ARRAY_ROW]), array, at, n)


@inlined
def put(m: Any, at: int, n: int, tile: Any, others: Any) -> None:
    """Stores n elements of all outputs, from `at` on, that are not there yet."""
    for a in range(m[INPUTS], m[ARRAYS]):
        array = array_of(m, a)
        if array[ARRAY_KIND] != IN_PLACE:
            store(part(tile, WIDTH * array[ARRAY_ROW]), array, others, at, n)
