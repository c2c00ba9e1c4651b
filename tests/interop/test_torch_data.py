# SPDX-License-Identifier: Apache-2.0
"""Noise for data loaders, a batch at once: the same in the process and in workers, in every epoch, and when resumed.

Seen to fail: the epoch as a number of the object (persistent workers repeat the noise); ids that are not used; t from
the noise's own stream.
"""

import pickle

import numpy as np
import pytest

import noisefuse as nf
from noisefuse import Noise, Schedule

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset  # noqa: E402

from noisefuse.interop.torch_data import AugmentedBatch, NoisyBatch  # noqa: E402

S = Schedule.linear(50)
IMAGES = torch.randint(0, 256, (13, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


class Images(Dataset):
    """A data set of items (id, image, label)."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        return i, IMAGES[i], f"label {i}"


class Noised(Images):
    """The trap: the epoch is an attribute."""

    epoch = 0

    def __getitem__(self, i):
        return nf.q_sample(IMAGES[i : i + 1], 20, S, Noise(7, sample=i, step=self.epoch))


def loader(start, data, batch_size=4, **options):
    if start:
        options |= {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": start, "timeout": 120}
    return DataLoader(data, batch_size, **options)


def alone(epoch, ids):
    """Computes the batch item after item, from the definition."""
    found = []
    for i in ids:
        noise = Noise(7, sample=i, step=epoch)
        t = int(len(S) * float(nf.uniform(1, noise)[0]))
        x_t, target = nf.q_sample(IMAGES[i : i + 1], t, S, noise, target="v")
        found.append((x_t[0], torch.tensor(t), target[0]))
    return [torch.stack(column) for column in zip(*found, strict=True)]


def equal(batch, expected):
    return all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_a_batch_is_its_items():
    noisy, ids = NoisyBatch(S, Noise(7), target="v"), torch.tensor([5, 0, 12])
    assert equal(noisy(ids, IMAGES[ids]), alone(0, ids.tolist()))
    *batch, labels = noisy.collate([Images()[i] for i in (5, 0, 12)])
    assert equal(batch, alone(0, [5, 0, 12]))
    assert list(labels) == ["label 5", "label 0", "label 12"]


def test_times_are_uniform_and_independent_of_the_noise():
    ids = np.arange(1 << 14)
    _, t, z = NoisyBatch(S, Noise(7))(ids, torch.zeros(1 << 14, 1))
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=len(S))
    assert len(counts) == len(S)
    assert ((counts - (expected := len(ids) / len(S))) ** 2 / expected).sum() < 100  # 49 degrees of freedom: 5 sigma
    assert abs(np.corrcoef(t, z[:, 0])[0, 1]) < 5 / len(ids) ** 0.5


def grain(images, noise):
    x = nf.augment.sensor(images, 0.5, 2.0, noise.at(stream=64))
    return nf.augment.gaussian(x, nf.augment.strengths(len(x), 1, 9, noise.at(stream=65)), noise.at(stream=65), out=x)


FORK = "fork"
SPAWN = pytest.param("spawn", marks=pytest.mark.slow)  # imports torch in each worker


@pytest.mark.parametrize("start", [None, FORK, SPAWN])
def test_epochs_reach_workers(start):
    """The workers include those that outlive an epoch; and any order."""
    nf.q_sample(torch.zeros(64, 3, 64, 64), 3, S, Noise(1))  # threads exist before the fork
    noisy = NoisyBatch(S, Noise(7, step=2), target="v")
    batches = loader(start, Images(), collate_fn=noisy.collate, shuffle=True)
    for epoch in (2, 3):
        if epoch != noisy.epoch:
            noisy.set_epoch(epoch)
        seen = []
        for *batch, labels in batches:
            ids = [int(label.split()[1]) for label in labels]
            assert equal(batch, alone(epoch, ids))
            seen += ids
        assert sorted(seen) == list(range(len(IMAGES)))


@pytest.mark.parametrize("start", [FORK, SPAWN])
def test_an_epoch_of_the_dataset_does_not_reach_persistent_workers(start):
    """This is the trap that docs/torch.md names. If torch closes it, the page has to say so."""
    data = Noised()
    batches = loader(start, data)
    first = list(batches)
    data.epoch = 1
    assert equal(list(batches), first)  # the noise of epoch 0 again
    assert not torch.equal(next(iter(DataLoader(data, 4))), first[0])


def test_resuming():
    """It resumes epoch 1 from its third batch on, in another order of calls and another batch size."""
    data, noisy = Images(), NoisyBatch(S, Noise(7), target="v")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()
    resumed = NoisyBatch(S, Noise(7), target="v")
    resumed.set_epoch(1)
    (ids, images, _), *_ = DataLoader(data, 5, sampler=order[8:])
    assert ids.tolist() == order[8:]
    noisy.set_epoch(1)
    whole = noisy(order, IMAGES[order])
    assert equal(resumed(ids, images), [x[8:] for x in whole])


def test_a_copy_has_the_epoch():
    noisy = NoisyBatch(S, Noise(7))
    noisy.set_epoch(5)
    copy = pickle.loads(pickle.dumps(noisy))
    assert copy.epoch == 5
    assert equal(copy([1], IMAGES[1:2]), noisy([1], IMAGES[1:2]))


def test_wrong_ids_and_epochs_are_refused():
    with pytest.raises(OverflowError, match="step"):
        NoisyBatch(S, Noise(7)).set_epoch(1 << 32)
    with pytest.raises(ValueError, match="2"):
        NoisyBatch(S, Noise(7))([1, 2], IMAGES[:3])
    with pytest.raises(TypeError, match="sample"):
        NoisyBatch(S, Noise(7))([0.5], IMAGES[:1])


@pytest.mark.parametrize(
    ("item", "found"),
    [((IMAGES[0],), "tuple of 1"), (IMAGES[0], "Tensor"), ({"id": 0, "image": IMAGES[0]}, "dict")],
)
def test_items_that_have_no_id_are_refused(item, found):
    """Seen to fail: "not enough values to unpack", rows of an image as ids."""
    for batch in (NoisyBatch(S, Noise(7)), AugmentedBatch(grain, Noise(7))):
        with pytest.raises(TypeError, match=rf"items \(id, image, ...\), got an item that is a {found}$"):
            batch.collate([item, item])


class Named(Images):
    """Returns items (key, image), like WebDataset."""

    def __getitem__(self, i):
        return f"shard-0/{i:04}", IMAGES[i]


@pytest.mark.release
@pytest.mark.parametrize("start", [None, FORK, SPAWN])
def test_augmented_batches_are_named_by_keys(start):
    """Seen to fail: keys in place of their hashes, an epoch that is left out."""
    augmented = AugmentedBatch(grain, Noise(7, step=2))
    for epoch in (2, 3):
        augmented.set_epoch(epoch)
        keys = [Named()[i][0] for i in range(len(IMAGES))]
        noise = Noise(7, sample=[nf.augment.sample_id(key) for key in keys], step=epoch)
        expected = grain(IMAGES, noise)
        assert torch.equal(augmented(keys, IMAGES), expected)
        for size in (4, 5):
            found = torch.cat([images for (images,) in loader(start, Named(), size, collate_fn=augmented.collate)])
            assert torch.equal(found, expected)


def test_a_key_is_an_int_or_a_str():
    with pytest.raises(TypeError, match=r"key = 1.5: expected an int or a str"):
        AugmentedBatch(grain, Noise(7))(["a", 1.5], IMAGES[:2])


def blurred(images, noise):
    return images


def test_reprs_say_what_a_batch_gets():
    """Seen to fail: an object at some address, as before; the first epoch."""
    noisy, augmented = NoisyBatch(S, Noise(7), target="v"), AugmentedBatch(blurred, Noise(7, step=2))
    noisy.set_epoch(3)
    assert repr(noisy) == "NoisyBatch(linear, 50 steps, Noise(7), epoch=3, target='v')"
    assert repr(augmented) == "AugmentedBatch(blurred, Noise(7, step=2), epoch=2)"


class OfAnySize(Images):
    """Seen to fail: torch's own collation, which refuses images of several shapes."""

    def __getitem__(self, i):
        return i, IMAGES[i][:, : 1 + i % 3].numpy() if i % 2 else IMAGES[i][:, : 1 + i % 3], f"label {i}"


@pytest.mark.parametrize("batch_size", [5, 13])
def test_images_of_several_shapes(batch_size):
    data = OfAnySize()
    augmented = AugmentedBatch(lambda x, noise: nf.augment.gaussian(x, 20.0, noise), Noise(7))
    noisy = NoisyBatch(S, Noise(7), target="v", model_time="sigma")
    seen = 0
    for images, labels in loader(None, data, batch_size, collate_fn=augmented.collate):
        for image, label in zip(images, labels, strict=True):
            x = torch.as_tensor(data[seen][1])
            assert label == f"label {seen}"
            assert torch.equal(image, nf.augment.gaussian(x, 20.0, Noise(7, sample=seen), batched=False))
            seen += 1
    assert seen == len(data)
    ids = [3, 8, 1]
    x_t, t, target, unit = noisy(ids, [torch.as_tensor(data[i][1]) for i in ids])
    assert t.shape == unit.shape == (3,)
    for b, i in enumerate(ids):
        one = noisy([i], torch.as_tensor(data[i][1])[None])
        for found, expected in zip((x_t, t, target, unit), one, strict=True):
            assert torch.equal(found[b], expected[0])
