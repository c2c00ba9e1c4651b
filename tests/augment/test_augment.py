# SPDX-License-Identifier: Apache-2.0
"""augment: its noise, its units, numbers per sample and channel; bytes in and out; errors."""

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, reference_is_slow, using
from noisefuse.arguments import calls
from noisefuse.augment import at_snr, by_level, gaussian, multiplicative, prepare, sensor, strengths

N = nf.Noise(7, sample=5, step=2)
SHAPE = (4, 6, 35, 3)


def images(dtype="uint8", shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def axes(numbers, ndim, layout="HWC"):
    """Returns numbers for all, samples or channels, as they broadcast."""
    numbers = np.asarray(numbers, np.float64)
    if numbers.ndim < 2:
        return numbers.reshape(-1, *(ndim - 1) * [1])
    spread = (ndim - 2) * [1]
    return numbers.reshape(len(numbers), *([-1, *spread] if layout == "CHW" else [*spread, -1]))


def rounded(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


STDS = [0.0, 12.5, [1, 0, 30, 7.5], np.arange(12).reshape(4, 3)]


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("std", STDS, ids=["0", "number", "samples", "channels"])
@pytest.mark.parametrize("mean", [0.0, 3, [1, 2, 3, -40]], ids=["0", "number", "samples"])
def test_it_is_x_plus_mean_plus_std_z(std, mean, layout):
    """Seen to fail: channels counted along the other axis."""
    x = images(shape=SHAPE if layout == "HWC" else (4, 3, 6, 35))
    z = nf.randn(x.shape, N, dtype="float64")
    expected = x + axes(mean, 4) + axes(std, 4, layout) * z
    found = gaussian(x, std, N, mean=mean, layout=layout)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - rounded(expected))
    assert difference.max() <= 1
    assert difference.mean() < 1e-3
    floats = gaussian(x.astype(np.float64), std, N, mean=mean, layout=layout)
    np.testing.assert_allclose(floats, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16"])
@pytest.mark.parametrize("std", STDS[1:], ids=["number", "samples", "channels"])
def test_backends_give_the_same_bits(backend, dtype, std):
    x = images(dtype)
    with using("reference"):
        expected = gaussian(x, std, N, mean=-2.0)
    with using(backend):
        assert gaussian(x, std, N, mean=-2.0).tobytes() == expected.tobytes()


DEPENDENT = {
    "multiplicative": (multiplicative, (0.1,), lambda x: 0.1 * x),
    "multiplicative of samples": (multiplicative, ([0, 0.1, 0.2, 1],), lambda x: axes([0, 0.1, 0.2, 1], 4) * x),
    "sensor": (sensor, (0.5, 2.0), lambda x: np.sqrt(0.5 * x + 2)),
    "sensor with a pedestal": (sensor, (0.5, -20), lambda x: np.sqrt(np.maximum(0.5 * x - 20, 0))),
    "sensor of channels": (
        sensor,
        (np.arange(12).reshape(4, 3), 1),
        lambda x: np.sqrt(axes(np.arange(12).reshape(4, 3), 4) * x + 1),
    ),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_noise_that_depends_on_the_signal(backend, name):
    """Seen to fail: D in place of its root, a variance that is not cut off at 0."""
    function, numbers, std = DEPENDENT[name]
    z, x = nf.randn(SHAPE, N, dtype="float64"), images(np.float64)
    with using(backend):
        np.testing.assert_allclose(function(x, *numbers, N), x + std(x) * z, rtol=1e-13, atol=1e-12)
        for dtype in ("uint8", "float32", "float16"):
            found = function(images(dtype), *numbers, N)
            given = function(images(dtype), *numbers, nf.randn(SHAPE, N))
            with using("reference"):
                expected = function(images(dtype), *numbers, N)
            assert found.tobytes() == given.tobytes() == expected.tobytes()
            difference = np.abs(found - (rounded(x + std(x) * z) if dtype == "uint8" else x + std(x) * z))
            assert difference.max() < {"uint8": 1.5, "float32": 1e-4, "float16": 0.3}[dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_are_rounded_to_nearest_even_and_clipped(backend, dtype):
    """Seen to fail: truncation, ties away from zero, NaN as 255, and NaN as its last bits."""
    halves = np.arange(-3, 260, 0.5, dtype)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30, 254.49999, 255.5, 0.49999997], dtype)
    odd = np.full(3, 0x7FC0_00FF, np.uint32).view(np.float32).astype(dtype)  # NaN too
    x = np.concatenate([halves, special, odd])[None]
    expected = np.clip(np.rint(np.nan_to_num(x, nan=0)), 0, 255).astype(np.uint8)
    with using(backend):
        for size in (x.size, 1, 5, 300):  # whole groups, and the remainder of one
            assert np.array_equal(gaussian(x[:, :size], 0.0, N, dtype="uint8"), expected[:, :size])


@pytest.mark.parametrize("std", [0.5, 5.0, 60.0])
def test_the_levels_have_the_probabilities_of_a_rounded_normal(std):
    """Chi-square of 2^22 elements around a middle level and one at the end. Seen to fail: truncation."""
    scipy = pytest.importorskip("scipy.stats")
    for level in (128, 3):
        found = gaussian(np.full((1, 1 << 22), level, np.uint8), std, nf.Noise(3))
        edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
        expected = np.diff(scipy.norm.cdf(edges, level, std)) * found.size
        counts = np.bincount(found.ravel(), minlength=256)
        usual = expected > 20
        pooled = [np.append(of[usual], of[~usual].sum()) for of in (counts, expected)]
        pooled = [of[: len(of) - (pooled[1][-1] < 5)] for of in pooled]
        statistic = ((pooled[0] - pooled[1]) ** 2 / pooled[1]).sum()
        assert scipy.chi2.sf(statistic, len(pooled[0]) - 1) > 1e-4


LITTLE = r"std = 0\.1 is in grey levels.* fraction of the range 0 \.\. {} was meant, pass std = {}"


@pytest.mark.parametrize("std", [0.1, np.float32(0.1), [0.1, 0.05, 0, 0.1], np.full((4, 3), 0.1)], ids=type)
@pytest.mark.parametrize(("dtype", "top", "meant"), [("uint8", 255, "25.5"), ("uint16", 65535, "6553.5")])
def test_noise_that_is_rounded_away_is_warned_of_once(dtype, top, meant, std, monkeypatch):
    """Seen to fail: a fraction, as other libraries take it, gave the image itself in silence."""
    monkeypatch.setattr(calls, "WARNED", set())
    x = images(dtype)
    for other in (0.0, 0.25, [0.0, 0.0, 0.0, 3.0]):
        gaussian(x, other, N)
    gaussian(x, std, N, mean=0.4)
    gaussian(x, std, N, dtype="float32")
    gaussian(x / top, std, N)
    with pytest.warns(UserWarning, match=LITTLE.format(top, meant)) as seen:
        found = gaussian(x, std, N)
    assert [each.filename for each in seen] == [__file__]
    assert np.array_equal(found, x)
    gaussian(x, std, N)


@pytest.mark.parametrize("library", ["torch", "jax.numpy", "dask.array"])
def test_noise_of_other_arrays_that_is_rounded_away_is_warned_of(library, monkeypatch):
    monkeypatch.setattr(calls, "WARNED", set())
    module = pytest.importorskip(library)
    with pytest.warns(UserWarning, match=LITTLE.format(255, "25.5")):
        gaussian(module.asarray(images()), 0.1, N)


def test_results_go_where_they_are_asked_to():
    x = images()
    expected = gaussian(x, 10.0, N)
    out = np.empty_like(x)
    assert gaussian(x, 10.0, N, out=out) is out
    assert np.array_equal(out, expected)
    assert gaussian(x, 10.0, N, out=x) is x
    assert np.array_equal(x, expected)
    floats = gaussian(images(), 10.0, N, dtype="float32")
    assert floats.dtype == np.float32
    assert np.array_equal(rounded(floats), expected)
    assert gaussian(images(), 10.0, N, out=floats) is floats
    one = gaussian(images()[1], 10.0, N.at(sample=6), batched=False)
    assert np.array_equal(one, expected[1])
    assert np.array_equal(gaussian(images()[1], [10.0, 10.0, 10.0], N.at(sample=6), batched=False), expected[1])
    assert np.array_equal(gaussian(images(), 10.0, nf.randn(SHAPE, N)), expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_results_are_clipped_to_a_range(dtype):
    found, all_of_them = (gaussian(images(dtype), 40.0, N, clip=clip) for clip in ((16, 235.4), None))
    assert np.array_equal(found, np.clip(all_of_them, 16, np.rint(235.4) if dtype == "uint8" else np.float32(235.4)))


def test_of_tensors():
    torch = pytest.importorskip("torch")
    x, expected = torch.from_numpy(images()), gaussian(images(), 10.0, N)
    assert np.array_equal(gaussian(x, 10.0, N).numpy(), expected)
    assert np.array_equal(gaussian(x, 4 * [10.0], N).numpy(), expected)
    assert gaussian(x, 4 * [10.0], N, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert gaussian(x, 10.0, N, out=x) is x
    assert np.array_equal(x.numpy(), expected)
    last = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for std in (1.0, [1.0, 1.0]):
        found = gaussian(last, std, N)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(found.numpy(), nf.randn((2, 3, 8, 8), N))
    compiled = torch.compile(lambda x: gaussian(x + 1, 10.0, N) - 1, backend="eager")  # a graph on either side
    whole = torch.from_numpy(images())
    assert np.array_equal(compiled(whole).numpy(), gaussian(whole + 1, 10.0, N).numpy() - 1)
    with pytest.raises(NotImplementedError, match="x: gradients"):
        gaussian(torch.zeros(2, 3, requires_grad=True), 1.0, N)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"std": -1.0}, ValueError, "std = -1.0: expected finite numbers of at least 0"),
        ({"std": np.nan}, ValueError, "std = nan"),
        ({"std": "much"}, TypeError, "std: expected numbers, got str"),
        ({"std": [1, 2]}, ValueError, r"std: expected a number, \(4,\) for the samples or .*, got shape \(2,\)"),
        ({"std": np.ones((4, 5))}, ValueError, "expected as many channels as samples .* have, got 5"),
        ({"std": np.ones((4, 3)), "layout": "CHW"}, ValueError, "expected as many channels"),
        ({"std": np.ones((4, 3)), "layout": "WHC"}, ValueError, "layout = 'WHC'"),
        ({"x": np.zeros((4, 3, 8, 3)), "std": np.ones((4, 3))}, ValueError, "layout: .* pass layout='CHW' or 'HWC'"),
        ({"mean": np.inf}, ValueError, "mean = inf"),
        ({"clip": (3, 1)}, ValueError, r"clip = \(3, 1\)"),
        ({"clip": 3}, ValueError, "clip = 3"),
        ({"noise": 7}, TypeError, "noise: .* got 7: a bare seed"),
        ({"x": images("int64")}, TypeError, "x: dtype int64"),
        ({"x": [1.0, 2.0]}, TypeError, r"x\[0\]: expected an array of NumPy, .* DLPack"),
        ({"dtype": "int16"}, TypeError, "dtype int16"),
        ({"out": np.zeros((4, 6, 35), np.uint8)}, ValueError, "out: expected shape"),
        ({"out": np.zeros((4, 6, 35, 6), np.uint8)[..., ::2]}, ValueError, "out: expected a C-contiguous"),
        ({"out": np.broadcast_to(np.uint8(0), SHAPE)}, ValueError, "out: expected a writable array"),
    ],
)
def test_what_is_wrong_is_said(change, error, said):
    out = np.full(SHAPE, 77, np.uint8)
    given = {"x": images(), "std": 1.0, "noise": N, "out": out} | change
    with pytest.raises(error, match=said):
        gaussian(**given)
    assert (out == 77).all()


def test_of_nothing_nothing_is_made():
    for shape in ((0, 4, 4, 3), (2, 0, 4, 3)):
        assert gaussian(np.zeros(shape, np.uint8), 1.0, N).shape == shape
        assert gaussian(np.zeros(shape, np.uint8), np.ones((shape[0], 3)), N).shape == shape


def test_noise_that_channels_share_counts_pixels(backend):
    last, pixels = images(), nf.randn(SHAPE[:3], N)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    with using(backend):
        found = gaussian(last, 10.0, N, layout="HWC", shared=True)
        assert np.array_equal(found, gaussian(last, 10.0, np.stack(3 * [pixels], axis=-1)))
        assert np.array_equal(gaussian(first, 10.0, N, layout="CHW", shared=True), found.transpose(0, 3, 1, 2))
        alone = gaussian(last[2], 10.0, N.at(sample=7), layout="HWC", shared=True, batched=False)
        assert np.array_equal(alone, found[2])


def test_both_layouts_can_have_the_same_noise():
    last = images()
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    for function in (gaussian, multiplicative):
        expected = function(first, 0.5, N).transpose(0, 2, 3, 1)
        assert np.array_equal(function(last, 0.5, N, layout="HWC", order="CHW"), expected)
        expected = function(last, 0.5, N).transpose(0, 3, 1, 2)
        assert np.array_equal(function(first, 0.5, N, layout="CHW", order="HWC"), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_signal_to_noise_ratio_is_kept(dtype):
    """Seen to fail: amplitudes taken for powers."""
    clips = (np.random.default_rng(0).standard_normal((4, 1 << 16)) * [[0.1], [1], [7], [0]]).astype(dtype)
    decibels = np.array([0, 10, 25.5, 10])
    noisy = at_snr(clips, decibels, N)
    assert noisy.dtype == clips.dtype
    assert np.array_equal(noisy[3], clips[3])
    noise = noisy[:3].astype(float) - clips[:3]
    found = 20 * np.log10(clips[:3].astype(float).std(axis=1) / noise.std(axis=1))
    np.testing.assert_allclose(found, decibels[:3], atol=0.06)  # 2^16 elements: 0.024 dB is one standard deviation
    alone = at_snr(clips[2], 25.5, N.at(sample=7), batched=False)
    assert alone.tobytes() == noisy[2].tobytes()


def test_the_ratio_has_the_same_bits_everywhere(backend):
    clips = np.random.default_rng(0).standard_normal((3, 10_007)).astype(np.float32)
    with using("reference"):
        expected = at_snr(clips, [3.0, 20, 40], N)
    assert at_snr(clips, [3.0, 20, 40], N).tobytes() == expected.tobytes()


def test_strengths_are_named():
    noise = nf.Noise(7, sample=[3, 1, 4])
    found = strengths(3, 5.0, 20.0, noise)
    assert np.array_equal(found[1:2], strengths(1, 5.0, 20.0, nf.Noise(7, sample=1)))
    assert np.array_equal(found, strengths(3, 5.0, 20.0, [nf.Noise(7, sample=n) for n in (3, 1, 4)]))
    words = nf.uniform((3, 256), noise.at(stream=8), dtype="float64")
    assert np.array_equal(found, 5 + 15 * words[:, 0])
    assert np.array_equal(strengths(3, 0, 1, noise.at(stream=70)), words[:, 140])
    for p in (1.0, 0.5):  # transforms of one sample use these
        alone = [nf.augment.strength(noise.at(sample=n, stream=70), 5.0, 20.0, p) for n in (3, 1, 4)]
        assert alone == strengths(3, 5.0, 20.0, noise.at(stream=70), p=p).tolist()
    many = strengths(1 << 14, 5.0, 20.0, nf.Noise(1), p=0.25)
    assert abs((many > 0).mean() - 0.25) < 0.015
    drawn = many[many > 0]
    assert drawn.min() >= 5
    assert drawn.max() < 20
    assert abs(drawn.mean() - 12.5) < 0.3


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: at_snr(np.zeros((2, 9)), [1, 2, 3], N), ValueError, r"snr: expected a number or shape \(2,\)"),
        (lambda: at_snr(np.zeros((2, 9)), np.nan, N), ValueError, "snr = nan: expected finite numbers"),
        (lambda: at_snr(np.full((2, 9), np.nan), 1, N), ValueError, "x: has values that are not finite"),
        (lambda: at_snr(images(), 1, N), TypeError, "x: dtype uint8"),
        (lambda: sensor(images(), -1, 0, N), ValueError, "a = -1.0: expected finite numbers of at least 0"),
        (lambda: multiplicative(images(), -1, N), ValueError, "std = -1.0"),
        (lambda: gaussian(images(), 1, N, shared=True), ValueError, "layout = None"),
        (lambda: gaussian(images(), 1, N, layout="HWC", order="no"), ValueError, "order = 'no'"),
        (lambda: gaussian(images(), 1, images(float), layout="HWC", shared=True), TypeError, "noise: expected a Noise"),
        (
            lambda: gaussian(np.zeros((2, 3)), 1, N, layout="HWC", shared=True),
            ValueError,
            "a channel axis and another axis",
        ),
        (lambda: strengths(3, 2, 1, N), ValueError, "expected low <= high"),
        (lambda: strengths(3, 1, 2, N, p=1.5), ValueError, "p = 1.5"),
    ],
)
def test_what_is_wrong_with_other_kinds_is_said(call, error, said):
    with pytest.raises(error, match=said):
        call()


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCHEDULE = nf.Schedule.linear(1000)


def prepared(alpha, sigma):
    """Computes it in float64."""
    clean = ((images() / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    return axes(alpha, 4) * clean + axes(sigma, 4) * nf.randn((4, 3, 6, 35), N, dtype="float64")


def test_images_are_prepared_for_a_network(backend):
    """Seen to fail: the mean of another channel, noise that is counted in the image's layout."""
    given = {"scale_mean": MEAN, "scale_std": STD}
    for strength in (0.1, [0.1, 0, 0.3, 2]):
        found = prepare(images(), noise=N, **given, noise_std=strength)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, prepared(1, strength), rtol=0, atol=2e-6)
        wide = prepare(images(), noise=N, **given, noise_std=strength, dtype="float64")
        np.testing.assert_allclose(wide, prepared(1, strength), rtol=0, atol=1e-14)
        with using("reference"):
            assert prepare(images(), noise=N, **given, noise_std=strength).tobytes() == found.tobytes()
    t = np.array([1, 50, 300, 999])
    found, times = prepare(images(), noise=N, **given, t=t, schedule=SCHEDULE)
    np.testing.assert_allclose(found, prepared(SCHEDULE.alpha[t], SCHEDULE.sigma[t]), rtol=0, atol=2e-6)
    assert np.array_equal(times, t)
    alone, times = prepare(images()[2], noise=N.at(sample=7), **given, t=300, schedule=SCHEDULE, batched=False)
    assert np.array_equal(alone, found[2])
    assert times.tolist() == [300]
    out = np.empty((4, 3, 6, 35), np.float16)
    assert prepare(images(), noise=N, **given, noise_std=0.1, out=out) is out
    np.testing.assert_allclose(out, prepared(1, 0.1), rtol=1e-3, atol=1e-3)


def test_tensors_are_prepared():
    torch = pytest.importorskip("torch")
    given = {"scale_mean": MEAN, "scale_std": STD, "noise_std": 0.1}
    found = prepare(torch.from_numpy(images()), noise=N, **given)
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), prepare(images(), noise=N, **given))
    assert np.array_equal(prepare(torch.from_numpy(images())).numpy(), prepare(images()))
    assert prepare(torch.from_numpy(images()), noise=N, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_noise_is_needed_where_there_is_some(backend):
    """The number is also given by name. Seen to fail: beside numbers called mean and std, it was taken for others'
    second argument."""
    given = {"scale_mean": MEAN, "scale_std": STD}
    for batched, x in ((True, images()), (False, images()[0])):
        expected = prepare(x, noise=N, **given, batched=batched)
        for none in ({}, {"noise_std": 0}, {"noise_std": np.zeros(len(x)) if batched else 0.0}):
            assert prepare(x, **given, **none, batched=batched).tobytes() == expected.tobytes()
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        prepare(images(), N)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"scale_mean": [1, 2]},
            ValueError,
            r"scale_mean: expected a number or one for each of 3 .*, got \(2,\)",
        ),
        ({"scale_std": [1, 0, 1]}, ValueError, "scale_std = .*: expected numbers other than 0"),
        ({"scale_std": -1}, ValueError, "scale_std = -1.0: expected finite numbers of at least 0"),
        ({"noise": None, "noise_std": 0.1}, TypeError, "noise: expected a Noise, as noise_std is not 0, got None"),
        ({"noise": None, "t": 3, "schedule": SCHEDULE}, TypeError, "noise: expected a Noise, as t is given, got None"),
        ({"noise": 7}, TypeError, "got 7: a bare seed"),
        ({"mean": 0.5}, TypeError, "unexpected keyword argument 'mean'"),
        ({"std": 0.5}, TypeError, "unexpected keyword argument 'std'"),
        ({"noise_std": -1}, ValueError, "noise_std = -1.0: expected finite numbers of at least 0"),
        ({"noise_std": [1, 2]}, ValueError, "noise_std: expected a number"),
        ({"t": 3}, ValueError, "t, schedule: expected both of them"),
        ({"t": 3, "schedule": SCHEDULE, "noise_std": 1.0}, ValueError, "t, schedule: .* without noise_std"),
        ({"t": [1, 2], "schedule": SCHEDULE}, ValueError, r"t: expected a number or shape \(4,\), got shape \(2,\)"),
        ({"t": 1000, "schedule": SCHEDULE}, IndexError, "t must be an index"),
        ({"images": np.zeros((6, 35, 3), np.uint8)}, ValueError, r"images: expected shape \(B, H, W, C\), got \(6, 35"),
        ({"dtype": "uint8"}, TypeError, "dtype uint8: expected a float"),
        ({"out": np.zeros((4, 6, 35, 3), np.float32)}, ValueError, "out: expected shape"),
    ],
)
def test_what_cannot_be_prepared_is_said(options, error, said):
    with pytest.raises(error, match=said):
        prepare(**{"images": images(), "noise": N} | options)


LEVELS = np.arange(256.0)


def test_noise_of_each_level(backend):
    """Seen to fail: the tables the other way round."""
    means, stds = 250 - 0.9 * LEVELS, 0.1 * LEVELS
    z = nf.randn(SHAPE, N, dtype="float64")
    expected = means[images()] + stds[images()] * z
    found = by_level(images(), means, stds, N)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - rounded(expected))
    assert difference.max() <= 1
    assert difference.mean() < 1e-3
    np.testing.assert_allclose(by_level(images(), means, stds, N, dtype="float64"), expected, rtol=0, atol=1e-12)
    given = by_level(images(), means, stds, nf.randn(SHAPE, N))
    with using("reference"):
        assert by_level(images(), means, stds, N).tobytes() == found.tobytes() == given.tobytes()
    x = images()
    assert by_level(x, means, stds, N, out=x) is x
    assert np.array_equal(x, found)
    assert np.array_equal(by_level(images()[1], means, stds, N.at(sample=6), batched=False), found[1])


def test_levels_of_tensors():
    torch = pytest.importorskip("torch")
    found = by_level(torch.from_numpy(images()), LEVELS, LEVELS, N)
    assert np.array_equal(found.numpy(), by_level(images(), LEVELS, LEVELS, N))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mean_table": LEVELS[1:]}, ValueError, r"mean_table: expected one number for each of 256 levels, got .*255"),
        ({"std_table": -LEVELS}, ValueError, r"std_table\[1\] = -1.0: expected finite numbers of at least 0"),
        ({"x": images("float32")}, TypeError, "x: dtype float32 is not supported, expected one of uint8"),
        ({"out": np.zeros((4, 6), np.uint8)}, ValueError, "out: expected shape"),
        ({"noise": None}, TypeError, "noise: expected a Noise"),  # seen to fail: level 0, whose std is 0, stood for all
    ],
)
def test_what_is_wrong_with_levels_is_said(options, error, said):
    with pytest.raises(error, match=said):
        by_level(**{"x": images(), "mean_table": LEVELS, "std_table": LEVELS, "noise": N} | options)


@reference_is_slow
@pytest.mark.parametrize("channels", [1, 3, 64, 65])
@pytest.mark.parametrize("pixels", [7, 57, 300])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_channels_that_lie_last_in_tiles_of_all_sizes(backend, dtype, channels, pixels):
    """Seen to fail: the phase of a tile in the period left out, the next sample's rows at its end (57 pixels: the last
    tile begins in the last pixel), a period kept for the sample after it."""
    shape, size = (3, pixels, channels), pixels * channels
    x = images(DTYPES.get(dtype, dtype), shape)
    std, mean = (np.random.default_rng(n).uniform(1, 9, (3, channels)) for n in range(2))
    found = gaussian(x, std, N, mean=mean, layout="HWC", batched=True)
    z = nf.randn(shape, N, dtype="float64" if dtype == "float64" else "float32")
    given = gaussian(x, std, z, mean=mean, layout="HWC", batched=True)
    assert found.tobytes() == given.tobytes()
    for sample in range(3):  # element by element, each a sample of its own with one row
        alone = gaussian(
            x[sample].reshape(size, 1), std[sample].tolist() * pixels, z[sample].reshape(size, 1),
            mean=mean[sample].tolist() * pixels,
        )  # fmt: skip
        assert alone.tobytes() == found[sample].tobytes()
    for function, numbers in ((multiplicative, (std,)), (sensor, (std, mean))):
        with using("reference"):
            expected = function(x, *numbers, N, layout="HWC", batched=True)
        assert function(x, *numbers, N, layout="HWC", batched=True).tobytes() == expected.tobytes()


@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_channels_that_lie_last_in_windows(backend, channels):
    """Tiles of short runs end anywhere. Seen to fail: the rows of the next sample at the end of one."""
    x = images(shape=(2, 5, 4, channels))
    std = np.random.default_rng(1).uniform(1, 9, (2, channels))
    noises = [
        nf.Noise(1, sample=5).window((8, 6, channels + 2), start=(3, 0, 2)),
        nf.Noise(2).window((9, 4, channels + 3), start=(3, 0, 1)),
    ]
    found = gaussian(x, std, noises, layout="HWC", batched=True)
    for b, noise in enumerate(noises):
        z = nf.randn((1, 5, 4, channels), noise, dtype="float32")
        assert np.array_equal(found[b : b + 1], gaussian(x[b : b + 1], std[b : b + 1], z, layout="HWC", batched=True))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(1, 1), (9, 5), (2, 255), (2, 3001)], ids=str)
def test_levels_in_tiles_of_all_sizes(backend, dtype, shape):
    """Seen to fail: only the low four bits of a level looked up."""
    x = images(shape=shape)
    means, stds = np.random.default_rng(1).uniform(0, 200, (2, 256))
    with using("reference"):
        expected = by_level(x, means, stds, N, dtype=dtype)
    assert by_level(x, means, stds, N, dtype=dtype).tobytes() == expected.tobytes()


WIDE = images("uint16") * 257


@pytest.mark.parametrize("std", STDS, ids=["0", "number", "samples", "channels"])
def test_uint16_is_rounded_and_clipped_to_its_own_range(backend, std):
    """Seen to fail: the top level of bytes."""
    std = 200 * np.asarray(std)
    std = float(std) if std.ndim == 0 else std
    with using(backend):
        found = gaussian(WIDE, std, N, layout="HWC")
        floats = gaussian(WIDE, std, N, layout="HWC", dtype="float32")
        assert found.dtype == np.uint16
        assert np.array_equal(found, np.clip(np.rint(floats), 0, 65535))
        for noised, other in ((multiplicative, (0.3,)), (sensor, (40.0, 1e5))):
            results = [noised(WIDE, *other, N, dtype=dtype) for dtype in ("uint16", "float32")]
            assert np.array_equal(results[0], np.clip(np.rint(results[1]), 0, 65535))


def test_uint16_is_clipped_to_a_range():
    """torch clamps none of them, so their memory is clamped."""
    torch = pytest.importorskip("torch")
    expected = np.clip(gaussian(WIDE, 9e3, N), 1000, 60001)
    assert np.array_equal(gaussian(WIDE, 9e3, N, clip=(1000.2, 60000.7)), expected)
    x = torch.from_numpy(WIDE.copy())
    for std in (9e3, 4 * [9e3]):
        assert np.array_equal(gaussian(x, std, N, clip=(1000.2, 60000.7)).numpy(), expected)
    assert gaussian(x, 9e3, N, clip=(1000.2, 60000.7), out=x) is x
    assert np.array_equal(x.numpy(), expected)


def test_prepared_uint16_is_in_its_own_range():
    noise_of_nothing = {"noise": N, "noise_std": 0.0}
    for top, dtype in ((255, "uint8"), (65535, "uint16")):
        whole = np.full((2, 4, 4, 3), top, dtype)
        np.testing.assert_allclose(prepare(whole, **noise_of_nothing), 1, rtol=1e-6)
    assert np.array_equal(prepare(WIDE, noise=N, noise_std=0.1), prepare(WIDE, noise=N, noise_std=0.1, scale=1 / 65535))
    swapped = WIDE.astype(WIDE.dtype.newbyteorder())  # seen to be taken for bytes
    assert np.array_equal(prepare(swapped, noise=N, noise_std=0.1), prepare(WIDE, noise=N, noise_std=0.1))


def test_tables_of_levels_are_of_bytes_alone():
    level = np.arange(256.0)
    for call in (
        lambda: by_level(WIDE, level, level, N),
        lambda: nf.augment.transition(WIDE, np.eye(256), N),
    ):
        with pytest.raises(TypeError, match="x: dtype uint16 is not supported, expected one of uint8"):
            call()
    assert np.array_equal(by_level(images(), 257 * level, 0 * level, N, dtype="uint16"), WIDE)
