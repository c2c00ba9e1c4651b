# SPDX-License-Identifier: Apache-2.0
"""What `noisefuse selftest` runs: backends against the reference, and the noise against theory (docs/quality.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A line of the summary; `lines` say more where something is wrong."""

    name: str
    cases: int
    passed: bool
    worst: str
    seconds: float
    lines: tuple[str, ...] = ()
