# SPDX-License-Identifier: Apache-2.0
"""How a network's output m gives the clean sample x0 and the noise z: two coefficients each, on x and m.

    D = p_x x + p_m m,    e = e_x x + e_m m,    alpha D + sigma e = x

and, for networks with preconditioning, how x and the time are given to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .ground.checks import check_number

__all__ = ["VIEWS", "Prediction", "Target", "View", "called", "edm", "guidance", "velocity", "view"]

Array: TypeAlias = npt.NDArray[np.float64]
Target: TypeAlias = Literal["epsilon", "v", "flow", "sample", "velocity"]
"""The target that a network is trained on: z, alpha z - sigma x0, z - x0, x0, or the derivative of x_t by the
schedule's own time, d alpha x0 + d sigma z."""

Rates: TypeAlias = Callable[[], tuple[Array, Array]]
"""A function that returns the derivatives of alpha and sigma at the levels that are given with it."""


class Curve(Protocol):
    """A schedule, which may be a function of time."""

    def __call__(self, t: Any) -> tuple[Array, Array]: ...

    def time_at(self, log_snr: Any) -> Array: ...

    def derivatives(self, t: Any) -> tuple[Array, Array]: ...


def unscaled(alpha: float, sigma: float) -> float:
    return 1.0


def own_time(alpha: float, sigma: float, t: float) -> float:
    return t


@dataclass(frozen=True)
class View:
    """A prediction: the quantity that a network predicts.

    Attributes:
        name: a name for messages.
        clean: (alpha, sigma) -> (p_x, p_m).
        noise: (alpha, sigma) -> (e_x, e_m).
        scale: (alpha, sigma) -> c_in; the network is given c_in x.
        time: (alpha, sigma, t) -> the network's time in place of the sampler's t.
    """

    name: str
    clean: Callable[[float, float], tuple[float, float]]
    noise: Callable[[float, float], tuple[float, float]]
    scale: Callable[[float, float], float] = unscaled
    time: Callable[[float, float, float], float] = own_time


Prediction: TypeAlias = Literal["epsilon", "sample", "v", "flow", "velocity", "edm", "edm_v"] | View
"""A network's prediction by name, or a `View` of one's own; "velocity" is `velocity` of the sampler's schedule."""


def _epsilon() -> View:
    """m = z: Ho et al. 2020, equation 15."""

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        if np.count_nonzero(alpha) < np.size(alpha):
            raise ValueError(
                'alpha is 0 at the first step (zero terminal SNR): x is pure noise there, and "epsilon" says '
                'nothing about x0; use a network with prediction "v", "sample" or "flow"'
            )
        return 1 / alpha, -sigma / alpha

    return View("epsilon", clean, lambda alpha, sigma: (0.0, 1.0))


def _sample() -> View:
    """m = x0."""
    return View("sample", lambda alpha, sigma: (0.0, 1.0), lambda alpha, sigma: (1 / sigma, -alpha / sigma))


def _v() -> View:
    """m = (alpha z - sigma x0) / r, r^2 = alpha^2 + sigma^2: Salimans & Ho 2022, appendix D, where r = 1."""

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        r = math.hypot(alpha, sigma)
        return alpha / r**2, -sigma / r

    def noise(alpha: float, sigma: float) -> tuple[float, float]:
        r = math.hypot(alpha, sigma)
        return sigma / r**2, alpha / r

    return View("v", clean, noise)


def _flow() -> View:
    """m = z - x0: Liu et al. 2022, where alpha + sigma = 1. It is the velocity of a flow without a shift."""

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)

    def noise(alpha: float, sigma: float) -> tuple[float, float]:
        return 1 / (alpha + sigma), alpha / (alpha + sigma)

    return View("flow", clean, noise)


def edm(sigma_data: float = 0.5, *, v: bool = False) -> View:
    """Preconditioning of Karras et al. 2022, table 1, for the noise level s = sigma / alpha of x / alpha.

        D = c_skip x + c_out m,     c_skip = sigma_data^2 / (s^2 + sigma_data^2)
        c_out = s sigma_data / sqrt(s^2 + sigma_data^2)
        c_in = 1 / sqrt(s^2 + sigma_data^2),    c_noise = log(s) / 4

    No formula divides by alpha. sigma_data is the standard deviation of the data. v makes c_out negative, for networks
    that predict v in this frame.
    """
    check_number("sigma_data", sigma_data, above=0)
    size = -sigma_data if v else sigma_data

    def scale(alpha: float, sigma: float) -> float:
        return 1 / math.hypot(sigma, sigma_data * alpha)

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        c_in = scale(alpha, sigma)
        return sigma_data**2 * alpha * c_in**2, size * sigma * c_in

    def noise(alpha: float, sigma: float) -> tuple[float, float]:
        c_in = scale(alpha, sigma)
        return sigma * c_in**2, -size * alpha * c_in

    def time(alpha: float, sigma: float, t: float) -> float:
        if alpha == 0:
            raise ValueError("alpha is 0 at the first step: x is pure noise there, and c_noise = log(s) / 4 infinite")
        return math.log(sigma / alpha) / 4

    return View("edm_v" if v else "edm", clean, noise, scale, time)


def velocity(schedule: Curve) -> View:
    """m = d alpha x0 + d sigma z, derivatives by the schedule's own time: SiT, Ma et al. 2024 (equation 4).

        r D = d sigma x - sigma m,    r e = alpha m - d alpha x,    r = alpha d sigma - sigma d alpha

    Args:
        schedule: A schedule that is a function of time: the sampler's, or another one that has all of its levels.

    Raises:
        TypeError: The schedule is no function of time, or its derivatives are not known.
    """

    @cache  # a table asks for each node several times, and this takes as long as the rest of its row
    def rates(alpha: float, sigma: float) -> tuple[float, float, float]:
        t = schedule.time_at(2 * (math.log(alpha) - math.log(sigma)) if alpha else -math.inf)
        if not np.allclose(schedule(t), (alpha, sigma), rtol=1e-6, atol=1e-9):
            raise ValueError(f"velocity: the schedule has no level alpha = {alpha}, sigma = {sigma}")
        d_alpha, d_sigma = (rate.item() for rate in schedule.derivatives(t))
        r = alpha * d_sigma - sigma * d_alpha
        if r == 0:
            raise ValueError(f"velocity: at t = {t} it is a multiple of x, and says nothing about x0")
        return d_alpha, d_sigma, r

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        _, d_sigma, r = rates(alpha, sigma)
        return d_sigma / r, -sigma / r

    def noise(alpha: float, sigma: float) -> tuple[float, float]:
        d_alpha, _, r = rates(alpha, sigma)
        return -d_alpha / r, alpha / r

    schedule.derivatives(0)
    return View("velocity", clean, noise)


VIEWS = {view.name: view for view in (_epsilon(), _sample(), _v(), _flow(), edm(), edm(v=True))}
RATIONAL = frozenset(VIEWS[name] for name in ("epsilon", "sample", "flow"))
"""Views of sums and quotients alone, which NumPy rounds as Python does: they take arrays."""


def view(prediction: Prediction, schedule: Curve | None = None) -> View:
    """Returns a `View` by name, or itself; "velocity" is the schedule's. ValueError lists the names."""
    if isinstance(prediction, View):
        return prediction
    if prediction == "velocity" and schedule is not None:
        return velocity(schedule)
    if not isinstance(prediction, str) or prediction not in VIEWS:
        hint, names = called(prediction, VIEWS), ", ".join((*VIEWS, "velocity"))
        raise ValueError(f"prediction must be a View or one of {names}, got {prediction!r}{hint}")
    return VIEWS[prediction]


# Other words for the same things, here and elsewhere.
_WORDS = {
    "z": ("epsilon", "eps", "noise"),
    "x0": ("sample", "x0"),
    "alpha z - sigma x0": ("v", "v_prediction"),
    "z - x0": ("flow", "flow_prediction"),
}


def check_target(target: object) -> None:
    """Raises ValueError if no target has this name."""
    if target not in get_args(Target):
        names = get_args(Target)
        expected = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"
        raise ValueError(f"target = {target!r}: expected {expected}{called(target, names)}")


def no_rates() -> NoReturn:
    raise ValueError('target = "velocity": expected a schedule, as these levels have no time; "flow" is z - x0')


def target_factors(
    target: Target, alpha: Array, sigma: Array, rates: Rates = no_rates
) -> tuple[Array | None, Array | None]:
    """Returns the factors of x0 and z in the target; None: no such term. ValueError: no target has this name."""
    check_target(target)
    if target == "velocity":
        return rates()
    if target == "v":
        return -sigma, alpha
    one = np.ones_like(alpha)
    factors: dict[str, tuple[Array | None, Array | None]] = {"epsilon": (None, one), "sample": (one, None)}
    return factors.get(target) or (-one, one)


def called(word: object, names: Collection[str]) -> str:
    """Returns the end of an error: the name that this word stands for elsewhere, if there is one."""
    for meaning, words in _WORDS.items():
        if word in words:
            return f"; {meaning} is called {next(name for name in words if name in names)!r} here"
    return ""


def guidance(weight: float) -> tuple[float, float]:
    """Classifier-free guidance, m = uncond + w (cond - uncond): the coefficients of (uncond, cond).

    Ho & Salimans 2022, in the convention where w = 1 is the conditional model (diffusers' guidance_scale).
    """
    return 1 - weight, weight
