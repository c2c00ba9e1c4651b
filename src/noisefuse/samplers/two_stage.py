# SPDX-License-Identifier: Apache-2.0
"""Runge-Kutta methods with two to four model calls per step. Rows remember the parts of x that later ones need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from ..ground.checks import check_integer, check_number
from ..language.schedule import Schedule
from ..language.tableau import Affine, D, Tableau, past, x, z
from .plan import Array, Node, Placed, Plan, PlanOptions, descent, each, plan, split, squared
from .shared import sampler
from .spacing import Steps


def _heun(run: Plan, here: Node, there: Node, slope: float, noise: Array) -> tuple[Placed, ...]:
    """Returns the rows of Heun's method, two for a step, or one if sigma' = 0; noise: the standard deviation added to
    x' at the end.

        x~ = x + h d,    d = e + slope D,    h = sigma' - sigma
        x' = x + h (d + d~) / 2

    slope: the frame's dalpha / dsigma, 0 for x / alpha and -1 for rectified flow.
    """
    last = run.row(here, there.alpha * D + noise * z, at=run.clean_end)
    here, there, noise = here.at(run.noisy), there.at(run.noisy), noise[run.noisy]
    h = there.sigma - here.sigma
    d, d2 = (run.noise(node) + slope * D for node in (here, there))
    return (run.row(here, x + h * d, keep=[x + h / 2 * d]), run.row(there, past[0] + h / 2 * d2 + noise * z), last)


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
    return run.table("heun", *_heun(run, *run.steps, 0, np.zeros(run.n)))


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
    run.check_flow("flow_heun", "heun")
    return run.table("flow_heun", *_heun(run, *run.steps, -1, np.zeros(run.n)))


@sampler(prediction="flow")
def rk4(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """The classic Runge-Kutta method of order 4 for rectified flow, Kutta 1901; stable-audio's ``sample_rk4``.

        k1 = u(x, sigma),  k2 = u(x + h k1 / 2, sigma + h / 2),  k3 = u(x + h k2 / 2, sigma + h / 2),
        k4 = u(x + h k3, sigma'),  x' = x + h (k1 + 2 k2 + 2 k3 + k4) / 6,    u = z - x0,  h = sigma' - sigma

    4 n model calls. The step to clean data needs ``prediction="flow"`` without clip; else it is Euler's.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> len(nf.samplers.rk4(nf.Schedule.flow(1000), steps=10))
    40
    """
    run = plan(schedule, steps, whole=False, **options)
    run.check_flow("rk4", "heun")
    here, there = run.steps
    to_the_end = options["prediction"] == "flow" and options.get("clip") is None
    whole, rest = (slice(None), slice(0)) if to_the_end else (run.noisy, run.clean_end)
    euler = run.row(here, there.alpha * D, at=rest)
    here, there = here.at(whole), there.at(whole)
    h = there.sigma - here.sigma
    mid = run.between((here.sigma + there.sigma) / 2, here, of_flow=True)
    u, u_mid, u_end = (run.noise(node) - D for node in (here, mid, there))
    return run.table(
        "rk4",
        run.row(here, x + h / 2 * u, keep=[x]),
        run.row(mid, past[0] + h / 2 * u_mid, keep=[past[0] + (x - past[0]) / 3 + h / 3 * u_mid]),
        run.row(mid, past[1] + h * u_mid, keep=[past[0] + h / 3 * u_mid]),
        run.row(there, past[0] + h / 6 * u_end),
        euler,
    )


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
    here, there = run.steps
    gamma = min(S_churn / run.n, math.sqrt(2) - 1)
    churned = (S_min <= here.sigma) & (here.sigma <= S_max) & (gamma > 0)
    raised = run.between(np.where(churned, here.sigma * (1 + gamma), 0.0), here)
    added = S_noise * np.sqrt(squared(raised.sigma) - squared(here.sigma))
    # no model is called at the last node
    rows = _heun(run, raised, there, 0, np.append(added[1:], 0.0))
    return run.table("edm", *rows, start=math.hypot(run.start, added[0]))


def _dpm_2(name: str, run: Plan, eta: float) -> Tableau:
    here, there = run.steps
    down, ratio, fresh = descent(here, there, eta)
    inner = down != 0
    mid = run.between(np.sqrt(here.sigma * down), here, of_flow=_in_flow(here))
    d, d_mid = (run.noise(node) + _slope(node) * D for node in (here, mid))
    return run.table(
        name,
        run.row(here, x + (mid.sigma - here.sigma) * d, keep=[x], at=inner),
        run.row(mid, ratio * (past[0] + (down - here.sigma) * d_mid) + fresh * z, at=inner),
        run.row(here, there.alpha * D + fresh * z, at=~inner),
    )


def _slope(node: Node) -> Array:
    """Returns dalpha / dsigma in the node's frame: 0 for x / alpha, -1 in a flow."""
    return np.where(node.alpha == 1, 0.0, -1.0)


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
    here, there = run.steps
    down, ratio, fresh = descent(here, there, eta)
    inner, mid, kept = down != 0, middle(run, here, down), down / here.sigma
    return run.table(
        "dpmpp_2s_ancestral",
        run.row(here, x + (mid.sigma - here.sigma) * (run.noise(here) + _slope(here) * D), keep=[x], at=inner),
        run.row(mid, ratio * (kept * past[0] + (1 - kept) * D) + fresh * z, at=inner),
        run.row(here, there.alpha * D + fresh * z, at=~inner),
    )


def middle(run: Plan, here: Node, down: Array) -> Node:
    """Returns the midpoint in log(sigma / alpha) on the way down, in a flow or for x / alpha."""
    if not _in_flow(here):
        return run.between(np.sqrt(here.sigma * down), here)
    level = np.sqrt(here.sigma * down / (here.alpha * (1 - down)))
    return run.between(np.where(here.alpha == 0, 0.9999, level / (1 + level)), here, of_flow=True)


def _in_flow(node: Node) -> bool:
    return bool((node.alpha != 1).any())


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
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    mid = geometric(run, here, there.sigma, r)
    mid_keep, mid_fresh = split(here, mid, eta)
    a, s, b = (node.sigma * (node.scale if run.axis.family == "flow" else 1) for node in (here, mid, there))
    shared = np.where(fresh > 0, (a - s) / (a - b), 0.0)
    ratio = keep / here.sigma
    known = ratio * x + (1 - ratio) * (1 - 1 / (2 * r)) * D + fresh * np.sqrt(shared) * z
    rest = fresh * np.sqrt(1 - shared) * z
    return run.table(
        "dpmpp_sde",
        run.row(here, D + mid_keep * run.noise(here) + mid_fresh * z, keep=[known], at=run.noisy),
        run.row(mid, past[0] + (1 - ratio) / (2 * r) * D + rest, at=run.noisy),
        run.row(here, D, at=run.clean_end),
    )


def geometric(run: Plan, here: Node, end: Array, r: float | Array) -> Node:
    """Returns nodes between ``here`` and these levels of x / alpha, at this share of the way in log sigma."""
    r = np.broadcast_to(r, end.shape)
    return run.between(each(lambda a, b, r: a ** (1 - r) * b**r, here.sigma, end, r), here)


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
    orders = np.array([order] * run.n if isinstance(order, int | np.integer) else list(order))
    if len(orders) != run.n:
        raise ValueError(f"order: expected a number, or one for each of {run.n} steps, got {len(orders)}")
    for one in dict.fromkeys(orders.tolist()):
        check_integer("order", one, 1, 3)
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    down = np.where(fresh > 0, np.maximum(keep, run.nodes.sigma[-1]), keep)
    noise = np.sqrt(np.maximum(0.0, (there.sigma - down) * (there.sigma + down)))
    rows = [run.row(here, D + fresh * z, at=down == 0)]
    for one in {*orders.tolist()}:
        some = (orders == one) & (down != 0)
        rows += _dpm_solver_rows(run, here.at(some), down[some], one, noise[some] * z)
    return run.table("dpm_solver", *rows)


def _dpm_solver_rows(run: Plan, here: Node, down: Array, order: int, noise: Affine) -> list[Placed]:
    """Returns the rows of ``dpm_solver`` for steps of an order. Of order 3, the first one keeps D and x, the second the
    rest."""
    e, h, whole = run.noise(here), each(math.log, here.sigma / down), down - here.sigma
    if order == 1:
        return [run.row(here, x + whole * e + noise)]
    r_1, r_2 = 1 / order, 2 / 3
    first, second = (geometric(run, here, down, r) for r in (r_1, r_2))
    to_first = x + (first.sigma - here.sigma) * e
    if order == 2:
        weight = whole / (2 * r_1)
        return [
            run.row(here, to_first, keep=[x + (whole - weight) * e]),
            run.row(first, past[0] + weight * run.noise(first) + noise),
        ]
    a = -r_2 / r_1 * second.sigma * each(_psi, r_2 * h)
    b = -down / r_2 * each(_psi, h)
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
    most = run.nodes.sigma[0] if sigma_0 is None else check_number("sigma_0", sigma_0, above=0)
    here, _ = run.steps
    # the last of them are not called
    there, after = (run.nodes.at(np.minimum(here.step + k, run.n - 1))._replace(step=here.step) for k in (1, 2))
    e, e_2, e_3 = map(run.noise, (here, there, after))
    h, left = run.nodes.sigma[1:] - here.sigma, run.n - here.step  # steps from here on
    calls = np.minimum(left, 3)
    w_2, w_3 = (np.where(left > n, node.sigma / (calls * most), 0.0) for n, node in ((1, there), (2, after)))
    known = x + h * (1 - (w_2 + w_3)) * e
    return run.table(
        "heunpp2",
        run.row(here, x + h * e, keep=[known], at=left > 1),
        run.row(there, x + (after.sigma - there.sigma) * e_2, keep=[past[0] + h * w_2 * e_2], at=left > 2),
        run.row(after, past[0] + h * w_3 * e_3, at=left > 2),
        run.row(there, past[0] + h * w_2 * e_2, at=left == 2),
        run.row(here, D if run.to_clean else x + h * e, at=left == 1),
    )
