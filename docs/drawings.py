# SPDX-License-Identifier: Apache-2.0
"""Draws pictures/*.svg of noise.md and design.md: a counter's bits, a tile's way, a row.

python docs/drawings.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"
INK, PALE, NAMES, NOISE, DATA = "#222", "#eee", "#cfe0f5", "#f8dcc4", "#d5ecd0"


class Drawing:
    """SVG of a given size, from the top left corner in units of a pixel."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="13" fill="{INK}" role="img">'
        )
        self.parts = [
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def text(self, x: float, y: float, words: str, anchor: str = "middle", size: int = 13) -> None:
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, *lines: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{colour}" stroke="{INK}"/>'
        )
        for n, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 5 + 17 * (n - (len(lines) - 1) / 2), line)

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.parts.append(f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{INK}" fill="none" marker-end="url(#tip)"/>')

    def write(self, path: Path) -> None:
        path.write_text("\n".join([self.head, *self.parts, "</svg>"]) + "\n")


def counter() -> Drawing:
    """docs/noise.md, "From numbers to words"."""
    d = Drawing(760, 330, "The bits of a counter, and the four elements that it gives")
    d.text(20, 24, "counter: four words of 32 bits", "start")
    words = [("block", "element >> 2"), ("step",), ("sample", "its lower 32 bits")]
    for n, lines in enumerate(words):
        d.box(20 + 180 * n, 34, 180, 46, NAMES, *lines)
        d.text(24 + 180 * n, 96, f"word {n}", "start", 11)
    for x, width, lines in ((560, 34, ("low", "1")), (594, 60, ("stream", "7")), (654, 86, ("sample", "upper 24"))):
        d.box(x, 34, width, 46, NAMES, *lines)
    d.text(564, 96, "word 3, the highest bit first", "start", 11)
    d.text(20, 134, "key: 64 bits", "start")
    d.box(20, 144, 180, 40, NAMES, "seed")
    d.box(300, 134, 180, 60, PALE, "Philox4x32", "10 rounds")
    d.arrow(200, 164, 298, 164)
    d.arrow(390, 104, 390, 132)
    for n in range(4):
        d.box(176 + 108 * n, 226, 104, 30, NOISE, f"word {n}")
        d.box(176 + 108 * n, 286, 104, 30, DATA, f"4 block + {n}" if n else "4 block")
    d.arrow(390, 194, 390, 224)
    for x in (282, 498):
        d.arrow(x, 256, x, 284)
    d.text(164, 246, "a block:", "end")
    d.text(164, 306, "elements:", "end")
    d.text(620, 268, "of a pair: the radius", "start", 11)
    d.text(620, 284, "and the angle", "start", 11)
    return d


def tile() -> Drawing:
    """docs/design.md, "The CPU kernel"."""
    d = Drawing(760, 250, "The way of a tile of 256 elements")
    steps = [
        (NAMES, "counters", "seed, sample, step,", "stream, element"),
        (NOISE, "words", "Philox, two vectors", "at once"),
        (NOISE, "radii", "in the place of", "every second word"),
        (DATA, "normals and row", "angles; c z + a x + ..", "in registers"),
    ]
    for n, (colour, *lines) in enumerate(steps):
        d.box(20 + 186 * n, 60, 162, 76, colour, *lines)
        if n:
            d.arrow(182 + 186 * (n - 1), 98, 204 + 186 * (n - 1), 98)
    d.text(101, 44, "no memory: pure numbers", size=11)
    d.text(382, 44, "4 KiB and less: the first-level cache", size=11)
    d.box(578, 186, 162, 40, PALE, "memory, read once")
    d.box(392, 186, 162, 40, PALE, "memory, written once")
    d.arrow(679, 186, 679, 138)
    d.arrow(610, 138, 500, 184)
    d.text(672, 166, "x", "end", 11)
    return d


def row() -> Drawing:
    """docs/design.md, "One sentence"."""
    d = Drawing(760, 290, "What a row computes")
    inputs = ["x", "m1", "m2", "past1 .. past4", "z"]
    for n, name in enumerate(inputs):
        d.box(20, 30 + 48 * n, 130, 36, NOISE if name == "z" else DATA, name)
    d.text(85, 22, "what a call reads", size=11)
    d.box(220, 60, 170, 72, NAMES, "D", "an affine combination,", "clamped")
    for n in range(3):
        d.arrow(150, 48 + 48 * n, 218, 82 + 14 * n)
    d.box(460, 30, 60, 228, PALE, "D and", "all that", "is read")
    d.arrow(390, 96, 458, 96)
    for n in range(3, 5):
        d.arrow(150, 48 + 48 * n, 458, 48 + 48 * n)
    for n, name in enumerate(("out", "aux1", "aux2")):
        d.box(590, 44 + 76 * n, 150, 50, NAMES, name, "an affine combination")
        d.arrow(520, 69 + 76 * n, 588, 69 + 76 * n)
    d.text(665, 22, "what it writes", size=11)
    return d


def floors() -> Drawing:
    """docs/design.md, "Layout"."""
    rows = [
        (PALE, [("commands", "the command noisefuse")]),
        (PALE, [("interop", "torch, JAX, dask, diffusers, transforms, your own arrays")]),
        (DATA, [("samplers", "the rules, a file for each family")]),
        (DATA, [("sampler", "the loop"), ("sampling", "the parts of a run"), ("fields", "")]),
        (DATA, [("augment", ""), ("density", ""), ("legacy", ""), ("numba", "")]),
        (DATA, [("operations", "draw, process, update, loss"), ("loss_parts", "")]),
        (NAMES, [("arguments", "from a caller's arguments to a checked call")]),
        (NOISE, [("backends", "native (csrc), reference, numba, cuda")]),
        (NOISE, [("call", "what a kernel is asked, also as bytes")]),
        (NAMES, [("noise", ""), ("schedule", ""), ("tableau", ""), ("weights", "")]),
        (NAMES, [("language", "rows, levels, the forward process, increments"), ("views", "")]),
        (PALE, [("ground", "whose array it is; JSON; pictures; docstrings")]),
    ]
    d = Drawing(
        760, 44 * len(rows) + 50, "The floors of the package: each file imports from its own floor and from below"
    )
    d.text(20, 24, "Each file imports from its own floor and from those below.", "start")
    for n, (colour, rooms) in enumerate(rows):
        widths = [3 if says else 1 for _, says in rooms]
        x, unit = 20.0, (720 - 8 * (len(rooms) - 1)) / sum(widths)
        for width, (name, says) in zip(widths, rooms, strict=True):
            d.box(x, 40 + 44 * n, unit * width, 36, colour, f"{name}: {says}" if says else name)
            x += unit * width + 8
    return d


DRAWINGS = {"counter": counter, "tile": tile, "row": row, "floors": floors}


def main(folder: Path = PICTURES) -> None:
    for name, draw in DRAWINGS.items():
        draw().write(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
