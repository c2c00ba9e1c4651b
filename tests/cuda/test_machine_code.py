# SPDX-License-Identifier: Apache-2.0
"""The machine code that ptxas makes of the CUDA kernels, on an interpreter (cuda_kernels/sass.py), without a device.

It needs the group `cuda-test`.
"""

import functools

import pytest

from conftest import DTYPES
from cuda_kernels import compilers, every_kernel, sass, stand_in
from cuda_kernels.every_kernel import KERNELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compilers.have_nvcc(), reason="needs the group cuda-test: nvcc, cuobjdump"),
]


@functools.cache
def program(arch):
    cubin = compilers.compiled("nvcc", arch)["cubin"]
    return sass.Program(sass.elf_sections(cubin), compilers.disassembly(cubin))


def arrays():
    return [a.host for a in stand_in.alive]


def launched(cupy):
    return {name.removeprefix("nf_") for name, *_ in cupy.launches}


@pytest.mark.parametrize(
    "arch", ["90", pytest.param("80", marks=pytest.mark.release), pytest.param("120", marks=pytest.mark.release)]
)
def test_every_kernel_has_the_bits_of_native(arch):
    """Every kernel runs with every dtype. Any access that is out of bounds, misaligned or a race fails."""
    with stand_in.installed() as cupy:
        cupy.execute = program(arch).execute(arrays)
        for dtype in DTYPES.values():
            for shape in ((4, 3, 16, 32), (4, 3, 5, 7)):
                every_kernel.compare(cupy, shape, dtype)
        assert launched(cupy) == {*KERNELS}
