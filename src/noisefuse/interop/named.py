# SPDX-License-Identifier: Apache-2.0
"""What the transforms of other libraries share: noise that an item names, and what follows from that name."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import noisefuse as nf

Transform = TypeVar("Transform", bound="Named")
Key = int | str


def noise_of(key: Key, epoch: int = 0, seed: int = 0) -> nf.Noise:
    return nf.Noise(seed, sample=nf.augment.sample_id(key), step=epoch)


def applies(noise: nf.Noise, p: float) -> bool:
    """Whether an item has noise at all: where `strengths` with that p are not 0."""
    return nf.augment.strengths(1, 1.0, 1.0, noise, p=p).item() == 1.0


def strength(noise: nf.Noise, low: float, high: float) -> float:
    return nf.augment.strengths(1, low, high, noise).item()


def word_of_torch() -> Any:
    """64 bits of torch's default generator as a tensor (1,) of int64, so that a compiler can trace it."""
    import torch

    return torch.empty(1, dtype=torch.int64).random_(-(1 << 63), None)


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
