# SPDX-License-Identifier: Apache-2.0
"""Draws a picture that shows how normal the normals are, out to the far tails.

    python examples/noise_quality.py --numbers 2^30 --out noise_quality.png

The left side shows quantiles of the drawn numbers against those of the normal distribution (Q-Q): a straight line, as
far as there are numbers. The right side shows how many lie beyond 3, 3.5 .. 6 standard deviations, over the expected
count; the band is two standard errors wide on either side. 2^30 numbers take half a minute and little memory: they are
drawn in parts, and counted.

Needs `pip install '.[demo]'`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, STYLE

WIDTH, END = 1 / 64, 8  # a bin's width, and the end of the last one
EDGES = np.arange(-END, END + WIDTH / 2, WIDTH)
BEYOND = np.arange(3, 6.25, 0.5)
PART = 1 << 22


def counted(numbers: int, seed: int) -> NDArray[np.int64]:
    """Returns how many of so many normals are in each bin."""
    counts, out = np.zeros(len(EDGES) - 1, np.int64), np.empty((1, PART), np.float32)
    for sample in range(max(1, numbers // PART)):
        z = nf.randn(out.shape, nf.Noise(seed, sample=sample), out=out)
        counts += np.bincount(((z[0] + END) / WIDTH).astype(np.int32), minlength=len(counts))
    return counts


def quantiles(counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the edges of bins, and the normal distribution's quantiles with the same share below."""
    total, below = counts.sum(), np.cumsum(counts)[:-1]
    inside = (below > 0) & (below < total) & (np.diff(below, prepend=0) > 0)
    normal = NormalDist().inv_cdf
    # the smaller tail keeps more digits
    theory = [normal(b / total) if 2 * b < total else -normal((total - b) / total) for b in below[inside].tolist()]
    return EDGES[1:-1][inside], np.array(theory)


def tails(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Returns how many lie beyond each of BEYOND, on either side, and the expected count."""
    found = np.array([counts[(EDGES[1:] <= -b) | (EDGES[:-1] >= b)].sum() for b in BEYOND])
    return found, counts.sum() * np.array([math.erfc(b / math.sqrt(2)) for b in BEYOND])


def plot(counts: NDArray[np.int64], out: Path) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        _plot(counts, out)


def _plot(counts: NDArray[np.int64], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 4.2), layout="constrained")
    line, ratio = figure.subplots(1, 2)
    drawn, theory = quantiles(counts)
    line.plot([-6.5, 6.5], [-6.5, 6.5], color="0.8", lw=3)
    line.plot(theory, drawn, ".", ms=3, color=BLUE)
    line.set(xlabel="normal quantile", ylabel="quantile of the numbers", aspect="equal")
    line.set_title(f"Quantiles of 2^{math.log2(counts.sum()):.3g} numbers")
    found, expected = tails(counts)
    ratio.fill_between(BEYOND, 1 - 2 / np.sqrt(expected), 1 + 2 / np.sqrt(expected), color="0.85", lw=0)
    ratio.plot(BEYOND, found / expected, "o", ms=5, color=BLUE)
    for b, n in zip(BEYOND, found, strict=True):
        ratio.annotate(f"{n:,}", (b, 0.03), ha="center", fontsize=7, xycoords=("data", "axes fraction"))
    ratio.set(xlabel="standard deviations", ylabel="found / expected", xlim=(2.7, 6.3), ylim=(0, 2))
    ratio.set_title("Numbers beyond")
    figure.savefig(out, dpi=110)


def number(text: str) -> int:
    base, _, power = text.partition("^")
    return int(base) ** int(power or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--numbers", type=number, default=1 << 26, help="such as 2^30 (default: 2^26)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("noise_quality.png"))
    arguments = parser.parse_args()
    counts = counted(arguments.numbers, arguments.seed)
    for beyond, found, expected in zip(BEYOND, *tails(counts), strict=True):
        print(f"beyond {beyond}: {found:,}, expected {expected:,.1f}")
    plot(counts, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
