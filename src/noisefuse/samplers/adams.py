# SPDX-License-Identifier: Apache-2.0
"""Pseudo linear multistep sampling: Liu et al. 2022 (PNDM)."""

from __future__ import annotations

from typing import Literal, Unpack

from ..schedule import Schedule
from ..tableau import Tableau, m1, past, x
from ..views import View
from .plan import Placed, plan
from .spacing import SpacingOptions, Steps

_ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth weights of orders 1 to 4, the newest value first."""


def pndm(
    schedule: Schedule,
    steps: Steps = 50,
    *,
    average: Literal["epsilon", "output"] = "epsilon",
    prediction: str | View = "epsilon",
    spacing: str = "leading",
    **options: Unpack[SpacingOptions],
) -> Tableau:
    """Pseudo linear multistep sampling (PLMS), Liu et al. 2022 (PNDM); n + 1 model calls.

        x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) e

    e is an Adams-Bashforth average of up to four predicted noises. The first step is done twice: with e_0,
    then with (e_0 + e') / 2, e' predicted where that led; this replaces the paper's Runge-Kutta warm-up.

    average: "epsilon" averages predicted noises. "output" averages what the network says and reads it as its
    answer at x: the same for epsilon; for v it is diffusers' behaviour, and only of first order.
    """
    run = plan(schedule, steps, prediction, None, spacing, **options)
    run.need_signal("pndm")
    if average not in ("epsilon", "output"):
        raise ValueError(f"average must be epsilon or output, got {average!r}")
    rows: list[Placed] = []
    for i, (here, there) in enumerate(run.pairs):
        ratio = there.alpha / here.alpha
        base, weight, e = ratio, there.sigma - here.sigma * ratio, run.predicted_noise(here)
        if average == "output":  # e = u x + w m: the average takes the place of m
            base, weight, e = base + weight * e.coefficients[1], weight * e.coefficients[2], m1
        terms = zip(_ADAMS[min(i, 3)], (e, *past), strict=False)
        out = sum((weight * c * term for c, term in terms), base * x)
        rows.append(run.row(here, out, keep=[e]))
        if i == 0 and there.sigma > 0:
            again = m1 if average == "output" else run.predicted_noise(there)
            rows.append(run.row(there, x + weight / 2 * (again - past[0])))
    return run.table("pndm", rows)
