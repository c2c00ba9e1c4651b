# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: a schedule is two columns of numbers, alpha and sigma.

    x_t = alpha_t x_0 + sigma_t z,    z ~ N(0, I)

Variance preserving (DDPM): alpha^2 + sigma^2 = 1.  Variance exploding (EDM): alpha = 1.  Rectified flow:
alpha = 1 - sigma.  Everything is float64; index 0 is always the least noisy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..ground import notebook, stored
from ..ground.checks import check_integer, check_number, first_of, lie_within
from ..ground.docstrings import Shared, documented
from ..ground.drawing import plot_levels
from ..ground.kept import kept_property
from ..ground.kinds import NUMPY, library_for, need_plain
from ..views import Prediction, Target, own_time, view
from . import families
from .axis import Axis, ModelTime, Place
from .diffusers_config import family
from .families import FAMILIES, AlphaSigma, Array, Family, Functions, Slopes
from .forward import KeptRows, OwnTime, forward
from .tableau import Tableau, of_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


class Schedule:
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

    alpha: Array
    sigma: Array
    kind: str
    name: str
    _parameters: dict[str, float]
    _betas: Array | None
    _family: Family | None
    kept: KeptRows

    def __init__(
        self,
        alpha: npt.ArrayLike,
        sigma: npt.ArrayLike,
        *,
        name: str | None = None,
        _kind: str = "columns",
        _parameters: Mapping[str, float] | None = None,
        _betas: Array | None = None,
        _family: Family | None = None,
    ) -> None:
        alpha = _column("alpha", alpha, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")
        sigma = _column("sigma", sigma, lambda v: (v > 0) & (v < math.inf), "positive and finite")
        if len(alpha) != len(sigma):
            raise ValueError(f"alpha and sigma must have one length, got {len(alpha)} and {len(sigma)}")
        if _betas is not None and len(_betas) != len(alpha):
            raise ValueError(f"betas: expected {len(alpha)}, one for each step, got {len(_betas)}")
        if not isinstance(name, str | None):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        rising = np.flatnonzero(np.diff(alpha / sigma) >= 0)
        if rising.size:
            t = int(rising[0])
            raise ValueError(
                "the signal-to-noise ratio alpha / sigma must strictly decrease, but (alpha, sigma) is "
                f"({alpha[t]}, {sigma[t]}) at {t} and ({alpha[t + 1]}, {sigma[t + 1]}) at {t + 1}"
            )
        self.__dict__.update(  # this bypasses __setattr__, which refuses
            alpha=_frozen(alpha),
            sigma=_frozen(sigma),
            kind=_kind,
            name=_kind if name is None else name,
            _parameters=_parameters or {},
            _betas=_betas,
            _family=_family or FAMILIES.get(_kind),
        )
        self.__dict__["kept"] = KeptRows(self, self._own_time())

    def _own_time(self) -> OwnTime | None:
        """Returns what the fast path makes rows of float times of. It takes times from 0 on."""
        if self._family is None or self._family.first != 0:
            return None
        at, known = partial(self._family.at, **self._parameters), self._family
        return at, partial(families.with_slopes, known, self._parameters), known.last

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
        alpha, _ = families.cosine(_grid(steps), s=s)
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
        offset = 0.5 - _grid(steps)
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
        abar = _column("alphas_cumprod", alphas_cumprod, lambda v: (v >= 0) & (v < 1), expected)
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
        log_snr = _column("log_snr", log_snr, lambda v: v < math.inf, expected)
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
        made: Self = getattr(cls, kind)(**arguments)
        return made.rescale_zero_terminal_snr() if rescaled else made

    @classmethod
    def _of_betas(cls, betas: npt.ArrayLike, kind: str, **parameters: float) -> Self:
        betas = _betas_of(betas)
        with np.errstate(divide="ignore"):  # beta = 1: log abar = -inf, and exp and expm1 are right there
            log_abar = np.cumsum(np.log1p(-betas))
        # 1 - abar would cancel for abar near 1
        alpha, sigma = np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))
        return cls(alpha, sigma, _kind=kind, _parameters=parameters, _betas=_frozen(betas))

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
        alpha, sigma = families.flow(_grid(steps)[1:], shift=shift)
        return cls(alpha, sigma, _kind="flow", _parameters={"shift": shift})

    @staticmethod
    def flow_shift(
        tokens: float,
        *,
        base_tokens: float = 256,
        max_tokens: float = 4096,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
    ) -> float:
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

    @classmethod
    def from_functions(
        cls,
        alpha: Callable[..., npt.ArrayLike],
        sigma: Callable[..., npt.ArrayLike],
        *,
        name: str,
        steps: int = 1000,
        times: tuple[float, float] = (0.0, 1.0),
        derivatives: tuple[Callable[..., npt.ArrayLike], Callable[..., npt.ArrayLike]] | None = None,
        **parameters: float,
    ) -> Self:
        """A schedule of your own in continuous time: alpha and sigma as functions of t.

        Columns, for integer t and samplers, are those at t = times[0] + (i + 1) / T (times[1] - times[0]).

        Args:
            alpha, sigma: functions alpha(t, **parameters), which take a float64 array of times and return an array of
                its shape. alpha lies in [0, 1] and sigma is at least 0. alpha / sigma falls strictly from times[0] to
                times[1]; it may be infinite or 0 at these ends alone.
            name: The schedule's name in prints and files. It is not the name of a family of noisefuse.
            steps: How many columns, T, at least 1.
            times: The cleanest and the noisiest time, finite. A float t lies between them.
            derivatives: Those of alpha and of sigma by t, two functions of the same kind, which the target and the
                prediction "velocity" need. They are finite, but perhaps at times[0].
            parameters: Numbers, which the functions get by name.

        Returns:
            A `Schedule`. It can be pickled, and written as JSON, if `register` knows its functions by this name.

        Raises:
            ValueError: A function breaks a rule. The message says at which t.
            TypeError: An argument of another type.

        >>> mine = nf.Schedule.from_functions(lambda t: 1 - t**2, lambda t: t, name="mine")
        >>> x_t = nf.q_sample(np.ones((2, 3), np.float32), [0.25, 0.75], mine, nf.Noise(7))
        >>> [float(column) for column in mine(0.5)]
        [0.75, 0.5]
        """
        known = _family_of(name, alpha, sigma, times, derivatives)
        numbers = {key: stored.number(key, value) for key, value in parameters.items()}
        families.checked(known, numbers)
        return cls._of_family(name, steps, known, **numbers)

    @staticmethod
    def register(
        name: str,
        alpha: Callable[..., npt.ArrayLike],
        sigma: Callable[..., npt.ArrayLike],
        *,
        times: tuple[float, float] = (0.0, 1.0),
        derivatives: tuple[Callable[..., npt.ArrayLike], Callable[..., npt.ArrayLike]] | None = None,
    ) -> None:
        """Registers functions under a name. Pickles and JSON of a schedule `from_functions` store this name.

        A process that reads such a schedule registers the same functions first: call this in a module that it imports.

        Args:
            name, alpha, sigma, times, derivatives: As in `from_functions`. A later call with the same name replaces the
                functions.

        Raises:
            TypeError, ValueError: As in `from_functions`, for the name, the times and the derivatives' type.

        >>> def alpha(t, power): return 1 - t**power
        >>> def sigma(t, power): return t
        >>> nf.Schedule.register("power", alpha, sigma)
        >>> schedule = nf.Schedule.from_functions(alpha, sigma, name="power", power=3.0)
        >>> nf.Schedule.from_json(schedule.to_json()) == schedule
        True
        """
        FAMILIES[name] = _family_of(name, alpha, sigma, times, derivatives)

    @classmethod
    def _of_family(cls, kind: str, steps: int, given: Family | None = None, **parameters: float) -> Self:
        known = given or FAMILIES[kind]
        t = known.first + _grid(steps)[1:] * (known.last - known.first)
        alpha, sigma = known.at(t, **parameters)
        return cls(alpha, sigma, _kind=kind, _parameters=parameters, _family=given)

    def time_at(self, log_snr: npt.ArrayLike) -> Array:
        """The time at which log(alpha^2 / sigma^2) has this value, by bisection.

        Args:
            log_snr: Numbers of any shape. Values beyond the ends give the ends.

        Returns:
            Float times of this schedule in float64, of the shape of log_snr.

        Raises:
            TypeError: The schedule has no continuous time.

        >>> round(float(nf.Schedule.flow().time_at(0.0)), 6)
        0.5
        """
        if self._family is None:
            raise TypeError(f"a {self.kind} schedule has no continuous time")
        values = np.asarray(log_snr, np.float64)
        if self._family.last == math.inf:  # alpha = 1 and the time is sigma
            return np.exp(-0.5 * values)
        return families.time_at(self._family, self._parameters, values)

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
        cls,
        steps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        P_mean: float = -1.2,
        P_std: float = 1.2,
    ) -> Self:
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

    # ---- what a schedule knows -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.alpha)

    @kept_property
    def snr(self) -> Array:
        """SNR_t = alpha_t^2 / sigma_t^2, (T,); 0 at the end if the last alpha is 0."""
        return _frozen((self.alpha / self.sigma) ** 2)

    @kept_property
    def betas(self) -> Array:
        """beta_t = 1 - alpha_t^2 / alpha_{t-1}^2, (T,); exactly the given ones, if betas were given.

        AttributeError: alpha^2 + sigma^2 is not 1 (to 1e-12). ``hasattr(schedule, "betas")`` tells.
        """
        if self._betas is not None:
            return self._betas
        self._need_variance_preserving("betas", AttributeError)
        return _frozen(self.step_coefficients()[1] ** 2)

    @kept_property
    def alphas_cumprod(self) -> Array:
        """abar_t = alpha_t^2, (T,); AttributeError if alpha^2 + sigma^2 is not 1 (to 1e-12)."""
        self._need_variance_preserving("alphas_cumprod", AttributeError)
        return _frozen(self.alpha**2)

    def step_coefficients(self) -> AlphaSigma:
        """Returns (a, s), each (T,) and read-only, of one Markov step x_t = a_t x_{t-1} + s_t z.

            a_t = alpha_t / alpha_{t-1},   s_t^2 = sigma_t^2 - a_t^2 sigma_{t-1}^2

        with alpha_{-1} = 1, sigma_{-1} = 0; exactly sqrt(1 - beta), sqrt(beta) if betas were given. The composed steps
        of every family give alpha and sigma again, to 1e-12 (relative).
        """
        return self._step_coefficients

    @kept_property
    def _step_coefficients(self) -> AlphaSigma:
        if self._betas is not None:
            return _frozen(np.sqrt(1 - self._betas)), _frozen(np.sqrt(self._betas))
        a = self.alpha / np.append(1.0, self.alpha[:-1])
        carried = a * np.append(0.0, self.sigma[:-1])
        # the difference of squares as a product, which cancels less; rounding alone could make it negative
        variance = np.maximum((self.sigma - carried) * (self.sigma + carried), 0.0)
        return _frozen(a), _frozen(np.sqrt(variance))

    def forward(
        self, target: Target | None = None, *, scale: float = 1.0, offset: float = 0.0, t: npt.ArrayLike | None = None
    ) -> Tableau:
        """Returns the forward process as a table: row t is x_t = alpha_t x0' + sigma_t z with x0' = scale x0 + offset.

        diffusers calls this add_noise; `q_sample` is ``update`` with this table, except for the noise's stream.

        Args:
            target: the networks' target, as in `q_sample`. It is the table's aux1.
            t: times (B,), integers or floats for ``schedule(t)``: the table then has a row for each time, not for each
                step.
        """
        if t is None:
            return of_rows(self.kept.of(forward, target, scale, offset), f"q_sample, {self.name}")
        times = np.ravel(t)
        made = forward(*self(times), target, scale, offset, lambda: self.derivatives(times))
        return of_rows(made, f"q_sample, {self.name}")

    def markov(self) -> Tableau:
        """The Markov steps as a table: row t is x_t = a_t x_(t-1) + s_t z, with a and s of ``step_coefficients``."""
        return of_rows(self.kept.markov, f"q_step, {self.name}")

    def rescale_zero_terminal_snr(self) -> Self:
        """Returns a schedule whose last step is pure noise: Lin et al. 2023 (algorithm 1).

            alpha'_t = alpha_0 (alpha_t - alpha_{T-1}) / (alpha_0 - alpha_{T-1}),  sigma' = sqrt(1 - alpha'^2)

        Returns:
            A `Schedule` of as many steps, or itself if the last alpha is 0 already.

        Raises:
            ValueError: alpha^2 + sigma^2 is not 1, or there is only one step.

        >>> nf.Schedule.linear(1000).rescale_zero_terminal_snr().alpha[-1].item()
        0.0
        """
        self._need_variance_preserving("rescale_zero_terminal_snr", ValueError)
        first, last = self.alpha[0], self.alpha[-1]
        if last == 0:
            return self
        if first == last:
            raise ValueError("rescale_zero_terminal_snr needs at least 2 steps: it keeps the first, got 1")
        alpha = first * ((self.alpha - last) / (first - last))
        sigma = np.sqrt((1 - alpha) * (1 + alpha))
        return type(self)(alpha, sigma, _kind=f"{self.kind}_zero_terminal_snr", _parameters=self._parameters)

    def with_name(self, name: str) -> Self:
        """Returns the same schedule with this name. The two are equal."""
        return self._rebuilt(name)(self.alpha, self.sigma)

    def _rebuilt(self, name: str) -> Callable[..., Self]:
        made = partial(type(self), name=name, _kind=self.kind, _parameters=self._parameters, _betas=self._betas)
        return partial(made, _family=self._family) if self._has_functions else made

    @property
    def _has_functions(self) -> bool:
        """Tells whether alpha and sigma are functions of a user's."""
        return self._family is not None and isinstance(self._family.at, Functions)

    def _need_registered(self) -> None:
        if self._has_functions and FAMILIES.get(self.kind) != self._family:
            raise TypeError(
                f"a schedule of functions is stored by its name, and {self.kind!r} does not name these: call "
                f"nf.Schedule.register({self.kind!r}, alpha, sigma) first, with the same times and derivatives"
            )

    @property
    def axis(self) -> Axis:
        """The schedule's noise level as one coordinate, made anew at each call."""
        return Axis(self, self._family)

    @property
    def times(self) -> tuple[float, float] | None:
        """The cleanest and the noisiest float time, (0, 1) for most; None if there are no float times."""
        return self._family and (self._family.first, self._family.last)

    @property
    def continuous(self) -> bool:
        """Tells whether ``schedule(t)`` takes a float t, the family's own time."""
        return self._family is not None

    def __call__(self, t: npt.ArrayLike) -> AlphaSigma:
        """(alpha, sigma) at t: two float64 arrays of t's shape.

        Args:
            t: integers are indices, 0 <= t < T. Floats are the family's own time: u in [0, 1] for cosine, s in [0, 1]
                for flow, any finite sigma >= 0 for karras, exponential and edm. So 1.0 is the noisiest time of cosine
                and flow, and the index 1 is nearly the cleanest.

        Raises:
            IndexError: an integer lies outside.
            ValueError: a float lies outside.
            TypeError: a float t for another family, or t neither integer nor float.
        """
        need_plain("t", t)
        t = np.asarray(t)
        if t.dtype.kind in "iu":
            if not lie_within(t, 0, len(self) - 1):
                _require((t >= 0) & (t < len(self)), "t", t, f"an index, 0 <= t < {len(self)}", IndexError)
            return np.asarray(self.alpha[t]), np.asarray(self.sigma[t])
        if t.dtype.kind != "f":
            raise TypeError(f"t must be integers (an index) or floats (a time), got dtype {t.dtype}")
        if self._family is None:
            raise TypeError(
                f"a {self.kind} schedule has no continuous time: t must be integers (an index), got {t.dtype}"
            )
        symbol, first, last, at, _ = self._family
        t = t.astype(np.float64)
        if not lie_within(t, first, min(last, sys.float_info.max)):
            upper = f"{last:g}]" if last < math.inf else "inf)"
            valid = (t >= first) & (t <= last) & np.isfinite(t)
            wanted = f"in [{first:g}, {upper}, the time {symbol} of the {self.kind} schedule (an index is an integer)"
            _require(valid, "t", t, wanted, ValueError)
        # Python's arithmetic gives one float the same bits, sooner.
        alpha, sigma = at(t if t.ndim else t.item(), **self._parameters)
        return np.asarray(alpha), np.asarray(sigma)

    def derivatives(self, t: npt.ArrayLike) -> AlphaSigma:
        """The derivatives of alpha and sigma by the schedule's own time, at t: those of the target "velocity".

        Args:
            t: as in ``schedule(t)``. An integer stands for the time at which the functions have its level.

        Returns:
            (d alpha / dt, d sigma / dt), two float64 arrays of t's shape.

        Raises:
            TypeError: the schedule is no function of time, or a schedule `from_functions` without ``derivatives=``.
            ValueError: a derivative is infinite: that of sigma at the time of clean data, for cosine and vp_linear.
            IndexError, ValueError, TypeError: as ``schedule(t)``.

        >>> d_alpha, d_sigma = nf.Schedule.flow(shift=3.0).derivatives(0.5)
        >>> float(d_alpha), float(d_sigma)
        (-0.75, 0.75)
        """
        known, levels, t = self._family, self(t), np.asarray(t)
        if known is None or known.slopes is None:
            missing = "is no function of time" if known is None else "needs from_functions(.., derivatives=)"
            raise TypeError(
                f'the velocity needs derivatives by time: a {self.kind} schedule {missing}. "epsilon", "v", "sample" '
                'and "flow" (z - x0) need none'
            )
        own = t.astype(np.float64) if t.dtype.kind == "f" else self.time_at(families.log_snr(*levels))
        d_alpha, d_sigma = families.with_slopes(known, self._parameters, own if own.ndim else own.item())[2:]
        return np.asarray(d_alpha), np.asarray(d_sigma)

    def model_time(self, t: Any, kind: ModelTime | None = None, prediction: Prediction | None = None) -> Any:
        """Returns the time that a network is given at t: the numbers that samplers of this ``model_time`` give it.

        Args:
            t: as in `q_sample`, integers or floats of any shape: a number, an array, a tensor, or an array of JAX's.
            kind: "index", "sigma", "schedule" or a function, as the samplers' ``model_time``. An own time t has the
                index (t - first) / (last - first) T - 1. None: sigma where alpha = 1 or alpha + sigma = 1, else the
                index.
            prediction: as that of samplers. One with a time of its own, such as "edm", takes no kind.

        Returns:
            Times of t's shape, kind and device. Indices of indices are t itself, all others float64, which tensors and
            JAX's arrays round to float32 unless t is float64.

        Raises:
            ValueError: an index would lie below 0, or as for ``schedule(t)``; a kind for such a prediction.
            TypeError: the schedule has no time of its own, for "schedule"; or as for ``schedule(t)``.

        >>> flow = nf.Schedule.flow(1000, shift=3.0)
        >>> flow.model_time(0.5), flow.model_time(0.5, "schedule"), flow.model_time(0.5, "index")
        (0.75, 0.5, 499.0)
        """
        need_plain("t", t)
        library = library_for(t)
        given = np.asarray(library.to_numpy(t))
        levels = self(given)
        own, is_index = view(prediction or "epsilon", self), given.dtype.kind in "iu"
        if own.time is not own_time:
            if kind is not None:
                raise ValueError(f'kind: expected none, as a prediction of "{own.name}" has a time of its own')
            alpha, sigma = (column.ravel().tolist() for column in levels)
            made = np.array([own.time(a, s, math.nan) for a, s in zip(alpha, sigma, strict=True)]).reshape(given.shape)
        elif is_index and self.axis.kind(kind) == "index":
            made = given
        else:
            axis = self.axis
            numbers = given.astype(np.float64)
            made = axis.times(Place(*levels, at=numbers) if is_index else Place(*levels, own=numbers), kind)
            if axis.kind(kind) == "index" and np.any(made < 0):
                raise ValueError(f"t = {given[made < 0][0]:g}: expected a time from the first index on")
        if library is NUMPY:
            return made if made.ndim else made.item()
        if made is given:
            return t
        return library.moved(made.astype(np.float64 if given.dtype == np.float64 else np.float32), t)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plots alpha, sigma (left axis) and log-SNR (right axis) against the index t; returns the left axis.

        If alpha is 1 (variance exploding), it plots sigma alone, on a logarithmic axis.

        Args:
            ax: matplotlib Axes to draw on; None: a new figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot_levels(ax, self.alpha, self.sigma, "t", f"{self.name}, {len(self)} steps")

    # ---- text ----------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Returns plain JSON. ``from_json`` restores every bit of alpha, sigma and betas.

        >>> schedule = nf.Schedule.cosine(1000)
        >>> nf.Schedule.from_json(schedule.to_json()) == schedule
        True
        """
        import json

        self._need_registered()
        columns = {"alpha": self.alpha, "sigma": self.sigma, "betas": self._betas}
        fields: dict[str, Any] = {
            "noisefuse schedule": 1,
            "name": self.name,
            "kind": self.kind,
            "parameters": {**self._parameters},
        }
        if self._has_functions:
            fields["functions"] = True
        return json.dumps(fields | {key: None if c is None else c.tolist() for key, c in columns.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the JSON of ``to_json``.

        Args:
            text: JSON.

        Returns:
            A `Schedule` equal to the original, with its name.

        Raises:
            ValueError: the text is not a schedule, or one of another version; or its name is registered for other
                functions than those that were stored.

        >>> schedule = nf.Schedule.karras(10).with_name("mine")
        >>> nf.Schedule.from_json(schedule.to_json()).name
        'mine'
        """
        return stored.read("schedule", text, cls._of_stored)

    @classmethod
    def _of_stored(cls, fields: dict[str, Any]) -> Self:
        kind, parameters, betas = (fields.pop(key) for key in ("kind", "parameters", "betas"))
        if not isinstance(kind, str) or not isinstance(parameters, dict):
            raise TypeError(f"kind and parameters: expected a str and a dict, got {kind!r:.60} and {parameters!r:.60}")
        if fields.pop("functions", False):
            _need_family(kind)
        parameters = {name: stored.number(name, value) for name, value in parameters.items()}
        for name in {"alpha", "sigma"} & {*fields}:
            fields[name] = stored.numbers(name, fields[name])
        given = None if betas is None else _frozen(_betas_of(stored.numbers("betas", betas)))
        made = cls(**fields, _kind=kind, _parameters=parameters, _betas=given)
        if made.continuous:
            with np.errstate(all="ignore"):
                level = made(0.5)  # TypeError: a parameter of its family is missing
            if not np.all(np.isfinite(level)):
                raise ValueError(f"parameters: expected those of a {kind} schedule, got {parameters}")
        if made._has_functions:
            _need_same_functions(made)
        return made

    # ---- a value -------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value}" for name, value in self._parameters.items())
        alpha, sigma = (f"{column[0]:.4g} .. {column[-1]:.4g}" for column in (self.alpha, self.sigma))
        kind = self.kind if self.name == self.kind else f"{self.name}: {self.kind}"
        times = ""
        if self._family is not None:
            symbol, first, last, *_ = self._family
            ends = f" from {first}, the cleanest, to {last}, the noisiest" if last < math.inf else ""
            times = f"\n  a float t is {symbol}{ends}; an integer t is a step from 0 to {len(self) - 1}"
        return (
            f"Schedule({kind}, steps={len(self)}{parameters})\n"
            f"  alpha {alpha}, sigma {sigma}, terminal SNR {self.snr[-1]:.4g}{times}"
        )

    def _repr_html_(self) -> str:
        """The repr with a plot, for notebooks."""
        title, *lines = repr(self).splitlines()
        return notebook.table(title, [[line.strip()] for line in lines], notebook.levels(self.alpha, self.sigma, "t"))

    @kept_property
    def _key(self) -> tuple[object, ...]:
        betas = b"" if self._betas is None else self._betas.tobytes()
        functions = (self._family,) if self._has_functions else ()
        return self.kind, *self._parameters.items(), self.alpha.tobytes(), self.sigma.tobytes(), betas, *functions

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Equal schedules give layers of dask's graphs equal names."""
        return "noisefuse.Schedule", *self._key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._has_functions:
            self._need_registered()
            return _of_registered, (type(self), self.name, self.kind, self._parameters, self.alpha, self.sigma)
        return self._rebuilt(self.name), (self.alpha, self.sigma)  # unpickled arrays would be writable

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Schedule is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Schedule is immutable: cannot delete {name!r}")

    def _need_variance_preserving(self, what: str, error: type[Exception]) -> None:
        variance = self.alpha**2 + self.sigma**2
        off = np.flatnonzero(np.abs(variance - 1) > 1e-12)
        if off.size:
            t = int(off[0])
            raise error(
                f"{what} needs a variance-preserving schedule, alpha^2 + sigma^2 = 1; "
                f"in this one ({self.kind}) it is {variance[t]} at index {t}"
            )


# ---- helpers -----------------------------------------------------------------------------------------------


def _family_of(name: str, alpha: Any, sigma: Any, times: Any, derivatives: Any) -> Family:
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected a str, got {name!r:.60}")
    if name in families.OURS or hasattr(Schedule, name):
        raise ValueError(f"name = {name!r}: expected one that noisefuse does not have itself")
    for what, function in (("alpha", alpha), ("sigma", sigma)):
        if not callable(function):
            raise TypeError(f"{what}: expected a function of t, got {type(function).__name__}")
    pair = derivatives if isinstance(derivatives, tuple | list) else ()
    if derivatives is not None and not (len(pair) == 2 and all(map(callable, pair))):
        raise TypeError(f"derivatives: expected a pair of functions of t, got {derivatives!r:.60}")
    ends = np.asarray(times, np.float64)
    if ends.shape != (2,) or not np.isfinite(ends).all() or not ends[0] < ends[1]:
        raise ValueError(f"times = {times!r}: expected (first, last), finite and rising")
    return Family("t", float(ends[0]), float(ends[1]), Functions(alpha, sigma), Slopes(*pair) if pair else None)


def _need_family(kind: str) -> None:
    if kind not in FAMILIES:
        raise ValueError(
            f"{kind!r} names functions that are not known here: call nf.Schedule.register({kind!r}, alpha, sigma) first"
        )


def _of_registered(
    cls: type[Schedule], name: str, kind: str, parameters: dict[str, float], alpha: Array, sigma: Array
) -> Schedule:
    _need_family(kind)
    made = cls(alpha, sigma, name=name, _kind=kind, _parameters=parameters)
    _need_same_functions(made)
    return made


def _need_same_functions(made: Schedule) -> None:
    """Raises ValueError if the registered functions are not those of the stored columns."""
    functions = Schedule._of_family(made.kind, len(made), None, **made._parameters)
    for name in ("alpha", "sigma"):
        stored_one, found = getattr(made, name), getattr(functions, name)
        if (far := ~np.isclose(found, stored_one, rtol=1e-6, atol=1e-12)).any():  # machines round differently
            t = int(np.argmax(far))
            raise ValueError(
                f"{made.kind!r} is registered for other functions here than those that were stored: {name} is "
                f"{found[t]} at index {t}, expected {stored_one[t]}"
            )


def need_schedule(schedule: object) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a noisefuse.Schedule, got {type(schedule).__name__}")


# ---- checks ------------------------------------------------------------------------------------------------


def _require(
    valid: Any, name: str, values: npt.NDArray[Any], expected: str, error: type[Exception] = ValueError
) -> None:
    """Raises an error that names the first of values that is not valid."""
    if not np.all(valid):
        raise error(f"{name} must be {expected}; got {first_of(name, ~np.asarray(valid), values)}")


def _column(name: str, values: npt.ArrayLike, valid: Callable[[Array], Any], expected: str) -> Array:
    need_plain(name, values)
    column = np.asarray(values)
    if column.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got dtype {column.dtype}")
    if column.ndim != 1 or not column.size:
        raise ValueError(f"{name} must be one-dimensional with at least one step, got shape {column.shape}")
    column = column.astype(np.float64)
    _require(valid(column), name, column, expected)
    return column


def _betas_of(values: npt.ArrayLike) -> Array:
    return _column("betas", values, lambda v: (v > 0) & (v <= 1), "in (0, 1]")


def _frozen(column: Array) -> Array:
    column = column + 0.0  # a copy, which turns -0.0 into 0.0, for equality
    column.flags.writeable = False
    return column


def _positive(**values: float) -> None:
    for name, value in values.items():
        check_number(name, value, above=0)


def _grid(steps: int) -> Array:
    """Returns 0, 1/T, .., 1."""
    return np.arange(check_integer("steps", steps, 1) + 1) / steps
