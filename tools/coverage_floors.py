# SPDX-License-Identifier: Apache-2.0
"""Checks a floor of the tests' coverage for each folder of the package:

python tools/coverage_floors.py coverage.json    the file of `pytest --cov --cov-report json`

It counts lines and branches together, in per cent. Raise a floor if a folder lies well above it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FLOORS = {
    "": 95,
    "arguments": 97,
    "augment": 95,
    "backends": 93,
    "backends/cuda": 93,
    "backends/numba": 95,
    "backends/triton": 93,
    "call": 97,
    "commands": 92,
    "commands/bench": 87,
    "commands/noise": 88,
    "ground": 93,
    "interop": 96,
    "interop/dask": 93,
    "interop/diffusers": 93,
    "interop/jax": 70,
    "interop/k_diffusion": 98,
    "interop/torch": 85,
    "interop/transforms": 97,
    "language": 96,
    "operations": 96,
    "samplers": 98,
    "sampling": 95,
    "tokens": 95,
}
COUNTED = ("covered_lines", "covered_branches", "num_statements", "num_branches")


def by_folder(report: dict[str, Any]) -> dict[str, float]:
    """Returns the coverage of each folder of the package, in per cent."""
    sums: dict[str, Counter[str]] = {}
    for name, file in report["files"].items():
        parts = Path(name.replace("\\", "/")).parts
        folder = "/".join(parts[-1 - parts[::-1].index("noisefuse") :][1:-1])  # a checkout may lie in another noisefuse
        summary = file["summary"]
        sums.setdefault(folder, Counter()).update({key: summary[key] for key in COUNTED})
    return {
        folder: 100 * (n["covered_lines"] + n["covered_branches"]) / max(n["num_statements"] + n["num_branches"], 1)
        for folder, n in sums.items()
    }


def below(found: dict[str, float]) -> list[str]:
    """Returns a line for each folder that lies below its floor, has none, or does not exist."""
    wrong = []
    for folder in sorted({*found, *FLOORS}):
        name = f"noisefuse/{folder}".rstrip("/")
        if folder not in FLOORS or folder not in found:
            wrong.append(f"{name}: expected a folder with a floor, got folders {sorted(found)}, floors {FLOORS}")
        elif found[folder] < FLOORS[folder]:
            wrong.append(f"{name}: expected at least {FLOORS[folder]} %, got {found[folder]:.1f}")
    return wrong


def main() -> None:
    found = by_folder(json.loads(Path(sys.argv[1]).read_text()))
    for folder, share in sorted(found.items()):
        print(f"{share:5.1f} %  noisefuse/{folder}")
    if wrong := below(found):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
