# SPDX-License-Identifier: Apache-2.0
"""Images times uniform numbers, which albumentations' MultiplicativeNoise has (`interop.albumentations`).

Seen to fail: the number of the next pixel for the last channel of one, the numbers of channels for pixels, floats that
are not clipped, the rest of a tile left as it was.
"""

import itertools

import numpy as np
import pytest

import noisefuse as nf
from conftest import using
from fast import same_as_checked
from noisefuse.augment.products import product

N = nf.Noise(7, sample=5, step=2)
RNG = np.random.default_rng(0)
TOPS = {"uint8": 255, "uint16": 65535, "float32": 1}
SHAPES = (1, 1, 1), (5, 7, 3), (41, 33, 1), (24, 50, 7), (9, 4, 200), (3, 2, 300), (90, 129, 3), (2, 17, 19, 3)


def images(shape, dtype):
    return (RNG.uniform(-0.1 if dtype == "float32" else 0, 1.1, shape).clip(None, 1) * TOPS[dtype]).astype(dtype)


def by_definition(x, low, high, elementwise, per_channel, has_channels):
    channels = x.shape[-1:] if has_channels else ()
    places = x.shape[: x.ndim - len(channels)] if elementwise else ()
    with using("reference"):
        u = nf.uniform((*places, *(channels if per_channel else ())) or (1,), N, batched=False)
    factors = u * np.float32(high - low) + np.float32(low)
    found = x * (factors[..., None] if places and channels and not per_channel else factors)
    return (np.rint(found) if x.dtype.kind == "u" else found).clip(0, TOPS[x.dtype.name]).astype(x.dtype)


@pytest.mark.parametrize("dtype", TOPS)
def test_each_place_has_its_number(dtype, host):
    for shape, (low, high) in itertools.product(SHAPES, ((0.5, 1.5), (-1.0, 0.25))):
        x = images(shape, dtype)
        for elementwise, per_channel, has_channels in itertools.product((True, False), (True, False), (True, False)):
            of = {"elementwise": elementwise, "per_channel": per_channel, "has_channels": has_channels}
            for image in (x, x[::-1]):
                assert product(image, low, high, N, **of).tobytes() == by_definition(image, low, high, **of).tobytes()


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
def test_the_fast_path_takes_images(monkeypatch):
    """Many threads, NaN and infinities are as NumPy has them; other dtypes and many channels are declined."""
    odd = images((40, 50, 3), "float32")
    odd[0, :3, 0] = np.nan, np.inf, -np.inf
    of = {"elementwise": True, "per_channel": False, "has_channels": True}
    for image, taken in (
        (odd, "fast_product"), (images((512, 300, 3), "uint8"), "fast_product"),
        (odd.astype(np.float64), "fast_random"), (images((3, 2, 300), "uint8"), "fast_random"),
        (images((0, 2, 3), "uint8"), None),
    ):  # fmt: skip
        with np.errstate(all="ignore"):
            same_as_checked(monkeypatch, lambda image=image: product(image, 0.5, 1.5, N, **of), taken)
