# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++ of second order, multistep: Lu et al. 2022 (arXiv:2211.01095), in the schedule's own frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Unpack

from ..schedule import Schedule
from ..tableau import ZERO, Affine, D, Tableau, past, x, z
from ..views import View
from .plan import Clip, Node, Placed, Plan, need_fall, plan
from .spacing import SpacingOptions, Steps


def _steps(run: Plan, lower_order_final: bool) -> Iterator[tuple[Node, Node, float, Affine]]:
    """(here, there, h, D1) of each step: h = lambda' - lambda, D1 = (D - D_before) / r, r = h_before / h.

    D1 is 0 in steps of first order: the first, one to clean data (h = inf), one from a level visited twice
    (h_before = 0: the same D again), the last if asked for and n < 15. At zero terminal SNR h_before is infinite at
    first, and 1 / r is 0.
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


def dpmpp_2m(
    schedule: Schedule,
    steps: Steps = 20,
    *,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "linspace",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2 (midpoint); "heun" integrates D1 exactly instead.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) D + alpha' w D1
        h = lambda' - lambda,    D1 = (D - D_before) / r,    r = h_before / h
        w = (1 - e^-h) / 2  (midpoint),    w = 1 - (1 - e^-h) / h  (heun)

    lower_order_final: a first-order last step when n < 15; one to clean data always is.
    """
    run = plan(schedule, steps, prediction, clip, spacing, drop_last=True, **options)
    rows: list[Placed] = []
    for here, there, h, D1 in _steps(run, lower_order_final):
        phi = -math.expm1(-h)
        w = _weight(solver, phi, h)
        out = there.sigma / here.sigma * x + there.alpha * (phi * D + w * D1)
        rows.append(run.row(here, out, keep=[D]))
    return run.table("dpmpp_2m", rows)


def dpmpp_2m_sde(
    schedule: Schedule,
    steps: Steps = 20,
    *,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    prediction: str | View = "epsilon",
    clip: Clip = None,
    spacing: str = "linspace",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """SDE-DPM-Solver++(2M): Lu et al. 2022, section 5.

        x' = (sigma' / sigma) e^-h x + alpha' (1 - e^-2h) D + alpha' w D1 + sigma' sqrt(1 - e^-2h) z
        w = (1 - e^-2h) / 2  (midpoint),    w = 1 - (1 - e^-2h) / 2h  (heun)

    h, D1 and lower_order_final as in ``dpmpp_2m``.
    """
    run = plan(schedule, steps, prediction, clip, spacing, drop_last=True, **options)
    rows: list[Placed] = []
    for here, there, h, D1 in _steps(run, lower_order_final):
        need_fall(here, there)
        # rounding could make it negative where both levels are the same
        phi = max(0.0, -math.expm1(-2 * h))
        w = _weight(solver, phi, 2 * h)
        out = there.sigma / here.sigma * math.exp(-h) * x + there.alpha * (phi * D + w * D1)
        rows.append(run.row(here, out + there.sigma * math.sqrt(phi) * z, keep=[D]))
    return run.table("dpmpp_2m_sde", rows)


def _weight(solver: str, phi: float, h: float) -> float:
    if solver == "midpoint":
        return phi / 2
    if solver == "heun":
        return 1 - (phi / h if h else 1.0)
    raise ValueError(f"solver must be midpoint or heun, got {solver!r}")
