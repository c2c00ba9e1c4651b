# SPDX-License-Identifier: Apache-2.0
"""The instruction sets that Windows' way of asking finds: it runs nowhere here, but asks the processor alone.

Seen to fail: a wrong bit for AVX-512, and a wrong mask for the registers that the system keeps.
"""

import platform
import subprocess
from pathlib import Path

import pytest

from cuda_kernels import stand_in
from noisefuse import _native

CPU = Path(__file__).parents[2] / "csrc" / "cpu"
MAIN = """
#include <cstdio>
namespace nf { extern const Kernels kernels_avx512{}, kernels_avx2{}, kernels_portable{}; }
int main() { for (const nf::Isa& isa : nf::isas()) std::printf("%d", isa.supported); }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there is one set to choose from")
def test_windows_finds_the_same(tmp_path):
    text = (CPU / "dispatch.cpp").read_text()
    assert text.count("defined(_WIN32)") == 2
    (tmp_path / "main.cpp").write_text(text.replace("defined(_WIN32)", "1") + MAIN)
    program = tmp_path / "main"
    command = [stand_in.compiler(), "-std=c++20", f"-I{CPU}", f"-I{CPU.parent}", tmp_path / "main.cpp", "-o", program]
    subprocess.run(command, check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert found == "".join(str(int(supported)) for supported in _native.isas().values())
