# SPDX-License-Identifier: Apache-2.0
"""Plain calls of tokens: the fast path takes each, with the bits of the checked way, and declines all others.

Seen to fail: `complement` ignored, a p of each sample taken for one of all tokens, a token below 0 taken for one of
the vocabulary.
"""

import numpy as np
import pytest

import noisefuse as nf
from conftest import NATIVE, using
from fast import checked, counted

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


@pytest.fixture(autouse=True)
def native():
    if not NATIVE:
        pytest.skip("the other backends have no fast path")
    with using(NATIVE[0]):
        yield


def library(name):
    return np.asarray if name == "NumPy" else pytest.importorskip("torch").from_numpy


def same_as_checked(monkeypatch, call, taken):
    """Both ways give the same. The fast path takes the call, or declines it."""
    found, names = counted(monkeypatch, call)
    assert found == checked(monkeypatch, call)
    assert names == ([taken] if taken else [])


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
    "swapped bytes": lambda a: nf.q_mask(IDS.astype(">i8"), 0.5, N, 99),
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


def test_writes_are_told():
    """Autograd counts writes to a tensor."""
    torch = pytest.importorskip("torch")
    out = torch.zeros(IDS.shape, dtype=torch.int64)
    before = out._version
    assert nf.q_mask(torch.from_numpy(IDS), 0.5, N, 99, out=out)[0] is out
    assert out._version == before + 1
