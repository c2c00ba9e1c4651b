# SPDX-License-Identifier: Apache-2.0
"""Compares operations with the machine's limits: a roofline (Williams, Waterman and Patterson 2009) of one core.

    python benchmarks/roofline.py           measures, four minutes: results/<processor>-roofline.json
    python benchmarks/roofline.py --draw    draws the file of docs/measurements.md: docs/pictures/roofline.png

It needs Linux on x86-64, and a C compiler. It counts arithmetic instructions of vectors by single steps (count.c):
exactly, as the difference between calls of two sizes. It also measures the roofs: a copy's bytes per second, and the
rate of roofs.c. A point shows an operation's instructions for a byte that it reads or writes, and its instructions per
second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import noisefuse as nf
from counted import counter, loaded
from figures import RESULTS, microseconds, processor
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.results import describe
from noisefuse.commands.bench.timing import machine
from noisefuse.ground.drawing import BLUE, INK, ORANGE, STYLE
from tables import roofline, save

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "pictures" / "roofline.png"
PLACES = {"in cache": 1 << 15, "beyond the caches": 1 << 24}  # elements
COUNTED = (1 << 12, 1 << 13)
SAMPLES, TIMES = 16, 5

Record: TypeAlias = dict[str, Any]  # of a file

SCHEDULE, NOISE = nf.Schedule.linear(1000), nf.Noise(0)


class Work(NamedTuple):
    call: Call
    arrays: list[Any]  # each is read or written once


# ---- operations: from a number of elements to Work ----------------------------------------------------------


def array(dtype: str, elements: int) -> Any:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (tells NumPy the name)
    numbers = np.random.default_rng(0).random((SAMPLES, elements // SAMPLES), np.float32)
    return (255 * numbers if dtype == "uint8" else numbers).astype(dtype)


def drawn(draw: Callable[..., Any], elements: int) -> Work:
    out = array("float32", elements)
    return Work(lambda: draw(out.shape, NOISE, out=out), [out])


def noised(given: str, made: str, elements: int) -> Work:
    x, out = array(given, elements), array(made, elements)
    return Work(lambda: nf.q_sample(x, 500, SCHEDULE, NOISE, out=out), [x, out])


def walk(elements: int) -> Work:
    x, out, schedule = array("float32", elements), array("float32", elements), nf.Schedule.linear(TIMES)
    return Work(lambda: nf.q_walk(x, schedule, NOISE, keep=[TIMES - 1], out=out[None]), [x, out])


def loss(elements: int) -> Work:
    x, prediction = array("float32", elements), array("float32", elements)
    return Work(lambda: nf.mse_loss(prediction, x, 500, SCHEDULE, NOISE, target="epsilon"), [x, prediction])


def step(name: str, elements: int) -> Work:
    x, prediction, out = (array("float32", elements) for _ in range(3))
    sampler = getattr(nf.samplers, name)(SCHEDULE, steps=20)
    state, i = sampler.state(x), 10
    sampler.step(0, x, prediction, NOISE, state, out=out)  # later rows read what it keeps
    others = [x] * (sampler.tableau.slots + int(sampler.tableau.push[i]))
    return Work(lambda: sampler.step(i, x, prediction, NOISE, state, out=out), [x, prediction, out, *others])


OPERATIONS: dict[str, Callable[[int], Work]] = {
    "randn": partial(drawn, nf.randn),
    "uniform": partial(drawn, nf.uniform),
    "q_sample": partial(noised, "float32", "float32"),
    "q_sample, float64": partial(noised, "float64", "float64"),
    "q_sample, bfloat16": partial(noised, "bfloat16", "bfloat16"),
    "q_sample, bytes to float32": partial(noised, "uint8", "float32"),
    "q_sample, bytes": partial(noised, "uint8", "uint8"),
    f"q_walk, {TIMES} times": walk,
    "mse_loss": loss,
    "step of ddim": partial(step, "ddim"),
    "step of ddpm": partial(step, "ddpm"),
    "step of dpmpp_2m": partial(step, "dpmpp_2m"),
    "step of unipc": partial(step, "unipc"),
}


# ---- measurements ------------------------------------------------------------------------------------------


def counted() -> dict[str, float]:
    """Returns the arithmetic instructions of vectors for an element, by operation."""
    count = counter()
    found = {}
    for operation, make in OPERATIONS.items():
        few, many = (count(make(elements).call).arithmetic for elements in COUNTED)
        found[operation] = (many - few) / (COUNTED[1] - COUNTED[0])
    return found


def rate() -> float:
    """Returns the instructions per second of roofs.c."""
    library = loaded("roofs.c", ctypes.CDLL, "-march=native")
    turns = 10**6
    return 16e6 * turns / microseconds(lambda: library.arithmetic(ctypes.c_long(turns)))


def bandwidth(elements: int) -> float:
    """Returns the bytes per second of NumPy's copy."""
    x, out = array("float32", elements), array("float32", elements)
    return 2e6 * x.nbytes / microseconds(lambda: np.copyto(out, x))


def measure() -> None:
    with nf.set_num_threads(1):
        record = {"machine": machine(), "instructions a second": rate(), "operations": counted(), "places": {}}
        for place, elements in PLACES.items():
            points = {}
            for operation, make in OPERATIONS.items():
                work = make(elements)
                bytes_ = sum(part.nbytes for part in work.arrays) / elements
                points[operation] = {"bytes": bytes_, "ns": 1e3 * microseconds(work.call) / elements}
            record["places"][place] = {"bytes a second": bandwidth(elements), "points": points}
    (RESULTS / f"{processor()}-roofline.json").write_text(json.dumps(record, indent=1) + "\n")


# ---- the picture -------------------------------------------------------------------------------------------


def draw(record: Record) -> None:
    names = "\n".join(f"{n}  {operation}" for n, operation in enumerate(record["operations"], 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 5), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=(4, 4, 2))
        for ax, place in zip(axes, PLACES, strict=False):
            panel(ax, record, place)
        axes[2].axis("off")
        axes[2].text(0, 1, names, va="top", size=9, linespacing=1.7)
        axes[0].set_ylabel("vector instructions a second, 10^9")
        figure.supxlabel(f"vector instructions a byte\n{describe(record['machine'])}", size=9)
        save(figure, PICTURE)


def panel(ax: Any, record: Record, place: str) -> None:
    here, peak = record["places"][place], record["instructions a second"] / 1e9
    slope = here["bytes a second"] / 1e9
    ends = np.array([0.01, peak / slope, 4])
    ax.loglog(ends, np.minimum(peak, slope * ends), color=INK, linewidth=1.5)
    ax.text(0.0115, 0.7 * peak, f"a copy: {slope:.0f} GB/s", size=9, va="bottom")
    ax.text(4, 1.05 * peak, f"arithmetic: {peak:.1f}", size=9, ha="right", va="bottom")
    for n, (operation, instructions) in enumerate(record["operations"].items(), 1):
        point = here["points"][operation]
        x, y = instructions / point["bytes"], instructions / point["ns"]
        ax.plot(x, y, "o", color=BLUE if x * slope > peak else ORANGE, markersize=13)
        ax.text(x, y, str(n), color="white", size=8, ha="center", va="center_baseline")
    ax.set(title=f"{place}, one core", xlim=(0.01, 4), ylim=(0.1, 2 * peak))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="what was measured")
    options = parser.parse_args()
    if options.draw:
        draw(roofline())
    else:
        measure()
