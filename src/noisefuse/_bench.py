# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench`: what an operation costs here, beside NumPy and, where installed, torch, JAX and MKL."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import noisefuse as nf

from ._contenders import CONTENDERS, OPERATIONS, Case, processors

if TYPE_CHECKING:
    from rich.table import Table

Result: TypeAlias = tuple[Case, dict[str, "Timing"]]


# ---- the clock ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the quartiles and the least of `rounds` measurements."""

    median: float
    low: float
    high: float
    least: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 1.0, rounds: int = 5
) -> dict[str, Timing]:
    """Time the calls in turn, round after round, so that a machine that slows down slows them all.

    At least `rounds` rounds, and for about `seconds`. A short call is repeated within its turn, so that the
    clock costs nothing, after some calls that warm its data and wake its threads. Before a turn there is a pause, as
    threads of OpenMP spin on for milliseconds after the work of theirs.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in itertools.count():
        if done >= rounds and time.perf_counter() >= end:
            break
        for name, call in calls.items():
            time.sleep(0.02)
            for _ in range(repeats[name] // 4):
                call()
            taken[name].append(_timed(call, repeats[name]))
    return {name: _timing(values) for name, values in taken.items()}


def _repeats(call: Callable[[], object]) -> int:
    call()  # warm-up: first touch of the buffers, compilation, the start of threads
    taken = [_timed(call, 1)]
    while sum(taken) < 0.01:
        taken.append(_timed(call, 1))
    return math.ceil(0.01 / min(taken))


def _timed(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Timing(median, low, high, min(values), len(values))


def measure(
    case: Case, *, seconds: float, rounds: int, names: Collection[str] = tuple(CONTENDERS)
) -> dict[str, Timing]:
    """Time each of the named contenders that is installed and has this operation."""
    calls = {}
    for name in names:
        try:
            call = CONTENDERS[name](case)
        except ImportError:
            continue
        if call is not None:
            calls[name] = call
    with nf.set_num_threads(case.threads):
        return interleaved(calls, seconds=seconds, rounds=rounds)


# ---- the report --------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise OSError(f"cannot write {arguments.json}: no such directory")
    if arguments.device == "cuda":
        import_module("._bench_cuda", __package__).run(arguments)
        return
    from rich.console import Console
    from rich.progress import Progress

    quick = arguments.quick
    sizes = arguments.sizes or [(1, 16, 7), (64, 3, 32, 32)] + ([] if quick else [(256, 3, 128, 128)])
    dtypes = arguments.dtypes or (["float32"] if quick else ["float32", "float64", "float16", "uint8"])
    threads = arguments.threads or [nf.info()["threads"]]
    grid = itertools.product(OPERATIONS, threads, sizes, dtypes)
    cases = [case for case in itertools.starmap(Case, grid) if case.exists]

    results: list[Result] = []
    # refreshed by hand: a bar that redraws itself would run beside what is measured
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=str(case), refresh=True)
            fresh = dataclasses.replace(case)  # its arrays go when the copy goes
            results.append((case, measure(fresh, seconds=0.1 if quick else 1.0, rounds=3 if quick else 5)))
            progress.advance(task)

    console = Console()
    where = machine()
    console.print(describe(where), table(results, console.width), sep="\n")
    console.print(
        "Nanoseconds per noised element: the median, ± half the distance between the quartiles.\n"
        "numba: noisefuse on its backend of that name. naive, tuned: NumPy; the speed-up is over naive.\n"
        "MKL: the normals alone. copyto: a plain copy.\n"
        "naive, tuned, MKL and copyto run on one thread."
    )
    if arguments.json is not None:
        report = {"machine": where, "results": [_record(*result) for result in results]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"wrote {arguments.json}")


def machine() -> dict[str, Any]:
    """Where, when and with what the figures were measured."""
    info = nf.info()
    return {
        "cpu": info["cpu"],
        "processors": processors(),
        "isa": info["isa"],
        "backend": info["backend"],
        "platform": f"{platform.system()} {platform.machine()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {"noisefuse": info["version"], "python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("numpy", "numba", "torch", "jax", "mkl"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe(where: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    parts = [
        where["cpu"],
        f"{where['processors']} processors",
        where["isa"],
        where["platform"],
        where["date"],
    ]
    return f"{', '.join(map(str, parts))}\n{versions}"


def table(results: Sequence[Result], width: int) -> Table:
    """A row for each case, a column for each contender: nanoseconds per noised element."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    names = [name for name in CONTENDERS if any(name in timings for _, timings in results)]
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grid.add_column("shape")
    grid.add_column("dtype")
    for name in (*names, "speed-up"):
        grid.add_column(name, justify="right")
    between = " " if width > 110 else "\n"  # a median and its spread
    for (operation, threads), group in itertools.groupby(results, lambda result: result[0].group):
        grid.add_row(f"[bold]{operation}[/bold]", f"{threads} thread" + "s" * (threads > 1))
        for case, timings in group:
            cells = [_cell(timings.get(name), case.elements, between) for name in names]
            ratio = timings["naive"].median / timings["noisefuse"].median
            grid.add_row(case.size, case.dtype, *cells, f"[bold]{ratio:.1f}x[/bold]")
        grid.add_section()
    return grid


def _cell(timing: Timing | None, elements: int, between: str) -> str:
    if timing is None:
        return ""
    spread = (timing.high - timing.low) / 2 / timing.median
    return f"{timing.median / elements * 1e9:.3g}{between}[dim]±{spread:.0%}[/dim]"


def _record(case: Case, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Times in nanoseconds per noised element."""
    scale = 1e9 / case.elements
    return {
        **dataclasses.asdict(case),
        "steps": case.steps,
        "ns_per_element": {
            name: {
                "median": t.median * scale,
                "quartiles": [t.low * scale, t.high * scale],
                "rounds": t.rounds,
            }
            for name, t in timings.items()
        },
    }
