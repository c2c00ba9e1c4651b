# SPDX-License-Identifier: Apache-2.0
"""The one way from a test to a private name of another library, which a newer version may rename."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest


def private(module: str, name: str) -> Any:
    """Returns what the module has under this name. Where it has it no more, the test is skipped, and the reason names
    the version: a stranger's run stays green, and CI, whose list of skips has no such reason, says what changed."""
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ImportError):
        library = module.partition(".")[0]
        pytest.skip(f"{library} {version(library)} has no {module}.{name}, a private name", allow_module_level=True)
