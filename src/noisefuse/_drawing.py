# SPDX-License-Identifier: Apache-2.0
"""How pictures look: their colours, what matplotlib is told, and the numbers on bars."""

from __future__ import annotations

from typing import Any

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


def label_bar(ax: Any, length: float, y: float, text: str, widest: float, color: str, **style: Any) -> None:
    """At the end of a bar: within a long one, as beside it the line of the copy may run."""
    within = length > 0.3 * widest
    box = {"facecolor": color if within else "white", "edgecolor": "none", "pad": 1}
    x, side, ink = (-1, "right", "white" if color == BLUE else INK) if within else (1, "left", INK)
    ax.text(length + x * widest / 80, y, text, ha=side, va="center", color=ink, bbox=box, **style)
