# SPDX-License-Identifier: Apache-2.0
"""random_noise in place of scikit-image's function: its arguments, ranges, types, noise and keys."""

import inspect

import numpy as np
import pytest

import noisefuse as nf

util = pytest.importorskip("skimage.util")
from noisefuse.interop.skimage import random_noise  # noqa: E402

MODES = ("gaussian", "localvar", "poisson", "salt", "pepper", "s&p", "speckle")
RAMP = np.linspace(0, 1, 1 << 16).reshape(256, 256)
IMAGES = {
    "uint8": np.rint(255 * RAMP).astype(np.uint8),
    "uint16": np.rint(65535 * RAMP).astype(np.uint16),
    "int16": np.rint(65535 * RAMP - 32768).astype(np.int16),
    "float32": RAMP.astype(np.float32),
    "float64": 2 * RAMP - 1,
}


def test_arguments_are_those_of_theirs():
    ours, theirs = (inspect.signature(function).parameters for function in (random_noise, util.random_noise))
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert [*ours][:-1] == [*theirs][:-1]


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_noise_is_that_of_theirs(mode, clip, dtype):
    """Moments by sixteenths of the image, and the ends of the range. Seen to fail: the range of unsigned images for
    signed ones; std for var; elements of one word for salt and for pepper."""
    image = IMAGES[dtype]
    numbers = {"gaussian": {"mean": 0.1, "var": 0.04}, "speckle": {"mean": 0.2, "var": 0.09}}
    numbers |= {"s&p": {"amount": 0.3, "salt_vs_pepper": 0.2}, "localvar": {"local_vars": 0.01 + RAMP / 10}}
    given = numbers.get(mode, {})
    found, expected = (f(image, mode, 3, clip, **given) for f in (random_noise, util.random_noise))
    assert found.dtype == util.img_as_float(image).dtype
    assert (found.min() >= (-1 if image.min() < 0 else 0)) == (expected.min() >= (-1 if image.min() < 0 else 0))
    assert (found.max() <= 1) == (expected.max() <= 1)
    plain = util.img_as_float(image)
    parts = [(each - plain).reshape(16, -1) for each in (found, expected)]
    (mean, std), (mean_of_theirs, std_of_theirs) = ((part.mean(axis=1), part.std(axis=1)) for part in parts)
    assert (abs(mean - mean_of_theirs) < 0.002 + 5 * std_of_theirs / 64 * np.sqrt(2)).all()
    assert (abs(std - std_of_theirs) < 0.002 + 0.2 * std_of_theirs).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_key_a_seed_or_a_generator_names_the_noise(mode):
    """Seen to fail: a sample that is ignored in "poisson"."""
    key = nf.Noise(5, sample=9, step=2)
    image = IMAGES["uint8"]
    first = random_noise(image, mode, key)
    for same in (key, nf.Noise(5, sample=9, step=2)):
        assert np.array_equal(random_noise(image, mode, same), first)
    for other in (key.at(sample=8), key.at(step=1), key.at(stream=64), nf.Noise(4, sample=9, step=2)):
        assert not np.array_equal(random_noise(image, mode, other), first)
    assert np.array_equal(random_noise(image, mode, 7), random_noise(image, mode, nf.Noise(7)))
    generators = [np.random.default_rng(3) for _ in range(2)]
    once, again = (random_noise(image, mode, rng) for rng in generators)
    assert np.array_equal(once, again)
    assert not np.array_equal(random_noise(image, mode, generators[0]), once)
    assert not np.array_equal(random_noise(image, mode), random_noise(image, mode))


def test_counts_of_many_values_are_theirs():
    """Beyond what augment.poisson takes. Seen to fail: an error of the peak."""
    image = np.random.default_rng(0).random((750, 750))
    first, again = (random_noise(image, "poisson", nf.Noise(5)) for _ in range(2))
    assert np.array_equal(first, again)
    assert abs(((first - image) * np.sqrt(2**20 / image)).std() - 1) < 0.05


def test_it_is_augment():
    """Equal bit for bit. Seen to fail: a batch of rows."""
    key = nf.Noise(5, sample=9)
    x = IMAGES["float32"]
    expected = nf.augment.gaussian(x, 0.2, key, mean=0.1, clip=(0, 1), batched=False)
    assert np.array_equal(random_noise(x, rng=key, mean=0.1, var=0.2**2), expected)
    expected = nf.augment.impulse(x, 0.2, key, salt=0.3, batched=False)
    assert np.array_equal(random_noise(x, "s&p", key, amount=0.2, salt_vs_pepper=0.3), expected)


def test_wrong_modes_and_numbers_are_named():
    with pytest.raises(ValueError, match="mode = 'white'"):
        random_noise(RAMP, "white")
    with pytest.raises(ValueError, match="amount: expected numbers of 'gaussian', mean, var"):
        random_noise(RAMP, amount=0.1)
    with pytest.raises(ValueError, match="var: expected numbers of 'poisson', none"):
        random_noise(RAMP, "poisson", var=0.1)
    with pytest.raises(ValueError, match="local_vars: expected numbers above 0"):
        random_noise(RAMP, "localvar", local_vars=np.zeros_like(RAMP))
    with pytest.raises(ValueError, match="amount"):
        random_noise(RAMP, "salt", amount=2)
    with pytest.raises(ValueError, match="var"):
        random_noise(RAMP, var=-1)
