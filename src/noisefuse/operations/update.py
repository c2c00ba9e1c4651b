# SPDX-License-Identifier: Apache-2.0
"""Applies rows of a Tableau: a sampler's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import backends
from ..arguments.arrays import as_array, on_device
from ..arguments.calls import make_call, names_or_array, row_index, run
from ..arguments.options import (
    FAST_LEVELS,
    check_tableau,
    fast_path,
    inputs_of,
    level_options,
    levels_alone,
    those_read,
)
from ..arguments.types import Array, ArrayT, LevelOptions, Like, NoiseLike
from ..call.description import Step
from ..ground.libraries import NUMPY, library_of
from ..language.levels import Levels
from ..language.noise import SAMPLER, Noise
from ..language.rows import Z
from ..language.tableau import Tableau


@overload
def update(
    table: Tableau, i: ArrayLike | Array, x: Like[ArrayT], model_output: Array | tuple[Array, Array] | None = None, *,
    past: Sequence[Array] = (), noise: NoiseLike | None = None, out: Like[ArrayT] | None = None,
    aux_out: Sequence[Array] = (), **options: Unpack[LevelOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def update(
    table: Tableau, i: ArrayLike | Array, x: Like[ArrayT], model_output: Array | tuple[Array, Array] | None = None, *,
    past: Sequence[Array] = (), noise: NoiseLike | None = None, out: Like[ArrayT] | None = None, aux_out: int,
    **options: Unpack[LevelOptions],
) -> tuple[ArrayT, ...]: ...  # fmt: skip
def update(
    table: Tableau, i: ArrayLike | Array, x: Array, model_output: Array | tuple[Array, Array] | None = None, *,
    past: Sequence[Array] = (), noise: NoiseLike | None = None, out: Array | None = None,
    aux_out: Sequence[Array] | int = (), **options: Unpack[LevelOptions],
) -> Array:  # fmt: skip
    """One row of a tableau in one pass: D = clamp(..), then linear combinations of all, plus noise.

    Args:
        table: the rows; `print(table)` shows them as equations.
        i: the row as integers: a scalar, (B,) or any prefix of x's shape.
        x: an array or a torch tensor; float32, float64, float16 or bfloat16, with any strides (orders other than C take
            longer).
        model_output: m1, or (m1, m2), of x's shape. An output of another float dtype than x's is converted first.
        past: past1 .. past4, the newest first, of x's shape and dtype.
        noise: a Noise, a list of one for each row of x, or an array of x's shape. For a Noise of stream 0, z is the
            field of stream 3 at step `noise.step + i`. None is enough if the chosen rows draw nothing.
        out, aux_out: arrays to write to, for the result and up to two auxiliary outputs; C-contiguous, of x's shape and
            dtype. Each may be exactly one of the inputs. An integer aux_out asks for that many new arrays. `out` may
            hold uint8 or uint16 (see `q_sample`); so may a new result, with dtype="uint8" or "uint16".
        **options: dtype, out_scale and out_offset of an integer result.

    Returns:
        out, or the tuple (out, aux1, ..) if aux_out is a number.

    Raises:
        IndexError: the table has no such row.
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> table = nf.samplers.ddim(nf.Schedule.linear(1000), steps=10).tableau
    >>> x, m = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    >>> nf.update(table, 0, x, m, out=x) is x  # in place
    True
    """
    library = None if type(x) is np.ndarray else library_of(x)
    floating = out is None or out is x or getattr(out, "dtype", None) in (library or NUMPY).floating
    levels = None if floating and not options else levels_alone(out, **options)
    row = backends.fast_row if library is None else fast_path(library, "fast_row")
    if type(table) is Tableau and not table.masked and row is not None:
        rows = table.as_rows if levels is None else table.as_rows.scaled(*levels.range)
        kind = None if levels is None else FAST_LEVELS[levels.dtype]
        done: Array = row(rows.plain, i, x, model_output, past, noise, SAMPLER, out, aux_out, kind, True)
        if done is NotImplemented and library is not None and levels is None:
            plain = rows.plain, i, x, model_output, past, noise, SAMPLER, out, aux_out, None, True
            done = library.in_graph(row, plain, "update", table, ())
        if done is not NotImplemented:
            return done
    _check_several(model_output, past, aux_out)
    if library is not None:
        given = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
        return library.update(table, i, x, model_output, **given, **level_options(levels))
    results = run(update_call(table, i, x, model_output, past, noise, out, aux_out, levels))
    return results if isinstance(aux_out, int) else results[0]


def _check_several(model_output: object, past: object, aux_out: object) -> None:
    """Raises an error if one array stands for several, or several stand in the wrong container."""
    if isinstance(model_output, list):
        raise TypeError("model_output: expected an array or a tuple (m1, m2), got list")
    for name, given, number in (("past", past, ""), ("aux_out", aux_out, ", or a number of them")):
        if hasattr(given, "shape"):
            raise TypeError(f"{name}: expected a list or tuple of arrays{number}, got {type(given).__name__}")
    if isinstance(aux_out, int) and not 0 <= aux_out <= 2:
        raise ValueError(f"aux_out = {aux_out}: expected at most 2 auxiliary outputs")


def update_call(
    table: Tableau, i: ArrayLike | Array, x: Array, model_output: Array | tuple[Array, Array] | None,
    past: Sequence[Array], noise: NoiseLike | None, out: Array | None, aux_out: Sequence[Array] | int = (),
    levels: Levels | None = None,
) -> Step:  # fmt: skip
    """Returns `update` as a checked call; nothing is written yet."""
    check_tableau("table", table)
    if table.masked and levels is not None:
        raise ValueError(f"dtype {levels.dtype}: gradients are not rounded to integers")
    rows = table.as_rows if levels is None else table.as_rows.scaled(*levels.range)
    aux: Sequence[Array | None] = (None,) * aux_out if isinstance(aux_out, int) else aux_out
    x = as_array("x", x)
    index = row_index("i", i, len(table), x.shape)
    inputs = inputs_of(x, model_output, past, aux)
    names: tuple[Noise, ...] = ()
    drawn = Z in rows.reads
    if noise is not None:
        names, inputs[Z] = names_or_array(noise, x.shape, x.dtype, True, SAMPLER, last_step=index.last, drawn=drawn)
    elif rows.draws[slice(None) if on_device(index.values) else index.values].any():
        raise TypeError("noise: the row draws noise; expected a Noise or an array, got None")
    else:
        rows = rows.without_noise
    inputs = those_read(rows, inputs, x)
    names = names if drawn else ()
    outs = {"out": out} | {f"aux_out[{n}]": a for n, a in enumerate(aux)}
    if table.masked and len(outs) > 1:
        raise ValueError("aux_out: backward rows have one output")
    flags: dict[str, Any] = {"step_by_index": True, "masked": table.masked, "levels": levels and levels.dtype}
    return make_call(x.shape, x.dtype, rows, index, names, inputs, outs, **flags)
