# SPDX-License-Identifier: Apache-2.0
"""This times calls, and describes the devices that they run on."""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, TypeAlias

import numpy as np

import noisefuse as nf

from ...ground.processors import processors
from ..shared import load
from .contenders import Call, Case, Rival

Clock: TypeAlias = Callable[[Call, int], float]  # from a call and its number of repetitions to the seconds of one


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the quartiles and the least of `rounds` measurements."""

    median: float
    low: float
    high: float
    least: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half of what lies between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def timed(call: Call, repeats: int, now: Callable[[], float]) -> float:
    """Returns the mean time of a call over so many repeats. The clock is `now`."""
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def _on_the_wall(call: Call, repeats: int) -> float:
    return timed(call, repeats, time.perf_counter)


def interleaved(
    calls: Mapping[str, Call], *, seconds: float = 1.0, rounds: int = 5, clock: Clock = _on_the_wall
) -> dict[str, Timing]:
    """Times the calls in turn, round after round, so that a machine that slows down slows them all.

    It runs at least `rounds` rounds, and for about `seconds`. A short call is repeated within its turn, so that the
    clock costs nothing, after some calls that warm its data and wake its threads. There is a pause before each turn,
    because threads of OpenMP spin for milliseconds after their work.
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


@dataclass(frozen=True)
class Device:
    """The place of a benchmark, its default measurements, its clock, and its rivals by their names. `--quick` takes
    the first two sizes, and so many dtypes."""

    where: Mapping[str, Any]
    operations: Sequence[str]
    sizes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]
    calls: Callable[[Case], dict[str, Call]]
    threads: int = 0
    clock: Clock = _on_the_wall
    case: type[Case] = Case
    columns: Sequence[str] = ("ns", "±", "GB/s", "copy")
    quick: int = 1
    rivals: Mapping[str, Rival] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    """Returns where and when the figures were measured, and with which versions."""
    info = nf.info()
    versions = {"noisefuse": info["version"], "python": platform.python_version()}
    for name in ("numpy", "numba", "torch", "jax", "mkl", "cupy-cuda12x", "cupy-cuda13x"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": info["cpu"],
        "processors": processors(),
        "load": load(),
        "isa": info["isa"],
        "backend": info["backend"],
        "platform": f"{platform.system()} {platform.machine()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions,
    }
