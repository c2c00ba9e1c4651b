# SPDX-License-Identifier: Apache-2.0
"""Random calls of all operations: those of arguments.py, and of tokens, categories, paths and given levels; and calls
whose inputs another thread changes meanwhile. This module has the words of their lines, too."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
import warnings
from contextlib import suppress
from functools import cache
from random import Random

import numpy as np

import arguments
import noisefuse as nf
from arguments import (
    KINDS,
    LEVELS,
    Call,
    _array,
    _batched,
    _may,
    _name,
    _noise,
    _shape,
    _write_to,
    in_layout,
)
from noisefuse.arguments.calls import WARNED

# ---- the functions of the lines ----------------------------------------------------------------------------

INFO = ("log_prob", "log_prob_raw", "entropy", "margin", "rank")


def logits(shape, dtype="float32", seed=0, kind="normal", layout="plain"):
    """Returns logits (.., V) in one of LAYOUTS, with values of one of VALUES."""
    with np.errstate(over="ignore"):  # float16
        values = VALUES[kind](np.random.default_rng(seed), shape).astype(arguments.float_dtype(dtype), "C")
    return in_layout(values, layout)


def _holes(rng, shape):
    return np.where(rng.random(shape) < 0.5, -np.inf, rng.normal(size=shape))


def _one(value):
    """Returns normals with this value in about one token of each row."""

    def values(rng, shape):
        return np.where(rng.random(shape) < 1 / max(shape[-1], 1), value, rng.normal(size=shape))

    return values


VALUES = {
    "normal": lambda rng, shape: 3 * rng.normal(size=shape),
    "flat": lambda rng, shape: np.full(shape, rng.normal()),
    "nearly flat": lambda rng, shape: 1e-3 * rng.normal(size=shape),
    "wide": lambda rng, shape: 1000 * rng.normal(size=shape),
    "ties": lambda rng, shape: rng.integers(-2, 3, shape).astype(float),
    "confident": _one(40.0),
    "holes": _holes,
    "nothing": lambda rng, shape: np.full(shape, -np.inf),
    "infinite": _one(np.inf),
    "huge": lambda rng, shape: rng.choice([3e38, -3e38, 1e38, 0.0, -0.0, 1e-45], shape),
    "a NaN": _one(np.nan),
    "saw": lambda rng, shape: np.broadcast_to(np.arange(shape[-1]) % 977 / 40, shape),
}


def ids(shape, end, dtype="int64", seed=0, layout="plain", mask=None):
    """Returns tokens below an end in one of LAYOUTS, half of them the mask if there is one."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(end, size=shape)
    if mask is not None:
        tokens = np.where(rng.random(shape) < 0.5, mask, tokens)
    return in_layout(tokens.astype(dtype), layout)


def matrix(shape, seed=0):
    """Returns transitions (.., V, V), a third of them with probability 0."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=shape) * (rng.random(shape) < 0.7) + 1e-3 * np.eye(shape[-1])
    return weights / weights.sum(-1, keepdims=True)


def combined(x, noise, parts, **options):
    """Returns the draws of categories from so many parts of the vocabulary, and what the parts tell."""
    chunk, v = 4096, x.shape[-1]
    size, made = max(1, -(-v // chunk // parts)) * chunk, []
    for first in range(0, v, size):
        window = (*x.shape[1:-1], v), (*[0] * (x.ndim - 2), first)
        part = [each.window(*window) for each in noise] if isinstance(noise, list) else noise.window(*window)
        made.append(nf.categorical(x[..., first : first + size], part, partial=True, **options))
    told = [(each.token, each.parts.score, each.parts.winner, each.parts.largest) for each in made]
    return nf.discrete.combine_categories(made), tuple(told)


@cache
def token_sampler(name, vocabulary, masked, **options):
    """Returns a sampler of four steps; a mask has the number of the vocabulary."""
    of = {"mask_id": vocabulary} if masked else {"vocabulary": vocabulary}
    return getattr(nf.samplers, name)(4, **of, **options)


def token_step(sampler, i, x, logits, noise, info=(), **options):
    """Runs row i of a sampler of tokens. Returns the result, and what it remembers."""
    state = sampler.state(*info)
    made = sampler.step(i, x, logits, noise, state, **options)
    return made, state.drawn, state.taken, state.info, () if state.log_prob is None else state.log_prob


def combined_step(sampler, i, x, logits, noise, parts, where=None):
    """Returns row i of a sampler of tokens from so many parts of the positions, and what the parts tell."""
    length, made = x.shape[1], []
    size = max(1, -(-length // parts))
    for first in range(0, length, size):
        at, window = slice(first, first + size), ((length,), (first,))
        part = [each.window(*window) for each in noise] if isinstance(noise, list) else noise.window(*window)
        own = {} if where is None else {"where": where[:, at]}
        made.append(sampler.step(i, x[:, at], logits[:, at], part, partial=True, **own))
    return nf.discrete.combine_steps(made), tuple((each.token, each.other, each.key) for each in made)


def token_run(sampler, x_or_shape, vocabulary, noise, **options):
    """Runs a whole run with a network that looks at its tokens."""

    def model(x, t):
        made = np.sin(np.arange(vocabulary) * (1.0 + np.asarray(x)[..., None]) + t).astype(np.float32)
        return (made, 2 * made) if sampler.table.guidance else made

    made = sampler.sample(model, x_or_shape, noise, **options)
    return (made[0], *made[1]) if isinstance(made, tuple) else made


def raced(call, given):
    """Returns what call(given) gives after calls while which another thread writes to `given`. These may give anything
    and raise errors, but their threads go on, and neither they nor the other arrays change later calls."""
    if not isinstance(given, np.ndarray) or not given.flags.writeable:
        return call(given)
    before, racing = len(arguments.made), fenced(given) if given.flags.c_contiguous else given
    wild = np.frombuffer(bytearray(np.random.default_rng(0).bytes(given.nbytes)), given.dtype).reshape(given.shape)
    right, turned = given.copy(), np.flip(given).copy()
    values = [right, turned, wild, np.zeros_like(given)]
    if given.dtype.kind in "fV":  # most are numbers, as a NaN ends some calls early
        high, low = np.full_like(given, 1000), np.full_like(given, -1000)
        values = [*[high, turned, low, right] * 4, *values, np.full_like(given, np.inf)]
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for value in values:
                np.copyto(racing, value)

    other, interval = threading.Thread(target=write), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        end = time.monotonic() + SECONDS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while time.monotonic() < end:
                with suppress(*RIGHT_ERRORS):
                    call(racing)
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)
    WARNED.clear()
    del arguments.made[before:]
    for memory, values in arguments.made:
        memory[...] = values
    return call(given)


def fenced(x):
    """Returns a copy that ends where a page begins which nobody may touch: who reads on ends the process."""
    page, size = mmap.PAGESIZE, -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + page)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + size), ctypes.c_size_t(page), 0)
    made = np.frombuffer(memory, x.dtype, x.size, size - x.nbytes).reshape(x.shape)
    made[...] = x
    return made


BAD = (
    "a NaN",
    "nothing",
    "holes",
    "huge",
)  # rows that may raise an error as they are read, when some tokens are written
SECONDS = 0.02  # of a race
RIGHT_ERRORS = (TypeError, ValueError, IndexError, OverflowError, NotImplementedError)
ANY_LIBRARY = ("array(", "logits(", "ids(")  # what `handed_over` turns into another library's

# ---- the operations ----------------------------------------------------------------------------------------

VOCABULARIES = (5, 1, 2, 63, 64, 65, 127, 1000, 4095, 4096, 4097, 9000)
TOKEN_DTYPES = ("int64", "int32", "uint8", "uint16")
PATHS = (
    "linear()", "variance_preserving()", "conditional_flow(0.1)", "stochastic()", "brownian_bridge(0.5)",
    "encoder_decoder()", "i2sb(0.3)", "i2sb(2.0, symmetric=False)",
)  # fmt: skip


def _rows(draw):
    """Returns the shape of some rows: B and positions, of which there are some."""
    return draw.of((2, 3), (1, 2), (3,), (1,), (2, 1, 2), (), (2, 0), (0, 2), (5, 1))


def _logits(draw, shape, dtype=None):
    dtype = dtype or draw.of("float32", "float32", "float16", *(["bfloat16"] if "bfloat16" in KINDS else []))
    layout, kind = draw.of("plain", "plain", *arguments.LAYOUTS), draw.of("normal", "normal", *VALUES)
    return f"logits({shape}, {dtype!r}, {draw(1000)}, {kind!r}, {layout!r})"


def _ids(draw, shape, end, dtype="", mask=None):
    layout, dtype = draw.of("plain", "plain", *arguments.LAYOUTS), dtype or draw.of(*TOKEN_DTYPES)
    end = min(end, np.iinfo(dtype).max + 1) + draw.once_in(20)  # which may not fit
    return f"ids({shape}, {end}, {dtype!r}, {draw(1000)}, {layout!r}{'' if mask is None else f', {mask}'})"


def _prefix(draw, shape):
    """Returns a shape that broadcasts to this one, which most often begins with it."""
    part = shape[: draw(len(shape) + 1)]
    return draw.of(part, part + (1,) * (len(shape) - len(part)), shape[len(shape) - len(part) :])


def _bools(draw, shape):
    return f"times({_prefix(draw, shape)}, 2, {draw(99)}, 'bool')"


def _numbers(draw, shape, end, *singles):
    """Returns float64 numbers of a shape that broadcasts to this one, or one number."""
    return draw.of(*singles) if draw.once_in(2) else f"times({_prefix(draw, shape)}, {end}, {draw(99)}, 'float64')"


def _settings(draw, call, rows, v):
    batch = rows[:1]
    heat = f"times({batch}, 3.0, {draw(99)}, 'float64')"
    _may(draw, call, "temperature", "0", "0.7", "1e-3", "2.0**60", "2.0**-64", "0.0", heat, once_in=2)
    _may(draw, call, "top_k", "1", "7", str(v), str(v - 1), "10**9", f"times({batch}, {v + 2}, {draw(99)})")
    _may(draw, call, "top_p", "0.8", "1e-9", "0.9999", f"1 - times({batch}, 1.0, {draw(99)}, 'float64')")


def _info(draw):
    return draw.of("INFO", repr(tuple(name for name in INFO if draw.once_in(2))))


def _categorical(draw):
    rows, v = _rows(draw), draw.of(*VOCABULARIES)
    call = Call("nf.categorical", {"logits": _logits(draw, (*rows, v))}, {})
    call.required["noise"] = _noise(draw, (*rows, v), bool(rows), stream=draw.once_in(9), windows=draw.once_in(9))
    _settings(draw, call, rows, v)
    _may(draw, call, "where", _bools(draw, rows))
    _may(draw, call, "positions", f"times({_prefix(draw, rows)}, {2**31}, {draw(99)})", str(draw.edge(2**31)))
    if draw.once_in(2):
        call.options["info"] = draw.of(_info(draw), *map(repr, INFO))
    dtype = draw.of("int64", "int32")
    if dtype == "int32" or draw.once_in(3):
        call.options["dtype"] = repr(dtype)
    if not any(kind in call.required["logits"] for kind in BAD):
        _write_to(draw, call, "out", rows, dtype)
    return call


def _combined(draw):
    rows, v = _rows(draw), draw.of(1, 4096, 4097, 9000, 12289)
    call = Call("combined", {"logits": _logits(draw, (*rows, v))}, {})
    call.required["noise"] = _noise(draw, (*rows, v), bool(rows), stream=False, windows=False)
    call.required["parts"] = str(1 + draw(3))
    heat = f"times({rows[:1]}, 3.0, {draw(99)}, 'float64')"
    _may(draw, call, "temperature", "0", "0.7", heat, once_in=2)
    _may(draw, call, "info", "INFO[:2]", "'log_prob'", "('log_prob_raw',)", once_in=2)
    return call


def _cross_entropy(draw):
    rows, v = _rows(draw), draw.of(*VOCABULARIES)
    call = Call("nf.masked_cross_entropy", {"logits": _logits(draw, (*rows, v))}, {})
    call.required["ids"] = _ids(draw, rows, v)
    _may(draw, call, "masked", _bools(draw, rows), once_in=2)
    _may(draw, call, "weight", _numbers(draw, rows, 2.0, "2.0", "0", "0.1", "float('inf')"), once_in=2)
    _may(draw, call, "reduction", "'none'", "'mean'")
    if draw.once_in(2):
        return call
    call.function += "_and_grad"
    upstream = _numbers(draw, rows, 2.0, "2.0", "-0.5", "np.float32(3)")
    _may(draw, call, "upstream", upstream if "reduction" in call.options else "2.0", once_in=3)
    if "'float32'" in call.required["logits"]:
        _write_to(draw, call, "out", (*rows, v), "float32", "logits")
    return call


def _masks(draw):
    """Makes calls of q_mask and q_uniform."""
    shape, dtype, v = _tokens_shape(draw), draw.of(*TOKEN_DTYPES), draw.of(*VOCABULARIES, 2**31)
    uniform = draw.once_in(2)
    v = min(v, np.iinfo(dtype).max + 1)
    given = _ids(draw, shape, v, dtype) if uniform or draw.once_in(2) else _array(draw, shape, dtype)
    call = Call("nf.q_uniform" if uniform else "nf.q_mask", {"ids": given}, {})
    call.required["p"] = draw.of("0.5", "0", "1", "2.0**-33", "0.3", f"times({shape[: draw(3)]}, 1.0, 3, 'float64')")
    call.required["noise"] = _noise(draw, shape, True, stream=draw.once_in(9))
    call.required["token"] = str(v) if uniform else draw.of("0", "1", str(np.iinfo(dtype).max), "255", "-1")
    if draw.once_in(3):
        block = 1 + draw(9)
        blocks = -(-int(np.prod(shape[1:])) // min(block, max(1, int(np.prod(shape[1:])))))
        call.options["block"] = str(block)
        call.required["p"] = f"times({(shape[0], blocks)}, 1.0, {draw(99)}, 'float64')"
    _some_tokens(draw, call, shape)
    if not uniform:
        _may(draw, call, "complement", "True")
    _write_to(draw, call, "out", shape, dtype, "ids")
    return call


def _tokens_shape(draw):
    """Returns the shape of tokens (B, ..), now and then large enough for threads."""
    shape = _shape(draw)
    return shape if len(shape) > 1 else (*shape, *[1 + draw(9)] * (2 - len(shape)))


def _some_tokens(draw, call, shape):
    _may(draw, call, "where", _bools(draw, shape))
    _may(draw, call, "lengths", f"times({shape[:1]}, {int(np.prod(shape[1:])) + 1}, {draw(99)})")


def _transition(draw):
    shape, dtype, v = _tokens_shape(draw), draw.of(*TOKEN_DTYPES), draw.of(2, 1, 3, 16, 17, 64, 256)
    call = Call("nf.q_transition", {"ids": _ids(draw, shape, v, dtype)}, {})
    call.required["Q"] = draw.of(
        f"matrix({(v, v)}, {draw(99)})",
        f"matrix({(shape[0], v, v)}, {draw(99)})" if shape[0] < 9 else f"np.eye({v})",
        f"nf.discrete.uniform(0.3, {v})",
        f"nf.discrete.absorbing(0.3, {v})",
        f"nf.discrete.gaussian(0.3, {max(v, 2)})",
    )
    call.required["noise"] = _noise(draw, shape, True, stream=draw.once_in(9))
    _some_tokens(draw, call, shape)
    _write_to(draw, call, "out", shape, dtype, "ids")
    return call


def _path_times(draw, shape):
    part, dtype = shape[: draw(len(shape) + 1)], draw.of("float64", "float32")
    return draw.of(f"times({part}, 1.0, {draw(99)}, {dtype!r})", str(draw(101) / 100))


def _interpolate(draw):
    """Makes calls of interpolate and interpolate_loss."""
    shape, dtype, path = _shape(draw), draw.of(*KINDS), draw.of(*PATHS)
    loss = draw.once_in(3)
    call = Call("nf.interpolate_loss" if loss else "nf.interpolate", {}, {})
    if loss:
        call.required["pred"] = _array(draw, shape, dtype)
    call.required["x0"] = _array(draw, shape, dtype)
    call.required |= {"x1": _array(draw, shape, draw.of(dtype, *KINDS)), "t": _path_times(draw, shape)}
    noise = _noise(draw, shape, _batched(draw, call), dtype)
    call.required |= {"path": f"nf.paths.{path}", "noise": "None" if draw.once_in(6) else noise}
    target = draw.of("'velocity'", "'score'", "'denoiser'")
    if loss:
        call.options["target"] = target
        if call.required["t"].startswith("times("):
            _may(draw, call, "weight", call.required["t"])
        _may(draw, call, "reduction", "'none'", "'mean'")
        if draw.once_in(2):
            call.function += "_and_grad"
            _write_to(draw, call, "out", shape, dtype, "pred")
        return call
    _may(draw, call, "target", target, once_in=2)
    _write_to(draw, call, "out", shape, dtype, "x0")
    if "target" in call.options:
        _write_to(draw, call, "target_out", shape, dtype)
    return call


def _noised(draw):
    shape, dtype = _shape(draw), draw.of(*KINDS, *KINDS, *KINDS, *LEVELS)
    call = Call("nf.noised", {"x0": _array(draw, shape, dtype)}, {})
    part = shape[: draw(len(shape) + 1)]
    for name in ("alpha", "sigma"):
        numbers = f"times({part}, 2.0, {draw(99)}, {draw.of('float64', 'float32')!r})"
        call.required[name] = draw.of(numbers, numbers, "0.5", "0", "-1", "1e300")
    call.required["noise"] = _noise(draw, shape, _batched(draw, call), dtype if dtype in KINDS else "")
    _may(draw, call, "target", *arguments.TARGETS)
    _write_to(draw, call, "out", shape, dtype, "x0")
    if "target" in call.options:
        _write_to(draw, call, "target_out", shape, dtype)
    return call


SAMPLERS = {
    "mdlm": (True,), "remdm": (True,), "d3pm": (True, False), "uniform_ddim": (False,), "discrete_flow": (True, False),
    "sedd": (True,), "llada": (True,), "entropy_bound": (True, False),
    "dream": (True,),
}  # fmt: skip
OPTIONS = {
    "remdm": ("", ", eta=0.5", ", eta=0.3, variant='rescale'", ", loop=0.5, t_on=0.6, t_off=0.2"),
    "uniform_ddim": ("", ", eta=1.0"),
    "llada": (
        "",
        ", temperature=1.0",
        ", remask='random'",
        ", cfg_scale=1.5",
        ", length=8, block_length=4",
        ", threshold=0.5",
        ", factor=1.0",
    ),
    "entropy_bound": ("", ", bound=3.0"),
    "dream": ("", ", alg='maskgit_plus', temperature=0.7", ", alg='topk_margin'", ", alg='entropy', alg_temp=0.5"),
    "sedd": ("",),
}


def _token_sampler(draw, v):
    """Returns a sampler, and its mask if it has one."""
    name = draw.of(*SAMPLERS)
    masked = draw.of(*SAMPLERS[name])
    filters = draw.of("", "", ", top_k=3", ", top_p=0.7")
    options = draw.of(*OPTIONS.get(name, ("", ", temperature=0.7", ", temperature=0.0"))) + filters
    return f"token_sampler({name!r}, {v}, {masked}{options})", v if masked else None


def _token_step(draw):
    v, shape = draw.of(5, 2, 64, 200, 1000), draw.of((2, 8), (1, 8), (3, 2, 4), (2, 0), (0, 8))
    made, mask = _token_sampler(draw, v)
    call = Call("token_step", {"sampler": made, "i": str(draw(4))}, {})
    dtype = draw.of(*TOKEN_DTYPES)
    call.required["x"] = _ids(draw, shape, v, dtype, mask)
    call.required["logits"] = _logits(draw, (*shape, v))
    if "cfg_scale" in made:
        call.required["logits"] = f"({call.required['logits']}, {_logits(draw, (*shape, v))})"
    call.required["noise"] = _noise(draw, shape, True, stream=draw.once_in(9), windows=draw.once_in(9))
    _may(draw, call, "info", _info(draw))
    _may(draw, call, "where", _bools(draw, shape))
    _may(draw, call, "lengths", f"np.array({[draw(9) for _ in range(shape[0])]})", once_in=9)
    _may(draw, call, "log_prob", "True")
    _write_to(draw, call, "out", shape, dtype, "x")
    return call


def _combined_step(draw):
    v, shape = draw.of(5, 2, 64, 200), draw.of((2, 8), (1, 30), (3, 1), (0, 8))
    made, mask = _token_sampler(draw, v)
    call = Call("combined_step", {"sampler": made, "i": str(draw(4))}, {})
    call.required["x"] = _ids(draw, shape, v, draw.of(*TOKEN_DTYPES), mask)
    call.required["logits"] = _logits(draw, (*shape, v))
    call.required["noise"] = _noise(draw, shape, True, stream=draw.once_in(9))
    call.required["parts"] = str(draw.of(1, 2, 3, 8))
    if draw.once_in(2):
        call.options["where"] = f"np.broadcast_to({_bools(draw, shape)}, {shape})"
    return call


def _token_run(draw):
    v, shape = draw.of(5, 2, 64, 200), draw.of((2, 8), (1, 8), (3, 2, 4))
    made, mask = _token_sampler(draw, v)
    x = str(shape) if draw.once_in(2) else _ids(draw, shape, v, "", mask)
    call = Call("token_run", {"sampler": made, "x": x, "vocabulary": str(v)}, {})
    call.required["noise"] = _noise(draw, shape, True, stream=draw.once_in(9), windows=draw.once_in(9))
    _may(draw, call, "where", _bools(draw, shape))
    _may(draw, call, "lengths", f"np.array({[draw(9) for _ in range(shape[0])]})", once_in=9)
    _may(draw, call, "log_probs", "True")
    _may(draw, call, "dtype", *map(repr, TOKEN_DTYPES))
    _may(draw, call, "start", "1", "3", once_in=9)
    return call


GIVEN = (*ANY_LIBRARY, "times(")


def _raced(draw):
    """Makes a call, now and then one with an array that changes meanwhile: a race takes a hundred times as long."""
    return draw.of(*[draw.of(*OPERATIONS)] * 6, _with_any_raced, _with_rows_raced)(draw)


def _race(call, name):
    given = call.required.get(name) or call.options[name]
    call.argument(name, "y")
    return Call("raced", {"call": f"lambda y: {call}", "given": given}, {})


def _with_any_raced(draw):
    call = draw.of(*OPERATIONS)(draw)
    names = [name for name, text in (call.required | call.options).items() if text.startswith(GIVEN)]
    return _race(call, draw.of(*names)) if names else call


def _with_rows_raced(draw):
    """Makes calls with long rows, which are read more than once."""
    rows, v = draw.of((32,), (2, 4)), draw.of(1 << 14, 5000, 4096)
    logits = f"logits({(*rows, v)}, {draw.of('float32', 'float16')!r}, {draw(99)}, 'saw')"
    if draw.once_in(3):
        return _race(
            Call("nf.masked_cross_entropy", {"logits": logits, "ids": _ids(draw, rows, v, "int64")}, {}), "logits"
        )
    call = Call("nf.categorical", {"logits": logits, "noise": _name(draw, 1, (), False, False)}, {})
    _settings(draw, call, rows, v)
    return _race(call, "logits")


OPERATIONS = (
    *arguments.CALLS, _categorical, _categorical, _combined, _cross_entropy, _masks, _masks, _transition, _interpolate,
    _noised, _token_step, _token_step, _combined_step, _token_run,
)  # fmt: skip
CALLS = (*OPERATIONS, _raced)


def of_each(n, makers=OPERATIONS):
    """Yields so many lines of each operation."""
    for k, make in enumerate(makers):
        for seed in range(n):
            yield arguments.random_call(arguments.Draw(random=Random(1000 * k + seed)), [make])
