# SPDX-License-Identifier: Apache-2.0
"""k-diffusion's sampling functions, run by rows, with the same names, arguments, defaults and callbacks.

    from noisefuse.interop.k_diffusion import sample_dpmpp_2m  # k_diffusion.sampling.sample_dpmpp_2m

The functions are those of k_diffusion/sampling.py (Crowson 2022) and of ComfyUI's comfy/k_diffusion/sampling.py, its
whole menu (`MENU`). Neither library is needed. docs/k_diffusion.md says what differs.

The model has their interface, ``model(x, sigma, **extra_args)``, sigma (B,), and returns the clean sample, x = x0 +
sigma z. Each step is one pass, and returns a new tensor x.

By default the noise is theirs: ``torch.randn_like``, from torch's generator, so a seed gives the same picture as there;
or, as in ComfyUI, from a generator of ``extra_args["seed"]``. ``noise=``, a `Noise` or a list of them, one for each
sample of the batch, is drawn within the step: by row i, the i-th model call, from stream 3 at step ``noise.step + i``,
as in `Sampler.step`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

import noisefuse as nf

from ..ground.docstrings import Shared, documented
from ..ground.needs import needs
from ..language.noise import SAMPLER, at_row, each, names_of
from ..language.tableau import Tableau

with needs(__name__, "torch"):
    import torch

    from . import dpm_adaptive

__all__ = [
    "MENU",
    "Entry",
    "brownian_noise_sampler",
    "noise_sampler",
    "sample_ddim",
    "sample_ddpm",
    "sample_deis",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_cfg_pp",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2m_sde_gpu",
    "sample_dpmpp_2m_sde_heun",
    "sample_dpmpp_2m_sde_heun_gpu",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_2s_ancestral_cfg_pp",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_3m_sde_gpu",
    "sample_dpmpp_sde",
    "sample_dpmpp_sde_gpu",
    "sample_er_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_euler_ancestral_cfg_pp",
    "sample_euler_cfg_pp",
    "sample_exp_heun_2_x0",
    "sample_exp_heun_2_x0_sde",
    "sample_gradient_estimation",
    "sample_gradient_estimation_cfg_pp",
    "sample_heun",
    "sample_heunpp2",
    "sample_ipndm",
    "sample_ipndm_v",
    "sample_lcm",
    "sample_lms",
    "sample_res_multistep",
    "sample_res_multistep_ancestral",
    "sample_res_multistep_ancestral_cfg_pp",
    "sample_res_multistep_cfg_pp",
    "sample_sa_solver",
    "sample_sa_solver_pece",
    "sample_seeds_2",
    "sample_seeds_3",
]

Noises: TypeAlias = "nf.Noise | Sequence[nf.Noise]"
Model: TypeAlias = Callable[..., torch.Tensor]
NoiseSampler: TypeAlias = Callable[[Any, Any], torch.Tensor]
Callback: TypeAlias = "Callable[[dict[str, Any]], object] | None"
ExtraArgs: TypeAlias = "dict[str, Any] | None"

_EXPLODING = nf.Schedule.karras(2)  # alpha = 1, all that a list of noise levels needs
_FLOW = nf.Schedule.flow(2)  # alpha = 1 - sigma, likewise


# ---- noise -------------------------------------------------------------------------------------------------


def noise_sampler(x: torch.Tensor, noise: Noises) -> NoiseSampler:
    """Returns a noise sampler f(sigma, sigma_next) -> z like x, for k-diffusion's functions and others with their
    interface.

    Call k draws ``randn_like(x, noise.at(step=noise.step + k, stream=3))``. The functions here draw the same in row k,
    so both ways give one picture if each step is one call of the model. It does not read the noise levels: functions
    that need increments of one Brownian motion (their `sample_dpmpp_sde`) take `brownian_noise_sampler`.

    Args:
        x: a tensor with the shape, dtype and device of z; axis 0 is the batch.
        noise: a Noise, or a list with one for each sample.

    Returns:
        f(sigma, sigma_next) -> z, a new tensor.

    Raises:
        TypeError: noise is no noise. The first call raises it.

    >>> import torch
    >>> from noisefuse.interop import k_diffusion
    >>> draw = k_diffusion.noise_sampler(torch.zeros(2, 3), [nf.Noise(11), nf.Noise(12)])
    >>> draw(14.6, 9.7).shape
    torch.Size([2, 3])
    """
    calls = iter(range(1 << 32))

    def draw(sigma: Any, sigma_next: Any) -> torch.Tensor:
        return nf.randn_like(x, at_row(noise, next(calls), SAMPLER))

    return draw


def brownian_noise_sampler(
    x: torch.Tensor,
    sigma_min: float,
    sigma_max: float,
    noise: Noises,
    *,
    transform: Callable[[float], float] = float,
) -> NoiseSampler:
    """Returns f(sigma, sigma_next) -> z like x, of one Brownian motion, in place of k-diffusion's
    BrownianTreeNoiseSampler.

    z is its increment from one noise level to the other, over the root of the time between them (`Noise.interval`).
    Runs of more or fewer steps see the same path, and nothing is stored. Calls may come in any order.

    Args:
        x: a tensor with the shape, dtype and device of z; axis 0 is the batch.
        sigma_min, sigma_max: the range of all noise levels.
        noise: a Noise, or a list with one for each sample, of a step below 128.
        transform: sigma -> time, monotonic. By default time is sigma itself, as in k-diffusion.

    Returns:
        f(sigma, sigma_next) -> z, a new tensor.

    Raises:
        ValueError: noise levels lie outside the span (rounding to float32 may do that), or within 2^-24 of it.
        TypeError: noise is no noise. Other errors are those of `Noise.interval`.

    >>> import torch
    >>> from noisefuse.interop import k_diffusion
    >>> draw = k_diffusion.brownian_noise_sampler(torch.zeros(2, 3), 0.03, 14.6, nf.Noise(11))
    >>> first, second, whole = draw(14.6, 9.0), draw(9.0, 5.0), draw(14.6, 5.0)
    >>> torch.allclose(5.6**0.5 * first + 4.0**0.5 * second, 9.6**0.5 * whole, atol=1e-4)
    True
    """
    least, most = sorted((float(sigma_min), float(sigma_max)))
    low, high = sorted((transform(least), transform(most)))

    def time(sigma: Any) -> float:
        level = float(sigma)
        within = min(max(level, least), most)
        # a float32 noise level may lie beyond an end by its rounding
        return transform(within if math.isclose(level, within, rel_tol=2**-23) else level)

    def draw(sigma: Any, sigma_next: Any) -> torch.Tensor:
        t0, t1 = time(sigma), time(sigma_next)
        names_of(noise)  # it raises the error
        return nf.randn_like(x, each(noise, lambda name: name.interval(t0, t1, span=(low, high))))

    return draw


def _brownian(call: _Call, noise: Noises | None, given: NoiseSampler | None) -> Noises | None:
    """Returns noise for samplers with a Brownian tree: from the seed in extra_args, else from a word of torch's
    generator."""
    if noise is None and given is None:
        seed = _seed(call)
        return nf.Noise(int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed)
    return noise


def _seed(call: _Call) -> int | None:
    """Returns the seed in extra_args, as ComfyUI passes it. For k-diffusion's own functions it is only the model's
    option."""
    seed = (call.extra_args or {}).get("seed")
    return None if seed is None else int(seed)


def _by_torch(x: torch.Tensor, seed: int | None) -> NoiseSampler:
    """Draws from torch's generator; with a seed from a new one, like ComfyUI's default_noise_sampler: seed + 1 on
    CPUs."""
    if seed is None:
        return lambda sigma, sigma_next: torch.randn_like(x)
    generator = torch.Generator(x.device).manual_seed(seed + (x.device.type == "cpu"))
    like: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "generator": generator}
    return lambda sigma, sigma_next: torch.randn(x.shape, **like)


# ---- a list of noise levels, as rows -----------------------------------------------------------------------


class _Run(NamedTuple):
    """A sampler and the parts that k-diffusion's loop over steps needs."""

    sampler: nf.Sampler
    steps: tuple[range, ...]  # the rows of each step
    times: list[float]  # the model's t in each row
    draws: list[bool]
    levels: tuple[float, ...]
    kick: float = 0.0  # the standard deviation of the noise before the first row


@lru_cache(maxsize=64)
def _run(
    make: Callable[..., Any], levels: tuple[float, ...], s_noise: Any = 1.0, flow: bool = False, **options: Any
) -> _Run:
    """Returns the rows of a list of noise levels, from a function of ``nf.samplers``, or ``_churned``."""
    if make is _churned:
        table, kick = _churned(levels, s_noise, **options)
    else:
        table, kick = _with_noise(_of(make, levels, flow, **options), s_noise), 0.0
    n = len(levels) - 1
    # of several calls, all but the last one keep something
    ends = range(n) if len(table) == n else np.flatnonzero(table.push == 0).tolist()
    if options.get("use_pece") and len(table) != n:  # a step's first call is at what the last one predicted
        ends = range(0, len(table), 2)  # where the last step does not go to 0, the row that corrects it is left out
    steps = tuple(range(first, last + 1) for first, last in zip([0, *(end + 1 for end in ends)], ends, strict=False))
    return _Run(nf.Sampler(table), steps, table.timesteps.tolist(), table.as_rows.draws.tolist(), levels, kick)


def _of(make: Callable[..., nf.Sampler], levels: Sequence[float], flow: bool = False, **options: Any) -> Tableau:
    """Returns the rows for the model's own x, of samplers of x / alpha, too."""
    steps: dict[str, Any] = {"levels": levels[:-1], "final_level": levels[-1], "prediction": "sample"}
    table = make(_FLOW if flow else _EXPLODING, **steps, **options).tableau
    if np.all(table.scale == 1):
        return table
    rows = table.rows.copy()
    for group in ("clean", "out", "aux1", "aux2"):
        rows[group]["x"] /= table.scale
    for symbol in rows.dtype["out"].names or ():
        rows["out"][symbol] *= [*table.scale[1:], 1 - levels[-1]]
    return Tableau(rows, table.timesteps, table.name, push=table.push, alpha=table.alpha, sigma=table.sigma)


def _with_noise(table: Tableau, factor: float | tuple[float, float]) -> Tableau:
    """Returns the table with fresh noise times a factor, or times one that goes from the first row to the last."""
    if factor == 1:
        return table
    rows = table.rows.copy()
    for name in ("out", "aux1", "aux2"):
        rows[name]["z"] *= np.linspace(*factor, len(table)) if isinstance(factor, tuple) else factor
    return Tableau(rows, table.timesteps, table.name, push=table.push, alpha=table.alpha, sigma=table.sigma)


def _churned(
    levels: tuple[float, ...],
    s_noise: float,
    method: Callable[..., nf.Sampler],
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
) -> tuple[Tableau, float]:
    """Karras et al. 2022, algorithm 2, with any method that remembers no step; and the noise before the first row.

        gamma = min(s_churn / n, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0,    sigma^ = sigma + gamma sigma
        x^ = x + s_noise sqrt(sigma^^2 - sigma^2) z                    before the model is called

    The row before a model call adds the call's noise.
    """
    n, most = len(levels) - 1, math.sqrt(2) - 1
    raised = [level * (1 + min(s_churn / n, most) * (s_tmin <= level <= s_tmax)) for level in levels[:-1]]
    added = [s_noise * math.sqrt(up**2 - level**2) for up, level in zip(raised, levels, strict=False)]
    ahead: int = 1
    own: dict[str, Any] = {}
    if method is nf.samplers.heunpp2:  # its steps look two levels further, and weigh them by the whole run's first one
        ahead, own = 3, {"sigma_0": levels[0]}
    tables = [_of(method, (up, *levels[i : i + ahead]), **own) for i, up in enumerate(raised, 1)]
    calls = [int(np.argmin(table.push)) + 1 for table in tables]  # of the first step: its last row keeps nothing
    rows = np.concatenate([table.rows[:n] for table, n in zip(tables, calls, strict=True)])
    rows["out"]["z"][np.cumsum(calls)[:-1] - 1] = added[1:]
    times, push = (
        np.concatenate([getattr(table, name)[:n] for table, n in zip(tables, calls, strict=True)])
        for name in ("timesteps", "push")
    )
    return Tableau(rows, times, tables[0].name, push=push), added[0]


# ---- the loop ----------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """The arguments of all functions."""

    model: Model
    x: torch.Tensor
    sigmas: torch.Tensor
    extra_args: ExtraArgs
    callback: Callback
    disable: bool | None


def _sample(
    call: _Call,
    noise: Noises | None,
    given: NoiseSampler | None,
    make: Callable[..., Any],
    s_noise: float | tuple[float, float] = 1.0,
    *,
    clip: float = 0.0,
    flow: bool = False,
    below_one: bool = False,
    guided: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Runs k-diffusion's loop. noise: drawn within the rows; else ``given`` draws for each row that needs it, or
    torch. guided: the rows read the unconditional clean sample, too. clip: bounds noise, in its deviations."""
    if noise is not None and given is not None:
        raise TypeError("noise, noise_sampler: give one of them")
    x, sigmas = call.x, call.sigmas
    if noise is not None:
        names_of(noise)  # it raises the error: a row would take an array, too, and the next row the same one
    for name, tensor in (("x", x), ("sigmas", sigmas)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if sigmas.ndim != 1 or not x.ndim:
        shapes = f"{tuple(sigmas.shape)} and {tuple(x.shape)}"
        raise ValueError(f"sigmas, x: expected levels along one axis, and a batch, got shapes {shapes}")
    if len(sigmas) < 2:
        return x
    if flow and below_one and sigmas[0] >= 1:  # where a flow has a signal
        call = call._replace(sigmas=torch.cat([sigmas.new_tensor([1 - 1e-4]), sigmas[1:]]))
    # a tensor would be a new key each time
    numbers = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    run = _run(
        make, tuple(call.sigmas.tolist()), s_noise if isinstance(s_noise, tuple) else float(s_noise), flow, **numbers
    )
    if given is None:  # the seed is for default draws; otherwise, as in churn, it is the model's alone
        seeded = noise is None and make is not _churned and any(run.draws)
        given = _by_torch(x, _seed(call) if seeded else None)
    if clip:
        given = _clipped(given if noise is None else noise_sampler(x, noise), clip)
        noise = None
    with torch.no_grad():
        if run.kick:  # it has the key of a row that does not exist
            first = torch.randn_like(x) if noise is None else nf.randn_like(x, at_row(noise, len(run.times), SAMPLER))
            x = x + run.kick * first
        return _loop(call, run, x, noise, given, guided)


def _clipped(draw: NoiseSampler, deviations: float) -> NoiseSampler:
    def clipped(sigma: Any, sigma_next: Any) -> torch.Tensor:
        z = draw(sigma, sigma_next)
        most = deviations * z.std()
        return z.clamp(-most, most)

    return clipped


def _loop(
    call: _Call, run: _Run, x: torch.Tensor, noise: Noises | None, given: NoiseSampler, guided: bool
) -> torch.Tensor:
    sampler, sigmas, extra = run.sampler, call.sigmas, call.extra_args or {}
    seen: list[torch.Tensor] = []
    extra = _overheard(extra, seen) if guided else extra
    n, batch = len(run.times), x.shape[0]
    times = x.new_tensor(run.times).repeat_interleave(batch).view(n, batch).unbind()
    state = sampler.state(x)
    source: Any = noise
    for step, rows in enumerate(_bar(run.steps, call.disable)):
        for i in rows:
            denoised = call.model(x, times[i], **extra)
            if not isinstance(denoised, torch.Tensor):
                raise TypeError(f"model: expected the clean sample, a tensor, got {type(denoised).__name__}")
            if call.callback is not None and i == rows.start:
                sigma = sigmas[step]
                raised = sigma if run.times[i] == run.levels[step] else sigmas.new_tensor(run.times[i])
                call.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": raised, "denoised": denoised})
            if noise is None and run.draws[i]:
                source = given(*_between(run, sigmas, step, i))
                source = source.to(x.dtype) if isinstance(source, torch.Tensor) else source
            if not guided:
                x = sampler.step(i, x, denoised, source, state)
                continue
            if not seen:
                raise TypeError(_SILENT.format(name=f"sample_{sampler.tableau.name}"))
            x = sampler.step(i, x, (seen.pop(), denoised), source, state, guidance_scale=1.0)
    return x


_SILENT = (
    '{name}: expected a model that calls the functions in model_options["sampler_post_cfg_function"], as ComfyUI\'s '
    'do, with {{"denoised", "uncond_denoised"}}: it called none'
)


def _overheard(extra: dict[str, Any], seen: list[torch.Tensor]) -> dict[str, Any]:
    """Returns the model's arguments with one more function that ComfyUI's models call after guidance. It keeps the
    unconditional clean sample of the last call."""

    def keep(found: dict[str, Any]) -> Any:
        seen[:] = [found["uncond_denoised"]]
        return found["denoised"]

    options = extra.get("model_options") or {}
    others = options.get("sampler_post_cfg_function", [])
    own = {"sampler_post_cfg_function": [*others, keep], "disable_cfg1_optimization": True}
    return {**extra, "model_options": {**options, **own}}


def _between(run: _Run, sigmas: torch.Tensor, step: int, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the noise levels for row i's draw: the step's ends, or one piece's ends where several rows of it draw."""
    rows = run.steps[step]
    earlier, later = any(run.draws[rows.start : i]), any(run.draws[i + 1 : rows.stop])
    start = sigmas.new_tensor(run.times[i]) if earlier else sigmas[step]
    return start, sigmas.new_tensor(run.times[i + 1]) if later else sigmas[step + 1]


def _bar(steps: tuple[range, ...], disable: bool | None) -> Iterable[range]:
    """Adds tqdm's bar if tqdm is installed."""
    if disable:
        return steps
    try:
        bar: Iterable[range] = importlib.import_module("tqdm.auto").tqdm(steps, disable=disable)
    except ImportError:
        return steps
    return bar


# ---- the functions -----------------------------------------------------------------------------------------

_CHURN = "    s_churn, s_tmin, s_tmax: how much noise is added in all steps together, and between which levels."
_STAGES = "    r_1, r_2: where the second and the third call are, in log sigma: 0 < r_1 < r_2 <= 1."
_ORDERS = "    predictor_order, corrector_order: 1 to 3, and 0 (none) to 4."
_ENDS = "    sigma_min, sigma_max: where the run ends and begins, above 0."
_SHARED = Shared(
    args={
        "model": "    model: model(x, sigma, **extra_args) -> the clean sample; sigma (B,), of x's dtype.",
        "x": "    x: at the first level, x0 + sigma z; axis 0 is the batch. Not changed.",
        "sigmas": "    sigmas: (n + 1,), the levels of the n steps and where the last one goes, usually 0.",
        "extra_args": "    extra_args: what the model gets beside x and sigma, by name.",
        "callback": """\
    callback: gets {"x", "i", "sigma", "sigma_hat", "denoised"} once a step, before it is made.""",
        "disable": "    disable: no bar; None: a bar on terminals. It needs tqdm, and is left out without.",
        "order": "    order: at most so many slopes make a step, 1 to 4.",
        "s_churn": _CHURN,
        "s_tmin": _CHURN,
        "s_tmax": _CHURN,
        "max_order": "    max_order: at most so many slopes make a step, 1 to 4.",
        "deis_mode": '    deis_mode: "tab"; ComfyUI\'s "rhoab" is refused.',
        "ge_gamma": "    ge_gamma: finite; 1 is Euler's method.",
        "r": "    r: where the second call is, in log sigma: 0 < r < 1.",
        "r_1": _STAGES,
        "r_2": _STAGES,
        "solver_type": """\
    solver_type: the sampler's solver: "midpoint" or "heun"; in `sample_seeds_2` and its kin "phi_1" or "phi_2".""",
        "max_stage": "    max_stage: of how many answers a step is made, 1 to 3.",
        "noise_scaler": "    noise_scaler: from sigma / alpha, a tensor, to the sampler's phi. None: its own.",
        "tau_func": "    tau_func: sigma' -> tau, at least 0: 0 follows the ODE. None: 1 everywhere.",
        "predictor_order": _ORDERS,
        "corrector_order": _ORDERS,
        "use_pece": "    use_pece: call the model at corrected samples, too.",
        "simple_order_2": "    simple_order_2: as in `samplers.sa_solver`.",
        "n": "    n: how often the model is called, at least 1.",
        "sigma_min": _ENDS,
        "sigma_max": _ENDS,
        "eta": "    eta: of how much of the noise is drawn anew, at least 0.",
        "s_noise": "    s_noise: a factor of what is drawn.",
        "s_noise_end": "    s_noise_end: the factor in the last step; between, it changes evenly. None: s_noise.",
        "noise_clip_std": """\
    noise_clip_std: noise is bounded to so many of its standard deviations over the batch. 0: not at all.""",
        "noise_sampler": """\
    noise_sampler: f(sigma, sigma_next) -> noise like x, called once for each row that draws. None: torch's generator,
        or one of ``extra_args["seed"]``, where there is one.""",
        "noise": """\
    noise: a Noise, or a list with one for each sample of the batch, drawn within the rows (arrays are what a
        noise_sampler gives). None: drawn from torch, as theirs.""",
        "flow": """\
    flow: whether x is that of a flow, (1 - sigma) x0 + sigma z, which ComfyUI's functions see by their model. Where
        its function needs a signal, a first level of 1 becomes 0.9999.""",
    },
    returns="    x at the last level, of x's dtype.",
    raises="""\
    ValueError: levels that no step goes to, such as a 0 before the last, or that rise where noise is drawn; more noise
        than there is; a tensor of another shape; an argument outside of what it takes.
    TypeError: a noise that is none, or beside a noise_sampler; sigmas that are no tensor; a tensor of another dtype
        than x that does not go with it.""",
)
_BROWNIAN = Shared(
    args={
        **_SHARED.args,
        "noise_sampler": """\
    noise_sampler: f(sigma, sigma_next) -> noise like x, called once for each row that draws. None: a noise that
        ``extra_args["seed"]`` names, or a word of torch's generator.""",
    },
    returns=_SHARED.returns,
    raises=_SHARED.raises,
)
_GUIDED_EXAMPLE = """\
>>> import torch
>>> from noisefuse.interop.k_diffusion import {name}
>>> def model(x, sigma, model_options):
...     clean = x / (1 + sigma[:, None] ** 2)
...     for told in model_options["sampler_post_cfg_function"]:
...         clean = told({{"denoised": clean, "uncond_denoised": 0.9 * clean}})
...     return clean
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> {name}(model, x, sigmas, disable=True).shape
torch.Size([2, 3])"""
_EXAMPLE = """\
>>> import torch
>>> from noisefuse.interop.k_diffusion import {name}
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> {name}(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, sigmas, disable=True).shape
torch.Size([2, 3])"""


class _Function(Protocol):
    """The functions' type for type checkers: it has every parameter of every function."""

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: ExtraArgs = None,
        callback: Callback = None,
        disable: bool | None = None,
        *own: Any,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        eta: float = 1.0,
        s_noise: float = 1.0,
        s_noise_end: float | None = None,
        noise_clip_std: float = 0.0,
        noise_sampler: NoiseSampler | None = None,
        noise_scaler: Callable[[torch.Tensor], torch.Tensor] | None = None,
        r: float = 0.5,
        r_1: float = 1 / 3,
        r_2: float = 2 / 3,
        solver_type: Literal["midpoint", "heun", "phi_1", "phi_2"] = "midpoint",
        order: int = 4,
        max_order: int = 4,
        max_stage: int = 3,
        deis_mode: Literal["tab"] = "tab",
        ge_gamma: float = 2.0,
        tau_func: Callable[[float], float] | None = None,
        predictor_order: int = 3,
        corrector_order: int = 4,
        use_pece: bool = False,
        simple_order_2: bool = False,
        noise: Noises | None = None,
        flow: bool = False,
    ) -> torch.Tensor: ...


_PARAMETERS = inspect.signature(_Function.__call__).parameters
_OPTIONS = {"max_order": "order", "ge_gamma": "gamma", "solver_type": "solver"}  # a rule's names, if they differ
_SOLVERS = {"midpoint": "midpoint", "heun": "heun", "phi_1": "midpoint", "phi_2": "heun"}


class Entry(NamedTuple):
    """An entry of ComfyUI's menu of samplers: our function for its name, or the reason why there is none.

    Attributes:
        sampler: the name of the sampler in `nf.samplers` by which it runs; "" where there is none.
        flow: what happens to flow models: "same" (the steps of x0 + sigma z are right for flows), "own" (formulas for
            flows, with ``flow=True``), or "level" (as in ComfyUI, the noise that is drawn, or the guidance, is of
            x0 + sigma z, so that x leaves the flow's levels).
        below_one: whether a flow begins below sigma = 1.
        note: how it differs, or why there is none.

    >>> from noisefuse.interop.k_diffusion import MENU
    >>> MENU["exp_heun_2_x0"]
    Entry(sampler='seeds_2', flow='own', below_one=True, note='`r=1`, `eta=0`')
    """

    sampler: str
    flow: Literal["same", "own", "level", ""] = "same"
    below_one: bool = False
    note: str = ""


class _Rule(NamedTuple):
    """Says how a function is made: see `_function`."""

    doc: str
    own: str = ""
    shared: Shared = _SHARED
    rule: Callable[..., nf.Sampler] | None = None  # by default the sampler
    fixed: Mapping[str, Any] = MappingProxyType({})  # options of the rule that the function does not offer
    defaults: Mapping[str, Any] = MappingProxyType({})  # of parameters, where they are other than in _Function


def _sa_solver(
    schedule: nf.Schedule,
    *,
    levels: Sequence[float],
    final_level: float,
    tau_func: Callable[[float], float] | None,
    use_pece: bool,
    **options: Any,
) -> nf.Sampler:
    """Returns SA-Solver with ComfyUI's options: a step's tau is that of its end, and only a run to clean data ends with
    lower orders."""
    tau = 1.0 if tau_func is None else [float(tau_func(level)) for level in (*levels[1:], final_level)]
    ends: dict[str, Any] = {"lower_order_final": final_level == 0, "pece": use_pece}
    return nf.samplers.sa_solver(schedule, levels=levels, final_level=final_level, tau=tau, **ends, **options)


def _er_sde(
    schedule: nf.Schedule,
    *,
    noise_scaler: Callable[[torch.Tensor], torch.Tensor] | None,
    max_stage: int,
    **options: Any,
) -> nf.Sampler:
    """Returns ER-SDE with ComfyUI's sums, and a scale of the noise that takes tensors."""
    phi = None if noise_scaler is None else lambda level: np.asarray(noise_scaler(torch.from_numpy(level)))
    return nf.samplers.er_sde(schedule, order=max_stage, phi=phi, points=200, **options)


def _deis(schedule: nf.Schedule, *, deis_mode: str, **options: Any) -> nf.Sampler:
    """Returns DEIS with ComfyUI's sums."""
    if deis_mode != "tab":
        raise ValueError(f"deis_mode must be tab, got {deis_mode!r}; sample_lms has Adams' method in sigma")
    own: dict[str, Any] = {"variable": "vp_time", "points": 10_000, "lower_order_final": False}
    return nf.samplers.deis(schedule, **own, **options)


def _signature(own: str, defaults: Mapping[str, Any]) -> inspect.Signature:
    """Returns the parameters that all functions have, followed by a function's own. Ours are keyword arguments."""
    named = [_PARAMETERS[name] for name in (*_Call._fields, *own.split())]
    kinds = [p.KEYWORD_ONLY if p.name in ("noise", "flow") else p.POSITIONAL_OR_KEYWORD for p in named]
    return inspect.Signature(
        [p.replace(kind=kind, default=defaults.get(p.name, p.default)) for p, kind in zip(named, kinds, strict=True)],
        return_annotation="torch.Tensor",
    )


def _function(menu_name: str) -> _Function:
    """Returns the function of a name on the menu."""
    entry, how = MENU[menu_name], _RULES[menu_name]
    rule: Callable[..., Any] = how.rule or getattr(nf.samplers, entry.sampler)
    own = f"{how.own} flow" if entry.flow == "own" else how.own
    name, signature = f"sample_{menu_name}", _signature(own, how.defaults)
    solvers = ("phi_1", "phi_2") if str(how.defaults.get("solver_type")).startswith("phi") else ("midpoint", "heun")
    run: dict[str, Any] = {"below_one": entry.below_one, "guided": menu_name.endswith("cfg_pp"), **how.fixed}

    def sample(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        call = _Call(*(given.pop(key) for key in _Call._fields))
        noise, drawn, s_noise = given.pop("noise", None), given.pop("noise_sampler", None), given.pop("s_noise", 1.0)
        s_end, clip = given.pop("s_noise_end", None), float(given.pop("noise_clip_std", 0.0))
        if "solver_type" in given:
            if given["solver_type"] not in solvers:
                raise ValueError(f"solver_type must be {' or '.join(solvers)}, got {given['solver_type']!r}")
            given["solver_type"] = _SOLVERS[given["solver_type"]]
        noise = _brownian(call, noise, drawn) if how.shared is _BROWNIAN else noise
        churn = {key: given.pop(key) for key in ("s_churn", "s_tmin", "s_tmax") if key in given}
        if churn.get("s_churn", 0) > 0:
            return _sample(call, noise, None, _churned, s_noise, method=rule, **churn)
        options = {_OPTIONS.get(key, key): value for key, value in given.items()}
        factor = 1.0 if churn else s_noise if s_end is None else (float(s_noise), float(s_end))
        return _sample(call, noise, drawn, rule, factor, clip=clip, **options, **run)

    sample.__name__ = sample.__qualname__ = name
    sample.__doc__ = f"`samplers.{entry.sampler}`, {how.doc}" if __doc__ else None  # python -OO
    sample.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": "torch.Tensor"}
    sample.__dict__["__signature__"] = signature
    return documented(how.shared, _GUIDED_EXAMPLE if run["guided"] else _EXAMPLE)(sample)


_CHURNED, _ANCESTRAL = "s_churn s_tmin s_tmax s_noise noise", "eta s_noise noise_sampler noise"
_GPU = "it draws where x lies"
_BELOW: dict[str, Any] = {"flow": "own", "below_one": True}

MENU: dict[str, Entry] = {
    "euler": Entry("euler"),
    "euler_cfg_pp": Entry("euler_cfg_pp", "own"),
    "euler_ancestral": Entry("euler_ancestral", "own"),
    "euler_ancestral_cfg_pp": Entry("euler_ancestral_cfg_pp", "own"),
    "heun": Entry("heun"),
    "heunpp2": Entry("heunpp2"),
    "exp_heun_2_x0": Entry("seeds_2", **_BELOW, note="`r=1`, `eta=0`"),
    "exp_heun_2_x0_sde": Entry("seeds_2", **_BELOW, note="`r=1`"),
    "dpm_2": Entry("dpm_2"),
    "dpm_2_ancestral": Entry("dpm_2_ancestral", "own"),
    "lms": Entry("lms", note="orders 1 to 4; k-diffusion's last step"),
    "dpm_fast": Entry("dpm_solver", note="with `eta` above 0 a flow leaves its levels"),
    "dpm_adaptive": Entry("dpm_solver", note="a loop: the error sets the steps; `eta` as in dpm_fast"),
    "dpmpp_2s_ancestral": Entry("dpmpp_2s_ancestral", "own"),
    "dpmpp_2s_ancestral_cfg_pp": Entry("dpmpp_2s_ancestral_cfg_pp", "own"),
    "dpmpp_sde": Entry("dpmpp_sde", **_BELOW),
    "dpmpp_sde_gpu": Entry("dpmpp_sde", **_BELOW, note=_GPU),
    "dpmpp_2m": Entry("dpmpp_2m"),
    "dpmpp_2m_cfg_pp": Entry("dpmpp_2m_cfg_pp", "level"),
    "dpmpp_2m_sde": Entry("dpmpp_2m_sde", **_BELOW),
    "dpmpp_2m_sde_gpu": Entry("dpmpp_2m_sde", **_BELOW, note=_GPU),
    "dpmpp_2m_sde_heun": Entry("dpmpp_2m_sde", **_BELOW),
    "dpmpp_2m_sde_heun_gpu": Entry("dpmpp_2m_sde", **_BELOW, note=_GPU),
    "dpmpp_3m_sde": Entry("dpmpp_3m_sde", **_BELOW),
    "dpmpp_3m_sde_gpu": Entry("dpmpp_3m_sde", **_BELOW, note=_GPU),
    "ddpm": Entry("ddpm", "level"),
    "lcm": Entry("lcm", "own"),
    "ipndm": Entry("ipndm"),
    "ipndm_v": Entry("ipndm_v"),
    "deis": Entry("deis", note="orders 1 to 3; no `rhoab`"),
    "res_multistep": Entry("res_multistep"),
    "res_multistep_cfg_pp": Entry("res_multistep_cfg_pp", "level"),
    "res_multistep_ancestral": Entry("res_multistep", "level"),
    "res_multistep_ancestral_cfg_pp": Entry("res_multistep_cfg_pp", "level"),
    "gradient_estimation": Entry("gradient_estimation", note="`cfg_pp` is the next function"),
    "gradient_estimation_cfg_pp": Entry("gradient_estimation_cfg_pp", "level"),
    "er_sde": Entry("er_sde", **_BELOW),
    "seeds_2": Entry("seeds_2", **_BELOW),
    "seeds_3": Entry("seeds_3", **_BELOW),
    "sa_solver": Entry("sa_solver", **_BELOW, note="`tau_func=None` is 1; the nodes take ComfyUI's interval"),
    "sa_solver_pece": Entry("sa_solver", **_BELOW, note="likewise"),
    "ddim": Entry("euler", note="`euler`; under a mask ComfyUI draws other noise for what is known, as the nodes do"),
    "uni_pc": Entry("", "", note="other steps near the end; `samplers.unipc`"),
    "uni_pc_bh2": Entry("", "", note="likewise"),
}
"""ComfyUI's menu of samplers, an `Entry` for each of its names. ``sample_NAME`` is the function, where there is one."""

_CROWSON, _KARRAS = "k-diffusion's own method (Crowson 2022).", "with the churn of Karras et al. 2022, algorithm 2."
_TO_THE_END = "Lu et al. 2022, section 5, with steps of second order to the end."
_2S = """on one Brownian path.

A noise_sampler is called for (sigma, s) and (s, sigma'), the two pieces of a step, with s where the model is called
for the second time. k-diffusion asks for (sigma, s) and (sigma, sigma'), the same of one Brownian motion."""
_CFG_PP = "with CFG++, Chung et al. 2024; ComfyUI."
_HEUN = {"solver_type": "phi_2"}
_MULTISTEP_SDE = _Rule(
    _TO_THE_END, "eta s_noise noise_sampler solver_type noise", _BROWNIAN, fixed={"lower_order_final": False}
)
_MULTISTEP_HEUN = _MULTISTEP_SDE._replace(defaults={"solver_type": "heun"})
_RULES: dict[str, _Rule] = {
    "ddim": _Rule(f"{_KARRAS[:-1]}: ComfyUI's other name of `sample_euler`.", _CHURNED),
    "euler": _Rule(_KARRAS, _CHURNED),
    "euler_cfg_pp": _Rule(_CFG_PP),
    "euler_ancestral": _Rule(
        f"""{_CROWSON}

>>> import torch
>>> from noisefuse.interop.k_diffusion import sample_euler_ancestral
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> sample_euler_ancestral(lambda x, sigma: 0.1 * x, x, sigmas, noise=[nf.Noise(11), nf.Noise(12)]).shape
torch.Size([2, 3])""",
        _ANCESTRAL,
    ),
    "euler_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "heun": _Rule(_KARRAS, _CHURNED),
    "heunpp2": _Rule("ComfyUI.", _CHURNED),
    "exp_heun_2_x0": _Rule(
        "exponential Heun: Gonzalez et al. 2023; ComfyUI.", "solver_type", fixed={"r": 1.0, "eta": 0.0}, defaults=_HEUN
    ),
    "exp_heun_2_x0_sde": _Rule(
        "exponential Heun of the SDE: Gonzalez et al. 2023; ComfyUI.",
        "eta s_noise noise_sampler solver_type noise",
        fixed={"r": 1.0},
        defaults=_HEUN,
    ),
    "dpm_2": _Rule(_KARRAS, _CHURNED),
    "dpm_2_ancestral": _Rule(_CROWSON, _ANCESTRAL),
    "lms": _Rule(_CROWSON, "order"),
    "dpmpp_2s_ancestral": _Rule("Lu et al. 2022, algorithm 1, with fresh noise.", _ANCESTRAL),
    "dpmpp_2s_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "dpmpp_sde": _Rule(_2S, "eta s_noise noise_sampler r noise", _BROWNIAN),
    "dpmpp_sde_gpu": _Rule(_2S, "eta s_noise noise_sampler r noise", _BROWNIAN),
    "dpmpp_2m": _Rule("Lu et al. 2022, with steps of second order to the end.", fixed={"lower_order_final": False}),
    "dpmpp_2m_cfg_pp": _Rule(_CFG_PP),
    "dpmpp_2m_sde": _MULTISTEP_SDE,
    "dpmpp_2m_sde_gpu": _MULTISTEP_SDE,
    "dpmpp_2m_sde_heun": _MULTISTEP_HEUN,
    "dpmpp_2m_sde_heun_gpu": _MULTISTEP_HEUN,
    "dpmpp_3m_sde": _Rule(_CROWSON, _ANCESTRAL, _BROWNIAN),
    "dpmpp_3m_sde_gpu": _Rule(_CROWSON, _ANCESTRAL, _BROWNIAN),
    "ddpm": _Rule("Ho et al. 2020; ComfyUI.", "noise_sampler noise"),
    "lcm": _Rule(
        "Luo et al. 2023, without its c_skip: x' = D + sigma' z; ComfyUI.",
        "noise_sampler s_noise s_noise_end noise_clip_std noise",
        fixed={"sigma_data": 0.0},
    ),
    "ipndm": _Rule("Zhang & Chen 2022; ComfyUI.", "max_order"),
    "ipndm_v": _Rule("Zhou et al. 2023; ComfyUI.", "max_order"),
    "deis": _Rule(
        "Zhang & Chen 2022, in the time of diff-sampler (Zhou et al. 2023); ComfyUI.",
        "max_order deis_mode",
        rule=_deis,
        defaults={"max_order": 3},
    ),
    "res_multistep": _Rule("Zhang et al. 2023; ComfyUI.", "s_noise noise_sampler noise"),
    "res_multistep_cfg_pp": _Rule(_CFG_PP, "s_noise noise_sampler noise"),
    "res_multistep_ancestral": _Rule("Zhang et al. 2023, with fresh noise; ComfyUI.", _ANCESTRAL),
    "res_multistep_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "gradient_estimation": _Rule("Permenter & Yuan 2023; ComfyUI.", "ge_gamma"),
    "gradient_estimation_cfg_pp": _Rule(_CFG_PP, "ge_gamma"),
    "er_sde": _Rule("Cui et al. 2023; ComfyUI.", "s_noise noise_sampler noise_scaler max_stage noise", rule=_er_sde),
    "seeds_2": _Rule(
        "Gonzalez et al. 2023; ComfyUI.",
        "eta s_noise noise_sampler r solver_type noise",
        defaults={"solver_type": "phi_1"},
    ),
    "seeds_3": _Rule("Gonzalez et al. 2023; ComfyUI.", "eta s_noise noise_sampler r_1 r_2 noise"),
    "sa_solver": _Rule(
        "Xue et al. 2023; ComfyUI.",
        "tau_func s_noise noise_sampler predictor_order corrector_order use_pece simple_order_2 noise",
        rule=_sa_solver,
    ),
    "sa_solver_pece": _Rule(
        "Xue et al. 2023, with a second call at corrected samples; ComfyUI.",
        "tau_func s_noise noise_sampler predictor_order corrector_order simple_order_2 noise",
        rule=_sa_solver,
        fixed={"use_pece": True},
    ),
}

sample_euler: _Function = _function("euler")
sample_euler_cfg_pp: _Function = _function("euler_cfg_pp")
sample_euler_ancestral: _Function = _function("euler_ancestral")
sample_euler_ancestral_cfg_pp: _Function = _function("euler_ancestral_cfg_pp")
sample_heun: _Function = _function("heun")
sample_heunpp2: _Function = _function("heunpp2")
sample_exp_heun_2_x0: _Function = _function("exp_heun_2_x0")
sample_exp_heun_2_x0_sde: _Function = _function("exp_heun_2_x0_sde")
sample_dpm_2: _Function = _function("dpm_2")
sample_dpm_2_ancestral: _Function = _function("dpm_2_ancestral")
sample_lms: _Function = _function("lms")
sample_dpmpp_2s_ancestral: _Function = _function("dpmpp_2s_ancestral")
sample_dpmpp_2s_ancestral_cfg_pp: _Function = _function("dpmpp_2s_ancestral_cfg_pp")
sample_dpmpp_sde: _Function = _function("dpmpp_sde")
sample_dpmpp_sde_gpu: _Function = _function("dpmpp_sde_gpu")
sample_dpmpp_2m: _Function = _function("dpmpp_2m")
sample_dpmpp_2m_cfg_pp: _Function = _function("dpmpp_2m_cfg_pp")
sample_dpmpp_2m_sde: _Function = _function("dpmpp_2m_sde")
sample_dpmpp_2m_sde_gpu: _Function = _function("dpmpp_2m_sde_gpu")
sample_dpmpp_2m_sde_heun: _Function = _function("dpmpp_2m_sde_heun")
sample_dpmpp_2m_sde_heun_gpu: _Function = _function("dpmpp_2m_sde_heun_gpu")
sample_dpmpp_3m_sde: _Function = _function("dpmpp_3m_sde")
sample_dpmpp_3m_sde_gpu: _Function = _function("dpmpp_3m_sde_gpu")
sample_ddim: _Function = _function("ddim")
sample_ddpm: _Function = _function("ddpm")
sample_lcm: _Function = _function("lcm")
sample_ipndm: _Function = _function("ipndm")
sample_ipndm_v: _Function = _function("ipndm_v")
sample_deis: _Function = _function("deis")
sample_res_multistep: _Function = _function("res_multistep")
sample_res_multistep_cfg_pp: _Function = _function("res_multistep_cfg_pp")
sample_res_multistep_ancestral: _Function = _function("res_multistep_ancestral")
sample_res_multistep_ancestral_cfg_pp: _Function = _function("res_multistep_ancestral_cfg_pp")
sample_gradient_estimation: _Function = _function("gradient_estimation")
sample_gradient_estimation_cfg_pp: _Function = _function("gradient_estimation_cfg_pp")
sample_er_sde: _Function = _function("er_sde")
sample_seeds_2: _Function = _function("seeds_2")
sample_seeds_3: _Function = _function("seeds_3")
sample_sa_solver: _Function = _function("sa_solver")
sample_sa_solver_pece: _Function = _function("sa_solver_pece")


@documented(_SHARED)
def sample_dpm_fast(
    model: Model,
    x: torch.Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    extra_args: ExtraArgs = None,
    callback: Callback = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    noise: Noises | None = None,
) -> torch.Tensor:
    """`samplers.dpm_solver`, Lu et al. 2022, with n model calls in steps of order 3 and of equal length in log sigma.

    The last steps are of order 2 and 1, or of what 3 leaves of n. It ends at sigma_min.

    >>> import torch
    >>> from noisefuse.interop.k_diffusion import sample_dpm_fast
    >>> x = 10 * torch.randn(2, 3)
    >>> sample_dpm_fast(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, 0.1, 10.0, 8, disable=True).shape
    torch.Size([2, 3])
    """
    least, most = _above_0(sigma_min, sigma_max)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    whole, rest = divmod(int(n), 3)
    orders = (*[3] * whole, rest) if rest else (*[3] * (whole - 1), 2, 1)
    levels = np.exp(np.linspace(math.log(most), math.log(least), len(orders) + 1))
    call = _Call(model, x, torch.tensor(levels, device=x.device), extra_args, callback, disable)
    return _sample(call, noise, noise_sampler, nf.samplers.dpm_solver, s_noise, order=orders, eta=eta)


@documented(_SHARED)
def sample_dpm_adaptive(
    model: Model,
    x: torch.Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: ExtraArgs = None,
    callback: Callback = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
    *,
    noise: Noises | None = None,
) -> Any:
    """`samplers.dpm_solver` with steps that its error sets, Lu et al. 2022, from sigma_max to sigma_min.

    A step is made by the solvers of ``order`` and of one order less. It is repeated, shorter, if their difference is
    too large beside max(atol, rtol |x|). The whole batch has one error, so a sample depends on the others there.

    Args:
        order: 2 or 3.
        rtol, atol: how large the difference may be.
        h_init: the first step's length in log sigma.
        pcoeff, icoeff, dcoeff: the PID controller's.
        accept_safety: a step is accepted if the next one would be at least so many times as long.
        return_info: return (x, info), too: {"steps", "nfe", "n_accept", "n_reject"}.
        noise: a Noise, or a list with one for each sample: increments of one Brownian motion in sigma
            (`brownian_noise_sampler`), whatever the steps are. None: drawn from torch, as theirs.
        callback: gets also "t" and "t_up", -log sigma, "error", "h" and the info, after each attempt.

    >>> import torch
    >>> from noisefuse.interop.k_diffusion import sample_dpm_adaptive
    >>> x = 10 * torch.randn(2, 3)
    >>> sample_dpm_adaptive(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, 0.1, 10.0, disable=True).shape
    torch.Size([2, 3])
    """
    least, most = _above_0(sigma_min, sigma_max)
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order!r}")
    if eta and most <= least:
        raise ValueError(f"eta must be 0 for a run that rises, from {most:g} to {least:g}, got {eta}")
    if noise is not None and noise_sampler is not None:
        raise TypeError("noise, noise_sampler: give one of them")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    call, extra = _Call(model, x, x, extra_args, callback, disable), extra_args or {}
    draw = noise_sampler or _by_torch(x, _seed(call) if eta else None)
    if noise is not None:
        draw = brownian_noise_sampler(x, least, most, noise)
    numbers = (order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise)
    with torch.no_grad():
        found, info = dpm_adaptive.sample(
            lambda x, sigma: model(x, x.new_full(x.shape[:1], sigma), **extra),
            x, least, most, dpm_adaptive.Options(*numbers), draw, callback or (lambda told: None),
        )  # fmt: skip
    return (found, info) if return_info else found


def _above_0(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    least, most = float(sigma_min), float(sigma_max)
    if not (least > 0 and most > 0):
        raise ValueError(f"sigma_min and sigma_max must be above 0, got {least} and {most}")
    return least, most
