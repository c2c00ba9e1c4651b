# SPDX-License-Identifier: Apache-2.0
"""The measurements of `noisefuse bench`: a Case, and how each contender runs it on the CPU.

Each contender is called as a careful user calls it: into existing buffers if it has `out=`. NumPy runs on one thread in
any case. benchmarks/ has more contenders, and cases of images and tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import noisefuse as nf

from ...arguments.arrays import float_dtype
from ...ground.kept import kept_property
from ...language.levels import FLOATS, LEVELS
from . import naive

Array: TypeAlias = npt.NDArray[Any]
Call: TypeAlias = Callable[[], object]

OPERATIONS = ("randn", "q_sample", "q_step", "q_walk")
DTYPES = (*FLOATS, "uint8")
WALK_STEPS = 10  # enough to show that the walk does not go through memory
# The number of arrays that an operation reads or writes. For a walk, its steps count as if they went through memory.
ARRAYS = {"randn": 1, "q_sample": 2, "q_step": 2, "q_walk": 2, "ddim": 3, "ddpm": 3, "mse_loss": 2}
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

    @property
    def arrays(self) -> int:
        """The number of arrays that the operation reads or writes."""
        return ARRAYS[self.operation]

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


def noisefuse(case: Case) -> Call:
    return ours(case, case.x, case.t, case.out)[case.operation]


def _naive(case: Case) -> Call | None:
    (a, s), rng, dtype = case.columns, np.random.default_rng(0), case.out_dtype
    step = partial(naive.naive_q_sample, alpha=a, sigma=s, rng=rng)
    return in_turn(case, lambda: naive.naive_randn(rng, case.shape, dtype), step, case.x, case.times)


def in_turn(case: Case, randn: Call, step: Callable[[Any, Any], Any], x: Any, times: Sequence[Any]) -> Call:
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

    return in_turn(case, z.normal_, step, x, times)


def copy(case: Case) -> Call:
    """Returns the yardstick: no call that reads x and writes out can be much faster. A walk has a copy for each
    step."""
    once = partial(np.copyto, case.out, case.x)
    return once if case.steps == 1 else lambda: [once() for _ in range(case.steps)]


CONTENDERS: dict[str, Callable[[Case], Call | None]] = {
    "noisefuse": noisefuse,
    "naive": _naive,
    "torch": _torch,
    "copyto": copy,
}


class Rival(NamedTuple):
    """A rival says what a report prints of a contender, and which library it needs."""

    title: str
    library: str = ""


# All but noisefuse and the copy, in the order of a report's columns.
RIVALS = {"naive": Rival("NumPy as papers write it, one thread"), "torch": Rival("torch with out=", "torch")}


def name_missing(rivals: Iterable[Rival]) -> None:
    """Says on stderr which libraries are not installed, and so have no figures."""
    needed = sorted({rival.library for rival in rivals if rival.library})
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
