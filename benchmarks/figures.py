# SPDX-License-Identifier: Apache-2.0
"""The shared part of the files of figures: the figures, their measurement, and the report.

A file has FIGURES, and TITLE, ABOUT and SUFFIX for its report. conftest.py makes a test of each figure, which fails if
the figure misses its target. A figure's calls and those of its rival run in turn. pytest-benchmark's own times are
those of our calls alone, for `--benchmark-compare` between commits.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import noisefuse as nf
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.results import describe
from noisefuse.commands.bench.timing import interleaved, machine, timed
from noisefuse.commands.shared import busy, load
from noisefuse.ground.processors import processors

RESULTS = Path(__file__).parent / "results"

IMAGES = (256, 3, 128, 128)
LARGE = (1024, 65536)  # 2^26 elements: twice 256 MiB, beyond the caches
ACTION = (1, 16, 7)

SCHEDULE = nf.Schedule.linear(1000)
NOISE = nf.Noise(0)


# ---- figures -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    ours: Call
    other: Call
    scale: float = 1.0  # the factor of the rival's time


def thread_seconds(call: Call, repeats: int) -> float:
    """Returns a clock for `interleaved` that counts this thread alone, so that other processes disturb less."""
    return timed(call, repeats, time.thread_time)


def microseconds(call: Call) -> float:
    """Returns this thread's time of one call, in the quickest of many turns: other work on the machine only adds to
    it."""
    return interleaved({"ours": call}, seconds=4, clock=thread_seconds)["ours"].least * 1e6


def processor_seconds(call: Call, repeats: int) -> float:
    """Returns the same of all threads of this process, as rivals have their own."""
    return timed(call, repeats, time.process_time)


def child(code: str, **environment: str) -> float:
    command, variables = [sys.executable, "-c", code], os.environ | environment
    return float(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)


PEAK = """
import re
from pathlib import Path
import numpy as np
import noisefuse as nf

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def memory(code: str) -> float:
    """Runs code with nf, np and `peak()` in a new process, and returns its output. peak() is VmHWM, which starts anew
    in a process. (getrusage's ru_maxrss starts with the parent's.)"""
    if not Path("/proc/self/status").exists():
        raise NotImplementedError("needs /proc/self/status")
    return child(PEAK + code)


@dataclass(frozen=True)
class Figure:
    """A figure. With a Pair, ">=" bounds the rival's time over ours, "<=" ours over the rival's. Else it is a number of
    `unit`."""

    name: str
    sense: str
    target: float
    measure: Callable[[], Pair | float]
    threads: int = 1
    isa: str | None = None  # forced, in a new process
    needs: str | None = None  # the instruction set for which the target holds
    unit: str = "x"

    def missing(self) -> str | None:
        """Returns why it cannot be measured here."""
        info = nf.info()
        if self.isa is not None and info["isas"].get(self.isa) != "available":
            return f"{self.isa} is not available"
        if self.needs is not None and info["isa"] != self.needs:
            return f"{self.needs} is not in use"
        if self.threads > processors():
            return f"only {processors()} processors"
        if self.threads > 1 or self.unit != "x":  # other work changes ratios on one thread least
            return busy(load()) or None
        return None

    def met(self, value: float) -> bool:
        return value >= self.target if self.sense == ">=" else value <= self.target

    def compare(self, pair: Pair) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.threads > 1 else {"clock": processor_seconds}
        timings = interleaved({"ours": pair.ours, "other": pair.other}, seconds=2, **options)
        ours, other = timings["ours"].median, timings["other"].median * pair.scale
        return {
            "value": other / ours if self.sense == ">=" else ours / other,
            "isa": nf.info()["isa"],
            "ours_ms": ours * 1e3,
            "other_ms": other * 1e3,
            "rounds": timings["ours"].rounds,
        }

    def in_child(self) -> dict[str, Any]:
        """Does the same with the instruction set forced, which a process chooses once."""
        environment = os.environ | {"NOISEFUSE_ISA": str(self.isa)}
        command = [sys.executable, str(Path(__file__).with_name("test_forward.py")), self.name]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(done.stdout))


def test_figure(figure: Figure, request: pytest.FixtureRequest, records: list[dict[str, Any]]) -> None:
    record: dict[str, Any] = {"figure": figure.name, "target": f"{figure.sense} {figure.target:g} {figure.unit}"}
    records.append(record)
    measure(figure, record, request)
    record["met"] = figure.met(record["value"])
    assert record["met"], f"{record['value']:.3g}, expected {record['target']}"


def measure(figure: Figure, record: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Measures outside the test: after a failure, a test's frame stays alive with all arrays."""
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


# ---- the report --------------------------------------------------------------------------------------------


def processor() -> str:
    """Returns the name in file names: Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz -> intel-xeon-gold-6230-cpu-2-10ghz"""
    return "-".join(re.sub(r"\((r|tm)\)|[^a-z0-9]+", " ", nf.info()["cpu"].lower()).split())


def write(taken: list[dict[str, Any]], module: Any) -> None:
    """Writes results/<processor>-<suffix>.json and .md, if all figures of the file were measured."""
    if len(taken) < len(module.FIGURES) or not all("met" in record or "skipped" in record for record in taken):
        return
    where = machine()
    name = processor() + module.SUFFIX
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, "figures": taken}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(report(module.TITLE, module.ABOUT, where, taken))


def report(title: str, about: str, where: dict[str, Any], taken: list[dict[str, Any]]) -> str:
    lines = [
        f"# {title}: figures to reach",
        "",
        *(f"{line}  " for line in describe(where).splitlines()),
        "",
        about,
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
