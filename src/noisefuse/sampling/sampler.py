# SPDX-License-Identifier: Apache-2.0
"""The engine: it runs a tableau step by step. A run's memory lives in an explicit ``State``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np
import numpy.typing as npt

from .. import backends, density
from ..arguments.arrays import host_view, is_lazy, is_traced, is_written
from ..arguments.options import fast_path, need_tableau
from ..arguments.types import ArrayT, Device, DType, NumPyDType
from ..ground import notebook, stored
from ..ground.checks import got, is_tracer
from ..ground.drawing import plot_levels
from ..ground.kept import kept_property
from ..ground.kinds import library_for, library_of, need_plain
from ..language.noise import SAMPLER, START, Noise, Noises, are_names, each, names_of
from ..language.rows import Plain
from ..language.tableau import Tableau
from ..operations.draw import are_increments, randn, randn_like
from ..operations.update import update
from .arrays import (
    arrays_of_rows,
    at,
    bar,
    drawn_for,
    first_answer,
    in_words_of_a_step,
    need_answer,
    need_output,
    several_zeros_like,
    times_like,
    zeros_like,
)
from .inpainting import keeper
from .rows import SAME, guided, level_rows, mixed, oldest_past, scaling, thresholded, times_of
from .state import NEW, State
from .types import Array, LikelyRunOptions, LikelyStepOptions, Model, Models, RunOptions, StepOptions, Time

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

__all__ = ["Sampler", "State"]


class Sampler:
    """Runs a tableau. It is immutable and safe to share between threads; every run has its own ``State``.

    Samplers with equal tableaus are equal and have the same hash.

    Args:
        tableau: the rows; see ``noisefuse.samplers`` for functions that make them.
        model_time: what the times of the rows are, for ``print``: a word, or a function, whose name counts.

    Row i is the i-th model call, so ``len(sampler)`` counts model calls (Heun's method: 2 n - 1). Arrays may be of any
    kind and dtype that ``noisefuse.update`` accepts.

    Raises:
        TypeError: the argument is no tableau.
        ValueError: a row reads a past array that no row before it keeps.

    >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
    >>> len(sampler), sampler.timesteps.tolist()
    (5, [800, 600, 400, 200, 0])
    """

    tableau: Tableau
    model_time: str | None
    _slots: int
    _state_size: tuple[int, int]
    _push: list[int]
    _move: list[int]
    _plain: Plain
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
        need_tableau("tableau", tableau)
        push, reads = tableau.push.tolist(), oldest_past(tableau)
        most = max(push, default=0)
        # this bypasses __setattr__, which refuses; lists, because indexing them is fast
        self.__dict__.update(
            tableau=tableau,
            model_time=getattr(model_time, "__name__", model_time),
            _slots=tableau.slots,
            _state_size=(tableau.slots, most),
            _push=push,
            _move=[n + (most + 1) * bool(read) for n, read in zip(push, reads, strict=True)],  # see State.moves
            _plain=tableau.as_rows.plain,
            _fast_rows=0 if tableau.threshold or tableau.masked else len(tableau),  # all or none
            _denoised=tableau.denoised.tolist(),
            # NumPy's numbers: torch.compile cannot trace the array
            _times=[*tableau.timesteps],
            _integer_times=tableau.timesteps.dtype.kind in "iu",
            _reads=reads,
            _draws=tableau.as_rows.draws.tolist(),
            _levels=level_rows(tableau),
            _has_level=((tableau.alpha != 0) | (tableau.sigma != 0)).tolist(),
            _start=None if tableau.start == 1 else scaling([tableau.start]),
            _inputs=None if np.all(tableau.scale == 1) else scaling(tableau.scale),
            _mixed=lru_cache(maxsize=64)(partial(mixed, tableau)),
        )
        if (i := self._first_without_past(0)) is not None:  # a state would hold zeros there
            oldest = f"past{self._reads[i]}"
            raise ValueError(
                f"row {i} of {tableau.name} reads {oldest}, which no row before it keeps: see Tableau(push)"
            )

    @kept_property
    def _plain_density(self) -> Any:
        return density.plain_table(self.tableau)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Sampler is immutable: cannot set {name!r}")

    def __reduce__(self) -> tuple[type[Sampler], tuple[Tableau, str | None]]:
        return Sampler, (self.tableau, self.model_time)

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)

    def __len__(self) -> int:
        return len(self._push)

    def __eq__(self, other: object) -> bool:
        return self.tableau == other.tableau if isinstance(other, Sampler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.tableau)

    def __repr__(self) -> str:
        title, *lines = repr(self.tableau).replace("Tableau(", "Sampler(", 1).split("\n")
        told = "" if self.model_time is None else f", model_time={self.model_time}"
        return "\n".join([f"{title[:-1]}{told})", *lines])

    def _repr_html_(self) -> str:
        """The rows of the repr as a table, below a plot of their noise levels, for notebooks."""
        has_plot = len(self) and all(self._has_level)
        plot = notebook.levels(self.tableau.alpha, self.tableau.sigma, "row") if has_plot else ""
        return notebook.equations(repr(self), plot)

    @property
    def timesteps(self) -> npt.NDArray[Any]:
        """The t that the model is given in each row, (n,), an index, a noise level or what ``model_time`` says."""
        return self.tableau.timesteps

    # ---- one step ------------------------------------------------------------------------------------------

    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: NumPyDType = "float32", out: None = None,
        device: None = None, chunks: None = None,
    ) -> npt.NDArray[Any]: ...  # fmt: skip
    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: torch.dtype, out: None = None,
        device: Device | None = None, chunks: None = None,
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: NumPyDType = "float32", out: None = None,
        device: Device, chunks: None = None,
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: DType | None = "float32", out: ArrayT,
        device: None = None, chunks: None = None,
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: DType | None = "float32", out: None = None,
        device: None = None, chunks: Any,
    ) -> Any: ...  # fmt: skip
    def start(
        self,
        shape: Sequence[int],
        noise: Noises,
        *,
        dtype: DType | None = "float32",
        out: Array | None = None,
        device: Device | None = None,
        chunks: Any = None,
    ) -> Array:
        """The x of row 0: noise of stream 2, times the standard deviation at the first noise level.

        That standard deviation, ``tableau.start``, is sqrt(alpha^2 + sigma^2), for data of variance 1. If alpha = 1 in
        the whole schedule, it is sigma, the noise alone, as in Karras et al. 2022 and k-diffusion. A sampler of x /
        alpha divides it by alpha. The noise that ``edm`` adds before its first call comes on top. diffusers calls it
        init_noise_sigma.

        ``randn(shape, noise.at(stream=2))`` gives the same numbers, up to that factor.

        Args:
            shape: the shape of x. Axis 0 is the batch.
            noise: a Noise of stream 0, or a list of one for each sample.
            dtype, device, chunks: as in `randn`.
            out: an array to write to, such as a CuPy array.

        Raises:
            ValueError: a noise has another stream than 0.
            TypeError, OverflowError: as in `randn`.

        >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
        >>> sampler.start((2, 3, 8, 8), nf.Noise(7)).shape
        (2, 3, 8, 8)
        """
        options: dict[str, Any] = {"dtype": dtype, "out": out, "device": device, "chunks": chunks}
        drawn = randn(shape, at(noise, 0, START), **options)
        if self._start is None:
            return drawn
        return update(self._start, 0, drawn, out=drawn if chunks is None else None)

    @overload
    def noised(
        self, i: int, x0: npt.NDArray[Any], noise: Noises, *, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]: ...
    @overload
    def noised(self, i: int, x0: ArrayT, noise: Noises, *, out: ArrayT | None = None) -> ArrayT: ...
    def noised(self, i: int, x0: Array, noise: Noises, *, out: Array | None = None) -> Array:
        """x0 at the noise level of row i, in the sampler's own scale: alpha x0 + sigma z, with the z of ``start``.

        diffusers calls this add_noise.

        A run may begin there, ``sample(model, sampler.noised(i, x0, noise), noise, start=i)``: image to image (SDEdit,
        Meng et al. 2022), or an action plan that begins with the last one.

        Raises:
            IndexError: there is no row i.
            ValueError: the tableau has no noise levels, or a noise has another stream than 0.

        >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
        >>> sampler.noised(2, np.zeros((2, 3, 8, 8), np.float32), nf.Noise(7)).shape  # at the level of row 2
        (2, 3, 8, 8)
        """
        i = self._row(i)
        if not self._has_level[i]:
            raise ValueError(
                f"{self.tableau.name} does not say at what level row {i} begins: see Tableau(alpha, sigma)"
            )
        x0 = host_view("x0", x0)
        row = fast_path(library_for(x0), "fast_row")
        if row is not None:  # in one pass, where x0 and the noise are plain
            table, z = self._levels.as_rows.plain, at(noise, 0, START)
            done: Array = row(table, i, x0, None, None, z, -1, out, None, None, True)
            if done is not NotImplemented:
                return done
        return update(self._levels, i, x0, noise=drawn_for(noise, 0, START, x0), out=out)

    @overload
    def model_input(
        self, i: int, x: npt.NDArray[Any], *, time: Literal["scalar"] | None = None, out: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[Any], Any]: ...
    @overload
    def model_input(
        self, i: int, x: npt.NDArray[Any], *, time: Literal["batch"], out: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]: ...
    @overload
    def model_input(
        self, i: int, x: ArrayT, *, time: Literal["scalar"] | None = None, out: ArrayT | None = None
    ) -> tuple[ArrayT, Any]: ...
    @overload
    def model_input(
        self, i: int, x: ArrayT, *, time: Literal["batch"], out: ArrayT | None = None
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
        self, i: int, x: npt.NDArray[Any], model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[False] = False, **options: Unpack[StepOptions],
    ) -> npt.NDArray[Any]: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: ArrayT, model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[False] = False, **options: Unpack[StepOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: npt.NDArray[Any], model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[True], partial: Literal[False] = False,
        **options: Unpack[LikelyStepOptions],
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: ArrayT, model_output: Models, noise: Noises | Array | None = None,
        state: State | None = None, *, log_prob: Literal[True], partial: Literal[False] = False,
        **options: Unpack[LikelyStepOptions],
    ) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
    @overload
    def step(
        self, i: int, x: Array, model_output: Models, noise: Noises | Array | None = None, state: State | None = None,
        *, log_prob: bool, partial: bool = False, **options: Unpack[LikelyStepOptions],
    ) -> Any: ...  # fmt: skip
    def step(
        self,
        i: int,
        x: Array,
        model_output: Models,
        noise: Noises | Array | None = None,
        state: State | None = None,
        *,
        guidance_scale: float | npt.ArrayLike | None = None,
        out: Array | None = None,
        denoised_out: Array | list[Array] | None = None,
        log_prob: bool = False,
        **law: Unpack[density.Options],
    ) -> Any:
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
            _need_log_prob(False, law)
        plain: Any = self._plain
        if guidance_scale is not None or type(model_output) is tuple:
            plain = None if log_prob else self._plain_guided(x, guidance_scale, model_output)
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
                plain = self._plain_density
                made = backends.fast_density(plain, False, i, x, model_output, past, noise, SAMPLER, out, kept, law)
            else:
                made = backends.fast_row(plain, i, x, model_output, past, noise, SAMPLER, out, kept, None, True)
            if made is not NotImplemented:
                if slots:
                    state.at = after  # type: ignore[union-attr]
                return made
        return self._step(
            i, x, model_output, noise, state, guidance_scale, out, denoised_out, law if log_prob else None
        )

    def _plain_guided(self, x: Array, scale: Any, model_output: Any) -> Any:
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

    def _step(
        self,
        i: int,
        x: Array,
        model_output: Array | tuple[Array, Array],
        noise: Noises | Array | None,
        state: State | None,
        guidance_scale: float | npt.ArrayLike | None,
        out: Array | None,
        denoised_out: Array | list[Array] | None,
        law: density.Options | None = None,
    ) -> Any:
        """Does ``step`` without the fast path: all unusual arguments, and errors in a user's words."""
        if law:  # the fast path did not take it, perhaps because of wrong names
            _need_log_prob(True, law)
        i, table, x = self._row(i), self.tableau, host_view("x", x)
        self._need_state(state)
        written = is_written(x)
        if denoised_out is not None and not written and (not isinstance(denoised_out, list) or is_tracer(i)):
            why = "None, as the row is traced" if is_tracer(i) else "a list, as arrays of this kind are not written to"
            raise TypeError(f"denoised_out: expected {why}, got {type(denoised_out).__name__}")
        if denoised_out is not None and not self._denoised[i]:
            raise ValueError(f"{table.name} does not say which output estimates the clean sample")
        table, rows, model_output = self._guided(i, x, model_output, guidance_scale)
        if table.threshold is not None:
            table, rows = thresholded(table, rows, x, model_output)
        if are_increments(noise):
            noise = randn_like(x, noise, dtype="float64" if "float64" in str(x.dtype) else "float32")
        elif rows is not i and isinstance(noise, Noise | list | tuple):
            noise = drawn_for(noise, i, SAMPLER, x)
        past, aux, after = ([], [], 0) if state is None else self._moved(state, i)
        own: list[Array] = []
        at = 0 if denoised_out is None else self._denoised[i] - 1
        if denoised_out is not None and written:  # if the state has this array, it is filled afterwards
            own, aux = aux[at : at + 1], [*aux[:at], denoised_out, *aux[at + 1 :]]
        aux_out: Any = aux if written else len(aux) if denoised_out is None else max(len(aux), at + 1)
        try:
            given: dict[str, Any] = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
            if law is None:
                made, found = update(table, rows, x, model_output, **given), None
            else:
                made, found = density.update_with_log_prob(table, rows, x, model_output, **given, **law)
        except (TypeError, ValueError) as error:
            denoised = None if denoised_out is None else f"aux_out[{at}]"
            raise in_words_of_a_step(error, denoised, [*past, *aux], x) from None
        for array in own:
            array[...] = denoised_out
        if not written:
            made, *kept = made
            if denoised_out is not None:  # there may be more outputs than the row keeps
                denoised_out.append(kept[at])
                del kept[len(aux) :]
            if state is not None:
                state.keep(kept if not is_tracer(i) else self._kept(i, kept, past))
        elif state is not None:
            state.at = after
        return made if law is None else (made, found)

    # ---- the log-density of a step: see `density` ------------------------------------------------------------

    @overload
    def log_prob(
        self, i: int | npt.ArrayLike, x: npt.NDArray[Any], model_output: Models, x_next: npt.NDArray[Any],
        state: State | None = None, *, guidance_scale: float | npt.ArrayLike | None = None,
        partial: Literal[False] = False, **law: Unpack[density.LawOptions],
    ) -> npt.NDArray[np.float64]: ...  # fmt: skip
    @overload
    def log_prob(
        self, i: int | npt.ArrayLike, x: ArrayT, model_output: Models, x_next: ArrayT,
        state: State | None = None, *, guidance_scale: float | npt.ArrayLike | None = None,
        partial: Literal[False] = False, **law: Unpack[density.LawOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def log_prob(
        self, i: int | npt.ArrayLike, x: Array, model_output: Models, x_next: Array, state: State | None = None, *,
        guidance_scale: float | npt.ArrayLike | None = None, partial: Literal[True], **law: Unpack[density.LawOptions],
    ) -> density.Part: ...  # fmt: skip
    def log_prob(
        self,
        i: int | npt.ArrayLike,
        x: Array,
        model_output: Array | tuple[Array, Array],
        x_next: Array,
        state: State | None = None,
        *,
        guidance_scale: float | npt.ArrayLike | None = None,
        **law: Unpack[density.Options],
    ) -> Any:
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
        self._need_state(state)
        self._need_past(state, i)
        table, rows, model_output = self._guided(i, x, model_output, guidance_scale)
        past = [] if state is None else state.past[: table.slots]
        return density.log_prob(table, rows, x, model_output, x_next, past=past, **law)

    @overload
    def kl(
        self, i: int | npt.ArrayLike, model_output: npt.NDArray[Any], reference: npt.NDArray[Any], *,
        reduction: density.OverElements = "sum",
    ) -> npt.NDArray[np.float64]: ...  # fmt: skip
    @overload
    def kl(
        self, i: int | npt.ArrayLike, model_output: ArrayT, reference: ArrayT, *,
        reduction: density.OverElements = "sum",
    ) -> ArrayT: ...  # fmt: skip
    def kl(
        self, i: int | npt.ArrayLike, model_output: Array, reference: Array, *, reduction: density.OverElements = "sum"
    ) -> Any:
        """The divergence of row i's Gaussians with two model outputs, float64 (B,): see `density.kl`.

        >>> sampler = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
        >>> m = np.ones((2, 3, 8), np.float32)
        >>> sampler.kl(4, m, m).tolist()
        [0.0, 0.0]
        """
        return density.kl(self.tableau, i, model_output, reference, reduction=reduction)

    def _need_state(self, state: State | None) -> None:
        if state is None and self._slots:
            raise TypeError(f"{self.tableau.name} remembers earlier steps: pass state=sampler.state(x), one per run")

    def _guided(self, i: Any, x: Array, model_output: Any, scale: float | npt.ArrayLike | None) -> Any:
        """Returns the table and its rows, with guidance folded in, and the model output or the pair."""
        if isinstance(model_output, list) and len(model_output) == 2:  # a model may return (uncond, cond) as a list
            model_output = tuple(model_output)
        if scale is None and not isinstance(model_output, tuple):
            return self.tableau, i, model_output
        return *library_for(x).untraced(guided, self.tableau, self._mixed, i, x, model_output, scale), model_output

    def _moved(self, state: State, i: int) -> tuple[list[Array], list[Array], int]:
        """Returns row i's arrays in the state: see ``State.moves``. TypeError: the state is not this sampler's."""
        if not isinstance(state, State) or state.size != self._state_size:
            what = "another's" if isinstance(state, State) else type(state).__name__
            name = self.tableau.name
            raise TypeError(f"state: expected {name}'s own, sampler.state(x), one per run, got {what}")
        if is_tracer(i):
            return state.moves[self._state_size[1]][state.at]
        self._need_past(state, i)
        return state.moves[self._move[i]][state.at]

    def _need_past(self, state: State | None, i: Any) -> None:
        """Raises ValueError if row i reads what earlier rows kept, and the state is new."""
        if state is not None and state.at == NEW and type(i) is int and self._reads[i]:
            raise ValueError(
                f"state: row {i} of {self.tableau.name} reads what earlier rows kept, and the state is new; to start "
                "later, build a sampler of the times that are left, steps=[..]"
            )

    def _kept(self, i: Any, made: list[Array], past: list[Array]) -> list[Array]:
        """Returns the state's arrays after a row whose number is traced, if rows differ in what they keep."""
        if len({*self._push}) == 1:
            return made
        slots = self._slots
        choices = [[*made[:n], *past][:slots] for n in range(len(made) + 1)]
        return library_of(made[0]).chosen(self._push, i, choices)  # type: ignore[no-any-return]

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

    # ---- a whole run ---------------------------------------------------------------------------------------

    @overload
    def sample(
        self, model: Model, x_or_shape: npt.NDArray[Any], noise: Noises | Array | Sequence[Array | None] | None = None,
        *, dtype: Any = None, device: None = None, log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> npt.NDArray[Any]: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: Sequence[int], noise: Noises, *, dtype: torch.dtype,
        device: Device | None = None, log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: Sequence[int], noise: Noises, *, dtype: NumPyDType = None,
        device: Device, log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def sample(
        self, model: Callable[[Any, Any], npt.NDArray[Any] | tuple[npt.NDArray[Any], npt.NDArray[Any]]],
        x_or_shape: Sequence[int], noise: Noises, *, dtype: NumPyDType = None, device: None = None,
        log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> npt.NDArray[Any]: ...  # fmt: skip
    @overload
    def sample(
        self, model: Callable[[Any, Any], ArrayT | tuple[ArrayT, ArrayT]], x_or_shape: Sequence[int],
        noise: Noises, *, dtype: DType | None = None, device: None = None, log_probs: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: ArrayT, noise: Noises | Array | Sequence[Array | None] | None = None, *,
        dtype: Any = None, device: None = None, log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: npt.NDArray[Any], noise: Noises | Array | Sequence[Array | None] | None = None,
        *, dtype: Any = None, device: None = None, log_probs: Literal[True], partial: Literal[False] = False,
        **options: Unpack[LikelyRunOptions],
    ) -> tuple[npt.NDArray[Any], list[npt.NDArray[np.float64] | None]]: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: ArrayT, noise: Noises | Array | Sequence[Array | None] | None = None, *,
        dtype: Any = None, device: None = None, log_probs: Literal[True], partial: Literal[False] = False,
        **options: Unpack[LikelyRunOptions],
    ) -> tuple[ArrayT, list[ArrayT | None]]: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: Array | Sequence[int],
        noise: Noises | Array | Sequence[Array | None] | None = None, *, dtype: DType | None = None,
        device: Device | None = None, log_probs: bool, partial: bool = False, **options: Unpack[LikelyRunOptions],
    ) -> Any: ...  # fmt: skip
    def sample(
        self,
        model: Model,
        x_or_shape: Array | Sequence[int],
        noise: Noises | Array | Sequence[Array | None] | None = None,
        *,
        start: int = 0,
        time: Time | None = None,
        guidance_scale: float | npt.ArrayLike | None = None,
        dtype: DType | None = None,
        device: Device | None = None,
        progress: bool = False,
        callback: Callable[[int, Array, Array], object] | None = None,
        out: Array | None = None,
        log_probs: bool = False,
        mask: Array | None = None,
        known: Array | None = None,
        **law: Unpack[density.Options],
    ) -> Any:
        """Runs the rows from ``start`` to the end.

        Args:
            model: model(x_in, t) -> its output, or (uncond, cond). x_in has x's shape and kind. t is a number or, for
                tensors, (B,): see ``time``.
            x_or_shape: the shape (B, ..) of a new sample, or x at the noise level of row ``start``, which is not
                changed.
            noise: a Noise for the start and all steps. None is enough for deterministic samplers on a given x. For a
                given x it may also be noise that was drawn before: an array (len(sampler) - start, *x.shape), or a list
                with an array of x's shape for each row from ``start`` on. Entries for rows that draw no noise are not
                read, and may be None. Or a ``path``, from row ``start`` on: ``path[start:]``.
            start: the first row. Multistep samplers start at 0: build one for the remaining times instead.
            time: as in ``model_input``: "scalar" gives the model a number t, "batch" an array (B,) of x's kind. None:
                "batch" for tensors, else "scalar".
            dtype, device: for a new sample, as in `randn`: a dtype of torch, or a device, gives a tensor. None:
                float32. With neither, x begins as a NumPy array; if the model answers with a tensor or a JAX array, x
                continues as one, on the same device. A model that answers NumPy arrays with tensors is given NumPy
                arrays in every row, and the time in the form of the first row. NumPy arrays carry no gradient, so x has
                none.
            progress: show a bar (needs tqdm).
            callback: callback(i, x, denoised) after each row, with arrays of its own.
            out: an array for the result: of x's dtype, or bytes, to which the last row rounds 127.5 x + 127.5.
            log_probs: also give the log-density of each row's step: see ``step`` and `density`.
            mask, known: inpainting. Where the mask is 1 (or True), x is sampled. Where the mask is 0, x is ``known``, a
                clean sample of x's shape. Before each row ``known`` is brought to that row's noise level (``noised``);
                after the last row it is written unchanged, so the run has to end on clean data. A mask may lie between
                0 and 1, and have any shape that broadcasts to x's. A callback sees x before ``known`` is written.

        Returns:
            x after the last row; with log_probs the pair of x and a list of log-densities (B,), one for each row from
            ``start`` on, with None for a row that draws no noise.

        Raises:
            TypeError: the model's answer is no array, or the model fails on NumPy arrays and may want a tensor. Other
                errors are those of ``start`` and ``step``.

        For a torch network: ``sampler.sample(network, (8, 3, 32, 32), Noise(7), device="cuda")``.

        >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
        >>> x = sampler.sample(lambda x, t: np.zeros_like(x), (2, 3, 8, 8), nf.Noise(7))
        >>> x.shape, x.dtype.name
        ((2, 3, 8, 8), 'float32')
        """
        self._can_start(start)
        _need_log_prob(log_probs, law)
        if not callable(model):
            raise TypeError(f"model: expected a function, or a network, of (x, t), got {type(model).__name__}")
        if callback is not None and is_lazy(x_or_shape):
            raise NotImplementedError("callback: does not take dask arrays, which are not computed yet")
        x, is_new = self._begun(x_or_shape, noise, start, dtype, device), isinstance(x_or_shape, list | tuple)
        drawn = None if noise is None or are_names(noise) else arrays_of_rows(noise, x, self._draws, start)
        keep, answer = keeper(self._known_levels, mask, known, x, noise, log_probs, out), None
        if is_new and dtype is None and device is None and out is None and keep is None:
            answer, x = first_answer(model, x, *self.model_input(0, x, time=time))
            if (of_arrays := library_for(x).of_arrays) is not None:
                (model, answer), time = of_arrays(model, answer), "scalar" if time is None else time
        scanned = library_for(x).sample
        if scanned is not None and drawn is None and callback is None and keep is None and not log_probs:
            if out is not None:
                raise TypeError("out: expected None, as JAX arrays are not written to")
            rows = range(start, len(self))
            return scanned(self, model, x, noise, rows, time=time, guidance_scale=guidance_scale)
        state, found = self.state(x), []
        likely: dict[str, Any] = {**law, "log_prob": True}
        need_output(out, x)
        for i in bar(range(start, len(self)), progress):
            x = x if keep is None else keep(x, i)
            if answer is None:
                answer = model(*self.model_input(i, x, time=time))
            if type(answer) is not type(x):
                need_answer(answer, x, i)
            z = noise if drawn is None else drawn[i - start]
            denoised: Any = None if callback is None else zeros_like(x) if is_written(x) else []
            to = out if i == len(self) - 1 and keep is None else None
            given: dict[str, Any] = {"guidance_scale": guidance_scale, "out": to, "denoised_out": denoised}
            if log_probs and self._draws[i]:
                pair: Any = self.step(i, x, answer, z, state, **given, **likely)
                x, one = pair
                found.append(one)
            else:
                x = self.step(i, x, answer, z, state, **given)
                found.append(None)
            answer = None
            if callback is not None:
                callback(i, x, denoised if is_written(x) else denoised[0])
        x = x if keep is None else keep(x, len(self), out)
        return (x, found) if log_probs else x

    def _begun(self, x_or_shape: Any, noise: Any, start: int, dtype: Any, device: Any) -> Array:
        """Returns the x of a run's first row."""
        if isinstance(x_or_shape, list | tuple):
            if not are_names(noise) or start:
                raise TypeError(
                    "a new sample needs a Noise or a list of them, and start=0; for start > 0, or noise as arrays, "
                    f"give x at the level of that row; got {f'start={start}' if start else got(noise)}"
                )
            return self.start(x_or_shape, noise, dtype="float32" if dtype is None else dtype, device=device)
        x = host_view("x", x_or_shape)
        need_plain("x", x)
        if not hasattr(x, "shape"):
            raise TypeError(f"x_or_shape = {x!r}: expected a shape, such as (8, 3, 32, 32), or an array")
        if device is not None:
            raise TypeError("device: expected None where x is given, which lies somewhere already")
        return x

    def path(
        self,
        noise: Noises,
        *,
        span: tuple[float, float] | None = None,
        grid: Sequence[float] | None = None,
        clock: Callable[[Any, Any], Any] | None = None,
        end: float = 0.0,
    ) -> list[Any]:
        """The increment of one Brownian motion for each row, so that runs of more or fewer steps see the same noise.

        ``sampler.sample(model, sampler.start(shape, noise), sampler.path(noise))`` draws each entry in its row. A row
        that draws has the increment (`Noise.interval`) from the end of the previous drawing row to the noise level of
        the next row. So the two pieces of a step of ``dpmpp_sde`` are two pieces of one motion.

        Args:
            noise: a Noise, or a list of one for each sample. Each seed, sample and step has a path of its own.
            span, grid: as in `Noise.interval`. With neither: the span of this run's own times. Runs share a path if
                they share span or grid; if they begin at different noise levels, give the widest span.
            clock: (alpha, sigma) -> time, for arrays. Default: sigma for a flow (alpha + sigma = 1), else sigma /
                alpha, as in k-diffusion's BrownianTreeNoiseSampler.
            end: the time at which the last row ends: 0 for a run to clean data.

        Returns:
            A list with an entry for each row. It is None for a row that draws no noise.

        Raises:
            ValueError: the noise levels are not known, the times go back and forth, a noise level has no finite time
                (alpha = 0: give a clock), or two draws are less than 2^-24 of the span apart.

        >>> schedule, noise = nf.Schedule.karras(100), nf.Noise(7)
        >>> few, many = (nf.samplers.euler_ancestral(schedule, steps=n) for n in (10, 40))
        >>> x = few.start((2, 8), noise)
        >>> a, b = (s.sample(lambda x, t: 0 * x, x, s.path(noise, span=(0, 80))) for s in (few, many))
        """
        self._need_levels()
        times = [*times_of(self.tableau, clock), float(end)]
        rows = [i for i, draws in enumerate(self._draws) if draws]
        ends = [times[0], *(times[i + 1] for i in rows)]
        moves = np.diff(ends)
        if not (np.all(moves < 0) or np.all(moves > 0)):
            raise ValueError(f"path: expected times that fall, or rise, from draw to draw of {self.tableau.name}")
        whole: dict[str, Any] = {"grid": grid, **({} if span is None else {"span": span})}
        if grid is None and span is None:
            whole["span"] = min(times), max(times)
        found: list[Any] = [None] * len(self)
        names_of(noise)
        for i, t0, t1 in zip(rows, ends[:-1], ends[1:], strict=True):
            found[i] = each(noise, lambda name: name.interval(t0, t1, **whole))  # noqa: B023, it is called at once
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plots alpha, sigma and, on the right axis, log-SNR at the start of each row. Returns the left axis.

        If alpha is 1 everywhere (variance exploding), it plots sigma alone, on a logarithmic axis.

        Args:
            ax: matplotlib Axes to draw on. None: a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the tableau has no noise levels.
        """
        self._need_levels()
        table = self.tableau
        return plot_levels(ax, table.alpha, table.sigma, "row", f"{table.name}, {len(self)} rows", marker="o")

    def _known_levels(self) -> Tableau:
        """Returns the rows that bring x0 to each row's noise level. ValueError: the tableau has no noise levels."""
        self._need_levels()
        return self._levels

    def _need_levels(self) -> None:
        if not all(self._has_level):
            name = self.tableau.name
            raise ValueError(f"{name} does not say at what level each row begins: see Tableau(alpha, sigma)")

    def _can_start(self, start: int) -> None:
        """Raises ValueError if a row from ``start`` on reads arrays that only rows before it would have kept."""
        i = self._first_without_past(self._row(start))
        if i is not None:
            raise ValueError(
                f"row {i} of {self.tableau.name} remembers rows before {start}: "
                "to start later, build a sampler of the times that are left, steps=[..]"
            )

    def _first_without_past(self, start: int) -> int | None:
        """Returns the first row that reads more than the rows from ``start`` on have kept."""
        kept = 0
        for i in range(start, len(self)):
            if kept >= self._slots:
                break
            if self._reads[i] > kept:
                return i
            kept += self._push[i]
        return None


def _need_log_prob(asked: bool, law: density.Options) -> None:
    for name in law:
        if name not in density.Options.__annotations__:
            there = "of a whole run it is log_probs=True" if name == "log_prob" else "with log_prob there are "
            there += "" if name == "log_prob" else ", ".join(density.Options.__annotations__)
            raise TypeError(f"{name}: no such argument; {there}")
    if law and not asked:
        raise TypeError(f"{', '.join(law)}: given without log_prob=True (of a whole run log_probs=True)")


_NOTHING: tuple[Sequence[Array], Sequence[Array], int] = (), (), 0  # of a state, where none is needed
