# SPDX-License-Identifier: Apache-2.0
"""A test of each figure of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from figures import write


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("figure", metafunc.module.FIGURES, ids=lambda figure: figure.name)


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """One for each figure; written down where all of them ran."""
    taken: list[dict[str, Any]] = []
    yield taken
    write(taken, request.module)
