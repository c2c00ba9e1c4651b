# SPDX-License-Identifier: Apache-2.0
"""How a network's output m gives the clean sample x0 and the noise z: two coefficients each, on x and m.

    D = p_x x + p_m m,    e = e_x x + e_m m,    alpha D + sigma e = x

and, for networks with preconditioning, how x and the time are given to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .ground.checks import check_number

__all__ = ["VIEWS", "Prediction", "Target", "View", "called", "edm", "guidance", "view"]

Array: TypeAlias = npt.NDArray[np.float64]
Target: TypeAlias = Literal["epsilon", "v", "flow", "sample", "velocity"]
"""The target that a network is trained on: z, alpha z - sigma x0, z - x0, x0; "velocity" is another name of "flow"."""

ALIASES = {"velocity": "flow"}


def _unscaled(alpha: float, sigma: float) -> float:
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
    scale: Callable[[float, float], float] = _unscaled
    time: Callable[[float, float, float], float] = own_time


Prediction: TypeAlias = Literal["epsilon", "sample", "v", "flow", "velocity", "edm", "edm_v"] | View
"""A network's prediction by name, or a `View` of one's own; "velocity" is another name of "flow"."""


def _epsilon() -> View:
    """m = z: Ho et al. 2020, equation 15."""

    def clean(alpha: float, sigma: float) -> tuple[float, float]:
        if alpha == 0:
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
    """m = z - x0: Liu et al. 2022, where alpha + sigma = 1. Also called velocity."""

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


VIEWS = {view.name: view for view in (_epsilon(), _sample(), _v(), _flow(), edm(), edm(v=True))}


def view(prediction: Prediction) -> View:
    """Returns a `View` by name, or itself. ValueError lists the names."""
    if isinstance(prediction, View):
        return prediction
    name = ALIASES.get(prediction, prediction) if isinstance(prediction, str) else ""
    if name not in VIEWS:
        hint = called(prediction, VIEWS)
        raise ValueError(f"prediction must be a View or one of {', '.join(VIEWS)}, got {prediction!r}{hint}")
    return VIEWS[name]


# Other words for the same things, here and elsewhere.
_WORDS = {
    "z": ("epsilon", "eps", "noise"),
    "x0": ("sample", "x0"),
    "alpha z - sigma x0": ("v", "v_prediction"),
    "z - x0": ("flow", "velocity", "flow_prediction"),
}


def need_target(target: object) -> None:
    """Raises ValueError if no target has this name."""
    if target not in get_args(Target):
        names = [name for name in get_args(Target) if name not in ALIASES]
        expected = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"
        raise ValueError(f"target = {target!r}: expected {expected}{called(target, names)}")


def target_factors(target: Target, alpha: Array, sigma: Array) -> tuple[Array | None, Array | None]:
    """Returns the factors of x0 and z in the target; None: no such term. ValueError: no target has this name."""
    need_target(target)
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
