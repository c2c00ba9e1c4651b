# SPDX-License-Identifier: Apache-2.0
"""A checked call as one operation of JAX's programs: its execution, vmap and derivatives.

The operation gets a `Described`, which holds shapes and dtypes and is a value that JAX can compare, and operands, which
hold all numbers: rows of coefficients, row numbers, the noise's key, and arrays. So a program with other numbers is the
same program. On CPUs it is a custom call of XLA's typed FFI (csrc/xla/xla.cpp), which runs the native kernels on XLA's
buffers. On NVIDIA's devices jax-triton runs Triton's kernel of rows (devices.py). With another backend XLA calls
Python (`jax.pure_callback`); the bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from ...backends import current
from ...call.description import Loss, Step, Walk
from ...call.packed import CALL, DRAWS, DTYPES, FIELD, dtype_code
from ...language.levels import INFO, LEVELS
from ...language.noise import SAMPLES, Noise
from ...language.rows import AFFINE, BOUNDS, CLEAN, M1, M2, PAST1, TIMES_CLEAN, TIMES_ROOT, Rows, X, Z
from ...tokens.categorical import categorical
from . import devices
from .description import (
    FIELDS,
    IDS,
    INDEX,
    LAW,
    LOSSES,
    POSITIONS,
    RACES,
    ROWS,
    SHARD,
    START,
    STEP,
    STEP_CALLS,
    TARGET,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WALKS,
    WEIGHTS,
    WHERE,
    Described,
    native,
)
from .internals import check_devices, is_for_several, result_type, varying, varying_axes

OUT, AUX1 = AFFINE[:2]

# ---- the operation -----------------------------------------------------------------------------------------
call_p: Primitive = Primitive("noisefuse")
call_p.multiple_results = True


def bind(what: Described, operands: Sequence[Any]) -> list[Any]:
    """Binds the operation, and returns its outputs."""
    axes = frozenset[Any]().union(*map(varying_axes, operands))
    if axes:  # inside shard_map, numbers that are the same for all devices stand beside parts of arrays
        operands = [varying(x, axes) for x in operands]
    return call_p.bind(*operands, what=what)


@call_p.def_impl
def _eager(*operands: Any, what: Described) -> Any:
    return compiled(what)(*operands)


@lru_cache(maxsize=1024)
def compiled(what: Described) -> Any:
    return jax.jit(partial(call_p.bind, what=what))


@call_p.def_abstract_eval
def _abstract(*operands: Any, what: Described) -> list[Any]:
    return [result_type(operands[0], shape, jnp.dtype(dtype)) for shape, dtype in what.output_shapes()]


# ---- execution ---------------------------------------------------------------------------------------------


def _on_host(what: Described, *operands: Any) -> list[Any]:
    """Returns the outputs from Python: the backend in use runs the call."""
    arrays = [np.asarray(x) for x in operands]
    results = [np.empty(shape, jnp.dtype(dtype)) for shape, dtype in what.output_shapes()]
    several = what.several or (False,) * len(arrays)
    for k in range(what.repeat) if what.repeat else [None]:
        by_role = {
            role: a[k] if each and k is not None else a
            for role, a, each in zip(what.roles, arrays, several, strict=True)
        }
        (_draw if what.kind == RACES else _run)(what, by_role, [r if k is None else r[k, ...] for r in results])
    return results


def _run(what: Described, operands: dict[int, Any], outs: list[Any]) -> None:
    record, backend = what.record, current()
    losses = outs.pop(0) if what.kind == LOSSES else None
    rows = Rows(operands[ROWS].astype(np.float64), int(record["active"]))
    index = np.clip(operands.get(INDEX, np.zeros(1)).astype(np.int64), 0, len(rows.table) - 1).reshape(-1)
    batch, size = int(record["batch"]), int(record["size"])
    noise = _names(what, operands)
    step = Step(
        batch=batch,
        size=size,
        sample_shape=what.sample,
        rows=rows,
        index=index,
        segment=int(record["segment"]),
        inputs=tuple(None if slot not in operands else np.ascontiguousarray(operands[slot]) for slot in range(Z + 1)),
        outputs=tuple([*outs, None, None, None][:3]),
        draw={code: draw for draw, code in DRAWS.items()}[int(record["draw"])],
        step_by_index=bool(record["step_by_index"]),
        noise=noise,
        masked=bool(record["masked"]),
        period=int(record["period"]),
        by_level=bool(record["by_level"]),
    )
    if what.kind == STEP_CALLS:
        backend.run(step)
    elif what.kind == WALKS:
        backend.run(Walk(step, np.array(what.keep, np.int64)))
    else:
        assert losses is not None
        weights = _raw(operands[WEIGHTS], np.float64) if WEIGHTS in operands else None
        sums = np.empty(losses.shape)
        backend.run(Loss(step, int(record["piece"]), weights, np.ones(()), int(record["n"]), sums))
        if LAW in operands:
            factor, constant = _raw(operands[LAW], np.float64).reshape(-1, 2)[index].T
            sums = sums * factor + constant
        losses[...] = sums


def _draw(what: Described, operands: dict[int, Any], outs: list[Any]) -> None:
    """Draws tokens."""
    kinds, names = {"temperature": np.float64, "top_k": np.int64, "top_p": np.float64}, _names(what, operands)
    roles = dict(zip(kinds, (TEMPERATURE, TOP_K, TOP_P), strict=True))
    settings: Any = {name: _raw(operands[role], kinds[name]) for name, role in roles.items()}
    if not outs[0].ndim:
        settings = {name: number[0] for name, number in settings.items()}
    info: Any = tuple(INFO)
    token, told = categorical(
        operands[X].reshape(*outs[0].shape, -1),
        [name.at(stream=0) for name in names] if len(names) > 1 else names[0].at(stream=0),
        where=operands[WHERE].astype(bool) if WHERE in operands else None,
        positions=operands[POSITIONS],
        info=info,
        dtype=outs[0].dtype,
        **settings,
    )
    outs[0][...] = token
    for out, n in zip(outs[1:], what.keep, strict=True):
        out[...] = getattr(told, info[n])


def _names(what: Described, operands: dict[int, Any]) -> tuple[Noise, ...]:
    """Returns the Noises from the bytes of fields and from traced operands."""
    if FIELDS not in operands:
        return ()
    fields = operands[FIELDS].view(FIELD.dtype)
    steps, ids = operands.get(STEP, np.zeros((), np.uint32)), _raw(operands.get(IDS, np.zeros(0, np.uint64)), np.uint64)
    ids = ids % SAMPLES
    names = []
    for i, field in enumerate(fields):
        sample: Any = int(field["sample"])
        if IDS in operands:
            sample = ids if ids.ndim and len(fields) == 1 else int(ids.reshape(-1)[i])
        step = int(field["step"]) + int(steps.reshape(-1)[i if steps.size > 1 else 0])
        name = Noise(int(field["seed"]), sample=sample, step=step % (1 << 32), stream=int(field["stream"]))
        if what.window:
            start = operands[START] if START in operands else np.unravel_index(int(field["start"]), what.window)
            name = name.window(what.window, [int(first) for first in start])
        names.append(name)
    return tuple(names)


def _raw(words: Any, kind: Any) -> Any:
    """Returns 64-bit numbers, from pairs of words if JAX has no others."""
    if words.dtype == np.uint32 and words.ndim == 2:
        return np.ascontiguousarray(words).view(kind)[:, 0]
    return words.astype(kind)


def _callback(*operands: Any, what: Described) -> Any:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in what.output_shapes()]
    return jax.pure_callback(partial(_on_host, what), shapes, *operands)


_call_back = mlir.lower_fun(_callback, multiple_results=True)


def _without_kernels(context: Any, *operands: Any, what: Described) -> Any:
    """Lowers the call to one of Python, where that was asked for. (Draws of tokens have no other way there.)"""
    if what.way == "callback" or what.kind == RACES:
        return _call_back(context, *operands, what=what)
    where = "/".join(context.module_context.platforms)
    raise NotImplementedError(f"noisefuse has no kernels for JAX's arrays on {where}: {IN_HOST_MEMORY}")


IN_HOST_MEMORY = "NOISEFUSE_JAX=callback in the environment computes in host memory, with the same bits"


def _by_triton(context: Any, *operands: Any, what: Described) -> Any:
    """Lowers the call to Triton's kernel of rows, on GPUs."""
    if what.way == "callback" or what.kind == RACES:
        return _call_back(context, *operands, what=what)
    if not devices.has(what):
        raise NotImplementedError(f"on a device JAX has no walks, losses, log-densities and levels: {IN_HOST_MEMORY}")
    with jax.enable_x64(True):
        return mlir.lower_fun(partial(devices.outputs, what), multiple_results=True)(context, *operands)


def _foreign_call(context: Any, *operands: Any, what: Described) -> Any:
    """Lowers the call to XLA's FFI, on CPUs."""
    if what.way != "ffi" or native is None:
        return _call_back(context, *operands, what=what)
    if is_for_several(context) and _has_parts(what):
        ranks = tuple([x.ndim for x in context.avals_in])
        return mlir.lower_fun(_in_parts(what, ranks), multiple_results=True)(context, *operands)
    alias = None
    if what.in_place:
        x = what.roles.index(X)
        of_x, of_out = context.avals_in[x], context.avals_out[0]
        alias = {x: 0} if (of_x.shape, of_x.dtype) == (of_out.shape, of_out.dtype) else None
    lowering = jax.ffi.ffi_lowering(TARGET, operand_output_aliases=alias)
    return lowering(context, *operands, **what.attributes())


mlir.register_lowering(call_p, _without_kernels)
mlir.register_lowering(call_p, _foreign_call, platform="cpu")
for platform in ("cuda", "rocm"):
    mlir.register_lowering(call_p, _by_triton, platform=platform)
if native is not None:
    jax.ffi.register_ffi_target(TARGET, native.xla_handler(), platform="cpu")
    check_devices(call_p)  # otherwise a batch is gathered before it


# ---- many devices ------------------------------------------------------------------------------------------
# If `jit` splits a batch, each device computes its own samples: the call has a further operand, their first number.


def _has_parts(what: Described) -> bool:
    batch = int(what.record["batch"])
    of_samples = all(shape[:1] == (batch,) for shape, _ in what.outputs)  # not a mean over all samples
    return of_samples and what.kind != WALKS and not what.repeat and not what.whole and batch > 1


@lru_cache(maxsize=256)
def _in_parts(what: Described, ranks: tuple[int, ...]) -> Any:
    """Returns the call as a function that XLA may partition."""
    whole = replace(what, whole=True)

    def all_of_it(*operands: Any) -> Any:
        return tuple(call_p.bind(*operands, what=whole))

    def part(mesh: Any, _: Any, results: Any) -> Any:
        axes, n = _axes_of_batch(mesh, getattr(results[0].sharding, "spec", ()), int(what.record["batch"]))
        cut, same = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())
        record = np.frombuffer(what.call, CALL.dtype).copy()
        record["batch"] //= n
        if what.kind == LOSSES:
            record["n_losses"] = record["batch"]
        record["segment"] = np.minimum(record["segment"], record["batch"] * record["size"])
        outputs = tuple(((shape[0] // n, *shape[1:]), dtype) for shape, dtype in what.outputs)
        roles = (*what.roles, SHARD)
        own = replace(whole, call=record.tobytes(), roles=roles, outputs=outputs, in_place=False)

        def of_device(*operands: Any) -> Any:
            if axes is None:
                return all_of_it(*operands)
            first = jax.lax.axis_index(axes) * outputs[0][0][0]
            return tuple(call_p.bind(*operands, first.astype(jnp.int32), what=own))

        return mesh, of_device, (cut,) * len(outputs), tuple(cut if role <= Z else same for role in what.roles)

    partitioned = custom_partitioning(all_of_it)
    partitioned.def_partition(part, infer_sharding_from_operands=_as_arrays(what), **_rule(what, ranks))
    return partitioned


def _axes_of_batch(mesh: Any, spec: Any, batch: int) -> tuple[Any, int]:
    """Returns the mesh axes that split the batch evenly, and the number of parts. None: it stays whole."""
    axes = spec[0] if len(spec) else None
    axes = axes if axes is None or isinstance(axes, tuple) else (axes,)
    n = math.prod(mesh.shape[axis] for axis in axes or ())
    return (axes, n) if axes and batch % n == 0 else (None, 1)


def _as_arrays(what: Described) -> Any:
    """Places results like the first array; without arrays they lie everywhere."""

    def infer(mesh: Any, operands: Any, results: Any) -> Any:
        specs = [x.sharding.spec for role, x in zip(what.roles, operands, strict=True) if role <= Z and x.sharding]
        axes, _ = _axes_of_batch(mesh, specs[0] if specs else (), int(what.record["batch"]))
        return (NamedSharding(mesh, PartitionSpec(axes)),) * len(results)

    return infer


def _rule(what: Described, ranks: tuple[int, ...]) -> dict[str, Any]:
    """Returns Shardy's rule for the partition: b is the batch, and everything else stays whole."""
    inner = [f"s{axis}" for axis in range(len(what.sample))]
    settings = (TEMPERATURE, TOP_K, TOP_P) if what.kind == RACES else ()  # (b,), or pairs of words
    factors = [
        ["b", *([f"o{role}"] if role in settings else inner)][:rank]
        if role <= Z
        else [f"o{role}a{axis}" for axis in range(rank)]
        for role, rank in zip(what.roles, ranks, strict=True)
    ]
    operands = ", ".join(map(" ".join, factors))
    results = ", ".join(" ".join(["b", *inner][: len(shape)]) for shape, _ in what.outputs)
    whole = dict.fromkeys(factor for each in [*factors, inner] for factor in each if factor != "b")  # in their order
    return {"sharding_rule": f"{operands} -> {results}", "need_replication_factors": tuple(whole)}


# ---- vmap --------------------------------------------------------------------------------------------------


def _batched(operands: Sequence[Any], axes: Sequence[Any], *, what: Described) -> Any:
    """Runs the call once for each element, as a loop would: one after the other, inside one operation."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    before, n = what.several or (False,) * len(operands), what.repeat
    if size == 0:  # nothing runs: for the operation, a repeat of 0 means no repeat
        outs = [jnp.zeros((0, *shape), dtype) for shape, dtype in what.output_shapes()]
        return outs, [0] * len(outs)
    moved, several = [], []
    for x, axis, inner in zip(operands, axes, before, strict=True):
        if axis is not None:
            x = jnp.moveaxis(x, axis, 0)
        if n and (inner or axis is not None):  # nested vmaps: their elements are one axis
            if axis is None:
                x = jnp.broadcast_to(x, (size, *x.shape))
            if not inner:
                x = jnp.broadcast_to(x[:, None], (size, n, *x.shape[1:]))
            x = x.reshape(size * n, *x.shape[2:])
        moved.append(x)
        several.append(inner or axis is not None)
    outs = bind(replace(what, repeat=size * (n or 1), several=tuple(several)), moved)
    if n:
        outs = [out.reshape(size, n, *out.shape[1:]) for out in outs]
    return outs, [0] * len(outs)


batching.primitive_batchers[call_p] = _batched


# ---- derivatives -------------------------------------------------------------------------------------------
# A row is linear in its inputs, except for its clamp. So the derivative of a call is a call whose rows have the same
# coefficients in other places, and draw nothing. docs/own-samplers.md and Tableau.transpose explain them.


def _tangents(primals: Sequence[Any], tangents: Sequence[Any], *, what: Described) -> tuple[Any, Any]:
    operands = dict(zip(what.roles, primals, strict=True))
    changes = {
        role: dx for role, dx in zip(what.roles, tangents, strict=True) if role <= WEIGHTS and type(dx) is not ad.Zero
    }
    if what.kind == LOSSES:
        return _tangents_of_loss(primals, changes, what)
    if changes and int(what.record["active"]) & (TIMES_CLEAN | TIMES_ROOT):
        raise NotImplementedError("x: noise that is multiplied by x has no derivative: use lax.stop_gradient")
    outs = bind(what, primals)
    out_changes = []
    for k, (out, (_, dtype)) in enumerate(zip(outs, what.outputs, strict=True)):
        of_floats = {slot: dx for slot, dx in changes.items() if slot <= Z and dtype not in LEVELS}
        if what.kind == WALKS and of_floats:
            ahead = (1,) * (out.ndim - 1 - bool(what.repeat))
            alpha = jnp.array(what.alpha, out.dtype).reshape(-1, *ahead)
            dx = of_floats[X]
            out_changes.append(alpha * (dx[:, None] if what.several and what.several[what.roles.index(X)] else dx))
        else:
            out_changes.append(_change(what, operands, of_floats, k))
        if out_changes[-1] is None:
            out_changes[-1] = ad.Zero(jax.typeof(out).to_tangent_aval())
    return outs, out_changes


ad.primitive_jvps[call_p] = _tangents


def _change(what: Described, operands: dict[int, Any], changes: dict[int, Any], k: int) -> Any:
    """Returns the change of output k, or None if there is none."""
    total, active, rows = None, int(what.record["active"]), operands[ROWS]
    first = AFFINE[k]
    for some in range(0, len(changes), 4):
        pairs, arrays = [], []
        for slot, dx in list(changes.items())[some : some + 4]:
            if what.record["masked"]:
                if slot < PAST1:  # the input of a mask: constant, almost everywhere
                    continue
                pair = rows[..., OUT + 1 + slot], rows[..., AUX1 + 1 + slot]
            else:
                through = rows[..., first + 4] * rows[..., CLEAN + 1 + slot] if slot <= M2 else None
                pair = rows[..., first + 1 + slot], through
            pairs.append(pair)
            arrays.append((dx, what.several[what.roles.index(slot)] if what.several else False))
        if pairs:
            part = _linear(what, operands, pairs, arrays, what.outputs[k], active)
            total = part if total is None else total + part
    return total


def _linear(what: Described, operands: dict[int, Any], pairs: Any, arrays: Any, output: Any, active: int) -> Any:
    """Returns the sum of arrays, each times its pair of coefficients: directly, and through D if its clamp lets it
    pass."""
    record, rows = np.frombuffer(what.call, CALL.dtype).copy(), operands[ROWS]
    several = dict(zip(what.roles, what.several or (False,) * len(what.roles), strict=True))
    masked = bool(record["masked"][0]) or bool(active & BOUNDS)
    coefficients, bits = jnp.zeros_like(rows), 0
    if masked:
        coefficients, bits = coefficients.at[..., CLEAN:OUT].set(rows[..., CLEAN:OUT]), active & ((1 << OUT) - 1)
    for n, (direct, through) in enumerate(pairs):
        column = 1 + PAST1 + n
        if through is not None and not masked:
            direct = direct + through
        coefficients, bits = coefficients.at[..., OUT + column].set(direct), bits | 1 << OUT + column
        if through is not None and masked:
            coefficients, bits = coefficients.at[..., AUX1 + column].set(through), bits | 1 << AUX1 + column
    by_role = {ROWS: (coefficients, several[ROWS])}
    if INDEX in operands:
        by_role[INDEX] = operands[INDEX], several[INDEX]
    if masked:
        by_role |= {slot: (operands[slot], several[slot]) for slot in (X, M1, M2) if slot in operands}
    by_role |= {PAST1 + n: pair for n, pair in enumerate(arrays)}
    by_role = {slot: pair for slot, pair in by_role.items() if slot not in (X, M1, M2) or bits >> CLEAN + 1 + slot & 1}
    for slot, (x, _) in by_role.items():
        if slot <= Z:
            record["in_type"][0, slot] = dtype_code(np.dtype(x.dtype))
    code = DTYPES[output[1]]
    record["active"], record["masked"], record["draw"], record["step_by_index"] = bits, masked, 0, 0
    record["type"], record["out_type"] = code, code
    each = tuple(flag for _, flag in by_role.values())
    call = replace(
        what, call=record.tobytes(), roles=tuple(by_role), outputs=(output,), several=each if what.repeat else (),
        window=(), in_place=False,
    )  # fmt: skip
    return bind(call, [x for x, _ in by_role.values()])[0]


def _transposed(cotangents: Sequence[Any], *operands: Any, what: Described) -> list[Any]:
    """Transposes a call from `_linear`, which has one output."""
    (ct,) = cotangents
    by_role = dict(zip(what.roles, operands, strict=True))
    cotangents_of: list[Any] = []
    for role, x in by_role.items():
        if not ad.is_undefined_primal(x):
            cotangents_of.append(None)
            continue
        if type(ct) is ad.Zero:
            cotangents_of.append(ad.Zero(x.aval))
            continue
        known = {n: y for n, y in by_role.items() if not ad.is_undefined_primal(y)}
        several = bool(what.several) and what.several[what.roles.index(role)]
        shape, dtype = x.aval.shape[several:], x.aval.dtype.name
        upstream = ct
        if dtype != "float64" and ct.dtype == jnp.float64:
            upstream, known[ROWS] = ct.astype(jnp.float32), known[ROWS].astype(jnp.float32)
        pair = known[ROWS][..., OUT + 1 + role], known[ROWS][..., AUX1 + 1 + role]
        product = _linear(
            what, known, [pair], [(upstream, bool(what.repeat))], (shape, dtype), int(what.record["active"])
        )
        cotangents_of.append(product.sum(0) if what.repeat and not several else product)
    return cotangents_of


ad.primitive_transposes[call_p] = _transposed


def _tangents_of_density(primals: Sequence[Any], changes: dict[int, Any], what: Described) -> tuple[Any, Any]:
    """Differentiates a density f S + c, which changes by 2 f r dr. The residual r is a row like all others."""
    (density,) = bind(what, primals)
    by_role = dict(zip(what.roles, primals, strict=True))
    record = np.frombuffer(what.call, CALL.dtype).copy()
    record["type"] = record["out_type"] = DTYPES[what.floats]
    shape, roles = (int(record["batch"][0]), *what.sample), [role for role in what.roles if role != LAW]
    several = tuple([each for role, each in zip(what.roles, what.several, strict=False) if role != LAW])
    outputs = ((shape, what.floats),)
    rows = replace(
        what, call=record.tobytes(), kind=STEP_CALLS, roles=tuple(roles), outputs=outputs, several=several, factors=()
    )
    change = _change(rows, by_role, {slot: dx for slot, dx in changes.items() if slot <= Z}, 0)
    if change is None:
        return [density], [ad.Zero(jax.typeof(density).to_tangent_aval())]
    (r,) = bind(rows, [by_role[role] for role in roles])
    factor = 2 * jnp.array(what.factors, r.dtype)
    if INDEX in by_role:
        factor = factor.at[by_role[INDEX]].get(mode="clip", wrap_negative_indices=False)
    return [density], [(factor * (r * change).sum(tuple(range(density.ndim, r.ndim)))).astype(density.dtype)]


def _tangents_of_loss(primals: Sequence[Any], changes: dict[int, Any], what: Described) -> tuple[Any, Any]:
    """Differentiates a loss. The gradient is computed with the loss, in one pass."""
    if LAW in what.roles:
        return _tangents_of_density(primals, changes, what)
    for role, name in ((X, "x0"), (M2, "x1"), (Z, "noise"), (WEIGHTS, "weight")):
        if role in changes:
            raise NotImplementedError(f"{name}: the loss has no derivative with respect to it: use lax.stop_gradient")
    if len(what.outputs) > 1:
        raise NotImplementedError("the gradient has no derivative: use jax.grad of the loss")
    record = np.frombuffer(what.call, CALL.dtype).copy()
    record["type"] = record["out_type"] = DTYPES[what.floats]  # unrounded: the upstream gradient is not known yet
    shape = int(record["batch"][0]), *what.sample
    both = replace(what, call=record.tobytes(), outputs=(*what.outputs, (shape, what.floats)))
    loss, gradient = bind(both, primals)
    if M1 not in changes:
        return [loss], [ad.Zero(jax.typeof(loss).to_tangent_aval())]
    change = (gradient * changes[M1].reshape(gradient.shape)).astype(loss.dtype)
    return [loss], [change.sum(tuple(range(loss.ndim, change.ndim)))]
