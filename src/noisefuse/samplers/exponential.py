# SPDX-License-Identifier: Apache-2.0
"""Exponential integrators of the ODE and of SDEs with the same marginals: RES, SEEDS, SA-Solver, ER-SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from ..ground.checks import check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import ZERO, Affine, D, Tableau, past, x, z
from .dpmpp import alike, distinct, earlier, phi, weight
from .integrals import integral_weights, quadrature
from .plan import Array, Node, Plan, PlanOptions, check_fall, each, plan, split, squared
from .shared import sampler
from .spacing import Steps
from .two_stage import geometric


@sampler()
def res_multistep(
    schedule: Schedule, steps: Steps = 20, *, eta: float = 0.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Refined exponential solver, multistep: Zhang et al. 2023 (arXiv:2308.02157), as in ComfyUI.

        x' = e^-h x + (1 - e^-h) D + (1 - (1 - e^-h) / h) D1 + sigma_up z,    h = log(sigma / sigma_down)
        D1 = (D - D_before) / r,    r = log(sigma_before / sigma_down_before) / h

    sigma_down and sigma_up are those of ``euler_ancestral``; with eta = 0, sigma_down = sigma'. It works on x / alpha.
    For a flow it works on x itself and log sigma, from sigma = 1 on, as ComfyUI does; there it also brings x' from
    sigma_down's alpha to the alpha of sigma', which ComfyUI does not. With eta = 1 and alpha = 1, D1 is that of
    ``dpmpp_2m_sde`` with solver="heun". The first step, a step to clean data and one from a noise level visited twice
    are of first order.

    >>> nf.samplers.res_multistep(nf.Schedule.flow(1000), steps=[1.0, 0.6, 0.3], prediction="flow").timesteps.tolist()
    [1.0, 0.6, 0.3]
    """
    run = plan(schedule, steps, whole=False, **options)
    flow, run = run.axis.family == "flow", run.flow_or_exploding()
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    size = there.alpha + keep if flow else np.ones(run.n)  # sigma_down is relative to alpha + sigma = 1 in a flow
    h, moved, again = moves(here, keep, keep / size)
    p, D1 = phi(h), np.where(again, 0.0, h / moved) * (D - past[0])
    out = size * (each(math.exp, -h) * x + p * D + weight("heun", p, h) * D1) + fresh * z
    return run.table(
        "res_multistep",
        run.row(here, out, keep=[D], at=keep != 0),
        run.row(here, there.alpha * D + fresh * z, keep=[D], at=keep == 0),
    )


def moves(here: Node, keep: Array, down: Array) -> tuple[Array, Array, Array]:
    """Returns each step's way down in log sigma, that of the step before, and the steps of first order."""
    h = each(math.log, here.sigma / down)
    moved = earlier(np.where(keep != 0, h, 0.0))
    return h, moved, (moved == 0) | (keep == 0) | twice(here)


def twice(here: Node) -> Array:
    """Tells where a step begins at the noise level of the one before. The first step counts, too."""
    return np.append(True, here.sigma[1:] == here.sigma[:-1])


@sampler()
def seeds_2(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, r: float = 0.5,
    solver: Literal["midpoint", "heun"] = "midpoint", **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SEEDS-2, Gonzalez et al. 2023 (arXiv:2305.14267), as in ComfyUI, for x / alpha: 2 n - 1 model calls.

        u  = (s / sigma) e^(-eta r h) x + (1 - e^(-r c)) D(x, sigma) + s w(0, r h)
        x' = (sigma' / sigma) e^(-eta h) x + (1 - e^-c - b) D(x, sigma) + b D(u, s) + sigma' w(0, h)
        h = log(sigma / sigma'),    s = sigma e^(-r h),    c = (1 + eta) h
        b = (1 - e^-c) / 2 r  (midpoint, their phi_1),    b = (1 - (1 - e^-c) / c) / r  (heun, their phi_2)

    w is one Ornstein-Uhlenbeck path of variance 1 - e^(-2 eta h). Each row draws a piece of it: x' begins at u, so it
    contains u's noise.

    Args:
        r: the place of the second call in log sigma, 0 < r <= 1; 1 is ComfyUI's exp_heun_2_x0.
        solver: "midpoint" or "heun": b above.

    >>> len(nf.samplers.seeds_2(nf.Schedule.linear(1000), steps=10))
    19
    """
    check_number("r", r, most=1, above=0)
    run = plan(schedule, steps, whole=False, **options).exploding()

    def weights(c: Array) -> list[list[Array]]:
        b = weight(solver, phi(c), c) / r
        return [[phi(r * c)], [phi(c) - b, b]]

    return _seeds("seeds_2", run, eta, [r], weights)


@sampler()
def seeds_3(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, r_1: float = 1 / 3, r_2: float = 2 / 3,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SEEDS-3, Gonzalez et al. 2023 (arXiv:2305.14267), as in ComfyUI, for x / alpha: 3 n - 2 model calls.

        u  = (s_1 / sigma) e^(-eta r_1 h) x + (1 - e^(-r_1 c)) D_1 + s_1 w(0, r_1 h)
        v  = (s_2 / sigma) e^(-eta r_2 h) x + (1 - e^(-r_2 c) - a) D_1 + a D_2 + s_2 w(0, r_2 h)
        x' = (sigma' / sigma) e^(-eta h) x + (1 - e^-c - b) D_1 + b D_3 + sigma' w(0, h)
        a = (r_2 / r_1) psi(r_2 c),    b = psi(c) / r_2,    psi(c) = 1 - (1 - e^-c) / c

    D_1, D_2, D_3 are D at x, u, v; h, c and w are those of ``seeds_2``. It is third-order for eta = 0 and r_2 = 2/3.

    Args:
        r_1, r_2: the places of the second and the third call in log sigma, 0 < r_1 < r_2 <= 1.

    >>> len(nf.samplers.seeds_3(nf.Schedule.linear(1000), steps=10))
    28
    """
    if not 0 < r_1 < r_2 <= 1:
        raise ValueError(f"0 < r_1 < r_2 <= 1 must hold, got {r_1} and {r_2}")
    run = plan(schedule, steps, whole=False, **options).exploding()

    def weights(c: Array) -> list[list[Array]]:
        psi_2, psi = (weight("heun", phi(r * c), r * c) for r in (r_2, 1.0))
        a, b = r_2 / r_1 * psi_2, psi / r_2
        return [[phi(r_1 * c)], [phi(r_2 * c) - a, a], [phi(c) - b, 0.0 * b, b]]

    return _seeds("seeds_3", run, eta, [r_1, r_2], weights)


def _seeds(
    name: str, run: Plan, eta: float, inner: Sequence[float], weights: Callable[[Array], list[list[Array]]]
) -> Tableau:
    """Writes each stage of SEEDS from the one before: w is Markov, so the earlier draw is contained in that stage's x.

    weights(c)[k] are the weights of D_1 .. D_(k + 1) in stage k, if it is written from x. A stage is written from the
    one before, whose x counts with a ratio, so that stage's weights times the ratio are subtracted.
    """
    check_number("eta", eta, 0)
    here, there = run.steps
    if eta:
        check_fall(here, there)
    rows = [run.row(here, D, at=run.clean_end)]
    here, there = here.at(run.noisy), there.at(run.noisy)
    h, parts = each(math.log, here.sigma / there.sigma), [0.0, *inner, 1.0]
    nodes = [here, *(geometric(run, here, there.sigma, r) for r in inner), there]
    own, before = weights((1 + eta) * h), list[Array]()
    for k, (part, node) in enumerate(zip(pairwise(parts), nodes[1:], strict=True)):
        down = (part[1] - part[0]) * h
        ratio = each(math.exp, -(1 + eta) * down)
        fresh = node.sigma * np.sqrt(np.maximum(0.0, phi(2 * eta * down)))
        fallen = [w - ratio * w_before for w, w_before in zip(own[k], [*before, 0.0 * h], strict=True)]
        mean = sum((w * D_j for w, D_j in zip(fallen, [*past[:k][::-1], D], strict=True)), ratio * x)
        rows.append(run.row(nodes[k], mean + fresh * z, keep=[D] if k < len(inner) else []))
        before = own[k]
    return run.table(name, *rows)


@sampler()
def sa_solver(
    schedule: Schedule, steps: Steps = 20, *, tau: float | Sequence[float] = 1.0, predictor_order: int = 2,
    corrector_order: int = 2, simple_order_2: bool = False, pece: bool = False, lower_order_final: bool = True,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SA-Solver, Xue et al. 2023 (arXiv:2309.05019), algorithm 1: stochastic Adams predictor and corrector.

        x' = (sigma' / sigma) e^(-tau^2 h) x + alpha' sum_j w_j D_j + sigma' sqrt(1 - e^(-2 tau^2 h)) z
        w_j = integral of k e^(k (s - lambda')) L_j(s) over lambda .. lambda',    k = 1 + tau^2,    h = lambda' - lambda

    The predictor takes the newest D_0 .. D_(p-1). The corrector takes the same z, D' at the predicted x', and D_0 ..
    D_(c-2), with L_j on their lambdas.

    Args:
        tau: a number of at least 0, or one for each step: 0 is the ODE, 1 the reverse SDE.
        predictor_order: p, 1 to 3.
        corrector_order: c, 0 (none) to 4.
        simple_order_2: take k h^2 / 2 for the integral of k (s - lambda) e^(k (s - lambda')) in steps with two D, as
            diffusers does.
        pece: call the network again at the corrected x, 2 n calls (2 n - 1 to clean data).
        lower_order_final: with m steps left, p <= m and c <= m + 1; if the run ends with a step to clean data, x' = D,
            which is not counted, c <= m.

    >>> sampler = nf.samplers.sa_solver(nf.Schedule.linear(1000), steps=4, tau=[0, 1, 1, 0])
    >>> sampler.tableau.as_rows.draws.tolist()
    [False, True, True, False]
    """
    run = plan(schedule, steps, drop_last=True, **options)
    run.check_signal("sa_solver")
    check_integer("predictor_order", predictor_order, 1, 3)
    check_integer("corrector_order", corrector_order, 0, 4)
    here, there = run.steps
    taus, to_clean = _one_each(tau, run.n), run.to_clean
    draws = np.flatnonzero(taus[run.noisy])
    check_fall(here.at(draws), there.at(draws))
    levels = run.nodes.log_snr
    h, squares = np.diff(levels), squared(taus)
    i, j = np.arange(run.n), np.arange(4)
    left = run.n - i - to_clean if lower_order_final else np.full(run.n, run.n)
    most = np.minimum(corrector_order, left + (not to_clean))
    most[run.clean_end] = 0
    if not pece:
        most[-1] = 0  # nothing corrects it
    corrected = most > 0
    back, least = i[:, None] - j, np.minimum(predictor_order, left)
    s = levels[np.maximum(np.concatenate([back, back + 1]), 0)] - np.tile(levels[:-1], 2)[:, None]
    count = np.concatenate([np.minimum(least, i + 1), np.minimum(most, i + 2)])
    count[: run.n][run.clean_end] = 0
    used = distinct(s) & (j < count[:, None])
    weights = _adams(s, used, np.tile(h, 2), np.tile(1 + squares, 2), simple_order_2).reshape(2, run.n, 4)
    older = max(predictor_order, corrector_order - 1) > 1  # whether D is needed beyond its own row
    predicted, corrects = (there.alpha * w.T for w in weights)
    Ds = [D, *(past[::2] if corrector_order else past)]
    again = np.append(False, corrected[:-1]) & (not pece)  # a step begins with the correction of its x
    anew = np.where(again, earlier(corrects[0]), 0.0)
    begin = np.where(again, 0.0, 1.0) * x + np.where(again, 1.0, 0.0) * past[older] + anew * D
    fresh = there.sigma * np.sqrt(np.maximum(0.0, phi(2 * squares * h)))
    base = there.sigma / here.sigma * each(math.exp, -squares * h) * begin + fresh * z
    out = base + _sum(predicted, Ds)
    keep = [D] * older
    rows = [
        run.row(here, out, keep=[*keep, base + _sum(corrects[1:], Ds)], at=corrected),
        run.row(here, out, keep=keep, at=~corrected & (there.sigma > 0)),
        run.row(here, there.alpha * D, at=run.clean_end),
    ]
    if pece:
        rows.append(run.row(there, past[older] + corrects[0] * D, at=corrected))
    return run.table("sa_solver", *rows)


def _one_each(tau: float | Sequence[float], n: int) -> Array:
    """Returns tau for each step."""
    try:
        taus = np.broadcast_to(np.asarray(tau, np.float64), (n,))
    except (TypeError, ValueError):
        raise ValueError(f"tau must be a number or one for each of {n} steps, got {tau!r}") from None
    for one in dict.fromkeys(taus.tolist()):
        check_number("tau", one, 0)
    return taus


def _sum(weights: Array, terms: Sequence[Affine]) -> Affine:
    return sum((w * term for w, term in zip(weights, terms, strict=False)), ZERO)


def _adams(s: Array, used: NDArray[np.bool_], h: Array, k: Array, simple: bool) -> Array:
    """Returns w_j of ``sa_solver``, (n, 4), for the D at lambda + s that are used, for steps h."""
    made = np.zeros(s.shape)
    for rows, places in alike(used):
        own, rate, length = (rows[:, None], places), k[rows, None], h[rows, None]
        nodes = s[own]
        if simple and places.shape[1] == 2:
            far = np.abs(nodes[:, :1]) <= np.abs(nodes[:, 1:])  # whether the second one is
            slope = rate * length * length / (2 * np.where(far, nodes[:, 1:], nodes[:, :1]))
            made[own] = np.where(far == [[False, True]], slope, phi((rate * length)[:, 0])[:, None] - slope)
            continue

        def density(t: Array, rate: Array = rate, length: Array = length) -> Array:
            return np.asarray(rate * np.exp(rate * (t - length)))

        made[own] = integral_weights(nodes, h[rows], density, begin=np.zeros(len(rows)))
    return made


@sampler()
def er_sde(
    schedule: Schedule, steps: Steps = 20, *, order: int = 3, phi: Callable[[Array], Array] | float | None = None,
    points: int | None = None, exact: bool = False, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """ER-SDE-Solver-1, 2 and 3, Cui et al. 2023 (arXiv:2309.06169), for the SDE with noise scaled by phi.

        x' = (alpha' / alpha) r x + alpha' ((1 - r) D + a_1 D1 + a_2 D2 + sqrt(l'^2 - l^2 r^2) z)
        l = sigma / alpha,    r = phi(l') / phi(l),    D1 = (D - D_1) / (l - l_1),    D2 = 2 (D1 - D1_1) / (l - l_2)
        a_1 = l' - l + phi(l') I_0,    a_2 = (l' - l)^2 / 2 + phi(l') I_1
        I_j = integral of (s - l)^j / phi(s) over s from l' to l

    D_1, l_1 belong to the last step, l_2 to the one before. A step to clean data is x' = D.

    Args:
        order: the number of D in a step, 1 to 3.
        phi: a positive function of arrays, or a power p of l: p = 1 is the ODE, p = 2 the reverse SDE. None: the
            authors' choice, l (e^(l^0.3) + 10).
        points: the number of terms l' + i (l - l') / points in sums for the I_j: 200 in the authors' code and in
            ComfyUI. None: the integrals.
        exact: D1 is the slope between two noise levels, not the slope at l, so the published order 3 is of second
            order. True takes the slope at l, D1 + (l - l_1) D2 / 2, and is third-order for the ODE.

    Raises:
        ValueError: phi asks for more noise than there is, or is not positive.

    >>> ode = nf.samplers.er_sde(nf.Schedule.linear(1000), steps=10, phi=1.0)
    >>> bool(ode.tableau.as_rows.draws.any())
    False
    """
    check_integer("order", order, 1, 3)
    if points is not None:
        check_integer("points", points, 1)
    run = plan(schedule, steps, drop_last=True, **options)
    run.check_signal("er_sde")
    scale = _noise_scale(phi)
    here, there = (node.at(run.noisy) for node in run.steps)
    whole = run.nodes.sigma / run.nodes.alpha
    level, end = whole[:-1][run.noisy], whole[1:][run.noisy]
    at_end, at_here = (np.broadcast_to(scale(at), at.shape) for at in (end, level))
    for i in np.flatnonzero(~((at_end > 0) & (at_end < math.inf) & (at_here > 0) & (at_here < math.inf))):
        raise ValueError(f"phi must be positive and finite at the levels, got {at_end[i]} and {at_here[i]}")
    r = at_end / at_here
    fresh = (end - level * r) * (end + level * r)
    for i in np.flatnonzero(fresh < -1e-12 * squared(end)):
        check_fall(here.at([int(i)]), there.at([int(i)]))
        raise ValueError(f"phi asks for more noise than there is at {end[i]:g}: phi(l) / l must not grow as l falls")
    fresh = np.where(fresh > 1e-12 * squared(end), np.sqrt(fresh), 0.0)  # up to rounding
    integrals = _integrals(scale, level, end, at_end, points)
    mean = (1 - r) * D + _differences([earlier(level, k) for k in range(order)], end, integrals, exact)
    out = there.alpha * (r / here.alpha * x + mean + fresh * z)
    clean, _ = run.steps
    return run.table(
        "er_sde",
        run.row(here, out, keep=[D] if order > 1 else []),
        run.row(clean, run.nodes.alpha[-1] * D, at=run.clean_end),
    )


def _differences(levels: list[Array], end: Array, integrals: tuple[Array, Array], exact: bool) -> Affine:
    """Returns a_1 D1 + a_2 D2 of ``er_sde``. A term is 0 if too few noise levels are known, or some coincide."""
    level, h = levels[0], end - levels[0]
    if len(levels) == 1:
        return ZERO
    i = np.arange(len(level))
    second = (i > 0) & (levels[1] != level)
    D1 = (D - past[0]) / np.where(second, level - levels[1], 1.0)
    found: Affine = np.where(second, h + integrals[0], 0.0) * D1
    if len(levels) == 2:
        return found
    third = second & (i > 1) & (levels[2] != level) & (levels[2] != levels[1])
    to_2, before = (np.where(third, one - levels[2], 1.0) for one in (level, levels[1]))
    D2 = 2 / to_2 * (D1 - (past[0] - past[1]) / before)
    if exact:
        found = np.where(second, h + integrals[0], 0.0) * (D1 + np.where(third, (level - levels[1]) / 2, 0.0) * D2)
    found += np.where(third, h * h / 2 + integrals[1], 0.0) * D2
    return found


def _noise_scale(phi: Callable[[Array], Array] | float | None) -> Callable[[Array], Array]:
    if phi is None:
        return lambda level: level * (np.exp(level**0.3) + 10)
    if callable(phi):
        return phi
    power = check_number("phi", phi, hint=", or a function")

    def scale(level: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(level**power)

    return scale


def _integrals(
    scale: Callable[[Array], Array], here: Array, end: Array, last: Array, points: int | None
) -> tuple[Array, Array]:
    """Returns phi(l') I_0 and phi(l') I_1 of ``er_sde``, by a sum of so many points, or by an integral over log l."""
    here, end, last = (column[:, None] for column in (here, end, last))

    def ratio(s: Array) -> Array:
        return np.asarray(last / scale(s.ravel()).reshape(s.shape))

    if points is not None:
        width = (here - end) / points
        s = end + width * np.arange(points, dtype=np.float64)
        first, second = ratio(s), (s - here) * ratio(s)
        return np.sum(first, axis=1) * width[:, 0], np.sum(second, axis=1) * width[:, 0]

    u, measure = quadrature(each(math.log, end[:, 0]), each(math.log, here[:, 0]))
    s = np.exp(u)
    whole = ratio(s)
    return (measure * (s * whole)).sum(axis=1), (measure * (s * (s - here) * whole)).sum(axis=1)
