# SPDX-License-Identifier: Apache-2.0
"""Random calls of the public operations as lines of Python, and the functions that these lines use."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf
from noisefuse.arguments.arrays import float_dtype
from noisefuse.language.levels import FLOATS, LEVELS
from noisefuse.language.rows import COLUMNS, NAMES, ROW
from noisefuse.tokens.samplers import __all__ as OF_TOKENS

T = TypeVar("T")
Array = NDArray[Any]
Shape = tuple[int, ...]

# ------------------------------------------------------------------------------------ the functions of the lines

# All arrays that `in_layout` has returned since the list was emptied, and their contents then.
made: list[tuple[Array, Array]] = []
# Functions that turn such an array into another library's, in random_calls.py.
handed_over: list[Callable[[Array], Any]] = []


def array(shape: Shape, dtype: str = "float32", seed: int = 0, layout: str = "plain") -> Any:
    """Returns an array in one of LAYOUTS: normals for an even seed, any bits for an odd one."""
    kind = float_dtype(dtype) if dtype in FLOATS else np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if kind.kind in "iu" or seed % 2:
        values = np.frombuffer(bytearray(rng.bytes(math.prod(shape) * kind.itemsize)), kind).reshape(shape)
    else:
        values = rng.standard_normal(shape).astype(kind).reshape(shape)
    return in_layout(values, layout)


def in_layout(values: Array, layout: str) -> Any:
    """Returns an array of these values in one of LAYOUTS."""
    memory, view = LAYOUTS[layout](values)
    made.append((memory, memory.copy()))
    return handed_over[-1](view) if handed_over else view


def _strided(x: Array) -> tuple[Array, Array]:
    wide = np.zeros((*x.shape, 3), x.dtype)
    wide[..., 1] = x
    return wide, wide[..., 1]


def _unaligned(x: Array) -> tuple[Array, Array]:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return memory, view


def _read_only(x: Array) -> tuple[Array, Array]:
    view = x.view()
    view.flags.writeable = False
    return x, view


def _swapped(x: Array) -> tuple[Array, Array]:
    y = x if x.dtype.kind == "V" else x.astype(x.dtype.newbyteorder())
    return y, y


# Functions from an array to the memory that holds it in that layout, and the array there.
LAYOUTS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "plain": lambda x: (x, x),
    "transposed": lambda x: ((y := x.copy(order="F")), y),
    "reversed": lambda x: ((y := np.flip(x).copy()), np.asarray(np.flip(y))),
    "strided": _strided,
    "broadcast": lambda x: (x, np.broadcast_to(x[..., :1], x.shape) if x.ndim and x.size else x),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "swapped": _swapped,
}


def times(shape: Shape, end: float, seed: int = 0, dtype: str = "int64") -> Array:
    """Returns numbers in [0, end), as times, rows, weights or sample ids."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return np.asarray(rng.random(shape) * end, dtype)
    return np.asarray(rng.integers(int(end), size=shape, dtype=np.uint64), dtype)


@cache
def table(seed: int, density: float) -> nf.Tableau:
    """Returns five random rows, each column active with this probability, with clamps in some rows."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(5, COLUMNS)) * (rng.random((1, COLUMNS)) < density)
    rows = numbers.view(ROW)[:, 0].copy()
    rows["clean"]["lo"] = np.where(rng.random(5) < 0.5, -np.inf, -rng.random(5))
    rows["clean"]["hi"] = np.where(rng.random(5) < 0.5, np.inf, rng.random(5))
    return nf.Tableau(rows)


def hostile(seed: int, masked: bool = False, stored: bool = False) -> nf.Tableau:
    """Returns five rows like those of a forged table, from the constructor or from JSON: senseless numbers, inactive
    columns marked active, outputs that rows push and do not compute. Many are refused."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(5, COLUMNS)) * (rng.random((1, COLUMNS)) < rng.choice([0.1, 0.5, 1.0]))
    rows = numbers.view(ROW)[:, 0]
    rows["clean"]["lo"], rows["clean"]["hi"] = rng.choice([-np.inf, -0.5], 5), rng.choice([np.inf, 0.5], 5)
    if masked and rng.random() < 0.7:  # as `transpose` makes them
        rows["out"]["d"] = rows["aux1"]["d"] = 0
        rows["aux2"] = np.zeros((), ROW["aux2"])
    if rng.random() < 0.3:
        senseless = [np.nan, np.inf, -np.inf, 1e300, -1e300, 5e-324, -0.0]
        numbers[rng.integers(5), rng.integers(COLUMNS)] = rng.choice(senseless)
    options: dict[str, Any] = {"masked": masked}
    for name in ("push", "denoised"):
        if rng.random() < 0.05:
            options[name] = rng.integers(4, size=5).tolist()
    if rng.random() < 0.05:
        options["threshold"] = (float(rng.choice([0.9, 2.0])), float(rng.choice([1.0, 0.0])))
    active = (rng.random(COLUMNS) < 0.5).view(nf.Tableau(rows[:0]).active.dtype)[0] if rng.random() < 0.3 else None
    if not stored:
        return nf.Tableau(rows, active=active, **options)
    text = [[number if math.isfinite(number) else str(number) for number in row] for row in numbers.tolist()]
    options |= {} if active is None else {"active": active.tolist()}
    fields = {"noisefuse tableau": 1, "columns": NAMES, "rows": text, **options}
    return nf.Tableau.from_json(json.dumps(fields))


LINEAR = nf.Schedule.linear()
COSINE = nf.Schedule.cosine(50)
FLOW = nf.Schedule.flow(50, shift=3.0)
KARRAS = nf.Schedule.karras(50)
SHORT = nf.Schedule([0.75, 0.5, 0.0], [0.5, 1.0, 3.0])
SCHEDULES = {"LINEAR": LINEAR, "SHORT": SHORT, "COSINE": COSINE, "FLOW": FLOW, "KARRAS": KARRAS}


@cache
def sampler(name: str, clip: float | nf.samplers.Threshold | None = None) -> nf.Sampler:
    """Returns a sampler of five steps, on a schedule that it takes."""
    schedule = FLOW if name.startswith("flow") or name in ("dance_sde", "rk4") else KARRAS if name == "edm" else LINEAR
    options = {} if clip is None else {"clip": clip}
    found: nf.Sampler = getattr(nf.samplers, name)(schedule, 5, **options)
    return found


def step(sampler: nf.Sampler, i: int, x: Array, model_output: Any, noise: Any, **options: Any) -> tuple[Any, ...]:
    """Runs row i of a sampler after its first i steps on x. Returns the result, and the remembered arrays."""
    state = sampler.state(x)
    pair = sampler.tableau.name.endswith("cfg_pp")
    for before in range(i if state.past else 0):
        sampler.step(before, x, (x, x) if pair else x, nf.Noise(0), state, guidance_scale=1.0 if pair else None)
    made = sampler.step(i, x, model_output, noise, state, **options)
    return *(made if isinstance(made, tuple) else (made,)), *state.past


def sampled(sampler: nf.Sampler, x_or_shape: Any, noise: Any, **options: Any) -> Any:
    """Runs a whole run with a network that answers at once."""
    if not sampler.tableau.name.endswith("cfg_pp"):
        return sampler.sample(lambda x, t: x - x * x, x_or_shape, noise, **options)
    return sampler.sample(lambda x, t: (x, x - x * x), x_or_shape, noise, guidance_scale=1.5, **options)


# --------------------------------------------------------------------------------------------- random numbers


class Draw:
    """Numbers below an end, 0 the simplest: first the given ones, then random ones or, without `random`, 0.

    `taken` holds all numbers so far: given to another Draw, they make the same call again.
    """

    given: list[int]
    random: Random | None
    taken: list[int]

    def __init__(self, given: list[int] | None = None, random: Random | None = None) -> None:
        self.given, self.random, self.taken = given or [], random, []

    def __call__(self, end: int) -> int:
        k = len(self.taken)
        if k < len(self.given):
            number = self.given[k] % max(1, end)
        else:
            number = self.random.randrange(max(1, end)) if self.random else 0
        self.taken.append(number)
        return number

    def of(self, *options: T) -> T:
        return options[self(len(options))]

    def once_in(self, n: int) -> bool:
        return self(n) == n - 1

    def edge(self, end: int) -> int:
        """Returns a number below end, most often one of the ends."""
        return self.of(0, 1, end - 1, end // 2, self(end))


# ----------------------------------------------------------------------------------------------------- a call


@dataclass
class Call:
    """A function and its arguments, all as text."""

    function: str
    required: dict[str, str]
    options: dict[str, str]

    def __str__(self) -> str:
        return f"{self.function}({', '.join([*self.required.values(), *map('='.join, self.options.items())])})"

    def argument(self, name: str, text: str) -> None:
        (self.required if name in self.required else self.options)[name] = text


KINDS = FLOATS if importlib.util.find_spec("ml_dtypes") else FLOATS[:-1]
ARRAY_SAMPLERS = sorted({*nf.samplers.__all__} - {"Threshold", *OF_TOKENS})
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 127, 255, 256, 257, 1000, 2049)
TARGETS = ("'epsilon'", "'v'", "'flow'", "'velocity'", "'sample'")
WRONG = (
    "None", "-1", "True", "1.5", "'x'", "10**30", "float('nan')", "()", "[]", "[1, 2]", "{}", "object", "b'12'",
    "np.float32(3)", "np.array(2)", "np.array(['a'])", "np.ones((2, 3))", "array((2, 3))", "array((2, 3), 'int32')",
    "np.ma.masked_array(array((2, 3)))", "nf.Noise(1)", "nf.Noise(1, stream=9)", "nf.Noise(1, step=2**32 - 1)",
    "nf.Noise(1, sample=[1, 2])", "[nf.Noise(1), 2]", "nf.Noise(1).window((9,), (1,))", "'int32'", "'float32'",
    "LINEAR", "table(0, 0.5)", "(array((2, 3)), array((2, 3)), array((2, 3)))", "'mean'", "'none'", "'v'",
)  # fmt: skip


def random_call(draw: Draw, makers: Sequence[Callable[[Draw], Call]]) -> str:
    """Returns a line that one of these functions makes."""
    call = draw.of(*makers)(draw)
    while draw.once_in(6):  # add an error
        call.argument(draw.of(*call.required, *call.options, "out"), draw.of(*WRONG))
    return str(call)


def operation(text: str) -> str:
    before, _, call = text.partition("lambda y: ")
    return f"raced {operation(call)}" if call else before.partition("(")[0].removeprefix("nf.")


def _shape(draw: Draw) -> Shape:
    kind = draw(200)
    if kind < 100:
        return tuple([draw.of(1, 2, 3, 5, 8, 4, 7, 9, 6, 1, 3, 0) for _ in range(draw(5))])
    if kind < 160:
        return draw.of(1, 2, 3, 1, 2, 3, 4, 0), draw.of(*LENGTHS)
    return (1 + draw(300), draw.of(1, 2, 3, 4, 5, 0)) if kind < 199 else (1 + draw(3), 33000 + draw(7000))


def _array(draw: Draw, shape: Shape, dtype: str, layouts: tuple[str, ...] = ("plain", *LAYOUTS)) -> str:
    seed, layout = draw(1000), draw.of(*layouts)
    rest = f", {seed}, {layout!r}" if layout != "plain" else f", {seed}" if seed else ""
    return f"array({shape}, {dtype!r}{rest})"


def _noise(draw: Draw, shape: Shape, batched: bool, dtype: str = "", stream: bool = True, windows: bool = True) -> str:
    """Returns a Noise, a list of them or, if there is a dtype, an array."""
    rows, sample = (shape[0], shape[1:]) if batched and shape else (1, shape)
    if dtype and draw.once_in(5):
        return _array(draw, shape, draw.of(dtype, "float32"))
    if rows < 6 and draw.once_in(5):
        return f"[{', '.join(_name(draw, 1, sample, stream, windows) for _ in range(rows))}]"
    return _name(draw, rows, sample, stream, windows)


def _name(draw: Draw, rows: int, sample: Shape, stream: bool, windows: bool = True) -> str:
    numbers = {"sample": str(draw.edge(2**56 - rows)), "step": str(draw.edge(2**32 - 1000))}
    if draw.once_in(4):
        numbers["sample"] = f"times(({rows},), 2**56, {draw(99)}, 'uint64')"
    if stream and draw.once_in(4):
        numbers["stream"] = str(draw(128))
    text = ", ".join(
        [str(draw.edge(2**64)), *(f"{name}={number}" for name, number in numbers.items() if number != "0")]
    )
    if not windows or not draw.once_in(4):
        return f"nf.Noise({text})"
    start = tuple([draw(4) for _ in sample])
    whole = tuple([s + n + draw(3) for s, n in zip(start, sample, strict=True)])
    return f"nf.Noise({text}).window({whole}, {start})"


def _times(draw: Draw, shape: Shape, end: int, continuous: bool) -> tuple[str, Shape | None]:
    """Returns t, and its shape if it holds floats."""
    if continuous and draw.once_in(2):
        part = shape[: draw(len(shape) + 1)]
        dtype = draw.of("float64", "float32")
        return (f"times({part}, 1.0, {draw(99)}, {dtype!r})", part) if part else (str(draw(100) / 100), ())
    kind = draw(30)
    if kind < 14:
        number, kind_of = str(draw(end)), draw.of("", "", "np.int64", "np.uint16")
        return f"{kind_of}({number})" if kind_of else number, None
    if kind == 29:
        return str(draw.of(end, -1)), None
    dtype = draw.of("int64", "int32", "uint8", "uint64", "int16")
    text = f"times({shape[: draw(len(shape) + 1)]}, {min(end, 256)}, {draw(99)}, {dtype!r})"
    return text + draw.of("", "", ".tolist()", "[..., None][..., 0]"), None


def _write_to(draw: Draw, call: Call, name: str, shape: Shape, dtype: str, source: str = "") -> None:
    """Adds an output, or none: a new array, one of the inputs, a part of one, or a wrong one."""
    kind = draw(24)
    if kind < 10:
        return
    if kind < 17:
        call.options[name] = _array(draw, shape, dtype, ("plain",))
    elif kind == 17:
        call.options[name] = _array(draw, shape, dtype)
    elif kind == 18:
        call.options[name] = _array(draw, shape[: draw(len(shape) + 1)], draw.of(*KINDS))
    elif source and kind < 23:
        call.argument(source, f"(x := {call.required[source]})")
        call.options[name] = "x"
    elif source and shape:
        call.argument(source, f"(x := {_array(draw, (shape[0] + 1, *shape[1:]), dtype, ('plain',))})[1:]")
        call.options[name] = "x[:-1]"


def _may(draw: Draw, call: Call, name: str, *texts: str, once_in: int = 3) -> None:
    if draw.once_in(once_in):
        call.options[name] = draw.of(*texts)


def _batched(draw: Draw, call: Call) -> bool:
    _may(draw, call, "batched", "False", once_in=4)
    return "batched" not in call.options


# ------------------------------------------------------------------------------------------------ the operations


def _drawn(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS)
    call = Call(draw.of("nf.randn", "nf.uniform"), {"shape": str(shape)}, {})
    batched = _batched(draw, call)
    call.required["noise"] = _noise(draw, shape, batched)
    if call.function == "nf.randn" and draw.once_in(9):
        call.required["noise"] = _increment(draw, shape, batched)
    if dtype != "float32" or draw.once_in(3):
        call.options["dtype"] = draw.of(repr(dtype), f"np.dtype({dtype!r})")
    _write_to(draw, call, "out", shape, dtype)
    return call


def _increment(draw: Draw, shape: Shape, batched: bool) -> str:
    """Returns an increment of Brownian motion: one for all rows, or one for each."""
    rows, sample = (shape[0], shape[1:]) if batched and shape else (1, shape)
    grid, span = ", grid=[0.0, 0.25, 0.5, 0.75, 1.0]", f", span=({draw.of(0.0, -1.0, 0.5)}, {draw.of(1.0, 2.5)})"

    def one(rows: int) -> str:
        times = f"{draw(9) / 8}, {draw(9) / 8}{draw.of('', '', grid, span)}"
        return f"{_name(draw, rows, sample, False)}.interval({times})"

    return f"[{', '.join(one(1) for _ in range(rows))}]" if rows < 6 and draw.once_in(4) else one(rows)


def _drawn_like(draw: Draw) -> Call:
    shape = _shape(draw)
    call = Call("nf.randn_like", {"x": _array(draw, shape, draw.of(*KINDS, *LEVELS, "bool"))}, {})
    call.required["noise"] = _noise(draw, shape, _batched(draw, call))
    _may(draw, call, "dtype", *map(repr, KINDS))
    return call


def _forward(draw: Draw) -> Call:
    """Makes calls of q_sample and q_step."""
    shape, dtype, schedule = _shape(draw), draw.of(*KINDS, *LEVELS), draw.of(*SCHEDULES)
    step, result = draw.once_in(3), "float32" if dtype in LEVELS else dtype
    call = Call("nf.q_step" if step else "nf.q_sample", {"x0": _array(draw, shape, dtype)}, {})
    t, _ = _times(draw, shape, len(SCHEDULES[schedule]), not step and SCHEDULES[schedule].continuous)
    call.required |= {"t": t, "schedule": schedule}
    call.required["noise"] = _noise(draw, shape, _batched(draw, call), result, stream=not step)
    if not step:
        _may(draw, call, "target", *TARGETS)
        target = result  # beside integer levels it is the same as without them
        if draw.once_in(4):
            result = draw.of(*KINDS, *LEVELS)
            call.options["dtype"] = repr(result)
            target = result if result not in LEVELS else target
            _may(draw, call, "out_scale", "255", "-30.5", once_in=3)
            _may(draw, call, "out_offset", "0.5", "-1e3", once_in=3)
        _range(draw, call)
        if "target" in call.options:
            _write_to(draw, call, "target_out", shape, target)
    _write_to(draw, call, "out", shape, result, "x0")
    return call


def _range(draw: Draw, call: Call) -> None:
    _may(draw, call, "scale", "2.0", "1/255", "np.float32(3)", "-1", "1e30", "0", "float('inf')", once_in=5)
    _may(draw, call, "offset", "-1", "0.25", "np.int64(2)", "-0.0", once_in=5)


def _walk(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS, *LEVELS)
    call = Call("nf.q_walk", {"x0": _array(draw, shape, dtype), "schedule": "SHORT"}, {})
    call.required["noise"] = _noise(draw, shape, _batched(draw, call), stream=False)
    kept = [t for t in range(3) if draw.once_in(2)]
    if len(kept) < 3:
        call.options["keep"] = draw.of(str(kept), f"np.array({kept}, 'int64')", str(tuple(kept)))
    _write_to(draw, call, "out", (len(kept), *shape), "float32" if dtype in LEVELS else dtype, "x0")
    return call


def _update(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS)
    made = f"table({draw(50)}, {draw.of(0.1, 0.5, 1.0)})"
    if draw.once_in(3):
        made = f"hostile({draw(1000)}, {bool(draw(2))}, {bool(draw(2))})"
    call = Call("nf.update", {"table": made}, {})
    call.required |= {"i": _times(draw, shape, 5, False)[0], "x": _array(draw, shape, dtype)}
    call.required["model_output"] = f"({_array(draw, shape, dtype)}, {_array(draw, shape, draw.of(dtype, *KINDS))})"
    call.options["past"] = f"[{', '.join(_array(draw, shape, dtype) for _ in range(4 - draw.once_in(9)))}]"
    if not draw.once_in(20):
        call.options["noise"] = _noise(draw, shape, True, dtype, stream=draw.once_in(9))
    _may(draw, call, "aux_out", "1", "2", f"[{_array(draw, shape, dtype, ('plain',))}]")
    _write_to(draw, call, "out", shape, dtype, "x")
    return call


def _step(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS)
    name = draw.of(*ARRAY_SAMPLERS)
    clip = (
        draw.of("", "", "", ", 1.0", ", 0.5", ", nf.samplers.Threshold(0.9)") if name != "pndm" else ""
    )  # it has no D
    call = Call("step", {"sampler": f"sampler({name!r}{clip})", "i": str(draw(len(sampler(name))))}, {})
    call.required |= {"x": _array(draw, shape, dtype), "model_output": _array(draw, shape, draw.of(dtype, *KINDS))}
    call.required["noise"] = _noise(draw, shape, True, dtype, stream=draw.once_in(9))
    if draw.once_in(4) or name.endswith("cfg_pp"):
        call.argument("model_output", f"({call.required['model_output']}, {_array(draw, shape, dtype)})")
        call.options["guidance_scale"] = draw.of("7.5", "1", f"times({shape[:1]}, 8.0, dtype='float64')")
    _write_to(draw, call, "denoised_out", shape, dtype)
    _write_to(draw, call, "out", shape, dtype, "x")
    if draw.once_in(3):
        call.options["log_prob"] = "True"
        _may(draw, call, "reduction", "'mean'")
        _may(draw, call, "density", "'squared'", "'no_constants'", "'half'")
    return call


def _run(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS)
    name = draw.of(*ARRAY_SAMPLERS)
    x = _array(draw, shape, dtype) if draw.once_in(2) else str(shape)
    noise = _noise(draw, shape, True, stream=draw.once_in(9))
    call = Call("sampled", {"sampler": f"sampler({name!r})", "x": x, "noise": noise}, {})
    _may(draw, call, "start", "1", "4", once_in=9)
    if x == str(shape):
        call.options["dtype"] = repr(dtype)
    if draw.once_in(3):
        part, seed = shape[draw(len(shape) + 1) :], draw(9)
        call.options["mask"] = draw.of("0.5", f"times({part}, 2, {seed}, 'bool')", f"times({part}, 1.0, 3, 'float32')")
        call.options["known"] = _array(draw, shape, dtype)
    _write_to(draw, call, "out", shape, draw.of(dtype, *LEVELS), "x" if x != str(shape) else "")
    return call


def _density(draw: Draw) -> Call:
    """Makes calls of log-densities, divergences and their gradients, with rows that draw."""
    shape, dtype = _shape(draw), draw.of(*KINDS)
    made = draw.of("flow_sde", "flow_cps", "ddpm", "euler_ancestral", "dpmpp_2m_sde", "ddim")
    kind = draw.of("log_prob", "log_prob_grad", "kl", "kl_grad", "update_with_log_prob")
    i = _times(draw, shape[:1], 5, False)[0] if kind != "update_with_log_prob" else str(draw(5))
    call = Call(f"nf.density.{kind}", {"table": f"sampler({made!r}).tableau", "i": i}, {})
    if not kind.startswith("kl"):
        call.required["x"] = _array(draw, shape, dtype)
    call.required["model_output"] = _array(draw, shape, dtype)
    if kind == "update_with_log_prob":
        call.required["noise"] = _noise(draw, shape, True, dtype)
    else:
        call.required["other"] = _array(draw, shape, dtype)
    if made == "dpmpp_2m_sde" and not kind.startswith("kl"):
        call.options["past"] = f"[{_array(draw, shape, dtype)}]"
    _may(draw, call, "reduction", "'mean'")
    if not kind.startswith("kl"):
        _may(draw, call, "density", "'squared'", "'no_constants'", "'half'")
    if kind.endswith("grad"):
        _may(draw, call, "upstream", "2.0", f"times({shape[:1]}, 2.0, dtype='float64')")
    if kind == "log_prob_grad":
        _may(draw, call, "wrt", "'x'", "'m2'")
    if kind.endswith("grad") or kind == "update_with_log_prob":
        _write_to(draw, call, "out", shape, dtype, "model_output" if kind != "update_with_log_prob" else "x")
    return call


def _loss(draw: Draw) -> Call:
    """Makes calls of mse_loss, mse_loss_and_grad and mse_loss_grad."""
    shape, dtype, schedule, target = _shape(draw), draw.of(*KINDS), draw.of(*SCHEDULES), draw.of(*TARGETS)
    name, steps = draw.of("mse_loss_grad", "mse_loss_and_grad", "mse_loss"), len(SCHEDULES[schedule])
    call = Call(f"nf.{name}", {"pred": _array(draw, shape, dtype)}, {})
    call.required["x0"] = (
        "None"
        if draw.once_in(12 if target != TARGETS[0] else 2)
        else _array(draw, shape, draw.of(dtype, *KINDS, *LEVELS))
    )
    t, floats = _times(draw, shape, steps, SCHEDULES[schedule].continuous)
    call.required |= {"t": t, "schedule": schedule}
    call.required["noise"] = _noise(draw, shape, _batched(draw, call), dtype)
    call.options["target"] = target
    weights = (steps,) if floats is None else floats
    _may(draw, call, "weight", f"times({weights}, 2.0, {draw(9)}, {draw.of('float64', 'float32')!r})")
    _may(draw, call, "reduction", "'none'", "'mean'")
    _range(draw, call)
    if name == "mse_loss_grad":
        _may(draw, call, "upstream", "2.0", "np.float32(0.5)", f"times({shape[:1]}, 2.0, dtype='float64')")
    if name != "mse_loss":
        _write_to(draw, call, "out", shape, dtype, "pred")
    return call


def _augment(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS, *LEVELS, *LEVELS)
    if draw.once_in(3):
        shape = (1 + draw(4), 1 + draw(150), 1 + draw(5))  # few channels, many pixels
    names = {"gaussian": ("std", "mean"), "multiplicative": ("std",), "sensor": ("a", "b"), "at_snr": ("snr",)}
    names |= {"by_level": ("mean_table", "std_table"), "poisson": ("peak",), "transition": ("matrix",)}
    names |= {"impulse": ("amount",), "rician": ("std",), "corrupt": (), "coloured": ("snr",)}
    kind = draw.of(*names)
    if kind in ("by_level", "transition", "corrupt"):
        dtype = "uint8"
    call = Call(f"nf.augment.{kind}", {"x": _array(draw, shape, dtype)}, {})
    batched = _batched(draw, call)
    rows = (shape[:1] if batched else ()) if draw.once_in(3) else ()
    if len(shape) > 1 and draw.once_in(3):  # numbers for channels
        last = draw.once_in(2)
        rows = (shape[:1] if batched else ()) + (shape[-1:] if last else shape[batched : batched + 1])
        if kind in ("gaussian", "multiplicative", "sensor") and not draw.once_in(9):
            call.options["layout"] = "'HWC'" if last else "'CHW'"
    if kind == "by_level":
        rows = (256,)
    if kind == "corrupt":
        kinds = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog")
        call.required |= {"corruption": repr(draw.of(*kinds)), "severity": draw.of("1", "3", "5", "6")}
    if kind == "coloured":
        call.required["slope"] = draw.of("'pink'", "'violet'", "-3.5", "0.0", "20")
        _may(draw, call, "floor", "0.01", "0.6")
    for name in names[kind]:
        one = draw.of("7.5", "0.1", "3", "0.0", "20.0", "-1.0")
        number = f"times({rows}, 20.0, {draw(99)}, 'float64')" if rows else one
        if name == "matrix":
            number = draw.of("np.eye(256)", "np.full((256, 256), 1 / 256)", "np.tri(256) / np.arange(1, 257)[:, None]")
        if name == "amount":
            number = (
                f"times({rows}, 1.0, {draw(99)}, 'float64')" if rows else draw.of("0.05", "0.0", "1.0", "0.5", "1.5")
            )
        (call.options if name == "mean" else call.required)[name] = number
    call.required["noise"] = _noise(draw, shape, batched, "float32" if dtype in LEVELS else dtype)
    chosen = kind in ("poisson", "transition", "impulse", "rician", "corrupt", "coloured")
    result = draw.of(*KINDS, *LEVELS) if draw.once_in(4) and not chosen else dtype
    if result != dtype:
        call.options["dtype"] = repr(result)
    _write_to(draw, call, "out", shape, result, "x")
    if kind == "poisson":
        _may(draw, call, "gamma", "2.2", "0.5")
    if kind == "rician":
        _may(draw, call, "coils", "2", "33")
    if kind == "impulse":
        _may(draw, call, "salt", "0.25", "1", "2")
        _may(draw, call, "random", "True")
        _may(draw, call, "values", "(3, 250)", "(-0.5, 1.5)", "(9, 2)", once_in=4)
        _may(draw, call, "shared", "True")
        if "layout" not in call.options:
            _may(draw, call, "layout", "'CHW'", "'HWC'")
    part, box = shape[draw(len(shape) + 1) :], "[[0, 0, 3, 5], [1.5, 2, 90, 9]]"
    _may(draw, call, "region", _array(draw, part, "bool"), box, f"np.array({box})[:0]", "[[3, 0, 1, 1]]", once_in=6)
    if kind == "by_level" or chosen:
        return call
    _may(draw, call, "clip", "(0, 1)", "(16.5, 235)", "(2, 1)", once_in=5)
    if "layout" not in call.options:
        _may(draw, call, "layout", "'CHW'", "'HWC'", once_in=5)
    _may(draw, call, "shared", "True", once_in=9)
    _may(draw, call, "order", "'CHW'", "'HWC'", once_in=9)
    return call


def _prepared(draw: Draw) -> Call:
    """Makes calls of prepare, rms and strengths."""
    shape, dtype, kind = _shape(draw), draw.of(*KINDS, *LEVELS, *LEVELS), draw.of("prepare", "rms", "strengths")
    shape = tuple([1 + draw(6) for _ in range(draw.of(4, 4, 4, 3, 5))]) if kind == "prepare" else shape
    if kind == "strengths":
        n = 1 + draw(9)
        call = Call("nf.augment.strengths", {"n": str(n), "low": "0.5", "high": draw.of("20", "0.5", "0")}, {})
        call.required["noise"] = _noise(draw, (n, 4), True)
        _may(draw, call, "p", "0.5", "0", "1.5")
        return call
    call = Call(f"nf.augment.{kind}", {"x": _array(draw, shape, dtype)}, {})
    batched = _batched(draw, call)
    if kind == "rms":
        return call
    call.options["noise"] = _noise(draw, shape, batched, "float32")
    for name in ("scale_mean", "scale_std"):
        _may(draw, call, name, "0.5", f"times(({shape[-1]},), 2.0, {draw(9)}, 'float64')", once_in=2)
    rows = shape[:1] if batched else ()
    if draw.once_in(2):
        call.options |= {"t": draw.of("0.5", f"times({rows}, 1.0, 3, 'float64')"), "schedule": "COSINE"}
    else:
        _may(draw, call, "noise_std", "0.5", f"times({rows}, 2.0, 3, 'float64')", once_in=2)
    _may(draw, call, "dtype", *map(repr, KINDS))
    return call


def _field(draw: Draw) -> Call:
    shape, dtype = _shape(draw), draw.of(*KINDS)
    strengths = {"offset_like": "strength", "pyramid_like": "discount"}
    strengths |= {"mixed_like": "alpha", "progressive_like": "alpha", "perturbed": "gamma"}
    kind = draw.of(*strengths, "freenoise_like", "nearest_of", "assigned")
    if kind == "pyramid_like" and draw(4):
        shape = tuple([1 + draw(n) for n in (3, 3, 9, 9)])
    batched = draw(4) > 0 or kind not in ("nearest_of", "perturbed")
    noise = _noise(draw, shape, batched, stream=draw.once_in(9))
    name = "x" if kind.endswith("_like") else "x_t" if kind == "perturbed" else "x0"
    call = Call(f"nf.fields.{kind}", {"k": str(1 + draw(5))} if kind == "nearest_of" else {}, {})
    call.required[name] = _array(draw, shape, draw.of(dtype, *LEVELS) if kind in ("nearest_of", "assigned") else dtype)
    if kind == "perturbed":
        call.required |= {"t": _times(draw, shape[:1], len(SHORT), False)[0], "schedule": "SHORT"}
    if kind in strengths:
        call.required[strengths[kind]] = draw.of("0.5", "0", "1", "2.5")
    call.required["noise"] = noise
    if kind.endswith("_like"):
        _may(draw, call, "dtype", *map(repr, KINDS))
    if kind == "freenoise_like":
        call.options |= {"context": str(1 + draw(3)), "stride": str(1 + draw(2))}
    if kind == "pyramid_like":
        _may(draw, call, "levels", "2", "3", "9")
    if not batched:
        call.options["batched"] = "False"
    if kind == "perturbed":
        _write_to(draw, call, "out", shape, dtype, "x_t")
    return call


def _legacy(draw: Draw) -> Call:
    """Makes calls of the sources that use a backend; the others are NumPy's and Python's own arithmetic."""
    seed, gpu = draw.edge(2**64), draw.of("'A100'", "(1, 256)", "(2, 1024)")
    source = draw.of(f"WebUI({seed})", f"TorchCUDA({seed}, {gpu})")
    return Call(f"nf.legacy.{source}.randn", {"shape": str(_shape(draw))}, {})


def _philox(draw: Draw) -> Call:
    shape = _shape(draw)[:2]
    words = [f"times({(*shape, n)}, 2**32, {draw(99)}, {draw.of('uint32', 'uint64')!r})" for n in (4, 2)]
    return Call("nf.philox4x32", dict(zip(("counter", "key"), words, strict=True)), {})


CALLS = (
    _drawn, _drawn, _drawn_like, _forward, _forward, _forward, _walk, _update, _update, _step, _loss, _loss, _philox,
    _augment, _augment, _prepared, _field, _density, _run, _legacy,
)  # fmt: skip
