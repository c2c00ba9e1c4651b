# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/gallery.md, each by a function of a dozen lines.

    python examples/gallery.py                draws all of them into a folder, gallery/
    python examples/gallery.py cloud paths    draws two

Pictures that need a network use the ideal denoiser of a finite set (examples/ideal_denoiser.py). Needs matplotlib,
rich, scikit-image and scikit-learn: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import noisefuse as nf
from all_samplers import spiral
from ideal_denoiser import Digits
from noisefuse import tableau as terms
from noisefuse.ground.drawing import BLUE, GREY, INK, ORANGE, STYLE
from noisefuse.sampler import Sampler

Array = npt.NDArray[Any]
NOISE = nf.Noise(2026)
LINEAR = nf.Schedule.linear(1000)
SPOT: Any = {"s": 3, "linewidths": 0, "color": BLUE}


def plain(ax: Any, **options: Any) -> None:
    ax.set(xticks=[], yticks=[], **options)
    ax.spines[:].set_visible(False)


def denoiser(points: Array, schedule: nf.Schedule) -> Callable[[Array, Any], Array]:
    """Returns the model that a network would learn: the mean of the points that x may come from."""
    of = Digits(points, np.zeros(len(points)))
    return lambda x, t: of.denoise(x, schedule.alpha[t], schedule.sigma[t])


def path(sampler: Any, model: Callable[[Array, Any], Array], start: Array, noise: nf.Noise) -> Array:
    """Returns (rows + 1, B, 2): x before each row, and after the last."""
    seen = [start]
    sampler.sample(model, start, noise, callback=lambda i, x, denoised: seen.append(x))
    return np.stack(seen)


# ---- pictures ----------------------------------------------------------------------------------------------


def cloud(figure: Figure) -> None:
    """A walk of 1000 steps above, the closed form below: the same distribution at each time."""
    x0, times = spiral(NOISE), (0, 20, 60, 150, 400, 999)
    walk = nf.q_walk(x0, LINEAR, NOISE, keep=times)
    closed = [nf.q_sample(x0, t, LINEAR, NOISE) for t in times]
    for line, name, clouds in zip(figure.subplots(2, len(times)), ("q_walk", "q_sample"), (walk, closed), strict=True):
        for ax, x, t in zip(line, clouds, times, strict=True):
            ax.scatter(*x.T, **SPOT)
            title = f"t = {t},  var {x.var():.2f}"
            plain(ax, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal", title=title if name == "q_walk" else None)
            ax.title.set_size(9)
        line[0].set_ylabel(name)


def variance(figure: Figure) -> None:
    """Why sqrt(1 - beta): without it the variance of a walk grows with every step."""
    x0, t = spiral(NOISE), np.arange(1000)
    walk, betas = nf.q_walk(x0, LINEAR, NOISE), LINEAR.betas
    growing = 1 + np.cumsum(betas)
    ax = figure.subplots()
    ax.plot(t, walk.var((1, 2)), color=BLUE, label=r"$x_t = \sqrt{1-\beta_t}\, x_{t-1} + \sqrt{\beta_t}\, z$, measured")
    ax.plot(t, growing, color=ORANGE, label=r"$x_t = x_{t-1} + \sqrt{\beta_t}\, z$, in theory")
    ax.plot(t, LINEAR.alpha**2, color=GREY, linestyle="--", label="what is left of the data, α²")
    ax.set(xlabel="t", title="Variance of the cloud above", ylim=(0, None))
    ax.legend(frameon=False)


def schedules(figure: Figure) -> None:
    """The growth of noise in each schedule: log-SNR over time."""
    ax = figure.subplots()
    for name in ("linear", "scaled_linear", "cosine", "sigmoid", "laplace"):
        schedule = getattr(nf.Schedule, name)(1000)
        ax.plot(2 * np.log(schedule.alpha / schedule.sigma), label=f"Schedule.{name}(1000)")
    flow = nf.Schedule.flow(1000)
    with np.errstate(divide="ignore"):
        ax.plot(2 * np.log(flow.alpha / flow.sigma), label="Schedule.flow(1000)", color=INK, linestyle="--")
    ax.set(xlabel="t", ylabel="log(α² / σ²)", title="Schedules", ylim=(-15, 15))
    ax.legend(frameon=False)


def paths(figure: Figure) -> None:
    """The ways from the same noise to the data, by samplers that draw noise and samplers that do not."""
    points, start = spiral(NOISE), nf.randn((8, 2), NOISE, dtype="float64")
    names = ("ddim", "dpmpp_2m", "ddpm", "dpmpp_2m_sde")
    for ax, name in zip(figure.subplots(1, len(names)), names, strict=True):
        sampler = getattr(nf.samplers, name)(LINEAR, steps=60, prediction="sample")
        way = path(sampler, denoiser(points, LINEAR), start * sampler.tableau.start, NOISE)
        ax.scatter(*points.T, s=2, linewidths=0, color=GREY)
        ax.plot(way[:, :, 0], way[:, :, 1], color=BLUE, linewidth=0.7)
        ax.scatter(*way[-1].T, s=16, color=ORANGE, linewidths=0, zorder=3)
        plain(ax, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=name)


def eta(figure: Figure) -> None:
    """DDIM on two points: eta is how much noise each step draws anew."""
    points = np.array([[-1.0], [1.0]])
    for ax, value in zip(figure.subplots(1, 3, sharey=True), (0.0, 0.5, 1.0), strict=True):
        sampler = nf.samplers.ddim(LINEAR, steps=100, eta=value, prediction="sample")
        way = path(sampler, denoiser(points, LINEAR), nf.randn((30, 1), NOISE, dtype="float64"), NOISE)
        ax.plot(way[:, :, 0], color=BLUE, linewidth=0.6)
        ax.set(title=f"eta = {value:g}", xlabel="row", ylim=(-3.2, 3.2))


def steps(figure: Figure) -> None:
    """The distance of a sampler's end from the exact solution, by its number of steps. Data is Gaussian, so all is
    known."""
    scale, counts = 0.5, np.array([5, 8, 12, 20, 35, 60, 100])

    def model(x: Array, t: Any) -> Array:
        a, s = LINEAR.alpha[t], LINEAR.sigma[t]
        return np.asarray(a * scale**2 / (a**2 * scale**2 + s**2) * x)

    start, ax = nf.randn((64, 1), NOISE, dtype="float64"), figure.subplots()
    a, s = LINEAR.alpha[-1], LINEAR.sigma[-1]
    exact = start * scale / np.hypot(a * scale, s)  # the solution maps quantiles to quantiles
    options: Any = {"prediction": "sample", "spacing": "trailing"}
    for name in ("ddim", "deis", "dpmpp_2m", "unipc"):
        rule = getattr(nf.samplers, name)
        ends = [rule(LINEAR, steps=int(n), **options).sample(model, start) for n in counts]
        ax.plot(counts, [np.abs(end - exact).max() for end in ends], marker="o", markersize=3, label=name)
    ax.set(xscale="log", yscale="log", xlabel="steps", title="Largest error")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.legend(frameon=False)


def adams_bashforth_2(sigmas: Array) -> Sampler:
    """x' = x + h ((1 + r / 2) u - r / 2 u_before),  h = sigma' - sigma,  r = h / h_before"""
    m1, rows, before = terms.m1, [], None
    for h in np.diff(sigmas):
        slope = m1 if before is None else (1 + h / before / 2) * m1 - h / before / 2 * terms.past[0]
        rows.append(terms.Row(out=terms.x + h * slope, aux1=m1))
        before = h
    return Sampler(terms.Tableau(rows, sigmas[:-1], "adams_bashforth_2", push=[1] * len(rows)))


def own_sampler(figure: Figure) -> None:
    """Two methods for rectified flow, and the remaining error after so many calls of the network."""

    def velocity(x: Array, s: Any) -> Array:  # for data N(0, 1/4): x ends at half its start
        return np.asarray(x * (s - (1 - s) / 4) / (s**2 + (1 - s) ** 2 / 4))

    ax, calls = figure.subplots(), np.array([8, 16, 32, 64, 128, 256])
    flow = nf.Schedule.flow(1000)
    kinds: dict[str, Callable[[int], Sampler]] = {
        "flow_euler": lambda n: nf.samplers.flow_euler(flow, steps=np.linspace(1, 0, n + 1)[:-1]),
        "adams_bashforth_2, your own": lambda n: adams_bashforth_2(np.linspace(1, 0, n + 1)),
    }
    for (name, made), color in zip(kinds.items(), (GREY, BLUE), strict=True):
        ends = [made(int(n)).sample(velocity, np.ones((1, 1))).item() for n in calls]
        ax.plot(calls, np.abs(np.array(ends) - 0.5), marker="o", markersize=3, label=name, color=color)
    ax.set(xscale="log", yscale="log", xlabel="calls of the network", title="Error")
    ax.set_xticks(calls, [str(n) for n in calls])
    ax.minorticks_off()
    ax.legend(frameon=False)


def window(figure: Figure) -> None:
    """One field, and parts of it that were drawn alone: a crop, a shard and a single row have the same numbers."""
    whole = nf.randn((1, 48, 96), NOISE)[0]
    places = {"whole": ((0, 0), (48, 96)), "a crop": ((8, 10), (24, 30)), "a shard": ((0, 64), (48, 32))}
    ink: Any = {"cmap": "Greys", "vmin": -2.5, "vmax": 2.5, "interpolation": "nearest"}
    for ax, (name, (first, shape)) in zip(figure.subplots(1, 3), places.items(), strict=True):
        part = nf.randn((1, *shape), NOISE.window((48, 96), first))[0]
        assert np.array_equal(part, whole[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]])
        canvas = np.full(whole.shape, np.nan)
        canvas[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]] = part
        ax.imshow(canvas, **ink)
        plain(ax, title=name)


def variations(figure: Figure) -> None:
    """Image to image: a digit is noised to the noise level of a row, and sampled from there. Later rows keep more of
    it."""
    digits, shown = Digits.load(), 8
    sampler = nf.samplers.ddim(LINEAR, steps=50, eta=1.0, prediction="sample")
    starts, x0 = (45, 38, 30, 20, 10), np.repeat(digits.images[7:8], shown, 0)
    model = denoiser(digits.images, LINEAR)
    axes = figure.subplots(len(starts), shown + 1)
    for line, start in zip(axes, starts, strict=True):
        x = sampler.sample(model, sampler.noised(start, x0, NOISE), NOISE, start=start)
        for ax, image in zip(line, (x0[0], *x), strict=True):
            ax.imshow(image.reshape(8, 8), cmap="Greys", vmin=-1, vmax=1)
            plain(ax)
        line[0].set_ylabel(f"row {start}", rotation=0, ha="right", va="center")
    axes[0][0].set_title("given")


def tiles(figure: Figure, pictures: Array, names: Sequence[str], columns: int) -> None:
    """Fills the figure with pictures in [-1, 1], without paper, and with names that can be read on a phone."""
    rows = len(names) // columns
    figure.set_layout_engine("none")
    for n, (x, name) in enumerate(zip(pictures, names, strict=True)):
        place = n % columns / columns, 1 - (n // columns + 1) / rows, 1 / columns, 1 / rows
        ax = figure.add_axes(place)
        ax.imshow(np.clip((x.transpose(1, 2, 0) + 1) / 2, 0, 1), aspect="auto")
        plain(ax)
        box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 3}
        ax.text(0.03, 0.04, name, size=18, color="white", transform=ax.transAxes, bbox=box)


def forward(figure: Figure) -> None:
    """A photograph on its way to noise: by a walk of 1000 steps above, in closed form below."""
    image = import_module("skimage.data").astronaut()[:480:2, 40:520:2].transpose(2, 0, 1)[None].copy()
    times = (49, 249, 999)
    walk = nf.q_walk(image, LINEAR, NOISE, keep=times)[:, 0]
    closed = nf.q_sample(np.repeat(image, 3, 0), np.array(times), LINEAR, NOISE.at(sample=[0, 0, 0]))
    names = [f"{how}, t = {t}" for how in ("walk", "one step") for t in times]
    tiles(figure, np.concatenate([walk, closed]), names, 3)


def targets(figure: Figure) -> None:
    """The same x_t, and the target of each kind of network."""
    image = import_module("skimage.data").astronaut()[:400:4, 80:480:4].transpose(2, 0, 1)[None].copy()
    names, t = ("epsilon", "sample", "v", "flow"), 350
    x_t, pictures = None, []
    for name in names:
        x_t, target = nf.q_sample(image, t, nf.Schedule.cosine(1000), NOISE, target=name)
        pictures.append(target)
    tiles(figure, np.concatenate([x_t, *pictures]), ("x_t", *names), 5)


# ---- the program -------------------------------------------------------------------------------------------

SIZES: dict[Callable[[Figure], None], tuple[float, float]] = {
    cloud: (12, 4.2),
    variance: (7, 4),
    schedules: (7, 4),
    paths: (12, 3.4),
    eta: (10, 3.4),
    steps: (7, 4),
    own_sampler: (7, 4),
    window: (10, 2.2),
    variations: (6.5, 3.8),
    forward: (7.2, 4.8),
    targets: (10, 2),
}
PHOTOGRAPHS = {"forward", "targets"}


def main(argv: Sequence[str] | None = None) -> None:
    known = {draw.__name__: draw for draw in SIZES}
    parser = argparse.ArgumentParser(description="Draw the pictures of the gallery.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--folder", type=Path, default=Path("gallery"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or known:
        with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
            figure = Figure(figsize=SIZES[known[name]], layout="constrained")
            known[name](figure)
            file = arguments.folder / f"{name}.{'jpg' if name in PHOTOGRAPHS else 'png'}"
            figure.savefig(file, dpi=100, **({"pil_kwargs": {"quality": 70}} if name in PHOTOGRAPHS else {}))
        print(f"wrote {file}", flush=True)


if __name__ == "__main__":
    main()
