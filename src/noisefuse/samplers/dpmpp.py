# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++, multistep and singlestep: Lu et al. 2022 (arXiv:2211.01095), in the schedule's own frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, Unpack

import numpy as np

from ..ground.checks import check_choice, check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import ZERO, Affine, D, Tableau, past, x, z
from .integrals import integral_weights
from .plan import Node, Placed, Plan, PlanOptions, need_fall, plan
from .shared import sampler
from .spacing import Steps


def _steps(run: Plan, lower_order_final: bool) -> Iterator[tuple[Node, Node, float, Affine]]:
    """Yields (here, there, h, D1) for each step: h = lambda' - lambda, D1 = (D - D_before) / r, r = h_before / h.

    D1 is 0 in steps of first order: the first step, one to clean data (h = inf), one from a noise level visited twice
    (h_before = 0: the same D again), and the last one if asked for and n < 15. At zero terminal SNR the first
    h_before is infinite, and 1 / r is 0.
    """
    run.need_signal("a multistep sampler", nodes=slice(1, None))
    n, h_before = len(run.nodes) - 1, 0.0
    for i, (here, there) in enumerate(run.pairs):
        h = there.log_snr - here.log_snr
        D1 = ZERO
        if h_before and h < math.inf and not (i == n - 1 and lower_order_final and n < 15):
            D1 = h / h_before * (D - past[0])
        yield here, there, h, D1
        h_before = h


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
    rows: list[Placed] = []
    for here, there, h, D1 in _steps(run, lower_order_final):
        phi = -math.expm1(-h)
        w = _weight(solver, phi, h)
        out = there.sigma / here.sigma * x + there.alpha * (phi * D + w * D1)
        rows.append(run.row(here, out, keep=[D]))
    return run.table("dpmpp_2m", rows)


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
    rows: list[Placed] = []
    for here, there, h, D1 in _steps(run, lower_order_final):
        if eta:
            need_fall(here, there)
        a, phi = (1 + eta) * h, -math.expm1(-(1 + eta) * h)
        w = _weight(solver, phi, a)
        decay, fresh = _decay(eta, h)
        out = there.sigma / here.sigma * decay * x + there.alpha * (phi * D + w * D1) + there.sigma * fresh * z
        rows.append(run.row(here, out, keep=[D]))
    return run.table("dpmpp_2m_sde", rows)


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
    run.need_signal("a multistep sampler", nodes=slice(1, None))
    check_number("eta", eta, 0)
    rows: list[Placed] = []
    h_1 = h_2 = 0.0
    for here, there in run.pairs:
        h = there.log_snr - here.log_snr
        if eta:
            need_fall(here, there)
        a, phi = (1 + eta) * h, -math.expm1(-(1 + eta) * h)
        D1, D2 = _differences(h, h_1, h_2)
        phi_2 = _weight("heun", phi, a)
        phi_3 = 1 / 2 - phi_2 / a if a else 0.0
        mean = phi * D + phi_2 * D1 + (2 * phi_3 if exact else phi_3) * D2
        decay, fresh = _decay(eta, h)
        rows.append(
            run.row(here, there.sigma / here.sigma * decay * x + there.alpha * mean + there.sigma * fresh * z, keep=[D])
        )
        h_1, h_2 = h, h_1
    return run.table("dpmpp_3m_sde", rows)


def _differences(h: float, h_1: float, h_2: float) -> tuple[Affine, Affine]:
    """Returns D1 and D2 of ``dpmpp_3m_sde``. They are 0 for steps of no length or unknown length, and to clean data."""
    if not h_1 or h == math.inf:
        return ZERO, ZERO
    D1_0 = h / h_1 * (D - past[0])
    if not h_2 or h_1 + h_2 == 0:
        return D1_0, ZERO
    D1_1 = h / h_2 * (past[0] - past[1])
    return D1_0 + h_1 / (h_1 + h_2) * (D1_0 - D1_1), h / (h_1 + h_2) * (D1_0 - D1_1)


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
    run.need_signal("dpmpp_singlestep")
    rows: list[Placed] = []
    at = 0
    for size in _groups(len(run.nodes) - 1, order, lower_order_final, run.nodes[-1].sigma == 0):
        rows += _group(run, run.nodes[at : at + size + 1], solver)
        at += size
    return run.table("dpmpp_singlestep", rows)


def _groups(n: int, order: int, lower_order_final: bool, to_clean: bool) -> list[int]:
    """Returns the sizes of the groups of n steps."""
    whole, rest = divmod(n, order)
    sizes = [order] * whole + [rest] * (rest > 0)
    if (lower_order_final and rest == 0) or to_clean:
        sizes[-1:] = [sizes[-1] - 1, 1] if sizes[-1] > 1 else [1]
    return sizes


def _group(run: Plan, nodes: Sequence[Node], solver: str) -> list[Placed]:
    """Returns the rows of one group. Each remembers its D, and the first one x."""
    rows = []
    for k, (here, there) in enumerate(pairwise(nodes)):
        begin, Ds = (past[k], [*past[:k][::-1], D]) if k else (x, [D])
        weights = _inner([node.log_snr for node in nodes[: k + 1]], there.log_snr, solver)
        mean = sum((w * D_j for w, D_j in zip(weights, Ds, strict=True) if w), ZERO)
        keep = [] if k == len(nodes) - 2 else [D] if k else [D, x]
        rows.append(run.row(here, there.sigma / nodes[0].sigma * begin + there.alpha * mean, keep=keep))
    return rows


def _inner(levels: list[float], end: float, solver: str) -> list[float]:
    """Returns w_j of ``dpmpp_singlestep`` for lambda_0 .. lambda_k and lambda'. Of equal noise levels, the first D
    counts."""
    h, inner = end - levels[0], [level - levels[0] for level in levels]
    phi = -math.expm1(-h)
    if solver == "midpoint" and len(inner) == 2 and inner[1]:
        second = phi * h / (2 * inner[1])
        return [phi - second, second]
    used = [j for j, s in enumerate(inner) if s not in inner[:j] and not (solver == "midpoint" and j == 1)]
    if len(used) == 1:
        return [phi, *[0.0] * (len(inner) - 1)]
    weights = iter(integral_weights([inner[j] for j in used], h, lambda s: np.exp(s - h)))
    return [next(weights) if j in used else 0.0 for j in range(len(inner))]


def _decay(eta: float, h: float) -> tuple[float, float]:
    """Returns e^(-eta h) and sqrt(1 - e^(-2 eta h)). Rounding may have made h negative; h may be infinite."""
    return (math.exp(-eta * h), math.sqrt(max(0.0, -math.expm1(-2 * eta * h)))) if eta else (1.0, 0.0)


def _weight(solver: str, phi: float, h: float) -> float:
    check_choice("solver", solver, ("midpoint", "heun"))
    return phi / 2 if solver == "midpoint" else 1 - (phi / h if h else 1.0)
