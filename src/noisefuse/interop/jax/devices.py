# SPDX-License-Identifier: Apache-2.0
"""A call on an NVIDIA device: the kernel of rows of backends/triton, which jax-triton puts into JAX's programs.

JAX's programs have all numbers as operands. So the names of noise are an array of the device, one for each sample.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...call.description import window_runs
from ...call.packed import DRAWS, FIELD
from ...language.levels import LEVELS, levels_of
from ...language.noise import SAMPLES, Noise
from ...language.rows import D, Z
from .description import FIELDS, IDS, INDEX, ROWS, START, STEP, STEP_CALLS, Described

DRAWN = {code: name for name, code in DRAWS.items()}


def has(what: Described) -> bool:
    """Tells whether the kernel does this call: rows, with noise that is drawn for them or given."""
    record = what.record
    return what.kind == STEP_CALLS and not record["by_level"] and DRAWN[int(record["draw"])] != "words"


def outputs(what: Described, *operands: Any) -> list[Any]:
    """Computes the outputs of a call, on the device whose program this is."""
    if not what.repeat:
        return _of_one(what, *operands)
    each = [x if several else jnp.broadcast_to(x, (what.repeat, *x.shape))
            for x, several in zip(operands, what.several, strict=True)]  # fmt: skip
    return jax.lax.map(lambda given: _of_one(what, *given), tuple(each))


def _of_one(what: Described, *operands: Any) -> list[Any]:
    try:
        jax_triton: Any = import_module("jax_triton")
    except ImportError as error:
        raise ImportError(f"JAX's arrays on a GPU need jax-triton: pip install jax-triton ({error})") from error
    from ...backends.triton import kernels

    by_role, record = dict(zip(what.roles, operands, strict=True)), what.record
    batch, size, period = int(record["batch"]), int(record["size"]), int(record["period"])
    span = size if period else min(size, int(record["segment"]))
    double, draw = what.floats == "float64", DRAWN[int(record["draw"])]
    table = by_role[ROWS].astype(jnp.float64 if double else jnp.float32)
    index = by_role.get(INDEX, jnp.zeros(1, jnp.int64)).astype(jnp.int64).reshape(-1)
    of_row = batch * size // span // (1 if period else index.size) if index.size > 1 else batch * size // span
    names, run = table, 1
    lengths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    if draw != "none":
        names = _names(what, by_role, batch)
        if what.window:
            _, run, lengths, strides = window_runs(Noise(0).window(what.window, [0] * len(what.window)), what.sample)
    axes = jnp.array((*lengths, *strides) or (0,), jnp.int64)
    arrays = [by_role[slot].reshape(-1) if slot in by_role else table for slot in range(Z + 1) if slot != D]
    given = sum(1 << slot for slot in range(Z + 1) if slot in by_role)
    shapes = [jax.ShapeDtypeStruct((math.prod(shape),), jnp.dtype(dtype)) for shape, dtype in what.outputs]
    absent = dict.fromkeys(("aux1", "aux2")[len(shapes) - 1 :])
    block = kernels.block_of(span, kernels.MOST // (1 + double))
    tiles = -(-span // block)
    levels = levels_of(np.dtype(what.outputs[0][1])) if what.outputs[0][1] in LEVELS else None
    results = jax_triton.triton_call(
        table, jnp.clip(index, 0, table.shape[0] - 1), *arrays, names, axes,
        kernel=kernels.affine, out_shape=tuple(shapes), grid=(batch * size // span * tiles,), num_warps=4,
        enable_fp_fusion=False, **absent, n_rows=table.shape[0], row=0, of_row=max(1, of_row), period=max(1, period),
        seed=0, sample=0, step=0, stream=0, start=0, samples=None, counter=None, run=run, span=span,
        parts=size // span, tiles=tiles, GIVEN=given, ACTIVE=int(record["active"]), DRAW=draw, DOUBLE=double,
        BY_INDEX=bool(record["step_by_index"]), BY_PERIOD=period > 0, MASKED=bool(record["masked"]),
        LEVELS=LEVELS[levels] if levels else 0, AXES=len(lengths), BLOCK=block,
        FOURS=(span == size or span % 4 == 0) and not what.window and not (period and bool(record["step_by_index"])),
    )  # fmt: skip
    return [out.reshape(shape) for out, (shape, _) in zip(results, what.outputs, strict=False)]


def _names(what: Described, operands: dict[int, Any], batch: int) -> Any:
    """Returns the numbers of each sample's noise: seed, sample, step, stream, and the window's first element."""
    fields = {name: field(operands[FIELDS], name) for name in ("seed", "sample", "step", "stream", "start")}
    step = fields["step"] + operands.get(STEP, jnp.zeros(1)).astype(jnp.uint64).reshape(-1, 1)
    start = fields["start"]
    if START in operands:
        strides = [math.prod(what.window[axis + 1 :]) for axis in range(len(what.window))]
        start = (operands[START].astype(jnp.int64) * np.array(strides)).sum()[None, None]
    columns = fields["seed"], samples(operands, fields["sample"], batch), step, fields["stream"], start
    return jnp.concatenate([jnp.broadcast_to(x.astype(jnp.int64), (batch, 1)) for x in columns], 1)


def field(fields: Any, name: str) -> Any:
    """Returns a number of each Noise, (n, 1), from the bytes of their fields."""
    dtype, offset = FIELD.dtype.fields[name][:2]  # type: ignore[index]
    bytes_ = fields.reshape(-1, FIELD.size)[:, offset : offset + dtype.itemsize].astype(jnp.uint64)
    return (bytes_ << np.arange(0, 8 * dtype.itemsize, 8, dtype=np.uint64)).sum(1, keepdims=True, dtype=jnp.uint64)


def samples(operands: dict[int, Any], first: Any, batch: int) -> Any:
    """Returns the id of each sample, (batch, 1)."""
    ids, each = operands.get(IDS), len(first) > 1
    if ids is None:
        ids = first
    elif ids.dtype == jnp.uint32 and ids.ndim == 2:  # ids in two words
        ids = (ids[:, 0].astype(jnp.uint64) | ids[:, 1].astype(jnp.uint64) << 32)[:, None]
        each = True
    else:
        each = each or ids.ndim > 0
        ids = ids.astype(jnp.uint64).reshape(-1, 1)
    return (ids if each else ids + np.arange(batch, dtype=np.uint64)[:, None]) % SAMPLES
