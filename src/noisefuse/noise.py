# SPDX-License-Identifier: Apache-2.0
"""Keys of noise. The code is in language/noise.py."""

from .ground.lazy import show_as
from .language.noise import ELEMENTS, NOISE_VERSION, PROVISIONAL_VERSION, SAMPLES, Increment, Noise
from .language.noise import _unpickled as _unpickled

__all__ = ["ELEMENTS", "NOISE_VERSION", "PROVISIONAL_VERSION", "SAMPLES", "Increment", "Noise"]

show_as(__name__, Noise, Increment, _unpickled)
