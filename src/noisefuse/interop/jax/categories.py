# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from JAX's arrays: on the host, and from compiled programs by a callback."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import noisefuse as nf

from ...noise import is_tracer, names_of

KINDS = {"log_prob": np.float32, "log_prob_raw": np.float32, "entropy": np.float32, "margin": np.float32}


def categorical(logits: Any, noise: Any, *, info: Any, dtype: Any, out: Any, partial: bool, **options: Any) -> Any:
    if out is not None:
        raise TypeError("out: expected None, as arrays of JAX are not written to")
    if partial:
        raise NotImplementedError("partial: parts do not take arrays of JAX's: pass np.asarray(logits)")
    kind = jax.dtypes.canonicalize_dtype(np.int64 if dtype is None else dtype)
    given = {name: value for name, value in options.items() if isinstance(value, jax.Array)}
    fixed = {name: value for name, value in options.items() if name not in given}

    def on_host(logits: Any, given: Any, noise: Any) -> Any:
        arrays = {name: np.asarray(value) for name, value in given.items()}
        token, known = _with_info(np.asarray(logits), noise, info, kind, arrays | fixed)
        return token, [known[name] for name in info]

    noises = names_of(noise)
    numbers = [(n.step, n.sample) for n in noises if is_tracer(n.step) or is_tracer(n.sample)]
    if not numbers and not any(map(is_tracer, (logits, *given.values()))):
        token, known = jax.tree.map(jnp.asarray, on_host(logits, given, noise))
    else:
        shape = logits.shape[:-1]
        shapes = [jax.ShapeDtypeStruct(shape, KINDS.get(name, np.int32)) for name in info]
        token, known = jax.pure_callback(
            lambda logits, given, numbers: on_host(logits, given, _named(noise, numbers)),
            (jax.ShapeDtypeStruct(shape, kind), shapes),
            *(jax.lax.stop_gradient(logits), given, numbers),
        )
    return (token, dict(zip(info, known, strict=True))) if info else token


def _with_info(logits: Any, noise: Any, names: Any, kind: Any, options: dict[str, Any]) -> Any:
    found: Any = nf.categorical(logits, noise, info=names, dtype=kind, **options)
    return found if names else (found, {})


def _named(noise: Any, numbers: Any) -> Any:
    """Returns the noise with the numbers that were traced."""
    if not numbers:
        return noise
    left = iter(numbers)

    def one(name: nf.Noise) -> nf.Noise:
        if not (is_tracer(name.step) or is_tracer(name.sample)):
            return name
        step, sample = map(np.asarray, next(left))
        ids = sample if sample.ndim else int(sample)
        known = nf.Noise(name.seed, sample=ids, step=int(step), stream=name.stream)
        return known if name.window_shape is None else known.window(name.window_shape, name.window_start)

    return [one(name) for name in noise] if isinstance(noise, list | tuple) else one(noise)
