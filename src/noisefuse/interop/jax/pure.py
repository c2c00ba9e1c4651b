# SPDX-License-Identifier: Apache-2.0
"""A call in `jax.numpy` alone, for platforms without our kernels: spec.py on the integers of floats.py.

It corresponds to NumPy's reference backend, on arrays of (batch, elements of a sample). All is traced with 64 bits.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ...backends.reference import combined
from ...call.description import ACCUMULATORS, LOSS_CHUNK
from ...call.packed import DRAWS, FIELD
from ...language.levels import LEVELS
from ...language.noise import SAMPLES
from ...language.rows import AFFINE, X, Z
from .description import FIELDS, IDS, INDEX, LAW, LOSSES, ROWS, START, STEP, WALKS, WEIGHTS, Described
from .floats import FLOAT32, FLOAT64, SPEC, Float, Format, divide, mul, view
from .internals import varying, varying_axes

Numbers: TypeAlias = dict[int, Any]  # operands by role


def outputs(what: Described, *operands: Any) -> list[Any]:
    """Computes the outputs that the handler on CPUs computes."""
    run = partial(_of_one, what)
    if what.repeat:
        axes = tuple(0 if each else None for each in what.several)
        run = jax.vmap(run, in_axes=axes, axis_size=what.repeat)
    return run(*operands)


def _of_one(what: Described, *operands: Any) -> list[Any]:
    by_role, record = dict(zip(what.roles, operands, strict=True)), what.record
    real = FLOAT64 if what.floats == "float64" else FLOAT32
    table = real(_read(by_role[ROWS]))
    values = {slot: real(_read(by_role[slot].reshape(_shape(what)))) for slot in range(Z + 1) if slot in by_role}
    if what.kind == WALKS:
        return [_walked(what, by_role, table, values[X])]
    if record["draw"] == DRAWS["words"]:
        return [_stored(_drawn(what, by_role, real, None), _shape(what), *what.outputs[0])]
    row = _row(what, by_role)
    if record["draw"]:
        values[Z] = _drawn(what, by_role, real, row if record["step_by_index"] else None)
    zero = Float(jnp.zeros(_shape(what), real.word), real)
    loss = what.kind == LOSSES
    wanted = [n < (1 if loss else len(what.outputs)) for n in range(3)]  # outputs are wanted from the first on
    active, masked = int(record["active"]), bool(record["masked"])
    results = combined(SPEC, active, masked, wanted, lambda k: Float(table.bits[row, k], real), values, zero)
    if loss:
        return _losses(what, by_role, Float(jnp.broadcast_to(results[0].bits, _shape(what)), real), row)
    return [_stored(x, _shape(what), *out) for x, out in zip(results, what.outputs, strict=False)]


def _walked(what: Described, operands: Numbers, table: Float, x0: Float) -> Any:
    """Returns the kept times of a random walk, whose state is not rounded to 16 bits."""
    real, keep, ((shape, dtype),) = table.format, np.array(what.keep), what.outputs
    columns = [AFFINE[0] + 1 + slot for slot in (Z, X)]
    begun = varying(jnp.zeros(shape, dtype), varying_axes(x0.bits))

    def at(carried: Any, time: Any) -> Any:
        (x, kept), (t, slot, c) = carried, time
        z = _drawn(what, operands, real, t)
        now = SPEC.affine(False, None, 2, [Float(c[n], real) for n in range(2)], [z, Float(x, real)])
        return (now.bits, kept.at[slot].set(_stored(now, _shape(what), shape[1:], dtype), mode="drop")), None

    slots = np.where(keep < 0, shape[0], keep)
    times = np.arange(len(keep)), slots, table.bits[: len(keep), columns]
    return jax.lax.scan(at, (x0.bits, begun), times)[0][1]


def _shape(what: Described) -> tuple[int, int]:
    return int(what.record["batch"]), int(what.record["size"])


# ---- arrays ------------------------------------------------------------------------------------------------


def _read(x: Any) -> Any:
    """Returns the numbers of an array, of any dtype that a call takes."""
    if x.dtype.name in LEVELS:
        return FLOAT32(x)
    if x.dtype.itemsize > 2:
        return view(x, FLOAT32 if x.dtype == jnp.float32 else FLOAT64)
    widened: Any = SPEC.half_to_float if x.dtype == jnp.float16 else SPEC.bfloat16_to_float
    return widened(view(x, jnp.uint16))


def _stored(x: Float, full: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> Any:
    if dtype in LEVELS:
        stored = SPEC.to_level(x, float(LEVELS[dtype])).astype(dtype)
    elif dtype in ("float32", "float64"):
        stored = view(x, jnp.dtype(dtype))
    else:
        bits = (SPEC.float_to_half if dtype == "float16" else SPEC.float_to_bfloat16)(x)
        stored = view(bits.astype(jnp.uint16), jnp.dtype(dtype))
    return jnp.broadcast_to(stored, full).reshape(shape)


def _row(what: Described, operands: Numbers) -> Any:
    """Returns each element's row, or one for all, or one per sample: rows beyond the table are its first and last."""
    n, period, (batch, size) = operands[ROWS].shape[0], int(what.record["period"]), _shape(what)
    if what.record["by_level"]:
        return operands[X].reshape(batch, size).astype(jnp.int64)
    if INDEX not in operands:
        return np.int64(0)
    index = jnp.clip(operands[INDEX].astype(jnp.int64), 0, n - 1).reshape(-1)
    if period:
        return index.reshape(batch, period)[:, jnp.arange(size) % period]
    if index.size == 1:
        return index[0]
    index = index.reshape(batch, -1)
    return index if index.shape[1] == 1 else jnp.repeat(index, size // index.shape[1], axis=1)


# ---- losses: docs/loss.md ----------------------------------------------------------------------------------


def _losses(what: Described, operands: Numbers, r: Float, row: Any) -> list[Any]:
    """Returns the losses and, if there is a second output, the gradient, from residuals (batch, size)."""
    n, piece, (shape, dtype) = float(what.record["n"]), int(what.record["piece"]), what.outputs[0]
    row = jnp.broadcast_to(row, r.bits.shape)[:, ::piece]
    weights = _doubles(operands[WEIGHTS]).bits[row] if WEIGHTS in operands else None
    sums = _in_order(_in_order(_sums_of_chunks(r, piece)), weights)
    sums = divide(Float(sums if shape else _in_order(sums), FLOAT64), n)
    if LAW in operands:
        law = _doubles(operands[LAW]).bits.reshape(-1, 2)[row[:, 0]]
        sums = mul(sums, Float(law[:, 0], FLOAT64)) + Float(law[:, 1], FLOAT64)
    outputs = [view(sums.to(FLOAT32) if dtype == "float32" else sums, jnp.dtype(dtype))]
    for shape, dtype in what.outputs[1:]:
        factor = divide(mul(Float(weights, FLOAT64), 2.0), n) if weights is not None else FLOAT64(2.0 / n)
        of_element = Float(jnp.repeat(jnp.broadcast_to(r.format(factor).bits, row.shape), piece, axis=1), r.format)
        outputs.append(_stored(mul(of_element, r), r.bits.shape, shape, dtype))
    return outputs


def _sums_of_chunks(r: Float, piece: int) -> Any:
    """Returns sums of chunks, (batch, pieces, chunks), as the bits of float64."""
    batch, size = r.bits.shape
    chunk = min(LOSS_CHUNK, -(-piece // ACCUMULATORS) * ACCUMULATORS)
    bits = jnp.pad(r.bits.reshape(batch, size // piece, piece), ((0, 0), (0, 0), (0, -piece % chunk)))
    groups = jnp.moveaxis(bits.reshape(batch, size // piece, -1, chunk // ACCUMULATORS, ACCUMULATORS), 3, 0)

    def add(total: Any, group: Any) -> Any:
        return SPEC.add_square(Float(total, r.format), Float(group, r.format)).bits, None

    sums, half = jax.lax.scan(add, jnp.zeros_like(groups[0]), groups)[0], ACCUMULATORS
    while half > 1:  # like SPEC.sum_accumulators, but all pairs at once, because XLA compiles each separate pair
        half //= 2
        sums = (Float(sums[..., :half], r.format) + Float(sums[..., half:], r.format)).bits
    return FLOAT64(Float(sums[..., 0], r.format)).bits


def _in_order(terms: Any, weights: Any = None) -> Any:
    """Returns the sums along the last axis, from 0, in float64."""
    if terms.shape[-1] == 1 and weights is None:
        return terms[..., 0]
    of_one = SPEC.add_piece if weights is not None else lambda total, _, term: total + term
    weights = terms if weights is None else weights

    def add(total: Any, term: Any) -> Any:
        return of_one(Float(total, FLOAT64), *(Float(x, FLOAT64) for x in term)).bits, None

    pairs = [jnp.moveaxis(x, -1, 0) for x in (weights, terms)]
    return jax.lax.scan(add, jnp.zeros_like(pairs[1][0]), pairs)[0]


def _doubles(numbers: Any) -> Float:
    """Returns float64 from numbers of any dtype; they are two words if JAX has no float64."""
    if numbers.dtype == jnp.uint32 and numbers.ndim == 2:
        low, high = numbers.astype(jnp.uint64).T
        return Float(low | high << 32, FLOAT64)
    return FLOAT64(numbers if numbers.dtype.kind in "iu" else _read(numbers))


# ---- noise -------------------------------------------------------------------------------------------------


def _drawn(what: Described, operands: Numbers, real: Format, later: Any) -> Float:
    """Returns the noise of all elements, `later` steps after their Noise's step."""
    fields = {name: _field(operands[FIELDS], name) for name in ("seed", "sample", "step", "stream", "start")}
    batch, size = _shape(what)
    step = fields["step"] + operands.get(STEP, jnp.zeros(1)).astype(jnp.uint64).reshape(-1, 1)
    if later is not None:
        step = step + later.astype(jnp.uint64)
    element = _elements(what, operands, fields["start"])
    whole = not what.window and step.shape[-1] == 1
    block = jnp.arange(-(-size // 4))[None] * 4 if whole else element
    number, kind = _samples(operands, fields["sample"], batch), int(what.record["draw"])
    values = _blocks(kind, real, fields["seed"], block, step, number, fields["stream"])
    if whole:
        values = jnp.broadcast_to(values, (batch, *values.shape[1:])).reshape(batch, -1)[:, :size]
    else:
        values = jnp.broadcast_to(values, (batch, size, 4))
        place = jnp.broadcast_to(element & 3, (batch, size))[..., None]
        values = jnp.take_along_axis(values, place, axis=-1)[..., 0]
    return Float(values, real)


def _field(fields: Any, name: str) -> Any:
    """Returns a number of each Noise, (n, 1), from the bytes of their fields."""
    dtype, offset = FIELD.dtype.fields[name][:2]  # type: ignore[index]
    bytes_ = fields.reshape(-1, FIELD.size)[:, offset : offset + dtype.itemsize].astype(jnp.uint64)
    return (bytes_ << np.arange(0, 8 * dtype.itemsize, 8, dtype=np.uint64)).sum(1, keepdims=True, dtype=jnp.uint64)


def _samples(operands: Numbers, first: Any, batch: int) -> Any:
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


def _elements(what: Described, operands: Numbers, start: Any) -> Any:
    """Returns numbers in the field, (1 or batch, size)."""
    place = jnp.arange(int(what.record["size"]))  # NumPy's would be a constant, from which XLA draws while it compiles
    if not what.window:
        return place[None]
    strides = [math.prod(what.window[axis + 1 :]) for axis in range(len(what.window))]
    inside = sum(i * n for i, n in zip(jnp.unravel_index(place, what.sample), strides, strict=True))
    if START in operands:
        start = (operands[START].astype(jnp.int64) * np.array(strides)).sum()[None, None]
    return start.astype(jnp.int64) + inside


def _blocks(draw: int, real: Format, seed: Any, element: Any, step: Any, sample: Any, stream: Any) -> Any:
    """Returns the bits of the four values of the blocks that hold these elements, along one more axis."""
    key = seed & 0xFFFFFFFF, seed >> 32

    def words(low: int) -> Any:
        return SPEC.philox4x32(*SPEC.counter(element, step, sample, stream, low), *key)

    def pairs(low: int) -> tuple[Any, Any]:
        w = words(low)
        return jnp.stack(w[::2], -1), jnp.stack(w[1::2], -1)

    if draw == DRAWS["words"]:
        return jnp.stack(words(0), -1)
    wide = real is FLOAT64
    first, second = zip(pairs(0), pairs(1), strict=True) if wide else zip(pairs(0), strict=True)
    if draw == DRAWS["uniform"]:
        uniform = SPEC.uniform64 if wide else SPEC.uniform32
        values = uniform(*first), uniform(*second)
    else:
        values = (SPEC.normal_pair64 if wide else SPEC.normal_pair32)(*first, *second)
    of_pairs = jnp.stack([x.bits for x in values], -1)
    return of_pairs.reshape(*of_pairs.shape[:-2], 4)
