# SPDX-License-Identifier: Apache-2.0
"""Inpainting: the known part of x is written into x at each row's noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arguments.arrays import is_lazy, is_written
from ..arguments.types import Array
from ..ground.checks import is_tracer
from ..ground.libraries import check_plain, library_for, library_of
from ..language.noise import START, are_names
from ..language.tableau import Tableau
from ..operations.update import update
from .arrays import as_mask, drawn_for, told


def keeper(
    levels: Callable[[], Tableau], mask: Any, known: Any, x: Array, noise: Any, log_probs: bool, out: Array | None
) -> Callable[..., Array] | None:
    """Returns a function that writes the known part into x at row i's noise level or, after the last row, unchanged.

    levels: It makes the rows that bring x0 to each noise level, or raises their error.
    """
    if mask is None and known is None:
        return None
    if mask is None or known is None:
        raise TypeError("mask, known: expected both of them, or neither")
    if log_probs or not are_names(noise):
        raise TypeError("mask: expected a Noise, or a list of them, and no log_probs with it")
    for name, given in (("mask", mask), ("known", known)):
        check_plain(name, given)
    if getattr(known, "shape", None) != x.shape or library_of(known) is not library_of(x) or known.dtype != x.dtype:
        raise ValueError(f"known: expected an array like x, {told(x)}, got {told(known)}")
    if out is not None and (getattr(out, "shape", None) != x.shape or out.dtype != x.dtype or not is_written(x)):
        raise ValueError(f"out: with a mask expected {told(x)}, which can be written to, got {told(out)}")
    table = levels()
    free = as_mask(mask, x)
    kept, sampled = free == 0, free == 1
    soft = is_tracer(free) or is_lazy(free) or not bool((kept | sampled).all())
    where = library_for(x).where
    z = drawn_for(noise, 0, START, x)
    partly = np.flatnonzero(~(kept | sampled)) if isinstance(free, np.ndarray) else None
    if partly is not None and 4 * len(partly) > free.size:
        partly = None

    def keep(x: Array, i: int, out: Array | None = None) -> Array:
        noised = known if i == len(table) else update(table, i, known, noise=z)
        if partly is not None and noised is not known:
            share = np.take(free, partly)
            noised.reshape(-1)[partly] = share * np.take(x, partly) + (1 - share) * np.take(noised, partly)
            np.copyto(noised, x, where=sampled)  # half the time of where, which allocates an array
            mixed = noised
        else:
            mixed = where(kept, noised, where(sampled, x, free * x + (1 - free) * noised) if soft else x)
        if out is None:
            return mixed
        out[...] = mixed
        return out

    return keep
