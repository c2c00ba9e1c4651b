# SPDX-License-Identifier: Apache-2.0
"""`python benchmarks/bench.py --cliffs`: every public function, called in many spellings, beside its plain call.

The functions come from `__all__`, and their arguments from their parameters' names. So a new function is measured
without a line here, and a new name of a parameter needs an entry in `ARGUMENTS`, which a test says.
"""

from __future__ import annotations

import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

import noisefuse as nf
from noisefuse.commands.shared import wrapped

SMALL = (4, 16, 8)
LARGE = ((4, 16, 16, 16), (4, 64, 64, 64))
DTYPES = ("float32", "float16", "float64", "uint8")
LAYOUTS = {"C order": (0, 1, 2, 3), "channels last": (0, 2, 3, 1), "transposed": (0, 1, 3, 2)}
WORST = 3.0  # times the plain call; beyond that a call is a cliff

FLOW = nf.Schedule.flow(1000)
POLICY = nf.samplers.flow_sde(FLOW, steps=10).tableau
DDIM = nf.samplers.ddim(FLOW, steps=10, prediction="flow").tableau
N = nf.Noise(7)
MODULES = (nf, nf.augment, nf.density, nf.fields)


def _array(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return np.random.default_rng(0).random(shape, np.float32).astype(dtype)


# The plain argument for a parameter of each name, from the shape of x. Names that are missing here have a default.
ARGUMENTS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    **dict.fromkeys(("x", "x0", "x1", "pred", "model_output", "reference", "x_next"), _array),
    "x_t": _array,
    "shape": lambda shape: shape,
    "noise": lambda shape: N,
    "t": lambda shape: 300,
    "schedule": lambda shape: FLOW,
    "table": lambda shape: POLICY,
    "i": lambda shape: 3,
    "target": lambda shape: "v",
    "path": lambda shape: nf.paths.linear(),
    "alpha": lambda shape: 0.8,
    "sigma": lambda shape: 0.6,
    "std": lambda shape: 0.25,
    "snr": lambda shape: 20.0,
    "snr_db": lambda shape: 20.0,
    "a": lambda shape: 0.01,
    "b": lambda shape: 0.1,
    "gain": lambda shape: 0.01,
    "strength": lambda shape: 0.1,
    "discount": lambda shape: 0.7,
}
# Of a function whose plain call is another one.
OF: dict[str, dict[str, Callable[[tuple[int, ...]], Any]]] = {
    "interpolate": {"t": lambda shape: 0.3},
    "interpolate_loss": {"t": lambda shape: 0.3, "target": lambda shape: "velocity"},
    "interpolate_loss_and_grad": {"t": lambda shape: 0.3, "target": lambda shape: "velocity"},
    "update": {"table": lambda shape: DDIM, "model_output": _array},
}
# These are no passes over an array of floats, or have plain calls that say nothing about their spellings.
LEFT_OUT = {
    "audit", "get_include", "info", "set_num_threads", "use_backend", "philox4x32", "combine", "combine_categories",
    "rms", "sample_id", "strengths", "by_level", "categorical", "masked_cross_entropy", "masked_cross_entropy_and_grad",
    "q_mask", "q_transition", "q_uniform", "poisson", "transition", "prepare", "nearest_of", "assigned", "perturbed",
    "freenoise_like", "progressive_like", "q_walk", "Part",
}  # fmt: skip


def _spelled(x: Any) -> Iterator[tuple[str, Any]]:
    """Other arrays with the numbers of x."""
    wide = np.repeat(x, 2, axis=-1)
    yield "strided", wide[..., ::2]
    yield "Fortran order", np.asfortranarray(x)
    yield "swapped bytes", x.astype(x.dtype.newbyteorder())


SPELLINGS: dict[str, Callable[[Any, tuple[int, ...]], Iterator[tuple[str, Any]]]] = {
    **dict.fromkeys(("x", "x0"), lambda x, shape: _spelled(x)),
    "t": lambda t, shape: iter(
        [
            ("NumPy's integer", np.int64(t)), ("a list", [t] * shape[0]), ("an array", np.full(shape[0], t)),
            ("int32", np.full(shape[0], t, np.int32)), ("a float", 0.3), ("floats", np.full(shape[0], 0.3)),
        ]
        if isinstance(t, int)
        else [("an array", np.full(shape[0], t)), ("float32", np.full(shape[0], t, np.float32))]
    ),
    "i": lambda i, shape: iter([("NumPy's integer", np.int64(i)), ("an array", np.full(shape[0], i))]),
    "noise": lambda noise, shape: iter(
        [
            ("a list", [noise] * shape[0]), ("ids", noise.at(sample=np.arange(shape[0]))),
            ("another step", noise.at(step=5)),
        ]
    ),
    "std": lambda std, shape: iter([("an integer", 1), ("float32", np.float32(std)), ("(B,)", np.full(shape[0], std))]),
    "alpha": lambda alpha, shape: iter([("(B,)", np.full(shape[0], alpha))]),
}  # fmt: skip
OPTIONS: dict[str, Callable[[tuple[int, ...]], Iterator[tuple[str, Any]]]] = {
    "out": lambda shape: iter([("out=", np.empty(shape, np.float32))]),
    "batched": lambda shape: iter([("batched=False", False)]),
    "reduction": lambda shape: iter([('reduction="none"', "none")]),
}


@dataclass(frozen=True)
class Measured:
    """A call, and its time over that of its plain sibling. Of a large one, the times are those of an element, and there
    is a second ratio, to NumPy's copy of as many bytes."""

    function: str
    spelling: str
    ratio: float
    seconds: float
    over_copy: float | None = None

    @property
    def name(self) -> str:
        return f"{self.function}, {self.spelling}"


def functions() -> dict[str, Callable[..., Any]]:
    """The public functions that are measured, by their names below noisefuse."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        prefix = "" if module is nf else f"{module.__name__.rpartition('.')[2]}."
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and name not in LEFT_OUT:
                found[prefix + name] = value
    return found


def arguments(name: str, function: Callable[..., Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The plain arguments. KeyError: a parameter without a default, whose name is not in `ARGUMENTS`."""
    makes = {
        parameter.name: ARGUMENTS[parameter.name]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    return {parameter: make(shape) for parameter, make in (makes | OF.get(name, {})).items()}


def spellings(
    function: Callable[..., Any], plain: Mapping[str, Any], shape: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    """(spelling, arguments): each has one argument spelled otherwise than the plain call."""
    for name, value in plain.items():
        if name in SPELLINGS:
            for spelling, other in SPELLINGS[name](value, shape):
                yield f"{name}: {spelling}", {**plain, name: other}
    for name in inspect.signature(function).parameters:
        if name in OPTIONS:
            for spelling, other in OPTIONS[name](shape):
                yield spelling, {**plain, name: other}


def least(call: Callable[[], Any], seconds: float = 0.02) -> float:
    """The time of the quickest of many calls, of this thread alone."""
    begin = time.thread_time()
    call()
    repeats = max(1, int(1e-3 / max(time.thread_time() - begin, 1e-7)))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.thread_time()
        for _ in range(repeats):
            call()
        best = min(best, (time.thread_time() - begin) / repeats)
    return best


def small_calls(seconds: float, only: str | None = None) -> Iterator[Measured]:
    """Every function, or this one, in every spelling, on a small array."""
    chosen = functions() if only is None else {only: functions()[only]}
    for name, function in chosen.items():
        plain = arguments(name, function, SMALL)
        unit = least(lambda: function(**plain), seconds)  # noqa: B023, it is called at once
        for spelling, given in spellings(function, plain, SMALL):
            try:
                function(**given)
            except (TypeError, ValueError, NotImplementedError):  # this function does not take it
                continue
            found = least(lambda: function(**given), seconds)  # noqa: B023
            yield Measured(name, spelling, found / unit, found)


def large_calls(seconds: float, only: str | None = None) -> Iterator[Measured]:
    """Every function of an array, or this one, in every dtype, layout and size. A layout's plain sibling is the same
    call in C's order, a larger array's is the smaller one, and a dtype's float32."""
    chosen = functions() if only is None else {only: functions()[only]}
    for name, function in chosen.items():
        found: dict[tuple[str, str, int], float] = {}
        for size, dtype, layout in itertools.product(range(len(LARGE)), DTYPES, LAYOUTS):
            shape, axes = LARGE[size], LAYOUTS[layout]
            plain = arguments(name, function, shape)
            arrays = {argument: x for argument, x in plain.items() if isinstance(x, np.ndarray)}
            laid = {argument: _laid(x.astype(dtype), axes) for argument, x in arrays.items()}
            n = math.prod(shape)
            try:
                function(**{**plain, **laid})
            except (TypeError, ValueError, NotImplementedError):  # no function of an array of this dtype
                continue
            if not laid:
                continue
            taken = least(lambda: function(**{**plain, **laid}), seconds) / n  # noqa: B023
            found[dtype, layout, size] = taken
            sibling = (
                dtype if layout != "C order" or size else "float32",
                "C order",
                size if layout != "C order" else 0,
            )
            source = np.ones(n * sum(x.itemsize for x in laid.values()), np.uint8)
            target = np.empty_like(source)
            copy = least(lambda: np.copyto(target, source), seconds) / n  # noqa: B023
            if sibling in found:
                spelling = f"{dtype}, {layout}, {shape}"
                yield Measured(name, spelling, taken / found[sibling], taken, taken / copy)


def _laid(x: Any, axes: tuple[int, ...]) -> Any:
    """Returns x, with these axes in memory from the slowest one."""
    return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))


def run(seconds: float) -> None:
    """Prints the tables, the worst calls last."""
    with nf.set_num_threads(1):
        small, large = ([*calls(seconds)] for calls in (small_calls, large_calls))
    print(f"# noisefuse {nf.__version__}: times over the plain call's; {SMALL}, one thread")
    for one in sorted(small, key=lambda one: one.ratio):
        print(*wrapped([f"{one.ratio:6.1f}  {1e6 * one.seconds:8.1f} us  {one.name}{_mark(one)}"]), sep="\n")
    print("\n# an element's time over the plain sibling's, and over NumPy's copy of the bytes")
    for one in sorted(large, key=lambda one: one.ratio):
        line = f"{one.ratio:6.1f}  {one.over_copy:6.1f}  {1e9 * one.seconds:8.2f} ns  {one.name}{_mark(one)}"
        print(*wrapped([line]), sep="\n")


def _mark(one: Measured) -> str:
    return "  <- cliff" if is_cliff(one) else ""


def is_cliff(one: Measured) -> bool:
    """Tells whether the call takes more than `WORST` times its sibling, and as many copies, without a reason."""
    slow = one.ratio > WORST and (one.over_copy is None or one.over_copy > WORST)
    return slow and not any(fnmatchcase(one.name, pattern) for pattern in EXCEPTIONS)


# Calls that are worse, and why.
_TURNED = "an element of these takes 0.1 to 0.3 ns in C's order, and to turn it 0.1 ns from the caches, 0.5 from memory"
EXCEPTIONS: dict[str, str] = {
    "augment.gaussian, std: (B,)": "its rows are made in Python, 8 us",
    "augment.multiplicative, std: (B,)": "its rows are made in Python, 6 us",
    "augment.sensor, float64, C order, *": "float64's normals take 2.7 times float32's, its roots 4 times",
    "augment.at_snr, *, channels last, *": "the pass that finds the signal's power makes its own copies",
    "augment.at_snr, *, transposed, *": "the pass that finds the signal's power makes its own copies",
    **{
        f"{function}, *, {layout}, *": _TURNED
        for function in ("update", "interpolate", "interpolate_loss", "mse_loss_grad", "density.*")
        for layout in ("channels last", "transposed")
    },
}
