# SPDX-License-Identifier: Apache-2.0
"""Steps of samplers of tokens in a part of each sample's positions, and what makes a whole step of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..arguments.types import Array
from ..ground.stored import SetState, make_again
from ..language.noise import PROVISIONAL_VERSION, Noise, names_of, refuse_version, whole
from .steps import Drawn, first_ones, next_tokens, ranked
from .table import TokenRow, TokenTable


@dataclass(frozen=True, slots=True, eq=False)
class PartialStep:
    """The result of ``DiscreteSampler.step(.., partial=True)`` in a part of each sample's positions, for
    `discrete.combine_steps`. It can be pickled, and has four numbers for each position.

    Attributes:
        row: the row of the step.
        noise: the keys that it drew with.
        first: the part's first position in its sample.
        length: how many positions a sample has.
        token: int64 (B, L), the drawn tokens.
        other: (B, L) of x's dtype, what becomes of the positions that do not take their drawn token.
        may: bool (B, L), the positions that may take it.
        key: float64 (B, L); the least take it first.
        version: the `PROVISIONAL_VERSION` of the draws.

    Raises:
        ValueError: the arrays differ in their shapes, or the draws are of another version.
    """

    row: TokenRow
    noise: tuple[Noise, ...]
    first: int
    length: int
    token: NDArray[np.int64]
    other: Array
    may: NDArray[np.bool_]
    key: NDArray[np.float64]
    version: int = PROVISIONAL_VERSION

    __setstate__: ClassVar[SetState] = make_again

    def __post_init__(self) -> None:
        if self.version != PROVISIONAL_VERSION:
            refuse_version(self.version, "PROVISIONAL_VERSION")
        shapes = {name: getattr(self, name).shape for name in ("token", "other", "may", "key")}
        if len({*shapes.values()}) != 1 or len(self.other.shape) != 2:
            raise ValueError(f"token, other, may, key: expected arrays of one shape (B, L), got {shapes}")

    @classmethod
    def of(
        cls, table: TokenTable, row: TokenRow, x: Array, drawn: Drawn, noise: Any, may: NDArray[np.bool_]
    ) -> PartialStep:
        """Returns what a part of the positions has to say. Rows by chance have the next tokens already."""
        names = names_of(noise)
        windows = {(name.window_shape or x.shape[1:], name.window_start or (0,)) for name in names}
        if len(windows) != 1:
            raise ValueError("noise: expected windows of the same part of each sample with partial=True, got several")
        (((length,), (first,)),) = windows
        if row.by_rank:
            key, other = ranked(table, row, x, drawn, noise, may)
        else:
            other, _ = next_tokens(table, row, x, drawn, noise, may)
            key, may = np.full(x.shape, np.inf), np.zeros(x.shape, np.bool_)
        names = tuple(whole(name, 0) for name in names)
        return cls(row, names, first, length, drawn.token, other.astype(x.dtype), may, key)


def combine_steps(partials: Sequence[PartialStep]) -> Any:
    """Returns the next tokens of whole samples, from ``sampler.step(.., partial=True)`` of their parts, to the bit.

    Args:
        partials: the parts of one step, in any order, which together have each position once.

    Returns:
        What `DiscreteSampler.step` returns for the whole x, as a NumPy array (B, L).

    Raises:
        TypeError: an entry is no part.
        ValueError: parts do not fit together.

    >>> sampler, noise, each = nf.samplers.llada(2, mask_id=9), nf.Noise(7), []
    >>> x, logits = sampler.start((1, 8)), nf.randn((1, 8, 9), nf.Noise(1))
    >>> for first in (0, 4):
    ...     part, at = noise.window((8,), start=(first,)), slice(first, first + 4)
    ...     each.append(sampler.step(0, x[:, at], logits[:, at], part, partial=True))
    >>> np.array_equal(nf.discrete.combine_steps(each), sampler.step(0, x, logits, noise))
    True
    """
    partials = tuple(partials) if isinstance(partials, Iterable) else (partials,)
    for part in partials:
        if not isinstance(part, PartialStep):
            raise TypeError(f"partials: expected results of step(.., partial=True), got {type(part).__name__}")
    if not partials:
        raise ValueError("partials: expected at least one part, got none")
    group = sorted(partials, key=lambda part: part.first)
    head, next_ = group[0], 0
    for part in group:
        if part.first != next_ or part.length != head.length:
            raise ValueError(
                f"partials: expected positions from {next_} on of {head.length}, got those from {part.first} on of "
                f"{part.length}; noise.window((L,), (first,)) says where a part stands"
            )
        if _shared(part) != _shared(head):
            raise ValueError("partials: the parts differ in their row, their noise, their batch or their dtype")
        next_ += part.other.shape[1]
    if next_ != head.length:
        raise ValueError(f"partials: expected {head.length} positions, got those before {next_}")
    token, other, may, key = (
        np.concatenate([getattr(part, name) for part in group], axis=1) for name in ("token", "other", "may", "key")
    )
    made = np.where(first_ones(head.row, key, may), token, other) if head.row.by_rank else other
    return made.astype(other.dtype, copy=False)


def _shared(part: PartialStep) -> tuple[Any, ...]:
    """Returns what the parts of a step have in common."""
    return part.row, part.noise, len(part.other), part.other.dtype
