# SPDX-License-Identifier: Apache-2.0
"""Rows by formula, for classes of which diffusers takes a whole run in less time than rows.py takes to find them.

They are the rows that rows.py finds, bit for bit: tests compare them. A release does not change, so a formula holds for
the releases that it was compared with. Other versions of diffusers, and what no formula covers, are left to rows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput

import noisefuse as nf

from . import rows
from .rows import NOTHING, REMEMBERED, SAMPLE, Pick, Plan, Step

COMPARED = "0.35.2", "0.38.0", "0.42.1"
_NONE = itemgetter(slice(0, 0))


def plan(scheduler: Any, start: int, options: tuple[Any, ...]) -> Plan:
    """Returns the plan of a scheduler in its present state, as `rows.trace` does."""
    base, n = scheduler._base, len(scheduler.timesteps)
    if (
        base in FORMULAS
        and diffusers.__version__ in COMPARED
        and scheduler.coefficients == "compat"
        and scheduler.sigmas.dtype is torch.float32
        and scheduler.sigmas.shape == (n + 1,)
        and np.isfinite(sigmas := scheduler.sigmas.cpu().numpy()).all()
        and (found := FORMULAS[base](scheduler, sigmas, start))
    ):
        table, others = found
        return Plan(nf.Tableau(table, scheduler.timesteps.cpu().numpy(), base.__name__), None, None, *others)
    return rows.trace(scheduler, base, start, options)


def _flow_euler(scheduler: Any, sigmas: Any, start: int) -> Any:
    s, s_next, draws = sigmas[:-1], sigmas[1:], bool(scheduler.config.stochastic_sampling)
    table = np.zeros(len(s), nf.tableau.ROW)
    table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
    out = table["out"]
    if draws:  # (1 - s') (x - s m1) + s' z
        out["x"], out["z"] = 1 - s_next, s_next
        out["m1"] = 0.0 - out["x"] * s
    else:
        out["x"], out["m1"] = 1, s_next - s
    steps = {
        i: Step(None, _NONE, 0, int(draws), False, None, None, _NONE, [], {"_step_index": i + 1}) for i in range(len(s))
    }
    return table, (steps, [], {}, lambda state: None, FlowMatchEulerDiscreteSchedulerOutput, ("prev_sample",), False)


def _heun(scheduler: Any, sigmas: Any, start: int) -> Any:
    """Covers a run of two steps or more, from the first half of a step on, with a model of epsilon."""
    n, changes = len(sigmas) - 1, sigmas[1:] - sigmas[:-1]
    if (
        scheduler.config.prediction_type != "epsilon"
        or scheduler.config.clip_sample
        or scheduler.dt is not None
        or not start == scheduler._step_index < n - 1
        or not (sigmas[start:-1] > 0).all()
        or not changes[start:-1:2].all()  # a factor of 0 reads nothing
    ):
        return None
    m1, past, x = nf.tableau.m1, nf.tableau.past, nf.tableau.x
    table = np.zeros((n, 1), nf.tableau.ROW)
    table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
    for first, dt in ((start, changes[start::2]), (start + 1, changes[start:-1:2])):
        s = sigmas[first:-1:2]
        clean = x - s * m1
        e = (x - clean) / s
        mean = (past[0] + e) / 2
        row = nf.Row(x + dt * e, aux1=clean, aux2=e) if first == start else nf.Row(past[1] + dt * mean, aux1=clean)
        table[first::2] = (row.numbers() + 0.0).view(nf.tableau.ROW)  # + 0.0: no -0
    before, denoised, derivative = itemgetter(REMEMBERED, REMEMBERED + 1), REMEMBERED + 3, REMEMBERED + 4
    result, places = itemgetter(slice(denoised, derivative)), {"prev_derivative": derivative, "sample": SAMPLE}
    kept: list[tuple[str, Pick, bool]] = [(name, itemgetter(place), False) for name, place in places.items()]
    nothing: list[tuple[str, Pick, bool]] = [(name, itemgetter(NOTHING), False) for name in places]
    steps: dict[int, Step] = {}
    known: Any = None
    for i, dt in enumerate(torch.from_numpy(changes[start:]).unbind(), start):
        half = (itemgetter(SAMPLE, SAMPLE), 2) if known is None else (before, 1)
        after = {"dt": dt if known is None else None, "_step_index": i + 1}
        steps[i] = Step((i, known), *half, 0, False, None, None, result, nothing if half[1] == 1 else kept, after)
        known = after["dt"]
    names = ["_step_index", "dt"]
    begins, fields = {"_step_index": start, "dt": None}, ("prev_sample", "pred_original_sample")
    return table[:, 0], (steps, names, begins, itemgetter(*names), HeunDiscreteSchedulerOutput, fields, True)


FORMULAS: dict[type, Callable[[Any, Any, int], Any]] = {
    diffusers.FlowMatchEulerDiscreteScheduler: _flow_euler,
    diffusers.HeunDiscreteScheduler: _heun,
}
