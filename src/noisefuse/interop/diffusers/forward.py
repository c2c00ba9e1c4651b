# SPDX-License-Identifier: Apache-2.0
"""The forward process of the schedulers, `add_noise` and `scale_noise`: x0 at the noise levels of times."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

from ...language.noise import are_names, names_of
from ..torch import internals
from ..torch.internals import is_traced, version
from . import rows
from .engine import Fused, Steps, Stochastic
from .refusals import one_at_many_times, patched, tell, unlike, without_kernel
from .runs import wrong_times


class Forward(Fused):
    """A scheduler with a forward process."""

    def _noised(self, x0: Any, noise: Any, t: Any, fallback: Any) -> Any:
        """Returns alpha x0 + sigma noise in one pass, or `fallback(why)` if that is not possible."""
        drawn = isinstance(noise, Tensor)
        if is_traced():
            return fallback(None) if drawn else internals.untraced(self._noised, x0, noise, t, fallback)
        if drawn and not isinstance(x0, Tensor):
            return fallback(None)  # raises an error
        cannot = drawn and (without_kernel(x0) or one_at_many_times(x0, t) or unlike(x0, noise))
        if reason := cannot or (patched(self, "step") if drawn else None):
            return fallback(reason)
        if not (drawn or are_names(noise)):
            names_of(noise, "a Tensor, a Noise or a list of them")  # it raises the error
        return self._at_levels(x0, noise, t, fallback)

    def _at_levels(self, x0: Any, noise: Any, t: Any, fallback: Any) -> Any:
        level = self._level(x0, t)
        if level is None:
            return fallback("at times that are not among its timesteps")
        if are_names(noise):
            schedule, index = self._kept_levels("drawn", self._schedule)
            return nf.q_sample(x0, level if index is None else index[level], schedule, noise)
        table = self._kept_levels((x0.dtype, self.coefficients), lambda n: self._table(n, x0.dtype))
        return nf.update(table, level, x0, noise=noise)

    def _base_noised(self, method: str, x0: Any, noise: Any, t: Any, reason: str | None) -> Any:
        """Calls diffusers' own add_noise or scale_noise, which take their arguments in different orders."""
        ordered = (x0, noise, t) if method == "add_noise" else (x0, t, noise)
        result = getattr(self._base, method)(self, *ordered)
        tell(self, method, reason)
        return result

    def _level(self, x0: Any, t: Any) -> Any:
        """Returns the noise level of each sample, or of all: t itself, t's place among the timesteps, or the run's
        position."""
        clock = self._time()
        if self._levels_by_time:
            t = t.to(x0.device) if isinstance(t, Tensor) and t.is_cuda else t  # timesteps on the host are checked there
            if not isinstance(t, Tensor) or (many := t.numel()) == 1:
                return t
            if many != len(x0) and t.shape != x0.shape[: t.dim()]:
                raise wrong_times("timesteps", t, "the samples'", x0.shape)
            return t.reshape(-1) if many == len(x0) else t
        if self._begin_index is not None:
            return self._begin_index if self._step_index is None else self._step_index
        if clock is None:
            return None
        times = t.reshape(-1).tolist()
        if len(times) not in (1, len(x0)):
            raise wrong_times("timesteps", t, "the samples'", x0.shape)
        for time in {*times} - {*clock.levels}:
            if time not in clock.values:
                return None
            host = clock.host[clock.values[time]]
            clock.levels[time] = self.index_for_timestep(host, clock.host)
        return np.array([clock.levels[time] for time in times])

    def _kept_levels(self, key: Any, make: Any) -> Any:
        """Returns make(number of noise levels), kept until these levels change."""
        state = self.__dict__
        levels, kept = state[self._levels_source], state.setdefault("_levels", {})
        if key not in kept or kept[key][0] is not levels or kept[key][1] != version(levels):
            kept[key] = levels, version(levels), make(len(levels))
        return kept[key][2]

    def _table(self, n: int, dtype: torch.dtype) -> nf.Tableau:
        """Returns a table whose row i is noise level i."""
        alpha, sigma = rows.levels(self, self._base, n, dtype, exact=self.coefficients == "exact")
        table = np.zeros(n, nf.tableau.ROW)
        table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
        table["out"]["x"], table["out"]["z"] = alpha, sigma
        return nf.Tableau(table)

    def _schedule(self, n: int) -> tuple[nf.Schedule, Any]:
        """Returns all noise levels that have noise, the least noisy first, and each level's place among them (None: its
        own). It uses float64, because no value of diffusers' has to be matched."""
        alpha, sigma = rows.levels(self, self._base, n, torch.float64, exact=True)
        if self._levels_by_time:
            return nf.Schedule(alpha, sigma), None
        noisy = sigma > 0
        _, first, place = np.unique(-alpha[noisy] / sigma[noisy], return_index=True, return_inverse=True)
        index = np.full(n, -1)
        index[noisy] = place
        return nf.Schedule(alpha[noisy][first], sigma[noisy][first]), index


class AddsNoise(Forward):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        """Does diffusers' add_noise, in one pass. `noise` may also be a `nf.Noise`, or one for each sample: it is drawn
        in the same pass, the field of `nf.randn(original_samples.shape, noise)`."""
        fallback = functools.partial(self._base_noised, "add_noise", original_samples, noise, timesteps)
        return self._noised(original_samples, noise, timesteps, fallback)


class StochasticSteps(Stochastic, AddsNoise):
    pass


class Deterministic(Steps, AddsNoise):
    pass
