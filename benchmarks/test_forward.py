# SPDX-License-Identifier: Apache-2.0
"""The figures that the forward process has to reach, each a ratio within one run.

    pytest benchmarks               every figure; writes results/<processor>.json and .md
    pytest benchmarks -k walk       some; writes nothing, so that a results file is always one run

A figure that misses its target fails. It and what it is compared with run in turn. pytest-benchmark's own
times are of ours alone, for `--benchmark-compare` between commits.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import naive
import noisefuse as nf
from noisefuse._bench import describe, interleaved, machine
from noisefuse._contenders import Call, mkl_normals, processors

RESULTS = Path(__file__).parent / "results"

IMAGES = (256, 3, 128, 128)
LARGE = (1024, 65536)  # 2^26 elements: twice 256 MiB, beyond the caches
WARM = (16, 65536)  # 2^20
POINTS = (1_000_000, 3)
ACTION = (1, 16, 7)

SCHEDULE = nf.Schedule.linear(1000)
NOISE = nf.Noise(0)


# ---- what is compared --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    ours: Call
    other: Call
    scale: float = 1.0  # how many times the other's time counts


def arrays(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """x, one t for each sample, out."""
    rng = np.random.default_rng(0)
    t = rng.integers(0, len(SCHEDULE), shape[0])
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8), t, np.zeros(shape, np.float32)
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


# ---- figures without a partner, measured in new processes ----------------------------------------------------


def child(code: str, **environment: str) -> float:
    command, variables = [sys.executable, "-c", code], os.environ | environment
    return float(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)


def import_milliseconds() -> float:
    """Beyond `import numpy`: the median of 9 processes, after one that writes the bytecode, as an installer does."""
    code = "import numpy, time; t = time.perf_counter(); import noisefuse; print(1e3 * (time.perf_counter() - t))"
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        return statistics.median([child(code, **bytecode) for _ in range(10)][1:])


def memory_growth() -> float:
    """What the peak grows by in a call with two outputs of 256 MiB, as a share of them.

    The peak is VmHWM, which begins anew with a process; getrusage's ru_maxrss begins with the parent's.
    """
    if not Path("/proc/self/status").exists():
        raise NotImplementedError("needs /proc/self/status")
    return child("""
import re
from pathlib import Path
import numpy as np
import noisefuse as nf

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def q_sample(x):
    return nf.q_sample(x, np.zeros(len(x), int), schedule, nf.Noise(0), target="v")

schedule, x = nf.Schedule.linear(), np.ones((1024, 65536), np.float32)
q_sample(x[:2])  # what is loaded and built once
before = peak()
outputs = q_sample(x)
print((peak() - before) / sum(out.nbytes for out in outputs))
""")


def microseconds(call: Call) -> float:
    """Of one call, in the quickest of many turns: what else the machine does only adds to a time."""
    return interleaved({"ours": call}, seconds=4)["ours"].least * 1e6


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
    """Seconds after `import numba`: the best of 3, as other work on the machine only ever adds to them."""
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


@dataclass(frozen=True)
class Figure:
    """With a Pair: ">=" bounds the other's time over ours, "<=" ours over the other's. Else a number of `unit`."""

    name: str
    sense: str
    target: float
    measure: Callable[[], Pair | float]
    threads: int = 1
    isa: str | None = None  # forced, in a process of its own
    needs: str | None = None  # the target is one for this instruction set
    unit: str = "x"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        info = nf.info()
        if self.isa is not None and info["isas"].get(self.isa) != "available":
            return f"{self.isa} is not available"
        if self.needs is not None and info["isa"] != self.needs:
            return f"{self.needs} is not in use"
        if self.threads > processors():
            return f"only {processors()} processors"
        return None

    def met(self, value: float) -> bool:
        return value >= self.target if self.sense == ">=" else value <= self.target

    def compare(self, pair: Pair) -> dict[str, Any]:
        timings = interleaved({"ours": pair.ours, "other": pair.other}, seconds=2)
        ours, other = timings["ours"].median, timings["other"].median * pair.scale
        return {
            "value": other / ours if self.sense == ">=" else ours / other,
            "isa": nf.info()["isa"],
            "ours_ms": ours * 1e3,
            "other_ms": other * 1e3,
            "rounds": timings["ours"].rounds,
        }

    def in_child(self) -> dict[str, Any]:
        """The same with the instruction set forced, which is chosen once in a process."""
        environment = os.environ | {"NOISEFUSE_ISA": str(self.isa)}
        command = [sys.executable, __file__, self.name]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(done.stdout))


FIGURES = [
    Figure("images, over naive", ">=", 16, partial(against_naive, IMAGES)),
    Figure("images, over naive, 2 threads", ">=", 30, partial(against_naive, IMAGES), threads=2),
    Figure("2^26, over naive", ">=", 16, partial(against_naive, LARGE)),
    Figure("2^26, over naive, 2 threads", ">=", 30, partial(against_naive, LARGE), threads=2),
    Figure("2^20, of MKL's normals alone", "<=", 1, against_mkl, needs="avx512"),
    Figure("images, of np.copyto, 2 threads", "<=", 1, partial(against_copy, IMAGES), threads=2),
    Figure("2^26, of np.copyto, 2 threads", "<=", 1.6, partial(against_copy, LARGE), threads=2),
    Figure("images, over naive, AVX2", ">=", 8, partial(against_naive, IMAGES), isa="avx2"),
    Figure("images, over naive, scalar with FMA", ">=", 1, partial(against_naive, IMAGES), isa="scalar"),
    Figure("images, float16 of float32", "<=", 1.15, partial(against_float32, "float16")),
    Figure("images, bfloat16 of float32", "<=", 1.15, partial(against_float32, "bfloat16")),
    Figure("images, uint8 of float32", "<=", 1.15, partial(against_float32, "uint8")),
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


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figure(figure: Figure, request: pytest.FixtureRequest, records: list[dict[str, Any]]) -> None:
    record: dict[str, Any] = {"figure": figure.name, "target": f"{figure.sense} {figure.target:g} {figure.unit}"}
    records.append(record)
    measure(figure, record, request)
    record["met"] = figure.met(record["value"])
    assert record["met"], f"{record['value']:.3g}, expected {record['target']}"


def measure(figure: Figure, record: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Not within the test: its frame lives on where it fails, with all arrays."""
    reason = figure.missing()
    with nf.set_num_threads(figure.threads):
        try:
            measured = None if reason or figure.isa else figure.measure()
        except (ImportError, NotImplementedError) as error:  # no such rival, no such system
            reason = str(error)
        if reason:
            record["skipped"] = reason
            pytest.skip(reason)
        if isinstance(measured, Pair):
            record |= figure.compare(measured)
            benchmark = request.getfixturevalue("benchmark")
            benchmark.extra_info.update(record)
            benchmark(measured.ours)
        else:
            record |= figure.in_child() if measured is None else {"value": measured}


@pytest.fixture(scope="session")
def records() -> Iterator[list[dict[str, Any]]]:
    """One for each figure; written down where all of them ran."""
    taken: list[dict[str, Any]] = []
    yield taken
    write(taken, len(FIGURES), report)


def write(taken: list[dict[str, Any]], figures: int, report: Callable[..., str], suffix: str = "") -> None:
    """results/<processor><suffix>.json and .md, if this many figures were taken."""
    if len(taken) < figures or not all("met" in record or "skipped" in record for record in taken):
        return
    where = machine()
    # Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz -> intel-xeon-gold-6230-cpu-2-10ghz
    name = "-".join(re.sub(r"\((r|tm)\)|[^a-z0-9]+", " ", where["cpu"].lower()).split()) + suffix
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, "figures": taken}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(report(where, taken))


def report(where: dict[str, Any], taken: list[dict[str, Any]]) -> str:
    lines = [
        "# The forward process: figures to reach",
        "",
        *(f"{line}  " for line in describe(where).splitlines()),
        "",
        "Written by `pytest benchmarks`, in one run. float32, one thread, per-sample t and `out=` where nothing else",
        "is said; `images` is 256x3x128x128, `points` 1,000,000x3. The naive walk is extrapolated from 20 steps.",
        "",
        "| figure | target | measured | | noisefuse, ms | the other, ms |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for record in taken:
        value = f"{record['value']:.3g}" if "value" in record else ""
        verdict = record.get("skipped") or ("" if record["met"] else "**missed**")
        milliseconds = [f"{record[key]:.3g}" if key in record else "" for key in ("ours_ms", "other_ms")]
        lines.append(f"| {' | '.join([record['figure'], record['target'], value, verdict, *milliseconds])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # in_child
    chosen = next(figure for figure in FIGURES if figure.name == sys.argv[1])
    with nf.set_num_threads(chosen.threads):
        print(json.dumps(chosen.compare(chosen.measure())))  # type: ignore[arg-type]
