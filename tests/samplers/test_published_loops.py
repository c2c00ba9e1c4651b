# SPDX-License-Identifier: Apache-2.0
"""Samplers against loops as their papers and k-diffusion have them, and against integrals."""

import itertools
import math

import numpy as np
import pytest

from exact import run_exact
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

    def denoise(x, sigma):
        return np.cos(x / (1 + sigma)) + 0.1 * sigma

    x = 80 * draws[-1]  # t[0] > S_max: nothing is added before the first call
    expected, row = x, -1
    for i in range(9):
        gamma = min(S_churn / 9, math.sqrt(2) - 1) if S_min <= t[i] <= S_max else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = expected + math.sqrt(t_hat**2 - t[i] ** 2) * S_noise * draws[row]
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        expected = x_hat + (t[i + 1] - t_hat) * d
        row += 1
        if t[i + 1]:
            d2 = (expected - denoise(expected, t[i + 1])) / t[i + 1]
            expected = x_hat + (t[i + 1] - t_hat) * (d + d2) / 2
            row += 1
    rows = iter(draws)
    got = run_exact(sampler.tableau, denoise, x, lambda: next(rows))
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


def answer(x, sigma):
    """Stands for a denoiser, not linear in x."""
    return np.cos(x / (1 + sigma)) + 0.1 * sigma


def k_euler(x, here, there):
    return x + (there - here) * (x - answer(x, here)) / here


def k_heun(x, here, there):
    if there == 0:
        return k_euler(x, here, there)
    guess = k_euler(x, here, there)
    slopes = (x - answer(x, here)) / here + (guess - answer(guess, there)) / there
    return x + (there - here) * slopes / 2


def k_dpm_2(x, here, there):
    if there == 0:
        return k_euler(x, here, there)
    middle = math.exp((math.log(here) + math.log(there)) / 2)
    u = k_euler(x, here, middle)
    return x + (there - here) * (u - answer(u, middle)) / middle


def k_dpmpp_2m(x, sigmas):
    """Computes Lu et al. 2022, algorithm 2, with t = -log sigma; a first-order step if there is nothing to divide
    by."""
    before = None
    for i, (here, there) in enumerate(itertools.pairwise(sigmas)):
        D = guess = answer(x, here)
        length = math.log(here / there) if there else math.inf
        last = math.log(sigmas[i - 1] / here) if i else 0.0
        if there and last:
            r = last / length if length else math.inf
            guess = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * before
        x = there / here * x - math.expm1(-length) * guess
        before = D
    return x


def k_diffusion(name, x, sigmas):
    if name == "dpmpp_2m":
        return k_dpmpp_2m(x, sigmas)
    step = {"euler": k_euler, "heun": k_heun, "dpm_2": k_dpm_2}[name]
    for here, there in itertools.pairwise(sigmas):
        x = step(x, here, there)
    return x


SIGMAS = [*Schedule.karras(9).sigma[::-1].tolist(), 0.0]
GRIDS = {
    "whole": SIGMAS,
    "flipped": SIGMAS[-2::-1],
    "noisy part": SIGMAS[:5],
    "clean part": SIGMAS[4:],
    "repeated": [9.0, 9.0, 4.0, 4.0, 4.0, 2.0, 0.5, 0.5, 0.0],
    "up and down": [0.3, 2.0, 7.0, 2.0, 2.0, 7.0, 0.3, 0.0],
}


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m"])
@pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS)
def test_any_list_of_sigmas_is_k_diffusions_loop(sigmas, name):
    """The formulas are those of the papers, on the same levels. Seen to fail: a refusal of levels that do not fall."""
    options = {"lower_order_final": False} if name == "dpmpp_2m" else {}
    steps, final = np.array(sigmas[:-1]), np.array(sigmas)[-1]
    table = getattr(samplers, name)(Schedule.karras(9), steps, final=final, prediction="sample", **options).tableau
    x = sigmas[0] * np.linspace(-2, 2, 7)
    np.testing.assert_allclose(run_exact(table, answer, x), k_diffusion(name, x, sigmas), rtol=1e-11, atol=1e-11)


def ancestral(here, there, eta):
    """Returns k-diffusion's sigma_down and sigma_up."""
    up = min(there, eta * math.sqrt(there**2 * (here**2 - there**2) / here**2))
    return math.sqrt(there**2 - up**2), up


def k_dpm_2_ancestral(x, here, there, eta, w):
    down, up = ancestral(here, there, eta)
    return k_dpm_2(x, here, down) + up * w(here, there)


def k_dpmpp_2s_ancestral(x, here, there, eta, w):
    """Computes Lu et al. 2022, algorithm 1, with t = -log sigma, r = 1 / 2."""
    down, up = ancestral(here, there, eta)
    if down == 0:
        return k_euler(x, here, 0.0)
    h = math.log(here / down)
    middle = math.exp(-(-math.log(here) + h / 2))
    u = middle / here * x - math.expm1(-h / 2) * answer(x, here)
    return down / here * x - math.expm1(-h) * answer(u, middle) + up * w(here, there)


def k_dpmpp_sde(x, here, there, eta, w, r=0.5):
    """Computes Lu et al. 2022, section 5, of second order, with k-diffusion's steps."""
    if there == 0:
        return k_euler(x, here, 0.0)
    D, middle = answer(x, here), math.exp(math.log(here) + r * math.log(there / here))
    down, up = ancestral(here, middle, eta)
    u = down / here * x - math.expm1(math.log(down / here)) * D + up * w(here, middle)
    down, up = ancestral(here, there, eta)
    mixed = (1 - 1 / (2 * r)) * D + 1 / (2 * r) * answer(u, middle)
    return down / here * x - math.expm1(math.log(down / here)) * mixed + up * w(here, there)


TWO_STAGE_REFERENCES = {
    "dpm_2_ancestral": k_dpm_2_ancestral,
    "dpmpp_2s_ancestral": k_dpmpp_2s_ancestral,
    "dpmpp_sde": k_dpmpp_sde,
}


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("name", TWO_STAGE_REFERENCES)
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

    draws, expected = iter(pieces), x
    for here, there in itertools.pairwise(SIGMAS):
        expected = TWO_STAGE_REFERENCES[name](expected, here, there, eta, w if there else lambda a, b: 0.0)
    got = run_exact(table, answer, x, lambda: next(draws))
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


def k_dpmpp_3m_sde(x, sigmas, eta, z):
    """Computes k-diffusion's steps, with t = -log sigma."""
    Ds, hs = [], []
    for here, there, noise in zip(sigmas[:-1], sigmas[1:], z, strict=True):
        D = answer(x, here)
        if there == 0:
            return D
        h = math.log(here / there)
        a = h * (eta + 1)
        x = math.exp(-a) * x - math.expm1(-a) * D
        phi_2 = math.expm1(-a) / a + 1
        if len(hs) > 1:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d0, d1 = (D - Ds[-1]) / r0, (Ds[-1] - Ds[-2]) / r1
            x = x + phi_2 * (d0 + (d0 - d1) * r0 / (r0 + r1)) - (phi_2 / a - 0.5) * (d0 - d1) / (r0 + r1)
        elif hs:
            x = x + phi_2 * (D - Ds[-1]) / (hs[-1] / h)
        x = x + there * math.sqrt(-math.expm1(-2 * h * eta)) * noise
        Ds.append(D)
        hs.append(h)
    return x


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
    rows = iter(draws)
    got = run_exact(table, answer, x, lambda: next(rows))
    np.testing.assert_allclose(got, k_dpmpp_3m_sde(x, SIGMAS, eta, draws), rtol=1e-11, atol=1e-11)


def k_gradient_estimation(x, sigmas, gamma=2.0):
    """Computes Permenter & Yuan 2023, algorithm 2."""
    before = None
    for here, there in itertools.pairwise(sigmas):
        d = (x - answer(x, here)) / here
        mixed = d if before is None or there == 0 else gamma * d + (1 - gamma) * before
        x, before = x + (there - here) * mixed, d
    return x


@pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS)
def test_gradient_estimation_is_its_algorithm(sigmas):
    if sigmas == GRIDS["repeated"] or sigmas == GRIDS["up and down"]:
        sigmas = sorted(set(sigmas), reverse=True)  # if a level is met twice, the newest slope counts here
    steps = np.array(sigmas[:-1])
    table = samplers.gradient_estimation(Schedule.karras(9), steps, final=sigmas[-1], prediction="sample").tableau
    x = sigmas[0] * np.linspace(-2, 2, 7)
    np.testing.assert_allclose(run_exact(table, answer, x), k_gradient_estimation(x, sigmas), rtol=1e-11, atol=1e-11)


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
