# SPDX-License-Identifier: Apache-2.0
"""Samplers against exact solutions: the flow and the marginals of a Gaussian.

For data N(MEAN, STD^2) the score, the flow and every marginal are known and all maps are affine. A table of
rows then carries (1, x, z_0, z_1, ..) as an affine map: no sampling error, so that an order of convergence is
seen cleanly and a wrong coefficient cannot hide.
"""

import importlib
import inspect
import itertools
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest

import noisefuse as nf
from conftest import one_in, using
from exact import apply_exact, run_exact
from noisefuse import samplers, views
from noisefuse.noise import Noise
from noisefuse.sampler import Sampler
from noisefuse.samplers.integrals import integral_weights
from noisefuse.samplers.plan import Node, split
from noisefuse.sampling.rows import _quantiles
from noisefuse.schedule import Schedule
from noisefuse.tableau import D, Row, Tableau, m1, past, x

MEAN, STD = 0.3, 0.6
FAMILIES = {
    "preserving": lambda s: (1 / np.hypot(1, s), s / np.hypot(1, s)),
    "exploding": lambda s: (np.ones_like(s), s),
    "flow": lambda s: (1 - s, s),
}
FIRST = {"preserving": 5.0, "exploding": 10.0, "flow": 0.9}
TWO_CALLS = ("dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")
EXPLODING_FRAME = (  # these work on x / alpha
    *("euler", "euler_ancestral", "heun", "edm", "lms", "gradient_estimation", "ipndm_v"),
    *("heunpp2", "res_multistep", "seeds_2", "seeds_3", "dpmpp_2m_cfg_pp", "dpm_solver", "dpmpp_2s_ancestral_cfg_pp"),
    *("res_multistep_cfg_pp", "gradient_estimation_cfg_pp"),
    *TWO_CALLS,
)
ON_FLOWS_THEMSELVES = {  # of these, on x itself in a flow
    *("res_multistep", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
}


@dataclass
class Case:
    """One sampler on one family of schedules; its error must show ``order``."""

    name: str
    order: float
    family: str
    options: dict = field(default_factory=dict)
    grade: float = 3.0  # levels are uniform in level^(1 / grade)
    until: float = 0.05  # the last noise level
    consistency: bool = False  # the model is the consistency function, not the posterior mean
    rising: bool = False  # from the least noisy level to the noisiest
    counts: tuple = (32, 64, 128)  # numbers of steps, between which the order is measured

    def __str__(self):
        return "-".join([self.name, self.family, *(f"{k}={v}" for k, v in self.options.items()), *["up"] * self.rising])

    def levels(self, n):
        roots = (level ** (1 / self.grade) for level in (FIRST[self.family], self.until))
        return (np.linspace(*roots, n + 1) ** self.grade)[:: -1 if self.rising else 1]

    def tableau(self, n):
        """Returns the table over a schedule with exactly the wanted noise levels; the last of them ends the run."""
        levels = self.levels(n)
        schedule = Schedule(*FAMILIES[self.family](np.sort(levels)))
        rule = getattr(samplers, self.name).__wrapped__
        own = {"prediction": "sample", "final": "sigma_min", **self.options}
        if self.family != "preserving":
            return rule(schedule, levels=levels[:-1], **own, **{"final_level": levels[-1]} if self.rising else {})
        indices = np.argsort(np.argsort(levels))
        return rule(schedule, indices[:-1], **own | ({"final": indices[-1]} if self.rising else {}))

    def model(self, tableau, n):
        """Returns (constant, slope): the model's answer to x_in at every row, for the Gaussian."""
        level = tableau.timesteps.astype(float)
        if self.family == "preserving":  # a time is an index, or lies between two
            level = np.exp(np.interp(level, np.arange(n + 1), np.log(np.sort(self.levels(n)))))
        alpha, sigma = FAMILIES[self.family](level)
        deviation = np.hypot(alpha * STD, sigma)
        slope = STD / deviation if self.consistency else alpha * STD**2 / deviation**2
        return MEAN * (1 - slope * alpha), slope

    def run(self, n, tableau=None):
        """Returns the coefficients of the last x on (1, x, z_0, z_1, ..)."""
        tableau = tableau or self.tableau(n)
        one, x, *z = np.eye(2 + len(tableau))
        past = []
        for i, (constant, slope) in enumerate(zip(*self.model(tableau, n), strict=True)):
            answer = constant * one + slope * tableau.scale[i] * x
            x, *aux = apply_exact(tableau.rows[i], x, answer, past=past, z=z[i])
            past = [*aux[: tableau.push[i]], *past][:4]
        return x

    def ends(self, n):
        """Returns alpha and sigma at both ends, in the frame of the sampler's x."""
        alpha, sigma = FAMILIES[self.family](self.levels(n)[[0, -1]])
        own = self.name not in EXPLODING_FRAME or (self.name in ON_FLOWS_THEMSELVES and self.family == "flow")
        return (alpha, sigma) if own else (alpha / alpha, sigma / alpha)

    def flow_error(self, n, tableau=None):
        """Returns the distance of the last x from the exact flow's, for an x 1.3 standard deviations above the mean."""
        constant, slope, *noise = self.run(n, tableau)
        assert not any(noise), "a deterministic sampler drew noise"
        alpha, sigma = self.ends(n)
        start, end = alpha * MEAN + 1.3 * np.hypot(alpha * STD, sigma)
        return abs(constant + slope * start - end)

    def marginal_error(self, n, tableau=None):
        """Returns the larger error of mean and variance at the end, from the exact marginal at the start."""
        constant, slope, *noise = self.run(n, tableau)
        assert any(noise), "a stochastic sampler drew no noise"
        alpha, sigma = self.ends(n)
        mean, variance = alpha * MEAN, (alpha * STD) ** 2 + sigma**2
        mean_error = abs(constant + slope * mean[0] - mean[1])
        return max(mean_error, abs(slope**2 * variance[0] + np.dot(noise, noise) - variance[1]))


DETERMINISTIC = [
    Case("ddim", 1, "preserving"),
    Case("ddim", 1, "exploding"),
    Case("ddim", 1, "flow"),
    Case("euler", 1, "preserving"),
    Case("euler", 1, "exploding"),
    Case("flow_euler", 1, "flow"),
    Case("heun", 2, "preserving"),
    Case("heun", 2, "exploding"),
    Case("flow_heun", 2, "flow"),
    Case("edm", 2, "exploding"),
    Case("edm", 2, "preserving"),
    Case("dpm_2", 2, "preserving"),
    Case("dpm_2", 2, "exploding"),
    Case("dpm_2", 2, "flow"),
    Case("dpmpp_2m", 2, "preserving"),
    Case("dpmpp_2m", 2, "preserving", {"solver": "heun"}),
    Case("dpmpp_2m", 2, "exploding"),
    Case("dpmpp_2m", 2, "flow"),
    Case("unipc", 2, "preserving", {"order": 1, "lower_order_final": False}),
    Case("unipc", 3, "preserving", {"order": 2, "lower_order_final": False}),
    Case("unipc", 4, "preserving", {"order": 3, "lower_order_final": False}),
    Case("unipc", 3, "exploding", {"order": 2, "variant": "bh1", "lower_order_final": False}),
    # here the first steps, of lower order, are visible: at the noisy end of the others D is constant
    Case("unipc", 3, "flow", {"order": 3, "variant": "bh1", "lower_order_final": False}),
    # Adams-Bashforth weights are for equal steps in sigma / alpha: order 2 elsewhere; there 4, but 3 at first
    Case("pndm", 2, "preserving"),
    Case("pndm", 3.5, "exploding", grade=1.0, until=0.5),
    Case("ipndm", 2, "preserving"),
    Case("ipndm", 3.5, "exploding", grade=1.0, until=0.5),
    Case("lms", 3, "exploding", {"order": 3}),
    Case("lms", 3.5, "exploding", grade=1.0, until=0.5),
    Case("deis", 2, "flow"),
    Case("deis", 3, "exploding", {"order": 3}),
    Case("deis", 3, "exploding", {"order": 3, "variable": "vp_time", "lower_order_final": False}),
    Case("gradient_estimation", 1, "preserving"),
    Case("dpmpp_3m_sde", 3, "exploding", {"eta": 0.0, "exact": True}),
    Case("dpmpp_2m_sde", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_3m_sde", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_singlestep", 2, "exploding"),
    Case("dpmpp_singlestep", 2, "preserving", {"solver": "heun"}),
    Case(
        "dpmpp_singlestep",
        3,
        "preserving",
        {"order": 3, "solver": "heun", "lower_order_final": False},
        counts=(30, 60, 120),
    ),
    Case("dpmpp_sde", 2, "preserving", {"eta": 0.0, "r": 0.3}),
    Case("tcd", 1, "preserving", {"gamma": 0.0}),
    Case("res_multistep", 2, "preserving"),
    Case("res_multistep", 2, "flow"),
    Case("er_sde", 1, "preserving", {"phi": 1.0, "order": 1}),
    Case("er_sde", 2, "flow", {"phi": 1.0, "order": 2}),
    Case("er_sde", 3, "exploding", {"phi": 1.0, "exact": True}),
    Case("seeds_2", 2, "preserving", {"eta": 0.0, "r": 0.4}),
    Case("seeds_2", 2, "exploding", {"eta": 0.0, "solver": "heun"}),
    Case("seeds_3", 3, "exploding", {"eta": 0.0}),
    Case("sa_solver", 2, "preserving", {"tau": 0.0, "predictor_order": 1, "lower_order_final": False}),
    Case("sa_solver", 3, "exploding", {"tau": 0.0, "corrector_order": 3, "lower_order_final": False}),
    Case(
        "sa_solver",
        3,
        "preserving",
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 0, "lower_order_final": False},
    ),
    Case("ipndm_v", 2, "preserving", {"order": 2}),
    Case("heunpp2", 1, "flow", counts=(128, 256, 512)),
    Case("dpm_solver", 1, "preserving", {"order": 1}),
    Case("dpm_solver", 2, "exploding", {"order": 2}),
    Case("dpm_solver", 3, "preserving", {"order": 3}),
    Case("dpm_solver", 3, "flow", {"order": 3}),
    Case("dpm_2_ancestral", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_2s_ancestral", 2, "flow", {"eta": 0.0}),
]
UP = [
    replace(case, rising=True)
    for case in DETERMINISTIC
    if not {3, True} & {case.options.get(name) for name in ("order", "exact", "predictor_order")}
    and case.grade == 3.0
    and case.name != "heunpp2"  # its weights are for noise levels below the first
]
UP += [  # the others begin where D changes most, so that their first steps, of lower order, are visible: 3 in the limit
    Case("unipc", 3.4, "preserving", {"order": 3, "lower_order_final": False}, rising=True),
    Case("pndm", 2.8, "exploding", grade=1.0, until=4.0, rising=True),
]
DETERMINISTIC += UP
STOCHASTIC = [
    Case("ddpm", 1, "preserving"),
    Case("ddpm", 1, "preserving", {"variance": "fixed_large"}),
    Case("ddim", 1, "preserving", {"eta": 1.0}),
    Case("ddim", 1, "flow", {"eta": 0.5}),
    Case("euler_ancestral", 1, "preserving"),
    Case("euler_ancestral", 1, "exploding"),
    Case("edm", 2, "exploding", {"S_churn": 8.0}),
    Case("dpmpp_2m_sde", 2, "preserving"),
    Case("dpmpp_2m_sde", 2, "exploding", {"solver": "heun"}),
    Case("dpmpp_2m_sde", 2, "preserving", {"eta": 0.5}),
    Case("dpmpp_3m_sde", 2, "exploding"),
    Case("dpm_2_ancestral", 2, "preserving"),
    Case("dpmpp_2s_ancestral", 2, "preserving"),
    Case("euler_ancestral", 1, "flow"),
    Case("euler_ancestral", 1, "flow", {"eta": 0.5}, counts=(128, 256, 512)),
    Case("dpm_2_ancestral", 2, "flow"),
    Case("dpm_2_ancestral", 2, "flow", {"eta": 0.5}),
    Case("dpmpp_2s_ancestral", 2, "flow"),
    Case("dpmpp_2s_ancestral", 2, "flow", {"eta": 0.5}),
    Case("dpmpp_sde", 2, "exploding"),
    Case("dpmpp_sde", 2, "preserving", {"eta": 0.5, "r": 0.4}),
    Case("dpmpp_sde", 2, "flow"),
    Case("dpm_solver", 2, "exploding", {"order": 2, "eta": 1.0}),
    Case("dpm_solver", 3, "preserving", {"eta": 0.5}, counts=(128, 256, 512)),
    Case("res_multistep", 2, "preserving", {"eta": 1.0}),
    Case("res_multistep", 2, "flow", {"eta": 0.5}),
    Case("er_sde", 2, "flow"),
    Case("er_sde", 2, "preserving", {"phi": 2.0, "order": 2}),
    Case("seeds_2", 2, "preserving"),
    Case("seeds_2", 2, "exploding", {"eta": 0.5, "solver": "heun", "r": 0.6}),
    Case("seeds_3", 2, "preserving", counts=(128, 256, 512)),
    Case("sa_solver", 2, "preserving", {"predictor_order": 1}),
    Case("sa_solver", 2, "flow", {"corrector_order": 0}),
    Case("repaint", 1, "preserving", {"jump_length": 5, "jump_n_sample": 3}),
    Case("repaint", 1, "exploding", {"eta": 0.0, "jump_length": 10, "jump_n_sample": 2}),
    Case("flow_sde", 1, "flow", counts=(128, 256, 512)),  # here its noise is small beside the drift
    Case("dance_sde", 1, "flow", {"eta": 0.5}, counts=(128, 256, 512)),
]


TOLERANCE = 0.2


def order(case, tables):
    """Returns the fitted order: minus the slope of log error against log n."""
    error = case.flow_error if case in DETERMINISTIC else case.marginal_error
    return -np.polyfit(np.log(case.counts), np.log([error(n, tables[n]) for n in case.counts]), 1)[0]


@pytest.mark.parametrize("case", one_in(2, DETERMINISTIC + STOCHASTIC), ids=str)
def test_order_of_convergence(case):
    assert order(case, {n: case.tableau(n) for n in case.counts}) == pytest.approx(case.order, abs=TOLERANCE)


def used_columns(table):
    """Yields (group, column, rows): coefficients that matter in half of the steps or more, and their rows."""
    kept = {"out": table.push >= 0, "aux1": table.push >= 1, "aux2": table.push >= 2}
    reads_clean = np.any([table.rows[group]["d"] * kept[group] for group in kept], axis=0)
    for group, rows in {**kept, "clean": reads_clean}.items():
        for column in table.rows.dtype[group].names:
            used = rows & (table.rows[group][column] != 0) & np.isfinite(table.rows[group][column])
            if 2 * used.sum() >= len(table) / (1 + np.any(table.push == 0)):
                yield group, column, used


@pytest.mark.release  # the test of the test above
@pytest.mark.parametrize("case", DETERMINISTIC + STOCHASTIC, ids=str)
def test_every_wrong_coefficient_is_seen(case):
    """2 % off in any one column, and the test above fails."""
    tables = {n: case.tableau(n) for n in case.counts}
    found = [(group, column) for group, column, _ in used_columns(tables[case.counts[0]])]
    assert len(found) >= 2
    for found_column in found:
        planted = {}
        for n, table in tables.items():
            rows = table.rows.copy()
            group, column, used = next(c for c in used_columns(table) if c[:2] == found_column)
            rows[group][column][used] *= 1.02
            planted[n] = Tableau(rows, table.timesteps, push=table.push, scale=table.scale)
        assert abs(order(case, planted) - case.order) > TOLERANCE, found_column


@pytest.mark.parametrize("n", [1, 2, 7])
def test_lcm_is_exact_for_the_exact_consistency_function(n):
    """Every jump lands on the exact marginal; c_skip is below 1e-3 there, so f is D."""
    case = Case("lcm", math.inf, "preserving", {"timestep_scaling": 1e9}, consistency=True)
    assert case.marginal_error(n) < 1e-13


def test_lcm_weighs_x_and_d_as_consistency_models_do():
    """Seen to fail: a c_out that ignores sigma_data."""
    table = samplers.lcm(VP, [900, 0], timestep_scaling=0.01, sigma_data=2.0).tableau
    for t, row in zip(table.timesteps, table.rows, strict=True):
        s = 0.01 * t
        c_skip, c_out = 4 / (s**2 + 4), s / math.sqrt(s**2 + 4)
        assert (row["aux1"]["x"], row["aux1"]["d"]) == pytest.approx((c_skip, c_out), rel=1e-14)


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


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_ddim_inverse_is_of_first_order(prediction):
    """It goes from clean data at x0 up to the flow's value, and `ddim` on the same times leads nearly back.

    Seen to fail: the network given the time of x, from the second step on, and read at the next noise level of x.
    """
    x0, errors, back = 1.1, [], []
    deviation = np.hypot(VP.alpha * STD, VP.sigma)
    expected = VP.alpha * MEAN + (x0 - MEAN) / STD * deviation

    def model(x, t):
        alpha, sigma = VP.alpha[t], VP.sigma[t]
        clean = MEAN + alpha * STD**2 / deviation[t] ** 2 * (x - alpha * MEAN)
        noise = (x - alpha * clean) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * clean

    for n in (50, 100, 200):
        up = samplers.ddim_inverse(VP, n, prediction=prediction)
        x = up.sample(model, np.full((1, 1), x0))
        errors.append(abs(x[0, 0] - expected[up.timesteps[-1]]))
        down = samplers.ddim(VP, n, prediction=prediction).sample(model, x)
        back.append(abs(down[0, 0] - x0))
    for found in (errors, back):
        assert -np.polyfit(np.log([50, 100, 200]), np.log(found), 1)[0] == pytest.approx(1, abs=TOLERANCE)


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


RUNS = {  # numbers of steps
    "res_multistep": (60, {}),
    "res_multistep ": (60, {"eta": 1.0}),
    "er_sde": (30, {}),
    "sa_solver": (60, {}),
    "sa_solver ": (30, {"predictor_order": 3, "corrector_order": 4, "pece": True}),
    "seeds_2": (60, {}),
    "seeds_3": (30, {}),
    "heunpp2": (120, {}),
    "ipndm_v": (60, {"order": 3}),
    "euler_cfg_pp": (120, {}),
    "euler_ancestral_cfg_pp": (120, {}),
    "dpmpp_2m_cfg_pp": (60, {}),
    "dpmpp_2s_ancestral_cfg_pp": (60, {}),
    "res_multistep_cfg_pp": (60, {}),
    "res_multistep_cfg_pp ": (60, {"eta": 1.0}),
    "gradient_estimation_cfg_pp": (120, {}),
    "dpm_solver": (20, {"eta": 1.0}),
    "repaint": (120, {"jump_length": 12, "jump_n_sample": 3}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_result_has_the_mean_and_the_deviation_of_the_data(name):
    """40000 numbers are sampled. Seen to fail: 20 % less noise in the last stages of SEEDS."""
    (steps, options), name = RUNS[name], name.strip()
    sampler = getattr(samplers, name)(VP, steps, spacing="karras", **options)
    answers, guided, model = lambda x, t: model(x, t), {}, gaussian_model_between
    if name in CFG_PP:
        answers, guided = lambda x, t: 2 * (model(x, t),), {"guidance_scale": 0.7}
    x = sampler.sample(answers, (400, 100), Noise(11), dtype="float64", **guided)
    assert x.mean() == pytest.approx(MEAN, abs=0.015)
    assert x.std() == pytest.approx(STD, abs=0.02)


def gaussian_model_between(x, t):
    """Returns `gaussian_model` of VP at times between two."""
    level = np.exp(np.interp(t, np.arange(1000), np.log(VP.sigma / VP.alpha)))
    alpha, sigma = 1 / np.hypot(1, level), level / np.hypot(1, level)
    return (x - alpha * MEAN) * sigma / (alpha**2 * STD**2 + sigma**2)


def test_the_known_part_of_repaint_is_put_in_by_its_users():
    """As in its docstring, the known numbers of the result are the given ones, and the others fit."""
    sampler, noise, known = samplers.repaint(VP, 30, jump_length=5, jump_n_sample=3), Noise(3), np.full((4, 6), 0.8)
    mask = np.arange(6) < 3
    model, x = gaussian_model(VP), sampler.start((4, 6), noise, dtype="float64")
    for i in range(len(sampler)):
        x = np.where(mask, sampler.noised(i, known, noise.at(sample=100 + 4 * i)), x)
        x = sampler.step(i, x, model(x, sampler.timesteps[i]), noise)
    assert np.abs(np.where(mask, x - known, 0)).max() < 4.5 * VP.sigma[0]  # the level of the last row
    assert np.abs(np.where(mask, 0, x)).max() > 0.1


def test_the_whole_list_is_tested():
    tested = {case.name for case in DETERMINISTIC + STOCHASTIC} | CFG_PP | {"lcm", "flow_cps", "ddim_inverse"}
    assert sorted(tested) == ALL


@pytest.mark.parametrize("name", sorted(set(samplers.__all__) - {"Threshold"}))
def test_the_defaults_that_a_signature_shows_are_those_of_the_run(name):
    """Seen to fail: `@sampler` showed a default that it did not hand to the rule; and handed on its own default in
    place of what was given."""
    make = getattr(samplers, name)
    shown = {name: given.default for name, given in inspect.signature(make).parameters.items() if name != "options"}
    schedule = Schedule.flow(100) if shown["prediction"] == "flow" else Schedule.linear(100)
    given = shown | {"schedule": schedule, "steps": 5}
    assert pickle.dumps(make(schedule, 5).tableau) == pickle.dumps(make(**given).tableau)
    assert pickle.dumps(make(**given | {"prediction": "v"}).tableau) != pickle.dumps(make(**given).tableau)


# ---- the rules' parts --------------------------------------------------------------------------------------

VP = Schedule.scaled_linear()
ALL = sorted(set(samplers.__all__) - {"Threshold"})
CFG_PP = {name for name in ALL if name.endswith("cfg_pp")}  # see test_loops.py, too
OF_FLOWS = {"flow_euler", "flow_heun", "flow_sde", "flow_cps", "dance_sde"}


def test_views_tell_x0_and_noise():
    """Tests D and e for each kind of network's answer about x = alpha x0 + sigma z, in any frame."""
    x0, z = 0.7, -1.1
    for alpha, sigma in [(0.8, 0.6), (1.0, 14.0), (0.3, 0.7), (0.0, 1.0)]:
        x, r = alpha * x0 + sigma * z, math.hypot(alpha, sigma)
        answers = {"epsilon": z, "sample": x0, "v": (alpha * z - sigma * x0) / r, "flow": z - x0}
        c_in = 1 / math.hypot(sigma, 0.5 * alpha)
        c_skip, c_out = 0.25 * alpha * c_in**2, 0.5 * sigma * c_in
        answers |= {"edm": (x0 - c_skip * x) / c_out, "edm_v": -(x0 - c_skip * x) / c_out}
        assert set(answers) == set(views.VIEWS)
        for name, m in answers.items():
            if alpha or name != "epsilon":
                p_x, p_m = views.VIEWS[name].clean(alpha, sigma)
                assert p_x * x + p_m * m == pytest.approx(x0, abs=1e-14)
            e_x, e_m = views.VIEWS[name].noise(alpha, sigma)
            assert e_x * x + e_m * m == pytest.approx(z, abs=1e-14)


def test_edm_preconditioning():
    """Karras et al. 2022, table 1, at sigma = 2, sigma_data = 0.5."""
    view = views.edm(0.5)
    assert views.view(view) is view
    assert view.clean(1.0, 2.0) == pytest.approx((0.25 / 4.25, 1 / math.sqrt(4.25)))
    assert view.scale(1.0, 2.0) == pytest.approx(1 / math.sqrt(4.25))
    assert view.time(1.0, 2.0, 0.0) == view.time(0.5, 1.0, 0.0) == pytest.approx(math.log(2) / 4)
    for sigma_data in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"sigma_data = {sigma_data}: expected a finite number above 0"):
            views.edm(sigma_data)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_step_beside_a_clamped_d(name):
    """x = alpha D + sigma e, in the schedule's own frame and in that of x / alpha, which networks never get.

    Seen to fail: e with D added, and a network that is given x / alpha.
    """
    schedule = Schedule.linear()
    table = getattr(samplers, name)(schedule, [700, 300], clip=0.1).tableau
    alpha, sigma = schedule([700, 300])
    scale = alpha if name == "euler" else np.ones(2)
    (a, a1), (s, s1) = alpha / scale, sigma / scale
    clean, out = table.rows[0]["clean"], table.rows[0]["out"]
    found = [clean["x"], clean["m1"], out["x"], out["m1"], out["d"]]
    np.testing.assert_allclose(found, [scale[0] / alpha[0], -sigma[0] / alpha[0], s1 / s, 0, a1 - a * s1 / s], 1e-12)


def test_split_is_the_posterior():
    """eta = 1: the variance of q(x' | x, x0), Ho et al. 2020, equation 7; eta = 0: nothing is fresh."""
    abar, abar_ = 0.3, 0.5
    here, there = (Node(math.sqrt(a), math.sqrt(1 - a), 0) for a in (abar, abar_))
    keep, fresh = split(here, there, 1.0)
    assert fresh**2 == pytest.approx((1 - abar_) / (1 - abar) * (1 - abar / abar_), rel=1e-14)
    assert keep**2 + fresh**2 == pytest.approx(1 - abar_, rel=1e-14)
    assert split(here, there, 0.0) == (there.sigma, 0.0)
    with pytest.raises(ValueError, match="more fresh noise"):
        split(here, there, 3.0)


def test_spacings():
    def times(spacing, **options):
        return samplers.ddim(VP, 4, spacing=spacing, **options).timesteps.tolist()

    assert times("leading") == [750, 500, 250, 0]
    assert times("leading", steps_offset=1) == [751, 501, 251, 1]
    assert times("trailing") == [999, 749, 499, 249]
    assert times("linspace") == [999, 666, 333, 0]
    assert samplers.dpmpp_2m(VP, 4).timesteps.tolist() == [999, 749, 500, 250]
    assert samplers.euler(VP, 4).timesteps.tolist() == [999, 666, 333, 0]
    assert samplers.euler(VP, 3).timesteps.tolist() == [999, 499.5, 0]
    assert samplers.ddim(VP, 4).timesteps.dtype == np.int64  # an index; levels and values between are floats
    single = samplers.flow_euler(Schedule.flow(), 1).timesteps
    assert single.tolist() == [1]
    assert single.dtype == np.float64
    assert samplers.ddim(VP, [900, 20, 3]).timesteps.tolist() == [900, 20, 3]
    levels = samplers.euler(Schedule.karras(7), 5, spacing="karras").timesteps
    assert levels == pytest.approx(Schedule.karras(5).sigma[::-1], rel=1e-13)
    levels = samplers.euler(VP, 5, spacing="exponential", sigma_min=0.1, sigma_max=10.0).tableau
    assert levels.rows["clean"]["m1"] == pytest.approx(-np.geomspace(10, 0.1, 5), rel=1e-13)
    assert samplers.flow_euler(Schedule.flow(), 4, spacing="trailing").timesteps == pytest.approx([1, 0.75, 0.5, 0.25])


FLOW, ZERO_SNR = Schedule.flow(), VP.rescale_zero_terminal_snr()
BAD_ARGUMENTS = [
    ("ddim", VP, {"spacing": "log"}, ValueError, "spacing = 'log': expected 'leading', 'trailing'"),
    ("ddim", VP, {"steps": 0}, ValueError, "steps = 0: expected an integer of at least 1"),
    ("ddim", VP, {"steps": 1001}, ValueError, "1001 steps do not fit into a schedule of 1000$"),
    ("ddim", VP, {"steps": 2.0}, ValueError, "steps must be an integer or a list of times, got 2.0"),
    ("ddim", VP, {"steps": "5"}, ValueError, "steps must be an integer or a list of times, got '5'"),
    ("ddim", VP, {"steps": None}, ValueError, "steps must be an integer or a list of times, got None"),
    ("ddim", VP, {"steps": [1000, 5]}, ValueError, r"has indices 0 \.\. 999, got 1000 \.\. 5"),
    ("ddim", VP, {"steps": [5.0, math.nan]}, ValueError, r"has indices 0 \.\. 999, got 5 \.\. nan"),
    ("ddim", VP, {"steps": [5, 1000, 7]}, ValueError, r"has indices 0 \.\. 999"),
    *(
        ("euler", Schedule.karras(9), {"steps": steps}, ValueError, message)
        for steps, message in (
            ([80.0, 1.0, 0.0], "noise levels above 0, got .*: drop the 0, the last step goes there by itself"),
            ([0.0, 1.0, 80.0], "noise levels above 0, got .*: take a small level in place of 0"),
            ([80.0, -1.0], r"steps: t must be in \[0, inf\), the time sigma"),
            ([math.inf, 1.0], r"steps: t must be in \[0, inf\), the time sigma"),
        )
    ),
    # up: steps that draw noise cannot rise, and only those that do not divide by alpha can end on pure noise
    *(
        (
            name,
            VP,
            {"steps": [300, 500], **options},
            ValueError,
            "draws noise goes .* not from time 300 to 500: reverse",
        )
        for name, options in (
            ("ddpm", {}),
            ("ddpm", {"variance": "fixed_large"}),
            ("ddim", {"eta": 0.1}),
            ("euler_ancestral", {}),
            ("dpmpp_2m_sde", {}),
            ("dpmpp_3m_sde", {}),
            ("dpm_2_ancestral", {}),
            ("dpmpp_2s_ancestral", {}),
            ("dpmpp_sde", {}),
            ("tcd", {}),
            ("res_multistep", {"eta": 1.0}),
            ("er_sde", {}),
            ("er_sde", {"phi": 2.0}),
            ("seeds_2", {}),
            ("seeds_3", {}),
            ("sa_solver", {}),
            ("repaint", {}),
            ("euler_ancestral_cfg_pp", {}),
            ("dpmpp_2s_ancestral_cfg_pp", {}),
            ("res_multistep_cfg_pp", {"eta": 1.0}),
            ("dpm_solver", {"eta": 1.0}),
        )
    ),
    *(
        (name, ZERO_SNR, {"steps": [500], "final": 999, "prediction": "v"}, ValueError, "alpha, which is 0 at time 999")
        for name in ("euler", "heun", "dpm_2", "edm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "pndm")
    ),
    ("ddim", ZERO_SNR, {"steps": [999, 999], "prediction": "v", "eta": 1.0}, ValueError, "draws noise goes to a lower"),
    ("ddim", ZERO_SNR, {"steps": [500, 999]}, ValueError, 'prediction "epsilon" divides by alpha'),
    *(
        (name, VP, {"steps": 1000, "spacing": spacing}, ValueError, f"do not fit .* by '{spacing}': .*\"trailing\" has")
        for name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")  # their indices would coincide
        for spacing in ("leading", "linspace")
    ),
    ("ddim", VP, {"steps": 1000, "steps_offset": 1}, ValueError, r"has indices 0 \.\. 999"),
    ("ddim", VP, {"final": "one"}, ValueError, "final must be zero or sigma_min or a time, got 'one'"),
    ("ddim", VP, {"final": None}, ValueError, "final must be zero or sigma_min or a time, got None"),
    ("ddim", VP, {"final": 1000}, ValueError, r"has indices 0 \.\. 999, got 1000"),
    (
        "flow_euler",
        FLOW,
        {"final": 1.5},
        ValueError,
        r"final: t must be in \[0, 1\], the time s of .* got t\[0\] = 1.5",
    ),
    ("ddim", VP, {"spacing": "karras", "sigma_min": 3.0, "sigma_max": 2.0}, ValueError, "< inf, got 3.0, 2.0"),
    *(
        ("ddim", VP, {"spacing": "karras", "rho": rho}, ValueError, f"rho = {rho}: expected a finite number above 0")
        for rho in (0, -1.0, math.nan, math.inf)
    ),
    ("flow_euler", FLOW, {"spacing": "karras", "sigma_max": 2.0}, ValueError, "sigma_max must be at most 1 .*, got 2"),
    *(
        (name, VP, {"spacing": "karras", "sigma_min": 0.01, "final": "sigma_min"}, ValueError, "is above the last one")
        for name in ("ddim", "dpmpp_2m_sde")
    ),
    ("ddim", VP, {"prediction": "x0"}, ValueError, "prediction must be a View or one of epsilon, sample"),
    ("ddim", VP, {"prediction": ["v"]}, ValueError, "prediction must be a View or one of epsilon, sample"),
    ("ddim", VP, {"prediction": "flow_prediction"}, ValueError, "got 'flow_prediction'; z - x0 is called 'flow' here"),
    ("ddim", VP, {"prediction": "v_prediction"}, ValueError, "; alpha z - sigma x0 is called 'v' here"),
    ("ddim", VP, {"eta": 2.0}, ValueError, "more fresh noise"),
    ("ddim", VP, {"eta": -0.5}, ValueError, "eta = -0.5: expected a finite number of at least 0"),
    ("ddim", VP, {"eta": math.inf}, ValueError, "eta = inf: expected a finite number of at least 0"),
    ("euler_ancestral", VP, {"eta": math.nan}, ValueError, "eta = nan: expected a finite number of at least 0"),
    ("edm", VP, {"S_churn": -1.0}, ValueError, "S_churn = -1.0: expected a number of at least 0"),
    ("edm", VP, {"S_noise": math.nan}, ValueError, "S_noise = nan: expected a number of at least 0"),
    ("ddpm", VP, {"variance": "learned"}, ValueError, "variance = 'learned': expected 'fixed_small' or 'fixed_large'"),
    ("unipc", VP, {"order": 4}, ValueError, "order = 4: expected an integer from 1 to 3"),
    ("dpmpp_2m", VP, {"solver": "x"}, ValueError, "solver = 'x': expected 'midpoint' or 'heun'"),
    ("deis", VP, {"variable": "t"}, ValueError, "variable = 't': expected 'log_rho' or 'vp_time'"),
    ("deis", VP, {"points": 1}, ValueError, "points = 1: expected an integer of at least 2"),
    ("pndm", VP, {"average": "x"}, ValueError, "average = 'x': expected 'epsilon' or 'output'"),
    *(
        (name, VP, {"order": order}, ValueError, f"order = {order}: expected an integer from 1 to {highest}")
        for name, highest in (("lms", 4), ("ipndm", 4), ("deis", 3), ("dpmpp_singlestep", 3))
        for order in (0, highest + 1)
    ),
    ("dpmpp_singlestep", VP, {"solver": "x"}, ValueError, "solver = 'x': expected 'midpoint' or 'heun'"),
    ("dpmpp_2m_sde", VP, {"eta": -0.5}, ValueError, "eta = -0.5: expected a finite number of at least 0"),
    ("dpmpp_3m_sde", VP, {"eta": -1.0}, ValueError, "eta = -1.0: expected a finite number of at least 0"),
    ("seeds_2", VP, {"r": 1.1}, ValueError, "r = 1.1: expected a finite number above 0 and of at most 1"),
    ("seeds_2", VP, {"solver": "phi_1"}, ValueError, "solver = 'phi_1': expected 'midpoint' or 'heun'"),
    ("seeds_2", VP, {"eta": -1.0}, ValueError, "eta = -1.0: expected a finite number of at least 0"),
    ("seeds_3", VP, {"r_1": 0.7}, ValueError, "0 < r_1 < r_2 <= 1 must hold, got 0.7 and 0.66"),
    ("er_sde", VP, {"order": 4}, ValueError, "order = 4: expected an integer from 1 to 3"),
    ("er_sde", VP, {"points": 0}, ValueError, "points = 0: expected an integer of at least 1"),
    (
        "er_sde",
        VP,
        {"phi": 0.5},
        ValueError,
        r"phi asks for more noise than there is at .*: phi\(l\) / l must not grow",
    ),
    ("er_sde", VP, {"phi": np.zeros_like}, ValueError, "phi must be positive and finite at the levels, got"),
    ("sa_solver", VP, {"predictor_order": 4}, ValueError, "predictor_order = 4: expected an integer from 1 to 3"),
    ("sa_solver", VP, {"corrector_order": 5}, ValueError, "corrector_order = 5: expected an integer from 0 to 4"),
    (
        "sa_solver",
        VP,
        {"tau": [1.0, 0.0]},
        ValueError,
        r"tau must be a number or one for each of 10 steps, got \[1.0, 0",
    ),
    ("sa_solver", VP, {"tau": -1.0}, ValueError, "tau = -1.0: expected a finite number of at least 0"),
    ("ipndm_v", VP, {"order": 5}, ValueError, "order = 5: expected an integer from 1 to 4"),
    ("repaint", VP, {"jump_length": 0}, ValueError, "jump_length = 0: expected an integer of at least 1"),
    ("repaint", VP, {"jump_n_sample": 1.5}, TypeError, "jump_n_sample = 1.5: expected an integer, got float"),
    ("lms", VP, {"order": 2.0}, TypeError, "order = 2.0: expected an integer, got float"),
    ("dpm_solver", VP, {"order": 4}, ValueError, "order = 4: expected an integer from 1 to 3"),
    ("dpm_solver", VP, {"order": [3, 1]}, ValueError, "order: expected a number, or one for each of 10 steps, got 2"),
    ("gradient_estimation_cfg_pp", VP, {"gamma": math.nan}, ValueError, "gamma = nan: expected a finite number"),
    *(
        (name, FLOW, {"steps": [0.9, 0.3], "eta": 1.6}, ValueError, "eta = 1.6 steps below clean data, from 0.9 to 0.3")
        for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp")
    ),
    *(
        (name, FLOW, {"steps": [0.3], "final": 0.9}, ValueError, "draws noise goes to a lower level, not from time 0.3")
        for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp")
    ),
    (
        "ddim_inverse",
        VP,
        {"prediction": "sample"},
        ValueError,
        "of sample does not determine the noise of clean data: begin at",
    ),
    ("dpmpp_sde", VP, {"r": 1.0}, ValueError, "r must lie between 0 and 1, got 1.0"),
    ("gradient_estimation", VP, {"gamma": math.inf}, ValueError, "gamma = inf: expected a finite number"),
    ("tcd", VP, {"gamma": 1.5}, ValueError, "gamma = 1.5: expected a finite number from 0 to 1"),
    ("tcd", FLOW, {"steps": 3}, ValueError, "tcd counts indices, and with this schedule a model is told noise levels"),
    ("lcm", VP, {"steps": 60}, ValueError, "1 <= steps <= original_steps <= 1000"),
    ("lcm", VP, {"original_steps": 1001}, ValueError, "1 <= steps <= original_steps <= 1000"),
    ("flow_euler", FLOW, {"levels": [1.5, 0.5], "steps": None}, TypeError, "expected levels or steps, got both"),
    ("euler", Schedule([0.9, 0.5], [0.1, 1.0]), {"steps": [0.5]}, ValueError, "use whole indices"),
    # a name that the sampler does not know, even if another would take it
    ("ddim", VP, {"step": 5}, TypeError, "^ddim has no argument 'step': it takes schedule, steps, eta, .*, rho$"),
    ("lcm", VP, {"spacing": "leading"}, TypeError, "^lcm has no argument 'spacing': it takes schedule, steps, orig"),
    ("pndm", VP, {"clip": 1.0}, TypeError, "^pndm has no argument 'clip': it takes schedule, steps, average, "),
    ("euler", VP, {"whole": True}, TypeError, "^euler has no argument 'whole': it takes "),
    # no schedule, or one of the wrong kind
    ("ddim", "linear", {}, TypeError, "schedule: expected a noisefuse.Schedule, got str"),
    ("lcm", "linear", {"steps": 4}, TypeError, "schedule: expected a noisefuse.Schedule"),
    ("flow_euler", VP, {}, ValueError, r"^flow_euler needs a schedule with alpha \+ sigma = 1 .*; euler takes others"),
    ("flow_heun", VP, {}, ValueError, r"^flow_heun needs a schedule with alpha \+ sigma = 1 .*; heun takes others"),
    ("lcm", FLOW, {"steps": 3}, ValueError, r"told noise levels.*: give the levels themselves, levels=\[\.\.\]"),
    # alpha = 0: another prediction, or a start with some signal
    ("ddim", ZERO_SNR, {"spacing": "trailing"}, ValueError, 'prediction "epsilon" divides by alpha.*zero terminal SNR'),
    ("ddim", FLOW, {"spacing": "trailing"}, ValueError, 'say what the network predicts, prediction="flow"'),
    ("euler", FLOW, {}, ValueError, 'say what the network predicts, prediction="flow", .*, or flow_euler, or leave'),
    ("euler", FLOW, {"prediction": "flow"}, ValueError, "divides by alpha.*use ddim, .*, or flow_euler, or leave"),
    ("unipc", FLOW, {"prediction": "flow"}, ValueError, '^unipc divides by alpha.*spacing="leading", or a list'),
    *(
        (name, ZERO_SNR, {"prediction": "v", "spacing": "trailing"}, ValueError, "divides by alpha.*use ddim")
        for name in ("euler", "heun", "pndm", "unipc")
    ),
    ("ddim", ZERO_SNR, {"prediction": "v", "spacing": "karras"}, ValueError, "SNR: use a spacing of indices"),
    ("ddim", ZERO_SNR, {"prediction": "edm", "spacing": "trailing"}, ValueError, "alpha is 0 .* c_noise .* infinite"),
    # bounds
    *(
        (
            "ddim",
            VP,
            {"clip": clip},
            ValueError,
            rf"clip must be positive or a pair lo < hi, got {re.escape(repr(clip))}",
        )
        for clip in (0, -1.0, math.nan, (1.0, -1.0), (0.5, 0.5), (math.nan, 1.0))
    ),
    ("ddim", VP, {"clip": True}, TypeError, "clip must be a number, a pair .*, got True"),
    *(
        ("ddim", VP, {"clip": samplers.Threshold(*clip)}, ValueError, r"expected 0 <= ratio <= 1 and maximum >= 1, got")
        for clip in ((1.5,), (-0.1,), (math.nan,), (0.9, 0.5), (0.9, math.nan))
    ),
    ("ddim", VP, {"clip": (1,)}, TypeError, r"clip must be a number, a pair .*, got \(1,\)"),
    ("ddim", VP, {"clip": "on"}, TypeError, "clip must be a number, a pair .*, got 'on'"),
]


@pytest.mark.parametrize(("name", "schedule", "options", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(name, schedule, options, error, message):
    with pytest.raises(error, match=message):
        getattr(samplers, name)(schedule, **{"steps": 10, **options})


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("ddim", 10, {"spacing": "trailing"}),
        ("unipc", 10, {"spacing": "leading"}),
        ("unipc", [0.9, 0.5, 0.1], {}),
        ("lcm", [1.0, 0.5], {}),
    ],
)
def test_the_advice_where_alpha_is_zero_works(name, steps, options):
    """m = z - x0, so D = x - sigma m. Seen to fail: D of another sigma."""
    sampler = getattr(samplers, name)(FLOW, steps, prediction="flow", **options)
    clean = sampler.tableau.rows["clean"]
    assert clean["x"].tolist() == [1] * len(clean)
    np.testing.assert_allclose(clean["m1"], -sampler.timesteps, rtol=1e-12)  # the levels of a flow are its sigma
    assert np.isfinite(sampler.tableau.rows["out"].tolist()).all()


@pytest.mark.parametrize("clip", [1, (-1, 1), [-1, 1], np.float32(1), np.array([-1.0, 1.0])], ids=repr)
def test_a_clip_is_a_number_or_any_pair(clip):
    clean = samplers.ddim(VP, 5, clip=clip).tableau.rows["clean"]
    assert (clean["lo"].tolist(), clean["hi"].tolist()) == ([-1.0] * 5, [1.0] * 5)


def test_missing_scipy_is_said(monkeypatch):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match='spacing "beta" needs SciPy'):
        samplers.euler(VP, 5, spacing="beta")


def test_zero_terminal_snr():
    with pytest.raises(ValueError, match='"epsilon" says nothing about x0; use a network with prediction "v"'):
        views.VIEWS["epsilon"].clean(0.0, 1.0)
    for name in ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"):  # v = -x0 at alpha = 0: D must be -m
        table = getattr(samplers, name)(ZERO_SNR, 5, prediction="v", spacing="trailing").tableau
        assert (table.rows[0]["clean"]["x"], table.rows[0]["clean"]["m1"]) == (0, -1)


@pytest.mark.parametrize(("steps", "spacing"), [(5, "linspace"), (5, "karras"), ([900, 500, 0], "")])
def test_a_last_step_of_length_zero(steps, spacing):
    """final="sigma_min" may be x's present level: the step does nothing, and nothing divides by its length."""
    samplers.unipc(VP, steps, spacing=spacing, final="sigma_min", order=3, lower_order_final=False)
    options = {"spacing": spacing, "final": "sigma_min"}
    for rule in (samplers.dpmpp_2m, samplers.dpmpp_2m_sde):
        rule(VP, steps, solver="heun", lower_order_final=False, **options)
    for name in set(ALL) - {"lcm", "tcd", "edm", "ddim_inverse"} - OF_FLOWS - CFG_PP:
        table = getattr(samplers, name)(VP, steps, **options).tableau
        if table.slots == 0:
            x = np.linspace(-1, 1, 5)
            np.testing.assert_allclose(apply_exact(table.rows[-1], x, np.cos(x), z=1)[0], x, rtol=0, atol=1e-9)


def test_a_last_step_of_no_length_but_for_rounding():
    """h = -4e-16: no square root of a negative variance."""
    for n in (2, 3, 5, 10, 20):
        options = {"spacing": "karras", "final": "sigma_min"}
        for sampler in (
            samplers.dpmpp_2m_sde(Schedule.laplace(), n, lower_order_final=False, **options),
            samplers.ddpm(Schedule.laplace(), n, variance="fixed_large", **options),
        ):
            assert sampler.tableau.rows["out"]["z"][-1] == 0


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_the_last_step_is_of_first_order_in_short_runs(name):
    for n in (14, 15):
        last = getattr(samplers, name)(VP, n, final="sigma_min").tableau.rows[-1]["out"]
        assert (last["past1"] == 0) == (n < 15)
        last = getattr(samplers, name)(VP, n, final="sigma_min", lower_order_final=False).tableau.rows[-1]["out"]
        assert last["past1"] != 0


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


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler_ancestral", "heun", "flow_euler", "lcm"])
def test_a_run_may_be_cut(name):
    """The parts have the rows of the whole, noise included."""
    rule, schedule = getattr(samplers, name), FLOW if name == "flow_euler" else VP
    times = [0.9, 0.6, 0.3, 0.1] if name == "flow_euler" else [900, 600, 300, 100]
    whole, parts = rule(schedule, times), [rule(schedule, times[:2], final=times[2]), rule(schedule, times[2:])]
    for field_ in ("rows", "timesteps", "scale", "alpha", "sigma"):
        joined = np.concatenate([getattr(part.tableau, field_) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole.tableau, field_))


@pytest.mark.parametrize("name", sorted({*ALL} - {"lcm", "tcd", "edm", "ddim_inverse"} - OF_FLOWS - CFG_PP))
def test_a_step_to_where_x_is_does_nothing(name):
    """The step is at the first level, before anything is remembered, in samplers that draw noise, too."""
    table = getattr(samplers, name)(VP, [500, 500, 400]).tableau
    x, calls = np.linspace(-1, 1, 5), 2 if name in ("heun", "pndm", *TWO_CALLS) else 1
    first = Tableau(table.rows[:calls], table.timesteps[:calls], push=table.push[:calls])
    np.testing.assert_allclose(run_exact(first, lambda x, t: np.cos(x), x, lambda: 1.0), x, rtol=0, atol=1e-12)


MULTISTEP = {
    "unipc": {"order": 3, "lower_order_final": False},
    "dpmpp_3m_sde": {"eta": 0.0},
    "dpmpp_singlestep": {"order": 3, "solver": "heun", "lower_order_final": False},
    "deis": {"order": 3, "lower_order_final": False},
    "lms": {},
    "gradient_estimation": {},
    "res_multistep": {},
    "er_sde": {"phi": 1.0},
    "ipndm_v": {},
    "sa_solver": {"tau": 0.0, "predictor_order": 3, "corrector_order": 4, "lower_order_final": False},
}


@pytest.mark.parametrize("steps", [[500, 500, 400, 300], [500, 400, 400, 300, 300], [500, 300, 500, 300, 500, 400]])
@pytest.mark.parametrize("name", MULTISTEP)
def test_levels_visited_twice(name, steps):
    """A network answers there as before: the run is that of a network that always answers so.

    Seen to fail: a difference over two nodes that coincide.
    """
    x0, options = 0.4, {**MULTISTEP[name], "prediction": "sample", "final": 200}
    table = getattr(samplers, name)(VP, steps, **options).tableau
    here, there = (Node(VP.alpha[t], VP.sigma[t], t) for t in (steps[0], 200))
    x = here.alpha * x0 + here.sigma * np.linspace(-1, 1, 5)
    expected = there.alpha * x0 + there.sigma * np.linspace(-1, 1, 5)
    frame = [node.alpha if name in EXPLODING_FRAME else 1 for node in (here, there)]
    np.testing.assert_allclose(run_exact(table, lambda x, t: x0, x / frame[0]), expected / frame[1], rtol=1e-9)


def test_a_rise_to_pure_noise():
    """If alpha = 0 at the end, nothing divides by it: x' = sigma' e."""
    for rule, prediction in ((samplers.ddim, "epsilon"), (samplers.ddim, "v")):
        last = rule(ZERO_SNR, [500], final=999, prediction=prediction).tableau.rows[-1]
        assert last["out"]["d"] == 0
    for rule in (samplers.flow_euler, samplers.flow_heun):
        x = run_exact(rule(FLOW, [0.25, 0.5], final=1.0).tableau, lambda x, t: 2.0, np.array([0.5]))
        assert x == pytest.approx(0.5 + 0.75 * 2.0)


def test_final_sigma_min_stays_noisy():
    """The last D is mixed with the rest at the least noisy level; "zero" ends on D."""
    rules = [samplers.ddim, samplers.euler, partial(samplers.dpmpp_2m, lower_order_final=False)]
    rules += [partial(samplers.unipc, order=3, lower_order_final=False), partial(samplers.unipc, variant="bh1")]
    for rule in rules:
        only_d = (0, 0, 0, 0, 1, 0, 0, 0, 0, 0)
        assert rule(VP, 5, final="zero").tableau.rows[-1]["out"].tolist() == only_d
        assert rule(VP, 5, final="sigma_min").tableau.rows[-1]["out"].tolist() != only_d


def test_a_step_to_clean_data_draws_nothing():
    """Seen to fail: ddpm with the variance of q(x | x'), which is not 0 there."""
    for rule in (samplers.ddpm, partial(samplers.ddpm, variance="fixed_large"), partial(samplers.ddim, eta=1.0)):
        drawn = rule(VP, 5).tableau.rows["out"]["z"] != 0
        assert drawn.tolist() == [True] * 4 + [False]


def test_a_single_step_of_pndm_to_clean_data_is_one_call():
    """Seen to fail: the first step done again, at a noise level of 0."""
    assert [len(samplers.pndm(VP, 1, final=final)) for final in ("zero", "sigma_min")] == [1, 2]


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
    nodes = [1.0, 1.3, 0.2, -0.5]
    for degree in range(4):
        got = np.dot(integral_weights(nodes, 2.0), np.array(nodes) ** degree)
        assert got == pytest.approx((2.0 ** (degree + 1) - 1) / (degree + 1), rel=1e-13)
    for c in (1e-3, 1.0, 60.0):
        w = integral_weights([0.0, -1.0], 1.0, lambda s, c=c: np.exp(c * (s - 1)))
        zeroth, first = -math.expm1(-c) / c, (1 + math.expm1(-c) / c) / c
        np.testing.assert_allclose([sum(w), -w[1]], [zeroth, first], rtol=0, atol=1e-13 if c < 1 else 1e-14)


# ---- the engine --------------------------------------------------------------------------------------------


def gaussian_model(schedule):
    """Returns an epsilon network's answer for the Gaussian."""

    def model(x, t):
        alpha, sigma = schedule.alpha[int(t)], schedule.sigma[int(t)]
        constant = MEAN * (1 - alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))
        clean = constant + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x
        return (x - alpha * clean) / sigma

    return model


@pytest.mark.parametrize("name", ALL)
def test_a_run_is_its_rows(name):
    """Sampler.sample, with its state and its scaled inputs, does the rows' work; twice the same."""
    schedule = Schedule.karras(20) if name == "edm" else Schedule.flow() if name in OF_FLOWS else VP
    sampler = getattr(samplers, name)(schedule, 6, clip=2.0) if name != "pndm" else samplers.pndm(VP, 6)
    noise, shape = Noise(7, sample=3, step=100), (3, 5)

    def model(x, t):
        return np.cos(x + float(t))

    guided = {"guidance_scale": 1.5} if name in CFG_PP else {}
    table, answers = sampler.tableau, (lambda x, t: 2 * (model(x, t),)) if guided else model
    if guided:  # for equal answers m2 is m1
        rows = table.rows.copy()
        for group in ("out", "aux1", "aux2"):
            rows[group]["m1"], rows[group]["m2"] = rows[group]["m1"] + rows[group]["m2"], 0
        table = Tableau(rows, table.timesteps, push=table.push, scale=table.scale)
    draws = iter(range(len(sampler)))
    x = sampler.start(shape, noise, dtype="float64")
    expected = run_exact(
        table, model, x,
        lambda: nf.randn(shape, noise.at(step=100 + next(draws), stream=3), dtype="float64"),
    )  # fmt: skip
    result = sampler.sample(answers, shape, noise, dtype="float64", **guided)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    before = x.copy()
    np.testing.assert_array_equal(result, sampler.sample(answers, x, noise, **guided))
    np.testing.assert_array_equal(x, before)


def test_threads_share_a_sampler():
    """Every run has its own state: eight threads at once give one thread's results."""
    sampler, noise = samplers.dpmpp_2m_sde(VP, 12), Noise(4)

    def run(n):
        w = 1.0 + n % 4
        return sampler.sample(lambda x, t: (np.sin(x), np.cos(x)), (3, 40), noise, guidance_scale=w)

    with ThreadPoolExecutor(8) as pool:
        for n, x in enumerate(pool.map(run, range(32))):
            np.testing.assert_array_equal(x, run(n))


def test_start_is_stream_2():
    noise = Noise(5, step=9)
    for sampler in (samplers.euler(VP, 5), samplers.ddim(VP, 5)):
        drawn = nf.randn((2, 8), noise.at(stream=2), dtype="float64")
        start = sampler.start((2, 8), noise, dtype="float64")
        np.testing.assert_allclose(start, sampler.tableau.start * drawn, rtol=1e-15)
        out = np.empty_like(start)
        assert sampler.start((2, 8), noise, dtype="float64", out=out) is out
        np.testing.assert_array_equal(out, start)
    assert samplers.euler(VP, 5).tableau.start == pytest.approx(1 / VP.alpha[-1])


@pytest.mark.parametrize("name", sorted({*ALL} - {"tcd", "ddim_inverse"} - OF_FLOWS))
def test_the_start_is_that_of_the_schedule(name):
    """The deviation depends on the data, not on the sampler. Seen to fail: only edm left the data's variance out."""
    rule, over = getattr(samplers, name), VP.alpha[900] if name in EXPLODING_FRAME else 1
    assert rule(VP, [900, 500]).tableau.start == pytest.approx(1 / over, rel=1e-14)
    assert rule(Schedule.karras(9), [80.0, 3.0]).tableau.start == 80
    own = name not in EXPLODING_FRAME or name in ON_FLOWS_THEMSELVES
    flow = rule(FLOW, [0.8, 0.5]).tableau.start
    assert flow == pytest.approx(math.hypot(0.2, 0.8) / (1 if own else 0.2))


def test_a_stream_of_ones_own_is_refused():
    """The streams are the sampler's own: a noise with another stream is never silently accepted."""
    sampler, x, noise = samplers.ddpm(VP, 5), np.ones((2, 3)), Noise(5, stream=64)
    for given in (noise, [noise, Noise(1)]):
        for call in (
            lambda given=given: sampler.start((2, 3), given),
            lambda given=given: sampler.step(0, x, x, given),
            lambda given=given: sampler.step(0, x, (x, x), given, guidance_scale=[1.0, 2.0]),
        ):
            with pytest.raises(ValueError, match="takes stream 0, got 64"):
                call()
    with pytest.raises(ValueError, match=r"^noise\[1\]: this operation has a stream of its own"):
        sampler.start((2, 3), [Noise(1), noise])


@pytest.mark.parametrize("given", [5, None, "noise"])
def test_a_start_needs_a_noise(given):
    with pytest.raises(TypeError, match=r"noise: expected a Noise or a list of one for each sample, got"):
        samplers.ddpm(VP, 5).start((2, 3), given)


def test_a_shape_may_be_a_list():
    sampler, noise = samplers.ddim(VP, 3), Noise(2)
    expected = sampler.sample(gaussian_model(VP), (2, 3), noise)
    np.testing.assert_array_equal(sampler.sample(gaussian_model(VP), [2, 3], noise), expected)


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"])
def test_a_sampled_run_has_the_marginal(name):
    """One float32 run of the kernel: mean and deviation of 2^18 samples, 5 standard errors from the rows'."""
    sampler, shape, count = getattr(samplers, name)(VP, 20, spacing="trailing"), (64, 2**12), 2**18
    x = sampler.sample(gaussian_model(VP), shape, Noise(11))
    _, column, *z = np.eye(2 + len(sampler))
    model, draws = gaussian_model(VP), iter(z)
    offset = run_exact(sampler.tableau, model, np.zeros(1))[0]
    weights = run_exact(sampler.tableau, lambda v, t: model(v, t) - model(np.zeros(1), t), column, lambda: next(draws))
    deviation = math.sqrt((weights[1] * sampler.tableau.start) ** 2 + np.sum(weights[2:] ** 2))
    assert deviation == pytest.approx(STD, rel=0.2)  # 20 steps are not far from the data
    assert x.mean(dtype=np.float64) == pytest.approx(offset, abs=5 * deviation / math.sqrt(count))
    assert x.std(dtype=np.float64) == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))


def test_model_input_scales():
    sampler, x = samplers.euler(VP, 5), np.linspace(-3, 3, 8).reshape(2, 4)
    shown, t = sampler.model_input(0, x)
    assert t == 999
    np.testing.assert_allclose(shown, x * VP.alpha[-1], rtol=1e-14)
    out = np.empty_like(x)
    assert sampler.model_input(0, x, out=out)[0] is out
    np.testing.assert_array_equal(out, shown)
    unscaled = samplers.ddim(VP, 5)
    assert unscaled.model_input(1, x)[0] is x
    unscaled.model_input(1, x, out=out)
    np.testing.assert_array_equal(out, x)
    for wrong in (np.empty((3, 2, 4)), np.empty((2, 4), int)):
        with pytest.raises((ValueError, TypeError), match="out: expected"):
            unscaled.model_input(1, x, out=wrong)


def test_state_is_needed_and_changes_only_on_success():
    sampler, x, m = samplers.dpmpp_2m(VP, 5), np.ones((2, 3)), np.full((2, 3), 0.5)
    with pytest.raises(TypeError, match=r"dpmpp_2m remembers earlier steps: pass state=sampler.state\(x\)"):
        sampler.step(0, x, m)
    results = []
    for fail in (False, True):
        state = sampler.state(x)
        first = sampler.step(0, x, m, state=state)
        if fail:
            with pytest.raises((ValueError, TypeError)):
                sampler.step(1, first, 9 * m, state=state, out=np.empty(7))
        results.append(sampler.step(1, first, m, state=state))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_denoised_out_is_checked_before_anything_is_written(name):
    """It also holds if the state keeps the written array."""
    sampler, x = getattr(samplers, name)(VP, 5), np.ones((2, 3))
    for wrong in (np.empty(7), np.empty((4, 2, 3)), np.empty((2, 3), int), x):
        with pytest.raises((ValueError, TypeError), match="denoised_out"):
            sampler.step(0, x, np.cos(x), state=sampler.state(x), out=x, denoised_out=wrong)
        np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_quantiles_are_numpys(dtype):
    """To the bit, with NaN and infinities, equal numbers, and numbers in an order that misleads the guess. Seen to
    fail: the formula below a share of one half for all shares; a guess above the quantile."""
    random = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 64, 100, 1001, 20000):
        for ratio in (0.0, 0.1, 0.5, 0.9, 0.995, 1.0, random.random()):
            values = np.abs(random.normal(size=(7, n))).astype(dtype)
            values[1, random.integers(n)], values[2, random.integers(n)] = np.nan, np.inf
            values[3], values[4] = 1, np.round(values[4])
            values[5, ::64] += 9  # each number that is looked at first is large
            values[6].sort()
            with np.errstate(invalid="ignore"):
                expected, found = np.quantile(values.astype(float), ratio, axis=1), _quantiles(values, ratio)
            np.testing.assert_array_equal(found, expected)


def test_lists_are_no_arrays():
    sampler = samplers.dpmpp_2m(VP, 5)
    for call in (sampler.state, lambda x: sampler.noised(1, x, Noise(1))):
        with pytest.raises(TypeError, match="expected an array, got list"):
            call([1.0, 2.0])


@pytest.mark.parametrize("kind", ["big-endian", "a subclass"])
def test_a_state_serves_whatever_array_update_takes(kind):
    class Own(np.ndarray):
        pass

    x = np.random.default_rng(0).normal(size=(2, 3))
    given = x.astype(">f8") if kind == "big-endian" else x.view(Own)
    for name in ("ddpm", "unipc"):
        sampler = getattr(samplers, name)(VP, 5)
        results = [sampler.sample(lambda x, t: np.cos(x), a, Noise(1), callback=lambda *_: None) for a in (x, given)]
        np.testing.assert_array_equal(*results)


def test_a_new_state_is_zero():
    """A kernel may multiply by a coefficient that is 0 in this row only, so all its inputs must be finite."""
    x = np.full((2, 3), np.nan, np.float32)
    state = samplers.unipc(VP, 5, order=3).state(x)
    assert [(array.dtype, array.shape, array.any()) for array in state.past] == [(x.dtype, x.shape, False)] * 3


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_new_state_serves_no_row_that_reads_what_earlier_rows_kept(backend):
    """Seen to fail: zeros in their place. A row that reads none may come first, and a kept state serves any row."""
    sampler, x = samplers.unipc(VP, 5), np.ones((2, 3), np.float32)
    with using(backend):
        for call in (
            lambda: sampler.step(3, x, x, None, sampler.state(x)),
            lambda: sampler.log_prob(3, x, x, x, sampler.state(x)),
        ):
            with pytest.raises(
                ValueError, match=r"^state: row 3 of unipc reads what earlier rows kept, and the state is"
            ):
                call()
        state = sampler.state(x)
        sampler.step(0, x, x, None, state)
        resumed = pickle.loads(pickle.dumps(state))
        assert np.array_equal(sampler.step(1, x, x, None, resumed), sampler.step(1, x, x, None, state))
        assert sampler.step(0, x, x, None, sampler.state(x)).shape == x.shape


def test_rows_and_shapes_are_checked():
    sampler, x = samplers.ddim(VP, 5), np.ones((2, 3))
    for i in (-1, 5):
        with pytest.raises(IndexError, match=f"ddim has rows 0 .. 4, got {i}"):
            sampler.step(i, x, x)
        with pytest.raises(IndexError, match=f"got {i}"):
            sampler.model_input(i, x)
    for call in (lambda: sampler.step(1.0, x, x), lambda: sampler.model_input(1.0, x)):
        with pytest.raises(TypeError, match=r"i = 1\.0: expected an integer, a row of ddim, got float"):
            call()
    for call in (lambda: sampler.step(x, 1, x), lambda: sampler.model_input(x, 1)):  # an array is not printed
        with pytest.raises(TypeError, match=r"^i: expected an integer, a row of ddim, got ndarray$"):
            call()
    for given in ([Row(out=past[0])], None):
        with pytest.raises(TypeError, match=r"tableau: expected a noisefuse\.Tableau, .*, got (list|NoneType)"):
            Sampler(given)


def test_the_state_of_another_sampler_is_refused():
    x = np.ones((2, 3))
    other = samplers.ddim(VP, 5).state(x)
    for state, kind in ((other, "another"), ({}, "dict")):
        for options in ({}, {"denoised_out": np.empty_like(x)}):
            with pytest.raises(TypeError, match=rf"state: expected dpmpp_2m's own, .*, got {kind}"):
                samplers.dpmpp_2m(VP, 5).step(0, x, x, state=state, **options)


def test_a_state_of_another_shape_is_refused():
    """The message has the user's name: seen to speak of "past1"."""
    sampler, x = samplers.dpmpp_2m(VP, 5), np.ones((2, 3))
    for state in (sampler.state(x[:1]), sampler.state(x.astype(np.float32))):
        for options in ({}, {"denoised_out": np.empty_like(x)}):
            with pytest.raises((ValueError, TypeError), match=r"^state: made for an x of shape .*, got an x of shape"):
                sampler.step(0, x, x, state=state, **options)
    with pytest.raises(ValueError, match=r"^model_output \(m1\): expected shape"):
        sampler.step(0, x, x[:1], state=sampler.state(x))


def test_guidance_is_the_mixture():
    rng = np.random.default_rng(0)
    x, uncond, cond = rng.normal(size=(3, 4, 6))
    sampler = samplers.ddpm(VP, 5)
    noise = Noise(3)
    weights = np.array([1.0, 7.5, 0.0, -2.0])
    for scale in (7.5, weights):
        w = np.reshape(scale, (-1, 1))
        expected = sampler.step(1, x, uncond + w * (cond - uncond), noise)
        got = sampler.step(1, x, (uncond, cond), noise, guidance_scale=scale)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(sampler.step(1, x, [uncond, cond], noise, guidance_scale=scale), got)
    noises = [Noise(8), Noise(9, step=2), Noise(3, sample=5), Noise(1)]
    together = sampler.step(1, x, (uncond, cond), noises, guidance_scale=weights)
    for b, one in enumerate(noises):
        row = slice(b, b + 1)
        alone = sampler.step(1, x[row], (uncond[row], cond[row]), one, guidance_scale=weights[b])
        np.testing.assert_array_equal(together[row], alone)
    x_half, *outputs = (a.astype(np.float16) for a in (x, uncond, cond))  # their noise is float32 either way
    for scale in (7.5, np.full(4, 7.5)):
        got = sampler.step(1, x_half, tuple(outputs), noise, guidance_scale=scale)
        expected = sampler.step(1, x_half, tuple(outputs), noise, guidance_scale=7.5)
        np.testing.assert_array_equal(got, expected)
    for bad in ({"model_output": cond, "guidance_scale": 2.0}, {"model_output": (uncond, cond)}):
        with pytest.raises(TypeError, match="guidance needs both"):
            sampler.step(1, x, noise=noise, **bad)
    with pytest.raises(ValueError, match=r"a number or of shape \(4,\), got \(3,\)"):
        sampler.step(1, x, (uncond, cond), noise, guidance_scale=weights[:3])
    for scale in (math.nan, [1.0, 2.0, math.inf, 0.0]):
        with pytest.raises(ValueError, match="guidance_scale must be finite, got"):
            sampler.step(1, x, (uncond, cond), noise, guidance_scale=scale)


@pytest.mark.parametrize("guided", [False, True])
def test_dynamic_thresholding(guided):
    rng = np.random.default_rng(1)
    x, uncond, cond = rng.normal(size=(3, 4, 60))
    for array in (x, uncond, cond):
        array[0] /= 50  # a sample that stays inside [-1, 1] is not scaled
    sampler = samplers.ddpm(VP, 5, prediction="v", clip=samplers.Threshold(0.9, 2.5))
    w = np.array([1.0, 3.0, 0.5, 2.0])
    m = uncond + w[:, None] * (cond - uncond) if guided else cond
    row = sampler.tableau.rows[2]
    clean = row["clean"]["x"] * x + row["clean"]["m1"] * m
    s = np.clip(np.quantile(np.abs(clean), 0.9, axis=1, keepdims=True), 1, 2.5)
    assert s[0] == 1
    bounded = samplers.ddpm(VP, 5, prediction="sample", clip=1e9)  # its model output is D
    noise, denoised = Noise(4), np.empty_like(x)
    expected = bounded.step(2, x, np.clip(clean, -s, s) / s, noise)
    output, options = ((uncond, cond), {"guidance_scale": w}) if guided else (m, {})
    got = sampler.step(2, x, output, noise, denoised_out=denoised, **options)
    np.testing.assert_allclose(denoised, np.clip(clean, -s, s) / s, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    x[1, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(sampler.step(2, x, output, noise, **options)), np.isnan(x))


def test_dynamic_thresholding_of_a_single_number():
    sampler = samplers.ddim(VP, 4, clip=samplers.Threshold(0.9, 2))
    one, x = np.array([1.5]), np.array(1.5)
    assert sampler.step(0, x, x / 2) == sampler.step(0, one, one / 2)[0]


def test_empty_batches():
    for shape in ((0, 4), (2, 0)):
        x = np.ones(shape, np.float32)
        for clip in (None, samplers.Threshold(0.9, 2)):
            sampler = samplers.ddim(VP, 4, clip=clip)
            assert sampler.step(0, x, x).shape == shape
            assert sampler.step(0, x, (x, x), guidance_scale=np.ones(shape[:1])).shape == shape


@pytest.mark.parametrize("name", ALL)
def test_denoised_is_d(name):
    """denoised_out and the callback get D (for lcm: f), whether the row keeps it or not, and the run stays as it is.

    Seen to fail: a state that lacks what denoised_out took in its place.
    """
    schedule = Schedule.karras(20) if name == "edm" else Schedule.flow() if name in OF_FLOWS else VP
    sampler = getattr(samplers, name)(schedule, 6)
    seen = []
    guided = {"guidance_scale": 2.0} if name in CFG_PP else {}
    answers = (lambda x, t: 2 * (np.sin(x),)) if guided else (lambda x, t: np.sin(x))
    run = partial(sampler.sample, answers, (2, 4), Noise(1), dtype="float64", **guided)
    np.testing.assert_array_equal(run(callback=lambda *a: seen.append(a)), run())
    assert [i for i, _, _ in seen] == list(range(len(sampler)))
    _, x, denoised = seen[-1]
    if name not in (
        "pndm",
        "lms",
        "flow_sde",
        "dance_sde",
        "ddim_inverse",
    ):  # their last step averages, draws, or rises
        np.testing.assert_array_equal(x, denoised)
    row, before = sampler.tableau.rows[1], seen[0][1]
    m = np.sin(sampler.model_input(1, before)[0])
    if name != "lcm":
        np.testing.assert_allclose(seen[1][2], row["clean"]["x"] * before + row["clean"]["m1"] * m, rtol=1e-12)
    assert len({id(array) for _, x, d in seen for array in (x, d)}) == 2 * len(sampler)


def test_a_run_can_start_late():
    sampler, model, noise = samplers.heun(VP, 5), gaussian_model(VP), Noise(2)
    seen = []
    whole = sampler.sample(model, (2, 3), noise, callback=lambda i, x, d: seen.append(x))
    np.testing.assert_array_equal(sampler.sample(model, seen[3], noise, start=4), whole)
    with pytest.raises(ValueError, match="row 3 of heun remembers rows before 3"):
        sampler.sample(model, seen[2], noise, start=3)
    with pytest.raises(ValueError, match="build a sampler of the times that are left"):
        samplers.dpmpp_2m(VP, 5).sample(model, seen[2], noise, start=2)
    for push in ([1, 0], [0, 0]):  # a step would have found zeros
        with pytest.raises(ValueError, match="row 1 of tableau reads past2, which no row before it keeps"):
            Sampler(Tableau([Row(out=x, aux1=m1), Row(out=past[1])], push=push))
    with pytest.raises(TypeError, match="give x at the level of that row"):
        sampler.sample(model, (2, 3), noise, start=2)
    for noise in (None, 42, np.zeros((9, 2, 3))):
        with pytest.raises(TypeError, match="a new sample needs a Noise or a list of them, and start=0"):
            sampler.sample(model, (2, 3), noise)


@pytest.mark.parametrize(("dtype", "level"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_time_of_a_batch(dtype, level):
    """The array has x's own kind; torch's in test_torch.py, CuPy's in test_cuda.py."""
    x = np.ones((3, 4), dtype)
    for sampler, kind in ((samplers.ddpm(VP, 5), "int64"), (samplers.euler(Schedule.karras(9), 5), level)):
        seen = []
        results = [
            sampler.sample(lambda x, t, seen=seen: seen.append(t) or x, x, Noise(1), **time)
            for time in ({"time": "batch"}, {"time": "scalar"}, {})
        ]
        assert {r.tobytes() for r in results} == {results[0].tobytes()}
        batch, scalar, default = seen[:5], seen[5:10], seen[10:]
        assert [(t.shape, t.dtype) for t in batch] == [((3,), kind)] * 5
        np.testing.assert_array_equal(batch, np.repeat(np.array(sampler.timesteps, kind), 3).reshape(5, 3))
        assert [type(t) for t in scalar] == [type(t) for t in default] == [type(sampler.timesteps[0])] * 5
    assert sampler.model_input(2, x[0, 0], time="batch")[1].shape == ()
    with pytest.raises(ValueError, match='time: expected "scalar" or "batch", got \'tensor\''):
        sampler.model_input(2, x, time="tensor")


@pytest.mark.parametrize("start", [0, 2])
def test_noise_drawn_before(start):
    sampler, x, noise = samplers.ddpm(VP, 6), np.ones((2, 3), np.float32), Noise(4)
    drawn = [nf.randn(x.shape, noise.at(step=i, stream=3)) for i in range(start, 6)]
    expected = sampler.sample(lambda x, t: np.cos(x), x, noise, start=start)
    unread = np.full(x.shape, np.nan, np.float32)  # the last row draws none
    for given in (drawn, tuple(drawn), np.array(drawn), [*drawn[:-1], None], np.array([*drawn[:-1], unread])):
        result = sampler.sample(lambda x, t: np.cos(x), x, given, start=start)
        np.testing.assert_array_equal(result, expected)
    bad = [
        (TypeError, "noise: expected a Noise, a list of them, or an array for each row, got 5: a bare seed", 5),
        (ValueError, f"noise: expected {6 - start} arrays, one for each row from {start} on, got 3", drawn[-3:]),
        (ValueError, rf"noise\[1\]: row {start + 1} draws; expected an array of shape \(2, 3\), got NoneType",
         [drawn[0], None, *drawn[2:]]),
        (ValueError, rf"noise\[0\]: row {start} draws; expected .* \(2, 3\), got shape \(3,\)", np.array(drawn)[:, 0]),
        (ValueError, rf"noise\[0\]: row {start} draws; expected .*, got Noise", [noise, *drawn[1:]]),
    ]  # fmt: skip
    for error, message, given in bad:
        with pytest.raises(error, match=message):
            sampler.sample(lambda x, t: np.cos(x), x, given, start=start)


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, given_ax = plt.subplots()
    try:
        sampler = samplers.ddim(VP, 5)
        assert sampler.plot(given_ax) is given_ax
        assert given_ax.get_title() == "ddim, 5 rows"
        for line, column in zip(given_ax.get_lines(), (sampler.tableau.alpha, sampler.tableau.sigma), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), column)
        log_snr = figure.axes[1].get_lines()[0].get_ydata()
        np.testing.assert_allclose(log_snr, np.log(VP.snr[sampler.timesteps]), rtol=1e-14)
        ax = samplers.euler(Schedule.karras(9), 4).plot()
        assert (ax.get_yscale(), len(ax.get_lines()), len(ax.figure.axes)) == ("log", 1, 1)
        ax.figure.canvas.draw()
    finally:
        plt.close("all")
    with pytest.raises(ValueError, match="tableau does not say at what level each row begins"):
        Sampler(Tableau([Row(out=x)])).plot()


@pytest.mark.parametrize("case", DETERMINISTIC, ids=str)
def test_noised_is_the_level_of_a_row(case):
    """If the model answers x0, every deterministic sampler keeps x0 and z, and only their weights change."""
    sampler, x0, noise = Sampler(case.tableau(8)), np.random.default_rng(0).normal(size=(2, 5)), Noise(4, step=6)
    z = nf.randn(x0.shape, noise.at(stream=2), dtype="float64")
    x, state = sampler.noised(0, x0, noise), sampler.state(x0)
    for i in range(len(sampler)):
        np.testing.assert_allclose(x, sampler.noised(i, x0, noise), rtol=1e-9, atol=1e-9)
        x = sampler.step(i, x, x0, state=state)
    alpha, sigma = case.ends(8)
    np.testing.assert_allclose(sampler.noised(0, x0, noise), alpha[0] * x0 + sigma[0] * z, rtol=1e-12)
    np.testing.assert_allclose(x, alpha[1] * x0 + sigma[1] * z, rtol=1e-9, atol=1e-9)


def test_image_to_image():
    sampler, x0, noise = samplers.ddim(VP, 10), np.random.default_rng(0).normal(size=(2, 3)).astype("f4"), Noise(2)
    x, out = sampler.noised(4, x0, noise), np.empty_like(x0)
    np.testing.assert_allclose(x, nf.q_sample(x0, int(sampler.timesteps[4]), VP, noise.at(stream=2)), rtol=1e-6)
    assert sampler.noised(4, x0, noise, out=out) is out
    np.testing.assert_array_equal(out, x)
    e = nf.randn(x0.shape, noise.at(stream=2))
    np.testing.assert_allclose(sampler.sample(lambda x, t: e, x, start=4), x0, atol=1e-5)
    both = sampler.noised(4, x0, [noise, noise.at(sample=1)])
    np.testing.assert_array_equal(both, x)
    with pytest.raises(ValueError, match="tableau does not say at what level row 0 begins"):
        Sampler(Tableau([Row(out=D)])).noised(0, x0, noise)
    with pytest.raises(IndexError, match="got 10"):
        sampler.noised(10, x0, noise)


def test_a_list_of_noises_is_a_loop_over_samples():
    noises = [Noise(1, sample=9), Noise(2, step=4)]
    for sampler in (samplers.ddpm(VP, 5), samplers.dpmpp_2m_sde(VP, 5)):
        together = sampler.sample(gaussian_model(VP), (2, 3), noises)
        for b, noise in enumerate(noises):
            np.testing.assert_array_equal(together[b : b + 1], sampler.sample(gaussian_model(VP), (1, 3), noise))


def test_immutable_and_picklable():
    sampler = samplers.unipc(VP, 6, order=3)
    with pytest.raises(AttributeError, match="a Sampler is immutable"):
        sampler.tableau = None
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.tableau.numbers.tobytes() == sampler.tableau.numbers.tobytes()
    assert repr(copy) == repr(sampler)
    assert repr(samplers.ddim(VP, 2)).splitlines()[0] == "Sampler(ddim, 2 rows)"
    assert isinstance(copy, Sampler)


def test_progress(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    samplers.ddim(VP, 3).sample(gaussian_model(VP), (1, 2), Noise(0), progress=True)
    assert "3/3" in capsys.readouterr().err

    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match="progress=True needs tqdm"):
        samplers.ddim(VP, 3).sample(gaussian_model(VP), (1, 2), Noise(0), progress=True)


@pytest.mark.parametrize("prediction", ["flow", "v", "sample"])
def test_res_multistep_with_fresh_noise_begins_where_a_flow_has_no_signal(prediction):
    """Its first row keeps nothing of x, so the second row has no earlier step for a slope."""
    table = samplers.res_multistep(Schedule.flow(1000), 5, eta=1.0, prediction=prediction).tableau
    assert table.rows["out"]["past1"][1] == 0
    assert table.rows["out"]["past1"][2] != 0


def test_a_state_is_printed_as_the_arrays_it_remembers():
    """Seen to fail: an object at some address, as before."""
    x = np.zeros((2, 3), np.float32)
    assert repr(samplers.ddim(VP, 4).state(x)) == "State(nothing is remembered)"
    assert repr(samplers.dpmpp_2m(VP, 4).state(x)) == "State(float32 (2, 3))"
    assert repr(samplers.lms(VP, 4).state(x)).count("float32 (2, 3)") == 3
