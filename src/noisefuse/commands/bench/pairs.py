# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench`: whether it is faster here. Six common pieces of work, each beside the library that people use."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import noisefuse as nf

from ..shared import WIDTH, Progress, wrapped
from .contenders import Call, Case, contenders
from .results import describe
from .timing import interleaved, timed

IMAGES, PHOTOGRAPHS, ACTION = (256, 3, 128, 128), (16, 512, 512, 3), (1, 16, 7)
STEPS = 50
BAR = 48  # characters of the slower one's bar
EIGHTHS = " ▏▎▍▌▋▊▉"


def numpy_pair() -> tuple[Call, Call]:
    both = contenders(Case("q_sample", 1, IMAGES, "float32"), ("noisefuse", "naive"))
    return both["noisefuse"], both["naive"]


def _tensors() -> tuple[Any, Any, Any, nf.Schedule, Any]:
    """Returns torch, images, their times, a schedule, and a function of them: what a line of torch takes."""
    torch: Any = import_module("torch")
    torch.set_num_threads(1)
    schedule, t = nf.Schedule.linear(1000), torch.arange(IMAGES[0]) * 3
    columns = [torch.tensor(column.copy(), dtype=torch.float32) for column in (schedule.alpha, schedule.sigma)]
    return torch, torch.rand(IMAGES), t, schedule, lambda: (column[t].view(-1, 1, 1, 1) for column in columns)


def torch_pair() -> tuple[Call, Call]:
    torch, x, t, schedule, numbers = _tensors()
    out = torch.zeros_like(x)

    def theirs() -> Any:
        alpha, sigma = numbers()
        return alpha * x + sigma * torch.randn_like(x)

    return lambda: nf.q_sample(x, t, schedule, nf.Noise(0), out=out), theirs


def loss_pair() -> tuple[Call, Call]:
    torch, x, t, schedule, numbers = _tensors()
    pred, noise = torch.rand(IMAGES, requires_grad=True), nf.Noise(0)

    def theirs() -> None:
        pred.grad = None
        alpha, sigma = numbers()
        z = torch.randn_like(x)
        alpha * x + sigma * z
        torch.nn.functional.mse_loss(pred, z).backward()

    def ours() -> None:
        pred.grad = None
        nf.q_sample(x, t, schedule, noise)
        nf.mse_loss(pred, x, t, schedule, noise, target="epsilon").backward()

    return ours, theirs


def jax_pair() -> tuple[Call, Call]:
    jax: Any = import_module("jax")
    jnp, schedule = jax.numpy, nf.Schedule.linear(1000)
    x, t, key = jnp.ones(IMAGES, "float32"), 3 * jnp.arange(IMAGES[0]), jax.random.key(0)
    alpha, sigma = (jnp.asarray(column, "float32") for column in (schedule.alpha, schedule.sigma))

    def naive(key: Any, x: Any, t: Any) -> Any:
        a, s = (column[t].reshape(-1, 1, 1, 1) for column in (alpha, sigma))
        return a * x + s * jax.random.normal(key, x.shape, x.dtype)

    ours, theirs = jax.jit(lambda x, t: nf.q_sample(x, t, schedule, nf.Noise(0))), jax.jit(naive)
    return lambda: ours(x, t).block_until_ready(), lambda: theirs(key, x, t).block_until_ready()


def albumentations_pair() -> tuple[Call, Call]:
    albumentations: Any = import_module("albumentations")
    import_module("cv2").setNumThreads(1)
    x = np.random.default_rng(0).integers(0, 256, PHOTOGRAPHS, np.uint8)
    theirs, out = albumentations.GaussNoise(std_range=(0.1, 0.1), p=1.0), np.empty_like(x)
    return partial(nf.augment.gaussian, x, 25.5, nf.Noise(0), out=out), lambda: [theirs(image=image) for image in x]


def diffusers_pair() -> tuple[Call, Call]:
    torch, scheduler = import_module("torch"), import_module("diffusers").DDIMScheduler(1000)
    torch.set_num_threads(1)
    scheduler.set_timesteps(STEPS)
    sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=STEPS, clip=1.0)
    x, m, out = (torch.rand(ACTION) for _ in range(3))
    ours = lambda: [sampler.step(i, x, m, out=out) for i in range(STEPS)]  # noqa: E731
    return ours, lambda: [scheduler.step(m, t, x) for t in scheduler.timesteps]


class Pair(NamedTuple):
    """Work, the library beside noisefuse, the modules that this needs, and what makes both calls."""

    work: str
    rival: str
    needs: tuple[str, ...]
    make: Any


PAIRS = (
    Pair("noise a batch of images", "NumPy", (), numpy_pair),
    Pair("the same, with tensors", "torch", ("torch",), torch_pair),
    Pair("the same, with arrays of JAX under jit", "JAX", ("jax",), jax_pair),
    Pair("noise, a loss and its gradient", "torch", ("torch",), loss_pair),
    Pair("Gaussian noise on photographs (bytes)", "albumentations", ("albumentations",), albumentations_pair),
    Pair("DDIM steps of a robot's plan, 1 x 16 x 7", "diffusers", ("torch", "diffusers"), diffusers_pair),
)


def processor_seconds(call: Call, repeats: int) -> float:
    """Returns a clock for `interleaved` that counts the threads of this process alone, so that others disturb less."""
    return timed(call, repeats, time.process_time)


def measure(pair: Pair, *, quick: bool) -> dict[str, Any]:
    """Returns what `--json` writes of a pair. Times are the least ones, as other work only adds to them; the ratio's
    range has the quotients of the quartiles, too."""
    record: dict[str, Any] = {"work": pair.work, "rival": pair.rival}
    if missing := [name for name in pair.needs if find_spec(name) is None]:
        return record | {"missing": missing}
    ours, theirs = pair.make()
    seconds, rounds = (0.1, 3) if quick else (2.0, 7)
    found = interleaved({"ours": ours, "theirs": theirs}, seconds=seconds, rounds=rounds, clock=processor_seconds)
    one, other = found["ours"], found["theirs"]
    ratio = other.least / one.least
    return record | {
        "ratio": ratio,
        "range": [min(ratio, other.low / one.high), max(ratio, other.high / one.low)],
        "ours_ms": 1e3 * one.least,
        "theirs_ms": 1e3 * other.least,
        "rounds": one.rounds,
    }


def number(value: float) -> str:
    """Writes two digits, or all before the point."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def bar(share: float) -> str:
    """Returns a bar of this share of BAR characters, to an eighth of one; of whole ones if no terminal shows those."""
    eighths = max(1, round(8 * BAR * share))
    drawn = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    try:
        drawn.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * max(1, round(BAR * share))
    return drawn


def shown(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a pair: a bar of time for each, the time at its end, and the ratio."""
    if "missing" in record:
        return [f"{record['work']}: not measured; pip install {' '.join(record['missing'])}", ""]
    times = {record["rival"]: record["theirs_ms"], "noisefuse": record["ours_ms"]}
    low, high = map(number, record["range"])
    lines = [f"{record['work']}: {number(record['ratio'])}x as fast ({low} to {high})"]
    for name, ms in times.items():
        lines.append(f"  {name:14} {bar(ms / max(times.values()))} {ms:.3g} ms")
    return [*lines, ""]


def verdict(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the last line: where it is faster here, and where not, as far as the spread tells."""
    measured = [record for record in records if "ratio" in record]
    slow = [f"{r['work']} ({r['rival']})" for r in measured if r["range"][0] <= 1]
    fast = [record["ratio"] for record in measured if record["range"][0] > 1]
    said = f"Here noisefuse is faster in {len(fast)} of {len(measured)}"
    if fast:
        least, most = number(min(fast)), number(max(fast))
        said += f", {least} times as fast" if least == most else f", {least} to {most} times as fast"
    return said + (f"; not faster, or not surely: {'; '.join(slow)}." if slow else ".")


def run(where: Mapping[str, Any], *, quick: bool) -> list[dict[str, Any]]:
    """Measures and prints all pairs, each as soon as it is measured."""
    records = list(_records(where, quick))
    print("\n".join(wrapped([verdict(records)])))
    return records


def _records(where: Mapping[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    said = "Processor time of one thread, the least of some rounds; in brackets the spread of the ratio."
    print("\n".join([*wrapped([*describe(where).splitlines(), said]), ""]), flush=True)
    progress = Progress()
    with nf.set_num_threads(1):
        for n, pair in enumerate(PAIRS):
            progress(f"{n + 1} of {len(PAIRS)}: {pair.work}"[:WIDTH])
            record = measure(pair, quick=quick)
            progress.clear()
            print("\n".join(shown(record)), flush=True)
            yield record
