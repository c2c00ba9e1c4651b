# SPDX-License-Identifier: Apache-2.0
"""Transitions of tokens that a few numbers say, in place of a matrix of the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..ground import stored
from ..ground.checks import check_choice, check_integer, check_number


@dataclass(frozen=True, slots=True)
class Transition:
    """A token stays with probability 1 - p. Otherwise it becomes the mask, or a token of the whole vocabulary.

    `discrete.absorbing` and `discrete.uniform` make one, and ``a @ b``, both of one kind, is a followed by b.

    Attributes:
        kind: "absorbing" or "uniform".
        p: the probability that the token does not stay.
        token: the mask's id, or the number of tokens in the vocabulary.

    Raises:
        ValueError: the message says what was given and what was expected.
    """

    kind: Literal["absorbing", "uniform"]
    p: float
    token: int

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("absorbing", "uniform"))
        check_number("p", self.p, 0, 1)
        check_integer("token", self.token, int(self.kind == "uniform"))

    __setstate__: ClassVar[stored.SetState] = stored.make_again

    def matrix(self, vocabulary: int) -> NDArray[np.float64]:
        """Returns the probabilities Q (V, V): token i becomes j with probability Q[i, j]."""
        if vocabulary != self.token if self.kind == "uniform" else vocabulary <= self.token:
            expected = f"{self.token}" if self.kind == "uniform" else f"more than {self.token}, the mask among them"
            raise ValueError(f"vocabulary = {vocabulary}: expected {expected}")
        q = (1 - self.p) * np.eye(vocabulary)
        if self.kind == "absorbing":
            q[:, self.token] += self.p
        else:
            q += self.p / vocabulary
        return q

    def __matmul__(self, other: object) -> Transition:
        if not isinstance(other, Transition):
            return NotImplemented
        if (self.kind, self.token) != (other.kind, other.token):
            raise ValueError(f"{self} @ {other}: expected two of one kind; else multiply their matrices")
        p = min(1.0, self.p + other.p - self.p * other.p)  # which is rounded
        return Transition(self.kind, p, self.token)
