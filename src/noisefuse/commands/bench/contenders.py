# SPDX-License-Identifier: Apache-2.0
"""The measurements of `noisefuse bench`: a Case, and how each contender runs it on the CPU.

Each contender is called as a careful user calls it: into existing buffers if it has `out=`, compiled if it has a
compiler. NumPy and MKL's generator run on one thread in any case.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import noisefuse as nf
from noisefuse.commands.bench import naive

from ...arguments.arrays import float_dtype
from ...ground.kept import kept_property
from ...ground.processors import processors
from ...language.levels import FLOATS, LEVELS

Array: TypeAlias = npt.NDArray[Any]
Call: TypeAlias = Callable[[], object]

OPERATIONS = ("randn", "q_sample", "q_step", "q_walk")
DTYPES = (*FLOATS, "uint8")
WALK_STEPS = 10  # enough to show that the walk does not go through memory
# The number of arrays that an operation reads or writes. For a walk, its steps count as if they went through memory.
ARRAYS = {"randn": 1, "q_sample": 2, "q_step": 2, "q_walk": 2, "ddim": 3, "ddpm": 3, "mse_loss": 2}
ARRAYS |= dict.fromkeys(("gaussian", "multiplicative", "poisson"), 2)
ARRAYS |= {"q_mask": 2, "q_uniform": 2, "categorical": 1, "greedy": 1, "masked_cross_entropy": 2}
PLAIN = {"copyto": 2, "read": 1}  # the plain passes, and their arrays

# ---- cases -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype, with its inputs. q_sample takes one t for each sample."""

    operation: str
    threads: int  # 0 on another device
    shape: tuple[int, ...]
    dtype: str

    @property
    def group(self) -> str:
        return self.operation + f", {self.threads} thread{'s' * (self.threads > 1)}" * (self.threads > 0)

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def exists(self) -> bool:
        return self.dtype in FLOATS or (self.dtype in LEVELS and self.operation == "q_sample")

    @property
    def plain(self) -> str:
        """The contender that is the yardstick, one of PLAIN."""
        return "copyto"

    def bytes(self, arrays: int) -> int:
        """Returns the bytes of so many arrays: one that is written, and others that are read."""
        read, written = (np.dtype(dtype).itemsize for dtype in (self.x_dtype, self.out_dtype))
        return self.elements * (written + (arrays - 1) * read)

    @property
    def steps(self) -> int:
        return WALK_STEPS if self.operation == "q_walk" else 1

    @property
    def elements(self) -> int:
        """The number of noised elements: each step of a walk noises them all."""
        return math.prod(self.shape) * self.steps

    @kept_property
    def schedule(self) -> nf.Schedule:
        return nf.Schedule.linear(self.steps if self.operation == "q_walk" else 1000)

    @property
    def columns(self) -> tuple[Array, Array]:
        """Returns a and s of x_t = a[t] x + s[t] z."""
        s = self.schedule
        return (s.alpha, s.sigma) if self.operation == "q_sample" else (np.sqrt(1 - s.betas), np.sqrt(s.betas))

    @property
    def times(self) -> list[Any]:
        """Returns the t of each step."""
        return [self.t] if self.operation == "q_sample" else [500] if self.steps == 1 else list(range(WALK_STEPS))

    @property
    def axes(self) -> tuple[int, ...]:
        """Returns the shape in which a[t] broadcasts against x."""
        return (-1,) + (1,) * (len(self.shape) - 1) if self.operation == "q_sample" else ()

    @property
    def x_dtype(self) -> npt.DTypeLike:
        return self.dtype if self.dtype in LEVELS else self.out_dtype

    @property
    def out_dtype(self) -> np.dtype[Any]:
        return float_dtype("float32" if self.dtype in LEVELS else self.dtype)

    @kept_property
    def x(self) -> Array:
        low, high = (0, LEVELS[self.dtype] + 1) if self.dtype in LEVELS else (-1, 1)
        return np.random.default_rng(0).uniform(low, high, self.shape).astype(self.x_dtype)

    @kept_property
    def t(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng(1).integers(0, len(self.schedule), self.shape[0])

    @kept_property
    def out(self) -> Array:
        return np.zeros(self.shape, self.out_dtype)

    def __str__(self) -> str:
        return f"{self.operation} {self.size} {self.dtype}"


# ---- the contenders: from a Case to a call, or to None if they lack the operation -------------------------


def ours(case: Case, x: Any, t: Any, out: Any) -> dict[str, Call]:
    """Returns each operation of noisefuse, on arrays of any kind."""
    schedule, noise, last = case.schedule, nf.Noise(0), len(case.schedule) - 1
    return {
        "randn": lambda: nf.randn(case.shape, noise, dtype=out.dtype, out=out),
        "q_sample": lambda: nf.q_sample(x, t, schedule, noise, out=out),
        "q_step": lambda: nf.q_step(x, 500, schedule, noise, out=out),
        "q_walk": lambda: nf.q_walk(x, schedule, noise, keep=[last], out=out[None]),
    }


def _noisefuse(case: Case) -> Call:
    return ours(case, case.x, case.t, case.out)[case.operation]


def _numba(case: Case) -> Call | None:
    """Returns the operation on the Numba backend; changing the backend takes about two microseconds."""
    import_module("numba")
    call = _noisefuse(case)

    def on_numba() -> None:
        with nf.use_backend("numba"):
            call()

    return on_numba


def _naive(case: Case) -> Call | None:
    (a, s), rng, dtype = case.columns, np.random.default_rng(0), case.out_dtype
    step = partial(naive.naive_q_sample, alpha=a, sigma=s, rng=rng)
    return _in_turn(case, lambda: naive.naive_randn(rng, case.shape, dtype), step, case.x, case.times)


def _tuned(case: Case) -> Call | None:
    if case.dtype not in ("float32", "float64"):
        return None
    (a, s), rng, out, z = case.columns, naive.tuned_rng(0), case.out, np.empty_like(case.out)
    step = partial(naive.tuned_q_sample, alpha=a, sigma=s, rng=rng, out=out, z=z)
    return _in_turn(case, lambda: naive.tuned_randn(rng, out), step, case.x, case.times)


def _in_turn(case: Case, randn: Call, step: Callable[[Any, Any], Any], x: Any, times: Sequence[Any]) -> Call:
    """Returns `step`, from x, for each of the times, or `randn` if that is the operation."""

    def call() -> Any:
        x_t = x
        for t in times:
            x_t = step(x_t, t)
        return x_t

    return randn if case.operation == "randn" else call


def _torch(case: Case) -> Call | None:
    import_module("torch").set_num_threads(case.threads)
    return torch_call(case, "cpu")


def torch_call(case: Case, device: str) -> Call:
    torch, image = import_module("torch"), case.dtype == "uint8"
    dtype = torch.float32 if image else getattr(torch, case.dtype)
    x, out, z = (torch.ones(case.shape, dtype=d, device=device) for d in (getattr(torch, case.dtype), dtype, dtype))
    a, s = (torch.tensor(column, dtype=dtype, device=device) for column in case.columns)
    axes, times = case.axes, [t if isinstance(t, int) else torch.tensor(t, device=device) for t in case.times]

    def step(x: Any, t: Any) -> Any:
        a_t, s_t = (a[t].view(axes), s[t].view(axes)) if axes else (a[t], s[t])
        z.normal_()
        if image:  # [-1, 1], folded into a
            torch.mul(x, a_t / 127.5, out=out).sub_(a_t)
        else:
            torch.mul(x, a_t, out=out)
        return out.addcmul_(z, s_t)

    return _in_turn(case, z.normal_, step, x, times)


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


def _copy(case: Case) -> Call:
    """Returns the yardstick: no call that reads x and writes out can be much faster. A walk has a copy for each
    step."""
    copy = partial(np.copyto, case.out, case.x)
    return copy if case.steps == 1 else lambda: [copy() for _ in range(case.steps)]


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
# All but noisefuse and the copy, in the order of a report's columns, with their titles.
RIVALS = {
    "numba": "noisefuse on its backend of that name",
    "naive": "NumPy as papers write it, one thread",
    "tuned": "NumPy with its fastest generator and out=, one thread",
    "LLaDA": "what its code does, in torch",
    "torch": "torch with out=",
    "eager": "torch's usual way: rand and where, softmax and multinomial, argmax, cross_entropy",
    "torch.compile": "torch, compiled",
    "CuPy": "as papers write it",
    "albumentations": "image by image",
    "torchvision": "the batch at once",
    "JAX": "jax.jit, on all processors",
    "MKL": "its normals alone, one thread",
}
LIBRARIES = {  # that rivals need; MKL is none of Python's modules
    "numba": "numba", "LLaDA": "torch", "torch": "torch", "eager": "torch", "torch.compile": "torch",
    "albumentations": "albumentations", "torchvision": "torchvision", "JAX": "jax",
}  # fmt: skip


def name_missing(rivals: Iterable[str]) -> None:
    """Says on stderr which libraries are not installed, and so have no figures."""
    needed = sorted({LIBRARIES[name] for name in rivals if name in LIBRARIES})
    if missing := [library for library in needed if find_spec(library) is None]:
        print(f"noisefuse bench: not installed, and so left out: {', '.join(missing)}", file=sys.stderr)


def contenders(
    case: Any, names: Collection[str] = (), of: Mapping[str, Callable[[Any], Call | None]] = CONTENDERS
) -> dict[str, Call]:
    """Returns the named contenders, or all: those that are installed and have this operation."""
    calls = {}
    for name in names or of:
        try:
            call = of[name](case)
        except ImportError:
            if name == "noisefuse":
                raise
            continue
        if call is not None:
            calls[name] = call
    return calls
