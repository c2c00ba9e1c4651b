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
from .plan import Array, PlanOptions, each, plan
from .shared import sampler
from .spacing import Steps


def _weights(r: Array, h: Array, B: Array) -> Array:
    """Returns rho for the nodes r_m of rows, both (m, n): sum_m rho_m r_m^(j-1) = b_j, j = 1, 2, .. A single rho is set
    to 1/2.

    b_j = h phi_(j+1) j! / B(h)        for hh = -h:  h phi_1 = e^hh - 1,  phi_(j+1) = (phi_j - 1 / j!) / hh
    """
    if len(r) == 1:
        return np.full(r.shape, 0.5)
    hh, phi, b = -h, each(math.expm1, -h) / -h, []
    for j in range(1, len(r) + 1):
        phi = (phi - 1 / math.factorial(j)) / hh
        b.append(hh * phi * math.factorial(j) / B)
    powers = np.cumprod([np.ones_like(r), *[r] * (len(r) - 1)], axis=0)
    return np.asarray(np.linalg.solve(powers.transpose(2, 0, 1), np.stack(b, axis=1)[..., None])[..., 0].T)


def _of_older(r: list[Array], known: list[Array], h: Array, B: Array, scale: Array, *, correct: bool) -> Array:
    """Returns scale rho_m / r_m of rows (m, n), for D_1, .. in UniP, or in UniC (``correct``), and last for UniC's D'.

        x' = (sigma' / sigma) base - alpha' (e^-h - 1) D_0 - alpha' B(h) sum_m rho_m (D_m - D_0) / r_m
        r_m = (lambda_m - lambda_0) / h,    B(h) = -h (bh1) or e^-h - 1 (bh2)

    known: which rows have D_m. UniC has D', the model's answer at x', as one more D_m with r = 1. A step to clean data
    (h = inf) or of no length (h = 0) uses only D_0. If a noise level is visited twice, its newest D counts.
    """
    whole, answer = (h != 0) & (h < math.inf), np.ones_like(h)
    known = [whole & has & (r_m != 0) for r_m, has in zip(r, known, strict=True)]
    for m, r_m in enumerate(r):
        for other in [*r[:m], *[answer] * correct]:
            known[m] &= r_m != other
    if correct:
        r, known = [*r, answer], [*known, whole]
    found = np.zeros((len(r), len(h)))
    pattern = sum((has * 2**m for m, has in enumerate(known)), np.zeros(len(h), int))
    for one in {*pattern.tolist()} - {0}:
        rows, used = (pattern == one).nonzero()[0], [m for m in range(len(known)) if one >> m & 1]
        nodes = np.array([r[m][rows] for m in used])
        rho = _weights(nodes, h[rows], B[rows])
        found[np.ix_(used, rows)] = np.where(rho == 0, 0.0, scale[rows] * rho / nodes)
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
    levels, left = run.nodes.log_snr, np.arange(run.n, 0, -1)
    begin, h = levels[:-1], np.diff(levels)
    r = [(earlier(begin, m) - begin) / h for m in range(1, order)]
    most = np.minimum(run.n - left, left - 1 if lower_order_final else order)  # of D_1, ..
    older = [most >= m for m in range(1, order)]
    Ds, keep, B = [D, past[0], past[2]], [D] * (order > 1), -phi(h) if variant == "bh2" else -h
    predicted, corrected = (_of_older(r, older, h, B, -there.alpha * B, correct=one) for one in (False, True))
    new = corrected[-1]
    first = left == run.n
    begin = np.where(first, 1.0, 0.0) * x + np.where(first, 0.0, 1.0) * past[len(keep)] + earlier(new) * D
    base = there.sigma / here.sigma * begin - there.alpha * -phi(h) * D
    out, known = (
        sum((w * (D_m - D) for w, D_m in zip(of, Ds[1:order], strict=False)), base) for of in (predicted, corrected)
    )
    # nothing corrects the last answer
    return run.table(
        "unipc",
        run.row(here, out, keep=[*keep, known - new * D], at=left > 1),
        run.row(here, out, keep=keep, at=left == 1),
    )
