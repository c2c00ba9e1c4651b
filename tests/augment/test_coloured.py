# SPDX-License-Identifier: Apache-2.0
"""Coloured noise: augment.coloured.

Seen to fail: amplitudes that have the slope of a power; the bin of half the rate without its root of two; the expected
variance in place of the measured one; a normal that two bins share.
"""

from itertools import pairwise

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from cuda_kernels import stand_in
from noisefuse.augment import coloured, gaussian, rms
from noisefuse.augment.colours import _period

N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
RATE = 44100
OCTAVE = 10 * np.log10(2)


def by_definition(shape, slope, noise, floor=0.0, dtype="float64"):
    """Returns the noise before it is scaled, (B, .., n), in float64."""
    m = next(k for k in range(max(shape[-1], 1), 4 * shape[-1] + 4) if k % 2 == 0 and 30**40 % k == 0)
    z = nf.randn((*shape[:-1], m), noise, dtype=dtype).astype(np.float64)
    bins = np.zeros((*shape[:-1], m // 2 + 1), complex)
    bins[..., 1:] = z[..., ::2] + 1j * z[..., 1::2]
    bins[..., -1] = np.sqrt(2) * z[..., -2]
    bins[..., 1:] *= np.maximum(np.arange(1, m // 2 + 1) / m, floor) ** (slope / OCTAVE / 2)
    return np.fft.irfft(bins, m)[..., : shape[-1]]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1000), (2, 2, 77), (1, 1), (2, 3, 4, 45), (2, 4099)])
@pytest.mark.parametrize(("slope", "floor"), [(-6.02, 0.01), (3.0, 0.0), (0.0, 0.0)])
def test_it_is_a_spectrum_of_normals(kind, shape, slope, floor, host):
    """To 1e-6 of the noise's rms, and to the rounding of halves."""
    x = np.ones(shape, DTYPES[kind])
    z = by_definition(shape, slope, N, floor, "float64" if kind == "float64" else "float32")
    level = np.sqrt((z**2).reshape(len(z), -1).mean(axis=1)).reshape(-1, *[1] * (len(shape) - 1))
    expected = 1 + 10 ** (-6 / 20) * z / level
    found = coloured(x, 6.0, N, slope, floor=floor, batched=True)
    assert found.dtype == x.dtype
    least = {"float16": 2**-10, "bfloat16": 2**-7}.get(kind, 1e-6)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=least, atol=1e-6)
    with using("native"):
        assert coloured(x, 6.0, N, slope, floor=floor, batched=True).tobytes() == found.tobytes()


@pytest.mark.parametrize("colour", ["brown", "pink", "white", "blue", "violet", -9.5, 4.5])
def test_the_spectrum_has_the_slope_from_20_hertz_on(colour):
    """Each third of an octave is within 1 dB of the line, from 20 Hz to 20 kHz."""
    slope = {"brown": -2, "pink": -1, "white": 0, "blue": 1, "violet": 2}.get(colour, 0) * OCTAVE
    slope = colour if isinstance(colour, float) else slope
    n, clips = 1 << 17, 24
    x = np.zeros((clips, n))
    x[:, 0] = 1e-3
    z = coloured(x, -300.0, N, colour)
    power = (abs(np.fft.rfft(z)) ** 2 / (z**2).mean(axis=1, keepdims=True)).mean(axis=0)
    hertz = np.arange(len(power)) * RATE / n
    edges = 20 * 2 ** (np.arange(31) / 3)
    lines = []
    for low, high in pairwise(edges):
        band = (hertz >= low) & (hertz < min(high, 20000))
        lines.append(10 * np.log10((power[band] / hertz[band] ** (slope / OCTAVE)).mean()))
    assert np.ptp(lines[4:]) < 1.0
    assert np.ptp(lines) < 2.0  # 60 bins of each clip in an octave from 20 Hz: chance alone gives one


@pytest.mark.parametrize("slope", [-6.0, -3.0, 0.0, 6.0])
def test_the_ratio_is_kept(slope):
    """Each sample's, within 0.2 %."""
    x = RNG.standard_normal((4, 2, 5000)) * np.array([1, 9, 1e-3, 50]).reshape(4, 1, 1)
    snr = np.array([20.0, 3.0, -10.0, 60.0])
    noise = coloured(x, snr, N, slope) - x
    np.testing.assert_allclose(rms(x) / rms(noise), 10 ** (snr / 20), rtol=0.002)


def test_below_the_floor_it_is_flat():
    z = coloured(np.ones((64, 4096)), 0.0, N, "brown", floor=1 / 32) - 1
    power = (abs(np.fft.rfft(z)) ** 2).mean(axis=0)
    assert 10 * np.log10(power[1:30].mean() / power[70:120].mean()) == pytest.approx(0, abs=0.6)
    assert 10 * np.log10(power[300:500].mean() / power[600:1000].mean()) == pytest.approx(6, abs=0.6)


def test_a_signal_has_the_noise_that_it_has_alone():
    x = RNG.standard_normal((4, 2, 999)).astype(np.float32)
    whole = coloured(x, 9.0, N, "pink")
    for b in range(4):
        one = N.at(sample=5 + b)
        assert np.array_equal(whole[b], coloured(x[b], 9.0, one, "pink", batched=False))
        assert np.array_equal(whole[b : b + 1], coloured(x[b : b + 1], 9.0, [one], "pink"))
    out = x.copy()
    assert coloured(out, 9.0, N.at(sample=range(5, 9)), "pink", out=out) is out
    assert np.array_equal(out, whole)
    found = coloured([*x[:2], x[2, 0], x[3, 1, :50]], [9.0, 9.0, 1.0, 2.0], N, "pink")
    assert np.array_equal(found[1], whole[1])
    assert np.array_equal(found[3], coloured(x[3, 1, :50], 2.0, N.at(sample=8), "pink", batched=False))


def test_tensors_and_nothing():
    torch = pytest.importorskip("torch")
    x = RNG.standard_normal((2, 50)).astype(np.float32)
    found = coloured(torch.from_numpy(x), torch.tensor([1.0, 9.0]), N, "blue")
    assert np.array_equal(found.numpy(), coloured(x, [1.0, 9.0], N, "blue"))
    for shape in ((0, 9), (3, 0), (2, 0, 5)):
        assert coloured(np.ones(shape, np.float32), 3.0, N, "pink").shape == shape
    silent = np.zeros((2, 9), np.float32)
    assert np.array_equal(coloured(silent, 3.0, N, "pink"), silent)


def test_an_array_on_a_device_is_refused_before_a_kernel_runs():
    """Seen to fail: a sum of squares of the device, which came first."""
    with stand_in.installed() as cupy, pytest.raises(NotImplementedError, match="host memory, got an array on a dev"):
        coloured(cupy.asarray(np.ones((2, 9), np.float32)), 3.0, N, "pink")
    assert not cupy.launches


def test_periods_are_fast():
    for n in [*range(1, 400), 44100, 131071, 441000, 999983]:
        m = _period(n)
        assert m % 2 == 0
        assert 30**40 % m == 0
        assert m == next(k for k in range(n, m + 1) if k % 2 == 0 and 30**40 % k == 0)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"slope": "red"}, ValueError, "slope = 'red': expected 'brown', 'pink', 'white', 'blue' or 'violet'"),
        ({"slope": 13.0}, ValueError, "slope = 13.0"),
        ({"slope": None}, TypeError, "slope"),
        ({"floor": 0.6}, ValueError, "floor = 0.6"),
        ({"snr": [1.0]}, ValueError, r"snr: expected a number or shape \(2,\), got shape \(1,\)"),
        ({"snr": np.inf}, ValueError, "snr = inf"),
        ({"x": np.ones((2, 9), np.uint8)}, TypeError, "x: dtype uint8"),
        ({"x": np.ones(3), "batched": True}, ValueError, r"x: expected signals, whose last axis is time, got shape"),
        ({"x": np.full((2, 9), np.nan)}, ValueError, "x: has values that are not finite"),
        ({"noise": np.ones((2, 9))}, TypeError, "noise: expected a Noise or a list of them, as its normals are a"),
        ({"noise": N.window((9,), (0,))}, ValueError, "noise: expected one without a window"),
        ({"noise": [N]}, ValueError, "noise: expected one Noise for each of 2 samples, got 1"),
        ({"out": np.ones((2, 8))}, ValueError, r"out: expected shape \(2, 9\)"),
    ],
)
def test_what_is_wrong_is_said(change, error, said):
    out = np.full((2, 9), 7.0)
    given = {"x": np.ones((2, 9)), "snr": 3.0, "noise": N, "slope": "pink", "out": out} | change
    with pytest.raises(error, match=said):
        coloured(**given)
    assert (out == 7).all()


def test_other_stages_draw_other_noise():
    x = np.ones((1, 500))
    one, other = (coloured(x, 0.0, N.at(stream=stream), "white") - 1 for stream in (64, 65))
    assert abs(np.corrcoef(one[0], other[0])[0, 1]) < 0.2
    assert abs(np.corrcoef(one[0], gaussian(x, 1.0, N.at(stream=64))[0])[0, 1]) < 0.2
