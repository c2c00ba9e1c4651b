# SPDX-License-Identifier: Apache-2.0
"""The contract's floating-point mode for what NumPy computes: round to nearest, subnormal numbers kept.

Compiled kernels set it themselves. Here it is C's <fenv.h>, whose default environment also ends flushing to zero.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_BYTES = 256  # of an fenv_t, at most


def _functions() -> tuple[Callable[..., int], Callable[..., int], Any] | None:
    """fegetenv, fesetenv and FE_DFL_ENV, where the C library has them."""
    for name in (None, "libm.so.6"):
        with suppress(OSError, AttributeError, TypeError, ValueError):
            library = ctypes.CDLL(name)
            default = ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")) if sys.platform == "darwin" else None
            return library.fegetenv, library.fesetenv, default or ctypes.c_void_p(-1)
    return None


_fenv = _functions()


@contextmanager
def float_mode() -> Iterator[None]:
    """Sets the mode of this thread, and gives back the one that was."""
    if _fenv is None:
        yield
        return
    get, put, default = _fenv
    before = ctypes.create_string_buffer(_BYTES)
    get(before)
    put(default)
    try:
        yield
    finally:
        put(before)
