# SPDX-License-Identifier: Apache-2.0
"""Noise in a region: that of the whole image's elements inside, and x outside, bit for bit.

Seen to fail: the noise of a window in place of the whole image's; boxes whose ends lie inside; x and y exchanged; -0
that became 0 outside; an `out` that is x, from which what was there is read after the noise was written; floats that
were cut off to levels outside; a mask that is broadcast from the wrong end.
"""

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES
from cuda_kernels import stand_in
from noisefuse import augment

N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
B, H, W, C = 4, 18, 21, 3
BYTES = RNG.integers(0, 256, (B, H, W, C), dtype=np.uint8)
FLOATS = RNG.normal(size=(B, H, W, C)).astype(np.float32)
FLOATS[RNG.random(FLOATS.shape) < 0.2] = -0.0
FLOATS.view(np.uint32)[:, 0, 0] = 0x7FC01234  # a NaN with a message
PIXELS = RNG.random((H, W)) < 0.4
EACH = RNG.random((B, H, W)) < 0.4
LEVELS = np.arange(256.0)

CALLS = {
    "gaussian": lambda x, **o: augment.gaussian(x, 12.0, N, mean=-3, **o),
    "gaussian, shared": lambda x, **o: augment.gaussian(x, 12.0, N, shared=True, layout="HWC", **o),
    "gaussian of each": lambda x, **o: augment.gaussian(x, [1.0, 20.0, 3.5, 9.0], N, clip=(20, 99), **o),
    "multiplicative": lambda x, **o: augment.multiplicative(x, 0.3, N, **o),
    "sensor": lambda x, **o: augment.sensor(x, 0.5, 2.0, N, **o),
    "by_level": lambda x, **o: augment.by_level(x, LEVELS, LEVELS / 9, N, **o),
    "poisson": lambda x, **o: augment.poisson(x, 30.0, N, gamma=2.2, **o),
    "transition": lambda x, **o: augment.transition(x, np.eye(256)[::-1], N, **o),
    "impulse": lambda x, **o: augment.impulse(x, 0.5, N, layout="HWC", shared=True, **o),
    "rician": lambda x, **o: augment.rician(x, 9.0, N, coils=2, **o),
    "corrupt": lambda x, **o: augment.corrupt(x, "shot_noise", 3, N, **o),
    "at_snr": lambda x, **o: augment.at_snr(np.nan_to_num(x), 3.0, N, **o),
    "coloured": lambda x, **o: augment.coloured(np.nan_to_num(x), 3.0, N, "pink", **o),
}
OF_FLOATS = {"at_snr", "coloured"}
OF_BYTES = {"by_level", "transition", "corrupt"}


def given(name):
    return np.nan_to_num(FLOATS) if name in OF_FLOATS else BYTES


def boxed(boxes):
    """Returns the mask of boxes by its definition: a pixel lies inside from x0 and y0 on, and before x1 and y1."""
    i, j = np.mgrid[:H, :W]
    return np.any([(x0 <= j) & (j < x1) & (y0 <= i) & (i < y1) for x0, y0, x1, y1 in boxes] or [i < 0], axis=0)


def same(found, expected):
    assert (type(found), found.shape, found.dtype) == (type(expected), expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def chosen(mask, noisy, x):
    return np.where(mask.reshape(-1, H, W, 1), noisy, x)


@pytest.mark.parametrize("name", CALLS)
def test_a_region_chooses_between_the_noisy_image_and_the_image(name, host):
    x, call = given(name), CALLS[name]
    noisy = call(x)
    for mask in (PIXELS, EACH):
        expected = chosen(mask, noisy, x)
        same(call(x, region=mask), expected)
        for out in (np.empty_like(x), x.copy()):
            assert call(out if (out == x).all() else x, region=mask, out=out) is out
            same(out, expected)
    assert (x == given(name)).all()


@pytest.mark.parametrize("kind", [*DTYPES, "uint16"])
@pytest.mark.parametrize("name", sorted({*CALLS} - OF_BYTES - OF_FLOATS))
def test_all_dtypes_keep_their_bits_outside(name, kind):
    """Numbers that arithmetic would change stay: -0, and a NaN with a message."""
    x = FLOATS.astype(DTYPES[kind]) if kind in DTYPES else BYTES.astype(kind)
    with np.errstate(all="ignore"):
        same(CALLS[name](x, region=EACH), chosen(EACH, CALLS[name](x), x))


@pytest.mark.parametrize("result", ["float32", "float64", "float16", "uint16"])
@pytest.mark.parametrize("name", ["gaussian", "gaussian of each", "by_level"])
def test_another_dtype_has_x_converted_outside(name, result):
    noisy = CALLS[name](BYTES, dtype=result)
    same(CALLS[name](BYTES, region=EACH, dtype=result), chosen(EACH, noisy, BYTES.astype(result)))
    out = np.empty_like(noisy)
    same(CALLS[name](BYTES, region=EACH, out=out), chosen(EACH, noisy, BYTES.astype(result)))


def test_floats_that_become_levels_are_rounded_and_clipped_outside():
    x = np.float32(RNG.uniform(-20, 300, BYTES.shape))
    expected = np.rint(x).clip(0, 255).astype(np.uint8)
    same(augment.gaussian(x, 5.0, N, region=np.zeros((H, W), bool), dtype="uint8"), expected)
    swapped = FLOATS.astype(">f4")
    same(augment.gaussian(swapped, 5.0, N, region=PIXELS), chosen(PIXELS, augment.gaussian(FLOATS, 5.0, N), FLOATS))


BOXES = [[2, 3, 9, 5], [0, 0, 1, 1], [20, 10, 99, 12], [-5, 16, 3, 40]]


@pytest.mark.parametrize("layout", ["HWC", "CHW", None])
def test_boxes(layout):
    """Ends lie outside, and parts beyond the image have no pixels."""
    call = lambda x, region, **o: augment.gaussian(x, 9.0, N, region=region, layout=layout, **o)  # noqa: E731
    x = np.ascontiguousarray(BYTES.transpose(0, 3, 1, 2)) if layout == "CHW" else BYTES
    noisy, axis = augment.gaussian(x, 9.0, N), 1 if layout == "CHW" else -1
    first, second = BOXES[:2], [[4.5, 1.5, 8.5, 9.0]]
    for region, per_sample in {
        "list": (BOXES, [BOXES] * B),
        "array": (np.array(BOXES, np.int16), [BOXES] * B),
        "none": ([], [[]] * B),
        "none, too": (np.empty((0, 4)), [[]] * B),
        "of each": ([np.array(first), np.array(second), np.empty((0, 4)), np.array(BOXES)],
                    [first, second, [], BOXES]),
        "stacked": (np.array([first, BOXES[2:], BOXES[1:3], first]), [first, BOXES[2:], BOXES[1:3], first]),
    }.values():  # fmt: skip
        masks = np.expand_dims(np.stack([boxed(boxes) for boxes in per_sample]), axis)
        same(call(x, region), np.where(masks, noisy, x))
        same(
            call(x[3], per_sample[3], batched=False),
            np.where(masks[3], call(x[3], [[0, 0, W, H]], batched=False), x[3]),
        )
    grey = BYTES[..., 0].copy()
    noisy = augment.poisson(grey, 9.0, N, batched=True)
    same(augment.poisson(grey, 9.0, N, region=BOXES, batched=True), np.where(boxed(BOXES), noisy, grey))


def test_a_mask_in_each_shape():
    first = np.ascontiguousarray(BYTES.transpose(0, 3, 1, 2))
    for x, pixel in ((BYTES, np.s_[..., None]), (first, np.s_[..., None, :, :])):
        noisy = augment.rician(x, 9.0, N)
        full = RNG.random(x.shape) < 0.5
        for mask in (full, full[0], full[:1], full[:, :1], full[..., :1]):
            same(augment.rician(x, 9.0, N, region=mask), np.where(mask, noisy, x))
        for mask in (PIXELS, EACH, PIXELS.tolist(), list(EACH)):
            same(augment.rician(x, 9.0, N, region=mask), np.where(np.asarray(mask)[pixel], noisy, x))
        one = augment.rician(x[0], 9.0, N, batched=False)
        same(augment.rician(x[0], 9.0, N, region=full[0], batched=False), np.where(full[0], one, x[0]))
        same(augment.rician(x[0], 9.0, N, region=PIXELS, batched=False), np.where(PIXELS[pixel], one, x[0]))
    clips = FLOATS[:, 1:].reshape(B, -1)
    part = RNG.random(clips.shape[1]) < 0.5
    same(augment.at_snr(clips, 3.0, N, region=part), np.where(part, augment.at_snr(clips, 3.0, N), clips))


@pytest.mark.parametrize("name", ["gaussian", "poisson", "impulse", "corrupt"])
def test_lists(name):
    images = [BYTES[0], BYTES[1, :9], BYTES[2, :, :11], BYTES[3]]
    noisy, x = CALLS[name](images), [image.copy() for image in images]
    masks = [RNG.random(image.shape[:2]) < 0.5 for image in images[:3]] + [boxed(BOXES)]
    for region in ([*masks[:3], np.array(BOXES)], [*masks[:3], BOXES]):
        found = CALLS[name](images, region=region)
        assert type(found) is list
        for b in range(B):
            same(found[b], np.where(masks[b][..., None], noisy[b], images[b]))
    for b, one in enumerate(CALLS[name](images, region=np.array([[1, 2, 5, 7]]))):
        assert ((one != images[b]).any(-1) <= boxed([[1, 2, 5, 7]])[: one.shape[0], : one.shape[1]]).all()
        assert (one != images[b]).any()
    assert all(map(np.array_equal, images, x))


@pytest.mark.parametrize("name", CALLS)
def test_tensors(name):
    torch = pytest.importorskip("torch")
    x, call = given(name), CALLS[name] if name not in OF_FLOATS else {
        "at_snr": lambda x, **o: augment.at_snr(x, 3.0, N, **o),
        "coloured": lambda x, **o: augment.coloured(x, 3.0, N, "pink", **o),
    }[name]  # fmt: skip
    expected = call(x, region=EACH)
    for region in (EACH, torch.from_numpy(EACH), list(torch.from_numpy(EACH))):
        found = call(torch.from_numpy(x), region=region)
        assert isinstance(found, torch.Tensor)
        same(found.numpy(), expected)
    out = torch.from_numpy(x.copy())
    assert call(out, region=torch.from_numpy(EACH), out=out) is out
    same(out.numpy(), expected)
    frozen = EACH.copy()
    frozen.flags.writeable = False
    same(call(torch.from_numpy(x), region=frozen).numpy(), expected)


def test_tensors_of_other_dtypes_and_layouts():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.ascontiguousarray(BYTES.transpose(0, 3, 1, 2))).contiguous(
        memory_format=torch.channels_last
    )
    found = augment.gaussian(x, 9.0, N, region=BOXES, layout="CHW", dtype=torch.bfloat16)
    noisy = augment.gaussian(x, 9.0, N, dtype=torch.bfloat16)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, torch.where(torch.from_numpy(boxed(BOXES)), noisy, x.bfloat16()))
    compiled = torch.compile(lambda x, mask: augment.gaussian(x, 9.0, N, region=mask), backend="eager")
    mask = torch.from_numpy(EACH)
    assert torch.equal(compiled(x, mask), torch.where(mask[:, None], augment.gaussian(x, 9.0, N), x))


def test_arrays_of_jax_and_dask():
    jax, da = pytest.importorskip("jax"), pytest.importorskip("dask.array")
    expected = np.where(EACH[..., None], augment.gaussian(FLOATS, 9.0, N), FLOATS)
    call = lambda x, mask: augment.gaussian(x, 9.0, N, region=mask)  # noqa: E731
    x, mask = jax.numpy.asarray(FLOATS), jax.numpy.asarray(EACH)
    for found in (call(x, EACH), call(x, mask), jax.jit(call)(x, mask), jax.jit(lambda x: call(x, EACH))(x)):
        assert isinstance(found, jax.Array)
        assert np.array_equal(np.asarray(found), expected, equal_nan=True)
    lazy = da.from_array(FLOATS, chunks=(2, 7, 21, 3))
    for region in (EACH, da.from_array(EACH, chunks=(3, 9, 5))):
        found = call(lazy, region)
        assert isinstance(found, da.Array)
        same(found.compute(), expected)
    same(augment.gaussian(lazy, 9.0, N, region=BOXES).compute(), augment.gaussian(FLOATS, 9.0, N, region=BOXES))


def test_arrays_on_a_device():
    """Arrays of CuPy, whose kernels run on the stand-in of a device."""
    expected = chosen(EACH, augment.gaussian(BYTES, 9.0, N), BYTES)
    with stand_in.installed() as cupy:
        x = cupy.asarray(BYTES)
        for region in (EACH, cupy.asarray(EACH), list(EACH)):
            found = augment.gaussian(x, 9.0, N, region=region)
            assert type(found) is type(x)
            same(cupy.asnumpy(found), expected)
        assert augment.gaussian(x, 9.0, N, region=EACH, out=x) is x
        same(cupy.asnumpy(x), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_threads(threads):
    with nf.set_num_threads(threads):
        same(augment.gaussian(BYTES, 9.0, N, region=EACH), chosen(EACH, augment.gaussian(BYTES, 9.0, N), BYTES))


CUBE = np.zeros((3, 3, 32, 32), np.uint8)
WRONG = {
    "no bools": (BYTES, EACH.astype(np.uint8), r"region: expected bool of shape \(H, W\).* got uint8 of shape \(4, 1"),
    "another shape": (BYTES, PIXELS.T, r"region: expected bool .*got bool of shape \(21, 18\) for x of shape \(4, 18"),
    "too few samples": (BYTES, EACH[:3], r"region: expected bool .*got bool of shape \(3, 18, 21\)"),
    "boxes of five": (BYTES, np.zeros((2, 5)), r"region: expected bool .*\(N, 4\), got float64 of shape \(2, 5\)"),
    "one box": (BYTES, [1, 2, 3, 4], r"region: expected bool .*boxes \(N, 4\), got int64 of shape \(4,\)"),
    "ends before": (BYTES, [[0, 0, 1, 1], [5, 1, 4, 9]], r"region: expected finite x0 <= x1 .*box \[5\.0, 1\.0, 4\.0"),
    "no number": (BYTES, [[0, 0, 1, np.nan]], r"region: expected finite x0 <= x1"),
    "text": (BYTES, "all", r"region: expected"),
    "a few": (BYTES, [np.zeros((1, 4))] * 3, r"region: expected one for each of 4 samples, got 3"),
    "one is wrong": (BYTES, [np.zeros((1, 4))] * 3 + [PIXELS.T], r"region\[3\]: expected bool .*shape \(21, 18\)"),
    "two readings": (CUBE, CUBE[0] > 0, r"region: shape \(3, 32, 32\) may stand for \(1, 3, 32, 32\) or \(3, 1, 32"),
    "no image": (FLOATS.reshape(B, -1), [[0, 0, 1, 1]], r"region: samples of shape \(1134,\) do not tell .*a mask"),
    "no layout": (np.zeros((2, 3, 9, 3), np.float32), BOXES, r"region: samples of shape \(3, 9, 3\) .*pass layout="),
    "fewer of a list": ([BYTES[0], BYTES[1]], [PIXELS], r"region: expected one for each of 2 images, got 1"),
    "one of a list": ([BYTES[0], BYTES[1]], [PIXELS, PIXELS.T], r"region\[1\]: expected bool .*shape \(21, 18\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(case):
    x, region, said = WRONG[case]
    out = None if isinstance(x, list) else np.full_like(x, 77)
    with pytest.raises((TypeError, ValueError), match=said):
        augment.gaussian(x, 1.0, N, region=region, out=out)
    assert out is None or (out == 77).all()


def test_what_is_wrong_with_other_arguments_is_said_as_without_a_region():
    out = np.full_like(BYTES, 77)
    for change, said in (
        ({"out": out[:3]}, "out: expected shape"),
        ({"out": np.asfortranarray(out)}, "out: expected a C-contiguous"),
        ({"std": -1.0, "out": out}, "std = -1.0"),
        ({"noise": [N] * 3, "out": out}, "expected one Noise for each of 4"),
        ({"x": 3}, "x: expected an array"),
        ({"x": BYTES[0], "region": PIXELS}, "may be one image and not a batch"),
        ({"out": BYTES.reshape(-1)[1:]}, "out: expected shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            augment.gaussian(**{"x": BYTES, "std": 1.0, "noise": N, "region": EACH} | change)
    assert (out == 77).all()
