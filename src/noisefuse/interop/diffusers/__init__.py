# SPDX-License-Identifier: Apache-2.0
"""Schedulers of diffusers whose `step` and `add_noise` are one pass over memory, and nothing else is different.

    from noisefuse.interop.diffusers import DDPMScheduler      # a subclass of diffusers' class of that name
    accelerate(pipeline)                                       # or so, in place

Their numbers come from diffusers' own code (rows.py). What a row cannot do diffusers does, and a line in the
log says so.
"""

from __future__ import annotations

import copy
import functools
import logging
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

import noisefuse as nf

from ...ground.needs import needs
from ...language.levels import FLOATS
from ...noise import SAMPLER, START, are_names, at_row, names_of, need_stream_0

with needs(__name__, "diffusers", "torch"):
    import diffusers
    import torch
    from diffusers import SchedulerMixin  # is looked for beside a class that a pipeline loads, too
    from diffusers.utils.torch_utils import randn_tensor
    from torch import Tensor

from ..diffusers_sde import FlowMatchSDEDiscreteSchedulerOutput, Transitions, transitions
from ..torch.internals import is_traced, untraced, version, writes
from . import rows
from .exact import rebound
from .rows import Plan, Step, Unsupported

__all__ = [
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMatchSDEDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "accelerate",
]

Noises: TypeAlias = nf.Noise | Sequence[nf.Noise]
Draws: TypeAlias = Any  # torch.Generator, a list of them, Noises, a Tensor, or None
Options: TypeAlias = tuple[Any, ...]
Target = TypeVar("Target")

logger: logging.Logger = logging.getLogger(__name__)
_said: set[str] = set()
_plans: OrderedDict[Any, Plan | Unsupported] = OrderedDict()  # the latest of all schedulers
_KEPT_PLANS = 64
_ALSO = """
        Beyond diffusers: `generator` may be a `noisefuse.Noise`, or one for each sample; `timestep` may be a tensor of
        times for each sample or token, where the scheduler remembers nothing. See docs/diffusers.md.
"""
_REPLACEABLE = {"step", "add_noise", "scale_noise", "set_timesteps", "scale_model_input"}  # not used by rows
_FLOATS = {getattr(torch, name) for name in FLOATS}
_GRAD = "for tensors that require grad"
_new_output, _set_item = OrderedDict.__new__, OrderedDict.__setitem__


class _Clock(NamedTuple):
    """The timesteps of a scheduler, to be found without asking a device for their values."""

    timesteps: Tensor
    version: int | None  # of their values: torch/internals.py
    host: Tensor
    places: dict[int, int]  # by the address of an entry: loops run over views of `timesteps`
    values: dict[float, int]  # by its value: the first place that has it
    levels: dict[float, int]  # for add_noise, by value, as they are asked for


@dataclass(frozen=True, slots=True)
class _Run:
    """A plan, what it was made for, and what its steps need to know of their class: a scheduler's own attributes are
    slow to find, for diffusers gives it a __getattr__."""

    timesteps: Tensor
    source: Tensor
    config: Any
    versions: int | None  # of the values of both tensors
    options: Options
    dtype: torch.dtype  # of the timesteps
    places: dict[int, int]
    plan: Any  # Plan | Unsupported
    steps: dict[int | None, Step]
    named: str  # the class's _source, and so on
    memory: tuple[str, ...]
    by_time: bool
    counts: bool  # whether a step depends on counters that the scheduler keeps
    upcasts: bool


class Fused:
    """What the classes share.

    Attributes:
        noise: what steps draw from where they are given no generator: a Noise, or one for each sample. The step at
            position i of the timesteps draws at `noise.step + i`, stream 3. None: torch's default generator, as in
            diffusers.
        coefficients: "compat", diffusers' float32 numbers, or "exact", the same formulas in float64.
    """

    @property
    def noise(self) -> Noises | None:
        return self.__dict__.get("noise")

    @noise.setter
    def noise(self, noise: Noises | None) -> None:
        if noise is not None:
            need_stream_0(noise)
        self.__dict__["noise"] = noise

    @property
    def coefficients(self) -> str:
        return self.__dict__.get("coefficients", "compat")  # type: ignore[no-any-return]

    @coefficients.setter
    def coefficients(self, coefficients: str) -> None:
        if coefficients not in ("compat", "exact"):
            raise ValueError(f"coefficients = {coefficients!r}: expected 'compat' or 'exact'")
        self.__dict__["coefficients"], self._run = coefficients, None

    _memory: tuple[str, ...] = ()  # attributes that hold tensors from step to step
    _gaps = False  # step looks at which of them there are, and counts nothing that would tell
    _leftovers: tuple[
        str, ...
    ] = ()  # attributes that a finished run leaves, and that the next sets before it reads them
    _options: tuple[str, ...] = ()  # arguments of step that change numbers
    _by_time = False  # step looks at the time that it is given; others count
    _source: str  # the attribute that coefficients are computed from
    # The same of add_noise, which does as step does unless it is said.
    _levels_by_time: bool
    _levels_source: str
    _one_by_one = False  # step does what cannot be done for several rows at once, see lanes.py
    _upcasts = False  # step computes in float32, and returns the dtype of the model's output
    _refuses = False  # step refuses integer times
    # Whose dtype the noise has that diffusers draws: "model", "sample", "float32" or "wide", the wider of the model's
    # and float32; "": it draws none.
    _draws = "model"

    _base: Any = None  # the class of diffusers
    _clock: _Clock | None = None
    _run: _Run | None = None
    _replay: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # arguments of set_timesteps

    # What diffusers' classes have.
    config: Any
    _begin_index: Any = None
    _step_index: Any
    index_for_timestep: Any
    _threshold_sample: Any
    noise_sampler: Any
    _tree: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        new = super().__new__(cls)
        new._name_diffusers()
        return new

    def _name_diffusers(self) -> None:
        """A pipeline that is saved writes down `scheduler.__module__` and the class's name: let it be diffusers' own
        class, which is there where noisefuse is not. The class itself keeps its module, which pickle wants. (Of classes
        derived from ours diffusers has none.)
        """
        if type(self).__module__ == __name__ and type(self).__name__ == self._base.__name__:
            self.__dict__["__module__"] = "diffusers"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        ours: Any = cls
        base: Any = cls.__bases__[-1]
        if not base.__module__.startswith("diffusers."):
            return

        @functools.wraps(base.set_timesteps)
        def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
            base.set_timesteps(self, *args, **kwargs)
            self._replay = args, kwargs

        if not hasattr(ours, "_source"):
            ours._source = "alphas_cumprod" if ours._by_time else "sigmas"
        if not hasattr(ours, "_levels_source"):
            ours._levels_by_time, ours._levels_source = ours._by_time, ours._source
        ours._base, ours.set_timesteps, ours.step = base, set_timesteps, rebound(ours.step, globals())
        ours.step.__doc__ = f"{base.step.__doc__}\n{_ALSO}"

    def __getstate__(self) -> dict[str, Any]:
        """Copies have timesteps elsewhere."""
        return {name: value for name, value in vars(self).items() if name not in ("_clock", "_run", "_levels")}

    # ---- one step ------------------------------------------------------------------------------------------

    def _step(self, m: Any, t: Any, x: Any, draws: Draws, return_dict: bool, options: Options = ()) -> Any:
        """The fast path: most calls are decided here, within a microsecond; others take the checked path."""
        if is_traced():  # by torch.compile, which cannot follow: there the graph breaks
            return self._checked_step(m, t, x, draws, return_dict, options)
        state = self.__dict__
        run: _Run | None = state.get("_run")
        if (
            run is not None
            and (timesteps := run.timesteps) is state["timesteps"]
            and (source := run.source) is state[run.named]
            and run.config is state["_internal_dict"]
            and (run.versions is None or writes(timesteps) + writes(source) == run.versions)
            and type(t) is Tensor
            and t.dtype is run.dtype
            and not t.dim()
            and x.dtype is m.dtype
            and not (x.requires_grad or m.requires_grad)
            and run.options == options
        ):
            i = run.places.get(t.data_ptr()) if run.by_time else state["_step_index"]
            step = run.steps.get(i)
            if step is not None and (not run.counts or run.plan.state(state) == step.state):
                return Fused._apply(self, run, i, step, m, t, x, draws, return_dict)
        return self._checked_step(m, t, x, draws, return_dict, options)

    def _apply(
        self, run: _Run, i: Any, step: Step, m: Any, t: Any, x: Any, draws: Draws, return_dict: bool,
        mixed: bool = False,
    ) -> Any:  # fmt: skip
        """The row, in one pass; then what diffusers' step would have left behind. mixed: x and m differ in dtype."""
        plan, state = run.plan, self.__dict__
        if run.upcasts and run.memory and x.dtype.itemsize < 4:
            x, mixed = x.float(), True  # and so it is remembered
        pool = [None, t, x, m, None, None]  # rows.NOTHING ..
        model, past = m, ()  # type: Any, Any
        if plan.clean is not None:
            pool[rows.CLEAN] = clean = self._threshold_sample(nf.update(plan.clean, i, x, m))
            model = m, clean
        if run.memory:
            pool += rows.items(state, run.memory)
            past = step.past(pool)
            if mixed:
                past = _converted(past, x.dtype)
        z = None
        if step.draws:
            if draws is None:
                draws = state.get("noise")  # self.noise, sooner
            if step.interval is not None:
                draws = self._increment(draws, step, i, x)
            z = draws if type(draws) is nf.Noise else self._drawn(draws, m, x)
            if step.keeps_noise:
                pool[rows.NOISE] = z = _field(z, i, x, x.dtype) if are_names(z) else z
        try:
            made = nf.update(plan.table, i, x, model, past=past, noise=z, aux_out=step.written)
        except TypeError:
            if not _narrower(past, x.dtype):
                raise
            past = _converted(past, x.dtype)  # diffusers made x wider in the step before
            made = nf.update(plan.table, i, x, model, past=past, noise=z, aux_out=step.written)
        pool += made
        for name, kept, many in step.remembers:
            state[name] = [*kept(pool)] if many else kept(pool)
        state.update(step.after)
        sample, others = made[0], step.results(pool)
        if run.upcasts and (mixed or x.dtype is not torch.float32):
            wide = torch.promote_types(m.dtype, torch.float32)
            sample, others = sample.to(m.dtype), _converted(others, wide, m)
        return _output(plan.output, plan.fields, sample, others) if return_dict else (sample, *others)

    def _drawn(self, draws: Draws, m: Any, x: Any) -> Any:
        """The noise of a step: the name of a field, or a tensor."""
        if isinstance(draws, Tensor) or are_names(draws):
            return draws
        kinds = {"model": m.dtype, "sample": x.dtype, "wide": torch.promote_types(m.dtype, torch.float32)}
        dtype = kinds.get(self._draws, torch.float32)
        if draws is None or (type(draws) is torch.Generator and draws.device == m.device):
            z = torch.empty_like(m, dtype=dtype, memory_format=torch.contiguous_format)
            z.normal_(generator=draws)  # as torch.randn
        else:
            _need_generators(draws)
            z = randn_tensor(m.shape, generator=draws, device=m.device, dtype=dtype)
        return z if dtype is x.dtype or dtype is torch.float32 else z.float()

    def _increment(self, draws: Draws, step: Step, i: int, x: Any) -> Any:
        """Noise of a Brownian path: theirs, by its tree; or a Noise's, whose steps are increments side by side."""
        if not are_names(draws):
            if draws is not None:
                _need_generators(draws)
            if self.noise_sampler is None:
                self.noise_sampler = self._tree(draws, x)
            z = self.noise_sampler(*step.interval)
            return z if z.dtype is x.dtype else z.to(_row_dtype(x))  # the tree has the dtype of the first x
        if step.parts is None:
            return draws
        first, second = (_field(draws, i - back, x, _row_dtype(x)) for back in (1, 0))
        return step.parts[0] * first + step.parts[1] * second

    # ---- the checked path ----------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _checked_step(self, m: Any, t: Any, x: Any, draws: Draws, return_dict: bool, options: Options) -> Any:
        """The first step of a run, times that are plain numbers, or many; and what diffusers has to do itself."""
        fallback = functools.partial(self._base_step, m, t, x, draws, return_dict, options)
        clock = self._time()
        if (
            clock is None
            or self.__dict__.get("is_scale_input_called") is False
            or not (isinstance(m, Tensor) and isinstance(x, Tensor))
            or (self._refuses and not (t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float)))
        ):
            return fallback(None)  # raises an error, or warns, but for numbers in place of tensors
        if reason := self._cannot(m, x):
            return fallback(reason)
        many = isinstance(t, Tensor) and t.numel() > 1
        i: Any = self._places(t, clock, x.shape) if many else self._place(t, clock)
        if i is None:
            return fallback("at times that are not among its timesteps")
        if not many and i >= len(clock.host):
            return fallback(None)  # raises an error
        run = self._run_from(0 if many else i, clock, options)
        if isinstance(run.plan, Unsupported):
            return fallback(f"because {run.plan}")
        last = len(clock.host) - 1
        if last not in run.steps:
            if not many and i == last:
                return fallback(None)  # raises an error
            if many and bool((i == last).any()):
                raise ValueError(f"timestep: there is no step from the last of the timesteps, {clock.host[last]}")
        step = _common(run.plan) if many else run.steps[i]
        if run.counts and not many and run.plan.state(self.__dict__) != step.state:
            return fallback("at times that are not the next of its timesteps")
        return self._apply(run, i, step, m, t, x, draws, return_dict, mixed=x.dtype is not m.dtype)

    def _base_step(
        self, m: Any, t: Any, x: Any, draws: Draws, return_dict: bool, options: Options, reason: str | None,
        **others: Any,
    ) -> Any:  # fmt: skip
        """Calls diffusers' own step, with these further arguments."""
        name = type(self).__name__
        noise = self.noise if draws is None else draws
        if are_names(noise) and self._may_draw(options):
            raise TypeError(f"{name}: diffusers does this step{f' {reason}' * bool(reason)}, and cannot draw {noise}")
        given = {**self._given(options), **others}
        if isinstance(draws, Tensor):
            given["variance_noise"] = draws
        elif draws is not None and not are_names(draws):
            _need_generators(draws)
            given["generator"] = draws
        result = self._base.step(self, m, t, x, return_dict=return_dict, **given)
        self._tell("step", reason)
        return result

    def _tell(self, method: str, reason: str | None) -> None:
        """Logs once why diffusers' own method is used."""
        if reason and (line := f"{type(self).__name__}: diffusers' own {method} is used {reason}") not in _said:
            _said.add(line)
            logger.warning(line)

    def _given(self, options: Options, i: int | None = None) -> dict[str, Any]:
        """The arguments of diffusers' step, as they were given or at position i of the timesteps."""
        return dict(zip(self._options, options, strict=True))

    def _may_draw(self, options: Options) -> bool:
        return self._draws != ""

    def _cannot(self, m: Any, x: Any) -> str | None:
        config = self.config
        if (x.requires_grad or m.requires_grad) and torch.is_grad_enabled():
            return _GRAD
        if str(config.get("variance_type")).startswith("learned"):
            return "where the variance is learned"
        if self.__dict__.get("solver_p"):
            return "with a solver_p"
        if own := _replaced(type(self)):  # type: ignore[arg-type]
            return f"because {own} of its own replaces diffusers'"
        if reason := _without_kernel(x) or _without_kernel(m):
            return reason
        same = x.dtype is m.dtype
        if not same and (torch.promote_types(x.dtype, m.dtype) != x.dtype or config.get("prediction_type") == "sample"):
            return f"for a {x.dtype} sample and a {m.dtype} model output"
        return None

    # ---- which row -----------------------------------------------------------------------------------------

    def _time(self) -> _Clock | None:
        timesteps, clock = self.__dict__["timesteps"], self._clock
        if clock is not None and clock.timesteps is timesteps and clock.version == version(timesteps):
            return clock
        if type(timesteps) is not Tensor or timesteps.dim() != 1:
            return None
        host, size = timesteps.cpu(), timesteps.element_size() * (timesteps.stride(0) if len(timesteps) else 1)
        places = {timesteps.data_ptr() + size * k: k for k in range(len(timesteps))}
        values = {value: k for k, value in reversed([*enumerate(host.tolist())])}
        self._clock = _Clock(timesteps, version(timesteps), host, places, values, {})
        return self._clock

    def _place(self, t: Any, clock: _Clock) -> Any:
        if self.__dict__.get("_step_index", self) is None:
            self._init_step_index(t)
        if not self._by_time:
            return self._step_index
        place = _entry(clock, t) if isinstance(t, Tensor) and t.dtype is clock.host.dtype else None
        if place is None:
            place = clock.values.get(t.item() if isinstance(t, Tensor | np.ndarray) else t)
        return place

    def _places(self, t: Tensor, clock: _Clock, shape: torch.Size) -> Tensor:
        """One for each sample, or token."""
        name = type(self).__name__
        if self._memory:
            raise ValueError(
                f"timestep: {name} remembers earlier steps and takes one time, not {tuple(t.shape)} of them"
            )
        if shape[: t.dim()] != t.shape:
            raise _wrong_times("timestep", t, "sample's", shape)
        found = t.reshape(-1, 1) == clock.timesteps.to(t.device)
        if not bool(found.any(1).all()):
            raise ValueError(f"timestep: expected entries of {name}.timesteps, got {t[~found.any(1).reshape(t.shape)]}")
        return found.int().argmax(1).reshape(t.shape)

    def _init_step_index(self, timestep: Any) -> None:
        clock = self._time()
        if self._begin_index is None and clock is not None and isinstance(timestep, Tensor):
            place = _entry(clock, timestep) if timestep.dim() == 0 else None
            if place is not None:
                self._step_index = self.index_for_timestep(clock.host[place], clock.host)
                return
        super()._init_step_index(timestep)  # type: ignore[misc]

    def _run_from(self, i: int, clock: _Clock, options: Options) -> _Run:
        """The run that has step i as the scheduler is now."""
        state, run = self.__dict__, self._run
        made_for = clock.timesteps, state[self._source], state["_internal_dict"]
        versions = version(*made_for[:2])
        if (
            run is not None
            and all(map(operator.is_, (run.timesteps, run.source, run.config), made_for))
            and (run.versions, run.options) == (versions, options)
        ):
            step = run.steps.get(i)
            if not self._memory or isinstance(run.plan, Unsupported):
                return run
            if step is not None and run.plan.state(state) == step.state:
                return run
        start = i if self._memory else 0
        key = (type(self), self.coefficients, start, options, self._fingerprint())
        plan = _plans.pop(key, None)
        if plan is None:
            try:
                plan = rows.trace(self, self._base, start, options)
            except Unsupported as reason:
                plan = reason
        _plans[key] = plan
        if len(_plans) > _KEPT_PLANS:
            _plans.popitem(last=False)
        steps: Any = {}
        if isinstance(plan, Plan):
            steps = plan.steps
            # Some are set in the first step; the others' values are these, and of tensors the same objects: none is
            # compared by value.
            state.update(rows.unshared(plan.begins))
        self._run = _Run(
            *made_for, versions, options, clock.host.dtype, clock.places, plan, steps, self._source, self._memory,
            self._by_time, isinstance(plan, Plan) and bool(plan.names), self._upcasts,
        )  # fmt: skip
        return self._run

    def _fingerprint(self) -> Any:
        """Returns all that a plan depends on. At the beginning of a run there is no last_sample."""
        left = self._leftovers if self.__dict__.get("last_sample") is None else ()
        skipped = {
            "noise",
            "noise_sampler",
            "is_scale_input_called",
            "_begin_index",
            "_clock",
            "_run",
            "_levels",
            *self._memory,
            *left,
        }
        skipped |= set() if self._memory else {"_step_index"}
        numbers = [_bytes(value) for name, value in vars(self).items() if name not in skipped]
        kept = tuple(name for name in self._memory if name not in left)
        return *numbers, *(value is None for value in rows.items(vars(self), kept))

    # ---- the forward process -------------------------------------------------------------------------------

    def _noised(self, x0: Any, noise: Any, t: Any, fallback: Any) -> Any:
        """alpha x0 + sigma noise in one pass; `fallback(why)` where that is not possible."""
        given = isinstance(noise, Tensor)
        if is_traced():
            return fallback(None) if given else untraced(self._noised, x0, noise, t, fallback)
        if given and not isinstance(x0, Tensor):
            return fallback(None)  # raises an error
        if given and (reason := _without_kernel(x0) or _one_at_many_times(x0, t)):
            return fallback(reason)
        level = self._level(x0, t)
        if level is None:
            return fallback("at times that are not among its timesteps")
        if are_names(noise):
            schedule, index = self._kept_levels("drawn", self._schedule)
            return nf.q_sample(x0, level if index is None else index[level], schedule, noise)
        if not given:
            names_of(noise, "a Tensor, a Noise or a list of them")  # which raises
        if (x0.requires_grad or noise.requires_grad) and torch.is_grad_enabled():
            return fallback(_GRAD)
        if noise.dtype is not x0.dtype:
            return fallback(f"for {x0.dtype} samples and {noise.dtype} noise")
        if noise.shape != x0.shape:
            return fallback("for noise of another shape than the samples'")
        table = self._kept_levels((x0.dtype, self.coefficients), lambda n: self._table(n, x0.dtype))
        return nf.update(table, level, x0, noise=noise)

    def _base_noised(self, method: str, x0: Any, noise: Any, t: Any, reason: str | None) -> Any:
        """diffusers' own add_noise or scale_noise, which take their arguments in other orders."""
        ordered = (x0, noise, t) if method == "add_noise" else (x0, t, noise)
        result = getattr(self._base, method)(self, *ordered)
        self._tell(method, reason)
        return result

    def _level(self, x0: Any, t: Any) -> Any:
        """The level of each sample, or of all: t itself, or where t is among the timesteps, or where the run is."""
        clock = self._time()
        if self._levels_by_time:
            t = t.to(x0.device) if isinstance(t, Tensor) and t.is_cuda else t  # those of the host are checked there
            if not isinstance(t, Tensor) or (many := t.numel()) == 1:
                return t
            if many != len(x0) and t.shape != x0.shape[: t.dim()]:
                raise _wrong_times("timesteps", t, "the samples'", x0.shape)
            return t.reshape(-1) if many == len(x0) else t
        if self._begin_index is not None:
            return self._begin_index if self._step_index is None else self._step_index
        if clock is None:
            return None
        times = t.reshape(-1).tolist()
        if len(times) not in (1, len(x0)):
            raise _wrong_times("timesteps", t, "the samples'", x0.shape)
        for time in {*times} - {*clock.levels}:
            if time not in clock.values:
                return None
            host = clock.host[clock.values[time]]
            clock.levels[time] = self.index_for_timestep(host, clock.host)
        return np.array([clock.levels[time] for time in times])

    def _kept_levels(self, key: Any, make: Any) -> Any:
        """make(how many levels there are), unless it was made for these levels before."""
        state = self.__dict__
        levels, kept = state[self._levels_source], state.setdefault("_levels", {})
        if key not in kept or kept[key][0] is not levels or kept[key][1] != version(levels):
            kept[key] = levels, version(levels), make(len(levels))
        return kept[key][2]

    def _table(self, n: int, dtype: torch.dtype) -> nf.Tableau:
        """Row i is level i."""
        alpha, sigma = rows.levels(self, self._base, n, dtype, exact=self.coefficients == "exact")
        table = np.zeros(n, nf.tableau.ROW)
        table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
        table["out"]["x"], table["out"]["z"] = alpha, sigma
        return nf.Tableau(table)

    def _schedule(self, n: int) -> tuple[nf.Schedule, Any]:
        """All levels that have noise, the least noisy first, and where each level is among them (None: in its place).
        In float64: there is nothing of diffusers' to reproduce in noise of ours."""
        alpha, sigma = rows.levels(self, self._base, n, torch.float64, exact=True)
        if self._levels_by_time:
            return nf.Schedule(alpha, sigma), None
        noisy = sigma > 0
        _, first, place = np.unique(-alpha[noisy] / sigma[noisy], return_index=True, return_inverse=True)
        index = np.full(n, -1)
        index[noisy] = place
        return nf.Schedule(alpha[noisy][first], sigma[noisy][first]), index

    def start(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Initial latents, standard normal: `pipeline(latents=pipeline.scheduler.start(shape))`. Pipelines multiply
        them by init_noise_sigma themselves. Redrawn by `nf.randn(shape, noise.at(stream=2))`.

        ValueError: the scheduler has no `noise`.
        """
        if self.noise is None:
            raise ValueError("start: this scheduler has no noise of its own: set scheduler.noise = nf.Noise(seed)")
        noise = self.noise
        at: Any = at_row(noise, 0, START)
        out = torch.empty(*shape, dtype=dtype, device=device)
        return nf.randn(tuple(shape), at, dtype=dtype, out=out)


class _AddsNoise(Fused):
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        """diffusers' add_noise, in one pass. `noise` may also be a `nf.Noise`, or one for each sample: it is drawn in
        the same pass, the field of `nf.randn(original_samples.shape, noise)`."""
        fallback = functools.partial(self._base_noised, "add_noise", original_samples, noise, timesteps)
        return self._noised(original_samples, noise, timesteps, fallback)


class _Drawn(Fused):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Draws = None, return_dict: bool = True
    ) -> Any:
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)


class _Draws(_Drawn, _AddsNoise):
    pass


class _Steps(Fused):
    """Without noise."""

    _draws = ""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        return Fused._step(self, model_output, timestep, sample, None, return_dict)


class _DrawsNothing(_Steps, _AddsNoise):
    pass


def _has(name: str) -> bool:
    """Whether this diffusers has the class, and what the class needs: some need SciPy."""
    return getattr(diffusers, name, type).__module__.startswith("diffusers.schedulers.")


def _bytes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu().numpy().tobytes()
    if callable(value):  # kept, lest another function come to lie where it lay
        return value
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value)


def _field(noise: Noises, i: int, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What position i of the timesteps draws, stored."""
    out: Any = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return nf.randn(tuple(x.shape), at_row(noise, i, SAMPLER), out=out)  # type: ignore[no-any-return]


def _row_dtype(x: Tensor) -> torch.dtype:
    """Of the arithmetic of a row on x."""
    return torch.promote_types(x.dtype, torch.float32)


def _without_kernel(x: Tensor) -> str | None:
    """Why no kernel can run on it."""
    if x.dtype not in _FLOATS or x.device.type not in ("cpu", "cuda"):
        return f"for tensors of {x.dtype} on {x.device.type}"
    try:
        x.data_ptr()
    except RuntimeError:  # of torch.func.vmap, say
        return "for tensors without memory of their own"
    return None


def _one_at_many_times(x0: Tensor, t: Any) -> str | None:
    """A batch of one, which diffusers expands."""
    expanded = isinstance(t, Tensor) and t.dim() == 1 and len(t) > 1 and x0.dim() > 0 and len(x0) == 1
    return "for one sample at many times" if expanded else None


def _entry(clock: _Clock, t: Tensor) -> int | None:
    """Which of the timesteps it is a view of; None if of none, or if torch.func hides where it lies."""
    try:
        return clock.places.get(t.data_ptr())
    except RuntimeError:
        return None


def _wrong_times(name: str, t: Tensor, whose: str, shape: torch.Size) -> ValueError:
    return ValueError(f"{name}: expected one, or a shape that begins {whose}, {tuple(shape)}, got {tuple(t.shape)}")


def _need_generators(value: Any) -> None:
    """Raises where neither diffusers nor a kernel can draw from it."""
    several = isinstance(value, list | tuple)
    for n, entry in enumerate(value if several else [value]):
        if not isinstance(entry, torch.Generator | nf.Noise):
            name, expected = "generator", "a torch.Generator, a Noise or a list of either"
            if several:
                name, expected = f"generator[{n}]", "a torch.Generator or a Noise"
            raise TypeError(f"{name}: expected {expected}, got {type(entry).__name__}")
    if several and len({isinstance(entry, nf.Noise) for entry in value}) > 1:
        kinds = ", ".join(type(entry).__name__ for entry in value)
        raise TypeError(f"generator: expected a list of one kind, got {kinds}")


@functools.cache
def _replaced(kind: Any) -> str | None:
    """A method of diffusers' that a class derived from one of ours replaces: rows would not know of it."""
    before_ours = kind.__mro__[: kind.__mro__.index(SCHEDULERS[kind._base])]
    names = {name for base in before_ours for name in vars(base) if not name.startswith("__")} - _REPLACEABLE
    return min((name for name in names if callable(getattr(kind._base, name, None))), default=None)


def _common(plan: Plan) -> Step:
    """What all steps do alike, for samples at different ones."""
    steps = [*plan.steps.values()]
    return replace(steps[0], draws=any(step.draws for step in steps), after={})


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype, besides: Tensor | None = None) -> list[Tensor]:
    """All of them but one. (A comprehension in a step would cost each call the cells that it shares with it.)"""
    return [x if x is besides else x.to(dtype) for x in tensors]


def _narrower(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether all can be converted without a loss, and some have to be."""
    kinds = {x.dtype for x in tensors}
    return kinds != {dtype} and all(torch.promote_types(kind, dtype) is dtype for kind in kinds)


def _output(kind: Any, fields: tuple[str, ...], sample: Tensor, others: Sequence[Any]) -> Any:
    """An object of diffusers' class of results, as its dataclass would have made it, in an eighth of the time."""
    output: Any = _new_output(kind)
    attributes, name = output.__dict__, fields[0]
    _set_item(output, name, sample)
    attributes[name] = sample
    if others:
        for name, value in zip(fields[1:], others, strict=True):
            _set_item(output, name, value)
            attributes[name] = value
    return output


# ---- the classes -------------------------------------------------------------------------------------------


class DDPMScheduler(_Draws, diffusers.DDPMScheduler):
    _by_time = True


class DDPMParallelScheduler(_Draws, diffusers.DDPMParallelScheduler):
    _by_time = True


class _DDIM(_AddsNoise):
    _by_time = True
    _options: tuple[str, ...] = ("eta", "use_clipped_model_output")

    def step(
        self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Draws = None, variance_noise: Any = None, return_dict: bool = True,
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
    """Like diffusers' it draws nothing, whatever eta is."""

    _draws = ""

    def _may_draw(self, options: Options) -> bool:
        return False


class DDIMInverseScheduler(_Steps, diffusers.DDIMInverseScheduler):
    _by_time = True


class _Next:
    """An option: the next of the timesteps. All are equal, for the rows of a run have one each."""

    def __init__(self, t: Any) -> None:
        self.t = t

    def __eq__(self, other: object) -> bool:
        return type(other) is _Next

    def __hash__(self) -> int:
        return 0


class UnCLIPScheduler(_AddsNoise, diffusers.UnCLIPScheduler):
    _by_time = True
    _options = ("prev_timestep",)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, prev_timestep: Any = None, generator: Draws = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        options = (self._following(timestep, prev_timestep),)
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _following(self, t: Any, after: Any) -> Any:
        """`_Next` where the run goes on to the next of its timesteps, or from the last, as in diffusers' pipeline."""
        clock = self._time()
        place = None if clock is None or (isinstance(t, Tensor) and t.numel() > 1) else self._place(t, clock)
        if clock is None or place is None:
            return after
        if after is None:
            goes_on = place + 1 == len(clock.host) and self._run is not None and self._run.options == (_Next(None),)
            return _Next(None) if goes_on else None
        return _Next(after) if self._place(after, clock) == place + 1 else int(after)

    def _given(self, options: Options, i: int | None = None) -> dict[str, Any]:
        after = options[0]
        if isinstance(after, _Next):
            timesteps = self.__dict__["timesteps"]
            after = after.t if i is None else timesteps[i + 1].cpu() if i + 1 < len(timesteps) else None
        return {"prev_timestep": after}


class TCDScheduler(_AddsNoise, diffusers.TCDScheduler):
    _draws = "sample"
    _by_time = True  # for where it is, and counts for where it goes
    _options = ("eta",)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.3, generator: Draws = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, (eta,))

    def _may_draw(self, options: Options) -> bool:
        return bool(options[0] > 0)


class LCMScheduler(_Draws, diffusers.LCMScheduler):
    _draws = "sample"
    _leftovers = ("sigma_data",)
    _by_time = True  # for where it is, and counts for where it goes


class _Churns(Fused):
    """With the churn of Karras et al. 2022, algorithm 2."""

    _options = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    _upcasts = _refuses = True

    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Draws = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        options = s_churn, s_tmin, s_tmax, s_noise
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)

    def _may_draw(self, options: Options) -> bool:
        return bool(options[0] > 0)


class EulerDiscreteScheduler(_Churns, _AddsNoise, diffusers.EulerDiscreteScheduler):
    pass


class EDMEulerScheduler(_Churns, _AddsNoise, diffusers.EDMEulerScheduler):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Draws = None, return_dict: bool = True,
        pred_original_sample: Any = None,
    ) -> Any:  # fmt: skip
        options = s_churn, s_tmin, s_tmax, s_noise
        if pred_original_sample is not None:
            return self._base_step(
                model_output, timestep, sample, generator, return_dict, options, "for a pred_original_sample",
                pred_original_sample=pred_original_sample,
            )  # fmt: skip
        return Fused._step(self, model_output, timestep, sample, generator, return_dict, options)


class EulerAncestralDiscreteScheduler(_Draws, diffusers.EulerAncestralDiscreteScheduler):
    _upcasts = _refuses = True


class HeunDiscreteScheduler(_DrawsNothing, diffusers.HeunDiscreteScheduler):
    _memory = ("prev_derivative", "sample")
    _leftovers = ("sample",)


class KDPM2DiscreteScheduler(_DrawsNothing, diffusers.KDPM2DiscreteScheduler):
    _memory = ("sample",)
    _gaps = True


class KDPM2AncestralDiscreteScheduler(_Draws, diffusers.KDPM2AncestralDiscreteScheduler):
    _memory = ("sample",)
    _gaps = True
    _leftovers = ("dt",)


if _has("LMSDiscreteScheduler"):

    class LMSDiscreteScheduler(_AddsNoise, diffusers.LMSDiscreteScheduler):
        _memory = ("derivatives",)
        _gaps = True
        _options = ("order",)
        _draws = ""

        def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
            return Fused._step(self, model_output, timestep, sample, None, return_dict, (order,))


class IPNDMScheduler(_Steps, diffusers.IPNDMScheduler):
    _memory = ("ets",)
    _gaps = True
    _source = "betas"


class DEISMultistepScheduler(_DrawsNothing, diffusers.DEISMultistepScheduler):
    _memory = ("model_outputs",)


class SASolverScheduler(_Draws, diffusers.SASolverScheduler):
    _memory = ("model_outputs", "last_sample", "last_noise")
    _leftovers = ("last_noise", "timestep_list", "this_predictor_order", "this_corrector_order")
    _levels_by_time, _levels_source = True, "alphas_cumprod"


class CMStochasticIterativeScheduler(_Draws, diffusers.CMStochasticIterativeScheduler):
    _refuses = True


class _DPMSolver(_AddsNoise):
    _memory: tuple[str, ...] = ("model_outputs",)
    _draws = "sample"

    def _may_draw(self, options: Options) -> bool:
        return "sde" in str(self.config.get("algorithm_type"))


class DPMSolverSinglestepScheduler(_DPMSolver, _Draws, diffusers.DPMSolverSinglestepScheduler):
    _memory = ("model_outputs", "sample")
    _gaps = True


class EDMDPMSolverMultistepScheduler(_DPMSolver, _Draws, diffusers.EDMDPMSolverMultistepScheduler):
    pass


class _DPMSolverMultistep(_DPMSolver):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Draws = None, variance_noise: Any = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        draws = generator if variance_noise is None else variance_noise
        return Fused._step(self, model_output, timestep, sample, draws, return_dict)


class DPMSolverMultistepScheduler(_DPMSolverMultistep, diffusers.DPMSolverMultistepScheduler):
    _draws = "float32"


class DPMSolverMultistepInverseScheduler(_DPMSolverMultistep, diffusers.DPMSolverMultistepInverseScheduler):
    index_for_timestep = diffusers.DPMSolverMultistepScheduler.index_for_timestep  # written out twice in its methods


if _has("DPMSolverSDEScheduler"):  # torchsde is there
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    class DPMSolverSDEScheduler(_AddsNoise, diffusers.DPMSolverSDEScheduler):
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

    class CosineDPMSolverMultistepScheduler(_DPMSolver, _Draws, diffusers.CosineDPMSolverMultistepScheduler):
        def _may_draw(self, options: Options) -> bool:
            return True

        def _tree(self, draws: Any, x: Any) -> Any:
            if draws is not None:
                draws = [one.initial_seed() for one in draws] if isinstance(draws, list) else draws.initial_seed()
            return BrownianTreeNoiseSampler(x, self.config.sigma_min, self.config.sigma_max, draws)


class UniPCMultistepScheduler(_DrawsNothing, diffusers.UniPCMultistepScheduler):
    _memory = ("model_outputs", "timestep_list", "last_sample")
    _leftovers = ("timestep_list", "this_order")
    _one_by_one = True


class PNDMScheduler(_DrawsNothing, diffusers.PNDMScheduler):
    _memory = ("ets", "cur_model_output", "cur_sample")
    _leftovers = ("cur_sample",)
    _by_time = True


class _Flow(Fused):
    _upcasts = _refuses = True

    def scale_noise(self, sample: Any, timestep: Any, noise: Any = None) -> Any:
        """diffusers' scale_noise, in one pass; `noise` may be a `nf.Noise`, as in add_noise of the other classes."""
        fallback = functools.partial(self._base_noised, "scale_noise", sample, noise, timestep)
        return fallback(None) if noise is None else self._noised(sample, noise, timestep, fallback)


class FlowMatchEulerDiscreteScheduler(_Flow, diffusers.FlowMatchEulerDiscreteScheduler):
    _draws = "float32"

    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Draws = None, per_token_timesteps: Any = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if per_token_timesteps is not None:
            return self._base_step(
                model_output, timestep, sample, generator, return_dict, (), "for per_token_timesteps",
                per_token_timesteps=per_token_timesteps,
            )  # fmt: skip
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)

    def _may_draw(self, options: Options) -> bool:
        return bool(self.config.get("stochastic_sampling"))


class FlowMatchHeunDiscreteScheduler(_Churns, diffusers.FlowMatchHeunDiscreteScheduler):
    _memory = ("prev_derivative", "sample")
    _leftovers = ("sample",)


class FlowMatchLCMScheduler(_Flow, diffusers.FlowMatchLCMScheduler):
    _draws = "wide"
    _init_size: Any

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Draws = None, return_dict: bool = True
    ) -> Any:
        if self._init_size is None or self._step_index is None:
            self._init_size = model_output.size()[2:]  # as diffusers' step, which rows are found for on vectors
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)

    def _cannot(self, m: Any, x: Any) -> str | None:
        resizes = self.__dict__["_scale_factors"] and self.__dict__["_upscale_mode"]
        return "where it changes the size" if resizes else super()._cannot(m, x)


if _has("LTXEulerAncestralRFScheduler"):

    class LTXEulerAncestralRFScheduler(_Drawn, diffusers.LTXEulerAncestralRFScheduler):
        _one_by_one = True
        _draws = "float32"
        _refuses = True


class SCMScheduler(_Drawn, diffusers.SCMScheduler):
    _source = "timesteps"
    _draws = "float32"

    def _cannot(self, m: Any, x: Any) -> str | None:
        return "for half precision, of which it makes float32" if x.dtype.itemsize < 4 else super()._cannot(m, x)


class _Finds(Fused):
    """Whose diffusers' index_for_timestep takes no timesteps to look in, nor has two that are equal."""

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> Any:
        if schedule_timesteps is None:
            return self._base.index_for_timestep(self, timestep)
        return operator.indexOf(schedule_timesteps.tolist(), timestep)


if _has("MiniMaxH3Scheduler"):

    class _Begins:
        """What diffusers' step does in itself."""

        _begin_index: Any
        index_for_timestep: Any

        def _init_step_index(self, timestep: Any) -> None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin

    class MiniMaxH3Scheduler(_Finds, _Steps, _Begins, diffusers.MiniMaxH3Scheduler):
        _one_by_one = True
        _refuses = True


if _has("FlowMapEulerDiscreteScheduler"):

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
    """Flow matching whose steps draw noise and give their log-densities, for reinforcement learning; its methods take
    and return what those of the class of this name in verl-omni do. See docs/rl.md.

    sde_type: "sde" is `noisefuse.samplers.flow_sde` (Flow-GRPO), "cps" `flow_cps`, with -(x' - mean)^2 for its
    log-density, as there, and "dance_sde" `dance_sde`, whose eta is the noise_level.

    What differs: the log-density is that of x' as it is returned, rounded to its dtype, so that it is found again when
    x' is read again; the formulas are computed in float64, of float32 sigmas; a step of standard deviation 0 has none,
    and says so (but for "cps"). The options s_churn to s_noise are ignored, as there.
    """

    _draws = "model"

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(
        self, model_output: Any, timestep: Any, sample: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Draws = None, per_token_timesteps: Any = None,
        return_dict: bool = True, noise_level: float = 0.7, prev_sample: Any = None, sde_type: str = "sde",
        return_logprobs: bool = True, include_logprob_normalizer: bool = True,
    ) -> Any:  # fmt: skip
        """The next sample, drawn or given (prev_sample), and its log-density, differentiable through model_output.

        Args:
            timestep: an entry of `timesteps`; or one for each sample (B,), and then the run stays where it is.
            generator: as for the other classes, a Noise or one for each sample among them.
            noise_level, sde_type: see the class.
            prev_sample: whose log-density is asked for. None: it is drawn.
            include_logprob_normalizer: False: the log-density without the Gaussian's constants, as some of
                verl-omni's pipelines take it. That of "cps" never has them.

        Returns:
            `FlowMatchSDEDiscreteSchedulerOutput`, or with return_dict=False a tuple.

        Raises:
            ValueError: integer timesteps, or others than those of `timesteps`; an sde_type of another name; sigmas that
                do not go down to 0; a log-density where nothing is drawn. NotImplementedError: per_token_timesteps.
        """
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise ValueError(
                f"timestep: expected an entry of {type(self).__name__}.timesteps, got the integer {timestep}"
            )
        many = isinstance(timestep, Tensor) and timestep.numel() > 1
        clock: Any = self._time()
        place = self._places(timestep, clock, sample.shape) if many else self._place(timestep, clock)
        rule = self._rule(sde_type, noise_level, per_token_timesteps)
        given = generator, prev_sample, model_output.dtype, return_logprobs, include_logprob_normalizer
        taken = self._taken(rule, place, sample, model_output, *given)
        if not many:
            self._step_index += 1
        return FlowMatchSDEDiscreteSchedulerOutput(*taken) if return_dict else taken

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def sample_previous_step(
        self, sample: Any, model_output: Any, timestep: Any = None, generator: Draws = None,
        per_token_timesteps: Any = None, noise_level: float = 0.7, prev_sample: Any = None, sde_type: str = "sde",
        return_logprobs: bool = True, return_sqrt_dt: bool = False, include_logprob_normalizer: bool = True,
    ) -> Any:  # fmt: skip
        """As `step`, but the run stays where it is, and what is drawn is not rounded to the model output's dtype.

        timestep: of each sample (B,). None: where the run is.

        Returns:
            (prev_sample, log_prob, prev_sample_mean, std_dev_t), and with return_sqrt_dt sqrt(sigma - sigma') of each
            sample after them, float32 (B,), by which GRPO-Guard normalises its ratios.
        """
        clock: Any = self._time()
        place = self._step_index if timestep is None else self._places(timestep, clock, sample.shape)
        rule = self._rule(sde_type, noise_level, per_token_timesteps)
        kind = torch.promote_types(sample.dtype, torch.float32) if prev_sample is None else prev_sample.dtype
        given = generator, prev_sample, kind, return_logprobs, include_logprob_normalizer
        taken = self._taken(rule, place, sample, model_output, *given)
        return (*taken, rule.roots(_on_host(place), sample)) if return_sqrt_dt else taken

    def _rule(self, kind: str, level: float, per_token: Any) -> Transitions:
        if per_token is not None:
            raise NotImplementedError(f"{type(self).__name__} takes no per_token_timesteps")
        sigmas = self._kept_levels("sde", lambda n: tuple(self.__dict__["sigmas"].double().tolist()))
        return transitions(kind, sigmas, float(level))

    def _taken(
        self, rule: Transitions, place: Any, x: Any, m: Any, draws: Draws, x_next: Any, dtype: torch.dtype,
        log_prob: bool, constants: bool,
    ) -> Any:  # fmt: skip
        draws = self.noise if draws is None else draws
        return rule.take(_on_host(place), x, m, lambda: self._drawn(draws, m, x), x_next, dtype, log_prob, constants)


def _on_host(place: Any) -> Any:
    return place.cpu().numpy() if isinstance(place, Tensor) else place


_OTHERS = {"accelerate", "FlowMatchSDEDiscreteScheduler"}
_LACK = {name for name in __all__ if name not in globals() and hasattr(diffusers, name)}  # SciPy, say
__all__ = [name for name in __all__ if name in globals() or name == "accelerate"]  # what this diffusers has
SCHEDULERS = {globals()[name]._base: globals()[name] for name in __all__ if name not in _OTHERS}

if not TYPE_CHECKING:  # checkers would take every name for one of this module's

    def __getattr__(name: str) -> Any:
        if name in _LACK:
            getattr(diffusers, name).from_config({})  # raises an ImportError that says what the class needs
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def accelerate(target: Target, *, noise: Noises | None = None, coefficients: str | None = None) -> Target:
    """The schedulers of a pipeline, or a scheduler, with one-pass steps.

    Args:
        target: a pipeline of diffusers, whose schedulers are replaced in place, those of the pipelines that it consists
            of among them; or a scheduler. Of a pipeline a line in the log says which were replaced: a warning if some
            stay, since their classes are not covered.
        noise: what steps draw from where no generator is given: see `Fused`. Of a pipeline with several schedulers that
            is the one of the name `scheduler`, since two that have the same Noise draw the same numbers. None: as the
            scheduler has it, if it is one of these already.
        coefficients: "compat", diffusers' own numbers, or "exact", the same formulas in float64. None: as the scheduler
            has it, and "compat" if it is diffusers'.

    Returns:
        the pipeline, or a new scheduler with the state of the old one. A pipeline that is saved names diffusers' class.

    Raises:
        TypeError: a scheduler of another class than ours have, or of a class derived from them; a pipeline without any
            that is covered; noise that is none.
        ValueError: coefficients of another name; a noise of another stream than 0, or for a pipeline of which no
            scheduler is called `scheduler`.
    """
    if isinstance(target, diffusers.DiffusionPipeline):
        _accelerate_all(target, noise, coefficients)
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
    return scheduler  # type: ignore[no-any-return]


def _covering(scheduler: Any) -> Any:
    """The class of ours that does what the scheduler's does."""
    return SCHEDULERS.get(type(scheduler), type(scheduler) if isinstance(scheduler, Fused) else None)


def _covered() -> str:
    return ", ".join(sorted(kind.__name__ for kind in SCHEDULERS.values()))


def _accelerate_all(pipeline: Any, noise: Noises | None, coefficients: str | None) -> None:
    """Accelerates all of them, or none if an argument is wrong."""
    kind, found = type(pipeline).__name__, [*_schedulers(pipeline)]
    named: dict[int, str] = {}
    for _, name, scheduler in found:
        named.setdefault(id(scheduler), f"{name} ({type(scheduler).__name__})")
    covered = {id(scheduler): scheduler for _, _, scheduler in found if _covering(scheduler) is not None}
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
    for owner, name, scheduler in found:
        if id(scheduler) in new:
            setattr(owner, name, new[id(scheduler)])
    line = f"{kind}: one-pass steps for {', '.join(named[key] for key in new)}"
    if left:
        logger.warning(f"{line}; not for {left}, whose class is not covered")
    else:
        logger.info(line)


def _schedulers(pipeline: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yields each scheduler of a pipeline and of the pipelines in it: the owner, the name, the scheduler."""
    for name, part in vars(pipeline).items():
        if isinstance(part, SchedulerMixin):
            yield pipeline, name, part
        elif isinstance(part, diffusers.DiffusionPipeline):
            yield from _schedulers(part)
