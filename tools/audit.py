# SPDX-License-Identifier: Apache-2.0
"""Runs pip-audit on what is installed, without the advisories that tools/accepted_advisories.toml accepts. An entry
there has the advisory's id, why it does not concern noisefuse, and the day on which it is looked at again."""

import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

FILE = Path(__file__).with_name("accepted_advisories.toml")


def accepted(text: str, today: date) -> list[str]:
    """Returns the ids. An entry that lacks a part, or whose day has come, stops the run."""
    entries = tomllib.loads(text).get("advisory", [])
    for entry in entries:
        if set(entry) != {"id", "reason", "until"} or not isinstance(entry["until"], date):
            raise SystemExit(f"expected an id, a reason and a day, until, got {entry}")
        if entry["until"] <= today:
            raise SystemExit(f"{entry['id']}: accepted until {entry['until']}: look at it again")
    return [entry["id"] for entry in entries]


if __name__ == "__main__":
    ids = accepted(FILE.read_text(), date.today())
    sys.exit(subprocess.run([sys.executable, "-m", "pip_audit", *(f"--ignore-vuln={id}" for id in ids)]).returncode)
