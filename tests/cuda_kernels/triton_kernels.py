# SPDX-License-Identifier: Apache-2.0
"""Triton kernels as users write them, and the code that Triton makes of them, for devices that are not there:

python triton_kernels.py FOLDER    writes NAME.ARCH.EXTENSION for each of CODES and TARGETS

Tests run the kernels in Triton's interpreter (conftest.py chooses it). Whether functions are interpreted or compiled is
decided when they are defined, so a process of its own compiles.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
import triton.language as tl

from noisefuse.backends.triton import kernels, races
from noisefuse.triton import normal, normal4, normal64, uniform, uniform64, words

THREADS = 128
KEYS = [
    (77, 5, 9, 0),
    (1, 1, 1, 0),
    (2**63 + 5, 2**40 + 3, 2**31 + 7, 64),
    (2**64 - 1, 2**56 - 1, 2**32 - 1, 127),
]


@triton.jit
def draw(out, seed, sample, step, stream, first, n, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if DRAW == "normal":
        drawn = normal(seed, sample, step, first + i, stream)
    elif DRAW == "normal64":
        drawn = normal64(seed, sample, step, first + i, stream)
    elif DRAW == "uniform":
        drawn = uniform(seed, sample, step, first + i, stream)
    elif DRAW == "uniform64":
        drawn = uniform64(seed, sample, step, first + i, stream)
    else:
        w0, w1, w2, w3 = words(seed, sample, step, first + i, stream)
        number = first + i & 3
        drawn = tl.where(number < 2, tl.where(number == 0, w0, w1), tl.where(number == 2, w2, w3))
    tl.store(out + i, drawn.to(out.dtype.element_ty), mask=i < n)


@triton.jit
def fours(out, seed, sample, step, stream, n, BLOCK: tl.constexpr):
    z0, z1, z2, z3 = normal4(seed, sample, step, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), stream)
    i = tl.program_id(0) * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    tl.store(out + i, tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(4 * BLOCK), mask=i < n)


@triton.jit
def batch(out, seeds, samples, step, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each row has its own seed and sample."""
    b, i = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(out + b * size + i, normal(tl.load(seeds + b), tl.load(samples + b), step, i), mask=i < size)


@triton.jit
def alone(x, out, seed, sample, step, n, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = normal64(seed, sample, step, i) if DRAW == "normal64" else normal(seed, sample, step, i)
    tl.store(out + i, z, mask=i < n)


@triton.jit
def added(x, out, seed, sample, step, n, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = normal64(seed, sample, step, i) if DRAW == "normal64" else normal(seed, sample, step, i)
    tl.store(out + i, tl.load(x + i, mask=i < n) + z, mask=i < n)


@triton.jit
def scaled(x, out, seed, sample, step, n, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = normal64(seed, sample, step, i) if DRAW == "normal64" else normal(seed, sample, step, i)
    given = tl.load(x + i, mask=i < n)
    tl.store(out + i, given + given * z, mask=i < n)


# ---- code --------------------------------------------------------------------------------------------------

KEY = {"seed": "u64", "sample": "i64", "step": "i64"}
OF_USERS = {"x": "*fp32", "out": "*fp32", **KEY, "n": "i32"}
OF_USERS64 = OF_USERS | {"x": "*fp64", "out": "*fp64"}
ONES = dict.fromkeys((*KEY, "stream"), 1)  # Triton makes constants of arguments that equal 1
OF_NAME = KEY | {"stream": "i64", "start": "i64"}
ABSENT = dict.fromkeys(("where", "p", "names", "samples", "counter", "axes"))
OF_TOKENS = {"tokens": "*i64", "out": "*i64", "masked": "*i1", "count": "i64", "mask": "i64", "vocabulary": "i64"}
OF_TOKENS |= OF_NAME | {"run": "i64", "size": "i64"}
PLAIN = {"AXES": 0, "FOURS": True, "BLOCK": 512, "EACH": False, "COMPLEMENT": False}
OF_RACE = {"x": "*fp32", "n": "i64", "settings": "*fp64", "of_sample": "i64", "each": "i64"}
OF_RACE |= {"places": "*i64", "hidden": "i64", "token": "*i64"}
NO_INFO = dict.fromkeys(
    ("where", "log_prob", "log_prob_raw", "entropy", "margin", "rank", "names", "samples", "counter")
)
# The kernel, the types of its arguments, its constants.
CODES = {
    "fours": (fours, {"out": "*fp32", **KEY, "stream": "i32", "n": "i32"}, {"BLOCK": 512}),
    "ones": (fours, {"out": "*fp32", "n": "i32"}, {**ONES, "BLOCK": 512}),
    "alone": (alone, OF_USERS, {"DRAW": "normal", "BLOCK": 512}),
    "added": (added, OF_USERS, {"DRAW": "normal", "BLOCK": 512}),
    "scaled": (scaled, OF_USERS, {"DRAW": "normal", "BLOCK": 512}),
    "half": (alone, OF_USERS | {"out": "*bf16"}, {"DRAW": "normal", "BLOCK": 512}),
    "alone64": (alone, OF_USERS64, {"DRAW": "normal64", "BLOCK": 512}),
    "masks": (kernels.masks, OF_TOKENS, {**ABSENT, **PLAIN, "NEW": False}),
    "anew": (kernels.masks, OF_TOKENS, {**ABSENT, **PLAIN, "NEW": True}),
    "race": (races.race, OF_RACE | OF_NAME, {**NO_INFO, "CUT": False, "C": 1, "BLOCK": 512}),
    "known": (
        races.race,
        OF_RACE | OF_NAME | {"log_prob": "*fp32"},
        {**{k: v for k, v in NO_INFO.items() if k != "log_prob"}, "CUT": True, "C": 1, "BLOCK": 512},
    ),
    "added64": (added, OF_USERS64, {"DRAW": "normal64", "BLOCK": 512}),
}
OLD = triton.__version__ == "3.2.0"  # the oldest that is tested: it calls its source otherwise, and knows less
TARGETS = [("cuda", 80, 32), ("cuda", 90, 32)] + [("cuda", 120, 32), ("hip", "gfx942", 64)] * (not OLD)


def code(kernel, types, constants, target):
    """Returns what Triton makes of a kernel whose arrays are aligned, with products and sums fused."""
    from triton.backends import compiler
    from triton.compiler import ASTSource

    number = {name: n for n, name in enumerate(kernel.arg_names)}
    aligned = [number[name] for name in types if name in ("x", "out", "n")]
    if OLD:
        source = ASTSource(kernel, types, constants, compiler.AttrsDescriptor.from_hints(dict.fromkeys(aligned, 16)))
    else:
        given = {(number[name],): value for name, value in constants.items()}
        hints = {(n,): [["tt.divisibility", 16]] for n in aligned}
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), given, hints)
    options = {"num_warps": THREADS // 32, "enable_fp_fusion": True}
    return triton.compile(source, target=compiler.GPUTarget(*target), options=options)


def disassembled(cubin):
    """Returns the machine code as nvdisasm prints it, which Triton brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout


def machine_code(cubin):
    """Returns how often each instruction stands in the machine code, by its name."""
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)", disassembled(cubin)))


def main():
    folder = Path(sys.argv[1])
    for name, kernel in CODES.items():
        for target in TARGETS:
            made = code(*kernel, target)
            files = made.asm | {"shared": str(made.metadata.shared)}
            for extension, text in files.items():
                if extension in ("ptx", "cubin", "amdgcn", "shared"):
                    raw = text if isinstance(text, bytes) else text.encode()
                    (folder / f"{name}.{target[1]}.{extension}").write_bytes(raw)


if __name__ == "__main__":
    main()
