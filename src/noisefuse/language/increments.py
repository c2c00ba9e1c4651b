# SPDX-License-Identifier: Apache-2.0
"""Brownian motion over a time interval as a sum of keyed normals: which normals, and their coefficients.

On a span W is the sum of Levy and Ciesielski (Ciesielski 1961; Karatzas & Shreve, section 2.3), a binary tree:

    W(u) = u z_0 + sum over levels l = 1 .. 24 of tent_l(u) z_n,    n = 2^(l-1) + floor(2^(l-1) u),    0 <= u <= 1

At u, only one tent of each level differs from 0. On a grid of times, W is the sum of independent pieces.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from typing import TypeAlias

__all__ = ["CELLS", "RUNS", "Terms", "grid_terms", "tree_terms"]

LEVELS = 24
CELLS = 1 << LEVELS  # the smallest intervals of a span, and the most of a grid
RUNS = 128  # the steps of a noise that have a path of their own: 7 bits, and one bit for tree or grid
_OF_GRIDS = 1 << 31

Terms: TypeAlias = tuple[tuple[int, float], ...]
"""Pairs (word, coefficient), in the order of addition: the normal of step `word` times the coefficient. The squares of
the coefficients add to 1."""


@lru_cache(maxsize=1024)
def tree_terms(run: int, t0: float, t1: float, span: tuple[float, float]) -> Terms:
    """Returns the increment from t0 to t1, over sqrt(|t1 - t0|), on the tree of the span. The finest level comes first.

    ValueError: a time lies outside the span, or the times are less than 2^-24 of it apart.
    """
    low, high = span
    u0, u1 = (_cell(name, t, low, high) for name, t in (("t0", t0), ("t1", t1)))
    if u0 == u1:
        raise ValueError(
            f"interval: t0 = {t0!r} and t1 = {t1!r} are one time, as times are rounded to 2^-24 of the span {span}"
        )
    sign, (u0, u1) = (1, (u0, u1)) if u0 < u1 else (-1, (u1, u0))  # the way back has the same sums, negated
    length = u1 - u0
    first = run << LEVELS
    terms = []
    for level in range(LEVELS, 0, -1):
        width = CELLS >> (level - 1)  # the width of this level's tents in cells: all numbers but the roots are integers
        (n0, r0), (n1, r1) = divmod(u0, width), divmod(u1, width)
        h0, h1 = min(r0, width - r0), min(r1, width - r1)
        heights = ((n0, -h0), (n1, h1)) if n0 != n1 else ((n0, h1 - h0),)
        if h0 or h1:
            root = sign * math.sqrt(length * width)  # the root of an integer below 2^53
            node = first + (1 << (level - 1))
            terms += [(node + n, height / root) for n, height in heights if height]
    return (*terms, (first, length / (sign * math.sqrt(length * CELLS))))


@lru_cache(maxsize=1024)
def grid_terms(run: int, t0: float, t1: float, grid: tuple[float, ...]) -> Terms:
    """Returns the same on a grid, whose pieces sqrt(t_(j+1) - t_j) z_j are added in order over the interval.

    ValueError: a time is not on the grid, to 2^-24 of its length, or both times are the same.
    """
    i0, i1 = (_place(name, t, grid) for name, t in (("t0", t0), ("t1", t1)))
    if i0 == i1:
        raise ValueError(f"interval: t0 = {t0!r} and t1 = {t1!r} are one time of the grid")
    sign = 1 if i1 > i0 else -1
    i0, i1 = sorted((i0, i1))
    length = grid[i1] - grid[i0]
    first = _OF_GRIDS + (run << LEVELS)
    return tuple((first + j, sign * math.sqrt((grid[j + 1] - grid[j]) / length)) for j in range(i0, i1))


def _cell(name: str, t: float, low: float, high: float) -> int:
    if not low <= t <= high:
        raise ValueError(f"interval: {name} = {t!r} lies outside of the span from {low!r} to {high!r}")
    return round((t - low) / (high - low) * CELLS)  # to nearest, ties to even


def _place(name: str, t: float, grid: tuple[float, ...]) -> int:
    after = bisect_left(grid, t)
    nearest = min(range(max(0, after - 1), min(after + 1, len(grid))), key=lambda i: abs(grid[i] - t))
    if not abs(grid[nearest] - t) <= (grid[-1] - grid[0]) / CELLS:
        raise ValueError(f"interval: {name} = {t!r} is not a time of the grid, from {grid[0]!r} to {grid[-1]!r}")
    return nearest
