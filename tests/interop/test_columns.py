# SPDX-License-Identifier: Apache-2.0
"""Noise for batches of columns: the same in any batch, by ids or keys, and equal to that for torch's data loaders.

Seen to fail: ids that are not used; t from the noise's own stream.
"""

import doctest
import inspect
import pickle
from pathlib import Path
from statistics import NormalDist
from textwrap import dedent

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


@pytest.mark.parametrize("spelling", [list, lambda images: images.tolist(), lambda images: images.astype(np.int64)])
@pytest.mark.parametrize("kind", ["noisy", "augmented"])
def test_bytes_in_every_spelling(kind, spelling):
    """Seen to fail: int64, as Hugging Face makes of bytes."""
    made_of = {"noisy": (NoisyColumns, S), "augmented": (AugmentedColumns, noisy_images)}

    def make(**options):
        made, of = made_of[kind]
        return made(of, nf.Noise(7), **options)

    batch = columns(np.arange(13), KEYS)
    expected, found = make()(batch), make(image_dtype=np.uint8)({**batch, "image": spelling(IMAGES)})
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert all(np.asarray(found[name]).dtype == np.asarray(expected[name]).dtype for name in expected)


@pytest.mark.parametrize("call", CALLS, ids=["noisy", "augmented"])
def test_images_of_several_shapes(call):
    """Each is what it is alone. Seen to fail: NumPy's error of inhomogeneous shapes."""
    images = np.empty(5, object)
    images[:] = [IMAGES[n, : 1 + n % 3] for n in range(5)]
    found = call({"id": KEYS[:5], "image": images})
    for n, image in enumerate(images):
        alone = call({"id": KEYS[n : n + 1], "image": image[None]})
        assert all(np.array_equal(found[name][n], alone[name][0]) for name in alone)


def test_numbers_that_are_no_bytes_are_refused():
    noisy = NoisyColumns(S, nf.Noise(7), image_dtype="uint8")
    for wrong in (IMAGES + np.int64(1), IMAGES - np.int64(1), IMAGES + 0.5):
        with pytest.raises(ValueError, match=r"^column 'image': expected numbers of uint8, got (int|float)64 from "):
            noisy({"id": KEYS, "image": wrong})
    assert repr(noisy).endswith("id='id', image='image', image_dtype='uint8', target='epsilon')")


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


def test_missing_columns_and_wrong_ids():
    with pytest.raises(KeyError, match=r"no column 'id' in the batch, which has 'image'"):
        CALLS[0]({"image": IMAGES})
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


TIMES = {"float": None, "logit_normal": None, "squares": lambda u: u**2}


@pytest.mark.parametrize("times", TIMES)
def test_float_times_and_what_the_network_is_given(times):
    """x_t has the level of t, and the fourth is the schedule's model_time; all loaders have the same.

    Seen to fail: t that was rounded after x_t had been made of it; times that depend on the batch.
    """
    flow, noise = nf.Schedule.flow(1000, shift=3.0), nf.Noise(7, step=2)
    options = {"target": "flow", "times": TIMES[times] or times, "model_time": "sigma"}
    noisy = NoisyColumns(flow, noise, **options)
    found = noisy({"id": np.arange(13), "image": IMAGES})
    assert [*found] == ["id", "x_t", "t", "target", "model_time"]
    assert found["t"].dtype == np.float32
    x_t, target = nf.q_sample(IMAGES, found["t"], flow, noise.at(sample=np.arange(13)), target="flow")
    assert np.array_equal(found["x_t"], x_t)
    assert np.array_equal(found["target"], target)
    assert np.array_equal(found["model_time"], flow(found["t"])[1])
    one = noisy({"id": [5], "image": IMAGES[5:6]})
    assert one["t"] == found["t"][5]
    torch = pytest.importorskip("torch")
    from noisefuse.interop.torch_data import NoisyBatch

    batch = NoisyBatch(flow, noise, **options)(np.arange(13), torch.from_numpy(IMAGES))
    for name, tensor in zip(("x_t", "t", "target", "model_time"), batch, strict=True):
        assert np.array_equal(tensor.numpy(), found[name].astype(np.float32))
    pytest.importorskip("grain")
    from noisefuse.interop.grain import Noisy

    element = Noisy(flow, noise, **options).map_with_index(5, {"image": IMAGES[5]})
    assert all(np.array_equal(element[name], found[name][5]) for name in ("x_t", "t", "target", "model_time"))


normal = NormalDist().inv_cdf


def test_the_law_of_float_times():
    """Quantiles, to 5 standard deviations, and independence of the noise. Seen to fail: times of stream 0."""
    flow = nf.Schedule.from_functions(lambda t: 1 - (t - 1) ** 2 / 16, lambda t: (t - 1) / 4, name="long", times=(1, 5))
    ids, n = np.arange(1 << 14), 1 << 14
    for times, quantile in (
        ("float", lambda q: 1 + 4 * q),
        ("logit_normal", lambda q: 1 + 4 / (1 + np.exp(-normal(q)))),
    ):
        batch = NoisyColumns(flow, nf.Noise(7), times=times)({"id": ids, "image": np.zeros((n, 1), np.float32)})
        for q in (0.1, 0.5, 0.9):
            assert abs((batch["t"] < quantile(q)).mean() - q) < 5 * (q * (1 - q) / n) ** 0.5
        assert abs(np.corrcoef(batch["t"], batch["target"][:, 0])[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize(
    ("schedule", "options", "error", "message"),
    [
        (S, {"times": "float"}, TypeError, "times: a linear schedule has no float times"),
        (S, {"times": "even"}, ValueError, 'times = \'even\': expected "index", "float"'),
        (S, {"model_time": "schedule"}, TypeError, "a linear schedule has no time of its own"),
        (S, {"model_time": "level"}, ValueError, "model_time = 'level'"),
        (nf.Schedule.karras(9), {"times": "float"}, ValueError, "expected a schedule with a last time, got karras"),
        (
            nf.Schedule.cosine(),
            {"times": "float", "model_time": "index"},
            ValueError,
            "expected another one with float",
        ),
    ],
)
def test_times_that_are_none(schedule, options, error, message):
    with pytest.raises(error, match=message):
        NoisyColumns(schedule, nf.Noise(7), **options)


def test_reprs_say_what_a_batch_gets():
    """Seen to fail: an object at some address, as before."""
    noisy, augmented = CALLS
    assert repr(noisy) == "NoisyColumns(linear, 50 steps, Noise(7, step=2), id='id', image='image', target='v')"
    assert repr(augmented) == "AugmentedColumns(noisy_images, Noise(7), id='id', image='image')"


# ---- tokens ------------------------------------------------------------------------------------------------

M, MASK = nf.discrete.llada(), 200
TOKENS = np.random.default_rng(5).integers(0, 200, (13, 9))
MASKED = NoisyColumns(M, nf.Noise(7, step=2), image="input_ids", mask_id=MASK)


@pytest.mark.parametrize("ids", [np.arange(13) * 1000, KEYS], ids=["ints", "strs"])
def test_tokens_are_masked_by_their_ids(ids):
    """They are those of `discrete.times` and `q_mask` by the same keys, in any batch. Planted: the noise of a row's
    place."""
    names = nf.Noise(7, step=2, sample=ids if ids.dtype.kind == "i" else [nf.augment.sample_id(key) for key in ids])
    t = nf.discrete.times(13, names, kind="independent").astype(np.float32)
    x_t, masked = nf.q_mask(TOKENS, M(t), names, mask_id=MASK)
    whole = MASKED({"id": ids, "input_ids": TOKENS, "label": np.arange(13)})
    expected = {"id": ids, "label": np.arange(13), "input_ids": TOKENS, "x_t": x_t, "t": t, "masked": masked}
    expected["weight"] = M.weight(t).astype(np.float32)
    assert list(whole) == list(expected)
    assert all(np.array_equal(whole[name], expected[name]) for name in expected)
    parts = [
        pickle.loads(pickle.dumps(MASKED))({"id": ids[n : n + 4], "input_ids": TOKENS[n : n + 4].tolist()})
        for n in range(0, 13, 4)
    ]
    assert all(np.array_equal(joined(parts)[name], whole[name]) for name in parts[0])
    assert 0.2 < masked.mean() < 0.8


def test_texts_of_several_lengths():
    """Padding comes later. A text that is shorter has the beginning of the noise."""
    lengths = np.arange(13) % 8 + 2
    ragged = [row[:n].tolist() for row, n in zip(TOKENS, lengths, strict=True)]
    whole, found = (MASKED({"id": KEYS, "input_ids": rows}) for rows in (TOKENS, ragged))
    assert np.array_equal(found["t"], whole["t"])
    for name in ("input_ids", "x_t", "masked"):
        pairs = zip(found[name], whole[name], lengths, strict=True)
        assert all(np.array_equal(row, full[:n]) for row, full, n in pairs), name


def test_what_tokens_need():
    with pytest.raises(TypeError, match="mask_id = None: expected an integer"):
        NoisyColumns(M, nf.Noise(7))
    with pytest.raises(TypeError, match="mask_id = 3: expected None, or a MaskSchedule"):
        NoisyColumns(S, nf.Noise(7), mask_id=3)
    with pytest.raises(TypeError, match="target, times, model_time: expected none of them for tokens"):
        NoisyColumns(M, nf.Noise(7), mask_id=3, target="v")
    with pytest.raises(OverflowError, match="mask_id"):
        NoisyColumns(M, nf.Noise(7), image_dtype="uint8", image="x", mask_id=300)({"id": [1], "x": [[1, 2]]})
    assert (
        repr(MASKED)
        == "NoisyColumns(MaskSchedule(llada, eps=0.001), Noise(7, step=2), id='id', image='input_ids', mask_id=200)"
    )


# ---- Hugging Face ------------------------------------------------------------------------------------------


def of_recipe(page_block, **names):
    """Runs the lines of docs/dask.md for Hugging Face that begin so."""
    page = (Path(__file__).parents[2] / "docs" / "dask.md").read_text(encoding="utf-8")
    block = page[page.index(page_block) :].partition("\n\n")[0]
    exec(dedent("    " + block), names)
    return names


def test_the_recipe_for_hugging_face(tmp_path):
    """docs/dask.md's lines, for images in arrays and in lists, of one shape and of several, and for tokens. Seen to
    fail: "x0: dtype int64 is not supported", NumPy's error of inhomogeneous shapes."""
    datasets = pytest.importorskip("datasets")
    rows, lists = np.arange(13), datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))
    kinds = {"array": datasets.Array3D((4, 4, 3), "uint8"), "list": lists, "ragged": lists, "free": None}
    images = [image[: 4 - n % 2] for n, image in enumerate(IMAGES)]
    for kind, feature in kinds.items():
        given = images if kind == "ragged" else list(IMAGES)
        columns = {"id": datasets.Value("int64"), "image": feature} if feature else None
        made = {"id": rows, "image": [image.tolist() for image in given]}
        dataset = datasets.Dataset.from_dict(made, features=columns and datasets.Features(columns))
        names = of_recipe("# Hugging Face datasets", NoisyColumns=NoisyColumns, schedule=S, nf=nf, dataset=dataset)
        found = names["noised"].with_format("numpy")
        for n, image in enumerate(given):
            noise = nf.Noise(2026, sample=n)
            row = found[n]
            expected = nf.q_sample(image, int(row["t"]), S, noise, target="epsilon", batched=False)
            assert np.array_equal(row["x_t"], expected[0]), (kind, n)
            assert np.array_equal(row["target"], expected[1]), (kind, n)
    texts = [row[: n + 1].tolist() for n, row in zip(rows % 9, TOKENS, strict=True)]
    dataset = datasets.Dataset.from_dict({"id": rows, "input_ids": texts})
    found = of_recipe("# their tokens", NoisyColumns=NoisyColumns, nf=nf, dataset=dataset)["masked"].with_format(
        "numpy"
    )
    expected = NoisyColumns(nf.discrete.linear(), nf.Noise(2026), image="input_ids", mask_id=50256)
    whole = expected({"id": rows, "input_ids": texts})
    for n in range(13):
        assert all(np.array_equal(found[n][name], whole[name][n]) for name in ("input_ids", "x_t", "masked", "t"))
