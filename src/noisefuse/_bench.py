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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from typing import Any, TypeAlias

import numpy as np

import noisefuse as nf

from ._contenders import ARRAYS, NOTES, OPERATIONS, Call, Case, contenders, processors

Result: TypeAlias = tuple[Case, dict[str, "Timing"]]
Clock: TypeAlias = Callable[[Call, int], float]  # a call, and how often it is made -> seconds of one

LEGEND = """\
ns: nanoseconds per noised element, the median; ±: half of what lies between the
quartiles. GB/s: each input read once, each output written once; copy: that as a
share of copyto's (NumPy's: on one thread). The others: time over noisefuse's."""


# ---- the clock ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the quartiles and the least of `rounds` measurements."""

    median: float
    low: float
    high: float
    least: float
    rounds: int


def _timed(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: Mapping[str, Call], *, seconds: float = 1.0, rounds: int = 5, clock: Clock = _timed
) -> dict[str, Timing]:
    """Time the calls in turn, round after round, so that a machine that slows down slows them all.

    At least `rounds` rounds, and for about `seconds`. A short call is repeated within its turn, so that the
    clock costs nothing, after some calls that warm its data and wake its threads. Before a turn there is a pause, as
    threads of OpenMP spin on for milliseconds after the work of theirs.
    """
    repeats = {name: _repeats(call, clock) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in itertools.count():
        if done >= rounds and time.perf_counter() >= end:
            break
        for name, call in calls.items():
            time.sleep(0.02)
            for _ in range(repeats[name] // 4):
                call()
            taken[name].append(clock(call, repeats[name]))
    return {name: _timing(values) for name, values in taken.items()}


def _repeats(call: Call, clock: Clock) -> int:
    call()  # warm-up: first touch of the buffers, compilation, the start of threads
    taken = [clock(call, 1)]
    while sum(taken) < 0.01:
        taken.append(clock(call, 1))
    return math.ceil(0.01 / min(taken))


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Timing(median, low, high, min(values), len(values))


# ---- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Where it is, what is measured there unless the user says, and how. `--quick` takes the first two sizes."""

    where: Mapping[str, Any]
    operations: Sequence[str]
    sizes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]
    calls: Callable[[Case], dict[str, Call]]
    threads: int = 0
    clock: Clock = _timed


def cpu() -> Device:
    sizes = ((1, 16, 7), (64, 3, 32, 32), (256, 3, 128, 128))
    dtypes = ("float32", "float64", "float16", "uint8")
    return Device(machine(), OPERATIONS, sizes, dtypes, contenders, threads=nf.info()["threads"])


def run(arguments: argparse.Namespace) -> None:
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise OSError(f"cannot write {arguments.json}: no such directory")
    device = cpu() if arguments.device == "cpu" else import_module("._bench_cuda", __package__).device()
    results = measure(device, cases(device, arguments), quick=arguments.quick)
    print(describe(device.where), report(results), sep="\n")
    if arguments.json is not None:
        written = {"machine": device.where, "results": [_record(*result) for result in results]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
        print(f"wrote {arguments.json}")


def cases(device: Device, arguments: argparse.Namespace) -> list[Case]:
    sizes = arguments.sizes or (device.sizes[:2] if arguments.quick else device.sizes)
    dtypes = arguments.dtypes or (device.dtypes[:1] if arguments.quick else device.dtypes)
    grid = itertools.product(device.operations, arguments.threads or [device.threads], sizes, dtypes)
    return [case for case in itertools.starmap(Case, grid) if case.exists]


def measure(device: Device, cases: Sequence[Case], *, quick: bool) -> list[Result]:
    from rich.console import Console
    from rich.progress import Progress

    results: list[Result] = []
    # refreshed by hand: a bar that redraws itself would run beside what is measured
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=str(case), refresh=True)
            results.append((case, _measure(device, case, *((0.1, 3) if quick else (1.0, 5)))))
            progress.advance(task)
    return results


def _measure(device: Device, case: Case, seconds: float, rounds: int) -> dict[str, Timing]:
    calls = device.calls(dataclasses.replace(case))  # its arrays go when the copy goes
    with nf.set_num_threads(case.threads or 1):
        return interleaved(calls, seconds=seconds, rounds=rounds, clock=device.clock)


# ---- the report --------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where, when and with what the figures were measured."""
    info = nf.info()
    versions = {"noisefuse": info["version"], "python": platform.python_version()}
    for name in ("numpy", "numba", "torch", "jax", "mkl", "cupy-cuda12x", "cupy-cuda13x"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": info["cpu"],
        "processors": processors(),
        "isa": info["isa"],
        "backend": info["backend"],
        "platform": f"{platform.system()} {platform.machine()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions,
    }


def describe(where: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    card = [where["card"]] if "card" in where else []
    parts = [*card, where["cpu"], f"{where['processors']} processors", where["isa"], where["platform"], where["date"]]
    return f"{', '.join(map(str, parts))}\n{versions}"


def report(results: Sequence[Result]) -> str:
    """A line for each case, a column for each contender beside noisefuse and the copy, and what the columns mean."""
    names = [name for name in NOTES if any(name in timings for _, timings in results)]
    rows = [["", "", "ns", "±", "GB/s", "copy", *names]]
    for title, group in itertools.groupby(results, lambda result: result[0].group):
        rows += [[title], *(_row(*result, names) for result in group)]
    notes = [f"{name}: {NOTES[name]}." for name in names if NOTES[name]]
    return "\n".join([*aligned(rows, left=2), "", _small_calls(results), LEGEND, *notes])


def _row(case: Case, timings: Mapping[str, Timing], names: Sequence[str]) -> list[str]:
    own, copy, moved = timings["noisefuse"], timings.get("copyto"), case.bytes(ARRAYS[case.operation])
    return [
        case.size,
        case.dtype,
        _digits(own.median / case.elements * 1e9),
        f"{(own.high - own.low) / 2 / own.median:.0%}",
        _digits(moved / own.median / 1e9) if moved else "",
        f"{moved / case.bytes(2) * copy.median / own.median:.2f}" if moved and copy else "",
        *(_digits(timings[name].median / own.median) if name in timings else "" for name in names),
    ]


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns, the first ones written from their left edge; a row of one cell is a title."""
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    return [
        " ".join(f"{cell:{'<>'[i >= left]}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=False)))
        .rstrip()
        for row in rows
    ]  # fmt: skip


def _small_calls(results: Sequence[Result]) -> str:
    """What a call costs at the least, on a device that of a launch."""
    first = min((case for case, _ in results), key=lambda case: math.prod(case.shape))
    same = [result for result in results if dataclasses.replace(result[0], operation=first.operation) == first]
    calls = [f"{case.operation} {_digits(timings['noisefuse'].median * 1e6)} us" for case, timings in same]
    return f"A call on {first.size} {first.dtype}: {', '.join(calls)}."


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
