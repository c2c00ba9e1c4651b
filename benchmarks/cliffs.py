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
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

import noisefuse as nf
from noisefuse.commands.shared import wrapped

SMALL = (4, 16, 8)
LARGE = ((4, 16, 16, 16), (4, 64, 64, 64))
LENGTHS = (256, 7, 65, 129, 300)  # of samples or rows, about 2^14 elements in all; the first is the plain one
C = "C order"
LAYOUTS = (C, "channels last", "transposed")
DTYPES = {"f": ("float32", "float16", "float64", "uint8"), "i": ("int64", "int32", "uint8"), "u": ("uint8", "float32")}
WORST = 3.0  # times the plain call; beyond that a call is a cliff
WORST_NEAR = 2.0  # the same of a layout, a size, a length or a value, for an element

FLOW = nf.Schedule.flow(1000)
POLICY = nf.samplers.flow_sde(FLOW, steps=10).tableau
DDIM = nf.samplers.ddim(FLOW, steps=10, prediction="flow").tableau
N = nf.Noise(7)
WALK = nf.Schedule.linear(5)
CHANGES = 0.9 * np.eye(256) + 0.1 / 256
MODULES = (nf, nf.augment, nf.density, nf.fields, nf.weights)

Make: TypeAlias = Callable[[tuple[int, ...]], Any]


def _array(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return np.random.default_rng(0).random(shape, np.float32).astype(dtype)


def _levels(shape: tuple[int, ...]) -> Any:
    return (255 * _array(shape)).astype(np.uint8)


def _ids(shape: tuple[int, ...]) -> Any:
    return (50 * _array(shape)).astype(np.int64)


def _logits(shape: tuple[int, ...]) -> Any:
    """Two axes are the rows and the vocabulary; otherwise there are four rows."""
    rows = shape if len(shape) == 2 else (4, math.prod(shape) // 4)
    return 2 * np.random.default_rng(0).standard_normal(rows, np.float32)


def _confident(shape: tuple[int, ...]) -> Any:
    logits = _logits(shape)
    logits[:, 5] = logits.max() + 6
    return logits


def _flat(shape: tuple[int, ...]) -> Any:
    return 1e-3 * _logits(shape)


# The plain argument for a parameter of each name, from the shape of x. Names that are missing here have a default.
ARGUMENTS: dict[str, Make] = {
    **dict.fromkeys(("x", "x0", "x1", "pred", "model_output", "reference", "x_next", "x_t"), _array),
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
    "amount": lambda shape: 0.05,
    "snr": lambda shape: 20.0,
    "slope": lambda shape: -3.0,
    "a": lambda shape: 0.01,
    "b": lambda shape: 0.1,
    "strength": lambda shape: 0.1,
    "discount": lambda shape: 0.7,
    "gamma": lambda shape: 0.1,
    "peak": lambda shape: 30.0,
    "corruption": lambda shape: "gaussian_noise",
    "severity": lambda shape: 1,
    "matrix": lambda shape: CHANGES,
    "mean_table": lambda shape: np.arange(256.0),
    "std_table": lambda shape: np.full(256, 10.0),
    "images": lambda shape: _levels((*shape, 1, 1)[:4]),
    "ids": _ids,
    "logits": _logits,
    "p": lambda shape: 0.5,
    "mask_id": lambda shape: 50,
    "vocabulary": lambda shape: 50,
    "Q": lambda shape: nf.discrete.uniform(0.5, 50),
    "k": lambda shape: 4,
    "n": lambda shape: shape[0],
    "low": lambda shape: 5.0,
    "high": lambda shape: 20.0,
    "other": lambda shape: "epsilon",
    "row": lambda shape: np.ones(1000),
    "u": lambda shape: np.full(shape[0], 0.3),
    "counter": lambda shape: np.zeros(4, np.uint32),
    "key": lambda shape: np.zeros(2, np.uint32),
}
_OF_BYTES: dict[str, Make] = {"x": _levels}
_OF_PATHS: dict[str, Make] = {"t": lambda shape: 0.3}
_OF_VELOCITY: dict[str, Make] = _OF_PATHS | {"target": lambda shape: "velocity"}
_OF_ROWS: dict[str, Make] = {"ids": lambda shape: np.zeros(_logits(shape).shape[0], np.int64)}
_OF_RATES = _OF_ROWS | {"x_t": lambda shape: np.ones(_logits(shape).shape[0], np.int64), "p": lambda shape: 0.5}
_OF_NOISE: dict[str, Make] = {"noise": lambda shape: N}
_TOP_K: dict[str, Make] = {"top_k": lambda shape: 5}
_TOP_P: dict[str, Make] = {"top_p": lambda shape: 0.9}
_COLD: dict[str, Make] = {"temperature": lambda shape: 0.2}
# Of a function whose plain call is another one. A name with a comma is one more case of the function before it. One of
# `VALUES` does the same with other values: its plain sibling is the case before the last comma.
VALUES = ("temperature 0", "confident", "flat")
OF: dict[str, dict[str, Make]] = {
    "interpolate": _OF_PATHS,
    "interpolate, velocity": _OF_VELOCITY,
    **{
        f"interpolate, {name}": _OF_PATHS | _OF_NOISE | {"path": lambda shape, path=path: path}
        for name, path in {
            "a bridge": nf.paths.brownian_bridge(), "a conditional flow": nf.paths.conditional_flow(0.1),
            "encoder and decoder": nf.paths.encoder_decoder(), "I2SB": nf.paths.i2sb(),
            "stochastic": nf.paths.stochastic(),
        }.items()
    },
    "interpolate, variance preserving": _OF_PATHS | {"path": lambda shape: nf.paths.variance_preserving()},
    "interpolate_loss": _OF_VELOCITY,
    "interpolate_loss_and_grad": _OF_VELOCITY,
    "update": {"table": lambda shape: DDIM, "model_output": _array},
    "update, noise": {"table": lambda shape: POLICY} | _OF_NOISE,
    "q_walk": {"schedule": lambda shape: WALK, "keep": lambda shape: [4]},
    "masked_cross_entropy": _OF_ROWS,
    "masked_cross_entropy_and_grad": _OF_ROWS,
    "rate_loss": _OF_RATES,
    "rate_loss_and_grad": _OF_RATES,
    "categorical, temperature 0": {"temperature": lambda shape: 0.0},
    "categorical, confident": {"logits": _confident},
    "categorical, flat": {"logits": _flat},
    "categorical, top_k": _TOP_K,
    "categorical, top_k, confident": _TOP_K | _COLD | {"logits": _confident},
    "categorical, top_k, flat": _TOP_K | {"logits": _flat},
    "categorical, top_p": _TOP_P,
    "categorical, top_p, confident": _TOP_P | _COLD | {"logits": _confident},
    "categorical, top_p, flat": _TOP_P | {"logits": _flat},
    "augment.poisson": _OF_BYTES,
    "augment.transition": _OF_BYTES,
    "augment.by_level": _OF_BYTES,
}  # fmt: skip
# These are no passes over arrays: they set or tell what holds for the process, or take what another call returned.
LEFT_OUT = {
    "audit", "get_include", "info", "set_num_threads", "use_backend", "sample_id", "combine", "Part",
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
    worst: float = WORST

    @property
    def name(self) -> str:
        return f"{self.function}, {self.spelling}"


def functions() -> dict[str, Callable[..., Any]]:
    """The public functions that are measured, by their names below noisefuse, and the further cases of `OF`."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        prefix = "" if module is nf else f"{module.__name__.rpartition('.')[2]}."
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and name not in LEFT_OUT:
                found[prefix + name] = value
    return found | {name: found[name.partition(",")[0]] for name in OF if "," in name}


def cases_of(only: str | None) -> dict[str, Callable[..., Any]]:
    """All functions, or this one, with their further cases."""
    return {name: call for name, call in functions().items() if only in (None, name.partition(",")[0])}


def arguments(name: str, function: Callable[..., Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The plain arguments. KeyError: a parameter without a default, whose name is not in `ARGUMENTS`."""
    makes = {
        parameter.name: ARGUMENTS[parameter.name]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    makes |= OF.get(name.partition(",")[0], {}) | OF.get(name, {})
    return {parameter: make(shape) for parameter, make in makes.items()}


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
    for name, function in cases_of(only).items():
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
    """Every function of an array, or this one, and its further cases, in every place. The plain sibling of other
    values in the first place is the case without them."""
    found: dict[tuple[str, Place], float] = {}
    copy = cache(partial(_copied, seconds))
    for name, function in cases_of(only).items():
        for place, sibling in _places(name, function):
            shape, dtype, layout = place
            plain = arguments(name, function, shape)
            n = math.prod(shape)
            arrays = {given: x for given, x in plain.items() if isinstance(x, np.ndarray) and x.size == n}
            laid = {given: _laid(x.astype(dtype), layout) for given, x in arrays.items()}
            if len(shape) == 2 and "t" in plain:
                plain["t"] = np.full(shape[0], plain["t"])
            call = partial(function, **(plain | laid))
            try:
                call()
            except (TypeError, ValueError, NotImplementedError):  # no function of an array of this dtype
                continue
            taken = found[name, place] = least(call, seconds) / n
            before, _, last = name.rpartition(", ")
            plainer = (before if place == sibling and last in VALUES else name, sibling)
            if plainer in found and plainer != (name, place):
                nbytes = sum(x.nbytes for x in laid.values())
                ratio, over_copy = taken / found[plainer], taken * n / copy(nbytes)
                worst = WORST_NEAR if dtype == sibling[1] else WORST
                yield Measured(name, f"{dtype}, {layout}, {shape}", ratio, taken, over_copy, worst)


Place: TypeAlias = tuple[tuple[int, ...], str, str]  # a shape, a dtype and a layout


def _places(name: str, function: Callable[..., Any]) -> Iterator[tuple[Place, Place]]:
    """Places to call a function of an array in, each with its plain sibling: a layout's is C's order, a larger array's
    the smaller one, a dtype's the first one, and a length's the first one."""
    given = arguments(name, function, LARGE[0]).values()
    of = [x.dtype.kind for x in given if isinstance(x, np.ndarray) and x.size == math.prod(LARGE[0])]
    dtypes = DTYPES[of[0]] if of else ()
    for shape, dtype, layout in itertools.product(LARGE, dtypes, LAYOUTS):
        first = dtypes[0] if shape == LARGE[0] else dtype
        yield (shape, dtype, layout), (shape, dtype, C) if layout != C else (LARGE[0], first, C)
    if of and not name.startswith("fields."):  # those are of images
        shapes = [(math.prod(LARGE[0]) // length, length) for length in LENGTHS]
        yield from (((shape, dtypes[0], C), (shapes[0], dtypes[0], C)) for shape in shapes)


def _copied(seconds: float, nbytes: int) -> float:
    """The time of NumPy's copy."""
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)
    return least(lambda: np.copyto(target, source), seconds)


def _laid(x: Any, layout: str) -> Any:
    """Returns x in this layout, of as many axes as it has."""
    axes = {"channels last": (0, *range(2, x.ndim), 1), "transposed": (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)}
    order = axes.get(layout, range(x.ndim))
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


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
    """Tells whether the call takes more than `worst` times its sibling, and `WORST` copies, without a reason."""
    slow = one.ratio > one.worst and (one.over_copy is None or one.over_copy > WORST)
    return slow and not any(fnmatchcase(one.name, pattern) for pattern in EXCEPTIONS)


# Calls that are worse, and why.
_COPIED = "few elements are copied first, 0.15 ns an element, which takes 0.1 to 0.3 in C's order"
_HALVES = "an element of float16 takes 0.1 ns in C's order, and to turn it as long"
_FAR = "both results are turned to C's order in memory, whose lines are read before they are written"
_RESIDUALS = "an element takes 0.2 ns in C's order, and to store its residual and to turn it as long"
_TOKENS = "a token takes 0.7 ns in C's order, and to turn its eight bytes as long"
_A_ROW = "a row of logits has up to a thousand instructions of its own, whatever its length"
EXCEPTIONS: dict[str, str] = {
    "categorical*, (2340, 7)": _A_ROW,
    "categorical*, (252, 65)": _A_ROW,
    "masked_cross_entropy*, (2340, 7)": _A_ROW,
    "masked_cross_entropy*, (252, 65)": _A_ROW,
    "augment.gaussian, std: (B,)": "its rows are made in Python, 8 us",
    "augment.multiplicative, std: (B,)": "its rows are made in Python, 6 us",
    "augment.sensor, float64, C order, *": "float64's normals take 2.7 times float32's, its roots 4 times",
    "augment.at_snr, *, channels last, *": "the pass that finds the signal's power makes its own copies",
    "augment.at_snr, *, transposed, *": "the pass that finds the signal's power makes its own copies",
    "interpolate, velocity, float32, *, (4, 64, 64, 64)": _FAR,
    "density.kl, float32, transposed, (4, 64, 64, 64)": _RESIDUALS,
    "q_mask, int64, *, (4, 64, 64, 64)": _TOKENS,
    **{
        f"{function}, {place}": why
        for function in ("update", "interpolate*", "density.*")
        for layout in LAYOUTS[1:]
        for place, why in ((f"*, {layout}, {LARGE[0]}", _COPIED), (f"float16, {layout}, {LARGE[1]}", _HALVES))
    },
}
