# SPDX-License-Identifier: Apache-2.0
"""Draws pictures/*.svg: the logo, figures beside other libraries, same keys and same bits, and diagrams of pages.

python docs/drawings.py           draws all
python docs/drawings.py --card    makes a PNG of card.svg, too, by Chromium: what other sites show of a link
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, GREY, ORANGE

PICTURES = Path(__file__).parent / "pictures"
INK, PALE, NAMES, NOISE, DATA = "#222", "#eee", "#cfe0f5", "#f8dcc4", "#d5ecd0"
TABLES = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tables.py"))


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

    def text(self, x: float, y: float, words: str, anchor: str = "middle", size: int = 13, more: str = "") -> None:
        where = f'x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}"{more}'
        self.parts.append(f"<text {where}>{escape(words)}</text>")

    def cell(self, x: float, y: float, width: float, height: float, colour: str, rx: float = 2) -> None:
        """Draws a box without a frame and words."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx:g}" fill="{colour}"/>'
        )

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
    """docs/kernels.md."""
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
        (DATA, [("samplers", "the rules, a file for each family"), ("discrete", "")]),
        (DATA, [("tokens", "noise, draws, losses, schedules and samplers of tokens")]),
        (DATA, [("sampling", "a run: the loop over rows, and its parts")]),
        (DATA, [("augment", ""), ("density", ""), ("fields", ""), ("legacy", ""), ("numba", "")]),
        (DATA, [("operations", "draw, process, update, loss")]),
        (NAMES, [("arguments", "from a caller's arguments to a checked call")]),
        (NOISE, [("backends", "native (csrc), reference, numba, cuda")]),
        (NOISE, [("call", "what a kernel is asked, also as bytes")]),
        (NAMES, [("paths", ""), ("weights", "")]),
        (NAMES, [("language", "noise, schedules, rows and tables, the forward process"), ("views", "")]),
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


BOLD = ' font-weight="bold"'
# What `noisefuse bench --json` wrote.
BENCH = json.loads((TABLES["RESULTS"] / "amd-epyc-bench.json").read_text())


def times() -> Iterator[tuple[str, str, float]]:
    """Yields what is measured, the other library, and its time over ours."""
    for pair in BENCH["pairs"]:
        yield pair["work"], pair["rival"], pair["ratio"]


def bars(d: Drawing, x: float, y: float, width: float) -> None:
    """Draws a pair of bars for each measurement: the other library's takes all of the width."""
    for n, (label, rival, ratio) in enumerate(times()):
        top = y + 64 * n
        d.text(x, top + 11, label, "start", 15)
        d.cell(x, top + 18, width, 15, GREY)
        d.cell(x, top + 35, width / ratio, 15, BLUE)
        d.text(x + width - 6, top + 30, rival, "end", 14)
        d.text(x + width / ratio + 6, top + 47, "noisefuse", "start", 14, f' fill="{BLUE}"')
        d.text(x + width + 12, top + 42, f"{TABLES['number'](ratio)}x", "start", 20, BOLD)


def speed() -> Drawing:
    """README.md, docs/index.md and docs/performance.md: how long other libraries take."""
    said = (f"{label}: {rival} takes {TABLES['number'](ratio)} times as long" for label, rival, ratio in times())
    d = Drawing(560, 472, "; ".join(said))  # narrow: its words can be read on a phone
    d.text(12, 26, "The same work in less time", "start", 17, BOLD)
    bars(d, 12, 44, 462)
    where = BENCH["machine"]
    d.text(12, 442, "Time, less is better; one thread each, by `noisefuse bench`.", "start", 14)
    d.text(12, 461, f"{where['cpu']}, {where['isa'].upper()}, load {where['load']:.0f}, {where['date']}.", "start", 14)
    return d


# Printed by benchmarks/repeated_noise.py: losses of 250 steps each.
LOSSES = (
    (
        "right noise, training", BLUE,
        [0.397, 0.313, 0.292, 0.284, 0.274, 0.27, 0.264, 0.261, 0.258, 0.254, 0.254, 0.249],
    ),
    (
        "right noise, validation", BLUE,
        [0.353, 0.331, 0.323, 0.318, 0.312, 0.311, 0.307, 0.305, 0.307, 0.305, 0.309, 0.309],
    ),
    (
        "repeated noise, training", ORANGE,
        [0.251, 0.026, 0.009, 0.005, 0.005, 0.005, 0.004, 0.004, 0.005, 0.004, 0.004, 0.004],
    ),
    (
        "repeated noise, validation", ORANGE,
        [0.522, 0.564, 0.564, 0.561, 0.552, 0.547, 0.541, 0.538, 0.532, 0.527, 0.525, 0.521],
    ),
)  # fmt: skip


def repeated_noise() -> Drawing:
    """docs/repeated-noise.md."""
    d = Drawing(560, 290, "Losses of training and validation, with right noise and with noise that epochs repeat")
    for n, (words, colour, losses) in enumerate(LOSSES):
        points = " ".join(f"{30 + 28 * k},{260 - 400 * loss:.0f}" for k, loss in enumerate(losses))
        dashes = "" if n % 2 else ' stroke-dasharray="4 4"'
        d.parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        d.text(346, round(264 - 400 * losses[-1]), f"{words}: {losses[-1]:.3f}", "start", 12)
    d.parts.append(f'<path d="M30 20V260H338" stroke="{INK}" fill="none"/>')
    d.text(26, 264, "0", "end", 11)
    d.text(338, 278, "3000 steps", "end", 11)
    d.text(30, 278, "loss", "start", 11)
    return d


def field(noise: nf.Noise, samples: int, elements: int = 12) -> np.ndarray:
    return nf.randn((samples, elements), noise)


def colour(z: float) -> str:
    """Blue for negative numbers, white for 0, orange for positive ones."""
    end, share = (BLUE, -z) if z < 0 else (ORANGE, z)
    share = min(share / 2.2, 1.0)
    return "#" + "".join(f"{round(255 + share * (int(end[k : k + 2], 16) - 255)):02x}" for k in (1, 3, 5))


def same_bits() -> Drawing:
    """README.md and docs/index.md: each panel is drawn from calls of its own."""
    d = Drawing(420, 386, "One key, drawn as a batch, in two batches, in two shards, and resumed: the same numbers")
    noise = nf.Noise(2026, sample=40)
    halves = [field(noise.window((12,), (start,)), 6, 6) for start in (0, 6)]
    panels = [
        ("one batch of 6", [(0, 0, field(noise, 6))]),
        ("batches of 4 and 2", [(0, 0, field(noise, 4)), (4, 0, field(noise.at(sample=44), 2))]),
        ("two ranks, half each", [(0, 0, halves[0]), (0, 6, halves[1])]),
        ("stopped, and resumed", [(3, 0, field(noise.at(sample=43), 3))]),
    ]
    for n, (title, parts) in enumerate(panels):
        x0, y0 = 12 + 208 * (n % 2), 26 + 182 * (n // 2)  # two by two: its words can be read on a phone
        d.text(x0, y0, title, "start", 13, BOLD)
        for i in range(6):
            for k in range(12):
                d.cell(x0 + 15 * k + 6 * (k > 5) * (n == 2), y0 + 14 + 22 * i + 6 * (i > 3) * (n == 1), 14, 20, PALE)
        for top, left, z in parts:
            for (i, k), value in np.ndenumerate(z):
                x = x0 + 15 * (left + k) + 6 * (left + k > 5) * (n == 2)
                d.cell(x, y0 + 14 + 22 * (top + i) + 6 * (top + i > 3) * (n == 1), 14, 20, colour(value))
    d.text(12, 376, "A row is a sample, a colour is a number. Each part has its own call.", "start", 12)
    return d


def dots(d: Drawing, x: float, y: float, unit: float) -> None:
    """Draws the logo: dots that begin as noise and end in order."""
    z = nf.randn((5, 5, 2), nf.Noise(11))
    for (row, column), share in np.ndenumerate(np.broadcast_to(np.linspace(1, 0, 5), (5, 5))):
        dx, dy = 0.34 * unit * share * np.clip(z[row, column], -1.2, 1.2)
        tint = [round(int(ORANGE[k : k + 2], 16) * share + int(BLUE[k : k + 2], 16) * (1 - share)) for k in (1, 3, 5)]
        centre = f'cx="{x + unit * (column + 0.5) + dx:.1f}" cy="{y + unit * (row + 0.5) + dy:.1f}"'
        d.parts.append(f'<circle {centre} r="{unit * 0.32:.1f}" fill="#{"".join(f"{c:02x}" for c in tint)}"/>')


def logo() -> Drawing:
    """The site's logo and favicon."""
    d = Drawing(120, 120, "noisefuse")
    d.parts = d.parts[:1]  # it lies on any background
    dots(d, 2, 2, 23.2)
    return d


def card() -> Drawing:
    """Draws the card that other sites show beside a link to the documentation."""
    d = Drawing(1200, 630, "noisefuse: fused kernels for diffusion models and data augmentation")
    dots(d, 70, 60, 30)
    d.text(250, 165, "noisefuse", "start", 84, BOLD)
    d.text(70, 280, "Noising, losses and sampler steps, each fused", "start", 40)
    d.text(70, 332, "into one pass over memory.", "start", 40)
    d.text(70, 400, "The same key gives the same bits on every machine.", "start", 40)
    d.text(70, 470, "times as fast as", "start", 24)
    for n, (rival, ratio) in enumerate({rival: ratio for _, rival, ratio in [*times()][::-1]}.items()):
        d.text(70 + 220 * n, 535, f"{TABLES['number'](ratio)}x", "start", 56, BOLD + f' fill="{BLUE}"')
        d.text(70 + 220 * n, 570, rival, "start", 24)
    return d


DRAWINGS = {
    "counter": counter, "tile": tile, "row": row, "floors": floors,
    "speed": speed, "same_bits": same_bits, "logo": logo, "card": card, "repeated_noise": repeated_noise,
}  # fmt: skip


def main(folder: Path = PICTURES) -> None:
    for name, draw in DRAWINGS.items():
        draw().write(folder / f"{name}.svg")


def photograph(card: Path) -> None:
    """Makes a PNG of the card: sites that show links take no SVG."""
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,630"]
    subprocess.run(["chromium", *flags, f"--screenshot={card.with_suffix('.png')}", card.as_uri()], check=True)


if __name__ == "__main__":
    main()
    if "--card" in sys.argv:
        photograph(PICTURES / "card.svg")
