# SPDX-License-Identifier: Apache-2.0
"""`noisefuse selftest`: tests whether the bits here are the promised ones, and the noise is good (docs/quality.md)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict

import noisefuse as nf

from .campaign import Result, differential, statistics

# The number of compared calls, and of drawn numbers.
LEVELS = {"quick": (2_000, 1 << 22), "night": (20_000, 1 << 28), "full": (100_000, 1 << 30)}


def run(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 if a test failed."""
    seed = int.from_bytes(os.urandom(4), "little") if arguments.seed is None else arguments.seed
    cases, numbers = LEVELS[arguments.level]
    quick = arguments.level == "quick"
    print(f"# noisefuse {nf.__version__} on {nf.info()['cpu']}; --level {arguments.level} --seed {seed}")
    compared = differential.contenders(numba=not quick)
    left_out = ", numba left out at this level" if quick and "numba" not in compared else ""
    print(f"# against the reference: {', '.join(compared) or 'nothing'}{left_out}")
    results = differential.run(cases, seed, numba=not quick, progress=_progress)
    results += statistics.run(numbers, seed, progress=_progress)
    _print(results)
    if arguments.json:
        written = {"machine": nf.info(), "level": arguments.level, "seed": seed, "results": [*map(asdict, results)]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(result.passed for result in results) else 1


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _print(results: Iterable[Result]) -> None:
    _progress("")
    head = ("name", "cases", "result", "worst", "seconds")
    rows = [(r.name, f"{r.cases:,}", "ok" if r.passed else "FAILED", r.worst, f"{r.seconds:.1f}") for r in results]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in (line for result in results for line in result.lines):
        print(line)
