# SPDX-License-Identifier: Apache-2.0
"""Samplers of ComfyUI against plain loops on the same noise (host_loops.py)."""

import math

import numpy as np
import pytest

import host_loops as loops
import noisefuse as nf
from host_loops import Host, denoiser, multistep_sde, seeds
from noisefuse import samplers
from noisefuse.noise import Noise
from noisefuse.schedule import Schedule

SIGMAS = [*Schedule.karras(9).sigma[::-1].tolist(), 0.0]
LISTS = {"whole": SIGMAS, "noisy part": SIGMAS[:6], "repeated": [9.0, 9.0, 4.0, 4.0, 2.0, 0.5, 0.0]}
FLOWS = {"whole": [1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.1, 0.0], "part": [0.95, 0.8, 0.6, 0.5, 0.2]}


class Draws:
    """Normals in the order of rows. A second one from a level contains the first, as of one Brownian motion."""

    def __init__(self, drawn):
        self.drawn, self.begin = iter(drawn), None

    def __call__(self, sigma, to):
        z = next(self.drawn)
        if sigma == self.begin:
            share = (sigma - self.end) / (sigma - to)
            z = math.sqrt(share) * self.z + math.sqrt(1 - share) * z
        self.begin, self.end, self.z = sigma, to, z
        return z


def check(name, loop, sigmas, flow=False, ours=None, theirs=None):
    """The draws are the same, as arrays: to 1e-12 in float64 and 1e-5 in float32, of the largest |x| or 1."""
    schedule = Schedule.flow() if flow else Schedule.karras(9)
    options = {"prediction": "sample", "final": sigmas[-1], **(ours or {})}
    sampler = getattr(samplers, name)(schedule, np.array(sigmas[:-1]), **options)
    rng = np.random.default_rng(0)
    start = sigmas[0] * np.linspace(-2, 2, 7)
    draws = rng.normal(size=(len(sampler), 7))
    # rows that draw nothing take none of the loop's
    draw = Draws([*draws[sampler.tableau.as_rows.draws], *np.zeros((len(sampler), 7))])
    expected = loop(start, list(sigmas), Host(lambda x, s: (denoiser(x, s), None), draw, flow), **(theirs or {}))
    scale = sampler.tableau.scale  # x / alpha, in some
    got = sampler.sample(denoiser, start / scale[0], list(draws))
    final = 1 - sigmas[-1] if flow and not np.all(scale == 1) else 1.0
    np.testing.assert_allclose(final * got, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))
    single = sampler.sample(denoiser, (start / scale[0]).astype("f4"), [z.astype("f4") for z in draws])
    np.testing.assert_allclose(final * single, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_res_multistep(sigmas, eta):
    check("res_multistep", loops.res_multistep(False, 0.0), sigmas, ours={"eta": eta}, theirs={"eta": eta})


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
def test_res_multistep_of_a_flow(sigmas):
    """Computes ComfyUI's, which ignores alpha: its steps are in log sigma, from sigma = 1 on."""
    check("res_multistep", loops.res_multistep(False, 0.0), sigmas, flow=True)


# ---- flows: what ComfyUI's functions of these names do where x = (1 - sigma) x0 + sigma z -------------------


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "step"),
    [("euler_ancestral", loops.euler), ("dpm_2_ancestral", loops.dpm_2), ("dpmpp_2s_ancestral", loops.dpmpp_2s)],
)
def test_ancestral_steps_of_a_flow(name, step, eta, sigmas):
    """Seen to fail: the steps of x / alpha; x' without its factor; a middle in log sigma for dpmpp_2s_ancestral."""
    check(name, loops.ancestral(step), sigmas, flow=True, ours={"eta": eta}, theirs={"eta": eta})


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_samplers_in_log_snr_are_as_they_are_in_a_flow(eta):
    """There is no formula of the flow's own for them. Seen to fail: dpmpp_sde's pieces in sigma / alpha."""
    sigmas = FLOWS["part"]
    check("dpmpp_sde", loops.dpmpp_sde, sigmas, flow=True, ours={"eta": eta}, theirs={"eta": eta})
    check("dpmpp_sde", loops.dpmpp_sde, sigmas, True, {"eta": eta, "r": 0.3}, {"eta": eta, "r": 0.3})
    exact = {"lower_order_final": False}
    check("dpmpp_2m_sde", multistep_sde(False, "midpoint"), sigmas, True, {"eta": eta, **exact}, {"eta": eta})
    check("dpmpp_3m_sde", multistep_sde(True, "heun"), sigmas, True, {"eta": eta}, {"eta": eta})


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
def test_lcm_of_a_flow(sigmas):
    check("lcm", loops.lcm, sigmas, flow=True, ours={"sigma_data": 0.0})


def test_a_path_has_the_flows_clock_in_x_over_alpha_too():
    """Both pieces of a step of dpmpp_sde are of the motion that euler_ancestral sees. Seen to fail: sigma / alpha."""
    steps, noise = {"steps": [0.8, 0.4], "final": 0.1, "prediction": "sample"}, Noise(3)
    two, one = (getattr(samplers, name)(Schedule.flow(), **steps) for name in ("dpmpp_sde", "euler_ancestral"))
    pieces, whole = two.path(noise, end=0.1), one.path(noise, end=0.1)
    middle = float(two.timesteps[1])
    drawn = [nf.randn((1000,), z, dtype="float64") for z in (*pieces[:2], whole[0])]
    parts = math.sqrt(0.8 - middle) * drawn[0] + math.sqrt(middle - 0.4) * drawn[1]
    np.testing.assert_allclose(parts, math.sqrt(0.4) * drawn[2], atol=1e-5)


def test_res_multistep_is_dpmpp_2m_with_exact_weights():
    """If alpha = 1, and with eta = 1 the SDE's. It is an identity of the formulas."""
    steps = {"steps": SIGMAS[:-1], "prediction": "sample"}
    for eta, rule in ((0.0, samplers.dpmpp_2m), (1.0, samplers.dpmpp_2m_sde)):
        theirs = rule(Schedule.karras(9), solver="heun", lower_order_final=False, **steps).tableau.unfolded().numbers
        ours = samplers.res_multistep(Schedule.karras(9), eta=eta, **steps).tableau.unfolded().numbers
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:6], SIGMAS[:2], SIGMAS[:3], FLOWS["part"]], ids=str)
def test_heunpp2(sigmas):
    check("heunpp2", loops.heunpp2, sigmas)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:6]], ids=str)
def test_ipndm_v(sigmas, order):
    check("ipndm_v", loops.multistep(loops.ipndm_v), sigmas, ours={"order": order}, theirs={"max_order": order})


def test_ipndm_v_on_equal_steps_is_ipndm_up_to_order_3():
    levels = np.linspace(3, 1, 9)
    for order in (1, 2, 3, 4):
        numbers = [
            getattr(samplers, name)(Schedule.karras(9), levels[:-1], final=1.0, order=order).tableau.unfolded().numbers
            for name in ("ipndm_v", "ipndm")
        ]
        assert np.allclose(*numbers, rtol=1e-11, atol=1e-11) == (order < 4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sigmas", "flow"), [*((s, False) for s in LISTS.values()), (FLOWS["part"], True)], ids=str)
def test_seeds(sigmas, flow, eta):
    """The loop takes each stage anew from x, with the noise of all the pieces: ours continues from the stage before."""
    for r, solver in ((0.5, "midpoint"), (0.3, "heun"), (1.0, "heun")):
        kind = {"midpoint": "phi_1", "heun": "phi_2"}[solver]
        check("seeds_2", seeds((r,), kind), sigmas, flow, {"eta": eta, "r": r, "solver": solver}, {"eta": eta})
    for inner in ((1 / 3, 2 / 3), (0.2, 0.5)):
        check("seeds_3", seeds(inner), sigmas, flow, {"eta": eta, "r_1": inner[0], "r_2": inner[1]}, {"eta": eta})


@pytest.mark.parametrize("points", [None, 200])
@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (SIGMAS[:6], False), (FLOWS["part"], True)], ids=str)
def test_er_sde(sigmas, flow, points):
    for order in (1, 2, 3):
        theirs = {"max_stage": order, "points": points}
        check("er_sde", loops.er_sde, sigmas, flow, {"order": order, "points": points}, theirs)


@pytest.mark.parametrize("levels", [[9.0, 9.0, 4.0, 2.0], [9.0, 4.0, 4.0, 2.0], [9.0, 4.0, 2.0, 2.0]], ids=str)
def test_levels_that_repeat_are_no_differences(levels):
    """Seen to fail: a second difference over two levels that coincide."""
    sampler = samplers.er_sde(Schedule.karras(2), steps=levels)
    assert not np.isnan(sampler.tableau.rows.view(np.float64)).any()


@pytest.mark.parametrize("pece", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (SIGMAS[:6], False), (FLOWS["part"], True)], ids=str)
def test_sa_solver(sigmas, flow, tau, pece):
    for p, c in ((1, 0), (1, 2), (2, 2), (3, 1), (3, 4)):
        for simple in (False, True):
            ours = {"predictor_order": p, "corrector_order": c, "simple_order_2": simple, "pece": pece and c > 0}
            if sigmas[-1]:
                if pece and c:  # it corrects the last step, too, unlike ComfyUI
                    continue
                ours["lower_order_final"] = False
            theirs = {"tau_func": lambda s: tau, "predictor_order": p, "corrector_order": c, "simple_order_2": simple}
            check("sa_solver", loops.sa_solver(pece), sigmas, flow, {"tau": tau, **ours}, theirs)


# ---- CFG++: Chung et al. 2024, with the unconditional answer in every step ---------------------------------


def both(x, sigma):
    """Returns (unconditional, conditional)."""
    return denoiser(x, sigma), np.sin(x / (2 + sigma)) - 0.05 * sigma


def guided(scale, draws, flow=False):
    """Returns a host whose model is guided by this scale."""

    def answers(x, sigma):
        uncond, cond = both(x, sigma)
        return uncond + scale * (cond - uncond), uncond

    return Host(answers, Draws(draws), flow)


CFG_PP = [name for name in samplers.__all__ if name.endswith("cfg_pp")]


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp(name, scale):
    """Seen to fail: the guided output in place of the unconditional one."""
    for sigmas in (SIGMAS, SIGMAS[:6]):
        rule = getattr(samplers, name)
        sampler = rule(Schedule.karras(9), sigmas[:-1], final=sigmas[-1], prediction="sample")
        x, draws = 80 * np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(len(sampler), 7))
        loop = loops.res_multistep(True, 0.0) if name == "res_multistep_cfg_pp" else getattr(loops, name)
        expected = loop(x, sigmas, guided(scale, draws[sampler.tableau.as_rows.draws]))
        largest = max(1.0, np.abs(expected).max())
        got = sampler.sample(both, x, list(draws), guidance_scale=scale)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * largest)
        got = sampler.sample(both, np.float32(x), list(np.float32(draws)), guidance_scale=scale)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * largest)
        single = sampler.sample(
            both, np.tile(x, (2, 1)), [np.tile(z, (2, 1)) for z in draws], guidance_scale=[scale, 9]
        )
        np.testing.assert_allclose(single[0], expected, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpmpp_2s_ancestral_cfg_pp_of_a_flow(eta, sigmas):
    """Seen to fail: guidance that is not scaled by alpha'."""
    rule = samplers.dpmpp_2s_ancestral_cfg_pp
    sampler = rule(Schedule.flow(), sigmas[:-1], final=sigmas[-1], prediction="sample", eta=eta)
    x, draws = np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(len(sampler), 7))
    host = guided(1.7, draws[sampler.tableau.as_rows.draws], flow=True)
    expected = loops.dpmpp_2s_ancestral_cfg_pp(x, sigmas, host, eta)
    got = sampler.sample(both, x, list(draws), guidance_scale=1.7)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_res_multistep_cfg_pp_with_noise(eta):
    sampler = samplers.res_multistep_cfg_pp(Schedule.karras(9), SIGMAS[:-1], prediction="sample", eta=eta)
    x, draws = 80 * np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(len(sampler), 7))
    expected = loops.res_multistep(True, eta)(x, SIGMAS, guided(1.7, draws))
    got = sampler.sample(both, x, list(draws), guidance_scale=1.7)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.flow(), Schedule.karras(1000)], ids=str)
def test_cfg_pp_of_equal_answers_is_the_sampler_itself(schedule):
    options = {"prediction": "v", "spacing": "karras", "sigma_max": 0.9 if schedule == Schedule.flow() else 9.0}
    twins = {"euler_cfg_pp": "ddim", "euler_ancestral_cfg_pp": "ddim", "dpmpp_2m_cfg_pp": "dpmpp_2m"}
    twins |= {"dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral"}
    for name, twin in twins.items():
        extra = {"eta": 1.0} if "ancestral" in name else {}
        ours = getattr(samplers, name)(schedule, 8, **options, **extra)
        extra |= {"lower_order_final": False} if twin == "dpmpp_2m" else {}
        theirs = getattr(samplers, twin)(schedule, 8, **options, **extra)
        x, draws = np.linspace(-2, 2, 7), list(np.random.default_rng(0).normal(size=(len(ours), 7)))
        expected = theirs.sample(lambda x, t: np.cos(x), x * ours.tableau.scale[0] / theirs.tableau.scale[0], draws)
        got = ours.sample(lambda x, t: (np.cos(x), np.cos(x)), x, draws, guidance_scale=1.3)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_cfg_pp_needs_a_pair():
    sampler, x = samplers.euler_cfg_pp(Schedule.linear(), 4), np.ones((2, 3))
    with pytest.raises(TypeError, match="guidance needs both"):
        sampler.step(0, x, (x, x))
    with pytest.raises((TypeError, ValueError), match=r"model_output \(m2\)"):
        sampler.step(0, x, x)
