# SPDX-License-Identifier: Apache-2.0
"""Samplers of interpolants: Gaussian data at both ends, for which velocity, denoiser and all marginals are known.

Seen to fail: the score's sign turned for falling times; noise of h in place of its root; a bridge that draws the noise
of its old time; Heun's second slope at the first time.
"""

import numpy as np
import pytest

import noisefuse as nf
from exact import apply_exact
from noisefuse.samplers import interpolants

MEAN, STD = 0.8, 0.4  # of x1; x0 is standard normal


def moments(path, t):
    """Returns mean and variance of x_t, and (slope, E at the mean) of velocity and denoiser given x_t."""
    t = np.atleast_1d(np.float64(t))
    found = {name: values[0] for name, values in path.columns(t, "velocity").items()}
    a, b, g = found["out.x"], found["out.m1"], found.get("out.z", 0.0)
    da, db, dg = found["aux1.x"], found["aux1.m1"], found.get("aux1.z", 0.0)
    variance = a * a + b * b * STD**2 + g * g
    velocity = (a * da + b * db * STD**2 + g * dg) / variance
    return b * MEAN, variance, (velocity, db * MEAN), (g / variance, 0.0)


def run(sampler, path, pair=False):
    """Returns the coefficients of the last x on (1, x, z_0, ..)."""
    table = sampler.tableau
    one, x, *z = np.eye(2 + len(table))
    past = []
    for i, t in enumerate(table.timesteps):
        mean, _, u, e = moments(path, t)
        m1, m2 = ((x - mean * one) * slope + offset * one for slope, offset in (u, e))
        x, *aux = apply_exact(table.rows[i], x, m1, m2 if pair else 0.0, past, z[i])
        past = [*aux[: table.push[i]], *past][:4]
    return x


def order(errors):
    return np.log2(np.array(errors[:-1]) / errors[1:])


PATHS = {
    "linear": nf.paths.linear(),
    "trig": nf.paths.variance_preserving(),
    "flow": nf.paths.conditional_flow(0.3),
    "bridge": nf.paths.brownian_bridge(0.7),
    "decoder": nf.paths.encoder_decoder(),
    "i2sb": nf.paths.i2sb(0.5),
}


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize(("heun", "expected"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("name", PATHS)
def test_the_flow_between_gaussians(name, heun, expected, falling):
    """It takes a quantile at one end to that at the other."""
    path, errors = PATHS[name], []
    for n in (128, 256, 512):
        times = np.linspace(0.1, 0.45, n + 1)[:: -1 if falling else 1]
        sampler = interpolants.ode(times, heun=heun)
        assert len(sampler) == n * (1 + heun)
        constant, slope, *noise = run(sampler, path)
        (m_0, v_0, *_), (m_1, v_1, *_) = moments(path, times[0]), moments(path, times[-1])
        errors.append(abs(constant + slope * (m_0 + 1.3 * v_0**0.5) - (m_1 + 1.3 * v_1**0.5)))
        assert not np.any(noise)
    assert order(errors) == pytest.approx([expected] * 2, abs=0.15)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("epsilon", [0.5, lambda t: 0.2 + t], ids=["a number", "a function"])
@pytest.mark.parametrize("name", ["flow", "bridge", "i2sb"])
def test_the_sde_has_the_marginals(name, epsilon, falling):
    path, errors = PATHS[name], []
    for n in (128, 256, 512):
        times = np.linspace(0.2, 0.8, n + 1)[:: -1 if falling else 1]
        constant, slope, *noise = run(interpolants.sde(path, times, epsilon=epsilon), path, pair=True)
        (m_0, v_0, *_), (m_1, v_1, *_) = moments(path, times[0]), moments(path, times[-1])
        errors.append(max(abs(constant + slope * m_0 - m_1), abs(slope**2 * v_0 + np.dot(noise, noise) - v_1)))
        assert np.all(noise)
    assert order(errors) == pytest.approx([1, 1], abs=0.25)
    assert errors[-1] < 0.01


def test_a_run_of_the_sde_takes_the_pair():
    """40,000 numbers from x0 to x1, with the exact network; and the step without noise where g is 0."""
    path = nf.paths.conditional_flow(0.5)

    def network(x, t):
        mean, _, u, e = moments(path, t)
        return tuple(slope * (x - mean) + offset for slope, offset in (e, u))

    start = np.random.default_rng(0).normal(size=(4, 10000)) * np.hypot(1, 0.5)
    sampler = interpolants.sde(path, steps=200, epsilon=0.3)
    found = sampler.sample(network, start, nf.Noise(3), guidance_scale=1.0)
    assert found.mean() == pytest.approx(MEAN, abs=0.02)
    assert found.std() == pytest.approx(np.hypot(STD, 0.5), abs=0.02)
    tied = interpolants.sde(nf.paths.brownian_bridge(), [0.0, 0.5, 1.0], epsilon=0.3)
    assert tied.tableau.as_rows.draws.tolist() == [False, True]


@pytest.mark.parametrize("path", [nf.paths.brownian_bridge(0.7), nf.paths.stochastic(0.3), nf.paths.i2sb(0.5)], ids=str)
def test_a_bridge_has_the_paths_law_at_all_times(path):
    """For one known x0, x_t is a x0 + b x1 + g z exactly, in any number of steps."""
    x0, x1 = -0.6, 1.1
    times = np.array([1.0, 0.9, 0.5, 0.35, 0.02, 0.0])
    table = interpolants.bridge(path, times).tableau
    one, *z = np.eye(1 + len(table))
    x = x1 * one
    for row, end, own in zip(table.rows, times[1:], z, strict=True):
        x, *_ = apply_exact(row, x, x0 * one, z=own)
        columns = {name: float(values[0]) for name, values in path.columns(np.array([end]), None).items()}
        assert x[0] == pytest.approx(columns["out.x"] * x0 + columns["out.m1"] * x1, abs=1e-12)
        assert np.linalg.norm(x[1:]) == pytest.approx(columns["out.z"], abs=1e-12)
    assert interpolants.bridge(path, 4).timesteps.tolist() == [1.0, 0.75, 0.5, 0.25]


def test_a_bridge_restores_an_image():
    """Also tensors would do; a sample of a batch is what it is alone."""
    sampler, x1 = interpolants.bridge(nf.paths.i2sb(0.3), 5), np.ones((3, 4), np.float32)
    noises = [nf.Noise(seed) for seed in (1, 2, 3)]
    found = sampler.sample(lambda x, t: 0.5 * x, x1, noises)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(sampler.sample(lambda x, t: 0.5 * x, x1[1:2], nf.Noise(2)), found[1:2])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: interpolants.ode(0), ValueError, "steps = 0: expected an integer of at least 1"),
        (lambda: interpolants.ode([0.5]), ValueError, "expected a number, or two times or more that rise, or fall"),
        (lambda: interpolants.ode([0.1, 0.5, 0.3]), ValueError, "two times or more that rise, or fall"),
        (lambda: interpolants.ode([0.1, 1.5]), ValueError, r"expected times from 0 to 1, got \[0.1, 1.5\]"),
        (lambda: interpolants.sde(nf.paths.linear()), ValueError, "sde: the path linear has no noise; take ode"),
        (
            lambda: interpolants.sde(nf.Schedule.flow()),
            TypeError,
            "path: expected one of noisefuse.paths, got Schedule",
        ),
        (
            lambda: interpolants.sde(PATHS["flow"], 3, epsilon=-1.0),
            ValueError,
            "epsilon: expected finite numbers of at",
        ),
        (lambda: interpolants.sde(PATHS["flow"], 3, epsilon=lambda t: 0.3), ValueError, "one for each time"),
        (lambda: interpolants.bridge(nf.paths.linear()), ValueError, "bridge: the path linear has no noise"),
        (lambda: interpolants.bridge(PATHS["decoder"]), ValueError, "bridge: encoder_decoder is no Brownian bridge"),
        (lambda: interpolants.bridge(PATHS["flow"]), ValueError, "bridge: conditional_flow is no Brownian bridge"),
        (lambda: interpolants.bridge(PATHS["i2sb"], [0.1, 0.9]), ValueError, "bridge: expected times that fall"),
    ],
)
def test_what_is_wrong_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()
