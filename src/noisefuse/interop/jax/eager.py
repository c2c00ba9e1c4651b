# SPDX-License-Identifier: Apache-2.0
"""Calls in eager code. A call may be like an earlier one but for its numbers. Then its description is known and its
program is compiled. Only the numbers are checked, and most of the time is JAX's own dispatch.

Each operand costs time, most of all one that is not a JAX array yet. So a program takes few operands: the row,
and the noise's whole key as one. Operands that are asked for again and again are kept as JAX's arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from struct import Struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import backends
from ...arguments.calls import image_layout
from ...call.description import Step
from ...call.packed import CALL
from ...ground.checks import is_tracer, lie_within
from ...language.noise import SAMPLES, STEPS, Noise
from ...language.rows import Rows, Z
from .calls import call_p
from .description import FIELDS, IDS, INDEX, ROWS, WEIGHTS, Described

MOST, OFTEN = 256, 8
_NAME = Struct("<4QI")  # a field begins with these: seed, sample, two that are unused, step


def keep(arrays: dict[Any, Any], key: Any, numbers: Any) -> Any:
    """Returns an array of JAX, and keeps it under this key. Rules of a derivative trace their constants, too: such a
    tracer is not kept."""
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(numbers)
    return array if is_tracer(array) else arrays.setdefault(key, array)


class Kept(dict[Any, Any]):
    """Arrays of JAX's by key. `make` makes the array of a key that is asked for often; before, `else_` serves it."""

    make: Callable[..., Any]
    else_: Callable[..., Any]
    asked: dict[Any, int]

    def __init__(self, make: Callable[..., Any], else_: Callable[..., Any] = lambda key: None) -> None:
        self.make, self.else_, self.asked = make, else_, {}

    def __missing__(self, key: Any) -> Any:
        asked = self.asked
        asked[key] = times = asked.get(key, 0) + 1
        if len(asked) > 4 * MOST:
            asked.clear()
        if times < OFTEN or is_in_mesh():
            return self.else_(key)
        if len(self) >= 4 * MOST:
            self.clear()
        return keep(self, key, self.make(key))


class Given(NamedTuple):
    """The common part of calls that bring their own rows."""

    active: int
    segment: int
    n: int


class Known(NamedTuple):
    """A program and what its next call needs. The program takes a row, or the table and the numbers of rows; then the
    arrays; then, if the call has them, a field, ids and weights."""

    program: Any
    rows: Kept  # by number
    table: Any  # a JAX array if t is an array, else None
    fields: Kept | None  # by seed, sample and step
    n: int  # how many rows
    batch: int
    by_index: bool  # whether the step of row t is t later
    wide: bool
    plain: Any  # the table, kept so that no other object gets its id


_known: dict[Any, Known] = {}
_asked: dict[Any, int] = {}
_concrete: set[type] = set()


def is_concrete(x: Any) -> bool:
    if type(x) in _concrete:
        return True
    is_array = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    if is_array:
        _concrete.add(type(x))
    return is_array


def is_in_mesh() -> bool:
    """Tells whether new arrays lie on the devices of `jax.set_mesh`. No other mesh takes them, so none is kept."""
    return not jax.sharding.get_abstract_mesh().empty


def is_often(signature: Any) -> bool:
    """Counts calls with this signature. Tells whether they are so many that a program is worth its compilation."""
    if signature is None or is_in_mesh():
        return False
    try:
        _asked[signature] = times = _asked.get(signature, 0) + 1
    except TypeError:  # an option is an array or a list
        return False
    if len(_asked) > 4 * MOST:
        _asked.clear()
    return times >= OFTEN


def number(t: Any) -> Any:
    """Returns known times in host memory, a single integer as an int; and traced ones unchanged."""
    if type(t) is int:
        return t
    if isinstance(t, list) or is_concrete(t):
        t = np.asarray(t)
    if isinstance(t, np.ndarray | np.integer) and t.size == 1 and t.dtype.kind in "iu":
        return int(t.item())
    return t


def fast_row(
    plain: Any, t: Any, x: Any, model_output: Any, past: Any, noise: Any, stream: int, out: Any, aux: Any, kind: Any,
    batched: bool | None,
) -> Any:  # fmt: skip
    """Does `backends.fast_row` for arrays of JAX: it reuses the program of an earlier, checked call."""
    models = model_output if type(model_output) is tuple else () if model_output is None else (model_output,)
    if out is not None or type(past) not in _SEVERAL or not (type(aux) is int or aux is None or aux == ()):
        return NotImplemented
    if batched is None:
        if image_layout("x", x) is not None:
            return NotImplemented
        batched = True
    t, arrays = t if type(t) is int else number(t), (x, *models, *(past or ()))
    outputs = again(signature(plain, stream, t, noise, arrays, len(models), aux or 0, kind, batched), t, noise, arrays)
    if outputs is NotImplemented:
        return outputs
    return tuple(outputs) if type(aux) is int else outputs[0]


_SEVERAL = tuple, list, type(None)


def fast_random(
    plain: Any, shape: Any, noise: Any, is_uniform: bool, kind: Any, batched: bool, is_other: bool, out: Any
) -> Any:
    """Does `backends.fast_random` for arrays of JAX: it reuses the program of an earlier, checked call."""
    if out is not None:
        return NotImplemented
    outputs = again(signature(plain, is_uniform, 0, noise, (), shape, kind, batched), 0, noise, ())
    return outputs if outputs is NotImplemented else outputs[0]


def signature(table: Any, stream: int, t: Any, noise: Any, arrays: Sequence[Any], *options: Any) -> Any:
    """Returns the common part of calls that are alike, or None if the call is not plain. table is one of the fast path,
    or a `Given`."""
    of_noise: Any = None
    if type(noise) is Noise:
        if type(noise.seed) is not int or type(noise.step) is not int or noise.window_shape is not None:
            return None
        of_noise = noise.stream
        if type(noise.sample) is not int:
            if type(noise.sample) is not np.ndarray:
                return None
            of_noise = of_noise, len(noise.sample)
    elif noise is not None:
        return None
    times = None
    if type(t) is not int:
        if not isinstance(t, np.ndarray) or t.dtype.kind != "i":
            return None
        times = t.shape
    place = table if type(table) is Given else id(table)
    parts: tuple[Any, ...] = place, stream, of_noise, times, backends.current(), options
    for x in arrays:
        if type(x) not in _concrete and not is_concrete(x):
            return None
        parts = *parts, x.shape, x.dtype
    return parts


def again(
    signature: Any, t: Any, noise: Any, arrays: Sequence[Any], rows: Rows | None = None, weight: Any = None
) -> Any:
    """Returns the outputs of a call like an earlier one. Returns NotImplemented if there was none, or if its numbers
    need the full checks. weight is float64, one for each row."""
    try:
        known = _known.get(signature)
    except TypeError:  # an option is an array or a list, and the full checks say what is wrong with it
        known = None
    if known is None:
        return NotImplemented
    if known.wide and not jax.config.jax_enable_x64:
        return NotImplemented
    operands: list[Any]
    if known.table is not None:
        if t.size == 0 or not lie_within(t, 0, known.n - 1):
            return NotImplemented
        operands = [known.table, t.astype(np.int32).reshape(-1), *arrays]
    elif not 0 <= t < known.n:
        return NotImplemented
    elif rows is None:
        operands = [known.rows[t], *arrays]
    else:
        operands = [rows.table if known.wide else rows.single, *arrays]
    if known.fields is not None:
        sample, step = noise.sample, noise.step
        if type(sample) is not int:
            sample = 0
        if step + known.n > STEPS or sample + known.batch > SAMPLES:
            return NotImplemented
        if known.by_index and known.table is None:
            step += t
        operands.append(known.fields[noise.seed, sample, step])
        if sample is not noise.sample:
            operands.append(noise.sample.view(np.uint32).reshape(-1, 2))
    if weight is not None:
        taken = weight if rows is not None else weight[t] if known.table is not None else weight[t : t + 1]
        if not lie_within(taken, -sys.float_info.max, sys.float_info.max):
            return NotImplemented
        operands.append((taken if known.table is None else weight).view(np.uint32).reshape(-1, 2))
    return known.program(*operands)


def remember(
    table: Any, like: Any, what: Described, operands: dict[int, Any], call: Step, arrays: dict[int, Any]
) -> None:
    """Remembers a call that was described, with this signature and these arrays by slot."""
    if like is None or is_in_mesh() or not {*operands} <= {ROWS, INDEX, FIELDS, IDS, WEIGHTS, *range(Z)}:
        return
    if any(x.dtype != operands[slot].dtype for slot, x in arrays.items() if slot in operands):
        return
    several = type(table) is not Given and call.index.size > 1
    order, constant = [ROWS, *([INDEX] if several else []), *arrays, FIELDS, IDS, WEIGHTS], dict[int, Any]()
    record = np.frombuffer(what.call, CALL.dtype).copy()
    if type(table) is not Given and not several:
        record["n_rows"] = 1
    elif not several and INDEX in operands:
        constant[INDEX] = operands[INDEX]
    last = {*order[-3:]} - {*operands}  # those that this call has not
    program = _program(
        replace(what, call=record.tobytes()), [role for role in order if role not in last], {*operands}, constant
    )
    if len(_known) >= MOST:
        _known.clear()
    wide, n = call.arithmetic == np.float64, len(call.rows.table)
    fields = Kept(*[_fields_like(operands[FIELDS].tobytes())] * 2) if FIELDS in operands else None
    of_all = operands[ROWS] if several else None
    _known[like] = Known(
        program, _rows_of(call.rows, wide), of_all, fields, n, call.batch, call.step_by_index, wide, table
    )


def _program(what: Described, order: Sequence[int], taken: set[int], constant: dict[int, Any]) -> Any:
    """Compiles the program. Its operands have this order, it uses those that are taken, and constants are built in."""
    places = [n for n, role in enumerate(order) if role in taken]
    what = replace(what, roles=(*[order[n] for n in places], *constant))
    return jax.jit(lambda *operands: call_p.bind(*[operands[n] for n in places], *constant.values(), what=what))


def _rows_of(rows: Rows, wide: bool) -> Any:
    """Returns the rows as JAX's arrays, kept with their table."""
    key = (-2, wide)
    if key not in rows.on_devices:
        table = rows.table if wide else rows.single
        row = lambda t: table[t : t + 1]  # noqa: E731
        rows.on_devices[key] = Kept(row, row)
    return rows.on_devices[key]


def _fields_like(like: bytes) -> Callable[[tuple[int, int, int]], Any]:
    """Returns a function of (seed, sample, step) that makes the bytes of a field of this shape and stream."""
    after_name = like[_NAME.size :]
    return lambda name: np.frombuffer(_NAME.pack(name[0], name[1], 0, 0, name[2]) + after_name, np.uint8)
