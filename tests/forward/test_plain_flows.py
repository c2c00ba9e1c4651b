# SPDX-License-Identifier: Apache-2.0
"""Plain calls of flows: the fast path takes each, with the bits of the checked way, and declines all others.

Seen to fail: the target's columns taken for those of x_t, alpha of the first sample taken for all, the kept result of
another time, columns of the point left unchecked in a loss.
"""

import copy
import pickle

import numpy as np
import pytest

import noisefuse as nf
from fast import library, same_as_checked
from fast import native as native
from noisefuse import paths

N, SHAPE = nf.Noise(5, sample=9, step=2), (2, 16, 7)
X0, X1, PRED = (np.random.default_rng(seed).standard_normal(SHAPE) for seed in range(3))
PATHS = {
    "linear": paths.linear(),
    "vp": paths.variance_preserving(),
    "conditional": paths.conditional_flow(0.3),
    "stochastic": paths.stochastic(),
    "bridge": paths.brownian_bridge(0.5),
    "encoder_decoder": paths.encoder_decoder(),
    "i2sb": paths.i2sb(0.3),
    "own": paths.Path("own", lambda t: 1 - t**2, lambda t: t**2, lambda t: -2 * t, lambda t: 2 * t),
}
T = np.array([0.25, 0.8])
TIMES = {
    "a number": 0.3,
    "a number of NumPy's": np.float32(0.3),
    "0": 0.0,
    "1": 1.0,
    "of samples": T,
    "listed": [0.25, 0.8],
    "ends": [0.0, 1.0],
    "the last and another": [1.0, 0.5],
    "halves": T.astype(np.float16),
    "one": np.array([0.3]),
    "of rows": np.linspace(0.1, 0.9, 32, dtype=np.float32).reshape(2, 16),
}
DTYPES = ("float32", "float64", "float16")


def point(a, dtype, t, path, target=None, **options):
    noise = N if path.draws else None
    return nf.interpolate(a(X0.astype(dtype)), a(X1.astype(dtype)), t, path, noise, target=target, **options)


def loss(a, dtype, t, path, target, **options):
    noise = N if path.draws else None
    pred, x0, x1 = (a(x.astype(dtype)) for x in (PRED, X0, X1))
    return nf.interpolate_loss(pred, x0, x1, t, path, noise, target=target, **options)


def both(a, dtype, t, path, target, **options):
    noise = N if path.draws else None
    pred, x0, x1 = (a(x.astype(dtype)) for x in (PRED, X0, X1))
    return nf.interpolate_loss_and_grad(pred, x0, x1, t, path, noise, target=target, **options)


def targets(path):
    return [None, "velocity", *(("score", "denoiser") if path.draws else ())]


F4 = "float32"
POINTS = {
    **{f"{name}, {target}, {u}": lambda a, p=p, g=target, u=u: point(a, "float64", TIMES[u], p, g)
       for name, p in PATHS.items() for target in targets(p) for u in ("a number", "of samples")},
    **{f"t: {name}": lambda a, t=t: point(a, F4, t, PATHS["vp"], "velocity") for name, t in TIMES.items()},
    **{f"t, an array: {name}": lambda a, t=t: point(a, F4, a(np.array(t)), PATHS["bridge"])
       for name, t in TIMES.items()},
    **{f"arrays of {d}": lambda a, d=d: point(a, d, T, PATHS["conditional"], "velocity") for d in DTYPES},
    "noise, an array": lambda a: nf.interpolate(a(X0), a(X1), T, PATHS["bridge"], a(X1)),
    "noise, a window": lambda a: nf.interpolate(a(X0), a(X1), T, PATHS["bridge"], N.window((20, 7), (3, 0))),
    "noise, a list": lambda a: nf.interpolate(a(X0), a(X1), T, PATHS["bridge"], [N, nf.Noise(3).at(stream=70)]),
    "noise that is not drawn": lambda a: nf.interpolate(a(X0), a(X1), T, PATHS["linear"], N),
    "one sample": lambda a: point(a, F4, 0.3, PATHS["bridge"], batched=False),
    "every other": lambda a: nf.interpolate(a(X0)[:, ::2], a(X1)[:, ::2], T, PATHS["bridge"], N),
    "out": lambda a: point(a, F4, T, PATHS["linear"], out=a(np.ones(SHAPE, F4))),
    "out and its target": lambda a: point(a, F4, T, PATHS["linear"], "velocity", target_out=a(np.ones(SHAPE, F4))),
    "in place": lambda a: in_place(a(X0.copy()), a(X1)),
    "a path made anew": lambda a: point(a, F4, T, paths.brownian_bridge(0.5)),
}  # fmt: skip


def in_place(x0, x1):
    found = nf.interpolate(x0, x1, T, PATHS["linear"], out=x0)
    assert found is x0
    return found


@pytest.mark.parametrize("of", ["NumPy", "torch"])
@pytest.mark.parametrize("name", POINTS)
def test_points_of_paths(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: POINTS[name](a), "fast_row")


LOSSES = {
    **{f"{name}, {target}": lambda a, p=p, g=target: both(a, "float64", T, p, g)
       for name, p in PATHS.items() for target in targets(p)[1:]},
    **{f"{d}, {r}": lambda a, d=d, r=r: loss(a, d, T, PATHS["bridge"], "velocity", reduction=r)
       for d in DTYPES for r in ("mean", "none")},
    "weights": lambda a: loss(a, F4, T, PATHS["linear"], "velocity", weight=np.array([0.5, 2.0])),
    "a number": lambda a: both(a, F4, 0.3, PATHS["linear"], "velocity", out=a(np.ones(SHAPE, F4))),
    "the last time of a linear path": lambda a: both(a, F4, 1.0, PATHS["linear"], "velocity"),
}  # fmt: skip


@pytest.mark.parametrize("of", ["NumPy", "torch"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_paths(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: LOSSES[name](a), "fast_mse")


A, B = 0.3, np.array([0.3, -2.0])
LEVELS = {
    **{f"{d}, {target}": lambda a, d=d, g=target: nf.noised(a(X0.astype(d)), B, B[::-1].copy(), N, target=g)
       for d in DTYPES for target in (None, "epsilon", "v", "flow", "sample")},
    "numbers": lambda a: nf.noised(a(X0), A, np.float16(0.7), N, target="v"),
    "integers": lambda a: nf.noised(a(X0), 1, 0, N, target="v"),
    "a number and an array": lambda a: nf.noised(a(X0), 1.0, B, N, target="v"),
    "an array and a number": lambda a: nf.noised(a(X0), B, 1.0, N, target="v"),
    "lists": lambda a: nf.noised(a(X0), [0.1, 0.2], [0.3, 0.4], N),
    "arrays": lambda a: nf.noised(a(X0), a(B), a(B.astype(F4)), N),
    "of rows": lambda a: nf.noised(a(X0), np.linspace(0, 1, 32).reshape(2, 16), A, N),
    "one of many axes": lambda a: nf.noised(a(X0), np.array([[[[A]]]]), B, N),
    "noise, an array": lambda a: nf.noised(a(X0), A, B, a(X1)),
    "out and its target": lambda a: nf.noised(a(X0), A, B, N, target="v", out=a(X1.copy()), target_out=a(X1.copy())),
    "one sample": lambda a: nf.noised(a(X0), A, A, N, batched=False),
}  # fmt: skip


@pytest.mark.parametrize("of", ["NumPy", "torch"])
@pytest.mark.parametrize("name", LEVELS)
def test_levels(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: LEVELS[name](a), "fast_row")


def falling(t):
    return 1 - t


def strange(b):
    return paths.Path("strange", falling, b, falling, falling)


def raised(t):
    raise KeyError("of its own")


OTHERS = {
    "an integer of more than 64 bits": lambda a: nf.noised(a(X0), 10**30, 0.5, N),
    **{f"t = {t}": lambda a, t=t: point(a, F4, t, PATHS["bridge"])
       for t in (1.5, -0.1, float("nan"), [0.5, 2.0], [0.5, 0.5, 0.5], 1, [0, 1], "now", None, [0.5, -1e-300])},
    "t of the last axis": lambda a: point(a, F4, np.full(7, 0.5), PATHS["linear"]),
    "t that is no prefix": lambda a: point(a, F4, np.full((2, 1, 7), 0.5), PATHS["linear"]),
    "another target": lambda a: point(a, F4, T, PATHS["linear"], "noise"),
    "a target of noise": lambda a: point(a, F4, T, PATHS["linear"], "score"),
    "no target": lambda a: point(a, F4, T, PATHS["linear"], target_out=a(X0)),
    "a target that is a list": lambda a: point(a, F4, T, PATHS["linear"], ["velocity"]),
    "no path": lambda a: nf.interpolate(a(X0), a(X1), T, "linear"),
    "no noise": lambda a: nf.interpolate(a(X0), a(X1), T, PATHS["bridge"]),
    "another shape": lambda a: nf.interpolate(a(X0), a(X1[:1]), T, PATHS["linear"]),
    "bytes": lambda a: nf.interpolate(a(X0.astype("u1")), a(X1.astype("u1")), T, PATHS["linear"]),
    "an infinite velocity": lambda a: point(a, F4, [0.0, 0.5], PATHS["bridge"], "velocity"),
    "an infinite score": lambda a: point(a, F4, 0.0, PATHS["bridge"], "score"),
    "a loss of an infinite velocity": lambda a: loss(a, F4, [0.0, 0.5], PATHS["bridge"], "velocity"),
    "a loss of an infinite point": lambda a: loss(a, F4, T, strange(lambda t: t / 0), "velocity"),
    "a function of another shape": lambda a: point(a, F4, T, strange(lambda t: t[:1])),
    "a function of no arrays": lambda a: point(a, F4, T, strange(lambda t: 0.5)),
    "a function that raises": lambda a: point(a, F4, T, strange(raised)),
    "too large a number": lambda a: point(a, F4, T, strange(lambda t: t * 1e39)),
    "a reduction": lambda a: loss(a, F4, T, PATHS["linear"], "velocity", reduction="sum"),
    "weights of another shape": lambda a: loss(a, F4, T, PATHS["linear"], "velocity", weight=[1.0, 2.0, 3.0]),
    "alpha that is no number": lambda a: nf.noised(a(X0), float("nan"), A, N),
    "an infinite sigma": lambda a: nf.noised(a(X0), A, [1.0, float("inf")], N),
    "levels of two shapes": lambda a: nf.noised(a(X0), B, np.full((2, 16), A), N),
    "levels of samples in a column": lambda a: nf.noised(a(X0), B[:, None], B[:, None], N),
    "levels of words": lambda a: nf.noised(a(X0), "much", A, N),
    "another target of levels": lambda a: nf.noised(a(X0), A, A, N, target="noise"),
    "levels of bytes": lambda a: nf.noised(X0.astype("u1"), A, A, N),
    "no noise of levels": lambda a: nf.noised(a(X0), A, A, None),
}  # fmt: skip


@pytest.mark.parametrize("of", ["NumPy", "torch"])
@pytest.mark.parametrize("name", OTHERS)
def test_flows_that_are_declined(monkeypatch, of, name):
    a = library(of)
    same_as_checked(monkeypatch, lambda: OTHERS[name](a), None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_functions_of_small_floats(monkeypatch, dtype):
    same_as_checked(monkeypatch, lambda: point(np.asarray, F4, T, strange(lambda t: t.astype(dtype))), None)


def test_kept_times_are_those_of_the_path():
    """More times than are kept, and again."""
    for path in (PATHS["vp"], PATHS["bridge"]):
        times = np.linspace(0.1, 0.9, 100).tolist() * 2
        each = [point(np.asarray, F4, t, path) for t in times]
        assert all(np.array_equal(a, point(np.asarray, F4, [t, t], path)) for a, t in zip(each, times, strict=True))


def test_minus_zero_has_its_own_row(monkeypatch):
    """Its bits may differ from those at 0, which are kept."""
    same_as_checked(monkeypatch, lambda: point(np.asarray, F4, 0.0, PATHS["vp"]), "fast_row")
    same_as_checked(monkeypatch, lambda: point(np.asarray, F4, -0.0, PATHS["vp"]), None)


def test_a_path_that_was_used_is_copied():
    """Seen to fail: rows that are kept were in its pickle."""
    path = paths.brownian_bridge(0.3)
    point(np.asarray, F4, T, path)
    loss(np.asarray, F4, T, path, "velocity")
    assert pickle.loads(pickle.dumps(path)) == path == copy.deepcopy(path)
