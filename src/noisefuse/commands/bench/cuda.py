# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench --device cuda`: times operations there, by CuPy's kernels and by Triton's, beside a plain copy, and
CuPy and torch themselves."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import noisefuse as nf

from ..shared import arrays_of_triton
from .contenders import Call, Case, Rival, ours, torch_call
from .timing import Device, machine

RIVALS = {
    "Triton": Rival("noisefuse where CuPy is not installed"),
    "torch": Rival("torch with out="),
    "torch.compile": Rival("torch, compiled"),
    "CuPy": Rival("as papers write it"),
}


OPERATIONS = ("randn", "q_sample", "q_step", "ddim", "ddpm", "mse_loss")


def device() -> Device:
    """Returns the CUDA device. OSError: there is none, or neither CuPy nor Triton."""
    states = nf.info()["backends"]
    libraries = {"cuda": "cupy", "triton": "torch"}
    found = {name: import_module(library) for name, library in libraries.items() if states[name] == "available"}
    if not found:
        raise OSError(f"bench --device cuda: {states['cuda']}. Triton: {states['triton']}")
    return Device(
        where={"card": card(found), **machine()},
        operations=OPERATIONS,
        # an action chunk, whose whole time is the launch; and sizes beyond the caches
        sizes=((1, 16, 7), (64, 3, 64, 64), (256, 3, 128, 128), (1024, 4, 256, 256)),
        dtypes=("float32", "bfloat16"),
        calls=partial(contenders, found),
        clock=partial(by_events, next(iter(found.values()))),
        rivals=RIVALS,
    )


def card(found: dict[str, Any]) -> str:
    if "cuda" not in found:
        return str(found["triton"].cuda.get_device_name())
    runtime = found["cuda"].cuda.runtime
    name: bytes = runtime.getDeviceProperties(runtime.getDevice())["name"]
    return name.decode()


def contenders(found: dict[str, Any], case: Case) -> dict[str, Call]:
    """Returns the contenders, each with its own buffers, allocated before the clock starts. Where CuPy is, its kernels
    are noisefuse's, and Triton's are a rival."""
    calls: dict[str, Call] = {}
    if cupy := found.get("cuda"):
        x, m, out = (cupy.zeros(case.shape, dtype) for dtype in (case.x_dtype, case.out_dtype, case.out_dtype))
        calls["noisefuse"] = operation(case, x, m, cupy.asarray(case.t), out)
        if case.operation == "q_sample" and case.dtype == "float32":
            calls["CuPy"] = as_papers(cupy, case, x)
        calls |= rivals(case) | {"copyto": partial(cupy.copyto, out, x)}
    if "triton" in found:
        triton = arrays_of_triton()
        x_t, m_t, to = (triton.empty(0, case.shape, dtype) for dtype in (case.x_dtype, case.out_dtype, case.out_dtype))
        for made in (x_t, m_t):
            made.tensor.zero_()
        own = operation(case, x_t, m_t, triton.Array(triton.uploaded(case.t, 0), 0, case.t.dtype), to)
        if calls:
            calls["Triton"] = own
        else:
            calls = {"noisefuse": own, **rivals(case), "copyto": partial(to.tensor.copy_, x_t.tensor)}
    return calls


def operation(case: Case, x: Any, m: Any, t: Any, out: Any) -> Call:
    """Returns the operation of noisefuse, on arrays of a device."""
    schedule, noise = case.schedule, nf.Noise(0)
    ddim, ddpm = nf.samplers.ddim(schedule, 20), nf.samplers.ddpm(schedule, 20)
    operations = ours(case, x, t, out) | {
        "ddim": lambda: ddim.step(3, x, m, out=out),
        "ddpm": lambda: ddpm.step(3, x, m, noise, out=out),
        "mse_loss": lambda: nf.mse_loss(m, x, t, schedule, noise, target="v"),
    }
    return operations[case.operation]


def as_papers(cupy: Any, case: Case, x: Any) -> Call:
    t, (a, s) = cupy.asarray(case.t), (cupy.asarray(column.astype(np.float32)) for column in case.columns)
    z = partial(cupy.random.default_rng(0).standard_normal, case.shape, dtype=np.float32)
    return lambda: a[t].reshape(case.axes) * x + s[t].reshape(case.axes) * z()


def rivals(case: Case) -> dict[str, Call]:
    """Returns torch with CUDA, if it is installed: eager, with ``out=``, and compiled."""
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available() or case.operation not in ("randn", "q_sample", "q_step"):
        return {}
    calls = {"torch": torch_call(case, "cuda")}
    if case.operation == "q_sample" and case.dtype != "uint8":
        dtype, axes = getattr(torch, case.dtype), case.axes
        x, t = torch.zeros(case.shape, device="cuda", dtype=dtype), torch.tensor(case.t, device="cuda")
        alpha, sigma = (torch.tensor(column, device="cuda", dtype=dtype) for column in case.columns)
        compiled = torch.compile(lambda x, t: alpha[t].view(axes) * x + sigma[t].view(axes) * torch.randn_like(x))
        calls["torch.compile"] = partial(compiled, x, t)
    return calls


def by_events(library: Any, call: Call, repeats: int) -> float:
    """Returns the seconds of a call by the device's own clock. The library is CuPy or torch, which both use the null
    stream."""
    timed = {"enable_timing": True} if library.__name__ == "torch" else {}
    start, stop = library.cuda.Event(**timed), library.cuda.Event(**timed)
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    elapsed = start.elapsed_time(stop) if timed else library.cuda.get_elapsed_time(start, stop)
    return float(elapsed) / repeats / 1e3
