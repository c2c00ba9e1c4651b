# SPDX-License-Identifier: Apache-2.0
"""Draws of categories: their bits on every backend, their distribution, and what is known of them."""

import copy
import dataclasses
import functools
import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conftest import NATIVE, NUMBA, bits, using
from noisefuse.backends.reference import SPEC
from noisefuse.tokens import categorical

INFO = ("log_prob", "log_prob_raw", "entropy", "margin", "rank")
SETTINGS = [
    {}, {"temperature": 0.0}, {"temperature": [0.7, 2.5]}, {"top_k": 7}, {"top_p": 0.8, "temperature": 1.3},
    {"top_k": [20, 0], "top_p": [0.5, 1.0]}, {"temperature": 1e-3}, {"temperature": 2.0**60},
]  # fmt: skip
NOISE = nf.Noise(0x0123456789ABCDEF, sample=2**32 - 1, step=7)


def logits_of(shape, scale=3.0, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


@pytest.fixture(params=[*NATIVE, *NUMBA, "reference"])
def anywhere(request):
    """Yields backends for host memory: interop/test_torch_triton_tokens.py has devices."""
    with using(request.param):
        yield request.param


def drawn(*arguments, **options):
    """Returns the bytes of the tokens and of all info."""
    token, info = nf.categorical(*arguments, info=INFO, **options)
    return [bits(token), *map(bits, info)]


# ---- bits --------------------------------------------------------------------------------------------------


VOCABULARIES = (1, 2, 63, 64, 65, 1000, 4097)
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("n", range(len(SETTINGS)))
def test_tokens_and_their_info_have_the_bits_of_the_reference(compiled, n):
    """Seen to fail: a digit of a coefficient of e^r, a word compared with another block's bound."""
    for logits, expected in by_the_reference(n):
        assert drawn(logits, NOISE, **SETTINGS[n]) == expected


@functools.cache  # for all backends
def by_the_reference(n):
    cases = []
    for v, vocabulary in enumerate(VOCABULARIES):
        logits = logits_of((2, 2, vocabulary), [3, 0.1, 30, 300][(n + v) % 4], DTYPES[(n + v) % 3], n)
        logits[0, 0, 1:2] = -np.inf
        with using("reference"):
            cases.append((logits, drawn(logits, NOISE, **SETTINGS[n])))
    return cases


@pytest.mark.parametrize("vocabulary", [65, 256, 1000])
def test_winners_that_others_come_near(compiled, vocabulary):
    """A few of 1,500 rows have a second token whose score comes near the winner's. Seen to fail: a lower bound of a
    score that is the upper one (5 and 9 other tokens), which the tests with fewer rows do not see."""
    assert np.array_equal(nf.categorical(logits_of((1500, vocabulary), 2.0), NOISE), winners(vocabulary))


@functools.cache
def winners(vocabulary):
    with using("reference"):
        return nf.categorical(logits_of((1500, vocabulary), 2.0), NOISE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hidden_token_is_one_of_minus_infinity(anywhere, dtype):
    """Whatever its logits are, and wherever it stands in a chunk. Seen to fail: a place taken from the row's begin in
    each chunk, the last blocks of a chunk without it, a rank that counts it, a row that is read again for a filter."""
    settings, more = (SETTINGS, (8256, 8300)) if anywhere in NATIVE else (SETTINGS[1:5], ())
    for n, vocabulary in enumerate((2, 70, 4097, *more)):
        for hidden in {0, vocabulary // 2, vocabulary - 1}:
            logits = logits_of((2, 2, vocabulary), dtype=dtype, seed=n)
            logits[..., hidden] = np.array([[np.inf, np.nan], [-1, 60]], dtype)
            without = logits.copy()
            without[..., hidden] = -np.inf
            for one in settings:
                given = one.get("temperature", 1.0), one.get("top_k", 0), one.get("top_p", 1.0), None
                token, info = categorical.of_rows(logits, NOISE, *given, wanted=INFO, hidden=hidden)
                assert [bits(token), *map(bits, info)] == drawn(without, NOISE, **one)
                alone = categorical.of_rows(logits, NOISE, *given, hidden=hidden)
                assert np.array_equal(alone, token)


def test_bits_of_parts(compiled):
    """Scores and sums are float64, and terms of all sizes, so that other orders of a sum show. Seen to fail:
    accumulators in another order."""
    logits = logits_of((1, 2, 9000), 12.0)

    def found():
        part = nf.categorical(logits, NOISE, temperature=0.7, info=("log_prob", "log_prob_raw"), partial=True).parts
        return [*map(bits, (part.score, part.winner, part.largest, part.plain, part.tempered))]

    mine = found()
    with using("reference"):
        assert found() == mine


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_bits_of_threads_and_batches(compiled, threads):
    logits = logits_of((64, 2, 5000))
    whole = nf.categorical(logits, NOISE.at(sample=5), info=INFO)
    alone = [nf.categorical(logits[b : b + 1], NOISE.at(sample=5 + b), info=INFO) for b in (0, 17, 63)]
    for one, b in zip(alone, (0, 17, 63), strict=True):
        assert bits(one[0]) == bits(whole[0][b : b + 1])
        assert [*map(bits, one[1])] == [bits(all_[b : b + 1]) for all_ in whole[1]]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_of_the_vocabulary(compiled, shards):
    """Seen to fail: a shard that counts its tokens from 0."""
    logits, info = logits_of((2, 3, 15_000), 2.0), ("log_prob", "log_prob_raw")
    logits[1, 2, 4096:8192] = -np.inf  # a shard without a token that can win
    for temperature in (1.0, [0.5, 0.0]):
        each, n = [], -(-15_000 // 4096 // shards) * 4096 if shards > 1 else 15_000
        for first in range(0, 15_000, n):
            part = logits[..., first : first + n]
            here = NOISE.window((3, 15_000), start=(0, first))
            found = nf.categorical(part, here, temperature=temperature, info=info, partial=True)
            each.append(pickle.loads(pickle.dumps(found)))
        assert len(each) == shards
        token, known = nf.discrete.combine_categories(each[::-1])
        expected, whole = nf.categorical(logits, NOISE, temperature=temperature, info=info)
        assert bits(token) == bits(expected)
        assert all(bits(getattr(known, name)) == bits(getattr(whole, name)) for name in info)


def forged(part, **fields):
    """Returns the pickle of a part whose fields nobody has checked."""
    other = copy.copy(part)
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    return pickle.dumps(other)


PART = nf.categorical(logits_of((2, 3, 5000)), NOISE, temperature=[0.7, 0.0], info=("log_prob",), partial=True)
SUMS = {name: getattr(PART.parts, name) for name in ("score", "winner", "largest", "plain", "tempered")}


def of_parts(**fields):
    return {"parts": dataclasses.replace(PART.parts, **fields)}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"n": 1 << 20, "vocabulary": 1 << 20}, ValueError, r"parts.largest: expected shape \(6, 256\), got \(6, 2\)"),
        ({"n": -5}, ValueError, "n = -5, vocabulary = 5000: expected a part"),
        ({"n": 0}, ValueError, "n = 0"),
        ({"n": 5000.0}, TypeError, "n = 5000.0: expected an integer, got float"),
        ({"first": 4000}, ValueError, "first = 4000"),
        ({"first": -4096, "n": 4096}, ValueError, "first = -4096"),
        ({"vocabulary": 1 << 21}, ValueError, "vocabulary = 2097152: expected a part of at most 2\\^20 tokens"),
        ({"token": PART.token.astype(float)}, TypeError, "token: dtype float64 .* expected one of int64"),
        ({"token": PART.token.astype(object)}, TypeError, "token: dtype object"),
        ({"token": PART.token + 5000}, ValueError, "token: expected tokens from 0 to 4999, or -1"),
        ({"token": np.zeros((1 << 15, 64), np.int64)}, ValueError, "temperature: expected a number or one for each"),
        ({"token": PART.token[:, :2]}, ValueError, r"parts.score: expected shape \(4,\), got \(6,\)"),
        ({"token": np.full((2, 3), -1)}, ValueError, "parts.score: expected -inf where there is no token"),
        ({"temperature": np.zeros(0)}, ValueError, "temperature: expected a number or one for each of 2"),
        ({"temperature": np.array([0.7, np.nan])}, ValueError, "temperature = nan"),
        ({"noise": ()}, ValueError, "noise: expected one Noise or one for each of 2 samples, got 0"),
        ({"noise": (7,)}, TypeError, r"noise\[0\]: expected a Noise, got 7"),
        ({"info": ("entropy",)}, ValueError, "info: 'entropy'"),
        ({"info": ("log_prob_raw",)}, TypeError, "parts.plain: expected an array"),
        ({"info": ()}, ValueError, r"parts.tempered: expected None, got \(6, 2\)"),
        ({"parts": SUMS}, TypeError, "parts: expected the scores and sums of a part, got dict"),
        (of_parts(score=SUMS["score"][:5]), ValueError, r"parts.score: expected shape \(6,\)"),
        (of_parts(score=SUMS["score"].astype("f4")), TypeError, "parts.score: dtype float32"),
        (of_parts(score=SUMS["score"] * np.nan), ValueError, "parts.score: has a NaN"),
        (of_parts(winner=SUMS["winner"].astype(np.int8)), TypeError, "parts.winner: dtype int8"),
        (of_parts(largest=SUMS["largest"][:, :1]), ValueError, "parts.largest: expected shape"),
        (of_parts(largest=SUMS["largest"][:2]), ValueError, "parts.largest: expected shape"),
        (of_parts(tempered=None), TypeError, "parts.tempered: expected an array"),
        (of_parts(tempered=-SUMS["tempered"]), ValueError, "parts.tempered: has a NaN, or a sum below 0"),
    ],
)
def test_a_part_is_checked_when_it_is_made(fields, error, words):
    """It may come from anywhere, and kernels trust it. Seen to read beyond the arrays, and to end the process."""
    with pytest.raises(error, match=words):
        dataclasses.replace(PART, **fields)
    with pytest.raises(error, match=words):
        pickle.loads(forged(PART, **fields))


def test_parts_in_another_order_of_memory():
    """A gather of another library may give them so. Seen to fail: Fortran's order was read as C's."""
    turned = {name: None if a is None else np.asfortranarray(a) for name, a in SUMS.items()}
    other = dataclasses.replace(PART, token=np.asfortranarray(PART.token), parts=type(PART.parts)(**turned))
    (token, info), (expected, known) = nf.discrete.combine_categories([other]), nf.discrete.combine_categories([PART])
    assert bits(token) == bits(expected)
    assert bits(info.log_prob) == bits(known.log_prob)


def test_a_part_owns_its_temperature():
    """Seen to change that of later calls, which was kept for them."""
    part = nf.categorical(logits_of((1, 3, 64)), NOISE, temperature=0.25, partial=True)
    part.temperature[:] = 9
    assert nf.categorical(logits_of((1, 3, 64)), NOISE, temperature=0.25, partial=True).temperature.tolist() == [0.25]


def test_a_window_of_positions_is_that_of_the_whole(anywhere):
    logits = logits_of((2, 5, 4, 300))
    whole = nf.categorical(logits, NOISE)
    part = nf.categorical(logits[:, 2:4, 1:], NOISE.window((5, 4, 300), start=(2, 1, 0)))
    assert np.array_equal(part, whole[:, 2:4, 1:])
    places = 4 * np.arange(2, 4)[:, None] + np.arange(1, 4)
    assert np.array_equal(nf.categorical(logits[:, 2:4, 1:], NOISE, positions=places), part)
    for place in (2**14 - 1, 2**14, 2**25 + 2**14 + 5):
        far = nf.categorical(logits[:, 0, 0], NOISE, positions=place)
        assert np.array_equal(far, nf.categorical(logits[:, 0, :1], NOISE.window((2**25 * 3, 300), (place, 0)))[:, 0])


def seed_of(noise, h):
    """Returns the seed of the positions from 2^14 h on, as docs/noise.md has it."""
    w0, w1 = nf.philox4x32([h, 0, 0, 18 << 24], [noise.seed % 2**32, noise.seed >> 32])[:2].tolist() if h else (0, 0)
    return w0 | w1 << 32 if h else noise.seed


@pytest.mark.parametrize("seed", [5, 2**64 - 3])
def test_positions_to_2_to_the_31(anywhere, seed):
    """Position 2^14 h + q is position q of another seed. Seen to fail: a 1 as the step in the counter of that
    seed, its words swapped, h without its upper bits."""
    logits, noise = logits_of((3, 6, 90)), nf.Noise(seed, sample=2**40 + 1, step=2**32 - 1)
    places = np.array([2**14 - 1, 2**14, 3 * 2**14 + 77, 2**30 + 9, 2**31 - 1, 0])
    tokens, info = nf.categorical(logits, noise, positions=places, info=INFO)
    for n, (h, q) in enumerate(zip(*divmod(places, 2**14), strict=True)):
        own = nf.Noise(seed_of(noise, int(h)), sample=noise.sample, step=noise.step)
        token, known = nf.categorical(logits[:, n], own, positions=q, info=INFO)
        assert np.array_equal(tokens[:, n], token)
        assert all(bits(a[:, n]) == bits(b) for a, b in zip(info, known, strict=True))
    parts = []
    for at in (0, 4096):
        wide = np.concatenate([logits_of((3, 6, 4096)), logits], axis=-1)[..., at : at + 4096]
        window = noise.window((6, 4186), (0, at))
        parts.append(nf.categorical(wide, window, positions=places, partial=True))
    wide = np.concatenate([logits_of((3, 6, 4096)), logits], axis=-1)
    assert np.array_equal(nf.discrete.combine_categories(parts), nf.categorical(wide, noise, positions=places))


def test_the_first_position_of_a_long_sample_is_that_of_a_short_one(compiled):
    """The reference takes the rows one by one, each by its position. Seen to fail: an error of the 16,385th row, in the
    fast path."""
    logits = np.random.default_rng(0).normal(size=(1, 2**14 + 2, 3)).astype(np.float32)
    long = nf.categorical(logits, NOISE)
    assert np.array_equal(long[:, :9], nf.categorical(logits[:, :9], NOISE))
    assert np.array_equal(long[:, -4:], nf.categorical(logits[:, -4:], NOISE, positions=2**14 - 2 + np.arange(4)))


def test_far_positions_are_independent():
    """The same place of two groups of 2^14 positions, and neighbours across their border."""
    places = np.concatenate([h * 2**14 + np.arange(-32, 32) for h in (1, 2, 2**17 - 1)])
    token = nf.categorical(np.zeros((1024, len(places), 2), np.float32), nf.Noise(11), positions=places) - 0.5
    for a in range(0, 192, 64):
        for b in range(0, 192, 64):
            lag = token[:, a : a + 64], np.roll(token[:, b : b + 64], a == b, axis=1)
            assert abs((4 * lag[0] * lag[1]).mean()) * math.sqrt(lag[0].size) < 5


def test_a_list_of_noises_is_a_seed_for_each_request(anywhere):
    logits = logits_of((3, 2, 500))
    noises = [nf.Noise(b << 40, sample=9 - b, step=b) for b in range(3)]
    together = drawn(logits, noises, temperature=[0.5, 1.0, 0.0])
    each = [nf.categorical(logits[b : b + 1], noises[b], temperature=t, info=INFO) for b, t in enumerate((0.5, 1, 0))]
    assert together[0] == bits(np.concatenate([token for token, _ in each]))
    assert together[1:] == [bits(np.concatenate(one)) for one in zip(*(info for _, info in each), strict=True)]


def test_noise_does_not_depend_on_the_vocabulary_or_neighbours(compiled):
    """Padding of the vocabulary changes no token, and a neighbour's top_k no other row."""
    logits = logits_of((2, 3, 700))
    padded = np.full((2, 3, 1024), -np.inf, np.float32)
    padded[..., :700] = logits
    assert np.array_equal(nf.categorical(padded, NOISE), nf.categorical(logits, NOISE))
    assert np.array_equal(nf.categorical(logits, NOISE, top_k=[1, 0])[1], nf.categorical(logits, NOISE)[1])


def test_filters_put_minus_infinity_in_place_of_the_others(compiled):
    """Seen to fail: of equal logits the higher token kept."""
    logits = np.round(logits_of((2, 20, 300), 1.0), 1)  # with many equal ones
    order = np.argsort(-logits, axis=-1, kind="stable")
    p = np.take_along_axis(np.exp(logits.astype(np.float64) / 1.5), order, -1)
    reached = np.cumsum(p, -1) / p.sum(-1, keepdims=True)
    for options, kept in (
        ({"top_k": 11}, np.arange(300) < 11 + np.zeros((2, 20, 1))),
        ({"top_p": 0.6}, np.concatenate([np.ones((2, 20, 1), bool), reached[..., :-1] < 0.6], -1)),
    ):
        left = np.full_like(logits, -np.inf)
        np.put_along_axis(left, order, np.where(kept, np.take_along_axis(logits, order, -1), -np.inf), -1)
        found = nf.categorical(logits, NOISE, temperature=1.5, info=("log_prob", "entropy"), **options)
        expected = nf.categorical(left, NOISE, temperature=1.5, info=("log_prob", "entropy"))
        assert bits(found[0]) == bits(expected[0])
        assert bits(found[1].log_prob) == bits(expected[1].log_prob)
        assert bits(found[1].entropy) == bits(expected[1].entropy)


def rows_of_all_kinds(n):
    """Yields rows in which a cut is found in other ways: few values, one, zeros of both signs, also as the least
    of a row, tiny and huge ones, a leader, flat ones that differ in their last places, and -inf."""
    x = logits_of((9, n), 1.0)
    yield from (x[0], np.round(x[1]), np.full(n, 0.3), x[2] * 1e-40, x[3] * 1e30, np.where(x[4] > 0, 0.0, -0.0))
    yield from (x[5] + 30 * (np.arange(n) == 5), 1 + x[6] * 1e-6, np.where(x[7] < 1.5, -np.inf, x[7]), -(x[8] ** 4))
    yield np.where(np.arange(n) % 60 == 0, np.where(np.arange(n) % 120 == 0, 0.0, -0.0), 0.1 + np.abs(x[8]))


def test_cuts_of_rows_of_all_kinds(compiled):
    """Seen to fail: 0 after -0, -0 before 0 where few are left, a place moved to a logit beyond the others, sums of
    terms in another order where the last one decides, a block left out whose largest is the least that stays."""
    logits = np.stack(list(rows_of_all_kinds(500))).astype(np.float32)
    last = []  # probabilities that the terms of 150 tokens reach within the last place, if they do
    for row in logits:
        part = nf.categorical(row[None], NOISE, info=("log_prob",), partial=True).parts
        terms = np.exp(np.sort(row[row > -np.inf].astype(np.float64))[::-1] - part.largest.item())
        last.append(min(np.cumsum(terms)[:150][-1] / part.tempered.item(), 1.0))
    below = np.nextafter(last, 0)
    for options in (
        {"top_k": 1}, {"top_k": 3}, {"top_k": 7}, {"top_k": 8}, {"top_k": 50, "top_p": 0.7}, {"top_k": 400},
        {"top_k": 498}, {"top_p": 0.3},
        {"top_p": 0.9, "temperature": 1e-3}, {"top_p": 0.9999, "temperature": 100.0}, {"top_p": last}, {"top_p": below},
        {"top_p": np.nextafter(below, 0)},
    ):  # fmt: skip
        found = drawn(logits, NOISE, **options)
        with using("reference"):
            assert drawn(logits, NOISE, **options) == found, options


def test_the_page_alone_gives_the_tokens():
    """docs/noise.md, in other words: exact fractions for U, and logarithms of 40 digits. Seen to fail: stream 14, a
    position that counts 2^19 tokens, w without w'."""
    from decimal import Decimal, localcontext

    logits, seed, sample, step = logits_of((1, 2, 40), 2.0), 77, 2**33 + 5, 9
    tag = 13 << 24 | sample >> 32
    for position in range(2):
        element = (position << 20) + np.arange(40)
        counter = np.stack([element >> 2, *np.broadcast_arrays(np.full(40, step), sample % 2**32, tag)], -1)
        w, low = (
            nf.philox4x32(counter + np.array([0, 0, 0, bit << 31]), [seed, 0])[np.arange(40), element & 3]
            for bit in (0, 1)
        )
        with localcontext() as context:
            context.prec = 40
            scores = []
            for x, upper, lower in zip(logits[0, position].tolist(), w.tolist(), low.tolist(), strict=True):
                u = Decimal(2 * (2**32 * upper + lower) + 1) / Decimal(2**65)
                scores.append(Decimal(x) / Decimal("0.75") - (-u.ln()).ln())
        noise = nf.Noise(seed, sample=sample, step=step)
        assert nf.categorical(logits, noise, temperature=0.75)[0, position] == scores.index(max(scores))


def test_scores_near_one_keep_their_digits():
    """The best words differ in w' alone: with 32 bits all of them would be equal."""
    w, low = np.full(4, 2**32 - 1, np.uint32), np.array([0, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    found = SPEC.race_score(np.zeros(4, np.float32), np.float64(1), w, low)
    exact = [-math.log(2 * (2**32 - v - 0.5) / 2**64) for v in low.tolist()]
    assert np.allclose(found, exact, rtol=1e-9, atol=0)


# ---- what is known of a draw -------------------------------------------------------------------------------


def exact(logits, temperature):
    """Returns float64's log-probabilities of rows."""
    x = logits.astype(np.float64) / temperature
    x -= x.max(-1, keepdims=True)
    return x - log_sum(x)


def log_sum(x):
    """Returns log sum exp of rows whose largest is 0, to the last digits also where it is near 0."""
    flat = x.reshape(-1, x.shape[-1])
    rest = [math.fsum([*np.exp(row).tolist(), -1.0]) for row in flat]
    return np.log1p(np.array(rest)).reshape(*x.shape[:-1], 1)


def ulps(found, expected):
    """Returns the distance from numbers rounded to float32, in units of their last place; 2^-50 is let pass."""
    rounded = expected.astype(np.float32)
    error = np.maximum(abs(found.astype(np.float64) - rounded) - 2.0**-50, 0)
    return (error / np.spacing(np.maximum(abs(rounded), np.float32(2.0**-126)))).max(initial=0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 40.0, 3000.0])
def test_log_probabilities_and_entropies(compiled, scale):
    """Within 2 ulp of float64's. Seen to fail: sums in float32, and temperatures of one float32."""
    for temperature in (1.0, 0.6, 7.0):
        for vocabulary in (2, 300, 20_000):
            logits = logits_of((3, 4, vocabulary), scale, seed=vocabulary)
            token, info = nf.categorical(logits, NOISE, temperature=temperature, info=INFO)
            known, raw = exact(logits, temperature), exact(logits, 1.0)
            assert ulps(info.log_prob, at(known, token)) <= 2
            assert ulps(info.log_prob_raw, at(raw, token)) <= 2
            p = np.exp(known)
            entropy = -np.array([math.fsum(row) for row in (p * known).reshape(12, -1).tolist()]).reshape(3, 4)
            assert ulps(info.entropy, entropy) <= 2
            first, second = np.moveaxis(np.sort(p, -1)[..., -2:][..., ::-1], -1, 0)
            assert np.allclose(info.margin, first - second, rtol=1e-6, atol=1e-7)
            assert np.array_equal(info.rank, (logits > at(logits, token)[..., None]).sum(-1))


def at(x, token):
    return np.take_along_axis(x, token[..., None], -1)[..., 0]


def test_the_info_is_a_record_of_what_was_asked():
    """Seen to fail: as a dict, whose keys no type checker knows; an order that is not the kernel's."""
    _, info = nf.categorical(logits_of((2, 3, 9)), NOISE, info="rank")
    assert info[:-1] == (None,) * 4
    assert info.rank.shape == (2, 3)
    assert nf.discrete.TokenInfo._fields == INFO
    state = nf.samplers.mdlm(3, mask_id=9).state("rank", "entropy")
    nf.samplers.mdlm(3, mask_id=9).step(0, np.full((2, 3), 9), logits_of((2, 3, 9)), NOISE, state)
    assert [None if one is None else one.shape for one in state.info] == [None, None, (2, 3), None, (2, 3)]


def test_equal_logits(compiled):
    """Seen to fail: ranks that count equal logits of higher tokens."""
    logits = np.zeros((1, 1000), np.float32)
    token, info = nf.categorical(logits, NOISE, info=INFO)
    assert info.rank == token
    assert info.margin == 0
    assert info.entropy == np.float32(math.log(1000))
    assert info.log_prob == -info.entropy


def test_temperature_0_takes_the_largest(compiled):
    logits = np.zeros((2, 3, 5000), np.float32)
    logits[0, :, [4999, 70]] = 1
    token, info = nf.categorical(logits, NOISE, temperature=0, info=INFO)
    assert token.tolist() == [[70] * 3, [0] * 3]
    assert np.array_equal(info.log_prob, np.zeros((2, 3)))
    assert np.allclose(info.entropy[1], math.log(5000))
    assert np.allclose(np.exp(info.log_prob_raw[0]), math.e / (2 * math.e + 4998))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_alone(compiled, dtype):
    """Without info the row is read once more simply. Seen to fail: the last of equals, a NaN in the tail."""
    for vocabulary in (1, 63, 4096, 9001):
        logits = logits_of((2, 2, vocabulary), dtype=dtype)
        found = nf.categorical(logits, NOISE, temperature=0)
        assert np.array_equal(found, np.argmax(logits.astype(np.float32), -1))
        logits[1, 1, -1] = np.nan
        with pytest.raises(ValueError, match=r"logits\[1, 1\]: has a NaN"):
            nf.categorical(logits, NOISE, temperature=0)


def test_scores_beyond_floats(compiled):
    """Seen to fail: a race kept a token of its first group once a score overflowed a float."""
    logits = logits_of((4, 1000), 3e37)
    for temperature in (1e-3, 2.0**-60):
        found = drawn(logits, NOISE, temperature=temperature)
        with using("reference"):
            assert drawn(logits, NOISE, temperature=temperature) == found


def test_infinities(anywhere):
    logits = np.full((1, 3, 200), -np.inf, np.float32)
    logits[0, 0, [150, 180]] = np.inf
    logits[0, 1, 7] = -1e38
    logits[0, 2] = 3e38
    token, info = nf.categorical(logits, NOISE, info=INFO)
    assert token[0, :2].tolist() == [150, 7]
    assert [one[0, :2].tolist() for one in info] == [[0, 0], [0, 0], [0, 0], [1, 1], [0, 0]]
    assert np.allclose(info.entropy[0, 2], math.log(200))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_where_leaves_rows_unread(anywhere, dtype):
    logits = logits_of((2, 3, 90), dtype=dtype)
    where = np.array([[True, False, True], [False, True, False]])
    whole = nf.categorical(logits, NOISE)
    logits[~where] = np.nan
    assert np.array_equal(nf.categorical(logits, NOISE, where=where), np.where(where, whole, -1))
    out = np.full((2, 3), 99)
    assert nf.categorical(logits, NOISE, where=where, out=out) is out
    assert np.array_equal(out, np.where(where, whole, 99))


def test_shapes_and_dtypes(anywhere):
    logits = logits_of((2, 3, 50))
    token = nf.categorical(logits, NOISE)
    assert (token.dtype, token.shape) == (np.int64, (2, 3))
    narrow = nf.categorical(logits, NOISE, dtype=np.int32)
    assert narrow.dtype == np.int32
    assert np.array_equal(narrow, token)
    one = nf.categorical(logits[0, 0], NOISE)
    assert one.shape == ()
    assert one == token[0, 0]
    assert nf.categorical(logits[:0], NOISE).shape == (0, 3)
    assert nf.categorical(logits[:, :0], NOISE, info="rank")[1].rank.shape == (2, 0)
    assert np.array_equal(nf.categorical(logits[:, :, ::2], NOISE), nf.categorical(logits[:, :, ::2].copy(), NOISE))


# ---- the distribution --------------------------------------------------------------------------------------


def chi_square(token, p):
    """Returns how many standard deviations chi-square lies from its mean."""
    expected = p * token.size
    found = np.bincount(token.ravel(), minlength=p.size)
    return (((found - expected) ** 2 / expected).sum() - (p.size - 1)) / math.sqrt(2 * (p.size - 1))


def counts(logits, draws, **options):
    """Returns draws of one row, 64 positions of a sample each, 2^16 at a time: logits that are broadcast are copied."""
    samples, found = draws // 64, []
    for first in range(0, samples, 1024):
        rows = np.broadcast_to(logits, (min(1024, samples - first), 64, logits.size))
        found.append(nf.categorical(rows, nf.Noise(2026, sample=first), **options))
    return np.concatenate(found)


DISTRIBUTIONS = [
    pytest.param(15, id="2^15"),
    pytest.param(24, id="2^24", marks=pytest.mark.release),
]


@pytest.mark.parametrize("log2", DISTRIBUTIONS)
@pytest.mark.parametrize("vocabulary", [2, 50, 1000])
def test_frequencies(log2, vocabulary):
    """Seen to fail: words of 31 bits, the exponential of a lower temperature, a bound that prunes 1 % too much."""
    logits = logits_of(vocabulary, 1.0, seed=vocabulary)
    for options in ({}, {"temperature": 0.7}, {"top_k": vocabulary // 2 + 1}, {"top_p": 0.9, "temperature": 1.2}):
        left = logits / np.float32(options.get("temperature", 1.0))
        order = np.argsort(-left)
        p = np.exp(left - left.max()).astype(np.float64)
        if "top_k" in options:
            p[order[options["top_k"] :]] = 0
        if "top_p" in options:
            reached = np.cumsum(p[order]) / p.sum()
            p[order[1:][reached[:-1] >= 0.9]] = 0
        token = counts(logits, 2**log2 if vocabulary < 1000 else 2 ** (log2 - 2), **options)
        kept = np.flatnonzero(p)
        place = np.full(vocabulary, -1)
        place[kept] = np.arange(len(kept))
        assert (place[token] >= 0).all()
        if len(kept) > 1:
            assert abs(chi_square(place[token], p[kept] / p.sum())) < 5


@pytest.mark.release
def test_frequencies_of_a_large_vocabulary():
    """2^18 draws of 126,464 tokens, in cells of about equal probability."""
    logits = logits_of(126_464, 2.0)
    p = np.exp(logits.astype(np.float64))
    cells = np.minimum((np.cumsum(p) / p.sum() * 256).astype(int), 255)
    cell = np.unique(cells, return_inverse=True)[1]  # a probable token leaves the next cell empty
    expected = np.bincount(cell, p) / p.sum()
    token = [
        nf.categorical(np.broadcast_to(logits, (64, logits.size)), nf.Noise(3, sample=64 * n)) for n in range(4096)
    ]
    assert abs(chi_square(cell[np.concatenate(token)], expected)) < 5


@pytest.mark.release
def test_the_tail_is_drawn():
    """262,144 tokens of 2^-33 beside one of nearly 1: of 2^20 draws 32 are expected. (vLLM's test of its sampler:
    uniforms of 24 bits give none.)"""
    tail = 2**18
    logits = np.full(tail + 1, math.log(2.0**-33), np.float32)
    logits[tail // 2] = 0
    rows, found = np.broadcast_to(logits, (64, logits.size)), 0
    for n in range(2**14):
        found += np.count_nonzero(nf.categorical(rows, nf.Noise(5, sample=64 * n)) != tail // 2)
    expected = 2**20 * tail * float(Fraction(1, 2**33))
    assert abs(found - expected) < 5 * math.sqrt(expected)


def test_neighbours_are_independent():
    token = nf.categorical(np.zeros((1024, 64, 2), np.float32), nf.Noise(11)).astype(float) - 0.5
    for a, b in ((token[1:], token[:-1]), (token[:, 1:], token[:, :-1])):
        assert abs((4 * a * b).mean()) * math.sqrt(a.size) < 5


# ---- bad input ---------------------------------------------------------------------------------------------

LOGITS, PLACED = np.zeros((2, 3, 5000), np.float32), NOISE.window((3, 9096), (0, 4096))
draw = nf.categorical


class NotNumPys:
    """It has a dtype that NumPy does not know."""

    dtype = "torch.int64"


BAD = {
    "a list": (TypeError, "logits: expected an array", lambda o: draw([0.0], NOISE)),
    "integers": (TypeError, "logits: dtype int64", lambda o: draw(LOGITS.astype(int), NOISE, out=o)),
    "float64": (TypeError, "logits: dtype float64", lambda o: draw(LOGITS.astype(float), NOISE, out=o)),
    "no axis": (ValueError, "in the last axis", lambda o: draw(np.float32(0), NOISE)),
    "no token": (ValueError, "1 to 2.20 tokens in the last axis, got 0", lambda o: draw(LOGITS[..., :0], NOISE)),
    "too many": (
        OverflowError, "got 1048577",
        lambda o: draw(np.broadcast_to(np.float32(0), (1, 2**20 + 1)), NOISE),
    ),
    "positions beyond": (
        OverflowError, r"positions: 2147483648 is out of range: expected 0 <= position < 2\^31",
        lambda o: draw(LOGITS, NOISE, positions=[0, 1, 2**31], out=o),
    ),
    "positions below": (OverflowError, "positions: -1", lambda o: draw(LOGITS, NOISE, positions=-1, out=o)),
    "positions of a window": (
        OverflowError, "positions: 2147483648",
        lambda o: draw(LOGITS[:, :, :1], NOISE.window((2**33, 1), (2**31 - 2, 0)), out=o),
    ),
    "positions floats": (TypeError, "positions: expected integers", lambda o: draw(LOGITS, NOISE, positions=0.5)),
    "positions shape": (ValueError, "positions: .*broadcasts", lambda o: draw(LOGITS, NOISE, positions=[1, 2])),
    "no noise": (TypeError, "noise: expected a Noise", lambda o: draw(LOGITS, 7)),
    "array": (TypeError, "noise: expected a Noise", lambda o: draw(LOGITS, LOGITS)),
    "stream": (ValueError, "takes stream 0, got 5", lambda o: draw(LOGITS, NOISE.at(stream=5), out=o)),
    "noises": (ValueError, "one Noise for each of 2", lambda o: draw(LOGITS, [NOISE] * 3, out=o)),
    "temperature": (ValueError, "temperature = -1.0", lambda o: draw(LOGITS, NOISE, temperature=-1, out=o)),
    "temperature nan": (ValueError, "temperature = nan", lambda o: draw(LOGITS, NOISE, temperature=[1, np.nan])),
    "temperature shape": (ValueError, "2 samples, got shape .3,", lambda o: draw(LOGITS, NOISE, temperature=[1, 1, 1])),
    "temperature text": (TypeError, "temperature: expected numbers", lambda o: draw(LOGITS, NOISE, temperature="x")),
    "top_k": (ValueError, "top_k = -1", lambda o: draw(LOGITS, NOISE, top_k=-1, out=o)),
    "top_k float": (TypeError, "top_k: expected integers", lambda o: draw(LOGITS, NOISE, top_k=2.0, out=o)),
    "top_p": (ValueError, "top_p = 0.0", lambda o: draw(LOGITS, NOISE, top_p=0.0, out=o)),
    "top_p beyond": (ValueError, "top_p = 1.5", lambda o: draw(LOGITS, NOISE, top_p=[1, 1.5], out=o)),
    "info": (ValueError, "info: 'logprob'.*log_prob", lambda o: draw(LOGITS, NOISE, info="logprob", out=o)),
    "where": (TypeError, "where: expected bool", lambda o: draw(LOGITS, NOISE, where=np.ones((2, 3)), out=o)),
    "dtype": (TypeError, "dtype uint8: expected one of int64", lambda o: draw(LOGITS, NOISE, dtype=np.uint8)),
    "dtype text": (TypeError, "dtype 'junk': expected one of int64", lambda o: draw(LOGITS, NOISE, dtype="junk")),
    "info number": (TypeError, "info: expected names among log_prob, .*got int", lambda o: draw(LOGITS, NOISE, info=3)),
    "out on where": (
        ValueError, "out overlaps an input in part",
        lambda o: draw(LOGITS, NOISE, where=o.view(np.bool_).reshape(-1)[:6].reshape(2, 3), out=o),
    ),
    "out on positions": (
        ValueError, "out overlaps an input in part",
        lambda o: draw(LOGITS[:1], NOISE, positions=o.reshape(-1)[1:4].reshape(1, 3), out=o[:1]),
    ),
    "out of another kind": (TypeError, "out: expected an array", lambda o: draw(LOGITS, NOISE, out=NotNumPys())),
    "out": (ValueError, "out: expected shape", lambda o: draw(LOGITS, NOISE, out=np.zeros(2, int))),
    "a part": (
        ValueError, "partial=True",
        lambda o: draw(LOGITS, NOISE.window((3, 10_000), start=(0, 4096)), out=o),
    ),
    "part of a chunk": (
        ValueError, "chunks of 4096",
        lambda o: draw(LOGITS, NOISE.window((3, 10_000), start=(0, 4000)), partial=True),
    ),
    "top_k of a part": (ValueError, "top_k, top_p", lambda o: draw(LOGITS, NOISE, top_k=3, partial=True)),
    "rank of a part": (ValueError, "info: 'rank'", lambda o: draw(LOGITS, NOISE, info="rank", partial=True)),
    "parts": (TypeError, "partials: expected results", lambda o: nf.discrete.combine_categories([3])),
    "a part alone": (TypeError, "partials: expected results .* got int", lambda o: nf.discrete.combine_categories(3)),
    "parts of other noise": (
        ValueError, "partials: the parts differ in .* their noise",
        lambda o: nf.discrete.combine_categories([
            nf.categorical(LOGITS[..., :4096], NOISE.window((3, 5000), (0, 0)), partial=True),
            nf.categorical(LOGITS[..., 4096:], NOISE.at(step=9).window((3, 5000), (0, 4096)), partial=True),
        ]),
    ),
    "no parts": (ValueError, "partials: expected at least one", lambda o: nf.discrete.combine_categories([])),
    "gap of an iterator": (
        ValueError, "partials: expected tokens from 0",
        lambda o: nf.discrete.combine_categories(iter([nf.categorical(LOGITS, PLACED, partial=True)])),
    ),
    "parts without a window": (
        ValueError, r"got those from 0 on of 4; noise\.window\(\(\.\., V\), \(\.\., first\)\) says where",
        lambda o: nf.discrete.combine_categories([nf.categorical(LOGITS[..., :4], NOISE, partial=True)] * 2),
    ),
    "gap": (
        ValueError, "partials: expected tokens from 0",
        lambda o: nf.discrete.combine_categories([nf.categorical(LOGITS, PLACED, partial=True)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    kind, message, call = BAD[name]
    out = np.full((2, 3), 99)
    with pytest.raises(kind, match=message):
        call(out)
    assert (out == 99).all()


def test_bad_rows(anywhere):
    """Seen to fail: a NaN in the last vector of a row alone."""
    for place in (0, 63, 4999):
        logits = LOGITS.copy()
        logits[1, 2, place] = np.nan
        with pytest.raises(ValueError, match=r"logits\[1, 2\]: has a NaN"):
            nf.categorical(logits, NOISE)
    logits = LOGITS.copy()
    logits[0, 1] = -np.inf
    for options in ({}, {"temperature": 0}, {"top_k": 3}):
        with pytest.raises(ValueError, match=r"logits\[0, 1\]: has no logit above -inf"):
            nf.categorical(logits, NOISE, **options)
