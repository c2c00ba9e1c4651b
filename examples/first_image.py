# SPDX-License-Identifier: Apache-2.0
"""Noises a first image: shows q_sample's effect on a photograph, the network's targets, and how the noise is drawn
again.

    python examples/first_image.py            draws first_image.jpg

The page about it is docs/tutorials/first-image.md. Needs matplotlib and scikit-image: pip install '.[demo]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import noisefuse as nf
from gallery import tiles

SHOWN = (0, 150, 300, 500, 700, 999)
SCHEDULE = nf.Schedule.cosine(1000)


def photograph(side: int = 160) -> npt.NDArray[np.uint8]:
    """Returns (3, side, side), channels first, as networks take it."""
    image: npt.NDArray[np.uint8] = import_module("skimage.data").astronaut()[:480, :480]
    step = 480 // side
    pixels = image.reshape(side, step, side, step, 3).mean((1, 3))  # each pixel is the mean of a square
    return pixels.round().astype(np.uint8).transpose(2, 0, 1).copy()


def rows(image: npt.NDArray[np.uint8], noise: nf.Noise) -> dict[str, npt.NDArray[Any]]:
    """Returns the images of each row of the picture, (len(SHOWN), 3, side, side)."""
    batch, t = np.repeat(image[None], len(SHOWN), 0), np.array(SHOWN)
    x_t, v = nf.q_sample(batch, t, SCHEDULE, noise.at(sample=0), target="v")
    # The noise was not stored. Its key is enough to subtract it again.
    z = nf.randn(x_t.shape, noise.at(sample=0))
    alpha, sigma = (column[t, None, None, None] for column in (SCHEDULE.alpha, SCHEDULE.sigma))
    with np.errstate(divide="ignore", invalid="ignore"):
        clean = (x_t - sigma * z) / alpha
    return {"x_t": x_t, "v, what the network learns": v, "x_t without its noise": clean}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Noise a photograph.")
    parser.add_argument("--out", type=Path, default=Path("first_image.jpg"), help="default: %(default)s")
    arguments = parser.parse_args(argv)

    shown = rows(photograph(), nf.Noise(2026))
    names = [f"t = {t}" for t in SHOWN] + [name if t == 0 else "" for name in ("v", "no noise") for t in SHOWN]
    figure = Figure(figsize=(9.6, 4.8))
    tiles(figure, np.concatenate([*shown.values()]), names, len(SHOWN))
    figure.savefig(arguments.out, dpi=100)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
