# SPDX-License-Identifier: Apache-2.0
"""`noisefuse selftest`: its table, its file, its exit status."""

import json

import pytest

from noisefuse.commands import selftest as _selftest
from noisefuse.commands.campaign import Result, statistics
from noisefuse.commands.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Makes a level of a few calls and numbers."""
    monkeypatch.setitem(_selftest.LEVELS, "quick", (20, 1 << 16))


def test_it_passes_and_writes_what_it_prints(tmp_path, capsys):
    """It prints the given seed, a line for each result; and the same in JSON."""
    path = tmp_path / "results.json"
    assert main(["selftest", "--seed", "11", "--json", str(path)]) == 0
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "--level quick --seed 11" in shown
    assert "numba left out" in shown.replace("\n#", "")
    assert written["level"] == "quick"
    assert written["seed"] == 11
    assert {"cpu", "isas", "version"} <= written["machine"].keys()
    for result in written["results"]:
        assert result["passed"] is True
        assert result["name"].partition(": ")[2] in shown
        assert result["worst"] in shown


def test_a_failure_is_the_exit_status(monkeypatch, capsys):
    """The status is 1, and the lines with details stand between the table and the verdict."""
    bad = Result("noise: planted", 5, False, "p 0", 0.0, ("suspicious, with seed 1",))
    monkeypatch.setattr(statistics, "run", lambda numbers, seed, progress: [bad])
    assert main(["selftest", "--seed", "11"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "suspicious, with seed 1\n" in shown
    assert shown.splitlines()[-1].partition(" of ")[0] == "1"


def test_a_seed_is_drawn_and_shown(capsys):
    """The default seed differs each time, so that no night repeats the last one's tests."""
    shown = []
    for _ in range(2):
        main(["selftest"])
        shown.append(capsys.readouterr().out.partition("--seed ")[2].split()[0])
    assert shown[0] != shown[1]
