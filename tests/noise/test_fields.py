# SPDX-License-Identifier: Apache-2.0
"""Noise that is not white, or chosen for a sample: its parts, its moments, its keys, its errors."""

import hashlib
import re

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, NATIVE, NUMBA, using
from cuda_kernels import stand_in
from noisefuse import fields

N = nf.Noise(7, sample=40, step=3)
RNG = np.random.default_rng(0)
X = np.zeros((3, 4, 12, 10), np.float32)


def offset_like(x, noise, **options):
    return fields.offset_like(x, 0.1, noise, **options)


def pyramid_like(x, noise, discount=0.8, **options):
    return fields.pyramid_like(x, discount, noise, **options)


def mixed_like(x, noise, alpha=1.0, **options):
    return fields.mixed_like(x, alpha, noise, **options)


def progressive_like(x, noise, alpha=1.0, **options):
    return fields.progressive_like(x, alpha, noise, **options)


def freenoise_like(x, noise, **options):
    return fields.freenoise_like(x, noise, context=2, stride=2, **options)


LIKE = [offset_like, pyramid_like, mixed_like, progressive_like, freenoise_like]
LISTED = [nf.Noise(7, sample=40, step=3), nf.Noise(1, sample=9, step=3), nf.Noise(2, step=8)]


@pytest.mark.parametrize("like", LIKE)
def test_a_sample_does_not_depend_on_its_batch_nor_on_threads_or_backends(like):
    whole = like(X, N)
    for b in range(3):
        assert np.array_equal(like(X[b : b + 1], N.at(sample=40 + b)), whole[b : b + 1])
    assert np.array_equal(like(X, [N.at(sample=40 + b) for b in range(3)]), whole)
    assert np.array_equal(like(X, N.at(sample=[42, 41, 40])), whole[::-1])
    assert np.array_equal(like(X, LISTED)[1:2], like(X[:1], LISTED[1]))
    for backend in ("reference", *NUMBA):
        with using(backend):
            assert np.array_equal(like(X, N), whole)


KNOWN = {
    "offset_like": "ca4f638d9e107b3b",
    "pyramid_like": "3627a0e7f7c7c376",
    "mixed_like": "d4f38666c9544b22",
    "progressive_like": "6cd32feb398e741e",
    "freenoise_like": "fa18524048840f5c",
}


@pytest.mark.parametrize("like", LIKE)
def test_bits_that_are_known(like):
    """All operations are IEEE 754's, in one order (powers of a half are exact). Seen to fail: a last column that is
    interpolated from both sides."""
    options = {"discount": 0.5} if like is pyramid_like else {}
    found = [like(X, N, **options), like(X[:, :, :7], N.at(step=9), dtype="float64", **options)]
    assert hashlib.sha256(b"".join(map(np.ndarray.tobytes, found))).hexdigest()[:16] == KNOWN[like.__name__]


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_dtypes_see_one_field(like, name):
    close = {"float32": 0, "float64": 2e-6, "float16": 4e-3}[name]
    given = like(X.astype(name), N)
    assert given.dtype == name
    assert np.allclose(given, like(X, N), rtol=0, atol=close)
    assert np.array_equal(like(X, N, dtype=name), given)
    assert np.array_equal(like(X.astype(np.dtype(name).newbyteorder()), N), given)  # the other byte order


def test_the_last_steps_that_there_are():
    """Seen to fail: a bound that left out the last step."""
    assert fields.pyramid_like(X, 0.8, N.at(step=2**30 - 1), levels=4).shape == X.shape
    assert fields.nearest_of(4, X[:1], N.at(step=2**30 - 1))[0].step >= 2**32 - 4


@pytest.mark.parametrize("like", LIKE)
def test_tensors(like):
    torch = pytest.importorskip("torch")
    x = torch.zeros(X.shape)
    assert np.array_equal(like(x, N).numpy(), like(X, N))
    last = like(x.to(memory_format=torch.channels_last), N)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(last.numpy(), like(X, N))
    assert like(x.bfloat16(), N).dtype == torch.bfloat16


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("shape", [(0, 4, 12, 10), (2, 0, 3, 3), (2, 3, 0, 4), (2, 3, 1, 1), (1, 1, 1, 7)])
def test_empty_and_thin(like, shape):
    assert like(np.zeros(shape, np.float32), N).shape == shape


def test_offset_noise_is_white_noise_and_one_normal_for_each_channel():
    z = fields.offset_like(X.astype(float), 0.25, N)
    c = nf.randn((3, 4), N.at(stream=5), dtype="float64")
    assert np.allclose(z, nf.randn(X.shape, N, dtype="float64") + 0.25 * c[:, :, None, None], rtol=0, atol=1e-15)
    moment = fields.offset_like(np.zeros((4000, 2, 4, 4), np.float32), 0.5, N)
    assert abs(moment.var() - 1.25) < 0.02
    assert np.array_equal(fields.offset_like(X, 0.0, N), nf.randn(X.shape, N))


def test_windows_of_offset_and_mixed_noise_are_those_of_the_whole():
    cut = (slice(None), slice(1, 3), slice(4, 9), slice(2, 10))
    part = N.window(X.shape[1:], (1, 4, 2))
    for like in (offset_like, mixed_like):
        assert np.array_equal(like(X[cut], part), like(X, N)[cut])
    with pytest.raises(ValueError, match="window"):
        pyramid_like(X[cut], part)
    ahead = N.window(X.shape[1:], (0, 4, 2))
    cut = (slice(None), slice(0, 2), *cut[2:])
    for like in (progressive_like, freenoise_like):
        assert np.array_equal(like(X[cut], ahead), like(X, N)[cut])
        with pytest.raises(ValueError, match="got one at frame 1"):
            like(X[cut], N.window(X.shape[1:], (1, 4, 2)))


def test_pyramid_noise_is_a_sum_of_enlarged_levels_of_variance_1_everywhere():
    torch = pytest.importorskip("torch")
    shape, discount = (2, 3, 16, 8), 0.7
    total, variance = nf.randn(shape, N, dtype="float64"), np.ones((16, 8))
    for level in range(1, 4):
        small = (2, 3, 16 >> level, 8 >> level)
        coarse = nf.randn(small, N.at(stream=10, step=3 * 4 + level), dtype="float64")
        large = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(16, 8), mode="bilinear")
        total = total + discount**level * large.numpy()
        ones = torch.eye(small[2] * small[3], dtype=torch.float64).reshape(-1, 1, *small[2:])
        spread = torch.nn.functional.interpolate(ones, size=(16, 8), mode="bilinear").numpy()
        variance = variance + discount ** (2 * level) * (spread**2).sum(axis=(0, 1))
    expected = total / np.sqrt(variance)
    given = fields.pyramid_like(np.zeros(shape), discount, N, levels=4)
    assert np.allclose(given, expected, rtol=0, atol=1e-12)
    many = pyramid_like(np.zeros((20000, 1, 6, 5), np.float32), nf.Noise(1))
    assert abs(many.var(axis=0) - 1).max() < 6 * np.sqrt(2 / 20000)
    # Planes are added up a few at a time. Seen to fail: levels of the first planes for all of them.
    together = pyramid_like(np.zeros((3, 3, 96, 80), np.float32), N)
    alone = pyramid_like(np.zeros((1, 3, 96, 80), np.float32), N.at(sample=N.sample + 2))
    assert np.array_equal(alone, together[2:])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (1, 2, 40, 1), (1, 2, 1, 70), (3, 2, 37, 51), (1, 1, 9, 1300)])
def test_pyramids_of_any_lengths_are_the_same_on_every_instruction_set(shape, dtype):
    """Lengths around a register, a tile of 512 columns and its remainder; more levels than a pass takes. Seen to fail:
    columns without their fractions, the first rows of a level for all, the ninth level left out."""
    x = np.zeros(shape, dtype)
    with using("reference"):
        expected = fields.pyramid_like(x, 0.9, N, levels=12)
    for name in NATIVE:
        with using(name):
            assert np.array_equal(fields.pyramid_like(x, 0.9, N, levels=12), expected), name


@pytest.mark.parametrize("like", [mixed_like, progressive_like])
@pytest.mark.parametrize("shape", [(2, 5), (3, 4, 9), (2, 3, 96, 96)])
def test_frames_of_any_size_are_blended_alike_and_rounded_once(like, shape):
    """Small frames are blended together, large ones with a call each. Seen to fail: frames that are numbers were not
    blended."""
    x = np.zeros(shape, np.float32)
    z = nf.randn(shape, N, dtype="float64")
    shared = nf.randn((shape[0], *shape[2:]), N.at(stream=11), dtype="float64")
    expected = (z + 2 * shared[:, None]) / 5**0.5
    if like is progressive_like:
        expected = z.copy()
        for f in range(1, shape[1]):
            expected[:, f] = (2 * expected[:, f - 1] + z[:, f]) / 5**0.5
    assert np.allclose(like(x, N, 2.0), expected, rtol=0, atol=4e-6)
    assert np.array_equal(like(x.astype(np.float16), N, 2.0), like(x, N, 2.0).astype(np.float16))


def test_frames_correlate_as_they_should():
    x = np.zeros((2, 6, 3, 64, 64), np.float32)
    for like, expected in (
        (mixed_like, lambda n: 0.8 if n else 1.0),
        (progressive_like, lambda n: 0.8 ** (n / 2)),
    ):
        z = like(x, N, 2.0).reshape(2, 6, -1)
        found = np.einsum("bfe,bge->bfg", z, z) / z.shape[-1]
        wanted = np.array([[expected(abs(f - g)) for g in range(6)] for f in range(6)])
        assert abs(found - wanted).max() < 0.06
        assert abs((z[0] * z[1]).mean()) < 0.04


@pytest.mark.parametrize(("frames", "context", "stride"), [(23, 8, 3), (17, 4, 4), (9, 5, 1), (6, 8, 2)])
def test_frames_come_again_in_an_order_of_their_own(frames, context, stride):
    """The order is diffusers': each stretch is that from `context` frames before, the last one cut. Seen to fail:
    orders of another frame's keys, stretches that begin a frame later."""
    x, noise = np.zeros((2, frames, 3), np.float32), [N, nf.Noise(1)]
    z, keys = (
        fields.freenoise_like(x, noise, context=context, stride=stride),
        nf.uniform((2, frames + stride), [n.at(stream=12) for n in noise]),
    )
    for b in range(2):
        latents = list(nf.randn((1, context, 3), noise[b])[0])
        for i in range(context, frames, stride):
            order = sorted(range(stride), key=lambda j: keys[b, i + j])
            latents += [latents[i - context + j] for j in order]
        assert np.array_equal(z[b], latents[:frames])
    assert np.array_equal(fields.freenoise_like(x[:, :-1], noise, context=context, stride=stride), z[:, :-1])


def test_nearest_is_the_nearest_of_its_candidates():
    x0 = RNG.standard_normal((5, 3, 7)).astype(np.float32)
    names = fields.nearest_of(16, x0, N)
    for b, name in enumerate(names):
        candidates = [N.at(sample=40 + b, step=3 * 16 + j, stream=9) for j in range(16)]
        distances = [((x0[b] - nf.randn((1, 3, 7), c)[0].astype(float)) ** 2).sum() for c in candidates]
        assert name == candidates[int(np.argmin(distances))]
        assert fields.nearest_of(16, x0[b : b + 1], N.at(sample=40 + b)) == [name]
    assert fields.nearest_of(16, x0, N.at(sample=range(40, 45))) == names
    assert len({name.step for name in names}) > 1
    for backend in ("reference", *NUMBA):
        with using(backend):
            assert fields.nearest_of(16, x0, N) == names


KEYS_OF_THREE = [
    N,
    N.at(sample=[9, 2**56 - 1, 40]),
    LISTED,
    N.window((4, 12, 11), start=(1, 2, 3)),
    [n.window((4, 12, 11), start=(b % 2, 2, 3 - b)) for b, n in enumerate(LISTED)],
    nf.Noise(2**64 - 1, step=10),
]


@pytest.mark.parametrize("noise", KEYS_OF_THREE)
@pytest.mark.parametrize(("k", "shape"), [(1, (3, 3, 10, 8)), (7, (3, 2, 5, 8)), (19, (3, 1, 1, 1))])
def test_the_nearest_is_that_of_a_plain_loop(noise, k, shape, backend):
    """The losses of each candidate with its own key. Seen to fail: candidates one step later; all of them at the first
    step; one step for the fields of all samples; the last of each sample's candidates left out."""
    schedule = nf.Schedule.linear()
    for dtype in DTYPES.values():
        x0 = (2 * RNG.standard_normal(shape)).astype(dtype)
        found = fields.nearest_of(k, x0, noise)  # first, as its memory may be that of the losses below
        losses = []
        for j in range(k):
            candidates = fields.each(noise, lambda n: n.at(step=n.step * k + j, stream=9))  # noqa: B023
            losses.append(nf.mse_loss(x0, None, 0, schedule, candidates, target="epsilon", reduction="none"))
        steps = [n.step for n in noise] if isinstance(noise, list) else 3 * [noise.step]
        expected = [step * k + j for step, j in zip(steps, np.argmin(losses, axis=0).tolist(), strict=True)]
        assert [name.step for name in found] == expected


@pytest.mark.parametrize("size", [4096, 4097, 40_000])
def test_candidates_of_large_samples_do_not_depend_on_threads(size, native, threads):
    x0 = RNG.standard_normal((2, size)).astype(np.float32)
    schedule, k = nf.Schedule.linear(), 5
    found = fields.nearest_of(k, x0, N)
    losses = [
        nf.mse_loss(x0, None, 0, schedule, N.at(step=3 * k + j, stream=9), target="epsilon", reduction="none")
        for j in range(k)
    ]
    expected = [3 * k + j for j in np.argmin(losses, axis=0).tolist()]
    assert [name.step for name in found] == expected


@pytest.mark.parametrize("noise", [N, LISTED])
def test_candidates_of_an_array_on_a_device(noise):
    """Seen to fail: the losses of each candidate written to the first one's place."""
    x0 = RNG.standard_normal((3, 2, 5)).astype(np.float32)
    expected = fields.nearest_of(9, x0, noise)
    with stand_in.installed() as cupy:
        assert fields.nearest_of(9, cupy.asarray(x0), noise) == expected


def test_nearest_of_bytes_halves_tensors_and_one_whole_sample():
    images = RNG.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    scaled = (images / 127.5 - 1).astype(np.float32)
    assert fields.nearest_of(32, images, N) == fields.nearest_of(32, scaled, N)
    deep = images.astype(np.uint16) * 257
    assert fields.nearest_of(32, deep, N) == fields.nearest_of(32, images, N)
    torch = pytest.importorskip("torch")
    assert fields.nearest_of(32, torch.from_numpy(images), N) == fields.nearest_of(32, images, N)
    half = scaled.astype(np.float16)
    assert fields.nearest_of(32, torch.from_numpy(half), N) == fields.nearest_of(32, half, N)
    [one] = fields.nearest_of(32, scaled[0], N, batched=False)
    assert one == fields.nearest_of(32, scaled, N)[0]
    assert fields.nearest_of(3, np.zeros((0, 4), np.float32), N) == []
    far = np.full((1, 4), 1e15, np.float32)  # as far from all of them
    assert fields.nearest_of(3, far, N) == [N.at(sample=40, step=3 * 3, stream=9)]
    assert fields.nearest_of(3000, far, N) == [N.at(sample=40, step=3 * 3000, stream=9)]  # in parts


def test_the_chosen_noise_goes_through_training():
    schedule, x0 = nf.Schedule.linear(1000), RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    names = fields.nearest_of(8, x0, N)
    x_t, z = nf.q_sample(x0, 500, schedule, names, target="epsilon")
    assert np.array_equal(z, nf.randn(x0.shape, names))
    loss = nf.mse_loss(z, x0, 500, schedule, names, target="epsilon")
    assert loss == 0
    assert x_t.shape == x0.shape


def test_assignment_is_the_best_of_all_orders():
    from itertools import permutations

    x0 = RNG.standard_normal((5, 9)).astype(np.float32)
    z = nf.randn((5, 9), N).astype(float)
    best = min(permutations(range(5)), key=lambda order: sum(((x0[b] - z[j]) ** 2).sum() for b, j in enumerate(order)))
    assert fields.assigned(x0, N) == [N.at(sample=40 + j) for j in best]
    assert fields.assigned(x0[:0], N) == []
    same = np.repeat(x0[:1], 4, axis=0)  # equal costs: a library's order of addition does not matter
    assert len({repr(fields.assigned(same * (1 + 1e-16), N)), repr(fields.assigned(same, N))}) == 1
    listed = [nf.Noise(b, sample=9) for b in range(5)]
    assert sorted(n.seed for n in fields.assigned(x0, listed)) == list(range(5))
    torch = pytest.importorskip("torch")
    assert fields.assigned(torch.from_numpy(x0), N) == fields.assigned(x0, N)


def test_perturbation_adds_to_the_input_alone():
    schedule, x0, t = nf.Schedule.linear(1000), RNG.standard_normal((3, 50)), np.array([5, 500, 900])
    noise = N.at(step=0)
    x_t = nf.q_sample(x0, t, schedule, noise)
    z = nf.randn(x0.shape, noise.at(stream=6), dtype="float64")
    expected = x_t + 0.1 * schedule.sigma[t][:, None] * z
    assert np.allclose(fields.perturbed(x_t, t, schedule, 0.1, noise), expected, rtol=0, atol=1e-14)
    torch = pytest.importorskip("torch")
    tensor = fields.perturbed(torch.from_numpy(x_t), torch.from_numpy(t), schedule, 0.1, noise)
    assert np.array_equal(tensor.numpy(), fields.perturbed(x_t, t, schedule, 0.1, noise))
    kept = x_t.copy()
    assert fields.perturbed(x_t, t, schedule, 0.1, noise, out=x_t) is x_t
    assert not np.array_equal(x_t, kept)


WRONG = [
    (
        lambda: fields.offset_like(np.zeros(3, np.float32), 0.1, N),
        ValueError,
        r"expected shape \(B, C, \.\.\), got \(3,\)",
    ),
    (lambda: fields.offset_like(X, np.nan, N), ValueError, "strength = nan: expected a finite number"),
    (lambda: fields.offset_like(X, 0.1, 7), TypeError, "a list of one for each sample, got 7: a bare seed"),
    (lambda: fields.offset_like(X, 0.1, X), TypeError, "list of one for each sample, got ndarray"),
    (lambda: fields.mixed_like(X, 1.0, [N, 1, N]), TypeError, r"noise\[1\]: expected a Noise, got 1: a bare seed"),
    (lambda: fields.offset_like(X, 0.1, [N]), ValueError, "expected one Noise for each of 3 samples, got 1"),
    (lambda: fields.offset_like(X, 0.1, N.at(stream=64)), ValueError, "stream of its own"),
    (lambda: fields.offset_like([[1.0]], 0.1, N), TypeError, "x: expected .*, got list"),
    (lambda: fields.offset_like(X.astype(int), 0.1, N), TypeError, "int64"),
    (lambda: fields.mixed_like(np.zeros(3, np.float32), 1.0, N), ValueError, "axis 1 the frames"),
    (lambda: fields.pyramid_like(X, 0.8, N, levels=0), ValueError, "levels = 0: expected an integer of at least 1"),
    (lambda: fields.pyramid_like(X, 0.8, N.at(step=2**31)), OverflowError, "6 levels"),
    (lambda: fields.mixed_like(X, 1.0, N.at(stream=11)), ValueError, "takes stream 0, got 11"),
    (lambda: fields.progressive_like(X, 1.0, N.at(stream=64)), ValueError, "takes stream 0, got 64"),
    (lambda: fields.freenoise_like(X, N.at(stream=12)), ValueError, "takes stream 0, got 12"),
    (
        lambda: fields.freenoise_like(X, N, context=4, stride=5),
        ValueError,
        "stride = 5: expected at most the 4 frames of context",
    ),
    (lambda: fields.freenoise_like(X, N, context=0), ValueError, "context = 0: expected an integer of at least 1"),
    (lambda: fields.freenoise_like(X, N, context=4, stride=2.0), TypeError, "stride = 2.0: expected an integer"),
    (lambda: fields.pyramid_like(X, 0.8, N.at(stream=10)), ValueError, "takes stream 0, got 10"),
    (lambda: fields.pyramid_like(X, 1e20, N), ValueError, "discount = 1e.20: expected a finite number from 0 to 1"),
    (
        lambda: fields.nearest_of(2, X + np.nan, N),
        ValueError,
        r"x0\[0\]: expected finite numbers, as no noise is near to others",
    ),
    (lambda: fields.assigned(X + np.inf, N), ValueError, "x0: expected finite numbers"),
    (lambda: fields.perturbed(X, 1, None, 0.1, N), TypeError, "schedule"),
    (
        lambda: fields.perturbed(X, 1, nf.Schedule.linear(), -0.1, N),
        ValueError,
        "gamma = -0.1: expected a finite number of at least 0",
    ),
    (
        lambda: fields.perturbed(X.astype("u1"), 1, nf.Schedule.linear(), 0.1, N),
        TypeError,
        "expected floats, .* got uint8",
    ),
    (lambda: fields.nearest_of(0, X, N), ValueError, "k = 0: expected an integer of at least 1"),
    (lambda: fields.nearest_of(1.5, X, N), TypeError, "k = 1.5: expected an integer"),
    (lambda: fields.nearest_of(64, X, N.at(step=2**26)), OverflowError, r"step \* k \+ k - 1 goes beyond"),
    (lambda: fields.nearest_of(2, X, N.at(stream=64)), ValueError, "takes stream 0, got 64"),
    (lambda: fields.nearest_of(2, X, LISTED[:2]), ValueError, "expected one Noise for each of 3 samples, got 2"),
    (
        lambda: fields.perturbed(X, [1, 2], nf.Schedule.linear(), 0.1, N),
        ValueError,
        r"t: expected a number or shape \(3,\)",
    ),
    (lambda: fields.perturbed(X, 1, nf.Schedule.linear(), 0.1, N.at(stream=3)), ValueError, "takes stream 0, got 3"),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_errors_say_what_was_given(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


S = nf.Schedule.linear()
OLD = {
    "offset_like(x, strength, noise)": lambda noise: fields.offset_like(X, noise, 0.1),
    "pyramid_like(x, discount, noise)": lambda noise: fields.pyramid_like(X, noise, 0.8),
    "mixed_like(x, alpha, noise)": lambda noise: fields.mixed_like(X, noise, 1.0),
    "progressive_like(x, alpha, noise)": lambda noise: fields.progressive_like(X, noise, 1.0),
    "perturbed(x_t, t, schedule, gamma, noise)": lambda noise: fields.perturbed(X, 1, S, noise, 0.1),
}


@pytest.mark.parametrize("order", OLD)
def test_noise_comes_last(order):
    for noise, what in ((N, "Noise"), ([N, N, N], "list")):
        with pytest.raises(
            TypeError, match=rf"^\w+ = .*: expected a number, got {what}; the order is {re.escape(order)}$"
        ):
            OLD[order](noise)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 4 were given"):
        fields.freenoise_like(X, N, 16, 4)
