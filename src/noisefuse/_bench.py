# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench`: what an operation costs here, beside NumPy and, where installed, torch, JAX and MKL."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import noisefuse as nf

from ._contenders import ARRAYS, OPERATIONS, RIVALS, Call, Case, contenders, processors
from .arrays import float_dtype

Old: TypeAlias = dict[tuple[str, int, tuple[int, ...], str], dict[str, float]]
Result: TypeAlias = tuple[Case, dict[str, "Timing"]]
Clock: TypeAlias = Callable[[Call, int], float]  # a call, and how often it is made -> seconds of one

COLUMNS = {
    "img/s": "images a second",
    "us": "microseconds a call, the median",
    "ns": "nanoseconds per noised element, the median",
    "±": "half of what lies between the quartiles",
    "GB/s": "each input read once, each output written once (at each step of a walk)",
    "copy": "GB/s as a share of copyto's (NumPy's: on one thread)",
    "old": "times as fast as in the stored run",
    "ratio": "time over noisefuse's",
}


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
    case: type[Case] = Case
    columns: Sequence[str] = ("ns", "±", "GB/s", "copy")


def cpu() -> Device:
    sizes = ((1, 16, 7), (64, 3, 32, 32), (256, 3, 128, 128))
    dtypes = ("float32", "float64", "float16", "uint8")
    return Device(machine(), OPERATIONS, sizes, dtypes, contenders, threads=nf.info()["threads"])


def run(arguments: argparse.Namespace) -> None:
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.parent.is_dir():
            raise OSError(f"cannot write {path}: no such directory")
    old = arguments.compare and stored(arguments.compare)
    plot = arguments.plot and import_module("._bench_plot", __package__).Plot(arguments.plot)
    device = _device(arguments)
    asked = cases(device, arguments)
    measured = measure(device, asked, quick=arguments.quick)
    if sys.stdout.isatty():
        results = [*measured]
        print("\n".join(report(device, results, old, shutil.get_terminal_size().columns)))
    else:
        results = _print_each(Records(device, asked, old), measured)
    if arguments.json:
        written = {"machine": device.where, "results": [_record(*result) for result in results]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    if plot:
        plot.draw(device.where, results)


def _print_each(records: Records, measured: Iterator[Result]) -> list[Result]:
    """As they are measured."""
    results: list[Result] = []
    print("\n".join(records.before()), flush=True)
    for result in measured:
        results.append(result)
        print("\n".join(records.of(*result)), flush=True)
    print("\n".join(records.after(results)))
    return results


def _device(arguments: argparse.Namespace) -> Device:
    if arguments.augment and arguments.device != "cpu":
        raise OSError("bench --augment runs on the CPU alone")
    if not arguments.augment and arguments.device == "cpu":
        return cpu()
    module = import_module("._bench_augment" if arguments.augment else "._bench_cuda", __package__)
    device: Device = module.device()
    return device


def cases(device: Device, arguments: argparse.Namespace) -> list[Case]:
    sizes = arguments.sizes or (device.sizes[:2] if arguments.quick else device.sizes)
    dtypes = arguments.dtypes or (device.dtypes[:1] if arguments.quick else device.dtypes)
    if "bfloat16" in dtypes:
        float_dtype("bfloat16")  # where it is missing, to know before the work
    grid = itertools.product(device.operations, arguments.threads or [device.threads], sizes, dtypes)
    found = [case for case in itertools.starmap(device.case, grid) if case.exists]
    if not found:
        raise ValueError(f"none of {', '.join(device.operations)} is measured in {', '.join(dtypes)}")
    return found


def measure(device: Device, cases: Sequence[Case], *, quick: bool) -> Iterator[Result]:
    seen = sys.stderr.isatty()
    for i, case in enumerate(cases):
        if seen:
            print(f"\r\033[K{i + 1} of {len(cases)}: {case}", end="", file=sys.stderr, flush=True)
        timings = _measure(device, case, *((0.1, 3) if quick else (1.0, 5)))
        if seen:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        yield case, timings


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


def report(device: Device, results: Sequence[Result], old: Old | None, width: int) -> list[str]:
    """A table where that fits into the width, else records."""
    columns, rivals = _columns(device, old), _rivals(results)
    table = aligned(_table(results, old, columns, rivals), left=2)
    if max(map(len, table)) <= width:
        notes = [_small_calls(results), *(f"{name}: {COLUMNS[name]}." for name in columns)]
        notes += [f"{name}: {COLUMNS['ratio']}; {RIVALS[name]}." for name in rivals]
        return [*describe(device.where).splitlines(), "", *table, "", *notes]
    records = Records(device, [case for case, _ in results], old)
    lines = (line for result in results for line in records.of(*result))
    return [*records.before(), *lines, *records.after(results)]


def _columns(device: Device, old: Old | None) -> list[str]:
    return [*device.columns, *(["old"] if old is not None else [])]


def _rivals(results: Sequence[Result]) -> list[str]:
    return [name for name in RIVALS if any(name in timings for _, timings in results)]


def _table(
    results: Sequence[Result], old: Old | None, columns: Sequence[str], rivals: Sequence[str]
) -> list[list[str]]:
    """A line for each case, a column for each contender beside noisefuse and the copy."""
    rows = [["", "", *columns, *rivals]]
    for title, group in itertools.groupby(results, lambda result: result[0].group):
        rows.append([title])
        for case, timings in group:
            ratios = [figures(case, timings, name, old)["ratio"] if name in timings else "" for name in rivals]
            own = figures(case, timings, "noisefuse", old)
            rows.append([case.size, case.dtype, *(own[column] for column in columns), *ratios])
    return rows


class Records:
    """A line for each time, which waits for none of the others, and comments before and after them."""

    NAMES = ("operation", "threads", "shape", "dtype", "by")

    def __init__(self, device: Device, cases: Sequence[Case], old: Old | None) -> None:
        self.device, self.old = device, old
        self.columns = ["us", *_columns(device, old), "ratio"]
        named = [self.NAMES, *(self._named(case, name) for case in cases for name in ("noisefuse", *RIVALS))]
        self.widths = [max(map(len, column)) for column in zip(*named, strict=True)] + [8] * len(self.columns)

    def before(self) -> list[str]:
        notes = (f"{name}: {COLUMNS[name]}." for name in self.columns)
        head = aligned([[*self.NAMES, *self.columns]], len(self.NAMES), self.widths)
        return [*(f"# {line}" for line in (*describe(self.device.where).splitlines(), *notes)), *head]

    def of(self, case: Case, timings: Mapping[str, Timing]) -> list[str]:
        rows = []
        for name in timings:
            cells = figures(case, timings, name, self.old)
            rows.append([*self._named(case, name), *(cells[column] or "-" for column in self.columns)])
        return aligned(rows, len(self.NAMES), self.widths)

    def after(self, results: Sequence[Result]) -> list[str]:
        return [f"# {_small_calls(results)}", *(f"# {name}: {RIVALS[name]}." for name in _rivals(results))]

    @staticmethod
    def _named(case: Case, name: str) -> tuple[str, ...]:
        return case.operation, str(case.threads), case.size, case.dtype, name


def figures(case: Case, timings: Mapping[str, Timing], name: str, old: Old | None = None) -> dict[str, str]:
    """What a report says of one contender, under the names of its columns."""
    timing, own = timings[name], timings["noisefuse"]
    ns = timing.median / case.elements * 1e9
    before = (old or {}).get((case.operation, case.threads, case.shape, case.dtype), {}).get(name)
    return {
        "us": _digits(timing.median * 1e6),
        "img/s": _digits(case.shape[0] / timing.median),
        "ns": _digits(ns),
        "±": f"{(timing.high - timing.low) / 2 / timing.median:.0%}",
        "GB/s": _digits(bandwidth(case, timings, name)),
        "copy": _digits(of_copy(case, timings, name), 2),
        "old": f"{before / ns:.2f}" if before else "",
        "ratio": _digits(timing.median / own.median),
    }


def bandwidth(case: Case, timings: Mapping[str, Timing], name: str) -> float:
    """In GB/s."""
    return case.bytes(2 if name == "copyto" else ARRAYS[case.operation]) / timings[name].median / 1e9


def of_copy(case: Case, timings: Mapping[str, Timing], name: str) -> float:
    return bandwidth(case, timings, name) / bandwidth(case, timings, "copyto")


def _digits(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if value < 99.5 else f"{value:.0f}"


def aligned(rows: Sequence[Sequence[str]], left: int, widths: Sequence[int] = ()) -> list[str]:
    """Columns, the first ones written from their left edge; a row of one cell is a title."""
    widths = widths or [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
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


def stored(path: Path) -> Old:
    """Nanoseconds per element, of a file that `--json` wrote."""
    try:
        return {
            (one["operation"], one["threads"], tuple(one["shape"]), one["dtype"]): {
                name: times["median"] for name, times in one["ns_per_element"].items()
            }
            for one in json.loads(path.read_text())["results"]
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not what `noisefuse bench --json` writes") from error
