# SPDX-License-Identifier: Apache-2.0
"""The contract's floating-point mode for NumPy's arithmetic: round to nearest, keep subnormal numbers.

Compiled kernels set it themselves. This module uses C's <fenv.h>, whose default environment also ends flushing to zero.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_BYTES = 256  # an fenv_t has at most as many


def _functions() -> tuple[Callable[..., int], Callable[..., int], Any] | None:
    """Returns fegetenv, fesetenv and FE_DFL_ENV, or None if the C library lacks them."""
    for name in (None, "libm.so.6"):
        with suppress(OSError, AttributeError, TypeError, ValueError):
            library = ctypes.CDLL(name)
            default = ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")) if sys.platform == "darwin" else None
            return library.fegetenv, library.fesetenv, default or ctypes.c_void_p(-1)
    return None


_fenv = _functions()


@contextmanager
def float_mode() -> Iterator[None]:
    """Sets the mode of this thread, and restores the previous one at the end."""
    if _fenv is None:
        yield
        return
    get, put, default = _fenv
    before = (ctypes.c_char * _BYTES)()
    get(before)
    put(default)
    try:
        yield
    finally:
        put(before)
