# SPDX-License-Identifier: Apache-2.0
"""The loops of k-diffusion's samplers (k_diffusion/sampling.py of crowsonkb/k-diffusion) and of ComfyUI's
(comfy/k_diffusion/sampling.py), written anew for NumPy's arrays and torch's tensors.

A loop is a function of x, a list of noise levels and a `Host`. lambda = log(alpha / sigma), where alpha is 1, or
1 - sigma in a flow.
"""

import itertools
import math

import numpy as np

inf = math.inf


class Frame:
    """alpha, lambda and back."""

    def __init__(self, flow=False):
        self.flow = flow

    def alpha(self, sigma):
        return 1 - sigma if self.flow else 1.0

    def lam(self, sigma):
        return math.log(self.alpha(sigma) / sigma)

    def sigma(self, lam):
        return 1 / (1 + math.exp(lam)) if self.flow else math.exp(-lam)

    def below_one(self, sigmas):
        return [min(sigmas[0], 0.9999), *sigmas[1:]] if self.flow else sigmas


class Host(Frame):
    """A model: answers(x, sigma) are the guided clean sample and the unconditional one. draw(sigma, to) are normals."""

    def __init__(self, answers, draw=None, flow=False):
        super().__init__(flow)
        self.answers, self.draw = answers, draw

    def D(self, x, sigma):
        return self.answers(x, sigma)[0]

    def slope(self, x, sigma):
        return (x - self.D(x, sigma)) / sigma


def denoiser(x, sigma):
    """Stands for a network, not linear in x."""
    return np.cos(x / (1 + sigma)) + 0.1 * sigma


# ---- steps without noise, and loops of them ----------------------------------------------------------------


def euler(x, sigma, to, host):
    return x + (to - sigma) * host.slope(x, sigma)


def heun(x, sigma, to, host):
    if to == 0:
        return euler(x, sigma, to, host)
    d = host.slope(x, sigma)
    return x + (to - sigma) * (d + host.slope(x + (to - sigma) * d, to)) / 2


def dpm_2(x, sigma, to, host):
    if to == 0:
        return euler(x, sigma, to, host)
    middle = math.sqrt(sigma * to)
    return x + (to - sigma) * host.slope(euler(x, sigma, middle, host), middle)


def middle_of(sigma, down, host):
    return 0.9999 if host.alpha(sigma) == 0 else host.sigma((host.lam(sigma) + host.lam(down)) / 2)


def dpmpp_2s(x, sigma, to, host):
    """Lu et al. 2022, algorithm 1, r = 1 / 2."""
    middle = middle_of(sigma, to, host)
    u = middle / sigma * x + (1 - middle / sigma) * host.D(x, sigma)
    return to / sigma * x + (1 - to / sigma) * host.D(u, middle)


def churned(step):
    def loop(x, sigmas, host, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0):
        for sigma, to in itertools.pairwise(sigmas):
            gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0
            hat = sigma * (1 + gamma)
            if gamma:
                x = x + s_noise * math.sqrt(hat**2 - sigma**2) * host.draw(sigma, to)
            x = step(x, hat, to, host)
        return x

    return loop


def down_up(sigma, to, eta):
    """sigma_down, and the deviation from there up to this level."""
    up = min(to, eta * math.sqrt(max(0.0, to**2 * (sigma**2 - to**2) / sigma**2))) if eta else 0.0
    return math.sqrt(to**2 - up**2), up


def renoised(sigma, to, eta, flow):
    """sigma_down, and what comes after: a factor and a deviation."""
    if not flow:
        down, up = down_up(sigma, to, eta)
        return down, 1.0, up
    down = to * (1 + (to / sigma - 1) * eta)
    factor = (1 - to) / (1 - down)
    return down, factor, math.sqrt(max(0.0, to**2 - (down * factor) ** 2))


def ancestral(step):
    """Makes a method without noise step to sigma_down, and then adds noise."""

    def loop(x, sigmas, host, eta=1.0, s_noise=1.0):
        for sigma, to in itertools.pairwise(sigmas):
            if to == 0:
                x = host.D(x, sigma)
                continue
            down, factor, up = renoised(sigma, to, eta, host.flow)
            x = factor * step(x, sigma, down, host)
            x = x + up * s_noise * host.draw(sigma, to) if up else x
        return x

    return loop


# ---- multistep methods in the noise ------------------------------------------------------------------------


def multistep(weights):
    """Returns x' = x + sum of weights times the slopes, the newest first."""

    def loop(x, sigmas, host, **options):
        slopes = []
        for i, to in enumerate(sigmas[1:]):
            slopes.insert(0, host.slope(x, sigmas[i]))
            found = weights(sigmas[i::-1], to, **options)
            x = x + sum(w * d for w, d in zip(found, slopes, strict=False))
        return x

    return loop


def lms(levels, to, order=4):
    levels = levels[:order]
    found = []
    for level in levels:
        others = [other for other in levels if other != level]
        lagrange = np.poly1d(np.poly(others) if others else [1.0]) / math.prod(level - other for other in others)
        found.append(lagrange.integ()(to) - lagrange.integ()(levels[0]))
    return found


ADAMS = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def ipndm(levels, to, max_order=4):
    return [(to - levels[0]) * w for w in ADAMS[min(len(levels), max_order) - 1 if to else 0]]


def gradient_estimation(levels, to, ge_gamma=2.0):
    """Permenter & Yuan 2023, algorithm 2."""
    h = to - levels[0]
    return [h * ge_gamma, h * (1 - ge_gamma)] if len(levels) > 1 and to else [h]


def ipndm_v(levels, to, max_order=4):
    h, *before = (a - b for a, b in itertools.pairwise([to, *levels[:max_order]]))
    if to == 0:
        return [h]
    weights = [1.0, 0.0, 0.0, 0.0]
    if before:
        h_1 = before[0]
        weights[0] += h / h_1 / 2
        weights[1] -= h / h_1 / 2
    if len(before) > 1:
        h_2, a = before[1], before[0] / before[1]
        u = (1 - h**2 / (3 * h_1 * (h_1 + h_2))) / 2
        weights = [w + u * c for w, c in zip(weights, (1, -1 - a, a, 0), strict=True)]
    if len(before) > 2:
        h_3 = before[2]
        b = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
        inner = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
        v = inner * h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
        curve = (1, -1 - a - b, a + b * (1 + h_2 / h_3), -a * b)
        weights = [w + v * c for w, c in zip(weights, curve, strict=True)]
    return [h * w for w in weights]


def vp_time(sigma):
    """The time of an SDE with log(1 + sigma^2) = b_d t^2 / 2 + b t, and the two."""
    low, high = math.log(1 + 0.002**2), math.log(1 + 80.0**2)
    b_d = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    b = high - b_d / 2
    return (math.sqrt(b**2 + 2 * b_d * math.log(1 + sigma**2)) - b) / b_d, b_d, b


def deis(levels, to, max_order=3):
    levels = levels[:max_order]
    if to == 0 or len(levels) == 1:
        return [to - levels[0]]
    nodes, (end, b_d, b) = [vp_time(s)[0] for s in levels], vp_time(to)
    t = np.linspace(nodes[0], end, 10000)
    kept = np.exp(-(t**2) * b_d / 2 - t * b)
    rate = (b_d * t + b) / (2 * np.sqrt(kept * (1 - kept)))
    found = []
    for j in range(len(nodes)):
        basis = math.prod((t - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j)
        found.append(float(np.sum(rate * basis)) * (end - nodes[0]) / 10000)
    return found


def heunpp2(x, sigmas, host, s_churn=0.0, s_tmin=0.0, s_noise=1.0):
    n = len(sigmas) - 1
    for i in range(n):
        hat = sigmas[i] * (1 + min(s_churn / n, math.sqrt(2) - 1) * (sigmas[i] >= s_tmin))
        x = x + s_noise * math.sqrt(hat**2 - sigmas[i] ** 2) * host.draw(sigmas[i], hat) if hat > sigmas[i] else x
        d, h = host.slope(x, hat), sigmas[i + 1] - hat
        if i == n - 1:
            x = x + h * d
            continue
        u = x + h * d
        slopes = [host.slope(u, sigmas[i + 1])]
        if i < n - 2:
            u = u + (sigmas[i + 2] - sigmas[i + 1]) * slopes[0]
            slopes.append(host.slope(u, sigmas[i + 2]))
        weights = [s / ((len(slopes) + 1) * sigmas[0]) for s in sigmas[i + 1 : i + 1 + len(slopes)]]
        x = x + h * ((1 - sum(weights)) * d + sum(w * s for w, s in zip(weights, slopes, strict=True)))
    return x


# ---- methods in the clean sample ---------------------------------------------------------------------------


def ddpm(x, sigmas, host):
    for sigma, to in itertools.pairwise(sigmas):
        abar, before = 1 / (1 + sigma**2), 1 / (1 + to**2)
        e, alpha = host.slope(x, sigma), abar / before
        x = (x * math.sqrt(abar) - (1 - alpha) / math.sqrt(1 - abar) * e) / math.sqrt(alpha)
        if to:
            z = host.draw(sigma, to)
            x = (x + math.sqrt((1 - alpha) * (1 - before) / (1 - abar)) * z) / math.sqrt(before)
    return x


def lcm(x, sigmas, host, s_noise=1.0, s_noise_end=None, noise_clip_std=0.0):
    n = len(sigmas) - 1
    for i, (sigma, to) in enumerate(itertools.pairwise(sigmas)):
        x = host.D(x, sigma)
        if to == 0:
            continue
        z, factor = host.draw(sigma, to), s_noise
        if noise_clip_std:
            z = z.clamp(-noise_clip_std * z.std(), noise_clip_std * z.std())
        if s_noise_end is not None:
            factor += (s_noise_end - s_noise) * i / (n - 1)
        x = host.alpha(to) * x + to * factor * z
    return x


def dpmpp_2m(x, sigmas, host):
    """Lu et al. 2022, algorithm 2; a first-order step if there is nothing to divide by."""
    old = last = None
    for sigma, to in itertools.pairwise(sigmas):
        d = new = host.D(x, sigma)
        h = math.log(sigma / to) if to else inf
        if to and last:
            d = new + (new - old) * h / (2 * last)
        x = math.exp(-h) * x - math.expm1(-h) * d
        old, last = new, h
    return x


def dpmpp_sde(x, sigmas, host, eta=1.0, s_noise=1.0, r=0.5):
    """Lu et al. 2022, section 5, of second order."""
    for sigma, to in itertools.pairwise(host.below_one(sigmas)):
        first = host.D(x, sigma)
        if to == 0:
            x = first
            continue
        middle = host.sigma((1 - r) * host.lam(sigma) + r * host.lam(to))
        ratio = lambda s: s / host.alpha(s)  # noqa: E731

        def half(x, denoised, end, sigma=sigma, ratio=ratio):
            down, up = down_up(ratio(sigma), ratio(end), eta)
            kept = down / ratio(sigma)
            mean = kept * x / host.alpha(sigma) + (1 - kept) * denoised
            return host.alpha(end) * (mean + (up * s_noise * host.draw(sigma, end) if up else 0))

        second = host.D(half(x, first, middle), middle)
        x = half(x, (1 - 1 / (2 * r)) * first + second / (2 * r), to)
    return x


def multistep_sde(third, solver):
    """dpmpp_2m_sde and, with its third level, dpmpp_3m_sde."""

    def loop(x, sigmas, host, eta=1.0, s_noise=1.0, solver_type=solver):
        known = []  # (D, h), the newest first
        for sigma, to in itertools.pairwise(host.below_one(sigmas)):
            denoised = host.D(x, sigma)
            if to == 0:
                x = denoised
                continue
            h = host.lam(to) - host.lam(sigma)
            a, alpha = h * (1 + eta), host.alpha(to)
            phi_2 = 1 + math.expm1(-a) / a if solver_type == "heun" else -math.expm1(-a) / 2
            x = to / sigma * math.exp(-eta * h) * x - alpha * math.expm1(-a) * denoised
            if third and len(known) > 1:
                (d_1, h_1), (d_2, h_2) = known[:2]
                near, far = (denoised - d_1) * h / h_1, (d_1 - d_2) * h / h_2
                curve = (near - far) * h / (h_1 + h_2)
                x = x + alpha * (phi_2 * (near + curve * h_1 / h) - (phi_2 / a - 0.5) * curve)
            elif known:
                x = x + alpha * phi_2 * (denoised - known[0][0]) * h / known[0][1]
            x = x + to * s_noise * math.sqrt(-math.expm1(-2 * eta * h)) * host.draw(sigma, to) if eta else x
            known.insert(0, (denoised, h))
        return x

    return loop


def seeds(inner, kind="phi_2", default=1.0):
    """SEEDS of two or three stages. The noise of a stage decays, and one more piece is added."""

    def loop(x, sigmas, host, eta=default, s_noise=1.0, solver_type=kind, **places):
        names = ("r",) if len(inner) == 1 else ("r_1", "r_2")
        rs = [places.get(name, r) for name, r in zip(names, inner, strict=True)]
        for sigma, to in itertools.pairwise(host.below_one(sigmas)):
            known = [host.D(x, sigma)]
            if to == 0:
                x = known[0]
                continue
            start, h, noise, last = host.lam(sigma), host.lam(to) - host.lam(sigma), 0.0, 0.0
            for r in [*rs, 1.0]:
                end = host.sigma(start + r * h) if r < 1 else to
                c = r * h * (1 + eta)
                phi_1, phi_2 = -math.expm1(-c), 1 + math.expm1(-c) / c if c else 0.0
                if len(known) == 1:
                    mean = phi_1 * known[0]
                else:
                    place = rs[-1] if len(known) == len(rs) + 1 else rs[0]
                    b = phi_1 / (2 * place) if solver_type == "phi_1" else phi_2 * r / place
                    mean = (phi_1 - b) * known[0] + b * known[-1]
                part = (r - last) * h * eta
                if part:  # r = 1 twice: the second piece is of no length
                    fresh = host.draw(host.sigma(start + last * h) if last else sigma, end)
                    noise = noise * math.exp(-part) + math.sqrt(-math.expm1(-2 * part)) * fresh
                u = end / sigma * math.exp(-r * h * eta) * x + host.alpha(end) * mean + end * s_noise * noise
                last = r
                if len(known) <= len(rs):
                    known.append(host.D(u, end))
            x = u
        return x

    return loop


def integral(function, start, end):
    from scipy.integrate import quad

    return quad(function, start, end, epsabs=1e-15, epsrel=1e-13)[0]


def er_sde(x, sigmas, host, s_noise=1.0, noise_scaler=None, max_stage=3, points=200):
    """points: of the sums; None: the integrals."""
    scale = noise_scaler or (lambda v: v * (np.exp(v**0.3) + 10))
    sigmas = host.below_one(sigmas)
    ratios = [s / host.alpha(s) for s in sigmas]
    old = old_d = None
    for i, (sigma, to) in enumerate(itertools.pairwise(sigmas)):
        denoised = host.D(x, sigma)
        if to == 0:
            x = denoised
            continue
        s, t = ratios[i], ratios[i + 1]
        alpha, r = host.alpha(to), float(scale(t) / scale(s))
        y = r * x / host.alpha(sigma) + (1 - r) * denoised
        if points is None:
            first, second = (integral(lambda v, k=k: (v - s) ** k / scale(v), t, s) for k in (0, 1))  # noqa: B023
        else:
            width = (s - t) / points
            at = t + width * np.arange(points)
            first, second = (float(np.sum((at - s) ** k / scale(at)) * width) for k in (0, 1))
        if min(max_stage, i + 1) > 1:
            d = (denoised - old) / (s - ratios[i - 1])
            y = y + (t - s + float(scale(t)) * first) * d
            if min(max_stage, i + 1) > 2:
                curve = 2 * (d - old_d) / (s - ratios[i - 2])
                y = y + ((t - s) ** 2 / 2 + float(scale(t)) * second) * curve
            old_d = d
        x = alpha * (y + s_noise * math.sqrt(max(0.0, t**2 - s**2 * r**2)) * host.draw(sigma, to))
        old = denoised
    return x


def adams(levels, start, end, k, simple):
    """Returns the integrals of k e^(k (s - end)) times Lagrange's polynomials."""
    if simple and len(levels) == 2:
        other = next(level for level in levels if level != start)
        slope = k * (end - start) ** 2 / 2 / (other - start)
        return [slope if level == other else -math.expm1(-k * (end - start)) - slope for level in levels]
    found = []
    for level in levels:
        others = [other for other in levels if other != level]
        basis = lambda s, level=level, others=others: math.prod((s - o) / (level - o) for o in others)  # noqa: E731
        found.append(integral(lambda s: k * math.exp(k * (s - end)) * basis(s), start, end))  # noqa: B023
    return found


def sa_solver(pece):
    """Xue et al. 2023, algorithm 1."""

    def loop(
        x, sigmas, host, tau_func=lambda s: 1.0, s_noise=1.0, predictor_order=3, corrector_order=4, simple_order_2=False
    ):  # fmt: skip
        sigmas = host.below_one(sigmas)
        lams = [host.lam(s) if s else inf for s in sigmas]
        n, to_end, guess, known, tau, noise = len(sigmas) - 1, sigmas[-1] == 0, x, [], 0.0, 0.0
        for i in range(n):
            sigma, to = sigmas[i], sigmas[i + 1]
            known.append(host.D(guess, sigma))
            p = min(predictor_order, len(known), n - 1 - i if to_end else n)
            c = 0 if i == 0 or (to == 0 and not pece) else min(corrector_order, len(known), n - i if to_end else n)
            if c:
                k, start = 1 + tau**2, lams[i - 1]
                weights = adams(lams[i - c + 1 : i + 1], start, lams[i], k, simple_order_2)
                x = sigma / sigmas[i - 1] * math.exp(-(tau**2) * (lams[i] - start)) * x + noise
                x = x + host.alpha(sigma) * sum(w * d for w, d in zip(weights, known[-c:], strict=True))
                known[-1] = host.D(x, sigma) if pece else known[-1]
            else:
                x = guess
            if to == 0:
                return known[-1]
            tau = tau_func(to)
            h, k = lams[i + 1] - lams[i], 1 + tau**2
            weights = adams(lams[i - p + 1 : i + 1], lams[i], lams[i + 1], k, simple_order_2)
            noise = to * s_noise * math.sqrt(-math.expm1(-2 * tau**2 * h)) * host.draw(sigma, to) if tau else 0.0
            guess = to / sigma * math.exp(-(tau**2) * h) * x + noise
            guess = guess + host.alpha(to) * sum(w * d for w, d in zip(weights, known[-p:], strict=True))
        return guess

    return loop


def res_multistep(cfg_pp, default):
    def loop(x, sigmas, host, eta=default, s_noise=1.0):
        old = old_down = None
        for i, (sigma, to) in enumerate(itertools.pairwise(sigmas)):
            guided, uncond = host.answers(x, sigma)
            own = uncond if cfg_pp else guided
            down, up = down_up(sigma, to, eta)
            if down == 0 or old is None:
                x = guided + down * (x - own) / sigma
            else:
                h = math.log(sigma / down)
                c_2 = math.log(old_down / sigmas[i - 1]) / h if h else 0.0
                phi_1 = -math.expm1(-h) / h if h else 1.0
                b_2 = (1 - phi_1) / h / c_2 if c_2 else 0.0
                x = math.exp(-h) * (x + guided - own) + h * ((phi_1 - b_2) * own + b_2 * old)
            x = x + up * s_noise * host.draw(sigma, to) if up else x
            old, old_down = own, down
        return x

    return loop


# ---- CFG++ -------------------------------------------------------------------------------------------------


def euler_cfg_pp(x, sigmas, host, eta=0.0, s_noise=1.0):
    for sigma, to in itertools.pairwise(sigmas):
        guided, uncond = host.answers(x, sigma)
        if to == 0:
            x = guided
            continue
        a, b = host.alpha(sigma), host.alpha(to)
        if a:
            down, up = down_up(sigma / a, to / b, eta)
        else:
            down, up = to / b * math.sqrt(1 - eta**2), to / b * eta
        x = b * guided + b * down * (x - a * uncond) / sigma
        x = x + b * up * s_noise * host.draw(sigma, to) if up else x
    return x


def euler_ancestral_cfg_pp(x, sigmas, host, eta=1.0, s_noise=1.0):
    return euler_cfg_pp(x, sigmas, host, eta, s_noise)


def dpmpp_2s_ancestral_cfg_pp(x, sigmas, host, eta=1.0, s_noise=1.0):
    for sigma, to in itertools.pairwise(sigmas):
        guided, uncond = host.answers(x, sigma)
        if to == 0:
            x = guided
            continue
        down, factor, up = renoised(sigma, to, eta, host.flow)
        middle = middle_of(sigma, down, host)
        u = middle / sigma * x + (1 - middle / sigma) * uncond
        x = factor * (down / sigma * x + (1 - down / sigma) * host.answers(u, middle)[1])
        x = x + (up * s_noise * host.draw(sigma, to) if up else 0) + host.alpha(to) * (guided - uncond)
    return x


def dpmpp_2m_cfg_pp(x, sigmas, host):
    old = last = None
    for sigma, to in itertools.pairwise(sigmas):
        guided, uncond = host.answers(x, sigma)
        h = math.log(sigma / to) if to else inf
        mixed = -math.exp(-h) * uncond
        if old is not None and to:
            mixed = mixed - math.expm1(-h) * h / (2 * last) * (guided - old)
        x, old, last = guided + mixed + math.exp(-h) * x, uncond, h
    return x


def gradient_estimation_cfg_pp(x, sigmas, host, ge_gamma=2.0):
    old = None
    for sigma, to in itertools.pairwise(sigmas):
        guided, uncond = host.answers(x, sigma)
        d = (x - uncond) / sigma
        x = guided + d * to
        if old is not None and to:
            x = x + (ge_gamma - 1) * (d - old) * (to - sigma)
        old = d
    return x
