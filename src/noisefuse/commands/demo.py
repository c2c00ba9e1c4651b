# SPDX-License-Identifier: Apache-2.0
"""`noisefuse demo`: photographs under noise, in one picture, with timings on this machine."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

import noisefuse as nf

from ..ground.drawing import BLUE, GREY, INK, ORANGE, STYLE, label_bar, save
from .bench.contenders import Case, contenders
from .bench.results import aligned, doubts
from .bench.timing import interleaved
from .shared import Progress, busy, check_picture, load, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

STEPS = 1000
SHOWN = (0, 49, 149, 299, 499, 999)  # the times t of the columns
HISTOGRAM = 4  # the column whose noise has a histogram
LONGEST_SIDE = 512  # larger photographs are shrunk, because the walk noises each a thousand times
BATCH = 8  # photographs in one timed call


@dataclass(frozen=True)
class Noised:
    """One photograph on both ways, each (times, height, width, 3); black is -1 and white 1."""

    walk: Floats
    closed: Floats
    walk_noise: Floats  # (x_t - alpha_t x_0) / sigma_t, which is N(0, 1) on both ways
    closed_noise: Floats


@dataclass(frozen=True)
class Throughput:
    """Throughputs in million elements per second."""

    label: str
    noisefuse: float
    naive: float
    spread: float = 0.0  # of their ratio: half of what lies between the quartiles, as a share


def run(arguments: argparse.Namespace) -> None:
    check_picture(arguments.out)  # before the work, also if matplotlib is missing
    images = [_read(path) for path in arguments.images] or [_astronaut()]
    if warning := busy(load()):
        print(f"noisefuse demo: {warning}", file=sys.stderr)
    progress = Progress(elsewhere=0.0)
    make = {"linear": nf.Schedule.linear, "cosine": nf.Schedule.cosine}[arguments.schedule]
    schedule, noise = make(STEPS), nf.Noise(arguments.seed)
    progress(f"noising {len(images)} photograph{'s' * (len(images) > 1)} with {STEPS} steps")
    noised = [_noise(image, schedule, noise, i) for i, image in enumerate(images)]
    throughputs, copy, doubted = _time(images[0].shape, progress)
    progress.clear()

    info = nf.info()
    where = f"{info['cpu']}, {info['isa']}, {info['threads']} threads"
    figure = _picture(noised, schedule, throughputs, copy, where)
    save(figure, arguments.out, dpi=150)
    for rows in (_noise_table(noised, schedule), _throughput_table(throughputs, copy, where)):
        print(*aligned(rows, left=1), "", sep="\n")
    print(*wrapped(filter(None, [warning, *doubted])), f"wrote {arguments.out}", sep="\n")


def _read(path: Path) -> Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            photograph = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    photograph.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(photograph)


def _astronaut() -> Image:
    image: Image = import_module("skimage.data").astronaut()
    return image


# ---- the forward process -----------------------------------------------------------------------------------


def _noise(image: Image, schedule: nf.Schedule, noise: nf.Noise, sample: int) -> Noised:
    t = np.array(SHOWN)
    clean = image.astype(np.float32) / 127.5 - 1
    walk = nf.q_walk(clean[None], schedule, noise.at(sample=sample), keep=SHOWN)[:, 0]
    # all times in one call: a batch with copies of the image in bytes, and the same noise for each
    batch = np.broadcast_to(image, (len(t), *image.shape))
    closed = nf.q_sample(batch, t, schedule, noise.at(sample=[sample] * len(t)))
    alpha, sigma = (c[t].astype(np.float32)[:, None, None, None] for c in (schedule.alpha, schedule.sigma))
    return Noised(walk, closed, (walk - alpha * clean) / sigma, (closed - alpha * clean) / sigma)


def _time(shape: tuple[int, ...], progress: Progress) -> tuple[list[Throughput], float, list[str]]:
    """Times each operation on a batch of such photographs beside naive NumPy, and np.copyto of the batch. Returns also
    what cannot be so."""
    cases = {
        "randn": ("randn", "float32"),
        "q_sample": ("q_sample", "float32"),
        "q_sample, uint8 in": ("q_sample", "uint8"),
        "q_step": ("q_step", "float32"),
        "q_walk, per step": ("q_walk", "float32"),
    }
    throughputs, copy, results = [], 0.0, []
    for label, (operation, dtype) in cases.items():
        case = Case(operation, nf.info()["threads"], (BATCH, *shape), dtype)
        progress(f"timing {label}")
        timings = interleaved(contenders(case, ("noisefuse", "naive", "copyto")), seconds=0.3)
        results.append((case, timings))
        speed = {name: case.elements / timing.median / 1e6 for name, timing in timings.items()}
        spread = math.hypot(timings["noisefuse"].spread, timings["naive"].spread)
        throughputs.append(Throughput(label, speed["noisefuse"], speed["naive"], spread))
        if label == "q_sample":
            copy = speed["copyto"]
    return throughputs, copy, doubts(results)


# ---- the picture -------------------------------------------------------------------------------------------


def _picture(
    noised: Sequence[Noised], schedule: nf.Schedule, throughputs: Sequence[Throughput], copy: float, where: str
) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    # two rows of panels for each photograph, in its own proportions
    aspects = [one.walk.shape[1] / one.walk.shape[2] for one in noised for _ in range(2)]
    inches = [2.07 * sum(aspects) + 0.62, 3.9]
    with matplotlib.rc_context(STYLE):
        # pyplot is not used: no display is needed and no window opens
        figure: Any = Figure(figsize=(13, sum(inches)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.07, h_pad=0.06, wspace=0.01, hspace=0)
        parts = figure.subfigures(len(inches), 1, height_ratios=inches)
        _draw_photographs(parts[0], noised, schedule, aspects)
        histogram, bars = parts[1].subplots(1, 2, width_ratios=(5, 6))
        _draw_histogram(histogram, noised)
        _draw_bars(bars, throughputs, copy, where)
    return figure


def _draw_photographs(figure: Any, noised: Sequence[Noised], schedule: nf.Schedule, aspects: Sequence[float]) -> None:
    axes = figure.subplots(len(aspects), len(SHOWN), height_ratios=aspects, squeeze=False)
    rows = [row for one in noised for row in ((one.walk, "random walk"), (one.closed, "closed form"))]
    for line, (x, label) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, fontsize=12, fontweight="bold", labelpad=8)
        for ax, pixels in zip(line, x, strict=True):
            ax.imshow(np.clip((pixels + 1) / 2, 0, 1), interpolation="antialiased")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    for ax, t in zip(axes[0], SHOWN, strict=True):
        ax.set_title(f"t = {t}", loc="center", pad=24)
        row = f"{schedule.alpha[t]:.2f} $x_0$ + {schedule.sigma[t]:.2f} $z$"
        ax.annotate(row, (0.5, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", ha="center")


def _draw_histogram(ax: Axes, noised: Sequence[Noised]) -> None:
    edges = np.linspace(-6, 6, 97)
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    x = np.linspace(-6, 6, 481)
    ax.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=INK, linewidth=1.2, label="N(0, 1)", zorder=1)
    walk = np.concatenate([one.walk_noise[HISTOGRAM].ravel() for one in noised])
    closed = np.concatenate([one.closed_noise[HISTOGRAM].ravel() for one in noised])
    hollow: Any = {"facecolors": "none", "edgecolors": ORANGE, "s": 34, "linewidths": 1.3}
    for values, label, marker in ((walk, "random walk", hollow), (closed, "closed form", {"color": BLUE, "s": 9})):
        density = np.histogram(values, edges)[0] / (values.size * width)
        seen = density > 0
        ax.scatter(centres[seen], density[seen], label=label, zorder=2, **marker)
    ax.set_yscale("log")
    ax.set(xlim=(-6, 6), ylim=(0.4 / (closed.size * width), 1), xlabel="$(x_t - \\alpha_t x_0) / \\sigma_t$")
    ax.set_title(f"The noise at t = {SHOWN[HISTOGRAM]}: density of {closed.size:,} values")
    ax.legend(frameon=False, loc="upper left", handletextpad=0.4)


def _draw_bars(ax: Axes, throughputs: Sequence[Throughput], copy: float, where: str) -> None:
    y = np.arange(len(throughputs))
    ax.barh(y - 0.19, [one.noisefuse for one in throughputs], 0.36, color=BLUE, label="noisefuse")
    ax.barh(y + 0.19, [one.naive for one in throughputs], 0.36, color=GREY, label="naive NumPy, 1 thread")
    ax.axvline(copy, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="np.copyto, a plain copy")
    widest = max(copy, *(one.noisefuse for one in throughputs))
    for i, one in enumerate(throughputs):
        text = f"{one.noisefuse:,.0f}   {one.noisefuse / one.naive:.0f}x ±{one.spread:.0%}"
        label_bar(ax, one.noisefuse, i - 0.19, text, widest, BLUE, weight="bold", size=9)
        label_bar(ax, one.naive, i + 0.19, f"{one.naive:,.0f}", widest, GREY, size=9)
    ax.set_yticks(y, [one.label for one in throughputs])
    ax.tick_params(axis="y", length=0, pad=6)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.05 * widest), xlabel=f"million elements per second\n{where}")
    ax.set_title("Throughput: more is better")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3)


# ---- the tables --------------------------------------------------------------------------------------------


def _noise_table(noised: Sequence[Noised], schedule: nf.Schedule) -> list[list[str]]:
    rows = [
        ["the noise (x_t - alpha x_0) / sigma"],
        ["t", "alpha", "sigma", "walk: mean", "std", "closed: mean", "std"],
    ]
    for i, t in enumerate(SHOWN):
        walk = np.concatenate([one.walk_noise[i].ravel() for one in noised])
        closed = np.concatenate([one.closed_noise[i].ravel() for one in noised])
        moments = [value for z in (walk, closed) for value in (z.mean(), z.std())]
        rows.append([str(t), *(f"{value:.4f}" for value in (schedule.alpha[t], schedule.sigma[t], *moments))])
    return rows


def _throughput_table(throughputs: Sequence[Throughput], copy: float, where: str) -> list[list[str]]:
    return [
        [where],
        ["million elements per second", "noisefuse", "naive NumPy", "speed-up", "±"],
        *(
            [o.label, f"{o.noisefuse:,.0f}", f"{o.naive:,.0f}", f"{o.noisefuse / o.naive:.1f}x", f"{o.spread:.0%}"]
            for o in throughputs
        ),
        ["np.copyto, a plain copy", f"{copy:,.0f}", "", "", ""],
    ]
