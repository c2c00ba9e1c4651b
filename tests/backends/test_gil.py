# SPDX-License-Identifier: Apache-2.0
"""A free-threaded Python stays without its GIL: one extension that does not declare so turns it on for all threads."""

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
    """In a process of its own, as what tests import may turn it on. Seen to fail: a Python whose GIL is on."""
    # Python warns where an import turns the GIL on: an error, which tells which one did.
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
