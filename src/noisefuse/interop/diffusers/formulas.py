# SPDX-License-Identifier: Apache-2.0
"""Rows by formula, for classes whose rows take rows.py longer to find than diffusers takes for a whole run.

They are the rows that rows.py finds, bit for bit: tests compare them. A release does not change, so a formula holds for
the releases that it was compared with. Other versions of diffusers, and what no formula covers, are left to rows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from operator import itemgetter
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput

import noisefuse as nf

from . import rows
from .rows import MODEL, NOTHING, REMEMBERED, SAMPLE, TIME, Pick, Plan, Step

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
    written, drawn, steps = int(result > REMEMBERED), int(draws), {}
    for i in range(len(numbers)):
        then = {"_step_index": i + 1} if counts else {}
        steps[i] = Step(None, _NONE, written, drawn, False, None, None, pick, [], then)
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


# The kinds of PNDM's steps: of Runge-Kutta's method the first of four, then the two in the middle and the last; the
# second step of a run without them, which begins at the first's sample; and steps of the linear multistep method. Each
# has the factors of x, m1 and past1 to past3 in its mean of model outputs, in its sample, and in the sum that
# Runge-Kutta's method keeps.
_FIRST, _MIDDLE, _LAST, _AGAIN, _SECOND, _THIRD, _FOURTH = range(7)
_TERMS = "x", "m1", "past1", "past2", "past3"
_MEANS = np.array(
    [
        (0, 1, 0, 0, 0),
        (0, 1, 0, 0, 0),
        (0, 1 / 6, 1, 0, 0),
        (0, 1 / 2, 1 / 2, 0, 0),
        (0, 3 / 2, -1 / 2, 0, 0),
        (0, 23 / 12, 5 / 12, -16 / 12, 0),
        (0, 1 / 24 * 55, 1 / 24 * -9, 1 / 24 * 37, 1 / 24 * -59),
    ]
)
_SAMPLES = np.eye(5)[[0, 3, 3, 3, 0, 0, 0]]
_SUMS = np.array([(1 / 6, 0), (1 / 3, 1)])  # of m1 and past1


def _pndm(scheduler: Any, levels: Any, start: int, options: tuple[Any, ...]) -> Any:
    """Covers a run from its first step on."""
    config, final, count = scheduler.config, scheduler.final_alpha_cumprod, scheduler.num_inference_steps
    times, total, held = scheduler.timesteps.cpu().numpy(), len(levels), scheduler.cur_model_output
    n, prk = len(times), 0 if config.skip_prk_steps else 12
    if (
        config.prediction_type not in ("epsilon", "v_prediction")
        or not start == scheduler.counter == 0 == len(scheduler.ets)
        or type(held) is not int
        or held
        or not count
        or final.dtype is not torch.float32
        or times.dtype.kind != "i"
        or (prk and not n >= prk == len(scheduler.prk_timesteps))
    ):
        return None
    kinds = np.full(n, _FOURTH)
    kinds[: prk or 4] = ([_FIRST, _MIDDLE, _MIDDLE, _LAST] * 3 if prk else [_FIRST, _AGAIN, _SECOND, _THIRD])[:n]
    here, later = times.copy(), times - total // count
    if prk:
        here[:prk] = scheduler.prk_timesteps[::4].repeat(4)
        later[:prk] = times[:prk] - np.tile([total // count // 2, 0], prk // 2)
    else:
        here[1:2], later[1:2] = times[1:2] + total // count, times[1:2]
    if not ((here >= 0) & (here < total) & (later >= -total) & (later < total)).all():
        return None
    a, a_next = levels[here, None], np.where(later < 0, final.cpu().numpy(), levels[later])[:, None]
    b, b_next, change = 1 - a, 1 - a_next, a_next - a
    means, samples = _MEANS[kinds], _SAMPLES[kinds]
    reads = ((means + samples)[:, 2:] != 0).any(1) & (change != 0)[:, 0]  # a factor of 0 reads nothing
    if config.prediction_type == "v_prediction":
        means = _root(a) * means + _root(b) * samples
    out = _root(a_next / a) * samples - change * means / (a * _root(b_next) + _root(a * b * a_next))
    again = samples[:, 3] > 0
    if not (reads[again] & (out[again, 3] != 0)).all():
        return None
    table = np.zeros((n, 1), nf.tableau.ROW)
    table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
    for symbol, column in zip(_TERMS, out.T, strict=True):
        table["out"][symbol][:, 0] = column
    for kind, factors in zip((_FIRST, _MIDDLE) if prk else (), _SUMS, strict=False):
        for symbol, factor in zip(("m1", "past1"), factors, strict=True):
            table["aux1"][symbol][kinds == kind] = factor
    return table.view(np.float64), _pndm_steps(kinds.tolist(), reads.tolist(), prk)


def _pndm_steps(kinds: list[int], reads: list[bool], prk: int) -> Any:
    """Returns what steps read and remember, of ets, cur_model_output and cur_sample, in this order."""
    pasts: list[list[int]] = []
    rest: list[tuple[int, list[tuple[str, Pick, bool]], dict[str, Any]]] = []
    kept = 0  # so many ets
    for i, kind in enumerate(kinds):
        ets, total, sample = [*range(REMEMBERED, REMEMBERED + kept)], REMEMBERED + kept, REMEMBERED + kept + 1
        past = ets[-kind + _AGAIN :] if kind > _AGAIN else [ets[-1], sample] if kind == _AGAIN else [total, sample]
        pasts.append(past if reads[i] else [])
        summed = i < prk and kind != _LAST
        if kind == _FIRST or kind > _AGAIN:
            ets = [*ets[-3:], MODEL]
        place = SAMPLE if kind == _FIRST else NOTHING if kind == _AGAIN else sample
        remembers: list[tuple[str, Pick, bool]] = [("ets", rows._pick(ets), True)]
        remembers += [("cur_model_output", itemgetter(sample + 2), False)] * summed
        remembers.append(("cur_sample", itemgetter(place), False))
        after = {"counter": i + 1} if summed else {"counter": i + 1, "cur_model_output": 0}
        rest.append((int(summed), remembers, after))
        kept = len(ets)
    slots = max(map(len, pasts))
    steps = {
        i: Step(
            i, rows._pick(past + [SAMPLE] * (slots - len(past))), written, 0, False, None, None, _NONE, keeps, after
        )
        for i, (past, (written, keeps, after)) in enumerate(zip(pasts, rest, strict=True))
    }
    return steps, ["counter"], {"counter": 0}, itemgetter("counter"), SchedulerOutput, _BOTH[:1], True


def _each(function: Callable[..., Any], a: Any) -> Any:
    """Returns torch's function of each number alone: in a vector, its last bit may be another."""
    return torch.stack([*map(function, torch.from_numpy(a).unbind())]).numpy()


def _multistep(scheduler: Any, sigmas: Any, start: int) -> Any:
    """Returns alpha and lambda at these levels; sigma' / sigma, lambda' - lambda and x0 of the steps, and the place of
    the one before; or None, unless a run of order 2 begins here."""
    config, kind, x, m1 = scheduler.config, scheduler.config.prediction_type, nf.tableau.x, nf.tableau.m1
    state = scheduler.model_outputs, scheduler.lower_order_nums, scheduler._step_index
    kinds = "epsilon", "v_prediction", "flow_prediction"
    if config.solver_order != 2 or config.thresholding or kind not in kinds or state != ([None, None], 0, start):
        return None
    alpha = 1 - sigmas if config.use_flow_sigmas else 1 / _root(sigmas * sigmas + 1)
    sigma = sigmas if config.use_flow_sigmas else sigmas * alpha
    level = _each(torch.log, alpha) - _each(torch.log, sigma)
    a, s = (np.ones_like(sigmas), sigmas) if kind == "flow_prediction" else (alpha, sigma)
    clean = (x - s[:-1] * m1) / a[:-1] if kind == "epsilon" else a[:-1] * x - s[:-1] * m1
    return alpha, level, sigma[1:] / sigma[:-1], np.diff(level), clean, np.maximum(np.arange(len(s) - 1) - 1, 0)


def _counted(scheduler: Any, start: int, row: nf.Row, held: list[int], remembered: Any, **others: list[int]) -> Any:
    """Returns the rows of such a run, and their steps.

    held: the places of past1 .. in the row, which leaves out those that no output reads. remembered: what each step
    remembers, after the number of outputs beside the next sample. others: further counters, after each step."""
    table, state, steps = row.numbers(), vars(scheduler), dict[int, Step]()
    table[:start] = nf.Row(nf.tableau.ZERO).numbers()
    past = table[:, 6:].reshape(len(table), 3, -1)[:, :, 5:9]  # of the three outputs
    read = (past != 0).any(1)
    past[:] = np.take_along_axis(past, np.argsort(~read, axis=1, kind="stable")[:, None], 2)
    slots = read.sum(1).max().item()
    numbers = range(start + 1, len(table) + 1)
    columns = {"lower_order_nums": [1, *[2] * len(table)], "_step_index": numbers, **others}
    known = [dict(zip(columns, after, strict=True)) for after in zip(*columns.values(), strict=False)]
    known.insert(0, {name: state.get(name) for name in columns})
    afters = [{name: v for name, v in after.items() if before[name] is not v} for before, after in pairwise(known)]
    names = sorted(set[str]().union(*afters))
    pick = itemgetter(*names)
    for i, (written, remembers) in zip(range(start, len(table)), remembered, strict=False):
        places = [place for place, flag in zip(held, read[i].tolist(), strict=False) if flag]
        reads = rows._pick(places + [SAMPLE] * (slots - len(places)))
        before, after = known[i - start], afters[i - start]
        steps[i] = Step(pick(before), reads, written, 0, False, None, None, _NONE, remembers, after)
    begins = {name: known[0][name] for name in names}
    return table, (steps, names, begins, pick, SchedulerOutput, _BOTH[:1], True)


def _dpmpp(scheduler: Any, sigmas: Any, start: int, options: tuple[Any, ...]) -> Any:
    """Covers the ODE's DPM-Solver++ of order 2 by the midpoint rule, from a run's first step on."""
    config, n, known = scheduler.config, len(sigmas) - 1, _multistep(scheduler, sigmas, start)
    solver = config.algorithm_type, config.solver_type, config.variance_type
    if known is None or solver != ("dpmsolver++", "midpoint", None):
        return None
    alpha, _, ratio, h, clean, before = known
    second = np.arange(n) > start
    if config.euler_at_final or (config.lower_order_final and n < 15) or config.final_sigmas_type == "zero":
        second[-1] = False
    weight = alpha[1:] * (_each(torch.exp, -h) - 1)
    slope = np.where(second, 1 / (h[before] / h), 0) * (clean - nf.tableau.past[1])
    out = ratio * nf.tableau.x - weight * clean - np.where(second, 0.5 * weight, 0) * slope
    remembered = [(1, [("model_outputs", itemgetter(REMEMBERED + 1, REMEMBERED + 3), True)])] * n
    return _counted(scheduler, start, nf.Row(out, aux1=clean), [REMEMBERED, REMEMBERED + 1], remembered)


def _unipc(scheduler: Any, sigmas: Any, start: int, options: tuple[Any, ...]) -> Any:
    """Covers order 2 of bh2 in x0 with all corrections, from a run's first step on."""
    config, n, past, known = scheduler.config, len(sigmas) - 1, nf.tableau.past, _multistep(scheduler, sigmas, start)
    held = scheduler.disable_corrector or scheduler.last_sample is not None
    if known is None or config.solver_type != "bh2" or held or not scheduler.predict_x0:
        return None
    alpha, level, ratio, h, clean, b = known
    i, one = np.arange(n), np.ones_like(h)
    second = (i > start) & ((i < n - 1) | (not config.lower_order_final))
    growth = _each(torch.expm1, -h)
    weight, phi = alpha[1:] * growth, growth / -h - 1
    r = np.where(second, (level[b] - level[:-1]) / h, 1)
    system = np.stack([one, one, r, one, phi / growth, (phi / -h - 0.5) * 2 / growth], 1)[second]
    rho = np.tile([0, 0.5], (n, 1))
    rho[second] = torch.linalg.solve(*map(torch.from_numpy, (system[:, :4].reshape(-1, 2, 2), system[:, 4:])))
    rest = rho[b, 0] * ((past[0] - past[1]) / r[b]) + rho[b, 1] * (clean - past[1])
    corrected = (i > start) * 1 * (ratio[b] * past[2] - weight[b] * past[1] - weight[b] * rest)
    x = (i == start) * 1 * nf.tableau.x + corrected
    out = ratio * x - weight * clean - weight * (np.where(second, 0.5, 0) * ((past[1] - clean) / r))
    outputs, times, last = REMEMBERED, REMEMBERED + 2, REMEMBERED + 4
    remembered = [
        (written, [
            ("model_outputs", itemgetter(before, last + 2), True),
            ("timestep_list", itemgetter(time, TIME), True),
            ("last_sample", itemgetter(sample), False),
        ])
        for written, before, time, sample in (
            (1, last, last if scheduler.timestep_list[1] is None else times + 1, SAMPLE),
            *[(2, outputs + 1, times + 1, last + 3)] * (n - 1),
        )
    ]  # fmt: skip
    row, orders = nf.Row(out, aux1=clean, aux2=corrected), (1 + second[start:]).tolist()
    return _counted(scheduler, start, row, [outputs, outputs + 1, last], remembered, this_order=orders)


FORMULAS: dict[type, Callable[[Any, Any, int, tuple[Any, ...]], Any]] = {
    diffusers.DDIMScheduler: _ddim,
    diffusers.DPMSolverMultistepScheduler: _dpmpp,
    diffusers.EulerDiscreteScheduler: _euler,
    diffusers.FlowMatchEulerDiscreteScheduler: _flow_euler,
    diffusers.HeunDiscreteScheduler: _heun,
    diffusers.PNDMScheduler: _pndm,
    diffusers.UniPCMultistepScheduler: _unipc,
}
