# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench`: six common pieces of work beside other libraries, or a table of operations, sizes and dtypes."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import noisefuse as nf

from ...arguments.arrays import float_dtype
from ..shared import Progress, busy, check_writable
from . import pairs
from .contenders import OPERATIONS, RIVALS, Case, name_missing
from .contenders import contenders as libraries
from .results import Records, Result, record, report, stored
from .timing import Device, Timing, interleaved, machine


def cpu() -> Device:
    sizes = ((1, 16, 7), (64, 3, 32, 32), (256, 3, 128, 128))
    dtypes = ("float32", "float64", "float16", "uint8")
    return Device(machine(), OPERATIONS, sizes, dtypes, libraries, nf.info()["threads"], rivals=RIVALS)


def run(arguments: argparse.Namespace) -> None:
    of_table = ("table", "sizes", "dtypes", "threads", "compare")
    if arguments.device != "cpu":
        run_on(import_module(".cuda", __package__).device(), arguments)
    elif any(getattr(arguments, name) for name in of_table):
        run_on(cpu(), arguments)
    else:
        check_writable(arguments.json)
        where = machine()
        records = pairs.run(where, quick=arguments.quick)
        _write(arguments, where, {"pairs": records})


def run_on(device: Device, arguments: argparse.Namespace) -> list[Result]:
    """Measures the cases of a device that the arguments name, prints them, and writes them down."""
    check_writable(arguments.json)
    old = arguments.compare and stored(arguments.compare)
    asked = cases(device, arguments)
    name_missing(device.rivals.values())
    if warning := busy(device.where.get("load")):
        print(f"noisefuse bench: {warning}", file=sys.stderr)
    measured = measure(device, asked, quick=arguments.quick)
    if sys.stdout.isatty():
        results = [*measured]
        print("\n".join(report(device, results, old, shutil.get_terminal_size().columns)))
    else:
        results = _print_each(Records(device, asked, old), measured)
    _write(arguments, device.where, {"results": [record(*result) for result in results]})
    return results


def _write(arguments: argparse.Namespace, where: Mapping[str, Any], found: dict[str, Any]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, **found}, indent=1) + "\n")


def _print_each(records: Records, measured: Iterator[Result]) -> list[Result]:
    """Prints results as they are measured."""
    results: list[Result] = []
    print("\n".join(records.before()), flush=True)
    for result in measured:
        results.append(result)
        print("\n".join(records.of(*result)), flush=True)
    print("\n".join(records.after(results)))
    return results


def cases(device: Device, arguments: argparse.Namespace) -> list[Case]:
    sizes = arguments.sizes or (device.sizes[:2] if arguments.quick else device.sizes)
    dtypes = arguments.dtypes or (device.dtypes[: device.quick] if arguments.quick else device.dtypes)
    if "bfloat16" in dtypes:
        float_dtype("bfloat16")  # if it is missing, the error comes before the work
    grid = itertools.product(device.operations, arguments.threads or [device.threads], sizes, dtypes)
    asked = [case for case in itertools.starmap(device.case, grid) if case.exists]
    if not asked:
        raise ValueError(f"none of {', '.join(device.operations)} is measured in {', '.join(dtypes)}")
    return asked


def measure(device: Device, cases: Sequence[Case], *, quick: bool) -> Iterator[Result]:
    progress = Progress()
    for i, case in enumerate(cases):
        progress(f"{i + 1} of {len(cases)}: {case}")
        timings = _measure(device, case, *((0.1, 3) if quick else (1.0, 5)))
        progress.clear()
        yield case, timings


def _measure(device: Device, case: Case, seconds: float, rounds: int) -> dict[str, Timing]:
    calls = device.calls(dataclasses.replace(case))  # its arrays are freed with the copy
    with nf.set_num_threads(case.threads or 1):
        return interleaved(calls, seconds=seconds, rounds=rounds, clock=device.clock)
