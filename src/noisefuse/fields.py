# SPDX-License-Identifier: Apache-2.0
"""Non-white noise: fields that are computed from keyed normals, so that they have keys themselves.

These functions return noise as an array, for `q_sample(.., noise=array)` and every other function that takes one.
`nearest_of` and `assigned` return keys, so nothing is stored. Each function draws from its own streams (docs/noise.md),
so the same key may go through several of them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import augment, backends
from .arguments import arrays
from .arguments.calls import Index, converted, is_batch, make_call, names_or_array, run
from .arguments.types import Array
from .call.description import Level, Pyramid
from .ground.checks import check_integer, check_number
from .ground.docstrings import Shared, documented
from .ground.float_mode import float_mode
from .ground.lazy import show_public
from .ground.libraries import library_of
from .language.levels import DEFAULT_RANGE, FLOATS, levels_of
from .language.noise import (
    FIELD,
    NEAREST,
    OFFSET,
    ORDER,
    PERTURBATION,
    PYRAMID,
    SHARED,
    STEPS,
    Noise,
    Noises,
    check_stream_0,
    each,
    names_of,
    one_each,
)
from .language.rows import Rows
from .language.schedule import Schedule, check_schedule
from .language.tableau import Row, Tableau, m1, x
from .operations.draw import randn, uniform
from .operations.loss import distances
from .operations.update import update

__all__ = [
    "assigned", "freenoise_like", "mixed_like", "nearest_of", "offset_like", "perturbed", "progressive_like",
    "pyramid_like",
]  # fmt: skip

show_public(__name__)

_SHARED = Shared(
    args={"dtype": "    dtype: the result's dtype, if it is not x's."},
    returns="    An array of x's shape, kind and device.",
    raises="    TypeError, ValueError: the message says what was given and what was expected.",
)


# ---- keys --------------------------------------------------------------------------------------------------


def nearest_of(k: SupportsIndex, x0: Array, noise: Noises, *, batched: bool | None = None) -> list[Noise]:
    """The nearest of k candidate noises to each sample, as keys for `q_sample` and `mse_loss`.

    Each sample is paired with noise near it, so that the paths between them cross less (Li et al. 2024, "Immiscible
    diffusion", which assigns within the batch; trainers take candidates for each sample alone). The candidates are
    generated while they are compared, and never stored.

    Args:
        k: the number of candidates, from 1. Candidate j of a noise is drawn from stream 9 at step ``noise.step * k +
            j``.
        x0: clean samples; floats, or uint8 or uint16, scaled to -1 .. 1 as in `q_sample`; NumPy, CuPy or torch.
        noise: a Noise or a list of one for each sample, of stream 0 and with an int as step.
        batched: as in `q_sample`.

    Returns:
        A Noise for each sample. It does not depend on the batch or on the number of threads.

    Raises:
        OverflowError: a step lies beyond 2^32 - 1.
        TypeError, ValueError: the message says what was given and what was expected.

    >>> x0 = np.ones((2, 3, 8, 8), np.float32)
    >>> nf.fields.nearest_of(64, x0, nf.Noise(7, sample=40))
    [Noise(7, sample=40, step=62, stream=9), Noise(7, sample=41, step=61, stream=9)]
    """
    k, batched = check_integer("k", k, 1), is_batch("x0", x0, batched)
    batch, _ = arrays.batch_shape(_shape("x0", x0), batched)
    names = one_each(noise, batch)
    check_stream_0(noise)
    for name in names:
        if not isinstance(name.step, int):
            raise ValueError(f"noise: expected a step that is an int, got {name!r}")
        if (name.step + 1) * k > STEPS:
            raise OverflowError(f"noise.step = {name.step} with k = {k}: step * k + k - 1 goes beyond 2^32 - 1")
    given = [noise] if isinstance(noise, Noise) else names
    chosen = _asked(partial(_nearest, k=k, batched=batched), x0, given)
    return [name.at(step=name.step * k + j, stream=NEAREST) for name, j in zip(names, chosen.tolist(), strict=True)]


def _nearest(x: Array, names: list[Noise], *, k: int, batched: bool) -> NDArray[np.int64]:
    x = _as_q_sample("x0", x)
    batch, _ = arrays.batch_shape(x.shape, batched)
    best, chosen = np.full(batch, math.inf), np.zeros(batch, np.int64)
    for first in range(0, k, _CANDIDATES):
        begin = [name.at(step=name.step * k + first, stream=NEAREST) for name in names]
        found = distances(x, batched, begin, min(_CANDIDATES, k - first))
        least, nearest = found.min(axis=0), found.argmin(axis=0)
        chosen = np.where(least < best, first + nearest, chosen)
        best = np.minimum(least, best)
    if not np.isfinite(best).all() and x.size:
        bad = np.flatnonzero(~np.isfinite(best))[0]
        raise ValueError(f"x0[{bad}]: expected finite numbers, as no noise is near to others")
    return chosen


_CANDIDATES = 1 << 10  # distances of each sample that are kept at once


def assigned(x0: Array, noise: Noises) -> list[Noise]:
    """Returns the noises of a batch in the order that has the least total distance to the samples.

    Li et al. 2024, "Immiscible diffusion: accelerating diffusion training with noise assignment", with the Euclidean
    distance. It needs SciPy.

    Args:
        x0: a batch; floats, or uint8 or uint16, scaled to -1 .. 1 as in `q_sample`; NumPy, CuPy or torch.
        noise: a Noise, or a list of one for each sample.

    Returns:
        The same noises in another order, one for each sample. The order necessarily depends on the whole batch.

    Raises:
        ImportError: SciPy is not installed.
        TypeError, ValueError: the message says what was given and what was expected, such as finite numbers.

    >>> x0 = np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)
    >>> nf.fields.assigned(x0, nf.Noise(7))
    [Noise(7, sample=1), Noise(7)]
    """
    batch, _ = arrays.batch_shape(_shape("x0", x0), batched=True)
    names = one_each(noise, batch)
    return [names[j] for j in _asked(_assigned, x0, names).tolist()]


def _assigned(x: Array, names: list[Noise]) -> NDArray[np.int64]:
    try:
        assignment = importlib.import_module("scipy.optimize").linear_sum_assignment
    except ImportError as error:
        raise ImportError("fields.assigned needs SciPy: pip install scipy") from error
    x = _as_q_sample("x0", x)
    if not x.size:
        return np.arange(len(names))
    if not bool(np.isfinite(x).all()):
        raise ValueError("x0: expected finite numbers, as no noise is near to others")
    # |x - z|^2 without |x|^2, which is the same in each row. Libraries for linear algebra add in an order of their own.
    # In float64, and rounded far more coarsely than that order matters, the costs are the same on all machines, and so
    # is the choice between equal ones.
    z = _randn(x, names, x.dtype).reshape(len(names), -1).astype(np.float64)
    cost = ((z * z).sum(axis=1) - 2 * x.reshape(len(names), -1).astype(np.float64) @ z.T).round(6)
    order: NDArray[np.int64] = assignment(cost if isinstance(cost, np.ndarray) else cost.get())[1]
    return order


# ---- arrays ------------------------------------------------------------------------------------------------


@documented(_SHARED)
def offset_like(x: Array, strength: float, noise: Noises, *, dtype: Any = None) -> Array:
    """Offset noise: z + strength c, with one normal c for each channel of each sample. A model then learns to change
    the mean of a whole image (Guttenberg 2023, "Diffusion with offset noise").

    Args:
        x: (B, C, ..), floats. The result has its shape, kind, dtype and device; its values are not read.
        strength: the strength of the offset: trainers use 0.05 to 0.1.
        noise: a Noise, or a list of one for each sample. z is its field; c is drawn from stream 5.

    It takes one pass. The variance is 1 + strength^2, as in all trainers.

    >>> z = nf.fields.offset_like(np.zeros((2, 4, 64, 64), np.float32), 0.1, nf.Noise(7))
    >>> offsets = nf.randn((2, 4), nf.Noise(7, stream=5))
    >>> bool(np.allclose(z, nf.randn(z.shape, nf.Noise(7)) + 0.1 * offsets[:, :, None, None], atol=1e-6))
    True
    """
    strength = check_number("strength", strength, hint="; the order is offset_like(x, strength, noise)")
    if len(shape := _shape("x", x)) < 2:
        raise ValueError(f"x: expected shape (B, C, ..), got {shape}")
    return _on_memory(_offset, x, noise, strength=strength, dtype=dtype)


def _offset(x: Array, noise: Noises, *, strength: float, dtype: Any, out: Array | None = None) -> Array:
    batch, channels, *place = x.shape
    kind = _kind(x, dtype)
    names, _ = names_or_array(noise, x.shape, kind, True, FIELD)
    c = randn((batch, channels), _of_axes(noise, OFFSET, slice(1)), dtype="float64")
    columns = {"out.z": np.ones(max(1, c.size)), "out.k": strength * c.ravel() if c.size else np.zeros(1)}
    index = Index(np.arange(c.size), max(1, math.prod(tuple(place))))
    return run(make_call(x.shape, kind, Rows.of(columns), index, names, {}, {"out": out}))[0]


@documented(_SHARED)
def pyramid_like(x: Array, discount: float, noise: Noises, *, levels: SupportsIndex = 6, dtype: Any = None) -> Array:
    """Pyramid noise, also called multi-resolution noise (Whitaker 2023, "Multi-resolution noise for diffusion model
    training"): white noise plus discount^i times noise at half, a quarter, .. of the lengths, enlarged bilinearly.

    Args:
        x: (B, C, H, W), or another shape whose last two axes are spatial, floats: as in `offset_like`.
        discount: the factor from one pyramid level to the next, from 0 to 1, such as 0.8.
        noise: a Noise, or a list of one for each sample, without a window. The first pyramid level is its field; level
            i is drawn from stream 10 at step ``noise.step * levels + i``.
        levels: the largest number of pyramid levels; no level follows the one whose lengths are both 1.

    Every element has variance 1: the weights at each place are divided by the root of the sum of their squares, while
    trainers divide by the deviation of the whole array. So a sample does not depend on its batch.

    >>> z = nf.fields.pyramid_like(np.zeros((64, 1, 16, 16), np.float32), 0.8, nf.Noise(7))
    >>> round(float(z.var()), 1), bool(z.mean(axis=(1, 2, 3)).var() > 10 / 256)
    (1.0, True)
    """
    discount = check_number("discount", discount, 0, 1, hint="; the order is pyramid_like(x, discount, noise)")
    levels = check_integer("levels", levels, 1)
    if len(shape := _shape("x", x)) < 3 or max(shape[-2:]) >= 1 << 31:
        raise ValueError(f"x: expected shape (B, .., H, W) with lengths below 2^31, got {shape}")
    check_stream_0(noise)
    for name in names_of(noise):
        if name.window_shape is not None:
            raise ValueError("noise: a pyramid has no windows, as its levels have shapes of their own")
        if not isinstance(name.step, int) or (name.step + 1) * levels > STEPS:
            raise OverflowError(f"noise.step = {name.step} with {levels} levels: expected step * levels below 2^32")
    return _on_memory(_pyramid, x, noise, discount=discount, levels=levels, dtype=dtype)


def _pyramid(x: Array, noise: Noises, *, discount: float, levels: int, dtype: Any, out: Array | None = None) -> Array:
    kind = _kind(x, dtype)
    real = _arithmetic(kind)
    total = _randn(x, noise, real, out if out is not None and out.dtype == real else None)
    if not x.size:
        return _stored(total, kind, out)
    height, width = x.shape[-2:]
    coarser, scale = _levels_of(height, width, levels, discount, real)
    drawn = []
    for level, (lengths, weight, places) in enumerate(coarser, 1):
        names = each(noise, lambda name: name.at(step=name.step * levels + level, stream=PYRAMID))  # noqa: B023
        coarse = _randn(total[..., : lengths[0], : lengths[1]], names, real)
        drawn.append(Level._make((coarse.reshape(-1, *lengths), *places, *lengths, weight)))
    planes = total.reshape(-1, height, width)
    call = Pyramid(planes, _like(total, scale), tuple(drawn), len(drawn), len(planes), height, width, real)
    if backends.of(total).run(call) is NotImplemented:
        _enlarge(call)
    return _stored(total, kind, out)


_PLANES = 1 << 15  # elements that are added together: they stay in the cache


@lru_cache(4)
def _levels_of(height: int, width: int, levels: int, discount: float, real: np.dtype[Any]) -> tuple[Any, NDArray[Any]]:
    """Returns the lengths of each coarser level, its weight and its places, and the scale of the sum."""
    variance, coarser = np.ones((height, width)), []
    for level in range(1, levels):
        if max(_halved(height, width, level - 1)) == 1:
            break
        lengths, weight = _halved(height, width, level), discount**level
        places = [
            (before.astype(np.int32), part.astype(real)) for before, part in map(_between, lengths, (height, width))
        ]
        variance += weight**2 * np.multiply.outer(*map(_squares, lengths, (height, width)))
        coarser.append((lengths, weight, [*chain(*zip(*places, strict=True))]))
    return coarser, (1 / np.sqrt(variance)).astype(real)


def _enlarge(call: Pyramid) -> None:
    """Adds the levels by functions of arrays, some planes after others."""
    planes, height, width = call.out, call.height, call.width
    together = max(1, _PLANES // (height * width))
    with float_mode():
        for first in range(0, len(planes), together):
            some = slice(first, first + together)
            columns = _across(planes[some])
            for level in call.levels:
                tall = _across(_stretched(level.planes[some], level.above, level.down))
                wide = _stretched(tall, level.left, level.right)
                wide *= planes.dtype.type(level.weight)
                columns += wide
            columns *= call.scale.T
            planes[some] = _across(columns)


def _halved(height: int, width: int, times: int) -> tuple[int, int]:
    return max(1, height >> times), max(1, width >> times)


@lru_cache(256)
def _between(few: int, many: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns, for centres of `many` cells among those of `few`, the one before, and the fraction of the way to the
    next."""
    place = np.clip((np.arange(many) + 0.5) * few / many - 0.5, 0, few - 1)
    before = np.minimum(place.astype(np.int64), max(few - 2, 0))
    return before, place - before


def _squares(few: int, many: int) -> NDArray[np.float64]:
    part = _between(few, many)[1]
    return part**2 + (1 - part) ** 2


def _across(planes: Array) -> Array:
    """Returns (n, h, w) as (n, w, h): whole rows are copied quickly, but not whole columns."""
    return planes.swapaxes(1, 2).copy()


def _stretched(coarse: Array, before: NDArray[np.int32], part: Array) -> Array:
    """Stretches linearly along axis 1: low + part (high - low)."""
    place = _like(coarse, before)
    made = (coarse[:, 1:] - coarse[:, :-1] if coarse.shape[1] > 1 else 0 * coarse).take(place, axis=1)
    made *= _like(coarse, part[:, None])
    made += coarse.take(place, axis=1)
    return made


@documented(_SHARED)
def mixed_like(x: Array, alpha: float, noise: Noises, *, dtype: Any = None) -> Array:
    """Video noise whose frames share a part: (alpha s + z_f) / sqrt(1 + alpha^2), with the same s in each frame.

    Ge et al. 2023, "Preserve your own correlation", the mixed noise model.

    Args:
        x: (B, F, ..), axis 1 the frames, floats: as in `offset_like`.
        alpha: the strength of the shared part: two frames correlate by alpha^2 / (1 + alpha^2).
        noise: a Noise, or a list of one for each sample. z is its field; s, of a frame's shape, is on stream 11.

    >>> z = nf.fields.mixed_like(np.zeros((1, 2, 3, 64, 64), np.float32), 1.0, nf.Noise(7))
    >>> round(float(np.corrcoef(z[0, 0].ravel(), z[0, 1].ravel())[0, 1]), 1)
    0.5
    """
    alpha = check_number("alpha", alpha, hint="; the order is mixed_like(x, alpha, noise)")
    _check_frames(x)
    check_stream_0(noise)
    return _on_memory(_mixed, x, noise, alpha=alpha, dtype=dtype)


def _mixed(x: Array, noise: Noises, *, alpha: float, dtype: Any, out: Array | None = None) -> Array:
    def blend(z: Array) -> None:
        shared = _randn(z[:, 0], _of_axes(noise, SHARED, slice(1, None)), z.dtype)
        if z[0, 0].size < _SMALL:
            _blend(alpha, z, np.broadcast_to(shared[:, None], z.shape))
        else:
            for b, f in np.ndindex(z.shape[:2]):
                _blend(alpha, z[b : b + 1, f : f + 1], shared[b : b + 1, None])

    return _blended_frames(x, noise, dtype, out, blend)


@documented(_SHARED)
def progressive_like(x: Array, alpha: float, noise: Noises, *, dtype: Any = None) -> Array:
    """Video noise in which each frame keeps a part of the one before: (alpha e_(f-1) + z_f) / sqrt(1 + alpha^2), and
    e_0 = z_0.

    Ge et al. 2023, "Preserve your own correlation", the progressive noise model: an autoregression.

    Args:
        x, dtype: as in `mixed_like`.
        alpha: the strength of the kept part: frames n apart correlate by (alpha^2 / (1 + alpha^2))^(n / 2).
        noise: a Noise, or a list of one for each sample; a window must begin at frame 0.

    >>> z = nf.fields.progressive_like(np.zeros((1, 3, 3, 64, 64), np.float32), 2.0, nf.Noise(7))
    >>> [round(float(np.corrcoef(z[0, 0].ravel(), z[0, f].ravel())[0, 1]), 1) for f in (1, 2)]
    [0.9, 0.8]
    """
    alpha = check_number("alpha", alpha, hint="; the order is progressive_like(x, alpha, noise)")
    _check_frames(x)
    check_stream_0(noise)
    _check_first_frame(noise)
    return _on_memory(_progressive, x, noise, alpha=alpha, dtype=dtype)


def _progressive(x: Array, noise: Noises, *, alpha: float, dtype: Any, out: Array | None = None) -> Array:
    def blend(z: Array) -> None:
        if z[0, 0].size < _SMALL:
            before = z[:, :1].copy()
            for f in range(1, z.shape[1]):
                frame = z[:, f : f + 1].copy()  # the frames of all samples together
                _blend(alpha, frame, before)
                z[:, f : f + 1] = before = frame
        else:
            for b, f in np.ndindex(len(z), z.shape[1] - 1):
                _blend(alpha, z[b : b + 1, f + 1 : f + 2], z[b : b + 1, f : f + 1])

    return _blended_frames(x, noise, dtype, out, blend)


@documented(_SHARED)
def freenoise_like(
    x: Array, noise: Noises, *, context: SupportsIndex = 16, stride: SupportsIndex = 4, dtype: Any = None
) -> Array:
    """Noise for long videos from models of short ones. It is white in the first `context` frames. Later frames repeat
    these frames, `stride` at a time, each time in a random order.

    Qiu et al. 2024, "FreeNoise", local noise shuffling; diffusers' "shuffle_context": frames i .. i + stride - 1 are
    those from i - context on. Here the orders have keys, too: a longer video begins with the same frames.

    Args:
        x: (B, F, ..), axis 1 the frames, floats: as in `offset_like`.
        noise: a Noise, or a list of one for each sample; a window must begin at frame 0. The orders are those of
            uniform numbers on stream 12: element f for frame f.
        context: frames that the model sees at once.
        stride: frames that are shuffled together, at most `context`; 1 repeats the first frames as they are.

    >>> z = nf.fields.freenoise_like(np.zeros((1, 24, 4, 8, 8), np.float32), nf.Noise(7))
    >>> [next(f for f in range(16) if np.array_equal(z[0, f], z[0, g])) for g in range(16, 24)]
    [1, 0, 3, 2, 6, 5, 4, 7]
    """
    _check_frames(x)
    check_stream_0(noise)
    _check_first_frame(noise)
    context, stride = check_integer("context", context, 1), check_integer("stride", stride, 1)
    if stride > context:
        raise ValueError(f"stride = {stride}: expected at most the {context} frames of context")
    return _on_memory(_freenoise, x, noise, context=context, stride=stride, dtype=dtype)


def _freenoise(x: Array, noise: Noises, *, context: int, stride: int, dtype: Any, out: Array | None = None) -> Array:
    kind, frames = _kind(x, dtype), x.shape[1]
    if frames <= context:
        return _randn(x, noise, kind, out)
    first = _randn(x[:, :context], noise, kind)
    z = arrays.output("out", out, x.shape, kind, arrays.device_of(x))
    if z is None:
        z = np.empty_like(first, shape=x.shape)
    for b, keys in enumerate(_order_keys(noise, len(x), frames + stride)):
        z[b] = first[b][_order(keys, frames, context, stride)]
    return z


def _order_keys(noise: Noises, batch: int, count: int) -> NDArray[np.float32]:
    """Returns a number for each frame of each sample."""
    names = each(noise, lambda n: Noise(n.seed, sample=n.sample, step=int(n.step), stream=ORDER))
    keys: NDArray[np.float32] = uniform((batch, count), names)
    return keys


def _order(keys: NDArray[np.float32], frames: int, context: int, stride: int) -> NDArray[np.intp]:
    """Returns which of the first frames each frame repeats."""
    order = np.arange(frames)
    for i in range(context, frames, stride):
        again = order[i - context : i - context + stride][np.argsort(keys[i : i + stride], kind="stable")]
        order[i : i + stride] = again[: frames - i]
    return order


_SMALL = 1 << 13  # elements of a frame; below this, a call for each frame costs more than a copy


def _blended_frames(x: Array, noise: Noises, dtype: Any, out: Array | None, blend: Callable[[Array], None]) -> Array:
    """Returns white noise, blended in float32 or float64, and rounded once."""
    kind = _kind(x, dtype)
    real = _arithmetic(kind)
    z = _randn(x, noise, real, out if out is not None and out.dtype == real else None)
    if z.size:
        blend(z)
    return _stored(z, kind, out)


def _blend(alpha: float, own: Array, other: Array) -> None:
    update(_blended(alpha), 0, own, other, out=own)


@lru_cache(64)
def _blended(alpha: float) -> Tableau:
    whole = math.hypot(1, alpha)
    return Tableau([Row(out=x / whole + alpha / whole * m1)])


def perturbed(
    x_t: Array, t: ArrayLike, schedule: Schedule, gamma: float, noise: Noises, *, batched: bool = True,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """Input perturbation: x_t + gamma sigma_t z', with z' on stream 6 and an unchanged target. So in training, a
    network sees errors like those that it makes in sampling.

    Ning et al. 2023, "Input perturbation reduces exposure bias in diffusion models", algorithm 3.

    Args:
        x_t: the result of `q_sample(x0, t, schedule, noise)`; floats.
        t: a number or (B,).
        schedule: the schedule given to `q_sample`.
        gamma: 0.1 in the paper; at least 0.
        noise: the noise given to `q_sample`, of stream 0.
        batched: False makes the whole array one sample.
        out: an array to write to; it may be x_t itself.

    Returns:
        An array of x_t's shape, kind and dtype.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> schedule, noise, x0 = nf.Schedule.linear(), nf.Noise(7), np.ones((2, 3), np.float32)
    >>> x_t, epsilon = nf.q_sample(x0, [10, 500], schedule, noise, target="epsilon")
    >>> x_t = nf.fields.perturbed(x_t, [10, 500], schedule, 0.1, noise, out=x_t)
    """
    gamma = check_number("gamma", gamma, 0, hint="; the order is perturbed(x_t, t, schedule, gamma, noise)")
    check_schedule(schedule)
    x_t = arrays.host_view("x_t", x_t)
    if levels_of(getattr(x_t, "dtype", None)):
        raise TypeError(f"x_t: expected floats, as q_sample makes them, got {x_t.dtype}")
    t = arrays.host_numbers("t", t)
    batch, _ = arrays.batch_shape(_shape("x_t", x_t), batched)
    if t.shape not in ((), (batch,)):
        raise ValueError(f"t: expected a number or shape ({batch},), got shape {t.shape}")
    check_stream_0(noise)
    std = gamma * schedule(t)[1]
    moved = each(noise, lambda name: name.at(stream=PERTURBATION))
    return augment.gaussian(x_t, std if batched or not std.ndim else std[0], moved, batched=batched, out=out)


# ---- arguments ---------------------------------------------------------------------------------------------


def _of_axes(noise: Noises, stream: int, axes: slice) -> Any:
    """Moves noises to another stream, for arrays that have only these axes of a sample; windows lose the other axes,
    too."""

    def change(name: Noise) -> Noise:
        new = Noise(name.seed, sample=name.sample, step=name.step, stream=stream)
        return new if name.window_shape is None else new.window(name.window_shape[axes], name.window_start[axes])

    return each(noise, change)


def _on_memory(function: Callable[..., Array], x: Array, noise: Noises, **options: Any) -> Array:
    """Calls the function on NumPy's or CuPy's view of x. Its result has x's kind."""
    names_of(noise)
    if arrays.is_lazy(x):
        raise TypeError("x: expected an array in memory, got dask's")
    x = arrays.host_view("x", x)
    other = None if type(x) is np.ndarray else library_of(x)
    return function(x, noise, **options) if other is None else other.augmented(function, x, noise, **options)


def _asked(function: Callable[[Array, list[Noise]], NDArray[np.int64]], x: Array, names: list[Noise]) -> Any:
    """Calls a function of x that returns its result in host memory."""
    answers = []

    def ask(memory: Array, names: list[Noise], **_: Any) -> Array:
        answers.append(function(memory, names))
        return memory

    _on_memory(ask, x, names)
    return answers[0]


def _randn(x: Array, noise: Noises, kind: np.dtype[Any], out: Array | None = None) -> Array:
    return randn(x.shape, noise, dtype=kind, out=arrays.output("out", out, x.shape, kind, arrays.device_of(x)))


def _arithmetic(kind: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if kind == np.float64 else np.float32)


def _stored(values: Array, kind: np.dtype[Any], out: Array | None) -> Array:
    if out is None or out is values:
        return converted(values, kind)
    out[...] = converted(values, kind)
    return out


def _kind(x: Array, dtype: Any) -> np.dtype[Any]:
    return arrays.float_dtype(x.dtype.newbyteorder("=") if dtype is None else dtype)


def _like(x: Array, values: NDArray[Any]) -> Array:
    """Returns the values on x's device."""
    if not arrays.on_device(x):
        return values
    copy: Any = arrays.output("", None, values.shape, values.dtype, arrays.device_of(x))
    copy.set(values)
    return copy


def _as_q_sample(name: str, given: Array) -> Array:
    """Returns floats: integer levels are scaled as in `q_sample`."""
    array = arrays.as_array(name, given, (*FLOATS, *DEFAULT_RANGE))
    name_of_levels = levels_of(array.dtype)
    if name_of_levels is None:
        return array
    scale, offset = DEFAULT_RANGE[name_of_levels]
    return array * np.float32(scale) + np.float32(offset)


def _shape(name: str, given: Any) -> tuple[int, ...]:
    shape = getattr(arrays.host_view(name, given), "shape", None)
    if shape is None:
        raise TypeError(f"{name}: expected {arrays.wanted(given)}, got {type(given).__name__}")
    return tuple(shape)


def _check_frames(given: Any) -> None:
    if len(shape := _shape("x", given)) < 2:
        raise ValueError(f"x: expected shape (B, F, ..), axis 1 the frames, got {shape}")


def _check_first_frame(noise: Noises) -> None:
    for name in names_of(noise):
        if name.window_start and name.window_start[0]:
            raise ValueError(
                f"noise: expected a window that begins at frame 0, got one at frame {name.window_start[0]}"
            )
