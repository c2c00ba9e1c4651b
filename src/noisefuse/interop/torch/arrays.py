# SPDX-License-Identifier: Apache-2.0
"""Tensors as arrays, and arrays as tensors, without a copy: NumPy's for CPU tensors; for tensors on a CUDA device
CuPy's or, without CuPy, those of the Triton backend. Kernels run on torch's current stream.

NumPy and CuPy know bfloat16 only through ml_dtypes. Without it, CPU tensors of bfloat16 are read as float32 and torch
rounds the results. The bits are the same, because kernels compute in float32 and round once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

from ...ground import layouts
from ...language.levels import FLOATS, LEVELS, NUMPYS
from .internals import is_compiling, is_dual, written

try:
    import ml_dtypes
except ImportError:
    HALF: np.dtype[Any] | None = None
else:
    HALF = np.dtype(ml_dtypes.bfloat16)

NAMED: dict[str, torch.dtype] = {name: getattr(torch, name) for name in (*FLOATS, *LEVELS)}
DTYPES = {dtype: name for name, dtype in NAMED.items()}
EXPECTED = ", ".join(str(known) for known in DTYPES if known.is_floating_point)

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes

CPU = torch.device("cpu")
_HERE = nullcontext()


# ---- in ----------------------------------------------------------------------------------------------------


def read(name: str, x: object, place: torch.device) -> Any:
    """Returns the memory of a tensor to read; a lazily negated one is copied."""
    tensor = checked(name, x)
    if is_dual(tensor):
        raise NotImplementedError(f"{name}: forward-mode differentiation is not supported")
    tensor = tensor.detach().resolve_neg()
    if is_copied(tensor):
        tensor = tensor.float()
    # On a device torch makes any copy: in its own memory, and with a kernel that exists already.
    return memory(name, tensor if place.type == "cpu" else tensor.contiguous(), place)


def write(name: str, out: object, place: torch.device, dtype: torch.dtype) -> Any:
    """Returns the memory of a tensor that is written, or a place from which `as_tensor` fills it. It returns None if
    out is None."""
    if out is None:
        return None
    tensor = checked(name, out)
    if tensor.dtype != dtype and HALF is None and torch.bfloat16 in (tensor.dtype, dtype):  # arrays are both float32
        raise TypeError(f"{name}: expected dtype {DTYPES[dtype]}, got {DTYPES[tensor.dtype]}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, and autograd would not see what is written: use torch.no_grad()")
    if tensor.is_neg() or is_dual(tensor):
        raise ValueError(f"{name}: expected a plain tensor, got a negated view or a dual one")
    tensor = tensor.detach()
    if is_copied(tensor):
        tensor = torch.empty_strided(tensor.shape, tensor.stride())
    return memory(name, tensor, place)


def read_index(name: str, t: Any, place: torch.device) -> Any:
    """Returns row numbers or times. Tensors on a device may have theirs in host memory, too."""
    if not isinstance(t, Tensor):
        return t
    check_plain(name, t)
    own = place_of(name, t)
    return memory(name, (t.float() if t.dtype == torch.bfloat16 else t).detach(), own if own.type == "cpu" else place)


def read_numbers(name: str, x: Any, place: torch.device) -> Any:
    """Returns weights or upstream gradients, as float or float64. They stay on their device, so nothing waits for
    them."""
    if not isinstance(x, Tensor):
        return x
    check_plain(name, x)
    if place_of(name, x).type == "cuda":
        return memory(name, _double(x.detach()), place)
    numbers = to_numpy(_double(x))
    return numbers.item() if x.ndim == 0 else numbers


def _double(x: Tensor) -> Tensor:
    """Complex numbers stay, to be refused."""
    return x if x.is_complex() else x.double()


def read_noise(noise: Any, beside: str) -> Any:
    """Returns a Noise or a list of them. Noise given as values has to be a tensor if `beside` is one."""
    if isinstance(noise, np.ndarray):
        raise TypeError(
            f"noise: expected a Noise, a list of them or a torch.Tensor, as {beside} is one, got a NumPy array"
        )
    return noise


def checked(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, as the other arguments are, got {type(x).__name__}")
    check_plain(name, x)
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got {'a quantised' if x.is_quantized else x.layout} one")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {x.dtype} is not supported, expected one of {', '.join(DTYPES.values())}")
    return x


def check_plain(name: str, x: Any) -> None:
    """Raises TypeError for tensors that stand for several, or for parts of one. The message says what to pass in their
    place. ValueError: its memory was freed. Whatever else torch has, a dtype or a generator, passes."""
    if not isinstance(x, Tensor):
        return
    expected = f"{name}: expected a plain tensor"
    if x.is_nested:
        raise TypeError(f"{expected}, got a nested one: pass its parts one by one, {name}.unbind()")
    if type(x) is not Tensor:
        if hasattr(x, "placements"):
            part = f"the part of this rank, {name}.to_local(), with noise.local(dtensor), the noise of that part"
            raise TypeError(f"{expected}, got a DTensor: pass {part}")
        if torch.masked.is_masked_tensor(x):
            raise TypeError(f"{expected}, got a masked one: pass {name}.get_data() or {name}.to_tensor(value)")
    _check_storage(name, x)


def _check_storage(name: str, x: Tensor) -> None:
    """Raises ValueError if elements lie beyond the tensor's storage: NumPy would read, and write, other memory."""
    if x.layout != torch.strided or is_compiling():
        return
    last = x.storage_offset() + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    try:
        held = x.untyped_storage().nbytes()
    except RuntimeError:  # a tensor of torch.func
        return
    if x.numel() and held < (last + 1) * x.itemsize:
        raise ValueError(
            f"{name}: expected a tensor with its memory, got one whose storage was resized to {held} bytes, as FSDP "
            "does with parameters that are not in use: gather it first, by FSDP's summon_full_params or unshard"
        )


def place_of(name: str, x: Tensor) -> torch.device:
    """Returns x's device. NotImplementedError: no kernel reaches it."""
    if not (x.is_cpu or x.is_cuda):
        raise NotImplementedError(f"{name}: expected a tensor on the CPU or a CUDA device, got one on {x.device}")
    return x.device


def memory(name: str, tensor: Tensor, place: torch.device) -> Any:
    """Returns the memory of a tensor, without a copy: NumPy's view of a CPU tensor, CuPy's of a CUDA tensor."""
    if (own := place_of(name, tensor)) != place:
        raise ValueError(f"{name} lies on {own}, the other tensors on {place}: expected all on one device")
    try:
        if own.type == "cuda":
            return _array(tensor, own.index)
        if tensor.dtype != torch.bfloat16:
            return _view(tensor)
        return _view(tensor.view(torch.int16)).view(_numpy_dtype(tensor))
    except RuntimeError as error:  # for instance in vmap, or a FakeTensor
        raise _no_memory(name) from error


def _view(tensor: Tensor) -> Any:
    """Returns NumPy's view. Of a tensor of `torch.func.functionalize` torch would make one of no memory."""
    if tensor.numel() and not tensor.untyped_storage().data_ptr():
        raise RuntimeError("no memory")
    return tensor.numpy()


def to_numpy(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return np.asarray(x)
    _check_storage("tensor", x)
    x = x.detach().cpu()
    try:
        return _view(x.float() if x.dtype == torch.bfloat16 else x)
    except RuntimeError as error:
        raise _no_memory("a number, such as a time, level or weight") from error


def check_memory(name: str, x: object) -> None:
    """Raises an error for tensors of torch.func. torch unwraps them in the forward pass, but not in the backward
    pass."""
    try:
        x.data_ptr()  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError) as error:
        checked(name, x)
        raise _no_memory(name) from error


def _no_memory(name: str) -> TypeError:
    said = "expected a tensor with memory of its own, not one of torch.func or a fake one"
    return TypeError(f"{name}: {said}; for gradients use torch.autograd")


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    if tensor.dtype != torch.bfloat16:
        return np.dtype(str(tensor.dtype).removeprefix("torch."))
    if HALF is None:
        raise ImportError(f"bfloat16 on {tensor.device} needs ml_dtypes, as CuPy does: pip install 'noisefuse[torch]'")
    return HALF


def is_copied(x: Any) -> bool:
    """Tells whether no array can have this tensor's memory. Then it is read from a copy, and torch writes it."""
    return HALF is None and isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.is_cpu


def array_dtype(name: Any) -> Any:
    """Returns the dtype of a result, by its name for arrays."""
    return "float32" if name == "bfloat16" and HALF is None else name


def like_x(tensors: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs of a step, by slot. Beside an x that is copied they have its dtype, as arrays would: model
    outputs are rounded to it, and remembered tensors have it."""
    if not is_copied(tensors["x"]):
        return tensors
    for slot, tensor in tensors.items():
        name = nf.tableau.ARGUMENTS[slot]
        if slot.startswith("past") and checked(name, tensor).dtype != torch.bfloat16:
            raise TypeError(f"{name}: dtype {DTYPES[tensor.dtype]} is not supported, expected one of bfloat16")
    models = ("m1", "m2")
    return {s: x.bfloat16() if s in models and isinstance(x, Tensor) else x for s, x in tensors.items()}


# ---- out ---------------------------------------------------------------------------------------------------


def as_tensor(result: Any, out: Any, dtype: torch.dtype) -> Any:
    """Returns the result as a tensor of this dtype. It is the caller's `out`, of which autograd is told, or a new one
    of the result's memory."""
    if out is not None:
        if is_copied(out):
            with torch.no_grad():
                out.copy_(torch.from_numpy(result))
        else:
            written(out)
        return out
    if not isinstance(result, np.ndarray):
        return result.tensor
    if result.dtype.name == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(result)
    return tensor.bfloat16() if dtype == torch.bfloat16 else tensor


def of_numbers(numbers: Any, x: Tensor) -> Tensor:
    """Returns float64 numbers that lie beside x as a tensor of torch's own memory."""
    if isinstance(numbers, np.ndarray):
        return torch.from_numpy(numbers)
    if (own := getattr(numbers, "tensor", None)) is not None:  # Triton's
        return own
    tensor = torch.empty(numbers.shape, dtype=torch.float64, device=x.device)
    memory("numbers", tensor, place_of("numbers", tensor))[...] = numbers
    return tensor


def empty_like(x: Tensor) -> Tensor:
    """Returns an empty tensor in C order."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def in_format(result: Tensor, x: Tensor) -> Tensor:
    """Returns the result in x's memory format, like torch's pointwise operations: kernels write in C order."""
    form = FORMATS.get(x.ndim)
    if form is None or result.ndim != x.ndim or x.is_contiguous() or not x.is_contiguous(memory_format=form):
        return result
    if is_compiling() or type(result) is not Tensor or not result.is_cpu or is_copied(result):
        return result.contiguous(memory_format=form)
    array = memory("result", result, CPU)
    turned: Tensor = as_tensor(layouts.copy(array, array.dtype, (0, *range(2, x.ndim), 1)), None, result.dtype)
    return turned


def dtype_name(dtype: Any, or_levels: bool = False) -> Any:
    if not isinstance(dtype, torch.dtype):
        return np.dtype(dtype).name if isinstance(dtype, NUMPYS) else dtype
    if dtype not in DTYPES or not (dtype.is_floating_point or or_levels):
        raise TypeError(f"dtype {dtype}: expected one of {EXPECTED}")
    return DTYPES[dtype]


# ---- CUDA --------------------------------------------------------------------------------------------------


class _Stream(NamedTuple):
    """A stream of torch, as CuPy takes it. (Streams of older torch do not give their handles by themselves.)"""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _cupy() -> Any:
    """Returns CuPy, or None: then Triton serves."""
    if sys.modules.get("cupy") or _HAS_CUPY:
        return importlib.import_module("cupy")
    if not _HAS_TRITON:
        raise ImportError(
            "tensors on a CUDA device need Triton or CuPy: pip install 'noisefuse[triton]', 'noisefuse[cuda13]' or "
            "'noisefuse[cuda12]'"
        )
    return None


_HAS_CUPY, _HAS_TRITON = (find_spec(name) is not None for name in ("cupy", "triton"))


def on(place: torch.device) -> AbstractContextManager[None]:
    """Runs kernels on this device, in the order of torch's own."""
    cupy = None if place.type == "cpu" else _cupy()  # Triton's launches see to it themselves
    return _HERE if cupy is None else _on_stream(cupy, place)


@contextmanager
def _on_stream(cupy: Any, device: torch.device) -> Iterator[None]:
    stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(stream):
        yield


def _array(tensor: Tensor, device: int) -> Any:
    if _cupy() is not None:
        return _cupy_array(tensor, device)
    return of_triton(tensor, device)


def check_triton(*least: tuple[int, int]) -> None:
    """Raises ImportError for a Triton that does not compile the kernels, or those that need at least this version."""
    from ...backends.triton.arrays import too_old

    if said := too_old(*least):
        raise ImportError(f"a tensor on a CUDA device {said}")


def of_triton(tensor: Tensor, device: int) -> Any:
    """Returns the memory of a tensor on a device for Triton's kernels, also where CuPy is installed."""
    if not _HAS_TRITON:
        raise ImportError("tokens on a CUDA device need Triton: pip install 'noisefuse[triton]'")
    check_triton()
    if tensor.numel() and not tensor.untyped_storage().data_ptr():
        raise RuntimeError("no memory")
    from ...backends.triton.arrays import Array

    return Array(tensor, device, _numpy_dtype(tensor))


def _cupy_array(tensor: Tensor, device: int) -> Any:
    """Returns CuPy's array of this memory, which it keeps alive. (Through DLPack, streams wait for each other even if
    there is only one; the CUDA array interface has no bfloat16.)"""
    cupy, storage, size = _cupy(), tensor.untyped_storage(), tensor.itemsize
    if tensor.numel() and not storage.data_ptr():
        raise RuntimeError("no memory")
    memory = cupy.cuda.UnownedMemory(storage.data_ptr(), storage.nbytes(), tensor, device)
    start = cupy.cuda.MemoryPointer(memory, tensor.storage_offset() * size)
    strides = tuple(size * stride for stride in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), _numpy_dtype(tensor), start, strides)
