# SPDX-License-Identifier: Apache-2.0
"""A free-threaded Python stays without its GIL: an extension that does not declare support turns it on."""

import subprocess
import sys
import sysconfig

import pytest

CODE = """
import sys
import noisefuse as nf
nf.use_backend("native")
nf.randn((4, 100_000), nf.Noise(1))  # the pool
nf.randn((2, 2), nf.Noise(1))  # the fast path
print(sys._is_gil_enabled())
"""


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_the_extension_leaves_the_gil_off():
    """It runs in a new process, because the tests' imports may turn the GIL on. Seen to fail: a Python whose GIL is
    on."""
    # Python warns if an import turns the GIL on. The warning is an error here, which names the import.
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
