# SPDX-License-Identifier: Apache-2.0
"""The denoising loss, and log-densities: see `density`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ... import density
from ...arguments.options import check_tableau, fast_table
from ...call.description import Loss, Step
from ...call.packed import pack_loss
from ...ground.checks import is_tracer
from ...language.forward import residual
from ...language.rows import M1, M2, X, Z
from ...operations import loss
from . import eager, traced
from .description import LAW, LOSSES, WEIGHTS


def mse_loss(*arguments: Any, partial: bool = False, **options: Any) -> Any:
    if partial:
        raise NotImplementedError("partial: sums of parts do not take JAX arrays: pass np.asarray(pred)")
    return _mse_loss(*arguments, **options, wanted=False)[0]


def mse_loss_and_grad(*arguments: Any, out: Any, **options: Any) -> Any:
    traced.check_none(out=out)
    return tuple(_mse_loss(*arguments, **options, wanted=True))


def _mse_loss(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *, weight: Any, target: Any, reduction: Any, scale: Any,
    offset: Any, batched: bool, wanted: bool,
) -> Any:  # fmt: skip
    """Returns the loss, and its gradient if it is wanted."""
    known_weight = weight
    if weight is not None and not isinstance(weight, np.ndarray) and hasattr(weight, "dtype"):
        known_weight = np.ones(weight.shape) if is_tracer(weight) else np.asarray(weight, np.float64)

    t, of_x0 = eager.number(t), pred if x0 is None and target == "epsilon" else x0
    common, rows = traced.rows_of_floats(residual, target, schedule, t, of_x0, scale, offset)
    arrays = (pred,) if x0 is None else (pred, x0)

    def like() -> Any:
        plain = fast_table(schedule.kept.fast_residual, target, scale, offset) if common is None else common
        return plain, -1, reduction, wanted, batched, weight is not None, x0 is not None

    if type(schedule) is nf.Schedule and type(target) is str and not is_tracer(weight):
        (table, stream, *more), at = like(), t if rows is None else 0
        signature = eager.signature(table, stream, at, noise, arrays, *more)
        of_rows = None if weight is None else _of_rows(known_weight, (len(schedule),) if rows is None else np.shape(t))
        if weight is None or of_rows is not None:
            outputs = eager.again(signature, at, noise, arrays, rows, of_rows)
            if outputs is not NotImplemented:
                return outputs

    def make(pred: Any, t: Any, noise: Any, x0: Any, row: Any = known_weight) -> Loss:
        options = target, row, reduction, scale, offset, batched, 1.0
        return loss.mse_call(pred, x0, t, schedule, noise, *options, {"out": None}, want_loss=True)

    by_slot = {M1: pred} if x0 is None else {M1: pred, X: x0}
    of_each = rows is None and weight is not None and np.ndim(weight) > max(1, np.ndim(t))  # see `_loss`
    again = None if of_each else partial(traced.remember, like, t, noise, by_slot)
    return _loss(make, pred, x0, t, schedule, noise, weight, wanted, again)


def _of_rows(weight: Any, expected: tuple[int, ...]) -> Any:
    """Returns weights in float64, one for each row; None if the checked path has to look at them."""
    weight = np.asarray(weight)
    if weight.dtype.kind not in "iuf" or weight.shape != expected:
        return None
    return np.ascontiguousarray(weight.reshape(-1), np.float64)


def mse_loss_grad(*arguments: Any, upstream: Any, out: Any, **options: Any) -> Any:
    traced.check_none(out=out)
    gradient = _mse_loss(*arguments, **options, wanted=True)[1]
    if type(upstream) is float and upstream == 1:
        return gradient
    g = jnp.asarray(upstream, gradient.dtype)
    return gradient * g.reshape(g.shape + (1,) * (gradient.ndim - g.ndim))


def interpolate_loss(*arguments: Any, **options: Any) -> Any:
    return _path_loss(*arguments, **options, wanted=False)[0]


def interpolate_loss_and_grad(*arguments: Any, out: Any, **options: Any) -> Any:
    traced.check_none(out=out)
    return tuple(_path_loss(*arguments, **options, wanted=True))


def _path_loss(
    pred: Any, x0: Any, x1: Any, t: Any, path: Any, noise: Any, *, target: Any, weight: Any, reduction: Any,
    batched: bool | None, wanted: bool,
) -> Any:  # fmt: skip
    traced.stand_in_for("x0", x0)
    x1_zeros = traced.stand_in_for("x1", x1)
    known_weight = weight
    if isinstance(weight, jax.Array):
        known_weight = np.ones(weight.shape) if is_tracer(weight) else np.asarray(weight, np.float64)

    def make(m: Any, t: Any, noise: Any, x0: Any, row: Any = known_weight) -> Loss:
        y = x1_zeros if m.shape == pred.shape else np.zeros(m.shape, x1_zeros.dtype)
        return loss.path_loss_call(m, x0, y, t, path, noise, target, row, reduction, batched, {"out": None})

    arguments = pred, x0, eager.number(t), path, noise if getattr(path, "draws", True) else None, weight
    return _loss(make, *arguments, wanted, None, {M2: x1})


def log_prob(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, past: Any, partial: bool = False, **law: Any
) -> Any:
    if partial:
        raise NotImplementedError("partial: sums of parts do not take JAX arrays: pass np.asarray(x)")
    check_tableau("table", table)
    arrays, models, remembered = traced.read(model_output, past)
    known, tracer = _drawing(table, i)
    zeros = traced.stand_in_for("x", x), models, traced.stand_in_for("x_next", x_next), remembered
    call, _ = density.stored_call(table, known, *zeros, law["reduction"], law["density"], {})
    return _density(call, {M1: x, **arrays, X: x, Z: x_next}, table, tracer, law)


def kl(table: Any, i: Any, model_output: Any, reference: Any, *, reduction: Any) -> Any:
    check_tableau("table", table)
    known, tracer = _drawing(table, i)
    zeros = traced.stand_in_for("model_output", model_output), traced.stand_in_for("reference", reference)
    call, _ = density.pair_call(table, known, *zeros, reduction, {})
    return _density(call, {M1: model_output, X: reference}, table, tracer, {"reduction": reduction, "density": "kl"})


def log_prob_grad(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, wrt: Any, upstream: Any, out: Any, past: Any,
    **law: Any,
) -> Any:  # fmt: skip
    traced.check_none(out=out)
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    inputs = {"x": x} | {f"m{n + 1}": m for n, m in enumerate(models)}
    if wrt not in ("m1", "m2", "x") or inputs.get(wrt) is None:
        raise ValueError(f"wrt = {wrt!r}: expected 'm1', 'm2' or 'x', and an array there")

    def of(a: Any) -> Any:
        arguments = inputs | {wrt: a}
        pair = (arguments["m1"], arguments["m2"]) if len(models) > 1 else arguments["m1"]
        return log_prob(table, i, arguments["x"], pair, x_next, past=past, **law)

    return _pulled_back(of, inputs[wrt], upstream)


def kl_grad(table: Any, i: Any, model_output: Any, reference: Any, *, reduction: Any, upstream: Any, out: Any) -> Any:
    traced.check_none(out=out)
    return _pulled_back(lambda m: kl(table, i, m, reference, reduction=reduction), model_output, upstream)


def _pulled_back(function: Callable[[Any], Any], x: Any, upstream: Any) -> Any:
    densities, back = jax.vjp(function, x)
    g = jnp.asarray(upstream, densities.dtype)
    if g.shape not in ((), densities.shape):
        raise ValueError(f"upstream: expected a number or shape {densities.shape}, got shape {g.shape}")
    return back(jnp.broadcast_to(g, densities.shape))[0]


def update_with_log_prob(
    table: Any, i: Any, x: Any, model_output: Any, noise: Any, *, past: Any, out: Any, aux_out: Any, **law: Any
) -> Any:
    """Returns a sample x', which has no gradient, and its log-density, which has one."""
    more = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
    results = jax.tree.map(jax.lax.stop_gradient, nf.update(table, i, x, model_output, **more))
    x_next = results[0] if isinstance(aux_out, int) else results
    return results, log_prob(table, i, x, model_output, x_next, past=past, **law)


def _drawing(table: Any, i: Any) -> tuple[Any, Any]:
    """Returns a row in place of a traced one: one that has a density, if there is any."""
    if not is_tracer(i):
        return np.asarray(i) if isinstance(i, jax.Array) else i, None
    row = int(np.argmax(table.rows["out"]["z"] != 0))
    return np.full(i.shape, row), i


def _density(call: Step, arrays: dict[int, Any], table: Any, tracer: Any, law: dict[str, Any]) -> Any:
    """Returns log-densities (B,), in float64 if JAX has it, else rounded once."""
    numbers = density.numbers_of_rows(table, call.size, law["reduction"], law["density"])
    kind = jax.dtypes.canonicalize_dtype(np.float64)
    if not call.size and tracer is None:
        return jnp.asarray(np.broadcast_to(numbers[call.index, 1], (call.batch,)), kind)
    loss = pack_loss(Loss(call, call.size, None, np.ones(()), 1, np.empty(call.batch)), lambda _: 0)
    more, factors = {LAW: numbers.view(np.uint32).reshape(-1, 2)}, tuple(numbers[:, 0].tolist())
    outputs = [((call.batch,), kind.name)]
    named = traced.Named(None)
    return traced.run(call, arrays, named, tracer, None, outputs, more, LOSSES, loss=loss, factors=factors)[0]


def _loss(
    make: Callable[..., Loss], pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, weight: Any, want_gradient: bool,
    again: Any, more_arrays: dict[int, Any] | None = None,
) -> Any:  # fmt: skip
    zeros, named = traced.stand_in_for("pred", pred), traced.Named(noise)
    known, tracer = traced.known_times(t, schedule)
    clean = None if x0 is None else traced.stand_in_for("x0", x0)
    checked = make(zeros, known, named.known, clean)
    call, losses, rows = checked.residual, checked.losses, None
    assert losses is not None
    if tracer is not None and tracer.dtype.kind == "f":

        def at(times: Any) -> Step:
            n = times.size
            of_x0 = None if clean is None else np.zeros(n, clean.dtype)
            return make(np.zeros(n, zeros.dtype), times, nf.Noise(0), of_x0, None).residual

        rows, tracer = traced.rows_at_times(at, call, tracer)
    elif tracer is not None and np.ndim(weight) > max(1, tracer.ndim):  # each t has a weight, and a row, of its own
        table = traced.kept(make(zeros, known, named.known, clean, None).residual.rows, call.arithmetic == np.float64)
        rows = table[jnp.clip(traced.small(tracer).reshape(-1), 0, len(table) - 1)]
        tracer = np.arange(tracer.size, dtype=np.int32)
    dtype = call.arithmetic.name
    outputs = [(losses.shape, dtype)]
    if want_gradient:
        outputs.append((pred.shape, call.dtype.name))
    more = {}
    if weight is not None:
        words = checked.weights
        more[WEIGHTS] = _weights(weight) if is_tracer(weight) else words.view(np.uint32).reshape(-1, 2)  # type: ignore[union-attr]
    arrays = {X: x0, M1: pred, Z: named.array, **(more_arrays or {})}
    packed = pack_loss(checked, lambda _: 0)
    return traced.run(call, arrays, named, tracer, rows, outputs, more, LOSSES, again, loss=packed)


def _weights(weight: Any) -> Any:
    """Returns traced weights in a dtype of the handler, along one axis, as two axes mean halves of 64-bit numbers."""
    plain = weight.dtype.itemsize >= 4 and weight.dtype.kind in "iuf"
    return (weight if plain else weight.astype(jnp.float32)).reshape(-1)
