# SPDX-License-Identifier: Apache-2.0
"""The output of nvcc and NVRTC for the CUDA kernels, without a device: machine code is counted, PTX is interpreted.

It needs the group `cuda-test`. The interpreter (cuda_kernels/ptx.py) runs the compilers' output; it is not the device.
"""

import re
import shutil
from collections import Counter

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES
from cuda_kernels import compilers, every_kernel, ptx, stand_in
from cuda_kernels.every_kernel import KERNELS

pytestmark = pytest.mark.slow
needs_nvcc = pytest.mark.skipif(not compilers.have_nvcc(), reason="needs the group cuda-test: nvcc, cuobjdump")
needs_nvrtc = pytest.mark.skipif(not compilers.have_nvrtc(), reason="needs the group cuda-test: CuPy's NVRTC")
BOTH = [pytest.param("nvcc", marks=needs_nvcc), pytest.param("nvrtc", marks=[needs_nvcc, needs_nvrtc])]


def machine_code(compiler, arch):
    return compilers.machine_code(compilers.compiled(compiler, arch)["cubin"])


def check(code, registers=64):
    """Asserts the properties of each kernel on each architecture."""
    assert {*code} == {f"nf_{name}" for name in KERNELS}
    for name, c in code.items():
        assert (c.stack, c.local, c.count("LDL", "STL")) == (0, 0, 0), name  # no spills, no local memory
        assert c.registers <= registers, name
        # Subnormal numbers are kept. (F2I is of integer divisions.)
        assert not [op for op in c.instructions if ".FTZ" in op and not op.startswith("F2I")], name
        # The approximate instructions are the seed of the square root, and those inside exact divisions and the exact
        # square root of float64.
        approximate = {op for op in c.instructions if op.startswith("MUFU")}
        double, loss = name.endswith("f64"), "_loss" in name
        allowed = {"MUFU.RSQ64H"} if double else {"MUFU.RSQ"}
        allowed |= {"MUFU.RCP"} if loss or "_any_" in name else set()
        assert approximate <= allowed | ({"MUFU.RCP64H"} if loss else set()), name


# A pair of normals takes, as in core/normal.h: 2 for r, 8 + 1 for the logarithm, 5 for the square root, 4 + 4 for sine
# and cosine; products with r, in the square root (2), with t, y, and with the radius; a sum for u. Each element
# takes fma(sigma, z, -0), which is a product, and fma(alpha, x, ..).
FMA, PRODUCTS, SUMS = 2 + 9 + 5 + 8, 1 + 2 + 1 + 1 + 1 + 2, 1


def floating_point(c):
    return c.count("FFMA"), c.count("FMUL"), c.count("FADD")


@pytest.mark.parametrize("compiler", BOTH)
def test_budget_on_sm_90(compiler):
    """Counts instructions for each element, registers, spills; and asserts that nothing was contracted or
    approximated."""
    code = machine_code(compiler, "90")
    print(compilers.budget_table(code, f"sm_90, {compiler}"))
    check(code)
    for name, most in (
        ("forward_f32", 40),
        ("forward_bf16", 40),
        ("forward_u8_bf16", 40),
        ("two_f32", 14),
        ("two_bf16", 14),
    ):
        c, n = code[f"nf_{name}"], compilers.ELEMENTS[name.rpartition("_")[0]]
        assert c.total <= most * n, name
        assert c.count("BRA") == 0, name  # so instructions that occur once are executed once
    for dtype in ("f32", "bf16", "f16"):
        pairs = 16
        assert floating_point(code[f"nf_forward_{dtype}"]) == (FMA * pairs + 64, PRODUCTS * pairs, SUMS * pairs)
    # The loss's kernel has the two pairs of a thread's four elements, and their products with the gradient's factor.
    # Its other parts (the noise and another term, the squares, and the halving) may occur more than once.
    fma, products, sums = floating_point(code["nf_loss_f32"])
    assert fma >= FMA * 2 + 2 * 4 + 1
    assert products == PRODUCTS * 2 + 4
    assert sums >= SUMS * 2 + 1
    wide = {op.removeprefix("LDG.E.") for op in code["nf_two_f32"].instructions if op.startswith("LDG")}
    assert wide == {"128", "64", "LDG.E"} or "128" in wide
    assert code["nf_forward_f32"].instructions["STG.E.128"] == 8
    assert code["nf_forward_f32"].instructions["LDG.E.128"] == 8
    assert code["nf_forward_bf16"].instructions["STG.E.128"] == 4


# The two share everything behind their front ends, which know an architecture only as a number. So each architecture is
# compiled by one of them, and 90 by both (above).
OTHERS = [arch for arch in compilers.ARCHITECTURES if arch != "90"]
# Those between the oldest and the newest wait for a release.
WHEN = {arch: [] if arch in (OTHERS[0], OTHERS[-1]) else [pytest.mark.release] for arch in OTHERS}


@pytest.mark.parametrize(
    ("compiler", "arch"),
    [pytest.param(*BOTH[k % 2].values, arch, marks=[*BOTH[k % 2].marks, *WHEN[arch]]) for k, arch in enumerate(OTHERS)],
)
def test_every_architecture(compiler, arch):
    # General rows take up to 70 registers on sm_75 (float64) and 80 on sm_100 and sm_120 (float32): room for three
    # blocks of 256 threads. Held to 64 there, they spill.
    check(machine_code(compiler, arch), registers=80 if arch in ("75", "100", "120") else 64)


ERRORS = {  # in kernels apart, so that one compile has both
    "cuda/lane_cuda.h": ("__fmaf_rn(a, b, c)", "a * b + c"),
    "cuda/instructions.h": ("    __syncthreads();\n", ""),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Compiles a copy of the sources with errors in it by nvcc."""
    sources = shutil.copytree(stand_in.CSRC, tmp_path_factory.mktemp("planted") / "csrc")
    for file, (old, new) in ERRORS.items():
        text = (sources / file).read_text()
        assert old in text
        (sources / file).write_text(text.replace(old, new))
    return compilers.nvcc("90", sources=sources)


@pytest.mark.release
@needs_nvcc
def test_a_lost_fma_and_flushing_would_be_seen(planted):
    """Tests the tests above: a product and a sum in place of fma, and -ftz=true."""
    lost = compilers.machine_code(planted["cubin"])["nf_forward_f32"]
    assert floating_point(lost) != (FMA * 16 + 64, PRODUCTS * 16, SUMS * 16)
    flushed = compilers.machine_code(compilers.nvcc("90", [*compilers.FLAGS, "-ftz=true"])["cubin"])
    with pytest.raises(AssertionError):
        check(flushed)


# ---- the interpreter -----------------------------------------------------------------------------------------


def interpreting(text, counts):
    """Returns an `execute` for the stand-in."""
    kernels = {}

    def execute(name, grid, threads, call):
        if name not in kernels:
            kernels[name] = ptx.Kernel(text, name)
        allowed = ptx.Memory(a.host for a in stand_in.alive if a.host.size)
        counts[name.removeprefix("nf_")] += kernels[name].run(grid, threads, call.copy(), allowed)

    return execute


# Each compiler is run, and each of three architectures: the oldest, and both ways in which types are written. The
# budget above shows that the compilers make the same instructions of one text.
SOURCES = [
    pytest.param("nvrtc", "90", marks=needs_nvrtc),
    pytest.param("nvcc", "75", marks=needs_nvcc),
    pytest.param("nvcc", "120", marks=needs_nvcc),
]


@pytest.mark.parametrize(("compiler", "arch"), SOURCES)
def test_interpreted_ptx_has_the_bits_of_native_on_the_stand_in(compiler, arch):
    """Every kernel runs with every dtype, and each access is checked for bounds and alignment."""
    text = compilers.compiled(compiler, arch)["ptx"].decode()
    assert not re.search(r"(?<!rsqrt\.approx)\.ftz", text)
    counts = {name: Counter() for name in KERNELS}
    with stand_in.installed() as cupy:
        cupy.execute = interpreting(text, counts)
        for dtype in DTYPES.values():
            for shape in ((4, 3, 16, 32), (4, 3, 5, 7)):
                every_kernel.compare(cupy, shape, dtype)
    assert [name for name, count in counts.items() if not count] == []


@pytest.mark.release
@needs_nvcc
@pytest.mark.parametrize("arch", compilers.ARCHITECTURES)
def test_two_to_the_16_values_of_interpreted_ptx(arch):
    counts = {name: Counter() for name in KERNELS}
    with stand_in.installed() as cupy:
        cupy.execute = interpreting(compilers.compiled("nvcc", arch)["ptx"].decode(), counts)
        for dtype in DTYPES.values():
            assert every_kernel.compare_at_ends(cupy, dtype) >= 1 << 16
    assert [name for name, count in counts.items() if not count] == []


@pytest.mark.release
@needs_nvcc
def test_a_lost_barrier_would_be_seen(planted):
    lost = planted["ptx"].decode()
    with stand_in.installed() as cupy:
        nf.randn(4, nf.Noise(0), out=cupy.empty(4, "float32"))  # the self-test, which needs none
        cupy.execute = interpreting(lost, {name: Counter() for name in KERNELS})
        pred = stand_in.ndarray(np.ones((2, 1536), "float32"))
        with pytest.raises(AssertionError, match="a race: no barrier"):
            nf.mse_loss(pred, None, 5, nf.Schedule.linear(), nf.Noise(1), target="epsilon")


TINY = """.visible .entry nf_tiny(
    .param .align 8 .b8 tiny_param_0[8]
)
{
    ld.param.u64 %rd1, [tiny_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, STRIDE;
    add.s64 %rd3, %rd1, %rd2;
    OPCODE [%rd3+OFFSET], {%r1, %r1};
    ret;
}
"""


@pytest.mark.parametrize(
    ("stride", "offset", "opcode", "error"),
    [
        (8, 0, "st.global.v2.u32", None),
        (8, 8, "st.global.v2.u32", (IndexError, "access of 8 bytes outside of all arrays")),
        (8, -8, "st.global.v2.u32", (IndexError, "outside")),
        (4, 0, "st.global.v2.u32", (ValueError, "access of 8 bytes misaligned")),
        (8, 0, "red.global.v2.u32", (ptx.Unknown, r"table: red\.global\.v2\.u32 \[")),
        (8, 0, "st.volatile.global.v2.u32", (ptx.Unknown, r"st\.volatile")),
        (8, 0, "st.global.v2.u32.x", (ptx.Unknown, r"u32\.x")),
    ],
)
def test_the_interpreter_checks_every_access(stride, offset, opcode, error):
    text = TINY.replace("STRIDE", str(stride)).replace("OFFSET", str(offset)).replace("OPCODE", opcode)
    array = np.zeros(64, np.uint64)[1:33]
    call = np.array([array.ctypes.data], np.uint64)

    def run():
        return ptx.Kernel(text, "nf_tiny").run((2, 1, 1), 16, call, ptx.Memory([array[:16]]))

    if error is None:
        assert run()[opcode] == 32
        assert array[:16].view(np.uint32).tolist() == [i for i in range(16) for _ in range(2)]
        assert not array[16:].any()
    else:
        with pytest.raises(error[0], match=error[1]):
            run()


ARITHMETIC = """.visible .entry one(
    .param .u64 .ptr .global .align 1 one_param_0,
    .param .u32 one_param_1
)
{
    ld.param.b64 %rd1, [one_param_0];
    ld.param.b32 %r9, [one_param_1];
    ld.global.v2.b64 {%rd2, %rd3}, [ %rd1 + 0 ];
    mov.b64 {%r1, %r2}, %rd2;
    setp.ne.b32 %p1, %r9, 0;
    LINE
    @%p1 st.global.b64 [%rd1], %rd4;
    ret;
}
"""


def halves(a, b):
    return int(np.array([a, b], np.float32).view(np.uint64)[0])


@pytest.mark.parametrize(
    ("line", "a", "b", "expected"),
    [
        (
            "fma.rn.f32x2 %rd4, %rd2, %rd3, %rd2;",
            halves(3, 1 + 2**-12),
            halves(2, 1 + 2**-12),
            halves(9, 2 + 3 * 2**-12),
        ),
        ("add.rn.f32x2 %rd4, %rd2, %rd3;", halves(1e-45, 1), halves(1e-45, 2**-24), halves(3e-45, 1)),
        ("mul.rn.f32x2 %rd4, %rd2, %rd3;", halves(-3, 0.1), halves(2, 0.1), halves(-6, np.float32(0.1) ** 2)),
        ("shf.l.wrap.b32 %r3, %r1, %r2, 33; mov.b64 %rd4, {%r3, %r3};", 0xC0000001_80000000, 0, 0x80000003_80000003),
        ("shf.r.clamp.b32 %r3, %r1, %r2, 33; mov.b64 %rd4, {%r3, %r3};", 0x12345678_9ABCDEF0, 0, 0x12345678_12345678),
        ("mul.hi.s32 %r3, %r1, %r2; mov.b64 %rd4, {%r3, %r3};", 0x7FFFFFFF_FFFFFFFE, 0, 0xFFFFFFFF_FFFFFFFF),
        ("min.f32 %r3, %r1, %r2; mov.b64 %rd4, {%r3, %r1};", halves(np.nan, 2), 0, halves(2, np.nan)),
        ("bfe.u32 %r3, %r1, 8, 16; mov.b64 %rd4, {%r3, %r1};", 0x12345678, 0, 0x12345678_00003456),
    ],
)
def test_an_instruction_of_ptx(line, a, b, expected):
    """Their results follow from the vendor's description. Seen to fail: min with NaN, which is a number."""
    memory = np.array([a, b], np.uint64)
    for stores in (0, 1):
        argument = np.array([memory.ctypes.data, stores], np.uint64)
        ptx.Kernel(ARITHMETIC.replace("LINE", line), "one").run((1, 1, 1), 1, argument, ptx.Memory([memory]))
        assert int(memory[0]) == (expected if stores else a)
