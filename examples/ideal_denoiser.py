# SPDX-License-Identifier: Apache-2.0
"""Runs every sampler without a network: the ideal denoiser of scikit-learn's handwritten digits.

    python examples/ideal_denoiser.py         draws ideal_denoiser.png, in a few seconds

The denoiser, the loop and the picture are in src/noisefuse/commands/demo/ideal.py, which `noisefuse demo` uses, too.
With this denoiser every sampler has to end on images of the set. All start from the same noise and visit the same noise
levels. The deterministic ones solve the same equation, so each noise becomes the same digit with all of them.

Needs matplotlib, rich and scikit-learn: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

import noisefuse as nf
from noisefuse.commands.demo.ideal import NAMES, Digits, Run, height, panel, run


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
