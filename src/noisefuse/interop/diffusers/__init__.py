# SPDX-License-Identifier: Apache-2.0
"""Schedulers of diffusers whose `step` and `add_noise` are one pass over memory. Nothing else is different.

    from noisefuse.interop.diffusers import DDPMScheduler      # a subclass of diffusers' class of that name
    accelerate(pipeline)                                       # or: replaces them in place

Their numbers come from diffusers' own code (rows.py). diffusers itself does steps that a row cannot express, and a line
in the log says so.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import noisefuse as nf

from ...ground.needs import needs
from ...language.noise import Noises, are_names

with needs(__name__, "diffusers", "torch"):
    import diffusers
    import torch
    from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it beside a class that they load
    from diffusers.schedulers import scheduling_consistency_decoder
    from diffusers.schedulers.scheduling_dpm_cogvideox import DDIMSchedulerOutput
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
    from torch import Tensor

from ..torch.internals import is_traced
from . import rows
from .engine import Fused, Generators, Steps, Stochastic, field, is_float
from .forward import AddsNoise, Deterministic, Forward, StochasticSteps
from .keys import take_keys
from .refusals import SCHEDULERS, is_replaced, logger
from .runs import Options, fingerprint, planned
from .sde import FlowMatchSDEDiscreteSchedulerOutput, Transitions, transitions

__all__ = [
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "ConsistencyDecoderScheduler",
    "CosineDPMSolverMultistepScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DDPMWuerstchenScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "FlowMatchSDEDiscreteScheduler", "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler", "PNDMScheduler", "SASolverScheduler", "SCMScheduler", "TCDScheduler", "UnCLIPScheduler",
    "UniPCMultistepScheduler", "accelerate",
]  # fmt: skip

Target = TypeVar("Target")


def has(name: str) -> bool:
    """Tells whether this diffusers has the class, and its requirements are installed: some need SciPy."""
    return getattr(diffusers, name, type).__module__.startswith("diffusers.schedulers.")


# ---- the classes -------------------------------------------------------------------------------------------


class DDPMScheduler(StochasticSteps, diffusers.DDPMScheduler):
    _by_time = _spreads = True


class DDPMParallelScheduler(StochasticSteps, diffusers.DDPMParallelScheduler):
    _by_time = _spreads = True


class _DDIM(AddsNoise):
    _by_time = True
    _apart = 1
    _options: tuple[str, ...] = ("eta", "use_clipped_model_output")

    def step(
        self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Generators = None, variance_noise: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if eta > 0 and generator is not None and variance_noise is not None:
            raise ValueError("step: expected a generator or variance_noise, got both")
        draws = generator if variance_noise is None else variance_noise
        return Fused._step(self, model_output, timestep, sample, draws, return_dict, (eta, use_clipped_model_output))

    def _may_draw(self, options: Options) -> bool:
        return bool(options[0] > 0)


class DDIMScheduler(_DDIM, diffusers.DDIMScheduler):
    pass


class DDIMParallelScheduler(_DDIM, diffusers.DDIMParallelScheduler):
    pass


class CogVideoXDDIMScheduler(_DDIM, diffusers.CogVideoXDDIMScheduler):
    """This class draws nothing, whatever eta is, like diffusers' class."""

    _draws = ""

    def _may_draw(self, options: Options) -> bool:
        return False


class DDIMInverseScheduler(Steps, diffusers.DDIMInverseScheduler):
    _by_time = True


class _Beside:
    """An option: the timestep beside the step's own, the next one or the last one. All are equal, because each row of
    a run has one."""

    def __init__(self, t: Any) -> None:
        self.t = t

    def __eq__(self, other: object) -> bool:
        return type(other) is _Beside

    def __hash__(self) -> int:
        return 0


class UnCLIPScheduler(AddsNoise, diffusers.UnCLIPScheduler):
    _by_time = _spreads = True
    _options = ("prev_timestep",)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, prev_timestep: Any = None, generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        options = (self._following(timestep, prev_timestep),)
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)

    @torch.compiler.disable
    def _following(self, t: Any, after: Any) -> Any:
        """Returns `_Beside` if the run goes on to its next timestep, or ends, as in diffusers' pipeline."""
        clock = self._time()
        place = None if clock is None or (isinstance(t, Tensor) and t.numel() > 1) else self._place(t, clock)
        if clock is None or place is None:
            return after
        if after is None:
            goes_on = place + 1 == len(clock.host) and self._run is not None and self._run.options == (_Beside(None),)
            return _Beside(None) if goes_on else None
        return _Beside(after) if self._place(after, clock) == place + 1 else int(after)

    def _given(self, options: Options, i: int | None = None) -> dict[str, Any]:
        after = options[0]
        if isinstance(after, _Beside):
            timesteps = self.__dict__["timesteps"]
            after = after.t if i is None else timesteps[i + 1].cpu() if i + 1 < len(timesteps) else None
        return {"prev_timestep": after}


class CogVideoXDPMScheduler(AddsNoise, diffusers.CogVideoXDPMScheduler):
    """From a run's second step on, diffusers draws twice and uses the second draw. Here a Noise is drawn once, and a
    generator twice."""

    _memory = ("_old",)  # the argument old_pred_original_sample, within a step
    _gaps = True
    _by_time = True
    _draws = "sample"
    _options = ("timestep_back",)
    _old: Any
    num_inference_steps: Any

    def step(
        self, model_output: Any, old_pred_original_sample: Any, timestep: Any, timestep_back: Any, sample: Any,
        eta: float = 0.0, use_clipped_model_output: bool = False, generator: Generators = None,
        variance_noise: Any = None, return_dict: bool = False,
    ) -> Any:  # fmt: skip
        old, back = old_pred_original_sample, timestep_back
        return self._step_from(old, back, model_output, timestep, sample, generator, return_dict)

    @torch.compiler.disable
    def _step_from(self, old: Any, back: Any, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool) -> Any:
        self.__dict__["_old"] = old
        options = (_Beside(back) if old is None else self._before(t, back),)
        result = Fused._step(self, m, t, x, draws, return_dict and self._is_second_order(t), options)
        self.__dict__["_old"] = None
        return result

    def _before(self, t: Any, back: Any) -> Any:
        """Returns `_Beside` if `back` is the timestep before t."""
        clock = self._time()
        if clock is None or back is None or (isinstance(t, Tensor) and t.numel() > 1):
            return back
        place = self._place(t, clock)
        return _Beside(back) if place and self._place(back, clock) == place - 1 else int(back)

    def _is_second_order(self, t: Any) -> bool:
        """Tells whether diffusers' step makes no tuple where its result class is wanted."""
        return self._old is not None and bool(t >= self.config.num_train_timesteps // self.num_inference_steps)

    def _given(self, options: Options, i: int | None = None) -> dict[str, Any]:
        back = options[0]
        if isinstance(back, _Beside):
            back = back.t if i is None else self.__dict__["timesteps"][i - 1].cpu() if i else None
        return {"timestep_back": back}

    @staticmethod
    def _adapted(step: Any) -> Any:
        def adapted(
            self: Any, m: Any, t: Any, x: Any, timestep_back: Any, return_dict: bool = True, **options: Any
        ) -> Any:
            result = step(self, m, self._old, t, timestep_back, x, return_dict=False, **options)
            self._old = result[1]
            return DDIMSchedulerOutput(*result) if return_dict else result

        return adapted


class TCDScheduler(AddsNoise, diffusers.TCDScheduler):
    _draws = "sample"
    _by_time = True  # the present level by time, the next one by counting
    _options = ("eta",)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.3, generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, (eta,))

    def _may_draw(self, options: Options) -> bool:
        return bool(options[0] > 0)


class LCMScheduler(StochasticSteps, diffusers.LCMScheduler):
    _apart = 1
    _draws = "sample"
    _leftovers = ("sigma_data",)
    _by_time = True  # the present level by time, the next one by counting


class _Scaled(AddsNoise):
    """A network is given x / sqrt(sigma^2 + 1)."""

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """Does what diffusers' method does, with the same bits: the divisors of a run are found at once."""
        state, theirs = self.__dict__, self._base.scale_model_input
        sigmas, i = state["sigmas"], state["_step_index"]
        if (
            i is None or is_replaced(self._base, theirs) or is_traced() or torch.is_inference(sigmas)
        ):  # which does not count writes
            return theirs(self, sample, timestep)
        divisors = self._kept_levels("divisors", lambda n: ((sigmas**2 + 1) ** 0.5).unbind())
        if "is_scale_input_called" in state:
            state["is_scale_input_called"] = True
        return sample / divisors[i]


class _Churns(Fused):
    """This scheduler has the churn of Karras et al. 2022, algorithm 2."""

    _options = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    _upcasts = _refuses = True

    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        options = s_churn, s_tmin, s_tmax, s_noise
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)

    def _may_draw(self, options: Options) -> bool:
        return bool(options[0] > 0)


class EulerDiscreteScheduler(_Churns, _Scaled, diffusers.EulerDiscreteScheduler):
    pass


class EDMEulerScheduler(_Churns, AddsNoise, diffusers.EDMEulerScheduler):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
        pred_original_sample: Any = None,
    ) -> Any:  # fmt: skip
        options = s_churn, s_tmin, s_tmax, s_noise
        if pred_original_sample is not None:
            return self._base_step(
                model_output, timestep, sample, generator, return_dict, options, "for a pred_original_sample",
                pred_original_sample=pred_original_sample,
            )  # fmt: skip
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)


class EulerAncestralDiscreteScheduler(Stochastic, _Scaled, diffusers.EulerAncestralDiscreteScheduler):
    _upcasts = _refuses = True


class HeunDiscreteScheduler(Steps, _Scaled, diffusers.HeunDiscreteScheduler):
    _memory = ("prev_derivative", "sample")
    _leftovers = ("sample",)


class KDPM2DiscreteScheduler(Deterministic, diffusers.KDPM2DiscreteScheduler):
    _memory = ("sample",)
    _gaps = True


class KDPM2AncestralDiscreteScheduler(StochasticSteps, diffusers.KDPM2AncestralDiscreteScheduler):
    _memory = ("sample",)
    _gaps = True
    _leftovers = ("dt",)


if has("LMSDiscreteScheduler"):

    class LMSDiscreteScheduler(_Scaled, diffusers.LMSDiscreteScheduler):
        _memory = ("derivatives",)
        _gaps = True
        _options = ("order",)
        _draws = ""

        def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
            return Fused._step(self, model_output, timestep, sample, None, return_dict, (order,))


class IPNDMScheduler(Steps, diffusers.IPNDMScheduler):
    _memory = ("ets",)
    _gaps = True
    _source = "betas"


class DEISMultistepScheduler(Deterministic, diffusers.DEISMultistepScheduler):
    _memory = ("model_outputs",)


class SASolverScheduler(StochasticSteps, diffusers.SASolverScheduler):
    _memory = ("model_outputs", "last_sample", "last_noise")
    _leftovers = ("last_noise", "timestep_list", "this_predictor_order", "this_corrector_order")
    _levels_by_time, _levels_source = True, "alphas_cumprod"


class CMStochasticIterativeScheduler(StochasticSteps, diffusers.CMStochasticIterativeScheduler):
    _refuses = True


class _DPMSolver(AddsNoise):
    _memory: tuple[str, ...] = ("model_outputs",)
    _draws = "sample"

    def _may_draw(self, options: Options) -> bool:
        return "sde" in str(self.config.get("algorithm_type"))


class DPMSolverSinglestepScheduler(_DPMSolver, StochasticSteps, diffusers.DPMSolverSinglestepScheduler):
    _memory = ("model_outputs", "sample")
    _gaps = True


class EDMDPMSolverMultistepScheduler(_DPMSolver, StochasticSteps, diffusers.EDMDPMSolverMultistepScheduler):
    pass


class _DPMSolverMultistep(_DPMSolver):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Generators = None, variance_noise: Any = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        draws = generator if variance_noise is None else variance_noise
        return Fused._step(self, model_output, timestep, sample, draws, return_dict)


class DPMSolverMultistepScheduler(_DPMSolverMultistep, diffusers.DPMSolverMultistepScheduler):
    _apart = 2
    _draws = "float32"


class DPMSolverMultistepInverseScheduler(_DPMSolverMultistep, diffusers.DPMSolverMultistepInverseScheduler):
    index_for_timestep = diffusers.DPMSolverMultistepScheduler.index_for_timestep  # its methods repeat it


if has("DPMSolverSDEScheduler"):  # torchsde is installed
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    class DPMSolverSDEScheduler(AddsNoise, diffusers.DPMSolverSDEScheduler):
        sigmas: Any
        noise_sampler_seed: Any
        _memory = ("sample",)
        _gaps = True
        _options = ("s_noise",)

        def step(
            self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, s_noise: float = 1.0
        ) -> Any:
            return Fused._step(self, model_output, timestep, sample, None, return_dict, (s_noise,))

        def _tree(self, draws: None, x: Any) -> Any:
            levels = self.sigmas[self.sigmas > 0]
            return BrownianTreeNoiseSampler(x, levels.min().item(), levels.max().item(), self.noise_sampler_seed)

    class CosineDPMSolverMultistepScheduler(_DPMSolver, StochasticSteps, diffusers.CosineDPMSolverMultistepScheduler):
        def _may_draw(self, options: Options) -> bool:
            return True

        def _tree(self, draws: Any, x: Any) -> Any:
            if draws is not None:
                draws = [one.initial_seed() for one in draws] if isinstance(draws, list) else draws.initial_seed()
            return BrownianTreeNoiseSampler(x, self.config.sigma_min, self.config.sigma_max, draws)


class UniPCMultistepScheduler(Deterministic, diffusers.UniPCMultistepScheduler):
    _memory = ("model_outputs", "timestep_list", "last_sample")
    _leftovers = ("timestep_list", "this_order")
    _one_by_one = True


class PNDMScheduler(Deterministic, diffusers.PNDMScheduler):
    _counter = "counter"
    _apart = 1
    _memory = ("ets", "cur_model_output", "cur_sample")
    _leftovers = ("cur_sample",)
    _by_time = True


class _Flow(Forward):
    _upcasts = _refuses = True

    def scale_noise(self, sample: Any, timestep: Any, noise: Any = None) -> Any:
        """diffusers' scale_noise, in one pass; `noise` may be a `nf.Noise`, as in add_noise of the other classes."""
        fallback = functools.partial(self._base_noised, "scale_noise", sample, noise, timestep)
        return fallback(None) if noise is None else self._noised(sample, noise, timestep, fallback)


class FlowMatchEulerDiscreteScheduler(_Flow, diffusers.FlowMatchEulerDiscreteScheduler):
    _draws = "float32"

    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None,
        per_token_timesteps: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if per_token_timesteps is not None:
            return self._step_of_tokens(model_output, timestep, sample, generator, return_dict, per_token_timesteps)
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)

    @torch.compiler.disable
    def _step_of_tokens(self, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool, times: Any) -> Any:
        """Takes the step of a token from its own time, which is any number, to the next lower sigma of the run."""
        clock: Any = self._time()
        tensors = all(isinstance(each, Tensor) for each in (m, x, times))
        if tensors and x.dim() == 3 and times.shape == x.shape[:2]:
            reason = self._cannot(m, x)
        else:
            reason = "for per_token_timesteps of another shape than (B, T) beside (B, T, C)"
        if reason or clock is None or not is_float(t):
            return self._base_step(m, t, x, draws, return_dict, (), reason, per_token_timesteps=times)
        i, wide = self._place(t, clock), torch.promote_types(x.dtype, torch.float32)
        table, index = self._rows_of_tokens(times.cpu().to(clock.host.dtype).numpy(), clock.host.numpy())
        x, m, kind, z = x.to(wide), m.to(wide), torch.promote_types(m.dtype, torch.float32), None
        if self._may_draw(()):
            draws = self._drawn(self.noise if draws is None else draws, m, x)
            z = field(draws, i, x, wide) if are_names(draws) else draws
        sample = nf.update(table, index, x, m, noise=z).to(kind)
        self._step_index += 1
        return FlowMatchEulerDiscreteSchedulerOutput(sample) if return_dict else (sample,)

    def _rows_of_tokens(self, times: Any, timesteps: Any) -> tuple[nf.Tableau, Any]:
        """Returns a table for all timesteps, and for all other times that came up in the run; and each token's row."""
        config = self.config
        kept = self._kept_levels(("tokens", self.coefficients), lambda n: [np.unique(timesteps), None, None])
        values, table, made_for = kept
        at = values.searchsorted(times)
        if made_for is not config or at.max() == len(values) or (values[at] != times).any():
            values = np.union1d(values, times)
            key = type(self), self.coefficients, values.tobytes(), fingerprint(self)
            table = planned(key, lambda: rows.tokens(self, self._base, values))
            kept[:] = values, table, config
            at = values.searchsorted(times)
        return table, at

    def _may_draw(self, options: Options) -> bool:
        return bool(self.config.get("stochastic_sampling"))


class FlowMatchHeunDiscreteScheduler(_Churns, diffusers.FlowMatchHeunDiscreteScheduler):
    _memory = ("prev_derivative", "sample")
    _leftovers = ("sample",)


class FlowMatchLCMScheduler(_Flow, diffusers.FlowMatchLCMScheduler):
    _draws = "wide"
    _init_size: Any

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Generators = None, return_dict: bool = True
    ) -> Any:
        if self._init_size is None or self._step_index is None:
            self._init_size = model_output.size()[2:]  # the size that diffusers' step sets: rows are found on vectors
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)

    def _cannot(self, m: Any, x: Any) -> str | None:
        resizes = self.__dict__["_scale_factors"] and self.__dict__["_upscale_mode"]
        return "where it changes the size" if resizes else super()._cannot(m, x)


if has("LTXEulerAncestralRFScheduler"):

    class LTXEulerAncestralRFScheduler(Stochastic, diffusers.LTXEulerAncestralRFScheduler):
        _one_by_one = True
        _draws = "float32"
        _refuses = True


class SCMScheduler(Stochastic, diffusers.SCMScheduler):
    _source = "timesteps"
    _draws = "float32"

    def _cannot(self, m: Any, x: Any) -> str | None:
        return "for half precision, of which it makes float32" if x.dtype.itemsize < 4 else super()._cannot(m, x)


class ConsistencyDecoderScheduler(Stochastic, scheduling_consistency_decoder.ConsistencyDecoderScheduler):  # type: ignore[misc]
    _by_time = True
    _one_by_one = True
    _source = "sqrt_alphas_cumprod"
    _draws = "sample"


class DDPMWuerstchenScheduler(StochasticSteps, diffusers.DDPMWuerstchenScheduler):
    """Its times are timesteps or, as in diffusers' pipelines, timesteps rounded to the model's dtype."""

    _by_time = True
    _one_by_one = True
    _upcasts = True
    _source = "s"
    _options = ("rounded",)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Generators = None, return_dict: bool = True
    ) -> Any:
        return self._step_at(model_output, timestep, sample, generator, return_dict)

    @torch.compiler.disable
    def _step_at(self, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool) -> Any:
        clock: Any = self._time()
        place = self._rounded_place(t, clock)
        if place is None:
            reason = "at times that are not one of its timesteps"
            return self._base_step(m, t, x, draws, return_dict, (None,), reason)
        return Fused._step(self, m, clock.timesteps[place], x, draws, return_dict, (t.dtype,))

    def _rounded_place(self, t: Any, clock: Any) -> int | None:
        """Returns the place of the timestep that all entries of t are, maybe rounded."""
        if clock is None or type(t) is not Tensor or t.dim() != 1 or not len(t):
            return None
        if t.dtype is clock.host.dtype and (len(t) == 1 or t.stride(0) == 0) and (here := clock.entry(t)) is not None:
            return int(here)
        here = t.cpu()
        place = int((clock.host - here[0]).abs().argmin())
        return place if bool((clock.host[place].to(t.dtype) == here).all()) else None

    @staticmethod
    def _adapted(step: Any) -> Any:
        def adapted(self: Any, m: Any, t: Any, x: Any, rounded: Any, **options: Any) -> Any:
            if rounded is not None:  # else t is as the user gave it
                t = t.to(rounded) if isinstance(t, Tensor) else torch.tensor(t, dtype=rounded).double()
                t = t.expand(len(x))
            return step(self, m, t, x, **options)

        return adapted

    def _at_levels(self, x0: Any, noise: Any, t: Any, fallback: Any) -> Any:
        """Its times are any numbers from 0 to 1."""
        clean, white = torch.eye(2, device=x0.device).unsqueeze(1).expand(2, len(t), 2)
        alpha, sigma = self._base.add_noise(self, clean, white, t).unbind(1)
        return nf.noised(x0, alpha, sigma, noise)


class _Finds(Fused):
    """A class whose index_for_timestep in diffusers takes no timesteps to search, and has no two equal ones."""

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> Any:
        if schedule_timesteps is None:
            return self._base.index_for_timestep(self, timestep)
        return operator.indexOf(schedule_timesteps.tolist(), timestep)


if has("MiniMaxH3Scheduler"):

    class _Begins:
        """The work of diffusers' step itself."""

        _begin_index: Any
        index_for_timestep: Any

        def _init_step_index(self, timestep: Any) -> None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin

    class MiniMaxH3Scheduler(_Finds, Steps, _Begins, diffusers.MiniMaxH3Scheduler):
        _one_by_one = True
        _refuses = True


if has("FlowMapEulerDiscreteScheduler"):

    class FlowMapEulerDiscreteScheduler(_Finds, diffusers.FlowMapEulerDiscreteScheduler):
        _one_by_one = True
        _by_time = True
        _source = "sigmas"
        _draws = ""
        _upcasts = True

        def step(
            self, model_output: Any, timestep: Any, sample: Any, r_timestep: Any = None, return_dict: bool = True
        ) -> Any:
            if r_timestep is not None:
                return self._base_step(
                    model_output, timestep, sample, None, return_dict, (), "for an r_timestep", r_timestep=r_timestep
                )
            return Fused._step(self, model_output, timestep, sample, None, return_dict)


class FlowMatchSDEDiscreteScheduler(FlowMatchEulerDiscreteScheduler):
    """Flow matching whose steps draw noise and give their log-densities, for reinforcement learning. Its methods have
    the arguments and results of the class of this name in verl-omni. See docs/rl.md.

    sde_type: "sde" is `noisefuse.samplers.flow_sde` (Flow-GRPO), "cps" is `flow_cps`, with -(x' - mean)^2 as its
    log-density, as in verl-omni, and "dance_sde" is `dance_sde`, whose eta is the noise_level.

    What differs: the log-density is that of the returned x', rounded to its dtype, so that reading x' again gives the
    same value; the formulas are computed in float64, from float32 sigmas; a step of standard deviation 0 has no
    log-density, and raises an error (except "cps"). The options s_churn to s_noise are ignored, as in verl-omni.
    """

    _draws = "model"

    @torch.compiler.disable
    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None,
        per_token_timesteps: Any = None, return_dict: bool = True, noise_level: float = 0.7, prev_sample: Any = None,
        sde_type: str = "sde", return_logprobs: bool = True, include_logprob_normalizer: bool = True,
    ) -> Any:  # fmt: skip
        """Returns the next sample, drawn or given (prev_sample), and its log-density, differentiable through
        model_output.

        Args:
            timestep: an entry of `timesteps`; or one for each sample (B,), which leaves the run's position unchanged.
            generator: as for the other classes; it may be a Noise or a list with one for each sample.
            noise_level, sde_type: see the class.
            prev_sample: the sample whose log-density is wanted. None: it is drawn.
            include_logprob_normalizer: False leaves out the Gaussian's constants, as in some of verl-omni's pipelines.
                The log-density of "cps" never has them.

        Returns:
            `FlowMatchSDEDiscreteSchedulerOutput`, or with return_dict=False a tuple.

        Raises:
            ValueError: timesteps are integers, or none of `timesteps`; sde_type has another name; sigmas do not go down
                to 0; a log-density is wanted and nothing is drawn. NotImplementedError: per_token_timesteps.
        """
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise ValueError(
                f"timestep: expected an entry of {type(self).__name__}.timesteps, got the integer {timestep}"
            )
        many = isinstance(timestep, Tensor) and timestep.numel() > 1
        clock: Any = self._time()
        place = self._places(timestep, clock, sample.shape) if many else self._place(timestep, clock)
        rule = self._rule(sde_type, noise_level, per_token_timesteps)
        wanted = generator, prev_sample, model_output.dtype, return_logprobs, include_logprob_normalizer
        taken = self._taken(rule, place, sample, model_output, *wanted)
        if not many:
            self._step_index += 1
        return FlowMatchSDEDiscreteSchedulerOutput(*taken) if return_dict else taken

    @torch.compiler.disable
    def sample_previous_step(
        self, sample: Any, model_output: Any, timestep: Any = None, generator: Generators = None,
        per_token_timesteps: Any = None, noise_level: float = 0.7, prev_sample: Any = None, sde_type: str = "sde",
        return_logprobs: bool = True, return_sqrt_dt: bool = False, include_logprob_normalizer: bool = True,
    ) -> Any:  # fmt: skip
        """Does the same as `step`, but leaves the run's position unchanged, and does not round to the model output's
        dtype.

        timestep: a time for each sample (B,). None: the run's position.

        Returns:
            (prev_sample, log_prob, prev_sample_mean, std_dev_t), and with return_sqrt_dt also each sample's sqrt(sigma
            - sigma'), float32 (B,), by which GRPO-Guard normalises its ratios.
        """
        clock: Any = self._time()
        place = self._step_index if timestep is None else self._places(timestep, clock, sample.shape)
        rule = self._rule(sde_type, noise_level, per_token_timesteps)
        kind = torch.promote_types(sample.dtype, torch.float32) if prev_sample is None else prev_sample.dtype
        wanted = generator, prev_sample, kind, return_logprobs, include_logprob_normalizer
        taken = self._taken(rule, place, sample, model_output, *wanted)
        return (*taken, rule.roots(_on_host(place), sample)) if return_sqrt_dt else taken

    def _rule(self, kind: str, level: float, per_token: Any) -> Transitions:
        if per_token is not None:
            raise NotImplementedError(f"{type(self).__name__} takes no per_token_timesteps")
        sigmas = self._kept_levels("sde", lambda n: tuple(self.__dict__["sigmas"].double().tolist()))
        return transitions(kind, sigmas, float(level))

    def _taken(
        self, rule: Transitions, place: Any, x: Any, m: Any, draws: Generators, x_next: Any, dtype: torch.dtype,
        log_prob: bool, constants: bool,
    ) -> Any:  # fmt: skip
        draws = self.noise if draws is None else draws
        return rule.take(_on_host(place), x, m, lambda: self._drawn(draws, m, x), x_next, dtype, log_prob, constants)


def _on_host(place: Any) -> Any:
    return place.cpu().numpy() if isinstance(place, Tensor) else place


_LACK = {name for name in __all__ if name not in globals() and hasattr(diffusers, name)}  # SciPy is missing, say
__all__ = [name for name in __all__ if name in globals() or name == "accelerate"]  # the names that this diffusers has

if not TYPE_CHECKING:  # type checkers would take every name as one of this module's

    def __getattr__(name: str) -> Any:
        if name in _LACK:
            getattr(diffusers, name).from_config({})  # it raises an ImportError that names the class's requirements
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def accelerate(target: Target, *, noise: Noises | None = None, coefficients: str | None = None) -> Target:
    """Returns a pipeline's schedulers, or a scheduler, with one-pass steps.

    Args:
        target: a pipeline of diffusers, whose schedulers are replaced in place, with those of the pipelines in it; or a
            scheduler. For a pipeline, a line in the log lists the replaced schedulers. It is a warning if some stay
            because their classes are not covered. The pipeline then takes a Noise as its ``generator``, too, or a list
            of one for each picture: its draws are stream 2, and the steps' stream 3.
        noise: the noise for steps without a generator: see `Fused`. In a pipeline with several schedulers it goes to
            the one called `scheduler`, because two with the same Noise draw the same numbers. None: the scheduler keeps
            its noise, if it is one of these classes already.
        coefficients: "compat", diffusers' own numbers, or "exact", the same formulas in float64. None: the scheduler
            keeps its own, and diffusers' schedulers get "compat".

    Returns:
        The pipeline, or a new scheduler with the state of the old one. A saved pipeline names diffusers' class.

    Raises:
        TypeError: the scheduler's class is not covered, or derived from a covered one; no scheduler of the pipeline is
            covered; noise is no noise.
        ValueError: coefficients has another name; a noise has another stream than 0, or the pipeline has no covered
            scheduler called `scheduler`.
    """
    if isinstance(target, diffusers.DiffusionPipeline):
        _accelerate_all(target, noise, coefficients)
        take_keys(target)
        return target
    kind = _covering(target)
    if kind is None:
        raise TypeError(f"accelerate: expected a pipeline or one of {_covered()}, got {type(target).__name__}")
    scheduler: Any = copy.copy(target)
    scheduler.__class__ = kind
    scheduler._name_diffusers()
    if noise is not None:
        scheduler.noise = noise
    scheduler.coefficients = coefficients or scheduler.coefficients
    return scheduler


def _covering(scheduler: Any) -> Any:
    """Returns our class for the scheduler's class."""
    return SCHEDULERS.get(type(scheduler), type(scheduler) if isinstance(scheduler, Fused) else None)


def _covered() -> str:
    return ", ".join(sorted(kind.__name__ for kind in SCHEDULERS.values()))


def _accelerate_all(pipeline: Any, noise: Noises | None, coefficients: str | None) -> None:
    """Accelerates all schedulers, or none if an argument is wrong."""
    kind, placed = type(pipeline).__name__, [*_schedulers(pipeline)]
    named: dict[int, str] = {}
    for _, name, scheduler in placed:
        named.setdefault(id(scheduler), f"{name} ({type(scheduler).__name__})")
    covered = {id(scheduler): scheduler for _, _, scheduler in placed if _covering(scheduler) is not None}
    left = ", ".join(name for key, name in named.items() if key not in covered)
    if not covered:
        its = f"whose schedulers are {left}" if left else "which has none"
        raise TypeError(f"accelerate: expected a pipeline with one of {_covered()}, got a {kind}, {its}")
    drawing = next(iter(named)) if len(named) == 1 else id(getattr(pipeline, "scheduler", None))
    if noise is not None and drawing not in covered:
        its = ", ".join(named.values())
        raise ValueError(f"noise: expected a pipeline that has a covered `scheduler`, got a {kind}, which has {its}")
    new = {
        key: accelerate(scheduler, noise=noise if key == drawing else None, coefficients=coefficients)
        for key, scheduler in covered.items()
    }
    for owner, name, scheduler in placed:
        if id(scheduler) in new:
            setattr(owner, name, new[id(scheduler)])
    line = f"{kind}: one-pass steps for {', '.join(named[key] for key in new)}"
    if left:
        logger.warning(f"{line}; not for {left}, whose class is not covered")
    else:
        logger.info(line)


def _schedulers(pipeline: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yields each scheduler of a pipeline, of its models and of the pipelines in it: the owner, the name, the
    scheduler."""
    for name, part in vars(pipeline).items():
        if isinstance(part, SchedulerMixin):
            yield pipeline, name, part
        elif isinstance(part, diffusers.DiffusionPipeline | torch.nn.Module):
            yield from _schedulers(part)
