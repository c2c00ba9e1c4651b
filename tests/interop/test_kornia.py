# SPDX-License-Identifier: Apache-2.0
"""Two transforms in place of kornia's: their arguments, shapes, containers, replay, seeds and noise."""

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
K = pytest.importorskip("kornia.augmentation")
from noisefuse.interop.kornia import RandomGaussianNoise, RandomSaltAndPepperNoise  # noqa: E402

BATCH = torch.rand((5, 3, 20, 30), generator=torch.Generator().manual_seed(0))


def test_arguments_and_defaults_are_those_of_theirs():
    for kind in (RandomGaussianNoise, RandomSaltAndPepperNoise):
        pair = kind.__init__, getattr(K, kind.__name__).__init__
        ours, theirs = (inspect.signature(one) for one in pair)
        assert list(ours.parameters) == [*theirs.parameters, "key", "noise_seed"]
        defaults = [p.default for p in theirs.parameters.values()]
        assert [p.default for p in ours.parameters.values()] == [*defaults, None, 0]
        assert repr(kind()) == repr(getattr(K, kind.__name__)())
    assert repr(RandomGaussianNoise(0.1, 0.2)) == repr(K.RandomGaussianNoise(0.1, 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_moments_are_those_of_theirs(dtype):
    grey = torch.full((2, 3, 128, 128), 0.5, dtype=dtype)
    for kind in (RandomGaussianNoise, K.RandomGaussianNoise):
        found = kind(mean=0.05, std=0.1, p=1.0)(grey)
        assert found.dtype == dtype
        noise = found.double() - 0.5
        assert abs(noise.mean() - 0.05) < 0.002
        assert abs(noise.std() - 0.1) < 0.002


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30), (1, 3, 20, 30), (5, 1, 20, 30), (0, 3, 20, 30)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_every_shape_is_taken(shape, keepdim):
    images = torch.zeros(shape)
    found, theirs = (kind(p=1.0, keepdim=keepdim)(images) for kind in (RandomGaussianNoise, K.RandomGaussianNoise))
    assert found.shape == theirs.shape
    assert not images.numel() or abs(found.std() - 1) < 0.1


def test_params_replay_the_noise():
    """Seen to fail: keys that are drawn in apply_transform, a seed of 32 bits."""
    augment = RandomGaussianNoise(std=0.1)
    found = augment(BATCH)
    params = copy.deepcopy(augment._params)
    assert params["noise"].shape == (5, 3)
    assert params["noise"][0, 0].abs() > 1 << 40
    augment(BATCH)
    saved = io.BytesIO()
    torch.save(params, saved)
    saved.seek(0)
    for same in (augment, RandomGaussianNoise(std=0.1), pickle.loads(pickle.dumps(augment))):
        assert torch.equal(same(BATCH, params=torch.load(saved)), found)
        saved.seek(0)
    part = {name: value[1:3] for name, value in params.items()}  # of some images
    assert torch.equal(augment(BATCH[1:3], params=part), found[1:3])
    mixed = params | {"noise": torch.stack([params["noise"][0], params["noise"][0] + 1])}
    mixed["batch_prob"] = torch.ones(2)
    expected = [
        nf.augment.gaussian(BATCH[i], 0.1, nf.Noise(row[0] % (1 << 64), sample=row[1], step=row[2]), batched=False)
        for i, row in enumerate(mixed["noise"].tolist())
    ]
    assert torch.equal(augment(BATCH[:2], params=mixed), torch.stack(expected))


def test_it_is_augment_gaussian():
    """Equal bit for bit. Seen to fail: another std."""
    augment = RandomGaussianNoise(mean=0.25, std=0.1, p=1.0)
    found = augment(BATCH)
    noise = nf.Noise(augment._params["noise"][0, 0].item() % (1 << 64))
    assert torch.equal(found, nf.augment.gaussian(BATCH, 0.1, noise, mean=0.25))


def test_the_generator_of_torch_names_the_noise():
    augment, found = RandomGaussianNoise(p=1.0), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(augment(BATCH))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(augment(BATCH), augment(BATCH))


def test_keys_name_the_noise():
    """The batch has no influence. Seen to fail: an epoch that is ignored, and p from torch's generator."""
    augment = RandomGaussianNoise(std=0.1)
    keys = ["a.png", 7, "c.png", 9, (1 << 56) - 1]
    found = augment.at(keys, epoch=2, seed=(1 << 64) - 5)(BATCH)
    changed = [not torch.equal(x, y) for x, y in zip(found, BATCH, strict=True)]
    assert 0 < sum(changed) < 5
    for i in range(5):
        alone = augment.at(keys[i], epoch=2, seed=(1 << 64) - 5)(BATCH[i])[0]
        assert torch.equal(alone, found[i])
        if changed[i]:
            noise = nf.Noise((1 << 64) - 5, sample=nf.augment.sample_id(keys[i]), step=2)
            assert torch.equal(alone, nf.augment.gaussian(BATCH[i], 0.1, noise, batched=False))
    always = RandomGaussianNoise(p=1.0)
    ids = torch.tensor([3, 1, 4, 1, 5])
    assert torch.equal(always.at(ids)(BATCH), always.at(ids.tolist())(BATCH))
    assert not torch.equal(always.at(ids)(BATCH), always.at(ids, epoch=1)(BATCH))
    assert augment._noise is None
    with pytest.raises(ValueError, match="keys: expected 5 for the images of this batch, got 2"):
        augment.at([1, 2])(BATCH)
    with pytest.raises(TypeError, match=r"key = 1.5: expected an int or a str"):
        augment.at([1.5])


@pytest.mark.parametrize("kind", [RandomGaussianNoise, RandomSaltAndPepperNoise])
def test_a_dict_brings_the_keys(kind):
    """Seen to fail: a seed that is ignored; params that are not kept."""
    augment, plain = kind(p=0.7, key="index", noise_seed=5), kind(p=0.7)
    for keys, epoch in ((["a.png", 7, "c.png", 9, 3], 0), (torch.tensor([3, 1, 4, 1, 5]), 2)):
        item = {"image": BATCH, "index": (keys, epoch) if epoch else keys, "label": 3}
        found = augment(item)
        assert found.keys() == item.keys()
        assert torch.equal(found["image"], plain.at(keys, epoch, seed=5)(BATCH))
        assert found["index"] is item["index"]
        assert torch.equal(augment(BATCH, params=augment._params), found["image"])
    assert torch.equal(augment.at([1] * 5, seed=2)(BATCH), plain.at([1] * 5, seed=2)(BATCH))
    for missing in (BATCH, {"image": BATCH}):
        with pytest.raises(KeyError, match="expected index="):
            augment(missing)
    with pytest.raises(OverflowError):
        kind(noise_seed=-1)


def test_a_batch_may_have_one_noise():
    augment = RandomGaussianNoise(p=1.0, same_on_batch=True)
    for given in (augment, augment.at("batch")):
        added = given(torch.zeros_like(BATCH))
        assert torch.equal(added, added[:1].expand_as(added))


def test_containers_take_it_and_replay_it():
    """Seen to fail: params without a row for each image."""
    sequence = K.AugmentationSequential(
        K.RandomHorizontalFlip(), RandomGaussianNoise(std=0.1, p=0.7), data_keys=["input", "mask"]
    )
    mask = torch.ones((5, 1, 20, 30))
    found, same_mask = sequence(BATCH, mask)
    assert torch.equal(same_mask, mask)
    assert torch.equal(sequence(BATCH, mask, params=sequence._params)[0], found)
    frames = torch.zeros((2, 4, 3, 8, 8))
    for same in (True, False):
        video = K.VideoSequential(RandomGaussianNoise(p=1.0), data_format="BTCHW", same_on_frame=same)
        found = video(frames)
        assert torch.equal(found[0, 0], found[0, 1]) == same
        assert not torch.equal(found[0, 0], found[1, 0])


def test_gradients_pass():
    images = BATCH.clone().requires_grad_()
    RandomGaussianNoise(p=0.5)(images).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


def test_std_and_mean_may_be_learned():
    """Seen to fail: no gradient of std, as before; none of mean."""
    std, mean = (torch.nn.Parameter(torch.tensor(value)) for value in (0.1, 0.25))
    augment = RandomGaussianNoise(mean=mean, std=std, p=0.5)
    assert {id(p) for p in augment.parameters()} == {id(std), id(mean)}
    images, weights = BATCH.clone().requires_grad_(), torch.rand_like(BATCH)
    found = augment(images)
    (found * weights).sum().backward()
    applied = augment._params["batch_prob"][:, None, None, None]
    assert 0 < applied.sum() < 5
    z = nf.randn_like(BATCH, nf.Noise(augment._params["noise"][0, 0].item() % (1 << 64)))
    torch.testing.assert_close(found, BATCH + applied * (0.25 + 0.1 * z))
    torch.testing.assert_close(std.grad, (applied * weights * z).sum())
    torch.testing.assert_close(mean.grad, (applied * weights).sum())
    assert torch.equal(images.grad, weights)
    assert torch.equal(augment(BATCH, params=augment._params), found)
    torch.testing.assert_close(RandomGaussianNoise(std=0.1, mean=0.25)(BATCH, params=augment._params), found)


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (3, 1, 1), (5, 3, 1, 1), (20, 30), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_std_may_differ_from_image_to_image(shape, dtype):
    """Tensors are per image, as theirs, or per channel. Seen to fail: "Boolean value of Tensor", as before; the first
    for all."""
    std = torch.linspace(0.5, 2.0, math.prod(shape)).reshape(shape)
    augment = RandomGaussianNoise(std=std, mean=-std, p=1.0)
    found = augment(torch.zeros(5, 3, 20, 30, dtype=dtype))
    assert found.dtype == dtype
    noise = nf.Noise(augment._params["noise"][0, 0].item() % (1 << 64))
    z = nf.randn((5, 3, 20, 30), noise, dtype=torch.float64)
    rounding = 2**-8 if dtype == torch.bfloat16 else 2**-20  # once, where the result is stored
    torch.testing.assert_close(found.double(), std * z - std, rtol=rounding, atol=1e-5)
    with pytest.raises(ValueError, match="expected std of at least 0"):
        RandomGaussianNoise(std=std - 0.6)


def test_a_compiled_one_makes_the_same():
    augment = RandomGaussianNoise(p=1.0)
    compiled = torch.compile(augment, backend="eager")
    torch.manual_seed(1)
    expected = augment(BATCH)
    torch.manual_seed(1)
    assert torch.equal(compiled(BATCH), expected)


GREY = torch.full((6, 3, 128, 128), 0.5)


def shares(found):
    """The shares of salt, of pepper and of the rest, by image."""
    return torch.stack([(found == value).double().mean((1, 2, 3)) for value in (1.0, 0.0, 0.5)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_salt_and_pepper_have_the_shares_of_theirs(dtype):
    """The same seed gives the same amounts. Seen to fail: the ratio of pepper."""
    options, found = {"amount": (0.1, 0.4), "salt_vs_pepper": (0.2, 0.3), "p": 1.0}, []
    for kind in (RandomSaltAndPepperNoise, K.RandomSaltAndPepperNoise):
        augment = kind(**options)
        noisy = augment(GREY.to(dtype))
        assert noisy.dtype == dtype
        assert (noisy.amax(1) == noisy.amin(1)).all()  # all channels together
        amount, ratio = (augment._params[f"{name}_factor"].double() for name in ("amount", "salt_and_pepper"))
        expected = torch.stack([amount * ratio, amount * (1 - ratio), 1 - amount], 1)
        torch.testing.assert_close(shares(noisy), expected, rtol=0, atol=0.015)
        found.append((amount >= 0.1).all() and (amount <= 0.4).all() and amount.unique().numel() == 6)
    assert all(found)


def test_salt_and_pepper_of_keys_and_params():
    """Seen to fail: amounts by the place in the batch; masks that are drawn again."""
    augment = RandomSaltAndPepperNoise(amount=(0.1, 0.4), p=0.6)
    keys = ["a.png", 7, "c.png", 9, (1 << 56) - 1, 3]
    found = augment.at(keys, epoch=2, seed=5)(GREY)
    for i, key in enumerate(keys):
        assert torch.equal(augment.at(key, epoch=2, seed=5)(GREY[i])[0], found[i])
    noise = nf.Noise(5, sample=[nf.augment.sample_id(key) for key in keys], step=2)
    amounts, ratios = (
        nf.augment.strengths(6, *numbers, noise.at(stream=64 * n)) for n, numbers in enumerate(((0.1, 0.4), (0.4, 0.6)))
    )
    applied = nf.augment.strengths(6, 1.0, 1.0, noise, p=0.6) > 0
    expected = [
        nf.augment.impulse(
            image, float(np.float32(amounts[i])), nf.Noise(5, sample=noise.sample[i], step=2),
            salt=float(np.float32(ratios[i])), layout="CHW", shared=True, batched=False,
        )
        if applied[i] else image
        for i, image in enumerate(GREY)
    ]  # fmt: skip
    assert torch.equal(found, torch.stack(expected))
    drawn = augment(GREY)
    assert torch.equal(augment(GREY, params=augment._params), drawn)
    same = RandomSaltAndPepperNoise(p=1.0, same_on_batch=True)(GREY)
    assert torch.equal(same, same[:1].expand_as(same))
    assert RandomSaltAndPepperNoise(p=1.0)(GREY[:0]).shape == GREY[:0].shape
    sequence = K.AugmentationSequential(K.RandomHorizontalFlip(), RandomSaltAndPepperNoise(p=0.7), data_keys=["input"])
    drawn = sequence(GREY)
    assert torch.equal(sequence(GREY, params=sequence._params), drawn)


def test_gradients_pass_where_no_salt_falls():
    images = GREY.clone().requires_grad_()
    found = RandomSaltAndPepperNoise(amount=0.5, p=1.0)(images)
    found.sum().backward()
    assert torch.equal(images.grad, (found == 0.5).float())
    assert 0.45 < images.grad.mean() < 0.55


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("kind", [RandomGaussianNoise, RandomSaltAndPepperNoise, "learned"])
def test_it_is_compiled_mapped_and_differentiated(kind, p):
    """Theirs pass all three. Seen to fail: Unsupported of random_, as before; one noise for all batches of vmap."""
    learned = kind == "learned"
    augment = RandomGaussianNoise(std=torch.tensor(0.3), p=p) if learned else kind(p=p)
    augment._params = augment.forward_parameters(GREY.shape)
    if nf.interop.torch.internals.FOLLOWED:
        for backend in ("eager", "aot_eager"):
            torch.compiler.reset()
            compiled = torch.compile(augment, fullgraph=True, backend=backend)
            torch.manual_seed(1)
            found = compiled(GREY)
            torch.manual_seed(1)
            assert torch.equal(found, augment(GREY))
    params = augment._params
    batches = torch.stack([GREY, GREY])
    for randomness in ("different", "same"):
        found = torch.vmap(augment, randomness=randomness)(batches)
        assert torch.equal(found[0], found[1]) == (randomness == "same")
    leaf = GREY.clone().requires_grad_()
    found = augment(leaf, params=params)
    assert torch.equal(found, augment(GREY, params=params))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    passes = found == 0.5 if kind is RandomSaltAndPepperNoise else torch.ones_like(found)
    assert torch.equal(gradient, passes.float())
    mapped = torch.vmap(torch.func.grad(lambda x: augment(x, params=params).sum()))(batches)
    assert torch.equal(mapped[1], gradient)


def test_wrong_numbers_and_images_are_named():
    for wrong in ({"std": -1}, {"std": float("nan")}, {"p": 2}):
        with pytest.raises(ValueError, match="expected std of at least 0 and 0 <= p <= 1"):
            RandomGaussianNoise(**wrong)
    with pytest.raises(TypeError, match="Expected input of"):  # kornia's
        RandomGaussianNoise(p=1.0)(BATCH.to(torch.uint8))
    with pytest.raises(ValueError, match="p = 2"):
        RandomSaltAndPepperNoise(p=2)
    with pytest.raises(Exception, match="amount of noise values must be between 0 and 1"):  # kornia's
        RandomSaltAndPepperNoise(amount=(-0.1, 0.2))
