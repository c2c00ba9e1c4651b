# SPDX-License-Identifier: Apache-2.0
"""The forward process at levels that the caller has as numbers, learned ones among them."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from .. import backends
from ..arguments.arrays import as_array, host_numbers, is_traced
from ..arguments.calls import Index, is_batch, make_call, names_or_array, run, segments
from ..arguments.options import result_dtype, row_numbers
from ..arguments.types import Array, NoiseLike
from ..call.description import Step
from ..ground.libraries import library_for, library_of
from ..language.forward import forward
from ..language.levels import FLOATS, LEVELS, levels_of
from ..language.noise import FIELD
from ..language.rows import FastTable, Rows, X, Z
from ..language.tableau import of_rows
from ..views import Target, check_target
from .draw import drawn_like
from .update import update


def noised(
    x0: Array, alpha: ArrayLike | Array, sigma: ArrayLike | Array, noise: NoiseLike, *, target: Target | None = None,
    batched: bool | None = None, out: Array | None = None, target_out: Array | None = None,
) -> Any:  # fmt: skip
    """The forward process at given levels, in one pass: x_t = alpha x0 + sigma z, z ~ N(0, 1).

    `q_sample` looks alpha and sigma up in a schedule; here they are numbers, such as those of a learned schedule.

    Args:
        x0: An array or a tensor; float32, float64, float16 or bfloat16.
        alpha, sigma: Finite numbers: a scalar, (B,), or any prefix of x0's shape. Both have the same shape, or one is a
            scalar.
        noise: As in `q_sample`, whose draws these are.
        target: As in `q_sample`: "epsilon", "v", "flow" or "sample", computed in the same pass.
        batched: As in `q_sample`.
        out, target_out: Where to write; C-contiguous, of x0's shape and dtype. `out` may be x0 itself.

    Returns:
        x_t of x0's shape, dtype and kind, or (x_t, target).

    Raises:
        ValueError: An array has another shape, or a number is not finite.
        TypeError: x0 holds no floats, or an argument has another type. Nothing is written then.

    Gradients of tensors, and of JAX's arrays, reach x0, alpha and sigma: see Kingma et al. 2021 (VDM, a learned gamma).

    >>> x0 = np.ones((2, 3), np.float32)
    >>> schedule = nf.Schedule.flow()
    >>> x_t = nf.noised(x0, *schedule([0.25, 0.5]), nf.Noise(7))
    >>> np.array_equal(x_t, nf.q_sample(x0, [0.25, 0.5], schedule, nf.Noise(7)))
    True
    """
    library = None if type(x0) is np.ndarray else library_of(x0)
    known = (target_out is None) if target is None else type(target) is str
    if known and (library is None or not library.is_traced()) and (table := _TABLES[target]) is not None:
        aux: Any = None if target is None else 1 if target_out is None else (target_out,)
        done = backends.fast_row(table, (alpha, sigma), x0, None, None, noise, -1, out, aux, None, batched)
        if done is not NotImplemented:
            return done if target_out is None else (done, target_out)
    if target is not None:
        check_target(target)
    elif target_out is not None:
        raise ValueError("target_out: given without target=")
    given = x0, alpha, sigma, noise, target, is_batch("x0", x0, batched), out, target_out
    return library_for(x0).untraced(_noised, *given) if is_traced(x0) else _noised(*given)


def _noised(
    x0: Any, alpha: Any, sigma: Any, noise: Any, target: Target | None, batched: bool, out: Any, target_out: Any
) -> Any:
    if (library := library_of(x0)) is not None:
        return (library.noised or _of_library)(x0, alpha, sigma, noise, target, batched, out, target_out)
    results = run(noised_call(x0, alpha, sigma, noise, target, batched, out, target_out))
    return results[0] if target is None else (results[0], results[1])


class _FastTables(dict[Any, FastTable | None]):
    """Rows for the fast path, by target: no rows, and those at (alpha, sigma) = (0, 0), (1, 0) and (0, 1)."""

    def __missing__(self, target: Any) -> FastTable | None:
        if target not in (None, *get_args(Target)):
            return None
        ends = forward(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]), target)
        made = self[target] = ends.single[:0], ends.table[:0], ends.active, None, None, (None, 0.0, ends.table, None)
        return made


_TABLES = _FastTables()


def level_rows(alpha: Any, sigma: Any, shape: tuple[int, ...], target: Target | None) -> tuple[Rows, Index]:
    """Returns the rows of x_t and of the target, and which elements each covers."""
    columns, most = [], 1
    for name, numbers in (("alpha", alpha), ("sigma", sigma)):
        values = host_numbers(name, numbers)
        if values.dtype.kind not in "fiu" and values.dtype.name not in FLOATS:
            raise TypeError(f"{name}: expected numbers, got {values.dtype}")
        flat, segment = segments(name, values.astype(np.float64), shape)
        if not np.isfinite(flat).all():
            raise ValueError(f"{name}: expected finite numbers, got {flat[~np.isfinite(flat)][0]}")
        columns.append((flat, segment))
        most = max(most, len(flat))
    if {len(flat) for flat, _ in columns} - {1, most}:
        raise ValueError(f"alpha, sigma: expected one shape, got {np.shape(alpha)} and {np.shape(sigma)}")
    (of_x0, _), (of_noise, _) = columns
    if len(of_x0) != len(of_noise):
        of_x0, of_noise = np.broadcast_to(of_x0, most), np.broadcast_to(of_noise, most)
    return forward(of_x0, of_noise, target), Index(np.arange(most), min(segment for _, segment in columns))


def noised_call(
    x0: Array, alpha: ArrayLike | Array, sigma: ArrayLike | Array, noise: NoiseLike, target: Target | None,
    batched: bool, out: Array | None, target_out: Array | None,
) -> Step:  # fmt: skip
    """Returns `noised` as a checked call; nothing is written yet."""
    x = as_array("x0", x0, (*FLOATS, *LEVELS))
    if levels_of(x.dtype):
        raise TypeError(f"x0: dtype {x.dtype} is not supported, expected one of {', '.join(FLOATS)}")
    dtype = result_dtype(x)
    rows, index = level_rows(alpha, sigma, x.shape, target)
    names, z = names_or_array(noise, x.shape, dtype, batched, FIELD, any_stream=True)
    outs = {"out": out} if target is None else {"out": out, "target_out": target_out}
    return make_call(x.shape, dtype, rows, index, names, {X: x, Z: z}, outs, batched)


def _of_library(
    x0: Any, alpha: Any, sigma: Any, noise: Any, target: Target | None, batched: bool, out: Any, target_out: Any
) -> Any:
    rows, index = level_rows(alpha, sigma, tuple(x0.shape), target)
    shape = max((np.shape(alpha), np.shape(sigma)), key=math.prod)
    numbers = row_numbers(index, shape)
    z = noise if hasattr(noise, "shape") else drawn_like(x0, noise, batched)
    outputs: Any = () if target is None else 1 if target_out is None else (target_out,)
    made = update(of_rows(rows, "noised"), numbers, x0, None, noise=z, out=out, aux_out=outputs)
    x_t, found = (made, target_out) if target is None or target_out is not None else made
    following = library_for(x0).following
    x_t = following(x_t, (alpha, x0, 1), (sigma, z, 1))
    if target is None:
        return x_t
    return x_t, following(found, (alpha, z, 1), (sigma, x0, -1)) if target == "v" else found
