# SPDX-License-Identifier: Apache-2.0
"""dask arrays: at any chunks the result is NumPy's, bit for bit; names are those of the values.

Seen to fail: blocks that all begin at the first sample; windows that leave out the last axis, or the start of a window
that the noise has already; ids and lists of noises that are not cut; a token without the noise.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisefuse as nf
from conftest import DTYPES, bits
from generated import LINEAR, names, normals, real
from noisefuse import Noise

da = pytest.importorskip("dask.array")

SHAPE, CHUNKS = (5, 6, 7), ((2, 3), (1, 5), (3, 3, 1))
X = normals(SHAPE, np.float32)
LAZY = da.from_array(X, CHUNKS)

TABLES = [
    nf.samplers.ddpm(LINEAR, steps=5).tableau,
    nf.samplers.dpmpp_2m(LINEAR, steps=5).tableau,
    nf.samplers.unipc(LINEAR, steps=5).tableau,
]


def equal(lazy, expected):
    """Bits, dtype, shape: as dask says them, too."""
    found = lazy.compute(scheduler="sync")
    assert (lazy.dtype, lazy.shape) == (expected.dtype, expected.shape)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return np.array_equal(bits(found), bits(expected))


# ---- any chunks --------------------------------------------------------------------------------------------


@st.composite
def parts(draw, n):
    """Sizes of chunks that add up to n; some are 1, some 0."""
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=2)))
    return tuple(b - a for a, b in itertools.pairwise([0, *cuts, n]))


@st.composite
def chunked(draw, most=4):
    """(a shape, chunks of it)"""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=most)))
    return shape, tuple(draw(parts(n)) for n in shape)


@st.composite
def named(draw, shape, batched, chunks, *, streams=False, last=0):
    """A Noise, with ids or a window or without, or a list of them."""
    rows, sample = (shape[0], shape[1:]) if batched and shape else (1, shape)
    if rows and draw(st.integers(0, 3)) == 0:
        return [draw(names(1, sample, streams=streams, last=last)) for _ in range(rows)]
    return draw(names(rows, sample, streams=streams, last=last))


def lazily(draw, array, chunks):
    """dask's, or NumPy's, which takes x's chunks."""
    return da.from_array(array, chunks) if draw(st.booleans()) else array


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_arrays_are_numpys_at_any_chunks(data):
    (shape, chunks), batched = data.draw(chunked()), data.draw(st.booleans())
    name, dtype = data.draw(st.sampled_from([("randn", "float32"), ("randn", "float16"), ("uniform", "float64")]))
    noise = data.draw(named(shape, batched, chunks, streams=True))
    options = {"dtype": dtype, "batched": batched}
    draw = getattr(nf, name)
    assert equal(draw(shape, noise, chunks=chunks, **options), draw(shape, noise, **options))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_forward_operations_are_numpys_at_any_chunks(data):
    (shape, chunks), batched = data.draw(chunked()), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([*DTYPES.values(), np.dtype(np.uint8)]))
    x = normals(shape, np.float32).astype(dtype) if dtype != np.uint8 else np.ones(shape, dtype)
    lazy = da.from_array(x, chunks)
    noise = data.draw(named(shape, batched, chunks, last=1000))
    axes = data.draw(st.integers(0, len(shape)))
    t = np.asarray(np.random.default_rng(1).integers(1000, size=shape[:axes]))
    some_t = lazily(data.draw, t, chunks[:axes])
    if data.draw(st.booleans()):
        noise_of_sample = normals(shape, real(dtype), 1)
        some_noise = lazily(data.draw, noise_of_sample, chunks)
    else:
        noise_of_sample = some_noise = noise
    found = nf.q_sample(lazy, some_t, LINEAR, some_noise, target="v", batched=batched)
    expected = nf.q_sample(x, t, LINEAR, noise_of_sample, target="v", batched=batched)
    assert all(map(equal, found, expected))
    options = {"batched": batched} | data.draw(st.sampled_from([{}, {"dtype": "uint8"}]))
    assert equal(nf.q_step(lazy, some_t, LINEAR, noise, **options), nf.q_step(x, t, LINEAR, noise, **options))
    kept = {"keep": [0, 3], "batched": batched}
    assert equal(nf.q_walk(lazy, LINEAR, noise, **kept), nf.q_walk(x, LINEAR, noise, **kept))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_tableaus_are_numpys_at_any_chunks(data):
    shape, chunks = data.draw(chunked())
    dtype = data.draw(st.sampled_from([*DTYPES.values()]))
    table = data.draw(st.sampled_from(TABLES))
    noise = data.draw(named(shape, True, chunks, last=len(table)))
    axes = data.draw(st.integers(0, len(shape)))
    i = np.asarray(np.random.default_rng(1).integers(len(table), size=shape[:axes]))
    arrays = [normals(shape, np.float32, n).astype(dtype) for n in range(4)]
    lazy, lazy_i = [lazily(data.draw, array, chunks) for array in arrays], lazily(data.draw, i, chunks[:axes])
    x, m, *past = arrays
    found = nf.update(table, lazy_i, da.from_array(x, chunks), lazy[1], past=lazy[2:], noise=noise, aux_out=2)
    assert all(map(equal, found, nf.update(table, i, x, m, past=past, noise=noise, aux_out=2)))
    found = nf.update(table, i, da.from_array(x, chunks), lazy[1], past=past, noise=noise, dtype="uint8")
    assert equal(found, nf.update(table, i, x, m, past=past, noise=noise, dtype="uint8"))


# ---- augmentation ------------------------------------------------------------------------------------------


def numbers(draw, shape, chunks, batched, layout):
    """A number, or one for each sample, or for each of its channels: (NumPy's, dask's or the same)."""
    first = 1 if batched else 0
    channel = first if layout == "CHW" else len(shape) - 1
    axes = draw(st.sampled_from([(), *([(0,)] * first), (*range(first), channel)]))
    values = np.random.default_rng(2).uniform(1, 9, [shape[axis] for axis in axes])
    if not axes:
        return float(values), float(values)
    return values, lazily(draw, values, tuple(chunks[axis] for axis in axes))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_augmentation_is_numpys_at_any_chunks(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=4)))
    chunks, batched = tuple(data.draw(parts(n)) for n in shape), data.draw(st.booleans())
    layout, order = data.draw(st.sampled_from(["CHW", "HWC"])), data.draw(st.sampled_from([None, "CHW", "HWC"]))
    options = {"layout": layout, "order": order, "shared": data.draw(st.booleans()), "batched": batched}
    options |= {"clip": data.draw(st.sampled_from([None, (3, 200)]))}
    x = normals(shape, np.float32) if data.draw(st.booleans()) else np.full(shape, 100, np.uint8)
    (a, lazy_a), (b, lazy_b) = (numbers(data.draw, shape, chunks, batched, layout) for _ in "ab")
    sample = shape[1:] if batched else shape
    first = layout == "CHW"
    inner = tuple(sample[1:] if first else sample[:-1])
    counted = sample
    if options["shared"]:
        counted = inner
    elif order is not None and order != layout:
        counted = (*inner, sample[0]) if first else (sample[-1], *inner)
    noise = data.draw(named((shape[0], *counted) if batched else counted, batched, chunks, streams=True))
    name = data.draw(st.sampled_from(["gaussian", "sensor", "multiplicative"]))
    given, lazy = ((a,), (lazy_a,)) if name == "multiplicative" else ((a, b), (lazy_a, lazy_b))
    if name == "gaussian":
        options["mean"], lazy_options, given, lazy = b, {**options, "mean": lazy_b}, (a,), (lazy_a,)
    else:
        lazy_options = options
    function = getattr(nf.augment, name)
    try:
        expected = function(x, *given, noise, **options)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            function(da.from_array(x, chunks), *lazy, noise, **lazy_options).compute(scheduler="sync")
        return
    assert equal(function(da.from_array(x, chunks), *lazy, noise, **lazy_options), expected)


def test_samples_are_whole_where_their_power_is_asked_for():
    x, snr = normals((5, 6, 7), np.float32), np.linspace(0, 20, 5)
    whole = da.from_array(x, ((2, 3), 6, 7))
    expected = nf.augment.at_snr(x, snr, Noise(7))
    assert equal(nf.augment.at_snr(whole, snr, Noise(7)), expected)
    assert equal(nf.augment.at_snr(whole, da.from_array(snr, ((2, 3),)), Noise(7)), expected)
    with pytest.raises(ValueError, match="at_snr: samples: a block has to hold them whole"):
        nf.augment.at_snr(da.from_array(x, CHUNKS), snr, Noise(7))


def test_levels_have_numpys_bits():
    x, levels = np.arange(240, dtype=np.uint8).reshape(5, 6, 8), np.arange(256)
    given = (levels, 0.1 * levels, Noise(7))
    assert equal(nf.augment.by_level(da.from_array(x, 3), *given), nf.augment.by_level(x, *given))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("timed", [True, False])
def test_prepared_images_have_numpys_bits(batched, timed):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)[0 if not batched else slice(None)]
    chunks = ((2, 3), (1, 5), (3, 3, 1), 3)[0 if batched else 1 :]
    options = {"mean": [0.4, 0.5, 0.6], "std": 0.5, "batched": batched}
    t = np.array([1, 5, 20, 30, 900]) if batched else 5
    for some in [t, da.from_array(t, ((2, 3),))] if batched else [t]:
        numbers = {"t": t, "schedule": LINEAR} if timed else {"noise_std": t}
        lazy = {"t": some, "schedule": LINEAR} if timed else {"noise_std": some}
        found = nf.augment.prepare(da.from_array(images, chunks), Noise(7), **options, **lazy)
        expected = nf.augment.prepare(images, Noise(7), **options, **numbers)
        assert all(map(equal, found, expected)) if timed else equal(found, expected)


def test_randn_like():
    for x in X, np.zeros(SHAPE, np.uint8), np.zeros(SHAPE):
        assert equal(nf.randn_like(da.from_array(x, CHUNKS), Noise(7)), nf.randn_like(x, Noise(7)))
    assert equal(nf.randn_like(LAZY, 7, dtype="float64"), nf.randn_like(X, 7, dtype="float64"))
