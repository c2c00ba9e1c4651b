# SPDX-License-Identifier: Apache-2.0
"""The parts that transforms of other libraries share: noise with a key from the item, and what follows from the key."""

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
    """Returns the key that is given beside an item. KeyError: there is none."""
    if field not in data:
        raise KeyError(f"{transform}(key={field!r}): expected {field}=.. beside the image")
    return data[field]


def noise_by(field: str, data: Mapping[Any, Any], seed: int, transform: str) -> nf.Noise:
    """Returns the noise of a key, or of a pair of key and epoch, that is given beside the item."""
    named = given_by(field, data, transform)
    key, epoch = named if isinstance(named, tuple) else (named, 0)
    return noise_of(key, epoch, seed)


def applies(noise: nf.Noise, p: float) -> bool:
    """Tells whether an item has noise at all: `strengths` with that p are then not 0."""
    return strength(noise, 1.0, 1.0, p) == 1.0


class Named:
    """A transform of one item at a time."""

    _noise: nf.Noise | None = None  # None: the library's own generator gives the key

    def at(self: Transform, key: Key, epoch: int = 0, *, seed: int = 0) -> Transform:
        """Returns the transform with this item's key, for ``__getitem__(index)``: its noise is the same in any process,
        order and run. The key also gives the random strength and, with p, decides whether it is applied. Transforms
        that follow one another each need a seed, so that they draw different noise.

        key: an int in [0, 2^56), or a str (`augment.sample_id`).
        """
        named = copy.copy(self)
        named._noise = noise_of(key, epoch, seed)
        return named


class FromItem:
    """A transform whose key may stand beside the image, in an item's dict."""

    key: str | None
    noise_seed: int

    def _set_key(self, key: str | None, noise_seed: int) -> None:
        self.key, self.noise_seed = key, noise_seed
        nf.Noise(noise_seed)  # this raises the error of a wrong seed


class OfUnitRange:
    """A transform whose floats should be in [0, 1]."""

    _looked = False

    def _warn_of_levels(self, image: Any) -> None:
        """Warns once, for the first image."""
        if self._looked:
            return
        self._looked, flat = True, image.reshape(-1)
        if len(flat) and bool(flat[:: max(1, len(flat) // 1024)].max() > 2):
            name = type(self).__name__
            warnings.warn(f"{name}: floats are taken to be in [0, 1], and these look like 0 .. 255", stacklevel=5)
