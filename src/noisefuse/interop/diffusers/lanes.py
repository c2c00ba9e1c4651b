# SPDX-License-Identifier: Apache-2.0
"""This runs several rows of a scheduler in one call of diffusers' step. Each number in the step stands for one number
per row.

It computes only operations that give several rows exactly the same numbers as single ones. If rows part at an `if`,
they are separated and run again (`Parted`). Operations that cannot take several rows raise `Alone`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

# IEEE operations have the same bits in vectors as alone; some operations compute nothing. Vectors are only scaled and
# added.
_LINEAR = {"add", "sub", "mul", "div", "neg", "__rsub__", "__rdiv__", "to", "float", "double"}
_COMPARED = {"__eq__", "eq", "ne", "lt", "le", "gt", "ge"}
_EXACT = _LINEAR | _COMPARED | {"sqrt", "abs", "where", "clamp", "maximum", "minimum", "long"}
_POWERS = (0.5, 2)  # a root and a product
_COUNTS = _COMPARED | {"add", "sub", "__rsub__"}  # operations that Python's whole numbers do alike
CLAMP: ContextVar[Callable[..., Any]] = ContextVar("CLAMP")  # the handler of a clamp of vectors


class Parted(Exception):
    """This is raised where rows take different ways. `flags` says which way each takes."""

    def __init__(self, flags: list[Any]) -> None:
        super().__init__()
        self.flags = flags


class Alone(Exception):
    """This is raised by operations that only one row at a time can do."""


class Lanes(Tensor):
    """A number for each of n rows, (n, 1); a vector for each (n, c), or for all (1, c); or a table in which rows look
    up their numbers (k,).

    plain: the same memory as a tensor. numbers: whether it is the first. counts: they stand for Python's whole numbers.
    """

    plain: Tensor
    numbers: bool
    counts: bool
    _entries: list[Any]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.__name__
        if name in _EXACT or (name == "pow" and type(args[1]) in (int, float) and args[1] in _POWERS):
            return _at_once(function, name, args, kwargs)
        if name == "__get__":
            return _attribute(function, args[0])
        if name == "__getitem__":
            return _looked_up(*args)
        if name == "__len__" and args[0].plain.dim() == 1:
            return len(args[0].plain)
        if name == "is_floating_point":
            return args[0].plain.is_floating_point()
        if name == "size" and len(args) == 1:
            return _shape(args[0])
        if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
            raise Alone  # it is written in place, which others may see
        return each(function, args, kwargs)

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            raise Alone

        def through_numpy(*row: Any, **kwargs: Any) -> Tensor:
            """NumPy's own way back to a tensor, by `__array_wrap__`, is deprecated."""
            return torch.as_tensor(function(*(a.numpy() if isinstance(a, Tensor) else a for a in row), **kwargs))

        return each(through_numpy, args, kwargs)

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        if not self.counts:
            raise Alone
        return self + other

    def __bool__(self) -> bool:
        return bool(self._only())

    def __int__(self) -> int:
        return int(self._only())

    def __index__(self) -> int:
        return int(self._only())

    def __float__(self) -> float:
        return float(self._only())

    def item(self) -> Any:
        return self._only()

    def _only(self) -> Any:
        """Returns the number, if all rows have the same one."""
        if not self.numbers:
            raise Alone
        values = self.plain.reshape(-1).tolist()
        if any(value != values[0] for value in values[1:]):
            if self.plain.dtype is torch.bool:
                raise Parted(values)
            raise Alone
        return values[0]

    @property
    def entries(self) -> list[Any]:
        """Each row's own number. These are the same objects whenever they are asked for."""
        if "_entries" not in self.__dict__:
            numbers = self.plain.reshape(-1)
            self._entries = numbers.tolist() if self.counts else [*numbers.unbind()]
        return self._entries


def lanes(plain: Tensor, counts: bool = False) -> Lanes:
    tensor = plain.as_subclass(Lanes)
    tensor.plain, tensor.numbers, tensor.counts = plain, plain.dim() == 2 and plain.shape[1] == 1, counts
    return tensor


class Choices(list[Any]):
    """A list in which rows look up their options."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Lanes):
            return super().__getitem__(index)
        options = [super(Choices, self).__getitem__(i) for i in index.entries]
        if any(choice != options[0] for choice in options):
            raise Parted([choice == options[0] for choice in options])
        return options[0]


def counted(numbers: Sequence[int]) -> Lanes:
    return lanes(torch.from_numpy(np.array(numbers, np.int64)).reshape(-1, 1), counts=True)


def each(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Lanes:
    """Calls the function row after row, on numbers alone. The answers are joined to numbers per row."""
    rows = [a for a in args if isinstance(a, Lanes) and a.plain.dim() > 1]
    if not rows or any(a.counts or not a.numbers for a in rows) or any(isinstance(a, Tensor) for a in kwargs.values()):
        raise Alone
    n = max(len(a.plain) for a in rows)
    answers = [function(*row, **kwargs) for row in zip(*(entries(a, n) for a in args), strict=True)]
    if all(type(one) is int for one in answers):
        return counted(answers)
    if not all(isinstance(one, Tensor) and one.dim() == 0 and one.dtype == answers[0].dtype for one in answers):
        raise Alone
    return lanes(torch.stack(answers).reshape(-1, 1))


def _at_once(function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes all rows at once. Numbers beside numbers are of one kind to torch's promotion of dtypes."""
    plain, numbers, counts = [], True, False
    for a in args:
        if isinstance(a, Lanes):
            numbers, counts = numbers and a.numbers, counts or a.counts
            if a.plain.dim() == 1:
                raise Alone
            plain.append(a.plain)
        elif isinstance(a, Tensor):
            if a.dim():
                raise Alone
            plain.append(a.reshape(1, 1))
        else:
            plain.append(a)
    if any(isinstance(a, Tensor) for a in kwargs.values()):
        raise Alone
    if counts:
        if name not in _COUNTS or not all(isinstance(a, int | np.integer) or getattr(a, "counts", False) for a in args):
            raise Alone
        return lanes(function(*plain), counts=name not in _COMPARED)
    if not numbers and name == "clamp":
        return CLAMP.get()(*args, **kwargs)
    if not numbers and name not in _LINEAR:
        raise Alone
    result = function(*plain, **kwargs)
    return args[0] if result is plain[0] else lanes(result)  # .to of the dtype that it has


def row_of(value: Any, row: int) -> Any:
    """Returns one row's part of a value of several rows."""
    return entries(value, row + 1)[row] if isinstance(value, Lanes) else value


def entries(a: Any, n: int) -> list[Any]:
    """Returns the argument of each of n rows."""
    if not isinstance(a, Lanes) or a.plain.dim() == 1:
        return [getattr(a, "plain", a)] * n
    if not a.numbers:
        raise Alone
    return a.entries if len(a.entries) > 1 else a.entries * n


def _shape(a: Lanes) -> torch.Size:
    """Returns the shape that the value has for one row."""
    if a.plain.dim() == 1:
        return a.plain.shape
    return torch.Size([]) if a.numbers else torch.Size([1, a.plain.shape[1]])


def _attribute(function: Any, a: Lanes) -> Any:
    if function == Tensor.shape.__get__:  # type: ignore[attr-defined]
        return _shape(a)
    if function in (Tensor.dtype.__get__, Tensor.device.__get__):  # type: ignore[attr-defined]
        return function(a.plain)
    raise Alone


def _looked_up(table: Any, index: Any) -> Any:
    if not isinstance(table, Lanes) or table.plain.dim() != 1:
        raise Alone
    if isinstance(index, Lanes):
        if not index.numbers or index.plain.is_floating_point() or index.plain.dtype is torch.bool:
            raise Alone
        return lanes(table.plain[index.plain])
    if isinstance(index, int | np.integer) or (isinstance(index, Tensor) and not index.dim()):
        return table.plain[index]
    raise Alone
