# SPDX-License-Identifier: Apache-2.0
"""Noise for batches of columns: the same in any batch, by ids or keys, and equal to that for torch's data loaders.

Seen to fail: ids that are not used; t from the noise's own stream.
"""

import doctest
import inspect
import pickle

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.interop.columns import AugmentedColumns, NoisyColumns, drawn_times

S = nf.Schedule.linear(50)
IMAGES = np.random.default_rng(3).integers(0, 256, (13, 4, 4, 3), np.uint8)
KEYS = np.array([f"n{n}/{n}.JPEG" for n in range(13)])


def columns(rows, ids):
    return {"id": ids[rows], "image": IMAGES[rows], "label": np.asarray(rows)}


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def noisy_images(images, noise):
    return nf.augment.gaussian(images, 20.0, noise)


CALLS = [NoisyColumns(S, nf.Noise(7, step=2), target="v"), AugmentedColumns(noisy_images, nf.Noise(7))]


@pytest.mark.parametrize("ids", [np.arange(13) * 1000, KEYS, KEYS.astype(object)], ids=["ints", "strs", "objects"])
@pytest.mark.parametrize("call", CALLS, ids=["noisy", "augmented"])
def test_a_row_is_the_same_in_any_batch(call, ids):
    rows = np.random.default_rng(1).permutation(13)
    whole = call(columns(rows, ids))
    parts = joined([pickle.loads(pickle.dumps(call))(columns(part, ids)) for part in np.array_split(rows, 4)])
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_columns_are_what_operations_make():
    batch, noise = columns(np.arange(13), KEYS), nf.Noise(7, step=2)
    noise = noise.at(sample=[nf.augment.sample_id(key) for key in KEYS.tolist()])
    found = CALLS[0](batch)
    assert sorted(found) == ["id", "label", "t", "target", "x_t"]
    x_t, target = nf.q_sample(IMAGES, found["t"], S, noise, target="v")
    assert np.array_equal(found["x_t"], x_t)
    assert np.array_equal(found["target"], target)
    assert np.array_equal(batch["image"], IMAGES)
    augmented = AugmentedColumns(noisy_images, noise)(batch)
    assert np.array_equal(augmented["image"], nf.augment.gaussian(IMAGES, 20.0, noise))


def test_a_data_loader_of_torch_has_the_same():
    torch = pytest.importorskip("torch")
    from noisefuse.interop.torch_data import NoisyBatch

    found = CALLS[0](columns(np.arange(13), KEYS))
    noisy = NoisyBatch(S, nf.Noise(7, step=2), target="v")(KEYS.tolist(), torch.from_numpy(IMAGES))
    assert all(np.array_equal(found[n], x.numpy()) for n, x in zip(("x_t", "t", "target"), noisy, strict=True))


@pytest.mark.parametrize(
    ("module", "noisy", "augmented"),
    [
        ("columns", "NoisyColumns", "AugmentedColumns"),
        ("grain", "Noisy", "Augmented"),
        ("torch_data", "NoisyBatch", "AugmentedBatch"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(module, noisy, augmented):
    """The errors of other libraries' arrays come early, too. Seen to fail: at the first batch, or with Python's own
    words."""
    library = pytest.importorskip(f"noisefuse.interop.{module}", exc_type=ImportError)
    noisy, augmented = getattr(library, noisy), getattr(library, augmented)
    for call, first in ((noisy, S), (augmented, noisy_images)):
        for wrong in ("x", 2.5, np.random.default_rng(0), *([] if module == "grain" else [None])):
            with pytest.raises(TypeError, match=r"noise: expected a Noise, got \w"):
                call(first, wrong)
    for wrong in (None, "eps"):
        with pytest.raises(ValueError, match=rf"target = {wrong!r}: expected 'epsilon', "):
            noisy(S, nf.Noise(7), target=wrong)
    with pytest.raises(TypeError, match=r"schedule: expected a noisefuse.Schedule"):
        noisy(1000, nf.Noise(7))
    with pytest.raises(TypeError, match="augment: expected a function"):
        augmented(None, nf.Noise(7))


def test_missing_columns_and_ragged_images():
    with pytest.raises(KeyError, match=r"no column 'id' in the batch, which has 'image'"):
        CALLS[0]({"image": IMAGES})
    ragged = np.empty(2, object)
    ragged[:] = [IMAGES[0], IMAGES[1, :2]]
    with pytest.raises(TypeError, match="x0: dtype object is not supported"):
        CALLS[0]({"id": np.arange(2), "image": ragged})
    with pytest.raises(TypeError, match="expected an int or a str"):
        CALLS[0]({"id": np.array(["a", 2.5], object), "image": IMAGES[:2]})


@pytest.mark.parametrize("kind", [NoisyColumns, AugmentedColumns])
def test_examples_in_docstrings_run(kind):
    scope = {"np": np, "nf": nf}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(kind), scope, kind.__name__, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_all_times_are_drawn():
    """Seen to fail: the last one left out."""
    assert {*drawn_times(nf.Schedule.linear(3), nf.Noise(7).at(sample=np.arange(100)), 100)} == {0, 1, 2}


def test_reprs_say_what_a_batch_gets():
    """Seen to fail: an object at some address, as before."""
    noisy, augmented = CALLS
    assert repr(noisy) == "NoisyColumns(linear, 50 steps, Noise(7, step=2), id='id', image='image', target='v')"
    assert repr(augmented) == "AugmentedColumns(noisy_images, Noise(7), id='id', image='image')"
