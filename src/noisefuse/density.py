# SPDX-License-Identifier: Apache-2.0
"""The likelihood of a step: the log-density of x' under the Gaussian that a row draws it from, and its gradient.

    x' = mean(x, m) + std z,    log p(x' | x, m) = -S / (2 std^2) - n (log std + log(2 pi) / 2),
    S = sum of (x' - mean)^2

Reinforcement learning needs it for every step of a sampler (DDPO, Black et al. 2023; Flow-GRPO, Liu et al. 2025). x' is
the stored one, rounded to its dtype, and S has the fixed order of the losses (docs/loss.md). So the same step has the
same log-density alone and in any batch, during the step and when it is read again, bit for bit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import backends
from .arguments.arrays import as_array, as_reals, device_of, is_written, on_device, output, overlap
from .arguments.calls import Index, converted, like, make_call, row_index, run
from .arguments.options import check_tableau, inputs_of, those_read
from .arguments.types import Array, Inputs, NoiseLike
from .call.description import LOSS_CHUNK, Loss, Step, StepAndLoss
from .ground.checks import check_choice, check_integer
from .ground.lazy import show_public
from .ground.libraries import library_of
from .ground.stored import SetState, make_again
from .language.levels import levels_of
from .language.noise import SAMPLER
from .language.rows import M1, NAMES, ROW, SYMBOLS, Rows, X, Z
from .language.tableau import Tableau
from .operations.partial_sums import LossPart, chunk_sums, chunks_of, combined, place_of
from .operations.update import update_call

__all__ = ["Part", "combine", "kl", "kl_grad", "log_prob", "log_prob_grad", "update_with_log_prob"]

show_public(__name__)

Density: TypeAlias = Literal["full", "no_constants", "squared"]
OverElements: TypeAlias = Literal["sum", "mean"]


class LawOptions(TypedDict, total=False):
    """The arguments of all log-densities (`log_prob` explains them)."""

    reduction: OverElements
    density: Density


class Options(LawOptions, total=False):
    """The options of a log-density, and whether the samples are parts."""

    partial: bool


Outs: TypeAlias = dict[str, Array | None]
Models: TypeAlias = Array | tuple[Array, Array] | None


def log_prob(
    table: Tableau, i: ArrayLike | Array, x: Array, model_output: Models, x_next: Array, *, past: Sequence[Array] = (),
    reduction: OverElements = "sum", density: Density = "full", partial: bool = False,
) -> Any:  # fmt: skip
    """Returns the log-density of x_next after row i, log p(x_next | x, model_output), in one pass.

    Args:
        table, x, model_output, past: as in `noisefuse.update`; the first axis of x is the batch.
        i: the row, a number or (B,), in host memory.
        x_next: the row's result, of x's shape and dtype.
        reduction: "sum" over a sample's elements, or "mean".
        density: "full"; "no_constants", -S / (2 std^2); or "squared", -S, as in some implementations of flow_cps.
        partial: return a `Part` for `combine`, for a part of each sample.

    Returns:
        float64 (B,), the same bits on every backend. Tensors give a float64 tensor, differentiable through model_output
        and x.

    Raises:
        ValueError: the row draws no noise, or its D is clamped: neither has such a density.
        IndexError, TypeError, ValueError: the message says what was given and what was expected.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> x, m, noise = np.ones((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32), nf.Noise(7)
    >>> x_next, made = nf.density.update_with_log_prob(table, 4, x, m, noise)
    >>> bool((nf.density.log_prob(table, 4, x, m, x_next) == made).all())
    True
    """
    library = None if type(x) is np.ndarray else library_of(x)
    law = {"reduction": reduction, "density": density, "partial": partial}
    if library is None or not library.is_traced():
        done = fast(table, True, i, x, model_output, past, x_next, None, (), law)
        if done is not NotImplemented:
            return done
    if library is not None:
        return library.log_prob(table, i, x, model_output, x_next, past=past, **law)
    call, found = stored_call(table, i, x, model_output, x_next, past, reduction, density, {})
    return Part(_chunk_sums(call), found) if partial else found.of(_sums(call))


def log_prob_grad(
    table: Tableau, i: ArrayLike | Array, x: Array, model_output: Models, x_next: Array, *,
    wrt: Literal["m1", "m2", "x"] = "m1", upstream: ArrayLike = 1.0, past: Sequence[Array] = (),
    reduction: OverElements = "sum", density: Density = "full", out: Array | None = None,
) -> Array:  # fmt: skip
    """Returns the gradient of `log_prob`, in one pass: (x_next - mean) / std^2 times the input's coefficient in the
    mean.

    Args:
        wrt: the input: "m1" is the model output or the first of a pair, "m2" the second, "x" is x.
        upstream: the gradient with respect to the log-densities, a number or (B,).
        out: an array to write to; C-contiguous, of x's shape and dtype. It may be one of the inputs.
        table, i, x, model_output, x_next, past, reduction, density: as in `log_prob`.

    Returns:
        An array of x's shape and dtype.

    Raises:
        IndexError, TypeError, ValueError: as in `log_prob`; nothing is written then.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> x, m = np.ones((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32)
    >>> nf.density.log_prob_grad(table, 4, x, m, x).shape
    (2, 3, 8)
    """
    library = None if type(x) is np.ndarray else library_of(x)
    law: dict[str, Any] = {"reduction": reduction, "density": density}
    if library is None or not library.is_traced():
        made: Array = fast_gradient(table, wrt, i, x, model_output, past, x_next, upstream, out, law)
        if made is not NotImplemented:
            return made
    if library is not None:
        given: dict[str, Any] = {"wrt": wrt, "upstream": upstream, "past": past, "out": out}
        return library.log_prob_grad(table, i, x, model_output, x_next, **given, **law)
    check_choice("wrt", wrt, ("m1", "m2", "x"))
    call, found = stored_call(table, i, x, model_output, x_next, past, reduction, density, {"out": out})
    return _gradient(call, found.factor * _each(_deviation(table).rows["out"][wrt][call.index]), upstream)


def kl(
    table: Tableau, i: ArrayLike | Array, model_output: Array, reference: Array, *, reduction: OverElements = "sum"
) -> Any:
    """Returns the divergence KL(p || q) of row i's Gaussians with two model outputs, |mean_p - mean_q|^2 / (2 std^2).

    This is the closed form: the Gaussians share their standard deviation, and x has the same part in both means.

    Args:
        table, i, reduction: as in `log_prob`.
        model_output, reference: the outputs for p and for q, of one shape and dtype.

    Returns:
        float64 (B,). Tensors give a tensor, differentiable through model_output.

    Raises:
        IndexError, TypeError, ValueError: as in `log_prob`.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> m = np.ones((2, 3, 8), np.float32)
    >>> nf.density.kl(table, 4, m, m).tolist()
    [0.0, 0.0]
    """
    library = None if type(model_output) is np.ndarray else library_of(model_output)
    if library is None or not library.is_traced():
        done = fast_kl(table, i, model_output, reference, None, None, {"reduction": reduction})
        if done is not NotImplemented:
            return done
    if library is not None:
        return library.kl(table, i, model_output, reference, reduction=reduction)
    call, factor = pair_call(table, i, model_output, reference, reduction, {})
    return _scaled(_sums(call), factor, 0.0)


def kl_grad(
    table: Tableau, i: ArrayLike | Array, model_output: Array, reference: Array, *, reduction: OverElements = "sum",
    upstream: ArrayLike = 1.0, out: Array | None = None,
) -> Array:  # fmt: skip
    """Returns the gradient of `kl` with respect to model_output, in one pass.

    Args:
        table, i, model_output, reference, reduction: as in `kl`.
        upstream, out: as in `log_prob_grad`.

    Returns:
        An array of model_output's shape and dtype.

    Raises:
        IndexError, TypeError, ValueError: as in `log_prob`; nothing is written then.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> m = np.ones((2, 3, 8), np.float32)
    >>> float(nf.density.kl_grad(table, 4, m, m).max())
    0.0
    """
    library = None if type(model_output) is np.ndarray else library_of(model_output)
    if (library is None or not library.is_traced()) and upstream is not None:
        made: Array = fast_kl(table, i, model_output, reference, upstream, out, {"reduction": reduction})
        if made is not NotImplemented:
            return made
    if library is not None:
        given: dict[str, Any] = {"reduction": reduction, "upstream": upstream, "out": out}
        return library.kl_grad(table, i, model_output, reference, **given)
    call, factor = pair_call(table, i, model_output, reference, reduction, {"out": out})
    return _gradient(call, factor, upstream)


def update_with_log_prob(
    table: Tableau, i: int, x: Array, model_output: Models, noise: NoiseLike, *, past: Sequence[Array] = (),
    out: Array | None = None, aux_out: Sequence[Array] = (), reduction: OverElements = "sum", density: Density = "full",
    partial: bool = False,
) -> tuple[Array, Any]:  # fmt: skip
    """Does `noisefuse.update`, and computes the log-density of its result while that lies in the caches.

    Args:
        table, i, x, model_output, noise, past, out, aux_out: as in `noisefuse.update`. With ``partial`` a window of the
            noise is a run of elements that begins and ends with chunks of 4,096 of the whole sample.
        reduction, density, partial: as in `log_prob`.

    Returns:
        (x_next, log_prob). The latter equals that of `log_prob`, bit for bit.

    Raises:
        IndexError, TypeError, ValueError: as in `noisefuse.update` and `log_prob`; nothing is written then.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> x, m = np.ones((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32)
    >>> x_next, log_prob = nf.density.update_with_log_prob(table, 4, x, m, nf.Noise(7))
    >>> x_next.shape, log_prob.shape
    ((2, 3, 8), (2,))
    """
    library = None if type(x) is np.ndarray else library_of(x)
    options: dict[str, Any] = {"reduction": reduction, "density": density, "partial": partial}
    if isinstance(aux_out, int) and is_written(x):
        raise TypeError(f"aux_out: expected a sequence of arrays, got {type(aux_out).__name__}")
    if library is None or not library.is_traced():
        pair: tuple[Array, Any] = fast(table, False, i, x, model_output, past, noise, out, aux_out, options)
        if pair is not NotImplemented:
            return pair
    if library is not None:
        options |= {"past": past, "out": out, "aux_out": aux_out}
        return library.update_with_log_prob(table, i, x, model_output, noise, **options)
    if levels_of(getattr(out, "dtype", None)):
        raise TypeError("out: expected x's dtype, as a result that is rounded to integers has no density")
    step = update_call(table, i, x, model_output, past, noise, out, aux_out)
    index = Index(step.index, step.segment)
    law = _law(table, index, step, reduction, density)
    if partial:
        for name in step.noise:
            place_of((name,), step.sample_shape, None)
    given, step = step.outputs, _apart(step)
    made = step.outputs[0]
    assert made is not None
    inputs: Inputs = {slot: a for slot, a in enumerate((*step.inputs[:Z], made)) if a is not None}
    call = _residual(table, made, index, inputs, {})
    found: Any
    if partial:
        run(step)
        found = Part(_chunk_sums(call), law)
    else:
        found = law.of(_sums(call, step))
    for to, result in zip(given, step.outputs, strict=True):
        if to is not None and to is not result:
            to[...] = result
    return given[0], found


# ---- the fast path -----------------------------------------------------------------------------------------


def fast_table(table: Any) -> Any:
    """Returns what the fast path takes, or None. The table keeps it, as even a hash of it would take as long as the
    call."""
    if type(table) is not Tableau:
        return None
    try:
        return table.kept[fast_table]
    except KeyError:
        return table.kept.setdefault(fast_table, _fast_table(table))


def _fast_table(table: Tableau) -> Any:
    """Returns the table's rows, the deviation's rows, and `Law`'s factor and constant of one element for each row
    (zeros if it draws nothing). None sends the call to the checked path, which raises the error."""
    if table.clamps or table.threshold or table.masked:
        return None
    laws = numbers_of_rows(table, 1, "sum", "full")
    laws[np.isnan(laws)] = 0
    return table.as_rows.plain, _deviation(table).as_rows.plain, laws


def fast(
    table: Tableau, stored: bool, i: ArrayLike | Array, x: Array, model_output: Models, past: Sequence[Array],
    noise: NoiseLike, out: Array | None, aux_out: Sequence[Array], law: dict[str, Any],
) -> Any:  # fmt: skip
    """Computes `update_with_log_prob`, or `log_prob` if `stored`: `noise` is the stored array then. It may return
    NotImplemented."""
    return backends.fast_density(fast_table(table), stored, i, x, model_output, past, noise, SAMPLER, out, aux_out, law)


_COLUMN_OF = {name: NAMES.index(f"out.{name}") for name in ("m1", "m2", "x")}


def fast_gradient(
    table: Tableau, wrt: Any, i: ArrayLike | Array, x: Array, model_output: Models, past: Sequence[Array],
    x_next: Array, upstream: Any, out: Array | None, law: dict[str, Any],
) -> Any:  # fmt: skip
    """Computes `log_prob_grad`, or returns NotImplemented."""
    plain, column = fast_table(table), _COLUMN_OF.get(wrt) if type(wrt) is str else None
    return backends.fast_density_gradient(plain, column, i, x, model_output, past, x_next, upstream, out, law)


def fast_kl(
    table: Tableau, i: ArrayLike | Array, model_output: Array, reference: Array, upstream: Any, out: Array | None,
    law: dict[str, Any],
) -> Any:  # fmt: skip
    """`kl`, or `kl_grad` if there is an upstream gradient; or NotImplemented."""
    plain = fast_table(table)
    rows = None if plain is None else _differences(len(table)).plain
    return backends.fast_divergence(plain, rows, _COLUMN_OF["m1"], i, model_output, reference, upstream, out, law)


# ---- the parts of a sample ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """The map from a sample's sum of squares to its log-density: factor S + constant, for each sample or all."""

    std: Any  # float64, () or (B,)
    elements: int  # a sample's elements
    reduction: OverElements
    density: Density

    def __post_init__(self) -> None:
        check_integer("elements", self.elements, 0)
        check_choice("reduction", self.reduction, get_args(OverElements))
        check_choice("density", self.density, get_args(Density))

    __setstate__: ClassVar[SetState] = make_again

    @property
    def factor(self) -> Any:
        whole = -1.0 if self.density == "squared" else -1 / (2 * self.std * self.std)
        return whole / max(1, self.elements) if self.reduction == "mean" else whole

    @property
    def constant(self) -> Any:
        if self.density != "full":
            return 0.0
        # Python's own: NumPy's logarithms of arrays differ in the last bits between processors.
        logs = np.reshape([math.log(std) for std in np.ravel(self.std)], np.shape(self.std))
        each = -(logs + 0.5 * math.log(2 * math.pi))
        return each if self.reduction == "mean" else self.elements * each

    def of(self, sums: Array) -> Array:
        return _scaled(sums, self.factor, self.constant)


@dataclass(frozen=True)
class Part:
    """A part's contribution to each sample's log-density: the sums of its chunks, (B, chunks), float64. `combine` turns
    all parts into log-densities. Parts can be pickled, or sent as the array, in ``replace(part, sums=array)``."""

    sums: Array
    law: Law

    def __post_init__(self) -> None:
        if not isinstance(self.law, Law):
            raise TypeError(f"law: expected that of a part, got {type(self.law).__name__}")
        shape, chunks = np.shape(self.sums), chunks_of(self.law.elements)
        if len(shape) != 2 or shape[1] != chunks or np.shape(self.law.std) not in ((), shape[:1]):
            given = f"{tuple(shape)} and {np.shape(self.law.std)}"
            raise ValueError(f"sums, law.std: expected shapes (B, {chunks}) and (B,), got {given}")
        if not str(getattr(self.sums, "dtype", "")).endswith("float64"):
            raise TypeError(f"sums: expected an array of float64, got {getattr(self.sums, 'dtype', type(self.sums))}")

    __setstate__: ClassVar[SetState] = make_again


def combine(parts: Any) -> Any:
    """Returns the log-densities (B,) of samples from their parts. The bits are those of the whole, wherever it was cut.

    For the parts of `mse_loss` it returns the loss. Such parts may also be of different samples; the parts of the first
    samples come first.

    Args:
        parts: the results of calls with ``partial=True``, in order. Chunks are counted in the whole sample, and all
            parts but the last have a multiple of 4,096 elements of each sample.

    Returns:
        (B,) in float64, of the parts' kind; or the loss, as `mse_loss` of the whole returns it.

    Raises:
        ValueError: a part cuts a chunk, or parts have different batches, rows or conventions.
        TypeError: an entry is no part.

    >>> table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10).tableau
    >>> x, m = np.ones((2, 4, 64, 64), np.float32), np.zeros((2, 4, 64, 64), np.float32)
    >>> halves = np.split(x, 2, axis=1)
    >>> parts = [nf.density.log_prob(table, 4, half, 0 * half, half, partial=True) for half in halves]
    >>> bool((nf.density.combine(parts) == nf.density.log_prob(table, 4, x, m, x)).all())
    True
    """
    if not parts:
        raise ValueError("parts: expected at least one")
    kind = LossPart if isinstance(parts[0], LossPart) else Part
    for n, part in enumerate(parts):
        if not isinstance(part, kind):
            raise TypeError(f"parts[{n}]: expected what partial=True gives, got {type(part).__name__}")
    if kind is LossPart:
        return combined(parts)
    if (library := library_of(parts[0].sums)) is not None:
        whole = combine([replace(part, sums=library.to_numpy(part.sums)) for part in parts])
        return library.moved(whole, parts[0].sums)
    first = parts[0].law
    for n, part in enumerate(parts):
        same = replace(part.law, elements=first.elements, std=first.std) == first
        if not same or part.sums.shape[0] != parts[0].sums.shape[0] or not np.array_equal(part.law.std, first.std):
            raise ValueError(
                f"parts[{n}]: expected a part of the same samples, rows, reduction and density as parts[0]"
            )
    for n, part in enumerate(parts[:-1]):
        if part.law.elements % LOSS_CHUNK:
            raise ValueError(
                f"parts[{n}]: has {part.law.elements} elements of each sample, expected a multiple of {LOSS_CHUNK}: "
                "sums are taken over chunks of the whole sample"
            )
    chunks = [column for part in parts for column in part.sums.T]
    sums = chunks[0]
    for column in chunks[1:]:
        sums = sums + column  # in the order of the contract
    return replace(first, elements=sum(part.law.elements for part in parts)).of(sums)


# ---- the common part ---------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _deviation(table: Tableau) -> Tableau:
    """Returns the rows of x' - mean, with x' in place of the noise."""
    try:
        forward = table.unfolded().rows["out"]
    except ValueError:
        raise ValueError(
            f"{table.name} bounds its estimate of the clean sample (clip), so its mean is not linear in the model "
            "output: expected a row without bounds"
        ) from None
    rows = np.zeros(len(table), ROW)
    rows["clean"]["lo"], rows["clean"]["hi"] = -math.inf, math.inf
    for symbol in SYMBOLS:
        rows["out"][symbol] = -forward[symbol]
    rows["out"]["z"] = 1
    return Tableau(rows, name=f"{table.name}: x' - mean")


def stored_call(
    table: Tableau, i: ArrayLike | Array, x: Array, model_output: Models, x_next: Array, past: Sequence[Array],
    reduction: str, density: str, outs: Outs,
) -> tuple[Step, Law]:  # fmt: skip
    """Returns the residual of a stored x' as a checked call, and the map from its sum of squares to a log-density."""
    check_tableau("table", table)
    x = as_array("x", x)
    inputs = inputs_of(x, model_output, past)
    inputs[Z] = like("x_next", x_next, x, (x.dtype.name,))
    index = _index(table, i, x)
    call = _residual(table, x, index, inputs, outs)
    return call, _law(table, index, call, reduction, density)


def _index(table: Tableau, i: ArrayLike | Array, x: Array) -> Index:
    """Returns the row of each sample."""
    if on_device(i):
        raise TypeError("i: expected row numbers in host memory")
    if np.ndim(i) > 1:
        raise ValueError(f"i: expected a row number or (B,) of them, got shape {np.shape(i)}")
    return row_index("i", i, len(table), x.shape)


def _law(table: Tableau, index: Index, call: Step, reduction: str, density: str) -> Law:
    std = np.abs(table.rows["out"]["z"][index.values])
    if density != "squared" and not std.all():
        row = index.values[std == 0][0]
        raise ValueError(f"row {row} of {table.name} draws no noise: its std is 0, so it has no density")
    return Law(_each(std), call.size, reduction, density)  # type: ignore[arg-type]


def numbers_of_rows(
    table: Tableau, elements: int, reduction: OverElements, density: Density | Literal["kl"]
) -> NDArray[np.float64]:
    """Returns factor and constant of each row, (n, 2), for a traced row number; NaN for a row that draws nothing."""
    std = np.abs(table.rows["out"]["z"])
    std = np.where(std == 0, math.nan, std)
    law, found = Law(std, elements, reduction, "full" if density == "kl" else density), np.empty((len(table), 2))
    found[:, 0], found[:, 1] = law.factor, law.constant
    if density == "kl":
        found[:, 0], found[:, 1] = _of_models(table, law, slice(None)), 0
    return found


def _of_models(table: Tableau, law: Law, rows: Any) -> Any:
    """Returns the factor for the squared difference of two model outputs."""
    slope = _each(_deviation(table).rows["out"]["m1"][rows])
    return -law.factor * slope * slope


def _each(values: NDArray[np.float64]) -> Any:
    """Returns one number, or one for each sample."""
    return values[0] if values.size == 1 else values


def _apart(step: Step) -> Step:
    """Replaces outputs that overlap an input by new ones, because the density reads the inputs later."""

    def own(out: Array | None) -> Array | None:
        if out is None or not any(a is not None and overlap(out, a) for a in step.inputs):
            return out
        return output("", None, out.shape, out.dtype, device_of(out))

    return step._replace(outputs=tuple(map(own, step.outputs)))


def _residual(table: Tableau, x: Array, index: Index, inputs: Inputs, outs: Outs) -> Step:
    rows = _deviation(table).as_rows
    # The dtype is that of m1, which must be given even if the row does not read it. Beside float64 it is not left
    # narrow, since it chooses the arithmetic.
    given = {M1: x} | those_read(rows, inputs, x)
    given[M1] = given[M1] if x.dtype.itemsize < 8 else converted(given[M1], x.dtype)
    return make_call(x.shape, x.dtype, rows, index, (), given, outs)


@lru_cache(maxsize=64)
def _differences(n: int) -> Rows:
    return Rows.of({"out.m1": np.ones(n), "out.x": -np.ones(n)})


def pair_call(
    table: Tableau, i: ArrayLike | Array, model_output: Array, reference: Array, reduction: str, outs: Outs
) -> tuple[Step, Any]:
    """Returns the difference of two model outputs, and the factor of its sum of squares."""
    check_tableau("table", table)
    m = as_array("model_output", model_output)
    q = like("reference", reference, m, (m.dtype.name,))
    index = _index(table, i, m)
    call = make_call(m.shape, m.dtype, _differences(len(table)), index, (), {X: q, M1: m}, outs)
    return call, _of_models(table, _law(table, index, call, reduction, "full"), index.values)


def _sums(call: Step, before: Step | None = None) -> Array:
    """Returns (batch,): sums of the squares of a residual, once the step before it is done."""
    pred = call.inputs[M1]
    sums = output("", None, (call.batch,), np.dtype(np.float64), device_of(pred))
    if not call.batch * call.size:
        sums[...] = 0
        return sums
    backend, loss = backends.of(pred), Loss(call, call.size, None, _ONE, 1, sums)
    if before is None or backend.run(StepAndLoss(before, loss)) is NotImplemented:
        for one in (loss,) if before is None else (before, loss):
            backend.run(one)
    return sums


_ONE = np.ones(())


def _chunk_sums(call: Step) -> Array:
    """Returns (batch, chunks): each chunk is treated as a sample."""
    if call.size <= LOSS_CHUNK:
        return _sums(call).reshape(-1, 1)
    return chunk_sums(call, call.size, 0, call.size)[:, 0]


def _gradient(call: Step, factor: Any, upstream: ArrayLike) -> Array:
    """Returns 2 factor upstream times the residual, which the call's output holds."""
    g: Any = as_reals("upstream", upstream)
    if g.shape not in ((), (call.batch,)):
        raise ValueError(f"upstream: expected a number or shape ({call.batch},), got shape {g.shape}")
    out = call.outputs[0]
    assert out is not None
    if call.batch * call.size:
        weighted = g * _like(g, factor)
        weighted = weighted if on_device(g) else np.asarray(weighted)  # 0-d products are no arrays
        backends.of(out).run(Loss(call, call.size, None, weighted, 1, None))
    return out


def _like(a: Array, number: Any) -> Any:
    """Returns the number or numbers on a's device."""
    cupy: Any = None if device_of(a) is None else sys.modules.get("cupy")  # arrays of Triton take NumPy's
    return (cupy or np).asarray(number)


def _scaled(sums: Array, factor: Any, constant: Any) -> Array:
    with np.errstate(all="ignore"):  # as in native
        return sums * _like(sums, factor) + _like(sums, constant)
