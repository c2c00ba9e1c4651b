# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench --device cuda`: one pass over a GPU's memory, beside a plain copy, CuPy, and torch where installed.

Bandwidth is what an operation has to move, each input read once and each output written once, over its time; fractions
are of the copy that the same run measured. Rivals are called as their careful users call them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import Any, TypeAlias

import numpy as np

import noisefuse as nf

Call: TypeAlias = Callable[[], object]
SMALL = (1, 16, 7)  # an action chunk: all of its time is the launch


@dataclass(frozen=True)
class Case:
    """An operation, and how many arrays' worth of memory it moves."""

    operation: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def passes(self) -> int:
        return {"copy": 2, "randn": 1, "q_sample": 2, "ddim": 3, "ddpm": 3, "mse_loss": 2}[self.operation]

    def bytes(self) -> int:
        return self.passes * self.elements * (2 if "16" in self.dtype else np.dtype(self.dtype).itemsize)


def run(arguments: argparse.Namespace) -> None:
    try:
        cupy: Any = import_module("cupy")
    except ImportError:
        raise OSError(
            "bench --device cuda needs CuPy: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"
        ) from None
    if (state := nf.info()["backends"]["cuda"]) != "available":
        raise OSError(f"bench --device cuda: {state}")
    sizes = arguments.sizes or ([(64, 3, 64, 64)] if arguments.quick else [(256, 3, 128, 128), (1024, 4, 256, 256)])
    dtypes = arguments.dtypes or ["float32", "bfloat16"]
    operations = ("copy", "randn", "q_sample", "ddim", "ddpm", "mse_loss")
    results = []
    for shape in sizes:
        for dtype in dtypes:
            cases = [Case(operation, dtype, shape) for operation in operations]
            results += [(case, measure(cupy, case, 5 if arguments.quick else 30)) for case in cases]
    launches = launch_costs(cupy, 200 if arguments.quick else 5000)
    where = machine(cupy)
    print(report(where, results, launches), end="")
    if arguments.json is not None:
        record = {
            "machine": where,
            "microseconds": [{**asdict(case), **times} for case, times in results],
            "launch_microseconds": launches,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {arguments.json}")


# ---- contenders ----------------------------------------------------------------------------------------------


def contenders(cupy: Any, case: Case) -> dict[str, Call]:
    """Each with its own buffers, made before the clock starts."""
    dtype = nf.randn(1, 0, dtype=case.dtype).dtype
    x, m, out = (cupy.zeros(case.shape, dtype) for _ in range(3))
    schedule, noise = nf.Schedule.linear(1000), nf.Noise(1)
    t = cupy.asarray(np.random.default_rng(0).integers(0, 1000, case.shape[0]))
    if case.operation == "copy":
        return {"noisefuse": lambda: cupy.copyto(out, x)}
    if case.operation == "randn":
        return {"noisefuse": lambda: nf.randn(case.shape, noise, dtype=dtype, out=out)}
    if case.operation == "q_sample":
        calls: dict[str, Call] = {"noisefuse": lambda: nf.q_sample(x, t, schedule, noise, out=out)}
        if case.dtype == "float32":
            calls["CuPy"] = naive_cupy(cupy, x, t, schedule)
        return calls | torch_q_sample(case, schedule)
    if case.operation == "mse_loss":
        return {"noisefuse": lambda: nf.mse_loss(m, x, t, schedule, noise, target="v")}
    sampler = nf.samplers.ddim(schedule, 20) if case.operation == "ddim" else nf.samplers.ddpm(schedule, 20)
    drawn = noise if case.operation == "ddpm" else None
    return {"noisefuse": lambda: sampler.step(3, x, m, drawn, out=out)}


def naive_cupy(cupy: Any, x: Any, t: Any, schedule: nf.Schedule) -> Call:
    alpha, sigma = (cupy.asarray(c.astype(np.float32)) for c in (schedule.alpha, schedule.sigma))
    column = (-1,) + (1,) * (x.ndim - 1)
    random = cupy.random.default_rng(0)

    def call() -> object:
        noise = random.standard_normal(x.shape, dtype=cupy.float32)
        return alpha[t].reshape(column) * x + sigma[t].reshape(column) * noise

    return call


def torch_q_sample(case: Case, schedule: nf.Schedule) -> dict[str, Call]:
    """Eager and compiled, where torch with CUDA is installed."""
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    kind = getattr(torch, case.dtype)
    x = torch.zeros(case.shape, device="cuda", dtype=kind)
    alpha, sigma = (torch.tensor(c, device="cuda", dtype=kind) for c in (schedule.alpha, schedule.sigma))
    t = torch.randint(0, 1000, case.shape[:1], device="cuda")

    def q_sample(x: Any, t: Any) -> Any:
        shape = (-1,) + (1,) * (x.ndim - 1)
        return alpha[t].view(shape) * x + sigma[t].view(shape) * torch.randn_like(x)

    compiled = torch.compile(q_sample)
    return {"torch": lambda: q_sample(x, t), "torch.compile": lambda: compiled(x, t)}


# ---- the clock -----------------------------------------------------------------------------------------------


def measure(cupy: Any, case: Case, rounds: int) -> dict[str, float]:
    """Microseconds of each contender, medians of rounds in turn, by the device's own clock."""
    calls = contenders(cupy, case)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compilation, tables, pools
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()  # CuPy and torch both use the null stream
            for _ in range(10):
                call()
            stop.record()
            stop.synchronize()
            taken[name].append(cupy.cuda.get_elapsed_time(start, stop) / 10 * 1e3)
    return {name: float(np.median(values)) for name, values in taken.items()}


def launch_costs(cupy: Any, calls: int) -> dict[str, float]:
    """Microseconds that one call takes of the host's time, on arrays that cost the device nothing."""
    case = Case("q_sample", "float32", SMALL)
    x, out = cupy.zeros(SMALL, cupy.float32), cupy.zeros(SMALL, cupy.float32)
    schedule, noise = nf.Schedule.linear(1000), nf.Noise(1)
    found: dict[str, Call] = {
        "noisefuse, t a number": lambda: nf.q_sample(x, 500, schedule, noise, out=out),
        **contenders(cupy, case),
        "CuPy, one multiplication": lambda: cupy.multiply(x, 2.0, out=out),
    }
    return {name: _host_time(cupy, call, calls) for name, call in found.items()}


def _host_time(cupy: Any, call: Call, calls: int) -> float:
    times = []
    for _ in range(5):
        call()
        cupy.cuda.runtime.deviceSynchronize()
        start = time.perf_counter()
        for _ in range(calls // 5):
            call()
        times.append((time.perf_counter() - start) / (calls // 5) * 1e6)
        cupy.cuda.runtime.deviceSynchronize()
    return float(np.median(times))


# ---- the report ----------------------------------------------------------------------------------------------


def machine(cupy: Any) -> dict[str, Any]:
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    versions = {"noisefuse": nf.info()["version"], "numpy": np.__version__}
    for name in ("cupy-cuda13x", "cupy-cuda12x", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    name = properties["name"]
    return {"card": name.decode() if isinstance(name, bytes) else str(name), "versions": versions}


def report(
    where: Mapping[str, Any], results: list[tuple[Case, dict[str, float]]], launches: Mapping[str, float]
) -> str:
    """Markdown, as it is kept in benchmarks/results."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rivals = [name for name in ("CuPy", "torch", "torch.compile") if any(name in times for _, times in results)]
    lines = [f"# {where['card']}", "", versions, ""]
    lines += [f"| operation | dtype | shape | us | GB/s | of the copy's |{''.join(f' {r} |' for r in rivals)}"]
    lines += ["|" + "---|" * (6 + len(rivals))]
    copies = {(case.dtype, case.shape): case.bytes() / times["noisefuse"]
              for case, times in results if case.operation == "copy"}  # fmt: skip
    for case, times in results:
        own = times["noisefuse"]
        rate = case.bytes() / own
        ratios = "".join(f" {times[r] / own:.1f} x |" if r in times else " |" for r in rivals)
        lines.append(
            f"| {case.operation} | {case.dtype} | {'x'.join(map(str, case.shape))} | {own:.1f} | {rate / 1e3:.0f} | "
            f"{rate / copies[case.dtype, case.shape]:.2f} |{ratios}"
        )
    lines += ["", "Rivals: their time over ours. One call on a small array takes of the host's time, in us:", ""]
    lines += [f"* {name}: {cost:.1f}" for name, cost in launches.items()]
    return "\n".join(lines) + "\n"
