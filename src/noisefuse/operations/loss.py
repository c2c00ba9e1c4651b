# SPDX-License-Identifier: Apache-2.0
"""Training losses that never store their noise: it is drawn again for the comparison (docs/loss.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments import arrays
from ..arguments.calls import Index, is_batch, make_call, names_or_array
from ..arguments.options import fast_table, rows_at
from ..arguments.types import Array, ArrayT, Like, NoiseLike, Reduction
from ..call.description import Loss
from ..ground.checks import check_choice, got
from ..ground.libraries import library_of
from ..language.forward import residual
from ..language.levels import FLOATS, LEVELS
from ..language.noise import FIELD, Noise
from ..language.rows import M1, M2, FastTable, Rows, X, Z
from ..language.schedule import Schedule, check_schedule
from ..paths import Path, PathTarget
from ..views import Target, check_target
from .interpolate import check_path, residual_rows
from .partial_sums import LossPart, chunk_sums, in_memory, place_of


class LossOptions(TypedDict, total=False):
    """The options of the losses that their results' type does not depend on."""

    weight: Any
    scale: float | None
    offset: float | None
    batched: bool | None


@overload
def mse_loss(
    pred: NDArray[Any], x0: NDArray[Any] | None, t: ArrayLike, schedule: Schedule, noise: NoiseLike, *,
    target: Target, reduction: Literal["mean"] = "mean", **options: Unpack[LossOptions],
) -> float: ...  # fmt: skip
@overload
def mse_loss(
    pred: Array, x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    reduction: Reduction = "mean", partial: Literal[True], **options: Unpack[LossOptions],
) -> LossPart: ...  # fmt: skip
@overload
def mse_loss(
    pred: Like[ArrayT], x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    reduction: Reduction = "mean", **options: Unpack[LossOptions],
) -> ArrayT: ...  # fmt: skip
def mse_loss(
    pred: Array, x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    weight: ArrayLike | None = None, reduction: Reduction = "mean", scale: float | None = None,
    offset: float | None = None, batched: bool | None = None, partial: bool = False,
) -> Any:  # fmt: skip
    """Returns the mean of w_t (pred - target)^2. The target is that of `q_sample` with the same arguments, and is never
    stored.

    Args:
        pred: the network's prediction; float32, float64 (then the arithmetic is float64), float16 or bfloat16.
        x0, t, schedule, noise, scale, offset, batched: as in `q_sample`; x0 has pred's shape. x0 may be None for the
            target "epsilon", which does not need it.
        target: "epsilon" z (Ho et al. 2020, eq. 14), "v" alpha z - sigma x0, "flow" z - x0, "sample" x0, "velocity" as
            in `q_sample`.
        weight: (B, 1) for t of shape (B,), a number for each sample; for float t also (B,), t's shape; for integer t
            also a row, (T,), one number for each step of the schedule (`noisefuse.weights` makes them). Finite at the
            given t. None: 1. It may lie on pred's device. The weight is not checked if it or t lies on a device.
        reduction: "mean" over all elements, or "none": the mean over each sample, (B,).
        partial: return a `LossPart`, for a part of the batch, or for a part of each sample with a window as noise
            (`Noise.local`). `density.combine` makes the loss of the whole from the parts, bit for bit
            (docs/distributed.md).

    Returns:
        The loss, a float, or float64 (B,). The bits are the same on every backend, for any number of threads. CuPy
        arrays give a float64 CuPy array, () or (B,): nothing is read back. Tensors give a tensor, float32 except for a
        float64 pred, differentiable (once) through pred.

    Raises:
        IndexError, OverflowError, TypeError, ValueError: as in `q_sample`; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> x0, pred = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    >>> loss = nf.mse_loss(pred, x0, [10, 500], schedule, noise, target="epsilon")
    >>> bool(np.isclose(loss, np.mean(nf.randn((2, 3), noise) ** 2)))
    True
    """
    library = None if type(pred) is np.ndarray else library_of(pred)
    plain = noise is not None and type(pred) is not tuple  # `interpolate_loss` may do without, and brings a pair
    if (
        plain
        and not partial
        and (table := _fast_table(library, reduction, schedule, target, scale, offset)) is not None
    ):
        x, each = pred if x0 is None and target == "epsilon" else x0, reduction == "none"
        found = backends.fast_mse(table, t, x, pred, noise, weight, 1.0, True, None, batched, each)
        if library is not None and type(found) is tuple:
            names = "pred", "x0", "t", "noise", "weight", "scale", "offset", "schedule", "target", "batched"
            rest, constant = (t, noise, weight, scale, offset), (schedule, target, batched)
            return library.with_gradient("mse_loss", found, pred, names, (pred, x0), rest, constant)
        if found is not NotImplemented:
            return found
    batched = is_batch("x0", x0, batched)
    if library is not None:
        options = {"target": target, "weight": weight, "reduction": reduction, "scale": scale, "offset": offset}
        options |= {"partial": True} if partial else {}
        return library.mse_loss(pred, x0, t, schedule, noise, batched=batched, **options)
    arguments = (pred, x0, t, schedule, noise, target, weight, reduction, scale, offset, batched)
    call = mse_call(*arguments, 1.0, {}, want_loss=not partial)
    return _part(call, noise, np.ndim(t), batched, reduction) if partial else _run(call)[0]


@overload
def mse_loss_and_grad(
    pred: NDArray[Any], x0: NDArray[Any] | None, t: ArrayLike, schedule: Schedule, noise: NoiseLike, *,
    target: Target, reduction: Literal["mean"] = "mean", out: NDArray[Any] | None = None,
    **options: Unpack[LossOptions],
) -> tuple[float, NDArray[Any]]: ...  # fmt: skip
@overload
def mse_loss_and_grad(
    pred: Like[ArrayT], x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    reduction: Reduction = "mean", out: Like[ArrayT] | None = None, **options: Unpack[LossOptions],
) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
def mse_loss_and_grad(
    pred: Array, x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    weight: ArrayLike | None = None, reduction: Reduction = "mean", scale: float | None = None,
    offset: float | None = None, batched: bool | None = None, out: Array | None = None,
) -> Any:  # fmt: skip
    """Returns `mse_loss`, and its gradient with respect to pred, computed in the same pass: the noise is drawn once.

    Args:
        out: an array for the gradient; C-contiguous, of pred's shape and dtype. It may be pred itself.
        pred, x0, t, schedule, noise, target, weight, reduction, scale, offset, batched: as in `mse_loss`.

    Returns:
        The pair (loss, gradient). With the reduction "none" the gradient is that of the losses' sum. A tensor that
        autograd watches is refused, as `mse_loss` is differentiable.

    Raises:
        IndexError, OverflowError, TypeError, ValueError: as in `mse_loss`; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> pred = np.zeros((2, 3), np.float32)
    >>> loss, gradient = nf.mse_loss_and_grad(pred, None, 500, schedule, noise, target="epsilon")
    >>> bool(np.allclose(gradient, -2 / 6 * nf.randn((2, 3), noise)))
    True
    """
    library = None if type(pred) is np.ndarray else library_of(pred)
    plain = noise is not None and type(pred) is not tuple  # as in `mse_loss`
    if plain and (table := _fast_table(library, reduction, schedule, target, scale, offset)) is not None:
        x, wanted = pred if x0 is None and target == "epsilon" else x0, True if out is None else out
        each = reduction == "none"
        found = backends.fast_mse(table, t, x, pred, noise, weight, 1.0, True, wanted, batched, each)
        if found is not NotImplemented:
            return found
    batched = is_batch("x0", x0, batched)
    if library is not None:
        options = {"target": target, "weight": weight, "reduction": reduction, "scale": scale, "offset": offset}
        return library.mse_loss_and_grad(pred, x0, t, schedule, noise, batched=batched, out=out, **options)
    arguments = (pred, x0, t, schedule, noise, target, weight, reduction, scale, offset, batched)
    return _run(mse_call(*arguments, 1.0, {"out": out}, want_loss=True))


def mse_loss_grad(
    pred: Like[ArrayT], x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, *, target: Target,
    weight: ArrayLike | None = None, reduction: Reduction = "mean", scale: float | None = None,
    offset: float | None = None, batched: bool | None = None, upstream: ArrayLike | Array = 1.0,
    out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """Returns the gradient of `mse_loss` with respect to pred, by a pass of its own that draws the noise again.

        2 w_t g / n (pred - target),    n the number of elements in the mean

    Args:
        upstream: g, the gradient with respect to the loss: a number, or (B,) with reduction "none". It may lie on
            pred's device.
        out: an array to write to; C-contiguous, of pred's shape and dtype. It may be pred itself.
        pred, x0, t, schedule, noise, target, weight, reduction, scale, offset, batched: as in `mse_loss`.

    Returns:
        An array of pred's shape and dtype.

    Raises:
        IndexError, OverflowError, TypeError, ValueError: as in `mse_loss`; nothing is written then.

    >>> schedule, noise = nf.Schedule.linear(1000), nf.Noise(7)
    >>> pred = np.zeros((2, 3), np.float32)
    >>> gradient = nf.mse_loss_grad(pred, None, 500, schedule, noise, target="epsilon")
    >>> bool(np.allclose(gradient, -2 / 6 * nf.randn((2, 3), noise)))
    True
    """
    gradient: Array
    library = None if type(pred) is np.ndarray else library_of(pred)
    plain = noise is not None and type(pred) is not tuple  # as in `mse_loss`
    if plain and (table := _fast_table(library, reduction, schedule, target, scale, offset)) is not None:
        x, wanted = pred if x0 is None and target == "epsilon" else x0, True if out is None else out
        each = reduction == "none"
        gradient = backends.fast_mse(table, t, x, pred, noise, weight, upstream, False, wanted, batched, each)
        if gradient is not NotImplemented:
            return gradient
    batched = is_batch("x0", x0, batched)
    if library is not None:
        options = {"target": target, "weight": weight, "reduction": reduction, "scale": scale, "offset": offset}
        return library.mse_loss_grad(
            pred, x0, t, schedule, noise, batched=batched, upstream=upstream, out=out, **options
        )
    arguments = (pred, x0, t, schedule, noise, target, weight, reduction, scale, offset, batched)
    gradient = _run(mse_call(*arguments, upstream, {"out": out}, want_loss=False))[1]
    return gradient


def interpolate_loss(
    pred: Array, x0: Array, x1: Array, t: ArrayLike | Array, path: Path, noise: NoiseLike | None = None, *,
    target: PathTarget, weight: ArrayLike | None = None, reduction: Reduction = "mean", batched: bool | None = None,
) -> Any:  # fmt: skip
    """Returns the mean of w (pred - target)^2. The target is that of `interpolate` with the same arguments; neither it
    nor the noise is stored.

    Args:
        pred: the network's prediction; float32, float64 (then the arithmetic is float64), float16 or bfloat16.
        x0, x1, t, path, noise, target, batched: as in `interpolate`; x0 and x1 have pred's shape, and any float dtype,
            from which they are read as they are.
        weight: an array of t's shape, or (B, 1) for (B,), finite. None: 1.
        reduction: as in `mse_loss`.

    Returns:
        As `mse_loss`. Tensors give a tensor, differentiable (once) through pred: the gradient is computed in the same
        pass and kept until then.

    Raises:
        TypeError, ValueError: as in `interpolate` and `mse_loss`; nothing is written then.
        NotImplementedError: arrays of dask.

    >>> x0, x1, pred = np.zeros((2, 3)), np.ones((2, 3)), np.full((2, 3), 0.5)
    >>> nf.interpolate_loss(pred, x0, x1, [0.25, 0.5], nf.paths.linear(), target="velocity")
    0.25
    """
    library = None if type(pred) is np.ndarray else library_of(pred)
    if (table := _fast_path(library, path, target, reduction)) is not None:
        each = reduction == "none"
        found = backends.fast_mse(table, t, x0, (pred, x1), noise, weight, 1.0, True, None, batched, each)
        if library is not None and type(found) is tuple:
            return library.with_gradient("interpolate_loss", found, pred, ("gradient",), found[1:])
        if found is not NotImplemented:
            return found
    options: dict[str, Any] = {"target": target, "weight": weight, "reduction": reduction, "batched": batched}
    if library is not None:  # whose operation comes back with arrays
        return library.interpolate_loss(pred, x0, x1, t, path, noise, **options)
    return _loss_of_path(pred, x0, x1, t, path, noise, **options)


def interpolate_loss_and_grad(
    pred: Like[ArrayT], x0: Array, x1: Array, t: ArrayLike | Array, path: Path, noise: NoiseLike | None = None, *,
    target: PathTarget, weight: ArrayLike | None = None, reduction: Reduction = "mean", batched: bool | None = None,
    out: Like[ArrayT] | None = None,
) -> tuple[Any, ArrayT]:  # fmt: skip
    """Returns `interpolate_loss`, and its gradient with respect to pred, computed in the same pass.

    Args:
        out: an array for the gradient; C-contiguous, of pred's shape and dtype. It may be pred itself.
        pred, x0, x1, t, path, noise, target, weight, reduction, batched: as in `interpolate_loss`.

    Returns:
        The pair (loss, gradient), as `mse_loss_and_grad` does.

    Raises:
        TypeError, ValueError, NotImplementedError: as in `interpolate_loss`; nothing is written then.

    >>> x0, x1, pred = np.zeros((2, 3)), np.ones((2, 3)), np.full((2, 3), 0.5)
    >>> nf.interpolate_loss_and_grad(pred, x0, x1, 0.25, nf.paths.linear(), target="velocity")[1].max()
    np.float64(-0.16666666666666666)
    """
    library = None if type(pred) is np.ndarray else library_of(pred)
    if (table := _fast_path(library, path, target, reduction)) is not None:
        wanted = True if out is None else out
        each = reduction == "none"
        found = backends.fast_mse(table, t, x0, (pred, x1), noise, weight, 1.0, True, wanted, batched, each)
        if found is not NotImplemented:
            return found
    options: dict[str, Any] = {"target": target, "weight": weight, "reduction": reduction, "batched": batched}
    if library is not None:
        found = library.interpolate_loss_and_grad(pred, x0, x1, t, path, noise, out=out, **options)
    else:
        found = _loss_of_path(pred, x0, x1, t, path, noise, grad=True if out is None else out, **options)
    return found


def _fast_path(library: Any, path: Path, target: PathTarget, reduction: Reduction) -> FastTable | None:
    """Returns the residual's rows for the fast path, or None if a name, a path or a library is not plain."""
    plain = type(path) is Path and type(target) is str and reduction in ("mean", "none")
    return path.fast_residual[target] if plain and (library is None or not library.is_traced()) else None


def _loss_of_path(
    pred: Any, x0: Any, x1: Any, t: Any, path: Path, noise: NoiseLike | None, *, target: PathTarget, weight: Any,
    reduction: Reduction, batched: bool | None, grad: Any = None,
) -> Any:  # fmt: skip
    """Returns the loss; with grad, its array or True, also the gradient."""
    outs = {} if grad is None else {"out": None if grad is True else grad}
    given = (target, weight, reduction, batched, outs)
    loss, gradient = _run(path_loss_call(pred, x0, x1, t, path, noise, *given))
    return loss if grad is None else (loss, gradient)


def path_loss_call(
    pred: Any, x0: Any, x1: Any, t: Any, path: Path, noise: NoiseLike | None, target: PathTarget, weight: Any,
    reduction: Reduction, batched: bool | None, outs: Mapping[str, Array | None],
) -> Loss:  # fmt: skip
    """Returns the loss of a path as a checked call; nothing is written yet. outs: as in `mse_call`."""
    check_path(path, target)
    check_choice("reduction", reduction, get_args(Reduction))
    batched = is_batch("pred", pred, batched)
    m = arrays.as_array("pred", pred)
    t = arrays.host_numbers("t", t)  # a path's functions are NumPy's
    rows, index = residual_rows(path, t, m.shape, target)
    if Z in rows.reads and noise is None:
        raise TypeError(f"noise: expected a Noise, which the path {path.name} draws from, got {got(noise)}")
    ends = {X: _like_pred("x0", x0, m, FLOATS), M2: _like_pred("x1", x1, m, FLOATS)}
    drawn = Noise(0) if noise is None else noise  # nothing is drawn from it
    given = (drawn, batched, weight, t, reduction, 1.0, outs)
    return _residual_call(m, ends, rows, index, *given, want_loss=True)


def _fast_table(
    library: Any, reduction: Reduction, schedule: Schedule, target: Target, scale: float | None, offset: float | None
) -> FastTable | None:
    """Returns the residual's rows for the fast path, or None if a name, a schedule or a library is not plain. (Callers
    call the fast path themselves: Dynamo would enter a function that is given tensors.)"""
    plain = type(schedule) is Schedule and type(target) is str and reduction in ("mean", "none")
    if not plain or (library is not None and library.is_traced()):
        return None
    if scale is None and offset is None:
        return schedule.kept.fast_residual[target]
    return fast_table(schedule.kept.fast_residual, target, scale, offset)


def _run(call: Loss) -> tuple[Any, Any]:
    """Returns (loss, gradient), with None for the unwanted one."""
    losses = call.losses
    if call.residual.batch * call.residual.size:
        backends.of(call.residual.inputs[M1]).run(call)
    elif losses is not None:
        losses[...] = np.nan  # the mean of no elements
    on_host = losses is not None and losses.ndim == 0 and not arrays.on_device(losses)
    return float(losses) if on_host else losses, call.residual.outputs[0]  # type: ignore[arg-type]


def mse_call(
    pred: Array, x0: Array | None, t: ArrayLike | Array, schedule: Schedule, noise: NoiseLike, target: Target,
    weight: ArrayLike | None, reduction: Reduction, scale: float | None, offset: float | None, batched: bool,
    upstream: ArrayLike | Array, outs: Mapping[str, Array | None], *, want_loss: bool,
) -> Loss:  # fmt: skip
    """Returns a loss as a checked call; nothing is written yet. outs: the gradient's array, by its argument's name."""
    check_schedule(schedule)
    check_target(target)
    check_choice("reduction", reduction, get_args(Reduction))
    m = arrays.as_array("pred", pred)
    x = _clean(x0, m, target)
    dtype = None if x is None else x.dtype
    rows, index = rows_at(residual, target, schedule, t, m.shape, dtype, scale, offset)
    given = (noise, batched, weight, t, reduction, upstream, outs)
    return _residual_call(m, {X: x}, rows, index, *given, want_loss=want_loss)


_NAMES = {X: "x0", M2: "x1"}


def _residual_call(
    m: Array, inputs: Mapping[int, Array | None], rows: Rows, index: Index, noise: NoiseLike | None, batched: bool,
    weight: ArrayLike | None, t: ArrayLike | Array, reduction: Reduction, upstream: ArrayLike | Array,
    outs: Mapping[str, Array | None], *, want_loss: bool,
) -> Loss:  # fmt: skip
    """Returns the loss of these rows' residuals, with pred as m, as a checked call; nothing is written yet."""
    drawn = Z in rows.reads
    names, z = names_or_array(noise, m.shape, m.dtype, batched, FIELD, any_stream=True, drawn=drawn)
    batch, sample_shape = arrays.batch_shape(m.shape, batched)
    size = math.prod(sample_shape)
    named = [("pred", m), *((_NAMES[slot], a) for slot, a in inputs.items()), ("noise", z)]
    numbers: list[tuple[str, Any]] = [("weight", weight), ("upstream", upstream)]
    given = [(name, a) for name, a in named if a is not None]
    device = arrays.one_place([*given, *((name, a) for name, a in numbers if arrays.on_device(a))])
    weights = None
    if weight is not None:
        weights, rows, index = _weights(weight, t, rows, index)
    g = _upstream(upstream, reduction, batch)
    read = {slot: a for slot, a in {**inputs, M1: m, Z: z}.items() if slot in rows.reads}
    call = make_call(m.shape, m.dtype, rows, index, names if drawn else (), read, dict(outs), batched)
    each = reduction == "none"
    losses = arrays.output("", None, (batch,) if each else (), np.dtype(np.float64), device) if want_loss else None
    return Loss(call, min(index.segment, size), weights, g, size if each else batch * size, losses)


# ---- the parts of a batch, and of samples ------------------------------------------------------------------


def _part(call: Loss, noise: NoiseLike, times: int, batched: bool, reduction: Reduction) -> LossPart:
    """Returns the sums of a loss's chunks. times: the number of t's axes."""
    step, m = call.residual, call.residual.inputs[M1]
    names, _ = names_or_array(noise, m.shape, m.dtype, batched, FIELD, any_stream=True)  # type: ignore[union-attr]
    tokens = times > batched
    piece = call.piece if tokens else step.size
    start, whole = place_of(names, step.sample_shape, times - batched if tokens else None)
    sums: Any = chunk_sums(step, piece, start, whole)
    batch, pieces, _ = sums.shape
    weights = None if call.weights is None else np.resize(call.weights[in_memory(step.index)], (batch, pieces))
    return LossPart(in_memory(sums), weights, start, step.size, whole, tokens, reduction)


_SQUARE, _DISTANCE = Rows.of({"out.m1": 1.0}), Rows.of({"out.m1": 1.0, "out.z": -1.0})


def mean_squares(x: Array, batched: bool) -> NDArray[np.float64]:
    """Returns the mean square of each sample, (B,), in the fixed order of the losses."""
    if type(x) is np.ndarray:
        found: Any = backends.fast_mse(_SQUARE.plain, 0, x, x, None, None, 1.0, True, None, batched, True)
        if found is not NotImplemented:
            return found
    if library_of(x) is not None:
        kind = type(x).__name__
        raise TypeError(f"x: expected an array of NumPy or CuPy, got {kind}; np.asarray(..) or cupy.asarray(..) is one")
    return _means(_SQUARE, x, batched, (), 1)[0]


def distances(x: Array, batched: bool, noises: Sequence[Noise], steps: int) -> NDArray[np.float64]:
    """Returns the mean of (x - z)^2 over each sample, (steps, B), with the noises' z at their next steps."""
    return _means(_DISTANCE, x, batched, noises, steps)


def _means(rows: Rows, x: Array, batched: bool, noises: Sequence[Noise], steps: int) -> NDArray[np.float64]:
    x = arrays.as_array("x", x)
    batch, sample_shape = arrays.batch_shape(x.shape, batched)
    size = math.prod(sample_shape)
    if batch * size == 0:
        return np.zeros((steps, batch))
    one = noises[0] if len(noises) == 1 else noises  # one Noise for all samples
    names = names_or_array(one, x.shape, x.dtype, batched, FIELD, any_stream=True)[0] if noises else ()
    call = make_call(x.shape, x.dtype, rows, Index(np.zeros(1, np.int64), x.size), names, {M1: x}, {}, batched)
    losses: Any = arrays.output("", None, (steps, batch), np.dtype(np.float64), arrays.device_of(x))
    backends.repeated_loss(x, Loss(call, size, None, np.ones(()), size, losses))
    return losses.get() if arrays.on_device(losses) else losses


def _clean(x0: Array | None, pred: Array, target: Target) -> Array | None:
    if x0 is None and target == "epsilon":
        return None
    return _like_pred("x0", x0, pred, (*FLOATS, *LEVELS))


def _like_pred(name: str, a: object, pred: Array, allowed: tuple[str, ...]) -> Array:
    """Returns data of pred's shape in their own dtype: kernels widen it, and a loss rounds no data to pred's."""
    array = arrays.as_array(name, a, allowed)
    if array.shape != pred.shape:
        raise ValueError(f"{name}: expected pred's shape {pred.shape}, got {array.shape}")
    return array


def _weights(weight: ArrayLike, t: ArrayLike, rows: Rows, index: Index) -> tuple[Any, Rows, Index]:
    """Returns a weight for each row, the rows and their numbers. Float times have rows of their own, and so have
    integers with a weight for each."""
    row: Any = arrays.as_numbers("weight", weight)
    times: Any = arrays.as_numbers("t", t)
    floating = times.dtype.kind == "f"
    given, shape = row.shape, times.shape
    of_each = bool(shape) and given[: len(shape)] == shape and set(given[len(shape) :]) == {1}  # (B, 1), say
    if of_each and not floating:
        rows = Rows(rows.table[in_memory(index.values)], rows.active)
        index = Index(np.arange(times.size), index.segment)
    expected = shape if floating or of_each else (len(rows.table),)
    if row.dtype.kind not in "iuf":
        raise TypeError(f"weight: expected numbers, such as those of noisefuse.weights, got {weight!r:.60}")
    if of_each:
        row = row.reshape(shape)
    if row.shape != expected:
        what = "t's shape" if floating else "one for each step of the schedule,"
        each = f"{(*shape, 1)} is one for each t" if shape else "one for each sample is reduction='none', multiplied"
        raise ValueError(f"weight: expected {what} {expected}, got {given}; {each}")
    row = arrays.contiguous(row.reshape(-1).astype(np.float64, copy=False))
    on_host = not arrays.on_device(row) and not arrays.on_device(index.values)
    if on_host and not np.isfinite(picked := row[index.values]).all():
        bad = index.values[~np.isfinite(picked)][0]
        place = ", ".join(map(str, np.unravel_index(bad, expected)))
        raise ValueError(
            f"weight{f'[{place}]' if place else ''} = {row[bad]}: expected finite numbers where t takes them (those "
            "of 'epsilon' may be infinite where alpha = 0)"
        )
    return row, rows, index


def _upstream(upstream: ArrayLike, reduction: Reduction, batch: int) -> Any:
    g: Any = arrays.as_reals("upstream", upstream)
    if g.shape != () and (reduction == "mean" or g.shape != (batch,)):
        expected = f"a number or shape {(batch,)}" if reduction == "none" else "a number"
        raise ValueError(f"upstream: expected {expected}, got shape {g.shape}")
    return arrays.contiguous(g)
