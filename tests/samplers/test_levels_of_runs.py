# SPDX-License-Identifier: Apache-2.0
"""Runs between any levels: cut runs, steps of no length, levels that are visited twice, pure noise and clean data."""

from functools import partial

import numpy as np
import pytest

from exact import apply_exact, run_exact
from noisefuse import samplers, views
from noisefuse.samplers.plan import Node
from noisefuse.schedule import Schedule
from noisefuse.tableau import Tableau
from sampler_cases import ALL, CFG_PP, EXPLODING_FRAME, FLOW, OF_FLOWS, TWO_CALLS, VP, ZERO_SNR


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
    here, there = (Node(VP.alpha[t], VP.sigma[t], t, t, 1.0, 0) for t in (steps[0], 200))
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


@pytest.mark.parametrize("prediction", ["flow", "v", "sample"])
def test_res_multistep_with_fresh_noise_begins_where_a_flow_has_no_signal(prediction):
    """Its first row keeps nothing of x, so the second row has no earlier step for a slope."""
    table = samplers.res_multistep(Schedule.flow(1000), 5, eta=1.0, prediction=prediction).tableau
    assert table.rows["out"]["past1"][1] == 0
    assert table.rows["out"]["past1"][2] != 0
