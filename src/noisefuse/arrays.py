# SPDX-License-Identifier: Apache-2.0
"""Arrays in and out: which are accepted, and the errors that say what was expected of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

try:
    from ._native import empty  # large ones in memory that earlier outputs gave back
except ImportError:
    from numpy import empty

Array: TypeAlias = NDArray[Any]

FLOATS = ("float32", "float64", "float16", "bfloat16")


_INTEROP: dict[type, Any] = {np.ndarray: None, type(None): None, str: None, type: None}


def interop(x: object) -> Any:
    """The module of `interop` that knows arrays (or dtypes) of this type: None for NumPy's, and for strangers."""
    kind = type(x)
    if kind not in _INTEROP:
        _INTEROP[kind] = _module(kind)
    return _INTEROP[kind]


def _module(kind: type) -> Any:
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            from .interop import torch  # a statement, which torch.compile can follow

            return torch
    return None


def float_dtype(dtype: DTypeLike, allowed: tuple[str, ...] = FLOATS) -> np.dtype[Any]:
    """The dtype, if it is one of the floats that noise comes in ("bfloat16" needs ml_dtypes)."""
    if isinstance(dtype, str) and dtype == "bfloat16" and dtype in allowed:
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("dtype bfloat16 needs ml_dtypes: pip install 'noisefuse[bfloat16]'") from None
        half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return half
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype {dtype!r}: expected one of {', '.join(allowed)}") from None
    if found.name not in allowed or not found.isnative:
        raise TypeError(f"dtype {found}: expected one of {', '.join(allowed)}")
    return found


def as_array(name: str, x: object, allowed: tuple[str, ...] = FLOATS) -> Array:
    """x as a plain array of native byte order, if its dtype is allowed."""
    if not isinstance(x, np.ndarray | np.generic):
        raise TypeError(f"{name}: expected a NumPy array, got {_kind(x)}")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; pass {name}.data or {name}.filled(...)")
    array = np.asarray(x)
    if array.dtype.name not in allowed:
        raise TypeError(f"{name}: dtype {array.dtype} is not supported, expected one of {', '.join(allowed)}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def output(name: str, out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array, or the caller's `out` if it is one that a kernel may write to."""
    if out is None:
        return empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {_kind(out)}")
    if type(out) is not np.ndarray:
        raise TypeError(f"{name}: expected a plain numpy.ndarray, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if not out.flags.c_contiguous or not out.flags.aligned:
        raise ValueError(f"{name}: expected a C-contiguous, aligned array, got strides {out.strides}")
    return out


def contiguous(x: Array) -> Array:
    """x itself where kernels can read it, else a copy."""
    return x if x.flags.c_contiguous and x.flags.aligned else x.copy(order="C")


def check_overlap(outputs: Iterable[tuple[str, Array]], inputs: Iterable[tuple[str, Array]]) -> None:
    """Raises ValueError where an output shares memory with another, or with an input that it is not exactly.

    All are contiguous, so that sharing memory means sharing bounds.
    """
    outputs = list(outputs)
    for i, (name, out) in enumerate(outputs):
        for other_name, other in outputs[:i]:
            if np.may_share_memory(out, other):
                raise ValueError(f"{name} overlaps {other_name}: outputs must not share memory")
        for other_name, other in inputs:
            same = out.ctypes.data == other.ctypes.data and out.dtype == other.dtype and out.size == other.size
            if not same and np.may_share_memory(out, other):
                raise ValueError(f"{name} overlaps {other_name} in part: expected the input itself, or separate memory")


def batch_shape(shape: tuple[int, ...], batched: bool) -> tuple[int, tuple[int, ...]]:
    """(samples, shape of one sample): axis 0 is the batch, unless not batched or there is no axis."""
    return (shape[0], shape[1:]) if batched and shape else (1, shape)


def count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _kind(x: object) -> str:
    module = type(x).__module__.partition(".")[0]
    return type(x).__name__ if module == "builtins" else f"{module}.{type(x).__name__}"
