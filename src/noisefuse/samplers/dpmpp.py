# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++, multistep and singlestep: Lu et al. 2022 (arXiv:2211.01095), in the schedule's own frame."""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from ..ground.checks import check_choice, check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import ZERO, Affine, D, Tableau, past, x, z
from .integrals import integral_weights
from .plan import Array, Placed, Plan, PlanOptions, check_fall, each, plan
from .shared import sampler
from .spacing import Steps


def _steps(run: Plan, lower_order_final: bool) -> tuple[Array, Affine]:
    """Returns h = lambda' - lambda and D1 = (D - D_before) / r of each step, r = h_before / h.

    D1 is 0 in steps of first order: the first step, one to clean data (h = inf), one from a noise level visited twice
    (h_before = 0: the same D again), and the last one if asked for and n < 15. At zero terminal SNR the first
    h_before is infinite, and 1 / r is 0.
    """
    run.check_signal("a multistep sampler", nodes=slice(1, None))
    h = np.diff(run.nodes.log_snr)
    before = earlier(h)
    second = (before != 0) & (h < math.inf)
    if lower_order_final and run.n < 15:
        second[-1] = False
    return h, np.where(second, h / before, 0.0) * (D - past[0])


def earlier(column: Array, by: int = 1) -> Array:
    """Returns the numbers of as many rows before, and 0 where there is no such row."""
    return np.concatenate([np.zeros(by), column])[: len(column)]


def newest(levels: Array, n: int) -> NDArray[np.bool_]:
    """Tells for each row which of the last n levels there are, its own first, and are not those of a later row, (n,
    rows)."""
    i, back = np.arange(len(levels)), [earlier(levels, j) for j in range(n)]
    found = [reduce(np.logical_and, (back[j] != later for later in back[:j]), i >= j) for j in range(n)]
    return np.array(found)


@sampler()
def dpmpp_2m(
    schedule: Schedule, steps: Steps = 20, *, solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2 (midpoint); "heun" integrates D1 exactly instead.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) D + alpha' w D1
        h = lambda' - lambda,    D1 = (D - D_before) / r,    r = h_before / h
        w = (1 - e^-h) / 2  (midpoint),    w = 1 - (1 - e^-h) / h  (heun)

    Args:
        solver: "midpoint" or "heun": w above.
        lower_order_final: make the last step first-order if n < 15; a step to clean data always is.

    >>> nf.samplers.dpmpp_2m(nf.Schedule.linear(1000), steps=5).timesteps.tolist()
    [999, 799, 599, 400, 200]
    """
    run = plan(schedule, steps, drop_last=True, **options)
    here, there = run.steps
    h, D1 = _steps(run, lower_order_final)
    p = phi(h)
    out = there.sigma / here.sigma * x + there.alpha * (p * D + weight(solver, p, h) * D1)
    return run.table("dpmpp_2m", run.row(here, out, keep=[D]))


@sampler()
def dpmpp_2m_sde(
    schedule: Schedule, steps: Steps = 20, *, eta: float = 1.0, solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SDE-DPM-Solver++(2M): Lu et al. 2022, section 5; eta is the share of noise that is drawn, as in k-diffusion.

        x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^-a) D + alpha' w D1 + sigma' sqrt(1 - e^(-2 eta h)) z
        a = (1 + eta) h,    w = (1 - e^-a) / 2  (midpoint),    w = 1 - (1 - e^-a) / a  (heun)

    h and D1 are those of ``dpmpp_2m``. With eta = 0 the two samplers are the same.

    Args:
        solver, lower_order_final: as in ``dpmpp_2m``.

    >>> nf.samplers.dpmpp_2m_sde(nf.Schedule.linear(1000), steps=5).tableau.as_rows.draws.tolist()
    [True, True, True, True, False]
    """
    run = plan(schedule, steps, drop_last=True, **options)
    check_number("eta", eta, 0)
    here, there = run.steps
    h, D1 = _steps(run, lower_order_final)
    if eta:
        check_fall(here, there)
    a = (1 + eta) * h
    p, (decay, fresh) = phi(a), _decay(eta, h)
    mean = there.alpha * (p * D + weight(solver, p, a) * D1)
    out = there.sigma / here.sigma * decay * x + mean + there.sigma * fresh * z
    return run.table("dpmpp_2m_sde", run.row(here, out, keep=[D]))


@sampler()
def dpmpp_3m_sde(
    schedule: Schedule, steps: Steps = 20, *, eta: float = 1.0, exact: bool = False, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SDE-DPM-Solver++(3M) as in k-diffusion; eta = 0: the multistep DPM-Solver++ of order 3, Lu et al. 2022.

        x' = (sigma' / sigma) e^(-eta h) x + alpha' ((1 - e^-a) D + phi_2 D1 + phi_3 D2)
             + sigma' sqrt(1 - e^(-2 eta h)) z
        h = lambda' - lambda,    a = (1 + eta) h,    phi_2 = 1 - (1 - e^-a) / a,    phi_3 = 1/2 - phi_2 / a
        D1_0 = (D - D_1) / r_0,    D1_1 = (D_1 - D_2) / r_1,    r_0 = h_1 / h,    r_1 = h_2 / h
        D2 = (D1_0 - D1_1) / (r_0 + r_1),    D1 = D1_0 + r_0 D2

    D_1, D_2 are the D of the last two steps, h_1, h_2 their lengths. The first steps, and those after a noise level
    that is visited twice, are of lower order; a step to clean data is of first order.

    Args:
        exact: the published phi_3 is half the integral that belongs to D2, so the method is of second order. True takes
            the whole integral, which makes it third-order.
    """
    run = plan(schedule, steps, drop_last=True, **options)
    run.check_signal("a multistep sampler", nodes=slice(1, None))
    check_number("eta", eta, 0)
    here, there = run.steps
    if eta:
        check_fall(here, there)
    h = np.diff(run.nodes.log_snr)
    a = (1 + eta) * h
    D1, D2 = _differences(h, earlier(h), earlier(h, 2))
    p, (decay, fresh) = phi(a), _decay(eta, h)
    phi_2 = weight("heun", p, a)
    phi_3 = np.where(a != 0, 1 / 2 - phi_2 / a, 0.0)
    mean = p * D + phi_2 * D1 + (2 * phi_3 if exact else phi_3) * D2
    out = there.sigma / here.sigma * decay * x + there.alpha * mean + there.sigma * fresh * z
    return run.table("dpmpp_3m_sde", run.row(here, out, keep=[D]))


def _differences(h: Array, h_1: Array, h_2: Array) -> tuple[Affine, Affine]:
    """Returns D1 and D2 of ``dpmpp_3m_sde``. They are 0 for steps of no length or unknown length, and to clean data."""
    second = (h_1 != 0) & (h != math.inf)
    third = second & (h_2 != 0) & (h_1 + h_2 != 0)
    D1_0 = np.where(second, h / h_1, 0.0) * (D - past[0])
    D1_1 = np.where(third, h / h_2, 0.0) * (past[0] - past[1])
    of_1, of_2 = (np.where(third, length / (h_1 + h_2), 0.0) for length in (h_1, h))
    return D1_0 + of_1 * (D1_0 - D1_1), of_2 * (D1_0 - D1_1)


@sampler()
def dpmpp_singlestep(
    schedule: Schedule, steps: Steps = 20, *, order: int = 2, solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DPM-Solver++(2S) and (3S), Lu et al. 2022, with noise levels of the run as inner points: n model calls.

    A group of ``order`` steps begins at x; its k-th step starts from this x again, with D_0 .. D_(k-1) of the group:

        x' = (sigma' / sigma) x + alpha' sum_j w_j D_j,    w_j = integral of e^(s - h) L_j(s) over 0 <= s <= h
        h = lambda' - lambda,    L_j: Lagrange's polynomials, 1 at lambda_j - lambda and 0 at the others

    Args:
        order: the number of steps in a group, 1 to 3.
        solver: "heun" has these weights. "midpoint" simplifies w_1 for k = 2, (1 - e^-h) / 2 r with r h = lambda_1 -
            lambda, and leaves D_1 out for k = 3, which is third-order if lambda_2 - lambda = 2 h / 3.
        lower_order_final: shorten the last groups so that the last step is of first order, or of second if order is 3
            and n = 2, 5, 8, .. A step to clean data is of first order anyway.
    """
    check_integer("order", order, 1, 3)
    check_choice("solver", solver, ("midpoint", "heun"))
    run = plan(schedule, steps, drop_last=True, **options)
    run.check_signal("dpmpp_singlestep")
    sizes = _groups(run.n, order, lower_order_final, run.to_clean)
    first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)  # the step with which each step's group begins
    last, inside = first + np.repeat(sizes, sizes) - 1, np.arange(run.n) - first
    levels = run.nodes.log_snr
    rows = (row for k in range(order) for row in _stage(run, k, levels, first, last, inside == k, solver))
    return run.table("dpmpp_singlestep", *rows)


def _groups(n: int, order: int, lower_order_final: bool, to_clean: bool) -> list[int]:
    """Returns the sizes of the groups of n steps."""
    whole, rest = divmod(n, order)
    sizes = [order] * whole + [rest] * (rest > 0)
    if (lower_order_final and rest == 0) or to_clean:
        sizes[-1:] = [sizes[-1] - 1, 1] if sizes[-1] > 1 else [1]
    return sizes


def _stage(run: Plan, k: int, levels: Array, first: Array, last: Array, some: Array, solver: str) -> list[Placed]:
    """Returns the rows of the k-th steps of all groups. Each remembers its D, and the first one x."""
    here, there = (node.at(some) for node in run.steps)
    begin, Ds = (past[k], [*past[:k][::-1], D]) if k else (x, [D])
    levels = levels[first[some][:, None] + np.arange(k + 2)]
    weights = _inner(levels[:, :-1], levels[:, -1], solver)
    mean = sum((w * D_j for w, D_j in zip(weights.T, Ds, strict=True)), ZERO)
    out = there.sigma / run.nodes.sigma[first[some]] * begin + there.alpha * mean
    ends = here.step == last[some]
    return [run.row(here, out, at=ends), run.row(here, out, keep=[D] if k else [D, x], at=~ends)]


def _inner(levels: Array, end: Array, solver: str) -> Array:
    """Returns w_j of ``dpmpp_singlestep`` for lambda_0 .. lambda_k (n, k + 1) and lambda' (n,). Of equal noise levels,
    the first D counts."""
    h, inner = end - levels[:, 0], levels - levels[:, :1]
    weights, used = np.zeros(inner.shape), distinct(inner)
    weights[:, 0] = whole = phi(h)
    if solver == "midpoint" and inner.shape[1] == 2:
        weights[:, 1] = np.where(used[:, 1], whole * h / (2 * inner[:, 1]), 0.0)
        weights[:, 0] -= weights[:, 1]
    elif inner.shape[1] > 1:
        used[:, 1] &= solver != "midpoint"
        used[used.sum(axis=1) < 2] = False
        for rows, places in alike(used):
            own = rows[:, None], places

            def density(s: Array, length: Array = h[own[0]]) -> Array:
                return np.exp(s - length)

            weights[own] = integral_weights(inner[own], h[rows], density)
    return weights


def distinct(levels: Array) -> NDArray[np.bool_]:
    """Tells which of the levels (n, k) of each row are not those of an earlier column."""
    return np.stack([(levels[:, :j] != levels[:, j, None]).all(axis=1) for j in range(levels.shape[1])], axis=1)


def alike(used: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Returns rows that use equally many columns, and the places of those, (n, count): a group for each number."""
    count, places = used.sum(axis=1), np.argsort(~used, axis=1, kind="stable")
    return [((rows := (count == n).nonzero()[0]), places[rows, :n]) for n in {*count.tolist()} - {0}]


def _decay(eta: float, h: Array) -> tuple[Array, Array]:
    """Returns e^(-eta h) and sqrt(1 - e^(-2 eta h)). Rounding may have made h negative; h may be infinite."""
    if not eta:
        return np.ones_like(h), np.zeros_like(h)
    return each(math.exp, -eta * h), np.sqrt(np.maximum(0.0, phi(2 * eta * h)))


def phi(h: Array) -> Array:
    """Returns 1 - e^-h."""
    return -each(math.expm1, -h)


def weight(solver: str, phi: Array, h: Array) -> Array:
    check_choice("solver", solver, ("midpoint", "heun"))
    return phi / 2 if solver == "midpoint" else 1 - np.where(h != 0, phi / h, 1.0)
