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
from noisefuse.commands.bench.contenders import WALK_STEPS, Call, Case
from peers import CONTENDERS

POINTS = (1_000_000, 3)
WARM = (16, 65536)  # 2^20

TITLE, SUFFIX = "The forward process", ""
ABOUT = """\
Written by `pytest benchmarks`, in one run. float32, one thread, per-sample t and `out=` where nothing else
is said; `images` is 256x3x128x128, `points` 1,000,000x3. The naive walk is extrapolated from 10 steps."""


# ---- the calls ---------------------------------------------------------------------------------------------


def case(shape: tuple[int, ...], dtype: str = "float32", operation: str = "q_sample") -> Case:
    return Case(operation, 1, shape, dtype)


def call(name: str, case: Case) -> Call:
    """A contender of `bench.py`. ImportError: it is not installed."""
    found = CONTENDERS[name](case)
    assert found
    return found


def against(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Pair:
    both = case(shape, dtype)
    return Pair(call("noisefuse", both), call(name, both))


def against_mkl() -> Pair:
    return Pair(call("noisefuse", case(WARM)), call("MKL", case(WARM, operation="randn")))


def against_float32(dtype: str) -> Pair:
    return Pair(call("noisefuse", case(IMAGES, dtype)), call("noisefuse", case(IMAGES)))


def fresh_against_out() -> Pair:
    both = case(LARGE)
    return Pair(partial(nf.q_sample, both.x, both.t, SCHEDULE, NOISE), call("noisefuse", both))


def walk() -> tuple[Call, Any]:
    x, out = (np.full(WARM, value, np.float32) for value in (0.5, 0))
    return lambda: nf.q_walk(x, SCHEDULE, NOISE, keep=[len(SCHEDULE) - 1], out=out[None]), x


def walk_against_randn() -> Pair:
    ours, x = walk()
    cached = np.zeros((4, 65536), np.float32)  # 1 MiB: stays in the second-level cache
    randn = partial(nf.randn, cached.shape, NOISE, out=cached)
    return Pair(ours, randn, scale=len(SCHEDULE) * x.size / cached.size)


def walk_against_naive() -> Pair:
    """The naive loop is timed over fewer steps and extrapolated: each of its steps costs the same."""
    ours, x = walk()
    return Pair(ours, call("naive", case(x.shape, operation="q_walk")), scale=len(SCHEDULE) / WALK_STEPS)


def action_against_add() -> Pair:
    a, b, c = (np.ones(ACTION, np.float32) for _ in range(3))
    return Pair(call("noisefuse", case(ACTION)), lambda: np.add(a, b, out=c))


def numba_against_native(shape: tuple[int, ...]) -> Pair:
    both = case(shape)
    return Pair(call("numba", both), call("noisefuse", both))


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
    Figure("images, over naive", ">=", 16, partial(against, "naive", IMAGES)),
    Figure("images, over naive, 2 threads", ">=", 30, partial(against, "naive", IMAGES), threads=2),
    Figure("2^26, over naive", ">=", 16, partial(against, "naive", LARGE)),
    Figure("2^26, over naive, 2 threads", ">=", 30, partial(against, "naive", LARGE), threads=2),
    Figure("2^20, of MKL's normals alone", "<=", 1, against_mkl, needs="avx512"),
    Figure("images, of np.copyto, 2 threads", "<=", 1, partial(against, "copyto", IMAGES), threads=2),
    Figure("2^26, of np.copyto, 2 threads", "<=", 1.6, partial(against, "copyto", LARGE), threads=2),
    Figure("images, over naive, AVX2", ">=", 8, partial(against, "naive", IMAGES), isa="avx2"),
    Figure("images, float16 of float32", "<=", 1.15, partial(against_float32, "float16")),
    Figure("images, bfloat16 of float32", "<=", 1.15, partial(against_float32, "bfloat16")),
    Figure("images, uint8 of float32", "<=", 1.15, partial(against_float32, "uint8")),
    Figure("images, uint16 of float32", "<=", 1.15, partial(against_float32, "uint16")),
    Figure("images, float64, over naive float64", ">=", 4, partial(against, "naive", IMAGES, "float64")),
    Figure("2^26, fresh output of out=", "<=", 1.6, fresh_against_out),
    Figure("2^26, fresh output of out=, 2 threads", "<=", 1.6, fresh_against_out, threads=2),
    Figure("points, over naive", ">=", 6, partial(against, "naive", POINTS)),
    Figure("q_walk of 1000 steps, of 1000 cached randn", "<=", 1.1, walk_against_randn),
    Figure("q_walk of 1000 steps, over naive", ">=", 10, walk_against_naive),
    Figure("(1, 16, 7), of np.add", "<=", 4, action_against_add),
    Figure("(1, 16, 7), one call", "<=", 2, lambda: microseconds(call("noisefuse", case(ACTION))), unit="us"),
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
