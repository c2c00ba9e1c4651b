# SPDX-License-Identifier: Apache-2.0
"""GaussianNoise in place of torchvision's class: its arguments, types and seeds, and its noise. And Prepare."""

import os
import pickle

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from noisefuse.interop.torchvision import GaussianNoise, Prepare  # noqa: E402

IMAGE = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_moments_are_those_of_theirs(dtype):
    """Compares with theirs, which truncates bytes. Seen to fail: floats with the std of bytes."""
    unit = 255 if dtype == torch.uint8 else 1
    grey = torch.full((3, 256, 256), 128 if dtype == torch.uint8 else 0.5).to(dtype)
    floats_alone = torchvision.__version__.startswith("0.21.") and dtype == torch.uint8  # a limit of that version
    for kind in (GaussianNoise,) if floats_alone else (GaussianNoise, v2.GaussianNoise):
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
    """Seen to fail: an epoch that is ignored."""
    transform = v2.Compose([v2.Identity(), GaussianNoise(sigma=0.1).at("cat.png", epoch=2, seed=5)])
    noise = nf.Noise(5, sample=nf.augment.sample_id("cat.png"), step=2)
    expected = nf.augment.gaussian(IMAGE, 25.5, noise, batched=False)
    assert torch.equal(transform(IMAGE), expected)
    assert torch.equal(transform(IMAGE), expected)
    assert not torch.equal(GaussianNoise(sigma=0.1).at("cat.png", epoch=3, seed=5)(IMAGE), expected)
    with pytest.raises(TypeError, match=r"key = 1.5"):
        GaussianNoise().at(1.5)


@pytest.mark.parametrize("options", [{}, {"mean": [0.5] * 3, "std": [0.25] * 3}], ids=["noise", "prepare"])
def test_a_dict_brings_the_key(options):
    """Seen to fail: a seed that is ignored; a warning for each image."""

    def made(**keyed):
        return Prepare(*options.values(), sigma=0.1, **keyed) if options else GaussianNoise(sigma=0.1, **keyed)

    transform = v2.Compose([v2.Identity(), made(key="index", noise_seed=5)])
    for key in (7, "cat.png", ("cat.png", 2)):
        item = {"image": IMAGE, "index": key, "label": 3}
        found = transform(item)
        expected = made().at(*(key if isinstance(key, tuple) else (key,)), seed=5)(IMAGE)
        assert torch.equal(found["image"], expected)
        assert found["index"] == key
    assert torch.equal(transform(IMAGE, {"index": 7})[0], transform({"image": IMAGE, "index": 7})["image"])
    assert torch.equal(pickle.loads(pickle.dumps(transform))(item)["image"], expected)
    for missing in ({"image": IMAGE}, IMAGE):
        with pytest.raises(KeyError, match="expected index="):
            transform(missing)
    with pytest.raises(OverflowError):
        made(noise_seed=-1)
    with pytest.warns(UserWarning, match="look like 0 .. 255"):
        transform({"image": IMAGE.float(), "index": 7})
    transform({"image": IMAGE.float(), "index": 7})  # once


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return GaussianNoise().at(index, epoch=1)(IMAGE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_make_the_same():
    """Without a key each worker has its own seed, from torch."""
    alone, workers = (
        torch.cat([*torch.utils.data.DataLoader(Items(), 4, num_workers=n, multiprocessing_context=start)])
        for n, start in ((0, None), (2, "fork"))
    )
    assert torch.equal(alone, workers)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_it_is_compiled_mapped_and_differentiated(dtype, clip):
    """Theirs passes all three. Seen to fail: Unsupported of as_subclass, a RuntimeError of vmap and a
    NotImplementedError of the gradient, as before; one noise for all images of vmap; a gradient where it is clipped."""
    transform = GaussianNoise(sigma=0.3, clip=clip)
    images = torch.stack([IMAGE, IMAGE]) if dtype == torch.uint8 else (torch.stack([IMAGE, IMAGE]) / 255).to(dtype)
    image = images[0]
    if nf.interop.torch.internals.FOLLOWED:
        torch.compiler.reset()
        compiled = torch.compile(transform, fullgraph=True, backend="eager")
        for named in (compiled, torch.compile(transform.at(7), fullgraph=True, backend="aot_eager")):
            torch.manual_seed(1)
            found = named(image)
            torch.manual_seed(1)
            assert torch.equal(found, (transform if named is compiled else transform.at(7))(image))
    for randomness in ("different", "same"):
        found = torch.vmap(transform, randomness=randomness)(images)
        assert found.dtype == dtype
        assert torch.equal(found[0], found[1]) == (randomness == "same")
    assert torch.equal(torch.vmap(transform.at(7))(images)[1], transform.at(7)(image))
    if dtype == torch.uint8:
        return
    leaf = image.clone().requires_grad_()
    found = transform.at(7)(leaf)
    assert torch.equal(found, transform.at(7)(image))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(gradient != 0, (found > 0) & (found < 1) if clip else torch.ones_like(found, dtype=torch.bool))
    mapped = torch.vmap(torch.func.grad(lambda x: transform.at(7)(x).sum()))(images)
    assert torch.equal(mapped[1], gradient)


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


def test_a_transform_is_pickled():
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


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
THEIRS = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image, tv_tensors.Video, "PIL", "float"])
def test_prepare_is_what_three_transforms_are(kind):
    """Seen to fail: the means in the order of BGR."""
    pil = pytest.importorskip("PIL.Image")
    given = {"PIL": lambda: pil.fromarray(IMAGE.permute(1, 2, 0).numpy()), "float": lambda: IMAGE / 255}
    image = given[kind]() if kind in given else torch.stack(2 * [IMAGE]).as_subclass(torch.Tensor)
    if kind in (tv_tensors.Image, tv_tensors.Video):
        image = kind(image)
    found, expected = Prepare(MEAN, STD)(image), THEIRS(image)
    assert type(found) is (torch.Tensor if kind in (torch.Tensor, "float") else type(expected))
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize("mode", ["L", "I;16"])
@pytest.mark.parametrize("means", [1, 3])
def test_prepare_takes_grey_images_of_pil(mode, means):
    """One channel has as many copies as there are means. Seen to fail: ValueErrors of the means, and of uint16; a
    fraction of 255 where 65535 is white; one noise for all copies."""
    pil, last = pytest.importorskip("PIL.Image"), 256 if mode == "L" else 65536
    grey = np.random.default_rng(0).integers(0, last, (20, 30)).astype("uint8" if mode == "L" else "uint16")
    image, given = pil.fromarray(grey), (MEAN[:means], STD[:means])
    assert image.mode == mode
    expected = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*given)])(image)
    found = Prepare(*given)(image)
    assert found.is_contiguous()
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    noisy = Prepare(*given, sigma=0.1).at(3)(image)
    z = (noisy - found).as_subclass(torch.Tensor) / 0.1
    assert noisy.shape == (means, 20, 30)
    torch.testing.assert_close(z, nf.randn(z.shape, nf.Noise(0, sample=3), batched=False, dtype=torch.float32),
                               atol=1e-4, rtol=0)  # fmt: skip
    frames = torch.from_numpy(np.stack([grey] * 2))[:, None]
    assert Prepare(*given)(frames).shape == (2, means, 20, 30)


def test_noise_of_uint16_is_a_fraction_of_65535():
    image = torch.from_numpy(np.full((1, 64, 64), 30000, np.uint16))
    found = GaussianNoise(mean=0.01, sigma=0.1).at(3)(image)
    expected = nf.augment.gaussian(image, 6553.5, nf.Noise(0, sample=3), mean=655.35, batched=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_prepare_adds_noise_by_name(dtype):
    """Equal bit for bit to augment's. Seen to fail: a sigma in units of the image."""
    transform = Prepare(MEAN, STD, sigma=0.1, dtype=dtype).at("cat.png", epoch=2, seed=5)
    noise = nf.Noise(5, sample=nf.augment.sample_id("cat.png"), step=2)
    options = {"scale_mean": MEAN, "scale_std": STD, "noise_std": 0.1, "dtype": dtype, "batched": False}
    expected = nf.augment.prepare(IMAGE.permute(1, 2, 0), noise=noise, **options)
    assert expected.dtype == dtype
    assert torch.equal(transform(IMAGE), expected)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(IMAGE), expected)
    difference = transform(IMAGE).double() - Prepare(MEAN, STD)(IMAGE).double()
    assert abs(difference.std() - 0.1) < 0.005


def test_prepare_gives_each_frame_its_own_noise_and_passes_the_rest():
    """Seen to fail: a second frame with the noise of the next item."""
    frames = tv_tensors.Video(torch.zeros((2, 3, 40, 50), dtype=torch.uint8))
    mask = tv_tensors.Mask(IMAGE[0])
    found = Prepare(MEAN, STD, sigma=0.1).at(6)({"video": frames, "mask": mask, "label": 3})
    assert found["mask"] is mask
    assert found["label"] == 3
    alone = Prepare(MEAN, STD, sigma=0.1).at(6)(frames[0])
    torch.testing.assert_close(found["video"][0], alone)  # the elements count on from frame to frame
    following = Prepare(MEAN, STD, sigma=0.1).at(7)(frames[0])
    assert not torch.allclose(found["video"][1], following, atol=0.01)
    assert not torch.allclose(found["video"][1], found["video"][0], atol=0.01)
    torch.manual_seed(1)
    first = Prepare(MEAN, STD, sigma=0.1)(frames)
    torch.manual_seed(1)
    assert torch.equal(Prepare(MEAN, STD, sigma=0.1)(frames), first)


def test_what_prepare_cannot_take_is_named():
    with pytest.raises(ValueError, match="sigma = -1"):
        Prepare(MEAN, STD, sigma=-1)
    with pytest.raises(TypeError, match=r"dtype = torch.uint8: expected a float"):
        Prepare(MEAN, STD, dtype=torch.uint8)
    with pytest.raises(ValueError, match="mean: expected a number or one for each of 4 channels"):
        Prepare(MEAN, STD)(torch.zeros((4, 8, 8)))
    with pytest.raises(ValueError, match=r"expected a tensor \(.., C, H, W\), got shape \(8, 8\)"):
        Prepare(MEAN, STD)(torch.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"got torch.int32"):
        Prepare(MEAN, STD)(IMAGE.int())
    with pytest.warns(UserWarning, match="Prepare: floats are taken to be in"):
        Prepare(MEAN, STD)(IMAGE.float())
