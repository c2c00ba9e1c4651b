# SPDX-License-Identifier: Apache-2.0
"""The noise of the benchmarks of robustness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..arguments.arrays import host_view
from ..arguments.types import Array, ArrayT, DType, Images
from ..ground.checks import check_choice, check_integer
from ..language.levels import levels_of
from ..language.noise import Noise
from .byte_noise import poisson
from .impulses import impulse
from .lists import LISTS, beside_arrays
from .numbers import Region
from .rows import gaussian, inside, multiplicative

_AMOUNTS = {  # of severities 1 to 5
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60.0, 25.0, 12.0, 5.0, 3.0),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
}


def corrupt(
    images: Images[ArrayT], corruption: Literal["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"],
    severity: int, noise: Noise | Sequence[Noise], *, batched: bool | None = None,
    out: Images[ArrayT] | None = None, region: Region | None = None,
) -> ArrayT:  # fmt: skip
    """A corruption by noise of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to
    common corruptions and perturbations"), with its numbers. Results are rounded, where its code cuts them off, which
    makes its images darker by half a grey level.

    Args:
        images: uint8, of any shape; axis 0 the batch.
        corruption: "gaussian_noise", "shot_noise", "impulse_noise", or "speckle_noise".
        severity: from 1 to 5.
        noise, batched, out, region: as in `poisson`.

    Returns:
        uint8, of the images' shape and kind.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> images = np.full((2, 64, 64, 3), 128, np.uint8)
    >>> noisy = nf.augment.corrupt(images, "gaussian_noise", 1, nf.Noise(7))
    >>> round(float(noisy.std()) / 255, 2)
    0.08
    """
    if region is not None:
        return inside(region, corrupt, images, corruption, severity, noise, batched=batched, out=out)
    check_choice("corruption", corruption, tuple(_AMOUNTS))
    amount = _AMOUNTS[corruption][check_integer("severity", severity, 1, 5) - 1]
    if (other := beside_arrays(images)) is LISTS:
        given: Any = {"corruption": corruption, "severity": severity, "batched": batched, "out": out}
        return other.augmented(_corrupt, images, noise, **given)
    images = host_view("images", images)
    if levels_of(getattr(images, "dtype", None)) != "uint8":
        raise TypeError(f"images: expected uint8, got {getattr(images, 'dtype', type(images).__name__)}")
    if corruption == "gaussian_noise":
        return gaussian(images, 255 * amount, noise, batched=batched, out=out)
    if corruption == "shot_noise":
        return poisson(images, amount, noise, batched=batched, out=out)
    if corruption == "impulse_noise":
        return impulse(images, amount, noise, batched=batched, out=out)
    return multiplicative(images, amount, noise, batched=batched, out=out)


def _corrupt(
    images: Array, noise: Any, *, dtype: DType | None, corruption: Any, severity: int, **options: Any
) -> Array:
    return corrupt(images, corruption, severity, noise, **options)
