# SPDX-License-Identifier: Apache-2.0
"""Copies between layouts have NumPy's result, whatever the strides; and large calls of any layout their own bits."""

import itertools

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.ground import layouts

S, N = nf.Schedule.linear(), nf.Noise(7)
EXTENSION = layouts._native()


@pytest.fixture(params=["extension", "NumPy"])
def way(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(layouts, "_native", lambda: (np.empty, lambda source, target: False))
    elif EXTENSION[0] is np.empty:
        pytest.skip("the C++ extension was not built")


def random_strides(r, shape, dtype):
    """Returns random numbers in a part of an array, whose axes lie in any order, with gaps and backwards."""
    order, steps = r.permutation(len(shape)), r.choice([1, 1, 1, 2, -1], len(shape))
    whole = r.integers(0, 200, [shape[axis] * abs(s) for axis, s in zip(order, steps, strict=True)]).astype(dtype)
    return np.asarray(whole[tuple(slice(None, None, s) for s in steps)]).transpose(np.argsort(order))


def test_any_strides(way):
    """Seen to fail: tiles at the edges as long as others; merged axes that do not follow one another."""
    r = np.random.default_rng(5)
    for dtype, most, _ in itertools.product(("u1", "f2", "f4", "f8"), (3, 9, 40, 100), range(40)):
        shape = tuple(r.integers(r.random() > 0.1, most + 1, r.integers(0, 3 if most > 9 else 6)))  # some are empty
        x = random_strides(r, shape, dtype)
        if r.random() < 0.2 and shape:  # an axis of stride 0
            x = np.broadcast_to(x[:1] if x.size else x, shape)
        axes = tuple(map(int, r.permutation(len(shape))))
        made = layouts.copy(x, x.dtype, axes)
        assert np.array_equal(made, x)
        assert made.transpose(axes).flags.c_contiguous
        if dtype != "f8":
            assert np.array_equal(layouts.copy(x, np.float64, axes), x)


@pytest.mark.parametrize("dtype", ["datetime64[s]", "bool", ">f4", "complex64"])
def test_dtypes_that_the_extension_does_not_know(dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(2, 0, 1)
    assert np.array_equal(layouts.copy(x, x.dtype, (0, 1, 2)), x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_large_calls(dtype):
    """A call of 2^18 elements: what is read from a copy, and its threads, change no bit."""
    x = (np.arange(1 << 18) % 251).astype(dtype).reshape(4, 64, 64, 16)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for call in (
        lambda x: nf.q_sample(x, [3, 5, 7, 9], S, N, target="velocity"),
        lambda x: nf.q_step(x, 500, S, N),
        lambda x: nf.augment.gaussian(x, 10.0, N),
    ):
        assert np.array_equal(call(x), call(last))
