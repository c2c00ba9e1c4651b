# SPDX-License-Identifier: Apache-2.0
"""More contenders of the forward process: JAX, MKL, Numba, and NumPy with care."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module, metadata
from typing import Any

import numpy as np

import noisefuse as nf
from noisefuse.commands.bench.contenders import CONTENDERS as PLAIN
from noisefuse.commands.bench.contenders import RIVALS as PLAIN_RIVALS
from noisefuse.commands.bench.contenders import WALK_STEPS, Array, Call, Case, Rival, in_turn, noisefuse
from noisefuse.commands.bench.naive import Rng, Times, against
from noisefuse.ground.processors import processors


def _numba(case: Case) -> Call | None:
    """Returns the operation on the Numba backend; changing the backend takes about two microseconds."""
    import_module("numba")
    call = noisefuse(case)

    def on_numba() -> None:
        with nf.use_backend("numba"):
            call()

    return on_numba


def tuned_rng(seed: int) -> np.random.Generator:
    """Returns SFC64, NumPy's fastest bit generator."""
    return np.random.Generator(np.random.SFC64(seed))


def tuned_randn(rng: Rng, out: Array) -> Array:
    return rng.standard_normal(dtype=out.dtype.type, out=out)


def tuned_q_sample(x: Array, t: Times, alpha: Array, sigma: Array, rng: Rng, out: Array, z: Array) -> Array:
    """Computes `naive_q_sample` in buffers: z has x's shape, and out may be x. With the columns of a walk's step it
    computes that step."""
    tuned_randn(rng, z)
    np.multiply(z, against(x, sigma[t]), out=z)
    np.multiply(x, against(x, alpha[t]), out=out)
    return np.add(out, z, out=out)


def _tuned(case: Case) -> Call | None:
    if case.dtype not in ("float32", "float64"):
        return None
    (a, s), rng, out, z = case.columns, tuned_rng(0), case.out, np.empty_like(case.out)
    step = partial(tuned_q_sample, alpha=a, sigma=s, rng=rng, out=out, z=z)
    return in_turn(case, lambda: tuned_randn(rng, out), step, case.x, case.times)


def _jax(case: Case) -> Call | None:
    jax = import_module("jax")
    if case.threads != processors():
        return None  # it uses all processors, and only a new process could change that
    jax.config.update("jax_enable_x64", True)  # otherwise float64 would silently be float32
    jnp, dtype = jax.numpy, case.out_dtype
    a, s = (jnp.asarray(column) for column in case.columns)
    x, t, key = jnp.asarray(case.x), jnp.asarray(case.times[0]), jax.random.key(0)

    def normal(key: Any) -> Any:
        return jax.random.normal(key, case.shape, dtype)

    def step(key: Any, x: Any, t: Any) -> Any:
        x = x / jnp.float32(127.5) - 1 if case.dtype == "uint8" else x
        return a[t].reshape(case.axes).astype(dtype) * x + s[t].reshape(case.axes).astype(dtype) * normal(key)

    def walk(key: Any, x: Any) -> Any:
        keys = jax.random.split(key, WALK_STEPS)
        return jax.lax.fori_loop(0, WALK_STEPS, lambda i, x: step(keys[i], x, i), x)

    operation = {"randn": lambda key, x, t: normal(key), "q_walk": lambda key, x, t: walk(key, x)}
    compiled = jax.jit(operation.get(case.operation, step))
    return lambda: compiled(key, x, t).block_until_ready()


def _mkl(case: Case) -> Call | None:
    if case.operation != "randn" or case.dtype not in ("float32", "float64"):
        return None
    return mkl_normals(case.out)


def mkl_normals(out: Array) -> Call:
    """Returns a call that fills `out` (float32 or float64) with MKL's normals: VSL, Philox4x32-10, inverse CDF; one
    thread.

    ImportError: MKL is not installed (pip install mkl).
    """
    mkl, stream = _mkl_stream()
    double = out.dtype == np.float64
    draw, scalar = (mkl.vdRngGaussian, ctypes.c_double) if double else (mkl.vsRngGaussian, ctypes.c_float)
    inverse_cdf = 2
    pointer = out.ctypes.data_as(ctypes.c_void_p)  # keeps `out` alive
    arguments = (inverse_cdf, stream, out.size, pointer, scalar(0), scalar(1))

    def call() -> None:
        if status := draw(*arguments):
            raise RuntimeError(f"MKL's generator failed with status {status}")

    return call


@cache
def _mkl_stream() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [str(file.locate()) for file in files if file.name.startswith("libmkl_rt")]
    path = found[0] if found else ctypes.util.find_library("mkl_rt")
    if path is None:
        raise ImportError("MKL is not installed: pip install mkl")
    try:
        mkl = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"MKL cannot be loaded: {error}") from error
    sequential, philox4x32x10 = 1, 16 << 20
    mkl.MKL_Set_Threading_Layer(sequential)  # one stream uses one thread; this avoids a second OpenMP
    stream = ctypes.c_void_p()
    if status := mkl.vslNewStream(ctypes.byref(stream), philox4x32x10, 1):
        raise ImportError(f"MKL cannot make a Philox stream: status {status}")
    return mkl, stream


CONTENDERS: dict[str, Callable[[Case], Call | None]] = {
    "noisefuse": noisefuse,
    "numba": _numba,
    "naive": PLAIN["naive"],
    "tuned": _tuned,
    "torch": PLAIN["torch"],
    "JAX": _jax,
    "MKL": _mkl,
    "copyto": PLAIN["copyto"],
}
RIVALS = {
    "numba": Rival("noisefuse on its backend of that name", "numba"),
    "naive": PLAIN_RIVALS["naive"],
    "tuned": Rival("NumPy with its fastest generator and out=, one thread"),
    "torch": PLAIN_RIVALS["torch"],
    "JAX": Rival("jax.jit, on all processors", "jax"),
    "MKL": Rival("its normals alone, one thread"),
}
