# SPDX-License-Identifier: Apache-2.0
"""A whole run of a tableau: where it begins, its steps and its noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np
import numpy.typing as npt

from .. import density
from ..arguments.arrays import host_view, is_lazy, is_written
from ..arguments.options import fast_path
from ..arguments.types import Array, ArrayT, Device, DType, Like, NumPyDType
from ..ground import notebook, stored
from ..ground.checks import got
from ..ground.drawing import plot_levels
from ..ground.libraries import check_plain, library_for
from ..language.noise import START, Noises, are_names, each, names_of
from ..language.tableau import Tableau
from ..operations.draw import randn
from ..operations.update import update
from .arrays import arrays_of_rows, asked, at, bar, check_answer, check_output, drawn_for, first_answer, zeros_like
from .inpainting import keeper
from .rows import first_without_past, times_of
from .steps import Steps, check_log_prob
from .types import LikelyRunOptions, Model, RunOptions, Time

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

__all__ = ["Sampler"]


class Sampler(Steps):
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

    def __reduce__(self) -> tuple[type[Sampler], tuple[Tableau, str | None]]:
        return Sampler, (self.tableau, self.model_time)

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)

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

    # ---- where a run begins --------------------------------------------------------------------------------

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
        self, shape: Sequence[int], noise: Noises, *, dtype: DType | None = "float32", out: Like[ArrayT],
        device: None = None, chunks: None = None,
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: DType | None = "float32", out: None = None,
        device: None = None, chunks: Any,
    ) -> Any: ...  # fmt: skip
    def start(
        self, shape: Sequence[int], noise: Noises, *, dtype: DType | None = "float32", out: Array | None = None,
        device: Device | None = None, chunks: Any = None,
    ) -> Array:  # fmt: skip
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

    def noised(self, i: int, x0: Like[ArrayT], noise: Noises, *, out: Like[ArrayT] | None = None) -> ArrayT:
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

    # ---- a whole run ---------------------------------------------------------------------------------------

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
        self, model: Callable[[Any, Any], Like[ArrayT] | tuple[Like[ArrayT], Like[ArrayT]]],
        x_or_shape: Sequence[int], noise: Noises, *, dtype: DType | None = None, device: None = None,
        log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: Like[ArrayT], noise: Noises | Array | Sequence[Array | None] | None = None, *,
        dtype: Any = None, device: None = None, log_probs: Literal[False] = False, **options: Unpack[RunOptions],
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def sample(
        self, model: Model, x_or_shape: Like[ArrayT], noise: Noises | Array | Sequence[Array | None] | None = None, *,
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
        self, model: Model, x_or_shape: Array | Sequence[int],
        noise: Noises | Array | Sequence[Array | None] | None = None, *, start: int = 0, time: Time | None = None,
        guidance_scale: float | npt.ArrayLike | None = None, dtype: DType | None = None, device: Device | None = None,
        progress: bool = False, callback: Callable[[int, Array, Array], object] | None = None, out: Array | None = None,
        log_probs: bool = False, mask: Array | None = None, known: Array | None = None, **law: Unpack[density.Options],
    ) -> Any:  # fmt: skip
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
        check_log_prob(log_probs, law)
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
        elif is_new and keep is None and isinstance(x, np.ndarray):
            check_output(out, x)
            answer = asked(model, *self.model_input(0, x, time=time))
        scanned = library_for(x).sample
        if scanned is not None and drawn is None and callback is None and keep is None and not log_probs:
            if out is not None:
                raise TypeError("out: expected None, as JAX arrays are not written to")
            rows = range(start, len(self))
            return scanned(self, model, x, noise, rows, time=time, guidance_scale=guidance_scale)
        state, found = self.state(x), []
        likely: dict[str, Any] = {**law, "log_prob": True}
        check_output(out, x)
        for i in bar(range(start, len(self)), progress):
            x = x if keep is None else keep(x, i)
            if answer is None:
                answer = model(*self.model_input(i, x, time=time))
            if type(answer) is not type(x):
                check_answer(answer, x, i)
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
        check_plain("x", x)
        if not hasattr(x, "shape"):
            raise TypeError(f"x_or_shape = {x!r}: expected a shape, such as (8, 3, 32, 32), or an array")
        if device is not None:
            raise TypeError("device: expected None where x is given, which lies somewhere already")
        return x

    def path(
        self, noise: Noises, *, span: tuple[float, float] | None = None, grid: Sequence[float] | None = None,
        clock: Callable[[Any, Any], Any] | None = None, end: float = 0.0,
    ) -> list[Any]:  # fmt: skip
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
        self._check_levels()
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
        self._check_levels()
        table = self.tableau
        return plot_levels(ax, table.alpha, table.sigma, "row", f"{table.name}, {len(self)} rows", marker="o")

    def _known_levels(self) -> Tableau:
        """Returns the rows that bring x0 to each row's noise level. ValueError: the tableau has no noise levels."""
        self._check_levels()
        return self._levels

    def _check_levels(self) -> None:
        if not all(self._has_level):
            name = self.tableau.name
            raise ValueError(f"{name} does not say at what level each row begins: see Tableau(alpha, sigma)")

    def _can_start(self, start: int) -> None:
        """Raises ValueError if a row from ``start`` on reads arrays that only rows before it would have kept."""
        i = first_without_past(self._push, self._reads, self._slots, self._row(start))
        if i is not None:
            raise ValueError(
                f"row {i} of {self.tableau.name} remembers rows before {start}: "
                "to start later, build a sampler of the times that are left, steps=[..]"
            )
