# SPDX-License-Identifier: Apache-2.0
"""GaussNoise in the place of Albumentations': arguments, targets, seeds, serialisation and replay, and its noise."""

import os
import pickle

import numpy as np
import pytest

import noisefuse as nf

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version
A = pytest.importorskip("albumentations")
from noisefuse.interop.albumentations import GaussNoise  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
GREY = np.full((256, 256, 3), 128, np.uint8)


def compose(seed=1, **options):
    return A.Compose([GaussNoise(p=1.0, **options)], seed=seed)


def test_arguments_and_defaults_are_those_of_theirs():
    ours, theirs = (kind().get_transform_init_args() for kind in (GaussNoise, A.GaussNoise))
    assert {name: ours[name] for name in theirs} == theirs
    for wrong in ({"std_range": (0.5, 0.2)}, {"std_range": (-1, 0.2)}, {"mean_range": (0, 3)}, {"p": 2}):
        with pytest.raises(ValueError):
            A.GaussNoise(**wrong)
        with pytest.raises(ValueError):
            GaussNoise(**wrong)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_moments_are_those_of_theirs(dtype, per_channel):
    """Where nothing is clipped. Seen to fail: floats with the std of bytes."""
    unit = 255 if dtype == "uint8" else 1
    grey = GREY if dtype == "uint8" else np.full(GREY.shape, 0.5, np.float32)
    options = {"std_range": (0.1, 0.1), "mean_range": (0.05, 0.05), "per_channel": per_channel, "p": 1.0}
    for kind in (GaussNoise, A.GaussNoise):
        found = A.Compose([kind(**options)], seed=1)(image=grey)["image"]
        assert found.dtype == grey.dtype
        noise = (found.astype(float) - grey) / unit
        assert abs(noise.mean() - 0.05) < 0.003
        assert abs(noise.std() - 0.1) < 0.002
        assert per_channel != np.array_equal(noise[..., 0], noise[..., 1])


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 7)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_shape_is_taken(shape, per_channel):
    image = np.full(shape, 128, np.uint8)
    found = compose(per_channel=per_channel)(image=image)["image"]
    assert found.shape == shape
    assert found.std() > 20


def test_frames_and_slices_have_noise_of_their_own():
    """Seen to fail: as theirs, one field for all."""
    frames = np.stack(3 * [GREY[:32, :32]])
    found = compose()(images=frames)["images"]
    assert found.shape == frames.shape
    assert not np.array_equal(found[0], found[1])
    volumes = np.stack(2 * [frames])
    found = compose()(volumes=volumes)["volumes"]
    assert len({plane.tobytes() for volume in found for plane in volume}) == 6


def test_the_seed_of_a_pipeline_names_the_noise():
    first, again, other = (compose(seed)(image=IMAGE)["image"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    pipeline = compose()
    assert not np.array_equal(pipeline(image=IMAGE)["image"], pipeline(image=IMAGE)["image"])
    pipeline.set_random_seed(1)
    assert np.array_equal(pipeline(image=IMAGE)["image"], first)


def test_a_key_names_the_noise():
    """Seen to fail: a key that plays no part."""
    for key, sample in ((17, 17), ("cat.png", nf.augment.sample_id("cat.png"))):
        found = compose(key="index", std_range=(0.1, 0.1), noise_seed=5)(image=IMAGE, index=key)["image"]
        expected = nf.augment.gaussian(IMAGE, 25.5, nf.Noise(5, sample=sample), batched=False)
        assert np.array_equal(found, expected)
    first, other, later = (compose(key="index")(image=IMAGE, index=i)["image"] for i in (17, 18, (17, 1)))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, later)
    with pytest.raises(KeyError, match="expected index="):
        compose(key="index")(image=IMAGE)
    with pytest.raises(TypeError, match=r"key = 1.5: expected an int or a str"):
        compose(key="index")(image=IMAGE, index=1.5)


def test_it_is_serialised_pickled_and_replayed():
    for options in ({}, {"key": "index", "noise_seed": 3, "per_channel": False}):
        pipeline = compose(**options)
        given = {"image": IMAGE, "index": 4}
        expected = pipeline(**given)["image"]
        for same in (A.from_dict(A.to_dict(pipeline)), pickle.loads(pickle.dumps(pipeline))):
            same.set_random_seed(1)
            assert np.array_equal(same(**given)["image"], expected)
        replayed = A.ReplayCompose([GaussNoise(p=1.0, **options)])
        found = replayed(**given)
        assert np.array_equal(A.ReplayCompose.replay(found["replay"], **given)["image"], found["image"])


def test_what_is_not_made_here_is_refused():
    with pytest.raises(ValueError, match=r"noise_scale_factor = 0.5: expected 1"):
        GaussNoise(noise_scale_factor=0.5)
    with pytest.raises(OverflowError):
        GaussNoise(noise_seed=-1)
