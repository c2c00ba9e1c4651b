# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers from a scheduler of diffusers, found by running its own `step` on unit vectors.

No formula of diffusers is repeated here. Its step is affine in all tensors that it reads: the sample, the model's
output, the noise, the clipped prediction, and the remembered tensors. So one call with a vector in which each of them
is 1 in turn gives all coefficients of a row. Its scalars are 0-d float32 tensors, which leave float64 vectors float64:
coefficients are compositions in float64 of exactly those float32 numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import is_, itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import noisefuse as nf

from .exact import Wide, rebound, shadow_of
from .lanes import CLAMP, Alone, Choices, Lanes, Parted, counted, each, entries, lanes, row_of

# The places of a step's tensors: these, then the remembered ones, then those that the kernel writes: x' first.
NOTHING, TIME, SAMPLE, MODEL, CLEAN, NOISE, REMEMBERED = range(7)


class Unsupported(Exception):
    """The reason why a scheduler, as it is configured, is no table of rows."""


Pick = Callable[[Any], Any]


@dataclass(slots=True)
class Step:
    """One row's effect on a scheduler. (It is never changed. It is not frozen, because frozen objects take long to
    make.)"""

    state: Any  # the values of `Plan.state`, before the step
    past: Any  # a Pick: past1 ..
    written: int  # auxiliary outputs
    draws: int  # how often diffusers draws noise here: only the last draw counts
    keeps_noise: bool  # and remembers the noise
    interval: Any  # the interval (start, stop) if its noise is a Brownian path's
    parts: tuple[float, float] | None  # noise over both intervals: the shares of the last step's and this step's
    results: Pick  # the results beside the next sample
    remembers: list[tuple[str, Pick, bool]]  # what to keep, by attribute, and whether in a list
    after: dict[str, Any]  # other attributes, after the step


@dataclass(slots=True)
class Plan:
    """A run of a scheduler: from position `start` of its timesteps to the end. (It is never changed, as a step.)"""

    table: nf.Tableau  # row i is the step at position i
    clean: nf.Tableau | None  # with dynamic thresholding: D as it is before; `table` then reads D as m2
    # With a learned variance: rows of (the draw's factor before this function, the draw), and the function.
    spread: tuple[nf.Tableau, Callable[[Tensor], Tensor]] | None
    steps: dict[int, Step]
    names: list[str]  # the scheduler's attributes that steps change, but for tensors
    begins: dict[str, Any]  # their values before the first step, if the scheduler remembers anything
    state: Pick  # picks their values from all of its attributes
    output: type  # diffusers' class of results, and its fields
    fields: tuple[str, ...]
    keeps: bool  # whether steps remember something, or have results beside the next sample


def trace(scheduler: Any, base: type, start: int, options: tuple[Any, ...]) -> Plan:
    """Returns the plan of a scheduler in its present state. Unsupported: it is not affine, or reads more than a row
    can."""
    exact = scheduler.coefficients == "exact"
    shadow, space = shadow_of(scheduler, base, exact)
    learned = scheduler._learned()
    probe = _Probe(shadow, scheduler._memory, learned)
    step = scheduler._adapted(rebound(base.step, {**space, **_drawing(probe.noise)}))  # type: ignore[attr-defined]
    shadow.is_scale_input_called = True
    times = shadow.timesteps.numpy()
    steps = _Tracing(scheduler, probe, step, options, exact).steps(start)
    numbers = probe.numbers(steps, len(times)).view(nf.tableau.ROW)[..., 0]
    table = nf.Tableau(numbers[0], times, base.__name__)
    clean = nf.Tableau(numbers[1], times, base.__name__) if probe.thresholds else None
    # The values that tell the steps of a run apart. (PNDM may remember a 0 in a tensor's place: its counter tells
    # that.)
    counters: set[str] = set()
    for one in steps.values():
        counters.update(one.after, map(itemgetter(0), one.remembers))
    counters -= {*scheduler._memory}
    if "last_sample" not in scheduler._memory:
        counters -= {*scheduler._leftovers}
    if not scheduler._memory:  # LCM looks at its time and counts
        counters &= {"_step_index"} if scheduler._by_time else set()
    names = sorted(counters)
    begins = {name: steps[start].state[0].get(name) for name in names} if scheduler._memory else {}
    slots = table.slots
    for one in steps.values():  # a table that reads four past arrays is given four in every row
        past = one.past + [SAMPLE] * (slots - len(one.past))
        before, n, gaps = one.state
        values = [row_of(before.get(name), n) for name in names]
        state = values[0] if len(names) == 1 else tuple(values) or None
        one.state, one.past = (state, gaps) if scheduler._gaps else state, _pick(past)
    state = itemgetter(*names) if names else lambda attributes: None
    return Plan(
        table=table,
        clean=clean,
        spread=(probe.spread(times), Tensor.sqrt_ if learned == "learned" else Tensor.exp_) if learned else None,
        steps=steps,
        names=names,
        begins=begins,
        state=_with_gaps(state, scheduler._memory) if scheduler._gaps else state,
        output=type(probe.result),
        fields=tuple(probe.result),
        keeps=len(probe.result) > 1 or any(one.remembers for one in steps.values()),
    )


def _drawing(noise: Callable[..., Tensor]) -> dict[str, Any]:
    """Returns globals of diffusers' step with which it draws this. (Below 0.42, flow matching draws by
    torch.randn_like.)"""
    return {"torch": Wide(torch, randn_like=noise), "randn_tensor": noise}


def levels(scheduler: Any, base: type, n: int, dtype: torch.dtype, *, exact: bool) -> tuple[Any, Any]:
    """Returns alpha and sigma (n,) of add_noise or scale_noise, as float64: diffusers' numbers in this dtype, or exact
    ones."""
    shadow, _ = shadow_of(scheduler, base, exact)
    shadow._begin_index = None
    shadow.index_for_timestep = lambda t, times=None: int(t)
    clean, noise = torch.eye(2, dtype=torch.float64 if exact else dtype, device="cpu")
    clean, noise, t = clean.expand(n, 2), noise.expand(n, 2), torch.arange(n, device="cpu")
    shadow.timesteps = t  # some classes search them
    noisy = shadow.scale_noise(clean, t, noise) if hasattr(shadow, "scale_noise") else shadow.add_noise(clean, noise, t)
    alpha, sigma = noisy.double().numpy().T
    return alpha, sigma


def tokens(scheduler: Any, base: type, times: Any) -> nf.Tableau:
    """Returns the rows of these times (n,), an array, for flow matching's per_token_timesteps."""
    exact = scheduler.coefficients == "exact"
    shadow, space = shadow_of(scheduler, base, exact)
    x, m, z = torch.eye(3, dtype=torch.float64, device="cpu")[:, None, None].expand(3, 1, len(times), 3)
    step = rebound(base.step, {**space, **_drawing(lambda *args, **kwargs: z)})  # type: ignore[attr-defined]
    shadow._step_index = 0  # it plays no part
    per_token = torch.from_numpy(times)[None].to(torch.float64 if exact else torch.float32)
    (result,) = step(shadow, m, 0.0, x, per_token_timesteps=per_token, return_dict=False)
    table = np.zeros(len(times), nf.tableau.ROW)
    table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
    for symbol, numbers in zip(("x", "m1", "z"), result[0].unbind(1), strict=True):
        table["out"][symbol] = numbers
    return nf.Tableau(table, times, base.__name__)


# ---- probing -----------------------------------------------------------------------------------------------


class _Tracing:
    """Finds the rows of a run. If the class remembers nothing, it finds all of them together. Otherwise it finds the
    first ones one after the other, until a step meets the same state as one of the two steps before it. From there on
    it guesses that the rest repeats, and finds it together. If the guess is wrong, the next one begins no sooner than
    where rows took different ways."""

    def __init__(self, scheduler: Any, probe: _Probe, step: Any, options: tuple[Any, ...], exact: bool) -> None:
        self.scheduler, self.probe, self.step, self.options, self.exact = scheduler, probe, step, options, exact
        self.in_lanes = not (exact or scheduler._one_by_one or probe.learned)
        self.shadow, self.memory, self.timesteps = probe.shadow, scheduler._memory, probe.shadow.timesteps
        self.plain, self.counter = copy.copy(self.shadow), scheduler._counter
        self.found: dict[int, Step] = {}

    def steps(self, start: int) -> dict[int, Step]:
        n, before = len(self.timesteps), []  # type: int, list[dict[str, Any]]
        counts = self.counter in vars(self.shadow)
        self.offset = vars(self.shadow)[self.counter] - start if counts and self.memory else 0
        if not self.memory:
            for group in self._guessed([*range(start, n)]):
                self._together(self._state(), group)
        i, self.guess = start if self.memory else n, start if counts and self.in_lanes else n
        while i < n:
            state = self._state()
            known = min(len(before), 2) if i >= self.guess else 0
            period = next((k for k in range(1, known + 1) if self._alike(before[-k], state)), n)
            if i + 2 * period <= n:
                self.guess, end = n, i + (n - i) // period * period
                places = self._guessed([*range(i, end, period)])
                i = end if all(self._repeats(state, group, period) for group in places) else i
                self._set(state, i)
            else:
                before.append(state)
                self._alone(i)
                i += 1
        return dict(sorted(self.found.items()))

    def _guessed(self, places: list[int]) -> list[list[int]]:
        """Returns groups of places that may be found together. A wrong guess costs time alone."""
        k = max(0, len(places) - self.scheduler._apart)
        return [places[:k]] * (k > 0) + [[place] for place in places[k:]]

    def _together(self, state: dict[str, Any], places: list[int]) -> None:
        """Finds these rows of a class that remembers nothing."""
        if len(places) > 1 and self.in_lanes:
            try:
                self._in_lanes(state, places, 1)
                return
            except Parted as ways:
                for group in _split(places, ways.flags):
                    self._together(state, group)
                return
            except IndexError:  # there is no level after the last one, see _alone
                self._together(state, places[:-1])
                places = places[-1:]
            except Exception:  # the step's own error comes again  # nosec B110
                pass
        for i in places:
            self._set(state, i)
            self._alone(i)

    def _repeats(self, state: dict[str, Any], places: list[int], period: int) -> bool:
        """Finds a period of rows from each of these places on. It tells whether that worked, and left the scheduler as
        it was."""
        try:
            end = self._in_lanes(state, places, period) if len(places) > 1 else self._singly(state, places[0], period)
        except Parted as ways:
            groups = _split(places, ways.flags)
            self.guess = max(group[0] for group in groups)
            return all(self._repeats(state, group, period) for group in groups)
        except Exception:  # the step's own error comes again
            return False
        return self._alike(state, end) or places == [len(self.timesteps) - period]

    def _singly(self, state: dict[str, Any], place: int, period: int) -> dict[str, Any]:
        """Finds a period of rows from this place on, and returns the state after them."""
        self._set(state, place)
        for i in range(place, place + period):
            self._alone(i)
        return self._state()

    def _in_lanes(self, state: dict[str, Any], places: list[int], period: int) -> dict[str, Any]:
        """Finds a period of rows from each of these places on, and returns the state after them."""
        at = counted(places)
        self._set(state, at)
        attributes = vars(self.shadow)
        for name, value in attributes.items():
            if type(value) is Tensor and value.dim() == 1:
                attributes[name] = lanes(value)
            elif isinstance(value, list) and name not in self.memory:
                attributes[name] = Choices(value)
        for name in _SEARCHES:
            if method := getattr(self.plain, name, None):
                attributes[name] = partial(_each, method)
        steps = {}
        for later in range(period):
            here, t = [i + later for i in places], lanes(self.timesteps[at.plain + later])
            options = _given_together([self.scheduler._given(self.options, i) for i in here])
            steps.update(self.probe.rows(self.step, here, t, options))
        self.found.update(steps)
        return self._state()

    def _alone(self, i: int) -> None:
        # exact mode needs a Python number, with which diffusers computes in float64
        t = self.timesteps[i].item() if self.exact else self.timesteps[i]
        try:
            self.found.update(self.probe.rows(self.step, [i], t, self.scheduler._given(self.options, i)))
        except IndexError:  # no level to step to from the last one: SCM, and flow matching before set_timesteps
            if i + 1 < len(self.timesteps) or not self.found:
                raise Unsupported("a step has no level to go to") from None

    def _state(self) -> dict[str, Any]:
        return unshared(vars(self.shadow))

    def _set(self, state: dict[str, Any], place: Any) -> None:
        """Sets the scheduler to this state, at another place or at several."""
        vars(self.shadow).clear()
        vars(self.shadow).update(unshared(state))
        if self.counter in state:
            vars(self.shadow)[self.counter] = place + self.offset

    def _alike(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        """Tells whether a step meets the same state in both. Counts may differ, as may remembered tensors and values
        that it sets before it reads them."""
        left = () if "last_sample" in self.memory else self.scheduler._leftovers
        names = ({*a} | {*b}) - {self.counter, *_SEARCHES, *left} | {*self.memory}
        return all(
            a.get(name) is b.get(name) or _alike(a.get(name), b.get(name), name in self.memory) for name in names
        )


_SEARCHES = ("previous_timestep", "index_for_timestep")  # methods that look a time up among the timesteps


def _each(method: Any, *times: Any) -> Lanes:
    return each(method, times, {})


def _split(places: list[int], flags: list[Any]) -> list[list[int]]:
    return [[i for i, flag in zip(places, flags, strict=True) if flag is way] for way in (True, False)]


def _alike(a: Any, b: Any, remembered: bool) -> bool:
    if a is b:
        return True
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(p, q, remembered) for p, q in zip(a, b, strict=True))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if remembered:
            return isinstance(a, Tensor) and isinstance(b, Tensor)
        return getattr(a, "plain", a) is getattr(b, "plain", b)
    return bool(np.all(a == b))


def _given_together(options: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins the arguments of several rows. Tensors become lanes. Others are the same for all rows and stay as they
    are."""
    together = dict(options[0])
    for name in options[0]:
        values = [arguments[name] for arguments in options]
        flags = [isinstance(value, Tensor) for value in values]
        if all(flags):
            together[name] = lanes(torch.stack(values).reshape(-1, 1))
        elif any(flags):  # UnCLIP's last step has no next time
            raise Parted(flags)
    return together


class _Probe:
    """Unit vectors in place of a scheduler's tensors, and the linear combinations that come back."""

    def __init__(self, shadow: Any, memory: tuple[str, ...], learned: str) -> None:
        self.shadow, self.memory, self.learned, self.thresholds = shadow, memory, learned, False
        self.lo, self.hi = -np.inf, np.inf
        self.clean: Tensor | None = None
        self.interval: tuple[Tensor, Tensor] | None = None
        options = shadow.config.items()
        self.clips = any(value and name.startswith("clip") and name != "clip_sample_range" for name, value in options)
        shadow._threshold_sample = self.threshold
        if learned:
            self.variances: dict[int, Any] = {}  # by position: what _get_variance makes of 0 and of 1
            self.get_variance, shadow._get_variance = shadow._get_variance, self.variance
        if hasattr(shadow, "noise_sampler"):
            shadow.noise_sampler = self.increment

    # The objects that replace noise, clamps and dynamic thresholding in diffusers' code.

    def noise(self, *args: Any, **kwargs: Any) -> Tensor:
        self.drawn += 1
        z: Tensor = self.units["z"]
        return z if self.drawn == self.draws else z * np.nan

    def variance(self, *args: Any, predicted_variance: Tensor, **kwargs: Any) -> Tensor:
        """Returns the variance, or its logarithm, of which diffusers makes the factor 1: the draw has its factor by
        then."""
        known = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        self.varied = self.get_variance(*args, predicted_variance=known, **kwargs)[0].numpy()
        return torch.full_like(predicted_variance, self.learned == "learned")

    def spread(self, times: Any) -> nf.Tableau:
        """Returns the rows of the variances: affine in what the model predicts, and halved if it is a logarithm."""
        table, half = np.zeros(len(times), nf.tableau.ROW), 1 if self.learned == "learned" else 0.5
        table["clean"]["lo"], table["clean"]["hi"] = -np.inf, np.inf
        for i, (at_0, at_1) in self.variances.items():
            table["out"]["k"][i], table["out"]["x"][i] = half * at_0, half * (at_1 - at_0)
            table["aux1"]["z"][i] = 1
        return nf.Tableau(table, times, "learned variance")

    def increment(self, start: Tensor, stop: Tensor) -> Tensor:
        self.interval = start, stop
        return self.noise()

    def clamp(self, x: Tensor, lo: float, hi: float) -> Tensor:
        self.clean, self.lo, self.hi = x, lo, hi
        return self.units["d"]

    def threshold(self, x: Tensor) -> Tensor:
        self.clean, self.thresholds = x, True
        return self.units["d"]

    def rows(self, step: Any, places: list[int], t: Any, options: dict[str, Any], draws: int = 1) -> dict[int, Step]:
        """Makes one step of the scheduler at one of its times or, in lanes, at several. The scheduler goes on from
        there. `past` holds what the step computes, until `numbers` reads it. draws: all but the last of so many draws
        are NaN."""
        together, self.draws, attributes = isinstance(t, Lanes), draws, vars(self.shadow)
        before, held = unshared(attributes), self._hold(together)
        token = CLAMP.set(self.clamp)
        try:
            with _Clamps(self) if self.clips and not together else nullcontext():
                m = self.units["m1"]
                m = torch.cat([m, m], dim=1) if self.learned else m
                self.result = step(self.shadow, m, t, self.units["x"], **options)
        finally:
            CLAMP.reset(token)
        if self.drawn > draws:
            attributes.clear()
            attributes.update(before)
            return self.rows(step, places, t, options, self.drawn)
        if self.varied is not None:
            self.variances[places[0]] = self.varied
        others = {name: v for name, v in attributes.items() if name not in self.memory}
        after = unshared({name: v for name, v in others.items() if not _same(before.get(name, self), v)})
        units = self.units
        if not (self.block == self.columns).all():  # changed in place, it counts as another tensor
            were = dict(zip(map(id, units.values()), self.columns, strict=True))
            held = [v if id(v) not in were or np.array_equal(_array(v)[0], were[id(v)]) else object() for v in held]
        known = [None, t, units["x"], units["m1"], units["d"] if self.thresholds else object(), units["z"], *held]
        pool: dict[int, int] = {id(value): place for place, value in enumerate(known)}
        written: list[Tensor] = []

        def place(value: Any) -> int:
            if id(value) not in pool:
                pool[id(value)] = len(known) + 1 + len(written)
                written.append(value)
            return pool[id(value)]

        sample, *beside = self.result.values()
        results = _pick([place(value) for value in beside])
        remembers = self._remembers(place, after)
        if len(written) > 2:
            raise Unsupported(f"a step writes {len(written) + 1} tensors")
        values = [sample, *written, *([] if self.clean is None else [self.clean])]
        if together and not all(isinstance(value, Lanes) for value in values):
            raise Alone
        computed = _Computed(
            [self._array(value) for value in values], [*units], self.clean is not None, self.lo, self.hi
        )
        kept = any(value is units["z"] for value in items(attributes, self.memory))
        gaps, steps, middle = [value is None for value in held], {}, before.get("mid_point_sigma")
        for n, (i, then) in enumerate(zip(places, _of_rows(after, places), strict=True)):
            interval = self.interval and tuple(row_of(value, n) for value in self.interval)
            drawn = self.drawn, kept, interval, _parts(interval, row_of(middle, n))
            steps[i] = Step((before, n, gaps), (computed, n), len(written), *drawn, results, remembers, then)
        return steps

    def _remembers(self, place: Callable[[Any], int], after: dict[str, Any]) -> list[tuple[str, Pick, bool]]:
        """Returns the origin of each value that a step leaves in the scheduler. Lists are taken out of the other
        attributes, after the step."""
        origins: list[tuple[str, Pick, bool]] = []
        for name in self.memory:
            value = getattr(self.shadow, name, None)
            if isinstance(value, list):
                origins.append((name, _pick([place(v) for v in value]), True))
            elif value is None or isinstance(value, Tensor):
                origins.append((name, itemgetter(place(value)), False))
            else:
                after[name] = value
        return origins + [
            (name, _constant(after.pop(name)), True) for name in [*after] if isinstance(after[name], list)
        ]

    def _hold(self, in_lanes: bool) -> list[Any]:
        """Makes new units, also for the remembered tensors."""
        held = items(vars(self.shadow), self.memory)
        names = ["x", "m1", "z", "d", *(f"held{k}" for k, v in enumerate(held) if isinstance(v, Tensor))]
        self.columns = _columns(len(names))
        self.block = self.columns.copy()
        vectors = torch.from_numpy(self.block[:, None]).unbind()
        self.units = dict(zip(names, map(lanes, vectors) if in_lanes else vectors, strict=True))
        held = [self.units.get(f"held{k}", value) for k, value in enumerate(held)]
        _remember(self.shadow, self.memory, held)
        self.clean, self.drawn, self.interval, self.varied = None, 0, None, None
        return held

    def _array(self, value: Any) -> Any:
        array: Any = _array(value) if isinstance(value, Tensor) else np.empty(0)
        if array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != self.columns.shape[1]:
            raise Unsupported(
                f"a step computes a {type(value).__name__} that is no float64 tensor of the sample's shape"
            )
        return array

    def numbers(self, steps: dict[int, Step], n: int) -> Any:
        """Returns the rows of all steps, and those of D where it is thresholded, (2, n, 36). It gives each step its
        past1 .."""
        table, clean = numbers = np.zeros((2, n, len(_COLUMN)))
        numbers[:, :, _BOUNDS] = -np.inf, np.inf
        together: dict[int, list[int]] = {}  # the rows of a call
        for i, one in steps.items():
            together.setdefault(id(one.past[0]), []).append(i)
        rows = [i for places in together.values() for i in places]
        widest = max(len(one.past[0].units) for one in steps.values())
        answers, end = np.zeros((len(rows), len(_OUTPUTS) + 1, widest + 2)), 0
        for places in together.values():
            start, end = end, end + len(places)
            _answer([steps[i].past for i in places], answers[start:end])
        forms, at = _forms(answers), np.array(rows)[:, None]
        outputs = forms[:, :-1]
        table[at, _WRITTEN[self.thresholds]] = outputs[:, :, (0, 1, 2, 3, -1)].reshape(len(rows), -1)
        clamped = [k for k, i in enumerate(rows) if steps[i].past[0].clamps]
        if clamped:
            group, target = ("out", clean) if self.thresholds else ("clean", table)
            columns = [_COLUMN[group, symbol] for symbol in ("x", "m1", "k")]
            target[at[clamped], columns] = forms[clamped, -1][:, (0, 1, -1)]
            table[at[clamped], _BOUNDS] = [(steps[rows[k]].past[0].lo, steps[rows[k]].past[0].hi) for k in clamped]
        readers: dict[Any, list[int]] = {}
        for k, flags in enumerate(outputs[:, :, 4:-1].any(axis=1).tolist()):
            readers.setdefault(tuple(flags), []).append(k)
        for flags, those in readers.items():
            read = [column for column, flag in enumerate(flags, 4) if flag]
            if len(read) > len(nf.tableau.past):
                raise Unsupported(f"a step reads {len(read)} remembered tensors")
            if read:
                columns = [_COLUMN[output, f"past{k}"] for output in _OUTPUTS for k in range(1, len(read) + 1)]
                table[at[those], columns] = outputs[those][:, :, read].reshape(len(those), -1)
            for i in (rows[k] for k in those):
                units = steps[i].past[0].units
                steps[i].past = [REMEMBERED + int(units[column].removeprefix("held")) for column in read]
        return numbers


class _Computed(NamedTuple):
    """A step's results for unit inputs: a value for each output and, last, for D if it is clamped. Each is (n, units
    + 2) or (1, units + 2)."""

    values: list[Any]
    units: list[str]
    clamps: bool
    lo: float
    hi: float


def _answer(computed: list[tuple[_Computed, int]], answers: Any) -> None:
    """Writes one call's results on the units in these of its rows, (rows, values, units + 2). D is the last of the
    values. Units that the call does not have stay 0."""
    call, rows = computed[0][0], [row for _, row in computed]
    width, last = len(call.units), len(call.values) - 1
    for k, value in enumerate(call.values):
        place = answers[:, -1 if call.clamps and k == last else k]
        values = value[rows] if len(value) > 1 else value
        place[:, :width], place[:, -2:] = values[:, :width], values[:, width:]


def _forms(answers: Any) -> Any:
    """Returns the coefficients, and after them the constant k, from the results on the units, on 0 and on the random
    check."""
    if not np.isfinite(answers).all():
        raise Unsupported("a step is not finite, though the tensors that it reads are")
    forms, drawn = answers[..., :-1] + 0.0, _columns(answers.shape[-1] - 2)[:, -1]  # + 0.0: no -0
    forms[..., :-1] -= forms[..., -1:]
    weights, constant = forms[..., :-1], forms[..., -1]
    error = np.abs(constant + weights @ drawn - answers[..., -1])
    if not (error <= 1e-9 * (np.abs(constant) + np.abs(weights) @ np.abs(drawn))).all():
        raise Unsupported("a step is not affine in the tensors that it reads")
    return forms


# The number of a column of rows, by group and symbol.
_COLUMN = {
    (group, symbol): (offset + inside) // 8
    for group, (kind, offset, *_) in (nf.tableau.ROW.fields or {}).items()
    for symbol, (_, inside, *_) in (kind.fields or {}).items()
}

_BOUNDS = [_COLUMN["clean", "lo"], _COLUMN["clean", "hi"]]
_OUTPUTS = "out", "aux1", "aux2"
# The columns of a step's outputs, as it computes them, with a clamped D or with a thresholded one.
_WRITTEN = [
    [_COLUMN[output, symbol] for output in _OUTPUTS for symbol in ("x", "m1", "z", clean, "k")] for clean in ("d", "m2")
]


@lru_cache
def _columns(n: int) -> Any:
    """Returns (n, n + 2): row k is 1 in column k. All are 0 in the next to last column, and random in the last, as a
    check."""
    return np.concatenate([np.eye(n, n + 1), np.random.default_rng(0).normal(size=(n, 1))], axis=1)


class _Clamps(TorchFunctionMode):
    """Makes clamps of the probe's vectors hand them over, while it is active."""

    def __init__(self, probe: _Probe) -> None:
        super().__init__()
        self.probe = probe

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _CLAMPS and args[0].shape == self.probe.units["x"].shape:
            return self.probe.clamp(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_CLAMPS = {torch.clamp, Tensor.clamp}


def unshared(attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes with copies of lists, because diffusers changes some lists in place."""
    return {name: [*value] if isinstance(value, list) else value for name, value in attributes.items()}


def _same(a: Any, b: Any) -> bool:
    """Tells whether these are the same object, or lists of the same objects."""
    return a is b or (isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(map(is_, a, b)))


def _parts(interval: Any, middle: Tensor | None) -> tuple[float, float] | None:
    """Returns the parts of DPMSolverSDE's second stage, whose interval begins with one already drawn: variances add
    up."""
    if interval is None or middle is None:
        return None
    start, stop = map(float, interval)
    share = (start - float(middle)) / (start - stop) if start > stop else -1.0
    return (share**0.5, (1 - share) ** 0.5) if 0 <= share <= 1 else None  # else it does not belong to that first stage


def _array(value: Any) -> Any:
    return (value.plain if isinstance(value, Lanes) else value).numpy()


def _of_rows(attributes: dict[str, Any], places: list[int]) -> list[dict[str, Any]]:
    """Returns the attributes of each of these rows."""
    several = {name: value for name, value in attributes.items() if isinstance(value, Lanes)}
    rows = (
        zip(*(entries(value, len(places)) for value in several.values()), strict=True)
        if several
        else [()] * len(places)
    )
    return [{**attributes, **dict(zip(several, row, strict=True))} for row in rows]


def _constant(values: Any) -> Pick:
    return lambda pool: values


def items(attributes: dict[str, Any], memory: tuple[str, ...]) -> list[Any]:
    """Returns a scheduler's remembered values, attribute after attribute, lists entry by entry."""
    values = []
    for name in memory:
        value = attributes.get(name)
        if type(value) is list:
            values += value
        else:
            values.append(value)
    return values


def _with_gaps(state: Pick, memory: tuple[str, ...]) -> Pick:
    """Returns the state for classes that look at which remembered values exist, and have no counter that would tell."""
    return lambda attributes: (state(attributes), [value is None for value in items(attributes, memory)])


def _pick(places: list[int]) -> Pick:
    """Returns a function that picks the entries at these places from a sequence."""
    if len(places) < 2:
        return itemgetter(slice(places[0], places[0] + 1) if places else slice(0, 0))
    return itemgetter(*places)


def _remember(scheduler: Any, memory: tuple[str, ...], values: list[Any]) -> None:
    rest = iter(values)
    for name in memory:
        value = getattr(scheduler, name, None)
        setattr(scheduler, name, [next(rest) for _ in value] if isinstance(value, list) else next(rest))
