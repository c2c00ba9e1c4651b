# SPDX-License-Identifier: Apache-2.0
"""Rows by formula, for classes of which diffusers takes a whole run in less time than rows.py takes to find them.

They are the rows that rows.py finds, bit for bit: tests compare them. A release does not change, so a formula holds for
the releases that it was compared with. Other versions of diffusers, and what no formula covers, are left to rows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput

import noisefuse as nf

from . import rows
from .rows import NOTHING, REMEMBERED, SAMPLE, Pick, Plan, Step

COMPARED = "0.35.2", "0.38.0", "0.42.1"
_NONE = itemgetter(slice(0, 0))
_BOTH = "prev_sample", "pred_original_sample"


def plan(scheduler: Any, start: int, options: tuple[Any, ...]) -> Plan:
    """Returns the plan of a scheduler in its present state, as `rows.trace` does."""
    base = scheduler._base
    if base in FORMULAS and diffusers.__version__ in COMPARED and scheduler.coefficients == "compat":
        levels = getattr(scheduler, scheduler._source)
        n = scheduler.config.num_train_timesteps if scheduler._by_time else len(scheduler.timesteps) + 1
        known = levels.dtype is torch.float32 and levels.shape == (n,)
        with np.errstate(all="ignore"), suppress(ValueError):  # of a table that is not finite
            if known and (found := FORMULAS[base](scheduler, levels.cpu().numpy(), start, options)):
                numbers, others = found
                table = (numbers + 0.0).view(nf.tableau.ROW)[:, 0]  # + 0.0: no -0
                return Plan(nf.Tableau(table, scheduler.timesteps.cpu().numpy(), base.__name__), None, None, *others)
    return rows.trace(scheduler, base, start, options)


def _alone(numbers: Any, result: int, output: type, counts: bool = True, draws: bool = False) -> Any:
    """Returns the rows of a class that remembers nothing, and their steps. result: the place of the result beside the
    next sample, NOTHING if there is none. counts: whether the class counts its steps."""
    pick, fields = (itemgetter(slice(result, result + 1)), _BOTH) if result else (_NONE, _BOTH[:1])
    steps = {
        i: Step(None, _NONE, int(result > REMEMBERED), int(draws), False, None, None, pick, [], then)
        for i, then in enumerate({"_step_index": i + 1} if counts else {} for i in range(len(numbers)))
    }
    return numbers, (steps, [], {}, lambda state: None, output, fields, bool(result))


def _root(a: Any) -> Any:
    """Returns torch's a ** 0.5, which is not always the nearest number to the root."""
    return (torch.from_numpy(a) ** 0.5).numpy()


def _flow_euler(scheduler: Any, sigmas: Any, start: int, options: tuple[Any, ...]) -> Any:
    s, s_next, draws = sigmas[:-1], sigmas[1:], bool(scheduler.config.stochastic_sampling)
    table = np.zeros((len(s), 1), nf.tableau.ROW)  # numbers alone: sums of symbols would take a tenth of the run
    table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
    out = table["out"][:, 0]
    if draws:  # (1 - s') (x - s m1) + s' z
        out["x"], out["z"] = 1 - s_next, s_next
        out["m1"] = -out["x"] * s
    else:
        out["x"], out["m1"] = 1, s_next - s
    return _alone(table.view(np.float64), NOTHING, FlowMatchEulerDiscreteSchedulerOutput, draws=draws)


def _euler(scheduler: Any, sigmas: Any, start: int, options: tuple[Any, ...]) -> Any:
    """Covers steps without churn."""
    s, x, m1, kind = sigmas[:-1], nf.tableau.x, nf.tableau.m1, scheduler.config.prediction_type
    if options != (0.0, 0.0, np.inf, 1.0) or kind not in ("epsilon", "v_prediction"):
        return None
    clean = x - s * m1 if kind == "epsilon" else m1 * (-s / _root(s * s + 1)) + x / (s * s + 1)
    row = nf.Row(x + (x - clean) / s * (sigmas[1:] - s), aux1=clean)
    return _alone(row.numbers(), REMEMBERED + 1, EulerDiscreteSchedulerOutput)


def _ddim(scheduler: Any, levels: Any, start: int, options: tuple[Any, ...]) -> Any:
    """Covers steps without noise or dynamic thresholding, with a model of epsilon or v."""
    config, final, times = scheduler.config, scheduler.final_alpha_cumprod, scheduler.timesteps.cpu().numpy()
    if (
        options != (0.0, False)
        or config.prediction_type not in ("epsilon", "v_prediction")
        or config.thresholding
        or not scheduler.num_inference_steps
        or final.dtype is not torch.float32
        or times.dtype.kind != "i"
        or not ((times >= 0) & (times < len(levels))).all()
    ):
        return None
    x, m1 = nf.tableau.x, nf.tableau.m1
    earlier = times - len(levels) // scheduler.num_inference_steps
    a, a_next = levels[times], np.where(earlier < 0, final.cpu().numpy(), levels[earlier])
    if not ((a_next >= a) & (a < 1)).all():  # no variance
        return None
    alpha, sigma = _root(a), _root(1 - a)
    v = config.prediction_type == "v_prediction"
    clean, e = (alpha * x - sigma * m1, alpha * m1 + sigma * x) if v else ((x - sigma * m1) / alpha, m1)
    limit = config.clip_sample_range if config.clip_sample else np.inf
    denoised = nf.tableau.D if config.clip_sample else clean
    out = _root(a_next) * denoised + _root(1 - a_next) * e
    row = nf.Row(out, clean if config.clip_sample else nf.tableau.ZERO, denoised, lo=-limit, hi=limit)
    return _alone(row.numbers(), REMEMBERED + 1, DDIMSchedulerOutput, counts=False)


def _heun(scheduler: Any, sigmas: Any, start: int, options: tuple[Any, ...]) -> Any:
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
    table = np.tile(nf.Row(nf.tableau.ZERO).numbers(), (n, 1))
    for first, dt in ((start, changes[start::2]), (start + 1, changes[start:-1:2])):
        s = sigmas[first:-1:2]
        clean = x - s * m1
        e = (x - clean) / s
        mean = (past[0] + e) / 2
        row = nf.Row(x + dt * e, aux1=clean, aux2=e) if first == start else nf.Row(past[1] + dt * mean, aux1=clean)
        table[first::2] = row.numbers()
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
    begins = {"_step_index": start, "dt": None}
    return table, (steps, names, begins, itemgetter(*names), HeunDiscreteSchedulerOutput, _BOTH, True)


FORMULAS: dict[type, Callable[[Any, Any, int, tuple[Any, ...]], Any]] = {
    diffusers.DDIMScheduler: _ddim,
    diffusers.EulerDiscreteScheduler: _euler,
    diffusers.FlowMatchEulerDiscreteScheduler: _flow_euler,
    diffusers.HeunDiscreteScheduler: _heun,
}
