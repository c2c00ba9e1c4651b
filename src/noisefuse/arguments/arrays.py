# SPDX-License-Identifier: Apache-2.0
"""Checks of arrays, in and out: which are accepted, and the errors that say what was expected."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..call.packed import address, dtype_code
from ..ground import layouts
from ..ground.libraries import check_plain, library_for, library_of
from ..language.levels import FLOATS

Array: TypeAlias = NDArray[Any]


def on_device(x: object) -> bool:
    """Tells whether x is an array on a device: CuPy's, or a tensor's for Triton. These exist only once their library is
    loaded, so nothing here loads it. An array that was checked is NumPy's or one of these, so `isinstance` tells."""
    kind = type(x)
    if kind is np.ndarray or kind in _ON_DEVICE:
        return kind is not np.ndarray
    module = kind.__module__
    is_there = not isinstance(x, np.ndarray) and (module.partition(".")[0] == "cupy" or module == _TRITON)
    if is_there:  # the number of unknown types is not bounded
        _ON_DEVICE.add(kind)
    return is_there


_ON_DEVICE: set[type] = set()
_TRITON = f"{backends.__name__}.triton.arrays"


def of_triton(x: object) -> bool:
    """Tells whether x is the memory of a tensor on a device, which Triton's kernels take."""
    return type(x).__module__ == _TRITON


def allocator(x: Any) -> Any:
    """Returns what makes empty arrays, of a shape and a dtype, where x lies."""
    return backends.empty if isinstance(x, np.ndarray) else x.empty


def is_array(x: object) -> bool:
    """Tells whether x is read as an array. (Results have stricter rules: see `output`.)"""
    return isinstance(x, np.ndarray) or on_device(x) or is_foreign(x)


def is_foreign(x: object) -> bool:
    """Tells whether x is an array of a library that noisefuse does not know. Such a library shares memory by DLPack."""
    kind = type(x)
    if kind is np.ndarray or not (hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__")):
        return False
    return not isinstance(x, np.ndarray) and not on_device(x) and library_of(x) is None


def host_view(name: str, x: Any) -> Any:
    """Returns NumPy's view of a foreign array's memory, and anything else unchanged. Results for it are NumPy's."""
    if not is_foreign(x):
        return x
    try:
        kind, number = x.__dlpack_device__()
        if kind == CPU:
            return _from_dlpack(x)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:  # a tracer, or no such dtype
        raise TypeError(f"{name}: NumPy cannot read this {_kind(x)} by DLPack: {error}") from error
    where = f"on device {number} of DLPack's type {int(kind)}"
    raise NotImplementedError(f"{name}: expected {_kind(x)} in host memory, got one {where}; copy it there first")


def _from_dlpack(x: Any) -> Any:
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError):  # a dtype that NumPy does not know
        if not hasattr(type(x), "__array__"):
            raise
        return np.asarray(x)  # TensorFlow converts bfloat16 so


CPU = 1  # kDLCPU of DLPack, https://dmlc.github.io/dlpack/latest/c_api.html


def device_of(x: Any) -> int | None:
    """Returns the number of x's CUDA device, or None if x lies in host memory."""
    return None if isinstance(x, np.ndarray) else int(x.device.id) if on_device(x) else None


def is_there(x: object, device: int | None) -> bool:
    """Tells whether x lies on this device; None is host memory."""
    return device is not None and device_of(x) == device


def one_place(arrays: Iterable[tuple[str, Array]]) -> int | None:
    """Returns the device of all arrays, or None for host memory. ValueError: they lie in several places."""
    arrays = [*arrays]
    if all(type(array) is np.ndarray for _, array in arrays):
        return None
    (name, first), *rest = arrays
    for other_name, other in rest:
        if device_of(other) != device_of(first):
            raise ValueError(
                f"{other_name} lies {where(other)}, {name} {where(first)}: expected all arrays in one place"
            )
    return device_of(first)


def where(x: Any) -> str:
    return "in host memory" if (device := device_of(x)) is None else f"on CUDA device {device}"


def is_traced(x: object) -> bool:
    """Tells whether a compiler traces the call. It cannot trace the fast path."""
    return type(x) is not np.ndarray and library_for(x).is_traced()


def is_lazy(x: object) -> bool:
    """Tells whether x is a dask array, which is computed later and never written to."""
    return type(x) is not np.ndarray and library_for(x).is_lazy


def is_written(x: object) -> bool:
    """Tells whether results may be written to arrays of x's kind."""
    return type(x) is np.ndarray or library_for(x).is_written


def float_dtype(dtype: Any, allowed: tuple[str, ...] = FLOATS) -> np.dtype[Any]:
    """Returns the dtype, if it is one of the floats that noise has ("bfloat16" needs ml_dtypes). None: float32."""
    if isinstance(dtype, str) and dtype == "bfloat16" and dtype in allowed:
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("dtype bfloat16 needs ml_dtypes: pip install 'noisefuse[bfloat16]'") from None
        half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return half
    return allowed_dtype("float32" if dtype is None else dtype, allowed)


def allowed_dtype(dtype: Any, allowed: tuple[str, ...]) -> np.dtype[Any]:
    """Returns the dtype, if it is one of those allowed."""
    try:
        known: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        what = f"{dtype!r} is torch's, and the arrays are not" if library_of(dtype) is not None else repr(dtype)
        raise TypeError(f"dtype {what}: expected one of {', '.join(allowed)}") from None
    if dtype_name(known) not in allowed or not known.isnative:
        raise TypeError(f"dtype {known}: expected one of {', '.join(allowed)}")
    return known


@lru_cache(64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Returns a dtype's name. NumPy's own attribute takes as long as the rest of a check."""
    return dtype.name


_DTYPES = str, type, np.dtype  # a union would be made anew at each call


def fast_dtype(dtype: Any, library: Any, allowed: tuple[str, ...] = FLOATS) -> tuple[Any, ...]:
    """Returns a result dtype for the fast path, (code, dtype), or (), which the fast path declines."""
    if library is None and not isinstance(dtype, _DTYPES):
        return ()
    try:
        return _fast_dtype(dtype, allowed)
    except TypeError:  # not hashable, or no dtype
        return ()


@lru_cache(64)
def _fast_dtype(dtype: Any, allowed: tuple[str, ...]) -> tuple[Any, ...]:
    dtype = "float32" if dtype is None else dtype
    name = str(dtype)
    known = np.dtype(name.removeprefix("torch.") if name.startswith("torch.") else dtype)
    return (dtype_code(known), known) if known.name in allowed and known.isnative else ()


def as_array(name: str, x: object, allowed: tuple[str, ...] = FLOATS) -> Array:
    """Returns x as a plain array of native byte order. TypeError: its dtype is not allowed."""
    if type(x) is not np.ndarray and not isinstance(x, np.generic) and not is_array(x):
        makes = isinstance(x, list | tuple) or hasattr(x, "__array_interface__")
        hint = "; np.asarray(..) makes one, and [None] a batch of one" if makes else ""
        raise TypeError(f"{name}: expected {wanted(x)}, got {_kind(x)}{hint}")
    array = as_numbers(name, x)
    if dtype_name(array.dtype) not in allowed:
        can_be = len(allowed) == 1 and allowed[0] != "bfloat16" and array.dtype.kind == "f"
        hint = f'; {name}.astype("{allowed[0]}") is one' if can_be else ""
        raise TypeError(f"{name}: dtype {array.dtype} is not supported, expected one of {', '.join(allowed)}{hint}")
    return array if array.dtype.isnative else copy(array, array.dtype.newbyteorder("="))


def as_numbers(name: str, x: Any) -> Array:
    """Returns x, which may be a list or a scalar, as an array of any numbers, plain unless it lies on a device. A NumPy
    subclass loses its class. TypeError: x is masked, and its mask would be lost."""
    if type(x) is np.ndarray:
        return x
    check_plain(name, x)
    array: Array = x if on_device(x) else np.asarray(host_view(name, x))
    return array


def as_reals(name: str, x: Any) -> Array:
    """Returns `as_numbers` in float64. TypeError: they are complex, and their imaginary parts would be lost."""
    array: Any = as_numbers(name, x)
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    made: Array = array.astype(np.float64, copy=False)
    return made


def host_numbers(name: str, x: Any) -> NDArray[Any]:
    """Returns x as NumPy's array of any numbers, copied if it lies on a device. TypeError: x is masked."""
    if type(x) is np.ndarray:
        return x
    check_plain(name, x)
    return np.asarray(library_for(x).to_numpy(host_view(name, x)))


def host_floats(name: str, x: Any) -> NDArray[np.float64]:
    """Returns a copy of x in float64, in host memory. TypeError: x is masked, or has no numbers."""
    check_plain(name, x)
    viewed = host_view(name, x)
    try:
        values = np.asarray(library_for(viewed).to_numpy(viewed))
        if values.dtype.kind in "cSUO":
            raise TypeError
        return values.astype(np.float64) if values.size <= layouts.PIECE else copy(values, np.dtype(np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers, got {type(viewed).__name__}") from None


def wanted(x: object, of: str = "NumPy, CuPy, torch, JAX or dask, or one that speaks DLPack") -> str:
    """Returns what is expected in place of x. (x is a tensor here only if the other arguments are none.)"""
    is_anothers = library_of(x) is not None and hasattr(x, "shape")  # a generator of torch is no array
    return "a NumPy array, as the other arguments are" if is_anothers else f"an array of {of}"


def output(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int | None = None) -> Array:
    """Returns a new array on that device, or the caller's `out` if a kernel may write to it."""
    if out is None:
        return backends.empty(shape, dtype) if device is None else _empty_on(device, shape, dtype)
    if not isinstance(out, np.ndarray) and not on_device(out):
        raise TypeError(f"{name}: expected {wanted(out, 'NumPy, CuPy or torch')}, got {_kind(out)}")
    if isinstance(out, np.ndarray) and type(out) not in (np.ndarray, np.memmap):
        raise TypeError(f"{name}: expected a plain numpy.ndarray, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if not _is_plain(out):
        raise ValueError(f"{name}: expected a C-contiguous, aligned array, got strides {out.strides}")
    return out


def _empty_on(device: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if (cupy := sys.modules.get("cupy")) is None:
        on_triton: Array = importlib.import_module(_TRITON).empty(device, shape, dtype)
        return on_triton
    with cupy.cuda.Device(device):
        new: Array = cupy.empty(shape, dtype)
    return new


def _is_plain(x: Any) -> bool:
    flags = x.flags
    return bool(flags.c_contiguous and (flags.aligned if isinstance(x, np.ndarray) else _address(x) % x.itemsize == 0))


def _address(x: Any) -> int:
    return address(x) if isinstance(x, np.ndarray) else int(x.data.ptr)


def contiguous(x: Array) -> Array:
    """Returns x itself if kernels can read it, else a copy."""
    return x if _is_plain(x) else copy(x, x.dtype)


def copy(x: Array, dtype: np.dtype[Any]) -> Array:
    """Returns a C-contiguous copy in this dtype. NumPy's warnings of NaN and infinities are left out, as kernels that
    convert have none."""
    with np.errstate(invalid="ignore", over="ignore"):
        if not isinstance(x, np.ndarray) or (x.dtype != dtype and x.size <= layouts.PIECE):
            return x.astype(dtype, order="C")
        copied: Array = layouts.copy(x, dtype, range(x.ndim))
        return copied


def spread(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """Returns x broadcast to this shape, C-contiguous."""
    try:
        return contiguous(np.broadcast_to(x, shape))
    except ValueError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, got {x.shape}") from None


def of_samples(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """Returns numbers broadcast to this shape, C-contiguous. Axes that x lacks are the last ones: (B,) and (B, 1) are a
    number for each sample, also where another axis has B elements, too."""
    try:
        return contiguous(np.broadcast_to(x.reshape(*x.shape, *(1,) * (len(shape) - x.ndim)), shape))
    except ValueError:
        expected = f"a number, one for each sample, {shape[:1]}, or a shape that broadcasts to {shape}"
        raise ValueError(f"{name}: expected {expected}, got {x.shape}") from None


def spread_bools(name: str, x: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Returns bools broadcast to this shape, C-contiguous."""
    if x.dtype != np.bool_:
        raise TypeError(f"{name}: expected bool, got {x.dtype}")
    return spread(name, x, shape)


def overlap(a: Array, b: Array) -> bool:
    """Tells whether two contiguous arrays share memory."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.may_share_memory(a, b)
    return (
        device_of(a) == device_of(b) and _address(a) < _address(b) + b.nbytes and _address(b) < _address(a) + a.nbytes
    )


def check_overlap(outputs: Iterable[tuple[str, Array]], inputs: Iterable[Array]) -> None:
    """Raises ValueError if an output shares memory with another output, or with a part of an input."""
    outputs = list(outputs)
    for i, (name, out) in enumerate(outputs):
        for other_name, other in outputs[:i]:
            if overlap(out, other):
                raise ValueError(f"{name} overlaps {other_name}: outputs must not share memory")
        for other in inputs:
            if overlap(out, other) and not same(out, other):
                raise ValueError(f"{name} overlaps an input in part: expected the input itself, or separate memory")


def same(a: Array, b: Array) -> bool:
    """Tells whether two contiguous arrays have the same memory."""
    return _address(a) == _address(b) and a.dtype == b.dtype and a.size == b.size


def batch_shape(shape: tuple[int, ...], batched: bool) -> tuple[int, tuple[int, ...]]:
    """Returns (samples, shape of one sample). Axis 0 is the batch, unless batched is false or there is no axis."""
    return (shape[0], shape[1:]) if batched and shape else (1, shape)


def _kind(x: object) -> str:
    module = type(x).__module__.partition(".")[0]
    return type(x).__name__ if module == "builtins" else f"{module}.{type(x).__name__}"
