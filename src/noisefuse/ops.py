# SPDX-License-Identifier: Apache-2.0
"""The array API: every operation is one row of numbers, applied to every element by one kernel.

Arguments are checked here, once; backends trust their callers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import backends
from .arrays import (
    FLOATS,
    Array,
    as_array,
    batch_shape,
    check_overlap,
    contiguous,
    count,
    float_dtype,
    output,
)
from .backends.call import AFFINE, CLEAN, COLUMNS, M1, M2, PAST1, Step, Walk, X, Z
from .noise import ELEMENTS, FIELD, SAMPLER, SAMPLES, STEPS, UNIFORM, WALK, Noise
from .schedule import Schedule
from .tableau import Tableau

Target: TypeAlias = Literal["epsilon", "v", "velocity", "sample"]
NoiseLike: TypeAlias = Noise | Sequence[Noise] | Array
Draw: TypeAlias = Literal["none", "normal", "uniform"]

# Columns of the row (tableau.py): k, x and z of the first output and of the second.
OUT_K, AUX_K = AFFINE[0], AFFINE[1]
OUT_X, OUT_Z, AUX_X, AUX_Z = OUT_K + 1 + X, OUT_K + 1 + Z, AUX_K + 1 + X, AUX_K + 1 + Z


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011): the raw words of the generator, in Random123's order.

    Args:
        counter: uint32 (..., 4). key: uint32 (..., 2); their leading shapes broadcast.

    Returns:
        uint32 (..., 4).
    """
    c, k = _words("counter", counter, 4), _words("key", key, 2)
    shape = np.broadcast_shapes(c.shape[:-1], k.shape[:-1])
    c = np.ascontiguousarray(np.broadcast_to(c, (*shape, 4))).reshape(-1, 4)
    k = np.ascontiguousarray(np.broadcast_to(k, (*shape, 2))).reshape(-1, 2)
    words: NDArray[np.uint32] = backends.current().philox(c, k)
    return words.reshape(*shape, 4)


def randn(
    shape: int | Sequence[int],
    noise: Noise | Sequence[Noise] | int,
    *,
    dtype: DTypeLike = "float32",
    batched: bool = True,
    out: Array | None = None,
) -> Array:
    """Standard normals: the field that `noise` names (docs/noise.md).

    Args:
        shape: of the result; axis 0 is the batch, row b the sample `noise.sample + b`.
        noise: Noise, a list of one Noise for each row, or an int seed.
        dtype: float32, float64 (the same field with more digits), float16, bfloat16 (float32's values, rounded).
        batched: False makes the whole array one sample.
        out: array of this shape and dtype to write to, C-contiguous.

    Source: Box & Muller (1958) on Philox4x32-10; radius within 2.5 ulp, cos and sin within 2^-22 (float32).
    """
    return _random("normal", shape, noise, FIELD, FLOATS, dtype, batched, out)


def uniform(
    shape: int | Sequence[int],
    noise: Noise | Sequence[Noise] | int,
    *,
    dtype: DTypeLike = "float32",
    batched: bool = True,
    out: Array | None = None,
) -> Array:
    """Uniforms in (0, 1), never 0 or 1: as `randn`, on stream 7 unless the noise names another than 0.

    float32: (floor(w / 2^9) + 1/2) / 2^23 of the word w; float64: the same field with 52 bits. Other dtypes could not
    keep 1 out: TypeError.
    """
    return _random("uniform", shape, noise, UNIFORM, ("float32", "float64"), dtype, batched, out)


@overload
def q_sample(
    x0: Array, t: ArrayLike, schedule: Schedule, noise: NoiseLike, *, target: None = None,
    scale: float | None = None, offset: float | None = None, dtype: DTypeLike | None = None, batched: bool = True,
    out: Array | None = None, target_out: None = None,
) -> Array: ...  # fmt: skip
@overload
def q_sample(
    x0: Array, t: ArrayLike, schedule: Schedule, noise: NoiseLike, *, target: Target,
    scale: float | None = None, offset: float | None = None, dtype: DTypeLike | None = None, batched: bool = True,
    out: Array | None = None, target_out: Array | None = None,
) -> tuple[Array, Array]: ...  # fmt: skip
def q_sample(
    x0: Array,
    t: ArrayLike,
    schedule: Schedule,
    noise: NoiseLike,
    *,
    target: Target | None = None,
    scale: float | None = None,
    offset: float | None = None,
    dtype: DTypeLike | None = None,
    batched: bool = True,
    out: Array | None = None,
    target_out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """The forward process in one pass: x_t = alpha_t x0 + sigma_t z, z ~ N(0, 1) (Ho et al. 2020, eq. 4).

    Args:
        x0: float32, float64, float16, bfloat16 or uint8, any strides (others than C order are copied first).
        t: integers (an index into the schedule, 0 least noisy) or, where the schedule is continuous, floats in its own
            time; a scalar, (B,), or any prefix of x0's shape.
        noise: Noise, a list of one for each row, or an array of x0's shape (float32 or the result's dtype).
        target: also return what a network learns: "epsilon" z, "v" alpha z - sigma x0 (Salimans & Ho 2022), "velocity"
            z - x0 (flow matching), "sample" x0; computed in the same pass.
        scale, offset: x0 stands for scale * x0 + offset, folded into the coefficients. uint8: 1/127.5 and -1.
        dtype: of the result; x0's, or float32 for uint8.
        batched: False makes the whole array one sample.
        out, target_out: where to write; C-contiguous, of the result's shape and dtype. `out` may be x0 itself.

    Returns:
        x_t, or (x_t, target).

    Raises:
        IndexError: t outside of the schedule. TypeError, ValueError: what was given and what was expected; nothing is
        written then.
    """
    if (
        (short_cut := backends.short_cut) is not None
        and (target, scale, offset, dtype, target_out) == (None,) * 5
        and batched is True
        and type(schedule) is Schedule
        and type(noise) is Noise
    ):
        table = vars(schedule).get("_forward32") or _forward32(schedule)
        done: Array = short_cut(*table, t, x0, None, None, noise, -1, out, None)
        if done is not NotImplemented:
            return done
    return _q_sample(x0, t, schedule, noise, target, scale, offset, dtype, batched, out, target_out)


def q_step(
    x: Array,
    t: ArrayLike,
    schedule: Schedule,
    noise: NoiseLike,
    *,
    batched: bool = True,
    out: Array | None = None,
) -> Array:
    """One Markov step of the walk: x_t = a_t x_(t-1) + s_t z_t (Ho et al. 2020, eq. 2: a = sqrt(1 - beta), s = sqrt(beta)).

    In general a_t = alpha_t / alpha_(t-1) and s_t^2 = sigma_t^2 - a_t^2 sigma_(t-1)^2, from alpha = 1, sigma = 0 before
    t = 0. z_t is the field of stream 1 at step `noise.step + t`; with t for each sample or token each takes its own.

    Args and errors: as `q_sample`, with float x and integer t; the noise must have stream 0.
    """
    _need_schedule(schedule)
    x = as_array("x", x)
    t_index = _index("t", t, len(schedule), x.shape)
    rows = _rows({OUT_X: schedule.step_coefficients()[0], OUT_Z: schedule.step_coefficients()[1]})
    names, z = _noise(noise, x.shape, x.dtype, batched, WALK, last_step=_last(t_index))
    call = _call(x, z, rows, t_index, names, batched, x.dtype, (out,), step_by_index=True)
    return _run(call)[0]


def q_walk(
    x0: Array,
    schedule: Schedule,
    noise: Noise | Sequence[Noise],
    *,
    keep: Sequence[int] | None = None,
    batched: bool = True,
    out: Array | None = None,
) -> Array:
    """The random walk from x0 through all of the schedule, in one pass: T steps for one read of x0.

    Equals q_step at t = 0, 1, ... bit for bit (the half types: as if walked in float32 and rounded where kept).

    Args:
        keep: the times t whose x_t are wanted, strictly increasing; None: all of them.
        out: C-contiguous, (len(keep), *x0.shape), of x0's dtype.

    Returns:
        (len(keep), *x0.shape). Other arguments and errors: as `q_step`.
    """
    _need_schedule(schedule)
    x0 = as_array("x0", x0)
    kept = _keep(keep, len(schedule))
    if isinstance(noise, np.ndarray):
        raise TypeError("noise: q_walk draws at every time and takes a Noise, not an array")
    names, _ = _noise(noise, x0.shape, x0.dtype, batched, WALK, last_step=int(kept[-1]) if len(kept) else 0)
    shape = (len(kept), *x0.shape)
    result = output("out", out, shape, x0.dtype)
    x0 = contiguous(x0)
    if np.may_share_memory(result, x0):
        raise ValueError("out overlaps x0: the walk reads x0 and writes every kept time")
    if result.size == 0:
        return result
    times = int(kept[-1]) + 1
    a, s = schedule.step_coefficients()
    rows = _rows({OUT_X: a[:times], OUT_Z: s[:times]})
    slots = np.full(times, -1, np.int64)
    slots[kept] = np.arange(len(kept))
    batch, sample_shape = batch_shape(x0.shape, batched)
    first = Step(
        batch, count(sample_shape), sample_shape, rows.table, rows.present, np.zeros(1, np.int64), x0.size,
        _inputs(x0, None), (result, None, None), "normal", False, names,
    )  # fmt: skip
    backends.current().walk(Walk(first, slots))
    return result


def update(
    table: Tableau,
    i: ArrayLike,
    x: Array,
    model_output: Array | tuple[Array, Array] | None = None,
    *,
    past: Sequence[Array] = (),
    noise: NoiseLike | None = None,
    out: Array | None = None,
    aux_out: Sequence[Array] = (),
) -> Array:
    """One row of a tableau in one pass: D = clamp(affine of x, m1, m2), then affine forms of everything plus noise.

    Args:
        table: the rows; `print(table)` shows them as equations.
        i: integers, the row: a scalar, (B,) or any prefix of x's shape.
        x: float32, float64, float16 or bfloat16, any strides (others than C order are copied first).
        model_output: m1, or (m1, m2), of x's shape; another float dtype than x's is converted first.
        past: past1 .. past4, the newest first, of x's shape and dtype.
        noise: Noise, a list of one for each row of x, or an array of x's shape. A Noise of stream 0: z is the field of
            stream 3 at step `noise.step + i`. None where the rows taken draw nothing.
        out, aux_out: where to write the result and up to two auxiliary outputs; C-contiguous, of x's shape and dtype. Each
            may be exactly one of the inputs.

    Returns:
        out.

    Raises:
        IndexError: a row that the table does not have. TypeError, ValueError: what was given and what was expected;
        nothing is written then.
    """
    if (short_cut := backends.short_cut) is not None and type(table) is Tableau and not table.masked:
        rows = vars(table).get("_rows32") or _rows32(table)
        done: Array = short_cut(*rows, i, x, model_output, past, noise, SAMPLER, out, aux_out)
        if done is not NotImplemented:
            return done
    return _update(table, i, x, model_output, past, noise, out, aux_out)


def _words(name: str, words: ArrayLike, n: int) -> NDArray[np.uint32]:
    values = np.asarray(words)
    if values.dtype.kind not in "iu" or values.ndim == 0 or values.shape[-1] != n:
        raise TypeError(f"{name}: expected uint32 (..., {n}), got {values.dtype} of shape {values.shape}")
    if values.size and (int(values.min()) < 0 or int(values.max()) >= 1 << 32):
        raise OverflowError(f"{name}: expected words in [0, 2^32), got {values.min()} to {values.max()}")
    return values.astype(np.uint32)


# ---------------------------------------------------------------------------------------------------------- rows


class Rows(NamedTuple):
    """A table of rows, float64 (n, 36), and the columns that count: bit c of `present`."""

    table: NDArray[np.float64]
    present: int


class Index(NamedTuple):
    """Row numbers of segments of equal size: their values, and how many elements each has."""

    values: NDArray[np.int64]
    segment: int


def _rows(columns: dict[int, ArrayLike]) -> Rows:
    n = max(np.size(c) for c in columns.values())
    table = np.zeros((n, COLUMNS))
    for column, values in columns.items():
        table[:, column] = values
    return Rows(table, sum(1 << column for column in columns))


def _forward(alpha: ArrayLike, sigma: ArrayLike, target: Target | None, scale: float, offset: float) -> Rows:
    """x_t and the target from x0' = scale x0 + offset: which columns count depends on the arguments, not on numbers."""
    alpha, sigma = np.atleast_1d(alpha).astype(np.float64), np.atleast_1d(sigma).astype(np.float64)
    columns: dict[int, Any] = {OUT_X: alpha * scale, OUT_Z: sigma}
    if target is not None:
        of_x, of_z = {
            "epsilon": (None, 1.0),
            "v": (-sigma, alpha),
            "velocity": (-1.0, 1.0),
            "sample": (1.0, None),
        }[target]
        columns |= {} if of_x is None else {AUX_X: of_x * scale}
        columns |= {} if of_z is None else {AUX_Z: of_z}
        columns |= {} if of_x is None or not offset else {AUX_K: of_x * offset}
    columns |= {OUT_K: alpha * offset} if offset else {}
    return _rows(columns)


def _forward32(schedule: Schedule) -> tuple[NDArray[np.float32], int]:
    """The plain forward rows of a schedule for the short cut, kept with the schedule, which never changes."""
    rows = _forward(schedule.alpha, schedule.sigma, None, 1.0, 0.0)
    table: tuple[NDArray[np.float32], int] = (rows.table.astype(np.float32), rows.present)
    vars(schedule)["_forward32"] = table
    return table


def _table_rows(table: Tableau) -> Rows:
    flags = np.frombuffer(table.present.tobytes(), np.bool_)
    return Rows(table.numbers, sum(1 << column for column in np.flatnonzero(flags).tolist()))


def _rows32(table: Tableau) -> tuple[NDArray[np.float32], int]:
    """A table's rows for the short cut, kept with the table, which never changes."""
    rows = _table_rows(table)
    rounded: tuple[NDArray[np.float32], int] = (rows.table.astype(np.float32), rows.present)
    vars(table)["_rows32"] = rounded
    return rounded


# ---------------------------------------------------------------------------------------------------------- times


def _need_schedule(schedule: object) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a noisefuse.Schedule, got {type(schedule).__name__}")


def _segments(name: str, t: ArrayLike, shape: tuple[int, ...]) -> tuple[Array, int]:
    """t as a flat array, and how many elements of x each of its entries covers."""
    times = np.asarray(t)
    if times.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected integers or floats, got {times.dtype if times.dtype != object else repr(t)}")
    if times.size == 1:
        return times.reshape(1), max(1, count(shape))
    if shape[: times.ndim] != times.shape:
        raise ValueError(f"{name}: expected a scalar or a shape that begins x's shape {shape}, got {times.shape}")
    return np.ascontiguousarray(times).reshape(-1), max(1, count(shape[times.ndim :]))


def _index(name: str, t: ArrayLike, n: int, shape: tuple[int, ...]) -> Index:
    """Checked row numbers 0 <= t < n."""
    times, segment = _segments(name, t, shape)
    if times.dtype.kind == "f":
        raise TypeError(f"{name}: expected integers below {n}, got {times.dtype}")
    bad = (times < 0) | (times >= n)
    if bad.any():
        raise IndexError(f"{name} = {times[bad][0]} is out of range: there are {n} steps, 0 <= {name} < {n}")
    return Index(times.astype(np.int64), segment)


def _last(index: Index) -> int:
    return int(index.values.max()) if index.values.size else 0


def _keep(keep: Sequence[int] | None, n: int) -> NDArray[np.int64]:
    kept = np.arange(n) if keep is None else np.asarray(keep)
    if kept.ndim != 1 or (kept.dtype.kind not in "iu" and kept.size):
        raise TypeError(f"keep: expected a sequence of integers, got {keep!r}")
    bad = (kept < 0) | (kept >= n)
    if bad.any():
        raise IndexError(f"keep: t = {kept[bad][0]} is out of range: there are {n} steps, 0 <= t < {n}")
    kept = kept.astype(np.int64)
    if (np.diff(kept) <= 0).any():
        raise ValueError(f"keep: expected strictly increasing times, got {keep!r}")
    return kept


# ---------------------------------------------------------------------------------------------------------- noise


def _noise(
    noise: object,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    batched: bool,
    stream: int,
    *,
    last_step: int = 0,
    any_stream: bool = False,
) -> tuple[tuple[Noise, ...], Array | None]:
    """The Noise or Noises on the stream of the operation, or the caller's array; checked for x of this shape."""
    if isinstance(noise, np.ndarray):
        z = as_array("noise", noise, ("float32", dtype.name))
        if z.shape != shape:
            raise ValueError(f"noise: expected shape {shape}, got {z.shape}")
        return (), z
    batch, sample_shape = batch_shape(shape, batched)
    if isinstance(noise, Noise):
        names: tuple[Noise, ...] = (noise,)
    elif isinstance(noise, list | tuple) and all(isinstance(n, Noise) for n in noise):
        if len(noise) != batch:
            raise ValueError(f"noise: expected one Noise for each of {batch} samples, got {len(noise)}")
        names = tuple(noise)
    elif isinstance(noise, int | np.integer):
        raise TypeError(
            f"noise = {noise!r}: expected a Noise; a bare seed would give the same noise at every call. "
            f"Pass nf.Noise({noise!r}, step=...) with a step of its own for each"
        )
    else:
        raise TypeError(f"noise: expected a Noise, a list of them or a NumPy array, got {type(noise).__name__}")
    for name in names:
        _check_name(name, batch if len(names) == 1 else 1, sample_shape, last_step, any_stream)
    return tuple(n if any_stream and n.stream else n.at(stream=stream) for n in names), None


def _check_name(noise: Noise, rows: int, sample_shape: tuple[int, ...], last_step: int, any_stream: bool) -> None:
    noise.check_shape(sample_shape)
    if noise.window_shape is None and count(sample_shape) > ELEMENTS:
        raise OverflowError(f"a sample of shape {sample_shape} has more than 2^34 elements")
    if isinstance(noise.sample, np.ndarray):
        if len(noise.sample) != rows:
            raise ValueError(f"noise: has {len(noise.sample)} sample ids, expected one for each of {rows} rows")
    elif noise.sample + rows > SAMPLES:
        raise OverflowError(f"samples {noise.sample} .. {noise.sample + rows - 1} go beyond 2^56 - 1")
    if noise.step + last_step >= STEPS:
        raise OverflowError(f"step {noise.step} + t = {last_step} goes beyond 2^32 - 1")
    if noise.stream and not any_stream:
        raise ValueError(f"noise: this operation has a stream of its own and takes stream 0, got {noise.stream}")


# ---------------------------------------------------------------------------------------------------------- calls


def _random(
    draw: Draw,
    shape: int | Sequence[int],
    noise: Noise | Sequence[Noise] | int,
    stream: int,
    allowed: tuple[str, ...],
    dtype: DTypeLike,
    batched: bool,
    out: Array | None,
) -> Array:
    full = (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(map(operator.index, shape))
    if any(n < 0 for n in full):
        raise ValueError(f"shape {full}: expected lengths of at least 0")
    kind = float_dtype(dtype, allowed)
    if isinstance(noise, int | np.integer) and not isinstance(noise, bool):
        noise = Noise(int(noise))
    if isinstance(noise, np.ndarray):
        raise TypeError("noise: expected a Noise, a list of them or an int seed, got an array")
    names, _ = _noise(noise, full, kind, batched, stream, any_stream=True)
    rows = _rows({OUT_Z: 1.0})
    result = output("out", out, full, kind)
    batch, sample_shape = batch_shape(full, batched)
    if result.size:
        backends.current().step(
            Step(
                batch, count(sample_shape), sample_shape, rows.table, rows.present, np.zeros(1, np.int64), result.size,
                _inputs(None, None), (result, None, None), draw, False, names,
            )
        )  # fmt: skip
    return result


def _q_sample(
    x0: Array,
    t: ArrayLike,
    schedule: Schedule,
    noise: NoiseLike,
    target: Target | None,
    scale: float | None,
    offset: float | None,
    dtype: DTypeLike | None,
    batched: bool,
    out: Array | None,
    target_out: Array | None,
) -> Array | tuple[Array, Array]:
    _need_schedule(schedule)
    x = as_array("x0", x0, (*FLOATS, "uint8"))
    is_bytes = x.dtype == np.uint8
    kind = float_dtype(dtype if dtype is not None else np.float32 if is_bytes else x.dtype)
    if target not in (None, "epsilon", "v", "velocity", "sample"):
        raise ValueError(f"target = {target!r}: expected 'epsilon', 'v', 'velocity', 'sample' or None")
    if target is None and target_out is not None:
        raise ValueError("target_out: given without target=")
    scale = _finite("scale", scale, 1 / 127.5 if is_bytes else 1.0)
    offset = _finite("offset", offset, -1.0 if is_bytes else 0.0)
    times, _ = _segments("t", t, x.shape)
    if times.dtype.kind == "f":  # a row for each time
        alpha, sigma = schedule(times)
        index = _index("t", np.arange(times.size).reshape(np.shape(t)), times.size, x.shape)
    else:
        alpha, sigma = schedule.alpha, schedule.sigma
        index = _index("t", t, len(schedule), x.shape)
    rows = _forward(alpha, sigma, target, scale, offset)
    names, z = _noise(noise, x.shape, kind, batched, FIELD, any_stream=True)
    call = _call(x, z, rows, index, names, batched, kind, (out, target_out)[: 1 if target is None else 2])
    results = _run(call)
    return results[0] if target is None else (results[0], results[1])


def _update(
    table: Tableau,
    i: ArrayLike,
    x: Array,
    model_output: Array | tuple[Array, Array] | None,
    past: Sequence[Array],
    noise: NoiseLike | None,
    out: Array | None,
    aux_out: Sequence[Array],
) -> Array:
    if not isinstance(table, Tableau):
        raise TypeError(f"table: expected a noisefuse.Tableau, got {type(table).__name__}")
    x = as_array("x", x)
    index = _index("i", i, len(table), x.shape)
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    if len(models) > 2 or len(past) > 4 or len(aux_out) > 2:
        raise ValueError(
            f"expected at most 2 model outputs, 4 past arrays and 2 auxiliary outputs, "
            f"got {len(models)}, {len(past)} and {len(aux_out)}"
        )
    given = {M1 + n: _like(f"m{n + 1}", m, x, FLOATS) for n, m in enumerate(models) if m is not None}
    given |= {PAST1 + n: _like(f"past{n + 1}", p, x, (x.dtype.name,)) for n, p in enumerate(past)}
    rows = _table_rows(table)
    no_names: tuple[Noise, ...] = ()
    draws = bool(table.numbers[np.unique(index.values)][:, [first + 1 + Z for first in AFFINE]].any())
    if noise is None:
        if draws:
            raise TypeError("noise: the row draws noise; expected a Noise or an array, got None")
        rows = Rows(rows.table, rows.present & ~sum(1 << (first + 1 + Z) for first in AFFINE))
        names, z = no_names, None
    else:
        names, z = _noise(noise, x.shape, x.dtype, True, SAMPLER, last_step=_last(index))
    for slot, name in enumerate(("x", "m1", "m2", None, "past1", "past2", "past3", "past4")):
        if name and _reads(rows, slot) and slot not in given and slot != X:
            raise TypeError(f"{name}: the table reads it; expected an array of shape {x.shape}, got none")
    if not _reads(rows, Z):
        names, z = no_names, None
    call = _call(
        x, z, rows, index, names, True, x.dtype, (out, *aux_out), step_by_index=True,
        others={slot: a for slot, a in given.items() if _reads(rows, slot)}, masked=table.masked,
    )  # fmt: skip
    return _run(call)[0]


def _reads(rows: Rows, slot: int) -> bool:
    firsts = (*AFFINE, CLEAN) if slot <= M2 else AFFINE
    return any(rows.present >> (first + 1 + slot) & 1 for first in firsts)


def _like(name: str, a: object, x: Array, allowed: tuple[str, ...]) -> Array:
    array = as_array(name, a, allowed)
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, got {array.shape}")
    return contiguous(array.astype(x.dtype, copy=False))


def _finite(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} = {value!r}: expected a finite number")
    return number


def _inputs(x: Array | None, z: Array | None, others: dict[int, Array] | None = None) -> tuple[Array | None, ...]:
    slots: dict[int, Array | None] = {X: x, Z: z, **(others or {})}
    return tuple(slots.get(slot) for slot in range(9))


def _call(
    x: Array,
    z: Array | None,
    rows: Rows,
    index: Index,
    names: tuple[Noise, ...],
    batched: bool,
    dtype: np.dtype[Any],
    outs: Sequence[Array | None],
    *,
    others: dict[int, Array] | None = None,
    step_by_index: bool = False,
    masked: bool = False,
) -> Step:
    """The checked call: every output made (`outs` says how many), every input where a kernel can read it."""
    labels = ("out", "aux_out[0]", "aux_out[1]") if others is not None else ("out", "target_out")
    results = [output(label, out, x.shape, dtype) for label, out in zip(labels, outs, strict=False)]
    # float64 arithmetic reads float64, float32 and uint8; float32 arithmetic all but float64.
    if (dtype == np.float64) != (x.dtype == np.float64) and x.dtype != np.uint8:
        x = x if x.dtype == np.float32 else x.astype(np.float32)
    inputs = _inputs(contiguous(x), None if z is None else contiguous(z), others)
    check_overlap(zip(labels, results, strict=False), [("an input", a) for a in inputs if a is not None])
    values = index.values
    if any(np.may_share_memory(values, out) for out in results):
        values = values.copy()
    batch, sample_shape = batch_shape(x.shape, batched)
    padded: list[Array | None] = [*results, None, None]
    return Step(
        batch, count(sample_shape), sample_shape, rows.table, rows.present, values, index.segment,
        inputs, tuple(padded[:3]), "normal" if names else "none", step_by_index, names, masked,
    )  # fmt: skip


def _run(call: Step) -> tuple[Array, ...]:
    if call.batch * call.size:
        backends.current().step(call)
    return tuple(out for out in call.outputs if out is not None)
