# SPDX-License-Identifier: Apache-2.0
"""Plain steps of token samplers: the fast path takes each, with the tokens of the checked way, and declines all others.

Seen to fail: every step drawn at the noise's own step, an event's words compared with one probability for both cases,
the mask's logit drawn, a masked position beyond `end` revealed, equal confidences in the order of the last position,
the greatest entropies first, a share rounded up, the last mask of a factor left alone, positions of a window counted
from 0 in the race, and in `end`.
"""

from dataclasses import replace

import numpy as np
import pytest

import noisefuse as nf
from fast import checked, counted, library
from fast import native as native

N, V = nf.Noise(5, sample=9, step=2), 12
KEYS = [N, N.at(sample=4), nf.Noise(3)]
S = nf.samplers
OWN = nf.TokenTable(
    "own",
    (
        nf.TokenRow(time=1.0, reveal=0.3, change=0.2, renoise=(0.3, 0.1), remask=0.25),
        nf.TokenRow(time=0.6, reveal=0.9, change=0.1, renoise=(0.2, 0.6), remask=0.1, temperature=0.3, end=2),
        nf.TokenRow(time=0.4, left=2, end=3),
        nf.TokenRow(time=0.2, reveal=1.0),
    ),
    mask_id=3,
    vocabulary=V,
)
PLAIN = {
    "mdlm": S.mdlm(steps=4, mask_id=V),
    "mdlm, a mask that has a logit": S.mdlm(steps=4, mask_id=5, top_k=4, temperature=0.7),
    "mdlm, few": S.mdlm(steps=4, mask_id=5, top_p=0.6),
    "remdm": S.remdm(steps=4, mask_id=5, eta=0.4),
    "d3pm": S.d3pm(steps=4, mask_id=5),
    "discrete_flow, masks": S.discrete_flow(steps=4, mask_id=5),
    "discrete_flow, tokens": S.discrete_flow(steps=4, vocabulary=V),
    "uniform_ddim": S.uniform_ddim(steps=4, vocabulary=V),
    "llada": S.llada(4, mask_id=5),
    "llada, warm": S.llada(4, mask_id=5, temperature=0.5),
    "llada, in blocks": S.llada(4, mask_id=5, length=8, block_length=4),
    "llada, at random": S.llada(4, mask_id=5, remask="random"),
    "llada, by confidence": S.llada(4, mask_id=5, threshold=0.3, temperature=0.4),
    "dream, by chance": S.dream(4, mask_id=5, temperature=0.6),
    "llada, by a factor": S.llada(4, mask_id=5, factor=1.6),
    "llada, by a small factor": S.llada(4, mask_id=5, factor=0.4, temperature=0.7, length=8, block_length=4),
    "dream, by log_prob": S.dream(4, mask_id=5, alg="maskgit_plus", temperature=0.6, top_p=0.9),
    "dream, by log_prob at 0": S.dream(4, mask_id=5, alg="maskgit_plus"),
    "dream, by margin": S.dream(4, mask_id=5, alg="topk_margin", temperature=0.4, top_k=5),
    "dream, by entropy": S.dream(4, mask_id=5, alg="entropy", temperature=0.6),
    "dream, by entropy at 0": S.dream(4, mask_id=5, alg="entropy"),
    "a greedy last step": S.mdlm(4, mask_id=5, final="argmax"),
    "own": nf.DiscreteSampler(OWN),
}
OTHERS = {
    "sedd": S.sedd(4, mask_id=V),
    "entropy_bound": S.entropy_bound(4, mask_id=5),
    "entropy_bound of tokens": S.entropy_bound(4, vocabulary=V),
    "guided": S.llada(4, mask_id=5, cfg_scale=1.0),
    "dream, in an order that is drawn": S.dream(4, mask_id=5, alg="maskgit_plus", alg_temp=0.3),
    "tokens that are left out": nf.DiscreteSampler(replace(OWN, left_out=(2,))),
    "tokens that are unsure": nf.DiscreteSampler(replace(S.llada(4, mask_id=5).table, unsure=(2,))),
}
LOGITS = np.random.default_rng(1).standard_normal((3, 8, V)).astype(np.float32)
LOGITS[0] = LOGITS[0, 0]  # equally certain
DRAWN = np.random.default_rng(2)
X = np.where(DRAWN.random((3, 8)) < 0.5, 5, DRAWN.integers(0, V, (3, 8)))
WHERE = DRAWN.random((3, 8)) < 0.6


def given(sampler):
    mask = sampler.table.mask_id
    return X if mask is None else np.where(X == 5, mask, np.where(np.equal(X, mask), 0, X))


def step(sampler, a, i, x=None, logits=LOGITS, noise=N, dtype="int64", **options):
    """Returns the next tokens, and what the state keeps."""
    state = sampler.state()
    x = given(sampler).astype(dtype) if x is None else x
    found = sampler.step(i, a(x.copy()), a(logits), noise, state, **options)
    return found, state.drawn, state.taken, state.info


def same_as_checked(monkeypatch, call, taken):
    found, names = counted(monkeypatch, call)
    assert found == checked(monkeypatch, call)
    assert ("fast_token_step" in names) == taken


LIBRARIES = pytest.mark.parametrize("of", ["NumPy", "torch"])


@LIBRARIES
@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("name", PLAIN)
def test_steps(monkeypatch, of, name, i):
    a, sampler = library(of), PLAIN[name]
    for options in ({}, {"where": WHERE}, {"dtype": "uint8"}, {"noise": KEYS}):
        same_as_checked(monkeypatch, lambda options=options: step(sampler, a, i, **options), True)
    wide = [one.window((2**31,), (start,)) for one, start in zip(KEYS, (0, 7, 2**31 - 9), strict=True)]
    for noise in (N.window((9,), (1,)), N.window((2**14 + 7,), (2**14 - 2,)), wide):
        same_as_checked(monkeypatch, lambda noise=noise: step(sampler, a, i, noise=noise), True)


@pytest.mark.parametrize(
    "name",
    [
        "remdm",
        "own",
        "llada, warm",
        "llada, by confidence",
        "llada, by a factor",
        "llada, by a small factor",
        "dream, by log_prob",
        "dream, by margin",
        "dream, by entropy",
        "dream, by entropy at 0",
    ],
)
@pytest.mark.parametrize("seed", range(20))
def test_drawn_steps(monkeypatch, name, seed):
    drawn, sampler = np.random.default_rng(seed), PLAIN[name]
    shape = int(drawn.integers(1, 4)), int(drawn.integers(1, 40))
    x, logits = drawn.integers(0, V, shape), drawn.standard_normal((*shape, V)).astype(drawn.choice(["f4", "f2"]))
    logits *= drawn.choice([1, 8])  # certain ones, too
    x = np.where(drawn.random(shape) < drawn.random(), sampler.table.mask_id, x)
    noise = nf.Noise(seed, step=2**32 - 4)
    options = {"where": drawn.random(shape) < 0.7} if seed % 3 else {}
    i = int(drawn.integers(0, 4))
    same_as_checked(monkeypatch, lambda: step(sampler, np.asarray, i, x, logits, noise, **options), True)


OWN_WAYS = {
    "int32": lambda s, a: step(s, a, 1, dtype="int32"),
    "uint16": lambda s, a: step(s, a, 1, dtype="uint16"),
    "half": lambda s, a: step(s, a, 1, logits=LOGITS.astype("f2")),
    "no state": lambda s, a: s.step(1, a(given(s)), a(LOGITS), N),
    "out": lambda s, a: step(s, a, 1, out=a(np.zeros_like(X))),
    "in place": lambda s, a: where_they_lie(s, a(given(s).copy()), a(LOGITS)),
    "three axes": lambda s, a: step(s, a, 1, given(s).reshape(3, 2, 4), LOGITS.reshape(3, 2, 4, V)),
    "every other": lambda s, a: s.step(1, a(given(s))[:, ::2], a(LOGITS)[:, ::2], N),
    "nothing may change": lambda s, a: step(s, a, 1, where=np.zeros(X.shape, bool)),
    "a vocabulary beyond the masks": lambda s, a: step(s, a, 3, logits=np.concatenate([LOGITS, LOGITS], -1)),
    "where of x's library": lambda s, a: step(s, a, 1, where=a(WHERE)),
    "large": lambda s, a: step(s, a, 1, np.resize(given(s), (4, 900)), np.resize(LOGITS, (4, 900, V))),
}


def where_they_lie(sampler, x, logits):
    found = sampler.step(1, x, logits, N, out=x)
    assert found is x
    return found


@LIBRARIES
@pytest.mark.parametrize("name", OWN_WAYS)
def test_ways_to_step(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: OWN_WAYS[name](PLAIN["own"], a), True)


NAN, NONE = (np.where(LOGITS > 1.5, value, LOGITS).astype("f4") for value in (np.nan, 0))
NONE[0] = -np.inf
WRONG = {
    "a NaN": lambda s, a: step(s, a, 1, logits=NAN),
    "no token": lambda s, a: step(s, a, 1, logits=NONE),
    "no row": lambda s, a: step(s, a, 4),
    "a row before the first": lambda s, a: step(s, a, -1),
    "a bool": lambda s, a: step(s, a, True),
    "too few logits": lambda s, a: step(s, a, 1, logits=LOGITS[..., :4].copy()),
    "logits of another shape": lambda s, a: step(s, a, 1, logits=LOGITS[:2]),
    "logits of float64": lambda s, a: step(s, a, 1, logits=LOGITS.astype("f8")),
    "x of floats": lambda s, a: step(s, a, 1, dtype="float32"),
    "x without a batch": lambda s, a: step(s, a, 1, X[0], LOGITS[0]),
    "a window that is too small": lambda s, a: step(s, a, 1, noise=N.window((9,), (2,))),
    "a window of two axes": lambda s, a: step(s, a, 1, noise=N.window((2, 4), (0, 0))),
    "windows of samples of two lengths": lambda s, a: step(s, a, 1, noise=[N.window((n,), (1,)) for n in (9, 9, 10)]),
    "a window and none": lambda s, a: step(s, a, 1, noise=[N.window((8,), (0,)), N, N]),
    "too many positions": lambda s, a: step(s, a, 1, noise=N.window((2**31 + 1,), (2**31 - 7,))),
    "another stream": lambda s, a: step(s, a, 1, noise=N.at(stream=64)),
    "a step beyond the last": lambda s, a: step(s, a, 1, noise=N.at(step=2**32 - 1)),
    "no noise": lambda s, a: step(s, a, 1, noise=None),
    "where that broadcasts": lambda s, a: step(s, a, 1, where=WHERE[:1]),
    "a pair": lambda s, a: s.step(1, a(given(s)), (a(LOGITS), a(LOGITS)), N),
    "a log-probability": lambda s, a: step(s, a, 3, log_prob=True),
    "info": lambda s, a: (state := s.state("entropy"), s.step(1, a(given(s)), a(LOGITS), N, state), state.info)[1:],
    "a state that is none": lambda s, a: s.step(1, a(given(s)), a(LOGITS), N, {}),
    "out of another dtype": lambda s, a: step(s, a, 1, out=a(np.zeros(X.shape, "i4"))),
}  # fmt: skip


@LIBRARIES
@pytest.mark.parametrize("name", WRONG)
def test_steps_that_are_declined(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: WRONG[name](PLAIN["own"], a), False)


def test_a_token_beyond_the_dtype(monkeypatch):
    logits = np.zeros((1, 2, 400), np.float32)
    logits[..., 300] = 50
    sampler = S.mdlm(steps=1, mask_id=255)
    x = np.full((1, 2), 255, np.uint8)
    same_as_checked(monkeypatch, lambda: step(sampler, np.asarray, 0, x, logits), False)


@pytest.mark.parametrize("masks", [256, 257])
def test_many_masks_of_a_factor(monkeypatch, masks):
    sampler, x = PLAIN["llada, by a factor"], np.full((2, 300), 5)
    x[:, masks:] = 0
    logits = np.resize(8 * LOGITS, (2, 300, V))
    same_as_checked(monkeypatch, lambda: step(sampler, np.asarray, 1, x, logits), masks == 256)


@pytest.mark.parametrize("name", OTHERS)
def test_other_samplers(monkeypatch, name):
    sampler = OTHERS[name]
    same_as_checked(monkeypatch, lambda: step(sampler, np.asarray, 1), False)
