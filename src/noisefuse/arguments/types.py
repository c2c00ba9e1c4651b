# SPDX-License-Identifier: Apache-2.0
"""The types of arguments, for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from ..language.noise import Increment, Noises

if TYPE_CHECKING:
    import torch


Array: TypeAlias = Any  # of NumPy, CuPy, torch, JAX or dask: results have x's kind
ArrayT = TypeVar("ArrayT")  # NDArray[Any], whatever the dtype, torch.Tensor, jax.Array ..
_Of = TypeVar("_Of", covariant=True)


class Like(Protocol[_Of]):
    """An array of any library. `Like[T]` gives a result the type T of new arrays of the same library, which is that of
    its cumulated sums: a NumPy array's own type has a dtype, and results may have another."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def cumsum(self, axis: int, /) -> _Of: ...


class ListLike(Protocol[_Of]):
    """A list of arrays, whose results are a list of its own type, that of a copy. (Its arrays' dtypes belong to that
    type: a list[NDArray[Any]] has results of any dtype.)"""

    def append(self, x: Any, /) -> None: ...
    def copy(self) -> _Of: ...


Images: TypeAlias = Like[ArrayT] | ListLike[ArrayT]


DType: TypeAlias = "DTypeLike | torch.dtype"
NumPyDType: TypeAlias = "str | np.dtype[Any] | type[np.generic] | type[float] | None"
Device: TypeAlias = "torch.device | str"
Shape: TypeAlias = int | Sequence[int]
Drawn: TypeAlias = Noises | Increment | Sequence[Increment]
NoiseLike: TypeAlias = Noises | Array
Reduction: TypeAlias = Literal["mean", "none"]  # of losses: over all samples
Inputs: TypeAlias = dict[int, Array | None]  # arrays by slot


class LevelOptions(TypedDict, total=False):
    """Options for a result in integer levels: dtype="uint8" or "uint16", and its range, as in `q_sample`."""

    dtype: DType | None
    out_scale: float | None
    out_offset: float | None


class SampleOptions(LevelOptions, total=False):
    """The options of `q_sample` that its results' type does not depend on."""

    scale: float | None
    offset: float | None
    batched: bool | None
