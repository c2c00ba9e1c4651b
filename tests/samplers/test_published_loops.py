# SPDX-License-Identifier: Apache-2.0
"""Samplers against loops as their papers and k-diffusion have them, and against integrals."""

import itertools
import math

import numpy as np
import pytest

import host_loops as loops
from exact import run_exact
from host_loops import Host, denoiser
from noisefuse import samplers
from noisefuse.samplers.integrals import integral_weights
from noisefuse.schedule import Schedule
from noisefuse.tableau import Tableau
from sampler_cases import VP


def test_edm_is_algorithm_2():
    """Computes Karras et al. 2022, algorithm 2, as printed, on the same noise; S_min and S_max are levels within.

    Seen to fail: an S_max that leaves out its own level.
    """
    t = np.append(Schedule.karras(9).sigma[::-1], 0)
    S_churn, S_min, S_max, S_noise = 4.0, t[6], t[1], 1.003
    sampler = samplers.edm(
        Schedule.karras(9), 9, prediction="sample", S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise
    )
    draws = np.random.default_rng(0).normal(size=(len(sampler), 5))

    x = 80 * draws[-1]  # t[0] > S_max: nothing is added before the first call
    expected, row = x, -1
    for i in range(9):
        gamma = min(S_churn / 9, math.sqrt(2) - 1) if S_min <= t[i] <= S_max else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = expected + math.sqrt(t_hat**2 - t[i] ** 2) * S_noise * draws[row]
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        expected = x_hat + (t[i + 1] - t_hat) * d
        row += 1
        if t[i + 1]:
            d2 = (expected - denoiser(expected, t[i + 1])) / t[i + 1]
            expected = x_hat + (t[i + 1] - t_hat) * (d + d2) / 2
            row += 1
    rows = iter(draws)
    got = run_exact(sampler.tableau, denoiser, x, lambda: next(rows))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    churned = samplers.edm(Schedule.karras(9), 9, S_churn=4.0, final="sigma_min").tableau
    assert churned.start == pytest.approx(80 * math.sqrt(2))  # gamma is at its bound
    assert churned.rows[-1]["out"]["z"] == 0  # no model is called after the last step


def test_repaint_walks_as_published():
    """Lugmayr et al. 2022, figure 9 and appendix B: levels fall to jumps of a length, so many times; see diffusers."""
    n, length, times = 12, 3, 3
    sampler = samplers.repaint(VP, n, jump_length=length, jump_n_sample=times)
    visited, t, left = [], n, dict.fromkeys(range(1, n - length + 1, length), times - 1)
    while t:
        visited.append(t)
        t -= 1
        if left.get(t, 0):
            left[t] -= 1
            t += length
    step = 1000 // n
    assert sampler.timesteps.tolist() == [(at - 1) * step for at in visited]
    assert len(sampler) == n + length * (times - 1) * len(left)


def host(draw=None):
    return Host(lambda x, sigma: (denoiser(x, sigma), None), draw)


SIGMAS = [*Schedule.karras(9).sigma[::-1].tolist(), 0.0]
GRIDS = {
    "whole": SIGMAS,
    "flipped": SIGMAS[-2::-1],
    "noisy part": SIGMAS[:5],
    "clean part": SIGMAS[4:],
    "repeated": [9.0, 9.0, 4.0, 4.0, 4.0, 2.0, 0.5, 0.5, 0.0],
    "up and down": [0.3, 2.0, 7.0, 2.0, 2.0, 7.0, 0.3, 0.0],
}


STILL = {name: loops.churned(getattr(loops, name)) for name in ("euler", "heun", "dpm_2")} | {
    "dpmpp_2m": loops.dpmpp_2m
}


@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS)
def test_any_list_of_sigmas_is_k_diffusions_loop(sigmas, name):
    """The formulas are those of the papers, on the same levels. Seen to fail: a refusal of levels that do not fall."""
    options = {"lower_order_final": False} if name == "dpmpp_2m" else {}
    steps, final = np.array(sigmas[:-1]), np.array(sigmas)[-1]
    table = getattr(samplers, name)(Schedule.karras(9), steps, final=final, prediction="sample", **options).tableau
    x = sigmas[0] * np.linspace(-2, 2, 7)
    np.testing.assert_allclose(run_exact(table, denoiser, x), STILL[name](x, sigmas, host()), rtol=1e-11, atol=1e-11)


TWO_STAGES = {
    "dpm_2_ancestral": loops.ancestral(loops.dpm_2),
    "dpmpp_2s_ancestral": loops.ancestral(loops.dpmpp_2s),
    "dpmpp_sde": loops.dpmpp_sde,
}


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages_with_noise_are_k_diffusions_loop(name, eta):
    """All are on one Brownian path. A row of dpmpp_sde draws a piece of it, the others draw a step's increment."""
    table = getattr(samplers, name)(Schedule.karras(9), np.array(SIGMAS[:-1]), prediction="sample", eta=eta).tableau
    rng, x = np.random.default_rng(0), 80 * np.linspace(-2, 2, 7)
    pieces = rng.normal(size=(len(table), 7))
    at = dict(zip(table.sigma, range(len(table)), strict=True))

    def w(here, there):
        """Returns the path from here to there over the root of its length; the levels between are those of the rows."""
        if name != "dpmpp_sde":
            return pieces[at[here] + 1]
        levels = [level for level in table.sigma if there - 1e-9 <= level <= here]
        levels = [*levels, there] if levels[-1] > there + 1e-9 else levels
        path = sum(math.sqrt(a - b) * pieces[at[a]] for a, b in itertools.pairwise(levels))
        return path / math.sqrt(here - there)

    draws, expected = iter(pieces), TWO_STAGES[name](x, SIGMAS, host(w), eta)
    got = run_exact(table, denoiser, x, lambda: next(draws))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_dpmpp_sde_has_the_variance_of_data():
    """Data is N(0, 1/4), with 20 steps: the deviation is 0.49 if the two draws share a piece, and 0.44 if not."""
    schedule = Schedule.karras(20, 0.02, 10.0)

    def deviation(table):
        one, *z = np.eye(1 + len(table))
        draws = iter(z)
        weights = run_exact(
            table, lambda x, s: 0.25 / (0.25 + s**2) * x, math.hypot(0.5, 10.0) * one, lambda: next(draws)
        )
        return np.linalg.norm(weights)

    table = samplers.dpmpp_sde(schedule, schedule.sigma[::-1], prediction="sample").tableau
    assert deviation(table) == pytest.approx(0.493, abs=0.001)
    rows = table.rows.copy()
    rows["aux1"]["z"][:-1:2] = 0
    rows["out"]["z"][1::2] = np.hypot(table.rows["out"]["z"][1::2], table.rows["aux1"]["z"][:-1:2])
    independent = Tableau(rows, table.timesteps, push=table.push)
    assert deviation(independent) == pytest.approx(0.436, abs=0.001)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_dpmpp_2m_sde_without_noise_is_dpmpp_2m(solver, zero_snr):
    """It goes from pure noise and to clean data, both at an infinite log-SNR, and up."""
    schedule = VP.rescale_zero_terminal_snr() if zero_snr else VP
    options = {"steps": [999, 700, 700, 300, 400, 20], "final": "zero", "prediction": "v", "solver": solver}
    found = samplers.dpmpp_2m_sde(schedule, eta=0.0, **options).tableau
    assert np.array_equal(found.rows, samplers.dpmpp_2m(schedule, **options).tableau.rows)


@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_dpmpp_3m_sde_is_k_diffusions_loop(eta):
    table = samplers.dpmpp_3m_sde(Schedule.karras(9), np.array(SIGMAS[:-1]), prediction="sample", eta=eta).tableau
    x, draws = 80 * np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(9, 7))
    rows, own = iter(draws), iter(draws)
    got = run_exact(table, denoiser, x, lambda: next(rows))
    expected = loops.multistep_sde(True, "heun")(x, SIGMAS, host(lambda sigma, to: next(own)), eta)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS)
def test_gradient_estimation_is_its_algorithm(sigmas):
    if sigmas == GRIDS["repeated"] or sigmas == GRIDS["up and down"]:
        sigmas = sorted(set(sigmas), reverse=True)  # if a level is met twice, the newest slope counts here
    steps = np.array(sigmas[:-1])
    table = samplers.gradient_estimation(Schedule.karras(9), steps, final=sigmas[-1], prediction="sample").tableau
    x = sigmas[0] * np.linspace(-2, 2, 7)
    expected = loops.multistep(loops.gradient_estimation)(x, sigmas, host())
    np.testing.assert_allclose(run_exact(table, denoiser, x), expected, rtol=1e-11, atol=1e-11)


def test_weights_of_equal_steps_are_adams_and_bashforths():
    """It holds in lms, and with gamma = 3/2 in gradient_estimation. Seen to fail: nodes in another order."""
    schedule, steps = Schedule.karras(9), np.linspace(9, 2, 8)
    options = {"final": 1.0, "prediction": "sample"}
    for order in (1, 2, 3, 4):
        ours, equal = (rule(schedule, steps, order=order, **options).tableau for rule in (samplers.lms, samplers.ipndm))
        np.testing.assert_allclose(ours.numbers, equal.numbers, rtol=1e-12, atol=1e-12)
    two = samplers.gradient_estimation(schedule, steps, gamma=1.5, **options).tableau
    equal = samplers.ipndm(schedule, steps, order=2, **options).tableau
    np.testing.assert_allclose(two.numbers, equal.numbers, rtol=1e-12, atol=1e-12)


def test_integral_weights():
    """The weights are compared with integrals of polynomials, and for a steep e^s with a closed form."""
    nodes = np.array([[1.0, 1.3, 0.2, -0.5]])
    for degree in range(4):
        got = np.sum(integral_weights(nodes, np.array([2.0])) * nodes**degree)
        assert got == pytest.approx((2.0 ** (degree + 1) - 1) / (degree + 1), rel=1e-13)
    for c in (1e-3, 1.0, 60.0):
        (w,) = integral_weights(np.array([[0.0, -1.0]]), np.ones(1), lambda s, c=c: np.exp(c * (s - 1)))
        zeroth, first = -math.expm1(-c) / c, (1 + math.expm1(-c) / c) / c
        np.testing.assert_allclose([sum(w), -w[1]], [zeroth, first], rtol=0, atol=1e-13 if c < 1 else 1e-14)
