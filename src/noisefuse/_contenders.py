# SPDX-License-Identifier: Apache-2.0
"""What `noisefuse bench` measures: a Case, and how each contender runs it.

Each is called as its careful user calls it: into buffers that exist where it has `out=`, compiled where it
has a compiler. NumPy and MKL's generator run on one thread, whatever the case says.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module, metadata
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import noisefuse as nf
from noisefuse import naive

Array: TypeAlias = npt.NDArray[Any]
Call: TypeAlias = Callable[[], object]

OPERATIONS = ("randn", "q_sample", "q_step", "q_walk")
DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8")
WALK_STEPS = 10  # enough to see that the walk does not go through memory

# ---- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype, with its inputs. q_sample takes one t for each sample."""

    operation: str
    threads: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def group(self) -> tuple[str, int]:
        return self.operation, self.threads

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def exists(self) -> bool:
        return self.dtype != "uint8" or self.operation == "q_sample"

    @property
    def steps(self) -> int:
        return WALK_STEPS if self.operation == "q_walk" else 1

    @property
    def elements(self) -> int:
        """Noised elements: each step of a walk noises them all."""
        return math.prod(self.shape) * self.steps

    @cached_property
    def schedule(self) -> nf.Schedule:
        return nf.Schedule.linear(self.steps if self.operation == "q_walk" else 1000)

    @cached_property
    def x(self) -> Array:
        rng = np.random.default_rng(0)
        if self.dtype == "uint8":
            return rng.integers(0, 256, self.shape, dtype=np.uint8)
        return rng.uniform(-1, 1, self.shape).astype(self.out.dtype)

    @cached_property
    def t(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng(1).integers(0, len(self.schedule), self.shape[0])

    @cached_property
    def out(self) -> Array:
        return np.zeros(self.shape, "float32" if self.dtype == "uint8" else _dtype(self.dtype))

    def __str__(self) -> str:
        return f"{self.operation} {self.size} {self.dtype}"


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


# ---- the contenders: a Case -> what to call, or None where they have no such operation --------------------


def _noisefuse(case: Case) -> Call | None:
    x, t, schedule, out, noise = case.x, case.t, case.schedule, case.out, nf.Noise(0)
    last, walked = len(schedule) - 1, out[None]
    return {
        "randn": lambda: nf.randn(case.shape, noise, dtype=out.dtype, out=out),
        "q_sample": lambda: nf.q_sample(x, t, schedule, noise, out=out),
        "q_step": lambda: nf.q_step(x, 500, schedule, noise, out=out),
        "q_walk": lambda: nf.q_walk(x, schedule, noise, keep=[last], out=walked),
    }[case.operation]


def _numba(case: Case) -> Call | None:
    """The same on the backend of that name; changing it takes about two microseconds."""
    import_module("numba")
    call = _noisefuse(case)
    assert call

    def on_numba() -> None:
        with nf.use_backend("numba"):
            call()

    return on_numba


def _naive(case: Case) -> Call | None:
    x, t, (alpha, sigma, betas) = case.x, case.t, _columns(case.schedule)
    rng = np.random.default_rng(0)
    return {
        "randn": lambda: naive.naive_randn(rng, case.shape, case.out.dtype),
        "q_sample": lambda: naive.naive_q_sample(x, t, alpha, sigma, rng),
        "q_step": lambda: naive.naive_q_step(x, 500, betas, rng),
        "q_walk": lambda: naive.naive_q_walk(x, betas, rng, keep=[len(betas) - 1]),
    }[case.operation]


def _tuned(case: Case) -> Call | None:
    if case.dtype not in ("float32", "float64"):
        return None
    x, t, (alpha, sigma, betas) = case.x, case.t, _columns(case.schedule)
    rng, out, z = naive.tuned_rng(0), case.out, np.empty_like(case.out)
    return {
        "randn": lambda: naive.tuned_randn(rng, out),
        "q_sample": lambda: naive.tuned_q_sample(x, t, alpha, sigma, rng, out, z),
        "q_step": lambda: naive.tuned_q_step(x, 500, betas, rng, out, z),
        "q_walk": lambda: naive.tuned_q_walk(x, betas, rng, out, z),
    }[case.operation]


def _columns(schedule: nf.Schedule) -> tuple[Array, Array, Array]:
    return schedule.alpha, schedule.sigma, schedule.betas


def _torch(case: Case) -> Call | None:
    torch = import_module("torch")
    torch.set_num_threads(case.threads)
    image = case.dtype == "uint8"
    dtype = torch.float32 if image else getattr(torch, case.dtype)
    x = torch.randint(0, 256, case.shape, dtype=torch.uint8) if image else torch.randn(case.shape).to(dtype)
    out, z = torch.empty(case.shape, dtype=dtype), torch.empty(case.shape, dtype=dtype)
    alpha, sigma, betas = (torch.from_numpy(column.copy()) for column in _columns(case.schedule))
    keep, fresh = (1 - betas).sqrt().to(dtype), betas.sqrt().to(dtype)
    alpha, sigma = alpha.to(dtype), sigma.to(dtype)
    t = torch.from_numpy(case.t)
    axes = (-1,) + (1,) * (len(case.shape) - 1)

    def blend(x: Any, a: Any, s: Any) -> None:
        torch.randn(case.shape, dtype=dtype, out=z)
        if image:  # [-1, 1], folded into a
            torch.mul(x, a / 127.5, out=out).sub_(a)
        else:
            torch.mul(x, a, out=out)
        out.addcmul_(z, s)

    def walk() -> None:
        for step in range(WALK_STEPS):
            blend(out if step else x, keep[step], fresh[step])

    return {
        "randn": lambda: torch.randn(case.shape, dtype=dtype, out=out),
        "q_sample": lambda: blend(x, alpha[t].view(axes), sigma[t].view(axes)),
        "q_step": lambda: blend(x, keep[500], fresh[500]),
        "q_walk": walk,
    }[case.operation]


def _jax(case: Case) -> Call | None:
    jax = import_module("jax")
    if case.threads != processors():
        return None  # it takes all processors, and nothing but a new process changes that
    jax.config.update("jax_enable_x64", True)  # or float64 would silently be float32
    jnp = jax.numpy
    dtype = case.out.dtype
    alpha, sigma, betas = (jnp.asarray(column) for column in _columns(case.schedule))
    keep, fresh = jnp.sqrt(1 - betas), jnp.sqrt(betas)
    x, t, key = jnp.asarray(case.x), jnp.asarray(case.t), jax.random.key(0)
    axes = (-1,) + (1,) * (len(case.shape) - 1)

    def blend(key: Any, x: Any, a: Any, s: Any) -> Any:
        x = x / jnp.float32(127.5) - 1 if case.dtype == "uint8" else x
        return a.astype(dtype) * x + s.astype(dtype) * jax.random.normal(key, case.shape, dtype)

    def walk(key: Any, x: Any, t: Any) -> Any:
        keys = jax.random.split(key, WALK_STEPS)
        return jax.lax.fori_loop(0, WALK_STEPS, lambda i, x: blend(keys[i], x, keep[i], fresh[i]), x)

    operation = {
        "randn": lambda key, x, t: jax.random.normal(key, case.shape, dtype),
        "q_sample": lambda key, x, t: blend(key, x, alpha[t].reshape(axes), sigma[t].reshape(axes)),
        "q_step": lambda key, x, t: blend(key, x, keep[500], fresh[500]),
        "q_walk": walk,
    }[case.operation]
    compiled = jax.jit(operation)
    return lambda: compiled(key, x, t).block_until_ready()


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mkl(case: Case) -> Call | None:
    if case.operation != "randn" or case.dtype not in ("float32", "float64"):
        return None
    return mkl_normals(case.out)


def mkl_normals(out: Array) -> Call:
    """Fill `out` (float32 or float64) with MKL's normals: VSL, Philox4x32-10, the inverse CDF; one thread.

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
    mkl.MKL_Set_Threading_Layer(sequential)  # one stream is one thread's anyway; and no second OpenMP
    stream = ctypes.c_void_p()
    if status := mkl.vslNewStream(ctypes.byref(stream), philox4x32x10, 1):
        raise ImportError(f"MKL cannot make a Philox stream: status {status}")
    return mkl, stream


def _copy(case: Case) -> Call | None:
    """The yardstick: nothing that reads x and writes out can be much faster."""
    return None if case.operation == "q_walk" else lambda: np.copyto(case.out, case.x)


CONTENDERS: dict[str, Callable[[Case], Call | None]] = {
    "noisefuse": _noisefuse,
    "numba": _numba,
    "naive": _naive,
    "tuned": _tuned,
    "torch": _torch,
    "JAX": _jax,
    "MKL": _mkl,
    "copyto": _copy,
}
