# SPDX-License-Identifier: Apache-2.0
"""The noise of ImageNet-C: augment.corrupt."""

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.augment import corrupt

N = nf.Noise(7, sample=5)
RNG = np.random.default_rng(0)


def theirs(x, corruption, severity):
    """Their formulas with NumPy's generator, but rounded."""
    c = {
        "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
        "shot_noise": [60, 25, 12, 5, 3],
        "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
        "speckle_noise": [0.15, 0.2, 0.35, 0.45, 0.6],
    }[corruption][severity - 1]
    u = x / 255.0
    if corruption == "gaussian_noise":
        u = u + RNG.normal(size=x.shape, scale=c)
    elif corruption == "shot_noise":
        u = RNG.poisson(u * c) / c
    elif corruption == "impulse_noise":
        hit = RNG.random(x.shape) < c
        u = np.where(hit, RNG.random(x.shape) < 0.5, u)
    else:
        u = u + u * RNG.normal(size=x.shape, scale=c)
    return np.rint(np.clip(u, 0, 1) * 255)


@pytest.mark.parametrize("corruption", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_mean_and_std_are_theirs(corruption, severity):
    """At three grey levels. Seen to fail: the numbers of the next severity."""
    for level in (30, 128, 220):
        x = np.full((1, 1000, 1000), level, np.uint8)
        ours, other = corrupt(x, corruption, severity, N, batched=True).astype(float), theirs(x, corruption, severity)
        error = other.std() / 1000
        assert abs(ours.mean() - other.mean()) < 6 * error + 0.02
        assert abs(ours.std() - other.std()) < 0.015 * other.std()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((np.zeros((2, 4), np.uint8), "fog", 1), ValueError, "corruption = 'fog'"),
        ((np.zeros((2, 4), np.uint8), "shot_noise", 6), ValueError, "severity = 6"),
        ((np.zeros((2, 4), np.float32), "shot_noise", 1), TypeError, "images: expected uint8, got float32"),
        (([[1, 2]], "shot_noise", 1), TypeError, r"x\[0\]: expected an array of NumPy.*got list"),
    ],
)
def test_bad_input_is_named(given, error, message):
    with pytest.raises(error, match=message):
        corrupt(*given, N)
