# SPDX-License-Identifier: Apache-2.0
"""The look of pictures: their colours, matplotlib's settings, and the numbers on bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE, ORANGE, GREY, INK = "#2563eb", "#f0821e", "#bcc3cd", "#1f2430"
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(figure: Figure, path: Path, dpi: int) -> None:
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not know
        raise OSError(f"cannot write {path}: {error}") from error


def label_bar(ax: Any, length: float, y: float, text: str, widest: float, color: str, **style: Any) -> None:
    """Writes a number at the end of a bar: inside a long bar, because the line of the copy may run beside it."""
    within = length > 0.3 * widest
    box = {"facecolor": color if within else "white", "edgecolor": "none", "pad": 1}
    x, side, ink = (-1, "right", "white" if color == BLUE else INK) if within else (1, "left", INK)
    ax.text(length + x * widest / 80, y, text, ha=side, va="center", color=ink, bbox=box, **style)


def plot_levels(
    ax: Axes | None, alpha: NDArray[np.float64], sigma: NDArray[np.float64], xlabel: str, title: str, marker: str = ""
) -> Axes:
    """Plots a series of noise levels, for `Schedule.plot` and `Sampler.plot`."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'noisefuse[demo]'") from error
        _, ax = plt.subplots(layout="constrained")
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel=xlabel, title=title)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if np.all(alpha == 1):  # log-SNR is -2 log sigma: the same line
        ax.plot(sigma, color="C1", marker=marker)
        ax.set(yscale="log", ylabel="sigma (alpha = 1)")
        return ax
    with np.errstate(divide="ignore"):  # log 0 = -inf, which is not drawn
        log_snr = 2 * np.log(alpha / sigma)
    right = ax.twinx()
    ax.plot(alpha, color="C0", marker=marker, label="alpha")
    ax.plot(sigma, color="C1", marker=marker, label="sigma")
    right.plot(log_snr, color="C2", marker=marker, linestyle="--", label="log-SNR (right)")
    ax.set_ylabel("alpha, sigma")
    right.set_ylabel("log(alpha² / sigma²)")
    ax.legend(handles=[*ax.get_lines(), *right.get_lines()])
    return ax
