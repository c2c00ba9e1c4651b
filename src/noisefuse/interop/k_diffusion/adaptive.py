# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver whose steps are chosen by its error, for `sample_dpm_adaptive`. Its rows depend on the data, step by step.

A step is made twice, by solvers of two orders that share their model calls; their difference is the error. A PID
controller (Soederlind 2003) accepts the step or repeats it, and sets the length of the next one, in log sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import noisefuse as nf

from ...language.tableau import Row, Tableau, m1, m2, x


class Options(NamedTuple):
    """k-diffusion's options of dpm_adaptive."""

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0


class _Controller:
    """Sets the step's length: h grows by 1 + atan(f - 1), f = a^b1 a_1^b2 a_2^b3 of the last inverse errors."""

    def __init__(self, h: float, options: Options, order: float) -> None:
        p, i, d = options.pcoeff, options.icoeff, options.dcoeff
        self.h, self.safety, self.last = h, options.accept_safety, list[float]()
        self.powers = ((p + i + d) / order, -(p + 2 * d) / order, d / order)

    def accepts(self, error: float) -> bool:
        newest = 1 / (error + 1e-8)
        inverse = [newest, *(self.last or [newest, newest])]
        factor = 1 + math.atan(math.prod(a**b for a, b in zip(inverse, self.powers, strict=True)) - 1)
        self.h *= factor
        accepted = factor >= self.safety
        self.last = inverse[:2] if accepted else inverse[1:]
        return accepted


def sample(
    model: Callable[[torch.Tensor, float], torch.Tensor], start: torch.Tensor, sigma_min: float, sigma_max: float,
    options: Options, draw: Callable[[Any, Any], torch.Tensor], told: Callable[[dict[str, Any]], object],
) -> tuple[torch.Tensor, dict[str, int]]:  # fmt: skip
    """Returns x at sigma_min, and how many steps and calls it took.

    model(x, sigma) gives the clean sample, draw(sigma, sigma') a normal like x; told(..) is called after each attempt.
    """
    schedule = nf.Schedule.karras(2)
    at, previous, answer = start, start, None
    s, end = -math.log(sigma_max), -math.log(sigma_min)
    way = 1 if end > s else -1
    control = _Controller(way * abs(options.h_init), options, 1.5 if options.eta else options.order)
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    while way * (end - s) > 1e-5:
        t = way * min(way * end, way * (s + control.h))
        here, there = math.exp(-s), math.exp(-t)
        down = max(_down(here, there, options.eta), sigma_min) if options.eta else there
        rows = nf.samplers.dpm_solver(
            schedule, levels=[here], order=options.order, final_level=down, prediction="sample"
        )
        state, high, answers = rows.state(at), at, []
        for i, level in enumerate(rows.timesteps.tolist()):
            if i or answer is None:  # after a rejected step, x and its answer are as before
                denoised, info["nfe"] = model(high, level), info["nfe"] + 1
            else:
                denoised = answer
            answers.append(denoised)
            high = rows.step(i, high, denoised, None, state)
        read = answers[0] if options.order == 2 else (answers[0], answers[1])
        low = nf.update(_lower(here, down, options.order), 0, at, read)
        bound = torch.maximum(low.abs(), previous.abs()).mul(options.rtol).clamp(min=options.atol)
        error = float(torch.linalg.vector_norm(((low - high) / bound).double())) / math.sqrt(max(1, at.numel()))
        if not math.isfinite(error):
            raise ValueError(
                f"dpm_adaptive: the error of the step from {here:g} to {there:g} is {error}, so x or D is not finite"
            )
        accepted = control.accepts(error)
        answer = answers[0]
        if accepted:
            up = options.s_noise * math.sqrt(max(0.0, (there - down) * (there + down)))
            at = high + up * draw(here, there).to(high.dtype) if up else high
            previous, s, answer = low, t, None
        info["n_accept" if accepted else "n_reject"] += 1
        info["steps"] += 1
        level = math.exp(-s)
        seen = {"x": at, "i": info["steps"] - 1, "t": s, "t_up": s, "sigma": level, "sigma_hat": level}
        told({**seen, "denoised": answers[0], "error": error, "h": control.h, **info})
    return at, info


def _down(here: float, there: float, eta: float) -> float:
    """Returns sigma_down of an ancestral step."""
    up = min(there, eta * there * math.sqrt((1 - there / here) * (1 + there / here)))
    return math.sqrt((there - up) * (there + up))


def _lower(here: float, down: float, order: int) -> Tableau:
    """Returns the row of the same step by the solver of one order less, from D of the first call and of the second."""
    e = (x - m1) / here
    if order == 2:
        return Tableau([Row(out=x + (down - here) * e)], name="dpm_solver_1")
    r = 1 / 3
    middle = here ** (1 - r) * down**r
    e_1 = (x + (middle - here) * e - m2) / middle
    return Tableau([Row(out=x + (down - here) * (e + (e_1 - e) / (2 * r)))], name="dpm_solver_2")
