# SPDX-License-Identifier: Apache-2.0
"""The targets of the drop-in schedulers, each a ratio within one run.

    pytest benchmarks/test_diffusers.py      every figure; writes results/<processor>-diffusers.json and .md

Both sides run the same loop over torch tensors on the same number of threads: all steps of a run with a ready model
output, or add_noise to a batch. diffusers draws noise from torch's generator; ours draws it in the pass. A first run
counts all steps, and includes the search for rows.
"""

from __future__ import annotations

import inspect
import statistics
import time
from functools import partial
from importlib import import_module
from typing import Any

import figures
import noisefuse as nf
from figures import ACTION, IMAGES, NOISE, Figure, Pair, microseconds
from noisefuse.commands.bench.contenders import Call
from test_samplers import LATENTS

STEPS = 50


def module() -> Any:
    return import_module("noisefuse.interop.diffusers")


def torch(threads: int = 1) -> Any:
    library = import_module("torch")
    library.set_num_threads(threads)
    return library


def run(name: str, library: Any, config: dict[str, Any], options: dict[str, Any], shape: tuple[int, ...]) -> Call:
    """Returns the steps of a run except the first, from the state after the first, on the same x."""
    scheduler = getattr(library, name)(**config)
    x, m = torch().randn(2, *shape)
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True
    if library is module():
        scheduler.noise = NOISE  # for the classes whose steps take no generator
    first, *times = scheduler.timesteps
    scheduler.step(m, first, x, **options)
    state = dict(vars(scheduler))

    def steps() -> None:
        for attribute, value in state.items():
            setattr(scheduler, attribute, value.copy() if isinstance(value, list) else value)
        for t in times:
            scheduler.step(m, t, x, **options)

    return steps


def draws(name: str) -> dict[str, Any]:
    """Returns the noise for our steps of this class."""
    taken = inspect.signature(getattr(import_module("diffusers"), name).step).parameters
    return {"generator": NOISE} if "generator" in taken else {}


def pair(name: str, config: dict[str, Any], options: dict[str, Any], shape: tuple[int, ...]) -> Pair:
    mine, theirs = module(), import_module("diffusers")
    return Pair(run(name, mine, config, options | draws(name), shape), run(name, theirs, config, options, shape))


def first_run(name: str) -> float:
    """Returns our time over theirs, medians of turns, for a run of 20 steps with a new configuration."""
    x, m = torch().randn(2, *ONE_LATENT)
    sides = [(getattr(module(), name)(), draws(name)), (getattr(import_module("diffusers"), name)(), {})]
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(60):
        for (scheduler, options), found in zip(sides, seconds, strict=True):
            scheduler.set_timesteps(20)
            scheduler.register_to_config(turn=turn)  # any word makes a configuration a new one
            scheduler.is_scale_input_called = True
            sample = x
            start = time.process_time()
            for t in scheduler.timesteps:
                sample = scheduler.step(m, t, sample, **options).prev_sample
            found.append(time.process_time() - start)
    ours, others = (statistics.median(found[5:]) for found in seconds)
    return ours / others


def step_microseconds(name: str, config: dict[str, Any], options: dict[str, Any]) -> float:
    """Compares a step within a run."""
    return microseconds(pair(name, config, options, ACTION).ours) / (STEPS - 1)


def add_noise(shape: tuple[int, ...], threads: int, *, method: bool) -> Pair:
    """Compares `method`, the drop-in method, which returns a new tensor, or else q_sample with `out=`."""
    library, scheduler = torch(threads), module().DDPMScheduler()
    x, t = library.randn(shape), library.randint(0, 1000, shape[:1])
    out, schedule, theirs = library.empty_like(x), nf.Schedule.linear(), import_module("diffusers").DDPMScheduler()
    return Pair(
        (lambda: scheduler.add_noise(x, NOISE, t)) if method else (lambda: nf.q_sample(x, t, schedule, NOISE, out=out)),
        lambda: theirs.add_noise(x, library.randn_like(x), t),
    )


SMALL: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("DDPMScheduler", {}, 15),
    ("DDIMScheduler", {}, 9),
    ("DPMSolverMultistepScheduler", {}, 15),
    ("UniPCMultistepScheduler", {}, 50),
)
# Cheap steps, an integral, and paths of torchsde, of which a Noise needs none.
OTHERS = (
    "FlowMatchEulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
)
LARGE: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("DDPMScheduler", {}, {}),
    ("DDIMScheduler", {}, {"eta": 1.0}),
    ("LCMScheduler", {}, {}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("UniPCMultistepScheduler", {}, {}),
)
ONE_LATENT = (1, 4, 64, 64)
FIRST = {
    "FlowMatchEulerDiscreteScheduler": 1.7,
    "EulerDiscreteScheduler": 1.2,
    "DPMSolverMultistepScheduler": 1.2,
    "UniPCMultistepScheduler": 1.2,
    "DDIMScheduler": 1.2,
    "PNDMScheduler": 1.2,
    "LCMScheduler": 1.2,
    "HeunDiscreteScheduler": 1.2,
    "KDPM2AncestralDiscreteScheduler": 1.6,
}
TITLE, SUFFIX = "The drop-in schedulers", "-diffusers"
ABOUT = f"""\
Written by `pytest benchmarks/test_diffusers.py`, in one run. float32 tensors of torch, one thread where
nothing else is said; diffusers' time over ours. The {STEPS - 1} steps of a run after its first are timed. Of a first
run, in which the rows are found, it is our time over diffusers', of all of its 20 steps."""
FIGURES = [
    *(
        Figure(f"{ACTION}, a step of {name}", "<=", 7, partial(step_microseconds, name, config, {}), unit="us")
        for name, config, _ in SMALL
    ),
    *(
        Figure(f"{ACTION}, {name}", ">=", target, partial(pair, name, config, {}, ACTION))
        for name, config, target in SMALL
    ),
    *(Figure(f"{ACTION}, {name}", ">=", 2, partial(pair, name, {}, {}, ACTION)) for name in OTHERS),
    *(
        Figure(
            f"{LATENTS}, {name}{' of an SDE' * bool(config)}{', eta = 1' * bool(options)}",
            ">=",
            5,
            partial(pair, name, config, options, LATENTS),
        )
        for name, config, options in LARGE
    ),
    *(
        Figure(f"{ONE_LATENT}, the first run of {name}", "<=", target, partial(first_run, name))
        for name, target in FIRST.items()
    ),
    *(
        Figure(
            f"add_noise, {shape}, {'new' if method else 'out='}{', 2 threads' * (threads == 2)}",
            ">=",
            target,
            partial(add_noise, shape, threads, method=method),
            threads=threads,
        )
        for shape, threads, method, target in (
            (IMAGES, 1, False, 12),
            (IMAGES, 2, False, 18),
            (IMAGES, 1, True, 7),
            (IMAGES, 2, True, 9),
            ((64, 3, 64, 64), 1, True, 5),
        )
    ),
]
test_figure = figures.test_figure
