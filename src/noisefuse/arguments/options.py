# SPDX-License-Identifier: Apache-2.0
"""Options and checks that operations share: times, tables, integer levels, names of arguments."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..call.packed import DTYPES
from ..ground.checks import check_number
from ..language.forward import Make
from ..language.levels import DEFAULT_RANGE, DEFAULT_RESULT, FLOATS, LEVELS, Levels, levels_of
from ..language.rows import M1, PAST1, PASTS, FastTable, Rows, X
from ..language.schedule import Schedule
from ..language.tableau import Tableau
from ..views import Target
from .arrays import on_device
from .calls import SLOTS, Index, checked_rows, like, segments, warn_once
from .types import Array, DType, Inputs, Shape


def fast_path(library: Any, name: str) -> Any:
    """Returns the function of `backends` for plain arguments, or this library's replacement. It is None while a
    compiler traces the call, which it cannot do here."""
    return getattr(library, name, None) if library.is_traced() else getattr(backends, name)


def row_numbers(index: Index, shape: tuple[int, ...]) -> Any:
    """Returns the rows as the fast path takes them: in the shape of the times, or 0 for a single row."""
    return 0 if len(index.values) == 1 else index.values.reshape(shape)


def rows_at(
    make: Make, target: Target | None, schedule: Schedule, t: ArrayLike | Array, shape: tuple[int, ...],
    dtype: np.dtype[Any] | None, scale: float | None, offset: float | None,
) -> tuple[Rows, Index]:  # fmt: skip
    """Returns the rows of x_t and the target (`forward`), or of the residual; and the row of each segment.

    Integer t: the schedule keeps a row for each of its steps. Float t: each time has a row. dtype is x0's.
    """
    times, segment = segments("t", t, shape)
    default = 1.0, 0.0
    if scale is None and offset is None:  # a pair: one number alone means another range
        default = DEFAULT_RANGE.get(levels_of(dtype) or "", default)
    x0_range = _finite("scale", scale, default[0]), _finite("offset", offset, default[1])
    if times.dtype.kind == "f":
        on_host: Any = times.get() if on_device(times) else times  # type: ignore[attr-defined]
        rows = make(*at_times(schedule, on_host), target, *x0_range, lambda: schedule.derivatives(on_host))
        return rows, Index(np.arange(times.size), segment)
    return schedule.kept.of(make, target, *x0_range), checked_rows("t", times, segment, len(schedule))


def at_times(schedule: Schedule, t: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns schedule(t) at the samples' times. It warns if floats look like the steps 0 and 1.

    A lone 1.0 does so only where networks are given the step: for a flow's it is the noisiest time.
    """
    levels = schedule(t)
    ends = t.size > 0 and t.dtype.kind == "f" and schedule.times == (0, 1) and t.item(t.argmax()) == 1
    if ends and (t.item(t.argmin()) == 0 or schedule.axis.timed_by_index) and np.isin(t, (0, 1)).all():
        said = f"0.0 and 1.0 are the cleanest and the noisiest time of a {schedule.kind} schedule"
        warn_once("times", f"t: as floats {said}; for the steps 0 and 1 pass integers")
    return levels


def result_dtype(x: Array) -> np.dtype[Any]:
    """Returns x's dtype, but float32 for integer levels."""
    return np.dtype(np.float32) if levels_of(x.dtype) else x.dtype


def fast_table(
    plain: dict[Any, FastTable], target: Target | None, scale: float | None, offset: float | None,
    levels: Levels | None = None,
) -> FastTable:  # fmt: skip
    """Returns the rows for the fast path, with x0 in this range and, for integer results, `levels`."""
    if scale is None and offset is None:
        return plain[target if levels is None else (target, None, levels)]
    return plain[target, (_finite("scale", scale, 1.0), _finite("offset", offset, 0.0)), levels]


FAST_LEVELS = {name: (DTYPES[name], np.dtype(name)) for name in LEVELS}  # a result dtype as the fast path takes it


def levels_asked(
    dtype: DType | None, out: Array | None, out_scale: float | None, out_offset: float | None
) -> Levels | None:
    """Returns a result's integer levels, which `dtype` or, without it, `out` asks for. It is None for floats."""
    asked = levels_of(getattr(out, "dtype", None) if dtype is None else dtype)
    if out_scale is None and out_offset is None:
        return None if asked is None else _DEFAULT_LEVELS[asked]
    if asked is None:
        for name, value in ("out_scale", out_scale), ("out_offset", out_offset):
            if value is not None:
                raise ValueError(f"{name} = {value!r}: expected dtype='uint8' or dtype='uint16', as it scales integers")
        return None
    return Levels(asked, (_finite("out_scale", out_scale, 1.0), _finite("out_offset", out_offset, 0.0)))


_DEFAULT_LEVELS = {name: Levels(name, default) for name, default in DEFAULT_RESULT.items()}


def levels_alone(
    out: Array | None, dtype: DType | None = None, out_scale: float | None = None, out_offset: float | None = None
) -> Levels | None:
    """Like `levels_asked`, but a float dtype is refused: results have x's dtype or an integer one."""
    levels = levels_asked(dtype, out, out_scale, out_offset)
    if dtype is not None and levels is None:
        raise TypeError(f"dtype {dtype}: expected 'uint8' or 'uint16', or None for x's dtype")
    return levels


def level_options(levels: Levels | None) -> dict[str, Any]:
    """Returns the options as the modules of `interop` take them: `out` does not count there."""
    if levels is None:
        return {}
    return {"dtype": levels.dtype, "out_scale": levels.range[0], "out_offset": levels.range[1]}


def check_tableau(name: str, table: object) -> None:
    if not isinstance(table, Tableau):
        raise TypeError(f"{name}: expected a noisefuse.Tableau, such as sampler.tableau, got {type(table).__name__}")


def lengths(shape: Shape) -> tuple[int, ...]:
    try:
        full = tuple(map(operator.index, shape)) if np.iterable(shape) else (operator.index(shape),)
    except TypeError:
        raise TypeError(f"shape: expected integers, got {shape!r}") from None
    if any(n < 0 for n in full):
        raise ValueError(f"shape {full}: expected lengths of at least 0")
    return full


def inputs_of(
    x: Array, model_output: Array | tuple[Array, Array] | None, past: Sequence[Array], aux: Sequence[Any] = ()
) -> Inputs:
    """Returns the inputs by slot, in x's dtype."""
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    if len(models) > 2 or len(past) > len(PASTS) or len(aux) > 2:
        raise ValueError(
            f"expected at most 2 model outputs, {len(PASTS)} past arrays and 2 auxiliary outputs, "
            f"got {len(models)}, {len(past)} and {len(aux)}"
        )
    inputs: Inputs = {X: x}
    inputs |= {M1 + n: like(SLOTS[M1 + n], m, x, FLOATS) for n, m in enumerate(models) if m is not None}
    inputs |= {PAST1 + n: like(SLOTS[PAST1 + n], p, x, (x.dtype.name,)) for n, p in enumerate(past)}
    return inputs


def those_read(rows: Rows, inputs: Inputs, x: Array) -> Inputs:
    for slot, name in SLOTS.items():
        if slot in rows.reads and slot not in inputs:
            raise TypeError(f"{name}: the table reads it; expected an array of shape {x.shape}, got none")
    return {slot: a for slot, a in inputs.items() if slot in rows.reads}


def _finite(name: str, value: float | None, default: float) -> float:
    return default if value is None else check_number(name, value) + 0.0  # -0 becomes 0, because ranges are keys
