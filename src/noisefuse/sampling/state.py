# SPDX-License-Identifier: Apache-2.0
"""The history of a run."""

from __future__ import annotations

from ..arguments.types import Array

NEW = -1  # the place of a state before the first step


class State:
    """The history of one run: the arrays that earlier rows kept. ``Sampler.state`` makes it.

    It is a ring: ``slots`` arrays in a row, the newest first, and before them the free arrays. A new state holds zeros.
    Rows may multiply them by 0, and no row may read more of them.
    """

    __slots__ = ("at", "moves", "size")

    at: int
    moves: list[dict[int, tuple[list[Array], list[Array], int]]]
    size: tuple[int, int]

    def __init__(self, slots: int, arrays: list[Array], is_new: bool = True) -> None:
        n, free = len(arrays), len(arrays) - slots
        self.size = slots, free
        ring = 2 * arrays  # no slice wraps around then
        self.at = NEW if is_new else free
        # moves[count][at]: the kept arrays, the `count` arrays that a row writes, and the place after it. All are made
        # here, because a step of a small array has no time for slices. Then the same for rows that read what earlier
        # ones kept, and find nothing in a new state.
        moves = [
            {
                at: (ring[at : at + slots], ring[at - count : at], at - count + n * (at - count < free))
                for at in range(free, free + max(1, n))  # one place if nothing is kept
            }
            for count in range(free + 1)
        ]
        self.moves = [{**places, NEW: places[free]} for places in moves] + [
            {**places, NEW: _NOTHING} for places in moves
        ]

    @property
    def past(self) -> list[Array]:
        return self.moves[0][self.at][0]

    def __repr__(self) -> str:
        kept = [f"{getattr(a, 'dtype', type(a).__name__)} {tuple(getattr(a, 'shape', ()))}" for a in self.past]
        return f"State({', '.join(kept) or 'nothing is remembered'})"

    def keep(self, made: list[Array]) -> None:
        """Puts new arrays in, the newest first, if the present ones cannot be written to."""
        slots, free = self.size
        past = [*made, *self.past][:slots]
        self.__init__(slots, past[:1] * free + past, is_new=False)  # type: ignore[misc]


_NOTHING: tuple[list[Array], list[Array], int] = [], [], NEW
