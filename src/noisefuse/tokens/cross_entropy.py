# SPDX-License-Identifier: Apache-2.0
"""The loss of masked diffusion: cross entropies of the masked positions, and their gradient, in one read of a row."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import (
    allocator,
    as_array,
    as_numbers,
    contiguous,
    of_samples,
    of_triton,
    one_place,
    output,
    overlap,
    same,
    spread_bools,
)
from ..arguments.types import Array, ArrayT, Like, Reduction
from ..call.description import TOKENS, CrossEntropy
from ..ground.checks import check_choice, check_integer, lie_within
from ..ground.float_mode import float_mode
from ..ground.libraries import library_of
from ..language.levels import LOGITS


@overload
def masked_cross_entropy(
    logits: NDArray[Any], ids: ArrayLike, masked: ArrayLike | None = ..., weight: ArrayLike | None = ..., *,
    reduction: Literal["mean"] = ..., ignore_index: int | None = ...,
) -> float: ...  # fmt: skip
@overload
def masked_cross_entropy(
    logits: Like[ArrayT], ids: Array, masked: Array | None = ..., weight: Array | None = ..., *,
    reduction: Reduction = ..., ignore_index: int | None = ...,
) -> ArrayT: ...  # fmt: skip
def masked_cross_entropy(
    logits: Array, ids: Array, masked: Array | None = None, weight: Array | None = None, *,
    reduction: Reduction = "mean", ignore_index: int | None = None,
) -> Any:  # fmt: skip
    """Returns the mean of w (-log softmax(logits)[id]) over all rows. Only masked rows count; the others add 0.

    This is the loss of LLaDA and MDLM: w is 1 / p, where p is the probability with which a position was masked.

    Args:
        logits: (B, .., V) float32, float16 or bfloat16, V <= 2^20.
        ids: (B, ..) integers, the clean tokens. Ids of rows that do not count are ignored.
        masked: (B, ..) bool, or a shape that broadcasts to it: the rows that count. None: all.
        weight: w >= 0, a number, (B,) or (B, 1) for each sample, or an array with the rows' axes that broadcasts to
            them. None: 1.
        reduction: "mean" over all rows, masked or not, or "none": w times the loss of each row.
        ignore_index: rows with this id do not count either, as labels of trainers have -100. (torch's mean is over the
            others alone.)

    Returns:
        The loss, a float, or float64 (B, ..). The bits are the same on every backend and for any number of threads
        (docs/loss.md). Tensors and JAX's arrays give float32, differentiable (once)
        through the logits. A row that counts and has a NaN, or no finite largest logit, makes the loss NaN.

    Raises:
        IndexError: an id that counts lies outside the vocabulary; nothing is written.
        TypeError, ValueError, OverflowError: the message says what was given and what was expected.

    Source: Sahoo et al. (2024), eq. 11; Nie et al. (2025), eq. 3. A row's loss is within 2 ulp of float32.

    >>> logits = np.zeros((2, 3, 4), np.float32)
    >>> round(nf.masked_cross_entropy(logits, np.zeros((2, 3), int), [True, False, False]), 6)
    0.462098
    """
    if ignore_index is not None:
        masked = _counted(ids, masked, ignore_index)
    library = None if type(logits) is np.ndarray else library_of(logits)
    if (library is None or not library.is_traced()) and reduction in ("mean", "none"):
        weights = 1.0 if weight is None else weight
        loss = backends.fast_cross_entropy(logits, ids, masked, weights, reduction == "none", 1.0, None, None, None)
        if library is not None and type(loss) is tuple:
            names = "logits", "ids", "masked", "weight"
            tensors, rest = ((logits,), (ids,)) if type(ids) is np.ndarray else ((logits, ids), ())
            return library.with_gradient("masked_cross_entropy", loss, logits, names, tensors, (*rest, masked, weight))
        if loss is not NotImplemented:
            return loss
    if library is not None:
        return library.masked_cross_entropy(logits, ids, masked, weight, reduction=reduction)
    return checked(logits, ids, masked, weight, reduction)[0]


@overload
def masked_cross_entropy_and_grad(
    logits: NDArray[Any], ids: ArrayLike, masked: ArrayLike | None = ..., weight: ArrayLike | None = ..., *,
    reduction: Literal["mean"] = ..., ignore_index: int | None = ..., upstream: ArrayLike = ...,
    out: NDArray[Any] | None = ...,
) -> tuple[float, NDArray[Any]]: ...  # fmt: skip
@overload
def masked_cross_entropy_and_grad(
    logits: Like[ArrayT], ids: Array, masked: Array | None = ..., weight: Array | None = ..., *,
    reduction: Reduction = ..., ignore_index: int | None = ..., upstream: ArrayLike | Array = ...,
    out: Like[ArrayT] | None = ...,
) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
def masked_cross_entropy_and_grad(
    logits: Array, ids: Array, masked: Array | None = None, weight: Array | None = None, *,
    reduction: Reduction = "mean", ignore_index: int | None = None, upstream: ArrayLike | Array = 1.0,
    out: Array | None = None,
) -> Any:  # fmt: skip
    """Returns `masked_cross_entropy`, and its gradient with respect to the logits, which is computed while a row is in
    the caches.

        upstream w / n (softmax - 1 at the id),    n the number of rows in the mean, or 1;  0 in rows that do not count

    Args:
        logits, ids, masked, weight, reduction, ignore_index: as in `masked_cross_entropy`.
        upstream: the gradient with respect to the loss, a number, or with the reduction "none" as the weight.
        out: an array for the gradient; C-contiguous, of the logits' shape and dtype. It may be the logits themselves.

    Returns:
        The pair (loss, gradient). A tensor that autograd watches is refused, as `masked_cross_entropy` is
        differentiable.

    Raises:
        IndexError, TypeError, ValueError, OverflowError: as in `masked_cross_entropy`; nothing is written then.

    >>> logits = np.zeros((2, 3, 4), np.float32)
    >>> loss, gradient = nf.masked_cross_entropy_and_grad(logits, np.zeros((2, 3), int), [True, False, False])
    >>> round(loss, 6), gradient[0, 0].tolist()
    (0.462098, [-0.125, 0.0416666679084301, 0.0416666679084301, 0.0416666679084301])
    """
    if ignore_index is not None:
        masked = _counted(ids, masked, ignore_index)
    library = None if type(logits) is np.ndarray else library_of(logits)
    if (library is None or not library.is_traced()) and reduction in ("mean", "none"):
        weights, wanted = 1.0 if weight is None else weight, True if out is None else out
        loss = backends.fast_cross_entropy(
            logits, ids, masked, weights, reduction == "none", upstream, wanted, None, None
        )
        if loss is not NotImplemented:
            return loss
    if library is not None:
        options: dict[str, Any] = {"reduction": reduction, "upstream": upstream, "out": out}
        return library.masked_cross_entropy_and_grad(logits, ids, masked, weight, **options)
    return checked(logits, ids, masked, weight, reduction, upstream, True if out is None else out)


def _counted(ids: Any, masked: Any, ignore_index: Any) -> Any:
    """Returns the rows that count, with those out that have the id to ignore."""
    ids, masked = (np.asarray(one) if isinstance(one, list | tuple) else one for one in (ids, masked))
    counts = ids != check_integer("ignore_index", ignore_index)
    return counts if masked is None else counts & masked


def checked(
    logits: Any, ids: Any, masked: Any, weight: Any, reduction: Reduction, upstream: Any = 1.0, grad: Any = None,
    x_t: Any = None, p: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns the loss, and its gradient if it is wanted: grad is its array, or True for a new one. With x_t it is a
    `rate_loss`."""
    check_choice("reduction", reduction, get_args(Reduction))
    x = as_array("logits", logits, LOGITS)
    on_host = isinstance(x, np.ndarray)
    if not on_host and (x_t is not None or not of_triton(x)):
        name, what = ("masked_cross_entropy", "CuPy's arrays") if x_t is None else ("rate_loss", "CUDA devices")
        raise NotImplementedError(f"logits: {name} has no kernel for {what}; copy them to host memory")
    if not x.ndim or not 1 <= x.shape[-1] <= TOKENS:
        raise ValueError(f"logits: expected 1 to 2^20 tokens in the last axis, got shape {x.shape}")
    rows, n = x.shape[:-1], x.shape[-1]
    size = math.prod(rows)
    of_rates = x_t is not None
    ids, x_t = _integers("ids", ids, x.shape), _integers("x_t", x_t, x.shape) if of_rates else None
    counts: Any = np.ones(size, np.bool_) if on_host else None
    if masked is not None:  # a copy, as the gradient may be written there
        name = "where" if of_rates else "masked"
        counts = spread_bools(name, as_numbers(name, masked).copy(), rows).reshape(-1)
    tokens = _ids("ids", ids, counts, n)
    others = _ids("x_t", x_t, counts, n) if of_rates else None
    share = None if p is None else _numbers("p", p, rows)
    if share is not None and not lie_within(share, 2.0**-32, 1.0):
        first = share[~((share >= 2.0**-32) & (share <= 1))][0]
        raise ValueError(f"p: expected numbers from 2^-32 to 1, got {first}")
    weights = _numbers("weight", 1.0 if weight is None else weight, rows)
    if isinstance(weights, np.ndarray) and not (weights >= 0).all():
        raise ValueError(f"weight: expected numbers >= 0, got {weights[~(weights >= 0)][0]}")
    above = _numbers("upstream", upstream, rows if reduction == "none" else ())
    source = contiguous(x).reshape(size, n)
    empty = allocator(x)
    gradient = None
    if grad is not None:
        gradient = output("out", empty(x.shape, x.dtype) if grad is True else grad, x.shape, x.dtype)
        one_place([("logits", x), ("out", gradient)])
        if overlap(gradient, source) and not same(gradient, source):
            raise ValueError("out overlaps the logits in part: expected the logits themselves, or separate memory")
    losses = empty((size,) if on_host or reduction == "none" else (), np.dtype(np.float64))
    mean_of = size if reduction == "mean" else 1
    call = CrossEntropy(
        size, n, source, tokens, others, share, counts, weights, above, share is not None and len(share) > 1,
        len(weights) > 1, len(above) > 1, losses, None if gradient is None else gradient.reshape(size, n),
        float(mean_of), x.dtype,
    )  # fmt: skip
    if size:
        backends.of(x).run(call)
    elif not on_host:
        losses.fill(math.nan)
    if not on_host:
        return losses.reshape(rows) if reduction == "none" else losses, gradient
    return _reduced(losses, weights, counts, reduction, rows), gradient


@float_mode()
def _reduced(losses: Any, weights: Any, counts: Any, reduction: str, rows: tuple[int, ...]) -> Any:
    with np.errstate(all="ignore"):
        weighted = np.where(counts, weights * losses, 0.0)
        if reduction == "none":
            return weighted.reshape(rows)
        return float(np.cumsum(weighted)[-1] / len(weighted)) if len(weighted) else float("nan")  # cumsum adds in order


def _numbers(name: str, value: Any, rows: tuple[int, ...]) -> NDArray[np.float64]:
    array = as_numbers(name, value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype if array.dtype != object else repr(value)}")
    array = array.astype(np.dtype(np.float64))
    return (
        array.reshape(1) if array.size == 1 and array.ndim <= len(rows) else of_samples(name, array, rows).reshape(-1)
    )


def _integers(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """Returns integers, one for each row of logits of this shape."""
    array = as_numbers(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.shape != shape[:-1]:
        expected = f"shape {shape[:-1]}, as logits {shape} have the tokens last"
        raise ValueError(f"{name}: expected {expected}, got {array.shape}")
    return array


def _ids(name: str, array: Any, counts: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    if not isinstance(array, np.ndarray):  # of a device: an id outside of the vocabulary gives NaN
        return contiguous(array).reshape(-1)
    flat = array.flatten()  # kernels read the numbers that are checked
    bad = (True if not isinstance(counts, np.ndarray) else counts) & ((flat < 0) | (flat >= n))
    if bad.any():
        raise IndexError(f"{name}: {flat[bad][0]} is out of range: expected 0 <= id < {n}")
    return flat.astype(np.int64, copy=False)
