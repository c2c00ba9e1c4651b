# SPDX-License-Identifier: Apache-2.0
"""CFG++, Chung et al. 2024 (arXiv:2406.08070): guided clean data, and the noise that the unconditional network sees.

The network returns a pair, (uncond, cond), and a run needs a ``guidance_scale``. In these rows m1 is the guided output
and m2 the unconditional one: D comes from m1, D_u and e_u from m2.
"""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np

from ..ground.checks import check_number
from ..language.schedule import Schedule
from ..language.tableau import Affine, D, Tableau, m2, past, x, z
from .dpmpp import earlier, phi, weight
from .exponential import moves, twice
from .plan import Plan, PlanOptions, descent, each, plan, split
from .shared import sampler
from .spacing import Steps
from .two_stage import middle


def _unconditional(affine: Affine) -> Affine:
    """Replaces the guided output in an expression by the unconditional one."""
    _, of_x, of_m1, *_ = affine.coefficients
    unconditional: Affine = of_x * x + of_m1 * m2
    return unconditional


def _euler(name: str, run: Plan, eta: float) -> Tableau:
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    e_u = _unconditional(run.predicted_noise(here))
    return run.table(name, run.row(here, there.alpha * D + keep * e_u + fresh * z))


@sampler()
def euler_cfg_pp(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """DDIM with CFG++: Chung et al. 2024, algorithm 2, in the schedule's own frame.

        x' = alpha' D + sigma' e_u

    D comes from the guided output, e_u is the noise that the unconditional one predicts. The network returns (uncond,
    cond); their lambda is ``guidance_scale``, usually 0 to 1, and 1 to 2 in ComfyUI.

    >>> print(nf.samplers.euler_cfg_pp(nf.Schedule.linear(1000), steps=[500], final=200))
    Sampler(euler_cfg_pp, 1 rows)
      0: t = 500;  D = 3.58525 x - 3.44297 m1;  x' = 0.586219 m2 + 0.810152 D
    """
    return _euler("euler_cfg_pp", plan(schedule, steps, whole=False, **options), 0.0)


@sampler()
def euler_ancestral_cfg_pp(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """`euler_cfg_pp` with fresh noise, as in ComfyUI. keep and fresh are those of `ddim` with the same eta.

        x' = alpha' D + keep e_u + fresh z

    >>> sampler = nf.samplers.euler_ancestral_cfg_pp(nf.Schedule.linear(1000), steps=5)
    >>> sampler.sample(lambda x, t: (x, 0.9 * x), (2, 8), nf.Noise(7), guidance_scale=0.6).shape
    (2, 8)
    """
    return _euler("euler_ancestral_cfg_pp", plan(schedule, steps, whole=False, **options), eta)


@sampler()
def dpmpp_2m_cfg_pp(schedule: Schedule, steps: Steps = 20, **options: Unpack[PlanOptions]) -> Tableau:
    """DPM-Solver++(2M) with CFG++, as in ComfyUI, for x / alpha.

        x' = D + sigma' e_u + (1 - e^-h) (D - D_u_before) / 2 r,    h = log(sigma / sigma'),    r = h_before / h

    D is guided, D_u unconditional. The last term is left out in the first step, in a step to clean data and in one from
    a noise level that is visited twice. With equal outputs but unequal guidance it is not 0, so the order is that of
    `dpmpp_2m` where both agree.

    >>> sampler = nf.samplers.dpmpp_2m_cfg_pp(nf.Schedule.linear(1000), steps=5)
    >>> sampler.sample(lambda x, t: (x, 0.9 * x), (2, 8), nf.Noise(7), guidance_scale=0.6).shape
    (2, 8)
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    here, there = run.steps
    h = each(math.log, here.sigma / there.sigma)
    before = earlier(h)
    w = np.where((before != 0) & (h < math.inf), phi(h) * h / (2 * before), 0.0)
    out = D + there.sigma * _unconditional(run.predicted_noise(here)) + w * (D - past[0])
    return run.table("dpmpp_2m_cfg_pp", run.row(here, out, keep=[_unconditional(run.clean(here))]))


@sampler()
def dpmpp_2s_ancestral_cfg_pp(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """`dpmpp_2s_ancestral` of the unconditional output, with CFG++'s guidance added, as in ComfyUI: 2 n - 1 calls.

        x' = what `dpmpp_2s_ancestral` makes of D_u + alpha' (D - D_u)

    D and D_u are those of a step's first call. A step to clean data is x' = D. It works on x / alpha, and on x in a
    flow.

    >>> sampler = nf.samplers.dpmpp_2s_ancestral_cfg_pp(nf.Schedule.linear(1000), steps=5)
    >>> sampler.sample(lambda x, t: (x, 0.9 * x), (2, 8), nf.Noise(7), guidance_scale=0.6).shape
    (2, 8)
    """
    run = plan(schedule, steps, whole=False, **options).flow_or_exploding()
    here, there = run.steps
    down, ratio, fresh = descent(here, there, eta)
    inner, mid, D_u = down != 0, middle(run, here, down), _unconditional(run.clean(here))
    kept, to_mid = (level / here.sigma for level in (down, mid.sigma))
    known = ratio * kept * x + there.alpha * (D - D_u)
    out = past[0] + ratio * (1 - kept) * _unconditional(run.clean(mid)) + fresh * z
    return run.table(
        "dpmpp_2s_ancestral_cfg_pp",
        run.row(here, to_mid * x + (1 - to_mid) * D_u, keep=[known], at=inner),
        run.row(mid, out, at=inner),
        run.row(here, there.alpha * D + fresh * z, at=~inner),
    )


@sampler()
def res_multistep_cfg_pp(
    schedule: Schedule, steps: Steps = 20, *, eta: float = 0.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """`res_multistep` of the unconditional output with CFG++, as in ComfyUI, for x / alpha.

        x' = e^-h (x + D - D_u) + (1 - e^-h) D_u + (1 - (1 - e^-h) / h) D1 + sigma_up z
        D1 = (D_u - D_u_before) / r

    h, r and sigma_up are those of `res_multistep`. Where it has no D1, x' = D + sigma_down e_u + sigma_up z; so the
    guidance D - D_u counts e^-h times in most steps and once in these. The order is that of `res_multistep` where both
    outputs agree.

    >>> sampler = nf.samplers.res_multistep_cfg_pp(nf.Schedule.linear(1000), steps=5)
    >>> sampler.sample(lambda x, t: (x, 0.9 * x), (2, 8), nf.Noise(7), guidance_scale=0.6).shape
    (2, 8)
    """
    run = plan(schedule, steps, whole=False, **options).exploding()
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    D_u = _unconditional(run.clean(here))
    h, moved, again = moves(here, keep, keep)
    first = D + keep * _unconditional(run.predicted_noise(here))
    p, D1 = phi(h), h / moved * (D_u - past[0])
    mean = each(math.exp, -h) * (x + D - D_u) + p * D_u + weight("heun", p, h) * D1
    rows = (run.row(here, one + fresh * z, keep=[D_u], at=at) for one, at in ((first, again), (mean, ~again)))
    return run.table("res_multistep_cfg_pp", *rows)


@sampler()
def gradient_estimation_cfg_pp(
    schedule: Schedule, steps: Steps = 50, *, gamma: float = 2.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """`gradient_estimation` with CFG++, as in ComfyUI, for x / alpha.

        x' = D + sigma' e_u + (gamma - 1) (sigma' - sigma) (e_u - e_u_before)

    The last term is left out in the first step, and in a step from a noise level that is visited twice. A step to clean
    data is x' = D.

    Args:
        gamma: finite; 1 is `euler_cfg_pp`.

    >>> sampler = nf.samplers.gradient_estimation_cfg_pp(nf.Schedule.linear(1000), steps=5)
    >>> sampler.sample(lambda x, t: (x, 0.9 * x), (2, 8), nf.Noise(7), guidance_scale=0.6).shape
    (2, 8)
    """
    check_number("gamma", gamma)
    run = plan(schedule, steps, whole=False, **options).exploding()
    here, there = run.steps
    e_u = _unconditional(run.predicted_noise(here))
    w = np.where(twice(here) | (there.sigma == 0), 0.0, (gamma - 1) * (there.sigma - here.sigma))
    out = D + there.sigma * e_u + w * (e_u - past[0])
    rows = run.row(here, out, keep=[e_u], at=run.noisy), run.row(here, D, keep=[e_u], at=run.clean_end)
    return run.table("gradient_estimation_cfg_pp", *rows)
