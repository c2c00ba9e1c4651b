# SPDX-License-Identifier: Apache-2.0
"""One step of a tableau. A run's memory lives in an explicit ``State``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NoReturn, Unpack, overload

import numpy as np
import numpy.typing as npt

from .. import backends, density
from ..arguments.arrays import host_view, is_traced, is_written
from ..arguments.options import check_tableau, fast_path
from ..arguments.types import Array, ArrayT, Like
from ..ground.checks import is_tracer
from ..ground.kept import kept_property
from ..ground.libraries import library_for, library_of
from ..language.noise import SAMPLER, Noise, Noises
from ..language.rows import FastTable
from ..language.tableau import Tableau, noising
from ..operations.draw import are_increments, randn_like
from ..operations.update import update
from .arrays import drawn_for, in_words_of_a_step, several_zeros_like, times_like
from .rows import SAME, first_without_past, guided, mixed, oldest_past, thresholded
from .state import NEW, State
from .types import LikelyStepOptions, Models, StepOptions, Time

_NOTHING: tuple[Sequence[Array], Sequence[Array], int] = (), (), 0  # of a state, where none is needed


class Steps:
    """The rows of a tableau, each a step: what a `Sampler` runs."""

    tableau: Tableau
    model_time: str | None
    _slots: int
    _state_size: tuple[int, int]
    _push: list[int]
    _move: list[int]
    _plain: FastTable
    _fast_rows: int
    _denoised: list[int]
    _times: list[Any]
    _integer_times: bool
    _reads: list[int]
    _draws: list[bool]
    _levels: Tableau
    _has_level: list[bool]
    _start: Tableau | None
    _inputs: Tableau | None
    _mixed: Callable[[float], Tableau]

    def __init__(self, tableau: Tableau, model_time: str | Callable[..., Any] | None = None) -> None:
        check_tableau("tableau", tableau)
        push, reads = tableau.push.tolist(), oldest_past(tableau)
        most = max(push, default=0)
        if (i := first_without_past(push, reads, tableau.slots, 0)) is not None:  # a state would hold zeros there
            name, oldest = tableau.name, f"past{reads[i]}"
            raise ValueError(f"row {i} of {name} reads {oldest}, which no row before it keeps: see Tableau(push)")
        # this bypasses __setattr__, which refuses; lists, because indexing them is fast
        self.__dict__.update(
            tableau=tableau,
            model_time=getattr(model_time, "__name__", model_time),
            _slots=tableau.slots,
            _state_size=(tableau.slots, most),
            _push=push,
            # see State.moves
            _move=[n + (most + 1) * (read > 0) for n, read in zip(push, reads, strict=True)] if any(reads) else push,
            _plain=tableau.as_rows.plain,
            _fast_rows=0 if tableau.threshold or tableau.masked else len(tableau),  # all or none
            _denoised=tableau.denoised.tolist(),
            # NumPy's numbers: torch.compile cannot trace the array
            _times=[*tableau.timesteps],
            _integer_times=tableau.timesteps.dtype.kind in "iu",
            _reads=reads,
            _draws=tableau.as_rows.draws.tolist(),
            _levels=noising(tableau.alpha, tableau.sigma),
            _has_level=np.logical_or(tableau.alpha, tableau.sigma).tolist(),
            _start=None if tableau.start == 1 else noising(np.array([tableau.start]), np.zeros(1)),
            _inputs=noising(tableau.scale, np.zeros(len(push))) if (tableau.scale != 1).any() else None,
            _mixed=lru_cache(maxsize=64)(partial(mixed, tableau)),
        )

    @kept_property
    def _fast_density(self) -> Any:
        return density.fast_table(self.tableau)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Sampler is immutable: cannot set {name!r}")

    def __len__(self) -> int:
        return len(self._push)

    @property
    def timesteps(self) -> npt.NDArray[Any]:
        """The t that the model is given in each row, (n,), an index, a noise level or what ``model_time`` says."""
        return self.tableau.timesteps

    def _row(self, i: Any) -> Any:
        if is_tracer(i):
            return i
        try:
            i = operator.index(i)
        except TypeError:
            what = f" = {i!r}" if isinstance(i, float | str) else ""
            kind = type(i).__name__
            raise TypeError(f"i{what}: expected an integer, a row of {self.tableau.name}, got {kind}") from None
        if not 0 <= i < len(self._push):
            raise IndexError(f"{self.tableau.name} has rows 0 .. {len(self._push) - 1}, got {i}")
        return i

    @overload
    def model_input(
        self, i: int, x: Like[ArrayT], *, time: Literal["scalar"] | None = None, out: Like[ArrayT] | None = None
    ) -> tuple[ArrayT, Any]: ...
    @overload
    def model_input(
        self, i: int, x: Like[ArrayT], *, time: Literal["batch"], out: Like[ArrayT] | None = None
    ) -> tuple[ArrayT, ArrayT]: ...
    def model_input(self, i: int, x: Array, *, time: Time | None = None, out: Array | None = None) -> tuple[Array, Any]:
        """The input of row i's model call, (x_in, t). x_in is x itself if the model needs no scaling.

        diffusers calls the computation of x_in scale_model_input(x, t).

        Args:
            time: "scalar": t is a NumPy number. "batch": t is an array (B,) of x's kind and on its device, as torch
                networks take it: int64 for integer timesteps, else float32 (float64 if x is; half types would round t).
                None: "batch" if x is a torch tensor, else "scalar".
            out: an array for x_in, of x's shape and dtype.

        Raises:
            IndexError: there is no row i.
            ValueError: time is neither "scalar" nor "batch".

        >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
        >>> x_in, t = sampler.model_input(0, np.ones((2, 3), np.float32))
        >>> int(t)
        800
        """
        i = self._row(i)
        t = library_of(i).time_of(self.timesteps, i) if is_tracer(i) else self._times[i]
        if time is not None or type(x) is not np.ndarray:
            time = library_for(x).time if time is None else time
            if time == "batch":
                t = times_like(host_view("x", x), t, self._integer_times)
            elif time != "scalar":
                raise ValueError(f'time: expected "scalar" or "batch", got {time!r}')
        if self._inputs is not None:
            return update(self._inputs, i, x, out=out), t
        if out is None:
            return x, t
        return update(SAME, 0, x, out=out), t

    def state(self, x: Array) -> State:
        """The history of a new run on arrays like x. It holds zeros until rows are remembered.

        Raises:
            TypeError: x is no array.
        """
        x = host_view("x", x)
        return State(self._slots, several_zeros_like(x, sum(self._state_size)))

    @overload
    def step(
        self, i: int, x: Like[ArrayT], model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[False] = False, **options: Unpack[StepOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: Like[ArrayT], model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[True], partial: Literal[False] = False,
        **options: Unpack[LikelyStepOptions],
    ) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: Array, model_output: Models, noise: Noises | Array | None = None, state: State | None = None,
        *, log_prob: bool, partial: bool = False, **options: Unpack[LikelyStepOptions],
    ) -> Any: ...  # fmt: skip
    def step(
        self, i: int, x: Array, model_output: Models, noise: Noises | Array | None = None, state: State | None = None,
        *, guidance_scale: float | npt.ArrayLike | None = None, out: Array | None = None,
        denoised_out: Array | list[Array] | None = None, log_prob: bool = False, **law: Unpack[density.Options],
    ) -> Any:  # fmt: skip
        """Returns the next x, from x and the model's answer to ``model_input(i, x)``.

        Args:
            i: the row, 0 <= i < len(self).
            model_output: one array of x's shape, or (uncond, cond) with ``guidance_scale``.
            noise: a Noise (row i draws from stream 3 at step noise.step + i), an array of x's shape, or an increment of
                a Brownian motion (`path`). None is enough if the row draws no noise.
            state: this run's ``state(x)``. Samplers that remember nothing need none. It changes only if the step
                succeeds.
            guidance_scale: w, a number or (B,): m = uncond + w (cond - uncond).
            out: an array for the result. It may be x, or bytes: 127.5 x + 127.5, rounded.
            denoised_out: an array for the row's estimate of the clean sample. For arrays that are not written to, such
                as JAX's, a list, to which the estimate is appended.
            log_prob: also give the log-density of the result, float64 (B,), from the same pass. See `density`, which
                also explains reduction=, density= and partial=.

        Returns:
            x of the next row; with log_prob the pair of x and its log-density.

        Raises:
            IndexError: there is no row i.
            TypeError: a state is missing or belongs to another sampler; only one of guidance_scale and a pair of
                outputs is given. Errors of arrays are those of ``noisefuse.update``.

        >>> sampler = nf.samplers.dpmpp_2m(nf.Schedule.linear(1000), steps=5)
        >>> x = sampler.start((2, 3), nf.Noise(7))
        >>> state = sampler.state(x)  # what a multistep sampler remembers
        >>> sampler.step(0, x, np.zeros_like(x), state=state, out=x) is x
        True
        """
        slots = self._slots
        if law and not log_prob:
            check_log_prob(False, law)
        plain: Any = self._plain
        if guidance_scale is not None or type(model_output) is tuple:
            plain = None if log_prob else self._fast_guided(x, guidance_scale, model_output)
        if (
            plain is not None
            and type(i) is int
            and 0 <= i < self._fast_rows
            and denoised_out is None
            and (not slots or (type(state) is State and state.size == self._state_size))
        ):
            past, kept, after = state.moves[self._move[i]][state.at] if slots else _NOTHING  # type: ignore[union-attr]
            made: Any = NotImplemented
            if type(x) is not np.ndarray and is_traced(x):
                if out is None and not log_prob:
                    made, after = self._again(i, x, model_output, past, noise, len(kept), state)
            elif log_prob:
                plain = self._fast_density
                made = backends.fast_density(plain, False, i, x, model_output, past, noise, SAMPLER, out, kept, law)
            else:
                made = backends.fast_row(plain, i, x, model_output, past, noise, SAMPLER, out, kept, None, True)
            if made is not NotImplemented:
                if slots:
                    state.at = after  # type: ignore[union-attr]
                return made
        return _checked_step(
            self, i, x, model_output, noise, state, guidance_scale, out, denoised_out, law if log_prob else None
        )

    def _fast_guided(self, x: Array, scale: Any, model_output: Any) -> Any:
        """Returns the rows of the fast path, or None if an argument is not plain."""
        if type(x) is not np.ndarray and is_traced(x):
            return None
        is_pair = type(model_output) is tuple and len(model_output) == 2
        if is_pair and type(scale) in (float, int) and math.isfinite(scale):
            return self._mixed(float(scale)).as_rows.plain
        return None

    def _again(self, i: int, x: Array, m: Array, past: Any, noise: Any, kept: int, state: Any) -> Any:
        """Repeats an earlier step for arrays that are not written to. Returns its result or NotImplemented; and the
        state's place."""
        row = fast_path(library_of(x), "fast_row")
        made = (
            NotImplemented if row is None else row(self._plain, i, x, m, past, noise, SAMPLER, None, kept, None, True)
        )
        if made is NotImplemented:
            return made, None
        if self._slots:
            state.keep([*made[1:]])
        return made[0], state and state.at

    # ---- the log-density of a step: see `density` ------------------------------------------------------------

    @overload
    def log_prob(
        self, i: int | npt.ArrayLike, x: Like[ArrayT], model_output: Models, x_next: Like[ArrayT],
        state: State | None = None, *, guidance_scale: float | npt.ArrayLike | None = None,
        partial: Literal[False] = False, **law: Unpack[density.LawOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def log_prob(
        self, i: int | npt.ArrayLike, x: Array, model_output: Models, x_next: Array, state: State | None = None, *,
        guidance_scale: float | npt.ArrayLike | None = None, partial: Literal[True], **law: Unpack[density.LawOptions],
    ) -> density.Part: ...  # fmt: skip
    def log_prob(
        self, i: int | npt.ArrayLike, x: Array, model_output: Array | tuple[Array, Array], x_next: Array,
        state: State | None = None, *, guidance_scale: float | npt.ArrayLike | None = None,
        **law: Unpack[density.Options],
    ) -> Any:  # fmt: skip
        """The log-density of x_next under row i: that of `step(.., log_prob=True)`, bit for bit (`density.log_prob`).

        Args:
            i: the row, or one for each sample (B,).
            x_next: the step's result, of x's shape and dtype.
            state: the state as it was before the step.
            x, model_output, guidance_scale: the step's arguments.
            reduction, density, partial: see `density`.

        Returns:
            float64 (B,). For tensors, a tensor that is differentiable through model_output and x.

        Raises:
            ValueError: the row draws no noise, or bounds D.
            TypeError: a state is missing.

        >>> sampler = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
        >>> x, m = np.ones((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32)
        >>> x_next, made = sampler.step(4, x, m, nf.Noise(7), log_prob=True)
        >>> bool((sampler.log_prob(4, x, m, x_next) == made).all())
        True
        """
        _check_state(self, state)
        _check_past(self, state, i)
        table, rows, model_output = _guided_rows(self, i, x, model_output, guidance_scale)
        past = [] if state is None else state.past[: table.slots]
        return density.log_prob(table, rows, x, model_output, x_next, past=past, **law)

    def kl(
        self, i: int | npt.ArrayLike, model_output: Like[ArrayT], reference: Like[ArrayT], *,
        reduction: density.OverElements = "sum",
    ) -> ArrayT:  # fmt: skip
        """The divergence of row i's Gaussians with two model outputs, float64 (B,): see `density.kl`.

        >>> sampler = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
        >>> m = np.ones((2, 3, 8), np.float32)
        >>> sampler.kl(4, m, m).tolist()
        [0.0, 0.0]
        """
        return density.kl(self.tableau, i, model_output, reference, reduction=reduction)


# ---- a step in full, and errors in a user's words ----------------------------------------------------------


def _checked_step(
    steps: Steps, i: int, x: Array, model_output: Array | tuple[Array, Array], noise: Noises | Array | None,
    state: State | None, guidance_scale: float | npt.ArrayLike | None, out: Array | None,
    denoised_out: Array | list[Array] | None, law: density.Options | None = None,
) -> Any:  # fmt: skip
    """Does ``step`` without the fast path: all unusual arguments, and errors in a user's words."""
    if law:  # the fast path did not take it, perhaps because of wrong names
        check_log_prob(True, law)
    i, table, x = steps._row(i), steps.tableau, host_view("x", x)
    _check_state(steps, state)
    written = is_written(x)
    if denoised_out is not None and not written and (not isinstance(denoised_out, list) or is_tracer(i)):
        why = "None, as the row is traced" if is_tracer(i) else "a list, as arrays of this kind are not written to"
        raise TypeError(f"denoised_out: expected {why}, got {type(denoised_out).__name__}")
    if denoised_out is not None and not steps._denoised[i]:
        raise ValueError(f"{table.name} does not say which output estimates the clean sample")
    table, rows, model_output = _guided_rows(steps, i, x, model_output, guidance_scale)
    if table.threshold is not None:
        table, rows = thresholded(table, rows, x, model_output)
    if are_increments(noise):
        noise = randn_like(x, noise, dtype="float64" if "float64" in str(x.dtype) else "float32")
    elif rows is not i and isinstance(noise, Noise | list | tuple):
        noise = drawn_for(noise, i, SAMPLER, x)
    past, aux, after = ([], [], 0) if state is None else _moved(steps, state, i)
    own: list[Array] = []
    at = 0 if denoised_out is None else steps._denoised[i] - 1
    if denoised_out is not None and written:  # if the state has this array, it is filled afterwards
        own, aux = aux[at : at + 1], [*aux[:at], denoised_out, *aux[at + 1 :]]
    aux_out: Any = aux if written else len(aux) if denoised_out is None else max(len(aux), at + 1)
    try:
        options: dict[str, Any] = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
        if law is None:
            result, log_prob = update(table, rows, x, model_output, **options), None
        else:
            result, log_prob = density.update_with_log_prob(table, rows, x, model_output, **options, **law)
    except (TypeError, ValueError) as error:
        denoised = None if denoised_out is None else f"aux_out[{at}]"
        raise in_words_of_a_step(error, denoised, [*past, *aux], x) from None
    for array in own:
        array[...] = denoised_out
    if not written:
        result, *aux_results = result
        if denoised_out is not None:  # there may be more outputs than the row keeps
            denoised_out.append(aux_results[at])
            del aux_results[len(aux) :]
        if state is not None:
            state.keep(aux_results if not is_tracer(i) else _past_after(steps, i, aux_results, past))
    elif state is not None:
        state.at = after
    return result if law is None else (result, log_prob)


def _check_state(steps: Steps, state: State | None) -> None:
    if state is None and steps._slots:
        raise TypeError(f"{steps.tableau.name} remembers earlier steps: pass state=sampler.state(x), one per run")


def _guided_rows(steps: Steps, i: Any, x: Array, model_output: Any, scale: float | npt.ArrayLike | None) -> Any:
    """Returns the table and its rows, with guidance folded in, and the model output or the pair."""
    if isinstance(model_output, list) and len(model_output) == 2:  # a model may return (uncond, cond) as a list
        model_output = tuple(model_output)
    if scale is None and not isinstance(model_output, tuple):
        return steps.tableau, i, model_output
    return *library_for(x).untraced(guided, steps.tableau, steps._mixed, i, x, model_output, scale), model_output


def _moved(steps: Steps, state: State, i: int) -> tuple[list[Array], list[Array], int]:
    """Returns row i's arrays in the state: see ``State.moves``. TypeError: the state is not this sampler's."""
    if not isinstance(state, State) or state.size != steps._state_size:
        what = "another's" if isinstance(state, State) else type(state).__name__
        raise TypeError(f"state: expected {steps.tableau.name}'s own, sampler.state(x), one per run, got {what}")
    if is_tracer(i):
        return state.moves[steps._state_size[1]][state.at]
    _check_past(steps, state, i)
    return state.moves[steps._move[i]][state.at]


def _check_past(steps: Steps, state: State | None, i: Any) -> None:
    """Raises ValueError if row i reads what earlier rows kept, and the state is new."""
    if state is not None and state.at == NEW and type(i) is int and steps._reads[i]:
        raise ValueError(
            f"state: row {i} of {steps.tableau.name} reads what earlier rows kept, and the state is new; to start "
            "later, build a sampler of the times that are left, steps=[..]"
        )


def _past_after(steps: Steps, i: Any, aux: list[Array], past: list[Array]) -> list[Array]:
    """Returns the state's arrays after a row whose number is traced, if rows differ in what they keep."""
    if len({*steps._push}) == 1:
        return aux
    choices = [[*aux[:n], *past][: steps._slots] for n in range(len(aux) + 1)]
    return library_of(aux[0]).chosen(steps._push, i, choices)


def check_log_prob(asked: bool, law: density.Options) -> None:
    for name in law:
        if name not in density.Options.__annotations__:
            there = "of a whole run it is log_probs=True" if name == "log_prob" else "with log_prob there are "
            there += "" if name == "log_prob" else ", ".join(density.Options.__annotations__)
            raise TypeError(f"{name}: no such argument; {there}")
    if law and not asked:
        raise TypeError(f"{', '.join(law)}: given without log_prob=True (of a whole run log_probs=True)")
