# SPDX-License-Identifier: Apache-2.0
"""The array API: every operation is one row of numbers, applied to every element by one kernel.

Arguments are checked here, once; backends trust their callers. Arrays are NumPy's, CuPy's, torch's or JAX's: results
are of x's kind.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeGuard, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import backends
from .arguments.arrays import (
    as_array,
    batch_shape,
    contiguous,
    copy,
    count,
    device_of,
    fast_dtype,
    float_dtype,
    host_view,
    is_array,
    is_written,
    on_device,
    one_place,
    output,
    overlap,
    pieces,
    wanted,
)
from .arguments.calls import (
    SLOTS,
    Index,
    check_place,
    checked_rows,
    is_batch,
    kept_times,
    like,
    make_call,
    names_or_array,
    readable,
    row_index,
    run,
    segments,
    warn_once,
)
from .call.description import Draw, Step, Walk
from .call.packed import DTYPES
from .ground.kinds import library, library_of
from .language.forward import Make, forward
from .language.increments import Terms
from .language.levels import DEFAULT_RANGE, DEFAULT_RESULT, FLOATING, FLOATS, LEVELS, Levels, levels_of
from .language.rows import M1, PAST1, PASTS, Z_BITS, Plain, Rows, X, Z
from .noise import FIELD, SAMPLER, UNIFORM, WALK, Increment, Noise, got
from .schedule import UNIT_TIMES, Schedule, need_schedule
from .tableau import Tableau
from .views import Target, need_target

if TYPE_CHECKING:
    import torch


class HasShape(Protocol):
    """Type checkers know this much of arrays of other libraries than NumPy."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


Array: TypeAlias = Any  # of NumPy, CuPy, torch, JAX or dask: results are of the kind that x is
ArrayT = TypeVar("ArrayT", bound=HasShape)  # of another library than NumPy
DType: TypeAlias = "DTypeLike | torch.dtype"
NumPyDType: TypeAlias = "str | np.dtype[Any] | type[np.generic] | type[float] | None"
Device: TypeAlias = "torch.device | str"
Shape: TypeAlias = int | Sequence[int]
Drawn: TypeAlias = Noise | Increment | Sequence[Noise] | Sequence[Increment]
NoiseLike: TypeAlias = Noise | Sequence[Noise] | Array
Inputs: TypeAlias = dict[int, Array | None]  # arrays by slot

UNIT = Rows.of({"out.z": 1.0})


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011): the raw words of the generator, in Random123's order.

    Args:
        counter: uint32 (..., 4).
        key: uint32 (..., 2); their leading shapes broadcast.

    Returns:
        uint32 (..., 4).

    Raises:
        TypeError: not integers, or another last axis.
        OverflowError: a word outside [0, 2^32).

    >>> [hex(word) for word in nf.philox4x32([0, 0, 0, 0], [0, 0]).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c, k = _words("counter", counter, 4), _words("key", key, 2)
    shape = np.broadcast_shapes(c.shape[:-1], k.shape[:-1])
    c = contiguous(np.broadcast_to(c, (*shape, 4))).reshape(-1, 4)
    k = contiguous(np.broadcast_to(k, (*shape, 2))).reshape(-1, 2)
    philox, words = backends.current().philox, np.empty_like(c)
    for part in pieces(c.shape):
        words[part] = philox(c[part], k[part])
    return words.reshape(*shape, 4)


@overload
def randn(
    shape: Shape, noise: Drawn, *, dtype: NumPyDType = "float32", batched: bool = True, out: None = None,
    device: None = None, chunks: None = None,
) -> NDArray[Any]: ...  # fmt: skip
@overload
def randn(
    shape: Shape, noise: Drawn, *, dtype: torch.dtype, batched: bool = True, out: None = None,
    device: Device | None = None, chunks: None = None,
) -> torch.Tensor: ...  # fmt: skip
@overload
def randn(
    shape: Shape, noise: Drawn, *, dtype: NumPyDType = "float32", batched: bool = True, out: None = None,
    device: Device, chunks: None = None,
) -> torch.Tensor: ...  # fmt: skip
@overload
def randn(
    shape: Shape, noise: Drawn, *, dtype: DType | None = "float32", batched: bool = True, out: ArrayT,
    device: None = None, chunks: None = None,
) -> ArrayT: ...  # fmt: skip
@overload
def randn(
    shape: Shape, noise: Drawn, *, dtype: DType | None = "float32", batched: bool = True, out: None = None,
    device: None = None, chunks: Any,
) -> Any: ...  # fmt: skip
def randn(
    shape: Shape,
    noise: Drawn,
    *,
    dtype: DType | None = "float32",
    batched: bool = True,
    out: Array | None = None,
    device: Device | None = None,
    chunks: Any = None,
) -> Array:
    """Standard normals: the field that `noise` names (docs/noise.md). torch.randn, with a name in place of a generator.

    Args:
        shape: of the result; axis 0 is the batch, row b the sample `noise.sample + b`.
        noise: Noise, or a list of one for each row. Or the increment of a Brownian motion, `Noise.interval`, or a list
            of one for each row.
        dtype: float32 (or None), float64 (the same field with more digits), float16, bfloat16 (float32's values,
            rounded). A dtype of torch makes a tensor, one of jax.numpy an array of JAX's.
        batched: False makes the whole array one sample.
        out: array of this shape and dtype to write to, C-contiguous.
        device: make a tensor of torch's there: "cuda", torch.device("cuda:1"). None: a tensor, which a dtype of torch
            asks for, lies on the CPU.
        chunks: make an array of dask's, in chunks as dask takes them (docs/dask.md).

    Returns:
        The array of this shape and dtype; it is out, where that is given.

    Raises:
        OverflowError: a sample id beyond 2^56 - 1, or a sample of more than 2^34 elements.
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    Source: Box & Muller (1958) on Philox4x32-10; radius within 2.5 ulp, cos and sin within 2^-22 (float32).

    >>> z = nf.randn((4, 3), nf.Noise(7))
    >>> np.array_equal(z[2:], nf.randn((2, 3), nf.Noise(7, sample=2)))
    True
    """
    if chunks is not None:
        _need_memory(noise)
        options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out, "device": device}
        return library("dask").randn(lengths(shape), noise, chunks=chunks, **options)
    if device is not None:
        out = _made_on(device, shape, dtype, out)
    return _random("randn", shape, noise, dtype, batched, out)


@overload
def randn_like(
    x: NDArray[Any],
    noise: Drawn,
    *,
    dtype: DType | None = None,
    batched: bool | None = None,
) -> NDArray[Any]: ...
@overload
def randn_like(
    x: ArrayT,
    noise: Drawn,
    *,
    dtype: DType | None = None,
    batched: bool | None = None,
) -> ArrayT: ...
def randn_like(
    x: Array,
    noise: Drawn,
    *,
    dtype: DType | None = None,
    batched: bool | None = None,
) -> Array:
    """`randn` of x's shape, kind, dtype, device and, of torch, memory format: ``randn_like(images, Noise(7))``.

    Args:
        x: NumPy's, CuPy's, torch's or, in host memory, any that speaks DLPack, of any dtype; its values are not read.
        noise: as in `randn`.
        batched: as in `q_sample`.
        dtype: of the result: one that `randn` takes. None: x's, or float32 where x holds integers or bools.

    Returns:
        A new array of x's shape and kind, on its device.

    Raises:
        TypeError: x is no array, or a dtype that is no float of `randn`'s.
        ValueError: x may be one image, as in `q_sample`.

    >>> images = np.zeros((2, 3, 8, 8), np.uint8)
    >>> nf.randn_like(images, nf.Noise(7)).dtype
    dtype('float32')
    """
    if type(x) is np.ndarray and dtype is None and x.dtype.kind == "f" and x.dtype.isnative:
        return _random("randn", x.shape, noise, x.dtype, True if batched is None else batched, None)
    batched = is_batch("x", x, batched)
    if not is_written(x):
        _need_memory(noise, library_of(x))
        return library_of(x).randn_like(x, noise, dtype=dtype, batched=batched)
    if (other := library_of(x)) is not None and hasattr(type(x), "shape"):  # a dtype has none
        out = other.empty_like(x, dtype)
        drawn = _random("randn", tuple(x.shape), noise, x.dtype if out is None else out.dtype, batched, out)
        return other.in_format(drawn, x)
    if not is_array(x):
        raise TypeError(f"x: expected {wanted(x)}, got {type(x).__name__}")
    x = host_view("x", x)
    kind = float_dtype(dtype or (np.float32 if x.dtype.kind in "biu" else x.dtype.newbyteorder("=")))
    out = output("out", None, x.shape, kind, device_of(x))
    return _random("randn", tuple(x.shape), noise, kind, batched, out)


@overload
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: NumPyDType = "float32", batched: bool = True,
    out: None = None, device: None = None, chunks: None = None,
) -> NDArray[Any]: ...  # fmt: skip
@overload
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: torch.dtype, batched: bool = True, out: None = None,
    device: Device | None = None, chunks: None = None,
) -> torch.Tensor: ...  # fmt: skip
@overload
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: NumPyDType = "float32", batched: bool = True,
    out: None = None, device: Device, chunks: None = None,
) -> torch.Tensor: ...  # fmt: skip
@overload
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: DType | None = "float32", batched: bool = True,
    out: ArrayT, device: None = None, chunks: None = None,
) -> ArrayT: ...  # fmt: skip
@overload
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: DType | None = "float32", batched: bool = True,
    out: None = None, device: None = None, chunks: Any,
) -> Any: ...  # fmt: skip
def uniform(
    shape: Shape,
    noise: Noise | Sequence[Noise],
    *,
    dtype: DType | None = "float32",
    batched: bool = True,
    out: Array | None = None,
    device: Device | None = None,
    chunks: Any = None,
) -> Array:
    """Uniforms in (0, 1), never 0 or 1: as `randn`, on stream 7 unless the noise names another than 0.

    float32: (floor(w / 2^9) + 1/2) / 2^23 of the word w; float64: the same field with 52 bits. Other dtypes could not
    keep 1 out.

    Args:
        shape, noise, batched, out, device, chunks: as in `randn`.
        dtype: float32 (or None) or float64, of NumPy, torch or jax.numpy.

    Returns:
        The array of this shape and dtype; it is out, where that is given.

    Raises:
        TypeError: another dtype. Others as `randn`.

    >>> t = (1000 * nf.uniform(8, nf.Noise(7))).astype(int)  # a time for each sample
    >>> bool(t.min() >= 0 and t.max() < 1000)
    True
    """
    if chunks is not None:
        options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out, "device": device}
        return library("dask").uniform(lengths(shape), noise, chunks=chunks, **options)
    if device is not None:
        out = _made_on(device, shape, dtype, out)
    return _random("uniform", shape, noise, dtype, batched, out)


class LevelOptions(TypedDict, total=False):
    """What asks for a result in levels: dtype="uint8" or "uint16", and its range, as in `q_sample`."""

    dtype: DType | None
    out_scale: float | None
    out_offset: float | None


class SampleOptions(LevelOptions, total=False):
    """The options of `q_sample` that its results' type does not depend on."""

    scale: float | None
    offset: float | None
    batched: bool | None


@overload
def q_sample(
    x0: NDArray[Any], t: ArrayLike, schedule: Schedule, noise: NoiseLike, *, target: None = None,
    out: NDArray[Any] | None = None, target_out: None = None, **options: Unpack[SampleOptions],
) -> NDArray[Any]: ...  # fmt: skip
@overload
def q_sample(
    x0: NDArray[Any], t: ArrayLike, schedule: Schedule, noise: NoiseLike, *, target: Target,
    out: NDArray[Any] | None = None, target_out: NDArray[Any] | None = None, **options: Unpack[SampleOptions],
) -> tuple[NDArray[Any], NDArray[Any]]: ...  # fmt: skip
@overload
def q_sample(
    x0: ArrayT, t: ArrayLike | ArrayT, schedule: Schedule, noise: NoiseLike, *, target: None = None,
    out: ArrayT | None = None, target_out: None = None, **options: Unpack[SampleOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def q_sample(
    x0: ArrayT, t: ArrayLike | ArrayT, schedule: Schedule, noise: NoiseLike, *, target: Target,
    out: ArrayT | None = None, target_out: ArrayT | None = None, **options: Unpack[SampleOptions],
) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
def q_sample(
    x0: Array,
    t: ArrayLike | Array,
    schedule: Schedule,
    noise: NoiseLike,
    *,
    target: Target | None = None,
    scale: float | None = None,
    offset: float | None = None,
    dtype: DType | None = None,
    out_scale: float | None = None,
    out_offset: float | None = None,
    batched: bool | None = None,
    out: Array | None = None,
    target_out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """The forward process in one pass: x_t = alpha_t x0 + sigma_t z, z ~ N(0, 1) (Ho et al. 2020, eq. 4).

    diffusers calls this add_noise (and scale_noise for flows); there noise is an array, here it is named.

    Args:
        x0: an array or a torch tensor; float32, float64, float16, bfloat16, uint8 or uint16, any strides (others
            than C order are copied first).
        t: integers, steps of the schedule, 0 the cleanest; or floats, times with 1.0 the noisiest (cosine and flow),
            or sigma (karras, exponential, edm). A scalar, (B,), or any prefix of x0's shape.
        schedule: alpha and sigma of each t.
        noise: Noise, a list of one for each row, or an array of x0's shape (float32 or the result's dtype).
        target: also return what a network learns: "epsilon" z, "v" alpha z - sigma x0 (Salimans & Ho 2022), "flow"
            z - x0 (flow matching; "velocity" is the same), "sample" x0; computed in the same pass.
        scale, offset: x0 stands for scale * x0 + offset, folded into the coefficients. Neither given: x0 itself, and
            of uint8 scale 1/127.5, offset -1, of uint16 1/32767.5, -1. Where one is given, the other is 1 or 0, of
            integers too.
        dtype: of the result; x0's, or float32 for integers. "uint8": x_t in bytes, out_scale * x_t + out_offset rounded
            to nearest even from 0 to 255, NaN to 0; the target stays float. "uint16" is the same from 0 to 65535.
        out_scale, out_offset: of a result in integers, folded into the coefficients. Neither given: 127.5 and 127.5, or
            32767.5 and 32767.5, from [-1, 1]. Where one is given, the other is 1 or 0.
        batched: False makes the whole array one sample. None is True, but for integers that may be one image, (H, W, C)
            with 1, 3 or 4 channels and sides of 16 or more: there it has to be said.
        out, target_out: where to write; C-contiguous, of the result's shape and dtype. `out` may be x0 itself, and
            of uint8 or uint16 where dtype is not given.

    Returns:
        x_t, or the pair (x_t, target). Arrays are in C order, whatever x0's is (Fortran's, say); tensors have x0's
        memory format, as channels_last.

    Raises:
        IndexError: t outside of the schedule.
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> x_t, z = nf.q_sample(np.ones((2, 3), np.float32), [10, 500], schedule, noise, target="epsilon")
    >>> np.array_equal(z, nf.randn((2, 3), noise))
    True
    """
    other = None if type(x0) is np.ndarray else library_of(x0)
    levels = None
    floating = out is None or getattr(out, "dtype", None) in FLOATING
    if not (floating and dtype is None and out_scale is None and out_offset is None):
        levels = levels_asked(dtype, out, out_scale, out_offset)
    named = type(target) is str or (target is None and target_out is None)
    row = backends.fast_row if other is None else fast_path(other, "fast_row")
    if named and type(schedule) is Schedule and row is not None:
        table = plain_table(schedule.kept.plain, target, scale, offset, levels)
        kind = FAST_LEVELS[levels.dtype] if levels else None if dtype is None else fast_dtype(dtype, other)
        aux: Any = None if target is None else 1 if target_out is None else (target_out,)
        done = row(table, t, x0, None, None, noise, -1, out, aux, kind, batched)
        if done is not NotImplemented:
            return done if target_out is None else (done, target_out)
    batched = is_batch("x0", x0, batched)
    if other is not None:
        given = {"target": target, "scale": scale, "offset": offset, "target_out": target_out}
        given |= _named(levels) or {"dtype": dtype}
        return other.q_sample(x0, t, schedule, noise, batched=batched, out=out, **given)
    options = target, scale, offset, dtype, levels, batched
    results = run(q_sample_call(x0, t, schedule, noise, *options, out, target_out))
    return results[0] if target is None else (results[0], results[1])


@overload
def q_step(
    x: NDArray[Any], t: ArrayLike, schedule: Schedule, noise: NoiseLike, *, batched: bool | None = None,
    out: NDArray[Any] | None = None, **options: Unpack[LevelOptions],
) -> NDArray[Any]: ...  # fmt: skip
@overload
def q_step(
    x: ArrayT, t: ArrayLike | ArrayT, schedule: Schedule, noise: NoiseLike, *, batched: bool | None = None,
    out: ArrayT | None = None, **options: Unpack[LevelOptions],
) -> ArrayT: ...  # fmt: skip
def q_step(
    x: Array,
    t: ArrayLike | Array,
    schedule: Schedule,
    noise: NoiseLike,
    *,
    batched: bool | None = None,
    out: Array | None = None,
    **options: Unpack[LevelOptions],
) -> Array:
    """One Markov step of the walk: x_t = a_t x_(t-1) + s_t z_t.

    a = sqrt(1 - beta), s = sqrt(beta) where there are betas (Ho et al. 2020, eq. 2). In general
    a_t = alpha_t / alpha_(t-1) and s_t^2 = sigma_t^2 - a_t^2 sigma_(t-1)^2, from alpha = 1, sigma = 0 before t = 0.
    z_t is the field of stream 1 at step `noise.step + t`; with t for each sample or token each takes its own.

    Args:
        x: as x0 of `q_sample`; of uint8 it stands for x / 127.5 - 1, of uint16 for x / 32767.5 - 1.
        t: integers; a scalar, (B,), or any prefix of x's shape.
        schedule, batched, out: as in `q_sample`.
        noise: Noise of stream 0, a list of one for each row, or an array of x's shape.
        **options: dtype, out_scale, out_offset, as in `q_sample`.

    Returns:
        x_t, of x's shape and dtype, of integers float32 or, with dtype="uint8" or "uint16", integers.

    Raises:
        IndexError: t outside of the schedule.
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> x0 = np.ones((2, 3), np.float32)
    >>> x = nf.q_step(nf.q_step(x0, 0, schedule, noise), 1, schedule, noise)
    >>> np.array_equal(x, nf.q_walk(x0, schedule, noise, keep=[1])[0])
    True
    """
    need_schedule(schedule)
    other = None if type(x) is np.ndarray else library_of(x)
    floating = out is None or getattr(out, "dtype", None) in FLOATING
    levels = None if floating and not options else levels_alone(out, **options)
    if (row := backends.fast_row if other is None else fast_path(other, "fast_row")) is not None:
        kept = schedule.kept
        plain = kept.plain_markov if levels is None else kept.plain_markov_to(levels)
        kind = None if levels is None else FAST_LEVELS[levels.dtype]
        done: Array = row(plain, t, x, None, None, noise, WALK, out, None, kind, batched)
        if done is not NotImplemented:
            return done
    batched = is_batch("x", x, batched)
    if other is not None:
        return other.q_step(x, t, schedule, noise, batched=batched, out=out, **_named(levels))
    return run(q_step_call(x, t, schedule, noise, levels, batched, out))[0]


@overload
def q_walk(
    x0: NDArray[Any], schedule: Schedule, noise: Noise | Sequence[Noise], *, keep: Sequence[int] | None = None,
    batched: bool | None = None, out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...  # fmt: skip
@overload
def q_walk(
    x0: ArrayT, schedule: Schedule, noise: Noise | Sequence[Noise], *, keep: Sequence[int] | None = None,
    batched: bool | None = None, out: ArrayT | None = None,
) -> ArrayT: ...  # fmt: skip
def q_walk(
    x0: Array,
    schedule: Schedule,
    noise: Noise | Sequence[Noise],
    *,
    keep: Sequence[int] | None = None,
    batched: bool | None = None,
    out: Array | None = None,
) -> Array:
    """The random walk from x0 through all of the schedule, in one pass: T steps for one read of x0.

    Equals q_step at t = 0, 1, ... bit for bit (the half types: as if walked in float32 and rounded where kept).

    Args:
        x0: as x of `q_step`.
        schedule, batched: as in `q_sample`.
        noise: Noise of stream 0, or a list of one for each row.
        keep: the times t whose x_t are wanted, strictly increasing; None: all of them.
        out: C-contiguous, (len(keep), *x0.shape), of x0's dtype.

    Returns:
        (len(keep), *x0.shape), of x0's dtype, float32 for integers.

    Raises:
        IndexError: a time outside of the schedule.
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    >>> walk = nf.q_walk(np.ones((2, 3), np.float32), nf.Schedule.linear(100), nf.Noise(7), keep=[0, 49, 99])
    >>> walk.shape
    (3, 2, 3)
    """
    need_schedule(schedule)
    batched = is_batch("x0", x0, batched)
    if (other := library_of(x0)) is not None:
        return other.q_walk(x0, schedule, noise, keep=keep, batched=batched, out=out)
    x0 = as_array("x0", x0, (*FLOATS, *LEVELS))
    dtype, kept = _result_dtype(x0), kept_times(keep, len(schedule))
    if is_array(noise):
        raise TypeError("noise: q_walk draws at every time and takes a Noise, not an array")
    names, _ = names_or_array(noise, x0.shape, dtype, batched, WALK, last_step=int(kept[-1]) if len(kept) else 0)
    device = one_place([("x0", x0), *([("out", out)] if out is not None and is_array(out) else [])])
    check_place(device, Index(np.zeros(1, np.int64), x0.size), names)
    result = output("out", out, (len(kept), *x0.shape), dtype, device)
    x0 = readable(x0, dtype)
    if overlap(result, x0):
        raise ValueError("out overlaps x0: the walk reads x0 and writes every kept time")
    if result.size == 0:
        return result
    rows, slots = schedule.kept.markov, np.full(int(kept[-1]) + 1, -1, np.int64)
    slots[kept] = np.arange(len(kept))
    if levels_of(x0.dtype):  # a walk has no constant: the step that scales levels is one of its own
        x0 = q_step(x0, 0, schedule, noise, batched=batched)
        if slots[0] == 0:
            result[0] = x0
        if len(slots) == 1:
            return result
        rows, slots, names = Rows(rows.table[1:], rows.active), slots[1:], tuple(n.at(step=n.step + 1) for n in names)
    backends.of(result).walk(Walk(_first_step(x0, rows, names, result, batched), slots))
    return result


def _first_step(x0: Array, rows: Rows, names: tuple[Noise, ...], result: Array, batched: bool) -> Step:
    batch, sample_shape = batch_shape(x0.shape, batched)
    return Step(
        batch=batch,
        size=count(sample_shape),
        sample_shape=sample_shape,
        rows=rows,
        index=np.zeros(1, np.int64),
        segment=x0.size,
        inputs=(x0, *(None,) * Z),
        outputs=(result, None, None),
        draw="normal",
        step_by_index=False,
        noise=names,
    )


@overload
def update(
    table: Tableau, i: ArrayLike, x: NDArray[Any], model_output: Array | tuple[Array, Array] | None = None, *,
    past: Sequence[NDArray[Any]] = (), noise: NoiseLike | None = None, out: NDArray[Any] | None = None,
    aux_out: Sequence[NDArray[Any]] = (), **options: Unpack[LevelOptions],
) -> NDArray[Any]: ...  # fmt: skip
@overload
def update(
    table: Tableau, i: ArrayLike, x: NDArray[Any], model_output: Array | tuple[Array, Array] | None = None, *,
    past: Sequence[NDArray[Any]] = (), noise: NoiseLike | None = None, out: NDArray[Any] | None = None, aux_out: int,
    **options: Unpack[LevelOptions],
) -> tuple[NDArray[Any], ...]: ...  # fmt: skip
@overload
def update(
    table: Tableau, i: ArrayLike | Array, x: ArrayT, model_output: ArrayT | tuple[ArrayT, ArrayT] | None = None, *,
    past: Sequence[ArrayT] = (), noise: NoiseLike | None = None, out: ArrayT | None = None,
    aux_out: Sequence[ArrayT] = (), **options: Unpack[LevelOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def update(
    table: Tableau, i: ArrayLike | Array, x: ArrayT, model_output: ArrayT | tuple[ArrayT, ArrayT] | None = None, *,
    past: Sequence[ArrayT] = (), noise: NoiseLike | None = None, out: ArrayT | None = None, aux_out: int,
    **options: Unpack[LevelOptions],
) -> tuple[ArrayT, ...]: ...  # fmt: skip
def update(
    table: Tableau,
    i: ArrayLike | Array,
    x: Array,
    model_output: Array | tuple[Array, Array] | None = None,
    *,
    past: Sequence[Array] = (),
    noise: NoiseLike | None = None,
    out: Array | None = None,
    aux_out: Sequence[Array] | int = (),
    **options: Unpack[LevelOptions],
) -> Array:
    """One row of a tableau in one pass: D = clamp(..), then linear combinations of all, plus noise.

    Args:
        table: the rows; `print(table)` shows them as equations.
        i: integers, the row: a scalar, (B,) or any prefix of x's shape.
        x: an array or a torch tensor; float32, float64, float16 or bfloat16, any strides (others than C order are
            copied first).
        model_output: m1, or (m1, m2), of x's shape; another float dtype than x's is converted first.
        past: past1 .. past4, the newest first, of x's shape and dtype.
        noise: Noise, a list of one for each row of x, or an array of x's shape. A Noise of stream 0: z is the field of
            stream 3 at step `noise.step + i`. None where the rows taken draw nothing.
        out, aux_out: where to write the result and up to two auxiliary outputs; C-contiguous, of x's shape and dtype;
            each may be exactly one of the inputs. aux_out may also be a number: that many are made. `out` may hold
            uint8 or uint16, which `q_sample` explains; so may a new result, with dtype="uint8" or "uint16".
        **options: dtype, out_scale, out_offset, of a result in integers.

    Returns:
        out; where aux_out is a number the tuple (out, aux1, ..).

    Raises:
        IndexError: a row that the table does not have.
        TypeError, ValueError: what was given and what was expected; nothing is written then.

    >>> table = nf.samplers.ddim(nf.Schedule.linear(1000), steps=10).tableau
    >>> x, m = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    >>> nf.update(table, 0, x, m, out=x) is x  # in place
    True
    """
    other = None if type(x) is np.ndarray else library_of(x)
    floating = out is None or out is x or getattr(out, "dtype", None) in FLOATING
    levels = None if floating and not options else levels_alone(out, **options)
    row = backends.fast_row if other is None else fast_path(other, "fast_row")
    if type(table) is Tableau and not table.masked and row is not None:
        rows = table.as_rows if levels is None else table.as_rows.scaled(*levels.range)
        kind = None if levels is None else FAST_LEVELS[levels.dtype]
        done: Array = row(rows.plain, i, x, model_output, past, noise, SAMPLER, out, aux_out, kind, True)
        if done is not NotImplemented:
            return done
    _need_several(model_output, past, aux_out)
    if other is not None:
        given = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
        return other.update(table, i, x, model_output, **given, **_named(levels))
    results = run(update_call(table, i, x, model_output, past, noise, out, aux_out, levels))
    return results if isinstance(aux_out, int) else results[0]


def fast_path(other: Any, name: str) -> Any:
    """The function of `backends` for plain arguments, or what this module of `interop` has in its place; None where a
    compiler traces the call, which cannot follow."""
    return getattr(other if other.is_traced() else backends, name, None)


def _need_several(model_output: object, past: object, aux_out: object) -> None:
    """Raises where one is given for several, or several in what cannot hold them."""
    if isinstance(model_output, list):
        raise TypeError("model_output: expected an array or a tuple (m1, m2), got list")
    for name, given, number in (("past", past, ""), ("aux_out", aux_out, ", or a number of them")):
        if hasattr(given, "shape"):
            raise TypeError(f"{name}: expected a list or tuple of arrays{number}, got {type(given).__name__}")
    if isinstance(aux_out, int) and not 0 <= aux_out <= 2:
        raise ValueError(f"aux_out = {aux_out}: expected at most 2 auxiliary outputs")


def _words(name: str, words: ArrayLike, n: int) -> NDArray[np.uint32]:
    values = np.asarray(words)
    if values.dtype.kind not in "iu" or values.ndim == 0 or values.shape[-1] != n:
        raise TypeError(f"{name}: expected uint32 (..., {n}), got {values.dtype} of shape {values.shape}")
    for part in pieces(values.shape):
        piece = values[part]
        if piece.size and (int(piece.min()) < 0 or int(piece.max()) >= 1 << 32):
            raise OverflowError(f"{name}: expected words in [0, 2^32), got {piece.min()} to {piece.max()}")
    return copy(values, np.dtype(np.uint32))


# ---------------------------------------------------------------------------------------------------------- rows


def rows_at(
    make: Make,
    target: Target | None,
    schedule: Schedule,
    t: ArrayLike | Array,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | None,
    scale: float | None,
    offset: float | None,
) -> tuple[Rows, Index]:
    """The rows of x_t and the target (`forward`), or of the residual; and which of them each segment takes.

    Integer t: a row for each step of the schedule, which it keeps; float t: one for each time. dtype: x0's.
    """
    times, segment = segments("t", t, shape)
    default = 1.0, 0.0
    if scale is None and offset is None:  # a pair: one number alone means another range
        default = DEFAULT_RANGE.get(levels_of(dtype) or "", default)
    given = _finite("scale", scale, default[0]), _finite("offset", offset, default[1])
    if times.dtype.kind == "f":
        on_host: Any = times.get() if on_device(times) else times  # type: ignore[attr-defined]
        return make(*at_times(schedule, on_host), target, *given), Index(np.arange(times.size), segment)
    return schedule.kept.of(make, target, *given), checked_rows("t", times, segment, len(schedule))


def at_times(schedule: Schedule, t: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns schedule(t) at the times of samples. It warns if floats look like the steps 0 and 1."""
    found = schedule(t)
    unit = t.size > 1 and t.dtype.kind == "f" and schedule.kind in UNIT_TIMES
    if unit and t.min() == 0 and t.max() == 1 and np.isin(t, (0, 1)).all():
        said = f"0.0 and 1.0 are the cleanest and the noisiest time of a {schedule.kind} schedule"
        warn_once("times", f"t: as floats {said}; for the steps 0 and 1 pass integers")
    return found


# ---------------------------------------------------------------------------------------------------------- calls


def _result_dtype(x: Array) -> np.dtype[Any]:
    """x's, but float32 of levels."""
    return np.dtype(np.float32) if levels_of(x.dtype) else x.dtype


def plain_table(
    plain: dict[Any, Plain],
    target: Target | None,
    scale: float | None,
    offset: float | None,
    levels: Levels | None = None,
) -> Plain:
    """What the fast path takes for x0 in this range, and for levels in that one."""
    if scale is None and offset is None:
        return plain[target if levels is None else (target, None, levels)]
    return plain[target, (_finite("scale", scale, 1.0), _finite("offset", offset, 0.0)), levels]


FAST_LEVELS = {name: (DTYPES[name], np.dtype(name)) for name in LEVELS}  # as the fast path takes a dtype of results


def levels_asked(
    dtype: DType | None, out: Array | None, out_scale: float | None, out_offset: float | None
) -> Levels | None:
    """Of a result in levels, which `dtype` or, without it, `out` asks for; None for floats."""
    asked = levels_of(getattr(out, "dtype", None) if dtype is None else dtype)
    if out_scale is None and out_offset is None:
        return None if asked is None else _DEFAULT_LEVELS[asked]
    if asked is None:
        for name, value in ("out_scale", out_scale), ("out_offset", out_offset):
            if value is not None:
                raise ValueError(
                    f"{name} = {value!r}: expected a result in integers with it, dtype='uint8' or dtype='uint16'"
                )
        return None
    return Levels(asked, (_finite("out_scale", out_scale, 1.0), _finite("out_offset", out_offset, 0.0)))


_DEFAULT_LEVELS = {name: Levels(name, default) for name, default in DEFAULT_RESULT.items()}


def levels_alone(
    out: Array | None, dtype: DType | None = None, out_scale: float | None = None, out_offset: float | None = None
) -> Levels | None:
    """The same where the result has no other dtype than x's, or levels."""
    found = levels_asked(dtype, out, out_scale, out_offset)
    if dtype is not None and found is None:
        raise TypeError(f"dtype {dtype}: expected 'uint8' or 'uint16', or none for x's own")
    return found


def _named(levels: Levels | None) -> dict[str, Any]:
    """As the modules of `interop` take it: `out` has no say there."""
    if levels is None:
        return {}
    return {"dtype": levels.dtype, "out_scale": levels.range[0], "out_offset": levels.range[1]}


def need_tableau(name: str, table: object) -> None:
    if not isinstance(table, Tableau):
        raise TypeError(f"{name}: expected a noisefuse.Tableau, such as sampler.tableau, got {type(table).__name__}")


_SEVERAL = list, tuple  # a union would be made anew at each call


def _random(
    name: str,
    shape: Shape,
    noise: Drawn,
    dtype: Any,
    batched: bool,
    out: Array | None,
) -> Array:
    is_uniform = name == "uniform"
    # (Dynamo, where a graph has broken, goes into this frame because it names np: else it would go into fast_dtype's.)
    other = None if type(out) is np.ndarray else library_of(dtype if out is None else out)
    allowed = ("float32", "float64") if is_uniform else FLOATS
    if type(noise) is not Noise and not is_uniform and are_increments(noise):
        return _increment(shape, noise, dtype, batched, out)
    if (draw := backends.fast_random if other is None else fast_path(other, "fast_random")) is not None:
        kind = fast_dtype(dtype, other, allowed)
        done = draw(UNIT.plain, shape, noise, is_uniform, kind, batched, other is not None, out)
        if done is not NotImplemented:
            return done
    if other is not None:
        return getattr(other, name)(shape, noise, dtype=dtype, batched=batched, out=out)
    return run(random_call(name, shape, noise, dtype, batched, out))[0]


# ---- increments of Brownian motions, which are sums of draws


Increments: TypeAlias = Increment | list[Increment] | tuple[Increment, ...]


def are_increments(noise: object) -> TypeGuard[Increments]:
    """Whether it is an increment, or a list of one for each row."""
    if isinstance(noise, _SEVERAL):
        return len(noise) > 0 and all(type(n) is Increment for n in noise)
    return type(noise) is Increment


def _need_memory(noise: object, other: Any = None) -> None:
    """NotImplementedError of increments, which are added up in memory, where `other` does not do that its own way."""
    if are_increments(noise) and not hasattr(other, "added_draws"):
        raise NotImplementedError("noise: an increment is not drawn by dask or under torch.compile")


def _increment(shape: Any, noise: Increments, dtype: Any, batched: bool, out: Any) -> Array:
    other = library_of(dtype if out is None else out)
    if other is not None and (other.is_traced() or not hasattr(other, "empty")):
        _need_memory(noise, other)
    if type(noise) is Increment and (field := noise.only()) is not None:
        return _random("randn", shape, field, dtype, batched, out)
    if other is not None:
        return other.randn(shape, noise, dtype=dtype, batched=batched, out=out)
    full, kind = lengths(shape), float_dtype(dtype)
    result = output("out", out, full, kind, None if out is None else device_of(out))
    if isinstance(noise, Increment):
        _sum_draws(noise, result, batched)
        return result
    # all of them are checked before anything is written
    names_or_array([one.draw(0) for one in noise], full, kind, batched, FIELD, any_stream=True)
    for b, one in enumerate(noise):
        _sum_draws(one, result[b : b + 1] if batched and full else result, batched)
    return result


def _sum_draws(increment: Increment, out: Array, batched: bool) -> None:
    """out = the sum of c z over the increment's draws, in the arithmetic's own type; each sum is fma(1, sum, c z)."""
    terms = increment.terms()
    first, sums = rows_of_sum(terms)
    wide = out.dtype in (np.float32, np.float64)
    total = out if wide else output("out", None, out.shape, np.dtype(np.float32), device_of(out))
    plain, row, last = first.plain, backends.fast_row, len(terms) - 1
    for n, (word, _) in enumerate(terms):
        z, to = increment.draw(word), out if n == last else total
        kind = None if wide or n < last else fast_dtype(out.dtype, None)
        if row(plain, n, total, None, None, z, -1, to, None, kind, batched) is NotImplemented:
            names, _ = names_or_array(z, out.shape, to.dtype, batched, FIELD, any_stream=True)
            index = Index(np.array([n]), max(1, out.size))
            run(make_call(out.shape, to.dtype, sums if n else first, index, names, {X: total}, {"out": to}, batched))
        plain = sums.plain


@lru_cache(maxsize=64)
def rows_of_sum(terms: Terms) -> tuple[Rows, Rows]:
    """z times a coefficient, for the first of them; and what adds that to x."""
    rows = Rows.of({"out.x": 1.0, "out.z": [coefficient for _, coefficient in terms]})
    return Rows(rows.table, rows.active & Z_BITS), rows


def random_call(
    name: str,
    shape: Shape,
    noise: Noise | Sequence[Noise] | Array,
    dtype: DTypeLike | None,
    batched: bool,
    out: Array | None = None,
) -> Step:
    """`randn` or `uniform` as a checked call; nothing is written yet."""
    is_uniform = name == "uniform"
    full = lengths(shape)
    dtype = float_dtype(dtype, ("float32", "float64") if is_uniform else FLOATS)
    if not isinstance(noise, Noise | list | tuple):
        raise TypeError(f"noise: expected a Noise or a list of them, got {got(noise)}")
    names, _ = names_or_array(noise, full, dtype, batched, UNIFORM if is_uniform else FIELD, any_stream=True)
    one_row, outs = Index(np.zeros(1, np.int64), max(1, count(full))), {"out": out}
    draw: Draw = "uniform" if is_uniform else "normal"
    return make_call(full, dtype, UNIT, one_row, names, {}, outs, batched, draw=draw)


def lengths(shape: Shape) -> tuple[int, ...]:
    try:
        full = tuple(map(operator.index, shape)) if np.iterable(shape) else (operator.index(shape),)
    except TypeError:
        raise TypeError(f"shape: expected integers, got {shape!r}") from None
    if any(n < 0 for n in full):
        raise ValueError(f"shape {full}: expected lengths of at least 0")
    return full


def _made_on(device: Any, shape: Shape, dtype: Any, out: Array | None) -> Array:
    """An empty tensor there."""
    if out is not None:
        raise ValueError("device: given with out=, which lies somewhere already")
    if library_of(dtype) not in (None, other := library("torch")):
        raise TypeError(f"device: expected a dtype of torch with it, such as dtype=torch.float32, got {dtype!r}")
    return other.empty(shape if other.is_traced() else lengths(shape), dtype, device)


def q_sample_call(
    x0: Array,
    t: ArrayLike | Array,
    schedule: Schedule,
    noise: NoiseLike,
    target: Target | None,
    scale: float | None,
    offset: float | None,
    dtype: DType | None,
    levels: Levels | None,
    batched: bool,
    out: Array | None = None,
    target_out: Array | None = None,
) -> Step:
    """`q_sample` as a checked call; nothing is written yet."""
    need_schedule(schedule)
    x = as_array("x0", x0, (*FLOATS, *LEVELS))
    kind = _result_dtype(x) if dtype is None or levels else float_dtype(dtype)
    if dtype is None and levels_of(x.dtype) and not levels and getattr(out, "dtype", kind) != kind:
        raise TypeError(f"out: expected float32, got {out.dtype}; say which with dtype=")  # type: ignore[union-attr]
    if target is not None:
        need_target(target)
    if target is None and target_out is not None:
        raise ValueError("target_out: given without target=")
    rows, index = rows_at(forward, target, schedule, t, x.shape, x.dtype, scale, offset)
    if levels is not None:
        rows = rows.scaled(*levels.range)
    names, z = names_or_array(noise, x.shape, kind, batched, FIELD, any_stream=True)
    outs = {"out": out} if target is None else {"out": out, "target_out": target_out}
    inputs = {X: x, Z: z}
    return make_call(x.shape, kind, rows, index, names, inputs, outs, batched, levels=levels and levels.dtype)


def q_step_call(
    x: Array,
    t: ArrayLike | Array,
    schedule: Schedule,
    noise: NoiseLike,
    levels: Levels | None,
    batched: bool,
    out: Array | None = None,
) -> Step:
    """`q_step` as a checked call; nothing is written yet."""
    need_schedule(schedule)
    x = as_array("x", x, (*FLOATS, *LEVELS))
    dtype = _result_dtype(x)
    t_index = row_index("t", t, len(schedule), x.shape)
    names, z = names_or_array(noise, x.shape, dtype, batched, WALK, last_step=t_index.last)
    rows, inputs = schedule.kept.markov_of[levels_of(x.dtype)], {X: x, Z: z}
    if levels is not None:
        rows = rows.scaled(*levels.range)
    flags: dict[str, Any] = {"step_by_index": True, "levels": levels and levels.dtype}
    return make_call(x.shape, dtype, rows, t_index, names, inputs, {"out": out}, batched, **flags)


def update_call(
    table: Tableau,
    i: ArrayLike | Array,
    x: Array,
    model_output: Array | tuple[Array, Array] | None,
    past: Sequence[Array],
    noise: NoiseLike | None,
    out: Array | None,
    aux_out: Sequence[Array] | int = (),
    levels: Levels | None = None,
) -> Step:
    """`update` as a checked call; nothing is written yet."""
    need_tableau("table", table)
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


def inputs_of(
    x: Array, model_output: Array | tuple[Array, Array] | None, past: Sequence[Array], aux: Sequence[Any] = ()
) -> Inputs:
    """By slot, of x's dtype."""
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


_NUMBERS = int, float, np.integer, np.floating


def _finite(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value) + 0.0  # -0 is 0: ranges are keys
    if not math.isfinite(number):
        raise ValueError(f"{name} = {value!r}: expected a finite number")
    return number
