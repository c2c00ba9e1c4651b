# SPDX-License-Identifier: Apache-2.0
"""The quick level of faults.py: each scenario once, natively. `python tests/campaign/faults.py` runs everything."""

import sys

import pytest

import faults
from conftest import one_in

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, limits and /proc")


@pytest.mark.parametrize("name", one_in(2, faults.QUICK))
def test_calls_are_right_after_it(name):
    """There is no crash and no hang; and calls in the same process, before and after, have the same bits."""
    if name in ("full disk", "denied permission"):  # of data sets that `noisefuse noise` writes
        pytest.importorskip("zarr")
    row = faults.run(name, "native", seed=1, seconds=faults.QUICK[name])
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert row["cases"]
    assert not row["failures"], "\n".join(row["failures"])
