# SPDX-License-Identifier: Apache-2.0
"""Steps and log-densities, compared in float64 with the formulas of the frameworks that train with them.

sd3_sde_with_logprob of Flow-GRPO (sde, and cps without its constants), as verl-omni, NeMo-RL and sglang have it;
flux_step of DanceGRPO; ddim_step_with_logprob of DDPO."""

import math

import numpy as np
import pytest

import noisefuse as nf

SHAPE, SIGMAS = (3, 4, 8, 8), [1.0, 0.87, 0.6, 0.31, 0.08, 0.0]
FLOW, LINEAR = nf.Schedule.flow(1000), nf.Schedule.linear(1000)
N = nf.Noise(5)


def gaussian(x_next, mean, std):
    return -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))


def flow_grpo(x, u, z, i, level):
    """Returns (x', log-density)."""
    here, there = SIGMAS[i], SIGMAS[i + 1]
    dt, below = there - here, SIGMAS[1] if here == 1 else here
    rate = math.sqrt(here / (1 - below)) * level
    mean = x * (1 + rate**2 / (2 * here) * dt) + u * (1 + rate**2 * (1 - here) / (2 * here)) * dt
    std = rate * math.sqrt(-dt)
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


def cps(x, u, z, i, level):
    here, there = SIGMAS[i], SIGMAS[i + 1]
    std = there * math.sin(level * math.pi / 2)
    clean, noise = x - here * u, x + u * (1 - here)
    mean = clean * (1 - there) + noise * math.sqrt(there**2 - std**2)
    return mean + std * z, lambda x_next: -((x_next - mean) ** 2)


def dance(x, u, z, i, eta):
    here, there = SIGMAS[i], SIGMAS[i + 1]
    clean = x - here * u
    score = -(x - clean * (1 - here)) / here**2
    mean = x + (there - here) * u - 0.5 * eta**2 * score * (there - here)
    std = eta * math.sqrt(here - there)
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


def ddpo(x, e, z, i, eta):
    """Returns the frameworks' numbers for the first row of sampler.tableau."""
    times = [*LADDER.timesteps, -1]
    here, there = (LINEAR.alpha[t] ** 2 if t >= 0 else LINEAR.alpha[0] ** 2 for t in times[i : i + 2])
    variance = (1 - there) / (1 - here) * (1 - here / there)
    std = eta * math.sqrt(variance)
    clean = (x - math.sqrt(1 - here) * e) / math.sqrt(here)
    mean = math.sqrt(there) * clean + math.sqrt(1 - there - std**2) * e
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


LADDER = nf.samplers.ddim(LINEAR, 10, eta=0.8)
CASES = {
    "flow_sde": (nf.samplers.flow_sde(FLOW, SIGMAS[:-1], noise_level=0.7), flow_grpo, 0.7, "full"),
    "flow_cps": (nf.samplers.flow_cps(FLOW, SIGMAS[:-1], noise_level=0.7), cps, 0.7, "squared"),
    "dance_sde": (nf.samplers.dance_sde(FLOW, SIGMAS[:-1], eta=0.3), dance, 0.3, "full"),
    "ddim": (LADDER, ddpo, 0.8, "full"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", [0, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_it_is_their_step(name, i, dtype):
    """Seen to fail: the sigma in the place of 1 is the row's own next one from row 1 on; e without 1 - sigma."""
    sampler, formula, level, density = CASES[name]
    x, m, z = (nf.randn(SHAPE, nf.Noise(k), dtype=dtype) for k in (1, 2, 3))
    x_next, found = sampler.step(i, x, m, z, log_prob=True, reduction="mean", density=density)
    expected, log = formula(*(a.astype(np.float64) for a in (x, m, z)), i, level)
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(x_next, expected, rtol=tolerance, atol=tolerance)
    mean = log(x_next.astype(np.float64)).reshape(len(x), -1).mean(axis=1)
    np.testing.assert_allclose(found, mean, rtol=tolerance)


def test_of_a_flow_the_last_step_draws_too():
    table = CASES["flow_sde"][0].tableau
    assert table.rows["out"]["z"][-1] == pytest.approx(0.7 * math.sqrt(0.08 / 0.92) * math.sqrt(0.08))
    assert CASES["flow_cps"][0].tableau.rows["out"]["z"][-1] == 0


def test_outside_of_a_window_it_is_the_flow():
    euler = nf.samplers.flow_euler(FLOW, 6).tableau.unfolded().rows["out"]
    for rule in (nf.samplers.flow_sde, nf.samplers.flow_cps, nf.samplers.dance_sde):
        rows, whole = (rule(FLOW, 6, window=window).tableau.unfolded().rows["out"] for window in ((2, 4), None))
        for symbol in ("x", "m1", "z"):
            np.testing.assert_allclose(rows[symbol][[0, 1, 4, 5]], euler[symbol][[0, 1, 4, 5]], atol=1e-15)
            assert rows[symbol][2:4].tolist() == whole[symbol][2:4].tolist()
