# SPDX-License-Identifier: Apache-2.0
"""Plain calls of tokens: the fast path takes each, with the bits of the checked way, and declines all others.

Seen to fail: `complement` ignored, a p of each sample taken for one of all tokens, a token below 0 taken for one of
the vocabulary; top_p of the first sample taken for all, rows in a window counted from 0; a weight of each sample taken
for one of each row, an id of a row that does not count looked at.
"""

import numpy as np
import pytest

import noisefuse as nf
from fast import library, same_as_checked
from fast import native as native

N = nf.Noise(5, sample=9, step=2)
IDS, DTYPES = np.arange(24).reshape(2, 12) % 7, ("int64", "int32", "uint8", "uint16")
WHERE = np.arange(24).reshape(2, 12) % 3 > 0
P = {
    "a number": 0.3,
    "none": 0,
    "all": 1,
    "a small float of NumPy's": np.float16(0.3),
    "of samples": np.array([0.3, 0.8]),
    "a list": [0.3, 0.8],
    "a column": np.array([[0.3], [0.8]], np.float32),
    "of tokens": np.linspace(0, 1, 24).reshape(2, 12),
    "one, listed": [0.3],
    "of no axes": np.array(0.3),
}
NAMES = {
    "ids of samples": N.at(sample=[4, 2**56 - 1]),
    "a window": N.window((30,), (7,)),
    "a list": [N, nf.Noise(2, step=2**32 - 1)],
}


LIBRARIES = pytest.mark.parametrize("of", ["NumPy", "torch"])
MASKS = {
    **{f"ids of {d}": lambda a, d=d: nf.q_mask(a(IDS.astype(d)), 0.5, N, 99) for d in DTYPES},
    **{f"p: {name}": lambda a, p=p: nf.q_mask(a(IDS), p, N, 99) for name, p in P.items()},
    **{f"an array p: {name}": lambda a, p=p: nf.q_mask(a(IDS), a(np.array(p)), N, 99)
       for name, p in P.items() if np.array(p).dtype.kind == "f"},
    **{f"noise: {name}": lambda a, n=n: nf.q_mask(a(IDS), 0.5, n, 99) for name, n in NAMES.items()},
    "where": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, where=a(WHERE)),
    "where of NumPy": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, where=WHERE),
    "where, the others": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, where=a(WHERE), complement=True),
    "the least token": lambda a: nf.q_mask(a(IDS), 0.5, N, -(2**63)),
    "a small token of NumPy's": lambda a: nf.q_mask(a(IDS.astype("uint8")), 0.5, N, np.uint8(255)),
    "a negative token": lambda a: nf.q_mask(a(IDS.astype("int32")), 0.5, N, -1),
    "one sample": lambda a: nf.q_mask(a(IDS), np.array([0.3, 0.8]), N, 99, batched=False),
    "one sample of one axis": lambda a: nf.q_mask(a(IDS[0]), 0.5, N, 99, batched=False),
    "three axes": lambda a: nf.q_mask(a(IDS.reshape(2, 3, 4)), np.full((2, 3), 0.5), N, 99),
    "every other": lambda a: nf.q_mask(a(IDS)[:, ::2], 0.5, N, 99),
    "swapped bytes": lambda a: nf.q_mask(IDS.astype(">i8"), 0.5, N, 99),
    "out": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, out=a(np.zeros_like(IDS))),
    "many": lambda a: nf.q_mask(a(np.resize(IDS, (3, 40_001))), np.linspace(0, 1, 3), N, 99),
    "in place": lambda a: in_place(nf.q_mask, a(IDS.copy()), 99),
    "of a vocabulary, in place": lambda a: in_place(nf.q_uniform, a(IDS.copy()), 7),
    **{f"of a vocabulary, ids of {d}": lambda a, d=d: nf.q_uniform(a(IDS.astype(d)), 0.5, N, 50) for d in DTYPES},
    "all bytes": lambda a: nf.q_uniform(a(IDS.astype("uint8")), 0.5, N, 256),
    "the largest vocabulary": lambda a: nf.q_uniform(a(IDS.astype("int32")), P["of samples"], N, 2**31, where=a(WHERE)),
    "a vocabulary for one sample": lambda a: nf.q_uniform(a(IDS), 0.5, N, 7, batched=False),
}  # fmt: skip


def in_place(function, ids, token):
    found, changed = function(ids, 0.5, N, token, out=ids)
    assert found is ids
    return found, changed


@LIBRARIES
@pytest.mark.parametrize("name", MASKS)
def test_tokens_that_change(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: MASKS[name](a), "fast_tokens")


OTHERS = {
    "p beyond 1": lambda a: nf.q_mask(a(IDS), 1.5, N, 99),
    "no number": lambda a: nf.q_mask(a(IDS), [0.3, float("nan")], N, 99),
    "p of another shape": lambda a: nf.q_mask(a(IDS), [0.3, 0.4, 0.5], N, 99),
    "p of the last axis": lambda a: nf.q_mask(a(IDS), np.full(12, 0.5), N, 99),
    "p of words": lambda a: nf.q_mask(a(IDS), "half", N, 99),
    "bools for p": lambda a: nf.q_mask(a(IDS), True, N, 99),
    "ids of floats": lambda a: nf.q_mask(a(IDS.astype("float32")), 0.5, N, 99),
    "no batch": lambda a: nf.q_mask(a(IDS[0]), 0.5, N, 99),
    "no tokens": lambda a: nf.q_mask(a(IDS[:, :0]), 0.5, N, 99),
    "a token that is too large": lambda a: nf.q_mask(a(IDS.astype("uint8")), 0.5, N, 256),
    "a token that is too small": lambda a: nf.q_mask(a(IDS.astype("uint16")), 0.5, N, -1),
    "a token of 65 bits": lambda a: nf.q_mask(a(IDS), 0.5, N, 2**64),
    "no token": lambda a: nf.q_mask(a(IDS), 0.5, N, 9.0),
    "a bool": lambda a: nf.q_mask(a(IDS), 0.5, N, True),
    "another stream": lambda a: nf.q_mask(a(IDS), 0.5, N.at(stream=64), 99),
    "an array of noise": lambda a: nf.q_mask(a(IDS), 0.5, a(np.zeros(IDS.shape)), 99),
    "a seed": lambda a: nf.q_mask(a(IDS), 0.5, 7, 99),
    "too few noises": lambda a: nf.q_mask(a(IDS), 0.5, [N], 99),
    "a window that is too small": lambda a: nf.q_mask(a(IDS), 0.5, N.window((11,), (0,)), 99),
    "where that broadcasts": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, where=a(WHERE[:1])),
    "where of numbers": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, where=a(IDS)),
    "blocks": lambda a: nf.q_mask(a(IDS), np.full((2, 3), 0.5), N, 99, block=4),
    "lengths": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, lengths=[3, 12]),
    "a number for a bool": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, complement=1),
    "out of another dtype": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, out=a(IDS.astype("int32"))),
    "out of another shape": lambda a: nf.q_mask(a(IDS), 0.5, N, 99, out=a(np.zeros((2, 11), int))),
    "out that is read-only": lambda a: nf.q_mask(IDS, 0.5, N, 99, out=np.broadcast_to(np.int64(1), IDS.shape)),
    "no vocabulary": lambda a: nf.q_uniform(a(IDS), 0.5, N, 0),
    "the least vocabulary": lambda a: nf.q_uniform(a(IDS), 0.5, N, -(2**63)),
    "a vocabulary that is too large": lambda a: nf.q_uniform(a(IDS), 0.5, N, 2**31 + 1),
    "a vocabulary beyond bytes": lambda a: nf.q_uniform(a(IDS.astype("uint8")), 0.5, N, 257),
    "a token beyond the vocabulary": lambda a: nf.q_uniform(a(IDS), 0.5, N, 6),
    "a token below the vocabulary": lambda a: nf.q_uniform(a(IDS - 1), 0.5, N, 50),
    "a small token below the vocabulary": lambda a: nf.q_uniform(a((IDS - 1).astype("int32")), 0.5, N, 50),
    "a list of ids": lambda a: nf.q_mask(IDS.tolist(), 0.5, N, 99),
    "out that overlaps ids in part": lambda a: overlapping(a, slice(0, 24), slice(2, 26)),
}  # fmt: skip


def overlapping(a, of_ids, of_out):
    memory = a(np.arange(30))
    return nf.q_mask(memory[of_ids].reshape(2, 12), 0.5, N, 99, out=memory[of_out].reshape(2, 12))


@LIBRARIES
@pytest.mark.parametrize("name", OTHERS)
def test_tokens_that_are_declined(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: OTHERS[name](a), None)


@pytest.mark.parametrize("grad", [False, True])
def test_probabilities_with_a_gradient(monkeypatch, grad):
    """The gradient of p is nobody's: the checked way drops it, and its array takes the fast path."""
    torch = pytest.importorskip("torch")
    p = torch.tensor([0.3, 0.8], requires_grad=True)
    with torch.set_grad_enabled(grad):
        same_as_checked(monkeypatch, lambda: nf.q_mask(torch.from_numpy(IDS), p, N, 99), "fast_tokens")


LOGITS = np.random.default_rng(2).standard_normal((2, 3, 50)).astype(np.float32)
KINDS = ("float32", "float16")
CHOSEN = np.array([[True, False, True], [False, False, True]])
DRAWS = {
    **{f"logits of {d}": lambda a, d=d: nf.categorical(a(LOGITS.astype(d)), N) for d in KINDS},
    "bfloat16": lambda a: nf.categorical(bfloat16(a, LOGITS), N),
    **{f"temperature {t}": lambda a, t=t: nf.categorical(a(LOGITS), N, temperature=t)
       for t in (0, 0.0, 0.7, 2, np.float32(0.3), [0.3, 0.0], np.array([0.5, 2.0]))},
    "temperature, an array": lambda a: nf.categorical(a(LOGITS), N, temperature=a(np.array([0.5, 2.0], np.float16))),
    **{f"top_k {k}": lambda a, k=k: nf.categorical(a(LOGITS), N, top_k=k) for k in (1, 7, 60, np.int32(3), 2**60)},
    **{f"top_p {p}": lambda a, p=p: nf.categorical(a(LOGITS), N, top_p=p) for p in (1, 0.5, 1e-9, [0.3, 0.9])},
    "all settings": lambda a: nf.categorical(a(LOGITS), N, temperature=[0.3, 0.9], top_k=5, top_p=0.9),
    **{f"noise: {name}": lambda a, n=n: nf.categorical(a(LOGITS), n)
       for name, n in {**NAMES, "a window": N.window((3, 50), (0, 0)), "rows": N.window((7, 50), (0, 0))}.items()},
    "where": lambda a: nf.categorical(a(LOGITS), N, where=a(CHOSEN)),
    "where, with out": lambda a: nf.categorical(a(LOGITS), N, where=CHOSEN, out=a(np.full((2, 3), 8))),
    **{f"out of {d}": lambda a, d=d: nf.categorical(a(LOGITS), N, out=a(np.full((2, 3), 8, d)))
       for d in ("int64", "int32")},
    "one row": lambda a: nf.categorical(a(LOGITS[0, 0]), N),
    "rows of samples": lambda a: nf.categorical(a(LOGITS[:, 0]), N),
    "the last position": lambda a: nf.categorical(a(LOGITS)[:, -1], N),
    "one token": lambda a: nf.categorical(a(LOGITS[..., :1].copy()), N),
    "infinities": lambda a: nf.categorical(a(np.where(LOGITS > 1, np.inf, -np.inf)[:1, :1].astype("f4")), N),
    "many": lambda a: nf.categorical(a(np.resize(LOGITS, (2, 5, 9001))), N, top_k=40),
}  # fmt: skip


def bfloat16(a, x):
    if isinstance(a(x), np.ndarray):
        return x.astype(pytest.importorskip("ml_dtypes").bfloat16)
    return a(x).bfloat16()


@LIBRARIES
@pytest.mark.parametrize("name", DRAWS)
def test_draws_of_categories(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: DRAWS[name](a), "fast_categorical")


UNDRAWN = {
    "a NaN": lambda a: nf.categorical(a(np.where(LOGITS > 2, np.nan, LOGITS).astype("f4")), N),
    "a NaN with top_k": lambda a: nf.categorical(a(np.where(LOGITS > 2, np.nan, LOGITS).astype("f4")), N, top_k=3),
    "no token": lambda a: nf.categorical(a(np.full((2, 3), -np.inf, np.float32)), N),
    "float64": lambda a: nf.categorical(a(LOGITS.astype("float64")), N),
    "no tokens": lambda a: nf.categorical(a(LOGITS[..., :0]), N),
    "no rows": lambda a: nf.categorical(a(LOGITS[:0]), N),
    "no axes": lambda a: nf.categorical(a(LOGITS)[0, 0, 0], N),
    "too many tokens": lambda a: nf.categorical(a(np.zeros((1, 2**20 + 1), np.float32)), N),
    **{f"temperature {t}": lambda a, t=t: nf.categorical(a(LOGITS), N, temperature=t)
       for t in (-1.0, float("nan"), 2.0**65, 1e-300, True, "hot", [1.0], [1.0, 1.0, 1.0], [1.0, -1.0])},
    **{f"top_k {k}": lambda a, k=k: nf.categorical(a(LOGITS), N, top_k=k) for k in (-1, 2**63, 3.0, True, [3, 4])},
    **{f"top_p {p}": lambda a, p=p: nf.categorical(a(LOGITS), N, top_p=p) for p in (0, 0.0, 1.5, -0.1, [0.5])},
    "another stream": lambda a: nf.categorical(a(LOGITS), N.at(stream=64)),
    "a window of the vocabulary": lambda a: nf.categorical(a(LOGITS), N.window((3, 60), (0, 0))),
    "a window of later rows": lambda a: nf.categorical(a(LOGITS), N.window((7, 50), (4, 0))),
    "a seed": lambda a: nf.categorical(a(LOGITS), 7),
    "positions": lambda a: nf.categorical(a(LOGITS), N, positions=[5, 6, 7]),
    "info": lambda a: nf.categorical(a(LOGITS), N, info=("log_prob", "rank")),
    "an unknown info": lambda a: nf.categorical(a(LOGITS), N, info="truth"),
    "a part": lambda a: nf.categorical(a(LOGITS), N, partial=True).token,
    "a dtype": lambda a: nf.categorical(a(LOGITS), N, dtype="int32"),
    "where that broadcasts": lambda a: nf.categorical(a(LOGITS), N, where=a(CHOSEN[0])),
    "out of another dtype": lambda a: nf.categorical(a(LOGITS), N, out=a(np.zeros((2, 3), np.int16))),
    "out of floats": lambda a: nf.categorical(a(LOGITS), N, out=a(np.zeros((2, 3), np.float32))),
    "out of another shape": lambda a: nf.categorical(a(LOGITS), N, out=a(np.zeros((2, 4), int))),
    "out beside the logits": lambda a: beside_logits(a),
}  # fmt: skip


def beside_logits(a):
    memory = a(np.zeros(300, np.int32))
    logits = memory.view(np.float32 if isinstance(memory, np.ndarray) else pytest.importorskip("torch").float32)
    return nf.categorical(logits.reshape(2, 3, 50), N, out=memory[:6].reshape(2, 3))


@LIBRARIES
@pytest.mark.parametrize("name", UNDRAWN)
def test_draws_that_are_declined(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: UNDRAWN[name](a), None)


CLEAN = np.array([[3, 49, 0], [7, 7, 12]])
WIDE = np.array([[0.5, 2.0, 1.0], [3.0, 0.0, 1.0]])
LOSSES = {
    **{f"logits of {d}": lambda a, d=d: xent(a(LOGITS.astype(d)), a(CLEAN)) for d in KINDS},
    "bfloat16": lambda a: xent(bfloat16(a, LOGITS), a(CLEAN)),
    **{f"ids of {d}": lambda a, d=d: xent(a(LOGITS), a(CLEAN.astype(d))) for d in DTYPES},
    "masked": lambda a: xent(a(LOGITS), a(CLEAN), a(CHOSEN)),
    "masked, of NumPy": lambda a: xent(a(LOGITS), CLEAN, CHOSEN),
    "none": lambda a: xent(a(LOGITS), a(CLEAN), a(~CHOSEN & CHOSEN)),
    "an id that does not count": lambda a: xent(a(LOGITS), a(np.where(CHOSEN, CLEAN, -1)), a(CHOSEN)),
    **{f"weight {w}": lambda a, w=w: xent(a(LOGITS), a(CLEAN), a(CHOSEN), w)
       for w in (2.0, 3, [0.5, 2.0], np.array([0.5, 2.0]), np.array([[0.5], [2.0]]), WIDE, float("inf"))},
    "weights, an array": lambda a: xent(a(LOGITS), a(CLEAN), None, a(WIDE.astype(np.float32))),
    "upstream": lambda a: both(a(LOGITS), a(CLEAN), upstream=3.0),
    "a gradient of many rows": lambda a: both(a(np.resize(LOGITS, (3, 40, 301))), a(np.resize(CLEAN, (3, 40)))),
    **{f"each, {name}": lambda a, g=g: both(a(LOGITS), a(CLEAN), a(CHOSEN), a(WIDE), reduction="none", **g)
       for name, g in {"1": {}, "upstream": {"upstream": WIDE}, "of samples": {"upstream": [2.0, 3.0]}}.items()},
    "each": lambda a: xent(a(LOGITS), a(CLEAN), a(CHOSEN), a(WIDE), reduction="none"),
    "a gradient in place": lambda a: where_they_lie(a(LOGITS.copy()), a(CLEAN)),
    "a gradient of its own": lambda a: both(a(LOGITS), a(CLEAN), a(CHOSEN), out=a(np.ones_like(LOGITS))),
    "one row": lambda a: both(a(LOGITS[0, 0]), a(CLEAN[0, 0:1].reshape(())), reduction="none"),
    "a NaN": lambda a: both(a(np.where(LOGITS > 2, np.nan, LOGITS).astype("f4")), a(CLEAN)),
    "every other": lambda a: both(a(LOGITS)[..., ::2], a(CLEAN // 2)),
    **{f"rates, p {p}": lambda a, p=p: rates(a(LOGITS), a(CLEAN), a(CLEAN[::-1].copy()), p, 2.0, where=a(CHOSEN))
       for p in (None, 0.5, [0.5, 0.25], np.array([[0.5], [0.25]]), 2.0**-32, 1)},
    "rates, an x_t that does not count": lambda a: rates(
        a(LOGITS), a(CLEAN), a(np.where(CHOSEN, CLEAN, 99)), None, where=a(CHOSEN), reduction="none"
    ),
}  # fmt: skip
xent, both, rates = nf.masked_cross_entropy, nf.masked_cross_entropy_and_grad, nf.rate_loss_and_grad


def where_they_lie(logits, ids):
    loss, gradient = both(logits, ids, out=logits)
    assert gradient is logits
    return loss, gradient


@LIBRARIES
@pytest.mark.parametrize("name", LOSSES)
def test_cross_entropies(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: LOSSES[name](a), "fast_cross_entropy")


WRONG = {
    "an id beyond": lambda a: xent(a(LOGITS), a(np.full((2, 3), 50))),
    "an id below 0": lambda a: xent(a(LOGITS), a(np.full((2, 3), -1, np.int32))),
    "ids of floats": lambda a: xent(a(LOGITS), a(CLEAN.astype("f4"))),
    "ids of another shape": lambda a: xent(a(LOGITS), a(CLEAN[:1])),
    "masked of numbers": lambda a: xent(a(LOGITS), a(CLEAN), a(CLEAN)),
    "a weight below 0": lambda a: xent(a(LOGITS), a(CLEAN), None, -1.0),
    "a weight of another shape": lambda a: xent(a(LOGITS), a(CLEAN), None, [1.0, 2.0, 3.0]),
    "a weight of three axes": lambda a: xent(a(LOGITS), a(CLEAN), None, a(np.ones((2, 1, 1)))),
    "upstream of one": lambda a: both(a(LOGITS), a(CLEAN), upstream=[1.0]),
    "a reduction": lambda a: xent(a(LOGITS), a(CLEAN), reduction="sum"),
    "no rows": lambda a: xent(a(LOGITS[:0]), a(CLEAN[:0])),
    "a gradient of another dtype": lambda a: both(a(LOGITS), a(CLEAN), out=a(LOGITS.astype("f2"))),
    "a gradient that overlaps": lambda a: in_part(a(np.zeros(301, "f4")), a(CLEAN)),
}


def in_part(memory, ids):
    return both(memory[1:].reshape(2, 3, 50), ids, out=memory[:-1].reshape(2, 3, 50))


@LIBRARIES
@pytest.mark.parametrize("name", WRONG)
def test_cross_entropies_that_are_declined(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: WRONG[name](a), None)


def test_a_gradient_may_lie_where_ids_and_weights_do():
    """Kernels read copies of them."""
    memory = np.zeros(300, np.float32)
    memory.view(np.int64)[:6] = CLEAN.reshape(-1)
    ids, gradient = memory.view(np.int64)[:6].reshape(2, 3), memory.reshape(2, 3, 50)
    expected = both(LOGITS, CLEAN)
    loss, found = both(LOGITS, ids, out=gradient)
    assert loss == expected[0]
    assert found is gradient
    assert np.array_equal(found, expected[1])


def test_writes_are_told():
    """Autograd counts writes to a tensor."""
    torch = pytest.importorskip("torch")
    out = torch.zeros(IDS.shape, dtype=torch.int64)
    before = out._version
    assert nf.q_mask(torch.from_numpy(IDS), 0.5, N, 99, out=out)[0] is out
    assert out._version == before + 1
