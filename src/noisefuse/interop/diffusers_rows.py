# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers out of a scheduler of diffusers, found by running its own `step` on unit vectors.

No formula of diffusers is stated here. Its step is affine in all tensors that it reads: the sample, the model's output,
the noise, the clipped prediction, and what it remembers. So one call with a vector in which each of them is 1 in turn
answers with all coefficients of a row. Its scalars are 0-d float32 tensors, which leave float64 vectors float64:
coefficients are compositions in float64 of exactly those float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import noisefuse as nf

from .diffusers_exact import Wide, rebound, shadow_of

# Where a step finds what it handles: these, then what the scheduler remembered, then what the kernel wrote: x' first.
NOTHING, TIME, SAMPLE, MODEL, CLEAN, NOISE, REMEMBERED = range(7)


_GAPS = "which of the remembered there are"


class Unsupported(Exception):
    """Why a scheduler, as it is configured, is no table of rows."""


Pick = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One row's dealings with a scheduler."""

    state: Any  # of `Plan.state`, before the step
    past: Any  # a Pick: past1 ..
    written: int  # auxiliary outputs
    draws: bool  # whether diffusers draws noise here
    keeps_noise: bool  # and remembers it
    interval: Any  # (start, stop), over which, where its noise is a Brownian path's
    parts: tuple[float, float] | None  # in noise over both intervals, of the noise of the step before and of this one
    results: Pick  # what it returns beside the next sample
    remembers: list[tuple[str, Pick, bool]]  # what to keep, by attribute, and whether in a list
    after: dict[str, Any]  # other attributes, after the step


@dataclass(frozen=True)
class Plan:
    """A run of a scheduler: from position `start` of its timesteps to the end."""

    table: nf.Tableau  # row i is the step at position i
    clean: nf.Tableau | None  # with dynamic thresholding: D as it is before; `table` then reads D as m2
    steps: dict[int, Step]
    names: list[str]  # the scheduler's attributes that steps change, but for tensors
    begins: dict[str, Any]  # their values before the first step, where the scheduler remembers anything
    state: Pick  # and their values, from all of its attributes
    output: type  # diffusers' class of results, and its fields
    fields: tuple[str, ...]


def trace(scheduler: Any, base: type, start: int, options: tuple[Any, ...]) -> Plan:
    """The plan of a scheduler as it is now. Unsupported: it is not affine, or reads more than a row can."""
    exact = scheduler.coefficients == "exact"
    shadow, space = shadow_of(scheduler, base, exact)
    probe = _Probe(shadow, scheduler._memory)
    # Flow matching draws by torch.randn_like in diffusers below 0.42.
    draws = {"torch": Wide(torch, randn_like=probe.noise), "randn_tensor": probe.noise}
    step = rebound(base.step, {**space, **draws})  # type: ignore[attr-defined]
    shadow.is_scale_input_called = True
    initial, steps = dict(vars(shadow)), {}
    numbers = np.zeros((2, len(shadow.timesteps)), nf.tableau.ROW)
    numbers["clean"]["lo"], numbers["clean"]["hi"] = -np.inf, np.inf
    for i in range(start, len(shadow.timesteps)):
        if not scheduler._memory:
            vars(shadow).clear()
            vars(shadow).update(initial, **({"_step_index": i} if "_step_index" in initial else {}))
        # in exact mode a Python number, with which diffusers computes in float64
        t = shadow.timesteps[i].item() if exact else shadow.timesteps[i]
        try:
            steps[i] = probe.row(step, t, scheduler._given(options, i), *numbers[:, i : i + 1])
        except IndexError:  # no level to step to from the last one: SCM, and flow matching before set_timesteps
            if i + 1 < len(shadow.timesteps) or i == start:
                raise Unsupported("a step has no level to go to") from None
    table, clean = (nf.Tableau(rows, shadow.timesteps.numpy(), base.__name__) for rows in numbers)
    # What tells the steps of a run apart. (Not a 0 that PNDM remembers in a tensor's place: its counter tells.)
    changed = (name for one in steps.values() for name in (*one.after, *map(itemgetter(0), one.remembers)))
    counters = {*changed} - {*scheduler._memory}
    if not scheduler._memory:  # LCM looks at its time and counts
        counters &= {"_step_index"} if scheduler._by_time else set()
    names = sorted(counters)
    begins = {name: steps[start].state.get(name) for name in names} if scheduler._memory else {}
    for i, one in steps.items():  # a table that reads four past arrays is given four in every row
        past = one.past + [SAMPLE] * (table.slots - len(one.past))
        counted = [one.state.get(name) for name in names]
        state = counted[0] if len(names) == 1 else tuple(counted) or None
        steps[i] = replace(one, state=(state, one.state[_GAPS]) if scheduler._gaps else state, past=_pick(past))
    state = itemgetter(*names) if names else lambda attributes: None
    return Plan(
        table=table,
        clean=clean if probe.thresholds else None,
        steps=steps,
        names=names,
        begins=begins,
        state=_with_gaps(state, scheduler._memory) if scheduler._gaps else state,
        output=type(probe.result),
        fields=tuple(probe.result),
    )


def levels(scheduler: Any, base: type, n: int, dtype: torch.dtype, *, exact: bool) -> tuple[Any, Any]:
    """alpha and sigma (n,) of its add_noise or scale_noise, as float64: of diffusers in this dtype, or exact."""
    shadow, _ = shadow_of(scheduler, base, exact)
    shadow._begin_index = None
    shadow.index_for_timestep = lambda t, times=None: int(t)
    clean, noise = torch.eye(2, dtype=torch.float64 if exact else dtype, device="cpu")
    clean, noise, t = clean.expand(n, 2), noise.expand(n, 2), torch.arange(n, device="cpu")
    shadow.timesteps = t  # where a class searches them itself
    noisy = shadow.scale_noise(clean, t, noise) if hasattr(shadow, "scale_noise") else shadow.add_noise(clean, noise, t)
    alpha, sigma = noisy.double().numpy().T
    return alpha, sigma


# ---- probing -----------------------------------------------------------------------------------------------


class _Probe:
    """Unit vectors in place of a scheduler's tensors, and the forms that come back."""

    def __init__(self, shadow: Any, memory: tuple[str, ...]) -> None:
        self.shadow, self.memory, self.thresholds = shadow, memory, False
        self.lo, self.hi = -np.inf, np.inf
        self.clean: Tensor | None = None
        self.interval: tuple[Tensor, Tensor] | None = None
        self.clips = any("clip" in option for option in shadow.config)
        shadow._threshold_sample = self.threshold
        if hasattr(shadow, "noise_sampler"):
            shadow.noise_sampler = self.increment

    # What diffusers finds where it looks for noise, for a clamp and for dynamic thresholding.

    def noise(self, *args: Any, **kwargs: Any) -> Tensor:
        self.drawn = True
        return self.units["z"]

    def increment(self, start: Tensor, stop: Tensor) -> Tensor:
        self.interval = start, stop
        return self.noise()

    def clamp(self, x: Tensor, lo: float, hi: float) -> Tensor:
        self.clean, self.lo, self.hi = x, lo, hi
        return self.units["d"]

    def threshold(self, x: Tensor) -> Tensor:
        self.clean, self.thresholds = x, True
        return self.units["d"]

    def row(self, step: Any, t: Any, options: dict[str, Any], numbers: Any, clean_numbers: Any) -> Step:
        """One step of the scheduler, which goes on from there. Fills in the row, or two where D is thresholded."""
        held = self._hold()
        before, gaps = self._attributes(), [value is None for value in held]
        with _Clamps(self) if self.clips else nullcontext():
            self.result = step(self.shadow, self.units["m1"], t, self.units["x"], **options)
        after = {name: v for name, v in self._attributes().items() if not _same(before.get(name, self), v)}
        # what was changed in place is another tensor now
        were = dict(zip(map(id, self.units.values()), self.columns, strict=True))
        held = [v if id(v) not in were or np.array_equal(v[0].numpy(), were[id(v)]) else object() for v in held]
        units = self.units
        given = [None, t, units["x"], units["m1"], units["d"] if self.thresholds else object(), units["z"], *held]
        places: dict[int, int] = {id(value): place for place, value in enumerate(given)}
        written: list[Tensor] = []

        def place(value: Any) -> int:
            if id(value) not in places:
                places[id(value)] = len(given) + 1 + len(written)
                written.append(value)
            return places[id(value)]

        sample, *others = self.result.values()
        results = _pick([place(value) for value in others])
        remembers: list[tuple[str, Pick, bool]] = []
        for name in self.memory:
            value = getattr(self.shadow, name, None)
            if isinstance(value, list):
                remembers.append((name, _pick([place(v) for v in value]), True))
            elif value is None or isinstance(value, Tensor):
                remembers.append((name, itemgetter(place(value)), False))
            else:
                after[name] = value
        remembers += [(name, _constant(after.pop(name)), True) for name in [*after] if isinstance(after[name], list)]
        past = self._fill([sample, *written], numbers, clean_numbers)
        before[_GAPS] = gaps
        kept = any(value is units["z"] for value in items(vars(self.shadow), self.memory))
        noise = self.drawn, kept, self.interval, self._parts(before.get("mid_point_sigma"))
        return Step(before, past, len(written), *noise, results, remembers, after)

    def _parts(self, middle: Tensor | None) -> tuple[float, float] | None:
        """DPMSolverSDE's second stage draws over an interval whose first part is drawn already: variances add up."""
        if self.interval is None or middle is None:
            return None
        start, stop = map(float, self.interval)
        share = (start - float(middle)) / (start - stop) if start > stop else -1.0
        return (share**0.5, (1 - share) ** 0.5) if 0 <= share <= 1 else None  # else it is no second stage of that first

    def _hold(self) -> list[Any]:
        """New units, in what the scheduler remembers too."""
        held = items(vars(self.shadow), self.memory)
        names = ["x", "m1", "z", "d", *(f"held{k}" for k, v in enumerate(held) if isinstance(v, Tensor))]
        self.columns = _columns(len(names))
        self.units = {n: torch.from_numpy(column[None].copy()) for n, column in zip(names, self.columns, strict=True)}
        held = [self.units.get(f"held{k}", value) for k, value in enumerate(held)]
        _remember(self.shadow, self.memory, held)
        self.clean, self.drawn, self.interval = None, False, None
        return held

    def _attributes(self) -> dict[str, Any]:
        return unshared({name: value for name, value in vars(self.shadow).items() if name not in self.memory})

    def _fill(self, outputs: list[Tensor], numbers: Any, clean_numbers: Any) -> list[int]:
        """The numbers of a row; returns the places of past1 .."""
        if len(outputs) > 3:
            raise Unsupported(f"a step writes {len(outputs)} tensors")
        forms = [self._form(value) for value in outputs]
        past = [name for name in self.units if name.startswith("held") and any(form[name] for form in forms)]
        if len(past) > len(nf.tableau.past):
            raise Unsupported(f"a step reads {len(past)} remembered tensors")
        columns = {name: f"past{k}" for k, name in enumerate(past, 1)}
        columns |= {"x": "x", "m1": "m1", "z": "z", "d": "m2" if self.thresholds else "d", "k": "k"}
        for output, form in zip(("out", "aux1", "aux2"), forms, strict=False):
            for name, weight in form.items():
                if weight:
                    numbers[output][columns[name]] = weight
        if self.clean is not None:
            form, target = self._form(self.clean), clean_numbers["out"] if self.thresholds else numbers["clean"]
            for name in ("k", "x", "m1"):
                target[name] = form[name]
            numbers["clean"]["lo"], numbers["clean"]["hi"] = self.lo, self.hi
        return [REMEMBERED + int(name.removeprefix("held")) for name in past]

    def _form(self, value: Any) -> dict[str, float]:
        """Its coefficients, by name, and the constant k."""
        if not isinstance(value, Tensor) or value.dtype != torch.float64 or value.shape != self.units["x"].shape:
            raise Unsupported(
                f"a step computes a {type(value).__name__} that is no float64 tensor of the sample's shape"
            )
        *answers, constant, check = value[0].tolist()
        weights, drawn = np.array(answers) - constant, self.columns[:, -1]
        if not np.all(np.isfinite(value[0].tolist())):
            raise Unsupported("a step is not finite, though the tensors that it reads are")
        error = abs(constant + weights @ drawn - check)
        if not error <= 1e-9 * (abs(constant) + np.abs(weights) @ np.abs(drawn)):
            raise Unsupported("a step is not affine in the tensors that it reads")
        return {"k": constant, **dict(zip(self.units, weights.tolist(), strict=True))}


@lru_cache
def _columns(n: int) -> Any:
    """(n, n + 2): row k is 1 in column k; all are 0 in the next to last column, and random in the last, as a check."""
    return np.concatenate([np.eye(n, n + 1), np.random.default_rng(0).normal(size=(n, 1))], axis=1)


class _Clamps(TorchFunctionMode):
    """Within it a clamp of the probe's vectors hands them over."""

    def __init__(self, probe: _Probe) -> None:
        super().__init__()
        self.probe = probe

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _CLAMPS and args[0].shape == self.probe.units["x"].shape:
            return self.probe.clamp(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_CLAMPS = {torch.clamp, Tensor.clamp}


def unshared(attributes: dict[str, Any]) -> dict[str, Any]:
    """With lists of their own, for diffusers changes some in place."""
    return {name: [*value] if isinstance(value, list) else value for name, value in attributes.items()}


def _same(a: Any, b: Any) -> bool:
    """The same object, or lists of the same ones."""
    lists = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
    return all(map(is_, a, b)) if lists else a is b


def _constant(values: Any) -> Pick:
    return lambda pool: values


def items(attributes: dict[str, Any], memory: tuple[str, ...]) -> list[Any]:
    """What a scheduler remembers, attribute after attribute, lists entry by entry."""
    found = []
    for name in memory:
        value = attributes.get(name)
        if type(value) is list:
            found += value
        else:
            found.append(value)
    return found


def _with_gaps(state: Pick, memory: tuple[str, ...]) -> Pick:
    """For classes that look at which of the remembered there are, and count nothing that would tell."""
    return lambda attributes: (state(attributes), [value is None for value in items(attributes, memory)])


def _pick(places: list[int]) -> Pick:
    """The entries at these places, in a sequence."""
    if len(places) < 2:
        return itemgetter(slice(places[0], places[0] + 1) if places else slice(0, 0))
    return itemgetter(*places)


def _remember(scheduler: Any, memory: tuple[str, ...], values: list[Any]) -> None:
    rest = iter(values)
    for name in memory:
        value = getattr(scheduler, name, None)
        setattr(scheduler, name, [next(rest) for _ in value] if isinstance(value, list) else next(rest))
