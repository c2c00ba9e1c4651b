# SPDX-License-Identifier: Apache-2.0
"""A package shows its public names, and modules that are loaded on first use, because they need other libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any


def lazy(package: str, modules: Iterable[str], names: Iterable[str], **inside: str) -> None:
    """Gives a package a `__getattr__` that loads these modules, and functions inside of others, and a `__dir__` with
    them and these names."""
    loaded = frozenset(modules)
    shown = sorted({*loaded, *names, *inside})

    def load(name: str) -> Any:
        if name in inside:
            return getattr(import_module(f".{inside[name]}", package), name)
        if name in loaded:
            module = import_module(f".{name}", package)
            show_public(module)
            return module
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    vars(sys.modules[package]).update(__getattr__=load, __dir__=lambda: shown)


def show_public(module: ModuleType, *others: str) -> None:
    """Lets `dir`, and what completes names, show the module's `__all__`, if it has one, and these others."""
    if names := vars(module).get("__all__"):
        vars(module)["__dir__"] = lambda: sorted({*names, *others})


def show_as(module: str, *values: Any) -> None:
    """Lets classes and functions state the public module that shows them: pickles name it, so the code may move.

    It gets what their own module knows, where Python looks up the names in their annotations. Methods of our bases
    state the class that is shown, which Python's errors name."""
    shown = vars(sys.modules[module])
    for value in values:
        for name, known in vars(sys.modules[value.__module__]).items():
            shown.setdefault(name, known)
        value.__module__ = module
        for base in getattr(value, "__mro__", ())[1:]:
            for name, member in vars(base).items() if base.__module__.startswith("noisefuse.") else ():
                if isinstance(function := getattr(member, "__func__", member), FunctionType):
                    function.__module__, function.__qualname__ = module, f"{value.__qualname__}.{name}"
