# SPDX-License-Identifier: Apache-2.0
"""Increments of a Brownian motion: their law, from the coefficients; their bits, from their keyed draws."""

import copy
import itertools
import math
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, bits, reference_is_slow
from cuda_kernels import stand_in

NOISE = nf.Noise(7, sample=40, step=3)
CELLS = 1 << 24
GRID = (-1.0, -0.25, 0.0, 0.3, 2.0, 2.5)


def times(n, seed=0):
    """Draws sorted times, on the cells of [0, 1]: far apart, close together, and the ends."""
    rng = random.Random(seed)
    at = {0, CELLS, 1, CELLS // 2, CELLS // 2 + 1}
    at |= {rng.randrange(CELLS) for _ in range(n)}
    at |= {u + rng.randrange(3) for u in [*at] if u + 2 < CELLS}
    return [u / CELLS for u in sorted(at)]


def covariance(a, b):
    """Returns the covariance of two increments, from their draws: draws of other keys are independent."""
    other = dict(b.terms())
    return math.fsum(c * other[word] for word, c in a.terms() if word in other)


def check_law(interval):
    """The covariance of Brownian motion is the overlap of two intervals, so disjoint increments are independent."""
    at = times(6)
    pairs = random.Random(1).sample([*itertools.permutations(at, 2)], 150)
    for (a0, a1), (b0, b1) in itertools.product(pairs, pairs):
        low, high = max(min(a0, a1), min(b0, b1)), min(max(a0, a1), max(b0, b1))
        sign = 1 if (a1 > a0) == (b1 > b0) else -1
        expected = sign * max(0.0, high - low) / math.sqrt(abs(a1 - a0) * abs(b1 - b0))
        assert abs(covariance(interval(a0, a1), interval(b0, b1)) - expected) < 1e-12


def test_the_law_is_that_of_brownian_motion():
    check_law(NOISE.interval)


def test_another_law_is_seen():
    """Returns the terms of a tree whose tents of one level are a little too high."""

    class Wrong:
        def __init__(self, increment):
            self.found = [(w, c * (1 + 1e-9 * (w & 0xFFFFFF in range(8, 16)))) for w, c in increment.terms()]

        def terms(self):
            return self.found

    with pytest.raises(AssertionError):
        check_law(lambda t0, t1: Wrong(NOISE.interval(t0, t1)))


def expected(increment, shape, dtype):
    """Computes the sum of docs/noise.md in NumPy's arithmetic: a rounded product, and a rounded sum."""
    real, total = np.float64 if dtype == np.float64 else np.float32, None
    for word, c in increment.terms():
        z = nf.randn(shape, increment.noise.at(step=word, stream=4), dtype=real)
        total = real(c) * z if total is None else total + real(c) * z
    return total.astype(dtype)


@reference_is_slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("t", [(0.2, 0.7), (0.7, 0.2), (0, 1), (0.5, 0.5 + 2**-24), (1 / 3, 0.34)], ids=str)
def test_an_increment_is_a_sum_of_named_draws(backend, t, dtype):
    """Seen to fail: stream 5, the sum begun at the top, and in float16."""
    increment = NOISE.interval(*t)
    assert bits(nf.randn((3, 70), increment, dtype=dtype)) == bits(expected(increment, (3, 70), dtype))
    assert bits(nf.randn_like(np.ones((3, 70), dtype), increment)) == bits(expected(increment, (3, 70), dtype))


def test_words_are_those_of_the_contract():
    """Computes the tree of docs/noise.md in exact arithmetic."""
    noise = nf.Noise(1, step=5)
    for t0, t1 in [(0.2, 0.7), (0.9, 0.125), (0.0, 1.0)]:
        u0, u1 = (Fraction(round(t * CELLS), CELLS) for t in (t0, t1))
        heights = {0: u1 - u0}
        for level in range(1, 25):
            for u, sign in ((u0, -1), (u1, 1)):
                k = math.floor(u * 2 ** (level - 1))
                inside = u * 2 ** (level - 1) - k
                n = 2 ** (level - 1) + k
                heights[n] = heights.get(n, 0) + sign * min(inside, 1 - inside)
        size = {n: 2 ** -((max(n, 1).bit_length() - 1) / 2) / math.sqrt(abs(u1 - u0)) for n in heights}
        found = {n: float(h) * size[n] for n, h in heights.items() if h}
        terms = [(word - (5 << 24), c) for word, c in noise.interval(t0, t1).terms()]
        assert [n for n, _ in terms] == sorted(
            found, key=lambda n: (-n.bit_length(), n)
        )  # level by level, the root last
        assert np.allclose([c for _, c in terms], [found[n] for n, _ in terms], rtol=1e-15)


def test_words_of_a_grid_are_those_of_the_contract():
    """Seen to fail: another first word; a way back with the forward sign."""
    noise, grid = nf.Noise(1, step=5), [-1.0, 0.0, 0.25, 3.0, 3.5]
    for i, j in itertools.combinations(range(5), 2):
        pieces = [math.sqrt((grid[k + 1] - grid[k]) / (grid[j] - grid[i])) for k in range(i, j)]
        words = [2**31 + 5 * 2**24 + k for k in range(i, j)]
        assert noise.interval(grid[i], grid[j], grid=grid).terms() == (*zip(words, pieces, strict=True),)
        assert noise.interval(grid[j], grid[i], grid=grid).terms() == (
            *((n, -c) for n, c in zip(words, pieces, strict=True)),
        )


@pytest.mark.parametrize("options", [{}, {"grid": times(9)}], ids=["span", "grid"])
def test_parts_add_up_to_the_whole(options):
    """Seen to fail: a tree in which t1 takes its neighbour's node."""
    at, shape = times(9), (2, 501)
    steps = [math.sqrt(b - a) * nf.randn(shape, NOISE.interval(a, b, **options), dtype="float64") for a, b in
             itertools.pairwise(at)]  # fmt: skip
    for i, j in [(0, len(at) - 1), (3, 9), (1, 5), (7, 8)]:
        whole = math.sqrt(at[j] - at[i]) * nf.randn(shape, NOISE.interval(at[i], at[j], **options), dtype="float64")
        assert np.allclose(sum(steps[i:j]), whole, rtol=0, atol=1e-13)
        back = nf.randn(shape, NOISE.interval(at[j], at[i], **options), dtype="float64")
        assert bits(back * -math.sqrt(at[j] - at[i])) == bits(whole)


@pytest.mark.parametrize("options", [{}, {"grid": [0.0, 0.3, 0.4, 0.41, 1.0]}], ids=["span", "grid"])
def test_fields_are_independent_normals(options):
    """2^20 elements: 5 standard errors. Seen to fail: all levels on one node."""
    n = 1 << 20
    parts = [nf.randn((4, n // 4), NOISE.interval(*t, **options)).ravel() for t in ((0, 0.3), (0.3, 0.41), (0.41, 1))]
    for a in parts:
        assert abs(a.mean()) < 5 / math.sqrt(n)
        assert abs(a.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((a**4).mean() - 3) < 5 * math.sqrt(96 / n)
    for a, b in itertools.combinations(parts, 2):
        assert abs((a * b).mean()) < 5 / math.sqrt(n)


def test_each_name_has_its_own_path():
    fields = [
        nf.randn((1, 64), noise.interval(0.2, 0.7, **options)).tobytes()
        for noise in (NOISE, NOISE.at(step=4), NOISE.at(sample=41), nf.Noise(8, sample=40, step=3))
        for options in ({}, {"grid": [0.2, 0.5, 0.7]}, {"span": (0, 2)})
    ]
    assert len({*fields}) == len(fields)


def test_steps_take_words_of_their_own():
    """No two of them, nor a tree and a grid, have a draw in common: 2^24 words for each."""
    for options in ({}, {"grid": np.arange(1 << 12) / 4095}):
        for step in (0, 1, 127):
            words = [
                w for w, _ in nf.Noise(1, step=step).interval(0, 1 - 2**-24 if not options else 1, **options).terms()
            ]
            assert {w >> 24 for w in words} == {step + (128 if options else 0)}
    with pytest.raises(OverflowError, match="step 128 has no path of its own, expected a step below 128"):
        nf.Noise(1, step=128).interval(0, 1)


@reference_is_slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_samples_windows_and_lists(backend, dtype):
    """It holds for every noise. Seen to fail: a list whose entries all take the first one's samples."""
    whole = nf.randn((4, 6, 10), NOISE.interval(0.2, 0.7), dtype=dtype)
    assert bits(nf.randn((2, 6, 10), NOISE.at(sample=42).interval(0.2, 0.7), dtype=dtype)) == bits(whole[2:])
    assert bits(nf.randn((2, 6, 10), NOISE.at(sample=[43, 41]).interval(0.2, 0.7), dtype=dtype)) == bits(whole[[3, 1]])
    tile = nf.randn((4, 3, 7), NOISE.window((6, 10), (2, 1)).interval(0.2, 0.7), dtype=dtype)
    assert bits(tile) == bits(whole[:, 2:5, 1:8])
    many = [NOISE.at(sample=40 + b).interval(0.2, t) for b, t in enumerate((0.7, 0.1, 0.7))]
    found = nf.randn((3, 6, 10), many, dtype=dtype)
    assert bits(found[[0, 2]]) == bits(whole[[0, 2]])
    assert bits(found[1:2]) == bits(nf.randn((1, 6, 10), many[1], dtype=dtype))
    one = nf.randn((6, 10), NOISE.interval(0.2, 0.7), dtype=dtype, batched=False)
    assert bits(one) == bits(whole[0])
    assert nf.randn((0, 3), NOISE.interval(0.2, 0.7), dtype=dtype).shape == (0, 3)
    out = np.empty((4, 6, 10), dtype)
    assert nf.randn(out.shape, NOISE.interval(0.2, 0.7), dtype=dtype, out=out) is out
    assert bits(out) == bits(whole)


def test_tensors():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.zeros(2, 5, dtype=dtype)
        drawn = nf.randn_like(x, NOISE.interval(0.2, 0.7))
        assert drawn.dtype == dtype
        name = str(dtype).removeprefix("torch.")
        expected = nf.randn((2, 5), NOISE.interval(0.2, 0.7), dtype=name)
        assert drawn.float().numpy().tolist() == expected.astype(np.float32).tolist()
        assert torch.equal(nf.randn((2, 5), [NOISE.interval(0.2, 0.7)] * 2, dtype=dtype)[0], drawn[0])


def test_times_are_rounded_to_the_span():
    a, b = (NOISE.interval(t, 30.0, span=(-10.0, 70.0)) for t in (10.0, 10.0 + 80 * 2**-26))
    assert a.terms() == b.terms() == NOISE.interval(0.25, 0.5).terms()
    assert NOISE.interval(0.3 + 1e-12, 2.0, grid=GRID).terms() == NOISE.interval(0.3, 2.0, grid=GRID).terms()
    assert len(NOISE.interval(0.3, 2.0, grid=GRID).terms()) == 1


def test_an_increment_is_a_value():
    increment = NOISE.interval(2, 0.3, grid=GRID)
    assert increment == copy.deepcopy(increment) == pickle.loads(pickle.dumps(increment))
    assert hash(increment) == hash(NOISE.interval(2.0, 0.3, grid=[*GRID]))
    assert increment != NOISE.interval(0.3, 2, grid=GRID)
    with pytest.raises(AttributeError):
        increment.t0 = 1.0


def test_a_pickle_cannot_bring_terms_of_its_own():
    """A pickle may come from anybody, and kernels trust the terms: they are made again, and the times are checked."""
    increment = NOISE.interval(2, 0.3, grid=GRID)
    forged = copy.copy(increment)
    object.__setattr__(forged, "_terms", ((1 << 40, 1.0),))
    assert pickle.loads(pickle.dumps(forged)).terms() == increment.terms()
    object.__setattr__(forged, "t0", 99.0)
    with pytest.raises(ValueError, match=r"t0 = 99\.0 is not a time of the grid"):
        pickle.loads(pickle.dumps(forged))
    object.__setattr__(forged, "noise", 7)
    with pytest.raises(TypeError, match="expected a Noise, got int"):
        pickle.loads(pickle.dumps(forged))


WRONG = {
    "before": (ValueError, r"t0 = -0\.1 lies outside of the span from 0\.0 to 1\.0", lambda: NOISE.interval(-0.1, 1)),
    "after": (ValueError, r"t1 = 1\.5 lies outside", lambda: NOISE.interval(0, 1.5)),
    "NaN": (ValueError, r"t1 = nan lies outside", lambda: NOISE.interval(0, math.nan)),
    "NaN on a grid": (ValueError, r"t1 = nan is not a time", lambda: NOISE.interval(0, math.nan, grid=GRID)),
    "at once": (ValueError, r"are one time.*2\^-24", lambda: NOISE.interval(0.3, 0.3)),
    "too close": (ValueError, r"are one time", lambda: NOISE.interval(0.3, 0.3 + 1e-9)),
    "between": (ValueError, r"t0 = 0\.1 is not a time of the grid", lambda: NOISE.interval(0.1, 2, grid=GRID)),
    "one time": (ValueError, r"are one time of the grid", lambda: NOISE.interval(2, 2, grid=GRID)),
    "span falls": (ValueError, r"span: expected finite times that increase", lambda: NOISE.interval(0, 1, span=(1, 0))),
    "span of three": (ValueError, r"span: expected a pair", lambda: NOISE.interval(0, 1, span=(0, 1, 2))),
    "span infinite": (ValueError, r"span: expected finite", lambda: NOISE.interval(0, 1, span=(0, math.inf))),
    "grid falls": (ValueError, r"grid: expected finite times that", lambda: NOISE.interval(0, 1, grid=[0, 1, 1])),
    "grid of one": (ValueError, r"grid: expected at least 2 times", lambda: NOISE.interval(0, 1, grid=[0])),
    "span array and grid": (
        TypeError, "a span or a grid", lambda: NOISE.interval(0, 1, span=np.array([0, 2.0]), grid=GRID)
    ),
    "stream": (ValueError, r"takes stream 0, got 4", lambda: NOISE.at(stream=4).interval(0, 1)),
    "uniform": (TypeError, r"noise: .*got Increment", lambda: nf.uniform(3, NOISE.interval(0, 1))),
    "list": (
        ValueError, r"one Noise for each of 3 samples, got 2", lambda: nf.randn((3, 2), [NOISE.interval(0, 1)] * 2)
    ),
    "dask": (NotImplementedError, "increment", lambda: nf.randn((3, 2), NOISE.interval(0, 1), chunks=1)),
}  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), WRONG.values(), ids=WRONG)
def test_errors(request, error, message, call):
    if request.node.callspec.id == "dask":
        pytest.importorskip("dask")
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_arrays_on_a_device(dtype):
    """The tensors are the stand-in's, and the increment is added in their memory."""
    expected = nf.randn((3, 70), NOISE.interval(0.2, 0.7), dtype=dtype)
    with stand_in.installed() as cupy:
        x = cupy.empty((3, 70), dtype)
        assert nf.randn(x.shape, NOISE.interval(0.2, 0.7), dtype=dtype, out=x) is x
        assert bits(cupy.asnumpy(x)) == bits(expected)
        many = nf.randn_like(x, [NOISE.at(sample=40 + b).interval(0.2, 0.7) for b in range(3)])
        assert bits(cupy.asnumpy(many)) == bits(expected)
