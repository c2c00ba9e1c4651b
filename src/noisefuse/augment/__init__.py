# SPDX-License-Identifier: Apache-2.0
"""Augmentation with noise, for images, volumes and audio, in the units of their own values, in one pass.

    x' = x + mean + std z,    z ~ N(0, 1)

Bytes give bytes, rounded to nearest even and clipped to 0 .. 255; uint16 likewise, to 0 .. 65535. The noise has a key,
so an image has the same noise in every process and after every restart: ``Noise(seed, sample=index, step=epoch)``.
Stages that follow one another each need a stream, ``noise.at(stream=64)``, so that they draw different z. All functions
but `prepare` and `rms` take a list of images of any sizes, too.
"""

from __future__ import annotations

from ..ground.lazy import show_as, show_public
from .byte_noise import poisson, transition
from .colours import add_spectrum as add_spectrum
from .colours import coloured
from .colours import slope_gains as slope_gains
from .corruptions import corrupt
from .factors import times as times
from .impulses import impulse
from .iso import iso_noise as iso_noise
from .keys import named as named
from .keys import sample_id, strengths
from .keys import strength as strength
from .magnitude import rician
from .numbers import find_layout as find_layout
from .prepared import prepare
from .rows import at_snr, by_level, gaussian, multiplicative, rms, sensor
from .rows import call_inside as call_inside
from .rows import row_inside as row_inside

__all__ = [
    "at_snr", "by_level", "coloured", "corrupt", "gaussian", "impulse", "multiplicative", "poisson", "prepare",
    "rician", "rms", "sample_id", "sensor", "strengths", "transition",
]  # fmt: skip

show_public(__name__)
show_as(
    __name__, at_snr, by_level, coloured, corrupt, gaussian, impulse, multiplicative, poisson, prepare, rician, rms,
    sample_id, sensor, strengths, transition,
)  # fmt: skip
