# SPDX-License-Identifier: Apache-2.0
"""The words of a field: one for each element."""

from __future__ import annotations

import math
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
    made = backends.empty(shape, FLOAT32)
    if made.size:
        backends.current().run(drawing(shape, names, made))
    found: NDArray[np.uint32] = made.view(np.uint32)
    return found


def drawing(shape: tuple[int, ...], names: Sequence[Noise], out: Array) -> Step:
    """Returns the call that draws the words of checked keys to the first output."""
    batch, sample = shape[0], shape[1:]
    return Step(
        batch=batch,
        size=math.prod(sample),
        sample_shape=sample,
        rows=UNIT,
        index=_FIRST_ROW,
        segment=max(1, math.prod(shape)),
        inputs=(None,) * 9,
        outputs=(out, None, None),
        draw="words",
        step_by_index=False,
        noise=tuple(names),
    )


_FIRST_ROW = np.zeros(1, np.int64)
