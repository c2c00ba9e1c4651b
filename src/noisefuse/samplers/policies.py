# SPDX-License-Identifier: Apache-2.0
"""Samplers of rectified flow that draw noise at every step, for reinforcement learning. A step is an action: x' is
drawn from a Gaussian, and `Sampler.step(.., log_prob=True)` gives its log-density.

x = (1 - sigma) x0 + sigma z; the model's velocity is u = z - x0, and e = x + (1 - sigma) u is its predicted noise.
"""

from __future__ import annotations

import math
from typing import TypeAlias, Unpack

import numpy as np

from ..ground.checks import check_number
from ..language.schedule import Schedule
from ..language.tableau import D, Tableau, x, z
from .plan import Array, Plan, PlanOptions, each, plan
from .shared import sampler
from .spacing import Steps

Window: TypeAlias = tuple[int, int] | None


@sampler(prediction="flow")
def flow_sde(
    schedule: Schedule, steps: Steps = 50, *, noise_level: float = 0.7, window: Window = None,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Flow-GRPO's SDE with the marginals of the flow's ODE: Liu et al. 2025 (Flow-GRPO), equation 9.

        s    = noise_level sqrt(sigma / (1 - sigma))       at sigma = 1: 1 minus the next sigma below the root
        mean = x + (sigma' - sigma) (u + s^2 e / (2 sigma)),    std = s sqrt(sigma - sigma')

    noise_level = 0 is flow_euler. The last step draws noise, too, as in Flow-GRPO. Implementations differ in the sigma
    below the root at sigma = 1: Flow-GRPO takes the run's second sigma, as here.

    Args:
        noise_level: at least 0, a factor of the noise.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> sampler = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=4, window=(1, 3))
    >>> sampler.tableau.as_rows.draws.tolist()
    [False, True, True, False]
    """
    run = _plan("flow_sde", schedule, steps, options)
    sigma, top = run.nodes.sigma[:-1], run.nodes.sigma[1]
    rate = noise_level * np.sqrt(sigma / (1 - np.where(sigma == 1, top, sigma)))
    return _diffused("flow_sde", run, noise_level, window, rate)


@sampler(prediction="flow")
def dance_sde(
    schedule: Schedule, steps: Steps = 50, *, eta: float = 0.3, window: Window = None, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """DanceGRPO's SDE, whose noise has one rate at all times: Xue et al. 2025 (DanceGRPO).

        mean = x + (sigma' - sigma) (u + eta^2 e / (2 sigma)),    std = eta sqrt(sigma - sigma')

    Args:
        eta: at least 0, a factor of the noise; 0 is flow_euler.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> sampler = nf.samplers.dance_sde(nf.Schedule.flow(1000), steps=4, window=(0, 2))
    >>> sampler.tableau.as_rows.draws.tolist()
    [True, True, False, False]
    """
    run = _plan("dance_sde", schedule, steps, options)
    return _diffused("dance_sde", run, eta, window, np.full(run.n, eta))


@sampler(prediction="flow")
def flow_cps(
    schedule: Schedule, steps: Steps = 50, *, noise_level: float = 0.7, window: Window = None,
    **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """Coefficients-preserving sampling: Wang and Yu 2025 (Flow-CPS). All of x' is signal and noise of level sigma'.

        mean = (1 - sigma') D + sigma' cos(pi noise_level / 2) e,    std = sigma' sin(pi noise_level / 2)

    The last step, to sigma' = 0, draws nothing and so has no density. Implementations differ in their log-density: some
    leave out its normaliser and 1 / (2 std^2), which is ``density="squared"``.

    Args:
        noise_level: from 0, the ODE, to 1, all noise fresh.

    Raises:
        ValueError: a schedule without alpha + sigma = 1.

    >>> nf.samplers.flow_cps(nf.Schedule.flow(1000), steps=4).tableau.as_rows.draws.tolist()
    [True, True, True, False]
    """
    run = _plan("flow_cps", schedule, steps, options)
    check_number("noise_level", noise_level, 0, 1)
    here, there = run.steps
    angle = math.pi * _levels("flow_cps", run, noise_level, window) / 2
    keep, fresh = there.sigma * each(math.cos, angle), there.sigma * each(math.sin, angle)
    return run.table("flow_cps", run.row(here, there.alpha * D + keep * run.noise(here) + fresh * z))


def _plan(name: str, schedule: Schedule, steps: Steps, options: PlanOptions) -> Plan:
    run = plan(schedule, steps, whole=False, **options)
    run.check_flow(name, "ddim with eta > 0")
    return run


def _diffused(name: str, run: Plan, level: float, window: Window, rate: Array) -> Tableau:
    """Returns rows of dx = (u + s^2 e / (2 sigma)) dsigma + s dw, with s of each row in the window."""
    here, there = run.steps
    draws, down = _levels(name, run, level, window) != 0, here.sigma - there.sigma
    for i in np.flatnonzero(draws & (down < 0)):
        raise ValueError(f"{name}: a step that draws noise goes down, not from {here.sigma[i]:g} to {there.sigma[i]:g}")
    s = np.where(draws, rate, 0.0)
    e = run.noise(here)
    mean = x - down * (e - D) - (down * s * s / (2 * here.sigma)) * e
    return run.table(name, run.row(here, mean + s * np.sqrt(np.maximum(0.0, down)) * z))


def _levels(name: str, run: Plan, level: float, window: Window) -> Array:
    """Returns the checked noise level of each row in the window, and 0 outside."""
    check_number(f"{name}: the level of noise", level, 0)
    begin, end = (0, run.n) if window is None else window
    if not 0 <= begin <= end <= run.n:
        raise ValueError(f"window = {window}: expected 0 <= begin <= end <= {run.n}, the number of rows")
    row = np.arange(run.n)
    return np.where((begin <= row) & (row < end), float(level), 0.0)
