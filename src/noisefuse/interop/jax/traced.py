# SPDX-License-Identifier: Apache-2.0
"""A call whose numbers may be traced: it is checked with stand-ins, and runs as one operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...arguments.options import rows_at
from ...call.description import Step
from ...call.packed import FIELD
from ...ground.checks import is_tracer
from ...language.levels import FLOATS
from ...language.noise import SAMPLES, listed
from ...language.rows import SYMBOLS, Rows, X, Z
from ...paths import Path
from ..jax_keys import Wide, words
from . import eager
from .calls import bind
from .description import FIELDS, IDS, INDEX, LOSSES, ROWS, START, STEP, STEP_CALLS, WALKS, described, field_bytes


def tracers_of(noise: Any) -> list[Any]:
    """Returns the numbers of a noise, or of a list of them, that are traced."""
    names = [name for name in listed(noise) if isinstance(name, nf.Noise)]
    return [n for name in names for n in (name.seed, name.step, name.sample, *name.window_start) if is_tracer(n)]


NO_TIME = (
    "t: nothing here has a derivative with respect to times: use jax.lax.stop_gradient(t); `noised` has derivatives "
    "with respect to alpha and sigma, and dx_t/dt is a target of q_sample and interpolate"
)


@lru_cache(maxsize=64)
def _refusing(message: str) -> Any:
    def refuse(primals: Any, tangents: Any) -> Any:
        if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
            raise NotImplementedError(message)
        return *primals, jnp.zeros_like(primals[0])

    same: Any = jax.custom_jvp(lambda x: x)
    same.defjvp(refuse, symbolic_zeros=True)
    return same


def refusing(x: Any, message: str) -> Any:
    """Returns x, which is a constant from here on. A derivative with respect to it is a NotImplementedError with this
    message: it would be 0, and nobody would see it."""
    return jax.lax.stop_gradient(_refusing(message)(x))


def at_row(numbers: Any, i: Any) -> Any:
    """Returns the number of row i. Beyond the ends it is the first or last row's, as in kernels: -1 is not the last
    row."""
    return numbers.at[i].get(mode="clip", wrap_negative_indices=False)


def rows_of_floats(
    make: Any, target: Any, schedule: Any, t: Any, x: Any, scale: Any, offset: Any
) -> tuple[Any, Rows | None]:
    """Returns (signature shared by calls with equally many times, rows) for known float times, else (None, None)."""
    known = type(schedule) is nf.Schedule and isinstance(t, float | np.floating | np.ndarray) and hasattr(x, "dtype")
    if not known or np.asarray(t).dtype.kind != "f":
        return None, None
    rows, index = rows_at(make, target, schedule, t, x.shape, x.dtype, scale, offset)
    return eager.Given(rows.active, index.segment, len(rows.table)), rows


def read(model_output: Any, past: Any) -> tuple[dict[int, Any], Any, list[Any]]:
    """Returns arrays by slot; and stand-ins for the model output, or the pair, and for the remembered arrays."""
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    arrays_by_name = {f"m{n + 1}": m for n, m in enumerate(models) if m is not None}
    arrays_by_name |= {f"past{n + 1}": p for n, p in enumerate(past)}
    zeros = {name: stand_in_for(nf.tableau.ARGUMENTS[name], a) for name, a in arrays_by_name.items()}
    stand_in = tuple(zeros.get(f"m{n + 1}") for n in range(len(models))) if len(models) > 1 else zeros.get("m1")
    arrays = {slot: arrays_by_name[symbol] for slot, symbol in enumerate(SYMBOLS[1:]) if symbol in arrays_by_name}
    return arrays, stand_in, [zeros[f"past{n + 1}"] for n in range(len(past))]


def check_none(**outputs: Any) -> None:
    for name, out in outputs.items():
        if out is not None:
            raise TypeError(f"{name}: expected None, as JAX arrays are not written to, got {type(out).__name__}")


def stand_in_for(name: str, x: Any) -> Any:
    """Returns a stand-in for x while a call is checked: memory that is never read."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected a JAX array, got {type(x).__name__}")
    if not isinstance(x.dtype, np.dtype):
        raise TypeError(f"{name}: dtype {x.dtype} is not supported, expected one of {', '.join(FLOATS)}")
    return np.zeros(x.shape, x.dtype)


class Named:
    """A noise as operands for its traced parts; `known` has zeros in their place, for the checks of a call.

    An array represents itself.
    """

    array: Any
    known: Any
    operands: dict[int, Any]
    in_field: dict[str, Any]  # words (n, 2), for numbers of the fields that have no operand of their own

    def __init__(self, noise: Any) -> None:
        self.array, self.operands, self.in_field = None, {}, {}
        if isinstance(noise, list | tuple):
            noise = [_of_one_sample(name) for name in noise]
        self.known, names = noise, noise if isinstance(noise, list) else [noise]
        if hasattr(noise, "shape") and not isinstance(noise, np.integer):
            self.array, self.known = noise, stand_in_for("noise", noise)
            return
        if not all(isinstance(name, nf.Noise) for name in names):
            return
        steps = any(is_tracer(name.step) for name in names)
        known = [_known(name, steps) for name in names]
        self.known = known if names is noise else known[0]
        if any(is_tracer(name.seed) for name in names):
            self.in_field["seed"] = jnp.stack([words(name.seed) for name in names])
        if steps:
            self.operands[STEP] = jnp.stack([words(name.step)[0] for name in names])
        if any(is_tracer(name.sample) for name in names):
            if names is noise:
                self.operands[IDS] = jnp.stack([words(name.sample) for name in names])
            elif not isinstance(noise.sample, Wide):
                self.operands[IDS] = small(noise.sample)
            elif noise.sample.ndim:
                self.operands[IDS] = noise.sample.words
            else:
                self.in_field["sample"] = noise.sample.words[None] & words(SAMPLES - 1)
        elif names is not noise and isinstance(noise.sample, np.ndarray):
            self.operands[IDS] = noise.sample.view(np.uint32).reshape(-1, 2)
        if any(is_tracer(start) for name in names for start in name.window_start):
            if names is noise:
                raise NotImplementedError("noise: expected a list without windows whose start is traced")
            self.start = noise.window_start

    start: Any = None

    def given(self, call: Step) -> dict[int, Any]:
        """Returns the operands of this call."""
        if not call.noise:
            return {}
        operands = {FIELDS: self._fields(field_bytes(call)), **self.operands}
        if self.start is not None:
            full = call.noise[0].window_shape
            assert full is not None
            operands[START] = jnp.stack(self.starts(full, call.sample_shape))
        return operands

    def starts(self, full: tuple[int, ...], shape: tuple[int, ...]) -> list[Any]:
        """Returns where a traced window of this shape begins."""
        last = np.subtract(full, shape)
        return [_inside(n, int(most)) for n, most in zip(self.start, last, strict=True)]

    def _fields(self, known: Any) -> Any:
        """Writes the traced numbers into the bytes of the fields."""
        for name, pairs in self.in_field.items():
            dtype, at = FIELD.dtype.fields[name][:2]  # type: ignore[index]
            each, of_pairs = known.reshape(len(pairs), -1), jax.lax.bitcast_convert_type(pairs, jnp.uint8)
            pair_bytes = of_pairs.reshape(len(pairs), -1)
            known = jnp.concatenate([each[:, :at], pair_bytes, each[:, at + dtype.itemsize :]], 1).reshape(-1)
        return known


def _of_one_sample(name: Any) -> Any:
    """Returns a noise whose id is a number, if it has a list of one id. Each of a list of noises may have such a
    list."""
    ids = getattr(name, "sample", None)
    return name.at(sample=int(ids[0])) if isinstance(ids, np.ndarray) and ids.size == 1 else name


def _inside(start: Any, last: int) -> Any:
    """Returns a window's start, moved to 0 .. last in its own dtype: a smaller dtype could wrap first."""
    start = small(jnp.asarray(start))
    return jnp.clip(start, 0, min(last, jnp.iinfo(start.dtype).max)).astype(int)


def _known(noise: nf.Noise, without_step: bool) -> nf.Noise:
    seed: Any = noise.seed
    sample: Any = noise.sample
    for number, most in (seed, 0), (noise.step, 0), (sample, 1):
        if getattr(number, "ndim", 0) > most:
            shape = tuple(number.shape)
            raise TypeError(f"noise: expected one Noise, got a stack whose numbers have shape {shape}: use jax.vmap")
    if is_tracer(sample):
        sample = np.zeros(sample.shape, np.uint64) if sample.ndim else 0
    seed, step = 0 if is_tracer(seed) else seed, 0 if without_step else noise.step
    known = nf.Noise(seed, sample=sample, step=step, stream=noise.stream)
    if noise.window_shape is None:
        return known
    return known.window(noise.window_shape, [0 if is_tracer(start) else start for start in noise.window_start])


def at_times(
    make: Callable[..., Step], name: str, x: Any, t: Any, noise: Any, out: Any, like: Any, arrays: Any = None,
    schedule: Any = None, rows: Any = None,
) -> Any:  # fmt: skip
    """Returns the outputs of the call that `make` checks: make(x, t, noise). like: returns the further arguments of
    `eager.fast_row` for such a call. rows: the rows that the program makes."""
    t, arrays_by_slot = eager.number(t), {X: x, **(arrays or {})}
    if out is not None and out is not x:
        what = f"expected None, or {name} itself, whose memory is taken where jit donates it"
        raise TypeError(f"out: {what}; JAX arrays are not written to")
    zeros, named = stand_in_for(name, x), Named(noise)
    known, tracer = known_times(t, schedule)
    call = make(zeros, known, named.known)
    if tracer is not None and tracer.dtype.kind == "f":
        rows, tracer = rows_at_times(
            lambda times: make(np.zeros(times.size, zeros.dtype), times, nf.Noise(0)), call, tracer
        )
    options: dict[str, Any] = {"in_place": True}
    if out is None:
        options = {} if like is None else {"remember": partial(remember, like, t, noise, arrays_by_slot)}
    return run(call, {**arrays_by_slot, Z: named.array}, named, tracer, rows, **options)


def remember(
    like: Callable[[], Any], t: Any, noise: Any, arrays: dict[int, Any], what: Any, operands: Any, call: Step
) -> None:
    table, stream, *options = like()
    t = 0 if isinstance(table, eager.Given) else t
    signature = eager.signature(table, stream, t, noise, [*arrays.values()], *options)
    eager.remember(table, signature, what, operands, call, arrays)


def known_times(t: Any, schedule: Any) -> tuple[Any, Any]:
    """Returns a stand-in for t, and t itself if it is traced. A float's lies below the schedule's noisiest time, which
    could look like a step, or below 1; or in the middle of a path, whose ends may have no score."""
    if is_tracer(t):
        _, last = (0.0, 0.5) if isinstance(schedule, Path) else getattr(schedule, "times", None) or (0.0, 1.0)
        below = math.nextafter(last if last < math.inf else 1.0, 0.0)
        return np.full(t.shape, 0 if t.dtype.kind in "iu" else below), t
    return np.asarray(t) if isinstance(t, jax.Array) else t, None


def run(
    call: Step, arrays: dict[int, Any], named: Named, index: Any = None, rows: Any = None, outputs: Any = None,
    more: Any = None, kind: int = STEP_CALLS, remember: Any = None, **rest: Any,
) -> list[Any]:  # fmt: skip
    results = outputs or [(out.shape, out.dtype.name) for out in call.outputs if out is not None]
    if any(math.prod(shape) == 0 for shape, _ in results) or call.batch * call.size == 0:
        losses = kind == LOSSES  # the mean of no elements is one, too
        return [jnp.full(shape, jnp.nan if losses and n == 0 else 0, dt) for n, (shape, dt) in enumerate(results)]
    if call.arithmetic == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError("dtype float64: JAX has it after jax.config.update('jax_enable_x64', True)")
    operands: dict[int, Any] = {ROWS: kept(call.rows, call.arithmetic == np.float64) if rows is None else rows}
    if kind != WALKS and (index is not None or len(call.rows.table) > 1):
        operands[INDEX] = call.index.astype(np.int32) if index is None else _row(index, call).reshape(-1)
    operands |= named.given(call)
    for slot, stand_in in enumerate(call.inputs):
        if stand_in is not None:
            operands[slot] = jnp.asarray(arrays[slot], stand_in.dtype)
    operands |= more or {}
    windows = [noise.window_shape for noise in call.noise if noise.window_shape is not None]
    window = windows[0] if windows else ()
    what = described(call, kind, [*operands], results, sample=call.sample_shape, window=window, **rest)
    if remember is not None:
        remember(what, operands, call)
    return bind(what, [*operands.values()])


def small(number: Any) -> Any:
    """Returns a number of at least 32 bits, as the handler takes it."""
    return number if number.dtype.itemsize >= 4 else number.astype(jnp.int32)


def _row(index: Any, call: Step) -> Any:
    """Returns row numbers as the handler takes them: it reads 64 bits as a signed number."""
    return jnp.minimum(index, len(call.rows.table) - 1) if index.dtype == np.uint64 else small(index)


def kept(rows: Rows, wide: bool) -> Any:
    """Returns a table as an array of JAX, which is kept with it."""
    numbers, key = rows.table if wide else rows.single, (-1, wide)  # CUDA devices count from 0
    if eager.is_in_mesh():
        return jnp.asarray(numbers)
    arrays = rows.on_devices
    return arrays[key] if key in arrays else eager.keep(arrays, key, numbers)


def rows_at_times(make: Callable[[Any], Step], call: Step, t: Any) -> tuple[Any, Any]:
    """Returns the rows of traced float times, which Python makes when the program runs, and their numbers."""
    wide = call.arithmetic == np.float64

    def rows(times: Any) -> Any:
        rows_of = make(np.asarray(times)).rows
        return rows_of.table if wide else rows_of.single

    shape = jax.ShapeDtypeStruct((t.size, call.rows.table.shape[1]), np.float64 if wide else np.float32)
    flat = refusing(jnp.asarray(t), NO_TIME).reshape(-1)  # grad passes a float, not an array
    table = jax.pure_callback(rows, shape, flat, vmap_method="sequential")
    # XLA's partitioner cannot cut operations that read a callback's results.
    return jax.lax.optimization_barrier(table), np.arange(t.size, dtype=np.int32)
