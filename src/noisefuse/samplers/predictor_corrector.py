# SPDX-License-Identifier: Apache-2.0
"""UniPC: Zhao et al. 2023 (arXiv:2302.04867), the variant that predicts x0, in the schedule's own frame."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_choice, check_integer
from ..language.schedule import Schedule
from ..language.tableau import Affine, D, Tableau, past, x
from .plan import Node, Placed, PlanOptions, plan
from .shared import sampler
from .spacing import Steps


def _weights(ratios: list[float], h: float, B: float) -> npt.NDArray[np.float64]:
    """Returns rho for the nodes r_m: sum_m rho_m r_m^(j-1) = b_j, j = 1, 2, ..

    b_j = h phi_(j+1) j! / B(h)        for hh = -h:  h phi_1 = e^hh - 1,  phi_(j+1) = (phi_j - 1 / j!) / hh
    """
    hh, phi, b = -h, math.expm1(-h) / -h, []
    for j in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(j)) / hh
        b.append(hh * phi * math.factorial(j) / B)
    return np.asarray(np.linalg.solve(np.vander(ratios, increasing=True).T, b), np.float64)


def _step(
    nodes: list[Node], there: Node, Ds: list[Affine], base: Affine, *, bh2: bool, correct: bool
) -> tuple[Affine, float]:
    """Returns UniP, or UniC (``correct``), from nodes[0]; nodes and Ds begin with the newest. x' = first + second D'.

        x' = (sigma' / sigma) base - alpha' (e^-h - 1) D_0 - alpha' B(h) sum_m rho_m (D_m - D_0) / r_m
        r_m = (lambda_m - lambda_0) / h,    B(h) = -h (bh1) or e^-h - 1 (bh2)

    UniC has D', the model's answer at x', as one more D_m with r = 1. A single rho is set to 1/2. A step to clean data
    (h = inf) or of no length (h = 0) uses only D_0. If a noise level is visited twice, its newest D counts.
    """
    here = nodes[0]
    h = there.log_snr - here.log_snr
    first = there.sigma / here.sigma * base - there.alpha * math.expm1(-h) * Ds[0]
    older: dict[float, Affine] = {}  # D_m by r_m
    for node, D_m in zip(nodes[1:], Ds[1:], strict=True) if h and h < math.inf else ():
        older.setdefault((node.log_snr - here.log_snr) / h, D_m)
    older.pop(0.0, None)
    if correct:
        older.pop(1.0, None)
    ratios = [*older, *[1.0] * correct]
    if not ratios:
        return first, 0.0
    B = math.expm1(-h) if bh2 else -h
    rho = [0.5] if len(ratios) == 1 else _weights(ratios, h, B).tolist()
    weights = [-there.alpha * B * w / r for w, r in zip(rho, ratios, strict=True)]
    for weight, D_m in zip(weights, older.values(), strict=False):
        first += weight * (D_m - Ds[0])
    return (first - weights[-1] * Ds[0], weights[-1]) if correct else (first, 0.0)


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
    run.need_signal("unipc")
    n = len(run.nodes) - 1
    rows: list[Placed] = []
    corrected = x
    for i, (here, there) in enumerate(run.pairs):
        p = min(order, i + 1, n - i if lower_order_final else order)
        nodes, Ds = list(run.nodes[i::-1][:p]), [D, past[0], past[2]][:p]
        out, _ = _step(nodes, there, Ds, corrected, bh2=variant == "bh2", correct=False)
        keep = [D] if order > 1 else []
        if i < n - 1:  # nothing corrects the last answer
            known, weight = _step(nodes, there, Ds, corrected, bh2=variant == "bh2", correct=True)
            keep.append(known)
            corrected = past[len(keep) - 1] + weight * D
        rows.append(run.row(here, out, keep=keep))
    return run.table("unipc", rows)
