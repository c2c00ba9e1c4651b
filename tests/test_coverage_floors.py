# SPDX-License-Identifier: Apache-2.0
"""Coverage is held to a floor for each folder of the package (tools/coverage_floors.py)."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "tools" / "coverage_floors.py"))


def file(lines, of, branches=0, of_branches=0):
    counts = {"covered_lines": lines, "num_statements": of, "covered_branches": branches, "num_branches": of_branches}
    return {"summary": counts}


def test_shares_are_those_of_folders():
    report = {
        "/noisefuse/noisefuse/src/noisefuse/rows.py": file(8, 10, 1, 2),
        "/x/noisefuse/noise.py": file(3, 8),
        "C:\\x\\noisefuse\\samplers\\adams.py": file(1, 1),
        "src/noisefuse/samplers/__init__.py": file(0, 0),
    }
    assert SCRIPT["by_folder"]({"files": report}) == {"": 100 * 12 / 20, "samplers": 100.0}


@pytest.mark.parametrize("folder", SCRIPT["FLOORS"])
def test_a_folder_below_its_floor_is_told(folder):
    enough = {folder: float(floor) for folder, floor in SCRIPT["FLOORS"].items()}
    assert SCRIPT["below"](enough) == []
    (line,) = SCRIPT["below"](enough | {folder: enough[folder] - 0.2})
    assert line.startswith(f"noisefuse/{folder}".rstrip("/") + ": expected at least")


def test_every_folder_of_the_package_has_a_floor():
    package = ROOT / "src" / "noisefuse"
    folders = {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert {folder if folder != "." else "" for folder in folders} == {*SCRIPT["FLOORS"]}
    assert len(SCRIPT["below"](dict.fromkeys([*SCRIPT["FLOORS"], "new"], 100.0))) == 1
