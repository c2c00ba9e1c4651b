# SPDX-License-Identifier: Apache-2.0
"""Runs every sampler without a network: the ideal denoiser of scikit-learn's handwritten digits.

    python examples/ideal_denoiser.py         draws ideal_denoiser.png, in a few seconds

A diffusion network learns to approximate the posterior mean of the clean sample, which is known exactly for a finite
set of images x_1 .. x_N:

    D(x) = sum_i w_i x_i,    w = softmax(-|x - alpha x_i|^2 / (2 sigma^2))

With this denoiser every sampler has to end on images of the set. All start from the same noise and visit the same noise
levels. The deterministic ones solve the same equation, so each noise becomes the same digit with all of them.

Needs matplotlib, rich and scikit-learn: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import noisefuse as nf
from noisefuse.sampler import Sampler
from noisefuse.views import Prediction, view

Array: TypeAlias = npt.NDArray[Any]

SIDE = 8
DETERMINISTIC = ("ddim", "euler", "heun", "dpm_2", "pndm", "dpmpp_2m", "unipc", "flow_euler", "flow_heun")
STOCHASTIC = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "edm", "lcm")
NAMES = DETERMINISTIC + STOCHASTIC
FAMILY = {"dpm_2": "edm", "edm": "edm", "flow_euler": "flow", "flow_heun": "flow"}  # the others: "ddpm"
OPTIONS = {"edm": {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0}}  # without churn it is heun


# ---- the model ---------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """1797 images of 8 x 8, with background -1 and ink 1, and the digit in each."""

    images: Array  # (N, 64)
    labels: Array  # (N,)

    @classmethod
    def load(cls) -> Digits:
        data = load_digits()
        return cls(data.data / 8 - 1, data.target)

    def denoise(self, x: Array, alpha: float, sigma: float) -> Array:
        """Returns D(x), (B, 64), for x = alpha x0 + sigma z. Each image of the set is equally likely as x0."""
        score = (alpha * x @ self.images.T - alpha**2 / 2 * (self.images**2).sum(1)) / sigma**2
        w = np.exp(score - score.max(1, keepdims=True))
        return np.asarray(w @ self.images / w.sum(1, keepdims=True))

    def nearest(self, x: Array) -> tuple[Array, Array]:
        """Returns the distance of each x to its nearest image, root mean square over the pixels, and that image's
        digit."""
        distance = np.sqrt(((x[:, None] - self.images) ** 2).mean(2))
        return distance.min(1), self.labels[distance.argmin(1)]


# ---- the samplers ------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """A schedule, the times of its nodes, the model's prediction, and the way it reads its time."""

    schedule: nf.Schedule
    times: Array
    prediction: Prediction
    columns: Callable[[Any], tuple[float, float]]  # from the model's time to alpha and sigma


def families(steps: int) -> dict[str, Family]:
    """Returns the schedules of DDPM, EDM and rectified flow, all at the same noise levels s = sigma / alpha."""
    ddpm = nf.Schedule.linear(1000)
    levels = ddpm.sigma / ddpm.alpha
    wanted = np.linspace(levels[-1] ** (1 / 7), levels[0] ** (1 / 7), steps) ** 7  # Karras et al. 2022
    t = np.unique(np.interp(np.log(wanted), np.log(levels), np.arange(1000)).round().astype(int))[::-1]
    s = levels[t]
    return {
        "ddpm": Family(ddpm, t, "epsilon", lambda t: (ddpm.alpha[t], ddpm.sigma[t])),
        "edm": Family(nf.Schedule.karras(1000, s[-1], s[0]), s, "edm", lambda c_noise: (1.0, np.exp(4 * c_noise))),
        "flow": Family(nf.Schedule.flow(), s / (1 + s), "flow", lambda sigma: (1 - sigma, sigma)),
    }


class Run(NamedTuple):
    """The result of one sampler's run from noise."""

    name: str
    calls: int  # model calls
    seen: dict[float, Array]  # the model's first sample by sigma / alpha, to 3 digits: its last x there, (64,)
    samples: Array  # (B, 64)


def run(name: str, digits: Digits, noise: nf.Noise, *, steps: int = 50, batch: int = 8) -> Run:
    """Samples digits with one of ``NAMES``."""
    family = families(steps)[FAMILY.get(name, "ddpm")]
    rule, options = getattr(nf.samplers, name), OPTIONS.get(name, {})
    sampler: Sampler = rule(family.schedule, family.times, prediction=family.prediction, **options)
    form, seen = view(family.prediction), {}

    def model(x: Array, t: Any) -> Array:
        """Returns the prediction of a perfect network of this family."""
        alpha, sigma = family.columns(t)
        x = x / form.scale(alpha, sigma)
        # scaled so that noise has the same contrast in every family
        seen[float(f"{sigma / alpha:.3g}")] = x[0] / np.hypot(alpha, sigma)
        of_x, of_m = form.clean(alpha, sigma)  # D = of_x x + of_m m
        return np.asarray((digits.denoise(x, alpha, sigma) - of_x * x) / of_m)

    return Run(name, len(sampler), seen, sampler.sample(model, (batch, SIDE**2), noise))


# ---- the picture -------------------------------------------------------------------------------------------

INK, GREY, PAPER = "#1f2430", "#6b7380", "#f1f4f8"
LEVELS = (1000, 8, 4, 2.5, 1.7, 1.2, 0.9, 0.7, 0.5, 0.3, 0.1)  # the columns' noise levels, or the nearest in all runs
PITCH = SIDE + 2  # pixels from image to image
APART = 6  # further pixels between the groups and before the samples
GROUPS: dict[str, tuple[str, ...]] = {
    "deterministic: one equation, so each noise becomes one digit": DETERMINISTIC,
    "stochastic: fresh noise in every step": STOCHASTIC,
}


def height(runs: Sequence[Run]) -> float:
    """Returns how many inches ``panel`` needs at a width of 13."""
    return 0.57 * len(runs) + 1.2


def panel(figure: Any, runs: Sequence[Run]) -> None:
    """Draws into a matplotlib Figure or SubFigure. Each run has a row: its way from noise, and all its samples."""
    seen = set.intersection(*(set(run.seen) for run in runs))
    levels = sorted({min(seen, key=lambda s: abs(np.log(s / wanted))) for wanted in LEVELS}, reverse=True)
    columns = len(levels) + len(runs[0].samples)
    lefts = np.arange(columns) * PITCH + np.where(np.arange(columns) < len(levels), 0, APART)
    groups = {words: group for words, names in GROUPS.items() if (group := [r for r in runs if r.name in names])}
    bottom = PITCH * (len(runs) - 1) + APART * (len(groups) - 1) + SIDE
    canvas = np.full((bottom, lefts[-1] + SIDE), np.nan)

    ax = figure.subplots()
    top = 0
    for words, group in groups.items():
        _write(ax, words, (0, top), (0, 5 if top else 22), weight="bold")
        for run in group:
            for left, image in zip(lefts, [*(run.seen[level] for level in levels), *run.samples], strict=True):
                canvas[top : top + SIDE, left : left + SIDE] = image.reshape(SIDE, SIDE)
            _write(ax, run.name, (0, top + SIDE / 2), (-60, 0), ha="right", va="center")
            _write(ax, f"{run.calls} calls", (0, top + SIDE / 2), (-9, 0), ha="right", va="center", color=GREY, size=9)
            top += PITCH
        top += APART
    _write(ax, "where this noise and others lead", (lefts[len(levels)], 0), (0, 22), weight="bold")

    ink = LinearSegmentedColormap.from_list("ink", [PAPER, "#a9b4c7", INK])  # NaN, between images, stays blank
    ax.imshow(canvas, cmap=ink, vmin=-1, vmax=1, interpolation="nearest")
    labels = [f"{level:.0f}" if level >= 10 else f"{level:.2g}" for level in (*levels, 0)]
    labels[0] = f"σ/α = {labels[0]}"
    ax.set_xticks(lefts[: len(labels)] + (SIDE - 1) / 2, labels)
    ax.set_yticks([])
    ax.tick_params(length=0, labeltop=True, labelbottom=False, pad=3, labelcolor=GREY, labelsize=9)
    ax.spines[:].set_visible(False)


def _write(ax: Any, text: str, pixel: tuple[float, float], points: tuple[float, float], **style: Any) -> None:
    """Writes text at the upper left corner of a pixel, moved by so many points."""
    corner = (pixel[0] - 0.5, pixel[1] - 0.5)
    ax.annotate(text, corner, points, textcoords="offset points", **{"color": INK, "size": 10.5, **style})


# ---- the program -------------------------------------------------------------------------------------------


def table(digits: Digits, runs: Sequence[Run]) -> Table:
    """Prints each run's model calls, its digits, and their distance from images of the set."""
    grid = Table("sampler", "calls", "digits", "distances", box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for one in runs:
        distances, labels = digits.nearest(one.samples)
        grid.add_row(one.name, f"{one.calls}", "".join(map(str, labels)), " ".join(f"{d:.3f}"[1:] for d in distances))
    grid.caption = "distances: from the nearest image, root mean square over pixels in [-1, 1]"
    return grid


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sample handwritten digits with every sampler, without a network.")
    parser.add_argument("--out", type=Path, default=Path("ideal_denoiser.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="noise levels to visit (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="digits to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=142, help="of the noise (default: %(default)s)")
    arguments = parser.parse_args(argv)

    digits, noise = Digits.load(), nf.Noise(arguments.seed)
    bar = track(NAMES, "sampling", console=Console(stderr=True), transient=True)
    runs = [run(name, digits, noise, steps=arguments.steps, batch=arguments.samples) for name in bar]
    figure = Figure(figsize=(13, height(runs)))
    figure.set_layout_engine("constrained", w_pad=0.2, h_pad=0.15)
    panel(figure, runs)
    figure.savefig(arguments.out, dpi=150)
    console = Console(highlight=False)
    console.print(table(digits, runs))
    console.print(f"wrote {arguments.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
