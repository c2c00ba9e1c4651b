# SPDX-License-Identifier: Apache-2.0
"""The words of a field: one for each element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments.types import Array
from ..call.description import FLOAT32, Step
from ..language.noise import Noise
from .draw import UNIT


def words(shape: tuple[int, ...], names: Sequence[Noise]) -> NDArray[np.uint32]:
    """Returns the words w of checked keys, for each place of each sample."""
    drawn = backends.empty(shape, FLOAT32)
    if drawn.size:
        backends.current().run(drawing(shape, names, drawn))
    bits: NDArray[np.uint32] = drawn.view(np.uint32)
    return bits


def drawing(shape: tuple[int, ...], names: Sequence[Noise], out: Array) -> Step:
    """Returns the call that draws the words of checked keys to the first output."""
    return Step.of_one_row(shape[0], shape[1:], UNIT, None, out, "words", names)
