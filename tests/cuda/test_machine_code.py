# SPDX-License-Identifier: Apache-2.0
"""The machine code that ptxas makes of the CUDA kernels, on an interpreter (cuda_kernels/sass.py), without a device.

It needs the group `cuda-test`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES
from cuda_kernels import compilers, costs, every_kernel, ptx, sass, stand_in
from cuda_kernels.every_kernel import KERNELS
from noisefuse.backends.cuda.launches import LAUNCH

slow, release = pytest.mark.slow, pytest.mark.release
needs_nvcc = pytest.mark.skipif(not compilers.have_nvcc(), reason="needs the group cuda-test: nvcc, cuobjdump")
ARCHITECTURES = ["90", pytest.param("80", marks=release), pytest.param("120", marks=release)]


def launched(cupy):
    return {name.removeprefix("nf_") for name, *_ in cupy.launches}


@release
@needs_nvcc
@pytest.mark.parametrize("arch", compilers.INTERPRETED)
def test_two_to_the_16_values_around_the_ends_of_blocks(arch):
    with stand_in.installed() as cupy:
        cupy.execute = stand_in.program(arch).execute(stand_in.memory)
        for dtype in DTYPES.values():
            assert every_kernel.compare_at_ends(cupy, dtype) >= 1 << 16
        assert launched(cupy) == {*KERNELS}


def far(execute, itemsize):
    """Runs kernels as if the spans were those behind many others, in arrays of more than 2^32 elements: addresses and
    ids begin that much earlier, and threads that much later. The calls below have one row for all elements."""

    def run(name, grid, threads, argument):
        launch = np.frombuffer(bytearray(argument.tobytes()), LAUNCH.dtype)
        call, span, kinds = launch["call"][0], int(launch["span"][0]), name.split("_")[1:]
        spans = (2**33 // span // threads + 1) * threads  # whole blocks of threads, whatever there is in a span
        elements, begin = spans * span, 0
        assert (call["index"], elements % int(call["size"])) == (0, 0)
        if "any" in kinds:
            begin = spans * int(launch["blocks"][0]) // threads
            launch["spans"] += spans
        else:
            launch["first"] += spans
        launch["field"]["sample"] -= np.uint64(elements // int(call["size"]))
        for key in ("in", "out"):
            for slot in np.flatnonzero(call[key]):
                size = {"u8": 1, "u16": 2}.get(kinds[1], itemsize) if (key, slot) == ("in", 0) else itemsize
                call[key][slot] -= np.uint64(elements * size)
        return execute(name, grid, threads, launch.view(argument.dtype), begin)

    return run


def beside(x, a):
    return stand_in.ndarray(a) if isinstance(x, stand_in.ndarray) else a


def far_calls(shape, dtype):
    """Yields functions of arrays that launch all kernels but those of losses."""
    linear, noise, zeros = nf.Schedule.linear(20), every_kernel.NOISE, np.zeros(shape, dtype)
    yield lambda x, m: nf.q_sample(x, 7, linear, noise)
    yield lambda x, m: nf.q_walk(x, nf.Schedule.linear(3), noise, keep=[0, 2])
    yield lambda x, m: nf.update(nf.samplers.ddim(linear, 4).tableau, 1, x, m)
    yield lambda x, m: nf.update(nf.samplers.ddim(linear, 4, clip=0.1).tableau, 1, x, m)
    yield lambda x, m: nf.update(nf.samplers.ddpm(linear, 4).tableau, 1, x, m, noise=noise)
    for draw in (nf.randn, nf.uniform)[: 2 if zeros.itemsize >= 4 else 1]:
        yield lambda x, m, draw=draw: draw(shape, noise, dtype=dtype, out=(x + x))
    if shape[1] % 8 == 0:
        for top in (255, 65535):
            levels = np.arange(zeros.size).reshape(shape).astype(np.min_scalar_type(top))
            yield lambda x, m, a=levels: nf.q_sample(beside(x, a), 7, linear, noise, dtype=dtype)


def far_in_a_window(execute, itemsize):
    """Runs general kernels as if their one sample had 2^32 runs of one element before its first. So the window begins
    as much further in the field."""

    def run(name, grid, threads, argument):
        launch = np.frombuffer(bytearray(argument.tobytes()), LAUNCH.dtype)
        call, field = launch["call"][0], launch["field"][0]
        inner = int(np.prod(field["shape"][1 : field["axes"]]))
        rows = -(-(2**32) // inner // threads) * threads
        elements = rows * inner
        assert (call["index"], call["batch"], field["run"]) == (0, 1, 1)
        launch["spans"] += elements
        call["size"] += elements
        field["shape"][0] += rows
        field["start"] -= rows * field["stride"][0]
        assert field["start"] >= 0
        for key in ("in", "out"):
            for slot in np.flatnonzero(call[key]):
                call[key][slot] -= np.uint64(elements * itemsize)
        return execute(name, grid, threads, launch.view(argument.dtype), elements * int(launch["blocks"][0]) // threads)

    return run


def compare_far(cupy, program, dtype):
    execute = program.execute(stand_in.memory)
    linear, random = nf.Schedule.linear(20), np.random.default_rng(0)
    cupy.execute = far(execute, dtype.itemsize)
    for shape in ((2, 1032), (2, 1027)):
        x, m = (random.standard_normal(shape).astype(dtype) for _ in range(2))
        for call in far_calls(shape, dtype):
            assert call(stand_in.ndarray(x), stand_in.ndarray(m)).get().tobytes() == call(x, m).tobytes()
    cupy.execute = far_in_a_window(execute, dtype.itemsize)
    for axes in (1, 2, 3, 4):
        x = random.standard_normal((1, 1, *(7,) * axes, 1)).astype(dtype)
        start = 2**32 // 7**axes + 256
        noise = nf.Noise(5).window((start + 1, *(8,) * axes, 2), (start, *(1,) * axes, 1))
        for call in (
            lambda x, noise=noise: nf.q_step(x, 7, linear, noise),
            lambda x, noise=noise: nf.q_walk(x, nf.Schedule.linear(3), noise, keep=[0, 2]),
        ):
            assert call(stand_in.ndarray(x)).get().tobytes() == call(x).tobytes()


@release
@needs_nvcc
@pytest.mark.parametrize("arch", compilers.INTERPRETED)
def test_arrays_of_more_than_two_to_the_32_elements(arch):
    with stand_in.installed() as cupy:
        nf.randn(4, nf.Noise(0), out=cupy.empty(4, "float32"))  # the self-test
        for dtype in DTYPES.values():
            compare_far(cupy, stand_in.program(arch), dtype)
        assert launched(cupy) == {name for name in KERNELS if "loss" not in name}


# The least share of a kernel's instructions that the calls below come to; of the others nearly all. What is left:
# - steps: the gradient of a clamp that reads anything but gradients, which nothing makes;
# - float64: roots and quotients of numbers near the ends of the range. A radius lies far from them.
# - general kernels: integer levels as a second or third output or a gradient's, as x of a walk or of a loss; 64-bit
#   divisions where only an array of 2^32 elements in memory leads. In float64 more, as its levels are more code.
# - losses: loops that nvcc unrolled for more sums than a thread adds, and other quotients.
EXECUTED = {
    "step_f32": 0.8, "step_f16": 0.8, "step_bf16": 0.8, "forward_f64": 0.88, "forward_u8_f64": 0.88,
    "forward_u16_f64": 0.88, "normal_f64": 0.88, "drawing_f64": 0.88, "walk_f64": 0.85, "any_f32": 0.8, "any_f64": 0.68,
    "any_walk_f32": 0.8, "any_walk_f64": 0.68, "loss_f32": 0.78, "loss_f64": 0.7, "losses_f64": 0.5,
}  # fmt: skip


@slow
@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_has_the_bits_of_native(arch):
    """Every kernel runs with every dtype. Any access that is out of bounds, misaligned or a race fails. Nearly every
    instruction is executed, so that an error in it is seen."""
    program = stand_in.program(arch)
    with stand_in.installed() as cupy:
        cupy.execute = program.execute(stand_in.memory)
        for dtype in DTYPES.values():
            for shape in ((1, 1, 8, 1024), (4, 3, 5, 7)):
                every_kernel.compare(cupy, shape, dtype)
            for shape in ((3, 5, 7), (3, 8, 128)):
                every_kernel.compare_general(dtype, shape)
        for dtype in map(np.dtype, ("f4", "f8")):
            compare_far(cupy, program, dtype)
        assert launched(cupy) == {*KERNELS}
    shares = {}
    for name in KERNELS:
        rest, count = program.kernel(f"nf_{name}").unexecuted()
        shares[name] = 1 - len(rest) / count
        print(f"{name}: {shares[name]:.3f} of {count} instructions")
    assert not {name: share for name, share in shares.items() if share < EXECUTED.get(name, 0.98)}


@release
@needs_nvcc
def test_the_launch_code_over_machine_code():
    """Launches that execute machine code pass test_cuda.py: streams, devices, counters, the cache."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not generated"]
    environment = {**os.environ, "STAND_IN_MACHINE_CODE": "90"}
    subprocess.run([*command, str(Path(__file__).with_name("test_cuda.py"))], env=environment, check=True)


def numbers(cell):
    return [float(number) for number in cell.replace("-", "0").split(", ")]


@release
@needs_nvcc
def test_the_table_of_costs():
    """benchmarks/results/cuda-machine-code.md is what costs.py prints: exactly, or within 5 % with another nvcc."""
    kept, made = costs.TABLE.read_text().splitlines(), costs.table().splitlines()
    print("\n".join(made))
    if kept[0] == made[0]:
        assert kept == made
    for old, new in zip(kept[-len(KERNELS) :], made[-len(KERNELS) :], strict=True):
        (_, name, *old), (_, same, *new) = old.split(" | "), new.split(" | ")
        assert name == same
        for before, now in zip(old, new, strict=True):
            assert numbers(now.strip(" |")) == pytest.approx(numbers(before.strip(" |")), rel=0.05), name


# ---- the interpreter -----------------------------------------------------------------------------------------

TEXT = """	.target	sm_90
//--------------------- .text.tiny --------------------------
CODE"""


def tiny(*lines, shared=0):
    """Returns a kernel with these instructions, without a compiler."""
    code = [f"        /*{16 * k:04x}*/   {line} ;" for k, line in enumerate([*lines, "EXIT"])]
    sections = {".nv.constant0.tiny": (b"", 0x218), ".nv.shared.tiny": (b"", shared)}
    return sass.Program(sections, TEXT.replace("CODE", "\n".join(code))).kernel("tiny")


def registers_after(lines, given):
    """Runs instructions in 32 threads of given registers, and returns their registers."""
    run = sass.Run(tiny(*lines), (1, 1, 1), 32, np.zeros(1, np.uint64), ptx.Memory())
    run.registers = np.vstack([run.registers, np.zeros((16, 32), np.uint32)])
    for register, values in given.items():
        run.registers[register] = values
    run.run()
    return run.registers


EDGES = np.array([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF], np.uint32)


def words(seed):
    """32 words, of which many are extreme."""
    random = np.random.default_rng(seed)
    return np.where(random.random(32) < 0.6, random.choice(EDGES, 32), random.integers(0, 2**32, 32, np.uint32))


def as_ints(registers, lower):
    return [int(a) | int(b) << 32 for a, b in zip(registers[lower], registers[lower + 1], strict=True)]


def as_signed(value):
    return value - (value >> 63 << 64)


PAIRS = {  # instructions whose operands are R2:R3 and R4:R5, and what they leave in R0:R1
    "difference": (["IADD3 R0, P0, R2, -R4, RZ", "IADD3.X R1, R3, ~R5, RZ, P0, !PT"], lambda a, b: a - b),
    "negative": (["IADD3 R0, P0, RZ, -R2, RZ", "IMAD.X R1, RZ, RZ, ~R3, P0"], lambda a, b: -a),
    "sum with two carries": (
        ["IADD3 R0, P0, P1, R2, R4, 0x1", "IADD3.X R1, R3, R5, RZ, P0, P1"],
        lambda a, b: a + b + 1,
    ),
    "address": (["LEA R0, P0, R2, R4, 0x3", "LEA.HI.X R1, R2, R5, R3, 0x3, P0"], lambda a, b: 8 * a + b),
    "product": (
        ["IMAD.WIDE.U32 R0, R2, R4, RZ", "IMAD R1, R2, R5, R1", "IMAD R1, R3, R4, R1"],
        lambda a, b: a * b,
    ),
    "shift to the left": (["SHF.L.U64.HI R1, R2, 0xd, R3", "SHF.L.U32 R0, R2, 0xd, RZ"], lambda a, b: a << 13),
    "shift to the right": (["SHF.R.U64 R0, R2, 0xd, R3", "SHF.R.U32.HI R1, RZ, 0xd, R3"], lambda a, b: a >> 13),
    "signed shift": (["SHF.R.U64 R0, R2, 0xd, R3", "SHF.R.S32.HI R1, RZ, 0xd, R3"], lambda a, b: as_signed(a) >> 13),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_64_bits_out_of_words(name):
    """The idioms of 64-bit arithmetic have the results of exact integers, at carries and the ends of the range too."""
    lines, exact = PAIRS[name]
    given = {k: words(k) for k in (2, 3, 4, 5)}
    found = registers_after(lines, given)
    for a, b, result in zip(as_ints(found, 2), as_ints(found, 4), as_ints(found, 0), strict=True):
        assert result == exact(a, b) % 2**64


@pytest.mark.parametrize("compare", ["EQ", "NE", "LT", "GE", "GT", "LE"])
@pytest.mark.parametrize("kind", ["", ".U32"])
def test_comparisons_of_64_bits(compare, kind):
    lines = [f"ISETP.{compare}.U32.AND P0, PT, R2, R4, PT", f"ISETP.{compare}{kind}.AND.EX P0, PT, R3, R5, PT, P0"]
    given = {2: words(2), 3: words(3) % 2 + words(8), 4: words(4), 5: words(3) % 2 + words(8)}
    found = registers_after([*lines, "SEL R0, R6, RZ, P0"], given | {6: np.ones(32, np.uint32)})
    for a, b, result in zip(as_ints(found, 2), as_ints(found, 4), found[0], strict=True):
        a, b = (a, b) if kind else (as_signed(a), as_signed(b))
        exact = {"EQ": a == b, "NE": a != b, "LT": a < b, "GE": a >= b, "GT": a > b, "LE": a <= b}[compare]
        assert result == exact, (a, b)


def bits_of(x):
    return int(np.float32(x).view(np.uint32))


NAN = 0x7FFFFFFF
SINGLE = [  # an instruction, the words in R2, R3 and R4, and the word that it leaves in R0
    ("IMAD.HI.U32 R0, R3, R2, R4", (2**31, 4, 7), 2),  # R4:R5 is the summand, and R5 is 0
    ("LOP3.LUT R0, R2, R3, R4, 0x96, !PT", (0b1100, 0b1010, 0b0110), 0),
    ("LOP3.LUT R0, R2, R3, R4, 0xf8, !PT", (0b1100, 0b1010, 0b0110), 0b1110),
    ("PRMT R0, R2, 0x5410, R3", (0x44332211, 0x88776655, 0), 0x66552211),
    ("PRMT R0, R2, 0x9910, RZ", (0x00008011, 0, 0), 0xFFFF8011),
    ("SHF.L.U32 R0, R2, R3, RZ", (1, 32, 0), 0),
    ("SHF.L.W.U32.HI R0, R2, 0x1, R2", (0x80000001, 0, 0), 3),
    ("LEA.HI R0, R2, R3, RZ, 0x1e", (0x80000000, 5, 0), 0x20000005),
    ("LEA.HI.SX32 R0, R2, R3, 0x1e", (0x80000000, 5, 0), 0xE0000005),
    ("VIADDMNMX R0, R2, -R3, 0xfffffff0, !PT", (3, 8, 0), 0xFFFFFFFB),
    ("I2FP.F32.U32 R0, R2", (2**24 + 1, 0, 0), bits_of(2**24)),
    ("I2F.U32.RP R0, R2", (2**24 + 1, 0, 0), bits_of(2**24 + 2)),
    ("I2FP.F32.S32 R0, R2", (2**32 - 3, 0, 0), bits_of(-3)),
    ("I2F.U8 R0, R2.B3", (0xFE000000, 0, 0), bits_of(254)),
    ("I2F.U16 R0, R2.H1", (0xFEDC0000, 0, 0), bits_of(0xFEDC)),
    ("F2I.FTZ.U32.TRUNC.NTZ R0, R2", (bits_of(3.99), 0, 0), 3),
    ("F2I.FTZ.U32.TRUNC.NTZ R0, R2", (bits_of(-1), 0, 0), 0),
    ("F2I.FTZ.U32.TRUNC.NTZ R0, R2", (bits_of(2.0**40), 0, 0), 2**32 - 1),
    ("F2I.FTZ.U32.TRUNC.NTZ R0, R2", (NAN, 0, 0), 0),
    ("FFMA R0, R2, R2, R3", (bits_of(1 + 2.0**-12), bits_of(-1 - 2.0**-11), 0), bits_of(2.0**-24)),  # rounded once
    ("FADD R0, R2, 1", (bits_of(-1e-45), 0, 0), bits_of(1)),
    ("FMUL R0, R2, 0.5", (2, 0, 0), 1),  # subnormal numbers are kept
    ("FMUL.FTZ R0, R2, 0.5", (bits_of(-(2.0**-126)), 0, 0), 0x80000000),
    ("FADD.FTZ R0, R2, R3", (1, bits_of(1), 0), bits_of(1)),
    ("FADD.FTZ R0, R2, R3", (0x00800001, 0x80800000, 0), 0),
    ("IMAD.HI R0, R2, R3, RZ", (2**32 - 3, 4, 0), 2**32 - 1),
    ("I2F.U32 R0, R2", (2**32 - 1, 0, 0), bits_of(2.0**32)),
    ("FADD R0, R2, -R3", (bits_of(np.inf), bits_of(np.inf), 0), NAN),
    ("FADD R0, |R2|, R3", (bits_of(-2), bits_of(1), 0), bits_of(3)),
    ("FMNMX R0, R2, 255, PT", (NAN, 0, 0), bits_of(255)),
    ("FMNMX R0, R2, 255, !PT", (bits_of(256), 0, 0), bits_of(256)),
    ("FSEL R0, -RZ, +QNAN , !PT", (0, 0, 0), NAN),
    ("HADD2.F32 R0, -RZ, R2.H1_H1", (0x3C008000, 0, 0), bits_of(1)),
    ("HADD2.F32 R0, -RZ, -R2.H0_H0", (0x3C000001, 0, 0), bits_of(-(2.0**-24))),
    ("HFMA2.MMA R0, -RZ, RZ, 0.25, 0", (0, 0, 0), 0x34000000),
    ("F2FP.BF16.F32.PACK_AB R0, R2, R3", (bits_of(1), 0x3F808000, 0), 0x3F803F80),  # ties to even
    ("F2FP.F16.F32.PACK_AB R0, R2, R3", (bits_of(65520), bits_of(1), 0), 0x7C003C00),
    ("F2FP.F16.F32.PACK_AB R0, RZ, R2", (NAN, 0, 0), 0x7FFF),
]  # fmt: skip


@pytest.mark.parametrize(("line", "given", "expected"), SINGLE)
def test_an_instruction(line, given, expected):
    found = registers_after([line], dict(zip((2, 3, 4), given, strict=True)) | {5: 0})
    assert {*found[0].tolist()} == {expected}


@pytest.mark.parametrize(
    ("name", "compare"), [("GT", False), ("GEU", True), ("GEU.FTZ", True), ("NEU", True), ("NE", False)]
)
def test_comparisons_with_nan(name, compare):
    lines = [f"FSETP.{name}.AND P0, PT, R2, R3, PT", "SEL R0, R4, RZ, P0"]
    assert registers_after(lines, {2: NAN, 3: bits_of(1), 4: 1})[0].tolist() == [compare] * 32


def test_results_of_mufu_move():
    """They stay within the documented error, and are equal for equal arguments: a warp may take them for its own."""
    roots, inverses = set(), set()
    for x in range(1, 40):
        found = registers_after(["MUFU.RSQ R0, R2", "MUFU.RCP R1, R2"], {2: bits_of(x)}).astype(np.int64)
        roots |= {*(found[0] - bits_of(x**-0.5)).tolist()}
        inverses |= {*(found[1] - bits_of(1 / x)).tolist()}
        assert len({*found[0].tolist()}) == len({*found[1].tolist()}) == 1
    assert (roots, inverses) == ({*range(-2, 3)}, {*range(-1, 2)})


@pytest.mark.parametrize(
    "line",
    [
        "SHFL.BFLY PT, R0, R1, 0x1, 0x1f",  # an opcode
        "FFMA.FTZ R0, R1, R2, R3",  # modifiers
        "FADD.SAT R0, R1, R2",
        "I2F.S8 R0, R1",
        "LDG.E.64.CONSTANT R2, desc[UR4][R2.64]",
        "ATOMS.ADD R0, [R1], R2",
        "IMAD R0, ~R1, R2, R3",  # operands
        "FADD R0, ~R1, R2",
        "LDG.E.64 R3, desc[UR4][R2.64]",
        "DADD R2, R3, R4",
        "MOV R0, c[0x3][0x10]",
        "IADD3 R0, R1, R2",
        "UMOV UR4, R2",
        "MOV R0, 0x100000000",
    ],
)
def test_what_the_table_does_not_have_stops(line):
    with pytest.raises(sass.Unknown, match=re.escape(f"no instruction of the table: {line}")):
        tiny(line)


STORE = ["S2R R0, SR_TID.X", "MOV R2, c[0x0][0x210]", "MOV R3, c[0x0][0x214]"]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["IMAD.WIDE.U32 R2, R0, 0x8, R2", "STG.E.64 desc[UR4][R2.64], RZ"], None),
        (["IMAD.WIDE.U32 R2, R0, 0x8, R2", "STG.E.64 desc[UR4][R2.64+0x8], RZ"], (IndexError, "of 8 bytes outside")),
        (["IMAD.WIDE.U32 R2, R0, 0x4, R2", "STG.E.64 desc[UR4][R2.64], RZ"], (ValueError, "of 8 bytes misaligned")),
        (["STG.E desc[UR4][R2.64], RZ"], (AssertionError, "a race: two threads store")),
        (["@!P0 EXIT", "LDG.E R4, desc[UR4][R2.64]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 EXIT",
          "STG.E desc[UR4][R2.64], RZ"], (AssertionError, "a race: a thread loads")),
        (["STS [R0.X4+0x400], R0", "LDS R1, [R0.X4+0x400]"], None),
        (["STS [R0.X4+0x404], R0"], (IndexError, "outside of shared memory, at 0x480")),
        (["STS [R0.X4], R0"], (IndexError, "outside of shared memory, at 0x0")),
        (["STS [R0+0x400], R0"], (ValueError, "shared memory misaligned")),
        (["STS [R0.X4+0x400], R0", "LDS R1, [0x404]"], (AssertionError, "a race: no barrier")),
        (["STS [R0.X4+0x400], R0", "BAR.SYNC.DEFER_BLOCKING 0x0", "LDS R1, [0x404]"], None),
        (["ISETP.NE.AND P0, PT, R0, RZ, PT", "BSSY B0, `(.L_x_0)", "@P0 BAR.SYNC.DEFER_BLOCKING 0x0", "@!P0 BSYNC B0"],
         (AssertionError, "threads wait for each other")),
        (["MOV R1, c[0x0][0x100]"], (AssertionError, "not known to set: 256")),
        (["MOV R1, c[0x0][0x300]"], (AssertionError, "a constant outside its bank")),
        (["R2UR UR4, R0"], (AssertionError, "differs within a warp")),
    ],
)  # fmt: skip
def test_what_is_checked_as_instructions_run(lines, error):
    array = np.zeros(64, np.uint64)[1:33]
    kernel = tiny("ISETP.NE.AND P0, PT, RZ, 0x1, PT", *STORE, *lines, shared=0x480)

    def run():
        kernel.run((1, 1, 1), 32, np.array([array.ctypes.data], np.uint64), ptx.Memory([array]))

    if error is None:
        run()
    else:
        with pytest.raises(error[0], match=error[1]):
            run()


def test_threads_meet_where_they_parted():
    """Half of a warp takes a way that lies behind the other's; both have the uniform register of where they meet."""
    lines = [
        "S2R R0, SR_TID.X", "ISETP.GE.AND P0, PT, R0, 0x10, PT", "UMOV UR4, 0x5", "BSSY B0, `(.L_x_9)",
        "@P0 BRA `(.L_x_1)", "MOV R1, 0x1", "BSYNC B0",
    ]  # fmt: skip
    behind = ["IADD3 R1, R1, UR4, RZ", "UMOV UR4, 0x7", "IADD3 R1, R1, UR4, RZ", "EXIT", "MOV R1, 0x2", "BRA `(.L_x_8)"]
    code = [f"/*{16 * k:04x}*/ {line} ;" for k, line in enumerate([*lines, *behind])]
    for label, at in ((".L_x_1", 11), (".L_x_9", 7), (".L_x_8", 6)):
        code[at] = f"{label}:\n{code[at]}"
    sections = {".nv.constant0.tiny": (b"", 0x218)}
    kernel = sass.Program(sections, TEXT.replace("CODE", "\n".join(code))).kernel("tiny")
    run = sass.Run(kernel, (1, 1, 1), 32, np.zeros(1, np.uint64), ptx.Memory())
    run.run()
    assert run.registers[1].tolist() == [13] * 16 + [14] * 16


# ---- errors that are planted -----------------------------------------------------------------------------------


def contracted(text):
    """Compilers have no product to contract, so this does: of e c + r p, r p was rounded, as FMUL a, r, p and
    FFMA x, e, c, a; now it is e c. Between the two nothing writes r, p or e."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        product = re.search(r"FMUL (R\d+), (R\d+)(?:\.reuse)?, (R\d+)(?:\.reuse)? ;", line)
        for j in range(i + 1, min(i + 40, len(lines)) if product else 0):
            to, *factors = product.groups()
            term = re.search(rf"FFMA (R\d+), (R\d+)(?:\.reuse)?, (-1\.65259\S+), {to}(?:\.reuse)? ;", lines[j])
            if not term:
                continue
            result, e, c = term.groups()
            written = [int(n) for n in re.findall(r"\*/\s+(?:@\S+ )?\S+ R(\d+)[, ]", "\n".join(lines[i + 1 : j]))]
            if {int(r[1:]) for r in (*factors, e)}.isdisjoint({*written, *(n + 1 for n in written)}):
                lines[i] = line.replace(product[0], f"FMUL R200, {e}, {c} ;")
                lines[j] = lines[j].replace(term[0], f"FFMA {result}, {factors[0]}, {factors[1]}, R200 ;")
                return "\n".join(lines)
    raise AssertionError("no such product")


def changed(name, old, new):
    """Returns the program for sm_90 with another first occurrence of `old` (a regular expression) in one kernel, or
    with its text as `old` changes it."""
    whole = stand_in.program("90")
    found = old(whole.texts[name]) if callable(old) else re.sub(old, new, whole.texts[name], count=1)
    assert found != whole.texts[name]
    program = sass.Program(whole.sections, "\t.target\tsm_90\n")
    program.texts = whole.texts | {name: found}
    return program


ERRORS = {
    "a constant off by one ulp": ("nf_normal_f32", r"-0\.66665327548980712891", "-0.66665333509445190430"),
    "a swapped operand": ("nf_normal_f32", r"(FFMA R\d+, R\d+), (R\d+), (R\d+)", r"\1, \3, \2"),
    "a lost sign": ("nf_normal_f32", r"FFMA R(\d+), -R", r"FFMA R\1, R"),
    "a contracted product": ("nf_normal_f32", contracted, None),
    "a rounded product": ("nf_normal_f32", r"FFMA (R\d+), (-R\d+)\S*, (R\d+)\S*, 0\.5 ;", r"FMUL \1, \2, \3 ;"),
    "a modifier of another opcode": (  # where an angle becomes a float
        "nf_normal_f32",
        r"I2FP\.F32\.S32 (R\d+)(, R\d+ ;(?:.*\n){1,8}?.*FMUL R\d+, \1, 2\.328)",
        r"I2FP.F32.U32 \1\2",
    ),
    "a round less": ("nf_normal_f32", r"LOP3\.LUT (R\d+), (R\d+).*, 0x96, !PT", r"MOV \1, \2"),
    "a bound off by one": ("nf_any_f32", r"ISETP\.GE(\.U32\.AND.*\n.*ISETP\.GE\.AND\.EX.*\n.*\n.*EXIT)", r"ISETP.GT\1"),
    "a missing barrier": ("nf_loss_f32", r"BAR\.SYNC\.DEFER_BLOCKING 0x0", "NOP"),
    "a store one too far": ("nf_normal_f32", r"(STG\.E\.128 desc\[UR\d+\]\[R\d+\.64)\+", r"\1+0x10+"),
    "a store of half": ("nf_normal_f32", r"STG\.E\.128", "STG.E.64"),
}


def gradient(x, schedule):
    """It is looked for in a loss, whose weight one thread reads for all of its block."""
    weight = np.linspace(0.5, 2, 20)
    given = None, np.array([3, 7]), schedule, every_kernel.NOISE
    return nf.mse_loss_and_grad(x, *given, target="epsilon", weight=weight, out=x.copy())[1]


REACHED = {  # a shape of x, and a call that leads to the kernel
    "nf_normal_f32": ((8, 8192), lambda x: nf.randn_like(x, every_kernel.NOISE)),
    "nf_any_f32": ((3, 5461), lambda x: nf.q_sample(x, 7, nf.Schedule.linear(20), every_kernel.NOISE)),
    "nf_loss_f32": ((2, 8192), lambda x: gradient(x, nf.Schedule.linear(20))),
}


@slow
@needs_nvcc
@pytest.mark.parametrize("error", [None, *ERRORS])
def test_a_planted_error_is_seen(error):
    """Each is one instruction of the machine code."""
    for name, (shape, call) in REACHED.items():
        kernel, old, new = ERRORS.get(error, (name, None, None))
        if name != kernel:
            continue
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with stand_in.installed() as cupy:
            nf.randn(4, nf.Noise(0), out=cupy.empty(4, "float32"))  # the self-test
            cupy.launches.clear()
            cupy.execute = (changed(name, old, new) if error else stand_in.program("90")).execute(stand_in.memory)
            try:
                found = call(stand_in.ndarray(x)).get()
            except (AssertionError, IndexError, ValueError):
                assert error
            else:
                assert (found.tobytes() == np.asarray(call(x)).tobytes()) == (error is None)
            assert cupy.launches[0][0] == name


@slow
@needs_nvcc
def test_an_opcode_that_the_table_lost_is_seen(monkeypatch):
    for name in ("LOP3.LUT", "IMAD.WIDE.U32", "I2FP.F32.S32", "ISETP.NE.AND.EX"):
        with monkeypatch.context() as patch:
            patch.delitem(sass.OPCODES, name)
            with pytest.raises(sass.Unknown, match=f"table: .*{re.escape(name)} "):
                changed("nf_normal_f32", "S2R", "S2R ").kernel("nf_normal_f32")
