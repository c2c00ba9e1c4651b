# SPDX-License-Identifier: Apache-2.0
"""The targets of torch tensors, each within one run.

    pytest benchmarks/test_torch.py      every figure; writes results/<processor>-torch.json and .md

Small calls are microseconds of one call. Adding noise is compared with today's practice, torch.randn_like and
diffusers' add_noise, both on the same threads and with the noise drawn by both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import figures
import noisefuse as nf
from figures import ACTION, IMAGES, NOISE, SCHEDULE, Figure, Pair, microseconds
from noisefuse.commands.bench.contenders import Call

CROPS = (64, 3, 64, 64)
HALF = "bfloat16"


def torch() -> Any:
    return import_module("torch")


def tensors(shape: tuple[int, ...], n: int, dtype: str = "float32") -> list[Any]:
    kind = getattr(torch(), dtype)
    return [torch().rand(shape, generator=torch().Generator().manual_seed(0)).to(kind) for _ in range(n)]


def times(shape: tuple[int, ...]) -> Any:
    return torch().randint(0, len(SCHEDULE), shape[:1], generator=torch().Generator().manual_seed(0))


# ---- small calls -------------------------------------------------------------------------------------------


def q_sample(dtype: str, **options: Any) -> Call:
    (x,), t = tensors(ACTION, 1, dtype), times(ACTION)
    return lambda: nf.q_sample(x, t, SCHEDULE, NOISE, **options)


def q_sample_out() -> Call:
    (x, out), t = tensors(ACTION, 2), times(ACTION)
    return lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=out)


def randn() -> Call:
    (out,) = tensors(ACTION, 1)
    return lambda: nf.randn(ACTION, NOISE, out=out)


def q_step() -> Call:
    (x,), t = tensors(ACTION, 1), times(ACTION)
    return lambda: nf.q_step(x, t, SCHEDULE, NOISE)


def update(name: str) -> Call:
    """Runs a row in the middle of a run, with remembered and kept arrays."""
    sampler, i = getattr(nf.samplers, name)(SCHEDULE, 50), 25
    x, m, *others = tensors(ACTION, 8)
    table, noise = sampler.tableau, NOISE if sampler.tableau.active["out"]["z"] else None
    past, aux = others[: table.slots], others[4 : 4 + int(table.push[i])]
    return lambda: nf.update(table, i, x, m, past=past, noise=noise, aux_out=aux)


# ---- noising -----------------------------------------------------------------------------------------------


def against_diffusers(shape: tuple[int, ...], threads: int, *, fresh: bool, dtype: str = "float32") -> Pair:
    torch().set_num_threads(threads)
    theirs = import_module("diffusers").DDPMScheduler(1000)
    (x, out), t = tensors(shape, 2, dtype), times(shape)
    given = None if fresh else out
    return Pair(
        lambda: nf.q_sample(x, t, SCHEDULE, NOISE, out=given),
        lambda: theirs.add_noise(x, torch().randn_like(x), t),
    )


def old_seeds() -> Pair:
    torch().set_num_threads(1)
    ours, theirs = nf.legacy.TorchCPU(7), torch().Generator().manual_seed(7)
    return Pair(lambda: ours.randn(1 << 16), lambda: torch().randn(1 << 16, generator=theirs))


# ---- the figures -------------------------------------------------------------------------------------------

SMALL: dict[str, Callable[[], Call]] = {
    "q_sample, out=": q_sample_out,
    **{f"q_sample, {dtype}": partial(q_sample, dtype) for dtype in ("float32", "float64", "float16", "bfloat16")},
    "q_sample with a target": partial(q_sample, "float32", target="epsilon"),
    "q_step": q_step,
    "randn, out=": randn,
    **{f"update, a row of {name}": partial(update, name) for name in ("ddim", "ddpm", "dpmpp_2m", "unipc")},
}
TITLE, SUFFIX = "torch tensors", "-torch"
ABOUT = """\
Written by `pytest benchmarks/test_torch.py`, in one run. `images` is 256x3x128x128.
The other is `torch.randn_like` and diffusers' `add_noise`, on as many threads."""
FIGURES = [
    *(
        Figure(f"{ACTION}, {name}", "<=", 3, lambda make=make: microseconds(make()), unit="us")
        for name, make in SMALL.items()
    ),
    *(
        Figure(
            f"{title}, {'a new tensor' if fresh else 'out='}, over torch{', 2 threads' if threads == 2 else ''}",
            ">=",
            target,
            partial(against_diffusers, shape, threads, fresh=fresh),
            threads=threads,
        )
        for title, shape, fresh, targets in (
            ("images", IMAGES, False, (12, 18)),
            ("images", IMAGES, True, (7, 9)),
            (f"{CROPS}", CROPS, False, (5, 5)),
            (f"{CROPS}", CROPS, True, (5, 5)),
        )
        for threads, target in enumerate(targets, 1)
    ),
    Figure(
        "images, out=, bfloat16, over torch", ">=", 10, partial(against_diffusers, IMAGES, 1, fresh=False, dtype=HALF)
    ),
    Figure("legacy.TorchCPU, 2^16 numbers, torch.randn's time", "<=", 1.5, old_seeds),
]
test_figure = figures.test_figure
