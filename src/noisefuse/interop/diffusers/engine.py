# SPDX-License-Identifier: Apache-2.0
"""The steps that the schedulers share: in one pass over memory, or diffusers' own."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import noisefuse as nf

from ...language.noise import SAMPLER, START, Noises, are_names, at_row, check_stream_0
from ..torch import internals
from ..torch.internals import is_traced, version, writes
from . import rows
from .exact import rebound
from .keys import of_step
from .refusals import GRAD, SCHEDULERS, patched, replaced, tell, without_kernel
from .rows import Plan, Step, Unsupported
from .runs import Clock, Options, Run, run_from, wrong_times

Generators: TypeAlias = Any  # a torch.Generator, a list of them, Noises, a Tensor, or None
_ALSO = """
        Beyond diffusers: `generator` may be a `noisefuse.Noise`, or one for each sample; `timestep` may be a tensor of
        times for each sample or token, where the scheduler remembers nothing. See docs/diffusers.md.
"""
_new_output, _set_item = OrderedDict.__new__, OrderedDict.__setitem__


class Fused:
    """The base class of the schedulers.

    Attributes:
        noise: the noise for steps without a generator: a Noise, or one for each sample. The step at position i of the
            timesteps draws at `noise.step + i`, stream 3. None: torch's default generator, as in diffusers.
        coefficients: "compat", diffusers' float32 numbers, or "exact", the same formulas in float64.
    """

    __module__ = __package__  # users import it from there

    @property
    def noise(self) -> Noises | None:
        return self.__dict__.get("noise")

    @noise.setter
    def noise(self, noise: Noises | None) -> None:
        if noise is not None:
            check_stream_0(noise)
        self.__dict__["noise"] = noise

    @property
    def coefficients(self) -> str:
        return self.__dict__.get("coefficients", "compat")

    @coefficients.setter
    def coefficients(self, coefficients: str) -> None:
        if coefficients not in ("compat", "exact"):
            raise ValueError(f"coefficients = {coefficients!r}: expected 'compat' or 'exact'")
        self.__dict__["coefficients"], self._run = coefficients, None

    _memory: tuple[str, ...] = ()  # attributes that hold tensors from step to step
    _gaps = False  # step looks at which of them exist, and no counter would tell
    # Attributes that a finished run leaves, and that the next one sets before it reads them.
    _leftovers: tuple[str, ...] = ()
    _options: tuple[str, ...] = ()  # arguments of step that change numbers
    _by_time = False  # step looks at the time that it is given; others count
    _source: str  # the attribute that coefficients are computed from
    # The same properties for add_noise, by default those of step.
    _levels_by_time: bool
    _levels_source: str
    _counter = "_step_index"  # the attribute that counts a run's steps
    _apart = 0  # so many last steps go ways of their own
    _one_by_one = False  # step cannot do several rows at once, see lanes.py
    _upcasts = False  # step computes in float32, and returns the dtype of the model's output
    _refuses = False  # step refuses integer times
    _spreads = False  # a learned variance is a factor of the noise
    # The tensor whose dtype diffusers' noise has: "model", "sample", "float32" or "wide", the wider of the model's and
    # float32; "" if it draws none.
    _draws = "model"

    _base: Any = None  # diffusers' class
    _clock: Clock | None = None
    _run: Run | None = None
    _replay: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # arguments of set_timesteps

    # Attributes of diffusers' classes.
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
        """Makes a saved pipeline name diffusers' own class, which exists without noisefuse: it writes down
        `scheduler.__module__` and the class's name. The class itself keeps its module, which pickle needs. (diffusers
        has no names for classes derived from ours.)
        """
        if type(self).__module__ == __package__ and type(self).__name__ == self._base.__name__:
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
        ours._base, ours.set_timesteps, ours.step = base, set_timesteps, rebound(ours.step, ours.step.__globals__)
        ours.step.__doc__ = f"{base.step.__doc__}\n{_ALSO}"
        SCHEDULERS.setdefault(base, ours)

    def __getstate__(self) -> dict[str, Any]:
        """Drops the timesteps' places, because copies have timesteps elsewhere."""
        return {name: value for name, value in vars(self).items() if name not in ("_clock", "_run", "_levels")}

    # ---- one step ------------------------------------------------------------------------------------------

    def _step(self, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool, options: Options = ()) -> Any:
        """Takes the fast path: most calls are decided here, within a microsecond; others take the checked path."""
        if is_traced():  # torch.compile cannot trace this, so the graph breaks
            return internals.untraced(self._checked_step, m, t, x, draws, return_dict, options)
        state = self.__dict__
        run: Run | None = state.get("_run")
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
            i = run.clock.entry(t) if run.by_time else state["_step_index"]
            step = run.steps.get(i)
            if step is not None and (not run.counts or run.plan.state(state) == step.state):
                return Fused._apply(self, run, i, step, m, t, x, draws, return_dict)
        return self._checked_step(m, t, x, draws, return_dict, options)

    def _apply(
        self, run: Run, i: Any, step: Step, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool,
        mixed: bool = False,
    ) -> Any:  # fmt: skip
        """Applies the row in one pass, then sets the state as diffusers' step would. mixed: x and m differ in dtype."""
        plan, state = run.plan, self.__dict__
        if run.upcasts and run.memory and x.dtype.itemsize < 4:
            x, mixed = x.float(), True  # the wider dtype is remembered, too
        if plan.spread is not None:
            if m.shape[1:2] != (2 * x.shape[1],):
                return self._base_step(m, t, x, draws, return_dict, run.options, "without a part for the variance")
            m, v = m.chunk(2, 1)
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
                draws = state.get("noise")  # self.noise, found faster
            if step.interval is not None:
                draws = self._increment(draws, step, i, x)
            z = draws if type(draws) is nf.Noise else self._drawn(draws, m, x, step.draws)
            if plan.spread is not None:
                z = _spread(plan.spread, i, v.to(_row_dtype(x)), z)
            if step.keeps_noise:
                pool[rows.NOISE] = z = field(z, i, x, x.dtype) if are_names(z) else z
        try:
            outputs = nf.update(plan.table, i, x, model, past=past, noise=z, aux_out=step.written)
        except TypeError:
            if not _narrower(past, x.dtype):
                raise
            past = _converted(past, x.dtype)  # diffusers widened x in the step before
            outputs = nf.update(plan.table, i, x, model, past=past, noise=z, aux_out=step.written)
        sample, others = outputs[0], ()  # type: Any, Any
        if plan.keeps:
            pool += outputs
            for name, kept, many in step.remembers:
                state[name] = [*kept(pool)] if many else kept(pool)
            others = step.results(pool)
        state.update(step.after)
        if run.upcasts and (mixed or x.dtype is not torch.float32):
            wide = torch.promote_types(m.dtype, torch.float32)
            sample, others = sample.to(m.dtype), _converted(others, wide, m)
        return _output(plan.output, plan.fields, sample, others) if return_dict else (sample, *others)

    def _drawn(self, draws: Generators, m: Any, x: Any, times: int = 1) -> Any:
        """Returns the noise of a step: a key, or a tensor. times: of so many draws the last counts; a key is one."""
        draws = of_step(draws)
        if isinstance(draws, Tensor) or are_names(draws):
            return draws
        kinds = {"model": m.dtype, "sample": x.dtype, "wide": torch.promote_types(m.dtype, torch.float32)}
        dtype = kinds.get(self._draws, torch.float32)
        for _ in range(times):
            if draws is None or (type(draws) is torch.Generator and draws.device == m.device):
                z = torch.empty_like(m, dtype=dtype, memory_format=torch.contiguous_format)
                z.normal_(generator=draws)  # like torch.randn
            else:
                _check_generators(draws)
                z = randn_tensor(m.shape, generator=draws, device=m.device, dtype=dtype)
        return z if dtype is x.dtype or dtype is torch.float32 else z.float()

    def _increment(self, draws: Generators, step: Step, i: int, x: Any) -> Any:
        """Returns the noise of a Brownian path: diffusers', by its tree; or a Noise's, whose steps are adjacent
        increments."""
        draws = of_step(draws)
        if not are_names(draws):
            if draws is not None:
                _check_generators(draws)
            if self.noise_sampler is None:
                self.noise_sampler = self._tree(draws, x)
            z = self.noise_sampler(*step.interval)
            return z if z.dtype is x.dtype else z.to(_row_dtype(x))  # the tree has the dtype of the first x
        if step.parts is None:
            return draws
        first, second = (field(draws, i - back, x, _row_dtype(x)) for back in (1, 0))
        return step.parts[0] * first + step.parts[1] * second

    # ---- the checked path ----------------------------------------------------------------------------------

    def _checked_step(self, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool, options: Options) -> Any:
        """Takes the first step of a run, or times that are plain numbers or many; and steps that diffusers has to do
        itself."""
        fallback = functools.partial(self._base_step, m, t, x, draws, return_dict, options)
        clock = self._time()
        if (
            clock is None
            or self.__dict__.get("is_scale_input_called") is False
            or not (isinstance(m, Tensor) and isinstance(x, Tensor))
            or (self._refuses and not is_float(t))
        ):
            return fallback(None)  # raises an error, or warns, except for numbers in place of tensors
        if reason := self._cannot(m, x):
            return fallback(reason)
        many = isinstance(t, Tensor) and t.numel() > 1
        i: Any = self._places(t, clock, x.shape) if many else self._place(t, clock)
        if i is None:
            return fallback("at times that are not among its timesteps")
        if not many and i >= len(clock.times):
            return fallback(None)  # raises an error
        run = run_from(self, 0 if many else i, clock, options)
        if isinstance(run.plan, Unsupported):
            return fallback(f"because {run.plan}")
        last = len(clock.times) - 1
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
        self, m: Any, t: Any, x: Any, draws: Generators, return_dict: bool, options: Options, reason: str | None,
        **others: Any,
    ) -> Any:  # fmt: skip
        """Calls diffusers' own step, with these further arguments."""
        name = type(self).__name__
        noise = self.noise if draws is None else draws
        if are_names(noise) and self._may_draw(options):
            raise TypeError(f"{name}: diffusers does this step{f' {reason}' * bool(reason)}, and cannot draw {noise}")
        arguments = {**self._given(options), **others}
        if isinstance(draws, Tensor):
            arguments["variance_noise"] = draws
        elif draws is not None and not are_names(draws):
            _check_generators(draws)
            arguments["generator"] = draws
        result = self._adapted(self._base.step)(self, m, t, x, return_dict=return_dict, **arguments)
        tell(self, "step", reason)
        return result

    @staticmethod
    def _adapted(step: Any) -> Any:
        """Returns diffusers' step with the arguments (self, m, t, x, **given) and a mapping as its result."""
        return step

    def _learned(self) -> str:
        """Returns the variance_type if it is learned, and a factor of the noise; else an empty string."""
        kind = str(self.config.get("variance_type"))
        return kind if self._spreads and kind.startswith("learned") else ""

    def _given(self, options: Options, i: int | None = None) -> dict[str, Any]:
        """Returns the arguments of diffusers' step, as given or at position i of the timesteps."""
        return dict(zip(self._options, options, strict=True))

    def _may_draw(self, options: Options) -> bool:
        return self._draws != ""

    def _cannot(self, m: Any, x: Any) -> str | None:
        config = self.config
        if (x.requires_grad or m.requires_grad) and torch.is_grad_enabled():
            return GRAD
        if not self._spreads and str(config.get("variance_type")).startswith("learned"):
            return "where the variance is learned"
        if self.__dict__.get("solver_p"):
            return "with a solver_p"
        if own := replaced(type(self)):  # type: ignore[arg-type]
            return f"because {own} of its own replaces diffusers'"
        if reason := patched(self, "add_noise", "scale_noise"):
            return reason
        if reason := without_kernel(x) or without_kernel(m):
            return reason
        same = x.dtype is m.dtype
        if not same and (torch.promote_types(x.dtype, m.dtype) != x.dtype or config.get("prediction_type") == "sample"):
            return f"for a {x.dtype} sample and a {m.dtype} model output"
        return None

    # ---- which row -----------------------------------------------------------------------------------------

    def _time(self) -> Clock | None:
        timesteps, clock = self.__dict__["timesteps"], self._clock
        if clock is None or clock.timesteps is not timesteps or clock.version != version(timesteps):
            self._clock = clock = Clock.of(timesteps)
        return clock

    def _place(self, t: Any, clock: Clock) -> Any:
        if self.__dict__.get("_step_index", self) is None:
            self._init_step_index(t)
        return clock.place(t) if self._by_time else self._step_index

    def _places(self, t: Tensor, clock: Clock, shape: torch.Size) -> Tensor:
        """Returns a position for each sample, or token."""
        name = type(self).__name__
        if self._memory:
            raise ValueError(
                f"timestep: {name} remembers earlier steps and takes one time, not {tuple(t.shape)} of them"
            )
        if shape[: t.dim()] != t.shape:
            raise wrong_times("timestep", t, "sample's", shape)
        matches = t.reshape(-1, 1) == clock.timesteps.to(t.device)
        known = matches.any(1)
        if not bool(known.all()):
            raise ValueError(f"timestep: expected entries of {name}.timesteps, got {t[~known.reshape(t.shape)]}")
        return matches.int().argmax(1).reshape(t.shape)

    def _init_step_index(self, timestep: Any) -> None:
        clock = self._time()
        if self._begin_index is None and clock is not None and isinstance(timestep, Tensor):
            place = clock.entry(timestep) if timestep.dim() == 0 else None
            if place is not None:
                alone = len({*clock.times}) == len(clock.addresses)  # else the class knows which of equal times counts
                self._step_index = place if alone else self.index_for_timestep(clock.host[place], clock.host)
                return
        super()._init_step_index(timestep)  # type: ignore[misc]

    def start(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Returns initial latents, standard normal: `pipeline(latents=pipeline.scheduler.start(shape))`. Pipelines
        multiply them by init_noise_sigma themselves. `nf.randn(shape, noise.at(stream=2))` gives the same numbers.

        ValueError: the scheduler has no `noise`.
        """
        if self.noise is None:
            raise ValueError("start: this scheduler has no noise of its own: set scheduler.noise = nf.Noise(seed)")
        noise = self.noise
        at: Any = at_row(noise, 0, START)
        out = torch.empty(*shape, dtype=dtype, device=device)
        return nf.randn(tuple(shape), at, dtype=dtype, out=out)


class Stochastic(Fused):
    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Generators = None, return_dict: bool = True
    ) -> Any:
        return Fused._step(self, model_output, timestep, sample, generator, return_dict)


class Steps(Fused):
    """A scheduler without noise."""

    _draws = ""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        return Fused._step(self, model_output, timestep, sample, None, return_dict)


def field(noise: Noises, i: int, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the stored noise of position i of the timesteps."""
    out: Any = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return nf.randn(tuple(x.shape), at_row(noise, i, SAMPLER), out=out)


def _spread(spread: Any, i: Any, v: Tensor, z: Any) -> Tensor:
    """Returns the noise times its standard deviation, from the model's prediction v."""
    table, deviation = spread
    z = z.to(v.dtype) if isinstance(z, Tensor) else z
    before, z = nf.update(table, i, v, noise=z, aux_out=1)
    return deviation(before).mul_(z)


def is_float(t: Any) -> bool:
    """Tells whether t is a float, or a tensor of floats."""
    return t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float)


def _row_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of a row's arithmetic on x."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_generators(value: Any) -> None:
    """Raises an error if neither diffusers nor a kernel can draw from it."""
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


def _common(plan: Plan) -> Step:
    """Returns the part that all steps have in common, for samples at different steps."""
    steps = [*plan.steps.values()]
    return replace(steps[0], draws=max(step.draws for step in steps), after={})


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype, besides: Tensor | None = None) -> list[Tensor]:
    """Converts all of them but one. (A comprehension in a step would cost each call the cells that it shares with
    it.)"""
    return [x if x is besides else x.to(dtype) for x in tensors]


def _narrower(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Tells whether all can be converted without a loss, and some have to be."""
    kinds = {x.dtype for x in tensors}
    return kinds != {dtype} and all(torch.promote_types(kind, dtype) is dtype for kind in kinds)


def _output(kind: Any, fields: tuple[str, ...], sample: Tensor, others: Sequence[Any]) -> Any:
    """Makes an object of diffusers' result class, as its dataclass would, in an eighth of the time."""
    output: Any = _new_output(kind)
    attributes, name = output.__dict__, fields[0]
    _set_item(output, name, sample)
    attributes[name] = sample
    if others:
        for name, value in zip(fields[1:], others, strict=True):
            _set_item(output, name, value)
            attributes[name] = value
    return output
