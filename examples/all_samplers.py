# SPDX-License-Identifier: Apache-2.0
"""The whole menu of samplers in one picture, with each sampler's way and its accuracy.

    python examples/all_samplers.py           draws samplers.png, in some two minutes

The model is the ideal denoiser of a finite set, or of Gaussian data: there the function that a network approximates is
known. All samplers start from the same noise and visit the same noise levels. Needs matplotlib, rich and scikit-learn:
pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

import noisefuse as nf
from ideal_denoiser import Digits, families
from noisefuse.commands.bench.results import aligned
from noisefuse.ground.drawing import BLUE, GREY, ORANGE, STYLE, save
from noisefuse.sampler import Sampler

Array: TypeAlias = npt.NDArray[np.float64]
Denoiser: TypeAlias = Callable[[Array, Any, Any], Array]  # D of x = alpha x0 + sigma z

COLUMNS = 7  # samplers in a row of the sheet
LEVELS = 30  # noise levels of a run on the sheet
COUNTS = (4, 7, 12, 20, 35, 60, 100, 180)  # noise levels of a run in the diagrams
PATHS, DIGITS = 4, 4
SCALE = 0.5  # the standard deviation of the Gaussian data
SEED = 142


class Shown(NamedTuple):
    """One sampler's results."""

    name: str
    paths: Array  # (calls + 1, PATHS, 2): x in each model call, and the end
    digits: Array  # (DIGITS, 64)
    draws: bool
    calls: list[int]
    errors: list[float]  # relative errors of the standard deviation at the end, by calls


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw all samplers at work, and how exact they are.")
    parser.add_argument("--out", type=Path, default=Path("samplers.png"), help="default: %(default)s")
    out = parser.parse_args(argv).out
    digits, points = Digits.load(), spiral(nf.Noise(SEED))
    on_points = Digits(points, np.zeros(len(points)))
    bar = track(menu(), "sampling", console=Console(stderr=True), transient=True)
    shown = [_show(name, on_points.denoise, digits.denoise) for name in bar]
    save(_picture(shown, points), out, dpi=110)
    print(*aligned(_table(shown), left=1), "", f"wrote {out}", sep="\n")


def menu() -> list[str]:
    """Returns the names of all samplers that lead from noise to data, of numbers, not of tokens."""
    rules = {name: getattr(nf.samplers, name) for name in nf.samplers.__all__ if name.islower()}
    return [name for name in rules if name != "ddim_inverse" and "prediction" in signature(rules[name]).parameters]


def spiral(noise: nf.Noise, n: int = 2000) -> Array:
    """Returns points (n, 2) of variance 1: a picture of data in two dimensions."""
    u = nf.uniform((n, 1), noise, dtype="float64")
    points = np.hstack([u * np.cos(12 * u), u * np.sin(12 * u)])
    return np.asarray((points - points.mean(0)) / points.std())


# ---- runs --------------------------------------------------------------------------------------------------


def _show(name: str, on_points: Denoiser, on_digits: Denoiser) -> Shown:
    make = _maker(name)
    sampler, columns = make(LEVELS)
    noise, seen = nf.Noise(SEED), list[Array]()

    def watched(x: Array, alpha: Any, sigma: Any) -> Array:
        seen.append(x / np.hypot(alpha, sigma))
        return on_points(x, alpha, sigma)

    start = sampler.start((PATHS, 2), noise, dtype="float64")
    end = sampler.sample(_model(watched, sampler, columns), start, noise, guidance_scale=_guidance(sampler))
    digits = sampler.sample(
        _model(on_digits, sampler, columns), (DIGITS, 64), noise, dtype="float64", guidance_scale=_guidance(sampler)
    )
    made = [make(n) for n in COUNTS]
    deviations = [deviation(one, _model(_gaussian, one, of)) for one, of in made]
    errors = [abs(value / SCALE - 1) for value in deviations]
    return Shown(name, np.stack([*seen, end]), digits, _draws(sampler), [len(one) for one, _ in made], errors)


def _maker(name: str) -> Callable[[int], tuple[Sampler, Any]]:
    """Returns a function that makes the sampler of so many noise levels, and one from a model's time to alpha and
    sigma."""
    rule = getattr(nf.samplers, name)
    flow = name.startswith("flow") or name in ("dance_sde", "rk4")
    kind = "flow" if flow else "ddpm" if name in ("lcm", "tcd") else "edm"

    def make(n: int) -> tuple[Sampler, Any]:
        family = families(n)[kind]
        options = {"S_churn": 40.0} if name == "edm" else {}  # without churn it is heun
        columns = (lambda sigma: (1.0, sigma)) if kind == "edm" else family.columns  # for a model of x0, from its time
        return rule(family.schedule, family.times, prediction="sample", **options), columns

    return make


def _model(denoise: Denoiser, sampler: Sampler, columns: Any) -> Callable[[Array, Any], Any]:
    guided = _guidance(sampler) is not None

    def model(x: Array, t: Any) -> Any:
        clean = denoise(x, *columns(t))
        return (clean, clean) if guided else clean

    return model


def _gaussian(x: Array, alpha: Any, sigma: Any) -> Array:
    """Returns D for data N(0, SCALE^2)."""
    return np.asarray(alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * x)


def _guidance(sampler: Sampler) -> float | None:
    """Returns a scale for samplers that need two outputs, which are the same here."""
    outputs = (sampler.tableau.rows[name] for name in ("out", "aux1", "aux2"))
    return 1.0 if any(rows["m2"].any() for rows in outputs) else None


def _draws(sampler: Sampler) -> bool:
    return bool(sampler.tableau.as_rows.draws.any())


def deviation(sampler: Sampler, model: Callable[[Array, Any], Any]) -> float:
    """Returns the exact standard deviation at the end of a run. With a linear model, the end is a linear combination of
    the start and of each row's noise. A run from each of them alone gives its coefficient."""
    rows = len(sampler)
    noise = np.zeros((rows, 1 + rows, 1))
    noise[np.arange(rows), 1 + np.arange(rows), 0] = 1.0
    start = np.zeros((1 + rows, 1))
    start[0] = sampler.tableau.start
    drawn = list(noise) if _draws(sampler) else None
    return float(np.linalg.norm(sampler.sample(model, start, drawn, guidance_scale=_guidance(sampler))))


# ---- the picture -------------------------------------------------------------------------------------------


def _picture(shown: list[Shown], points: Array) -> Figure:
    lines = -(-len(shown) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure: Any = Figure(figsize=(14, 2.6 * lines + 6), layout="constrained")
        sheet, below = figure.subfigures(2, 1, height_ratios=(2.6 * lines, 6))
        figure.get_layout_engine().set(h_pad=0.12, wspace=0.06, hspace=0.08)
        sheet.suptitle(
            f"From one noise to a spiral, and to digits, in {LEVELS} levels", fontweight="bold", x=0.01, ha="left"
        )
        cells = sheet.subplots(lines, COLUMNS).ravel()
        for ax, one in zip(cells, shown, strict=False):
            _draw_sampler(ax, one, points)
        for ax in cells[len(shown) :]:
            ax.set_axis_off()
        for ax, draws in zip(below.subplots(1, 2), (False, True), strict=True):
            _draw_errors(ax, [one for one in shown if one.draws == draws], draws)
    return figure


def _draw_sampler(ax: Axes, one: Shown, points: Array) -> None:
    ax.scatter(points[:, 0], points[:, 1], s=2, linewidths=0, color=GREY)
    ax.plot(one.paths[:, :, 0], one.paths[:, :, 1], color=BLUE, linewidth=0.7, alpha=0.6)
    ax.scatter(one.paths[-1, :, 0], one.paths[-1, :, 1], s=12, color=ORANGE, linewidths=0, zorder=3)
    ax.set(xticks=[], yticks=[], xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
    ax.set_title(one.name, fontsize=10 if len(one.name) < 22 else 8, pad=4)
    ax.spines[:].set_visible(False)
    below = ax.inset_axes((0.1, -0.22, 0.8, 0.2))
    canvas = np.full((8, 10 * DIGITS - 2), np.nan)
    for k, digit in enumerate(one.digits):
        canvas[:, 10 * k : 10 * k + 8] = digit.reshape(8, 8)
    below.imshow(canvas, cmap="Greys", vmin=-1, vmax=1, interpolation="nearest")
    below.set_axis_off()


def _draw_errors(ax: Axes, shown: list[Shown], draws: bool) -> None:
    ranked = _ranked(shown)
    for k, one in enumerate(ranked):
        style: Any = {"color": colormaps["turbo"](k / max(1, len(ranked) - 1)), "linestyle": ("-", "--", ":")[k % 3]}
        ax.plot(one.calls, np.maximum(one.errors, 1e-12), linewidth=1.2, label=one.name, **style)
    ax.set(xscale="log", yscale="log", xlabel="model calls", ylim=(1e-5, 3))
    ax.set_xticks(COUNTS, [str(n) for n in COUNTS])
    ax.minorticks_off()
    kind = "with fresh noise" if draws else "without fresh noise"
    ax.set_title(f"Error of the standard deviation, {kind}")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title="best first, at 60 calls")


def _ranked(shown: list[Shown]) -> list[Shown]:
    """Sorts samplers by their errors at 60 model calls, the least first."""
    return sorted(shown, key=lambda one: float(np.interp(math.log(60), np.log(one.calls), np.log(one.errors))))


def _table(shown: list[Shown]) -> list[list[str]]:
    title = "relative error of the standard deviation; best first, at 60 model calls"
    heads = [[title], ["levels", *map(str, COUNTS)]]
    return [*heads, *([one.name, *(f"{error:.0e}" for error in one.errors)] for one in _ranked(shown))]


if __name__ == "__main__":
    main()
