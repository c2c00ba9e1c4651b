# SPDX-License-Identifier: Apache-2.0
"""Rician and noncentral chi noise: augment.rician.

Seen to fail: a normal taken twice, x added to two parts, the normals of the next sample in place of the next draw.
"""

import warnings

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from fast import same_as_checked
from noisefuse.augment import rician

stats = pytest.importorskip("scipy.stats")
N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
KINDS = DTYPES | {"uint8": np.dtype(np.uint8), "uint16": np.dtype(np.uint16)}


def by_definition(x, std, noise, coils=1):
    real = np.float64 if x.dtype == np.float64 else np.float32
    z = nf.randn((len(x), 2 * coils, *x.shape[1:]), noise, dtype=real)
    parts = real(std) * z
    parts[:, 0] = x.astype(real) + parts[:, 0]
    total = parts[:, 0] ** 2
    for d in range(1, 2 * coils):
        total = total + parts[:, d] ** 2
    magnitude = np.sqrt(total)
    if x.dtype.kind == "u":
        return np.rint(magnitude).clip(0, np.iinfo(x.dtype).max).astype(x.dtype)
    return magnitude.astype(x.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coils", [1, 3])
def test_the_normals_are_those_of_randn(kind, coils, host):
    for shape in ((3, 9, 7, 3), (2, 4, 700), (5, 3), (1, 1)):
        x = (200 * RNG.random(shape)).astype(KINDS[kind])
        assert rician(x, 9.5, N, coils=coils, batched=True).tobytes() == by_definition(x, 9.5, N, coils).tobytes()


def test_a_std_and_a_noise_for_each_sample(compiled):
    x = RNG.random((4, 5, 70)).astype(np.float32)
    noises, std = [nf.Noise(b, sample=9 * b) for b in range(4)], np.array([0.0, 0.5, 1.0, 2.0])
    done = rician(x, std, noises, coils=2)
    with using("reference"):
        assert np.array_equal(rician(x, std, noises, coils=2), done)
    for b in range(4):
        assert np.array_equal(rician(x[b], std[b], noises[b], coils=2, batched=False), done[b])
    assert np.allclose(done[0], x[0])


def test_squares_beyond_the_type_are_infinite_in_silence(host):
    """Seen to fail: the reference warned of an overflow, and native did not."""
    x = np.float32([[1e30, -2e19, np.inf, np.nan, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = rician(x, 1.0, N)
    assert np.array_equal(np.isinf(done), [[True, True, True, False, False]])
    assert np.isnan(done[0, 3])


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_plain_calls_have_the_bits_of_the_checked_way(kind, library, monkeypatch):
    """Seen to fail: a second normal of the window's place in place of the full sample's; float64 with the normals of
    float32."""
    x = (200 * RNG.random((3, 9, 20, 4))).astype(KINDS[kind])
    if library == "torch":
        torch = pytest.importorskip("torch")
        x = nf.interop.torch.arrays.as_tensor(x, None, getattr(torch, kind))
    taken = "fast_rician"
    for batched, coils in ((True, 1), (False, 3), (None, 32)):
        given = {"coils": coils, "batched": batched}
        same_as_checked(monkeypatch, lambda given=given: rician(x, 9.5, N, **given), taken)
    for noise in (N.at(sample=[3, 1, 4]), [N, N.at(sample=2), N.at(stream=0)]):
        same_as_checked(monkeypatch, lambda n=noise: rician(x, np.array([0.5, 9.0, 0.0]), n), taken)
    wide = N.window((12, 20, 5), (3, 0, 1))
    same_as_checked(monkeypatch, lambda: rician(x, 9.5, wide, coils=2), taken)
    same_as_checked(monkeypatch, lambda: rician(x, 9.5, [wide, N, wide], coils=2), None)
    same_as_checked(monkeypatch, lambda: rician(x[:, :, ::2], 9.5, N), taken)
    out = x.copy() if library == "numpy" else x.clone()
    same_as_checked(monkeypatch, lambda: rician(x, 9.5, N, out=out), taken)
    for wrong in ({"coils": 0}, {"coils": 33}, {"std": -1.0}, {"std": np.inf}, {"std": [1.0]}, {"out": x[0]}):
        given = {"std": 0.4} | wrong
        same_as_checked(monkeypatch, lambda given=given: rician(x, noise=N, **given), None)


def test_windows_and_in_place():
    x = RNG.random((2, 6, 40, 40)).astype(np.float32)
    whole = rician(x, 0.1, N)
    part = rician(x[:, 1:3, 5:, :33], 0.1, N.window((6, 40, 40), (1, 5, 0)))
    assert np.array_equal(part, whole[:, 1:3, 5:, :33])
    assert rician(x, 0.1, N, out=x) is x
    assert np.array_equal(x, whole)


@pytest.mark.parametrize(("coils", "signal"), [(1, 0.0), (1, 2.0), (4, 3.0), (32, 0.0)])
def test_distribution(coils, signal):
    """Kolmogorov and Smirnov's test of 2^16 magnitudes; their square has a noncentral chi-square distribution."""
    x = np.full((1, 1 << 16), signal)
    squares = (rician(x, 0.5, nf.Noise(7), coils=coils)[0] / 0.5) ** 2
    law = stats.ncx2(2 * coils, (signal / 0.5) ** 2) if signal else stats.chi2(2 * coils)
    assert stats.kstest(squares, law.cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": -1.0}, "std"),
        ({"std": [1.0, 2.0]}, r"std: expected a number, or \(3,\) for the samples, got shape \(2,\)"),
        ({"coils": 0}, "coils = 0"),
        ({"coils": 33}, "coils = 33"),
        ({"coils": 1.5}, "coils"),
        ({"noise": np.zeros((3, 4, 5), np.float32)}, "expected a Noise or a list of them"),
        ({"out": np.zeros((3, 4, 5), np.uint16)}, "out"),
        ({"noise": N.window((2**33, 1), (0, 0)), "coils": 2}, "coils = 2: .* more than 2\\^34 normals"),
        (
            {"noise": [N.window((4, 5), (0, 0)), N.window((4, 6), (0, 0)), N], "std": 1.0},
            "windows of samples of one size",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(options, message):
    x = np.full((3, 4, 1) if "coils" in options else (3, 4, 5), 7, np.uint8)
    given = {"std": 3.0, "noise": N, "out": x} | options
    with pytest.raises((TypeError, ValueError, OverflowError), match=message):
        rician(x, **given)
    assert (x == 7).all()
