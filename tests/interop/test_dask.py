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

da = pytest.importorskip("dask.array")

SHAPE, CHUNKS = (5, 6, 7), ((2, 3), (1, 5), (3, 3, 1))
X = normals(SHAPE, np.float32)
LAZY = da.from_array(X, CHUNKS)


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
