# SPDX-License-Identifier: Apache-2.0
"""The tests of `noisefuse selftest`: backends against the reference, and the noise against theory (docs/quality.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A line of the summary; `lines` give details of errors."""

    name: str
    cases: int
    passed: bool
    worst: str
    seconds: float
    lines: tuple[str, ...] = ()
