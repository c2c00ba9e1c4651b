# SPDX-License-Identifier: Apache-2.0
"""The targets of the samplers, each a ratio within one run.

    pytest benchmarks/test_samplers.py      every figure; writes results/<processor>-samplers.json and .md

Small steps are compared with diffusers' schedulers and with careful NumPy, over all rows of one run. Large steps are
compared with a compiled triad, out = a x + b m (triad.c), on the same threads and over as many bytes.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import warnings
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import figures
import noisefuse as nf
import peers
from figures import ACTION, LARGE, NOISE, SCHEDULE, Figure, Pair, microseconds
from noisefuse.commands.bench.contenders import Call
from noisefuse.sampler import Sampler

CHUNK = (1, 50, 32)  # a chunk of actions
LATENTS = (4, 4, 128, 128)
STEPS = 50


def arrays(shape: tuple[int, ...], n: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.random(shape, dtype=np.float32) for _ in range(n)]


def on_pages(shape: tuple[int, ...], n: int) -> list[Any]:
    """Returns copies that each begin on a page. The place of two arrays within their lines changes a time by a third,
    by chance, and here a step is compared with a triad on other arrays."""
    placed = []
    for array in arrays(shape, n):
        memory = np.empty(array.nbytes + 4096, np.uint8)
        first = -memory.ctypes.data % 4096
        placed.append(memory[first : first + array.nbytes].view(np.float32).reshape(shape))
        placed[-1][...] = array
    return placed


def make(name: str, **options: Any) -> Sampler:
    sampler: Sampler = getattr(nf.samplers, name)(SCHEDULE, STEPS, **options)
    return sampler


def run(name: str, shape: tuple[int, ...], **options: Any) -> Call:
    """Runs all rows of one run, on the same x."""
    sampler, (x, m, out) = make(name, **options), arrays(shape, 3)
    state, step, rows = sampler.state(x), sampler.step, range(len(sampler))

    def rows_of_a_run() -> None:
        for i in rows:
            step(i, x, m, NOISE, state, out=out)

    return rows_of_a_run


def step_microseconds(name: str, shape: tuple[int, ...]) -> float:
    """Returns the time of one step within a run."""
    return microseconds(run(name, shape)) / STEPS


def loop_milliseconds() -> float:
    """Returns the time of `sample` for 1000 steps of DDPM, with a model that takes no time."""
    sampler, (x, m) = nf.samplers.ddpm(SCHEDULE), arrays((16, 7), 2)
    return microseconds(lambda: sampler.sample(lambda x, t: m, x, NOISE)) / 1e3


# ---- diffusers ---------------------------------------------------------------------------------------------


def against_diffusers(name: str, scheduler: str, **options: Any) -> Pair:
    """Returns their schedulers with their defaults, so with D clipped in DDPM and DDIM."""
    diffusers, torch = import_module("diffusers"), import_module("torch")
    torch.set_num_threads(1)
    theirs = getattr(diffusers, scheduler)(1000)
    with warnings.catch_warnings(action="ignore"):  # theirs
        theirs.set_timesteps(STEPS)
    x, m = (torch.from_numpy(a) for a in arrays(ACTION, 2))

    def other() -> None:
        theirs._step_index = None  # resets it to the first step
        for t in theirs.timesteps:
            theirs.step(m, t, x)

    return Pair(run(name, ACTION, **options), other)


# ---- careful NumPy: coefficients computed in advance, no temporaries ----------------------------------------


def against_numpy(name: str, shape: tuple[int, ...]) -> Pair:
    """Computes the rows with D clipped to [-1, 1], as for actions and pixels."""
    table, (x, m, out, clean, before, term) = make(name, clip=1.0).tableau, arrays(shape, 6)
    columns = [table.rows["clean"][symbol] for symbol in ("x", "m1")]
    columns += [table.rows["out"][symbol] for symbol in ("x", "d", "past1", "z")]
    rows = [tuple(row) for row in np.stack(columns, axis=1).astype(np.float32)]
    multiply, add, maximum, minimum = np.multiply, np.add, np.maximum, np.minimum
    normals, dtype, low, high = peers.tuned_rng(0).standard_normal, np.float32, np.float32(-1), np.float32(1)

    def steps() -> None:
        nonlocal clean, before
        for p_x, p_m, a, c, h, s in rows:
            multiply(x, p_x, out=clean)
            multiply(m, p_m, out=term)
            add(clean, term, out=clean)
            maximum(clean, low, out=clean)
            minimum(clean, high, out=clean)
            multiply(x, a, out=out)
            multiply(clean, c, out=term)
            add(out, term, out=out)
            if s:
                normals(dtype=dtype, out=term)
                multiply(term, s, out=term)
                add(out, term, out=out)
            if h:
                multiply(before, h, out=term)
                add(out, term, out=out)
            clean, before = before, clean

    return Pair(run(name, shape, clip=1.0), steps)


# ---- the triad ---------------------------------------------------------------------------------------------


@cache
def library() -> ctypes.CDLL:
    """Compiles triad.c. ImportError: no C compiler with OpenMP."""
    target = Path(tempfile.mkdtemp()) / "triad.so"
    options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    try:
        subprocess.run(["cc", *options, str(Path(__file__).parent / "triad.c"), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        raise ImportError(f"no C compiler with OpenMP: {error}") from error


def triad(out: Any, x: Any, m: Any, threads: int) -> Call:
    function = library().triad
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_float] * 2 + [ctypes.c_ssize_t, ctypes.c_int]
    arguments = (out.ctypes.data, x.ctypes.data, m.ctypes.data, 0.9, 0.1, out.size, threads)
    return lambda: (out, x, m, function(*arguments))  # the tuple keeps the arrays alive


def middle_step(name: str, shape: tuple[int, ...]) -> tuple[Call, list[Any], int]:
    """Returns one step, its (out, x, m), and the number of arrays that it reads or writes."""
    sampler, (out, x, m) = make(name), on_pages(shape, 3)
    state, i = sampler.state(x), STEPS // 2
    sampler.step(0, x, m, NOISE, state, out=out)  # later rows read what it keeps
    streams = 3 + sampler.tableau.slots + int(sampler.tableau.push[i])
    return lambda: sampler.step(i, x, m, NOISE, state, out=out), [out, x, m], streams


def against_triad(name: str, shape: tuple[int, ...], threads: int) -> Pair:
    """Returns a triad of the step's own arrays, if there are at most three."""
    ours, own, streams = middle_step(name, shape)
    arrays = own if streams == 3 else on_pages((own[0].size * streams // 3,), 3)
    return Pair(ours, triad(*arrays, threads))


def against_q_sample(name: str, shape: tuple[int, ...], threads: int) -> Pair:
    """Returns q_sample, and a triad over as many bytes as the step's arrays beyond x and out."""
    ours, (_, x, _), streams = middle_step(name, shape)
    (out,), others = on_pages(shape, 1), triad(*on_pages((x.size * (streams - 2) // 3,), 3), threads)
    return Pair(ours, lambda: (nf.q_sample(x, 500, SCHEDULE, NOISE, out=out), others()))


# ---- the figures -------------------------------------------------------------------------------------------

CLIPPED = {"clip": 1.0}
SCHEDULERS: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("ddpm", "DDPMScheduler", 60, CLIPPED),
    ("ddim", "DDIMScheduler", 40, CLIPPED),
    ("dpmpp_2m", "DPMSolverMultistepScheduler", 60, {}),
    ("unipc", "UniPCMultistepScheduler", 150, {}),
)
LARGE_STEPS = [
    (f"{title}, {name} of {yardstick.__name__.removeprefix('against_')}", target, partial(yardstick, name, shape))
    for title, shape in ((f"{LATENTS}", LATENTS), ("2^26", LARGE))
    for yardstick, target, names in (
        (against_triad, 1.15, ("ddim", "euler", "dpmpp_2m", "unipc", "pndm")),
        (against_q_sample, 1.3, ("ddpm", "euler_ancestral", "dpmpp_2m_sde")),
    )
    for name in names
]
TITLE, SUFFIX = "The samplers", "-samplers"
ABOUT = """\
Written by `pytest benchmarks/test_samplers.py`, in one run. float32, `out=`, one thread where nothing else
is said. Beside diffusers and NumPy: all rows of a run of 50 steps. A triad moves as many bytes as the step;
to q_sample's time that of a triad is added, for the arrays that a step has more."""
FIGURES = [
    *(
        Figure(f"{shape}, a step of {name}", "<=", target, partial(step_microseconds, name, shape), unit="us")
        for shape, target in ((ACTION, 1.6), (CHUNK, 3))
        for name in ("ddim", "ddpm", "dpmpp_2m", "unipc")
    ),
    Figure("(16, 7), 1000 steps of ddpm", "<=", 3, loop_milliseconds, unit="ms"),
    *(
        Figure(f"{ACTION}, {name} over diffusers", ">=", target, partial(against_diffusers, name, scheduler, **options))
        for name, scheduler, target, options in SCHEDULERS
    ),
    *(
        Figure(f"{shape}, {name} over careful NumPy", ">=", 5, partial(against_numpy, name, shape))
        for shape in (ACTION, CHUNK)
        for name in ("ddim", "ddpm", "dpmpp_2m")
    ),
    *(Figure(name, "<=", target, partial(measure, threads=1)) for name, target, measure in LARGE_STEPS),
    *(
        Figure(f"{name}, 2 threads", "<=", target, partial(measure, threads=2), threads=2)
        for name, target, measure in LARGE_STEPS
    ),
]
test_figure = figures.test_figure
