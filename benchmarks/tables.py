# SPDX-License-Identifier: Apache-2.0
"""The tables of figures in docs/performance.md, docs/measurements.md and docs/compare.md, from the files in results/:

    python benchmarks/tables.py    writes them between their markers

Run it after new measurements; tests/test_figures.py fails if a page differs from the files.
"""

from __future__ import annotations

import json
import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

MACHINES = {  # the pages' names of machines, and the file names of their results
    "Emerald Rapids": "intel-xeon-processor",
    "Cascade Lake": "intel-xeon-processor-2-50ghz",
    "Zen 4": "amd-epyc",
}
RIVALS_ON = "Cascade Lake"  # the machine that has run all rivals
FIGURES_ON = ROOFLINE_OF = "Zen 4"


class Row(NamedTuple):
    """A table row. Its figures are in the files of one suffix. {name} in `figure` is one of `names`, and has a number
    each."""

    label: str
    suffix: str
    figure: str
    names: tuple[str, ...] = ("",)

    def records(self, machine: str) -> list[dict]:
        found = figures(MACHINES[machine] + self.suffix)
        return [found[self.figure.format(name=name)] for name in self.names]


STEPS = ("ddpm", "ddim", "dpmpp_2m", "unipc")

FIGURES = [
    Row("`q_sample`, 256 x 3 x 128 x 128, over the NumPy one-liner", "", "images, over naive"),
    Row("`q_sample`, 2^26 elements, over the NumPy one-liner", "", "2^26, over naive"),
    Row("`q_walk`, 1000 steps, over the NumPy loop", "", "q_walk of 1000 steps, over naive"),
    Row("`q_sample`, 1 x 16 x 7, of the time of `np.add(a, b, out=c)`", "", "(1, 16, 7), of np.add"),
    Row(
        "a step of DDPM, DDIM, DPM-Solver++ 2M, UniPC, 1 x 16 x 7, over diffusers in torch",
        "-samplers",
        "(1, 16, 7), {name} over diffusers",
        STEPS,
    ),
    Row(
        "a step of DDIM, 2^26 elements, of the time of a compiled triad over as many bytes",
        "-samplers",
        "2^26, ddim of triad",
    ),
    Row("a step of UniPC", "-samplers", "2^26, unipc of triad"),
    Row("a step of UniPC, 4 x 4 x 128 x 128", "-samplers", "(4, 4, 128, 128), unipc of triad"),
    Row("`mse_loss`, x_t and gradient, 256 x 3 x 128 x 128, over torch", "-loss", "images, over torch"),
]

# Public functions, as counts.json and the results of test_peers.py name their plain calls.
CALLS = (
    "randn", "uniform", "q_sample", "q_step", "q_walk", "noised", "mse_loss", "mse_loss_and_grad", "interpolate",
    "interpolate, velocity", "interpolate, a bridge", "interpolate_loss", "update", "update, noise", "density.log_prob",
    "density.kl", "augment.gaussian", "augment.poisson", "q_mask", "q_uniform", "categorical",
    "categorical, temperature 0", "categorical, top_k", "categorical, top_p", "masked_cross_entropy",
    "masked_cross_entropy_and_grad",
)  # fmt: skip
AUTOGRAD = ("mse_loss, autograd", "interpolate_loss, autograd", "masked_cross_entropy, autograd")

# The measurement beside each rival, as the ratio of the rival's time to ours.
RIVALS = {
    "diffusers": [
        Row(
            "a step of DDPM, DDIM, DPM-Solver++ 2M, UniPC, 1 x 16 x 7",
            "-samplers",
            "(1, 16, 7), {name} over diffusers",
            STEPS,
        ),
        Row(
            "of DDPM and DDIM as drop-in classes",
            "-diffusers",
            "(1, 16, 7), {name}",
            ("DDPMScheduler", "DDIMScheduler"),
        ),
    ],
    "torch": [
        Row("`q_sample` of tensors", "-torch", "images, out=, over torch"),
        Row("x_t, loss and gradient", "-loss", "images, over torch"),
    ],
    "NumPy": [
        Row("`q_sample`", "", "images, over naive"),
        Row("x_t, loss and gradient", "-loss", "images, over NumPy"),
    ],
    "MKL": [Row("its normals alone, beside all of `q_sample`", "", "2^20, of MKL's normals alone")],
    "JAX": [
        Row(
            "`q_sample` under `jit`, beside threefry, unsafe_rbg",
            "-jax",
            "q_sample, over jnp with {name}",
            ("threefry", "unsafe_rbg"),
        ),
    ],
    "albumentations": [
        Row("Gaussian noise on bytes", "-augment", "gaussian, over albumentations"),
        Row("our transform in their `Compose`", "-augment", "gaussian in albumentations' Compose, over theirs"),
    ],
}
# Whether it takes one pass over memory, the noise's dependencies, and whether bits are promised between machines.
RIVALS_DO = {
    "noisefuse": ("yes", "its key: seed, sample, step, element", "yes"),
    "diffusers": ("no", "a generator's state", "no: within a tolerance"),
    "torch": ("if you compile it", "a generator's state", "no"),
    "NumPy": ("no", "a generator's state", "no: the same build and machine"),
    "MKL": ("no: draws only", "a stream's state", "no"),
    "JAX": ("no: draws first", "a key, and the shape", "no: the generator's bits alone"),
    "albumentations": ("no", "the pipeline's seed, and its calls so far", "no: the same version"),
}


@cache
def figures(name: str) -> dict[str, dict]:
    """Returns {figure: record} from a file of results."""
    records = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return {record["figure"]: record for record in records if "value" in record}


def number(value: float) -> str:
    """Writes two digits, or all before the point; near 1, where a few hundredths count, two decimal places."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2f}" if value < 1.995 else f"{value:.1f}"


def cell(records: list[dict]) -> str:
    unit = records[0]["target"].split()[-1]
    return f"{', '.join(number(record['value']) for record in records)} {unit}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def figures_table() -> str:
    rows = [[row.label, cell(row.records(FIGURES_ON))] for row in FIGURES]
    return table(["float32, `out=`, one thread", FIGURES_ON], rows)


def calls_table() -> str:
    """Returns the instructions of small calls and the times of large ones, beside torch's shortest code."""
    counts = json.loads((RESULTS / "counts.json").read_text())
    arrays, tensors, peers = (counts[kind]["avx512"] for kind in ("arrays", "tensors", "peers"))
    times = figures(MACHINES[FIGURES_ON] + "-peers")
    rows = []
    for name in (*CALLS, *AUTOGRAD):
        function, *case = name.split(", ")
        large = times.get(f"{name}, over torch")
        rows.append([", ".join([f"`{function}`", *case])])
        rows[-1] += [f"{arrays[name]:,}", f"{arrays[name] / arrays['q_sample']:.2f}"] if name in arrays else ["", ""]
        rows[-1] += [f"{of[name]:,}" if name in of else "" for of in (tensors, peers)]
        rows[-1].append(f"{number(large['value'])} x" if large else "")
    heads = ["", "small: NumPy", "of `q_sample`", "tensors", "torch's code", "large: torch's time over ours"]
    return table(heads, rows)


def beside(row: Row) -> str:
    """Returns the rival's time over ours. Figures whose target is "<=" are ours over theirs (figures.py)."""
    records = row.records(RIVALS_ON)
    theirs = [record["value"] if record["target"].startswith(">=") else 1 / record["value"] for record in records]
    return f"{row.label}: {', '.join(map(number, theirs))} x"


def rivals_table() -> str:
    rows = [[name, *does, "; ".join(map(beside, RIVALS.get(name, [])))] for name, does in RIVALS_DO.items()]
    heads = ["", "noise and arithmetic in one pass", "noise depends on", "same bits elsewhere", "takes, beside ours"]
    return table(heads, rows)


def save(figure: Any, path: Path) -> None:
    """Saves a picture of lines in 128 colours, which takes a third of the bytes. The source distribution has it."""
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def roofline() -> dict[str, Any]:
    """Returns the measurements of roofline.py."""
    return dict(json.loads((RESULTS / f"{MACHINES[ROOFLINE_OF]}-roofline.json").read_text()))


def roofline_table() -> str:
    """Returns the floor: the longer of two times, that of an operation's arithmetic, and that of its bytes in a
    copy."""
    record = roofline()
    heads, rows = ["", "instructions", "bytes"], []
    for place in record["places"]:
        heads += [f"{place}: floor, ns", "takes", "of the roof"]
    for operation, instructions in record["operations"].items():
        row = [operation, f"{64 * instructions:.0f}"]
        for n, here in enumerate(record["places"].values()):
            bytes_, ns = (here["points"][operation][key] for key in ("bytes", "ns"))
            floor = 1e9 * max(instructions / record["instructions a second"], bytes_ / here["bytes a second"])
            row += [f"{bytes_:.0f}"] * (n == 0) + [f"{floor:.2f}", f"{ns:.2f}", f"{floor / ns:.0%}"]
        rows.append(row)
    return table(heads, rows)


TABLES = {
    "docs/compare.md": {"rivals": rivals_table},
    "docs/measurements.md": {"roofline": roofline_table},
    "docs/performance.md": {"figures": figures_table, "calls": calls_table},
}


def filled(page: str, text: str) -> str:
    """Returns the page's text with all its tables from the files. A missing marker is an error."""
    for name, made in TABLES[page].items():
        begin, end = f"<!-- {name}: written by benchmarks/tables.py -->\n", f"<!-- /{name} -->"
        marked = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        if len(marked.findall(text)) != 1:
            raise ValueError(f"expected {begin.strip()} and {end} once")
        text = marked.sub(lambda _, made=made: f"\n{made()}\n\n", text)
    return text


if __name__ == "__main__":
    for page in TABLES:
        path = ROOT / page
        path.write_text(filled(page, path.read_text()))
