# SPDX-License-Identifier: Apache-2.0
"""Writes a software bill of materials of the installed wheel (CycloneDX, JSON):

python tools/sbom.py PYTHON FILE.json    PYTHON: the interpreter of an environment with noisefuse and nothing else

It needs cyclonedx-bom. The extension module contains no third-party code, so the only part is the package that pip
installed: NumPy. Any other package, or a missing one, is an error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
NAME = "noisefuse"


def declared() -> set[str]:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    return {re.match(r"[\w-]+", line)[0] for line in dependencies}


def of_environment(python: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--mc-type", "library"]
    done = subprocess.run([*command, "--pyproject", str(PYPROJECT), python], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def with_version(bill: dict[str, Any], version: str) -> dict[str, Any]:
    """Returns the bill with a version. pyproject.toml has none, because the package states it."""
    root = bill["metadata"]["component"] | {"version": version, "purl": f"pkg:pypi/{NAME}@{version}"}
    bill["metadata"]["component"] = root
    found = {part["name"] for part in bill["components"]}
    if root["name"] != NAME or found != declared():
        raise SystemExit(f"expected the parts {sorted(declared())} of {NAME}, got {sorted(found)} of {root['name']}")
    return bill


def main() -> None:
    python, file = sys.argv[1:]
    version = subprocess.run(
        [python, "-c", f"import {NAME}; print({NAME}.__version__)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    Path(file).write_text(json.dumps(with_version(of_environment(python), version), indent=1) + "\n")
    print(f"{file}: {NAME} {version} and {', '.join(sorted(declared()))}")


if __name__ == "__main__":
    main()
