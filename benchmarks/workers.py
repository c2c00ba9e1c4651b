# SPDX-License-Identifier: Apache-2.0
"""Simulates a thousand workers that fail: ``python benchmarks/workers.py``, some seconds; docs/scale.md shows it.

It runs discrete events, seeded. One scheduler hands out blocks, one at a time, each of which costs it `per_task`
seconds. A worker computes a block in `seconds` on average (from 0.8 to 1.6 of that, as neighbours disturb it), fails
after an exponential time, which the scheduler notices `unnoticed` seconds later, and comes back after `away`. A failed
worker's block is given to another. Without `on_disk`, so are the blocks that it had finished and kept in memory.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Cluster:
    workers: int = 1000
    per_task: float = 1e-3  # the scheduler's seconds for a block
    seconds: float = 1.0  # a worker's seconds for a block
    between_failures: float = 24 * 3600.0  # the mean time between one worker's failures
    unnoticed: float = 30.0
    away: float = 300.0
    on_disk: bool = True


class Run(NamedTuple):
    seconds: float
    computed: int  # finished blocks, some of them twice
    lost: float  # seconds of work on blocks that were not finished
    efficiency: float  # the share of the workers' possible work in this time


def run(cluster: Cluster, blocks: int, seed: int) -> Run:
    """Runs until all blocks are done."""
    chance = random.Random(seed)
    left, idle = list(range(blocks)), list(range(cluster.workers))
    working: dict[int, tuple[int, float]] = {}  # each worker's block, and its start
    made: dict[int, set[int]] = {worker: set() for worker in idle}
    turn = dict.fromkeys(idle, 0)  # it makes void the events that were due to a worker before it failed
    there, computed, lost, now, free = set[int](), 0, 0.0, 0.0, 0.0
    events = [(chance.expovariate(1 / cluster.between_failures), worker, "fails", 0) for worker in idle]
    heapq.heapify(events)
    while len(there) < blocks:
        while left and idle:
            worker, block = idle.pop(), left.pop()
            free = max(free, now) + cluster.per_task
            working[worker] = block, free
            length = cluster.seconds * (0.8 + 0.8 * chance.betavariate(1, 3))
            heapq.heappush(events, (free + length, worker, "done", turn[worker]))
        now, worker, what, of_turn = heapq.heappop(events)
        if what == "done" and of_turn == turn[worker]:
            block, _ = working.pop(worker)
            there.add(block)
            made[worker].add(block)
            computed += 1
            idle.append(worker)
        elif what == "fails":
            turn[worker] += 1
            heapq.heappush(events, (now + cluster.unnoticed, worker, "noticed", turn[worker]))
            heapq.heappush(events, (now + cluster.away, worker, "back", turn[worker]))
            if worker in idle:
                idle.remove(worker)
        elif what == "noticed":
            if worker in working:
                block, since = working.pop(worker)
                left.append(block)
                lost += max(0.0, now - cluster.unnoticed - since)
            if not cluster.on_disk:
                left += made[worker]
                there -= made[worker]
            made[worker] = set()
        elif what == "back":
            idle.append(worker)
            again = now + chance.expovariate(1 / cluster.between_failures)
            heapq.heappush(events, (again, worker, "fails", turn[worker]))
    ideal = blocks * cluster.seconds / cluster.workers
    return Run(now, computed, lost, ideal / now)


SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PER_TASK = (0.2e-3, 1e-3, 3e-3)
HOURS = (24, 48, 100, 300, 1000)


@cache
def throughput(per_task: float, seconds: float) -> Run:
    """Simulates an hour of work, or 40,000 blocks if that is more; failures once a day."""
    blocks = min(40_000, round(1000 * 3600 / seconds))
    return run(Cluster(per_task=per_task, seconds=seconds), blocks, seed=1)


@cache
def duplicated(hours: float, on_disk: bool) -> Run:
    """Simulates an hour of work in blocks of 300 s. (In memory, with failures every few hours, it would never end.)"""
    return run(Cluster(seconds=300.0, between_failures=3600 * hours, on_disk=on_disk), 12_000, seed=1)


def wasted(found: Run, blocks: int = 12_000, seconds: float = 300.0) -> float:
    """Returns the wasted work as a share of the needed work."""
    return ((found.computed - blocks) * seconds + found.lost) / (blocks * seconds)


def picture(out: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from noisefuse.ground.drawing import BLUE, GREY, ORANGE, STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for per_task, color in zip(PER_TASK, (BLUE, ORANGE, GREY), strict=True):
            rates = [100 * throughput(per_task, seconds).efficiency for seconds in SECONDS]
            left.semilogx(SECONDS, rates, "o-", color=color, label=f"{1e3 * per_task:g} ms a task")
        left.set(xlabel="seconds of a block", ylabel="% of 1,000 workers", title="Throughput", ylim=(0, 100))
        left.legend(frameon=False)
        for on_disk, color, label in ((True, BLUE, "blocks on disk"), (False, ORANGE, "in workers' memory")):
            lost = [100 * wasted(duplicated(hours, on_disk)) for hours in HOURS]
            right.loglog(HOURS, lost, "o-", color=color, label=label)
        right.set(xlabel="hours between failures of a worker", ylabel="% of the work", title="Work done twice")
        right.legend(frameon=False)
        figure.savefig(out, dpi=110)


def main() -> None:
    print("| seconds of a block | " + " | ".join(f"{1e3 * p:g} ms a task" for p in PER_TASK) + " |")
    for seconds in SECONDS:
        print(f"| {seconds:g} | " + " | ".join(f"{throughput(p, seconds).efficiency:.0%}" for p in PER_TASK) + " |")
    for hours in HOURS:
        found = [f"{wasted(duplicated(hours, on_disk)):.2%}" for on_disk in (True, False)]
        print(f"{hours} hours between failures: work done twice {found[0]} on disk, {found[1]} in memory")
    picture(Path(__file__).parents[1] / "docs" / "pictures" / "workers.png")


if __name__ == "__main__":
    main()
