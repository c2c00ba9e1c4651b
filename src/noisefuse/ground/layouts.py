# SPDX-License-Identifier: Apache-2.0
"""Copies between layouts of memory. The C++ extension makes them tile by tile: channels_last takes a quarter of NumPy's
and torch's time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

PIECE = 1 << 20  # NumPy needs some milliseconds for so many elements; Ctrl-C is heard between two pieces


def pieces(shape: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
    """Yields indices that cut an array of this shape into pieces of at most `PIECE` elements."""
    size = math.prod(shape)
    if size <= PIECE:
        yield ()
    elif rows := PIECE * shape[0] // size:
        yield from ((slice(begin, begin + rows),) for begin in range(0, shape[0], rows))
    else:
        yield from ((row, *part) for row in range(shape[0]) for part in pieces(shape[1:]))


def copy(x: Any, dtype: Any, axes: Sequence[int]) -> Any:
    """Returns a copy of NumPy's x, of its shape, in this dtype. Its memory has these axes, from the slowest one."""
    empty, copied = _native()
    made = empty(tuple(x.shape[axis] for axis in axes), dtype).transpose(sorted(range(x.ndim), key=axes.__getitem__))
    if not copied(x, made):
        as_it_lies = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
        source, target = x.transpose(as_it_lies), made.transpose(as_it_lies)
        for part in pieces(source.shape):
            target[part] = source[part]
    return made


@cache
def _native() -> tuple[Callable[..., Any], Callable[[Any, Any], bool]]:
    """Returns the extension's `empty`, and its copy between two arrays, which tells whether it copied: it does not know
    all dtypes, and converts none."""
    try:
        from noisefuse._native import copy, empty
    except ImportError:  # it was not built
        return np.empty, lambda source, target: False
    return empty, copy
