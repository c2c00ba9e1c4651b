# SPDX-License-Identifier: Apache-2.0
"""`bench.py --plot`: the bandwidths of calls beside that of a plain copy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from noisefuse.commands.bench.results import Result, describe, figures, of_copy
from noisefuse.commands.shared import check_picture
from noisefuse.ground.drawing import BLUE, GREY, INK, ORANGE, STYLE, label_bar

COLORS = {
    "noisefuse": BLUE,
    "numba": "#8fb4fb",
    "naive": "#dde1e8",
    "tuned": GREY,
    "LLaDA": "#f9c48d",
    "torch": ORANGE,
    "eager": ORANGE,
    "torch.compile": "#f9c48d",
    "CuPy": "#dde1e8",
    "JAX": "#5bb592",
    "MKL": "#b48fdb",
    "albumentations": "#5bb592",
    "torchvision": ORANGE,
}


class Plot:
    """The plot. It is made before the measurements, so that it refuses files that cannot be written in time."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.figure: Figure = Figure(layout="constrained")
        check_picture(path)

    def draw(self, where: Mapping[str, Any], results: Sequence[Result]) -> None:
        """Draws a panel for each operation, a group of bars for each case, and a bar for each contender."""
        names = [name for name in COLORS if any(name in timings for _, timings in results)]
        panels = [(title, list(group)) for title, group in itertools.groupby(results, lambda result: result[0].group)]
        widest = max(of_copy(case, timings, name) for case, timings in results for name in timings)
        passes = "a plain " + " or ".join(sorted({case.plain.removesuffix("to") for case, _ in results}))
        columns, cases = min(2, len(panels)), max(len(group) for _, group in panels)
        rows = -(-len(panels) // columns)
        with matplotlib.rc_context(STYLE):
            self.figure.set_size_inches(13, 1.3 + rows * (0.6 + cases * (0.17 * len(names) + 0.12)))
            axes: Any = self.figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
            for ax in axes[len(panels) :]:
                ax.remove()
            for ax, (title, group) in zip(axes, panels, strict=False):
                _panel(ax, group, names, widest, passes)
                ax.set(title=title, xlim=(0, 1.05 * widest), ylim=(cases - 0.5, -0.5))
            handles, labels = axes[0].get_legend_handles_labels()
            self.figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
            meaning = f"bandwidth as a share of {passes}'s; on the bars GB/s, and how many times as long others take"
            self.figure.supxlabel(f"{meaning}\n{describe(where)}", size=9)
            self.figure.savefig(self.path, dpi=120)


def _panel(ax: Any, group: Sequence[Result], names: Sequence[str], widest: float, passes: str) -> None:
    height = 0.88 / len(names)
    for j, name in enumerate(names):
        for i, (case, timings) in enumerate(group):
            if name in timings:
                y, share = i - 0.44 + (j + 0.5) * height, of_copy(case, timings, name)
                cells = figures(case, timings, name)
                text = f"{cells['ratio']}x" if j else f"{cells['GB/s']} GB/s"
                ax.barh(y, share, 0.9 * height, color=COLORS[name])
                label_bar(ax, share, y, text, widest, COLORS[name], size=7.5, weight="normal" if j else "bold")
        ax.barh(0, 0, color=COLORS[name], label=name)  # for the legend, even if the contender did not run
    ax.axvline(1, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=passes, zorder=0)
    ax.set_yticks(range(len(group)), [f"{case.size}\n{case.dtype}" for case, _ in group])
    ax.tick_params(axis="y", length=0, pad=6)
    ax.tick_params(axis="x", labelbottom=True)
