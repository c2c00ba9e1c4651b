# SPDX-License-Identifier: Apache-2.0
"""This measures what the CUDA kernels cost, by their machine code, without a device.

In tests/: python -m cuda_kernels.costs > ../benchmarks/results/cuda-machine-code.md
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

import noisefuse as nf
from noisefuse.backends.cuda.launches import LAUNCH

from . import compilers, every_kernel, stand_in

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "cuda-machine-code.md"
REGISTERS, GRANULE = 65536, 256  # of a multiprocessor; a warp gets multiples of the granule
WARPS, SHARED = {"80": 64, "90": 64, "120": 48}, {"80": 164 << 10, "90": 228 << 10, "120": 100 << 10}
# Multiprocessors, GHz, and TB/s of a copy. The RTX 4090 (sm_89) is counted with the code for sm_80.
CHIPS = {"H100": ("90", 132, 1.74, 3.0), "A100": ("80", 108, 1.41, 1.75), "RTX 4090": ("80", 128, 2.52, 0.92)}
SLOTS, REACHED = 128, 0.8  # instructions of threads that a multiprocessor issues in a cycle, and how many it reaches


class Cost(NamedTuple):
    registers: int
    shared: int  # bytes in a block
    instructions: float  # executed for an element (and time of a walk)
    warps: int  # that a multiprocessor holds
    moved: float  # bytes of arrays loaded and stored for an element


def costs(arch):
    """Returns {kernel: Cost}. Each kernel's first call counts; its bits are compared, too."""
    program, launches = stand_in.program(arch), {}
    code = compilers.machine_code(compilers.compiled("nvcc", arch)["cubin"])

    def execute(name, grid, threads, argument):
        launch, run = argument.view(LAUNCH.dtype)[0], program.execute(stand_in.memory)(name, grid, threads, argument)
        elements = int(launch["total"]) * (int(launch["call"]["times"]) if "walk" in name else 1)
        launches.setdefault(name, (run.instructions * 32 / elements, sum(run.bytes()) / elements, threads // 32))

    with stand_in.installed() as cupy:
        nf.randn(4, nf.Noise(0), out=cupy.empty(4, "float32"))  # the self-test
        cupy.execute = execute
        for dtype in map(np.dtype, ("f4", "f8", "f2", every_kernel.BFLOAT16)):
            for shape in ((1, 1, 8, 1024), (1, 1, 127, 129)):
                every_kernel.compare(cupy, shape, dtype)
    found = {}
    for name, (instructions, moved, warps) in launches.items():
        registers, shared = code[name].registers, program.kernel(name).shared
        of_warp = -(-registers * 32 // GRANULE) * GRANULE
        room = max(shared + (1024 if arch == "80" else 0), 1)
        blocks = min(WARPS[arch] // warps, REGISTERS // of_warp // warps, SHARED[arch] // room)
        found[name.removeprefix("nf_")] = Cost(registers, shared, instructions, blocks * warps, moved)
    return found


def predicted(name, cost, chip):
    """Returns the fraction of a copy's speed: its bytes against its instructions, of which none waits."""
    if name.endswith("f64"):  # whose units some chips have few of
        return "-"
    _, processors, clock, copy = CHIPS[chip]
    issue = cost.instructions / (SLOTS * processors * clock * REACHED)  # nanoseconds
    return f"{min(1.0, cost.moved / (1000 * copy) / issue):.2f}"


def row(name, by_arch):
    """Returns the numbers of one kernel, as the table has them."""
    of = [by_arch[arch][name] for arch in compilers.INTERPRETED]
    return [
        ", ".join(f"{c.instructions:.1f}" for c in of),
        ", ".join(str(c.registers) for c in of),
        str(of[0].shared),
        ", ".join(str(c.warps) for c in of),
        f"{of[0].moved:.1f}",
        *(predicted(name, by_arch[arch][name], chip) for chip, (arch, *_) in CHIPS.items()),
    ]


def version():
    return re.search(r"release [\d.]+, (V[\d.]+)", compilers.run(compilers.tool("nvcc"), "--version"))[1]


HEAD = """# Machine code of the CUDA kernels, nvcc {version}, executed by an interpreter

Of sm_80, sm_90 and sm_120. Instructions that warps issue for an element (of a walk: at one time) are exact, counted by
tests/cuda_kernels/sass.py. Registers are those of a thread; none is spilled. Shared memory is that of a block, in
bytes on sm_80; the others have 1,024 more. Warps are those that a multiprocessor holds. Bytes of arrays are those moved
for an element. The predicted fraction of a device copy's speed counts issue slots and bytes alone; no device has
measured it. Of the calls that lead to an `any` or `loss` kernel, one is counted.

| kernel | instructions | registers | shared | warps | bytes | H100 | A100 | RTX 4090 |
|---|---|---|---|---|---|---|---|---|
"""


def table():
    by_arch = {arch: costs(arch) for arch in compilers.INTERPRETED}
    lines = [f"| {' | '.join([name, *row(name, by_arch)])} |" for name in sorted(every_kernel.KERNELS)]
    return HEAD.format(version=version()) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
