# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's menu of samplers: each name has a function here, or a reason; the functions against loops, flows and not.

Seen to fail: a flow's x taken for x / alpha; the unconditional answer of a step's first call in its second; a row more
than the last step has; other errors than the last accepted ones in the controller.
"""

import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import host_loops as loops
import noisefuse as nf
from host_loops import Frame, Host, ancestral, down_up, multistep, multistep_sde, seeds

torch = pytest.importorskip("torch")
kd = pytest.importorskip("noisefuse.interop.k_diffusion")

from test_k_diffusion import CASES as KNOWN  # noqa: E402
from test_k_diffusion import SIGNATURES as KNOWN_SIGNATURES  # noqa: E402
from test_k_diffusion import Motion, function, karras  # noqa: E402

ROOT = Path(__file__).parents[2]
# comfy/samplers.py: KSAMPLER_NAMES, and the three that SAMPLER_NAMES adds
KSAMPLER_NAMES = [
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0"),
    *("exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde"),
    *("dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm"),
    *("lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece"),
]
SAMPLER_NAMES = [*KSAMPLER_NAMES, "ddim", "uni_pc", "uni_pc_bh2"]

SHAPE = (3, 2, 5)
FLOW = torch.tensor([1.0, 0.93, 0.85, 0.7, 0.55, 0.4, 0.25, 0.12, 0.05, 0.0], dtype=torch.float64)
LEVELS = {"to clean data": karras(9), "a part": karras(9)[:6]}
FLOWS = {"a flow": FLOW, "a part of a flow": FLOW[1:6]}


# ---- the functions and the loops ---------------------------------------------------------------------------


def answers(x, sigma):
    """Returns the guided clean sample, and the unconditional one."""
    s = torch.as_tensor(sigma, dtype=x.dtype)
    s = s.reshape(-1, *[1] * (x.ndim - 1)) if s.ndim else s
    uncond = 0.25 / (0.25 + s**2) * x - 0.1 * torch.tanh(x / (1 + s))
    return uncond + 1.7 * 0.2 * torch.sin(x / (1 + s)), uncond


class Model:
    """ComfyUI's: it gives both to the functions that the sampler adds, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, sigma, model_options=None):
        self.calls += 1
        denoised, uncond = answers(x, sigma)
        for told in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = told({"denoised": denoised, "uncond_denoised": uncond})
        return denoised


def half_way(sigma):
    """tau: some steps draw, some do not."""
    return 0.8 if 0.1 <= sigma <= 3 else 0.0


SOME = {"eta": 0.5, "s_noise": 0.9}
EVERY = {  # the loop, and some options
    "euler_cfg_pp": (loops.euler_cfg_pp, [{}]),
    "euler_ancestral": (ancestral(loops.euler), [{}, SOME, {"eta": 0.0}]),
    "euler_ancestral_cfg_pp": (loops.euler_ancestral_cfg_pp, [{}, SOME]),
    "heunpp2": (loops.heunpp2, [{}, {"s_churn": 3.0, "s_tmin": 0.3, "s_noise": 1.1}]),
    "exp_heun_2_x0": (seeds((1.0,), default=0.0), [{}, {"solver_type": "phi_1"}]),
    "exp_heun_2_x0_sde": (seeds((1.0,)), [{}, SOME, {"solver_type": "phi_1"}]),
    "dpm_2_ancestral": (ancestral(loops.dpm_2), [{}, SOME, {"eta": 0.0}]),
    "dpmpp_2s_ancestral": (ancestral(loops.dpmpp_2s), [{}, SOME]),
    "dpmpp_2s_ancestral_cfg_pp": (loops.dpmpp_2s_ancestral_cfg_pp, [{}, SOME]),
    "dpmpp_sde": (loops.dpmpp_sde, [{}, SOME, {"r": 0.3}]),
    "dpmpp_sde_gpu": (loops.dpmpp_sde, [{}]),
    "dpmpp_2m_cfg_pp": (loops.dpmpp_2m_cfg_pp, [{}]),
    "dpmpp_2m_sde": (multistep_sde(False, "midpoint"), [{}, SOME]),
    "dpmpp_2m_sde_gpu": (multistep_sde(False, "midpoint"), [{}]),
    "dpmpp_2m_sde_heun": (multistep_sde(False, "heun"), [{}]),
    "dpmpp_2m_sde_heun_gpu": (multistep_sde(False, "heun"), [{"solver_type": "midpoint"}]),
    "dpmpp_3m_sde": (multistep_sde(True, "heun"), [{}, SOME]),
    "dpmpp_3m_sde_gpu": (multistep_sde(True, "heun"), [{}]),
    "deis": (multistep(loops.deis), [{}, {"max_order": 2}]),
    "lcm": (loops.lcm, [{}, {"s_noise": 0.9}, {"s_noise_end": 0.5, "noise_clip_std": 1.2}]),
    "ipndm_v": (multistep(loops.ipndm_v), [{}, {"max_order": 3}]),
    "res_multistep": (loops.res_multistep(False, 0.0), [{}]),
    "res_multistep_cfg_pp": (loops.res_multistep(True, 0.0), [{}]),
    "res_multistep_ancestral": (loops.res_multistep(False, 1.0), [{}, SOME]),
    "res_multistep_ancestral_cfg_pp": (loops.res_multistep(True, 1.0), [{}, SOME]),
    "gradient_estimation_cfg_pp": (loops.gradient_estimation_cfg_pp, [{}, {"ge_gamma": 1.5}]),
    "er_sde": (loops.er_sde, [{}, {"s_noise": 0.9, "max_stage": 2}, {"noise_scaler": lambda v: v * v}]),
    "seeds_2": (seeds((0.5,), "phi_1"), [{}, SOME, {"r": 0.3, "solver_type": "phi_2"}]),
    "seeds_3": (seeds((1 / 3, 2 / 3)), [{}, SOME, {"r_1": 0.2}]),
    "sa_solver": (loops.sa_solver(False), [{}, {"tau_func": half_way, "predictor_order": 2}, {"corrector_order": 0}]),
    "sa_solver_pece": (loops.sa_solver(True), [{}, {"tau_func": half_way, "s_noise": 0.9}]),
}
PLACES = {"dpmpp_sde": ["r"], "dpmpp_sde_gpu": ["r"], "seeds_2": ["r"], "seeds_3": ["r_1", "r_2"]}
ALL = [(name, options) for name, (_, several) in EVERY.items() for options in several]


def start(sigmas):
    return sigmas[0] * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def motion(name, x, sigmas, options, frame):
    """Returns normals of one Brownian motion that is known at all levels which a step may stop at."""
    own = inspect.signature(function(name)).parameters
    places = [options.get(key, own[key].default) for key in PLACES.get(name, [])]
    pairs = [(a, b) for a, b in itertools.pairwise(frame.below_one(sigmas)) if b]
    inner = {frame.sigma((1 - r) * frame.lam(a) + r * frame.lam(b)) for a, b in pairs for r in places}
    return Motion(x, {*sigmas, *frame.below_one(sigmas), *inner})


def spelled(value):
    """Returns a parameter's part of a test's name, which is the same in every process: functions are named."""
    if isinstance(value, str):
        return value
    return ", ".join(f"{key}={getattr(option, '__name__', option)}" for key, option in value.items()) or "no options"


@pytest.mark.parametrize(("kind", "flow"), [*((k, False) for k in LEVELS), *((k, True) for k in FLOWS)], ids=str)
@pytest.mark.parametrize(("name", "options"), ALL, ids=spelled)
def test_a_function_is_the_hosts_formula(name, options, kind, flow):
    sigmas = (FLOWS if flow else LEVELS)[kind]
    x, frame = start(sigmas), Frame(flow)
    own = inspect.signature(function(name)).parameters
    draw, model, seen = motion(name, x, sigmas.tolist(), options, frame), Model(), []
    torch.manual_seed(3)  # for churn
    normals = draw if "noise_sampler" in own else lambda sigma, to: torch.randn_like(x)
    expected = EVERY[name][0](x, sigmas.tolist(), Host(answers, normals, flow), **options)
    torch.manual_seed(3)
    given = {"noise_sampler": draw} if "noise_sampler" in own else {}
    given |= {"flow": flow} if "flow" in own else {}
    found = function(name)(model, x.clone(), sigmas, None, seen.append, True, **given, **options)
    assert (found - expected).abs().max() <= 1e-11 * expected.abs().max()
    assert [call["i"] for call in seen] == list(range(len(sigmas) - 1))
    levels = Frame(flow and kd.MENU[name].below_one).below_one(sigmas.tolist())
    assert [float(call["sigma"]) for call in seen] == levels[:-1]
    assert all(call["sigma_hat"] > call["sigma"] for call in seen[:2]) == ("s_churn" in options)
    if "s_churn" in options:  # other numbers in float32
        return
    single = function(name)(model, x.float(), sigmas.float(), disable=True, **given, **options)
    assert single.dtype == torch.float32
    assert (single - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- steps by the error, and by a number of calls ----------------------------------------------------------


def solver_step(x, sigma, to, order):
    """Returns DPM-Solver of order 1, 2 (with r) or 3, in the noise; order = (k, r)."""
    k, r = order
    t, h = -math.log(sigma), math.log(sigma / to)
    e = Host(answers).slope
    at = lambda part: math.exp(-(t + part * h))  # noqa: E731
    first = e(x, sigma)
    if k == 1:
        return x - to * math.expm1(h) * first
    u = x - at(r) * math.expm1(r * h) * first
    second = e(u, at(r))
    if k == 2:
        return x - to * math.expm1(h) * (first + (second - first) / (2 * r))
    u = x - at(2 / 3) * (
        math.expm1(2 * h / 3) * first + 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * (second - first)
    )
    third = e(u, at(2 / 3))
    return x - to * (math.expm1(h) * first + 1.5 * (math.expm1(h) / h - 1) * (third - first))


def down_to(sigma, to, eta, least):
    down = max(down_up(sigma, to, eta)[0], least) if eta else to
    return down, math.sqrt(max(0.0, to**2 - down**2))


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    ("n", "orders"), [(1, [1]), (2, [2]), (3, [2, 1]), (5, [3, 2]), (10, [3, 3, 3, 1]), (9, [3, 3, 2, 1])]
)
def test_dpm_fast(n, orders, eta):
    """Seen to fail: orders that begin with the lowest; sigma_down below the end."""
    x, model, seen = 14.6 * start(torch.ones(1)), Model(), []
    levels = np.exp(np.linspace(math.log(14.6), math.log(0.03), len(orders) + 1)).tolist()
    draw, expected = Motion(x, levels), x
    for order, (sigma, to) in zip(orders, itertools.pairwise(levels), strict=True):
        down, up = down_to(sigma, to, eta, levels[-1])
        expected = solver_step(expected, sigma, down, (order, 1 / order)) + (0.9 * up * draw(sigma, to) if up else 0)
    found = kd.sample_dpm_fast(model, x, 0.03, 14.6, n, None, seen.append, True, eta, 0.9, draw)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert model.calls == n
    assert len(seen) == len(orders)


def adaptive(x, least, most, draw, order=3, rtol=0.05, atol=0.0078, h_init=0.05, p=0.0, i=1.0, d=0.0, eta=0.0):
    t, end, before, errors, h, steps = -math.log(most), -math.log(least), x, None, h_init, []
    k = 1.5 if eta else order
    powers = (p + i + d) / k, -(p + 2 * d) / k, d / k
    while t < end - 1e-5:
        to = min(end, t + h)
        sigma, sigma_to = math.exp(-t), math.exp(-to)
        down, up = down_to(sigma, sigma_to, eta, least)
        low = solver_step(x, sigma, down, (order - 1, 1 / 3))
        high = solver_step(x, sigma, down, (order, 1 / order))
        bound = torch.maximum(torch.tensor(atol, dtype=x.dtype), rtol * torch.maximum(low.abs(), before.abs()))
        error = float((((low - high) / bound) ** 2).mean().sqrt())
        now = 1 / (error + 1e-8)
        errors = errors or [now, now]
        factor = 1 + math.atan(now ** powers[0] * errors[0] ** powers[1] * errors[1] ** powers[2] - 1)
        h *= factor
        steps.append((error, h))
        if factor >= 0.81:
            x, before, t = high + (up * draw(sigma, sigma_to) if up else 0), low, to
            errors = [now, errors[0]]
    return x, steps


ADAPTIVE = [{}, {"eta": 0.7}, {"rtol": 0.01, "atol": 1e-4, "p": 0.1, "i": 0.8, "d": 0.05, "h_init": 0.5}]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
def test_dpm_adaptive(order, options):
    """Seen to fail: the controller's errors of rejected steps kept; the error beside the higher solution."""
    x, model, seen = 14.6 * start(torch.ones(1)), Model(), []
    draw = lambda a, b: torch.cos(9.0 * math.log(b) + torch.arange(30.0)).reshape(SHAPE).double()  # noqa: E731
    expected, steps = adaptive(x, 0.03, 14.6, draw, order, **options)
    names = {"p": "pcoeff", "i": "icoeff", "d": "dcoeff"}
    given = {names.get(key, key): value for key, value in options.items()}
    run = kd.sample_dpm_adaptive
    found, info = run(
        model, x, 0.03, 14.6, None, seen.append, order=order, noise_sampler=draw, return_info=True, **given
    )
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert [(call["error"], call["h"]) for call in seen] == [pytest.approx(step, rel=1e-6) for step in steps]
    assert info == {key: seen[-1][key] for key in info}
    assert info["steps"] == info["n_accept"] + info["n_reject"] == len(steps)
    assert info["nfe"] == model.calls == order * info["n_accept"] + (order - 1) * info["n_reject"]
    assert torch.equal(run(model, x, 0.03, 14.6, order=order, noise_sampler=draw, **given), found)


def ideal(x, sigma):
    """The denoiser of data N(0, 1/4), of x0 + sigma z."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return 0.25 / (0.25 + s**2) * x


def test_dpm_adaptive_has_one_path_for_any_steps():
    """Tighter bounds take more steps to nearly the same picture; other noise gives another. Seen to fail: the noise of
    an attempt's number."""
    x = 10 * nf.randn_like(torch.empty(1, 2000), nf.Noise(1))
    run = lambda seed, rtol: kd.sample_dpm_adaptive(  # noqa: E731
        ideal, x, 0.02, 10.0, eta=1.0, rtol=rtol, atol=1e-3, noise=nf.Noise(seed), return_info=True
    )
    (coarse, few), (fine, many), (other, _) = run(2, 0.05), run(2, 0.005), run(3, 0.005)
    assert many["steps"] > 1.5 * few["steps"]
    assert (coarse - fine).abs().mean() < 0.4 * (other - fine).abs().mean()


def test_runs_that_rise():
    """They go back to where they came from, without noise alone."""
    x = 0.5 * torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for run in (
        lambda x, *ends: kd.sample_dpm_adaptive(ideal, x, *ends, rtol=1e-4, atol=1e-5),
        lambda x, *ends: kd.sample_dpm_fast(ideal, x, *ends, 120, disable=True),
    ):
        noisy = run(x, 10.0, 0.1)
        assert (noisy.abs() > 5 * x.abs()).all()
        assert torch.allclose(run(noisy, 0.1, 10.0), x, rtol=1e-3)
    with pytest.raises(ValueError, match=r"eta must be 0 for a run that rises, from 0\.1 to 10, got 1\.0"):
        kd.sample_dpm_adaptive(ideal, x, 10.0, 0.1, eta=1.0)
    with pytest.raises(ValueError, match="draws noise goes to a lower level"):
        kd.sample_dpm_fast(ideal, x, 10.0, 0.1, 6, eta=1.0)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("dpm_fast", {"sigma_min": 0.0}, ValueError, "sigma_min and sigma_max must be above 0, got 0.0 and 10.0"),
        ("dpm_fast", {"n": 0}, ValueError, "n must be at least 1, got 0"),
        ("dpm_adaptive", {"sigma_max": -1.0}, ValueError, "sigma_min and sigma_max must be above 0, got 0.1 and -1.0"),
        ("dpm_adaptive", {"order": 4}, ValueError, "order must be 2 or 3, got 4"),
        (
            "dpm_adaptive",
            {"x": torch.full((1, 3), math.nan)},
            ValueError,
            "from 10 to .* is nan, so x or D is not finite",
        ),
        ("dpm_adaptive", {"x": np.ones(3)}, TypeError, "x: expected a tensor, got ndarray"),
        ("dpm_adaptive", {"noise": nf.Noise(1), "noise_sampler": ideal}, TypeError, "noise, noise_sampler: give one"),
        ("dpm_adaptive", {"noise": 3, "eta": 1.0}, TypeError, "expected a Noise.*, got 3"),
    ],
)
def test_what_is_wrong_is_said(name, given, error, message):
    usual = {"model": ideal, "x": torch.ones(1, 3), "sigma_min": 0.1, "sigma_max": 10.0, "disable": True}
    usual |= {"n": 6} if name == "dpm_fast" else {}
    with pytest.raises(error, match=message):
        function(name)(**{**usual, **given})


# ---- noise, and what models have to tell -------------------------------------------------------------------

DRAWING = [name for name in EVERY if "noise_sampler" in inspect.signature(function(name)).parameters]
OWN = [name for name in DRAWING if kd.MENU[name].flow == "own" and not name.endswith(("cfg_pp", "gpu", "lcm"))]


@pytest.mark.parametrize("name", DRAWING)
def test_named_noise_is_a_samples_own(name):
    given = {"flow": True} if kd.MENU[name].flow == "own" else {}
    x = start(FLOW)
    run = lambda x, noise: function(name)(Model(), x, FLOW[:6], disable=True, noise=noise, **given)  # noqa: E731
    whole = run(x, [nf.Noise(seed) for seed in (11, 12, 13)])
    assert torch.equal(run(x[1:2], nf.Noise(12)), whole[1:2])
    assert torch.equal(run(x, nf.Noise(11)), whole) == ("ancestral" not in name and name.startswith("res"))


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_the_result_has_the_deviation_of_the_data(name, flow):
    """Data is N(0, 1/4), with its ideal denoiser. Seen to fail: a tenth less noise."""
    n = 100 if name == "euler_ancestral" else 60 if name.startswith("dpmpp_2m") else 30
    sigmas = torch.linspace(1, 0, n + 1) if flow else karras(n, 0.02, 10.0).float()

    def model(x, sigma):
        s = sigma.reshape(-1, 1)
        alpha = 1 - s if flow else 1
        return 0.25 * alpha / (0.25 * alpha**2 + s**2) * x

    x = sigmas[0] * nf.randn_like(torch.empty(1, 10000), nf.Noise(1))
    found = function(name)(model, x, sigmas, disable=True, noise=nf.Noise(2), flow=flow)
    assert abs(float(found.std()) - 0.5) < 0.02


def test_a_model_that_tells_nothing_is_named():
    for name in ("euler_cfg_pp", "res_multistep_ancestral_cfg_pp"):
        with pytest.raises(TypeError, match=r'calls the functions in model_options\["sampler_post_cfg_function"\]'):
            function(name)(lambda x, sigma, model_options: 0.1 * x, start(FLOW), FLOW[:4], disable=True)


def test_other_functions_of_the_models_options_stay():
    """The dictionaries are the caller's. Seen to fail: written in place."""
    before, seen = {"sampler_post_cfg_function": [lambda found: 0.5 * found["denoised"]], "else": 3}, []

    def model(x, sigma, model_options):
        seen.append({key: value for key, value in model_options.items() if key != "sampler_post_cfg_function"})
        denoised, uncond = answers(x, sigma)
        for told in model_options["sampler_post_cfg_function"]:
            denoised = told({"denoised": denoised, "uncond_denoised": uncond})
        return denoised

    extra, x = {"model_options": before}, start(FLOW)
    found = kd.sample_euler_cfg_pp(model, x, FLOW[1:3], extra, disable=True)
    assert len(before["sampler_post_cfg_function"]) == 1
    assert extra == {"model_options": before}
    assert seen == [{"else": 3, "disable_cfg1_optimization": True}]
    guided, uncond = answers(x, FLOW[1])
    assert torch.allclose(found, 0.5 * guided + FLOW[2] * (x - uncond) / FLOW[1])


def test_a_part_of_heunpp2_continues_the_whole():
    """With the whole's first level; its last two steps look as far as the part reaches."""
    levels, x = karras(9).tolist(), start(FLOW)
    rows = [nf.samplers.heunpp2(nf.Schedule.karras(2), levels[:-1], prediction="sample").tableau.rows]
    for sigma_0 in (levels[0], None):
        part = nf.samplers.heunpp2(nf.Schedule.karras(2), levels[3:-1], sigma_0=sigma_0, prediction="sample")
        rows.append(part.tableau.rows)
    assert np.array_equal(rows[0][9:], rows[1])
    assert not np.array_equal(rows[0][9:], rows[2])
    assert kd.sample_heunpp2(ideal, x, torch.tensor(levels), disable=True).isfinite().all()
    with pytest.raises(ValueError, match="sigma_0 = 0: expected a finite number above 0"):
        nf.samplers.heunpp2(nf.Schedule.karras(2), levels[3:-1], sigma_0=0)


def test_clipped_noise_is_that_of_the_rows():
    """Named noise that no bound reaches is the rows' own."""
    x = start(FLOW)
    run = lambda **options: kd.sample_lcm(ideal, x, FLOW[:6], disable=True, noise=nf.Noise(3), **options)  # noqa: E731
    assert torch.allclose(run(noise_clip_std=100.0), run(), rtol=1e-12)
    assert not torch.allclose(run(noise_clip_std=0.5), run(), rtol=1e-3)


def test_deis_has_one_mode():
    with pytest.raises(ValueError, match="deis_mode must be tab, got 'rhoab'; sample_lms has Adams' method in sigma"):
        kd.sample_deis(ideal, start(FLOW), FLOW[:4], disable=True, deis_mode="rhoab")


def test_solvers_are_those_of_the_function():
    with pytest.raises(ValueError, match="solver_type must be phi_1 or phi_2, got 'heun'"):
        kd.sample_seeds_2(ideal, start(FLOW), FLOW[:4], disable=True, solver_type="heun")
    with pytest.raises(ValueError, match="solver_type must be midpoint or heun, got 'phi_2'"):
        kd.sample_dpmpp_2m_sde_heun(ideal, start(FLOW), FLOW[:4], disable=True, solver_type="phi_2")


# ---- the menu ----------------------------------------------------------------------------------------------

ANCESTRAL = {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}
STILL = {"s_noise": 1.0, "noise_sampler": None}
CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
ORDERS = {"tau_func": None, **STILL, "predictor_order": 3, "corrector_order": 4}
SIGNATURES = KNOWN_SIGNATURES | {
    "euler_cfg_pp": {},
    "dpmpp_2m_cfg_pp": {},
    **dict.fromkeys(("res_multistep", "res_multistep_cfg_pp"), STILL),
    **{name: ANCESTRAL for name in EVERY if name.endswith("ancestral_cfg_pp")},
    **dict.fromkeys(("res_multistep_ancestral", "dpmpp_3m_sde_gpu"), ANCESTRAL),
    "gradient_estimation_cfg_pp": {"ge_gamma": 2.0},
    "heunpp2": CHURN,
    "ipndm_v": {"max_order": 4},
    "deis": {"max_order": 3, "deis_mode": "tab"},
    "ddim": CHURN,
    "exp_heun_2_x0": {"solver_type": "phi_2"},
    "exp_heun_2_x0_sde": {**ANCESTRAL, "solver_type": "phi_2"},
    "dpmpp_sde_gpu": {**ANCESTRAL, "r": 0.5},
    "dpmpp_2m_sde_gpu": {**ANCESTRAL, "solver_type": "midpoint"},
    "dpmpp_2m_sde_heun": {**ANCESTRAL, "solver_type": "heun"},
    "dpmpp_2m_sde_heun_gpu": {**ANCESTRAL, "solver_type": "heun"},
    "seeds_2": {**ANCESTRAL, "r": 0.5, "solver_type": "phi_1"},
    "seeds_3": {**ANCESTRAL, "r_1": 1 / 3, "r_2": 2 / 3},
    "er_sde": {**STILL, "noise_scaler": None, "max_stage": 3},
    "sa_solver": {**ORDERS, "use_pece": False, "simple_order_2": False},
    "sa_solver_pece": {**ORDERS, "simple_order_2": False},
}
FUNCTIONS = [name for name in SAMPLER_NAMES if f"sample_{name}" in kd.__all__]


def test_every_name_has_an_entry():
    assert list(kd.MENU) == SAMPLER_NAMES
    for name, entry in kd.MENU.items():
        assert entry.sampler in nf.samplers.__all__ or entry.note
        assert (name in FUNCTIONS) == bool(entry.sampler)
        assert ("flow" in inspect.signature(function(name)).parameters if name in FUNCTIONS else False) == (
            entry.flow == "own"
        )
    assert {f"sample_{name}" for name in FUNCTIONS} == {name for name in kd.__all__ if name.startswith("sample_")}
    assert {*FUNCTIONS} == {*KNOWN, *EVERY, "ddim", "dpm_fast", "dpm_adaptive"}


def test_ddim_is_euler():
    """Seen to fail: the menu had the name, and no function."""
    x = torch.randn(SHAPE, dtype=torch.float64)
    found, expected = (run(Model(), x, karras(9), disable=True) for run in (kd.sample_ddim, kd.sample_euler))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_and_defaults_are_theirs(name):
    parameters = inspect.signature(function(name)).parameters.values()
    theirs = {p.name: p.default for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert list(theirs.items())[6:] == list(SIGNATURES[name].items())
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} <= {"noise", "flow"}


ON_FLOWS = {"same": "the same steps", "own": "`flow=True`", "level": "the steps of x0 + sigma z", "": ""}


def test_the_guides_table_is_the_menus():
    rows = [
        f"| `{name}` | {f'`{entry.sampler}`' if entry.sampler else ''} | {ON_FLOWS[entry.flow]} | {entry.note} |"
        for name, entry in kd.MENU.items()
    ]
    head = ["| ComfyUI's name | sampler | flow models | |", "|---|---|---|---|"]
    expected = "\n".join([*head, *rows])
    assert expected in (ROOT / "docs" / "k_diffusion.md").read_text(), f"docs/k_diffusion.md should have\n{expected}"
