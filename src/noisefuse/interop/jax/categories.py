# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from JAX's arrays, and cross entropies, which compiled programs compute by a callback."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...arguments.arrays import as_array
from ...ground.checks import is_tracer
from ...language.levels import INFO, LOGITS
from ...language.rows import X
from ...operations.words import drawing
from ...tokens.categorical import drawn_from, token_dtype
from .description import POSITIONS, RACES, TEMPERATURE, TOP_K, TOP_P, WHERE
from .traced import Named, check_none, refusing, run, small, stand_in_for, tracers_of


def categorical(logits: Any, noise: Any, *, info: Any, dtype: Any, out: Any, partial: bool, **options: Any) -> Any:
    check_none(out=out)
    if partial:
        raise NotImplementedError("partial: parts do not take JAX arrays: pass np.asarray(logits)")
    kind = jax.dtypes.canonicalize_dtype(token_dtype(dtype, None))
    traced = {name: x for name, x in options.items() if is_tracer(x)}
    known = {name: x for name, x in options.items() if name not in traced}
    known = {name: np.asarray(x) if isinstance(x, jax.Array) else x for name, x in known.items()}
    if not (traced or is_tracer(logits) or tracers_of(noise)):
        draw: Any = nf.categorical
        drawn = draw(np.asarray(logits), noise, info=info, dtype=kind, **known)
        return jax.tree.map(jnp.asarray, drawn)
    token, *told = _in_program(logits, noise, info, kind, traced, known)
    return (token, nf.discrete.TokenInfo(**dict(zip(info, told, strict=True)))) if info else token


_STAND_INS: Any = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "where": True, "positions": 0}
_SETTINGS = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P}


def _in_program(logits: Any, noise: Any, info: Any, kind: Any, traced: Any, known: Any) -> list[Any]:
    """Checks what is known, and draws by the one operation of all calls."""
    stand_in, named = as_array("logits", stand_in_for("logits", logits), LOGITS), Named(noise)
    real = {name for name, x in traced.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    checked = known | {
        name: np.full(x.shape, _STAND_INS[name], np.float32 if name in real else x.dtype) for name, x in traced.items()
    }
    settings, names, _, _, places, chosen = drawn_from(logits.shape, named.known, **checked, whole=True)
    rows = logits.shape[:-1]
    shape = logits.shape if rows else (1, *logits.shape)

    def fixed(name: str, x: Any) -> Any:
        return refusing(x, _NO_GRADIENT.format(name)) if info else jax.lax.stop_gradient(x)

    more: dict[int, Any] = {}
    for (name, role), numbers in zip(_SETTINGS.items(), settings, strict=True):
        if name not in traced:
            more[role] = np.array(np.broadcast_to(numbers, shape[:1])).view(np.uint32).reshape(-1, 2)
        elif name in real:
            x = fixed(name, traced[name])
            more[role] = jnp.broadcast_to(x.astype(jnp.promote_types(x.dtype, jnp.float32)), shape[:1])
        else:
            more[role] = jnp.broadcast_to(small(traced[name]), shape[:1])
    if chosen is not None:
        more[WHERE] = jnp.broadcast_to(traced.get("where", chosen.reshape(rows)), rows).astype(jnp.uint8)
    place = traced.get("positions", places.reshape(rows))
    if named.start is not None and checked["positions"] is None:
        full = noise.window_shape
        starts = zip(named.start, named.starts(full, shape[1:]), strict=True)
        moved = [n * math.prod(full[axis + 1 : -1]) for axis, (given_, n) in enumerate(starts) if is_tracer(given_)]
        place = place + sum(moved[: len(full) - 1])
    named.start = None  # the positions hold it
    more[POSITIONS] = jnp.broadcast_to(place if place.dtype.itemsize > 4 else place.astype(jnp.int32), rows)
    call = drawing(shape, names, np.empty(shape, np.float32))._replace(inputs=(stand_in.reshape(shape), *(None,) * 8))
    outputs = [(rows, kind.name), *((rows, INFO[name]) for name in info)]
    keep = tuple([*INFO].index(name) for name in info)
    return run(
        call, {X: fixed("logits", logits).reshape(shape)}, named, outputs=outputs, more=more, kind=RACES, keep=keep
    )


_NO_GRADIENT = (
    "{0}: the info of categorical has no gradient; pass jax.lax.stop_gradient({0}), and for that of log_prob take "
    "-masked_cross_entropy(logits, token, reduction='none')"
)


def _kept(value: Any) -> Any:
    """Returns a value that a program keeps, as its owner may overwrite it before the program runs again."""
    return np.array(value) if isinstance(value, np.ndarray | list) else value


# ---- cross entropies ---------------------------------------------------------------------------------------


_COUNTS = {"masked_cross_entropy": "masked", "rate_loss": "where"}  # what says which rows count


def _value(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the function of JAX's arrays with this name, and that of the pair with its gradient."""
    arguments = {"masked_cross_entropy": ("ids", "masked", "weight"), "rate_loss": ("ids", "x_t", "p", "weight")}[name]

    def loss(*given: Any, **options: Any) -> Any:
        return _loss(name, dict(zip(("logits", *arguments), given, strict=True)) | options, 1.0, False)[0]

    def loss_and_grad(*given: Any, upstream: Any, out: Any, **options: Any) -> Any:
        check_none(out=out)
        return tuple(_loss(name, dict(zip(("logits", *arguments), given, strict=True)) | options, upstream, True))

    return loss, loss_and_grad


masked_cross_entropy: Callable[..., Any]
masked_cross_entropy_and_grad: Callable[..., Any]
rate_loss: Callable[..., Any]
rate_loss_and_grad: Callable[..., Any]
masked_cross_entropy, masked_cross_entropy_and_grad = _value("masked_cross_entropy")
rate_loss, rate_loss_and_grad = _value("rate_loss")


def _loss(function: str, named: dict[str, Any], upstream: Any, wanted: bool) -> Any:
    """Returns the loss, and its gradient if it is wanted."""
    named["upstream"] = upstream
    arrays = {name: x for name, x in named.items() if isinstance(x, jax.Array)}
    fixed = {name: _kept(x) for name, x in named.items() if name not in arrays}
    if not any(map(is_tracer, arrays.values())):
        return [jnp.asarray(x) for x in _on_host(function, fixed, wanted, arrays)]
    zeros = {name: (np.ones if name == "p" else np.zeros)(x.shape, x.dtype) for name, x in arrays.items()}
    getattr(nf, f"{function}_and_grad")(**fixed | {_COUNTS[function]: np.False_} | zeros)  # no row is read
    return _differentiable(function, fixed, wanted)(arrays)


def _on_host(function: str, fixed: dict[str, Any], wanted: bool, arrays: dict[str, Any]) -> list[Any]:
    """Returns the loss, and its gradient if it is wanted."""
    options: Any = fixed | {name: np.asarray(x) for name, x in arrays.items()}
    if not wanted:
        del options["upstream"]
        return [np.asarray(getattr(nf, function)(**options), np.float32)]
    loss, gradient = getattr(nf, f"{function}_and_grad")(**options)
    return [np.asarray(loss, np.float32), gradient]


def _called(function: str, fixed: dict[str, Any], wanted: bool, arrays: dict[str, Any]) -> Any:
    logits = arrays["logits"]
    shapes = [jax.ShapeDtypeStruct(logits.shape[:-1] if fixed["reduction"] == "none" else (), np.float32)]
    if wanted:
        shapes.append(jax.ShapeDtypeStruct(logits.shape, logits.dtype))
    return jax.pure_callback(partial(_on_host, function, fixed, wanted), shapes, arrays, vmap_method="sequential")


def _differentiable(function: str, fixed: dict[str, Any], wanted: bool) -> Any:
    """Returns the call. The gradient of the mean comes with the loss, for an upstream gradient of 1; another one makes
    a second pass, as the gradient is rounded to the logits' dtype."""
    call: Any = jax.custom_vjp(partial(_called, function, fixed, wanted))

    def forward(arrays: dict[str, Any]) -> Any:
        for name, x in arrays.items():
            if name != "logits" and x.perturbed:
                message = f"{name}: {function} has no derivative with respect to it: use lax.stop_gradient"
                raise NotImplementedError(message)
        if wanted:
            raise NotImplementedError(f"the gradient has no derivative: use jax.grad of {function}")
        values = {name: x.value for name, x in arrays.items()}
        loss, *early = _called(function, fixed, fixed["reduction"] == "mean", values)
        return [loss], (values, early)

    def backward(residuals: Any, above: Any) -> Any:
        values, early = residuals

        def again() -> Any:
            return _called(function, fixed, True, values | {"upstream": above[0]})[1]

        gradient = jax.lax.cond(above[0] == 1, lambda: early[0], again) if early else again()
        return ({name: gradient if name == "logits" else None for name in values},)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call
