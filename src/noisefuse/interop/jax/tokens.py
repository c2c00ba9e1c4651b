# SPDX-License-Identifier: Apache-2.0
"""Masked tokens in programs, and what Python's functions of times give there."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...ground.checks import is_tracer
from ...language.noise import MASKS
from ...operations.words import drawing
from ...tokens.forward import names_for
from .traced import NO_TIME, Named, check_none, refusing, run, stand_in_for, tracers_of


def on_host(function: Any, argument: Any, shape: tuple[int, ...], n: int | None = None) -> Any:
    """Calls Python when the program runs. It computes in float64, which is rounded once where JAX has none."""
    kind = jax.dtypes.canonicalize_dtype(np.float64)
    of_one = jax.ShapeDtypeStruct(shape, kind)

    def call(argument: Any) -> Any:
        values = function(argument if isinstance(argument, nf.Noise) else np.asarray(argument))
        return jax.tree.map(lambda x: np.asarray(x, kind), values)

    if not isinstance(argument, nf.Noise) and argument.dtype.itemsize < 4:
        argument = argument.astype(jnp.float32 if jnp.issubdtype(argument.dtype, jnp.floating) else jnp.int32)
    if not isinstance(argument, nf.Noise):
        argument = refusing(argument, NO_TIME)
    values = jax.pure_callback(call, of_one if n is None else (of_one,) * n, argument, vmap_method="sequential")
    return jax.lax.optimization_barrier(values)  # see `traced.rows_at_times`


def q_mask(
    ids: Any, p: Any, noise: Any, mask_id: Any, *, where: Any, block: Any, lengths: Any, complement: bool,
    batched: bool, out: Any,
) -> Any:  # fmt: skip
    """Draws words by the one operation of all calls, and compares them in the program."""
    check_none(out=out)
    named = Named(noise)
    numbers: Any = {"p": p, "where": where, "lengths": lengths}
    options: Any = {"block": block, "complement": complement, "batched": batched}
    if not any(map(is_tracer, (ids, *numbers.values(), *tracers_of(noise)))):
        on_host: Any = {name: np.asarray(x) if isinstance(x, jax.Array) else x for name, x in numbers.items()}
        pair: Any = nf.q_mask(np.asarray(ids), noise=noise, mask_id=mask_id, **on_host, **options)
        return jnp.asarray(pair[0]), jnp.asarray(pair[1])
    known: Any = {name: np.zeros(x.shape, x.dtype) if isinstance(x, jax.Array) else x for name, x in numbers.items()}
    if isinstance(p, jax.Array):  # of any dtype
        known["p"] = np.zeros(p.shape)
    nf.q_mask(stand_in_for("ids", ids), noise=named.known, mask_id=mask_id, **known, **options)
    shape = ids.shape if batched else (1, *ids.shape)
    if math.prod(shape) == 0:
        return ids, jnp.zeros(ids.shape, bool)
    call = drawing(shape, names_for(named.known, shape, MASKS), np.empty(shape, np.float32))
    words = jax.lax.bitcast_convert_type(run(call, {}, named)[0], jnp.uint32).reshape(ids.shape)
    every, count = _counts(p, ids.shape, block, batched)
    masked = (every | (words < count)) != complement
    if where is not None:
        masked &= where
    if lengths is not None:
        place = jnp.arange(math.prod(shape[1:])).reshape(shape[1:])
        masked &= place < (_spread(jnp.asarray(lengths), ids.shape) if batched else lengths)
    return jnp.where(masked, jnp.asarray(mask_id, ids.dtype), ids), masked


def _counts(p: Any, shape: tuple[int, ...], block: Any, batched: bool) -> tuple[Any, Any]:
    """Returns where all are masked, and rint(2^32 p), below which a word masks, for each token."""
    of = jnp if isinstance(p, jax.Array) else np
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32)) if of is jnp else np.asarray(p, np.float64)
    scaled = of.rint(p * p.dtype.type(2.0**32))
    every = scaled >= 2.0**32
    counts = every, of.where(every, 0, scaled).astype(np.uint32)
    if block is not None:
        sample = shape[batched:]
        length = math.prod(sample)
        size = min(block, max(length, 1))
        return tuple(of.repeat(x, size, -1)[..., :length].reshape(shape) for x in counts)
    return tuple(_spread(x, shape) for x in counts)


def _spread(numbers: Any, shape: tuple[int, ...]) -> Any:
    """Returns numbers of the first axes as an array that broadcasts to this shape."""
    return numbers.reshape(numbers.shape + (1,) * (len(shape) - numbers.ndim))
