# SPDX-License-Identifier: Apache-2.0
"""The output of nvcc and NVRTC for csrc/cuda, without a device: PTX, machine code, and what can be read from it.

python tests/cuda_kernels/compilers.py    prints the table of benchmarks/results/cuda-sm_90.md
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")  # those of CMakeLists.txt
INTERPRETED = ("80", "90", "120")  # those whose machine code sass.py knows
FLAGS = ("-std=c++20", "-fmad=false", "--expt-relaxed-constexpr")  # those of CMakeLists.txt


def tool(name):
    """Returns nvcc from PyPI's packages (the group `cuda-test`), else from the path. None: there is none."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder).glob(f"*/bin/{name}")):
            return str(path)
    return shutil.which(name)


def have_nvcc():
    return all(map(tool, ("nvcc", "cuobjdump", "nvdisasm")))


def have_nvrtc():
    return importlib.util.find_spec("cupy") is not None


def run(*command):
    environment = {**os.environ, "PATH": f"{Path(tool('nvdisasm') or '/').parent}:{os.environ['PATH']}"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def nvcc(arch, flags=FLAGS, sources=CSRC):
    """Returns {"ptx": its bytes, "cubin": those of its machine code}: one run, of 15 seconds."""
    with tempfile.TemporaryDirectory() as folder:
        keep = ["-cubin", f"-arch=sm_{arch}", "--keep", "--keep-dir", folder]
        run(tool("nvcc"), *flags, *keep, sources / "cuda" / "kernels.cu", "-o", Path(folder) / "kernels.cubin")
        return {kind: (Path(folder) / f"kernels.{kind}").read_bytes() for kind in ("ptx", "cubin")}


def nvrtc(arch):
    """Does the same through the library's own function, except for the choice of the architecture, which asks the
    device."""
    import cupy
    from cupy.cuda import compiler

    from noisefuse.backends.cuda import cubin

    choose, get = compiler._get_arch_for_options_for_nvrtc, compiler.nvrtc.getCUBIN
    found = {}

    def get_both(program):
        found["ptx"] = bytes(compiler.nvrtc.getPTX(program))
        return get(program)

    compiler._get_arch_for_options_for_nvrtc = lambda _: (f"-arch=sm_{arch}", "cubin")
    compiler.nvrtc.getCUBIN = get_both
    try:
        return {"cubin": cubin.compiled(cupy, arch)} | found
    finally:
        compiler._get_arch_for_options_for_nvrtc, compiler.nvrtc.getCUBIN = choose, get


@functools.cache
def compiled(compiler, arch):
    return {"nvcc": nvcc, "nvrtc": nvrtc}[compiler](arch)


def disassembly(cubin):
    """Returns nvdisasm's text of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        return run(tool("nvdisasm"), "-c", path)


@dataclass
class Code:
    """Machine code of one kernel: the count of each instruction, and the resources."""

    instructions: Counter
    registers: int
    stack: int
    local: int

    def count(self, *names):
        """Counts instructions of these names, with any modifiers."""
        return sum(n for name, n in self.instructions.items() if name.split(".")[0] in names)

    @property
    def total(self):
        return sum(self.instructions.values())


def machine_code(cubin):
    """Returns machine code by kernel, without padding and the last branch, to itself, which is never reached."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        text, usage = run(tool("cuobjdump"), "-sass", path), run(tool("cuobjdump"), "-res-usage", path)
    instructions = {}
    for line in text.splitlines():
        if name := re.search(r"Function : (\w+)", line):
            found = instructions[name[1]] = Counter()
        elif line := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([\w.]+)(.*?);", line):
            address, opcode, operands = line.groups()
            itself = opcode == "BRA" and operands.split()[-1] == f"0x{int(address, 16):x}"
            if opcode != "NOP" and not itself:
                found[opcode] += 1
    resources = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    return {name: Code(instructions[name], int(r), int(s), int(m)) for name, r, s, m in resources}


# Elements that one thread of a kernel without branches takes.
ELEMENTS = {"forward": 32, "forward_u8": 32, "forward_u16": 32, "normal": 32, "two": 16}


def budget_table(code, title):
    """Returns Markdown: instructions and registers."""
    lines = [
        f"# {title}",
        "",
        "| kernel | instructions | elements | per element | registers |",
        "|---|---|---|---|---|",
    ]
    for name, c in sorted(code.items()):
        kind, _, dtype = name.removeprefix("nf_").rpartition("_")
        n = ELEMENTS.get(kind) if dtype != "f64" else None
        lines.append(f"| {name} | {c.total} | {n or ''} | {f'{c.total / n:.1f}' if n else ''} | {c.registers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    version = re.search(r"release [\d.]+, (V[\d.]+)", run(tool("nvcc"), "--version"))[1]
    print(budget_table(machine_code(nvcc("90")["cubin"]), f"Machine code for sm_90, nvcc {version}"), end="")
    print(
        "\nInstructions that stand in a kernel without its padding; for straight kernels, which do them once for all"
        "\ntheir elements, also per element. Made by `python tests/cuda_kernels/compilers.py`, without a device.",
        file=sys.stdout,
    )
