# SPDX-License-Identifier: Apache-2.0
"""`interpolate` at traced times, and `noised` at traced levels, which have gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...call.description import Step
from ...ground.checks import is_tracer
from ...language.forward import forward
from ...language.noise import listed
from ...language.rows import M1
from ...operations.draw import drawn_like
from ...operations.interpolate import interpolate_call
from ...operations.noised import noised_call
from .traced import at_times, check_none, stand_in_for


def interpolate(
    x0: Any, x1: Any, t: Any, path: Any, noise: Any, target: Any, batched: bool, out: Any, target_out: Any
) -> Any:
    check_none(target_out=target_out)
    x1_zeros = stand_in_for("x1", x1)

    def make(x: Any, t: Any, noise: Any) -> Step:
        y = x1_zeros if x.shape == x0.shape else np.zeros(x.shape, x1_zeros.dtype)
        return interpolate_call(x, y, t, path, noise, target, batched, None, None)

    outputs = at_times(make, "x0", x0, t, noise if path.draws else None, out, None, {M1: x1}, path)
    return outputs[0] if target is None else tuple(outputs)


def noised(x0: Any, alpha: Any, sigma: Any, noise: Any, target: Any, batched: bool, out: Any, target_out: Any) -> Any:
    check_none(target_out=target_out)
    in_place = out is x0
    arguments = {"x0": x0, "alpha": alpha, "sigma": sigma, "noise": noise}

    def call(x0: Any, alpha: Any, sigma: Any, noise: Any) -> Any:
        return tuple(_at_levels(x0, alpha, sigma, noise, target, batched, x0 if in_place else out))

    starts = [start for name in listed(noise) for start in getattr(name, "window_start", ())]
    known = {"noise"} if any(map(is_tracer, starts)) else set()  # such a Noise is no argument of a program
    traced = {name: x for name, x in arguments.items() if name not in known and any(map(is_tracer, jax.tree.leaves(x)))}
    if not {"alpha", "sigma"} & traced.keys():
        outputs = call(**arguments)
    else:
        fixed = {name: x for name, x in arguments.items() if name not in traced}
        outputs = _differentiable(lambda traced: call(**fixed, **traced), fixed, target, batched)(traced)
    return outputs[0] if target is None else outputs


def _at_levels(x0: Any, alpha: Any, sigma: Any, noise: Any, target: Any, batched: bool, out: Any) -> Any:
    known: Any = [np.full(x.shape, 0.5) if is_tracer(x) else np.asarray(x) for x in (alpha, sigma)]

    def make(x: Any, _: Any, noise: Any) -> Step:
        return noised_call(x, known[0], known[1], noise, target, batched, None, None)

    rows = None
    if is_tracer(alpha) or is_tracer(sigma):
        kind = np.float64 if x0.dtype == np.float64 else np.float32
        n = max(x.size for x in known)
        a, s = (jnp.broadcast_to(jnp.asarray(x, kind).reshape(-1), n)[:, None] for x in (alpha, sigma))
        # a coefficient is a number, or one of the levels with a sign
        zero, one, other = forward(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]), target).table.astype(kind)
        of_a, of_s = one - zero, other - zero
        rows = jnp.where(of_a != 0, of_a * a, jnp.where(of_s != 0, of_s * s, zero))
    return at_times(make, "x0", x0, 0, noise, out, None, rows=rows)


def _differentiable(call: Any, fixed: dict[str, Any], target: Any, batched: bool) -> Any:
    """Returns the call, of traced arguments by name, with derivatives with respect to the levels: those of x_t are x0
    and z, those of v are z and -x0."""
    function: Any = jax.custom_jvp(call)

    def tangents(primals: Any, changes: Any) -> Any:
        (traced,), (changes,) = primals, changes
        x0, noise = (traced.get(name, fixed.get(name)) for name in ("x0", "noise"))
        names = [*traced] if hasattr(noise, "shape") else [name for name in traced if name != "noise"]
        changes = {name: changes[name] for name in names if not isinstance(changes[name], _SymbolicZero)}
        outs, arrays = call(traced), [name for name in ("x0", "noise") if name in changes]
        of_x0 = tuple(map(jnp.zeros_like, outs))
        if arrays:
            again = lambda *given: call({**traced, **dict(zip(arrays, given, strict=True))})  # noqa: E731
            of_x0 = jax.jvp(again, [traced[name] for name in arrays], [changes[name] for name in arrays])[1]
        levels = [changes.get(name) for name in ("alpha", "sigma")]
        if any(dx is not None for dx in levels):
            z = noise if hasattr(noise, "shape") else drawn_like(x0, noise, batched)
            products = [(x0, z)] + ([(z, -x0)] if target == "v" else [])
            for k, pair in enumerate(products):
                for dx, array in zip(levels, pair, strict=True):
                    if dx is not None:
                        more = dx.reshape(dx.shape + (1,) * (array.ndim - dx.ndim)) * array
                        of_x0 = (*of_x0[:k], of_x0[k] + more.astype(outs[k].dtype), *of_x0[k + 1 :])
        return outs, of_x0

    function.defjvp(tangents, symbolic_zeros=True)
    return function


_SymbolicZero = jax.custom_derivatives.SymbolicZero
