# SPDX-License-Identifier: Apache-2.0
"""JAX arrays in, JAX arrays out, in eager code and in traced programs: jit, vmap, grad, scan, shard_map.

NumPy's checks run once, while JAX traces an operation, on arrays of zeros in place of JAX's. Numbers that depend on the
data, such as the row, the step, or the ids of samples, may be traced too. They are then not checked, and a row beyond a
table is its first or last row (docs/jax.md). `traced` makes the call, and `calls` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import noisefuse as nf

from ...arguments.arrays import fast_dtype
from ...arguments.calls import Index, kept_times, make_call
from ...arguments.options import FAST_LEVELS, fast_table, lengths
from ...backends import spec
from ...call.description import Step
from ...ground.checks import is_tracer
from ...ground.libraries import Library
from ...ground.needs import needs
from ...language.forward import forward
from ...language.levels import LEVELS, Levels
from ...language.noise import SAMPLER, WALK, each
from ...language.rows import AFFINE, Rows, X
from ...operations.draw import UNIT, are_increments, random_call, rows_of_sum
from ...operations.process import q_sample_call, q_step_call
from ...operations.update import update_call
from ...sampling.arrays import check_answer
from ...sampling.state import State

with needs(__name__, "jax"):
    import jax
    import jax.numpy as jnp

from ..jax_keys import Wide
from . import eager
from .augment import augmented
from .categories import (
    categorical,
    masked_cross_entropy,
    masked_cross_entropy_and_grad,
    rate_loss,
    rate_loss_and_grad,
)
from .description import WALKS
from .eager import fast_random, fast_row
from .internals import varying, varying_axes
from .levels import interpolate, noised
from .loss import (
    interpolate_loss,
    interpolate_loss_and_grad,
    kl,
    kl_grad,
    log_prob,
    log_prob_grad,
    mse_loss,
    mse_loss_and_grad,
    mse_loss_grad,
    update_with_log_prob,
)
from .tokens import on_host, q_mask
from .traced import Named, at_row, at_times, check_none, read, remember, rows_of_floats, run, stand_in_for, tracers_of


def times(x: Any, t: Any, kind: str) -> Any:
    """Returns t for each sample of x."""
    return jnp.full(x.shape[:1], t, jax.dtypes.canonicalize_dtype(kind))


def time_of(times: Any, i: Any) -> Any:
    """Returns the time of a traced row."""
    return at_row(jnp.asarray(times), i)


def moved(x: Any, to: Any) -> Any:
    """Returns NumPy's x as a JAX array."""
    return jnp.asarray(x)


def zeros_like(x: Any) -> Any:
    return varying(jnp.zeros(x.shape, x.dtype), varying_axes(x))


# ---- keys --------------------------------------------------------------------------------------------------


def from_key(key: Any) -> nf.Noise:
    """Makes a Noise of a key: see `Noise.from_key`."""
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        hint = "; jax.random.wrap_key_data makes one of a PRNGKey" if isinstance(key, jax.Array) else ""
        raise TypeError(f"key: expected one of jax.random.key(seed), got {type(key).__name__}{hint}")
    if key.shape != ():
        raise TypeError(f"key: expected one key, got an array of them of shape {key.shape}")
    words: Any = jax.random.key_data(key)
    if words.size not in (2, 4):
        raise TypeError(f"key: expected one of threefry2x32, rbg or unsafe_rbg, got {key.dtype}")
    if is_tracer(key):
        seed: Any = Wide(words[::-1] if words.size == 2 else _hashed(words))
        return nf.Noise(seed)
    words = np.asarray(words)
    if words.size == 4:  # an rbg key has more bits than a seed
        words = nf.philox4x32(words, [0, 0])[[1, 0]]
    return nf.Noise(int(words[0]) << 32 | int(words[1]))


def _hashed(words: Any) -> Any:
    """Returns the first two words of `philox4x32(words, [0, 0])` in a program."""
    with jax.enable_x64(True):
        philox = spec.bind(None, None, uint32=jnp.uint32, uint64=jnp.uint64).philox4x32
        return jnp.stack(philox(*words, 0, 0)[:2])


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
    check_none(out=out)
    named = Named(noise)
    call = random_call(name, shape, named.known, jnp.dtype(dtype), batched)
    like = lambda: (UNIT.plain, name == "uniform", shape, fast_dtype(dtype, jax), batched)  # noqa: E731
    return run(call, {}, named, remember=partial(remember, like, 0, noise, {}))[0]


def added_draws(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    """Returns the sum of the draws of an increment of a Brownian motion, or of one for each row."""
    check_none(out=out)
    full, kind = lengths(shape), jnp.dtype(dtype)
    fields = noise.draw(0) if isinstance(noise, nf.noise.Increment) else [one.draw(0) for one in noise]
    call = random_call("randn", full, Named(fields).known, kind, batched)
    if isinstance(noise, nf.noise.Increment):
        return _sum_of_draws(noise, full, call, batched)
    row = (1, *full[1:]) if batched and full else full
    return jnp.concatenate([_sum_of_draws(one, row, call, batched) for one in noise])


def _sum_of_draws(increment: Any, shape: tuple[int, ...], like: Step, batched: bool) -> Any:
    """Adds the draws as `operations` does, if a step is traced: one after the other in a `jax.lax.scan`."""
    terms, real = increment.terms(), like.arithmetic
    first, sums = rows_of_sum(terms)
    words = np.array([word for word, _ in terms], np.uint32)

    def call(rows: Rows, named: Named | None, inputs: dict[int, Any], kind: Any) -> Step:
        index = Index(np.zeros(1, np.int64), max(1, math.prod(shape)))
        names = () if named is None else (named.known,)
        return make_call(shape, kind, rows, index, names, inputs, {"out": None}, batched)

    def add(total: Any, at: Any) -> Any:
        named = Named(increment.draw(at[1]))
        step = call(sums, named, {X: np.zeros(shape, real)}, real)
        return run(step, {X: total}, named, index=at[0], in_place=True)[0], None

    named = Named(increment.draw(int(words[0])))
    total = run(call(first, named, {}, real), {}, named)[0]
    later = jnp.arange(1, len(words), dtype=jnp.int32), jnp.asarray(words[1:])
    total = jax.lax.scan(add, total, later)[0]
    if like.dtype == real:
        return total
    rounded = call(Rows.of({"out.x": 1.0}), None, {X: np.zeros(shape, real)}, like.dtype)
    return run(rounded, {X: total}, Named(None))[0]


def q_sample(
    x0: Any, t: Any, schedule: Any, noise: Any, *, out: Any, target_out: Any, target: Any, scale: Any, offset: Any,
    dtype: Any, batched: bool, out_scale: Any = None, out_offset: Any = None,
) -> Any:  # fmt: skip
    check_none(target_out=target_out)
    levels = _levels(dtype, out_scale, out_offset) if dtype in LEVELS else None
    kind = None if dtype is None or levels else jnp.dtype(dtype)
    options = target, scale, offset, kind, levels, batched
    t, aux = eager.number(t), int(target is not None)
    common, rows = rows_of_floats(forward, target, schedule, t, x0, scale, offset)
    if rows is not None and levels is not None:
        rows = rows.scaled(*levels.range)
        common = common._replace(active=rows.active)

    def like() -> Any:
        plain = fast_table(schedule.kept.plain, target, scale, offset, levels) if common is None else common
        return plain, -1, 0, aux, _kind(dtype, levels), batched

    outputs = NotImplemented
    if common is not None and out is None:
        table, stream, *more = like()
        outputs = eager.again(eager.signature(table, stream, 0, noise, (x0,), *more), 0, noise, (x0,), rows)
    if outputs is NotImplemented:
        make = lambda x, t, noise: q_sample_call(x, t, schedule, noise, *options)  # noqa: E731
        outputs = at_times(make, "x0", x0, t, noise, out, like, schedule=schedule)
    return outputs[0] if target is None else tuple(outputs)


def q_step(
    x: Any, t: Any, schedule: Any, noise: Any, *, out: Any, batched: bool, dtype: Any = None, out_scale: Any = None,
    out_offset: Any = None,
) -> Any:  # fmt: skip
    levels = _levels(dtype, out_scale, out_offset)
    make = lambda x, t, noise: q_step_call(x, t, schedule, noise, levels, batched)  # noqa: E731
    like = lambda: (schedule.kept.fast_markov, WALK, 0, 0, None, batched)  # noqa: E731
    return at_times(make, "x", x, t, noise, out, None if levels else like)[0]


def _levels(dtype: str | None, out_scale: float, out_offset: float) -> Levels | None:
    return None if dtype is None else Levels(dtype, (out_scale, out_offset))


def _kind(dtype: Any, levels: Levels | None) -> Any:
    """Returns a result dtype as the fast path takes it."""
    return FAST_LEVELS[levels.dtype] if levels else None if dtype is None else fast_dtype(dtype, jax)


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, batched: bool, out: Any) -> Any:
    check_none(out=out)
    if hasattr(noise, "shape"):
        raise TypeError("noise: expected a Noise, as q_walk draws at every time, got an array")
    times, rows = kept_times(keep, len(schedule)), schedule.kept.markov
    begun = []
    if x0.dtype.name in LEVELS and len(times):  # a walk's row has no constant: another step scales the levels
        x0 = q_step(x0, 0, schedule, noise, batched=batched, out=None)
        begun, times = [x0[None]] * int(times[0] == 0), times[times > 0] - 1
        rows = Rows(rows.table[1:], rows.active)
        noise = each(noise, lambda name: name.at(step=name.step + 1) if isinstance(name, nf.Noise) else name)
    named = Named(noise)
    call = q_step_call(stand_in_for("x0", x0), 0, schedule, named.known, None, batched)
    slots = np.full(int(times[-1]) + 1 if len(times) else 0, -1, np.int64)
    slots[times] = np.arange(len(times))
    outputs = [((len(times), *x0.shape), call.dtype.name)]
    walked = {
        "keep": tuple(slots.tolist()),
        "alpha": tuple(np.cumprod(rows.table[:, AFFINE[0] + 1 + X])[times].tolist()),
    }
    call = call._replace(rows=rows, step_by_index=False)
    walk = run(call, {X: x0}, named, kind=WALKS, outputs=outputs, kept=slots, **walked)[0]
    return jnp.concatenate([*begun, walk]) if begun else walk


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any, dtype: Any = None,
    out_scale: Any = None, out_offset: Any = None,
) -> Any:  # fmt: skip
    if not isinstance(aux_out, int) and len(aux_out):
        raise TypeError("aux_out: JAX arrays are not written to; give the number of auxiliary outputs")
    arrays, models, remembered = read(model_output, past)
    if is_tracer(i) and noise is None and table.as_rows.draws.any():
        raise TypeError("noise: expected a Noise, as rows of the table draw noise and the row number is traced")

    levels, number = _levels(dtype, out_scale, out_offset), aux_out if isinstance(aux_out, int) else 0

    def make(x: Any, i: Any, noise: Any) -> Step:
        return update_call(table, i, x, models, remembered, noise, None, number, levels)

    models_given = 0 if model_output is None else len(model_output) if isinstance(model_output, tuple) else 1

    def like() -> Any:
        rows = table.as_rows if levels is None else table.as_rows.scaled(*levels.range)
        return rows.plain, SAMPLER, models_given, number, _kind(None, levels), True

    unsure = noise is None and table.as_rows.draws.any()
    outputs = at_times(make, "x", x, i, noise, out, None if unsure else like, arrays)
    return tuple(outputs) if isinstance(aux_out, int) else outputs[0]


# ---- samplers ----------------------------------------------------------------------------------------------


def sample(sampler: Any, model: Callable[..., Any], x: Any, noise: Any, rows: range, **options: Any) -> Any:
    """Runs the rows as one `jax.lax.scan`: the model is traced once."""
    guided = {"guidance_scale": options.pop("guidance_scale")}

    def row(carried: Any, i: Any) -> Any:
        x, state = carried
        output = model(*sampler.model_input(i, x, **options))
        check_answer(output, x, rows.start)
        # x's memory is reused: XLA would copy another result to the next step's place
        return (sampler.step(i, x, output, noise, state, out=x, **guided), state), None

    numbers = [n.words if isinstance(n, Wide) else n for n in tracers_of(noise)]
    x = varying(x, frozenset[Any]().union(*map(varying_axes, numbers)))  # as it will be inside shard_map
    return jax.lax.scan(row, (x, sampler.state(x)), jnp.arange(rows.start, rows.stop))[0][0]


def chosen(numbers: Sequence[int], i: Any, choices: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns choices[numbers[i]] for a traced i. The choices are lists of arrays."""
    which = at_row(jnp.asarray(numbers, jnp.int32), i)
    return [jax.lax.select_n(which, *arrays) for arrays in zip(*choices, strict=True)]


def _past_and_size(state: State) -> Any:
    return state.past, state.size


def _state(size: Any, past: Any) -> State:
    slots, free = size
    return State(slots, [*(list(past[:1]) or [None]) * free, *past], is_new=False)  # as far as is known


jax.tree_util.register_pytree_node(State, _past_and_size, _state)


library: Library = Library(
    "JAX", is_written=False, is_traced=lambda: True, adds_draws=lambda: True, fast_row=fast_row,
    fast_random=fast_random, moved=moved, zeros_like=zeros_like, where=jnp.where, times=times, time_of=time_of,
    chosen=chosen, from_key=from_key, sample=sample, randn=randn, randn_like=randn_like, uniform=uniform,
    interpolate=interpolate, interpolate_loss=interpolate_loss, interpolate_loss_and_grad=interpolate_loss_and_grad,
    noised=noised, on_host=on_host, q_mask=q_mask, q_sample=q_sample, q_step=q_step, q_walk=q_walk, update=update,
    categorical=categorical,
    masked_cross_entropy=masked_cross_entropy, masked_cross_entropy_and_grad=masked_cross_entropy_and_grad,
    rate_loss=rate_loss, rate_loss_and_grad=rate_loss_and_grad,
    mse_loss=mse_loss, mse_loss_and_grad=mse_loss_and_grad, mse_loss_grad=mse_loss_grad, log_prob=log_prob,
    log_prob_grad=log_prob_grad, kl=kl, kl_grad=kl_grad, augmented=augmented,
    update_with_log_prob=update_with_log_prob,
)  # fmt: skip
