# SPDX-License-Identifier: Apache-2.0
"""`noisefuse selftest`: tests whether the bits here are the promised ones, and the noise is good (docs/quality.md)."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

import noisefuse as nf

from .campaign import Result, differential, statistics
from .shared import WIDTH, Progress, check_writable, wrapped

# The number of compared calls, and of drawn numbers.
LEVELS = {"quick": (2_000, 1 << 22), "night": (20_000, 1 << 28), "full": (100_000, 1 << 30)}


def run(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 if a test failed."""
    check_writable(arguments.json)
    began, progress = time.monotonic(), Progress()
    seed = int.from_bytes(os.urandom(4), "little") if arguments.seed is None else arguments.seed
    cases, numbers = LEVELS[arguments.level]
    quick = arguments.level == "quick"
    about = [f"noisefuse {nf.__version__} on {nf.info()['cpu']}; --level {arguments.level} --seed {seed}"]
    compared = differential.contenders(numba=not quick)
    left_out = ", numba left out at this level" if quick and "numba" not in compared else ""
    about.append(f"against the reference: {', '.join(compared) or 'nothing'}{left_out}")
    print(*wrapped(about, "# "), sep="\n", flush=True)
    results = differential.run(cases, seed, numba=not quick, progress=lambda line: progress(line[:WIDTH]))
    results += statistics.run(numbers, seed, progress=progress)
    progress.clear()
    _print(results)
    if arguments.json:
        written = {"machine": nf.info(), "level": arguments.level, "seed": seed, "results": [*map(asdict, results)]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    print(verdict(results, time.monotonic() - began))
    return 0 if all(result.passed for result in results) else 1


# What the groups of checks are, by the first word of their names.
GROUPS = {
    "bits": "random calls on each backend, whose bits must be the reference's (a call that is wrong must raise alike)",
    "noise": "numbers against theory, with the rarest of so many p-values",
}


def _print(results: Sequence[Result]) -> None:
    for group, of_group in itertools.groupby(results, lambda result: result.name.partition(": ")[0]):
        lines = wrapped([f"{group}: {GROUPS[group]}"], "# ")
        rows = [[r.name.partition(": ")[2], f"{r.cases:,}", "ok" if r.passed else "FAILED", r.worst] for r in of_group]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [" ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        print(*lines, sep="\n")
    for line in (line for result in results for line in result.lines):
        print(line)


def verdict(results: Sequence[Result], seconds: float) -> str:
    """Returns the last line: whether all is well."""
    failed = [result.name for result in results if not result.passed]
    what = (
        f"{len(failed)} of {len(results)} checks FAILED: {', '.join(failed)}"
        if failed
        else f"all {len(results)} checks passed"
    )
    return f"{what}, in {seconds:.0f} s"
