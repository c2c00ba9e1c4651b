# SPDX-License-Identifier: Apache-2.0
"""Log-densities of JAX's arrays: NumPy's bits in eager code and in programs, gradients of the formula.

Seen to fail: a traced row's constant that is the first row's; a factor that is left out of the mean; the derivative
without x's part of the mean; float64 that is rounded before the factor.
"""

from functools import partial

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits
from generated import normals

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

FLOW = nf.samplers.flow_sde(nf.Schedule.flow(1000), 10)
SAMPLERS = {
    "flow_sde": FLOW,
    "dance_sde": nf.samplers.dance_sde(nf.Schedule.flow(1000), 10),
    "flow_cps": nf.samplers.flow_cps(nf.Schedule.flow(1000), 10),
    "ddim": nf.samplers.ddim(nf.Schedule.linear(1000), 10, eta=0.5),
}
SHAPE, N = (3, 5, 7, 29), nf.Noise(7, sample=3)
X, M, NEXT = (normals(SHAPE, np.float32, k) for k in range(3))


def equal(found, expected):
    """Without 64 bits the density is rounded once."""
    assert isinstance(found, jax.Array)
    return np.array_equal(bits(np.asarray(found)), bits(expected.astype(found.dtype)))


def check(sampler, i, x, m, law):
    expected = sampler.step(i, x, m, N, log_prob=True, **law)
    for run in (lambda f: f, jax.jit):
        made = run(lambda x, m: sampler.step(i, x, m, N, log_prob=True, **law))(jnp.asarray(x), jnp.asarray(m))
        assert all(map(equal, made, expected))
        found = run(lambda *a: sampler.log_prob(i, *a, **law))(*map(jnp.asarray, (x, m, expected[0])))
        assert equal(found, expected[1])
    return found


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_of_arrays(name, dtype):
    x, m = (np.asarray(jnp.asarray(a, dtype)) for a in (X, M))
    for law in ({}, {"reduction": "mean", "density": "no_constants"}, {"density": "squared"}):
        assert check(SAMPLERS[name], 4, x, m, law).dtype == np.float32


def test_the_bits_of_doubles(x64):
    for x, m in ((X, M), (X.astype(np.float64), M.astype(np.float64))):
        assert check(FLOW, 3, x, m, {}).dtype == np.float64


def test_rows():
    """The rows are traced, one for each sample, and in a scan."""
    run = jax.jit(lambda i: FLOW.log_prob(i, *ARRAYS))
    for i in (0, 7, np.array([4, 0, 8])):
        expected = FLOW.log_prob(i, X, M, NEXT)
        assert equal(run(i), expected)
        assert equal(FLOW.log_prob(i, *ARRAYS), expected)
    scanned = jax.lax.scan(lambda _, i: (0, FLOW.step(i, *ARRAYS[:2], N, log_prob=True)), 0, jnp.arange(9))[1]
    for i in range(9):
        expected = FLOW.step(i, X, M, N, log_prob=True)
        assert all(equal(a[i], b) for a, b in zip(scanned, expected, strict=True))


ARRAYS = [jnp.asarray(a) for a in (X, M, NEXT)]


def test_runs_guidance_vmap_and_divergences():
    run = lambda x: FLOW.sample(lambda x, t: 0.1 * x, x, N, log_probs=True)  # noqa: E731
    found, expected = jax.jit(run)(X), run(X)
    assert all(map(equal, jax.tree.leaves(found), jax.tree.leaves(expected)))
    assert equal(jax.jit(partial(FLOW.kl, 4))(X, M), FLOW.kl(4, X, M))
    assert equal(FLOW.kl(np.array([1, 2, 5]), *ARRAYS[:2]), FLOW.kl(np.array([1, 2, 5]), X, M))
    guided = lambda x, m, c, y: FLOW.log_prob(4, x, (m, c), y, guidance_scale=2.5)  # noqa: E731
    assert equal(jax.jit(guided)(X, M, X, NEXT), guided(X, M, X, NEXT))
    pairs = [np.stack([a, b]) for a, b in ((X, M), (M, X), (NEXT, NEXT))]
    many = jax.vmap(FLOW.log_prob, (0, 0, 0, 0))(np.array([3, 8]), *pairs)
    one = jax.vmap(lambda m: FLOW.log_prob(4, ARRAYS[0], m, ARRAYS[2]))(pairs[0])
    for n, i in enumerate((3, 8)):
        assert equal(many[n], FLOW.log_prob(i, *(a[n] for a in pairs)))
        assert equal(one[n], FLOW.log_prob(4, X, pairs[0][n], NEXT))


def naive(i, x, m, x_next, reduction="sum"):
    """Computes it as training frameworks do."""
    row = FLOW.tableau.unfolded().rows["out"][np.asarray(i)]
    columns = {name: jnp.reshape(row[name], (-1, 1, 1, 1)) for name in ("x", "m1", "z")}
    mean = columns["x"] * x + columns["m1"] * m
    each = -((x_next - mean) ** 2) / (2 * columns["z"] ** 2) - jnp.log(columns["z"]) - 0.5 * jnp.log(2 * jnp.pi)
    return getattr(each.reshape(len(x), -1), reduction)(1)


@pytest.mark.parametrize(("reduction", "i"), [("sum", 4), ("mean", np.array([4, 1, 7]))])
def test_gradients_are_those_of_the_formula(reduction, i, x64):
    arrays = tuple(jnp.asarray(a, np.float64) for a in (X, M, NEXT))
    weights = np.array([2.0, -3.0, 0.5])
    ours = lambda *a: (FLOW.log_prob(i, *a, reduction=reduction) * weights).sum()  # noqa: E731
    theirs = lambda *a: (naive(i, *a, reduction) * weights).sum()  # noqa: E731
    changes = tuple(normals(SHAPE, np.float64, 9 + k) for k in range(3))
    for a, b in zip(*(jax.jit(jax.grad(f, (0, 1, 2)))(*arrays) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    for a, b in zip(*(jax.jit(partial(jax.jvp, f))(arrays, changes) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_gradients_of_traced_rows():
    gradient = jax.jit(jax.grad(lambda m, i: FLOW.log_prob(i, ARRAYS[0], m, ARRAYS[2]).sum()))
    for i in (1, 6):
        expected = nf.density.log_prob_grad(FLOW.tableau, i, X, M, NEXT)
        np.testing.assert_allclose(gradient(ARRAYS[1], i), expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_floats_and_of_divergences():
    found = jax.jit(jax.vmap(jax.grad(lambda m, x: FLOW.log_prob(4, x, m, ARRAYS[2]).sum())))(X[None], M[None])[0]
    np.testing.assert_allclose(found, nf.density.log_prob_grad(FLOW.tableau, 4, M, X, NEXT), rtol=1e-5, atol=1e-6)
    given = FLOW.tableau, np.array([1, 4, 2])
    found = nf.density.log_prob_grad(*given, *ARRAYS, wrt="x", upstream=jnp.array([1.0, 2.0, 3.0]))
    expected = nf.density.log_prob_grad(*given, X, M, NEXT, wrt="x", upstream=[1.0, 2.0, 3.0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    found = nf.density.kl_grad(FLOW.tableau, 4, *ARRAYS[:2], upstream=2.0)
    np.testing.assert_allclose(found, nf.density.kl_grad(FLOW.tableau, 4, X, M, upstream=2.0), rtol=1e-5, atol=1e-6)
    ratio = jax.grad(lambda x: FLOW.step(4, x, ARRAYS[1], N, log_prob=True)[0].sum())(ARRAYS[0])
    assert not ratio.any()  # x' is a sample


def test_a_state_and_a_backend_that_is_called_back():
    sampler = nf.samplers.dpmpp_2m_sde(nf.Schedule.linear(1000), 6)
    states = sampler.state(X), sampler.state(ARRAYS[0])
    for i in range(2):
        expected = sampler.step(i, X, M, N, states[0], log_prob=True)
        with nf.use_backend("reference"):
            assert all(map(equal, sampler.step(i, *ARRAYS[:2], N, states[1], log_prob=True), expected))


def test_what_is_wrong_is_said():
    for call, kind, message in (
        (lambda x: nf.samplers.ddpm(nf.Schedule.linear(9), 3, clip=1.0).log_prob(1, x, x, x), ValueError, "bounds"),
        (lambda x: nf.samplers.ddim(nf.Schedule.linear(9), 3).log_prob(1, x, x, x), ValueError, "draws no noise"),
        (lambda x: FLOW.log_prob(10, x, x, x), IndexError, "out of range"),
        (lambda x: FLOW.log_prob(4, x, x, x[1:]), ValueError, "x_next: expected shape"),
        (lambda x: FLOW.log_prob(4, x, x, x, reduction="max"), ValueError, "reduction = 'max'"),
        (lambda x: FLOW.log_prob(4, x, x, x, partial=True), NotImplementedError, "partial"),
        (lambda x: nf.density.log_prob_grad(FLOW.tableau, 4, x, x, x, wrt="m2"), ValueError, "wrt = 'm2'"),
        (lambda x: nf.density.log_prob_grad(FLOW.tableau, 4, x, x, x, upstream=jnp.ones(2)), ValueError, "upstream"),
    ):
        for run in (lambda f: f, jax.jit):
            with pytest.raises(kind, match=message):
                run(call)(ARRAYS[0])
    window = nf.samplers.flow_sde(nf.Schedule.flow(1000), 10, window=(2, 4))  # a traced row that draws nothing
    found = jax.jit(lambda i: window.log_prob(i, *ARRAYS))
    assert np.isnan(found(0)).all()
    assert equal(found(3), window.log_prob(3, X, M, NEXT))


def test_no_samples_and_no_elements():
    for shape in ((0, 4), (2, 0)):
        x = np.zeros(shape, np.float32)
        assert equal(jax.jit(partial(FLOW.log_prob, 4))(x, x, x), FLOW.log_prob(4, x, x, x))
