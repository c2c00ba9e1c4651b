# SPDX-License-Identifier: Apache-2.0
"""Images times random factors, uniform in a range, as Albumentations' MultiplicativeNoise makes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends
from ..arguments.types import Array
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..operations.draw import uniform


def times(x: Array, low: float, high: float, noise: Noise, each: bool, last: bool) -> Array:
    """Returns an image, one sample of the noise, times factors from `low` to `high`. Floats are clipped to [0, 1].

    each: whether each element has a factor of its own. last: the elements of the last axis share it or, without `each`,
    have one each, the same everywhere.
    """
    done: Array = backends.fast_factors(x, low, high, noise, each, last)
    if done is not NotImplemented:
        return done
    shape = x.shape[: x.ndim - last] if each else x.shape[x.ndim - last :]
    factors = uniform(shape or (1,), noise, dtype="float32", batched=False)
    factors *= high - low
    factors += low
    result: Any = x * (factors[..., None] if each and last else factors)
    levels = levels_of(x.dtype)
    clipped = np.rint(result).clip(0, LEVELS[levels]) if levels else result.clip(0.0, 1.0)
    return clipped.astype(x.dtype, order="C")
