# SPDX-License-Identifier: Apache-2.0
"""The door for tensors of a CUDA device, without CuPy and without a device: tensors of the CPU go through it.

Functions that give a tensor's device, or a device's place, are replaced. Everything else is as for a real tensor.

python -m cuda_kernels.triton_door                 compiles what calls would launch on a device (sm_90), and prints for
                                                    each the instructions of a thread, and those that spill registers
python -m cuda_kernels.triton_door ARCH [fused]    runs the machine code of all launches on an interpreter, and prints
                                                    for each call whether it gives the bits of the CPU
"""

import struct
import sys
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
import torch
import triton

import noisefuse as nf
from noisefuse import backends
from noisefuse.backends.triton import arrays, kernels, loss, races
from noisefuse.interop.torch import arrays as torch_arrays
from noisefuse.interop.torch import categories as torch_categories
from noisefuse.interop.torch import graph
from noisefuse.interop.torch import tokens as torch_tokens

from . import sass
from .triton_kernels import disassembled, machine_code

CUDA = torch.device("cuda", 1)
KERNELS = [(kernels, "affine"), (kernels, "walk"), (loss, "chunks"), (loss, "samples"), (loss, "total")]
KERNELS += [(kernels, "masks"), (races, "race"), (races, "cross_entropy")]
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

    backends.current()  # chosen first, as the choice brings its fast path
    there, addresses, launches = torch_arrays.place_of, {x.data_ptr() for x in host}, []
    chosen: list[int] = []

    def place(name, x):
        return CUDA if x.device.type == "cpu" and x.data_ptr() not in addresses else there(name, x)

    class Launched:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            assert chosen, "launched on the device that happens to be torch's current one"
            launches.append(grid)
            return launch(self.kernel, grid)

    @contextmanager
    def device(number):
        chosen.append(number)
        yield
        chosen.pop()

    with pytest.MonkeyPatch.context() as patch:
        for module in (torch_arrays, torch_categories, graph, torch_tokens):
            patch.setattr(module, "place_of", place)
        patch.setitem(sys.modules, "cupy", None)
        patch.setattr(torch_arrays, "_HAS_CUPY", False)
        patch.setattr(arrays, "place", lambda device: torch.device("cpu"))
        patch.setattr(torch.cuda, "device", device)
        for module, name in KERNELS:
            patch.setattr(module, name, Launched(getattr(module, name)))
        patch.setattr(backends, "_tested_devices", backends._tested_devices | {("triton", n) for n in range(2)})
        patch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", rounded)
        for name in backends.FAST_PATH:  # it sees where the memory really is
            patch.setattr(backends, name, backends.declined)
        yield launches


# ---- compiled ----------------------------------------------------------------------------------------------


class Driver:
    """It answers what Triton asks of a device's driver when it compiles."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def is_active(self):
        return True


def calls():
    """Returns calls by name. They return tensors, and change none that others read."""
    s, noise, generator = nf.Schedule.linear(20), nf.Noise(1), torch.Generator().manual_seed(1)
    x, y, z = torch.randn(3, 4, 4, 32, 16, generator=generator)
    images = torch.randint(256, (4, 3, 32, 32), generator=generator).to(torch.uint8)
    t, of_token = torch.tensor([1, 19, 4, 2]), torch.arange(16).view(4, 4)
    long, few = torch.randn(2, 2, 4660, generator=generator), torch.randn(2, 4, 2, 3, generator=generator)
    pieces, each = torch.arange(8).view(4, 2), {"target": "v", "reduction": "none"}
    out, table = torch.empty(4, 2048), nf.samplers.ddpm(s, steps=4, clip=0.8).tableau
    ids, p = torch.randint(9, (4, 2048), generator=generator), torch.rand(4, generator=generator)
    chances = torch.rand(4, 2048, dtype=torch.float64, generator=generator)
    law, bridge = nf.samplers.flow_sde(nf.Schedule.flow(20), steps=10).tableau, nf.paths.brownian_bridge(0.5)

    def gradient(of):
        watched = y.clone().requires_grad_()
        return torch.autograd.grad(of(watched).sum(), watched)

    def in_place():
        own = x.clone()
        return nf.mse_loss_and_grad(own, y, t, s, noise, target="v", out=own)

    return {
        "randn": lambda: nf.randn((4, 2048), noise, dtype=torch.float32, out=out).clone(),
        "uniform": lambda: nf.uniform((4, 2048), noise, dtype=torch.float32, out=out).clone(),
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
        "q_walk": lambda: nf.q_walk(x, s, noise, keep=[0, 3]),
        "interpolate": lambda: nf.interpolate(x, y, t / 20, bridge, noise),
        "a sampler's step": lambda: nf.update(table, 1, x, y, noise=noise),
        "its gradient": lambda: gradient(lambda y: nf.update(table, 1, x, y, noise=noise)),
        "q_mask": lambda: nf.q_mask(ids, 0.5, noise, 9),
        "q_mask, a p for each token": lambda: nf.q_mask(ids, chances, noise, 9, where=ids > 0),
        "q_uniform": lambda: nf.q_uniform(ids, p, noise, 9),
        "augment.sensor": lambda: nf.augment.sensor(x, 0.1, 0.1, noise),
        "mse_loss": lambda: nf.mse_loss(x, y, t, s, noise, target="v"),
        "mse_loss_and_grad": lambda: nf.mse_loss_and_grad(x, y, t, s, noise, target="v", weight=s.alpha),
        "mse_loss_and_grad, in place": in_place,
        "mse_loss_and_grad, chunks": lambda: nf.mse_loss_and_grad(*long, [1, 2], s, noise, target="flow"),
        "mse_loss, bfloat16": lambda: nf.mse_loss_and_grad(x.bfloat16(), y, t, s, noise, target="v"),
        "mse_loss, float64": lambda: nf.mse_loss_and_grad(x.double(), y, t, s, noise, target="v"),
        "mse_loss, a time for each token": lambda: nf.mse_loss(x, y, of_token, s, noise, target="v", weight=s.sigma),
        "mse_loss, tokens of 3": lambda: nf.mse_loss_and_grad(*few, pieces, s, noise, target="v"),
        "mse_loss_grad": lambda: nf.mse_loss_grad(x, y, t, s, noise, target="v", upstream=t[0]),
        "its gradient in a graph": lambda: gradient(lambda y: nf.mse_loss(y, x, t, s, noise, **each)),
        "interpolate_loss": lambda: nf.interpolate_loss(x, y, z, t / 20, bridge, noise, target="velocity"),
        "log_prob": lambda: nf.density.log_prob(law, 1, x, y, z),
        "log_prob_grad": lambda: nf.density.log_prob_grad(law, 1, x, y, z),
        "update_with_log_prob": lambda: nf.density.update_with_log_prob(law, 1, x, y, noise),
    }  # fmt: skip


def calls_on_logits():
    """Returns the same for rows of logits. The interpreter of machine code does not know how lanes add up there."""
    noise, info = nf.Noise(1), ("log_prob", "log_prob_raw", "entropy", "margin", "rank")
    made = {}
    for v in (300, 32000):
        x, ids, masked = torch.zeros(2, 3, v), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3) > 0
        few = {"temperature": 0.7, "top_k": 9}
        made |= {
            f"categorical of {v}": lambda x=x: nf.categorical(x, noise),
            f"categorical of {v}, all info": lambda x=x: nf.categorical(x, noise, info=info),
            f"categorical of {v}, top_k": lambda x=x, few=few: nf.categorical(x, noise, info=info, **few),
            f"masked_cross_entropy of {v}": lambda x=x, given=(ids, masked): nf.masked_cross_entropy_and_grad(
                x, *given, weight=0.5
            ),
        }
    return made


def counted():
    made = []

    def compiled(kernel, grid):
        return lambda *arguments, **options: made.append(kernel.warmup(*arguments, grid=grid, **options))

    for name, call in (calls() | calls_on_logits()).items():
        with opened(launch=compiled):
            call()
        counts = [machine_code(one.asm["cubin"]) for one in made]
        total = sum(count.total() - count["NOP"] - count["BRA"] for count in counts)
        spilled = sum(count["LDL"] + count["STL"] for count in counts)
        print(f"{name}: {total} instructions, {spilled} spilled")
        made.clear()


FORMATS = {"i32": "i", "i64": "q", "u64": "Q"}  # and Q for pointers


def executed(arch, fused):
    """Returns what runs the machine code of a launch on its arguments. fused: Triton fuses products and sums."""

    def launch(kernel, grid):
        def run(*arguments, **options):
            if fused:
                options |= {"enable_fp_fusion": True}
            made = kernel.warmup(*arguments, grid=grid, **options)
            named = zip(kernel.arg_names, arguments, strict=False)
            given = [(kind, a) for name, a in named if (kind := made.src.signature[name]) != "constexpr"]
            tensors = [a for _, a in given if isinstance(a, torch.Tensor)]
            values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for _, a in given]
            form = "@" + "".join(FORMATS.get(kind, "Q") for kind, _ in given) + "QQ"  # scratch memory comes last
            cubin, memory = (
                made.asm["cubin"],
                [a.detach().view(-1).view(torch.uint8).numpy() for a in tensors if a.numel()],
            )
            text, parts = disassembled(cubin), np.frombuffer(struct.pack(form, *values, 0, 0), np.uint8)
            program = sass.Program(sass.elf_sections(cubin), text, arch, made.metadata.shared)
            threads = 32 * made.metadata.num_warps
            program.execute(lambda: memory)(kernel.__name__, (*grid, 1, 1)[:3], threads, parts)

        return run

    return launch


def compared(arch, fused):
    for name, call in calls().items():
        expected = call()
        with opened(launch=executed(arch, fused)) as launches:
            found = call()
        pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
        print(f"{name}: {bool(launches) and all(torch.equal(*pair) for pair in pairs)}")


def main():
    arch, fused = int(sys.argv[1]) if len(sys.argv) > 1 else None, "fused" in sys.argv
    triton.runtime.driver.set_active(Driver(arch or 90))
    if arch:
        compared(arch, fused)
    else:
        counted()


if __name__ == "__main__":
    main()
