# SPDX-License-Identifier: Apache-2.0
"""This tells whose array it is. `interop` registers the libraries of arrays beside NumPy here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_loaders: dict[str, Callable[[], Any]] = {}  # by the root module of a library's types
_libraries: dict[type, Any] = {np.ndarray: None, type(None): None, str: None, type: None}
_libraries |= dict.fromkeys((type(np.dtype(code)) for code in "efd"), None)


def register(root: str, load: Callable[[], Any]) -> None:
    """Types of the module `root` belong to the library that load() returns. It is called when one is first seen."""
    _loaders[root] = load


def library(root: str) -> Any:
    """The library that was registered for a root module."""
    return _loaders[root]()


def library_of(x: object) -> Any:
    """Returns the library of an array, or of a dtype. It is None for NumPy's, and for types that nobody registered."""
    try:
        return _libraries[type(x)]
    except KeyError:
        found = _library_of(type(x))
    if found is not None:  # of other types there may be any number
        _libraries[type(x)] = found
    return found


def need_plain(name: str, x: object) -> None:
    """TypeError: x is masked, or a tensor that stands for several, or for parts of one. Numbers and lists pass."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; pass {name}.data or {name}.filled(...)")
    if (need := getattr(library_of(x), "need_plain", None)) is not None:
        need(name, x)


def _library_of(kind: type) -> Any:
    for base in kind.__mro__:
        if (load := _loaders.get(base.__module__.partition(".")[0])) is not None:
            return load()
    return None
