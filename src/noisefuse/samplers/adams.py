# SPDX-License-Identifier: Apache-2.0
"""Linear multistep methods on the predicted noise: PNDM, LMS, iPNDM, DEIS, and one with two slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_choice, check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import D, Tableau, m1, past, x
from ..views import Prediction
from .dpmpp import alike, newest
from .integrals import integral_weights
from .plan import Plan, PlanOptions, each, plan, squared
from .shared import sampler
from .spacing import Spacing, SpacingOptions, Steps

Array: TypeAlias = npt.NDArray[np.float64]

_ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth weights of orders 1 to 4, the newest value first."""


@sampler()
def pndm(
    schedule: Schedule, steps: Steps = 50, *, average: Literal["epsilon", "output"] = "epsilon",
    prediction: Prediction = "epsilon", spacing: Spacing = "leading", **options: Unpack[SpacingOptions],
) -> Tableau:  # fmt: skip
    """Pseudo linear multistep sampling (PLMS), Liu et al. 2022 (PNDM); n + 1 model calls.

        x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) e

    e is an Adams-Bashforth average of up to four predicted noises. The first step is done twice: with e_0, then with
    (e_0 + e') / 2, where e' is predicted at the first result. This replaces the paper's Runge-Kutta warm-up.

    Args:
        average: "epsilon" averages predicted noises. "output" averages the network's outputs and reads the average as
            its output at x: the same for epsilon; for v it is diffusers' behaviour, and only of first order.

    >>> nf.samplers.pndm(nf.Schedule.linear(1000), steps=5).timesteps.tolist()
    [800, 600, 600, 400, 200, 0]
    """
    run = plan(schedule, steps, prediction=prediction, spacing=spacing, **options)
    run.check_signal("pndm")
    check_choice("average", average, ("epsilon", "output"))
    here, there = run.steps
    ratio = there.alpha / here.alpha
    base, weight, e = ratio, there.sigma - here.sigma * ratio, run.predicted_noise(here)
    if average == "output":  # e = u x + w m: the average replaces m
        base, weight, e = base + weight * e.coefficients[1], weight * e.coefficients[2], m1
    averages = np.array([_ADAMS[min(i, 3)] + (0,) * (3 - i) for i in range(run.n)]).T
    out = sum((weight * c * term for c, term in zip(averages, (e, *past), strict=False)), base * x)
    first = slice(0 if run.to_clean and run.n == 1 else 1)
    again = m1 if average == "output" else run.predicted_noise(there.at(first))
    second = x + (weight / 2)[first] * (again - past[0])
    return run.table("pndm", run.row(here, out, keep=[e]), run.row(there.at(first), second))


def _multistep(
    name: str, run: Plan, order: int, weights: Callable[[Array, Array], Array], *, lower_order_final: bool = False,
    clean_order: int = 1,
) -> Tableau:  # fmt: skip
    """x' = (alpha' / alpha) x + alpha' sum_j w_j e_j, the steps of a linear multistep method in rho = sigma / alpha.

    e_j is the noise predicted at rho_j, the newest first; weights(rho (n, j), rho' (n,)) are the w_j of n rows. If a
    noise level is visited twice, its newest e counts. lower_order_final: use at most as many e_j as steps are left.
    clean_order: the largest number of e_j in a step to clean data.
    """
    run.check_signal(name)
    here, there = run.steps
    rho, of_rows = run.nodes.sigma / run.nodes.alpha, np.zeros((run.n, order))
    i, end = np.arange(run.n), rho[1:]
    used = newest(rho[:-1], order)
    if lower_order_final:
        used &= np.cumsum(used, axis=0) <= run.n - i
    used[clean_order:, run.clean_end] = False
    for rows, places in alike(used.T):
        of_rows[rows[:, None], places] = weights(rho[rows[:, None] - places], end[rows])
    e = run.noise(here)
    out = there.alpha / here.alpha * x
    out = sum((there.alpha * w * term for w, term in zip(of_rows.T, (e, *past), strict=False)), out)
    if used[:, -1].sum() == 1 and run.to_clean:
        last = run.row(here, there.alpha * D, at=run.clean_end)
        return run.table(name, run.row(here, out, keep=[e] if order > 1 else [], at=run.noisy), last)
    return run.table(name, run.row(here, out, keep=[e] if order > 1 else []))


@sampler()
def lms(schedule: Schedule, steps: Steps = 50, *, order: int = 4, **options: Unpack[PlanOptions]) -> Tableau:
    """Linear multistep method in sigma, k-diffusion (Crowson 2022): Adams-Bashforth on unequal steps, for x / alpha.

        x' = x + sum_j w_j d_j,    w_j = integral of L_j over sigma .. sigma',    d = (x - D) / sigma

    d_0 .. d_(order - 1) are the newest slopes, L_j Lagrange's polynomials on their noise levels.
    """
    check_integer("order", order, 1, 4)
    run = plan(schedule, steps, whole=False, **options).exploding()
    return _multistep("lms", run, order, integral_weights, clean_order=order)


@sampler()
def ipndm(schedule: Schedule, steps: Steps = 50, *, order: int = 4, **options: Unpack[PlanOptions]) -> Tableau:
    """Improved PNDM, Zhang & Chen 2022 (DEIS), appendix H: Adams-Bashforth weights of equal steps, without a warm-up.

        x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) e

    e is the Adams-Bashforth average of the last ``order`` predicted noises, or of fewer at first. A step to clean data
    is of first order: x' = D.
    """
    check_integer("order", order, 1, 4)
    run = plan(schedule, steps, whole=False, **options)

    def weights(levels: Array, end: Array) -> Array:
        return np.asarray((end - levels[:, 0])[:, None] * np.array(_ADAMS[levels.shape[1] - 1]))

    return _multistep("ipndm", run, order, weights)


@sampler()
def ipndm_v(schedule: Schedule, steps: Steps = 50, *, order: int = 4, **options: Unpack[PlanOptions]) -> Tableau:
    """Improved PNDM of unequal steps, for x / alpha, as in ComfyUI and diff-sampler's code (Zhou et al. 2023, AMED).

        x' = x + h (d + (h / 2 h_1) (d - d_1) + u (d - (1 + a) d_1 + a d_2)
                      + v (d - (1 + a + b) d_1 + (a + b (1 + h_2 / h_3)) d_2 - a b d_3)),    d = (x - D) / sigma
        a = h_1 / h_2,    b = h_1 (h_1 + h_2) / (h_2 (h_2 + h_3)),    u = 1/2 - h^2 / (6 h_1 (h_1 + h_2))
        v = (1/2 - h / (6 (h + h_1)) + (1 - h / (2 (h + h_1))) h / (6 (h + h_1 + h_2)))
            h (h + h_1) (h + h_1 + h_2) / (h_1 (h_1 + h_2) (h_1 + h_2 + h_3))

    h_1, h_2, h_3 are the previous steps, the newest first. Adams-Bashforth weights differ: their u is (1/2 - h / (6 (h
    + h_1))) h (h + h_1) / (h_1 (h_1 + h_2)), their v has a minus for the second plus here, and their last a b is b h_2
    / h_3. ``lms`` has those. So this method is of second order, on equal steps of third. A step to clean data is x' =
    D.

    >>> len(nf.samplers.ipndm_v(nf.Schedule.karras(100), steps=10))
    10
    """
    check_integer("order", order, 1, 4)
    run = plan(schedule, steps, whole=False, **options).exploding()
    return _multistep("ipndm_v", run, order, _weights_of_ipndm_v)


def _weights_of_ipndm_v(levels: Array, end: Array) -> Array:
    h, *before = (a - b for a, b in pairwise([end, *levels.T]))
    terms: list[tuple[Any, list[Any]]] = [(1.0, [1.0])]
    if before:
        terms.append((h / (2 * before[0]), [1.0, -1.0]))
    if len(before) > 1:
        h_1, h_2 = before[:2]
        a = h_1 / h_2
        terms.append((1 / 2 - squared(h) / (6 * h_1 * (h_1 + h_2)), [1.0, -1 - a, a]))
    if len(before) > 2:
        h_3 = before[2]
        b = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
        v = (1 / 2 - h / (6 * (h + h_1)) + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))) * (
            h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
        )
        terms.append((v, [1.0, -1 - a - b, a + b * (1 + h_2 / h_3), -a * b]))
    sums = [sum(factor * own[j] for factor, own in terms if j < len(own)) for j in range(levels.shape[1])]
    return np.stack([h * one for one in sums], axis=1)


@sampler()
def deis(
    schedule: Schedule, steps: Steps = 20, *, order: int = 2, variable: Literal["log_rho", "vp_time"] = "log_rho",
    points: int | None = None, lower_order_final: bool = True, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DEIS-tAB in log rho, Zhang & Chen 2022 (arXiv:2204.13902): Adams-Bashforth with exact exponential weights.

        x' = (alpha' / alpha) x + alpha' sum_j w_j e_j,    rho = sigma / alpha
        w_j = integral of prod_(k != j) (log t - log rho_k) / (log rho_j - log rho_k) dt over t = rho .. rho'

    A step to clean data is of first order.

    Args:
        order: the number of predicted noises in a step, 1 to 3.
        variable: the variable of the polynomials: "log_rho", above, or "vp_time", the t of diff-sampler (Zhou et al.
            2023) and ComfyUI: log(1 + rho^2) = b_d t^2 / 2 + b t, with rho 0.002 at t = 0.001 and 80 at t = 1.
        points: the number of terms in sums for the w_j: 10,000 in diff-sampler and in ComfyUI. None: the integrals.
        lower_order_final: if n < 15, the last step is of first order and the one before of at most second.
    """
    check_integer("order", order, 1, 3)
    check_choice("variable", variable, ("log_rho", "vp_time"))
    if points is not None:
        check_integer("points", points, 2)
    run = plan(schedule, steps, drop_last=True, **options)

    def weights(levels: Array, end: Array) -> Array:
        """Substitutes s = log rho - log t; the density is then -rho e^-s."""
        rho = levels[:, :1]
        if levels.shape[1] == 1:
            return end[:, None] - rho
        if variable == "vp_time":
            t, t_end = each(_vp_time, levels.ravel()).reshape(levels.shape), each(_vp_time, end)
            return integral_weights(t, t_end, _vp_density, points=points)
        s, s_end = each(math.log, (rho / levels).ravel()).reshape(levels.shape), each(math.log, rho[:, 0] / end)
        return integral_weights(s, s_end, lambda s: -rho * np.exp(-s), points=points)

    return _multistep("deis", run, order, weights, lower_order_final=lower_order_final and run.n < 15)


_LEAST, _MOST = math.log1p(0.002**2) / 1e-3, math.log1p(80.0**2)  # b_d t / 2 + b at t = 0.001 and t = 1
_SLOPE = 2 * (_MOST - _LEAST) / (1 - 1e-3)
_BETA = _MOST - _SLOPE / 2


def _vp_time(rho: float) -> float:
    """Returns ``deis``'s t, at which log(1 + rho^2) = b_d t^2 / 2 + b t."""
    return (math.sqrt(_BETA**2 + 2 * _SLOPE * math.log1p(rho**2)) - _BETA) / _SLOPE


def _vp_density(t: Array) -> Array:
    """Returns drho / dt."""
    squared = np.expm1(_SLOPE * t**2 / 2 + _BETA * t)
    return np.asarray((_SLOPE * t + _BETA) * (1 + squared) / (2 * np.sqrt(squared)))


@sampler()
def gradient_estimation(
    schedule: Schedule, steps: Steps = 50, *, gamma: float = 2.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Gradient estimation, Permenter & Yuan 2023 (arXiv:2306.04848), algorithm 2, for x / alpha.

        x' = x + (sigma' - sigma) (gamma d + (1 - gamma) d_before),    d = (x - D) / sigma

    The first step and a step to clean data take d alone, as in ComfyUI: x' = D.

    Args:
        gamma: finite; 1 is Euler's method.
    """
    check_number("gamma", gamma)
    run = plan(schedule, steps, whole=False, **options).exploding()

    def weights(levels: Array, end: Array) -> Array:
        h = end - levels[:, 0]
        return np.outer(h, [gamma, 1 - gamma] if levels.shape[1] > 1 else [1.0])

    return _multistep("gradient_estimation", run, 2, weights)
