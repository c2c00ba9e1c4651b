# SPDX-License-Identifier: Apache-2.0
"""This checks that the time per element jumps at no size of an array, and how much more it is in short samples.

    pytest benchmarks/test_sizes.py      every figure; writes results/<processor>-sizes.json and .md

Each call is timed at sizes on both sides of the size from which kernels store past the caches, in turn with np.copyto
of as many bytes. It needs 1.5 GiB of memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import figures
import noisefuse as nf
from figures import NOISE, SCHEDULE, Figure, thread_seconds
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.timing import interleaved

SIZES = [1 << 22, (1 << 23) - 4096, 1 << 23, 1 << 24, 1 << 25]  # elements
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
LEVELS = {"uint8": np.uint8, "uint16": np.uint16}
SAMPLERS = {name: getattr(nf.samplers, name)(SCHEDULE, 20) for name in ("ddim", "ddpm", "dpmpp_2m")}
ROW = 7


def step(name: str, x: Any, m: Any, out: Any) -> Call:
    sampler = SAMPLERS[name]
    state = sampler.state(x)
    sampler.step(0, x, m, NOISE, state)  # later rows read what it keeps
    return lambda: sampler.step(ROW, x, m, NOISE, state, out=out)


def log_prob(x: Any, m: Any, out: Any) -> Call:
    return lambda: SAMPLERS["ddpm"].log_prob(ROW, x, m, out)


def loss(x: Any, m: Any, _: Any) -> Call:
    return partial(nf.mse_loss, m, x, 300, SCHEDULE, NOISE, target="epsilon")


def random(function: Any, out: Any) -> Call:
    return partial(function, out.shape, NOISE, dtype=out.dtype, out=out)


# From x, the model's output m and out: a call, and the number of arrays of their size that it reads and writes.
Make = Callable[[Any, Any, Any], Call]
OF_FLOATS: dict[str, tuple[int, Make]] = {
    "randn": (1, lambda x, m, out: random(nf.randn, out)),
    "q_sample": (2, lambda x, m, out: partial(nf.q_sample, x, 300, SCHEDULE, NOISE, out=out)),
    "q_sample, in place": (2, lambda x, m, out: partial(nf.q_sample, x, 300, SCHEDULE, NOISE, out=x)),
    "q_sample and target": (
        3,
        lambda x, m, out: partial(nf.q_sample, x, 300, SCHEDULE, NOISE, target="flow", out=out, target_out=m),
    ),
    "q_step": (2, lambda x, m, out: partial(nf.q_step, x, 300, SCHEDULE, NOISE, out=out)),
    "gaussian": (2, lambda x, m, out: partial(nf.augment.gaussian, x, 0.1, NOISE, out=out)),
    "multiplicative": (2, lambda x, m, out: partial(nf.augment.multiplicative, x, 0.1, NOISE, out=out)),
    "mse_loss": (2, loss),
    "mse_loss_and_grad": (
        3,
        lambda x, m, out: partial(nf.mse_loss_and_grad, m, x, 300, SCHEDULE, NOISE, target="epsilon", out=out),
    ),
    "log_prob": (3, log_prob),
    "ddim": (3, partial(step, "ddim")),
    "ddim, in place": (3, lambda x, m, out: step("ddim", x, m, x)),
    "ddpm": (3, partial(step, "ddpm")),
    "dpmpp_2m": (5, partial(step, "dpmpp_2m")),
}
OF_LEVELS: dict[str, Make] = {
    "gaussian": lambda x, m, out: partial(nf.augment.gaussian, x, 10.0, NOISE, out=out),
    "multiplicative": lambda x, m, out: partial(nf.augment.multiplicative, x, 0.1, NOISE, out=out),
}
TO_LEVELS: dict[str, tuple[int, Make]] = {
    "q_sample": OF_FLOATS["q_sample"],
    "ddim": OF_FLOATS["ddim"],
}


def jump(n_inputs: int, n_arrays: int, make: Make, dtype: Any, out_dtype: Any) -> float:
    """Returns the largest change between two neighbouring sizes of the time per element, or of its ratio to np.copyto's
    if that changes less: a copy has its own jumps when an array leaves the caches."""
    x, m = (np.full(SIZES[-1], 3, dtype) for _ in range(2))
    out = np.full(SIZES[-1], 3, out_dtype)
    width = n_inputs * x.itemsize + (n_arrays - n_inputs) * out.itemsize  # bytes read and written for an element
    source, copy = (np.ones(SIZES[-1] * width // 2, np.uint8) for _ in range(2))
    calls: dict[str, Call] = {}
    for n in SIZES:
        calls[f"ours {n}"] = make(*(array[:n].reshape(4, -1) for array in (x, m, out)))
        calls[f"copy {n}"] = partial(np.copyto, copy[: n * width // 2], source[: n * width // 2])
    least = {name: timing.least for name, timing in interleaved(calls, seconds=4, clock=thread_seconds).items()}
    worst = 1.0
    for a, b in itertools.pairwise(SIZES):
        changed = least[f"ours {b}"] / least[f"ours {a}"] * a / b
        of_copy = changed / (least[f"copy {b}"] / least[f"copy {a}"] * a / b)
        worst = max(worst, min(changed, of_copy), 1 / max(changed, of_copy))
    return worst


def figure(name: str, n_arrays: int, make: Make, dtype: Any, out_dtype: Any) -> Figure:
    reads = n_arrays - (n_arrays > 1)
    return Figure(name, "<=", 1.25, partial(jump, reads, n_arrays, make, dtype, out_dtype))


# Of samples of n elements, about 2^16 in all, in this dtype: a call that draws their noise.
def samples(n: int, dtype: Any = np.float32, t: Callable[[int], Any] = lambda rows: 300, noise: Any = None) -> Call:
    x = np.ones((SHORT // n, n), dtype)
    return partial(nf.q_sample, x, t(len(x)), SCHEDULE, noise(len(x)) if noise else NOISE, out=np.empty_like(x))


def tokens(n: int) -> Call:
    x = np.ones((4, SHORT // n // 4, n), np.float32)
    t = np.arange(x.size // n).reshape(x.shape[:2]) % 1000
    return partial(nf.q_sample, x, t, SCHEDULE, NOISE, out=np.empty_like(x))


def window_rows(n: int) -> Call:
    x = np.ones((4, SHORT // n // 4, n), np.float32)
    noise = NOISE.window((x.shape[1] + 1, n + 64), (1, 32))
    return partial(nf.q_sample, x, 300, SCHEDULE, noise, out=np.empty_like(x))


SHORT = 1 << 16
each_its_own = {"t": lambda rows: np.arange(rows) % 1000}
own_seeds = {"noise": lambda rows: [nf.Noise(seed) for seed in range(rows)]}


def of_short(make: Callable[[int], Call], n: int) -> float:
    """The time per element of runs of n elements, over that of runs of 256."""
    calls = {"short": make(n), "long": make(256)}
    timings = interleaved(calls, seconds=2, clock=thread_seconds)
    elements = {"short": SHORT // n // 4 * 4 * n, "long": SHORT}
    return timings["short"].least / timings["long"].least * elements["long"] / elements["short"]


# Targets are 1.3 but where rows differ: the coefficients of a tile's elements are written and read again. A list of
# seeds takes 30 ns a sample to read.
# A sample of one element takes a block of four words, so four times as many.
IN_SHORT: list[tuple[str, int, float, Callable[[int], Call]]] = [
    ("samples", 1, 3.3, samples),
    ("samples", 64, 1.3, samples),
    ("samples", 112, 1.3, samples),
    ("samples", 127, 1.4, samples),
    ("samples of float16", 112, 1.3, partial(samples, dtype=np.float16)),
    ("samples of float64", 112, 1.2, partial(samples, dtype=np.float64)),
    ("rows of windows", 112, 1.35, window_rows),
    ("samples with own t", 112, 1.55, partial(samples, **each_its_own)),
    ("samples of float16 with own t", 112, 1.55, partial(samples, dtype=np.float16, **each_its_own)),
    ("tokens with own t", 112, 1.5, tokens),
    ("samples with own seeds", 112, 1.65, partial(samples, **own_seeds)),
]


TITLE, SUFFIX = "Sizes", "-sizes"
ABOUT = """\
Written by `pytest benchmarks/test_sizes.py`, in one run, on one thread. A figure is the largest change of a call's time
per element between neighbouring sizes of 2^22, 2^23 - 4096, 2^23, 2^24 and 2^25 elements, or of its ratio to np.copyto
of as many bytes, where that changes less. Of short samples, tokens and rows of windows it is the time per element of
q_sample over that of 256."""
FIGURES = [
    *(
        figure(f"{call} of {dtype}", n, make, kind, kind)
        for call, (n, make) in OF_FLOATS.items()
        for dtype, kind in FLOATS.items()
    ),
    *(figure(f"uniform of {kind}", 1, lambda x, m, out: random(nf.uniform, out), FLOATS[kind], FLOATS[kind])
      for kind in ("float32", "float64")),
    *(
        figure(f"{call} of {dtype}", 2, make, kind, kind)
        for call, make in OF_LEVELS.items()
        for dtype, kind in LEVELS.items()
    ),
    *(
        figure(f"{call} of {dtype} to {levels}", n, make, FLOATS[dtype], kind)
        for call, (n, make) in TO_LEVELS.items()
        for dtype in ("float32", "float16")
        for levels, kind in LEVELS.items()
    ),
    *(Figure(f"{name}, {n} elements", "<=", target, partial(of_short, make, n)) for name, n, target, make in IN_SHORT),
]  # fmt: skip
test_figure = figures.test_figure
