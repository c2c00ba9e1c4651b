# SPDX-License-Identifier: Apache-2.0
"""Modules of a package that are loaded on first use, because they need other libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def lazy(package: str, modules: Iterable[str], names: Iterable[str]) -> None:
    """Gives a package a `__getattr__` that loads these modules, and a `__dir__` with them and these names."""
    loaded = frozenset(modules)
    shown = sorted({*loaded, *names})

    def load(name: str) -> Any:
        if name in loaded:
            return import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    vars(sys.modules[package]).update(__getattr__=load, __dir__=lambda: shown)
