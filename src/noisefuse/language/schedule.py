# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: a schedule is two columns of numbers, alpha and sigma.

    x_t = alpha_t x_0 + sigma_t z,    z ~ N(0, I)

Variance preserving (DDPM): alpha^2 + sigma^2 = 1.  Variance exploding (EDM): alpha = 1.  Rectified flow:
alpha = 1 - sigma.  Everything is float64; index 0 is always the least noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_integer, check_number
from ..ground.docstrings import Shared, documented
from . import families
from .curve import betas_of, column, frozen, grid
from .diffusers_config import family
from .families import Array
from .named import Named

F = TypeVar("F", bound=Callable[..., Any])

_BETAS = "    beta_start, beta_end: the range of beta_t, both in (0, 1]."
_ENDS = "    sigma_min, sigma_max: the least and the most noisy level, 0 < sigma_min < sigma_max < inf."
_FAMILY = Shared(
    args={
        "steps": "    steps: the number of noise levels, T, at least 1.",
        "beta_start": _BETAS,
        "beta_end": _BETAS,
        "max_beta": "    max_beta: no beta_t is larger; positive.",
        "sigma_min": _ENDS,
        "sigma_max": _ENDS,
    },
    returns="    A `Schedule` of this kind, its columns in float64, (T,).",
    raises="""\
    ValueError: an argument lies outside of its range.
    TypeError: steps is no integer.""",
)


def _remembered(make: F) -> F:
    """A decorator: a family's schedules of the same arguments are one. A schedule never changes, and 64 are kept."""
    kept = lru_cache(64, typed=True)(make)

    @wraps(make)
    def family(*arguments: Any, **options: Any) -> Any:
        try:
            return kept(*arguments, **options)
        except TypeError:  # not hashable; or what is wrong is said again
            return make(*arguments, **options)

    return family  # type: ignore[return-value]


class Schedule(Named):
    """Two read-only columns alpha and sigma, float64 of shape (T,): x_t = alpha_t x_0 + sigma_t z.

    ``Schedule(alpha, sigma)`` copies the two columns; the classmethods build the usual families. The constructor
    checks: at least one step, alpha in [0, 1], sigma positive and finite, alpha / sigma strictly decreasing. So sigma
    is never 0 (clean data are not a noise level), and only the last alpha may be 0.

    It is immutable, hashable and picklable; schedules are equal if their kind, parameters and columns are.

    Attributes:
        alpha, sigma: the columns, read-only.
        kind: the family, by its classmethod; "columns" if alpha and sigma were given.
        name: what prints and pictures call it: ``Schedule(alpha, sigma, name="mine")``, ``schedule.with_name("mine")``;
            its kind, if none was given.

    Raises:
        ValueError: the message names the first value that breaks a rule.
        TypeError: the columns are not real numbers, or name is no str.

    >>> nf.Schedule([0.8, 0.6], [0.6, 0.8])
    Schedule(columns, steps=2)
      alpha 0.8 .. 0.6, sigma 0.6 .. 0.8, terminal SNR 0.5625
    """

    # ---- variance preserving families ----------------------------------------------------------------------

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Self:
        """beta_t = beta_start + t / (T - 1) (beta_end - beta_start): DDPM, Ho et al. 2020 (section 4).

        >>> nf.Schedule.linear(1000).betas[[0, -1]].tolist()
        [0.0001, 0.02]
        """
        _positive(beta_start=beta_start, beta_end=beta_end)
        betas = np.linspace(beta_start, beta_end, check_integer("steps", steps, 1))
        return cls._of_betas(betas, "linear", beta_start=beta_start, beta_end=beta_end)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def scaled_linear(cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Self:
        """Rombach et al. 2022 (Stable Diffusion): sqrt(beta_t) linear, from beta_start to beta_end.

        >>> nf.Schedule.scaled_linear()
        Schedule(scaled_linear, steps=1000, beta_start=0.00085, beta_end=0.012)
          alpha 0.9996 .. 0.06826, sigma 0.02915 .. 0.9977, terminal SNR 0.004682
        """
        _positive(beta_start=beta_start, beta_end=beta_end)
        betas = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), check_integer("steps", steps, 1)) ** 2
        return cls._of_betas(betas, "scaled_linear", beta_start=beta_start, beta_end=beta_end)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Self:
        """Nichol & Dhariwal 2021 (equation 17); "squaredcos_cap_v2" in diffusers.

            abar(u) = f(u) / f(0),  f(u) = cos^2(((u + s) / (1 + s)) pi / 2)
            beta_t  = min(1 - abar((t + 1) / T) / abar(t / T), max_beta)

        Continuous in u in [0, 1]: ``schedule(u)`` is sqrt(abar(u)), sqrt(1 - abar(u)), without the clip.

        Args:
            s: an offset, so that beta is not too small near t = 0; positive.

        >>> alpha, sigma = nf.Schedule.cosine(1000)(0.5)  # half way
        >>> round(float(alpha), 6)
        0.70274
        """
        _positive(s=s, max_beta=max_beta)
        alpha, _ = families.cosine(grid(steps), s=s)
        betas = np.minimum(1 - (alpha[1:] / alpha[:-1]) ** 2, max_beta)
        return cls._of_betas(betas, "cosine", s=s, max_beta=max_beta)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def sigmoid(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Self:
        """GeoDiff, Xu et al. 2022; "sigmoid" in diffusers.

            beta_t = beta_start + logistic(l_t) (beta_end - beta_start),  l_t from -6 to 6, linearly

        It is not the schedule of the same name that bends abar (Jabri et al. 2022; Chen 2023).

        >>> nf.Schedule.sigmoid(100)
        Schedule(sigmoid, steps=100, beta_start=0.0001, beta_end=0.02)
          alpha 0.9999 .. 0.6025, sigma 0.01221 .. 0.7982, terminal SNR 0.5697
        """
        _positive(beta_start=beta_start, beta_end=beta_end)
        logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, check_integer("steps", steps, 1))))
        betas = beta_start + logistic * (beta_end - beta_start)
        return cls._of_betas(betas, "sigmoid", beta_start=beta_start, beta_end=beta_end)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def laplace(cls, steps: int = 1000, mu: float = 0.0, b: float = 0.5, max_beta: float = 0.999) -> Self:
        """The quantiles of Laplace(mu, b) as log-SNR: Hang et al. 2024, as "laplace" in diffusers.

            log SNR(u) = mu - b sgn(1/2 - u) log(1 - 2 |1/2 - u| + 1e-6)
            abar(u)    = sqrt(SNR(u) / (1 + SNR(u)))
            beta_t     = min(1 - abar((t + 1) / T) / abar(t / T), max_beta)

        In the paper, this square root is alpha. diffusers takes it for abar = alpha^2, and so does this function. For
        the paper's schedule, give SNR / (1 + SNR) to ``from_alphas_cumprod``.

        Args:
            mu: the mean of log-SNR, finite.
            b: its scale, positive.

        >>> nf.Schedule.laplace(100)
        Schedule(laplace, steps=100, mu=0.0, b=0.5, max_beta=0.999)
          alpha 0.9677 .. 0.1778, sigma 0.2521 .. 0.9841, terminal SNR 0.03266
        """
        _positive(b=b, max_beta=max_beta)
        check_number("mu", mu)
        offset = 0.5 - grid(steps)
        log_snr = mu - b * np.copysign(1, offset) * np.log(1 - 2 * np.abs(offset) + 1e-6)
        log_abar = -0.5 * np.logaddexp(0, -log_snr)
        betas = np.minimum(-np.expm1(np.diff(log_abar)), max_beta)
        return cls._of_betas(betas, "laplace", mu=mu, b=b, max_beta=max_beta)

    @classmethod
    def from_betas(cls, betas: npt.ArrayLike) -> Self:
        """alpha = sqrt(abar), sigma = sqrt(1 - abar), abar_t = prod_{i<=t} (1 - beta_i): Ho et al. 2020 (4).

        For the families above, at 1000 steps, the relative error is below 1e-13 in alpha and 1e-14 in sigma.

        Args:
            betas: (T,), each in (0, 1]; the last may be 1, for zero terminal SNR.

        Returns:
            A `Schedule` of T steps. Its ``.betas`` are exactly the given ones.

        Raises:
            TypeError: betas are not real numbers.
            ValueError: a beta lies outside (0, 1], a 1 is not the last, or there is no axis of at least one step.

        >>> nf.Schedule.from_betas([0.36, 0.5]).alpha.round(6).tolist()
        [0.8, 0.565685]
        """
        return cls._of_betas(betas, "from_betas")

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: npt.ArrayLike) -> Self:
        """alpha = sqrt(abar), sigma = sqrt(1 - abar), abar_t = alpha_t^2 as in Ho et al. 2020 (4).

        Args:
            alphas_cumprod: abar, (T,), in [0, 1) and strictly decreasing; a leading 1, the clean data, is left out.

        Returns:
            A `Schedule` of T steps.

        Raises:
            TypeError: alphas_cumprod are not real numbers.
            ValueError: an abar lies outside [0, 1) or not below the one before, or there is no axis of at least one
                step.

        >>> nf.Schedule.from_alphas_cumprod([0.64, 0.32]).alpha.round(6).tolist()
        [0.8, 0.565685]
        """
        expected = "in [0, 1) (a leading 1, the clean data, is left out)"
        abar = column("alphas_cumprod", alphas_cumprod, lambda v: (v >= 0) & (v < 1), expected)
        return cls(np.sqrt(abar), np.sqrt(1 - abar), _kind="from_alphas_cumprod")

    @classmethod
    def from_logsnr(cls, log_snr: npt.ArrayLike) -> Self:
        """Variance preserving, from l = log(alpha^2 / sigma^2): alpha^2 = 1 / (1 + e^-l), sigma^2 = 1 / (1 + e^l).

        Args:
            log_snr: l, (T,), strictly decreasing; the last may be -inf, for zero terminal SNR.

        Returns:
            A `Schedule` of T steps.

        Raises:
            TypeError: log_snr are not real numbers.
            ValueError: a number is NaN or inf, they do not decrease, or there is no axis of at least one step.

        >>> nf.Schedule.from_logsnr(np.linspace(10, -10, 1000)).alpha[[0, -1]].round(6).tolist()
        [0.999977, 0.006738]
        """
        expected = "below inf, and no NaN"
        log_snr = column("log_snr", log_snr, lambda v: v < math.inf, expected)
        alpha, sigma = (np.exp(-0.5 * np.logaddexp(0, side)) for side in (-log_snr, log_snr))
        return cls(alpha, sigma, _kind="from_logsnr")

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> Self:
        """The schedule of a scheduler of diffusers, or of its configuration, computed again in float64.

        Args:
            scheduler: an object with a mapping as ``.config``, or such a mapping (``json.load`` of
                scheduler_config.json). diffusers need not be installed. It reads num_train_timesteps and:
                trained_betas; beta_schedule linear, scaled_linear, squaredcos_cap_v2, sigmoid or laplace, with
                beta_start, beta_end and rescale_betas_zero_snr; shift or flow_shift of flow matching; sigma_min and
                sigma_max with sigma_schedule (EDM), use_karras_sigmas or use_exponential_sigmas.

        Returns:
            The num_train_timesteps noise levels of training. A sampler takes the choice for inference
            (timestep_spacing, use_karras_sigmas). With zero terminal SNR the last alpha is 0, while some of diffusers'
            schedulers have 2^-12.

        Raises:
            TypeError: scheduler is no scheduler and no mapping.
            ValueError: a part of the configuration is not supported.

        >>> config = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        >>> nf.Schedule.from_diffusers(config) == nf.Schedule.linear(1000)
        True
        """
        kind, arguments, rescaled = family(scheduler)
        schedule: Self = getattr(cls, kind)(**arguments)
        return schedule.rescale_zero_terminal_snr() if rescaled else schedule

    @classmethod
    def _of_betas(cls, betas: npt.ArrayLike, kind: str, **parameters: float) -> Self:
        betas = betas_of(betas)
        with np.errstate(divide="ignore"):  # beta = 1: log abar = -inf, and exp and expm1 are right there
            log_abar = np.cumsum(np.log1p(-betas))
        # 1 - abar would cancel for abar near 1
        alpha, sigma = np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))
        return cls(alpha, sigma, _kind=kind, _parameters=parameters, _betas=frozen(betas))

    # ---- rectified flow ------------------------------------------------------------------------------------

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def flow(cls, steps: int = 1000, shift: float = 1.0) -> Self:
        """Rectified flow, Liu et al. 2022; shift as in Stable Diffusion 3, Esser et al. 2024 (equation 23).

            s = (t + 1) / T,   sigma = shift s / (1 + (shift - 1) s),   alpha = 1 - sigma

        The last step is pure noise. Continuous in s in [0, 1], the time before the shift.

        Args:
            shift: positive; above 1 more of the noise levels are high.

        >>> nf.Schedule.flow(4, shift=3.0).sigma.round(6).tolist()
        [0.5, 0.75, 0.9, 1.0]
        """
        _positive(shift=shift)
        alpha, sigma = families.flow(grid(steps)[1:], shift=shift)
        return cls(alpha, sigma, _kind="flow", _parameters={"shift": shift})

    @staticmethod
    def flow_shift(
        tokens: float, *, base_tokens: float = 256, max_tokens: float = 4096, base_shift: float = 0.5,
        max_shift: float = 1.15,
    ) -> float:  # fmt: skip
        """Returns the shift of `flow` that suits an image of this many tokens: Flux's rule, the defaults are Flux.1's.

            shift = exp(mu),   mu = base_shift + (max_shift - base_shift) (n - base) / (max - base)

        n is tokens. Larger images need more noise for the same loss of signal (Esser et al. 2024, section 5.3.2).
        In diffusers, `calculate_shift` computes mu, and the rule is named the exponential time shift.

        Args:
            tokens: the number of tokens of the image, which is the area of its latents over the area of a patch;
                positive.
            base_tokens, max_tokens: the numbers of tokens at which mu is given; they differ. Beyond them mu continues
                linearly.
            base_shift, max_shift: mu at base_tokens and at max_tokens.

        Returns:
            A positive float.

        Raises:
            ValueError: a count of tokens that is not positive and finite, two equal counts, or a mu beyond 700.

        >>> shift = nf.Schedule.flow_shift(64 * 64)  # 1024 x 1024 pixels
        >>> round(shift, 6), nf.Schedule.flow(shift=shift).sigma[499].round(6).item()
        (3.158193, 0.759511)
        """
        _positive(tokens=tokens, base_tokens=base_tokens, max_tokens=max_tokens)
        if base_tokens == max_tokens:
            raise ValueError(f"base_tokens and max_tokens must differ, both are {base_tokens}")
        along = (tokens - base_tokens) / (max_tokens - base_tokens)
        mu = base_shift + (max_shift - base_shift) * along
        if not abs(mu) < 700:  # so that its exponential is a number
            raise ValueError(f"mu must lie between -700 and 700, got {mu} for {tokens} tokens")
        return math.exp(mu)

    # ---- functions of time ---------------------------------------------------------------------------------

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def trig(cls, steps: int = 1000) -> Self:
        """alpha = cos(t pi / 2), sigma = sin(t pi / 2): GVP of SiT, Ma et al. 2024; "VP" in torchcfm; TrigFlow.

        Columns are those at t = (i + 1) / T. Continuous in t in [0, 1]; TrigFlow's own time is t pi / 2.

        >>> alpha, sigma = nf.Schedule.trig()(0.5)
        >>> round(float(alpha), 6), round(float(sigma), 6)
        (0.707107, 0.707107)
        """
        return cls._of_family("trig", steps)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def vp_linear(cls, steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Self:
        """The VP SDE in continuous time: Song et al. 2021 (equation 33), VPSDE in score_sde.

            log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,   sigma^2 = 1 - alpha^2

        Columns are those at t = (i + 1) / T. Continuous in t in [0, 1]. (DDPM's discrete steps are ``linear``.)

        Args:
            beta_min, beta_max: beta(0) and beta(1), positive.

        >>> round(float(nf.Schedule.vp_linear()(1.0)[0]), 6)
        0.006572
        """
        _positive(beta_min=beta_min, beta_max=beta_max)
        return cls._of_family("vp_linear", steps, beta_min=beta_min, beta_max=beta_max)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def imagen_linear(cls, steps: int = 1000) -> Self:
        """log SNR(t) = -log(exp(1e-4 + 10 t^2) - 1): "linear" of imagen-pytorch, after Ho et al. 2020.

        Columns are those at t = (i + 1) / T. Continuous in t in [0, 1]. Variance preserving.

        >>> round(float(nf.Schedule.imagen_linear()(1.0)[0]), 6)
        0.006738
        """
        return cls._of_family("imagen_linear", steps)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def imagen_cosine(cls, steps: int = 1000, s: float = 0.008) -> Self:
        """alpha = cos((t + s) / (1 + s) pi / 2): "cosine" of imagen-pytorch. `cosine` also divides by f(0).

        Columns are those at t = (i + 1) / T. Continuous in t in [0, 1]. Variance preserving.

        Args:
            s: an offset, so that sigma is not too small near t = 0; positive.

        >>> round(float(nf.Schedule.imagen_cosine()(0.0)[0]), 6)
        0.999922
        """
        _positive(s=s)
        return cls._of_family("imagen_cosine", steps, s=s)

    # ---- variance exploding families -----------------------------------------------------------------------

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def karras(cls, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Self:
        """Karras et al. 2022 (equation 5), turned round so that index 0 is sigma_min.

            sigma_i = (sigma_max^(1/rho) + i / (T - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

        alpha = 1. Continuous: t is sigma, any finite t >= 0. A single step is sigma_max.

        Args:
            rho: positive; the larger, the more of the noise levels are low.

        >>> nf.Schedule.karras(4).sigma.round(3).tolist()
        [0.002, 0.47, 9.723, 80.0]
        """
        _positive(rho=rho, sigma_min=sigma_min, sigma_max=sigma_max)
        roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), check_integer("steps", steps, 1))
        return cls._of_levels(roots**rho, "karras", sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def exponential(cls, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Self:
        """sigma_i = sigma_min (sigma_max / sigma_min)^(i / (T - 1)): VE SDE, Song et al. 2021 (appendix C).

        alpha = 1. Continuous: t is sigma, any finite t >= 0. A single step is sigma_max.

        >>> nf.Schedule.exponential(3, sigma_min=0.01, sigma_max=100.0).sigma.tolist()
        [0.01, 1.0, 100.0]
        """
        _positive(sigma_min=sigma_min, sigma_max=sigma_max)
        sigma = np.geomspace(sigma_max, sigma_min, check_integer("steps", steps, 1))
        return cls._of_levels(sigma, "exponential", sigma_min=sigma_min, sigma_max=sigma_max)

    @classmethod
    @documented(_FAMILY)
    @_remembered
    def edm(
        cls, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, P_mean: float = -1.2,
        P_std: float = 1.2,
    ) -> Self:  # fmt: skip
        """The training noise of EDM as quantiles: Karras et al. 2022 (table 1).

            log sigma ~ N(P_mean, P_std^2),  sigma_min <= sigma <= sigma_max

        Drawing an index uniformly draws from this distribution. It is cut to EDM's sampling range, with both ends in
        the grid, so that the schedule serves samplers too; EDM's sampling grid is ``karras``.

        alpha = 1. Continuous: t is sigma, any finite t >= 0. A single step is sigma_max.

        Args:
            P_mean: the mean of log sigma.
            P_std: its standard deviation, positive.

        Raises:
            ValueError: the range is so far from P_mean that the distribution has no quantiles there.

        >>> nf.Schedule.edm(5).sigma.round(3).tolist()
        [0.002, 0.134, 0.301, 0.677, 80.0]
        """
        _positive(sigma_min=sigma_min, sigma_max=sigma_max, P_std=P_std)
        from statistics import NormalDist  # imported here, because it takes a tenth of the package's import time

        log_sigma = NormalDist(P_mean, P_std)
        first, last = log_sigma.cdf(math.log(sigma_max)), log_sigma.cdf(math.log(sigma_min))
        quantiles = np.linspace(first, last, check_integer("steps", steps, 1))[1:-1]
        if not np.all((quantiles > 0) & (quantiles < 1)):
            raise ValueError(f"[{sigma_min}, {sigma_max}] is too far from P_mean={P_mean}, P_std={P_std}")
        sigma = [sigma_max, *(math.exp(log_sigma.inv_cdf(q)) for q in quantiles), sigma_min]
        parameters = {"sigma_min": sigma_min, "sigma_max": sigma_max, "P_mean": P_mean, "P_std": P_std}
        return cls._of_levels(np.array(sigma[:steps]), "edm", **parameters)

    @classmethod
    def _of_levels(cls, falling: Array, kind: str, **parameters: float) -> Self:
        sigma_min, sigma_max = parameters["sigma_min"], parameters["sigma_max"]
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
        sigma = falling[::-1].copy()
        sigma[0], sigma[-1] = sigma_min, sigma_max  # exactly, although powers and logarithms round
        return cls(np.ones_like(sigma), sigma, _kind=kind, _parameters=parameters)


def check_schedule(schedule: object) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a noisefuse.Schedule, got {type(schedule).__name__}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        check_number(name, value, above=0)
