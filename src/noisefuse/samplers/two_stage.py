# SPDX-License-Identifier: Apache-2.0
"""Runge-Kutta methods with two or three model calls per step. Rows remember the parts of x that later ones need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from ..ground.checks import check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import Affine, D, Tableau, past, x, z
from .plan import Node, Placed, Plan, PlanOptions, descent, plan, split
from .shared import sampler
from .spacing import Steps


def _heun_step(run: Plan, here: Node, there: Node, slope: float, noise: float = 0.0) -> list[Placed]:
    """Returns two rows of Heun's method, or one if sigma' = 0; noise: the standard deviation added to x' at the end.

        x~ = x + h d,    d = e + slope D,    h = sigma' - sigma
        x' = x + h (d + d~) / 2

    slope: the frame's dalpha / dsigma, 0 for x / alpha and -1 for rectified flow.
    """
    if there.sigma == 0:
        return [run.row(here, there.alpha * D + noise * z)]
    h = there.sigma - here.sigma
    d, d2 = (run.noise(node) + slope * D for node in (here, there))
    return [run.row(here, x + h * d, keep=[x + h / 2 * d]), run.row(there, past[0] + h / 2 * d2 + noise * z)]


@sampler()
def heun(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """Heun's method for the flow of x / alpha, Karras et al. 2022 (algorithm 1): 2 n - 1 model calls.

        x~ = x + h d(x, sigma),    d(x, sigma) = (x - D) / sigma = e,    h = sigma' - sigma
        x' = x + h (d(x, sigma) + d(x~, sigma')) / 2

    There is no correction if sigma' = 0.

    >>> len(nf.samplers.heun(nf.Schedule.karras(100), steps=10))
    19
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    return run.table("heun", [row for here, there in run.pairs for row in _heun_step(run, here, there, 0)])


@sampler(prediction="flow")
def flow_heun(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """Heun's method for rectified flow, dx = u dsigma, u = z - x0 = e - D: 2 n - 1 model calls.

    The model is given the (shifted) sigma.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> len(nf.samplers.flow_heun(nf.Schedule.flow(1000), steps=10))
    19
    """
    run = plan(schedule, steps, whole=False, **options)
    run.need_flow("flow_heun", "heun")
    return run.table("flow_heun", [row for here, there in run.pairs for row in _heun_step(run, here, there, -1)])


@sampler(prediction="edm", spacing="karras")
def edm(
    schedule: Schedule, steps: Steps = 18, *, S_churn: float = 0.0, S_min: float = 0.0, S_max: float = math.inf,
    S_noise: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Karras et al. 2022, algorithm 2: Heun's method with churn, for x / alpha. 2 n - 1 model calls.

        gamma = min(S_churn / n, sqrt(2) - 1) if S_min <= t <= S_max else 0,    t^ = t + gamma t
        x^ = x + S_noise sqrt(t^^2 - t^2) z                    before the model is called
        x' = Heun's step from x^ at t^ to t'

    The row before a model call adds the call's noise; the start adds the first call's.

    Args:
        S_churn: the amount of noise added in all steps together; 0, none, is Heun's method.
        S_min, S_max: the range of noise levels in which it is added.
        S_noise: a factor of the added noise's standard deviation.

    >>> sampler = nf.samplers.edm(nf.Schedule.karras(100), steps=10, S_churn=5.0)
    >>> len(sampler), int(sampler.tableau.as_rows.draws.sum())
    (19, 9)
    """
    for name, number in (("S_churn", S_churn), ("S_noise", S_noise)):
        check_number(name, number, 0, finite=False)
    run = plan(schedule, steps, whole=False, **options).exploding()
    n = len(run.nodes) - 1
    raised, added = [], []
    for node in run.nodes:
        gamma = min(S_churn / n, math.sqrt(2) - 1) if S_min <= node.sigma <= S_max and node.sigma else 0.0
        raised.append(run.node(node.sigma * (1 + gamma)) if gamma else node)
        added.append(S_noise * math.sqrt(raised[-1].sigma ** 2 - node.sigma**2))
    added[n] = 0.0  # no model is called at the last node
    moves = zip(raised[:-1], run.nodes[1:], added[1:], strict=True)
    rows = [row for here, there, noise in moves for row in _heun_step(run, here, there, 0, noise)]
    return run.table("edm", rows, start=math.hypot(run.start, added[0]))


def _dpm_2(name: str, run: Plan, eta: float) -> Tableau:
    rows = []
    for here, there in run.pairs:
        down, ratio, fresh = descent(here, there, eta)
        if down == 0:
            rows.append(run.row(here, there.alpha * D + fresh * z))
            continue
        mid = _between(run, here, math.sqrt(here.sigma * down))
        d, d_mid = (run.noise(node) + _slope(node) * D for node in (here, mid))
        rows.append(run.row(here, x + (mid.sigma - here.sigma) * d, keep=[x]))
        rows.append(run.row(mid, ratio * (past[0] + (down - here.sigma) * d_mid) + fresh * z))
    return run.table(name, rows)


def _between(run: Plan, here: Node, sigma: float) -> Node:
    """Returns a node of here's frame, x / alpha or that of a flow."""
    return run.node(sigma, of_flow=here.alpha != 1)


def _slope(node: Node) -> float:
    """Returns dalpha / dsigma in the node's frame: 0 for x / alpha, -1 in a flow."""
    return 0.0 if node.alpha == 1 else -1.0


@sampler()
def dpm_2(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """DPM-Solver-2 (Lu et al. 2022) as in k-diffusion, for x / alpha: 2 n - 1 model calls.

        s = sqrt(sigma sigma')
        u = x + (s - sigma) d(x, sigma),    d(x, sigma) = (x - D) / sigma
        x' = x + (sigma' - sigma) d(u, s)

    s is the midpoint in log sigma. If sigma' = 0, the step is Euler's.

    >>> len(nf.samplers.dpm_2(nf.Schedule.karras(100), steps=10))
    19
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    return _dpm_2("dpm_2", run, 0.0)


@sampler()
def dpm_2_ancestral(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """``dpm_2`` down to sigma_down, then fresh noise up to sigma' (k-diffusion, Crowson 2022): 2 n - 1 model calls.

        s = sqrt(sigma sigma_down),    u = x + (s - sigma) d(x, sigma)
        x' = x + (sigma_down - sigma) d(u, s) + sigma_up z

    sigma_down and sigma_up are those of ``euler_ancestral``. In a flow it works on x itself, with the ratio of
    ``euler_ancestral``.
    """
    run = plan(schedule, steps, whole=False, **options).flow_or_exploding()
    return _dpm_2("dpm_2_ancestral", run, eta)


@sampler()
def dpmpp_2s_ancestral(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DPM-Solver++(2S), Lu et al. 2022 (algorithm 1), down to sigma_down, then fresh noise, for x / alpha.

        s = sqrt(sigma sigma_down),    u = (s / sigma) x + (1 - s / sigma) D(x, sigma)
        x' = (sigma_down / sigma) x + (1 - sigma_down / sigma) D(u, s) + sigma_up z

    It follows k-diffusion; sigma_down and sigma_up are those of ``euler_ancestral``. eta = 0 is DPM-Solver++(2S)
    itself. 2 n - 1 model calls. In a flow it works on x itself, with euler_ancestral's ratio; s is the midpoint in
    log(sigma / alpha), and from sigma = 1, where there is none, 0.9999, as in ComfyUI.
    """
    run = plan(schedule, steps, whole=False, **options).flow_or_exploding()
    rows = []
    for here, there in run.pairs:
        down, ratio, fresh = descent(here, there, eta)
        if down == 0:
            rows.append(run.row(here, there.alpha * D + fresh * z))
            continue
        mid, kept = middle(run, here, down), down / here.sigma
        rows.append(run.row(here, x + (mid.sigma - here.sigma) * (run.noise(here) + _slope(here) * D), keep=[x]))
        rows.append(run.row(mid, ratio * (kept * past[0] + (1 - kept) * D) + fresh * z))
    return run.table("dpmpp_2s_ancestral", rows)


def middle(run: Plan, here: Node, down: float) -> Node:
    """Returns the midpoint in log(sigma / alpha) on the way down, in a flow or for x / alpha."""
    if here.alpha == 1:
        return run.node(math.sqrt(here.sigma * down))
    if here.alpha == 0:
        return _between(run, here, 0.9999)
    level = math.sqrt(here.sigma * down / (here.alpha * (1 - down)))
    return _between(run, here, level / (1 + level))


@sampler()
def dpmpp_sde(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, r: float = 0.5, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """SDE-DPM-Solver++(2S) as in k-diffusion (Lu et al. 2022, section 5), for x / alpha: 2 n - 1 model calls.

        s = sigma^(1 - r) sigma'^r
        u = (s_down / sigma) x + (1 - s_down / sigma) D(x, sigma) + s_up w(sigma, s)
        x' = (sigma_down / sigma) x + (1 - sigma_down / sigma) ((1 - 1 / 2r) D(x, sigma) + D(u, s) / 2r)
             + sigma_up w(sigma, sigma')

    s_down, s_up and sigma_down, sigma_up are those of ``euler_ancestral``. w(a, b) is a Brownian motion's increment
    from a to b, over the square root of a - b, so both w share their first piece. Each row draws one piece, z1 and z2:

        w(sigma, s) = z1,    w(sigma, sigma') = c z1 + sqrt(1 - c^2) z2,    c^2 = (sigma - s) / (sigma - sigma')

    In a flow, the sigma of c^2 is the flow's own, as in ComfyUI and `Sampler.path`, not sigma / alpha.

    Args:
        r: the place of the second call in log sigma, 0 < r < 1.

    >>> sampler = nf.samplers.dpmpp_sde(nf.Schedule.karras(100), steps=10)
    >>> len(sampler), sampler.tableau.as_rows.draws.tolist()[-3:]
    (19, [True, True, False])
    """
    if not 0 < r < 1:
        raise ValueError(f"r must lie between 0 and 1, got {r}")
    run = plan(schedule, steps, whole=False, **options).exploding()
    rows = []
    for here, there in run.pairs:
        keep, fresh = split(here, there, eta)
        if there.sigma == 0:
            rows.append(run.row(here, D))
            continue
        mid = run.node(here.sigma ** (1 - r) * there.sigma**r)
        mid_keep, mid_fresh = split(here, mid, eta)
        a, s, b = (node.sigma * (node.scale if run.axis.family == "flow" else 1) for node in (here, mid, there))
        shared = (a - s) / (a - b) if fresh else 0.0
        ratio = keep / here.sigma
        known = ratio * x + (1 - ratio) * (1 - 1 / (2 * r)) * D + fresh * math.sqrt(shared) * z
        rows.append(run.row(here, D + mid_keep * run.noise(here) + mid_fresh * z, keep=[known]))
        rest = fresh * math.sqrt(1 - shared) * z
        rows.append(run.row(mid, past[0] + (1 - ratio) / (2 * r) * D + rest))
    return run.table("dpmpp_sde", rows)


@sampler()
def dpm_solver(
    schedule: Schedule, steps: Steps = 20, *, order: int | Sequence[int] = 3, eta: float = 0.0,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DPM-Solver-1, -2 and -3, Lu et al. 2022 (arXiv:2206.00927), for x / alpha: ``order`` model calls a step.

        1:  x' = x + (sigma' - sigma) e
        2:  u = x + (s_1 - sigma) e,    x' = x + (sigma' - sigma) (e + (e(u, s_1) - e) / 2 r_1),    r_1 = 1/2
        3:  u as above, r_1 = 1/3, r_2 = 2/3
            v = x + (s_2 - sigma) e - (r_2 / r_1) s_2 psi(r_2 h) (e(u, s_1) - e)
            x' = x + (sigma' - sigma) e - (1 / r_2) sigma' psi(h) (e(v, s_2) - e)
        e(x, sigma) = (x - D) / sigma,    s_j = sigma e^(-r_j h),    h = log(sigma / sigma')
        psi(h) = (e^h - 1) / h - 1

    With eta above 0, sigma' is ``euler_ancestral``'s sigma_down, but not below the run's end, and noise is drawn up to
    sigma', as in k-diffusion. A step to clean data is x' = D. k-diffusion's dpm_fast is this on levels equally spaced
    in log sigma, with orders 3, 3, .. and at the end 2, 1 or what is left of the calls.

    Args:
        order: 1 to 3, or a list of one for each step.

    >>> len(nf.samplers.dpm_solver(nf.Schedule.karras(100), steps=4, order=[3, 3, 2, 1]))
    9
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    n = len(run.nodes) - 1
    orders = [order] * n if isinstance(order, int | np.integer) else list(order)
    if len(orders) != n:
        raise ValueError(f"order: expected a number, or one for each of {n} steps, got {len(orders)}")
    rows: list[Placed] = []
    for (here, there), each in zip(run.pairs, orders, strict=True):
        check_integer("order", each, 1, 3)
        keep, fresh = split(here, there, eta)
        down = max(keep, run.nodes[-1].sigma) if fresh else keep
        if down == 0:
            rows.append(run.row(here, D + fresh * z))
            continue
        noise = math.sqrt(max(0.0, (there.sigma - down) * (there.sigma + down)))
        rows += _dpm_solver_step(run, here, down, each, noise * z)
    return run.table("dpm_solver", rows)


def _dpm_solver_step(run: Plan, here: Node, down: float, order: int, noise: Affine) -> list[Placed]:
    """Returns the rows of ``dpm_solver`` for one step. Of order 3, the first one keeps D and x, the second the rest."""
    e, h, whole = run.noise(here), math.log(here.sigma / down), down - here.sigma
    if order == 1:
        return [run.row(here, x + whole * e + noise)]
    r_1, r_2 = 1 / order, 2 / 3
    first, second = (run.node(here.sigma ** (1 - r) * down**r) for r in (r_1, r_2))
    to_first = x + (first.sigma - here.sigma) * e
    if order == 2:
        weight = whole / (2 * r_1)
        return [
            run.row(here, to_first, keep=[x + (whole - weight) * e]),
            run.row(first, past[0] + weight * run.noise(first) + noise),
        ]
    a = -r_2 / r_1 * second.sigma * _psi(r_2 * h)
    b = -down / r_2 * _psi(h)
    e_kept = (past[1] - past[0]) / here.sigma
    to_second = past[1] + (second.sigma - here.sigma - a) * e_kept + a * run.noise(first)
    return [
        run.row(here, to_first, keep=[D, x]),
        run.row(first, to_second, keep=[past[1] + (whole - b) * e_kept]),
        run.row(second, past[0] + b * run.noise(second) + noise),
    ]


def _psi(h: float) -> float:
    return math.expm1(h) / h - 1 if h else 0.0


@sampler()
def heunpp2(
    schedule: Schedule, steps: Steps = 50, *, sigma_0: float | None = None, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """ComfyUI's Heun++, for x / alpha: slopes at this noise level and the next two, weighted by noise. 3 n - 3 model
    calls.

        x_2 = x + (sigma' - sigma) d,    x_3 = x_2 + (sigma'' - sigma') d_2,    d = (x - D) / sigma
        x' = x + (sigma' - sigma) ((1 - w_2 - w_3) d + w_2 d_2 + w_3 d_3),    w_2, w_3 = sigma', sigma'' over 3 sigma_0

    The last step but one has w_2 = sigma' / 2 sigma_0 and no x_3; the last step is
    Euler's. There is no paper; the method comes from Carzit's sd-webui-samplers-scheduler. Its weights are those of a
    mean only at sigma_0, so it is of first order.

    Args:
        sigma_0: the first noise level, of sigma / alpha, positive. None: that of this run. To continue a run, give the
            first level of the whole run.

    >>> len(nf.samplers.heunpp2(nf.Schedule.karras(100), steps=10))
    27
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    most = run.nodes[0].sigma if sigma_0 is None else check_number("sigma_0", sigma_0, above=0)
    rows, n = [], len(run.nodes) - 1
    for i in range(n):
        here, *ahead = run.nodes[i : min(i + 3, n)]
        h = run.nodes[i + 1].sigma - here.sigma
        w = [node.sigma / ((len(ahead) + 1) * most) for node in ahead]
        known = x + h * (1 - sum(w)) * run.noise(here)
        if not ahead:
            rows.append(run.row(here, x + h * run.noise(here) if run.nodes[n].sigma else D))
            continue
        rows.append(run.row(here, x + h * run.noise(here), keep=[known]))
        if len(ahead) == 2:
            further = x + (ahead[1].sigma - ahead[0].sigma) * run.noise(ahead[0])
            rows.append(run.row(ahead[0], further, keep=[past[0] + h * w[0] * run.noise(ahead[0])]))
        rows.append(run.row(ahead[-1], past[0] + h * w[-1] * run.noise(ahead[-1])))
    return run.table("heunpp2", rows)
