# SPDX-License-Identifier: Apache-2.0
"""GaussianNoise in the place of torchvision's: its arguments, types and seeds, and its noise."""

import pickle

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from noisefuse.interop.torchvision import GaussianNoise  # noqa: E402

IMAGE = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_moments_are_those_of_theirs(dtype):
    """But that theirs truncate bytes. Seen to fail: floats with the std of bytes."""
    unit = 255 if dtype == torch.uint8 else 1
    grey = torch.full((3, 256, 256), 128 if dtype == torch.uint8 else 0.5).to(dtype)
    for kind in (GaussianNoise, v2.GaussianNoise):
        found = kind(mean=0.05, sigma=0.1)(grey)
        assert found.dtype == dtype
        noise = (found.double() - grey.double()) / unit
        assert abs(noise.mean() - 0.05) < 0.003
        assert abs(noise.std() - 0.1) < 0.002


def test_the_generator_of_torch_names_the_noise():
    transform, found = GaussianNoise(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(transform(IMAGE))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(transform(IMAGE), transform(IMAGE))


def test_a_key_names_the_noise():
    """Seen to fail: an epoch that plays no part."""
    transform = v2.Compose([v2.Identity(), GaussianNoise(sigma=0.1).at("cat.png", epoch=2, seed=5)])
    noise = nf.Noise(5, sample=nf.augment.sample_id("cat.png"), step=2)
    expected = nf.augment.gaussian(IMAGE, 25.5, noise, batched=False)
    assert torch.equal(transform(IMAGE), expected)
    assert torch.equal(transform(IMAGE), expected)
    assert not torch.equal(GaussianNoise(sigma=0.1).at("cat.png", epoch=3, seed=5)(IMAGE), expected)
    with pytest.raises(TypeError, match=r"key = 1.5"):
        GaussianNoise().at(1.5)


def test_types_are_kept_or_passed_through():
    image, video = tv_tensors.Image(IMAGE), tv_tensors.Video(torch.stack(2 * [IMAGE]))
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(40, 50))
    mask = tv_tensors.Mask(IMAGE[0])
    found = GaussianNoise()({"image": image, "video": video, "boxes": boxes, "mask": mask, "label": 3})
    assert type(found["image"]) is tv_tensors.Image
    assert type(found["video"]) is tv_tensors.Video
    assert not torch.equal(found["video"][0], found["video"][1])  # each frame has its own
    assert found["boxes"] is boxes
    assert found["mask"] is mask
    assert found["label"] == 3


def test_it_is_pickled():
    transform = GaussianNoise(0.1, 0.2).at(3)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(IMAGE), transform(IMAGE))


def test_floats_are_clipped_where_that_is_asked():
    floats = IMAGE.float() / 255
    assert GaussianNoise(sigma=0.5)(floats).min() == 0
    assert GaussianNoise(sigma=0.5, clip=False)(floats).min() < 0
    assert GaussianNoise(sigma=0.5, clip=False)(IMAGE).min() == 0


def test_wrong_images_and_numbers_are_named():
    pil = pytest.importorskip("PIL.Image")
    with pytest.raises(ValueError, match="image of PIL"):
        GaussianNoise()(pil.fromarray(IMAGE.permute(1, 2, 0).numpy()))
    with pytest.raises(ValueError, match=r"got torch.int32"):
        GaussianNoise()(IMAGE.int())
    for sigma in (-1, np.nan):
        with pytest.raises(ValueError, match="sigma = "):
            GaussianNoise(sigma=sigma)
    transform = GaussianNoise()
    with pytest.warns(UserWarning, match="look like 0 .. 255"):
        transform(IMAGE.float())
    transform(IMAGE.float())  # once
