# SPDX-License-Identifier: Apache-2.0
"""UniPC: Zhao et al. 2023 (arXiv:2302.04867), the variant that predicts x0, in the schedule's own frame."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import numpy as np

from ..ground.checks import check_choice, check_integer
from ..language.schedule import Schedule
from ..language.tableau import D, Tableau, past, x
from .dpmpp import earlier, phi
from .plan import Array, PlanOptions, plan
from .shared import sampler
from .spacing import Steps


def _weights(ratios: list[float], h: float, B: float) -> Array:
    """Returns rho for the nodes r_m: sum_m rho_m r_m^(j-1) = b_j, j = 1, 2, ..

    b_j = h phi_(j+1) j! / B(h)        for hh = -h:  h phi_1 = e^hh - 1,  phi_(j+1) = (phi_j - 1 / j!) / hh
    """
    hh, phi, b = -h, math.expm1(-h) / -h, []
    for j in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(j)) / hh
        b.append(hh * phi * math.factorial(j) / B)
    return np.asarray(np.linalg.solve(np.vander(ratios, increasing=True).T, b), np.float64)


def _of_older(levels: list[float], end: float, *, bh2: bool, correct: bool) -> Array:
    """Returns rho_m and r_m of D_1, .. in UniP, or in UniC (``correct``), and last those of UniC's D'. 0 and 1: none.

        x' = (sigma' / sigma) base - alpha' (e^-h - 1) D_0 - alpha' B(h) sum_m rho_m (D_m - D_0) / r_m
        r_m = (lambda_m - lambda_0) / h,    B(h) = -h (bh1) or e^-h - 1 (bh2)

    levels: lambda_0 .., the newest first. UniC has D', the model's answer at x', as one more D_m with r = 1. A single
    rho is set to 1/2. A step to clean data (h = inf) or of no length (h = 0) uses only D_0. If a noise level is visited
    twice, its newest D counts.
    """
    h = end - levels[0]
    known = [(level - levels[0]) / h for level in levels[1:]] if h and h < math.inf else []
    used = [m for m, r in enumerate(known) if r not in (0.0, *known[:m], *[1.0] * correct)]
    ratios = [*(known[m] for m in used), *[1.0] * correct]
    found = np.tile((0.0, 1.0), (len(levels) - 1 + correct, 1))
    if ratios:
        rho = [0.5] if len(ratios) == 1 else _weights(ratios, h, math.expm1(-h) if bh2 else -h).tolist()
        found[[*used, *[-1] * correct]] = [*zip(rho, ratios, strict=True)]
    return found


@sampler()
def unipc(
    schedule: Schedule, steps: Steps = 20, *, order: int = 2, variant: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True, **options: Unpack[PlanOptions],
) -> Tableau:  # fmt: skip
    """UniPC-p: UniC corrects x with the model's answer there, UniP steps on. Zhao et al. 2023.

    A row remembers D and the known part of the next UniC.

    Args:
        order: p, 1 to 3; UniC makes the order of accuracy p + 1.
        variant: "bh1" or "bh2": B(h) = -h or e^-h - 1.
        lower_order_final: let p fall to 1 at the end.
    """
    check_integer("order", order, 1, 3)
    check_choice("variant", variant, ("bh1", "bh2"))
    run = plan(schedule, steps, drop_last=True, **options)
    run.check_signal("unipc")
    here, there = run.steps
    levels, left = run.nodes.log_snr.tolist(), np.arange(run.n, 0, -1)
    found = np.tile((0.0, 1.0), (2, run.n, order, 1))
    for i in range(run.n):
        p = min(order, i + 1, run.n - i if lower_order_final else order)
        known, bh2 = levels[i::-1][:p], variant == "bh2"
        for one, places in ((0, [*range(p - 1)]), (1, [*range(p - 1), -1])):
            found[one, i, places] = _of_older(known, levels[i + 1], bh2=bh2, correct=one == 1)
    rho, ratios = found.transpose(3, 0, 2, 1)
    h, Ds, keep = np.diff(levels), [D, past[0], past[2]], [D] * (order > 1)
    B = -phi(h) if variant == "bh2" else -h
    predicted, corrected = np.where(rho == 0, 0.0, -there.alpha * B * rho / ratios)
    new = corrected[-1]
    first = left == run.n
    begin = np.where(first, 1.0, 0.0) * x + np.where(first, 0.0, 1.0) * past[len(keep)] + earlier(new) * D
    base = there.sigma / here.sigma * begin - there.alpha * -phi(h) * D
    out, known = (
        sum((w * (D_m - D) for w, D_m in zip(of[: order - 1], Ds[1:], strict=False)), base)
        for of in (predicted, corrected)
    )
    # nothing corrects the last answer
    return run.table(
        "unipc",
        run.row(here, out, keep=[*keep, known - new * D], at=left > 1),
        run.row(here, out, keep=keep, at=left == 1),
    )
