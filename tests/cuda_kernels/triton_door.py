# SPDX-License-Identifier: Apache-2.0
"""The door for tensors of a CUDA device, without CuPy and without a device: tensors of the CPU go through it.

Functions that give a tensor's device, or a device's place, are replaced. Everything else is as for a real tensor.

python -m cuda_kernels.triton_door    compiles what calls would launch on a device (sm_90), and prints for each the
                                       instructions of a thread, and those that spill registers
"""

import sys
from contextlib import contextmanager, nullcontext

import ml_dtypes
import numpy as np
import pytest
import torch
import triton

import noisefuse as nf
from noisefuse import backends
from noisefuse.backends.triton import arrays, kernels, tokens
from noisefuse.interop.torch import arrays as torch_arrays
from noisefuse.interop.torch import tokens as torch_tokens

from .triton_kernels import machine_code

CUDA = torch.device("cuda", 1)
interpreted = not isinstance(kernels.affine, triton.JITFunction)


def rounded(self, source, kind):
    """Triton's interpreter cuts bfloat16 off. This rounds it, as devices do (tests/backends/test_triton.py)."""
    if kind.scalar.name != "bf16":
        return self.cast_impl(source, kind)
    return type(source)(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), kind.scalar)


@contextmanager
def opened(*host, launch=lambda kernel, grid: kernel[grid]):
    """Yields a list of the launches' grids. All tensors count as those of cuda:1, except those of `host`."""
    from triton.runtime import interpreter

    there, addresses, launches = torch_arrays.place_of, {x.data_ptr() for x in host}, []

    def place(name, x):
        return CUDA if x.device.type == "cpu" and x.data_ptr() not in addresses else there(name, x)

    class Launched:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append(grid)
            return launch(self.kernel, grid)

    with pytest.MonkeyPatch.context() as patch:
        for module in (torch_arrays, torch_tokens):
            patch.setattr(module, "place_of", place)
        patch.setitem(sys.modules, "cupy", None)
        patch.setattr(torch_arrays, "_HAS_CUPY", False)
        patch.setattr(arrays, "place", lambda device: torch.device("cpu"))
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        for module, name in ((kernels, "affine"), (tokens, "masks")):
            patch.setattr(module, name, Launched(getattr(module, name)))
        patch.setattr(backends, "_tested_devices", backends._tested_devices | {("triton", n) for n in range(2)})
        patch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", rounded)
        for name in backends.FAST_PATH:  # it sees where the memory really is
            patch.setattr(backends, name, backends.declined)
        yield launches


# ---- compiled ----------------------------------------------------------------------------------------------


class Driver:
    """It answers what Triton asks of a device's driver when it compiles."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def is_active(self):
        return True


def main():
    triton.runtime.driver.set_active(Driver())
    s, noise = nf.Schedule.linear(20), nf.Noise(1)
    x, images = torch.zeros(4, 4, 32, 16), torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    t, of_token = torch.tensor([1, 19, 4, 2]), torch.zeros(4, 4, dtype=torch.int64)
    out, table = torch.empty(4, 2048), nf.samplers.ddpm(s, steps=4, clip=0.8).tableau
    ids, p = torch.zeros(4, 2048, dtype=torch.int64), torch.rand(4)
    watched, bridge = x.clone().requires_grad_(), nf.paths.brownian_bridge(0.5)
    calls = {
        "randn": lambda: nf.randn((4, 2048), noise, dtype=torch.float32, out=out),
        "uniform": lambda: nf.uniform((4, 2048), noise, dtype=torch.float32, out=out),
        "q_sample": lambda: nf.q_sample(x, t, s, noise),
        "q_sample, bfloat16": lambda: nf.q_sample(x.bfloat16(), t, s, noise),
        "q_sample, bytes": lambda: nf.q_sample(images, t, s, noise),
        "q_sample and target": lambda: nf.q_sample(x, 1, s, noise, target="v"),
        "q_sample, float64": lambda: nf.q_sample(x.double(), t, s, noise),
        "q_sample, own names": lambda: nf.q_sample(x, t, s, [noise] * 4),
        "q_sample, own samples": lambda: nf.q_sample(x, t, s, noise.at(sample=[4, 2, 9, 1])),
        "q_sample, a window": lambda: nf.q_sample(x, t, s, noise.window((4, 64, 64), (0, 3, 5))),
        "q_step": lambda: nf.q_step(x, t, s, noise),
        "q_step, a time for each token": lambda: nf.q_step(x, of_token, s, noise),
        "interpolate": lambda: nf.interpolate(x, x, t / 20, bridge, noise),
        "a sampler's step": lambda: nf.update(table, 1, x, x, noise=noise),
        "its gradient": lambda: nf.update(table, 1, x, watched, noise=noise).sum().backward(),
        "q_mask": lambda: nf.q_mask(ids, 0.5, noise, 9),
        "q_mask, a p for each token": lambda: nf.q_mask(ids, ids.double(), noise, 9, where=ids > 0),
        "q_uniform": lambda: nf.q_uniform(ids, p, noise, 9),
        "augment.sensor": lambda: nf.augment.sensor(x, 0.1, 0.1, noise),
    }  # fmt: skip
    made = []

    def compiled(kernel, grid):
        return lambda *arguments, **options: made.append(kernel.warmup(*arguments, grid=grid, **options))

    for name, call in calls.items():
        with opened(launch=compiled):
            call()
        count = machine_code(made[-1].asm["cubin"])
        total, spilled = count.total() - count["NOP"] - count["BRA"], count["LDL"] + count["STL"]
        print(f"{name}: {total} instructions, {spilled} spilled")


if __name__ == "__main__":
    main()
