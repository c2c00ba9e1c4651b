# SPDX-License-Identifier: Apache-2.0
"""Makes a test of each figure in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from figures import write


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("figure", metafunc.module.FIGURES, ids=lambda figure: figure.name)


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """Yields one record for all figures of a file, and writes it if all of them ran."""
    taken: list[dict[str, Any]] = []
    yield taken
    write(taken, request.module)
