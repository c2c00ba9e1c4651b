# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of docs/performance.md over time, for every run with committed results: docs/pictures/history.png.

    python benchmarks/history.py

results/ keeps the last run of each machine. Earlier runs are in git's history, which a shallow clone lacks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import matplotlib
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from noisefuse.ground.drawing import BLUE, INK, ORANGE, STYLE
from tables import FIGURES, MACHINES, RESULTS, ROOT, Row, number, save

PICTURE = ROOT / "docs" / "pictures" / "history.png"
COLORS = dict(zip(MACHINES, (BLUE, ORANGE, INK), strict=True))


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def first_figure(row: Row) -> str:
    return row.figure.format(name=row.names[0])


def runs(machine: str, row: Row) -> Iterator[tuple[datetime, float]]:
    """Returns the date of each run's commit, and its figure."""
    path = (RESULTS / f"{MACHINES[machine]}{row.suffix}.json").relative_to(ROOT)
    for line in git("log", "--format=%H %cI", "--", str(path)).splitlines():
        commit, when = line.split()
        for record in json.loads(git("show", f"{commit}:{path}"))["figures"]:
            if record["figure"] == first_figure(row) and "value" in record:
                yield datetime.fromisoformat(when), record["value"]


def main() -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1 + 2.1 * -(-len(FIGURES) // 3)), layout="constrained")
        axes = figure.subplots(-(-len(FIGURES) // 3), 3, sharex=True, squeeze=False).ravel()
        for ax, row in zip(axes, FIGURES, strict=False):
            panel(ax, row)
        for ax in axes[len(FIGURES) :]:
            ax.remove()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        save(figure, PICTURE)


def panel(ax: Any, row: Row) -> None:
    """Draws a point for each run."""
    for machine, color in COLORS.items():
        when, values = zip(*sorted(runs(machine, row)), strict=True)
        ax.plot(when, values, "o-", color=color, label=machine, markersize=4, linewidth=1.2)
        ax.annotate(number(values[-1]), (when[-1], values[-1]), (5, 0), textcoords="offset points", size=8, va="center")
    (record,) = row.records(machine)[:1]
    better = "more" if record["target"].startswith(">=") else "less"
    title = f"{row.suffix.removeprefix('-') or 'forward'}: {first_figure(row)}"
    ax.set_title(f"{title}\n{record['target'].split()[-1]}, {better} is better", size=9, weight="normal", pad=6)
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    locator = AutoDateLocator(maxticks=6)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


if __name__ == "__main__":
    main()
