# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench --device cuda`: times operations there, beside a plain copy, CuPy, and torch if installed."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import noisefuse as nf

from .contenders import Call, Case, Rival, ours, torch_call
from .timing import Device, machine

RIVALS = {
    "torch": Rival("torch with out="),
    "torch.compile": Rival("torch, compiled"),
    "CuPy": Rival("as papers write it"),
}


def device() -> Device:
    """Returns the CUDA device. OSError: there is none, or no CuPy."""
    try:
        cupy: Any = import_module("cupy")
    except ImportError:
        raise OSError(
            "bench --device cuda needs CuPy: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"
        ) from None
    if (state := nf.info()["backends"]["cuda"]) != "available":
        raise OSError(f"bench --device cuda: {state}")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return Device(
        where={"card": properties["name"].decode(), **machine()},
        operations=("randn", "q_sample", "q_step", "ddim", "ddpm", "mse_loss"),
        # an action chunk, whose whole time is the launch; and sizes beyond the caches
        sizes=((1, 16, 7), (64, 3, 64, 64), (256, 3, 128, 128), (1024, 4, 256, 256)),
        dtypes=("float32", "bfloat16"),
        calls=partial(contenders, cupy),
        clock=partial(by_events, cupy),
        rivals=RIVALS,
    )


def contenders(cupy: Any, case: Case) -> dict[str, Call]:
    """Returns the contenders, each with its own buffers, allocated before the clock starts."""
    x, m, out = (cupy.zeros(case.shape, dtype) for dtype in (case.x_dtype, case.out_dtype, case.out_dtype))
    schedule, noise, t = case.schedule, nf.Noise(0), cupy.asarray(case.t)
    ddim, ddpm = nf.samplers.ddim(schedule, 20), nf.samplers.ddpm(schedule, 20)
    operations = ours(case, x, t, out) | {
        "ddim": lambda: ddim.step(3, x, m, out=out),
        "ddpm": lambda: ddpm.step(3, x, m, noise, out=out),
        "mse_loss": lambda: nf.mse_loss(m, x, t, schedule, noise, target="v"),
    }
    calls: dict[str, Call] = {"noisefuse": operations[case.operation]}
    if case.operation == "q_sample" and case.dtype == "float32":
        a, s = (cupy.asarray(column.astype(np.float32)) for column in case.columns)
        z = partial(cupy.random.default_rng(0).standard_normal, case.shape, dtype=np.float32)
        calls["CuPy"] = lambda: a[t].reshape(case.axes) * x + s[t].reshape(case.axes) * z()
    return calls | rivals(case) | {"copyto": lambda: cupy.copyto(out, x)}


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


def by_events(cupy: Any, call: Call, repeats: int) -> float:
    """Returns the seconds of a call by the device's own clock. CuPy and torch both use the null stream."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) / repeats / 1e3
