# SPDX-License-Identifier: Apache-2.0
"""What the transforms of other libraries share: noise that an item names, and what follows from that name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import noisefuse as nf

from ...augment import strength as strength

Transform = TypeVar("Transform", bound="Named")
Key = int | str


def noise_of(key: Key, epoch: int = 0, seed: int = 0) -> nf.Noise:
    return nf.Noise(seed, sample=nf.augment.sample_id(key), step=epoch)


def given_by(field: str, data: Mapping[Any, Any], transform: str) -> Any:
    """Returns what stands beside an item to name it. It raises KeyError if nothing does."""
    if field not in data:
        raise KeyError(f"{transform}(key={field!r}): expected {field}=.. beside the image")
    return data[field]


def noise_by(field: str, data: Mapping[Any, Any], seed: int, transform: str) -> nf.Noise:
    """Returns the noise of a key, or of a pair of key and epoch, that stands beside the item."""
    given = given_by(field, data, transform)
    key, epoch = given if isinstance(given, tuple) else (given, 0)
    return noise_of(key, epoch, seed)


def applies(noise: nf.Noise, p: float) -> bool:
    """Whether an item has noise at all: where `strengths` with that p are not 0."""
    return strength(noise, 1.0, 1.0, p) == 1.0


class Named:
    """A transform of one item at a time."""

    _noise: nf.Noise | None = None  # None: the library's own generator names it

    def at(self: Transform, key: Key, epoch: int = 0, *, seed: int = 0) -> Transform:
        """The transform whose noise this item names, whatever the process, the order and the run: for
        ``__getitem__(index)``. Its random strength and, with p, whether it is applied are named too. Transforms that
        follow one another take a seed each, so that they do not draw the same noise.

        key: an int in [0, 2^56), or a str (`augment.sample_id`).
        """
        named = copy.copy(self)
        named._noise = noise_of(key, epoch, seed)
        return named


class OfUnitRange:
    """A transform whose floats should be in [0, 1]."""

    _looked = False

    def _warn_of_levels(self, image: Any) -> None:
        """Once, of the first image."""
        if self._looked:
            return
        self._looked, flat = True, image.reshape(-1)
        if len(flat) and bool(flat[:: max(1, len(flat) // 1024)].max() > 2):
            name = type(self).__name__
            warnings.warn(f"{name}: floats are taken to be in [0, 1], and these look like 0 .. 255", stacklevel=5)
