# SPDX-License-Identifier: Apache-2.0
"""k-diffusion's loop over a list of noise levels, which are rows here."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

import noisefuse as nf

from ...language.noise import SAMPLER, Noises, at_row, names_of
from ...language.tableau import Tableau
from .noise import ExtraArgs, NoiseSampler, by_torch, clipped, noise_sampler, seed_in

Model: TypeAlias = Callable[..., torch.Tensor]
Callback: TypeAlias = "Callable[[dict[str, Any]], object] | None"

_EXPLODING = nf.Schedule.karras(2)  # alpha = 1, all that a list of noise levels needs
_FLOW = nf.Schedule.flow(2)  # alpha = 1 - sigma, likewise


class _Run(NamedTuple):
    """A sampler and the parts that k-diffusion's loop over steps needs."""

    sampler: nf.Sampler
    steps: tuple[range, ...]  # the rows of each step
    times: list[float]  # the model's t in each row
    draws: list[bool]
    levels: tuple[float, ...]
    kick: float = 0.0  # the standard deviation of the noise before the first row


@lru_cache(maxsize=64)
def _run(make: Callable[..., Any], levels: tuple[float, ...], s_noise: Any, flow: bool, **options: Any) -> _Run:
    """Returns the rows of a list of noise levels, from a function of ``nf.samplers``, or ``churned``."""
    if make is churned:
        table, kick = churned(levels, s_noise, **options)
    else:
        table, kick = _of(make, levels, flow, s_noise, **options), 0.0
    n = len(levels) - 1
    # of several calls, all but the last one keep something
    ends = range(n) if len(table) == n else np.flatnonzero(table.push == 0).tolist()
    if options.get("use_pece") and len(table) != n:  # a step's first call is at what the last one predicted
        ends = range(0, len(table), 2)  # where the last step does not go to 0, the row that corrects it is left out
    steps = tuple(range(first, last + 1) for first, last in zip([0, *(end + 1 for end in ends)], ends, strict=False))
    return _Run(nf.Sampler(table), steps, table.timesteps.tolist(), table.as_rows.draws.tolist(), levels, kick)


def _of(
    make: Callable[..., nf.Sampler], levels: Sequence[float], flow: bool = False,
    s_noise: float | tuple[float, float] = 1, **options: Any,
) -> Tableau:  # fmt: skip
    """Returns the rows for the model's own x, of samplers of x / alpha, too. s_noise: a factor of fresh noise, or a
    pair: it goes from the first row's to the last one's."""
    steps: dict[str, Any] = {"levels": levels[:-1], "final_level": levels[-1], "prediction": "sample"}
    table = make(_FLOW if flow else _EXPLODING, **steps, **options).tableau
    rows = table.rows.copy()
    if np.any(table.scale != 1):
        for group in ("clean", "out", "aux1", "aux2"):
            rows[group]["x"] /= table.scale
        for symbol in rows.dtype["out"].names or ():
            rows["out"][symbol] *= [*table.scale[1:], 1 - levels[-1]]
    for name in ("out", "aux1", "aux2"):
        rows[name]["z"] *= np.linspace(*s_noise, len(table)) if isinstance(s_noise, tuple) else s_noise
    return Tableau(rows, table.timesteps, table.name, push=table.push, alpha=table.alpha, sigma=table.sigma)


def churned(
    levels: tuple[float, ...], s_noise: float, method: Callable[..., nf.Sampler], s_churn: float, s_tmin: float,
    s_tmax: float,
) -> tuple[Tableau, float]:  # fmt: skip
    """Karras et al. 2022, algorithm 2, with any method that remembers no step; and the noise before the first row.

        gamma = min(s_churn / n, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0,    sigma^ = sigma + gamma sigma
        x^ = x + s_noise sqrt(sigma^^2 - sigma^2) z                    before the model is called

    The row before a model call adds the call's noise.
    """
    n, most = len(levels) - 1, math.sqrt(2) - 1
    raised = [level * (1 + min(s_churn / n, most) * (s_tmin <= level <= s_tmax)) for level in levels[:-1]]
    added = [s_noise * math.sqrt(up**2 - level**2) for up, level in zip(raised, levels, strict=False)]
    further = method is nf.samplers.heunpp2  # it looks two levels further, and weighs them by the whole run's first one
    own: dict[str, Any] = {"sigma_0": levels[0]} if further else {}
    tables = [_of(method, (up, *levels[i : i + 1 + 2 * further]), **own) for i, up in enumerate(raised, 1)]
    calls = [int(np.argmin(table.push)) + 1 for table in tables]  # of the first step: its last row keeps nothing
    rows, times, push = (
        np.concatenate([getattr(table, name)[:n] for table, n in zip(tables, calls, strict=True)])
        for name in ("rows", "timesteps", "push")
    )
    rows["out"]["z"][np.cumsum(calls)[:-1] - 1] = added[1:]
    return Tableau(rows, times, tables[0].name, push=push), added[0]


class Call(NamedTuple):
    """The arguments of all functions."""

    model: Model
    x: torch.Tensor
    sigmas: torch.Tensor
    extra_args: ExtraArgs
    callback: Callback
    disable: bool | None


def sample(
    call: Call, noise: Noises | None, draw: NoiseSampler | None, make: Callable[..., Any],
    s_noise: float | tuple[float, float] = 1.0, *, clip: float = 0.0, flow: bool = False, below_one: bool = False,
    guided: bool = False, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """Runs k-diffusion's loop. noise: drawn within the rows; else ``draw`` draws for each row that needs it, or
    torch. guided: the rows read the unconditional clean sample, too. clip: bounds noise, in its deviations."""
    if noise is not None and draw is not None:
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
    factor = s_noise if isinstance(s_noise, tuple) else float(s_noise)
    run = _run(make, tuple(call.sigmas.tolist()), factor, flow, **numbers)
    if draw is None:  # the seed is for default draws; otherwise, as in churn, it is the model's alone
        seeded = noise is None and make is not churned and any(run.draws)
        draw = by_torch(x, seed_in(call.extra_args) if seeded else None)
    if clip:
        draw = clipped(draw if noise is None else noise_sampler(x, noise), clip)
        noise = None
    with torch.no_grad():
        if run.kick:  # it has the key of a row that does not exist
            first = torch.randn_like(x) if noise is None else nf.randn_like(x, at_row(noise, len(run.times), SAMPLER))
            x = x + run.kick * first
        return _loop(call, run, x, noise, draw, guided)


def _loop(
    call: Call, run: _Run, x: torch.Tensor, noise: Noises | None, draw: NoiseSampler, guided: bool
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
                source = draw(*_between(run, sigmas, step, i))
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

    def keep(told: dict[str, Any]) -> Any:
        seen[:] = [told["uncond_denoised"]]
        return told["denoised"]

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
