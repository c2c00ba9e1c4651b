# SPDX-License-Identifier: Apache-2.0
"""Interpolants of two arrays: the formulas in float64, derivatives, draws, targets, libraries, errors."""

import pickle

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, using
from noisefuse.paths import Path

P, N = nf.paths, nf.Noise(7)
PATHS = {
    "linear": P.linear(),
    "variance_preserving": P.variance_preserving(),
    "conditional_flow": P.conditional_flow(0.1),
    "stochastic": P.stochastic(),
    "brownian_bridge": P.brownian_bridge(0.5),
    "encoder_decoder": P.encoder_decoder(),
    "i2sb": P.i2sb(0.3),
    "i2sb of constant beta": P.i2sb(0.3, symmetric=False),
}
X0, X1 = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
T = np.array([0.1, 0.3, 0.55, 0.9])
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def halves(dtype):
    return X0.astype(dtype), X1.astype(dtype)


def by_hand(path, t, x0, x1, target):
    """In float64, with the noise that is drawn."""
    t = np.reshape(t, np.shape(t) + (1,) * (x0.ndim - np.ndim(t)))
    z = nf.randn(x0.shape, N, dtype="float64") if path.draws else 0.0
    if target == "score":
        return -z / path.g(t)
    if target == "denoiser":
        return z * np.ones_like(t)
    a, b, g = (path.a, path.b, path.g) if target is None else (path.da, path.db, path.dg)
    return a(t) * x0 + b(t) * x1 + (g(t) * z if path.draws else 0)


def targets(path):
    return ["velocity", "score", "denoiser"] if path.draws else ["velocity"]


# ---- the formulas ------------------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("t", [T, 0.25, np.linspace(0.1, 0.9, 12).reshape(4, 3)], ids=["(B,)", "one", "tokens"])
def test_points_and_targets(path, t):
    """Seen to fail: x1 with the coefficient of x0, and a bridge's g without its root."""
    for target in targets(path):
        x_t, found = nf.interpolate(X0, X1, t, path, N if path.draws else None, target=target)
        np.testing.assert_allclose(x_t, by_hand(path, t, X0, X1, None), rtol=0, atol=2e-15 * 8)
        expected = by_hand(path, t, X0, X1, target)
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-15 * np.abs(expected).max())
    assert bits(nf.interpolate(X0, X1, t, path, N)) == bits(x_t)


@every_path
def test_derivatives(path):
    h, t = 1e-5, np.linspace(0.02, 0.98, 25) + 1e-3
    for f, d in (("a", "da"), ("b", "db"), *([("g", "dg")] if path.draws else [])):
        slope = (getattr(path, f)(t + h) - getattr(path, f)(t - h)) / (2 * h)
        np.testing.assert_allclose(getattr(path, d)(t), slope, rtol=1e-6, atol=1e-7)


@every_path
def test_ends(path):
    ends = np.array([0.0, 1.0])
    assert [path.a(ends).round(12).tolist(), path.b(ends).round(12).tolist()] == [[1, 0], [0, 1]]
    if path.draws and path.name != "conditional_flow":
        assert path.g(ends).round(7).tolist() == [0, 0]


U = 2.0 ** -np.arange(20, 50)  # 1 - u and 1/2 - u are exact


def test_encoder_decoder_is_exact_near_its_ends_and_its_middle():
    """By the first terms of the sines' series. Seen to fail: sin(pi t), whose square at t = 1 was 1.5e-32."""
    path, square = P.encoder_decoder(), (np.pi * U) ** 2
    for t in (U, 1 - U):
        np.testing.assert_allclose(path.g(t), square, rtol=5e-12)
        np.testing.assert_allclose(np.abs(path.dg(t)), 2 * np.pi**2 * U, rtol=2e-11)
    np.testing.assert_allclose(path.a(0.5 - U), square, rtol=5e-12)
    np.testing.assert_allclose(path.b(0.5 + U), square, rtol=5e-12)
    assert path.dg(np.array([0.0, 0.5, 1.0])).tolist() == [0, 0, 0]


def test_i2sb_is_exact_near_its_ends_and_its_middle():
    """Seen to fail: a rate of 0 at t = 1e-17, and the difference of two numbers near 1/2."""
    path = P.i2sb(0.3)
    assert path.da(np.array([1e-17])) == -12 * 1e-17**2
    for t in (U, 1 - U):
        assert np.array_equal(path.db(t), 12 * U**2)
    np.testing.assert_allclose(path.dg(0.5 - U), 18 * np.sqrt(0.1) * U, rtol=1e-5)  # after - before is 6 u
    np.testing.assert_allclose(path.dg(0.5 + U), -18 * np.sqrt(0.1) * U, rtol=1e-5)


def test_i2sb_is_the_papers_formula():
    """Integrals of beta by a sum. Seen to fail: beta without its square."""
    grid = (np.arange(1_000_000) + 0.5) / 1_000_000
    beta = 0.3 * (1 - np.abs(2 * grid - 1)) ** 2
    for t in (0.2, 0.7):
        s, r = beta[grid < t].sum() / 1e6, beta[grid > t].sum() / 1e6
        path, at = P.i2sb(0.3), np.array([t])
        found = [float(function(at)[0]) for function in (path.a, path.b, path.g)]
        np.testing.assert_allclose(found, [r / (s + r), s / (s + r), np.sqrt(s * r / (s + r))], rtol=1e-5)
    t = np.linspace(0, 1, 9)
    assert np.array_equal(P.i2sb(0.25, symmetric=False).g(t), P.brownian_bridge(0.5).g(t))


def test_a_gaussian_end_is_q_sample():
    """The path of z and x0 is rectified flow's: x1 may be noise that is stored, or not."""
    flow, z = nf.Schedule.flow(), nf.randn(X0.shape, N, dtype="float64")
    np.testing.assert_allclose(nf.interpolate(X0, z, T, P.linear()), nf.q_sample(X0, T, flow, N), rtol=0, atol=1e-15)


@every_path
def test_paths_are_values(path):
    """Workers of data loaders get them by pickle. Seen to fail: lambdas."""
    again = pickle.loads(pickle.dumps(path))
    assert again == path
    assert hash(again) == hash(path)
    assert again != P.conditional_flow(0.2)


# ---- draws, dtypes, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_noise_is_that_of_randn(dtype, backend):
    x0, x1 = halves(dtype)
    path = P.brownian_bridge(0.5)
    with using(backend):
        x_t = nf.interpolate(x0, x1, T, path, N)
        assert x_t.dtype == dtype
        wide = "float64" if dtype == "float64" else "float32"
        assert bits(x_t) == bits(nf.interpolate(x0, x1, T, path, nf.randn(x0.shape, N, dtype=wide)))
        alone = [nf.interpolate(x0[b : b + 1], x1[b : b + 1], T[b], path, N.at(sample=b)) for b in range(4)]
        assert bits(np.concatenate(alone)) == bits(x_t)


def test_results_are_written_where_they_are_asked_for():
    x0, x1 = halves(np.float32)
    path = P.conditional_flow(0.1)
    expected = nf.interpolate(x0, x1, T, path, N, target="velocity")
    for out in (np.empty_like(x0), x0.copy(), x1.copy()):
        first = out if np.array_equal(out, x0) else x0
        second = out if np.array_equal(out, x1) else x1
        velocity = np.empty_like(x0)
        made = nf.interpolate(first, second, T, path, N, target="velocity", out=out, target_out=velocity)
        assert made[0] is out
        assert made[1] is velocity
        assert [*map(bits, made)] == [*map(bits, expected)]


def test_other_float_dtypes_of_x1():
    x0, x1 = X0.astype(np.float32), X1.astype(np.float16)
    assert bits(nf.interpolate(x0, x1, T, P.linear())) == bits(nf.interpolate(x0, x1.astype("f4"), T, P.linear()))


def test_a_time_for_all_may_be_a_whole_sample():
    x0, x1 = halves(np.float32)
    whole = nf.interpolate(x0, x1, 0.5, P.brownian_bridge(), N, batched=False)
    assert bits(whole) == bits(nf.interpolate(x0[None], x1[None], 0.5, P.brownian_bridge(), N)[0])


# ---- other libraries ---------------------------------------------------------------------------------------


@every_path
def test_tensors_and_their_gradients(path):
    torch = pytest.importorskip("torch")
    x0, x1 = halves(np.float32)
    for target in (None, "velocity"):
        expected = nf.interpolate(x0, x1, T, path, N, target=target)
        a, b = (torch.from_numpy(x).requires_grad_() for x in (x0, x1))
        found = nf.interpolate(a, b, torch.from_numpy(T), path, N, target=target)
        found, expected = (r if target else (r,) for r in (found, expected))
        assert [bits(one.detach().numpy()) for one in found] == [*map(bits, expected)]
        found[0].sum().backward()
        for x, f in ((a, path.a), (b, path.b)):
            np.testing.assert_allclose(x.grad[:, 0, 0].numpy(), f(T), rtol=1e-6, atol=1e-7)


# ---- errors ------------------------------------------------------------------------------------------------

BAD = [
    (lambda x: nf.interpolate(x, x, T, "linear"), TypeError, "path: expected one of noisefuse.paths, got str"),
    (
        lambda x: nf.interpolate(x, x, T, P.stochastic()),
        TypeError,
        "noise: expected a Noise, which the path stochastic",
    ),
    (lambda x: nf.interpolate(x, x, 1, P.linear()), TypeError, "t: expected floats from 0 to 1, got int64"),
    (lambda x: nf.interpolate(x, x, 1.5, P.linear()), ValueError, r"t: expected times from 0 to 1, got 1\.5"),
    (lambda x: nf.interpolate(x, x, [0.1, np.nan, 0.2, 0.3], P.linear()), ValueError, "times from 0 to 1, got nan"),
    (lambda x: nf.interpolate(x, x, [0.1, 0.2], P.linear()), ValueError, "t: expected a scalar or a prefix of"),
    (lambda x: nf.interpolate(x, x[:2], T, P.linear()), ValueError, r"x1: expected shape \(4, 3, 5\), got \(2, 3, 5\)"),
    (lambda x: nf.interpolate(x.astype(int), x, T, P.linear()), TypeError, "x0: dtype int64 is not supported"),
    (lambda x: nf.interpolate(x, x.astype(int), T, P.linear()), TypeError, "x1: dtype int64 is not supported"),
    (
        lambda x: nf.interpolate(x, x, T, P.linear(), target="flow"),
        ValueError,
        "target = 'flow': expected 'velocity', 'score' or 'denoiser'",
    ),
    (lambda x: nf.interpolate(x, x, T, P.linear(), target="score"), ValueError, "the path linear has no noise"),
    (lambda x: nf.interpolate(x, x, T, P.linear(), target_out=x), ValueError, "target_out: given without target="),
    (
        lambda x: nf.interpolate(x, x, 0.0, P.brownian_bridge(), N, target="velocity"),
        ValueError,
        r"dg of brownian_bridge is inf at t = 0\.0: expected a finite number of float32's range; leave that time out",
    ),
    (
        lambda x: nf.interpolate(x, x, 1.0, P.brownian_bridge(), N, target="score"),
        ValueError,
        r"the score, -z / g, is -inf at t = 1\.0",
    ),
    (
        lambda x: nf.interpolate(x, x, 1.0, P.encoder_decoder(), N, target="score"),
        ValueError,
        r"the score, -z / g, is -inf at t = 1\.0",
    ),
    (
        lambda x: nf.interpolate(x, x, 1e-310, P.brownian_bridge(), N, target="velocity"),
        ValueError,
        r"dg of brownian_bridge is 5\.0+7e\+154 at t = 1e-310: expected a finite number of float32's range; leave",
    ),
    (lambda x: P.conditional_flow(0), ValueError, "sigma = 0: expected a finite number above 0"),
    (lambda x: P.brownian_bridge(-1), ValueError, "sigma = -1: expected a finite number above 0"),
    (lambda x: P.i2sb(np.inf), ValueError, "beta_max = inf: expected a finite number above 0"),
    (lambda x: Path("x", 1, 2, 3, 4), TypeError, "a: expected a function of t, got int"),
    (lambda x: Path("x", *[np.sin] * 4, np.sin), TypeError, "g, dg: expected both of them, or neither"),
    (
        lambda x: nf.interpolate(x, x, T, Path("x", lambda t: 1.0, *[np.sin] * 3)),
        ValueError,
        r"a: expected a function that returns float64 of shape \(4,\), as t has, got float64 \(\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors_come_before_anything_is_written(call, error, message):
    x = X0.astype(np.float32)
    before = x.copy()
    with pytest.raises(error, match=message):
        call(x)
    assert np.array_equal(x, before)


def test_a_path_of_ones_own():
    path = Path("square", lambda t: 1 - t**2, lambda t: t**2, lambda t: -2 * t, lambda t: 2 * t)
    np.testing.assert_allclose(nf.interpolate(X0, X1, T, path), by_hand(path, T, X0, X1, None), atol=1e-15)
    assert repr(path) == "Path(square)"
    assert repr(P.stochastic()) == "Path(stochastic, with noise)"
    assert pickle.loads(pickle.dumps(P.linear())) == P.linear()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, o: nf.interpolate(x, o, 0.5, P.linear()), TypeError, "x1: expected an array of torch, as x0 is"),
        (
            lambda x, o: nf.interpolate(x, x[:2], 0.5, P.linear()),
            ValueError,
            r"x1: expected shape \(4, 3\), got \(2, 3",
        ),
        (lambda x, o: nf.interpolate(x, x.byte(), 0.5, P.linear()), TypeError, "x1: dtype uint8 is not supported"),
        (lambda x, o: nf.interpolate(x.byte(), x, 0.5, P.linear()), TypeError, "x0: dtype uint8 is not supported"),
    ],
)
def test_errors_of_tensors_have_the_arguments_names(call, error, message):
    """Seen to fail: the tensors were named x and model_output."""
    torch = pytest.importorskip("torch")
    with pytest.raises(error, match=message):
        call(torch.zeros(4, 3), np.zeros((4, 3), np.float32))
