# SPDX-License-Identifier: Apache-2.0
"""Augmentation: functions of `augment`, as rows or in host memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...ground.checks import is_tracer
from ...language.levels import LEVELS, level_bounds
from ...language.rows import Rows, X, Z
from . import eager
from .traced import Named, check_none, remember, run, stand_in_for


def augmented(function: Any, x: Any, noise: Any, *, out: Any = None, **options: Any) -> Any:
    """Runs a function of `augment`: in host memory, or as one operation of a traced program."""
    check_none(out=out)
    if eager.is_concrete(x) and (row := nf.augment.row_inside(function, options)) is not None:
        result = _by_row(function, row, x, noise, options)
        if result is not NotImplemented:
            return result
    named = Named(noise)
    if named.start is None and not any(map(is_tracer, (x, *jax.tree.leaves(noise)))):
        return jax.tree.map(jnp.asarray, function(np.asarray(x), noise, **options))
    inside = nf.augment.call_inside(function, stand_in_for("x", x), named.known, **options)
    if inside is None:
        return _called_back(partial(function, **options), x, noise, named)
    call, bounds = inside
    result = run(call, {X: x, Z: named.array}, named, whole=True)[0]
    return result if bounds is None else _clipped(result, *bounds)


def _by_row(function: Any, row: Rows, x: Any, noise: Any, options: dict[str, Any]) -> Any:
    """Runs the function as a program of one row, if such calls are often made: its compilation takes as long as a
    thousand."""
    common = eager.Given(row.active, 0, 1)
    like = lambda: (common, -1, options["dtype"], options["layout"], options["batched"])  # noqa: E731
    table, stream, *more = like()
    signature = eager.signature(table, stream, 0, noise, (x,), *more)
    outputs = eager.again(signature, 0, noise, (x,), row)
    if outputs is not NotImplemented or not eager.is_often(signature):
        return outputs if outputs is NotImplemented else outputs[0]
    named = Named(noise)
    inside = nf.augment.call_inside(function, stand_in_for("x", x), named.known, **options)
    assert inside is not None
    call, _ = inside
    if call.arithmetic == np.float64 and not jax.config.jax_enable_x64:
        return NotImplemented
    return run(call, {X: x}, named, whole=True, remember=partial(remember, like, 0, noise, {X: x}))[0]


def _called_back(function: Any, x: Any, noise: Any, named: Named) -> Any:
    """Calls Python when the program runs, for functions that are no row, or whose numbers depend on x."""
    if named.start is not None:
        raise NotImplementedError("noise: expected a window whose start is known, as this is computed in host memory")
    like = function(stand_in_for("x", x), named.known)

    def call(x: Any, noise: Any) -> Any:
        return function(np.asarray(x), noise if named.array is None else np.asarray(noise))

    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    return jax.pure_callback(call, shape, x, noise, vmap_method="sequential")


def _clipped(x: Any, low: float, high: float) -> Any:
    """Clips floats by the kernel, because XLA's comparisons take subnormal numbers for 0, and integers by XLA."""
    if x.dtype.name in LEVELS:
        low, high = level_bounds(x.dtype.name, (low, high))
        return jnp.clip(x, x.dtype.type(low), x.dtype.type(high))
    low, high = (float(x.dtype.type(bound)) for bound in (low, high))
    row = nf.Row(clean=nf.tableau.x, lo=low, hi=high, out=nf.tableau.D)
    return nf.update(nf.Tableau([row]), 0, x)
