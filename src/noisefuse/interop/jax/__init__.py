# SPDX-License-Identifier: Apache-2.0
"""JAX arrays in, JAX arrays out, in eager code and in traced programs: jit, vmap, grad, scan, shard_map.

NumPy's checks run once, while JAX traces an operation, on arrays of zeros in place of JAX's. Numbers that depend on the
data, such as the row, the step, or the ids of samples, may be traced too. They are then not checked, and a row beyond a
table is its first or last row (docs/jax.md). `calls` runs the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import noisefuse as nf

from ... import density
from ...arguments.arrays import fast_dtype
from ...arguments.calls import Index, kept_times, make_call
from ...arguments.options import FAST_LEVELS, lengths, need_tableau, plain_table, rows_at
from ...call.description import Loss, Step
from ...call.packed import pack_loss
from ...ground.checks import is_tracer
from ...ground.kinds import Library
from ...ground.needs import needs
from ...language.forward import forward, residual
from ...language.levels import FLOATS, LEVELS, Levels, level_bounds
from ...language.noise import SAMPLER, SAMPLES, STEPS, WALK, each, listed
from ...language.rows import AFFINE, M1, SYMBOLS, Rows, X, Z
from ...operations import loss
from ...operations.draw import UNIT, are_increments, random_call, rows_of_sum
from ...operations.process import q_sample_call, q_step_call
from ...operations.update import update_call
from ...sampling.arrays import need_answer
from ...sampling.state import State

with needs(__name__, "jax"):
    import jax
    import jax.numpy as jnp

from . import eager
from .calls import bind
from .categories import categorical, masked_cross_entropy, masked_cross_entropy_and_grad
from .description import (
    FIELDS,
    IDS,
    INDEX,
    LAW,
    LOSSES,
    ROWS,
    START,
    STEP,
    STEP_CALLS,
    WALKS,
    WEIGHTS,
    described,
    field_bytes,
)
from .eager import fast_random, fast_row
from .internals import varying, varying_axes


def times(x: Any, t: Any, kind: str) -> Any:
    """Returns t for each sample of x."""
    return jnp.full(x.shape[:1], t, jax.dtypes.canonicalize_dtype(kind))


def time_of(times: Any, i: Any) -> Any:
    """Returns the time of a traced row."""
    return _at_row(jnp.asarray(times), i)


def _at_row(numbers: Any, i: Any) -> Any:
    """Returns the number of row i. Beyond the ends it is the first or last row's, as in kernels: -1 is not the last
    row."""
    return numbers.at[i].get(mode="clip", wrap_negative_indices=False)


def moved(x: Any, to: Any) -> Any:
    """Returns NumPy's x as a JAX array."""
    return jnp.asarray(x)


def zeros_like(x: Any) -> Any:
    return varying(jnp.zeros(x.shape, x.dtype), varying_axes(x))


# ---- keys --------------------------------------------------------------------------------------------------


def from_key(key: Any) -> nf.Noise:
    """Does `Noise.from_key`."""
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        hint = "; jax.random.wrap_key_data makes one of a PRNGKey" if isinstance(key, jax.Array) else ""
        raise TypeError(f"key: expected one of jax.random.key(seed), got {type(key).__name__}{hint}")
    if is_tracer(key):
        raise TypeError(
            "key: its value is not known while JAX traces: make the Noise before, and use noise.at(step=..)"
        )
    if key.shape != ():
        raise TypeError(f"key: expected one key, got an array of them of shape {key.shape}")
    words = np.asarray(jax.random.key_data(key))
    if words.size == 4:  # an rbg key has more bits than a seed
        words = nf.philox4x32(words, [0, 0])[[1, 0]]
    if words.size != 2:
        raise TypeError(f"key: expected one of threefry2x32, rbg or unsafe_rbg, got {key.dtype}")
    return nf.Noise(int(words[0]) << 32 | int(words[1]))


def to_key(noise: nf.Noise) -> Any:
    """Returns the threefry key whose 64 bits are the seed of a Noise: `Noise.from_key` turns it back into that Noise.

    Raises:
        ValueError: the Noise has a step, sample or stream other than 0, or a window, which no key can hold.

    >>> nf.Noise.from_key(nf.interop.jax.to_key(nf.Noise(7)))
    Noise(7)
    """
    if noise != nf.Noise(noise.seed):
        raise ValueError(f"noise: expected a seed alone, as a JAX key holds no other number, got {noise!r}")
    return jax.random.wrap_key_data(
        np.array([noise.seed >> 32, noise.seed & 0xFFFFFFFF], np.uint32), impl="threefry2x32"
    )


# ---- operations --------------------------------------------------------------------------------------------
# Their arguments are those of the functions of the same names; `operations` calls them if x or dtype is JAX's.


def randn(shape: Any, noise: Any, **options: Any) -> Any:
    if are_increments(noise):
        return added_draws(shape, noise, **options)
    return _random("randn", shape, noise, **options)


def uniform(shape: Any, noise: Any, **options: Any) -> Any:
    return _random("uniform", shape, noise, **options)


def randn_like(x: Any, noise: Any, *, dtype: Any, batched: bool) -> Any:
    kind = dtype or (np.float32 if x.dtype.kind in "biu" else x.dtype)
    drawn = fast_random(UNIT.plain, x.shape, noise, False, fast_dtype(kind, jax), batched, True, None)
    return randn(x.shape, noise, dtype=kind, batched=batched, out=None) if drawn is NotImplemented else drawn


def _random(name: str, shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    _need_none(out=out)
    named = _Named(noise)
    call = random_call(name, shape, named.known, jnp.dtype(dtype), batched)
    like = lambda: (UNIT.plain, name == "uniform", shape, fast_dtype(dtype, jax), batched)  # noqa: E731
    return _run(call, {}, named, remember=partial(_remember, like, 0, noise, {}))[0]


def added_draws(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    """Returns the sum of the draws of an increment of a Brownian motion, or of one for each row."""
    _need_none(out=out)
    full, kind = lengths(shape), jnp.dtype(dtype)
    fields = noise.draw(0) if isinstance(noise, nf.noise.Increment) else [one.draw(0) for one in noise]
    call = random_call("randn", full, _Named(fields).known, kind, batched)
    if isinstance(noise, nf.noise.Increment):
        return _sum_of_draws(noise, full, call, batched)
    row = (1, *full[1:]) if batched and full else full
    return jnp.concatenate([_sum_of_draws(one, row, call, batched) for one in noise])


def _sum_of_draws(increment: Any, shape: tuple[int, ...], like: Step, batched: bool) -> Any:
    """Adds the draws as `operations` does, if a step is traced: one after the other in a `jax.lax.scan`."""
    terms, real = increment.terms(), like.arithmetic
    first, sums = rows_of_sum(terms)
    words = np.array([word for word, _ in terms], np.uint32)

    def call(rows: Rows, named: _Named | None, inputs: dict[int, Any], kind: Any) -> Step:
        index = Index(np.zeros(1, np.int64), max(1, math.prod(shape)))
        names = () if named is None else (named.known,)
        return make_call(shape, kind, rows, index, names, inputs, {"out": None}, batched)

    def add(total: Any, at: Any) -> Any:
        named = _Named(increment.draw(at[1]))
        given = call(sums, named, {X: np.zeros(shape, real)}, real)
        return _run(given, {X: total}, named, index=at[0], in_place=True)[0], None

    named = _Named(increment.draw(int(words[0])))
    total = _run(call(first, named, {}, real), {}, named)[0]
    later = jnp.arange(1, len(words), dtype=jnp.int32), jnp.asarray(words[1:])
    total = jax.lax.scan(add, total, later)[0]
    if like.dtype == real:
        return total
    rounded = call(Rows.of({"out.x": 1.0}), None, {X: np.zeros(shape, real)}, like.dtype)
    return _run(rounded, {X: total}, _Named(None))[0]


def q_sample(
    x0: Any, t: Any, schedule: Any, noise: Any, *, out: Any, target_out: Any, target: Any, scale: Any, offset: Any,
    dtype: Any, batched: bool, out_scale: Any = None, out_offset: Any = None,
) -> Any:  # fmt: skip
    _need_none(target_out=target_out)
    levels = _levels(dtype, out_scale, out_offset) if dtype in LEVELS else None
    kind = None if dtype is None or levels else jnp.dtype(dtype)
    options = target, scale, offset, kind, levels, batched
    t, aux = eager.number(t), int(target is not None)
    common, rows = _rows_of_floats(forward, target, schedule, t, x0, scale, offset)
    if rows is not None and levels is not None:
        rows = rows.scaled(*levels.range)
        common = common._replace(active=rows.active)

    def like() -> Any:
        plain = plain_table(schedule.kept.plain, target, scale, offset, levels) if common is None else common
        return plain, -1, 0, aux, _kind(dtype, levels), batched

    found = NotImplemented
    if common is not None and out is None:
        table, stream, *more = like()
        found = eager.again(eager.signature(table, stream, 0, noise, (x0,), *more), 0, noise, (x0,), rows)
    if found is NotImplemented:
        make = lambda x, t, noise: q_sample_call(x, t, schedule, noise, *options)  # noqa: E731
        found = _at_times(make, "x0", x0, t, noise, out, like, schedule=schedule)
    return found[0] if target is None else tuple(found)


def _rows_of_floats(
    make: Any, target: Any, schedule: Any, t: Any, x: Any, scale: Any, offset: Any
) -> tuple[Any, Rows | None]:
    """Of times that are known floats: what calls of as many have in common, and the rows. None, None: of others."""
    known = type(schedule) is nf.Schedule and isinstance(t, float | np.floating | np.ndarray) and hasattr(x, "dtype")
    if not known or np.asarray(t).dtype.kind != "f":
        return None, None
    rows, index = rows_at(make, target, schedule, t, x.shape, x.dtype, scale, offset)
    return eager.Given(rows.active, index.segment, len(rows.table)), rows


def q_step(
    x: Any, t: Any, schedule: Any, noise: Any, *, out: Any, batched: bool, dtype: Any = None, out_scale: Any = None,
    out_offset: Any = None,
) -> Any:  # fmt: skip
    levels = _levels(dtype, out_scale, out_offset)
    make = lambda x, t, noise: q_step_call(x, t, schedule, noise, levels, batched)  # noqa: E731
    like = lambda: (schedule.kept.plain_markov, WALK, 0, 0, None, batched)  # noqa: E731
    return _at_times(make, "x", x, t, noise, out, None if levels else like)[0]


def _levels(dtype: str | None, out_scale: float, out_offset: float) -> Levels | None:
    return None if dtype is None else Levels(dtype, (out_scale, out_offset))


def _kind(dtype: Any, levels: Levels | None) -> Any:
    """Returns a result dtype as the fast path takes it."""
    return FAST_LEVELS[levels.dtype] if levels else None if dtype is None else fast_dtype(dtype, jax)


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, batched: bool, out: Any) -> Any:
    _need_none(out=out)
    if hasattr(noise, "shape"):
        raise TypeError("noise: expected a Noise, as q_walk draws at every time, got an array")
    kept, rows = kept_times(keep, len(schedule)), schedule.kept.markov
    begun = []
    if x0.dtype.name in LEVELS and len(kept):  # a walk's row has no constant: another step scales the levels
        x0 = q_step(x0, 0, schedule, noise, batched=batched, out=None)
        begun, kept = [x0[None]] * int(kept[0] == 0), kept[kept > 0] - 1
        rows = Rows(rows.table[1:], rows.active)
        noise = each(noise, lambda name: name.at(step=name.step + 1) if isinstance(name, nf.Noise) else name)
    named = _Named(noise)
    call = q_step_call(_zeros("x0", x0), 0, schedule, named.known, None, batched)
    slots = np.full(int(kept[-1]) + 1 if len(kept) else 0, -1, np.int64)
    slots[kept] = np.arange(len(kept))
    outputs = [((len(kept), *x0.shape), call.dtype.name)]
    walked = {
        "keep": tuple(slots.tolist()),
        "alpha": tuple(np.cumprod(rows.table[:, AFFINE[0] + 1 + X])[kept].tolist()),
    }
    call = call._replace(rows=rows, step_by_index=False)
    made = _run(call, {X: x0}, named, kind=WALKS, outputs=outputs, kept=slots, **walked)[0]
    return jnp.concatenate([*begun, made]) if begun else made


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any, dtype: Any = None,
    out_scale: Any = None, out_offset: Any = None,
) -> Any:  # fmt: skip
    if not isinstance(aux_out, int) and len(aux_out):
        raise TypeError("aux_out: JAX arrays are not written to; give the number of auxiliary outputs")
    arrays, models, remembered = _read(model_output, past)
    if is_tracer(i) and noise is None and table.as_rows.draws.any():
        raise TypeError("noise: expected a Noise, as rows of the table draw noise and the row number is traced")

    levels, number = _levels(dtype, out_scale, out_offset), aux_out if isinstance(aux_out, int) else 0

    def make(x: Any, i: Any, noise: Any) -> Step:
        return update_call(table, i, x, models, remembered, noise, None, number, levels)

    given = 0 if model_output is None else len(model_output) if isinstance(model_output, tuple) else 1

    def like() -> Any:
        rows = table.as_rows if levels is None else table.as_rows.scaled(*levels.range)
        return rows.plain, SAMPLER, given, number, _kind(None, levels), True

    unsure = noise is None and table.as_rows.draws.any()
    found = _at_times(make, "x", x, i, noise, out, None if unsure else like, arrays)
    return tuple(found) if isinstance(aux_out, int) else found[0]


def _read(model_output: Any, past: Any) -> tuple[dict[int, Any], Any, list[Any]]:
    """Returns arrays by slot; and stand-ins for the model output, or the pair, and for the remembered arrays."""
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    given = {f"m{n + 1}": m for n, m in enumerate(models) if m is not None}
    given |= {f"past{n + 1}": p for n, p in enumerate(past)}
    zeros = {name: _zeros(nf.tableau.ARGUMENTS[name], a) for name, a in given.items()}
    stand_in = tuple(zeros.get(f"m{n + 1}") for n in range(len(models))) if len(models) > 1 else zeros.get("m1")
    arrays = {slot: given[symbol] for slot, symbol in enumerate(SYMBOLS[1:]) if symbol in given}
    return arrays, stand_in, [zeros[f"past{n + 1}"] for n in range(len(past))]


def mse_loss(*given: Any, partial: bool = False, **options: Any) -> Any:
    if partial:
        raise NotImplementedError("partial: sums of parts do not take JAX arrays: pass np.asarray(pred)")
    return _mse_loss(*given, **options, wanted=False)[0]


def mse_loss_and_grad(*given: Any, out: Any, **options: Any) -> Any:
    _need_none(out=out)
    return tuple(_mse_loss(*given, **options, wanted=True))


def _mse_loss(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *, weight: Any, target: Any, reduction: Any, scale: Any,
    offset: Any, batched: bool, wanted: bool,
) -> Any:  # fmt: skip
    """Returns the loss, and its gradient if it is wanted."""
    known_weight = weight
    if weight is not None and not isinstance(weight, np.ndarray) and hasattr(weight, "dtype"):
        known_weight = np.ones(weight.shape) if is_tracer(weight) else np.asarray(weight, np.float64)

    t, of_x0 = eager.number(t), pred if x0 is None and target == "epsilon" else x0
    common, rows = _rows_of_floats(residual, target, schedule, t, of_x0, scale, offset)
    arrays = (pred,) if x0 is None else (pred, x0)

    def like() -> Any:
        plain = plain_table(schedule.kept.plain_residual, target, scale, offset) if common is None else common
        return plain, -1, reduction, wanted, batched, weight is not None, x0 is not None

    if type(schedule) is nf.Schedule and type(target) is str and not is_tracer(weight):
        (table, stream, *more), at = like(), t if rows is None else 0
        signature = eager.signature(table, stream, at, noise, arrays, *more)
        of_rows = None if weight is None else _of_rows(known_weight, (len(schedule),) if rows is None else np.shape(t))
        if weight is None or of_rows is not None:
            found = eager.again(signature, at, noise, arrays, rows, of_rows)
            if found is not NotImplemented:
                return found

    def make(pred: Any, t: Any, noise: Any, x0: Any, row: Any = known_weight) -> Loss:
        options = target, row, reduction, scale, offset, batched, 1.0
        return loss.mse_call(pred, x0, t, schedule, noise, *options, {"out": None}, want_loss=True)

    given = {M1: pred} if x0 is None else {M1: pred, X: x0}
    of_each = rows is None and weight is not None and np.ndim(weight) > max(1, np.ndim(t))  # see `_loss`
    again = None if of_each else partial(_remember, like, t, noise, given)
    return _loss(make, pred, x0, t, schedule, noise, weight, wanted, again)


def _of_rows(weight: Any, expected: tuple[int, ...]) -> Any:
    """Weights in float64, one for each row. None: what they are has to be said."""
    weight = np.asarray(weight)
    if weight.dtype.kind not in "iuf" or weight.shape != expected:
        return None
    return np.ascontiguousarray(weight.reshape(-1), np.float64)


def mse_loss_grad(*given: Any, upstream: Any, out: Any, **options: Any) -> Any:
    _need_none(out=out)
    gradient = _mse_loss(*given, **options, wanted=True)[1]
    if type(upstream) is float and upstream == 1:
        return gradient
    g = jnp.asarray(upstream, gradient.dtype)
    return gradient * g.reshape(g.shape + (1,) * (gradient.ndim - g.ndim))


# ---- log-densities: see `density` ---------------------------------------------------------------------------


def log_prob(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, past: Any, partial: bool = False, **law: Any
) -> Any:
    if partial:
        raise NotImplementedError("partial: sums of parts do not take JAX arrays: pass np.asarray(x)")
    need_tableau("table", table)
    arrays, models, remembered = _read(model_output, past)
    known, traced = _drawing(table, i)
    zeros = _zeros("x", x), models, _zeros("x_next", x_next), remembered
    call, _ = density.stored_call(table, known, *zeros, law["reduction"], law["density"], {})
    return _density(call, {M1: x, **arrays, X: x, Z: x_next}, table, traced, law)


def kl(table: Any, i: Any, model_output: Any, reference: Any, *, reduction: Any) -> Any:
    need_tableau("table", table)
    known, traced = _drawing(table, i)
    zeros = _zeros("model_output", model_output), _zeros("reference", reference)
    call, _ = density.pair_call(table, known, *zeros, reduction, {})
    return _density(call, {M1: model_output, X: reference}, table, traced, {"reduction": reduction, "density": "kl"})


def log_prob_grad(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, wrt: Any, upstream: Any, out: Any, past: Any,
    **law: Any,
) -> Any:  # fmt: skip
    _need_none(out=out)
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    inputs = {"x": x} | {f"m{n + 1}": m for n, m in enumerate(models)}
    if wrt not in ("m1", "m2", "x") or inputs.get(wrt) is None:
        raise ValueError(f"wrt = {wrt!r}: expected 'm1', 'm2' or 'x', and an array there")

    def of(a: Any) -> Any:
        given = inputs | {wrt: a}
        pair = (given["m1"], given["m2"]) if len(models) > 1 else given["m1"]
        return log_prob(table, i, given["x"], pair, x_next, past=past, **law)

    return _pulled_back(of, inputs[wrt], upstream)


def kl_grad(table: Any, i: Any, model_output: Any, reference: Any, *, reduction: Any, upstream: Any, out: Any) -> Any:
    _need_none(out=out)
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
    given = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
    made = jax.tree.map(jax.lax.stop_gradient, nf.update(table, i, x, model_output, **given))
    return made, log_prob(table, i, x, model_output, made[0] if isinstance(aux_out, int) else made, past=past, **law)


def _drawing(table: Any, i: Any) -> tuple[Any, Any]:
    """Returns a row in place of a traced one: one that has a density, if there is any."""
    if not is_tracer(i):
        return np.asarray(i) if isinstance(i, jax.Array) else i, None
    row = int(np.argmax(table.rows["out"]["z"] != 0))
    return np.full(i.shape, row), i


def _density(call: Step, arrays: dict[int, Any], table: Any, traced: Any, law: dict[str, Any]) -> Any:
    """Returns log-densities (B,), in float64 if JAX has it, else rounded once."""
    numbers = density.numbers_of_rows(table, call.size, law["reduction"], law["density"])
    kind = jax.dtypes.canonicalize_dtype(np.float64)
    if not call.size and traced is None:
        return jnp.asarray(np.broadcast_to(numbers[call.index, 1], (call.batch,)), kind)
    loss = pack_loss(Loss(call, call.size, None, np.ones(()), 1, np.empty(call.batch)), lambda _: 0)
    more, factors = {LAW: numbers.view(np.uint32).reshape(-1, 2)}, tuple(numbers[:, 0].tolist())
    outputs = [((call.batch,), kind.name)]
    return _run(call, arrays, _Named(None), traced, None, outputs, more, LOSSES, loss=loss, factors=factors)[0]


# ---- augmentation ------------------------------------------------------------------------------------------


def augmented(function: Any, x: Any, noise: Any, *, out: Any = None, **options: Any) -> Any:
    """Runs a function of `augment`: in host memory, or as one operation of a traced program."""
    _need_none(out=out)
    if eager.is_concrete(x) and (row := nf.augment.row_inside(function, options)) is not None:
        made = _by_row(function, row, x, noise, options)
        if made is not NotImplemented:
            return made
    named = _Named(noise)
    if not is_tracer(x) and not named.operands and named.start is None and not is_tracer(named.array):
        return jax.tree.map(jnp.asarray, function(np.asarray(x), noise, **options))
    found = nf.augment.call_inside(function, _zeros("x", x), named.known, **options)
    if found is None:
        return _called_back(partial(function, **options), x, noise, named)
    call, bounds = found
    made = _run(call, {X: x, Z: named.array}, named, whole=True)[0]
    return made if bounds is None else _clipped(made, *bounds)


def _by_row(function: Any, row: Rows, x: Any, noise: Any, options: dict[str, Any]) -> Any:
    """Without leaving JAX, where calls like this one are often made: to compile takes as long as a thousand of them."""
    common = eager.Given(row.active, 0, 1)
    like = lambda: (common, -1, options["dtype"], options["layout"], options["batched"])  # noqa: E731
    table, stream, *more = like()
    signature = eager.signature(table, stream, 0, noise, (x,), *more)
    found = eager.again(signature, 0, noise, (x,), row)
    if found is not NotImplemented or not eager.is_often(signature):
        return found if found is NotImplemented else found[0]
    named = _Named(noise)
    inside = nf.augment.call_inside(function, _zeros("x", x), named.known, **options)
    assert inside is not None
    call, _ = inside
    if call.arithmetic == np.float64 and not jax.config.jax_enable_x64:
        return NotImplemented
    return _run(call, {X: x}, named, whole=True, remember=partial(_remember, like, 0, noise, {X: x}))[0]


def _called_back(function: Any, x: Any, noise: Any, named: _Named) -> Any:
    """Calls Python when the program runs, for functions that are no row, or whose numbers depend on x."""
    if named.start is not None:
        raise NotImplementedError("noise: expected a window whose start is known, as this is computed in host memory")
    like = function(_zeros("x", x), named.known)
    names = listed(noise)
    parts = {"step": STEPS, "sample": SAMPLES}
    traced = [(n, part) for n, name in enumerate(names) for part in parts if is_tracer(getattr(name, part, None))]

    def call(x: Any, array: Any, *numbers: Any) -> Any:
        found = [*names]
        for (n, part), number in zip(traced, numbers, strict=True):
            value = np.asarray(number).astype(np.uint64) % parts[part]
            found[n] = found[n].at(**{part: value if value.ndim else int(value)})
        single = found[0] if named.array is None else np.asarray(array)
        return function(np.asarray(x), found if isinstance(noise, list | tuple) else single)

    numbers = [getattr(names[n], part) for n, part in traced]
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    return jax.pure_callback(call, shape, x, named.array, *numbers, vmap_method="sequential")


def _clipped(x: Any, low: float, high: float) -> Any:
    """Clips floats by the kernel, because XLA's comparisons take subnormal numbers for 0, and integers by XLA."""
    if x.dtype.name in LEVELS:
        low, high = level_bounds(x.dtype.name, (low, high))
        return jnp.clip(x, x.dtype.type(low), x.dtype.type(high))
    low, high = (float(x.dtype.type(bound)) for bound in (low, high))
    row = nf.Row(clean=nf.tableau.x, lo=low, hi=high, out=nf.tableau.D)
    return nf.update(nf.Tableau([row]), 0, x)


# ---- samplers ----------------------------------------------------------------------------------------------


def sample(sampler: Any, model: Callable[..., Any], x: Any, noise: Any, rows: range, **options: Any) -> Any:
    """Runs the rows as one `jax.lax.scan`: the model is traced once."""
    guided = {"guidance_scale": options.pop("guidance_scale")}

    def row(carried: Any, i: Any) -> Any:
        x, state = carried
        output = model(*sampler.model_input(i, x, **options))
        need_answer(output, x, rows.start)
        # x's memory is reused: XLA would copy another result to the next step's place
        return (sampler.step(i, x, output, noise, state, out=x, **guided), state), None

    names = () if noise is None else listed(noise)
    numbers = [n for name in names for n in (name.step, name.sample, *name.window_start) if is_tracer(n)]
    x = varying(x, frozenset[Any]().union(*map(varying_axes, numbers)))  # as it will be inside shard_map
    return jax.lax.scan(row, (x, sampler.state(x)), jnp.arange(rows.start, rows.stop))[0][0]


def chosen(numbers: Sequence[int], i: Any, choices: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns choices[numbers[i]] for a traced i. The choices are lists of arrays."""
    which = _at_row(jnp.asarray(numbers, jnp.int32), i)
    return [jax.lax.select_n(which, *arrays) for arrays in zip(*choices, strict=True)]


def _past_and_size(state: State) -> Any:
    return state.past, state.size


def _state(size: Any, past: Any) -> State:
    slots, free = size
    return State(slots, [*(list(past[:1]) or [None]) * free, *past], is_new=False)  # as far as is known


jax.tree_util.register_pytree_node(State, _past_and_size, _state)


# ---- a call ------------------------------------------------------------------------------------------------


def _need_none(**outputs: Any) -> None:
    for name, out in outputs.items():
        if out is not None:
            raise TypeError(f"{name}: expected None, as JAX arrays are not written to, got {type(out).__name__}")


def _zeros(name: str, x: Any) -> Any:
    """Returns a stand-in for x while a call is checked: memory that is never read."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected a JAX array, got {type(x).__name__}")
    if not isinstance(x.dtype, np.dtype):
        raise TypeError(f"{name}: dtype {x.dtype} is not supported, expected one of {', '.join(FLOATS)}")
    return np.zeros(x.shape, x.dtype)


class _Named:
    """A noise as operands for its traced parts; `known` has zeros in their place, for the checks of a call.

    An array represents itself.
    """

    def __init__(self, noise: Any) -> None:
        self.array, self.operands = None, dict[int, Any]()
        if isinstance(noise, list | tuple):
            noise = [_of_one_sample(name) for name in noise]
        self.known, names = noise, noise if isinstance(noise, list) else [noise]
        if hasattr(noise, "shape") and not isinstance(noise, np.integer):
            self.array, self.known = noise, _zeros("noise", noise)
            return
        if not all(isinstance(name, nf.Noise) for name in names):
            return
        steps = any(is_tracer(name.step) for name in names)
        known = [_known(name, steps) for name in names]
        self.known = known if names is noise else known[0]
        if steps:
            self.operands[STEP] = jnp.stack([_words(name.step)[0] for name in names])
        if any(is_tracer(name.sample) for name in names):
            single = names is not noise
            self.operands[IDS] = _small(noise.sample) if single else jnp.stack([_words(name.sample) for name in names])
        elif names is not noise and isinstance(noise.sample, np.ndarray):
            self.operands[IDS] = noise.sample.view(np.uint32).reshape(-1, 2)
        if any(is_tracer(start) for name in names for start in name.window_start):
            if names is noise:
                raise NotImplementedError("noise: expected a list without windows whose start is traced")
            self.start = noise.window_start

    start: Any = None

    def given(self, call: Step) -> dict[int, Any]:
        """Returns the operands of this call."""
        if not call.noise:
            return {}
        found = {FIELDS: field_bytes(call), **self.operands}
        if self.start is not None:
            full = call.noise[0].window_shape
            assert full is not None
            last = np.subtract(full, call.sample_shape)
            found[START] = jnp.stack([_inside(n, int(most)) for n, most in zip(self.start, last, strict=True)])
        return found


def _of_one_sample(name: Any) -> Any:
    """Returns a noise whose id is a number, if it has a list of one id. Each of a list of noises may have such a
    list."""
    ids = getattr(name, "sample", None)
    return name.at(sample=int(ids[0])) if isinstance(ids, np.ndarray) and ids.size == 1 else name


def _words(number: Any) -> Any:
    """Returns a step or an id as two 32-bit words, the low one first: without x64, JAX has no longer numbers."""
    if is_tracer(number):
        number = _small(number)
        return jnp.stack([number.astype(jnp.uint32), (number >> 31 >> 1).astype(jnp.uint32)])
    return jnp.asarray(np.array([number & 0xFFFFFFFF, number >> 32], np.uint32))


def _inside(start: Any, last: int) -> Any:
    """Returns a window's start, moved to 0 .. last in its own dtype: a smaller dtype could wrap first."""
    start = _small(jnp.asarray(start))
    return jnp.clip(start, 0, min(last, jnp.iinfo(start.dtype).max)).astype(int)


def _known(noise: nf.Noise, without_step: bool) -> nf.Noise:
    sample: Any = noise.sample
    if is_tracer(sample):
        sample = np.zeros(sample.shape, np.uint64) if sample.ndim else 0
    made = nf.Noise(noise.seed, sample=sample, step=0 if without_step else noise.step, stream=noise.stream)
    if noise.window_shape is None:
        return made
    return made.window(noise.window_shape, [0 if is_tracer(start) else start for start in noise.window_start])


def _at_times(
    make: Callable[..., Step], name: str, x: Any, t: Any, noise: Any, out: Any, like: Any, arrays: Any = None,
    schedule: Any = None,
) -> Any:  # fmt: skip
    """Returns the outputs of the call that `make` checks: make(x, t, noise). like: returns the further arguments of
    `eager.fast_row` for such a call."""
    t, given = eager.number(t), {X: x, **(arrays or {})}
    if out is not None and out is not x:
        what = f"expected None, or {name} itself, whose memory is taken where jit donates it"
        raise TypeError(f"out: {what}; JAX arrays are not written to")
    zeros, named = _zeros(name, x), _Named(noise)
    known, traced = _times(t, schedule)
    call = make(zeros, known, named.known)
    rows = None
    if traced is not None and traced.dtype.kind == "f":
        rows, traced = _rows_at(lambda times: make(np.zeros(times.size, zeros.dtype), times, nf.Noise(0)), call, traced)
    options: dict[str, Any] = {"in_place": True}
    if out is None:
        options = {} if like is None else {"remember": partial(_remember, like, t, noise, given)}
    return _run(call, {**given, Z: named.array}, named, traced, rows, **options)


def _remember(
    like: Callable[[], Any], t: Any, noise: Any, given: dict[int, Any], what: Any, operands: Any, call: Step
) -> None:
    table, stream, *options = like()
    t = 0 if isinstance(table, eager.Given) else t
    signature = eager.signature(table, stream, t, noise, [*given.values()], *options)
    eager.remember(table, signature, what, operands, call, given)


def _times(t: Any, schedule: Any) -> tuple[Any, Any]:
    """Returns a stand-in for t, and t itself if it is traced. A float's is the schedule's noisiest time, or 1."""
    if is_tracer(t):
        _, last = getattr(schedule, "times", None) or (0.0, 1.0)
        return np.full(t.shape, 0 if t.dtype.kind in "iu" else last if last < math.inf else 1.0), t
    return np.asarray(t) if isinstance(t, jax.Array) else t, None


def _run(
    call: Step, arrays: dict[int, Any], named: _Named, index: Any = None, rows: Any = None, outputs: Any = None,
    more: Any = None, kind: int = STEP_CALLS, remember: Any = None, **rest: Any,
) -> list[Any]:  # fmt: skip
    made = [(out.shape, out.dtype.name) for out in call.outputs if out is not None] if outputs is None else outputs
    if any(math.prod(shape) == 0 for shape, _ in made) or call.batch * call.size == 0:
        losses = kind == LOSSES  # the mean of no elements is one, too
        return [jnp.full(shape, jnp.nan if losses and n == 0 else 0, dt) for n, (shape, dt) in enumerate(made)]
    if call.arithmetic == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError("dtype float64: JAX has it after jax.config.update('jax_enable_x64', True)")
    operands: dict[int, Any] = {ROWS: _kept(call.rows, call.arithmetic == np.float64) if rows is None else rows}
    if kind != WALKS and (index is not None or len(call.rows.table) > 1):
        operands[INDEX] = call.index.astype(np.int32) if index is None else _row(index, call).reshape(-1)
    operands |= named.given(call)
    for slot, stand_in in enumerate(call.inputs):
        if stand_in is not None:
            operands[slot] = jnp.asarray(arrays[slot], stand_in.dtype)
    operands |= more or {}
    windows = [noise.window_shape for noise in call.noise if noise.window_shape is not None]
    what = described(
        call, kind, [*operands], made, sample=call.sample_shape, window=windows[0] if windows else (), **rest
    )
    if remember is not None:
        remember(what, operands, call)
    return bind(what, [*operands.values()])


def _small(number: Any) -> Any:
    """Returns a number of at least 32 bits, as the handler takes it."""
    return number if number.dtype.itemsize >= 4 else number.astype(jnp.int32)


def _row(index: Any, call: Step) -> Any:
    """Returns row numbers as the handler takes them: it reads 64 bits as a signed number."""
    return jnp.minimum(index, len(call.rows.table) - 1) if index.dtype == np.uint64 else _small(index)


def _kept(rows: Rows, wide: bool) -> Any:
    """Returns a table as an array of JAX, which is kept with it."""
    numbers, key = rows.table if wide else rows.single, (-1, wide)  # CUDA devices count from 0
    if eager.is_in_mesh():
        return jnp.asarray(numbers)
    if key not in rows.on_devices:
        with jax.ensure_compile_time_eval():
            rows.on_devices[key] = jnp.asarray(numbers)
    return rows.on_devices[key]


def _rows_at(make: Callable[[Any], Step], call: Step, t: Any) -> tuple[Any, Any]:
    """Returns the rows of traced float times, which Python makes when the program runs, and their numbers."""
    wide = call.arithmetic == np.float64

    def rows(times: Any) -> Any:
        found = make(np.asarray(times)).rows
        return found.table if wide else found.single

    shape = jax.ShapeDtypeStruct((t.size, call.rows.table.shape[1]), np.float64 if wide else np.float32)
    flat = jnp.asarray(jax.lax.stop_gradient(t)).reshape(-1)  # grad passes a float, not an array
    made = jax.pure_callback(rows, shape, flat, vmap_method="sequential")
    made = jax.lax.optimization_barrier(made)  # XLA's partitioner cannot cut operations that read a callback's results
    return made, np.arange(t.size, dtype=np.int32)


def _loss(
    make: Callable[..., Loss], pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, weight: Any, want_gradient: bool,
    remember: Any,
) -> Any:  # fmt: skip
    zeros, named, (known, traced) = _zeros("pred", pred), _Named(noise), _times(t, schedule)
    clean = None if x0 is None else _zeros("x0", x0)
    checked = make(zeros, known, named.known, clean)
    call, losses, rows = checked.residual, checked.losses, None
    assert losses is not None
    if traced is not None and traced.dtype.kind == "f":

        def at(times: Any) -> Step:
            n = times.size
            of_x0 = None if clean is None else np.zeros(n, clean.dtype)
            return make(np.zeros(n, zeros.dtype), times, nf.Noise(0), of_x0, None).residual

        rows, traced = _rows_at(at, call, traced)
    elif traced is not None and np.ndim(weight) > max(1, traced.ndim):  # each t has a weight, and a row, of its own
        table = _kept(make(zeros, known, named.known, clean, None).residual.rows, call.arithmetic == np.float64)
        rows = table[jnp.clip(_small(traced).reshape(-1), 0, len(table) - 1)]
        traced = np.arange(traced.size, dtype=np.int32)
    dtype = call.arithmetic.name
    outputs = [(losses.shape, dtype)]
    if want_gradient:
        outputs.append((pred.shape, call.dtype.name))
    more = {}
    if weight is not None:
        words = checked.weights
        more[WEIGHTS] = _weights(weight) if is_tracer(weight) else words.view(np.uint32).reshape(-1, 2)  # type: ignore[union-attr]
    arrays = {X: x0, M1: pred, Z: named.array}
    packed = pack_loss(checked, lambda _: 0)
    return _run(call, arrays, named, traced, rows, outputs, more, LOSSES, remember, loss=packed)


def _weights(weight: Any) -> Any:
    """Returns traced weights in a dtype of the handler, along one axis; along two, words of 32 bits are halves."""
    plain = weight.dtype.itemsize >= 4 and weight.dtype.kind in "iuf"
    return (weight if plain else weight.astype(jnp.float32)).reshape(-1)


library: Library = Library(
    "JAX", is_written=False, is_traced=lambda: True, adds_draws=lambda: True, fast_row=fast_row,
    fast_random=fast_random, moved=moved, zeros_like=zeros_like, where=jnp.where, times=times, time_of=time_of,
    chosen=chosen, from_key=from_key, sample=sample, randn=randn, randn_like=randn_like, uniform=uniform,
    q_sample=q_sample, q_step=q_step, q_walk=q_walk, update=update, categorical=categorical,
    masked_cross_entropy=masked_cross_entropy, masked_cross_entropy_and_grad=masked_cross_entropy_and_grad,
    mse_loss=mse_loss, mse_loss_and_grad=mse_loss_and_grad, mse_loss_grad=mse_loss_grad, log_prob=log_prob,
    log_prob_grad=log_prob_grad, kl=kl, kl_grad=kl_grad, augmented=augmented,
    update_with_log_prob=update_with_log_prob,
)  # fmt: skip
