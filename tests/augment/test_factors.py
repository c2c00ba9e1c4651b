# SPDX-License-Identifier: Apache-2.0
"""Images times random factors: augment.factors.times, of albumentations' MultiplicativeNoise."""

import numpy as np
import pytest

import noisefuse as nf
from fast import same_as_checked
from noisefuse.augment import times

N = nf.Noise(7, sample=3)
RNG = np.random.default_rng(0)


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(5, 3, 40), (1, 1), (67, 3), (2, 31, 33, 3), (90, 71, 1), (9, 8, 100), (3, 2, 256), (97, 129, 3), (97, 129, 1)],
)
def test_one_pass_has_the_bits_of_the_checked_way(dtype, each, last, shape, monkeypatch):
    """Seen to fail: floats that are not clipped, the last axis taken for none. Channels that have a factor each, and
    are more than the places, had those of other elements once. Products of bytes that are looked up: those of the next
    channel."""
    x = (RNG.random(shape) * {"uint8": 256, "uint16": 65536, "float32": 1.2}[dtype]).astype(dtype)
    for noise in (N, N.at(stream=64)):
        same_as_checked(monkeypatch, lambda noise=noise: times(x, 0.25, 1.5, noise, each, last), "fast_factors")
    for low, high in ((0.25, 1.5), (-1.0, 2.0), (-1e29, 1e29)):  # beyond a dtype's ends, too
        same_as_checked(monkeypatch, lambda ends=(low, high): times(x[::-1], *ends, N, each, last), "fast_factors")


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_threads_share_an_image(each, last):
    """A part that begins anywhere has the factors of its places. Seen to fail: the last axis taken for none."""
    x = RNG.integers(0, 256, (700, 450, 3), np.uint8)
    shape = x.shape[: 3 - last] if each else x.shape[3 - last :]
    factors = nf.uniform(shape or (1,), N, batched=False) * np.float32(1.25) + np.float32(0.25)
    expected = np.rint(x * (factors[..., None] if each and last else factors)).clip(0, 255).astype(np.uint8)
    for threads in (1, 3):
        with nf.set_num_threads(threads):
            assert np.array_equal(times(x, 0.25, 1.5, N, each, last), expected)


def test_floats_are_clipped():
    """NaN stays."""
    x = np.array([[0.5, -0.5, np.nan, 0.9, np.inf]], np.float32)
    found = times(x, 2.0, 2.0, N, False, False)
    assert np.array_equal(found, np.array([[1, 0, np.nan, 1, 1]], np.float32), equal_nan=True)


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_what_is_not_plain_goes_the_checked_way(dtype, monkeypatch):
    x = RNG.random((4, 5, 3)).astype(dtype)
    checked = "fast_random"  # of the factors
    same_as_checked(monkeypatch, lambda: times(x, 0.25, 1.5, N, False, True), checked)
    single = x.astype(np.float32)
    same_as_checked(monkeypatch, lambda: times(single, np.float64(0.25), 1.5, N, True, True), checked)
    same_as_checked(monkeypatch, lambda: times(single, 0.25, 1e31, N, True, True), checked)
    same_as_checked(monkeypatch, lambda: times(np.ones((2, 257), np.uint8), 0.25, 1.5, N, False, True), checked)
    assert times(single[:0], 0.25, 1.5, N, True, True).shape == (0, 5, 3)
