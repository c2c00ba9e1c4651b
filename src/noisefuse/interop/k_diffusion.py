# SPDX-License-Identifier: Apache-2.0
"""k-diffusion's sampling functions, run by rows, with the same names, arguments, defaults and callbacks.

    from noisefuse.interop.k_diffusion import sample_dpmpp_2m  # k_diffusion.sampling.sample_dpmpp_2m

The functions are those of k_diffusion/sampling.py (Crowson 2022), and from ComfyUI's comfy/k_diffusion/sampling.py
`sample_ddpm`, `sample_lcm`, `sample_ipndm` and `sample_gradient_estimation`. Neither library is needed.
docs/k_diffusion.md says what differs.

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
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

import noisefuse as nf

from ..ground.docstrings import Shared, documented
from ..ground.needs import needs
from ..noise import SAMPLER, at_row, each, names_of
from ..tableau import Tableau

with needs(__name__, "torch"):
    import torch

__all__ = [
    "brownian_noise_sampler",
    "noise_sampler",
    "sample_ddpm",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_gradient_estimation",
    "sample_heun",
    "sample_ipndm",
    "sample_lcm",
    "sample_lms",
]

Noises: TypeAlias = "nf.Noise | Sequence[nf.Noise]"
Model: TypeAlias = Callable[..., torch.Tensor]
NoiseSampler: TypeAlias = Callable[[Any, Any], torch.Tensor]
Callback: TypeAlias = "Callable[[dict[str, Any]], object] | None"
ExtraArgs: TypeAlias = "dict[str, Any] | None"

_EXPLODING = nf.Schedule.karras(2)  # alpha = 1, all that a list of noise levels needs


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
def _run(make: Callable[..., Any], levels: tuple[float, ...], s_noise: float = 1.0, **options: Any) -> _Run:
    """Returns the rows of a list of noise levels, from a function of ``nf.samplers``, or ``_churned``."""
    if make is _churned:
        table, kick = _churned(levels, s_noise, **options)
    else:
        table, kick = _with_noise(_of(make, levels, **options).tableau, s_noise), 0.0
    n = len(levels) - 1
    ends = range(n) if len(table) == n else np.flatnonzero(table.push == 0).tolist()  # two calls: the first one keeps x
    steps = tuple(range(first, last + 1) for first, last in zip([0, *(end + 1 for end in ends)], ends, strict=False))
    return _Run(nf.Sampler(table), steps, table.timesteps.tolist(), table.as_rows.draws.tolist(), levels, kick)


def _of(make: Callable[..., nf.Sampler], levels: Sequence[float], **options: Any) -> nf.Sampler:
    return make(_EXPLODING, steps=levels[:-1], final=levels[-1] or "zero", prediction="sample", **options)


def _with_noise(table: Tableau, factor: float) -> Tableau:
    """Returns the table with fresh noise times a factor."""
    if factor == 1:
        return table
    rows = table.rows.copy()
    for name in ("out", "aux1", "aux2"):
        rows[name]["z"] *= factor
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
    tables = [_of(method, pair).tableau for pair in zip(raised, levels[1:], strict=True)]
    rows = np.concatenate([table.rows for table in tables])
    last = np.cumsum([len(table) for table in tables]) - 1
    rows["out"]["z"][last[:-1]] = added[1:]
    times, push = (np.concatenate([getattr(table, name) for table in tables]) for name in ("timesteps", "push"))
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
    s_noise: float = 1.0,
    **options: Any,
) -> torch.Tensor:
    """Runs k-diffusion's loop. noise: drawn within the rows; else ``given`` draws for each row that needs it, or
    torch."""
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
    # a tensor would be a new key each time
    numbers = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    run = _run(make, tuple(sigmas.tolist()), float(s_noise), **numbers)
    if given is None:  # the seed is for default draws; otherwise, as in churn, it is the model's alone
        seeded = noise is None and make is not _churned and any(run.draws)
        given = _by_torch(x, _seed(call) if seeded else None)
    with torch.no_grad():
        if run.kick:  # it has the key of a row that does not exist
            first = torch.randn_like(x) if noise is None else nf.randn_like(x, at_row(noise, len(run.times), SAMPLER))
            x = x + run.kick * first
        return _loop(call, run, x, noise, given)


def _loop(call: _Call, run: _Run, x: torch.Tensor, noise: Noises | None, given: NoiseSampler) -> torch.Tensor:
    sampler, sigmas, extra = run.sampler, call.sigmas, call.extra_args or {}
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
            x = sampler.step(i, x, denoised, source, state)
    return x


def _between(run: _Run, sigmas: torch.Tensor, step: int, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the noise levels for row i's draw: the step's ends, or for a Brownian motion in two pieces one piece's
    ends."""
    rows = run.steps[step]
    if len(rows) == 1 or not run.draws[rows.start]:
        return sigmas[step], sigmas[step + 1]
    middle = sigmas.new_tensor(run.times[rows.start + 1])
    return (sigmas[step], middle) if i == rows.start else (middle, sigmas[step + 1])


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
        "ge_gamma": "    ge_gamma: finite; 1 is Euler's method.",
        "r": "    r: where the second call is, in log sigma: 0 < r < 1.",
        "solver_type": '    solver_type: "midpoint" or "heun", as the sampler\'s solver.',
        "eta": "    eta: of how much of the noise is drawn anew, at least 0.",
        "s_noise": "    s_noise: a factor of what is drawn.",
        "noise_sampler": """\
    noise_sampler: f(sigma, sigma_next) -> noise like x, called once for each row that draws. None: torch's generator,
        or one of ``extra_args["seed"]``, where there is one.""",
        "noise": """\
    noise: a Noise, or a list with one for each sample of the batch, drawn within the rows (arrays are what a
        noise_sampler gives). None: drawn from torch, as theirs.""",
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
        noise_sampler: NoiseSampler | None = None,
        r: float = 0.5,
        solver_type: Literal["midpoint", "heun"] = "midpoint",
        order: int = 4,
        max_order: int = 4,
        ge_gamma: float = 2.0,
        noise: Noises | None = None,
    ) -> torch.Tensor: ...


_PARAMETERS = inspect.signature(_Function.__call__).parameters
_OPTIONS = {"max_order": "order", "ge_gamma": "gamma", "solver_type": "solver"}  # a rule's names, if they differ


def _signature(own: str) -> inspect.Signature:
    """Returns the parameters that all functions have, followed by a function's own. The noise is a keyword argument."""
    named = [_PARAMETERS[name] for name in (*_Call._fields, *own.split())]
    kinds = [p.KEYWORD_ONLY if p.name == "noise" else p.POSITIONAL_OR_KEYWORD for p in named]
    return inspect.Signature(
        [p.replace(kind=kind) for p, kind in zip(named, kinds, strict=True)], return_annotation="torch.Tensor"
    )


def _function(rule: Callable[..., nf.Sampler], own: str, doc: str, shared: Shared = _SHARED, **fixed: Any) -> _Function:
    """Returns a rule as a function with these parameters. `fixed` holds options of the rule that the function does not
    offer."""
    name, signature = f"sample_{rule.__name__}", _signature(own)

    def sample(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        call = _Call(*(given.pop(key) for key in _Call._fields))
        noise, drawn, s_noise = given.pop("noise", None), given.pop("noise_sampler", None), given.pop("s_noise", 1.0)
        if given.get("solver_type", "heun") not in ("midpoint", "heun"):
            raise ValueError(f"solver_type must be midpoint or heun, got {given['solver_type']!r}")
        noise = _brownian(call, noise, drawn) if shared is _BROWNIAN else noise
        churn = {key: given.pop(key) for key in ("s_churn", "s_tmin", "s_tmax") if key in given}
        if churn.get("s_churn", 0) > 0:
            return _sample(call, noise, None, _churned, s_noise, method=rule, **churn)
        options = {_OPTIONS.get(key, key): value for key, value in given.items()}
        return _sample(call, noise, drawn, rule, 1.0 if churn else s_noise, **options, **fixed)

    sample.__name__ = sample.__qualname__ = name
    sample.__doc__ = f"`samplers.{rule.__name__}`, {doc}" if __doc__ else None  # python -OO
    sample.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": "torch.Tensor"}
    sample.__dict__["__signature__"] = signature
    return documented(shared, _EXAMPLE)(sample)


_CHURNED, _ANCESTRAL = "s_churn s_tmin s_tmax s_noise noise", "eta s_noise noise_sampler noise"

sample_euler: _Function = _function(nf.samplers.euler, _CHURNED, "with the churn of Karras et al. 2022, algorithm 2.")
sample_heun: _Function = _function(nf.samplers.heun, _CHURNED, "with the churn of Karras et al. 2022, algorithm 2.")
sample_dpm_2: _Function = _function(nf.samplers.dpm_2, _CHURNED, "with the churn of Karras et al. 2022, algorithm 2.")
sample_lms: _Function = _function(nf.samplers.lms, "order", "k-diffusion's own method (Crowson 2022).")
sample_dpmpp_2m: _Function = _function(
    nf.samplers.dpmpp_2m, "", "Lu et al. 2022, with steps of second order to the end.", lower_order_final=False
)
sample_ipndm: _Function = _function(nf.samplers.ipndm, "max_order", "Zhang & Chen 2022; ComfyUI.")
sample_gradient_estimation: _Function = _function(
    nf.samplers.gradient_estimation, "ge_gamma", "Permenter & Yuan 2023; ComfyUI, without its cfg_pp."
)
sample_euler_ancestral: _Function = _function(
    nf.samplers.euler_ancestral,
    _ANCESTRAL,
    """k-diffusion's own method (Crowson 2022).

>>> import torch
>>> from noisefuse.interop.k_diffusion import sample_euler_ancestral
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> sample_euler_ancestral(lambda x, sigma: 0.1 * x, x, sigmas, noise=[nf.Noise(11), nf.Noise(12)]).shape
torch.Size([2, 3])""",
)
sample_dpm_2_ancestral: _Function = _function(
    nf.samplers.dpm_2_ancestral, _ANCESTRAL, "k-diffusion's own method (Crowson 2022)."
)
sample_dpmpp_2s_ancestral: _Function = _function(
    nf.samplers.dpmpp_2s_ancestral, _ANCESTRAL, "Lu et al. 2022, algorithm 1, with fresh noise."
)
sample_ddpm: _Function = _function(nf.samplers.ddpm, "noise_sampler noise", "Ho et al. 2020; ComfyUI.")
sample_lcm: _Function = _function(
    nf.samplers.lcm,
    "noise_sampler s_noise noise",
    "Luo et al. 2023, without its c_skip: x' = D + sigma' z; ComfyUI.",
    sigma_data=0.0,
)
sample_dpmpp_sde: _Function = _function(
    nf.samplers.dpmpp_sde,
    "eta s_noise noise_sampler r noise",
    """on one Brownian path.

A noise_sampler is called for (sigma, s) and (s, sigma'), the two pieces of a step, with s where the model is called
for the second time. k-diffusion asks for (sigma, s) and (sigma, sigma'), the same of one Brownian motion.""",
    _BROWNIAN,
)
sample_dpmpp_2m_sde: _Function = _function(
    nf.samplers.dpmpp_2m_sde,
    "eta s_noise noise_sampler solver_type noise",
    "Lu et al. 2022, section 5, with steps of second order to the end.",
    _BROWNIAN,
    lower_order_final=False,
)
sample_dpmpp_3m_sde: _Function = _function(
    nf.samplers.dpmpp_3m_sde, _ANCESTRAL, "k-diffusion's own method (Crowson 2022).", _BROWNIAN
)
