# SPDX-License-Identifier: Apache-2.0
"""Multistep consistency sampling: Song et al. 2023; latent consistency models, Luo et al. 2023."""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_number
from ..language.axis import Axis
from ..language.schedule import Schedule
from ..language.tableau import D, Tableau, x, z
from ..views import Prediction
from .plan import Clip, check_fall, each, plan, squared
from .shared import sampler
from .spacing import SpacingOptions, Steps, axis_of


@sampler()
def lcm(
    schedule: Schedule, steps: Steps = 4, *, original_steps: int = 50, timestep_scaling: float = 10.0,
    sigma_data: float = 0.5, prediction: Prediction = "epsilon", clip: Clip = None, **options: Unpack[SpacingOptions],
) -> Tableau:  # fmt: skip
    """Multistep latent consistency sampling, Luo et al. 2023: jump to clean data, add noise for the next noise level.

        f = c_skip x + c_out D,    x' = alpha' f + sigma' z,    the last x' is f
        c_skip = sigma_data^2 / (s^2 + sigma_data^2),    c_out = s / sqrt(s^2 + sigma_data^2)

    s = timestep_scaling t. f is the row's clean sample.

    Args:
        steps: how many of the ``original_steps`` times of the distillation to visit, or the times themselves.
        timestep_scaling: a factor of the time in c_skip and c_out.
        sigma_data: the data's standard deviation in c_skip and c_out.

    Raises:
        ValueError: steps is a number, and with this schedule a model is told noise levels.

    >>> nf.samplers.lcm(nf.Schedule.scaled_linear(1000), steps=4).timesteps.tolist()
    [999, 759, 499, 259]
    """
    if isinstance(steps, int | np.integer) and "levels" not in options:
        steps = _distilled(axis_of(schedule), original_steps, int(steps))
    run = plan(schedule, steps, prediction=prediction, clip=clip, spacing="leading", **options)
    here, there = run.steps
    s = timestep_scaling * here.t
    f = sigma_data**2 / (squared(s) + sigma_data**2) * x + s / each(lambda one: math.hypot(one, sigma_data), s) * D
    return run.table("lcm", run.row(here, there.alpha * f + there.sigma * z, denoised=f))


@sampler()
def tcd(
    schedule: Schedule, steps: Steps = 4, *, gamma: float = 0.3, original_steps: int = 50,
    prediction: Prediction = "epsilon", clip: Clip = None, **options: Unpack[SpacingOptions],
) -> Tableau:  # fmt: skip
    """Strategic stochastic sampling of trajectory consistency distillation, Zheng et al. 2024 (algorithm 4).

        s = floor((1 - gamma) t'),    x_s = alpha_s D + sigma_s e
        x' = (alpha' / alpha_s) x_s + sqrt(sigma'^2 - (alpha' sigma_s / alpha_s)^2) z

    A step to clean data is x' = D.

    Args:
        steps: how many of the ``original_steps`` times of the distillation to visit, or the times themselves.
        gamma: from 0, deterministic, to 1; diffusers calls it eta.

    Raises:
        ValueError: with this schedule a model is told noise levels.

    >>> nf.samplers.tcd(nf.Schedule.scaled_linear(1000), steps=4).tableau.as_rows.draws.tolist()
    [True, True, True, False]
    """
    check_number("gamma", gamma, 0, 1)
    axis = axis_of(schedule)
    _check_index(axis, "tcd")
    if isinstance(steps, int | np.integer) and "levels" not in options:
        steps = _distilled(axis, original_steps, int(steps))
    run = plan(schedule, steps, prediction=prediction, clip=clip, spacing="leading", **options)
    here, there = run.steps
    inner = there
    if gamma:
        check_fall(here.at(run.noisy), there.at(run.noisy))
        place = axis.at_index((1 - gamma) * there.t[run.noisy] // 1)
        inner = there._replace(alpha=there.alpha.copy(), sigma=there.sigma.copy())
        inner.alpha[run.noisy], inner.sigma[run.noisy] = place[:2]
    ratio = there.alpha / inner.alpha
    fresh = np.sqrt(np.maximum(0.0, squared(there.sigma) - squared(ratio * inner.sigma)))
    x_s = inner.alpha * D + inner.sigma * run.noise(here)
    return run.table("tcd", run.row(here, ratio * x_s + fresh * z))


def _check_index(axis: Axis, name: str, instead: str = "") -> None:
    """Raises ValueError if the schedule's time is no index."""
    if not axis.timed_by_index:
        why = "with this schedule a model is told noise levels (alpha = 1 or alpha + sigma = 1)"
        raise ValueError(f"{name} counts indices, and {why}{instead}")


def _distilled(axis: Axis, original: int, n: int) -> npt.NDArray[np.int64]:
    """Returns n of the times r - 1, 2 r - 1, .., r = length // original, evenly by index, the noisiest first."""
    _check_index(axis, "lcm", ": give the levels themselves, levels=[..]")
    length = len(axis.levels)
    if not 1 <= n <= original <= length:
        raise ValueError(f"1 <= steps <= original_steps <= {length} must hold, got {n} and {original}")
    times = np.arange(original, 0, -1) * (length // original) - 1
    return times[np.arange(n) * original // n]
