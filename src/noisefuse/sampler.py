# SPDX-License-Identifier: Apache-2.0
"""The engine: a tableau, run step by step. What a run remembers lives in an explicit ``State``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np
import numpy.typing as npt

from . import backends, density
from .arguments.arrays import host_view, is_lazy, is_traced, is_written
from .arguments.options import fast_path, need_tableau
from .arguments.types import ArrayT, Device, DType, NumPyDType
from .ground import stored
from .ground.drawing import plot_levels
from .ground.kinds import library_for, library_of, need_plain
from .language.rows import Plain
from .noise import SAMPLER, START, Noise, are_names, each, got, is_tracer, names_of
from .operations.draw import are_increments, randn, randn_like
from .operations.update import update
from .sampling.arrays import (
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
from .sampling.inpainting import keeper
from .sampling.rows import SAME, guided, level_rows, mixed, oldest_past, scaling, thresholded, times_of
from .sampling.state import State
from .sampling.types import (
    Array,
    LikelyRunOptions,
    LikelyStepOptions,
    Model,
    Models,
    Noises,
    RunOptions,
    StepOptions,
    Time,
)
from .tableau import Tableau

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

__all__ = ["Sampler", "State"]


class Sampler:
    """Runs a tableau. Immutable and safe to share between threads; every run has its own ``State``.

    Samplers are equal, and have the same hash, where their tableaus are.

    Args:
        tableau: the rows; see ``noisefuse.samplers`` for functions that make them.

    Row i is the i-th model call: ``len(sampler)`` counts model calls (Heun's method: 2 n - 1). Arrays may be
    of any kind and dtype that ``noisefuse.update`` accepts.

    Raises:
        TypeError: no tableau.
        ValueError: a row reads a past array that no row before it keeps.

    >>> sampler = nf.samplers.ddim(nf.Schedule.linear(1000), steps=5)
    >>> len(sampler), sampler.timesteps.tolist()
    (5, [800, 600, 400, 200, 0])
    """

    tableau: Tableau
    _slots: int
    _state_size: tuple[int, int]
    _push: list[int]
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

    def __init__(self, tableau: Tableau) -> None:
        need_tableau("tableau", tableau)
        # past __setattr__, which refuses; lists, because indexing them is fast
        self.__dict__.update(
            tableau=tableau,
            _slots=tableau.slots,
            _state_size=(tableau.slots, int(tableau.push.max(initial=0))),
            _push=tableau.push.tolist(),
            _plain=tableau.as_rows.plain,
            _fast_rows=0 if tableau.threshold or tableau.masked else len(tableau),  # all or none
            _denoised=tableau.denoised.tolist(),
            # NumPy's numbers: torch.compile cannot follow into the array
            _times=[*tableau.timesteps],
            _integer_times=tableau.timesteps.dtype.kind in "iu",
            _reads=oldest_past(tableau),
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

    @cached_property
    def _plain_density(self) -> Any:
        return density.plain_table(self.tableau)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Sampler is immutable: cannot set {name!r}")

    def __reduce__(self) -> tuple[type[Sampler], tuple[Tableau]]:
        return Sampler, (self.tableau,)

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)

    def __len__(self) -> int:
        return len(self._push)

    def __eq__(self, other: object) -> bool:
        return self.tableau == other.tableau if isinstance(other, Sampler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.tableau)

    def __repr__(self) -> str:
        return repr(self.tableau).replace("Tableau(", "Sampler(", 1)

    @property
    def timesteps(self) -> npt.NDArray[Any]:
        """What the model is told, (n,), row by row; indices of the schedule, or noise levels."""
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
        """The x of row 0: noise of stream 2, times the standard deviation that the first level has.

        That standard deviation, ``tableau.start``, is sqrt(alpha^2 + sigma^2): data has variance 1. Where alpha = 1 in
        the whole schedule it is sigma, the noise alone, as in Karras et al. 2022 and k-diffusion. x / alpha has it over
        alpha; the noise that ``edm`` adds before its first call comes on top. diffusers calls it init_noise_sigma.

        Regenerated by ``randn(shape, noise.at(stream=2))``, up to that factor.

        Args:
            shape: of x; axis 0 is the batch.
            noise: Noise of stream 0, or a list of one for each sample.
            dtype, device, chunks: of x, as `randn` takes them.
            out: where to write it, such as a CuPy array.

        Raises:
            ValueError: a noise of another stream than 0.
            TypeError, OverflowError: as `randn`.

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
        """x0 at the level of row i, in the sampler's own scale: alpha x0 + sigma z, with the z of ``start``.

        diffusers calls this add_noise.

        For runs that begin there, ``sample(model, sampler.noised(i, x0, noise), noise, start=i)``: image to image
        (SDEdit, Meng et al. 2022), or an action plan that begins with the last one.

        Raises:
            IndexError: no row i.
            ValueError: a tableau without levels; a noise of another stream than 0.

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
        """(x_in, t): what row i's model call gets. x_in is x itself where the model needs no scaling.

        diffusers calls the first of them scale_model_input(x, t).

        Args:
            time: t is a NumPy number ("scalar"), or "batch": an array (B,) of x's kind and on its device, as networks
                in torch take it: int64 of integer timesteps, else float32 (float64 where x is; half types round t).
                None: "batch" where x is a tensor of torch's, else "scalar".
            out: where to write x_in, of x's shape and dtype.

        Raises:
            IndexError: no row i.
            ValueError: another time.

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
        """The history of a new run on arrays like x; what is not remembered yet is 0.

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
        """The next x, from x and the model's answer to ``model_input(i, x)``.

        Args:
            i: the row, 0 <= i < len(self).
            model_output: one array of x's shape, or (uncond, cond) with ``guidance_scale``.
            noise: a Noise (row i draws from stream 3 at step noise.step + i), or an array of x's shape, or the
                increment of a Brownian motion (`path`); None only where the row draws none.
            state: this run's ``state(x)``; may be missing only for samplers that remember nothing. It changes
                only if the step succeeds.
            guidance_scale: w, a number or (B,): m = uncond + w (cond - uncond).
            out: where to write the result; it may be x, or bytes: 127.5 x + 127.5, rounded.
            denoised_out: where to write the row's estimate of the clean sample; for arrays that are not written to,
                such as JAX's, a list, to which it is appended.
            log_prob: also give the log-density of the result, float64 (B,), of the same pass: see `density`, which
                explains reduction=, density= and partial=, too.

        Returns:
            x of the next row; with log_prob the pair of that and its log-density.

        Raises:
            IndexError: no row i.
            TypeError: a missing state or another sampler's, a pair without guidance_scale or the other way round.
                ``noisefuse.update`` says what is wrong with an array.

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
            past, kept, after = state.moves[self._push[i]][state.at] if slots else _NOTHING  # type: ignore[union-attr]
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
        """Returns the rows of the fast path, or None if something is not plain."""
        if type(x) is not np.ndarray and is_traced(x):
            return None
        is_pair = type(model_output) is tuple and len(model_output) == 2
        if is_pair and type(scale) in (float, int) and math.isfinite(scale):
            return self._mixed(float(scale)).as_rows.plain
        return None

    def _again(self, i: int, x: Array, m: Array, past: Any, noise: Any, kept: int, state: Any) -> Any:
        """A step like an earlier one, of arrays that are not written to, or NotImplemented; and the state's place."""
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
        """``step`` without the fast path: whatever is out of the ordinary, and errors in a user's words."""
        if law:  # the fast path has not taken it, wrong names included
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
        past, aux, after = ([], [], 0) if state is None else self._move(state, i)
        own: list[Array] = []
        at = 0 if denoised_out is None else self._denoised[i] - 1
        if denoised_out is not None and written:  # in place of the state's own, if any, which is filled afterwards
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
            if denoised_out is not None:  # more outputs than the row keeps, it may be
                denoised_out.append(kept[at])
                del kept[len(aux) :]
            if state is not None:
                state.keep(kept if not is_tracer(i) else self._kept(i, kept, past))
        elif state is not None:
            state.at = after
        return made if law is None else (made, found)

    # ---- how likely a step was: see `density` --------------------------------------------------------------

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
            x_next: what the step made, of x's shape and dtype.
            state: as it was before the step.
            x, model_output, guidance_scale: as given to the step.
            reduction, density, partial: see `density`.

        Returns:
            float64 (B,). Of tensors a tensor, differentiable through model_output and x.

        Raises:
            ValueError: a row that draws no noise, or that bounds D.
            TypeError: a missing state.

        >>> sampler = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
        >>> x, m = np.ones((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32)
        >>> x_next, made = sampler.step(4, x, m, nf.Noise(7), log_prob=True)
        >>> bool((sampler.log_prob(4, x, m, x_next) == made).all())
        True
        """
        self._need_state(state)
        table, rows, model_output = self._guided(i, x, model_output, guidance_scale)
        past = [] if state is None else state.past[: table.slots]
        return density.log_prob(table, rows, x, model_output, x_next, past=past, **law)

    @overload
    def kl(
        self, i: int | npt.ArrayLike, model_output: npt.NDArray[Any], reference: npt.NDArray[Any], *,
        reduction: density.Reduction = "sum",
    ) -> npt.NDArray[np.float64]: ...  # fmt: skip
    @overload
    def kl(
        self, i: int | npt.ArrayLike, model_output: ArrayT, reference: ArrayT, *,
        reduction: density.Reduction = "sum",
    ) -> ArrayT: ...  # fmt: skip
    def kl(
        self, i: int | npt.ArrayLike, model_output: Array, reference: Array, *, reduction: density.Reduction = "sum"
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
        """The table and its rows, with guidance folded in, and the model output or the pair."""
        if isinstance(model_output, list) and len(model_output) == 2:  # of a model that says (uncond, cond) in one
            model_output = tuple(model_output)
        if scale is None and not isinstance(model_output, tuple):
            return self.tableau, i, model_output
        return *library_for(x).untraced(guided, self.tableau, self._mixed, i, x, model_output, scale), model_output

    def _move(self, state: State, i: int) -> tuple[list[Array], list[Array], int]:
        """What row i finds in the state: see ``State.moves``. TypeError: the state is not one of this sampler's."""
        if not isinstance(state, State) or state.size != self._state_size:
            what = "another's" if isinstance(state, State) else type(state).__name__
            name = self.tableau.name
            raise TypeError(f"state: expected {name}'s own, sampler.state(x), one per run, got {what}")
        return state.moves[self._state_size[1] if is_tracer(i) else self._push[i]][state.at]

    def _kept(self, i: Any, made: list[Array], past: list[Array]) -> list[Array]:
        """All that the state holds after a row whose number is traced, where rows differ in what they keep."""
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
        """Run rows ``start`` to the end.

        Args:
            model: model(x_in, t) -> its output, or (uncond, cond). x_in has x's shape and kind; t is a number, or of
                tensors (B,): see ``time``.
            x_or_shape: the shape (B, ..) of a new sample, or x at the level of row ``start``; not changed.
            noise: of the start and of all steps; None for deterministic samplers on a given x. Or, for a given x, noise
                that was drawn before: an array (len(sampler) - start, *x.shape) or a list with an array of x's shape
                for each row from ``start`` on. What stands for a row that draws none, such as None, is not read. Or
                a ``path``, of which the rows from ``start`` on are taken: ``path[start:]``.
            start: the first row. Multistep samplers start at 0: build one of the times that are left instead.
            time: as in ``model_input``: "scalar" gives the model a number t, "batch" a (B,) array of x's kind. None:
                "batch" of tensors, else "scalar".
            dtype, device: of a new sample, as `randn` takes them: a dtype of torch's, or a device, makes a tensor.
                None: float32. Where neither is given and the model answers NumPy's first x with a tensor, or with an
                array of JAX's, x goes on as one, there. A model that answers with tensors is given NumPy's arrays in
                every row, and the time as in the first; no gradient goes through arrays, so x has none.
            progress: show a bar (needs tqdm).
            callback: callback(i, x, denoised) after each row, with arrays of its own.
            out: where to write the result: of x's dtype, or bytes, to which the last row rounds 127.5 x + 127.5.
            log_probs: also give the log-density of each row's step: see ``step`` and `density`.
            mask, known: inpainting. Where mask is 1 (or True) x is sampled, where it is 0 it is ``known``, a clean
                sample of x's shape: before each row at that row's level (``noised``), after the last as it is, so for
                runs that end on clean data. A mask may lie between 0 and 1, and have any shape that broadcasts to
                x's. A callback sees x before that.

        Returns:
            x after the last row; with log_probs the pair of that and a list of log-densities (B,), one for each row
            from ``start`` on: None of a row that draws no noise.

        Raises:
            TypeError: a model that answers no array, or fails on NumPy's where it may want a tensor; and whatever else
                ``start`` and ``step`` say.

        Example, of a network in torch: ``sampler.sample(network, (8, 3, 32, 32), Noise(7), device="cuda")``.

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
            raise NotImplementedError("callback: does not take arrays of dask's, which are not computed yet")
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
                raise TypeError("out: expected None, as arrays of JAX's are not written to")
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
        """For each row what one Brownian motion does meanwhile, so that runs of more or fewer steps see the same noise.

        ``sampler.sample(model, sampler.start(shape, noise), sampler.path(noise))``: an entry is drawn when its row is
        taken. A row that draws has the increment (`Noise.interval`) from where the last one that drew has ended to the
        level of the row after it: so the two pieces of a step of ``dpmpp_sde`` are two pieces of one motion.

        Args:
            noise: a Noise, or a list of one for each sample: each of its seeds, samples and steps is a path.
            span, grid: as in `Noise.interval`. Neither given: the span of this run's own times. Runs share a path
                where they share span or grid: give the widest one where they do not begin at the same level.
            clock: (alpha, sigma) -> time, of arrays. Default: sigma of a flow (alpha + sigma = 1), else sigma / alpha,
                as in k-diffusion's BrownianTreeNoiseSampler.
            end: the time at which the last row ends: of a run to clean data 0.

        Returns:
            A list with an entry for each row, None for one that draws none.

        Raises:
            ValueError: levels that are not known, times that go back and forth, a level without a finite time (alpha =
                0: give a clock), or two draws within 2^-24 of the span.

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
        """Draw alpha and sigma, and log-SNR on the right axis, at which the rows begin; returns the left axis.

        Where alpha is 1 everywhere (variance exploding), sigma alone, on a logarithmic axis.

        Args:
            ax: matplotlib Axes to draw on; None: a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the tableau has no levels.
        """
        self._need_levels()
        table = self.tableau
        return plot_levels(ax, table.alpha, table.sigma, "row", f"{table.name}, {len(self)} rows", marker="o")

    def _known_levels(self) -> Tableau:
        """Returns the rows that noise x0 to the level of each row. ValueError: the tableau has no levels."""
        self._need_levels()
        return self._levels

    def _need_levels(self) -> None:
        if not all(self._has_level):
            name = self.tableau.name
            raise ValueError(f"{name} does not say at what level each row begins: see Tableau(alpha, sigma)")

    def _can_start(self, start: int) -> None:
        """ValueError if a row from ``start`` on reads what only rows before it would have kept."""
        i = self._first_without_past(self._row(start))
        if i is not None:
            raise ValueError(
                f"row {i} of {self.tableau.name} remembers rows before {start}: "
                "to start later, build a sampler of the times that are left, steps=[..]"
            )

    def _first_without_past(self, start: int) -> int | None:
        """The first row that reads more than the rows from ``start`` on have kept."""
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
            raise TypeError(
                f"{name}: no such argument; with log_prob there are {', '.join(density.Options.__annotations__)}"
            )
    if law and not asked:
        raise TypeError(f"{', '.join(law)}: given without log_prob=True (of a whole run log_probs=True)")


# ---- coefficients that depend on the call ------------------------------------------------------------------


_NOTHING: tuple[Sequence[Array], Sequence[Array], int] = (), (), 0  # of a state, where none is needed
