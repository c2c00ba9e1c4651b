# SPDX-License-Identifier: Apache-2.0
"""The extension finds the instruction sets that the system lists for this processor.

Seen to fail: a wrong bit for AVX-512, and a wrong mask for the registers that the system keeps.
"""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from noisefuse import _native

NEEDED = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"}}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there is one set to choose from")
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone lists them")
def test_the_sets_are_those_that_the_system_lists():
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    listed = set(line.partition(":")[2].split())
    avx2 = NEEDED["avx2"] <= listed
    avx512 = avx2 and NEEDED["avx512"] <= listed
    assert _native.isas() == {"avx512": avx512, "avx2": avx2, "portable": True}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another nm")
def test_the_extension_exports_one_function():
    """Seen to fail: templates of std::, which say that they are visible."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", _native.__file__], check=True, capture_output=True, text=True
    )
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["PyInit__native"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")
def test_the_extension_is_hardened():
    """Functions are bound when it is loaded, and then only read; what parses arguments checks its stack. Seen to fail:
    without the flags."""
    command = ["readelf", "-ldsW", _native.__file__]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "GNU_RELRO" in shown
    assert re.search(r"\(FLAGS\)\s+BIND_NOW|FLAGS_1\)\s+Flags: NOW", shown)
    assert "__stack_chk_fail" in shown
