# SPDX-License-Identifier: Apache-2.0
"""Images times uniform numbers, as albumentations' MultiplicativeNoise has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends
from ..arguments.types import Array
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..operations.draw import uniform


def product(
    x: Array, low: float, high: float, noise: Noise, *, elementwise: bool, per_channel: bool, has_channels: bool
) -> Array:
    """Returns x times uniform numbers: of each place, or one for all, of each channel, in the last axis, or for all.

    Levels are rounded to nearest even and clipped, float32 is clipped to [0, 1]. The numbers are `uniform`'s of the
    places' shape, which are (high - low) u + low in float32.
    """
    shares = has_channels and elementwise != per_channel  # whether the noise counts no channels, or nothing else
    done: Array = backends.fast_product(x, float(low), float(high - low), noise, elementwise, shares)
    if done is not NotImplemented:
        return done
    places = x.shape[:-1] if shares else x.shape
    factors: Any = uniform(places if elementwise else x.shape[-1:] if shares else (1,), noise, batched=False)
    factors *= high - low
    factors += low
    result: Array = x * (factors[..., None] if elementwise and shares else factors)
    if (levels := levels_of(x.dtype)) is None:
        return np.clip(result, 0.0, 1.0, out=result)
    return np.rint(result).clip(0, LEVELS[levels]).astype(x.dtype)
