# SPDX-License-Identifier: Apache-2.0
"""Counted photons without tables: augment.poisson of floats, of uint16, and of bytes with few photons.

Seen to fail: the second term of the expansion left out, counting from 1, numbers of the next element's word.
"""

import math

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from fast import same_as_checked
from noisefuse.augment import poisson
from noisefuse.operations import byte_tables
from noisefuse.operations.words import words

stats = pytest.importorskip("scipy.stats")
N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
KINDS = DTYPES | {"uint16": np.dtype(np.uint16)}


def light(shape, kind):
    x = RNG.random(shape) * 1.5 - 0.1
    return (x * 40000).clip(0).astype(KINDS[kind]) if kind == "uint16" else x.astype(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_every_instruction_set_is_numpy(kind, gamma, compiled):
    for shape, peak in (
        ((3, 9, 7, 3), 4.0),
        ((2, 4, 700), [30.0, 70.0]),
        ((5, 3), 1000.0),
        ((1, 1), 1e6),
        ((4, 0), 1.0),
    ):
        x = light(shape, kind)
        found = poisson(x, peak, N, gamma=gamma, batched=True)
        with using("reference"):
            assert found.tobytes() == poisson(x, peak, N, gamma=gamma, batched=True).tobytes()


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("kind", [*KINDS, "uint8"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_plain_calls_have_the_bits_of_the_checked_way(kind, library, monkeypatch):
    """Seen to fail: a batch that has the first sample's peak; the brightest byte left out; half of a photon that goes
    up; a peak of 18; a sum that ends early."""
    x = RNG.integers(0, 256, (3, 9, 20, 4), np.uint8) if kind == "uint8" else light((3, 9, 20, 4), kind)
    if library == "torch":
        torch = pytest.importorskip("torch")
        x = nf.interop.torch.arrays.as_tensor(x, None, getattr(torch, kind))
    ids = N.at(sample=[3, 1, 4])
    bright = "fast_row" if kind == "uint8" else "fast_photons"  # bytes have tables there
    for gamma in (1.0, 2.2, 0.1, 10.0):
        for peak in (16.0, 0.3, 7, 1e-300, [16.0, 2.0, 2.0], np.array([1.0, 9.5, 3.0]), 5e-324):
            for noise in (N, ids, [N, ids.at(sample=2), N.at(stream=0)]):
                same_as_checked(
                    monkeypatch, lambda a=(peak, noise, gamma): poisson(x, *a[:2], gamma=a[2]), "fast_photons"
                )
        for peak in (np.nextafter(16.0, 17), [1.0, 40.0, 3.0], 1e6):
            same_as_checked(monkeypatch, lambda a=(peak, gamma): poisson(x, a[0], N, gamma=a[1]), bright)
    for batched in (True, False, None):
        same_as_checked(monkeypatch, lambda batched=batched: poisson(x, 4.0, N, batched=batched), "fast_photons")
    wide = N.window((12, 20, 4), (3, 0, 0))
    for whole in (x[:, ::2], x[..., ::-1] if library == "numpy" else x.transpose(1, 2), x[1, 1, 1:]):
        same_as_checked(monkeypatch, lambda whole=whole: poisson(whole, 4.0, N), "fast_photons")
    same_as_checked(monkeypatch, lambda: poisson(x, 4.0, wide), "fast_photons")
    out = x.copy() if library == "numpy" else x.clone()
    same_as_checked(monkeypatch, lambda: poisson(x, 4.0, N, out=out), "fast_photons")
    for wrong in ({"gamma": 11.0}, {"batched": 3}, {"out": x[0]}, {"peak": 0.0}, {"peak": [0.5]}, {"peak": np.nan}):
        given = {"peak": 4.0} | wrong
        same_as_checked(monkeypatch, lambda given=given: poisson(x, noise=N, **given), None)


@pytest.mark.parametrize(("level", "count"), [(255, 0), (255, 6), (128, 1), (9, 0)])
def test_the_last_word_of_a_number_of_photons(level, count, compiled):
    """At these peaks a byte's word is the last one that gives so many photons, or the first that gives more. Seen to
    fail: one word more."""
    x, names = np.full((1, 60), level, np.uint8), [N]
    tried = 0
    for at, word in enumerate(words(x.shape, names).ravel().tolist()):
        low, high = 1e-3, 16.0  # the last word falls with the peak
        while low < (middle := (low + high) / 2) < high and last_word(middle, level, count) != word:
            low, high = (middle, high) if last_word(middle, level, count) > word else (low, middle)
        found = [p for p in (low, middle, high) if abs(last_word(p, level, count) - word) <= 1]
        tried += len(found) > 1
        for peak in found:
            last = byte_tables.of_poisson(peak, 1.0)["last"][level]
            assert poisson(x, peak, N)[0, at] == np.searchsorted(last, word)
    assert tried > 10


def last_word(peak, level, count):
    last = byte_tables.of_poisson(peak, 1.0)["last"][level]
    return int(last[min(255, math.ceil(255 * count / peak - 0.5))])


@pytest.mark.parametrize("peak", [0.5, 4.0, 30.0, 33.0, 255.0, 1000.0])
@pytest.mark.parametrize("kind", ["float32", "uint16"])
def test_distribution(kind, peak):
    """Chi-square of 2^18 numbers, over those of which more than 5 are expected, at two lights."""
    n, top = 1 << 18, 65535 if kind == "uint16" else 1
    for part in (1.0, 0.5):
        level = np.full((1, n), round(top * part) if top > 1 else part, KINDS[kind])
        mean = peak * float(level[0, 0]) / top
        y = poisson(level, peak, N)
        counts = np.rint(y[y < 65535].astype(float) * peak / top).astype(int)  # a uint16 is cut off at the peak
        found = np.bincount(counts, minlength=3000)[:3000]
        wanted = n * stats.poisson.pmf(np.arange(3000), mean)
        many = (wanted > 5) & ((np.arange(3000) < peak) | (kind != "uint16"))
        chi2, freedom = ((found - wanted)[many] ** 2 / wanted[many]).sum(), many.sum()
        assert chi2 <= freedom + 4.5 * np.sqrt(2 * freedom), (part, chi2, freedom)


@pytest.mark.parametrize(("peak", "gamma"), [(3.0, 2.2), (30.0, 1.0), (255.0, 1.0), (1000.0, 2.2)])
def test_bytes_and_floats_of_one_key_agree(peak, gamma):
    """A float is a byte's number before it was rounded, but where the expansion counts one photon more or less."""
    x = RNG.integers(0, 256, (2, 100, 500), np.uint8)
    by_bytes, by_floats = (poisson(a, peak, N, gamma=gamma) for a in (x, x.astype(np.float32) / 255))
    off = abs(by_bytes - 255 * by_floats.clip(0, 1).astype(float)) > 0.5 + 1e-4
    assert off.mean() <= (3e-5 if peak < 32 else 2e-4)
    wide = poisson(x.astype(np.uint16) * 257, peak, N, gamma=gamma)
    assert (abs(wide - 65535 * by_floats.clip(0, 1).astype(float)) > 1).mean() <= (1e-5 if peak < 32 else 2e-4)


def test_values_without_a_number_of_photons(host):
    x = np.array([[np.nan, np.inf, -1.0, 0.0, -np.inf, 1e38, 5e-324]])
    for gamma in (1.0, 2.2):
        y = poisson(x, 50.0, N, gamma=gamma)
        assert np.isnan(y[0, 0])
        assert np.isposinf(y[0, 1])
        assert np.array_equal(y[0, [2, 3, 4, 6]], np.zeros(4))
        assert y[0, 5] == pytest.approx(1e38)


def test_windows_each_sample_in_place_and_tensors():
    x = light((2, 6, 40, 40), "float32")
    whole = poisson(x, 20.0, N)
    assert np.array_equal(poisson(x[:, 1:3, 5:, :33], 20.0, N.window((6, 40, 40), (1, 5, 0))), whole[:, 1:3, 5:, :33])
    assert np.array_equal(poisson(x[1], 20.0, N.at(sample=6), batched=False), whole[1])
    assert np.array_equal(poisson(x, [20.0, 20.0], N), whole)
    torch = pytest.importorskip("torch")
    assert np.array_equal(poisson(torch.from_numpy(x), 20.0, N).numpy(), whole)
    assert poisson(x, 20.0, N, out=x) is x
    assert np.array_equal(x, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak": 0.0}, "peak = 0.0: expected photons, more than 0"),
        ({"peak": [1.0, 2.0]}, r"peak: expected a number, or \(3,\) for the samples, got shape \(2,\)"),
        ({"gamma": 0.0}, "gamma = 0.0"),
        ({"noise": np.zeros((3, 4, 5), np.float32)}, "expected a Noise or a list of them"),
        ({"out": np.zeros((3, 4, 5), np.uint16)}, "out"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(options, message):
    x = np.full((3, 4, 5), 7, np.float32)
    given = {"peak": 3.0, "noise": N, "out": x} | options
    with pytest.raises((TypeError, ValueError), match=message):
        poisson(x, **given)
    assert (x == 7).all()
