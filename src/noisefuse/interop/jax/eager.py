# SPDX-License-Identifier: Apache-2.0
"""Calls in eager code. Of a call like an earlier one, with other numbers, the description is known and its program is
compiled: then its checks are those of its numbers, and JAX's own dispatch is most of it.

Each operand costs, and most of all one that is not JAX's yet. So numbers that are asked for again and again are kept as
JAX's arrays, and where that goes for all of a call it takes a program of few operands: the row itself, and all of the
noise's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from struct import pack_into
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import backends
from ...arguments.calls import image_layout
from ...call.description import Step
from ...call.packed import CALL, FIELD
from ...language.rows import Rows, Z
from ...noise import Noise
from .calls import call_p
from .description import FIELDS, IDS, INDEX, ROWS, STEP, Described

MOST, OFTEN = 256, 8
_PLACES = [FIELD.fields[name][1] for name in ("seed", "sample", "step")]  # type: ignore[index]


class Kept(dict[Any, Any]):
    """Arrays of JAX's by what they are made of, of that which is asked for often; before that what `else_` says."""

    make: Callable[..., Any]
    else_: Callable[..., Any]
    asked: dict[Any, int]

    def __init__(self, make: Callable[..., Any], else_: Callable[..., Any] = lambda key: None) -> None:
        self.make, self.else_, self.asked = make, else_, {}

    def __missing__(self, key: Any) -> Any:
        asked = self.asked
        asked[key] = times = asked.get(key, 0) + 1
        for numbers in self, asked:
            if len(numbers) > 4 * MOST:
                numbers.clear()
        if times < OFTEN or is_in_mesh():
            return self.else_(key)
        with jax.ensure_compile_time_eval():
            made = self[key] = jnp.asarray(self.make(key))
        return made


_numbers = Kept(int, int)


class Known(NamedTuple):
    few: Any  # the program of a row, arrays, and the field if there is one; None where t is an array
    all: Any  # that of the table, numbers of rows, arrays, and if there is a field that of a seed, a step and a sample
    rows: Kept  # by their numbers
    table: Any
    fields: Kept | None  # by seed, sample and step
    seeds: Kept | None  # by the seed alone
    n: int  # rows
    batch: int
    by_index: bool  # whether the step of row t is t later
    wide: bool
    plain: Any  # as long as it is here, its id is its own


_known: dict[Any, Known] = {}
_concrete: set[type] = set()


def is_concrete(x: Any) -> bool:
    if type(x) in _concrete:
        return True
    found = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    if found:
        _concrete.add(type(x))
    return found


def is_in_mesh() -> bool:
    """Whether new arrays lie on the devices of `jax.set_mesh`: those are not kept, for they go with no other mesh."""
    return not jax.sharding.get_abstract_mesh().empty


def number(t: Any) -> Any:
    """t, in host memory where it is known; a number where it is one."""
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
    """What `backends.fast_row` is to NumPy's arrays: of calls like one that was checked before."""
    models = model_output if type(model_output) is tuple else () if model_output is None else (model_output,)
    if out is not None or type(past) not in _SEVERAL or not (type(aux) is int or aux is None or aux == ()):
        return NotImplemented
    if batched is None:
        if image_layout("x", x) is not None:
            return NotImplemented
        batched = True
    t, arrays = t if type(t) is int else number(t), (x, *models, *(past or ()))
    found = _again(signature(plain, stream, t, noise, arrays, len(models), aux or 0, kind, batched), t, noise, arrays)
    if found is NotImplemented:
        return found
    return tuple(found) if type(aux) is int else found[0]


_SEVERAL = tuple, list, type(None)


def fast_random(
    plain: Any, shape: Any, noise: Any, is_uniform: bool, kind: Any, batched: bool, is_other: bool, out: Any
) -> Any:
    """The same for `backends.fast_random`."""
    if out is not None:
        return NotImplemented
    found = _again(signature(plain, is_uniform, 0, noise, (), shape, kind, batched), 0, noise, ())
    return found if found is NotImplemented else found[0]


def signature(plain: Any, stream: int, t: Any, noise: Any, arrays: Sequence[Any], *options: Any) -> Any:
    """What calls have in common that are like one another. None: a call that is not plain."""
    of_noise = None
    if type(noise) is Noise:
        if type(noise.step) is not int or type(noise.sample) is not int or noise.window_shape is not None:
            return None
        of_noise = noise.stream
    elif noise is not None:
        return None
    times = None
    if type(t) is not int:
        if not isinstance(t, np.ndarray) or t.dtype.kind != "i":
            return None
        times = t.shape
    made: tuple[Any, ...] = id(plain), stream, of_noise, times, backends.current(), options
    for x in arrays:
        if type(x) not in _concrete and not is_concrete(x):
            return None
        made = *made, x.shape, x.dtype
    return made


def _again(signature: Any, t: Any, noise: Any, arrays: Sequence[Any]) -> Any:
    """The outputs of a call like an earlier one. NotImplemented: of none, or its numbers have to be looked at."""
    try:
        known = _known.get(signature)
    except TypeError:  # of an option that is an array or a list: the checks say what is wrong with it
        known = None
    if known is None:
        return NotImplemented
    if known.wide and not jax.config.jax_enable_x64:
        return NotImplemented
    few, row, field = known.few, None, None
    if few is None:
        if t.size == 0 or not 0 <= t.min() <= t.max() < known.n:
            return NotImplemented
        index = t.astype(np.int32).reshape(-1)
    elif not 0 <= t < known.n:
        return NotImplemented
    elif (row := known.rows[t]) is None:
        index = _numbers[t]
    if known.seeds is None or known.fields is None:
        return few(row, *arrays) if row is not None else known.all(known.table, index, *arrays)
    seed, sample, step = noise.seed, noise.sample, noise.step
    if step + known.n >= _LARGE or sample + known.batch >= _LARGE:
        return NotImplemented
    if few is not None:
        field = known.fields[seed, sample, step + t if known.by_index else step]
        if row is not None and field is not None:
            return few(row, *arrays, field)
        index = _numbers[t]
    return known.all(known.table, index, *arrays, known.seeds[seed], _numbers[step], _numbers[sample])


_LARGE = 1 << 31  # JAX has no larger numbers without x64


def remember(
    plain: Any, like: Any, what: Described, operands: dict[int, Any], call: Step, given: dict[int, Any]
) -> None:
    """A call that was described, with this signature and these arrays by slot."""
    if like is None or is_in_mesh() or not {*operands} <= {ROWS, INDEX, FIELDS, *range(Z)}:
        return
    if any(x.dtype != operands[slot].dtype for slot, x in given.items() if slot in operands):
        return
    wide, few, fields, seeds = call.arithmetic == np.float64, None, None, None
    taken = {*operands}
    if FIELDS in operands:
        taken |= {STEP, IDS}
        of_name, of_seed = _fields_like(operands[FIELDS].tobytes())
        fields, seeds = Kept(of_name), Kept(of_seed, of_seed)
    if call.index.size == 1:
        record = np.frombuffer(what.call, CALL).copy()
        record["n_rows"] = 1
        few = _program(replace(what, call=record.tobytes()), [ROWS, *given, FIELDS], taken)
    every = _program(what, [ROWS, INDEX, *given, FIELDS, STEP, IDS], taken)
    if len(_known) >= MOST:
        _known.clear()
    table, n = operands[ROWS], len(call.rows.table)
    rows = _rows_of(call.rows, wide)
    _known[like] = Known(few, every, rows, table, fields, seeds, n, call.batch, call.step_by_index, wide, plain)


def _program(what: Described, order: Sequence[int], taken: set[int]) -> Any:
    """Of operands in this order, of which these are taken."""
    roles = tuple([role for role in order if role in taken])
    places, what = [order.index(role) for role in roles], replace(what, roles=roles)
    return jax.jit(lambda *operands: call_p.bind(*[operands[n] for n in places], what=what))


def _rows_of(rows: Rows, wide: bool) -> Any:
    """Kept with their table."""
    key = (-2, wide)
    if key not in rows.on_devices:
        table = rows.table if wide else rows.single
        rows.on_devices[key] = Kept(lambda t: table[t : t + 1])
    return rows.on_devices[key]


def _fields_like(like: bytes) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the bytes of fields of this shape and stream: of a seed, a sample and a step, or of the seed alone."""

    def of_name(name: tuple[int, int, int]) -> Any:
        made = bytearray(like)
        for place, letter, value in zip(_PLACES, "QQI", name, strict=True):
            pack_into(f"<{letter}", made, place, value)
        return np.frombuffer(made, np.uint8)

    return of_name, lambda seed: of_name((seed, 0, 0))
