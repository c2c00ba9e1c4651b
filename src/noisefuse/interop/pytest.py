# SPDX-License-Identifier: Apache-2.0
"""A fixture for tests of programs that draw noise, after ``pytest_plugins = ["noisefuse.interop.pytest"]``."""

from collections.abc import Iterator
from typing import Any

import pytest

import noisefuse as nf


@pytest.fixture
def noise_audit() -> Iterator[Any]:
    """Watches the noise that a test draws (`noisefuse.audit`). The test fails if draws repeat others."""
    with nf.audit() as draws:
        yield draws
    assert not draws.repeated, str(draws)
