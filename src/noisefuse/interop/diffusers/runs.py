# SPDX-License-Identifier: Apache-2.0
"""The runs of a scheduler: its times, and the plan for its present state, which is kept."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...ground.kept import kept_property
from ..torch.internals import version
from . import formulas, rows
from .rows import Plan, Step, Unsupported

Options: TypeAlias = tuple[Any, ...]

plans: OrderedDict[Any, Any] = OrderedDict()  # the latest plans of all schedulers, or the reasons against them
_KEPT_PLANS = 64

# Attributes that no plan depends on, and the configuration, which has a place of its own in a plan's key.
_UNREAD = {
    "noise", "_internal_dict", "noise_sampler", "is_scale_input_called", "_begin_index", "_clock", "_run", "_levels",
}  # fmt: skip


@dataclass
class Clock:
    """The timesteps of a scheduler, in a form that needs no values from a device."""

    timesteps: Tensor
    version: int | None  # the version of their values: torch/internals.py
    host: Tensor
    times: list[float]
    addresses: range  # of the entries, as loops run over views of `timesteps`; none if they share one
    levels: dict[float, int]  # by value, for add_noise, filled on use

    @classmethod
    def of(cls, timesteps: Any) -> Clock | None:
        """Returns None for what is no list of times."""
        if type(timesteps) is not Tensor or timesteps.dim() != 1:
            return None
        host, first = timesteps.cpu(), timesteps.data_ptr()
        times, size = host.tolist(), timesteps.element_size() * timesteps.stride(0)
        addresses = range(first, first + size * len(times), size) if size else range(0)
        return cls(timesteps, version(timesteps), host, times, addresses, {})

    @kept_property
    def values(self) -> dict[float, int]:
        """Places by value: the first of equal ones. Most runs go by addresses alone."""
        return dict(zip(reversed(self.times), range(len(self.times) - 1, -1, -1), strict=True))

    def entry(self, t: Tensor) -> int | None:
        """Returns the place of the timestep that t is a view of; None if there is none, or torch.func hides the
        memory."""
        try:
            address = t.data_ptr()
        except RuntimeError:
            return None
        return self.addresses.index(address) if address in self.addresses else None

    def place(self, t: Any) -> int | None:
        """Returns the place of the timestep that t is, or has the value of."""
        place = self.entry(t) if isinstance(t, Tensor) and t.dtype is self.host.dtype else None
        if place is None:
            place = self.values.get(t.item() if isinstance(t, Tensor | np.ndarray) else t)
        return place


@dataclass(slots=True)
class Run:
    """A plan, its conditions, and its class's properties for steps: a scheduler's own attributes are slow to find,
    because diffusers gives it a __getattr__. (It is never changed; frozen objects take long to make.)"""

    timesteps: Tensor
    source: Tensor
    config: Any
    configured: str  # its text
    versions: int | None  # the versions of both tensors' values
    options: Options
    dtype: torch.dtype  # the timesteps' dtype
    clock: Clock
    plan: Any  # Plan | Unsupported
    steps: dict[int | None, Step]
    named: str  # the class's _source, and so on
    memory: tuple[str, ...]
    by_time: bool
    counts: bool  # whether a step depends on the scheduler's counters
    upcasts: bool


def run_from(scheduler: Any, i: int, clock: Clock, options: Options) -> Run:
    """Returns the run for step i in the scheduler's present state."""
    state, run = scheduler.__dict__, scheduler._run
    made_for = clock.timesteps, state[scheduler._source], state["_internal_dict"]
    versions = version(*made_for[:2])
    if (
        run is not None
        and all(map(operator.is_, (run.timesteps, run.source, run.config), made_for))
        and (run.versions, run.options) == (versions, options)
    ):
        step = run.steps.get(i)
        if not scheduler._memory or isinstance(run.plan, Unsupported):
            return run
        if step is not None and run.plan.state(state) == step.state:
            return run
    start = i if scheduler._memory else 0
    configured = _configured(scheduler)
    key = (type(scheduler), scheduler.coefficients, start, options, fingerprint(scheduler, configured))
    plan = planned(key, lambda: formulas.plan(scheduler, start, options))
    steps: Any = {}
    if isinstance(plan, Plan):
        steps = plan.steps
        # Some are set in the first step; the others have these values, with the same tensor objects: tensors are
        # not compared by value.
        state.update(rows.unshared(plan.begins))
    counts = isinstance(plan, Plan) and (bool(plan.names) or scheduler._gaps)
    scheduler._run = Run(
        *made_for, configured, versions, options, clock.host.dtype, clock, plan, steps,
        scheduler._source, scheduler._memory, scheduler._by_time, counts, scheduler._upcasts,
    )  # fmt: skip
    return scheduler._run


def fingerprint(scheduler: Any, configured: str | None = None) -> Any:
    """Returns all that a plan depends on. configured: the text of the configuration, where it is known. At the
    beginning of a run there is no last_sample."""
    left = scheduler._leftovers if scheduler.__dict__.get("last_sample") is None else ()
    unread = [*scheduler._memory, *left]
    if not scheduler._memory:
        unread.append("_step_index")
    if scheduler.coefficients == "compat":
        unread.append("_replay")
    numbers = [
        _bytes(value) for name, value in scheduler.__dict__.items() if name not in _UNREAD and name not in unread
    ]
    kept = tuple(name for name in scheduler._memory if name not in left)
    return (
        *numbers,
        configured or _configured(scheduler),
        *(value is None for value in rows.items(vars(scheduler), kept)),
    )


def _configured(scheduler: Any) -> str:
    """Returns the text of the configuration, kept with its run: it takes a tenth of a first step to write."""
    config, run = scheduler.__dict__["_internal_dict"], scheduler._run
    return run.configured if run is not None and run.config is config else repr(config)


def _bytes(value: Any) -> Any:
    if value is None or type(value) in (int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.cpu().numpy().tobytes()
    if callable(value):  # kept, so that no other function can take its address
        return value
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value)


def planned(key: Any, make: Callable[[], Any]) -> Any:
    """Returns make(), or the Unsupported that it raises, kept for later calls with this key."""
    plan = plans.pop(key, None)
    if plan is None:
        try:
            plan = make()
        except Unsupported as reason:
            plan = reason
    plans[key] = plan
    if len(plans) > _KEPT_PLANS:
        plans.popitem(last=False)
    return plan


def wrong_times(name: str, t: Tensor, whose: str, shape: torch.Size) -> ValueError:
    return ValueError(f"{name}: expected one, or a shape that begins {whose}, {tuple(shape)}, got {tuple(t.shape)}")
