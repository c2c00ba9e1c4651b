# SPDX-License-Identifier: Apache-2.0
"""The array API: every operation is one row of numbers, applied to every element by one kernel.

Arguments are checked here, once; backends trust their callers. Arrays are NumPy's, CuPy's, torch's or JAX's, and
results have x's kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import backends
from ..arguments import arrays, calls
from ..arguments.arrays import fast_dtype
from ..arguments.options import (
    FAST_LEVELS,
    fast_path,
    fast_table,
    level_options,
    levels_alone,
    levels_asked,
    result_dtype,
    rows_at,
)
from ..arguments.types import Array, ArrayT, DType, LevelOptions, Like, NoiseLike, SampleOptions
from ..call.description import Step, Walk
from ..ground.libraries import NUMPY, library_of
from ..language.forward import forward
from ..language.levels import FLOATS, LEVELS, Levels, levels_of
from ..language.noise import FIELD, WALK, Noise
from ..language.rows import Rows, X, Z
from ..language.schedule import Schedule, check_schedule
from ..views import Target, check_target


@overload
def q_sample(
    x0: Like[ArrayT], t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: None = None,
    out: Like[ArrayT] | None = None, target_out: None = None, **options: Unpack[SampleOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def q_sample(
    x0: Like[ArrayT], t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    out: Like[ArrayT] | None = None, target_out: Like[ArrayT] | None = None, **options: Unpack[SampleOptions],
) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
def q_sample(
    x0: Array, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target | None = None,
    scale: float | None = None, offset: float | None = None, dtype: DType | None = None, out_scale: float | None = None,
    out_offset: float | None = None, batched: bool | None = None, out: Array | None = None,
    target_out: Array | None = None,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """The forward process in one pass: x_t = alpha_t x0 + sigma_t z, z ~ N(0, 1) (Ho et al. 2020, eq. 4).

    diffusers calls this add_noise (and scale_noise for flows), with noise as an array. Here noise is a key.

    Args:
        x0: an array or a torch tensor; float32, float64, float16, bfloat16, uint8 or uint16, with any strides (orders
            other than C take longer).
        t: integers are steps of the schedule, 0 the cleanest. Floats are times with 1.0 the noisiest (cosine and flow),
            or sigma (karras, exponential, edm). A scalar, (B,), or any prefix of x0's shape.
        schedule: it gives alpha and sigma of each t.
        noise: a Noise, a list of one for each row, or an array of x0's shape (float32 or the result's dtype).
        target: also return what a network learns: "epsilon" z, "v" alpha z - sigma x0 (Salimans & Ho 2022), "flow" z -
            x0 (flow matching), "sample" x0, "velocity" d alpha x0 + d sigma z, derivatives by the schedule's own time
            (`Schedule.derivatives`). It is computed in the same pass.
        scale, offset: x0 stands for scale * x0 + offset, folded into the coefficients. With neither, floats are taken
            as they are, uint8 with 1/127.5 and -1, uint16 with 1/32767.5 and -1. If only one is given, the other is 1
            or 0, for integers too.
        dtype: the result's dtype. None: x0's, or float32 for integers. "uint8": x_t in bytes, which is out_scale * x_t
            + out_offset, rounded to nearest even and clipped to 0 .. 255, with 0 for NaN; the target stays float.
            "uint16" is the same from 0 to 65535.
        out_scale, out_offset: factor and summand of an integer result. With neither they map [-1, 1] to the whole
            range: 127.5 and 127.5 for bytes, 32767.5 and 32767.5 for uint16. If only one is given, the other is 1 or 0.
        batched: False makes the whole array one sample. None is True, but integers of shape (H, W, C) with 1, 3 or 4
            channels and sides of 16 or more may be one image, so they need True or False; (C, H, W) gives a warning,
            once.
        out, target_out: arrays to write to; C-contiguous, of the result's shape and dtype. `out` may be x0 itself, and
            may hold uint8 or uint16 if dtype is not given.

    Returns:
        x_t, or the pair (x_t, target). Arrays are in C order, even if x0 is in Fortran order; tensors keep x0's memory
        format, such as channels_last.

    Raises:
        IndexError: t lies outside the schedule.
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> x_t, z = nf.q_sample(np.ones((2, 3), np.float32), [10, 500], schedule, noise, target="epsilon")
    >>> np.array_equal(z, nf.randn((2, 3), noise))
    True
    """
    library = None if type(x0) is np.ndarray else library_of(x0)
    levels = None
    floating = out is None or getattr(out, "dtype", None) in (library or NUMPY).floating
    if not (floating and dtype is None and out_scale is None and out_offset is None):
        levels = levels_asked(dtype, out, out_scale, out_offset)
    known = type(target) is str or (target is None and target_out is None)
    row = backends.fast_row if library is None else fast_path(library, "fast_row")
    if known and type(schedule) is Schedule and row is not None:
        table = fast_table(schedule.kept.plain, target, scale, offset, levels)
        kind = FAST_LEVELS[levels.dtype] if levels else None if dtype is None else fast_dtype(dtype, library)
        aux: Any = None if target is None else 1 if target_out is None else (target_out,)
        done = row(table, t, x0, None, None, noise, -1, out, aux, kind, batched)
        if done is NotImplemented and library is not None and levels is None:
            given = table, t, x0, None, None, noise, -1, out, aux, kind, batched
            done = library.in_graph(row, given, "q_sample", schedule, (("target", target), ("scale", scale)))
        if done is not NotImplemented:
            return done if target_out is None else (done, target_out)
    batched = calls.is_batch("x0", x0, batched)
    if library is not None:
        asked = {"target": target, "scale": scale, "offset": offset, "target_out": target_out}
        asked |= level_options(levels) or {"dtype": dtype}
        return library.q_sample(x0, t, schedule, noise, batched=batched, out=out, **asked)
    options = target, scale, offset, dtype, levels, batched
    results = calls.run(q_sample_call(x0, t, schedule, noise, *options, out, target_out))
    return results[0] if target is None else (results[0], results[1])


def q_step(
    x: Like[ArrayT], t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, batched: bool | None = None,
    out: Like[ArrayT] | None = None, **options: Unpack[LevelOptions],
) -> ArrayT:  # fmt: skip
    """One Markov step of the walk: x_t = a_t x_(t-1) + s_t z_t.

    With betas, a = sqrt(1 - beta) and s = sqrt(beta) (Ho et al. 2020, eq. 2). In general a_t = alpha_t / alpha_(t-1)
    and s_t^2 = sigma_t^2 - a_t^2 sigma_(t-1)^2, where alpha = 1 and sigma = 0 before t = 0. z_t is the field of stream
    1 at step `noise.step + t`. Each sample or token with its own t has its own z_t.

    Args:
        x: as x0 of `q_sample`; uint8 stands for x / 127.5 - 1, uint16 for x / 32767.5 - 1.
        t: integers: a scalar, (B,), or any prefix of x's shape.
        schedule, batched, out: as in `q_sample`.
        noise: a Noise of stream 0, a list of one for each row, or an array of x's shape.
        **options: dtype, out_scale and out_offset, as in `q_sample`.

    Returns:
        x_t, of x's shape and dtype. Integer x gives float32 or, with dtype="uint8" or "uint16", integers.

    Raises:
        IndexError: t lies outside the schedule.
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> x0 = np.ones((2, 3), np.float32)
    >>> x = nf.q_step(nf.q_step(x0, 0, schedule, noise), 1, schedule, noise)
    >>> np.array_equal(x, nf.q_walk(x0, schedule, noise, keep=[1])[0])
    True
    """
    check_schedule(schedule)
    library = None if type(x) is np.ndarray else library_of(x)
    floating = out is None or getattr(out, "dtype", None) in (library or NUMPY).floating
    levels = None if floating and not options else levels_alone(out, **options)
    if (row := backends.fast_row if library is None else fast_path(library, "fast_row")) is not None:
        kept = schedule.kept
        plain = kept.fast_markov if levels is None else kept.fast_markov_to(levels)
        kind = None if levels is None else FAST_LEVELS[levels.dtype]
        done: Array = row(plain, t, x, None, None, noise, WALK, out, None, kind, batched)
        if done is NotImplemented and library is not None and levels is None:
            given = plain, t, x, None, None, noise, WALK, out, None, None, batched
            done = library.in_graph(row, given, "q_step", schedule, ())
        if done is not NotImplemented:
            return done
    batched = calls.is_batch("x", x, batched)
    if library is not None:
        return library.q_step(x, t, schedule, noise, batched=batched, out=out, **level_options(levels))
    return calls.run(q_step_call(x, t, schedule, noise, levels, batched, out))[0]


def q_walk(
    x0: Like[ArrayT], schedule: Schedule, noise: Noise | Sequence[Noise], *, keep: Sequence[int] | None = None,
    batched: bool | None = None, out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """The random walk from x0 through the whole schedule in one pass: T steps for one read of x0.

    It equals q_step at t = 0, 1, ... bit for bit. The half types walk in float32 and round what is kept.

    Args:
        x0: as x of `q_step`.
        schedule, batched: as in `q_sample`.
        noise: a Noise of stream 0, or a list of one for each row.
        keep: the times t whose x_t are wanted, strictly increasing. None: all of them.
        out: An array to write to, C-contiguous, (len(keep), *x0.shape), of x0's dtype.

    Returns:
        (len(keep), *x0.shape), of x0's dtype, or float32 for integers.

    Raises:
        IndexError: a time lies outside the schedule.
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> walk = nf.q_walk(np.ones((2, 3), np.float32), nf.Schedule.linear(100), nf.Noise(7), keep=[0, 49, 99])
    >>> walk.shape
    (3, 2, 3)
    """
    check_schedule(schedule)
    library = None if type(x0) is np.ndarray else library_of(x0)
    if (walk := backends.fast_walk if library is None else fast_path(library, "fast_walk")) is not None:
        done: Array = walk(schedule.kept.fast_markov, x0, noise, keep, out, batched)
        if done is not NotImplemented:
            return done
    batched = calls.is_batch("x0", x0, batched)
    if library is not None:
        return library.q_walk(x0, schedule, noise, keep=keep, batched=batched, out=out)
    x: Any = arrays.as_array("x0", x0, (*FLOATS, *LEVELS))
    dtype, kept = result_dtype(x), calls.kept_times(keep, len(schedule))
    if arrays.is_array(noise):
        raise TypeError("noise: expected a Noise, as q_walk draws at every time, got an array")
    names, _ = calls.names_or_array(noise, x.shape, dtype, batched, WALK, last_step=int(kept[-1]) if len(kept) else 0)
    written: Any = [("out", out)] if out is not None and arrays.is_array(out) else []
    device = arrays.one_place([("x0", x), *written])
    calls.check_place(device, calls.Index(np.zeros(1, np.int64), x.size), names)
    result: Any = arrays.output("out", out, (len(kept), *x.shape), dtype, device)
    x = calls.readable(x, dtype)
    if arrays.overlap(result, x):
        raise ValueError("out overlaps x0: the walk reads x0 and writes every kept time")
    if result.size == 0:
        return result
    rows, slots = schedule.kept.markov, np.full(int(kept[-1]) + 1, -1, np.int64)
    slots[kept] = np.arange(len(kept))
    if levels_of(x.dtype):  # a walk's row has no constant, so a step of its own scales the integer levels
        x = q_step(x, 0, schedule, noise, batched=batched)
        if slots[0] == 0:
            result[0] = x
        if len(slots) == 1:
            return result
        rows, slots, names = Rows(rows.table[1:], rows.active), slots[1:], tuple(n.at(step=n.step + 1) for n in names)
    first = Step.of_one_row(*arrays.batch_shape(x.shape, batched), rows, x, result, "normal", names)
    backends.of(result).run(Walk(first, slots))
    return result


# ---- calls -------------------------------------------------------------------------------------------------


def q_sample_call(
    x0: Array, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, target: Target | None, scale: float | None,
    offset: float | None, dtype: DType | None, levels: Levels | None, batched: bool, out: Array | None = None,
    target_out: Array | None = None,
) -> Step:  # fmt: skip
    """Returns `q_sample` as a checked call; nothing is written yet."""
    check_schedule(schedule)
    x = arrays.as_array("x0", x0, (*FLOATS, *LEVELS))
    kind = result_dtype(x) if dtype is None or levels else arrays.float_dtype(dtype)
    if dtype is None and levels_of(x.dtype) and not levels and getattr(out, "dtype", kind) != kind:
        raise TypeError(f"out: expected float32, got {out.dtype}; for another dtype pass dtype=")  # type: ignore[union-attr]
    if target is not None:
        check_target(target)
    if target is None and target_out is not None:
        raise ValueError("target_out: given without target=")
    rows, index = rows_at(forward, target, schedule, t, x.shape, x.dtype, scale, offset)
    if levels is not None:
        rows = rows.scaled(*levels.range)
    names, z = calls.names_or_array(noise, x.shape, kind, batched, FIELD, any_stream=True)
    outs = {"out": out} if target is None else {"out": out, "target_out": target_out}
    inputs = {X: x, Z: z}
    return calls.make_call(x.shape, kind, rows, index, names, inputs, outs, batched, levels=levels and levels.dtype)


def q_step_call(
    x: Array, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, levels: Levels | None, batched: bool,
    out: Array | None = None,
) -> Step:  # fmt: skip
    """Returns `q_step` as a checked call; nothing is written yet."""
    check_schedule(schedule)
    x = arrays.as_array("x", x, (*FLOATS, *LEVELS))
    dtype = result_dtype(x)
    t_index = calls.row_index("t", t, len(schedule), x.shape)
    names, z = calls.names_or_array(noise, x.shape, dtype, batched, WALK, last_step=t_index.last)
    rows, inputs = schedule.kept.markov_of[levels_of(x.dtype)], {X: x, Z: z}
    if levels is not None:
        rows = rows.scaled(*levels.range)
    flags: dict[str, Any] = {"step_by_index": True, "levels": levels and levels.dtype}
    return calls.make_call(x.shape, dtype, rows, t_index, names, inputs, {"out": out}, batched, **flags)
