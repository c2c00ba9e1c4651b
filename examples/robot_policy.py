# SPDX-License-Identifier: Apache-2.0
"""Runs a diffusion policy that plans anew a thousand times per second, and draws how well the loop keeps its time.

    python examples/robot_policy.py               five seconds; draws robot_policy.png
    python examples/robot_policy.py --realtime    ten: the loop runs once more, with real-time priority

Seven joints follow a target that moves and jumps. In each tick the policy samples a plan of 16 actions from noise whose
key has the tick's number, and takes the first action. There is no network, so only the loop and the sampler are
measured: demonstrations are Gaussian around a straight approach, whose denoiser is known exactly. Your network's time
for its calls comes on top.

The picture shows what this machine did: how late each tick began, how long its work took, and how many ended after
their millisecond. The loop runs as an ordinary process. With --realtime it runs a second time with real-time priority
(SCHED_FIFO, like `chrt -f 50`), if the system allows it: Linux requires root or CAP_SYS_NICE. Nothing else gets that
processor while a tick works, so do not use it on a shared machine.

Needs matplotlib: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, GREY, INK, ORANGE, STYLE

Array = npt.NDArray[Any]
HORIZON, JOINTS = 16, 7
PERIOD = 1_000_000  # nanoseconds
AWAKE = 200_000  # the end of a period is spent waiting, because sleep() comes back some 60 us late
SPREAD = 0.002  # the demonstrations' standard deviation

SCHEDULE = nf.Schedule.cosine(100)
SAMPLER = nf.samplers.ddim(SCHEDULE, steps=10, eta=1.0, prediction="sample")
NOISE = nf.Noise(2026)
# KEPT[t] x + GIVEN[t] mean is the mean of the demonstrations N(mean, SPREAD^2) that x may come from.
_VARIANCE = SCHEDULE.alpha**2 * SPREAD**2 + SCHEDULE.sigma**2
KEPT = (SCHEDULE.alpha * SPREAD**2 / _VARIANCE).astype(np.float32)
GIVEN = (SCHEDULE.sigma**2 / _VARIANCE).astype(np.float32)
APPROACH = np.linspace(0, 1, HORIZON + 1, dtype=np.float32)[1:, None] * 0.3  # fractions of the way, within a plan


def target(tick: int) -> Array:
    """Returns the joints' target: circles of different phase, and a jump each second."""
    phase = 2 * np.pi * (tick / 2000 + np.arange(JOINTS) / JOINTS)
    return np.asarray(0.5 * np.sin(phase) + 0.3 * (tick // 1000 % 2), np.float32)


class Policy:
    """Makes plans (1, HORIZON, JOINTS) of changes of position. Its arrays are made once: a tick allocates nothing
    large."""

    def __init__(self) -> None:
        self.mean, self.x, self.said, self.part = np.empty((4, 1, HORIZON, JOINTS), np.float32)
        self.state = SAMPLER.state(self.x)

    def denoise(self, x: Array, t: Any) -> Array:
        """Stands for the network. It returns the plan without its noise."""
        np.multiply(KEPT[t], x, out=self.said)
        self.said += np.multiply(GIVEN[t], self.mean, out=self.part)
        return self.said

    def plan(self, tick: int, position: Array, goal: Array) -> Array:
        """Returns the same for the same arguments, in a loop or alone, today or from a log."""
        noise = NOISE.at(sample=tick)
        np.multiply(APPROACH, goal - position, out=self.mean[0])
        nf.randn(self.x.shape, noise, out=self.x)
        for i in range(len(SAMPLER)):
            x_in, t = SAMPLER.model_input(i, self.x)
            SAMPLER.step(i, self.x, self.denoise(x_in, t), noise, self.state, out=self.x)
        return np.asarray(self.x[0])


class Log(NamedTuple):
    """Records of each tick. Times are in nanoseconds."""

    late: Array  # from the due time to the start
    work: Array  # from the start to the action
    position: Array  # (ticks, JOINTS), after the action

    def missed(self) -> Array:
        return np.asarray(self.late + self.work > PERIOD)


def wait(due: int) -> None:
    """Sleeps while there is time, then polls the clock."""
    left = due - time.perf_counter_ns()
    if left > AWAKE:
        time.sleep((left - AWAKE) * 1e-9)
    while time.perf_counter_ns() < due:
        pass


def run(ticks: int) -> Log:
    """Runs ticks. A late tick does not move the due times of the others."""
    policy, position = Policy(), np.zeros(JOINTS, np.float32)
    log = Log(np.zeros(ticks, np.int64), np.zeros(ticks, np.int64), np.zeros((ticks, JOINTS), np.float32))
    for tick in range(20):
        policy.plan(tick, position, target(tick))  # the first calls are slower: caches, and the sampler's table
    gc.collect()
    gc.disable()  # its pauses are longer than a tick
    try:
        first = time.perf_counter_ns() + PERIOD
        for tick in range(ticks):
            due = first + tick * PERIOD
            wait(due)
            began = time.perf_counter_ns()
            position += policy.plan(tick, position, target(tick))[0]
            log.late[tick], log.work[tick] = began - due, time.perf_counter_ns() - began
            log.position[tick] = position
    finally:
        gc.enable()
    return log


@contextmanager
def realtime() -> Iterator[None]:
    """Runs this process above all ordinary ones. PermissionError: the system does not allow it."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def runs(ticks: int, with_priority: bool) -> dict[str, Log]:
    logs = {"as a process like all others": run(ticks)}
    if not with_priority:
        return logs
    try:
        with realtime():
            logs["with real-time priority"] = run(ticks)
    except (AttributeError, PermissionError) as error:  # not Linux, or not allowed
        print(f"no run with real-time priority: {error}")
    return logs


# ---- the picture and the program ---------------------------------------------------------------------------


def histogram(ax: Any, log: Log, name: str) -> None:
    bins = np.geomspace(0.1, 1e5, 121)  # microseconds
    for times, label, color in ((log.late, "late by", GREY), (log.work, "work", BLUE)):
        ax.hist(np.clip(times / 1e3, bins[0], bins[-1]), bins, label=label, color=color, alpha=0.8)
    ax.axvline(PERIOD / 1e3, color=ORANGE, label="the next tick")
    ax.set(xscale="log", yscale="log", xlabel="microseconds", ylabel="ticks")
    ax.set_title(f"{name}:\n{log.missed().sum()} of {len(log.work)} ticks missed their millisecond")
    ax.legend(frameon=False)


def picture(logs: dict[str, Log]) -> Figure:
    """Draws a histogram of each run's times, then a joint and its target."""
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    *axes, right = figure.subplots(1, len(logs) + 1)
    for ax, (name, log) in zip(axes, logs.items(), strict=True):
        histogram(ax, log, name)
    seconds = np.arange(len(log.work)) / 1000
    right.plot(seconds, [target(tick)[0] for tick in range(len(log.work))], color=ORANGE, label="target")
    right.plot(seconds, log.position[:, 0], color=INK, linewidth=0.8, label="joint")
    right.set(xlabel="seconds", title="One of seven joints")
    right.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sample a plan in every tick of a loop at 1 kHz, and measure it.")
    parser.add_argument("--out", type=Path, default=Path("robot_policy.png"), help="default: %(default)s")
    parser.add_argument("--ticks", type=int, default=5000, help="milliseconds of each run (default: %(default)s)")
    parser.add_argument("--realtime", action="store_true", help="run the loop again with real-time priority")
    arguments = parser.parse_args(argv)
    with nf.set_num_threads(1):
        logs = runs(arguments.ticks, arguments.realtime)
    for name, log in logs.items():
        print(f"{name}: missed their millisecond {log.missed().sum()} of {len(log.work)} ticks")
        for what, times in (("late by", log.late), ("work", log.work)):
            median, most = np.quantile(times, [0.5, 0.999]) / 1e3
            worst = times.max() / 1e3
            print(f"    {what}: median {median:.1f} us, 999 in 1000 within {most:.0f} us, worst {worst:.0f} us")
    with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
        picture(logs).savefig(arguments.out, dpi=100)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
