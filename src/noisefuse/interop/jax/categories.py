# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from JAX's arrays, and cross entropies: on the host, and from compiled programs by a callback."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...ground.checks import is_tracer
from ...language.levels import INFO
from ...language.noise import names_of


def categorical(logits: Any, noise: Any, *, info: Any, dtype: Any, out: Any, partial: bool, **options: Any) -> Any:
    if out is not None:
        raise TypeError("out: expected None, as arrays of JAX are not written to")
    if partial:
        raise NotImplementedError("partial: parts do not take JAX arrays: pass np.asarray(logits)")
    kind = jax.dtypes.canonicalize_dtype(np.int64 if dtype is None else dtype)
    given = {name: value for name, value in options.items() if isinstance(value, jax.Array)}
    fixed = {name: _kept(value) for name, value in options.items() if name not in given}

    def on_host(logits: Any, given: Any, noise: Any) -> Any:
        arrays = {name: np.asarray(value) for name, value in given.items()}
        found: Any = nf.categorical(np.asarray(logits), noise, info=info, dtype=kind, **arrays | fixed)
        return found if info else (found, nf.discrete.TokenInfo())

    names_of(noise)
    if not any(map(is_tracer, (logits, *given.values(), *jax.tree.leaves(noise)))):
        token, known = jax.tree.map(jnp.asarray, on_host(logits, given, noise))
    else:
        shape = logits.shape[:-1]
        shapes = nf.discrete.TokenInfo(**{name: jax.ShapeDtypeStruct(shape, INFO[name]) for name in info})
        token, known = jax.pure_callback(
            on_host,
            (jax.ShapeDtypeStruct(shape, kind), shapes),
            *(jax.lax.stop_gradient(_without_gradient(logits) if info else logits), given, noise),
            vmap_method="sequential",
        )
    return (token, known) if info else token


def _refuse(primals: Any, tangents: Any) -> Any:
    """Raises NotImplementedError if a derivative is asked for: it would be 0, and nobody would see it."""
    if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
        message = (
            "logits: the info of categorical has no gradient; pass jax.lax.stop_gradient(logits), and for that of "
        )
        raise NotImplementedError(message + "log_prob take -masked_cross_entropy(logits, token, reduction='none')")
    return *primals, jax.numpy.zeros_like(primals[0])


_without_gradient: Any = jax.custom_jvp(lambda logits: logits)
_without_gradient.defjvp(_refuse, symbolic_zeros=True)


def _kept(value: Any) -> Any:
    """Returns a value that a program keeps, as its owner may overwrite it before the program runs again."""
    return np.array(value) if isinstance(value, np.ndarray | list) else value


# ---- cross entropies ---------------------------------------------------------------------------------------


def masked_cross_entropy(*given: Any, reduction: Any) -> Any:
    return _loss(given, reduction, 1.0, False)[0]


def masked_cross_entropy_and_grad(*given: Any, reduction: Any, upstream: Any, out: Any) -> Any:
    if out is not None:
        raise TypeError("out: expected None, as arrays of JAX are not written to")
    return tuple(_loss(given, reduction, upstream, True))


def _loss(given: tuple[Any, ...], reduction: Any, upstream: Any, wanted: bool) -> Any:
    """Returns the loss, and its gradient if it is wanted."""
    named = dict(zip(("logits", "ids", "masked", "weight"), given, strict=True)) | {"upstream": upstream}
    arrays = {name: x for name, x in named.items() if isinstance(x, jax.Array)}
    fixed = {name: _kept(x) for name, x in named.items() if name not in arrays} | {"reduction": reduction}
    if not any(map(is_tracer, arrays.values())):
        return [jnp.asarray(x) for x in _on_host(fixed, wanted, arrays)]
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in arrays.items()}  # no row is read
    nf.masked_cross_entropy_and_grad(**fixed | {"masked": np.False_} | zeros)
    return _differentiable(fixed, wanted)(arrays)


def _on_host(fixed: dict[str, Any], wanted: bool, arrays: dict[str, Any]) -> list[Any]:
    """Returns the loss, and its gradient if it is wanted."""
    options: Any = fixed | {name: np.asarray(x) for name, x in arrays.items()}
    if not wanted:
        del options["upstream"]
        return [np.asarray(nf.masked_cross_entropy(**options), np.float32)]
    loss, gradient = nf.masked_cross_entropy_and_grad(**options)
    return [np.asarray(loss, np.float32), gradient]


def _called(fixed: dict[str, Any], wanted: bool, arrays: dict[str, Any]) -> Any:
    logits = arrays["logits"]
    shapes = [jax.ShapeDtypeStruct(logits.shape[:-1] if fixed["reduction"] == "none" else (), np.float32)]
    if wanted:
        shapes.append(jax.ShapeDtypeStruct(logits.shape, logits.dtype))
    return jax.pure_callback(partial(_on_host, fixed, wanted), shapes, arrays, vmap_method="sequential")


def _differentiable(fixed: dict[str, Any], wanted: bool) -> Any:
    """Returns the call. The gradient of the mean comes with the loss, for an upstream gradient of 1; another one makes
    a second pass, as the gradient is rounded to the logits' dtype."""
    call: Any = jax.custom_vjp(partial(_called, fixed, wanted))

    def forward(arrays: dict[str, Any]) -> Any:
        for name, x in arrays.items():
            if name != "logits" and x.perturbed:
                message = f"{name}: masked_cross_entropy has no derivative with respect to it: use lax.stop_gradient"
                raise NotImplementedError(message)
        if wanted:
            raise NotImplementedError("the gradient has no derivative: use jax.grad of masked_cross_entropy")
        values = {name: x.value for name, x in arrays.items()}
        loss, *early = _called(fixed, fixed["reduction"] == "mean", values)
        return [loss], (values, early)

    def backward(kept: Any, above: Any) -> Any:
        values, early = kept

        def again() -> Any:
            return _called(fixed, True, values | {"upstream": above[0]})[1]

        made = jax.lax.cond(above[0] == 1, lambda: early[0], again) if early else again()
        return ({name: made if name == "logits" else None for name in values},)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call
