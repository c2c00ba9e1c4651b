# SPDX-License-Identifier: Apache-2.0
"""The reference backend against exact arithmetic, libm's fma and the known answers of Random123."""

import ctypes
import ctypes.util
import decimal
import itertools
import math
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noisefuse import backends
from noisefuse.backends import reference, spec
from noisefuse.call.description import Philox, Step, Walk
from noisefuse.language.rows import AFFINE, COLUMNS, HIGH, LOW, M1, M2, PASTS, D, Rows, X, Z
from noisefuse.noise import Noise

MATH = reference.SPEC
TYPES = [np.float32, np.float64]
EDGES = [
    0,
    1,
    2,
    255,
    256,
    2**30 - 1,
    2**30,
    2**31 - 1,
    2**31,
    3 * 2**30 - 1,
    3 * 2**30,
    2**32 - 2,
    2**32 - 1,
]
EDGES += [math.floor(2**32 * 2 / 3 / 2**k) + d for k in (0, 1, 7, 31) for d in (0, 1)]


# ---- fma ---------------------------------------------------------------------------------------------------


def rounded(exact, kind):
    """Returns the value of `kind` nearest to a Fraction, ties to even, in integers; exact zeros are +0."""
    if exact == 0:
        return kind(0.0)
    info = np.finfo(kind)
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    unit = max(exponent, info.minexp) - info.nmant
    count = round(exact / Fraction(2) ** unit)  # Python rounds a Fraction to nearest even
    overflow = abs(count) * Fraction(2) ** unit >= Fraction(2) ** info.maxexp
    size = math.inf if overflow else math.ldexp(abs(count), unit)
    return kind(size if exact > 0 else -size)


def expected_fma(a, b, c, kind):
    values = [float(v) for v in (a, b, c)]
    if all(map(math.isfinite, values)):
        fa, fb, fc = map(Fraction, values)
        if fa * fb + fc:
            return rounded(fa * fb + fc, kind)
    with np.errstate(all="ignore"):  # exact zeros, infinities and NaN need no rounding: plain arithmetic has them
        product = kind(a) * kind(b)
        finite_product = math.isfinite(values[0]) and math.isfinite(values[1])
        if finite_product and not math.isfinite(values[2]):
            return kind(c)
        if finite_product and product + kind(c) != 0:
            return kind(0.0)  # a b = -c, but the product alone would round
        return product + kind(c)


def assert_same(actual, expected):
    """Asserts the same bits; any NaN equals a NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


def nasty(kind):
    info = np.finfo(kind)
    one, eps = kind(1), info.eps
    sizes = [0, info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny - info.smallest_subnormal]
    sizes += [info.tiny, info.tiny * (one + eps), kind(2) ** (info.minexp // 2), eps / 2, eps]
    sizes += [one - eps / 2, one, one + eps, kind(1.5), kind(2) ** (info.nmant // 2) + one]
    sizes += [kind(2) ** (info.maxexp // 2), info.max / 2, info.max, np.inf]
    return [kind(sign * size) for size in sizes for sign in (1, -1)] + [kind(np.nan)]


@pytest.mark.parametrize("kind", TYPES)
def test_fma_of_every_triple_of_nasty_values(kind):
    a, b, c = np.array(list(itertools.product(nasty(kind), repeat=3)), kind).T
    expected = [expected_fma(*triple, kind) for triple in zip(a, b, c, strict=True)]
    assert_same(reference.fma(a, b, c), np.array(expected, kind))


@given(*[st.floats(width=32)] * 3)
@example(1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60)
def test_fma32_is_rounded_once(a, b, c):
    a, b, c = map(np.float32, (a, b, c))
    assert_same(reference.fma(a, b, c), expected_fma(a, b, c, np.float32))


@given(*[st.floats()] * 3)
@example(2.0**512, 2.0**511, 2.0**1023)  # of two moderate numbers: seen to give NaN for infinity
def test_fma64_is_rounded_once(a, b, c):
    a, b, c = map(np.float64, (a, b, c))
    assert_same(reference.fma(a, b, c), expected_fma(a, b, c, np.float64))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", ["all bits", "ties", "cancellation", "tiny", "huge"])
def test_fma_like_libm(kind, case):
    a, b, c = hard_triples(kind, case, 20_000)
    libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
    function, real = (libm.fmaf, ctypes.c_float) if kind is np.float32 else (libm.fma, ctypes.c_double)
    function.argtypes, function.restype = [real] * 3, real
    expected = [function(*map(float, triple)) for triple in zip(a, b, c, strict=True)]
    assert_same(reference.fma(a, b, c), np.array(expected, kind))


def hard_triples(kind, case, n):
    rng = np.random.default_rng(2008)
    word = np.uint32 if kind is np.float32 else np.uint64
    a, b, c = rng.integers(0, np.iinfo(word).max, (3, n), word, endpoint=True).view(kind)
    if case == "all bits":
        return a, b, c
    info = np.finfo(kind)
    a, b, c = (kind(1) + rng.random((3, n)).astype(kind)) * rng.choice([-1, 1], (3, n)).astype(kind)
    if case == "ties":  # products of few digits, sums of many: half of them are ties or next to one
        a, b = np.round(a * 64) / 64, np.ldexp(np.round(b * 64) / 64, -info.nmant + rng.integers(-2, 13, n))
        c *= rng.choice([1, 2.0**-9], n)
    if case in ("cancellation", "tiny"):
        if case == "tiny":  # products from the smallest number up to where their tails no longer underflow
            a, b = (np.ldexp(v, info.minexp // 2 + rng.integers(-info.nmant // 2, 40, n)) for v in (a, b))
        c = -(a * b) * (1 + rng.integers(-2, 3, n) * info.eps)
    if case == "huge":
        a, c = (np.ldexp(v, info.maxexp - 1 - rng.integers(0, 40, n)) for v in (a, c))
        b = np.ldexp(b, rng.integers(-50, 10, n))
    return a.astype(kind), b.astype(kind), c.astype(kind)


# ---- words, normals, uniforms ------------------------------------------------------------------------------


def philox(counter, key):
    words = np.empty_like(counter)
    reference.run(Philox(counter, key, words, len(counter)))
    return words


def test_philox_gives_random123s_known_answers():
    counter = [[0] * 4, [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
    key = [[0] * 2, [0xFFFFFFFF] * 2, [0xA4093822, 0x299F31D0]]
    words = philox(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert [" ".join(f"{word:08x}" for word in row) for row in words] == [
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["log1p", "sin", "cos"])
def test_coefficients_are_those_of_the_kernels(csrc_constants, name, kind):
    name += str(8 * kind().itemsize)
    ours = getattr(spec, name.upper())
    (theirs,) = [numbers for key, *numbers in csrc_constants if key == name]
    assert [float(c) for c in ours] == [float.fromhex(c) for c in theirs]
    assert {type(c) for c in ours} == {kind}


def many_words(n=1 << 16):
    """Returns edges, random words, and words of all sizes from both ends."""
    rng = np.random.default_rng(1958)
    words = rng.integers(0, 2**32, n, np.uint32)
    sizes = rng.integers(0, 2**32, n, np.uint32) >> rng.integers(0, 32, n, np.uint32)
    return np.concatenate([np.array(EDGES, np.uint32), words, sizes, ~sizes])


def test_radius32_is_within_its_bound():
    w = many_words()
    u, rest = (w + 0.5) / 2**32, (~w + 0.5) / 2**32
    exact = np.sqrt(-2 * np.where(u > 0.5, np.log1p(-rest), np.log(u)))
    radius = MATH.radius32(w)
    assert radius.dtype == np.float32
    assert np.max(abs(radius - exact) / np.spacing(exact.astype(np.float32))) <= 2.5


def test_circle32_is_within_its_bound():
    w = many_words()
    cos, sin = MATH.circle32(w)
    assert cos.dtype == sin.dtype == np.float32
    angle = 2 * np.pi * ((w + 0.5) / 2**32)
    assert max(np.max(abs(cos - np.cos(angle))), np.max(abs(sin - np.sin(angle)))) <= 2.0**-22


def cos_sin(x):
    """Computes Taylor's series of both in Decimal, 0 <= x < 7."""
    term, sums = Decimal(1), [Decimal(0), Decimal(0)]
    for n in range(80):
        sums[n % 2] += term * (1 if n % 4 < 2 else -1)
        term *= x / (n + 1)
    return sums


def test_float64_normals_are_within_their_bounds():
    rng = np.random.default_rng(64)
    w = np.concatenate([np.repeat(np.array(EDGES, np.uint32), 3), rng.integers(0, 2**32, 200, np.uint32)])
    v = np.concatenate([np.tile(np.array([0, 2**31, 2**32 - 1], np.uint32), len(EDGES)), w[-200:][::-1]])
    radius, (cos, sin) = MATH.radius64(w, v), MATH.circle64(w, v)
    tau = Decimal("6.283185307179586476925286766559005768394338798750211641949889")
    with decimal.localcontext(prec=60):
        for i in range(len(w)):
            u = Decimal((int(w[i]) << 33) + (int(v[i]) << 1) + 1) / 2**65
            exact = (-2 * u.ln()).sqrt()
            assert abs(Decimal(float(radius[i])) - exact) <= Decimal(2.5 * math.ulp(exact))
            exact_cos, exact_sin = cos_sin(tau * u)
            assert abs(Decimal(float(cos[i])) - exact_cos) <= Decimal(2.0**-51)
            assert abs(Decimal(float(sin[i])) - exact_sin) <= Decimal(2.0**-51)


def test_normals_of_edge_words_are_finite_and_not_zero():
    w, v, x, y = np.array(list(itertools.product(EDGES, EDGES, [0, 2**32 - 1], [0, 2**32 - 1])), np.uint32).T
    for bound, pair in ((6.77, MATH.normal_pair32(w, v)), (9.5, MATH.normal_pair64(w, x, v, y))):
        z = np.array(pair)
        assert np.all((z != 0) & (abs(z) <= bound))


def test_float64_sees_the_same_field():
    rng = np.random.default_rng(5)
    w, v = many_words(), rng.permutation(many_words())
    x, y = rng.integers(0, 2**32, (2, len(w)), np.uint32)
    difference = abs(np.array(MATH.normal_pair32(w, v)) - np.array(MATH.normal_pair64(w, x, v, y))).max(axis=0)
    common = (MATH.radius32(w) < 5) & (w < 2**32 - 1)
    assert np.max(difference[common]) <= 1e-5
    # This is the one word whose cell reaches U = 1, where the radius is as small as its error.
    assert np.max(difference[w == 2**32 - 1]) <= 1.6e-5


def test_uniforms_are_the_middles_of_cells():
    w, v = np.array(list(itertools.product(EDGES, EDGES)), np.uint32).T
    single, double = MATH.uniform32(w), MATH.uniform64(w, v)
    assert single.dtype == np.float32
    for i in range(len(w)):
        assert Fraction(float(single[i])) == Fraction(2 * (int(w[i]) >> 9) + 1, 2**24)
        assert Fraction(float(double[i])) == Fraction(2 * ((int(w[i]) << 32 | int(v[i])) >> 12) + 1, 2**53)


# ---- calls -------------------------------------------------------------------------------------------------


def bit(group, slot=None):
    """Returns the bit of a linear combination's constant, or of one of its terms."""
    return 1 << (group if slot is None else group + 1 + slot)


OUT, AUX = AFFINE[0], AFFINE[1]
NOISE_ONLY = bit(OUT, Z)


def make_step(x, noise=(), *, rows=None, present=NOISE_ONLY, draw="normal", out=None, **changes):
    """Makes a step over x (batch, ...) with one row: by default out = z."""
    if rows is None:
        rows = np.ones((1, COLUMNS))
    call = Step(
        batch=x.shape[0],
        size=math.prod(x.shape[1:]),
        sample_shape=x.shape[1:],
        rows=Rows(rows, present),
        index=np.zeros(1, np.int64),
        segment=x.size,
        inputs=(x, *[None] * 8),
        outputs=(np.empty_like(x) if out is None else out, None, None),
        draw=draw,
        step_by_index=False,
        noise=noise,
    )
    return call._replace(**changes)


def run(*args, **kwargs):
    call = make_step(*args, **kwargs)
    reference.step(call)
    return call.outputs[0]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_each_element_takes_its_word_of_its_counter(kind, draw):
    noise = Noise(0x0123456789ABCDEF, sample=2**40 + 5, step=77, stream=9)
    z = run(np.empty((3, 2, 7), kind), (noise,), draw=draw).reshape(3, 14)
    for b, i in itertools.product(range(3), range(14)):
        sample = 2**40 + 5 + b
        words = []
        for low in (0, 1):
            tag = low << 31 | 9 << 24 | sample >> 32
            counter = np.array([[i >> 2, 77, sample & 0xFFFFFFFF, tag]], np.uint32)
            words.append(philox(counter, np.array([[0x89ABCDEF, 0x01234567]], np.uint32))[0])
        w, v = words
        pair = i & 2
        if kind is np.float32:
            values = MATH.normal_pair32(w[pair : pair + 1], w[pair + 1 : pair + 2])
            expected = MATH.uniform32(w[i & 3 : (i & 3) + 1]) if draw == "uniform" else values[i & 1]
        else:
            halves = [h[j : j + 1] for j in (pair, pair + 1) for h in (w, v)]
            at = slice(i & 3, (i & 3) + 1)
            expected = MATH.uniform64(w[at], v[at]) if draw == "uniform" else MATH.normal_pair64(*halves)[i & 1]
        assert z[b, i] == expected[0]


def test_results_do_not_depend_on_chunks_batches_and_lists(monkeypatch):
    noise = Noise(1, sample=np.array([5, 2**50, 7], np.uint64), step=3)
    whole = run(np.empty((3, 5, 9), np.float32), (noise,))
    monkeypatch.setattr(reference, "CHUNK", 32)
    assert_same(run(np.empty((3, 5, 9), np.float32), (noise,)), whole)
    alone = tuple(Noise(1, sample=sample, step=3) for sample in (5, 2**50, 7))
    assert_same(run(np.empty((3, 5, 9), np.float32), alone), whole)
    assert_same(run(np.empty((1, 5, 9), np.float32), alone[1:2])[0], whole[1])


def test_a_window_is_a_slice():
    noise = Noise(1)
    whole = run(np.empty((2, 6, 5, 7), np.float32), (noise,))
    part = run(np.empty((2, 3, 5, 2), np.float32), (noise.window((6, 5, 7), (2, 0, 4)),))
    assert_same(part, whole[:, 2:5, :, 4:6])


def test_segments_choose_rows_and_steps():
    rng = np.random.default_rng(3)
    x, rows = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(4, COLUMNS))
    index = np.array([3, 1, 0, 2])
    present = bit(OUT, X) | bit(OUT, Z)
    result = run(x, (Noise(8, step=10),), rows=rows, present=present, index=index, segment=3, step_by_index=True)
    for segment, row in enumerate(index):
        sigma, alpha = np.float32(rows[row, OUT + 1 + Z]), np.float32(rows[row, OUT + 1 + X])
        z = run(np.empty_like(x), (Noise(8, step=10 + int(row)),)).ravel()
        at = slice(3 * segment, 3 * segment + 3)
        assert_same(result.ravel()[at], reference.fma(alpha, x.ravel()[at], sigma * z[at]))


def test_a_row_adds_its_terms_in_the_contracts_order():
    rng = np.random.default_rng(4)
    inputs = list(rng.normal(size=(9, 1, 50)).astype(np.float32))
    rows = rng.normal(size=(1, COLUMNS)).astype(np.float32)
    rows[0, LOW], rows[0, HIGH] = -0.5, 0.25
    inputs[D] = None
    results = np.empty((2, 1, 50), np.float32)
    call = make_step(inputs[X], rows=rows.astype(np.float64), present=(1 << COLUMNS) - 1, draw="none")
    reference.step(call._replace(inputs=tuple(inputs), outputs=(results[0], None, results[1])))

    clean = reference.fma(rows[0, 3], inputs[M2], rows[0, 0])
    clean = reference.fma(rows[0, 1], inputs[X], reference.fma(rows[0, 2], inputs[M1], clean))
    inputs[D] = np.clip(clean, np.float32(-0.5), np.float32(0.25))
    for result, first in zip(results, (AFFINE[0], AFFINE[2]), strict=True):
        total = rows[0, first]
        for slot in (Z, D, *PASTS[::-1], M2, M1, X):
            total = reference.fma(rows[0, first + 1 + slot], inputs[slot], total)
        assert_same(result, total)


def test_absent_columns_are_not_read_and_forms_without_terms_are_constant():
    x = np.full((1, 5), np.inf, np.float32)
    rows = np.full((1, COLUMNS), 0.5)
    assert_same(run(x, rows=rows, present=bit(OUT), draw="none"), np.full_like(x, 0.5))
    assert_same(run(x, rows=rows, present=0, draw="none"), np.zeros_like(x))
    negative_zero = np.full((1, 5), -0.0, np.float32)
    assert_same(run(negative_zero, rows=rows, present=bit(OUT, X), draw="none"), negative_zero)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_types_are_rounded_once_at_the_store(kind):
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(2, 100)) * 10.0 ** rng.integers(-8, 8, (2, 100)).clip(-9, 3)).astype(kind)
    rows = np.full((1, COLUMNS), 0.7)
    both = bit(OUT, X) | bit(OUT, Z)
    single = run(x.astype(np.float32), (Noise(2),), rows=rows, present=both)
    result = run(x, (Noise(2),), rows=rows, present=both)
    assert result.dtype == kind
    assert_same(result, single.astype(kind))


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_converted_exactly(kind):
    x = np.arange(256, dtype=np.uint8).reshape(1, 256)
    result = run(
        x,
        rows=np.full((1, COLUMNS), 1 / 127.5),
        present=bit(OUT, X),
        draw="none",
        out=np.empty((1, 256), kind),
    )
    assert_same(result, np.arange(256, dtype=kind).reshape(1, 256) * kind(1 / 127.5))


def test_an_output_may_be_an_input():
    x = np.random.default_rng(7).normal(size=(2, 40)).astype(np.float32)
    present = bit(OUT, X) | bit(OUT, Z) | bit(AUX, X) | bit(AUX, Z)
    rows = np.arange(1.0, 1 + COLUMNS)[None]
    apart, inside = x.copy(), x.copy()
    results = (np.empty_like(x), np.empty_like(x), None)
    reference.step(make_step(apart, (Noise(3),), rows=rows, present=present, outputs=results))
    aux = np.empty_like(x)
    reference.step(make_step(inside, (Noise(3),), rows=rows, present=present, outputs=(inside, aux, None)))
    assert_same(apart, x)
    assert_same(inside, results[0])
    assert_same(aux, results[1])


def test_drawn_noise_equals_the_same_noise_as_an_array():
    x = np.random.default_rng(8).normal(size=(2, 40))
    z = run(np.empty_like(x), (Noise(4),))
    rows, present = np.full((1, COLUMNS), 0.3), bit(OUT, X) | bit(OUT, Z)
    given_z = run(x, rows=rows, present=present, draw="none", inputs=(x, *[None] * 7, z))
    assert_same(run(x, (Noise(4),), rows=rows, present=present), given_z)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-np.inf, 0.0), (0.0, np.inf)])
def test_the_clamp_lets_nan_pass(bounds):
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 0.0, 2.0, -2.0, 0.5]], np.float32)
    rows = np.ones((1, COLUMNS))
    rows[0, [LOW, HIGH]] = bounds
    for present in (1 << LOW, 1 << HIGH, 3 << LOW):
        result = run(x, rows=rows, present=present | bit(0, X) | bit(OUT, D), draw="none")
        with np.errstate(invalid="ignore"):
            assert_same(result, np.where(x < bounds[0], bounds[0], np.where(x > bounds[1], bounds[1], x)).astype("f4"))


@pytest.mark.parametrize("kind", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_walk_is_its_steps(kind, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 32)
    rng = np.random.default_rng(9)
    x0, rows = rng.normal(size=(2, 5, 5)).astype(kind), rng.normal(size=(3, COLUMNS))
    kept = np.empty((2, *x0.shape), kind)
    first = make_step(x0, (Noise(5, step=40, stream=1),), rows=rows, out=kept)
    reference.walk(Walk(first, np.array([0, -1, 1])))

    state = x0.astype(np.float64 if kind is np.float64 else np.float32)
    states = []
    for t in range(3):
        noise = (Noise(5, step=40 + t, stream=1),)
        state = run(state, noise, rows=rows[t : t + 1], present=bit(OUT, X) | bit(OUT, Z))
        states.append(state)
    assert_same(kept, np.stack([states[0], states[2]]).astype(kind))


# ---- 16-bit floats, as Numba has them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "to_float", "from_float"),
    [
        (np.float16, MATH.half_to_float, MATH.float_to_half),
        (ml_dtypes.bfloat16, MATH.bfloat16_to_float, MATH.float_to_bfloat16),
    ],
)
def test_conversions_of_16_bits(kind, to_float, from_float):
    """All 16-bit numbers are converted one way. The other way takes all of them, the midpoints, and their neighbours.

    Seen to fail: ties to the upper one, subnormal halves rounded at the unit of the normal ones, NaN to infinity.
    """
    halves = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        assert_same(to_float(halves), halves.view(kind).astype(np.float32))
        bits = halves.view(kind).astype(np.float32).view(np.uint32)
        unit = 1 << (12 if kind is np.float16 else 15)
        near = [bits + np.uint32(d & 0xFFFFFFFF) for half in (0, unit) for d in (half - 1, half, half + 1)]
        near.append(np.arange(0, 1 << 32, 977, dtype=np.uint64).astype(np.uint32))
        x = np.concatenate(near).view(np.float32)
        found = from_float(x).astype(np.uint16).view(kind)
        assert_same(found.astype(np.float32), x.astype(kind).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_backend_that_is_built_wrongly_is_refused(dtype, monkeypatch):
    def run(call, right=reference.run):
        right(call)
        if call.outputs[0].dtype == dtype:
            call.outputs[0][0] = 2

    monkeypatch.setattr(reference, "run", run)
    with pytest.raises(ImportError, match=r"the reference backend is built wrongly: Noise\(0\) begins \[2\.0, -0"):
        backends._load.__wrapped__("reference")
