# SPDX-License-Identifier: Apache-2.0
"""Samplers that remember nothing. They all have this form:

x' = alpha' D + keep e + fresh z,    keep^2 + fresh^2 = sigma'^2,    e = (x - alpha D) / sigma
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

import numpy as np

from ..ground.checks import check_choice, check_integer
from ..language.schedule import Schedule
from ..language.tableau import D, Tableau, z
from .plan import Plan, PlanOptions, descent, plan, split, squared
from .shared import sampler
from .spacing import Steps


def _rows(name: str, run: Plan, eta: float) -> Tableau:
    """x' = alpha' D + keep e + fresh z: Song et al. 2021 (DDIM), equation 12, in any frame."""
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    return run.table(name, run.row(here, there.alpha * D + keep * run.noise(here) + fresh * z))


@sampler(spacing="leading")
def ddpm(
    schedule: Schedule, steps: Steps = 1000, *, variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Ancestral sampling, Ho et al. 2020 (algorithm 2), on any subset of the steps (Nichol & Dhariwal 2021).

        x' ~ N(mean of q(x' | x, x0 = D), variance)

    A step to clean data draws no noise.

    Args:
        variance: "fixed_small", the variance beta~ of q(x' | x, x0), or "fixed_large", the variance beta of q(x | x').

    >>> nf.samplers.ddpm(nf.Schedule.linear(1000), steps=5).tableau.as_rows.draws.tolist()
    [True, True, True, True, False]
    """
    check_choice("variance", variance, ("fixed_small", "fixed_large"))
    run = plan(schedule, steps, **options)
    if variance == "fixed_small":
        return _rows("ddpm", run, eta=1.0)
    here, there = run.steps
    keep, _ = split(here, there, eta=1.0)
    beta = squared(here.sigma) - squared(here.alpha / there.alpha * there.sigma)
    # rounding could make beta negative where both levels are the same
    fresh = np.sqrt(np.maximum(0.0, np.where(there.sigma > 0, beta, 0.0)))
    return run.table("ddpm", run.row(here, there.alpha * D + keep * run.noise(here) + fresh * z))


@sampler(spacing="leading")
def ddim(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 0.0, use_clipped_model_output: bool = True,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Song et al. 2021 (DDIM), equations 12 and 16; eta = 0: deterministic, eta = 1: DDPM.

        x' = alpha' D + keep e + fresh z,    keep, fresh = split(sigma', eta),    e = (x - alpha D) / sigma

    Args:
        use_clipped_model_output: compute e from the clamped D, so that x = alpha D + sigma e stays true. False: e is
            the network's predicted noise, the default in diffusers.

    >>> print(nf.samplers.ddim(nf.Schedule.linear(1000), steps=[500], final=200))
    Sampler(ddim, 1 rows)
      0: t = 500;  D = 3.58525 x - 3.44297 m1;  x' = 0.586219 m1 + 0.810152 D
    """
    run = plan(schedule, steps, **options)
    here, there = run.steps
    keep, fresh = split(here, there, eta)
    e = run.noise(here) if use_clipped_model_output else run.predicted_noise(here)
    return run.table("ddim", run.row(here, there.alpha * D + keep * e + fresh * z))


@sampler(spacing="leading")
def ddim_inverse(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """DDIM upwards, from clean data to the noise that leads to it: Song et al. 2021, as in diffusers.

        x' = alpha' D + sigma' e,    D, e from m(x, t') read as the answer at x's own level

    The times are those of `ddim` with the same arguments, in reverse. The network is given the time t' of the step's
    end, so that clean data x, where e is m's own, has a time. (`ddim` on rising steps gives it the time of x.) ``clip``
    bounds D; e stays the network's prediction.

    Raises:
        ValueError: the prediction does not determine e at the run's end, where sigma is 0. Only "epsilon", "v" and
            "flow" do; ``final="sigma_min"`` begins above it.

    >>> nf.samplers.ddim_inverse(nf.Schedule.linear(1000), steps=5).timesteps.tolist()
    [0, 200, 400, 600, 800]
    """
    run = plan(schedule, steps, **options)
    if run.to_clean and run.view.name not in ("epsilon", "v", "flow"):
        raise ValueError(
            f'a prediction of {run.view.name} does not determine the noise of clean data: begin at final="sigma_min"'
        )
    up = run.nodes.at(slice(None, None, -1))
    here, there = up.at(slice(-1)), up.at(slice(1, None))
    told = here._replace(t=there.t, told=there.told, step=-here.step)
    row = run.row(told, there.alpha * D + there.sigma * run.predicted_noise(told))
    return run.table("ddim_inverse", row, start=math.hypot(up.alpha[0], up.sigma[0]))


@sampler(spacing="leading")
def repaint(
    schedule: Schedule, steps: Steps = 250, *, eta: float = 1.0, jump_length: int = 10, jump_n_sample: int = 10,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """RePaint's walk, Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1: `ddim`'s steps down, with jumps back up.

        down: x' = alpha' D + keep e + fresh z
        and before a jump: x'' = (alpha'' / alpha') x' + sqrt(sigma''^2 - (alpha'' sigma' / alpha')^2) z_2

    A jump back is q(x'' | x'), jump_length steps at once. It shares a row with the step before it, and their normals
    are one. The known part of x is not in the row: ``sample(.., mask=, known=)`` writes it before each row, at the
    row's noise level, always with the same noise; the paper draws new noise each time.

    Args:
        jump_length: the number of steps that a jump goes back; jumps begin at each jump_length-th noise level.
        jump_n_sample: how often the run goes down from each of these noise levels.

    >>> nf.samplers.repaint(nf.Schedule.linear(1000), 5, jump_length=2, jump_n_sample=2).timesteps.tolist()
    [800, 600, 800, 600, 400, 200, 400, 200, 0]
    """
    check_integer("jump_length", jump_length, 1)
    check_integer("jump_n_sample", jump_n_sample, 1)
    run = plan(schedule, steps, **options)
    # noise levels count from the end, as in the paper: so many steps remain after a step
    left = dict.fromkeys(range(1, run.n - jump_length + 1, jump_length), jump_n_sample - 1)
    walk, at = [], run.n
    while at:
        walk.append(at)
        at -= 1
        if left.get(at, 0):
            left[at] -= 1
            at += jump_length
    begins, ends = run.n - np.array(walk), run.n - np.array([*walk[1:], 0])
    here, there, up = (run.nodes.at(nodes) for nodes in (begins, begins + 1, ends))
    here = here._replace(step=np.arange(len(walk)))
    keep, fresh = split(here, there, eta)
    ratio = up.alpha / there.alpha
    jumped = np.sqrt(squared(ratio * fresh) + squared(up.sigma) - squared(ratio * there.sigma))
    fresh = np.where(ends == begins + 1, fresh, jumped)
    return run.table("repaint", run.row(here, ratio * (there.alpha * D + keep * run.noise(here)) + fresh * z))


@sampler()
def euler(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """Euler's method for the probability flow of x / alpha (Karras et al. 2022).

        x' = x + (sigma' - sigma) d,    d = (x - D) / sigma

    In this frame (sigma is sigma / alpha) it is DDIM with eta = 0.
    """
    return _rows("euler", plan(schedule, steps, whole=False, **options).exploding(), 0.0)


@sampler()
def euler_ancestral(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 1.0, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Euler's method to sigma_down, then fresh noise up to sigma' (k-diffusion, Crowson 2022), for x / alpha.

        sigma_up^2 = eta^2 sigma'^2 (sigma^2 - sigma'^2) / sigma^2,    sigma_down^2 = sigma'^2 - sigma_up^2
        x' = x + (sigma_down - sigma) d + sigma_up z,                  d = (x - D) / sigma

    In this frame (sigma is sigma / alpha) it is DDIM with the same eta. In a flow it works on x itself, as in ComfyUI:

        sigma_down = sigma' (1 - eta (1 - sigma' / sigma)),    sigma_up^2 = sigma'^2 - (ratio sigma_down)^2
        x' = ratio (x + (sigma_down - sigma) d) + sigma_up z,    ratio = (1 - sigma') / (1 - sigma_down)

    >>> sampler = nf.samplers.euler_ancestral(nf.Schedule.flow(1000), steps=[1.0, 0.5], prediction="flow")
    >>> sampler.sample(lambda x, t: 0.1 * x, (2, 8), nf.Noise(7)).shape
    (2, 8)
    """
    run = plan(schedule, steps, whole=False, **options).flow_or_exploding()
    here, there = run.steps
    down, ratio, fresh = descent(here, there, eta)
    row = run.row(here, there.alpha * D + ratio * down * run.noise(here) + fresh * z)
    return run.table("euler_ancestral", row)


@sampler(prediction="flow")
def flow_euler(schedule: Schedule, steps: Steps = 50, **options: Unpack[PlanOptions]) -> Tableau:
    """Euler's method for rectified flow, Liu et al. 2022 (algorithm 1); for ``Schedule.flow``.

        x' = x + (sigma' - sigma) u,    u = z - x0 = (x - D) / sigma

    The model is given the (shifted) sigma, unless ``model_time`` says otherwise.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> nf.samplers.flow_euler(nf.Schedule.flow(1000, shift=3.0), levels=[0.9, 0.5]).timesteps.tolist()
    [0.9, 0.5]
    """
    run = plan(schedule, steps, whole=False, **options)
    run.check_flow("flow_euler", "euler")
    return _rows("flow_euler", run, 0.0)
