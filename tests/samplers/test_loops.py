# SPDX-License-Identifier: Apache-2.0
"""Samplers of ComfyUI (comfy/k_diffusion/sampling.py) against plain loops on the same noise.

The loops follow the papers and the computations of ComfyUI's functions, one call of the network after the other, in its
variables: a noise level sigma of x, and lambda = log(alpha / sigma) where the schedule matters.
"""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

import noisefuse as nf
from noisefuse import samplers
from noisefuse.noise import Noise
from noisefuse.schedule import Schedule

SIGMAS = [*Schedule.karras(9).sigma[::-1].tolist(), 0.0]
LISTS = {"whole": SIGMAS, "noisy part": SIGMAS[:6], "repeated": [9.0, 9.0, 4.0, 4.0, 2.0, 0.5, 0.0]}
FLOWS = {"whole": [1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.1, 0.0], "part": [0.95, 0.8, 0.6, 0.5, 0.2]}


def answer(x, sigma):
    """Stands for a denoiser, not linear in x."""
    return np.cos(x / (1 + sigma)) + 0.1 * sigma


def levels(sigmas, flow):
    """Returns (alpha, lambda) of each."""
    alpha = 1 - np.array(sigmas) if flow else np.ones(len(sigmas))
    with np.errstate(divide="ignore"):
        return alpha, np.log(alpha / np.array(sigmas))


def pairs(sigmas):
    return list(itertools.pairwise(sigmas))


def ancestral(here, there, eta):
    """Returns (down, up) of a step of variance exploding."""
    up = min(there, eta * math.sqrt(max(0, there**2 * (here**2 - there**2) / here**2)))
    return math.sqrt(there**2 - up**2), up


def res_multistep(x, sigmas, draw, eta=0.0):
    before = old_down = None
    for i, (here, there) in enumerate(pairs(sigmas)):
        denoised = answer(x, here)
        down, up = ancestral(here, there, eta)
        if down == 0 or before is None:
            x = x + (x - denoised) / here * (down - here)
        else:
            h = math.log(here / down)
            c_2 = math.log(old_down / sigmas[i - 1]) / h if h else 0
            phi_1 = -math.expm1(-h) / h if h else 1.0
            phi_2 = (phi_1 - 1) / -h if h else 0.5
            b_2 = phi_2 / c_2 if c_2 else 0.0
            x = math.exp(-h) * x + h * ((phi_1 - b_2) * denoised + b_2 * before)
        x = x + up * draw() if up else x
        before, old_down = denoised, down
    return x


def heunpp2(x, sigmas, draw):
    for i, (here, there) in enumerate(pairs(sigmas)):
        d = (x - answer(x, here)) / here
        if i == len(sigmas) - 2:
            x = x + d * (there - here)
            continue
        x_2 = x + d * (there - here)
        d_2 = (x_2 - answer(x_2, there)) / there
        if i == len(sigmas) - 3:
            w_2 = there / (2 * sigmas[0])
            x = x + ((1 - w_2) * d + w_2 * d_2) * (there - here)
            continue
        further = sigmas[i + 2]
        x_3 = x_2 + d_2 * (further - there)
        d_3 = (x_3 - answer(x_3, further)) / further
        w_2, w_3 = there / (3 * sigmas[0]), further / (3 * sigmas[0])
        x = x + ((1 - w_2 - w_3) * d + w_2 * d_2 + w_3 * d_3) * (there - here)
    return x


def ipndm_v(x, sigmas, draw, order=4):
    slopes = []
    for i, (here, there) in enumerate(pairs(sigmas)):
        denoised = answer(x, here)
        slopes = [(x - denoised) / here, *slopes][:order]
        if there == 0:
            return denoised
        h, h_1, h_2, h_3 = ([b - a for a, b in pairs(sigmas[: i + 2])][::-1] + [1.0] * 3)[:4]
        weights = [0.0] * 4
        temp_1 = (1 - h / (3 * (h + h_1)) * (h * (h + h_1)) / (h_1 * (h_1 + h_2))) / 2
        ratio = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
        temp_2 = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
        temp_2 *= (h * (h + h_1) * (h + h_1 + h_2)) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
        if len(slopes) == 1:
            weights[0] = 1.0
        if len(slopes) > 1:
            weights[:2] = [1 + h / h_1 / 2, -h / h_1 / 2]
        if len(slopes) > 2:
            weights[0] += temp_1
            weights[1] -= (1 + h_1 / h_2) * temp_1
            weights[2] += temp_1 * h_1 / h_2
        if len(slopes) > 3:
            weights[0] += temp_2
            weights[1] -= (1 + h_1 / h_2 + ratio) * temp_2
            weights[2] += (h_1 / h_2 + ratio * (1 + h_2 / h_3)) * temp_2
            weights[3] -= temp_2 * ratio * h_1 / h_2
        x = x + h * sum(w * d for w, d in zip(weights, slopes, strict=False))
    return x


def phi_1(h):
    return math.expm1(h)


def phi_2(h):
    return (math.expm1(h) - h) / h if h else 0.0


def seeds(x, sigmas, draw, eta=1.0, inner=(0.5,), flow=False, kind="phi_1"):
    """Computes both: each stage from x, with its own noise and the decayed noise of the stages before."""
    alphas, lambdas = levels(sigmas, flow)
    for i, (here, there) in enumerate(pairs(sigmas)):
        Ds = [answer(x, here)]
        if there == 0:
            return Ds[0]
        h = lambdas[i + 1] - lambdas[i]
        c, noise, last = h * (1 + eta), np.zeros_like(x), 0.0
        for k, r in enumerate([*inner, 1.0]):
            lam = lambdas[i] + r * h
            sigma = there if r == 1 else 1 / (math.exp(lam) + flow)
            alpha = alphas[i + 1] if r == 1 else sigma * math.exp(lam)
            if k == 0:
                weights = [phi_1(-r * c)]
            elif len(inner) == 1:
                b = phi_1(-c) / (2 * inner[0]) if kind == "phi_1" else phi_2(-c) / inner[0]
                weights = [phi_1(-c) - b, b]
            elif k == 1:
                a = r / inner[0] * phi_2(-r * c)
                weights = [phi_1(-r * c) - a, a]
            else:
                b = phi_2(-c) / inner[1]
                weights = [phi_1(-c) - b, 0.0, b]
            fresh = math.sqrt(-math.expm1(2 * (last - r) * h * eta))
            noise = noise * math.exp((last - r) * h * eta) + (fresh * draw() if fresh else 0.0)
            mean = sigma / here * math.exp(-r * h * eta) * x
            stage = mean - alpha * sum(w * D for w, D in zip(weights, Ds, strict=True)) + sigma * noise
            last = r
            if k < len(inner):
                Ds.append(answer(stage, sigma))
        x = stage
    return x


def er_sde(x, sigmas, draw, order=3, flow=False, points=200):
    alphas, _ = levels(sigmas, flow)
    ratios = np.array(sigmas) / alphas

    def scale(level):
        return level * (np.exp(level**0.3) + 10.0)

    Ds, slope_before = [], None
    for i, (_, there) in enumerate(pairs(sigmas)):
        Ds = [answer(x, sigmas[i]), *Ds]
        if there == 0:
            return Ds[0]
        here, end = ratios[i], ratios[i + 1]
        r = scale(end) / scale(here)
        x = alphas[i + 1] / alphas[i] * r * x + alphas[i + 1] * (1 - r) * Ds[0]
        if points is None:
            s = quad(lambda v: 1 / scale(v), end, here, epsabs=1e-15, epsrel=1e-13)[0]
            s_u = quad(lambda v, here=here: (v - here) / scale(v), end, here, epsabs=1e-15, epsrel=1e-13)[0]
        else:
            at = end + np.arange(points) * (here - end) / points
            s, s_u = (np.sum(f / scale(at)) * (here - end) / points for f in (1.0, at - here))
        if order > 1 and i > 0:
            slope = (Ds[0] - Ds[1]) / (here - ratios[i - 1])
            x = x + alphas[i + 1] * (end - here + s * scale(end)) * slope
            if order > 2 and i > 1:
                bend = (slope - slope_before) / ((here - ratios[i - 2]) / 2)
                x = x + alphas[i + 1] * ((end - here) ** 2 / 2 + s_u * scale(end)) * bend
            slope_before = slope
        x = x + alphas[i + 1] * math.sqrt(max(0.0, end**2 - here**2 * r**2)) * draw()
    return x


def sa_solver(x, sigmas, draw, tau=1.0, predictor=3, corrector=4, flow=False, pece=False, simple=False):
    """Computes algorithm 1 of Xue et al. 2023: the weights solve a linear system for integrals of monomials."""
    alphas, lambdas = levels(sigmas, flow)
    n = len(sigmas) - 1

    def weights(at, i, correct):
        begin, end, k = lambdas[i], lambdas[i + 1], 1 + tau**2
        h = end - begin
        if simple and len(at) == 2:  # at begins with the oldest
            w = k * h / 2 if correct else k * h**2 / 2 / (at[0] - begin)
            first = -math.expm1(-k * h) - w
            return [first, w] if correct else [w, first]
        whole = [
            quad(lambda s, p=p: k * math.exp(k * (s - end)) * (s - begin) ** p, begin, end, epsabs=1e-15, epsrel=1e-13)
            for p in range(len(at))
        ]
        return np.linalg.solve(np.vander(np.array(at) - begin, increasing=True).T, [value for value, _ in whole])

    guess, Ds, noise = x, [], None
    for i in range(n):
        Ds.append(answer(guess, sigmas[i]))
        p = min(predictor, len(Ds))
        c = 0 if i == 0 or (sigmas[i + 1] == 0 and not pece) else min(corrector, len(Ds))
        if sigmas[-1] == 0:
            p, c = min(p, n - 1 - i), min(c, n - i)
        if c:
            w = weights(lambdas[i - c + 1 : i + 1], i - 1, True)
            decay = sigmas[i] / sigmas[i - 1] * math.exp(-(tau**2) * (lambdas[i] - lambdas[i - 1]))
            x = decay * x + alphas[i] * sum(a * D for a, D in zip(w, Ds[-c:], strict=True)) + noise
            if pece:
                Ds[-1] = answer(x, sigmas[i])
        else:
            x = guess
        if sigmas[i + 1] == 0:
            return Ds[-1]
        w, h = weights(lambdas[i - p + 1 : i + 1], i, False), lambdas[i + 1] - lambdas[i]
        noise = draw() * sigmas[i + 1] * math.sqrt(-math.expm1(-2 * tau**2 * h))
        guess = sigmas[i + 1] / sigmas[i] * math.exp(-(tau**2) * h) * x + noise
        guess = guess + alphas[i + 1] * sum(a * D for a, D in zip(w, Ds[-p:], strict=True))
    return guess


def check(name, loop, sigmas, flow=False, ours=None, theirs=None):
    """The draws are the same, as arrays: to 1e-12 in float64 and 1e-5 in float32, of the largest |x| or 1."""
    schedule = Schedule.flow() if flow else Schedule.karras(9)
    options = {"prediction": "sample", "final": sigmas[-1], **(ours or {})}
    sampler = getattr(samplers, name)(schedule, np.array(sigmas[:-1]), **options)
    rng = np.random.default_rng(0)
    start = sigmas[0] * np.linspace(-2, 2, 7)
    draws = rng.normal(size=(len(sampler), 7))
    # rows that draw nothing take none of the loop's
    own = iter(z for z, draws_any in zip(draws, sampler.tableau.as_rows.draws, strict=True) if draws_any)
    left = itertools.chain(own, itertools.repeat(np.zeros(7)))
    expected = loop(start, list(sigmas), lambda: next(left), **(theirs or {}))
    scale = sampler.tableau.scale  # x / alpha, in some
    got = sampler.sample(answer, start / scale[0], list(draws))
    final = 1 - sigmas[-1] if flow and not np.all(scale == 1) else 1.0
    np.testing.assert_allclose(final * got, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))
    single = sampler.sample(answer, (start / scale[0]).astype("f4"), [z.astype("f4") for z in draws])
    np.testing.assert_allclose(final * single, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("sigmas", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_res_multistep(sigmas, eta):
    check("res_multistep", res_multistep, sigmas, ours={"eta": eta}, theirs={"eta": eta})


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
def test_res_multistep_of_a_flow(sigmas):
    """Computes ComfyUI's, which ignores alpha: its steps are in log sigma, from sigma = 1 on."""
    check("res_multistep", res_multistep, sigmas, flow=True)


# ---- flows: what ComfyUI's functions of these names do where x = (1 - sigma) x0 + sigma z -------------------


def rising(here, there, eta):
    """Returns (down, factor, noise) of a step's end: x' = factor x_down + noise z, from down up to there."""
    down = there * (1 + (there / here - 1) * eta)
    factor = (1 - there) / (1 - down)
    return down, factor, math.sqrt(max(0.0, there**2 - (down * factor) ** 2))


def flow_ancestral(step):
    def loop(x, sigmas, draw, eta=1.0):
        for here, there in pairs(sigmas):
            if there == 0:
                x = answer(x, here)
                continue
            down, factor, noise = rising(here, there, eta)
            x = step(x, here, down)
            x = factor * x + noise * draw() if eta and noise else x
        return x

    return loop


def flow_euler(x, here, to):
    return x + (x - answer(x, here)) / here * (to - here)


def flow_dpm_2(x, here, to):
    middle = math.exp((math.log(here) + math.log(to)) / 2)
    u = flow_euler(x, here, middle)
    return x + (u - answer(u, middle)) / middle * (to - here)


def flow_2s(x, here, to):
    logits = [math.log((1 - s) / s) for s in (here, to)] if here < 1 else []
    middle = 1 / (1 + math.exp(sum(logits) / 2)) if logits else 0.9999
    u = middle / here * x + (1 - middle / here) * answer(x, here)
    return to / here * x + (1 - to / here) * answer(u, middle)


def flow_dpmpp_sde(x, sigmas, draw, eta=1.0, r=0.5):
    """One Brownian motion in the flow's own sigma; the formulas are those of sigma / alpha."""
    for here, there in pairs(sigmas):
        D = answer(x, here)
        if there == 0:
            x = D
            continue
        s, t = here / (1 - here), there / (1 - there)
        middle = s ** (1 - r) * t**r
        inner = middle / (1 + middle)
        first, second = draw(), 0.0
        down, up = ancestral(s, middle, eta)
        u = (1 - inner) * (down / s * x / (1 - here) + (1 - down / s) * D + up * first)
        D_2 = answer(u, inner)
        second = draw()
        share = (here - inner) / (here - there)
        whole = math.sqrt(share) * first + math.sqrt(1 - share) * second
        down, up = ancestral(s, t, eta)
        mixed = (1 - 1 / (2 * r)) * D + D_2 / (2 * r)
        x = (1 - there) * (down / s * x / (1 - here) + (1 - down / s) * mixed + up * whole)
    return x


def flow_multistep_sde(x, sigmas, draw, eta=1.0, third=False):
    """dpmpp_2m_sde and, with a third level, dpmpp_3m_sde, in lambda = log((1 - sigma) / sigma)."""
    known = []
    for here, there in pairs(sigmas):
        D = answer(x, here)
        if there == 0:
            x = D
            continue
        h = math.log((1 - there) / there) - math.log((1 - here) / here)
        a = h * (eta + 1)
        base = there / here * math.exp(-h * eta) * x - (1 - there) * math.expm1(-a) * D
        if third and len(known) == 2:
            (D_1, h_1), (D_2, h_2) = known
            near, far = (D - D_1) * h / h_1, (D_1 - D_2) * h / h_2
            slope, curve = near + (near - far) * h_1 / (h_1 + h_2), (near - far) * h / (h_1 + h_2)
            phi_2 = math.expm1(-a) / a + 1
            base = base + (1 - there) * (phi_2 * slope - (phi_2 / a - 0.5) * curve)
        elif known:
            weight = math.expm1(-a) / a + 1 if third else -math.expm1(-a) / 2
            base = base + (1 - there) * weight * (D - known[0][0]) * h / known[0][1]
        x = base + there * math.sqrt(-math.expm1(-2 * eta * h)) * draw() if eta else base
        known = [(D, h), *known][:2]
    return x


def flow_lcm(x, sigmas, draw):
    for here, there in pairs(sigmas):
        D = answer(x, here)
        x = (1 - there) * D + there * draw() if there else D
    return x


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "step"),
    [("euler_ancestral", flow_euler), ("dpm_2_ancestral", flow_dpm_2), ("dpmpp_2s_ancestral", flow_2s)],
)
def test_ancestral_steps_of_a_flow(name, step, eta, sigmas):
    """Seen to fail: the steps of x / alpha; x' without its factor; a middle in log sigma for dpmpp_2s_ancestral."""
    check(name, flow_ancestral(step), sigmas, flow=True, ours={"eta": eta}, theirs={"eta": eta})


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_samplers_in_log_snr_are_as_they_are_in_a_flow(eta):
    """There is no formula of the flow's own for them. Seen to fail: dpmpp_sde's pieces in sigma / alpha."""
    sigmas = FLOWS["part"]
    check("dpmpp_sde", flow_dpmpp_sde, sigmas, flow=True, ours={"eta": eta}, theirs={"eta": eta})
    check("dpmpp_sde", flow_dpmpp_sde, sigmas, True, {"eta": eta, "r": 0.3}, {"eta": eta, "r": 0.3})
    exact = {"lower_order_final": False}
    check("dpmpp_2m_sde", flow_multistep_sde, sigmas, True, {"eta": eta, **exact}, {"eta": eta})
    check("dpmpp_3m_sde", flow_multistep_sde, sigmas, True, {"eta": eta}, {"eta": eta, "third": True})


@pytest.mark.parametrize("sigmas", FLOWS.values(), ids=FLOWS)
def test_lcm_of_a_flow(sigmas):
    check("lcm", flow_lcm, sigmas, flow=True, ours={"sigma_data": 0.0})


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
    check("heunpp2", heunpp2, sigmas)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:6]], ids=str)
def test_ipndm_v(sigmas, order):
    check("ipndm_v", ipndm_v, sigmas, ours={"order": order}, theirs={"order": order})


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
        theirs = {"eta": eta, "inner": (r,), "flow": flow, "kind": kind}
        check("seeds_2", seeds, sigmas, flow, {"eta": eta, "r": r, "solver": solver}, theirs)
    for inner in ((1 / 3, 2 / 3), (0.2, 0.5)):
        theirs = {"eta": eta, "inner": inner, "flow": flow}
        check("seeds_3", seeds, sigmas, flow, {"eta": eta, "r_1": inner[0], "r_2": inner[1]}, theirs)


@pytest.mark.parametrize("points", [None, 200])
@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (SIGMAS[:6], False), (FLOWS["part"], True)], ids=str)
def test_er_sde(sigmas, flow, points):
    for order in (1, 2, 3):
        theirs = {"order": order, "flow": flow, "points": points}
        check("er_sde", er_sde, sigmas, flow, {"order": order, "points": points}, theirs)


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
            theirs = {"tau": tau, "predictor": p, "corrector": c, "flow": flow, "pece": pece, "simple": simple}
            check("sa_solver", sa_solver, sigmas, flow, {"tau": tau, **ours}, theirs)


# ---- CFG++: Chung et al. 2024, with the unconditional answer in every step ---------------------------------


def both(x, sigma):
    """Returns (unconditional, conditional)."""
    return answer(x, sigma), np.sin(x / (2 + sigma)) - 0.05 * sigma


def euler_cfg_pp(x, sigmas, scale, draw, eta):
    for here, there in pairs(sigmas):
        uncond, cond = both(x, here)
        denoised = uncond + scale * (cond - uncond)
        down, up = ancestral(here, there, eta)
        x = denoised + down * (x - uncond) / here + (up * draw() if up else 0.0)
    return x


def dpmpp_2m_cfg_pp(x, sigmas, scale, draw):
    before = None
    for i, (here, there) in enumerate(pairs(sigmas)):
        uncond, cond = both(x, here)
        denoised = uncond + scale * (cond - uncond)
        mixed = -there / here * uncond
        if before is not None and there:
            h, last = math.log(here / there), math.log(sigmas[i - 1] / here)
            mixed += (1 - there / here) * h / (2 * last) * (denoised - before)
        x = denoised + mixed + there / here * x
        before = uncond
    return x


def res_multistep_cfg_pp(x, sigmas, scale, draw, eta):
    before = old_down = None
    for i, (here, there) in enumerate(pairs(sigmas)):
        uncond, cond = both(x, here)
        denoised = uncond + scale * (cond - uncond)
        down, up = ancestral(here, there, eta)
        if down == 0 or before is None:
            x = denoised + (x - uncond) / here * down
        else:
            h = math.log(here / down)
            c_2 = math.log(old_down / sigmas[i - 1]) / h
            phi_1 = -math.expm1(-h) / h
            b_2 = (1 - phi_1) / h / c_2
            x = math.exp(-h) * (x + denoised - uncond) + h * ((phi_1 - b_2) * uncond + b_2 * before)
        x = x + up * draw() if up else x
        before, old_down = uncond, down
    return x


def gradient_estimation_cfg_pp(x, sigmas, scale, gamma):
    old = None
    for here, there in pairs(sigmas):
        uncond, cond = both(x, here)
        denoised, d = uncond + scale * (cond - uncond), (x - uncond) / here
        x = denoised + d * there
        if old is not None and there:
            x = x + (gamma - 1) * (d - old) * (there - here)
        old = d
    return x


def dpmpp_2s_ancestral_cfg_pp(x, sigmas, scale, draw, eta, flow=False):
    for here, there in pairs(sigmas):
        uncond, cond = both(x, here)
        guidance = scale * (cond - uncond)
        if there == 0:
            x = uncond + guidance
            continue
        if flow:
            down, factor, up = rising(here, there, eta)
            odds = [math.log((1 - s) / s) for s in (here, down)] if here < 1 else []
            middle = 1 / (1 + math.exp(sum(odds) / 2)) if odds else 0.9999
        else:
            (down, up), factor = ancestral(here, there, eta), 1.0
            middle = math.sqrt(here * down)
        u = middle / here * x + (1 - middle / here) * uncond
        x = down / here * x + (1 - down / here) * both(u, middle)[0]
        x = factor * x + (up * draw() if up else 0.0) + (1 - there if flow else 1.0) * guidance
    return x


def cfg_pp_loop(name, x, sigmas, scale, draw, flow=False):
    eta = 1.0 if "ancestral" in name else 0.0
    if name.startswith("euler"):
        return euler_cfg_pp(x, sigmas, scale, draw, eta)
    if name == "dpmpp_2m_cfg_pp":
        return dpmpp_2m_cfg_pp(x, sigmas, scale, draw)
    if name == "gradient_estimation_cfg_pp":
        return gradient_estimation_cfg_pp(x, sigmas, scale, 2.0)
    if name == "res_multistep_cfg_pp":
        return res_multistep_cfg_pp(x, sigmas, scale, draw, eta)
    return dpmpp_2s_ancestral_cfg_pp(x, sigmas, scale, draw, eta, flow)


CFG_PP = [name for name in samplers.__all__ if name.endswith("cfg_pp")]


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp(name, scale):
    """Seen to fail: the guided output in place of the unconditional one."""
    for sigmas in (SIGMAS, SIGMAS[:6]):
        rule = getattr(samplers, name)
        sampler = rule(Schedule.karras(9), sigmas[:-1], final=sigmas[-1], prediction="sample")
        x, draws = 80 * np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(len(sampler), 7))
        draw = iter(draws[sampler.tableau.as_rows.draws]).__next__
        expected = cfg_pp_loop(name, x, sigmas, scale, draw)
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
    draw = iter(draws[sampler.tableau.as_rows.draws]).__next__
    expected = dpmpp_2s_ancestral_cfg_pp(x, sigmas, 1.7, draw, eta, flow=True)
    got = sampler.sample(both, x, list(draws), guidance_scale=1.7)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_res_multistep_cfg_pp_with_noise(eta):
    sampler = samplers.res_multistep_cfg_pp(Schedule.karras(9), SIGMAS[:-1], prediction="sample", eta=eta)
    x, draws = 80 * np.linspace(-2, 2, 7), np.random.default_rng(0).normal(size=(len(sampler), 7))
    expected = res_multistep_cfg_pp(x, SIGMAS, 1.7, iter(draws).__next__, eta)
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
