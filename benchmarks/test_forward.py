# SPDX-License-Identifier: Apache-2.0
"""The targets of the forward process, each a ratio within one run.

    pytest benchmarks               every figure; writes results/<processor>.json and .md
    pytest benchmarks -k walk       some; writes nothing, so that a results file is always one run

figures.py explains figures and their measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import figures
import noisefuse as nf
from figures import ACTION, IMAGES, LARGE, NOISE, SCHEDULE, Figure, Pair, child, memory, microseconds
from noisefuse.commands.bench import naive
from noisefuse.commands.bench.contenders import Call, mkl_normals

POINTS = (1_000_000, 3)
WARM = (16, 65536)  # 2^20

TITLE, SUFFIX = "The forward process", ""
ABOUT = """\
Written by `pytest benchmarks`, in one run. float32, one thread, per-sample t and `out=` where nothing else
is said; `images` is 256x3x128x128, `points` 1,000,000x3. The naive walk is extrapolated from 20 steps."""


# ---- the calls ---------------------------------------------------------------------------------------------


def arrays(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """x, one t for each sample, out."""
    rng = np.random.default_rng(0)
    t = rng.integers(0, len(SCHEDULE), shape[0])
    if np.dtype(dtype).kind == "u":
        levels = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
        return levels, t, np.zeros(shape, np.float32)
    return rng.random(shape, dtype=np.float32).astype(dtype, copy=False), t, np.zeros(shape, dtype)


def q_sample(shape: tuple[int, ...], dtype: Any = np.float32) -> Call:
    x, t, out = arrays(shape, dtype)
    return lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out)


def against_naive(shape: tuple[int, ...], dtype: Any = np.float32) -> Pair:
    x, t, out = arrays(shape, dtype)
    rng = np.random.default_rng(0)
    return Pair(
        lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out),
        lambda: naive.naive_q_sample(x, t, SCHEDULE.alpha, SCHEDULE.sigma, rng),
    )


def against_copy(shape: tuple[int, ...]) -> Pair:
    x, t, out = arrays(shape)
    return Pair(lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out), lambda: np.copyto(out, x))


def against_mkl() -> Pair:
    return Pair(q_sample(WARM), mkl_normals(np.zeros(WARM, np.float32)))


def against_float32(dtype: str) -> Pair:
    kind = import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return Pair(q_sample(IMAGES, kind), q_sample(IMAGES))


def fresh_against_out() -> Pair:
    x, t, out = arrays(LARGE)
    return Pair(lambda: nf.q_sample(x, t, SCHEDULE, NOISE), lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out))


def walk() -> tuple[Call, Any]:
    x, _, out = arrays(WARM)
    return lambda: nf.q_walk(x, SCHEDULE, NOISE, keep=[len(SCHEDULE) - 1], out=out[None]), x


def walk_against_randn() -> Pair:
    ours, x = walk()
    cached = np.zeros((4, 65536), np.float32)  # 1 MiB: stays in the second-level cache
    randn = partial(nf.randn, cached.shape, NOISE, out=cached)
    return Pair(ours, randn, scale=len(SCHEDULE) * x.size / cached.size)


def walk_against_naive() -> Pair:
    """The naive loop is timed over 20 steps and extrapolated: each of its steps costs the same."""
    ours, x = walk()
    steps, rng = 20, np.random.default_rng(0)
    loop = partial(naive.naive_q_walk, x, SCHEDULE.betas, rng, keep=[steps - 1])
    return Pair(ours, loop, scale=len(SCHEDULE) / steps)


def action_against_add() -> Pair:
    a, b, c = (np.ones(ACTION, np.float32) for _ in range(3))
    return Pair(q_sample(ACTION), lambda: np.add(a, b, out=c))


def numba_against_native(shape: tuple[int, ...]) -> Pair:
    import_module("numba")
    call = q_sample(shape)

    def on(backend: str) -> None:
        with nf.use_backend(backend):
            call()

    return Pair(partial(on, "numba"), partial(on, "native"))


# ---- figures without a rival, measured in new processes ------------------------------------------------------


def import_milliseconds() -> float:
    """Returns the time beyond `import numpy`: the median of 9 processes, after one that writes the bytecode, as
    installers do."""
    code = "import numpy, time; t = time.perf_counter(); import noisefuse; print(1e3 * (time.perf_counter() - t))"
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        return statistics.median([child(code, **bytecode) for _ in range(10)][1:])


def memory_growth() -> float:
    """Returns the peak's growth in a call with two outputs of 256 MiB, as a share of them."""
    return memory("""
def q_sample(x):
    return nf.q_sample(x, np.zeros(len(x), int), schedule, nf.Noise(0), target="v")

schedule, x = nf.Schedule.linear(), np.ones((1024, 65536), np.float32)
q_sample(x[:2])  # what is loaded and built once
before = peak()
outputs = q_sample(x)
print((peak() - before) / sum(out.nbytes for out in outputs))
""")


NUMBA = """
import time, numba, numpy as np, noisefuse as nf
x, t, out = np.ones((1, 16, 7), np.float32), np.array([500]), np.empty((1, 16, 7), np.float32)
schedule, noise = nf.Schedule.linear(1000), nf.Noise(0)

def seconds(calls):
    begin = time.perf_counter()
    for _ in range(calls):
        nf.q_sample(x, t, schedule, noise, out=out)
    return (time.perf_counter() - begin) / calls

first = seconds(1)
"""


def numba_first_call(cached: bool) -> float:
    """Returns the seconds after `import numba`: the best of 3, because other work on the machine only adds to them."""
    import_module("numba")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"NOISEFUSE_BACKEND": "numba", "NUMBA_CACHE_DIR": folder}
        taken = []
        for i in range(4 if cached else 3):
            if not cached:
                environment["NUMBA_CACHE_DIR"] = f"{folder}/{i}"
            taken.append(child(NUMBA + "print(first)", **environment))
    return min(taken[cached:])


def numba_microseconds() -> float:
    import_module("numba")
    code = NUMBA + "seconds(1000); print(1e6 * min(seconds(1000) for _ in range(100)))"
    return child(code, NOISEFUSE_BACKEND="numba")


# ---- the figures -------------------------------------------------------------------------------------------

FIGURES = [
    Figure("images, over naive", ">=", 16, partial(against_naive, IMAGES)),
    Figure("images, over naive, 2 threads", ">=", 30, partial(against_naive, IMAGES), threads=2),
    Figure("2^26, over naive", ">=", 16, partial(against_naive, LARGE)),
    Figure("2^26, over naive, 2 threads", ">=", 30, partial(against_naive, LARGE), threads=2),
    Figure("2^20, of MKL's normals alone", "<=", 1, against_mkl, needs="avx512"),
    Figure("images, of np.copyto, 2 threads", "<=", 1, partial(against_copy, IMAGES), threads=2),
    Figure("2^26, of np.copyto, 2 threads", "<=", 1.6, partial(against_copy, LARGE), threads=2),
    Figure("images, over naive, AVX2", ">=", 8, partial(against_naive, IMAGES), isa="avx2"),
    Figure("images, float16 of float32", "<=", 1.15, partial(against_float32, "float16")),
    Figure("images, bfloat16 of float32", "<=", 1.15, partial(against_float32, "bfloat16")),
    Figure("images, uint8 of float32", "<=", 1.15, partial(against_float32, "uint8")),
    Figure("images, uint16 of float32", "<=", 1.15, partial(against_float32, "uint16")),
    Figure("images, float64, over naive float64", ">=", 4, partial(against_naive, IMAGES, np.float64)),
    Figure("2^26, fresh output of out=", "<=", 1.6, fresh_against_out),
    Figure("2^26, fresh output of out=, 2 threads", "<=", 1.6, fresh_against_out, threads=2),
    Figure("points, over naive", ">=", 6, partial(against_naive, POINTS)),
    Figure("q_walk of 1000 steps, of 1000 cached randn", "<=", 1.1, walk_against_randn),
    Figure("q_walk of 1000 steps, over naive", ">=", 10, walk_against_naive),
    Figure("(1, 16, 7), of np.add", "<=", 4, action_against_add),
    Figure("(1, 16, 7), one call", "<=", 2, lambda: microseconds(q_sample(ACTION)), unit="us"),
    Figure("numba, 2^26, of native", "<=", 1.6, partial(numba_against_native, LARGE)),
    Figure("numba, images, of native", "<=", 1.6, partial(numba_against_native, IMAGES)),
    Figure("numba, first call, compiled", "<=", 2, partial(numba_first_call, False), unit="s"),
    Figure("numba, first call, from disk", "<=", 0.3, partial(numba_first_call, True), unit="s"),
    Figure("numba, (1, 16, 7), one call", "<=", 5, numba_microseconds, unit="us"),
    Figure("import, beyond numpy", "<=", 40, import_milliseconds, unit="ms"),
    Figure("peak memory, of the outputs", "<=", 1.02, memory_growth),
]
test_figure = figures.test_figure


if __name__ == "__main__":  # in_child
    chosen = next(figure for figure in FIGURES if figure.name == sys.argv[1])
    with nf.set_num_threads(chosen.threads):
        print(json.dumps(chosen.compare(chosen.measure())))  # type: ignore[arg-type]
