# SPDX-License-Identifier: Apache-2.0
"""The simulation of docs/scale.md, in cases with known answers."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

# It is loaded by path: its folder has files with the tests' names, which spawned processes would import.
WORKERS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "workers.py"), run_name="workers")
Cluster, run = WORKERS["Cluster"], WORKERS["run"]

NEVER = Cluster(workers=50, per_task=1e-9, seconds=10.0, between_failures=1e12)


def test_without_failures_every_block_is_made_once():
    """A tenth of a round is left at the end. Seen to fail: a mean length of 1.1."""
    found = run(NEVER, 5000, seed=1)
    assert found.computed == 5000
    assert found.lost == 0
    assert found.efficiency == pytest.approx(1, abs=0.02)


def test_the_scheduler_is_the_limit_of_short_blocks():
    assert run(replace(NEVER, per_task=1.0), 500, seed=1).seconds == pytest.approx(500, rel=0.05)


def test_it_is_seeded():
    failing = replace(NEVER, between_failures=500.0)
    assert run(failing, 1000, seed=1) == run(failing, 1000, seed=1) != run(failing, 1000, seed=2)


def test_failures_cost_half_a_block_each_on_disk_and_more_in_memory():
    """Seen to fail: a block that a failed worker continues."""
    failing = replace(NEVER, between_failures=2000.0, unnoticed=5.0, away=50.0)
    disk = run(failing, 5000, seed=1)
    failures = 50 * disk.seconds / 2000
    assert disk.computed == 5000
    assert disk.lost / 10 == pytest.approx(failures / 2, rel=0.6)
    assert run(replace(failing, on_disk=False), 5000, seed=1).computed > 5000
