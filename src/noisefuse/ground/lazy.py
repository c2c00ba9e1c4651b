# SPDX-License-Identifier: Apache-2.0
"""A package shows its public names, and modules that are loaded on first use, because they need other libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import FunctionType, MappingProxyType
from typing import Any


def lazy(
    package: str, modules: Iterable[str], names: Iterable[str], homes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Gives a package a `__getattr__` that loads these modules, and a `__dir__` with them and these names. `homes`: the
    modules that the other names need; the last has the name."""
    loaded = frozenset(modules)
    shown = sorted({*loaded, *names})

    def load(name: str) -> Any:
        if name in loaded:
            module = import_module(f".{name}", package)
            show_public(module.__name__)
            return module
        if name in homes:
            *_, home = [import_module(f".{each}", package) for each in homes[name].split()]
            value = vars(sys.modules[package])[name] = getattr(home, name)
            return value
        absent = f"module {package!r} has no attribute {name!r}"
        raise AttributeError(absent, name=name, obj=sys.modules[package])  # with which Python suggests a name

    vars(sys.modules[package]).update(__getattr__=load, __dir__=lambda: shown)


def show_public(module: str, *others: str) -> None:
    """Lets `dir`, and what completes names, show the module's `__all__`, if it has one, and these others."""
    within = vars(sys.modules[module])
    if names := within.get("__all__"):
        within.setdefault("__dir__", lambda: sorted({*names, *others}))


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
