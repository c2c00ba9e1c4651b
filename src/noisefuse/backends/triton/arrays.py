# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch on a device as arrays: what checked calls ask of an array, as CuPy's are asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import NEEDS_CUPY


@cache
def too_old(least: tuple[int, int] = (3, 3)) -> str:
    """Returns "" if kernels compile with the Triton that is installed, else what they need. 3.3 lacks that of
    masked_cross_entropy."""
    has = import_module("triton").__version__
    if tuple(map(int, re.findall(r"\d+", has)[:2])) >= least:
        return ""
    return f"needs Triton from 3.4 on, as torch has from 2.8 on, or CuPy, which has no tokens; got Triton {has}"


class Array:
    """The memory of a tensor on a device. `device`: its number, which is not looked up in the tensor."""

    tensor: Tensor
    device: SimpleNamespace
    data: SimpleNamespace
    flags: SimpleNamespace
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    ndim: int
    size: int
    itemsize: int
    nbytes: int

    def __init__(self, tensor: Tensor, device: int, dtype: np.dtype[Any]) -> None:
        self.tensor, self.dtype, self.shape = tensor, dtype, tuple(tensor.shape)
        self.device, self.data = SimpleNamespace(id=device), SimpleNamespace(ptr=tensor.data_ptr(), device_id=device)
        self.flags = SimpleNamespace(c_contiguous=tensor.is_contiguous())
        self.ndim, self.size, self.itemsize = tensor.ndim, tensor.numel(), dtype.itemsize
        self.nbytes, self.strides = self.size * dtype.itemsize, tuple(dtype.itemsize * n for n in tensor.stride())

    def _of(self, tensor: Tensor) -> Array:
        return Array(tensor, self.device.id, self.dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Returns new memory on the device."""
        return empty(self.device.id, shape, dtype)

    def fill(self, value: Any) -> None:
        self.tensor.fill_(value)

    def __len__(self) -> int:
        return len(self.tensor)

    def reshape(self, *shape: Any) -> Array:
        return self._of(self.tensor.reshape(*shape))

    def copy(self, order: str = "C") -> Array:
        return self._of(self.tensor.clone(memory_format=torch.contiguous_format))

    def astype(self, dtype: Any, copy: bool = True, order: str = "C") -> Array:
        kind = np.dtype(dtype)
        made = self.tensor.to(getattr(torch, kind.name), copy=copy, memory_format=torch.contiguous_format)
        return Array(made, self.device.id, kind)

    def __getitem__(self, place: Any) -> Array:
        return self._of(self.tensor[place])

    def __setitem__(self, place: Any, value: Any) -> None:
        self.tensor[place] = value.tensor if isinstance(value, Array) else value

    def __add__(self, other: Any) -> Array:
        return self._combined(torch.add, other)

    def __mul__(self, other: Any) -> Array:
        return self._combined(torch.mul, other)

    def _combined(self, function: Any, other: Any) -> Array:
        """Combines float64 numbers, such as sums."""
        with_array = uploaded(other, self.device.id)
        if self.tensor.dtype != torch.float64 or with_array.dtype != torch.float64:
            raise NotImplementedError(NEEDS_CUPY)
        return self._of(function(self.tensor, with_array))

    def get(self) -> np.ndarray[Any, Any]:
        """Returns a copy in host memory."""
        return self.tensor.cpu().numpy()

    def __and__(self, other: Any) -> Array:
        return self._of(self.tensor & uploaded(other, self.device.id))

    __rand__ = __and__

    def set(self, a: np.ndarray[Any, Any]) -> None:
        """Copies an array in host memory here."""
        bits = torch.from_numpy(np.ascontiguousarray(a).view(np.uint8))
        self.tensor.copy_(bits.view(self.tensor.dtype).reshape(self.shape))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Stands for the functions of NumPy that checks call."""
        if function is np.broadcast_to:
            try:
                return self._of(self.tensor.expand(arguments[1]))
            except RuntimeError as error:
                raise ValueError(error) from None
        if function is np.shape:
            return self.shape
        raise NotImplementedError(NEEDS_CUPY)

    def _refuse(self, *given: Any, **options: Any) -> Any:
        raise NotImplementedError(NEEDS_CUPY)

    swapaxes: Callable[..., Any] = _refuse
    __array__: Callable[..., Any] = _refuse
    __iadd__: Callable[..., Any] = _refuse
    __imul__: Callable[..., Any] = _refuse
    __sub__: Callable[..., Any] = _refuse
    __truediv__: Callable[..., Any] = _refuse


def place(device: int) -> torch.device:
    return torch.device("cuda", device)


def empty(device: int, shape: Any, dtype: Any) -> Array:
    """Returns memory there for NumPy's dtype."""
    kind = np.dtype(dtype)
    return Array(torch.empty(shape, dtype=getattr(torch, kind.name), device=place(device)), device, kind)


def uploaded(a: Any, device: int) -> Any:
    """Returns the tensor of an array on this device, where NumPy's is copied; None stays None."""
    return a.tensor if isinstance(a, Array) else None if a is None else torch.tensor(a, device=place(device))
