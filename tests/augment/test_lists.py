# SPDX-License-Identifier: Apache-2.0
"""Lists of images of any size: each image is a sample, with the noise that it has alone.

Seen to fail: one key for all images; a number for each sample given to all; results of bfloat16 that begin between two
elements; the error of whichever thread came first.
"""

import threading

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from noisefuse import augment

N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
SHAPES = (20, 30, 3), (17, 5), (200, 300, 3), (1, 1), (0, 4), (70, 211, 3)
IMAGES = [RNG.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]
ONES = [N.at(sample=5 + b) for b in range(len(SHAPES))]
EACH = [1.0, 20.0, 3.5, 9.0, 2.0, 40.0]
LEVELS = np.arange(256.0)
FLIPS = np.stack([np.eye(256)[::step] for step in (1, -1) * 3])

CALLS = {
    "gaussian": lambda x, std, noise, **o: augment.gaussian(x, std, noise, mean=-3, **o),
    "multiplicative": lambda x, std, noise, **o: augment.multiplicative(x, std, noise, **o),
    "sensor": lambda x, a, noise, **o: augment.sensor(x, a, 2.0, noise, **o),
    "by_level": lambda x, _, noise, **o: augment.by_level(x, LEVELS, LEVELS / 9, noise, **o),
    "poisson": lambda x, peak, noise, **o: augment.poisson(x, peak, noise, **o),
    "impulse": lambda x, p, noise, **o: augment.impulse(x, np.divide(p, 40), noise, values=(9, 200), **o),
    "rician": lambda x, std, noise, **o: augment.rician(x, std, noise, coils=2, **o),
    "corrupt": lambda x, _, noise, **o: augment.corrupt(x, "gaussian_noise", 3, noise, **o),
}


def alone(name, images, numbers=EACH):
    call = CALLS[name]
    return [call(x, p, one, batched=False) for x, p, one in zip(images, numbers, ONES, strict=True)]


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_an_image_has_the_noise_that_it_has_alone(name, host):
    small = [x[:30, :40] for x in IMAGES] if host == "reference" else IMAGES
    expected = alone(name, small)
    with using(host):
        found = CALLS[name](small, EACH, N)
    assert type(found) is list
    same(found, expected)
    same(CALLS[name](small, EACH, N.at(sample=range(5, 11))), expected)
    same(CALLS[name](small, EACH, ONES), expected)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_other_dtypes_and_threads(kind, threads):
    images = [x.astype(DTYPES[kind]) for x in IMAGES]
    with nf.set_num_threads(threads):
        same(CALLS["gaussian"](images, EACH, N), alone("gaussian", images))
        same(augment.gaussian(IMAGES, 2.0, N, dtype=kind), [
            augment.gaussian(x, 2.0, one, dtype=kind, batched=False) for x, one in zip(IMAGES, ONES, strict=True)
        ])  # fmt: skip
    clips = images[:2]
    same(augment.at_snr(clips, [3.0, 20.0], N), [
        augment.at_snr(x, snr, one, batched=False) for x, snr, one in zip(clips, [3.0, 20.0], ONES, strict=False)
    ])  # fmt: skip


def test_numbers_of_channels_and_matrices():
    colours = [IMAGES[0], IMAGES[2]]
    std = np.array([[1.0, 2.0, 30.0], [9.0, 0.0, 4.0]])
    expected = [augment.gaussian(x, s, one, batched=False) for x, s, one in zip(colours, std, ONES, strict=False)]
    same(augment.gaussian(colours, std, N), expected)
    expected = [augment.transition(x, m, one, batched=False) for x, m, one in zip(IMAGES, FLIPS, ONES, strict=True)]
    same(augment.transition(IMAGES, FLIPS, N), expected)
    expected = [augment.transition(x, FLIPS[1], one, batched=False) for x, one in zip(IMAGES, ONES, strict=True)]
    same(augment.transition(IMAGES, FLIPS[1], N), expected)


def test_objects_in_an_array_and_other_libraries():
    objects = np.empty(len(IMAGES), object)
    objects[:] = IMAGES
    found = CALLS["sensor"](objects, EACH, N)
    assert found.dtype == object
    same(found, alone("sensor", IMAGES))
    same(CALLS["sensor"](tuple(IMAGES), EACH, N), alone("sensor", IMAGES))
    assert augment.gaussian([], 1.0, N) == []
    assert augment.poisson((), 1.0, []) == []


@pytest.mark.parametrize("name", CALLS)
def test_tensors(name):
    torch = pytest.importorskip("torch")
    found = CALLS[name](list(map(torch.from_numpy, IMAGES)), EACH, N)
    assert all(isinstance(one, torch.Tensor) for one in found)
    same([one.numpy() for one in found], alone(name, IMAGES))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"x": [1.0, 2.0]}, TypeError, r"x\[0\]: expected an array of NumPy.*got float"),
        ({"x": [IMAGES[0], IMAGES]}, TypeError, r"x\[1\]: expected an array of NumPy.*got list"),
        ({"x": np.array([[None]])}, ValueError, r"x: expected a list of images.*objects of shape \(1, 1\)"),
        ({"std": [1.0, 2.0]}, ValueError, r"std: expected one for all, or for each of 6 images, got shape \(2,\)"),
        ({"std": [1.0, -2.0, 1, 1, 1, 1]}, ValueError, r"std\[1\] = -2.0"),
        ({"noise": ONES[:2]}, ValueError, "noise: expected one Noise for each of 6 samples, got 2"),
        ({"noise": N.at(sample=[1, 2])}, ValueError, "has 2 sample ids, expected one for each of 6"),
        ({"batched": False}, ValueError, "batched = False: expected None or True for a list"),
        ({"out": IMAGES[0]}, TypeError, "out: expected a list of arrays for a list of images, got ndarray"),
        ({"out": IMAGES[:2]}, ValueError, "out: expected one array for each of 6 images, got 2"),
        ({"out": [None] * 6}, TypeError, r"out\[0\]: expected an array of NumPy's.*got NoneType"),
        ({"out": [*IMAGES[:5], IMAGES[5][::-1]]}, ValueError, r"out\[5\]: expected a C-contiguous, aligned array"),
        ({"out": [*IMAGES[:5], IMAGES[4]]}, ValueError, r"out\[5\]: expected shape \(70, 211, 3\), got \(0, 4\)"),
        ({"out": [*IMAGES[:3], IMAGES[0][0, 0, :1, None], *IMAGES[4:]]}, ValueError, r"out\[3\] overlaps out\[0\]"),
        ({"dtype": "int8"}, TypeError, "dtype int8: expected one of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change, error, said):
    given = {"x": IMAGES, "std": 1.0, "noise": N} | change
    with pytest.raises(error, match=said):
        augment.gaussian(**given)


@pytest.mark.parametrize("name", CALLS)
def test_results_in_the_callers_memory(name):
    """Results are written to arrays of the images' shapes, and to the images themselves. Seen to fail: a new list;
    images that are written before the region's rest is taken from them."""
    expected = CALLS[name](IMAGES, EACH, N)
    for out in ([np.zeros_like(x) for x in IMAGES], [x.copy() for x in IMAGES]):
        assert CALLS[name](IMAGES, EACH, N, out=out) is out
        same(out, expected)
    own, mask = [x.copy() for x in IMAGES], [RNG.random(shape[:2]) < 0.5 for shape in SHAPES]
    assert CALLS[name](own, EACH, N, out=own, region=mask) is own
    same(own, CALLS[name](IMAGES, EACH, N, region=mask))


def test_a_result_of_another_dtype_in_the_callers_memory():
    out = [np.zeros(x.shape, np.float32) for x in IMAGES]
    augment.gaussian(IMAGES, 2.0, N, out=out)
    same(out, augment.gaussian(IMAGES, 2.0, N, dtype="float32"))


def test_nothing_is_written_after_an_error():
    """Seen to fail: results of the images before the wrong one."""
    whole = np.zeros(10, np.uint8)
    good, torn = np.zeros((2, 3), np.uint8), whole[:6].reshape(2, 3)
    frozen = torn.copy()
    frozen.flags.writeable = False
    for x, out, error, said in (
        ([good, good.astype(np.int64)], [good.copy(), good.astype(np.int64)], TypeError, "dtype int64"),
        ([good, good], [good.copy(), good.astype(np.int8)], TypeError, "int8"),
        ([good, good], [good.copy(), frozen], ValueError, r"out\[1\]: expected a writable array"),
        ([good, torn], [good.copy(), whole[1:7].reshape(2, 3)], ValueError, r"out\[1\] overlaps x\[1\] in part"),
    ):
        for more in ({}, {"region": np.ones((1, 3), bool)}):
            with nf.set_num_threads(2), pytest.raises(error, match=said):
                augment.gaussian(x, 90.0, N, mean=90.0, out=out, **more)
            assert not any(one.any() for one in out)
    with pytest.raises(ValueError, match=r"region\[1\]"):
        augment.gaussian([good, good], 90.0, N, out=[torn, good], region=[np.ones((2, 3), bool), np.ones(7, bool)])
    assert not torn.any()


def test_the_error_is_that_of_the_first_image_that_has_one():
    wrong = [x.astype(np.int64 if b in (2, 4, 5) else np.uint8) for b, x in enumerate(IMAGES * 4)]
    for _ in range(20):
        with nf.set_num_threads(3), pytest.raises(TypeError, match="dtype int64") as raised:
            augment.gaussian(wrong, 1.0, N)
        assert raised.value.__notes__ == ["This is of x[2], an image of a list."]


def test_large_images_are_shared_by_threads(monkeypatch):
    """Seen to fail: a list that one thread takes alone."""
    seen, both = set(), threading.Barrier(2, timeout=60)

    def met(*given, **options):
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            both.wait()
        return np.zeros(1)

    monkeypatch.setattr("noisefuse.augment.impulses._impulse", met)
    with nf.set_num_threads(2):
        augment.impulse([IMAGES[2]] * 8, 0.1, N)
    assert len(seen) == 2
