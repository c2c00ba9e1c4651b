# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench` prints its timings with this, and keeps them in files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..shared import busy, wrapped
from .contenders import PLAIN, Case
from .timing import Device, Timing

Old: TypeAlias = dict[tuple[str, int, tuple[int, ...], str], dict[str, float]]
Result: TypeAlias = tuple[Case, dict[str, Timing]]

CREDIBLE = 0.9  # of the time of `randn`; less is no way to measure `q_sample`

COLUMNS = {
    "img/s": "images a second",
    "us": "microseconds a call, the median",
    "ns": "nanoseconds per element, at each step of a walk, the median",
    "±": "half of what lies between the quartiles",
    "GB/s": "each input read once, each output written once (at each step of a walk)",
    "copy": "GB/s as a share of copyto's (NumPy's: on one thread)",
    "plain": "time over that of a plain pass: a copy of the ids, a read of the logits",
    "old": "times as fast as in the stored run",
    "ratio": "time over noisefuse's",
}


def describe(where: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    card = [where["card"]] if "card" in where else []
    parts = [*card, where["cpu"], f"{where['processors']} processors", where["isa"], where["platform"], where["date"]]
    lines = [", ".join(map(str, parts)), versions, busy(where.get("load"))]
    return "\n".join(filter(None, lines))


def report(device: Device, results: Sequence[Result], old: Old | None, width: int) -> list[str]:
    """The report is a table if that fits into the width. Else it is a list of records."""
    columns, rivals = _columns(device, old), _rivals(device, results)
    table = aligned(_table(results, old, columns, rivals), left=2)
    if max(map(len, table)) <= width:
        notes = [_small_calls(results), *(f"{name}: {COLUMNS[name]}." for name in columns)]
        notes += [f"{name}: {COLUMNS['ratio']}; {device.rivals[name].title}." for name in rivals]
        return [*wrapped(describe(device.where).splitlines()), "", *table, "", *wrapped([*notes, *doubts(results)])]
    records = Records(device, [case for case, _ in results], old)
    lines = (line for result in results for line in records.of(*result))
    return [*records.before(), *lines, *records.after(results)]


def _columns(device: Device, old: Old | None) -> list[str]:
    return [*device.columns, *(["old"] if old is not None else [])]


def _rivals(device: Device, results: Sequence[Result]) -> list[str]:
    return [name for name in device.rivals if any(name in timings for _, timings in results)]


def _table(
    results: Sequence[Result], old: Old | None, columns: Sequence[str], rivals: Sequence[str]
) -> list[list[str]]:
    """Each case has a line. Each contender but noisefuse and the copy has a column."""
    rows = [["", "", *columns, *rivals]]
    for title, group in itertools.groupby(results, lambda result: result[0].group):
        rows.append([title])
        for case, timings in group:
            ratios = [figures(case, timings, name, old)["ratio"] if name in timings else "" for name in rivals]
            own = figures(case, timings, "noisefuse", old)
            rows.append([case.size, case.dtype, *(own[column] for column in columns), *ratios])
    return rows


class Records:
    """Each case has a line, and each of its contenders one below it, which is written at once. Comments come before and
    after them."""

    def __init__(self, device: Device, cases: Sequence[Case], old: Old | None) -> None:
        self.device: Device = device
        self.old: Old | None = old
        self.columns: list[str] = ["us", *_columns(device, old), "ratio"]
        self.widths: list[int] = [max(map(len, ("noisefuse", *device.rivals))) + 2] + [7] * len(self.columns)

    def before(self) -> list[str]:
        notes = [f"{name}: {COLUMNS[name]}." for name in self.columns]
        head = aligned([["", *self.columns]], 1, self.widths)
        return [*wrapped([*describe(self.device.where).splitlines(), *notes], "# "), *head]

    def of(self, case: Case, timings: Mapping[str, Timing]) -> list[str]:
        rows = []
        for name in timings:
            cells = figures(case, timings, name, self.old)
            rows.append([f"  {name}", *(cells[column] or "-" for column in self.columns)])
        return [f"{case.group}, {case.size} {case.dtype}", *aligned(rows, 1, self.widths)]

    def after(self, results: Sequence[Result]) -> list[str]:
        rivals = (f"{name}: {self.device.rivals[name].title}." for name in _rivals(self.device, results))
        return wrapped([_small_calls(results), *rivals, *doubts(results)], "# ")


def doubts(results: Sequence[Result]) -> list[str]:
    """Names the cases that cannot be so: `q_sample` in less time than `randn`, which is a part of its work."""
    randn = {
        (case.threads, case.shape, case.out_dtype): timings["noisefuse"].median
        for case, timings in results
        if case.operation == "randn"
    }
    said = []
    for case, timings in results:
        alone = randn.get((case.threads, case.shape, case.out_dtype))
        share = timings["noisefuse"].median / alone if alone and case.operation == "q_sample" else 1.0
        if share < CREDIBLE:
            said.append(
                f"{case} takes {share:.2f} of the time of the randn within it, which cannot be: "
                "other work disturbed the measurement, so the figures are unreliable."
            )
    return said


def figures(case: Case, timings: Mapping[str, Timing], name: str, old: Old | None = None) -> dict[str, str]:
    """Returns the numbers of one contender as a report shows them, by the names of its columns."""
    timing, own = timings[name], timings["noisefuse"]
    ns = timing.median / case.elements * 1e9
    before = (old or {}).get((case.operation, case.threads, case.shape, case.dtype), {}).get(name)
    return {
        "us": _digits(timing.median * 1e6),
        "img/s": _digits(case.shape[0] / timing.median),
        "ns": _digits(ns),
        "±": f"{timing.spread:.0%}",
        "GB/s": _digits(bandwidth(case, timings, name)),
        "copy": _digits(of_copy(case, timings, name), 2),
        "plain": _digits(timing.median / timings[case.plain].median),
        "old": f"{before / ns:.2f}" if before else "",
        "ratio": _digits(timing.median / own.median),
    }


def bandwidth(case: Case, timings: Mapping[str, Timing], name: str) -> float:
    """Returns the bytes that a call reads and writes in a second, in GB/s."""
    return case.bytes(PLAIN.get(name, case.arrays)) / timings[name].median / 1e9


def of_copy(case: Case, timings: Mapping[str, Timing], name: str) -> float:
    return bandwidth(case, timings, name) / bandwidth(case, timings, case.plain)


def _digits(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if value < 99.5 else f"{value:.0f}"


def aligned(rows: Sequence[Sequence[str]], left: int, widths: Sequence[int] = ()) -> list[str]:
    """Aligns the cells of columns: those of the first `left` to the left, others to the right. A row of one cell is a
    title."""
    widths = widths or [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1), strict=True)]
    return [
        " ".join(f"{cell:{'<>'[i >= left]}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=False)))
        .rstrip()
        for row in rows
    ]  # fmt: skip


def _small_calls(results: Sequence[Result]) -> str:
    """Says how long each operation takes on the smallest size. There a device mostly launches kernels."""
    first = min((case for case, _ in results), key=lambda case: math.prod(case.shape))
    same = [result for result in results if dataclasses.replace(result[0], operation=first.operation) == first]
    calls = [f"{case.operation} {_digits(timings['noisefuse'].median * 1e6)} us" for case, timings in same]
    return f"A call on {first.size} {first.dtype}: {', '.join(calls)}."


def record(case: Case, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Returns what `--json` writes of a case. Its times are nanoseconds per noised element."""
    scale = 1e9 / case.elements
    return {
        **dataclasses.asdict(case),
        "steps": case.steps,
        "ns_per_element": {
            name: {"median": t.median * scale, "quartiles": [t.low * scale, t.high * scale], "rounds": t.rounds}
            for name, t in timings.items()
        },
    }


def stored(path: Path) -> Old:
    """Reads a file that `--json` wrote. Its times are nanoseconds per element."""
    try:
        text = path.read_text()
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return {
            (one["operation"], one["threads"], tuple(one["shape"]), one["dtype"]): {
                name: times["median"] for name, times in one["ns_per_element"].items()
            }
            for one in json.loads(text)["results"]
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not what `noisefuse bench --json` writes") from error
