# SPDX-License-Identifier: Apache-2.0
"""The targets of JAX's arrays, each within one run.

    pytest benchmarks/test_jax.py      every figure; writes results/<processor>-jax.json and .md

XLA is held to one thread, like the library: it starts as many threads as there are processors for it at its start.
People today write the formula in `jax.numpy` under `jit`, with `jax.random.normal`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np

import figures
import noisefuse as nf
from figures import ACTION, NOISE, SCHEDULE, Figure, Pair
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.timing import interleaved

SHAPE = (4, 1 << 20)  # 2^22 elements
LATENTS = (4, 4, 128, 128)
SAME = nf.Tableau([nf.Row(out=nf.tableau.x)])
STEPS = 1000
FLOW, IDS = nf.Schedule.flow(1000), NOISE.at(sample=[5])


@cache
def jax() -> Any:
    if not hasattr(os, "sched_setaffinity"):
        raise NotImplementedError("needs sched_setaffinity, to hold XLA to one thread")
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    found = import_module("jax")
    found.devices()
    os.sched_setaffinity(0, mine)
    return found


def jnp() -> Any:
    return jax().numpy


def ready(call: Call) -> Call:
    return lambda: jax().block_until_ready(call())


def ones(shape: tuple[int, ...]) -> Any:
    return jnp().ones(shape, "float32")


# ---- large arrays ------------------------------------------------------------------------------------------


def naive(implementation: str, shape: tuple[int, ...], t: Any) -> Call:
    """Computes the forward process as people write it."""
    alpha, sigma = (jnp().asarray(column, "float32") for column in (SCHEDULE.alpha, SCHEDULE.sigma))
    key, x = jax().random.key(0, impl=implementation), ones(shape)
    wide = (-1, *[1] * (len(shape) - 1))
    run = jax().jit(
        lambda key, x, t: (
            alpha[t].reshape(wide) * x + sigma[t].reshape(wide) * jax().random.normal(key, x.shape, x.dtype)
        )
    )
    return ready(lambda: run(key, x, t))


def over_naive(implementation: str) -> Pair:
    x, t = ones(SHAPE), jnp().arange(4) * 100
    run = jax().jit(lambda x, t: nf.q_sample(x, t, SCHEDULE, NOISE))
    return Pair(ready(lambda: run(x, t)), naive(implementation, SHAPE, t))


def over_normal(implementation: str) -> Pair:
    key = jax().random.key(0, impl=implementation)
    ours = jax().jit(lambda step: nf.randn(SHAPE, NOISE.at(step=step), dtype=jnp().float32))
    theirs = jax().jit(lambda key: jax().random.normal(key, SHAPE))
    return Pair(ready(lambda: ours(3)), ready(lambda: theirs(key)))


def in_numpy() -> Call:
    x, t = np.ones(SHAPE, np.float32), np.arange(4) * 100
    out = np.empty_like(x)
    return lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out)


def donated() -> Pair:
    t, run = jnp().arange(4) * 100, jax().jit(lambda x, t: nf.q_sample(x, t, SCHEDULE, NOISE, out=x), donate_argnums=0)
    held = [ones(SHAPE)]

    def ours() -> None:
        held[0] = jax().block_until_ready(run(held[0], t))

    return Pair(ours, in_numpy())


def fresh() -> float:
    """Compares a new result with our call of NumPy's, plus the cost of XLA's new memory, from a call that copies."""
    x, t, out = ones(SHAPE), jnp().arange(4) * 100, np.empty(SHAPE, np.float32)
    run = jax().jit(lambda x, t: nf.q_sample(x, t, SCHEDULE, NOISE))
    same = jax().jit(lambda x: nf.update(SAME, 0, x))
    source = np.ones(SHAPE, np.float32)
    calls = {"ours": ready(lambda: run(x, t)), "numpy": in_numpy(), "same": ready(lambda: same(x))}
    found = interleaved(calls | {"copy": lambda: np.copyto(out, source)}, seconds=4)
    other = found["numpy"].median + found["same"].median - found["copy"].median
    return found["ours"].median / other


def ddpm_step() -> Pair:
    table, x, m = nf.samplers.ddpm(SCHEDULE, 50).tableau, ones(SHAPE), ones(SHAPE)
    row, key = table.rows[25], jax().random.key(0)
    clean, out = row["clean"], row["out"]
    run = jax().jit(lambda x, m, i: nf.update(table, i, x, m, noise=NOISE))

    def step(key: Any, x: Any, m: Any) -> Any:
        d = jnp().clip(clean["x"] * x + clean["m1"] * m, clean["lo"], clean["hi"])
        z = jax().random.normal(key, x.shape)
        return out["x"] * x + out["m1"] * m + out["d"] * d + out["z"] * z

    theirs = jax().jit(step)
    return Pair(ready(lambda: run(x, m, 25)), ready(lambda: theirs(key, x, m)))


# ---- small arrays ------------------------------------------------------------------------------------------


STEP = count()
EAGER: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "q_sample": (10, lambda x: nf.q_sample(x, 500, SCHEDULE, NOISE)),
    "q_sample, another step each time": (12, lambda x: nf.q_sample(x, 500, SCHEDULE, NOISE.at(step=next(STEP)))),
    "q_sample, ids": (12, lambda x: nf.q_sample(x, 500, SCHEDULE, IDS)),
    "q_sample, a float": (60, lambda x: nf.q_sample(x, 0.5, FLOW, NOISE)),
    "mse_loss": (12, lambda x: nf.mse_loss(x, x, 500, SCHEDULE, NOISE, target="epsilon")),
    "augment.gaussian": (25, lambda x: nf.augment.gaussian(x, 0.1, NOISE)),
}


def eager(call: Callable[[Any], Any]) -> float:
    """Microseconds more than a compiled call that copies."""
    x = ones(ACTION)
    same = jax().jit(lambda x: nf.update(SAME, 0, x))
    calls = {"ours": ready(lambda: call(x)), "same": ready(lambda: same(x))}
    for _ in range(12):  # the first call of a kind checks it; its numbers, asked for so often, become JAX's arrays
        calls["ours"]()
    found = interleaved(calls, seconds=4)
    return (found["ours"].least - found["same"].least) * 1e6


def scanned() -> float:
    """Returns the microseconds of a scan's step beyond those of an empty one."""
    x, lax = ones(ACTION), jax().lax
    steps = jnp().arange(STEPS)
    run = jax().jit(
        lambda x: lax.scan(lambda x, k: (nf.q_sample(x, 500, SCHEDULE, NOISE.at(step=k)), None), x, steps)[0]
    )
    empty = jax().jit(lambda x: lax.scan(lambda x, k: (x + k, None), x, steps)[0])
    found = interleaved({"ours": ready(lambda: run(x)), "empty": ready(lambda: empty(x))}, seconds=4)
    return (found["ours"].least - found["empty"].least) * 1e6 / STEPS


def sampled() -> Pair:
    sampler, x = nf.samplers.ddim(SCHEDULE, 50), ones(LATENTS)
    half = np.float32(0.5)  # a model makes a new output
    run = jax().jit(lambda x: sampler.sample(lambda x, t: half * x, x, NOISE))
    on_host = np.asarray(x)
    return Pair(ready(lambda: run(x)), lambda: sampler.sample(lambda x, t: half * x, on_host, NOISE))


TITLE, SUFFIX = "JAX's arrays", "-jax"
ABOUT = """\
Written by `pytest benchmarks/test_jax.py`, in one run, on one thread of each. Arrays have 2^22 elements of float32,
unless a shape is named. The other is the formula in `jax.numpy` under `jit`, or what the figure names."""
FIGURES = [
    Figure("q_sample, over jnp with threefry", ">=", 18, partial(over_naive, "threefry2x32")),
    Figure("q_sample, over jnp with unsafe_rbg", ">=", 40, partial(over_naive, "unsafe_rbg")),
    *(
        Figure(f"randn, over jax.random.normal, {name}", ">=", 15, partial(over_normal, name))
        for name in ("threefry2x32", "rbg", "unsafe_rbg")
    ),
    Figure("a DDPM step, over jnp with threefry", ">=", 10, ddpm_step),
    Figure("q_sample of a donated x, over NumPy with out=", "<=", 1.15, donated),
    Figure("q_sample, over NumPy with out= and new memory", "<=", 1.1, fresh),
    *(
        Figure(f"{ACTION}, {name} in eager code, over a call that copies", "<=", most, partial(eager, call), unit="us")
        for name, (most, call) in EAGER.items()
    ),
    Figure(f"{ACTION}, q_sample in a scan, a step over an empty one", "<=", 2, scanned, unit="us"),
    Figure(f"{LATENTS}, 50 steps of DDIM as a scan, over NumPy's loop", "<=", 1.3, sampled),
]
test_figure = figures.test_figure
