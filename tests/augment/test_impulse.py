# SPDX-License-Identifier: Apache-2.0
"""Impulse noise: augment.impulse.

Seen to fail: the word of the next place, salt where pepper was asked, the last channel of a pixel left as it was, a
tile of one sample's places written to another sample's planes, the last word that counts left out.
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from fast import same_as_checked
from noisefuse.augment import impulse
from test_byte_tables import words

N = nf.Noise(7, sample=5, step=2, stream=66)
RNG = np.random.default_rng(0)
KINDS = DTYPES | {"uint8": np.dtype(np.uint8), "uint16": np.dtype(np.uint16)}


def by_definition(x, amount, noise, salt=0.5, values=None, random=False, layout=None):
    """Returns it by docs/noise.md, place by place."""
    top = {"uint8": 255.0, "uint16": 65535.0}.get(x.dtype.name, 0.0)
    low, high = values or (0.0, top or 1.0)
    axis = {None: None, "CHW": 1, "HWC": -1}[layout]
    places = x.shape if axis is None else tuple(np.delete(x.shape, axis))
    result, w = np.array(x), words(places, noise)
    for at in np.ndindex(places):
        p, word = np.broadcast_to(amount, len(x))[at[0]], int(w[at])
        number = round(p * 2**32)  # to nearest even
        if word < number:
            if random:
                f = (word + 0.5) * (1 / number)
                value = low + np.floor((high - low + 1) * f) if top else low + (high - low) * f
            else:
                value = high if word < round(p * salt * 2**32) else low
            to = at if axis is None else (at[0], slice(None), *at[1:]) if axis == 1 else (*at, slice(None))
            result[to] = value if x.dtype == np.float64 else np.float32(value)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_decides_and_tells_the_value(kind, host):
    dtype = KINDS[kind]
    values = (3, 250) if dtype.kind == "u" else (-0.25, 1.75)
    for shape, amount in (((3, 9, 7, 3), 0.5), ((2, 4, 10, 5), np.array([0.9, 0.1])), ((2, 3, 1), 1.0)):
        x = (100 * RNG.random(shape)).astype(dtype)
        for layout, random in itertools.product((None, "CHW", "HWC"), (False, True)):
            given = {"salt": 0.3, "values": values, "random": random, "layout": layout}
            done = impulse(x, amount, N, shared=layout is not None, batched=True, **given)
            assert done.tobytes() == by_definition(x, amount, N, **given).tobytes()


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_plain_calls_have_the_bits_of_the_checked_way(kind, library, monkeypatch):
    """Seen to fail: planes of one channel; a window of channels; an amount of the next sample; a batch that is one
    sample; salt of floats as 255."""
    x = (200 * RNG.random((3, 9, 20, 4))).astype(KINDS[kind])
    if library == "torch":
        torch = pytest.importorskip("torch")
        x = nf.interop.torch.arrays.as_tensor(x, None, getattr(torch, kind))
    taken = "fast_impulse"
    for batched, layout, random in itertools.product((True, False, None), (None, "CHW", "HWC"), (False, True)):
        given = {"layout": layout, "shared": layout is not None, "random": random, "batched": batched, "salt": 0.3}
        same_as_checked(monkeypatch, lambda given=given: impulse(x, 0.4, N, **given), taken)
        if batched is not False:
            ids = N.at(sample=[3, 1, 4])
            for noise in (ids, [N, ids.at(sample=2), N.at(stream=0)]):
                amounts = np.array([0.1, 1.0, 0.0])
                same_as_checked(monkeypatch, lambda given=given, n=noise, a=amounts: impulse(x, a, n, **given), taken)
    wide = N.window((40, 9), (5, 0))
    same_as_checked(monkeypatch, lambda: impulse(x, 0.4, wide, layout="HWC", shared=True, batched=None), None)
    wide = N.window((12, 20), (3, 0))
    same_as_checked(monkeypatch, lambda: impulse(x, 0.4, wide, layout="HWC", shared=True), taken)
    same_as_checked(monkeypatch, lambda: impulse(x[:, :, ::2], 0.4, N), taken)
    same_as_checked(monkeypatch, lambda: impulse(x[1, 1], 0.4, N, layout="CHW", shared=True, batched=False), taken)
    out = x.copy() if library == "numpy" else x.clone()
    same_as_checked(monkeypatch, lambda: impulse(x, 0.4, N, out=out), taken)
    for wrong in ({"salt": 2.0}, {"shared": True}, {"batched": 3}, {"out": x[0]}, {"amount": -0.1}, {"amount": [0.5]}):
        given = {"amount": 0.4} | wrong
        same_as_checked(monkeypatch, lambda given=given: impulse(x, noise=N, **given), None)


def test_the_last_word_that_counts():
    """A place changes from the amount on that is just above its word, and is salt in the same way."""
    gray, colours = np.full((1, 70), 100, np.uint8), np.full((1, 70, 2, 3), 100, np.uint8)
    for x, layout in ((gray, None), (gray.astype(np.float32), None), (colours, "HWC")):
        for word in words(x.shape[: 2 if layout is None else 3], N).flat[:70:7]:
            for p in (int(word) / 2**32, (int(word) + 1) / 2**32):
                for amount, salt in ((p, 0.5), (1.0, p)):
                    done = impulse(x, amount, N, salt=salt, layout=layout, shared=layout is not None)
                    assert done.tobytes() == by_definition(x, amount, N, salt, layout=layout).tobytes()


@pytest.mark.parametrize("shape", [(5, 3), (3, 7, 3), (2, 64, 65, 3), (1, 33, 2, 70), (2, 3, 5, 4)])
def test_all_shapes(shape, compiled):
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    for layout, random in itertools.product((None, "CHW", "HWC") if len(shape) > 2 else (None,), (False, True)):
        options = {"layout": layout, "shared": layout is not None, "random": random, "batched": True}
        done = impulse(x, 0.3, N, **options)
        with using("reference"):
            assert np.array_equal(impulse(x, 0.3, N, **options), done)


def test_rates():
    """Within five standard deviations; random bytes are uniform, by chi-square."""
    x = np.full((1, 512, 512, 3), 128, np.uint8)
    n = 512 * 512
    done = impulse(x, 0.1, N, salt=0.25, layout="HWC", shared=True)
    assert (done == done[..., :1]).all()
    for value, p in ((0, 0.075), (255, 0.025)):
        assert abs((done[..., 0] == value).sum() - n * p) < 5 * np.sqrt(n * p)
    changed = impulse(x, 1.0, N, random=True)
    counts = np.bincount(changed.ravel(), minlength=256)
    assert abs(((counts - 3 * n / 256) ** 2).sum() / (3 * n / 256) - 255) < 5 * np.sqrt(2 * 255)
    floats = impulse(np.zeros((1, n), np.float32), 1.0, N, random=True, values=(-1, 3))
    assert abs(floats.mean() - 1) < 0.02
    assert -1 < floats.min() < -0.999
    assert 2.999 < floats.max() < 3


def test_ends():
    x = RNG.integers(1, 255, (2, 40, 40), dtype=np.uint8)
    assert np.array_equal(impulse(x, 0.0, N, batched=True), x)
    assert (impulse(x, 1.0, N, salt=1, batched=True) == 255).all()
    assert (impulse(x, 1.0, N, salt=0, batched=True) == 0).all()
    assert impulse(x[:0], 0.5, N, batched=True).shape == (0, 40, 40)


def test_a_sample_alone_windows_and_in_place():
    x = RNG.random((4, 12, 10, 3)).astype(np.float32)
    whole = impulse(x, 0.4, N, layout="HWC", shared=True)
    for b in range(4):
        alone = impulse(x[b], 0.4, N.at(sample=5 + b), layout="HWC", shared=True, batched=False)
        assert np.array_equal(alone, whole[b])
    part = impulse(x[:, 3:9], 0.4, N.window((12, 10), (3, 0)), layout="HWC", shared=True)
    assert np.array_equal(part, whole[:, 3:9])
    assert impulse(x, 0.4, N, layout="HWC", shared=True, out=x) is x
    assert np.array_equal(x, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 1.5}, r"amount = 1.5: expected from 0 to 1"),
        ({"amount": [0.5, np.nan, 0.5]}, r"amount\[1\] = nan: expected from 0 to 1"),
        ({"amount": [0.5, 0.5]}, r"amount: expected a number, or \(3,\) for the samples, got shape \(2,\)"),
        ({"salt": 2}, "salt = 2"),
        ({"values": (9, 2)}, r"values = \(9, 2\): expected \(low, high\)"),
        ({"values": (0, 256)}, r"values = \(0, 256\): expected whole numbers from 0 to 255, as x is uint8"),
        ({"values": (0.5, 2)}, "expected whole numbers"),
        ({"shared": True}, "layout"),
        ({"noise": np.zeros((3, 4, 5), np.float32)}, "expected a Noise or a list of them"),
        ({"out": np.zeros((3, 4, 5), np.uint16)}, "out"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(options, message):
    x = np.full((3, 4, 5), 7, np.uint8)
    given = {"amount": 0.5, "noise": N, "out": x} | options
    with pytest.raises((TypeError, ValueError), match=message):
        impulse(x, **given)
    assert (x == 7).all()


def test_other_threads_may_change_x_and_the_amounts():
    """No word and no probability that changes meanwhile crashes the process."""
    code = """
import threading, numpy as np, noisefuse as nf
x, amount = np.zeros((64, 40, 40, 3), np.uint8), np.full(64, 0.5)
stop = threading.Event()
def write():
    while not stop.is_set():
        x[...], amount[...] = 255, np.random.default_rng(0).normal(size=64) * 1e9
thread = threading.Thread(target=write)
thread.start()
for step in range(300):
    try:
        nf.augment.impulse(x, amount, nf.Noise(7, step=step), random=bool(step % 2))
    except ValueError:
        pass
stop.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
