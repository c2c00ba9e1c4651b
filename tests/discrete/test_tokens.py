# SPDX-License-Identifier: Apache-2.0
"""Masks and new tokens at random: their bits, their rates, their shapes, and what is refused.

Seen to fail: `<=` for `<` in masks.h (p = 0 masked the word 0); the segment's p of the tile's first token for all of
its tokens; words of stream 0; w and w' swapped in `uniform_tokens`; ids not looked at.
"""

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, using
from noisefuse.tokens import forward as tokens
from noisefuse.tokens.forward import words

NOISE = nf.Noise(0x0123456789ABCDEF, sample=2**32 - 2, step=7)
DTYPES = ("int64", "int32", "uint16", "uint8")
V = 200


def ids_of(*shape, dtype="int64"):
    return (np.arange(np.prod(shape)) * 2654435761 % 2**32 % V).astype(dtype).reshape(shape)


def raw(shape, noise, stream):
    """Returns u = 2^32 w + w' of each position as Python's integers, straight from the generator."""
    found = []
    for b in range(shape[0]):
        name = noise[b] if isinstance(noise, list) else noise
        sample = int(name.sample) + (0 if isinstance(noise, list) else b)
        for at in range(int(np.prod(shape[1:]))):
            tag = stream << 24 | sample >> 32
            counter = np.array([[at >> 2, name.step, sample % 2**32, tag | low << 31] for low in (0, 1)])
            w = nf.philox4x32(counter, [name.seed % 2**32, name.seed >> 32])[:, at & 3]
            found.append(int(w[0]) << 32 | int(w[1]))
    return np.array(found, object).reshape(shape)


@pytest.mark.parametrize("noise", [NOISE, [nf.Noise(b, sample=5 * b, step=b) for b in range(3)]], ids=["one", "list"])
def test_the_page_says_every_bit(host, noise):
    ids, p = ids_of(3, 21), np.array([0.3, 0.5, 0.9])
    chosen = raw(ids.shape, noise, 14) >> 32 < np.array([round(2**32 * x) for x in p], object)[:, None]
    x_t, masked = nf.q_mask(ids, p, noise, 999)
    assert np.array_equal(masked, chosen)
    assert np.array_equal(x_t, np.where(chosen.astype(bool), 999, ids))
    new = (raw(ids.shape, noise, 15) * 50257 >> 64).astype(np.int64)
    x_t, changed = nf.q_uniform(ids, p, noise, 50257)
    assert np.array_equal(changed, chosen)
    assert np.array_equal(x_t, np.where(chosen.astype(bool), new, ids))


@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree_on_shapes_and_options(host, dtype):
    where = ids_of(7, 9, 8) % 3 > 0
    cases = [
        (ids_of(2, 5000, dtype=dtype), 0.25, {}),
        (ids_of(5, 1003, dtype=dtype), np.linspace(0, 1, 5), {"complement": True}),
        (ids_of(7, 9, 8, dtype=dtype), np.linspace(0, 1, 63).reshape(7, 9), {"where": where}),
        (ids_of(4, 300, dtype=dtype), np.linspace(0, 1, 1200).reshape(4, 300), {"lengths": [0, 3, 299, 300]}),
        (ids_of(3, 100, dtype=dtype), np.linspace(0, 1, 12).reshape(3, 4), {"block": 32}),
        (ids_of(3, 96, dtype=dtype), np.linspace(0, 1, 9).reshape(3, 3), {"block": 32}),
    ]
    for ids, p, options in cases:
        mine = nf.q_mask(ids, p, NOISE, 255, **options)
        with using("reference"):
            expected = nf.q_mask(ids, p, NOISE, 255, **options)
        for a, b in zip(mine, expected, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def test_probabilities_are_exact_at_their_ends(host):
    ids, shape = ids_of(1, 1 << 12), (1, 1 << 12)
    w = words(shape, [NOISE.at(stream=14)])
    at = int(w[0].argmin())
    least = int(w[0, at])
    for count, first in ((0, False), (least, False), (least + 1, True), (2**32, True)):
        masked = nf.q_mask(ids, count / 2**32, NOISE, 999)[1]
        assert masked[0, at] == first
        assert masked.sum() == {0: 0, 2**32: 1 << 12}.get(count, int(first))
    # halfway between two counts the even one is taken, for one p and for one a token
    for p in ((least + 0.5) / 2**32, (least + 1.5) / 2**32):
        expected = round(p * 2**32) > least
        assert nf.q_mask(ids, p, NOISE, 999)[1][0, at] == expected
        assert nf.q_mask(ids, np.full(shape, p), NOISE, 999)[1][0, at] == expected


def test_complements_blocks_and_padding():
    ids, where = ids_of(4, 64), ids_of(4, 64) % 2 > 0
    p = np.linspace(0.1, 0.9, 8).reshape(4, 2)
    options = {"where": where, "block": 32, "lengths": [64, 40, 1, 0]}
    _, masked = nf.q_mask(ids, p, NOISE, 999, **options)
    _, others = nf.q_mask(ids, p, NOISE, 999, complement=True, **options)
    may = where & (np.arange(64) < np.array([64, 40, 1, 0])[:, None])
    assert not (masked & others).any()
    assert np.array_equal(masked | others, may)
    assert np.array_equal(masked, nf.q_mask(ids, np.repeat(p, 32, axis=1), NOISE, 999)[1] & may)


@pytest.mark.parametrize("draw", ["q_mask", "q_uniform", "q_transition"])
def test_alone_as_in_a_batch(draw):
    def call(ids, noise):
        if draw == "q_transition":
            return nf.q_transition(ids, nf.discrete.gaussian(0.5, V), noise)
        return getattr(nf, draw)(ids, 0.5, noise, V)[0]

    ids = ids_of(5, 37)
    whole = call(ids, NOISE)
    for b in range(5):
        assert np.array_equal(call(ids[b : b + 1], NOISE.at(sample=NOISE.sample + b)), whole[b : b + 1])
    assert np.array_equal(call(ids, NOISE.at(sample=NOISE.sample + np.arange(5))), whole)
    assert np.array_equal(call(ids, [NOISE.at(sample=NOISE.sample + b) for b in range(5)]), whole)
    assert np.array_equal(call(ids[:, 8:20], NOISE.window((37,), (8,))), whole[:, 8:20])


def test_bits_of_threads(compiled):
    """Seen to fail: the words of a tile in memory that threads share."""
    ids, p = ids_of(3, 70_001), np.array([0.3, 0.5, 0.9])

    def drawn():
        made = nf.q_mask(ids, p, NOISE, 999), nf.q_uniform(ids, p, NOISE, V)
        return [*map(bits, (*made[0], *made[1], nf.q_transition(ids, nf.discrete.gaussian(0.3, V), NOISE)))]

    with nf.set_num_threads(1):
        alone = drawn()
    for threads in (2, 5):
        with nf.set_num_threads(threads):
            assert drawn() == alone


def test_rates_and_neighbours():
    ids = ids_of(64, 4096, dtype="int32")
    masked = nf.q_mask(ids, 0.3, nf.Noise(3), V)[1].astype(float)
    n = masked.size
    assert abs(masked.mean() - 0.3) < 5 * (0.21 / n) ** 0.5
    for a, b in ((masked[:, 1:], masked[:, :-1]), (masked[1:], masked[:-1])):
        assert abs(((a - 0.3) * (b - 0.3)).mean() / 0.21) < 5 / n**0.5
    other = nf.q_mask(ids, 0.3, nf.Noise(3, step=1), V)[1].astype(float)
    assert abs(((masked - 0.3) * (other - 0.3)).mean() / 0.21) < 5 / n**0.5
    new, changed = nf.q_uniform(ids, 1.0, nf.Noise(3), V)
    assert changed.all()
    counts = np.bincount(new.ravel(), minlength=V)
    chi2 = ((counts - n / V) ** 2 / (n / V)).sum()
    assert abs(chi2 - (V - 1)) < 5 * (2 * (V - 1)) ** 0.5


def test_transitions_follow_their_matrix():
    q = nf.discrete.gaussian(0.3, 5)
    ids = np.repeat(np.arange(5), 40000).reshape(1, -1)
    new = nf.q_transition(ids, q, nf.Noise(3))
    found = np.array([np.bincount(new[ids == i], minlength=5) for i in range(5)]) / 40000
    assert abs(found - q).max() < 5 * 0.5 / 200
    # the first b with w < rint(2^32 F(b))
    u = raw((1, 12), NOISE, 15) >> 32
    counts = [round(2**32 * x) for x in np.cumsum(q[2])[:-1]]
    expected = [sum(int(w) >= c for c in counts) for w in u[0]]
    assert nf.q_transition(np.full((1, 12), 2), q, NOISE).tolist() == [expected]
    never = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert nf.q_transition(ids[:, ::40000] % 3, never, NOISE).tolist() == [[1, 2, 0, 1, 2]]
    each = nf.q_transition(np.zeros((3, 4), np.uint8), np.stack([np.roll(np.eye(3), k, 1) for k in range(3)]), NOISE)
    assert each.tolist() == [[0] * 4, [1] * 4, [2] * 4]
    factors = (nf.discrete.absorbing(0.4, 4), nf.q_mask), (nf.discrete.uniform(0.4, 5), nf.q_uniform)
    for factor, draw in factors:
        assert np.array_equal(nf.q_transition(ids, factor, NOISE), draw(ids, 0.4, NOISE, factor.token)[0])
        assert np.allclose((factor @ factor).matrix(5), factor.matrix(5) @ factor.matrix(5))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "uint16"])
def test_tensors_in_tensors_out(torch, dtype):
    ids = ids_of(3, 40, dtype=dtype)
    tensor = torch.from_numpy(ids.copy())
    p = torch.tensor([0.25, 0.5, 0.75])
    x_t, masked = nf.q_mask(
        tensor, p, NOISE, 255, where=torch.from_numpy(ids % 2 > 0), lengths=torch.tensor([9, 40, 3])
    )
    expected = nf.q_mask(ids, p.numpy(), NOISE, 255, where=ids % 2 > 0, lengths=[9, 40, 3])
    assert x_t.dtype == tensor.dtype
    assert masked.dtype == torch.bool
    assert np.array_equal(x_t.numpy(), expected[0])
    assert np.array_equal(masked.numpy(), expected[1])
    out = torch.empty_like(tensor)
    assert nf.q_uniform(tensor, 0.5, NOISE, V, out=out)[0] is out
    assert np.array_equal(out.numpy(), nf.q_uniform(ids, 0.5, NOISE, V)[0])
    assert nf.q_transition(tensor, nf.discrete.gaussian(0.5, V), NOISE).dtype == tensor.dtype


@pytest.mark.parametrize("draw", [nf.q_mask, nf.q_uniform])
def test_a_number_for_each_sample(draw):
    """(B,) and (B, 1), also where there are as many tokens as samples. Seen to fail: (B, 1) was refused."""
    for ids in (ids_of(8, 8), ids_of(8, 20), ids_of(8, 4, 5)):
        p = np.linspace(0, 1, 8)
        expected = draw(ids, np.broadcast_to(p.reshape(8, *[1] * (ids.ndim - 1)), ids.shape), NOISE, V)[0]
        assert np.array_equal(draw(ids, p, NOISE, V)[0], expected)
        for axes in range(1, ids.ndim + 1):
            assert np.array_equal(draw(ids, p.reshape(8, *[1] * axes), NOISE, V)[0], expected)
    assert np.array_equal(draw(ids, [0.5], NOISE, V)[0], draw(ids, 0.5, NOISE, V)[0])


@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 4, 5)])
def test_one_sample_without_a_batch(host, shape):
    """It has the bits of a batch of one. Seen to fail: ids (L,) were refused, and ids (5, 8) were 5 samples."""
    ids, p, where = ids_of(*shape), ids_of(*shape) / V, ids_of(*shape) % 3 > 0
    one, alone = {"where": where[None], "lengths": [33]}, {"where": where, "lengths": 33, "batched": False}
    for draw in (nf.q_mask, nf.q_uniform):
        for chances in (p, p.reshape(-1)[: shape[0]], 0.3):
            expected = draw(ids[None], np.asarray(chances)[None] if np.ndim(chances) else 0.3, NOISE, V, **one)
            out = ids.copy()
            made = draw(ids, chances, NOISE, V, **alone)
            assert draw(out, chances, NOISE, V, **alone, out=out)[0] is out
            for a, b in zip((*made, out), (*expected, expected[0]), strict=True):
                assert a.shape == shape
                assert np.array_equal(a, b[0])
    for q in (nf.discrete.gaussian(0.5, V), nf.discrete.uniform(0.5, V), nf.discrete.absorbing(0.5, V)):
        assert np.array_equal(nf.q_transition(ids, q, NOISE, **alone), nf.q_transition(ids[None], q, NOISE, **one)[0])
    blocks = nf.q_mask(ids, [0.2, 0.5, 0.9], NOISE, V, block=16, batched=False)[0]
    assert np.array_equal(blocks, nf.q_mask(ids[None], [[0.2, 0.5, 0.9]], NOISE, V, block=16)[0][0])


def test_one_sample_of_tensors(torch):
    ids, out = torch.from_numpy(ids_of(40)), torch.zeros(40, dtype=torch.int64)
    x_t, masked = nf.q_mask(ids, 0.5, NOISE, V, batched=False)
    assert nf.q_mask(ids, 0.5, NOISE, V, batched=False, out=out)[0] is out
    expected = nf.q_mask(ids_of(40), 0.5, NOISE, V, batched=False)
    assert np.array_equal(x_t, expected[0])
    assert np.array_equal(out, expected[0])
    assert np.array_equal(masked, expected[1])


def test_an_interrupt_is_heard_between_pieces(monkeypatch):
    """NumPy's functions hear no Ctrl-C. Seen to fail: p for each token was checked in one piece of any size, and tokens
    were drawn from a matrix so."""
    seen = []

    def watched(function):
        def call(*given):
            seen.append(max(np.size(x) for x in given))
            return function(*given)

        return call

    for name in ("lie_within", "chosen_by"):
        monkeypatch.setattr(tokens, name, watched(getattr(tokens, name)))
    ids = np.zeros((3, 1 << 20), np.int64)
    expected = nf.q_mask(ids[:, :9], 0.5, NOISE, 9)[0]
    assert np.array_equal(nf.q_mask(ids, np.full(ids.shape, 0.5), NOISE, 9)[0][:, :9], expected)
    nf.q_transition(ids[:, : 1 << 18], np.eye(2), NOISE)
    assert len(seen) > 50
    assert max(seen) <= 1 << 20


def test_in_place():
    ids = ids_of(3, 1000)
    expected = nf.q_mask(ids, 0.5, NOISE, 999)[0]
    assert nf.q_mask(ids, 0.5, NOISE, 999, out=ids)[0] is ids
    assert np.array_equal(ids, expected)


IDS = ids_of(2, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((IDS, 1.5, NOISE, 9), {}, ValueError, "p = 1.5: expected a probability from 0 to 1"),
        ((IDS, [0.5, np.nan], NOISE, 9), {}, ValueError, r"p\[1\] = nan: expected a probability"),
        ((IDS, np.full((2, 8), -0.1), NOISE, 9), {}, ValueError, r"p\[0, 0\] = -0.1"),
        ((IDS, [0.5] * 3, NOISE, 9), {}, ValueError, r"a prefix of ids' shape \(2, 8\), got \(3,\)"),
        ((IDS, "half", NOISE, 9), {}, TypeError, "p: expected numbers, got str"),
        ((IDS, 0.5, NOISE, 2**63), {}, OverflowError, "mask_id = 9223372036854775808: does not fit ids of int64"),
        (
            (IDS.astype("uint8"), 0.5, NOISE, 256),
            {},
            OverflowError,
            r"mask_id = 256: does not fit ids of uint8, 0 .. 255",
        ),
        ((IDS, 0.5, NOISE, 1.0), {}, TypeError, "mask_id = 1.0: expected an integer, got float"),
        (
            (IDS.astype(float), 0.5, NOISE, 9),
            {},
            TypeError,
            "ids: dtype float64 is not supported, expected one of int64",
        ),
        ((IDS[0], 0.5, NOISE, 9), {}, ValueError, r"ids: expected tokens \(B, L\), axis 0 the batch, got shape \(8,\)"),
        ((IDS.tolist(), 0.5, NOISE, 9), {}, TypeError, "ids: expected an array"),
        ((IDS, 0.5, NOISE.at(stream=64), 9), {}, ValueError, "takes stream 0, got 64"),
        ((IDS, 0.5, 7, 9), {}, TypeError, "noise: expected a Noise"),
        ((IDS, 0.5, IDS, 9), {}, TypeError, "as its words choose the tokens, got an array"),
        ((IDS, 0.5, [NOISE] * 3, 9), {}, ValueError, "one Noise for each of 2 samples, got 3"),
        ((IDS, 0.5, NOISE, 9), {"where": IDS}, TypeError, "where: expected bool, got int64"),
        ((IDS, 0.5, NOISE, 9), {"where": np.ones(7, bool)}, ValueError, r"broadcasts to \(2, 8\), got \(7,\)"),
        ((IDS, 0.5, NOISE, 9), {"lengths": [1, 9]}, ValueError, r"lengths\[1\] = 9: expected from 0 to 8 positions"),
        ((IDS, 0.5, NOISE, 9), {"lengths": [1.0, 2.0]}, TypeError, "lengths: expected integers"),
        (
            (IDS, [[0.5], [0.5]], NOISE, 9),
            {"block": 4},
            ValueError,
            r"p: expected shape \(2, 2\), one for each block of 4",
        ),
        ((IDS, 0.5, NOISE, 9), {"block": 0}, ValueError, "block = 0: expected an integer of at least 1"),
        ((IDS, None, NOISE, 9), {}, TypeError, "p: expected numbers, got NoneType"),
        ((IDS, [0.5] * 3, NOISE, 9), {"batched": False}, ValueError, r"a prefix of ids' shape \(2, 8\), got \(3,\)"),
        ((IDS[0, 0], 0.5, NOISE, 9), {"batched": False}, TypeError, "ids: expected an array"),
        ((IDS[0], 0.5, NOISE, 9), {}, ValueError, r"one sequence pass ids\[None\], or batched=False"),
        ((IDS[0], [[0.5] * 2], NOISE, 9), {"batched": False, "block": 4}, ValueError, r"shape \(2,\), one for each bl"),
        ((IDS, 0.5, NOISE, 9), {"batched": False, "lengths": [9]}, TypeError, r"integers of shape \(\), got int64"),
        ((IDS, 0.5, [NOISE] * 2, 9), {"batched": False}, ValueError, "one Noise for each of 1 samples, got 2"),
    ],
)
def test_wrong_arguments_of_masks(arguments, options, error, words):
    out = np.full((2, 8), 77, np.int64)
    with pytest.raises(error, match=words):
        nf.q_mask(*arguments, **options, out=out)
    assert (out == 77).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda out: nf.q_uniform(IDS, 0.5, NOISE, 50, out=out),
            ValueError,
            r"ids\[0, 1\] = 161: expected tokens of the v",
        ),
        (
            lambda out: nf.q_uniform(IDS % 9, 0.5, NOISE, 0, out=out),
            ValueError,
            "vocabulary = 0: expected from 1 to 2.31",
        ),
        (lambda out: nf.q_transition(IDS, np.eye(50), NOISE, out=out), ValueError, r"ids\[0, 1\] = 161"),
        (
            lambda out: nf.q_transition(IDS % 2, np.ones((2, 2)), NOISE, out=out),
            ValueError,
            r"Q\[0\]: expected a sum of 1",
        ),
        (
            lambda out: nf.q_transition(IDS % 2, np.ones((2, 3)), NOISE, out=out),
            ValueError,
            r"Q: expected shape \(V, V\)",
        ),
        (
            lambda out: nf.q_transition(np.uint8(IDS % 9), np.eye(300), NOISE),
            ValueError,
            "vocabulary = 300: expected from 1 to 256 tokens for ids of uint8",
        ),
        (lambda out: nf.q_uniform(IDS, 0.5, NOISE, V, out=out[:, ::-1]), ValueError, "out: expected a C-contiguous"),
        (lambda out: nf.q_uniform(IDS, 0.5, NOISE, V, out=out.astype("int32")), TypeError, "out: expected dtype int64"),
    ],
)
def test_nothing_is_written_before_all_ids_were_looked_at(call, error, words):
    out = np.full((2, 8), 77, np.int64)
    with pytest.raises(error, match=words):
        call(out)
    assert (out == 77).all()


def test_no_samples_and_no_tokens():
    """Seen to fail: q_transition could not reshape an array of size 0."""
    for shape in ((0, 5), (5, 0), (0, 0), (2, 0, 3)):
        ids = np.zeros(shape, np.int64)
        assert nf.q_mask(ids, 0.5, NOISE, 9)[0].shape == shape
        assert nf.q_uniform(ids, np.zeros(shape[0]), NOISE, 9)[0].shape == shape
        assert nf.q_transition(ids, np.eye(5), NOISE).shape == shape


def test_a_block_longer_than_the_sample():
    """Seen to fail: it took memory for the whole block, and blocks of 2^63 were too large for C."""
    p = np.array([[0.25], [0.75]])
    expected = nf.q_mask(IDS, p[:, 0], NOISE, 999)[0]
    for block in (8, 9, 2**40, 2**63):
        assert np.array_equal(nf.q_mask(IDS, p, NOISE, 999, block=block)[0], expected)
