# SPDX-License-Identifier: Apache-2.0
"""Samplers of interpolants: from an array x at one end of a `Path` to the other, or back.

``nf.samplers.interpolants.ode(steps=50)`` returns a `Sampler`, as the samplers of schedules do. Its times are those of
the path, from 0 to 1; x is given, and is no noise: ``sampler.sample(model, x0)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_integer
from ..language.tableau import ZERO, Affine, D, Row, Tableau, m1, m2, past, x, z
from ..paths import Path
from ..sampler import Sampler

__all__ = ["bridge", "ode", "sde"]

Array: TypeAlias = npt.NDArray[np.float64]
Times: TypeAlias = int | Sequence[float] | Array


def ode(steps: Times = 50, *, heun: bool = False) -> Sampler:
    """The probability flow of an interpolant, dx / dt = velocity: Albergo et al. 2023, Liu et al. 2022.

        Euler: x' = x + h u(x, t),    Heun: x' = x + h (u(x, t) + u(x + h u(x, t), t')) / 2,    h = t' - t

    The network predicts the target "velocity" of `interpolate`, of any path. Heun's method has 2 n model calls.

    Args:
        steps: how many equal steps from t = 0 to 1, or n + 1 times, the last of which ends the run. They may fall.
        heun: Heun's method, of second order, in place of Euler's.

    Returns:
        A `Sampler` that runs on an x at the first time.

    Raises:
        ValueError: no steps, or times that are not within 0 .. 1 or go back and forth.

    >>> sampler = nf.samplers.interpolants.ode(steps=4)
    >>> sampler.sample(lambda x, t: np.ones_like(x), np.zeros((2, 3))).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    rows, told = [], []
    for t, end in pairwise(_times(steps)):
        h = end - t
        told += [t, end] if heun else [t]
        if heun:
            rows += [(x + h * m1, [x + h / 2 * m1]), (past[0] + h / 2 * m1, [])]
        else:
            rows.append((x + h * m1, []))
    return _sampler("interpolant_ode", rows, told)


def sde(path: Path, steps: Times = 50, *, epsilon: float | Callable[[Array], Any] = 1.0) -> Sampler:
    """An SDE with the marginals of an interpolant with noise: Albergo, Boffi & Vanden-Eijnden 2023, section 2.3.

        x' = x + h u - |h| (epsilon / g) e + sqrt(2 epsilon |h|) w,    h = t' - t

    The network predicts two targets of `interpolate`, and returns the pair (e, u): "denoiser" e, so that -e / g is the
    score, and "velocity" u. A run needs ``guidance_scale=1.0``, which leaves the pair as it is. Where g is 0 a step is
    the ODE's.

    Args:
        path: a path with noise, g.
        steps: as in `ode`. Times may fall: the score pulls to where x is likely in both directions.
        epsilon: of the noise, at least 0: a number, or a function of float64 times.

    Returns:
        A `Sampler` that runs on an x at the first time.

    Raises:
        ValueError: a path without noise, an epsilon below 0, or times as in `ode`.

    >>> sampler = nf.samplers.interpolants.sde(nf.paths.conditional_flow(0.5), steps=4, epsilon=0.1)
    >>> sampler.sample(lambda x, t: (0.5 * x, x), np.zeros((2, 3)), nf.Noise(7), guidance_scale=1.0).shape
    (2, 3)
    """
    _check_noise("sde", path)
    times = _times(steps)
    g = path.columns(times, None)["out.z"]
    rate = np.asarray(epsilon(times.copy()) if callable(epsilon) else np.full(len(times), epsilon), np.float64)
    if rate.shape != times.shape or not ((rate >= 0) & (rate < np.inf)).all():
        raise ValueError(f"epsilon: expected finite numbers of at least 0, one for each time, got {rate}")
    rows = []
    for (t, end), level, one in zip(pairwise(times), g.tolist(), rate.tolist(), strict=False):
        h, drawn = end - t, one if level else 0.0
        out = x + h * m1
        if drawn:
            out += -abs(h) * drawn / level * m2 + math.sqrt(2 * drawn * abs(h)) * z
        rows.append((out, list[Affine]()))
    return _sampler("interpolant_sde", rows, times[:-1])


def bridge(path: Path, steps: Times = 50) -> Sampler:
    """A bridge back from x1 to x0, by its own posterior: I2SB, Liu et al. 2023, algorithm 2.

        x' = (b' / b) x + (1 - b' / b) D + sqrt(v b' (1 - b' / b)) z,    v = g^2 / (a b)

    The network predicts x0 from x_t; its target is x0 itself. This is p(x_t' | x0 = D, x_t) of a Brownian motion that
    is tied to x0 and x1. v, its whole variance, is the same at all times: `paths.brownian_bridge`, `stochastic` and
    `i2sb`.

    Args:
        path: such a path.
        steps: how many equal steps from t = 1 to 0, or n + 1 falling times, the last of which ends the run.

    Returns:
        A `Sampler` that runs on an x at the first time, x1 itself at t = 1.

    Raises:
        ValueError: another path, or times that do not fall.

    >>> sampler = nf.samplers.interpolants.bridge(nf.paths.i2sb(0.3), steps=4)
    >>> sampler.sample(lambda x, t: 0.9 * x, np.ones((2, 3)), nf.Noise(7)).shape
    (2, 3)
    """
    _check_noise("bridge", path)
    times = _times(steps)[:: -1 if isinstance(steps, int | np.integer) else 1]
    if times[0] < times[-1]:
        raise ValueError(f"bridge: expected times that fall, from x1 at 1 to x0 at 0, got {times}")
    inner = np.linspace(0.1, 0.9, 9)
    a, b, g = path.columns(inner, None).values()
    with np.errstate(all="ignore"):
        whole = g**2 / (a * (1 - a))
    if not np.allclose([*whole / whole[0], *(a + b)], 1, rtol=1e-9):
        raise ValueError(f"bridge: {path.name} is no Brownian bridge, a + b = 1 and g^2 / (a b) the same at all times")
    rows = []
    for before, after in pairwise(path.columns(times, None)["out.m1"].tolist()):
        kept = after / before
        fresh = math.sqrt(max(0.0, float(whole[0]) * after * (1 - kept)))
        rows.append((kept * x + (1 - kept) * D + fresh * z, list[Affine]()))
    return _sampler("interpolant_bridge", rows, times[:-1], clean=m1)


def _times(steps: Times) -> Array:
    """Returns the n + 1 times of a run."""
    if isinstance(steps, int | np.integer):
        return np.linspace(0, 1, check_integer("steps", steps, 1) + 1)
    times = np.asarray(steps, np.float64)
    moves = np.diff(times) if times.ndim == 1 else np.zeros(0)
    if len(moves) == 0 or not ((moves > 0).all() or (moves < 0).all()):
        raise ValueError(f"steps: expected a number, or two times or more that rise, or fall, got {steps!r}")
    if not ((times >= 0) & (times <= 1)).all():
        raise ValueError(f"steps: expected times from 0 to 1, got {steps!r}")
    return times


def _check_noise(name: str, path: Path) -> None:
    if not isinstance(path, Path):
        raise TypeError(f"path: expected one of noisefuse.paths, got {type(path).__name__}")
    if not path.draws:
        raise ValueError(f"{name}: the path {path.name} has no noise; take ode")


def _sampler(
    name: str, rows: Sequence[tuple[Affine, list[Affine]]], times: Sequence[float] | Array, clean: Affine | None = None
) -> Sampler:
    """Returns a sampler of rows (x', what is kept)."""
    made = [Row(out, ZERO if clean is None else clean, keep[0] if keep else ZERO) for out, keep in rows]
    return Sampler(Tableau(made, np.asarray(times), name, push=np.array([len(keep) for _, keep in rows])))
