# SPDX-License-Identifier: Apache-2.0
"""Samplers that remember nothing. One line serves them all:

x' = alpha' D + keep e + fresh z,    keep^2 + fresh^2 = sigma'^2,    e = (x - alpha D) / sigma
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

from ..schedule import Schedule
from ..tableau import D, Tableau, z
from ..views import View
from .plan import Clip, Plan, plan, split
from .spacing import SpacingOptions, Steps


def _rows(name: str, run: Plan, eta: float) -> Tableau:
    """x' = alpha' D + keep e + fresh z: Song et al. 2021 (DDIM), equation 12, in any frame."""
    rows = []
    for here, there in run.pairs:
        keep, fresh = split(here, there, eta)
        rows.append(run.row(here, there.alpha * D + keep * run.noise(here) + fresh * z))
    return run.table(name, rows)


def ddpm(
    schedule: Schedule,
    steps: Steps = 1000,
    *,
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "leading",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Ancestral sampling, Ho et al. 2020 (algorithm 2), on any subset of the steps (Nichol & Dhariwal 2021).

        x' ~ N(mean of q(x' | x, x0 = D), variance)

    variance "fixed_small": that of q(x' | x, x0), beta~; "fixed_large": that of q(x | x'), beta. A step to
    clean data draws no noise.
    """
    run = plan(schedule, steps, prediction, clip, spacing, **options)
    if variance == "fixed_small":
        return _rows("ddpm", run, eta=1.0)
    if variance != "fixed_large":
        raise ValueError(f"variance must be fixed_small or fixed_large, got {variance!r}")
    rows = []
    for here, there in run.pairs:
        keep, _ = split(here, there, eta=1.0)
        beta = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2 if there.sigma else 0.0
        # rounding could make beta negative where both levels are the same
        fresh = math.sqrt(max(0.0, beta))
        rows.append(run.row(here, there.alpha * D + keep * run.noise(here) + fresh * z))
    return run.table("ddpm", rows)


def ddim(
    schedule: Schedule,
    steps: Steps = 50,
    *,
    eta: float = 0.0,
    use_clipped_model_output: bool = True,
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "leading",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Song et al. 2021 (DDIM), equations 12 and 16; eta = 0: deterministic, eta = 1: DDPM.

        x' = alpha' D + keep e + fresh z,    keep, fresh = split(sigma', eta)

    e = (x - alpha D) / sigma for the clamped D, so that x = alpha D + sigma e stays true; with
    ``use_clipped_model_output=False`` e is what the network predicts (the default in diffusers).
    """
    run = plan(schedule, steps, prediction, clip, spacing, **options)
    rows = []
    for here, there in run.pairs:
        keep, fresh = split(here, there, eta)
        e = run.noise(here) if use_clipped_model_output else run.predicted_noise(here)
        rows.append(run.row(here, there.alpha * D + keep * e + fresh * z))
    return run.table("ddim", rows)


def euler(
    schedule: Schedule,
    steps: Steps = 50,
    *,
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "linspace",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Euler's method for the probability flow of x / alpha (Karras et al. 2022).

        x' = x + (sigma' - sigma) d,    d = (x - D) / sigma

    In this frame (sigma is sigma / alpha) it is DDIM with eta = 0.
    """
    return _rows("euler", plan(schedule, steps, prediction, clip, spacing, whole=False, **options).exploding(), 0.0)


def euler_ancestral(
    schedule: Schedule,
    steps: Steps = 50,
    *,
    eta: float = 1.0,
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "linspace",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Euler's method to sigma_down, then fresh noise up to sigma' (k-diffusion, Crowson 2022), for x / alpha.

        sigma_up^2 = eta^2 sigma'^2 (sigma^2 - sigma'^2) / sigma^2,    sigma_down^2 = sigma'^2 - sigma_up^2
        x' = x + (sigma_down - sigma) d + sigma_up z,                  d = (x - D) / sigma

    In this frame (sigma is sigma / alpha) it is DDIM with the same eta.
    """
    run = plan(schedule, steps, prediction, clip, spacing, whole=False, **options).exploding()
    return _rows("euler_ancestral", run, eta)


def flow_euler(
    schedule: Schedule,
    steps: Steps = 50,
    *,
    prediction: str | View = "flow",
    clip: Clip = None,
    spacing: str = "linspace",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Euler's method for rectified flow, Liu et al. 2022 (algorithm 1); for ``Schedule.flow``.

        x' = x + (sigma' - sigma) u,    u = z - x0 = (x - D) / sigma

    The model is told the (shifted) sigma. ValueError: a schedule without alpha + sigma = 1.
    """
    run = plan(schedule, steps, prediction, clip, spacing, whole=False, **options)
    run.need_flow("flow_euler", "euler")
    return _rows("flow_euler", run, 0.0)
