# SPDX-License-Identifier: Apache-2.0
"""What notebooks show of objects: tables and plots in HTML, of escaped text, in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, POINTS = 320, 120, 80
BLUE, ORANGE = "#2563eb", "#f0821e"  # drawing.py's, which are readable on light and dark pages


def table(title: str, rows: Sequence[Sequence[str]], plot: str = "") -> str:
    """Returns a title, a plot that is HTML already, and the rows of a table. All cells are plain text."""
    from html import escape  # its tables of entities take two milliseconds

    lines = [f'<div class="noisefuse"><b>{escape(title)}</b>', plot, '<table style="font-family: monospace">']
    lines += [
        "<tr>"
        + "".join(f'<td style="text-align: left; padding-right: 1em">{escape(cell)}</td>' for cell in row)
        + "</tr>"
        for row in rows
    ]
    return "\n".join(filter(None, [*lines, "</table></div>"]))


def equations(text: str, plot: str = "") -> str:
    """Returns the repr of a tableau or sampler: its title, and a row for each line, with a cell for each equation."""
    title, *lines = text.splitlines()
    rows = []
    for line in lines:
        number, found, rest = line.strip().partition(": ")
        rows.append([number, *rest.split(";  ")] if found else ["..", line.strip(" .")])  # such as ".. 14 more .."
    return table(title, rows, plot)


def levels(alpha: NDArray[np.float64], sigma: NDArray[np.float64], xlabel: str) -> str:
    """Returns an SVG of alpha and sigma against the index. Where alpha is 1, it is log sigma alone."""
    at = np.unique(np.linspace(0, len(alpha) - 1, POINTS).round().astype(int))
    exploding = bool(np.all(alpha == 1))
    with np.errstate(divide="ignore"):
        curves = (
            [("log sigma", np.log(sigma), ORANGE)] if exploding else [("alpha", alpha, BLUE), ("sigma", sigma, ORANGE)]
        )
    drawn = [(name, at[np.isfinite(values[at])], values, color) for name, values, color in curves]
    seen = np.concatenate([values[i] for _, i, values, _ in drawn])
    if not len(seen):
        return ""
    low, high = seen.min(), seen.max()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + 34}" role="img" '
        f'font-family="sans-serif" font-size="11" style="display: block; color: inherit">',
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT}" fill="none" stroke="currentColor" opacity="0.3"/>',
    ]
    for k, (name, i, values, color) in enumerate(drawn):
        x = 1 + (WIDTH - 2) * i / max(len(alpha) - 1, 1)
        y = 5 + (HEIGHT - 8) * (high - values[i]) / (high - low or 1.0)
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        ends = f"{values[i[0]]:.3g} .. {values[i[-1]]:.3g}"
        parts.append(f'<text x="{1 + 165 * k}" y="{HEIGHT + 30}" fill="{color}">{name} {ends}</text>')
    parts.append(f'<text x="1" y="{HEIGHT + 15}" fill="currentColor">{xlabel} = 0</text>')
    last = f'<text x="{WIDTH - 1}" y="{HEIGHT + 15}" text-anchor="end" fill="currentColor">{len(alpha) - 1}</text>'
    return "\n".join([*parts, last, "</svg>"])
